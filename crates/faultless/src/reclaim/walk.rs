//! The steps of reclaim for a batch of folios.
//!
//! ```text
//! 1  the policy names folios; each is pinned and isolated
//! 2  it gets a slot, and so a place on a device; only then may an entry name the slot
//! 3  in a section: its home leads to the entries that map it; each is tried, none is waited for
//! 4  one invalidation for the batch, in no section
//! 5  a folio that no entry maps is freed if its slot has the bytes, and written otherwise
//! ```
//! A page of a file has no step 2. Its file leads to the entries in step 3 (`file_pages.rs`), and step 5 evicts it. The page of a file
//! without a store gets its slot at the beginning of step 5.
//!
//! From step 3 to step 4 only an old translation can store into the page. The pin keeps the frame, and a fault that meets the
//! slot meanwhile finds the folio isolated and undoes the reclaim (rule S2). Range work that finds the slot's entry invalidates
//! as if the page were there (rule S1).

use super::ageing::BATCH;
use super::file_pages::Files;
use super::groups::{Class, Kinds, PageKind, Victims, Wanted};
use super::policy::Report;
use super::run::{EntryPlace, Run};
use super::space_head::{Found, Reach, Refusal, Victim, VictimKind};
use crate::engine::{Engine, StaleBatch};
use crate::frame::Isolation;
use crate::host::{Frame, GroupId, Host, Slot};
use crate::limit::Event;
use crate::stats::Counter;
use crate::sync::plain::Ordering;
use crate::tables::{LeafRecord, places};
use alloc::sync::Arc;

/// The number of batches that one call tries, or of passes over all pages if these are less than a batch. Pages that were young while
/// it had freed nothing do not count.
const LOOKS: usize = 16;

/// The number of young pages that one call tries while it has freed nothing, without counting them. After [`PASSES`] passes a page
/// is taken though it is young, so a call sees all pages of 4 GiB as often as needed.
///
/// [`PASSES`]: super::ageing::PASSES
const YOUNG_LOOKS: usize = 5 << 20;

/// The greatest number of entries that one search for a folio tries. The count of its mappings decides whether it can be freed, so a
/// search that ends early delays, and loses nothing. The next search passes over the entries that are taken.
const RELATIVES: u16 = 1000;

/// The greatest number of leaf tables in which one search looks. A folio with a mapping behind so many tables of its family that do not
/// map it is found when some of these tables have gone.
const LOOKS_FOR_ONE: usize = 4 * RELATIVES as usize;

/// The outcome of reclaim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reclaimed {
    /// The number of frames that are free now.
    pub freed: u64,
    /// The number of pages that were taken and whose frames are not free: most are being written to a swap device, and their frames are
    /// free when the writes end. Another thread may have a frame, or the page, by now.
    pub started: u64,
    /// Whether pages are there that could not be taken at the moment: another thread has them or is at work on them, or they are
    /// being written.
    pub is_delayed: bool,
}

/// The outcome of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Batch {
    sum: Reclaimed,
    /// The number of pages that stay since they were used.
    young: usize,
}

/// The folios of a batch after step 3. The first `out` frames are to be written or freed. The next `kept` ones are only to be let go.
#[derive(Default)]
struct Sorted {
    out: usize,
    kept: usize,
    is_delayed: bool,
    /// The number of pages that stay since they were used.
    young: usize,
}

/// The outcome of step 3 for a folio.
pub(super) enum Unmapped {
    /// No entry maps the folio, which has a slot or is to get one.
    All,
    /// Some entries name its slot now, and others still map it.
    Some,
    /// No entry maps the folio, and its bytes are not needed.
    Dropped,
    /// No entry maps the folio, which is a file's.
    File,
    /// No entry was changed.
    None(Refusal),
}

impl<H: Host> Engine<H> {
    /// Tries to free `wanted` frames of pages of `kinds`, of `group` and the groups below it. The writes that it starts free more when they
    /// end. If it takes pages of one group or kind alone, its batches have `wanted` pages at most. Waits for processors that have old
    /// translations, and for no I/O.
    ///
    /// The caller is in no section and has announced nothing.
    pub(crate) fn take_pages(self: &Arc<Self>, group: GroupId, wanted: u64, kinds: Kinds) -> Reclaimed {
        self.take_until(group, wanted, kinds, |sum| sum.freed >= wanted)
    }

    /// Does the work of [`Engine::take_pages`], and counts pages whose write was started as if they were free. So a slow device gets no
    /// more writes than are needed.
    pub(crate) fn take_few(self: &Arc<Self>, group: GroupId, wanted: u64) -> Reclaimed {
        self.take_until(group, wanted, Kinds::All, |sum| sum.freed + sum.started >= wanted)
    }

    fn take_until(
        self: &Arc<Self>,
        group: GroupId,
        wanted: u64,
        kinds: Kinds,
        is_enough: impl Fn(&Reclaimed) -> bool,
    ) -> Reclaimed {
        let mut sum = Reclaimed::default();
        if !self.reclaims() && !self.reclaims_files() {
            return sum;
        }
        // Those whose batches are under way have taken pages off the queues. So have those that end meanwhile.
        let ended = self.reclaim.ended.load(Ordering::Relaxed);
        let mut others = self.reclaim.reclaimers.fetch_add(1, Ordering::Relaxed);
        let mut files = Files::new();
        let mut ask = Wanted { kinds, ..Wanted::all_of(group) };
        let (mut looks, mut most_looks, mut young) = (0, LOOKS * BATCH, 0);
        while looks < most_looks && young < YOUNG_LOOKS {
            let takes_all = group == GroupId::ROOT && kinds == Kinds::All;
            let most = if takes_all { BATCH } else { wanted.clamp(1, BATCH as u64) as usize };
            let (victims, batch) = self.reclaim_next(ask, most, &mut files);
            sum.is_delayed |= victims.is_delayed;
            if victims.count == 0 {
                if !victims.is_delayed {
                    break;
                }
                looks += BATCH;
                continue;
            }
            sum.freed += batch.sum.freed;
            sum.started += batch.sum.started;
            sum.is_delayed |= batch.sum.is_delayed;
            if is_enough(&sum) {
                break;
            }
            looks += victims.count;
            most_looks = LOOKS * victims.length.clamp(1, BATCH as u64) as usize;
            if sum.freed == 0 {
                looks -= batch.young;
                young += batch.young;
                files.write_if_many(self);
            }
            // The pages that are written come first again when the writes end.
            if self.is_writing(&files) || files.has_handed_over() {
                break;
            }
            // The kind of this batch may have none that can be taken, and pages of threads that sleep may not be gathered.
            ask.gathers = batch.sum.freed == 0 && ask.first.is_none();
            ask.first = (batch.sum.freed == 0).then(|| victims.class.kind.other());
        }
        if !is_enough(&sum) {
            files.start_writeback(self);
        }
        sum.is_delayed |= self.give_homes_if_due(is_enough(&sum));
        let is_writing = self.is_writing(&files);
        others += self.reclaim.ended.fetch_add(1, Ordering::Relaxed) - ended;
        others = others.max(self.reclaim.reclaimers.fetch_sub(1, Ordering::Relaxed) - 1);
        sum.is_delayed |= others != 0 || is_writing || self.awaits_worker();
        sum
    }

    /// Tries one batch of the pages that `wanted` asks for, `most` at most, which is [`BATCH`] or less. Not inlined, so that the batch is
    /// off the stack when writeback starts.
    #[inline(never)]
    fn reclaim_next(self: &Arc<Self>, wanted: Wanted, most: usize, files: &mut Files<H>) -> (Victims, Batch) {
        let mut frames = [self.zero_frame(); BATCH];
        let victims = self.next_victims(wanted, &mut frames[..most]);
        if victims.count == 0 {
            return (victims, Batch::default());
        }
        self.counters().add(Counter::ReclaimLooks, victims.count as u64);
        self.sections().groups().note(victims.class.group, Event::Scanned, victims.count as u64);
        let batch = self.reclaim_batch(victims, &mut frames[..victims.count], wanted.kinds, files);
        (victims, batch)
    }

    /// Returns whether writes of dirty pages were started and have not ended.
    fn is_writing(&self, files: &Files<H>) -> bool {
        files.has_started() && self.cache.transfers.load(Ordering::Relaxed) != 0
    }

    /// Tries to reclaim the pages of `frames` that need a slot, which a caller in `group` has chosen. A frame may be free by now, or have
    /// another page. The caller is in no section and has announced nothing.
    pub(crate) fn reclaim_pages(self: &Arc<Self>, group: GroupId, frames: &mut [Frame]) {
        if self.reclaims() && !frames.is_empty() {
            let class = Class { group, kind: PageKind::Anonymous };
            let victims =
                Victims { class, count: frames.len(), length: 0, takes_young: false, is_delayed: false };
            let mut files = Files::new();
            self.reclaim_batch(victims, frames, Kinds::All, &mut files);
            files.start_writeback(self);
        }
    }

    /// Tries one batch of mapped pages, and more until `wanted` frames are free. Returns the number of frames that are free now. For
    /// tests.
    #[cfg(any(test, feature = "audit"))]
    pub fn reclaim_for_tests(self: &Arc<Self>, wanted: u64) -> u64 {
        self.take_pages(GroupId::ROOT, wanted, Kinds::All).freed
    }

    /// Does steps 1 to 5 for the folios of `frames`.
    fn reclaim_batch(
        self: &Arc<Self>,
        victims: Victims,
        frames: &mut [Frame],
        kinds: Kinds,
        files: &mut Files<H>,
    ) -> Batch {
        let sorted = self.unmap_batch(victims, frames, kinds, files);
        self.end_batch(victims.class, frames, sorted, files)
    }

    /// Does steps 1 to 4 for the folios of `frames`, and moves those that stay isolated to the front. Not inlined, so that its frame
    /// is off the stack when pages are written.
    #[inline(never)]
    fn unmap_batch(
        self: &Arc<Self>,
        victims: Victims,
        frames: &mut [Frame],
        kinds: Kinds,
        files: &mut Files<H>,
    ) -> Sorted {
        let mut stale = StaleBatch::open(self);
        let of_files = self.isolate_batch(victims, frames, kinds, files, &mut stale);
        let mut sorted = match of_files.out {
            // Reclaim of pages of files alone comes from deep on the stack.
            0 => Sorted::default(),
            out => self.unmap_anonymous(victims, &mut frames[..out], &mut stale),
        };
        let kept = of_files.out..of_files.out + of_files.kept;
        frames.copy_within(kept, sorted.out + sorted.kept);
        sorted.kept += of_files.kept;
        sorted.young += of_files.young;
        sorted.is_delayed |= of_files.is_delayed;
        // Rule S4: folios are isolated until no processor has an old translation. The mutant writes and frees them before.
        if mutant!("written_before_invalidate") {
            self.end_batch(victims.class, frames, core::mem::take(&mut sorted), files);
        }
        if mutant!("isolated_late") {
            let isolate = |frame: &Frame| self.folio(*frame).isolate_pinned();
            frames[..sorted.out + sorted.kept].iter().for_each(|frame| _ = isolate(frame));
        }
        stale.finish();
        sorted
    }

    /// Does step 1 for the folios of `frames`, and step 3 for those of files. The first that it sorts are those that are not mapped any
    /// more, and all anonymous ones.
    #[inline(never)]
    fn isolate_batch(
        self: &Arc<Self>,
        victims: Victims,
        frames: &mut [Frame],
        kinds: Kinds,
        files: &mut Files<H>,
        stale: &mut StaleBatch<'_, H>,
    ) -> Sorted {
        let class = victims.class;
        let mut sorted = Sorted::default();
        for i in 0..frames.len() {
            let frame = frames[i];
            let folio = self.folio(frame);
            if kinds == Kinds::Files && folio.is_of_swap() {
                self.report(class, frame, Report::Busy);
                continue;
            }
            let Some(isolation) = folio.try_isolate() else {
                if folio.is_free() {
                    self.report(class, frame, Report::Freed);
                } else if folio.is_at_work() {
                    sorted.is_delayed = true;
                    self.pass_over(class, frame, Refusal::Busy);
                } else {
                    self.pass_over(class, frame, Refusal::Pinned);
                }
                continue;
            };
            let unmapped = match isolation {
                _ if !victims.takes_young && self.was_found_around(frame) => {
                    self.pass_over(class, frame, Refusal::Young);
                    Unmapped::None(Refusal::Young)
                }
                Isolation::Anonymous => Unmapped::All,
                Isolation::File => self.unmap_file_page(victims, frame, false, files, stale),
                Isolation::DirtyFile => self.unmap_file_page(victims, frame, true, files, stale),
            };
            self.sort(frames, frame, unmapped, &mut sorted);
        }
        sorted
    }

    /// Does steps 2 and 3 for the anonymous folios of `frames`, which are isolated, in runs. The others are not mapped.
    #[inline(never)]
    fn unmap_anonymous(
        &self,
        victims: Victims,
        frames: &mut [Frame],
        stale: &mut StaleBatch<'_, H>,
    ) -> Sorted {
        let (mut sorted, mut run) = (Sorted::default(), Run::new(self.zero_frame()));
        for i in 0..frames.len() {
            let frame = frames[i];
            let folio = self.folio(frame);
            let unmapped = match folio.is_anonymous() {
                false => Unmapped::All,
                true => match self.begin_unmap(victims, frame, stale) {
                    Ok(slot) => match EntryPlace::of(folio) {
                        Some(place) => {
                            if !run.takes(place) {
                                self.unmap_run(victims, &mut run, stale, (frames, &mut sorted));
                            }
                            run.add(place, frame, slot, Reach::of(victims.takes_young));
                            continue;
                        }
                        None => self.unmap_to(victims, frame, Some(slot), false, stale),
                    },
                    Err(unmapped) => unmapped,
                },
            };
            self.sort(frames, frame, unmapped, &mut sorted);
        }
        self.unmap_run(victims, &mut run, stale, (frames, &mut sorted));
        sorted
    }

    /// Does step 5 for the folios of a batch, which are sorted.
    #[inline(never)]
    fn end_batch(
        self: &Arc<Self>,
        class: Class,
        frames: &mut [Frame],
        sorted: Sorted,
        files: &mut Files<H>,
    ) -> Batch {
        let Sorted { mut out, kept, mut is_delayed, young } = sorted;
        let (mut freed, mut of_files) = (0, 0);
        for &frame in &frames[out..out + kept] {
            let folio = self.folio(frame);
            if !folio.is_anonymous() && folio.mappings() == 0 {
                let is_freed = self.end_file_page(frame, files);
                if is_freed {
                    freed += 1;
                    of_files += 1;
                    self.counters().add(Counter::Evictions, 1);
                }
                is_delayed |= !is_freed;
                // Otherwise another thread has a reference.
                self.report(class, frame, if is_freed { Report::Freed } else { Report::Busy });
                continue;
            }
            // This was the last reference to a page that is dropped.
            self.end_isolation(frame);
            if folio.is_free() {
                freed += 1;
                self.report(class, frame, Report::Freed);
            } else {
                // A fault has mapped the page again. If only some entries were taken, this is the second report, and changes nothing.
                self.report(class, frame, Report::Busy);
            }
        }
        let moved = self.move_to_slots(class, &mut frames[..out], files);
        is_delayed |= moved != out;
        out = moved;
        self.counters().add(Counter::Reclaimed, out as u64 + of_files);
        self.sections().groups().note(class.group, Event::Reclaimed, out as u64 + of_files);
        let written = self.write_out(&mut frames[..out]);
        // With those whose write has ended already.
        let (are_free, started) = self.report_taken(class, &frames[..out]);
        freed += are_free;
        // A page that is pinned goes when its pin does.
        let is_delayed = is_delayed || started != 0 || written.busy != 0;
        Batch { sum: Reclaimed { freed, started, is_delayed }, young }
    }

    /// Sorts an isolated folio of a batch into its `frames` by the outcome of step 3, or lets it go. Only frames that were tried before, and
    /// are not sorted yet, lie between the places of those that are sorted.
    #[inline]
    fn sort(&self, frames: &mut [Frame], frame: Frame, unmapped: Unmapped, sorted: &mut Sorted) {
        let Sorted { out, kept, .. } = *sorted;
        match unmapped {
            Unmapped::All => {
                frames[out + kept] = frames[out];
                frames[out] = frame;
                sorted.out += 1;
            }
            Unmapped::Some | Unmapped::Dropped | Unmapped::File => {
                frames[out + kept] = frame;
                sorted.kept += 1;
            }
            Unmapped::None(refusal) => {
                sorted.is_delayed |= refusal == Refusal::Busy;
                sorted.young += usize::from(refusal == Refusal::Young);
                self.end_isolation(frame);
            }
        }
    }

    /// Does step 3 for the folios of `run`, which is empty afterwards, and sorts them.
    fn unmap_run(
        &self,
        victims: Victims,
        run: &mut Run,
        stale: &mut StaleBatch<'_, H>,
        (frames, sorted): (&mut [Frame], &mut Sorted),
    ) {
        while let Some(first) = run.first_untried() {
            stale.make_room();
            let section = self.enter();
            // Most pages have one entry, which their home names.
            let places = places(self.folio(first.frame), &section);
            match places.and_then(|places| Found::by_record(places.entry?, &section)) {
                Some(space) => space.take(run.victims(), stale),
                None => first.outcome = Some(Err(Refusal::Gone)),
            }
        }
        for victim in run.victims() {
            let frame = victim.frame;
            let VictimKind::Swapped(slot, generation) = victim.kind else { continue };
            let slot = Some((slot, generation));
            let unmapped = match victim.outcome() {
                Ok(()) if self.folio(frame).mappings() == 0 => Unmapped::All,
                // It has other entries, its home has changed, or several spaces have the table.
                Ok(()) => self.unmap_to(victims, frame, slot, true, stale),
                Err(Refusal::Gone) => self.unmap_to(victims, frame, slot, false, stale),
                Err(refusal) => self.stays(victims, frame, slot, refusal),
            };
            self.sort(frames, frame, unmapped, sorted);
        }
        run.clear();
    }

    /// Reports and counts a folio that stays.
    pub(super) fn pass_over(&self, class: Class, frame: Frame, refusal: Refusal) {
        let (report, counter) = match refusal {
            Refusal::Young => (Report::Young, Counter::PassedYoung),
            Refusal::Busy => (Report::Busy, Counter::PassedBusy),
            Refusal::Gone => (Report::Busy, Counter::PassedLost),
            Refusal::Locked | Refusal::Pinned => (Report::Busy, Counter::PassedHeld),
            Refusal::Dirty => (Report::Busy, Counter::PassedDirty),
            Refusal::Full | Refusal::NoSlot | Refusal::NotAlone => (Report::Shared, Counter::PassedNoSlot),
        };
        self.counters().add(counter, 1);
        self.report(class, frame, report);
    }

    /// Lets an isolated folio go, and drops its pin.
    pub(super) fn end_isolation(&self, frame: Frame) {
        self.folio(frame).end_isolation();
        self.unpin(frame, crate::frame::Reference::Pin);
    }

    /// Does step 2 for a folio that the caller has isolated, and returns its slot. Does step 3 too if the page needs no slot.
    ///
    /// # Errors
    /// The outcome, if nothing is left to do.
    #[inline]
    fn begin_unmap(
        &self,
        victims: Victims,
        frame: Frame,
        stale: &mut StaleBatch<'_, H>,
    ) -> Result<(Slot, u16), Unmapped> {
        let folio = self.folio(frame);
        // A page that only a pin keeps: it ends with the pin, and its bytes are wanted by nobody.
        if folio.mappings() == 0 && !folio.is_in_slot() {
            self.pass_over(victims.class, frame, Refusal::Gone);
            return Err(Unmapped::None(Refusal::Gone));
        }
        if folio.may_drop() {
            // A page after MADV_FREE needs no slot, unless fork has shared its leaf table since.
            match self.unmap_to(victims, frame, None, false, stale) {
                Unmapped::None(Refusal::NotAlone) => {}
                unmapped => return Err(unmapped),
            }
        }
        self.attach_slot(frame).ok_or_else(|| {
            self.pass_over(victims.class, frame, Refusal::NoSlot);
            Unmapped::None(Refusal::NoSlot)
        })
    }

    /// Does step 3 for a folio that the caller has isolated, and attached to the slot if there is one. `has_taken`: an entry has been taken
    /// before. Reports it if it stays.
    fn unmap_to(
        &self,
        victims: Victims,
        frame: Frame,
        slot: Option<(Slot, u16)>,
        has_taken: bool,
        stale: &mut StaleBatch<'_, H>,
    ) -> Unmapped {
        let folio = self.folio(frame);
        let kind =
            slot.map_or(VictimKind::Dropped, |(slot, generation)| VictimKind::Swapped(slot, generation));
        let (mut has_taken, mut tried, mut refusal) = (has_taken, 0_u16, Refusal::Gone);
        stale.make_room();
        {
            let section = self.enter();
            if let Some(places) = places(folio, &section) {
                let victim = Victim::new(frame, kind, Reach::of(victims.takes_young), places.index);
                // Returns whether the search goes on.
                let mut ask = |record: &LeafRecord| {
                    let took = match Found::by_record(record, &section) {
                        Some(space) => {
                            let mut victim = [victim];
                            space.take(&mut victim, stale);
                            victim[0].outcome()
                        }
                        None => self.take_shared(record, places.index, victim, stale),
                    };
                    match took {
                        Ok(()) => has_taken = true,
                        Err(why) => refusal = why,
                    }
                    if took != Err(Refusal::Gone) || mutant!("relatives_are_tries") {
                        tried += 1;
                    }
                    // A page that is used, locked or pinned somewhere stays everywhere.
                    let stays = matches!(took, Err(Refusal::Young | Refusal::Locked | Refusal::Pinned));
                    !stays && folio.mappings() != 0 && stale.has_room() && tried < RELATIVES
                };
                if places.entry.is_none_or(&mut ask) {
                    places.relatives(&section).take(LOOKS_FOR_ONE).all(ask);
                }
            } else if folio.lacks_home() {
                self.reclaim.note_homeless();
            }
        }
        if folio.mappings() == 0 {
            return if slot.is_some() { Unmapped::All } else { Unmapped::Dropped };
        }
        if has_taken {
            self.pass_over(victims.class, frame, refusal);
            return Unmapped::Some;
        }
        if refusal == Refusal::NotAlone {
            return Unmapped::None(refusal);
        }
        self.stays(victims, frame, slot, refusal)
    }

    /// Reports an isolated folio of which no entry was taken. Takes it out of its slot if that is of no use.
    fn stays(&self, victims: Victims, frame: Frame, slot: Option<(Slot, u16)>, refusal: Refusal) -> Unmapped {
        self.pass_over(victims.class, frame, refusal);
        // Rule: an entry with the write right means that the folio has no slot. If no entry names the slot, it is of no use, unless it
        // has the page's bytes. Then no entry has the write right: a fault that gives it takes the folio out before.
        if slot.is_some_and(|(slot, _)| self.is_slot_unused(slot)) {
            self.take_out(frame);
        }
        Unmapped::None(refusal)
    }
}
