//! The steps of reclaim for a batch of folios.
//!
//! ```text
//! 1  the policy names folios; each is pinned and isolated
//! 2  it gets a slot, and so a place on a device; only then may an entry name the slot
//! 3  in a section: its home leads to the entries that map it; each is tried, none is waited for
//! 4  one invalidation for the batch, in no section
//! 5  a folio that no entry maps is freed if its slot has the bytes, and written otherwise
//! ```
//! A page of a file has no step 2. Its file leads to the entries in step 3 (`file_pages.rs`), and step 5 evicts it.
//!
//! From step 3 to step 4 only an old translation can store into the page. The pin keeps the frame, and a fault that meets the
//! slot meanwhile finds the folio isolated and undoes the reclaim (rule S2). Range work that finds the slot's entry invalidates
//! as if the page were there (rule S1).

use super::ageing::BATCH;
use super::file_pages::Files;
use super::groups::Victims;
use super::policy::Report;
use super::space_head::{Found, Refusal, Victim, VictimKind};
use crate::engine::{Engine, StaleBatch};
use crate::frame::Isolation;
use crate::host::{Frame, GroupId, Host, Slot};
use crate::limit::Event;
use crate::stats::Counter;
use crate::sync::plain::Ordering;
use crate::tables::places;
use alloc::sync::Arc;

/// The number of batches that one call tries.
const LOOKS: u32 = 16;

/// The greatest number of leaf tables in which one folio is searched for at a time. The count of its mappings decides whether it
/// can be freed, so a search that ends early delays, and loses nothing.
const RELATIVES: usize = 1000;

/// The outcome of reclaim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reclaimed {
    /// The number of frames that are free now.
    pub freed: u64,
    /// Whether pages are there that could not be taken at the moment: another thread has them or is at work on them, or they are
    /// being written.
    pub is_delayed: bool,
}

/// The kinds of pages that reclaim is to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kinds {
    All,
    /// Pages of files. Anonymous pages go back to the queues.
    Files,
}

/// The outcome of step 3 for a folio.
pub(super) enum Unmapped {
    /// No entry maps the folio.
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
    /// Tries to free `wanted` frames of pages of `kinds` of `group` and the groups below it, and returns the number of frames that are
    /// free now. The writes that it starts free more when they end. Waits for processors that have old translations, and for nothing
    /// else. Of a group with a limit it takes no more than it needs.
    ///
    /// The caller is in no section and has announced nothing.
    pub(crate) fn take_pages(self: &Arc<Self>, group: GroupId, wanted: u64, kinds: Kinds) -> Reclaimed {
        let mut sum = Reclaimed::default();
        if !self.reclaims() && !self.reclaims_files() {
            return sum;
        }
        // Those whose batches are under way have taken pages off the queues.
        let mut others = self.reclaim.reclaimers.fetch_add(1, Ordering::Relaxed);
        let mut files = Files::new();
        for _ in 0..LOOKS {
            let mut frames = [self.zero_frame(); BATCH];
            let most = if group == GroupId::ROOT { BATCH } else { (wanted as usize).min(BATCH) };
            let victims = self.next_victims(group, &mut frames[..most]);
            sum.is_delayed |= victims.is_delayed;
            if victims.count == 0 && victims.is_delayed {
                continue;
            }
            if victims.count == 0 {
                break;
            }
            self.counters().add(Counter::ReclaimLooks, victims.count as u64);
            self.sections().groups().note(victims.group, Event::Scanned, victims.count as u64);
            let batch = self.reclaim_batch(victims, &mut frames[..victims.count], kinds, &mut files);
            files.start_writeback();
            sum.freed += batch.freed;
            sum.is_delayed |= batch.is_delayed;
            if sum.freed >= wanted {
                break;
            }
        }
        others = others.max(self.reclaim.reclaimers.fetch_sub(1, Ordering::Relaxed) - 1);
        sum.is_delayed |= others != 0;
        sum
    }

    /// Tries to reclaim the pages of `frames`, which a caller in `group` has chosen. A frame may be free by now, or have another page.
    /// The caller is in no section and has announced nothing.
    pub(crate) fn reclaim_pages(self: &Arc<Self>, group: GroupId, frames: &mut [Frame]) {
        if self.reclaims() && !frames.is_empty() {
            let victims = Victims { group, count: frames.len(), takes_young: false, is_delayed: false };
            let mut files = Files::new();
            self.reclaim_batch(victims, frames, Kinds::All, &mut files);
            files.start_writeback();
        }
    }

    /// Tries one batch of mapped pages, and more until `wanted` frames are free. Returns the number of frames that are free now. For
    /// tests.
    #[cfg(any(test, feature = "audit"))]
    pub fn reclaim_for_tests(self: &Arc<Self>, wanted: u64) -> u64 {
        self.take_pages(GroupId::ROOT, wanted, Kinds::All).freed
    }

    /// Does steps 1 to 5 for the folios of `frames`.
    #[inline(never)]
    fn reclaim_batch(
        self: &Arc<Self>,
        victims: Victims,
        frames: &mut [Frame],
        kinds: Kinds,
        files: &mut Files<H>,
    ) -> Reclaimed {
        let group = victims.group;
        let mut is_delayed = false;
        let mut stale = StaleBatch::open(self);
        // The folios to be written or freed come first, then those that are only to be let go.
        let (mut out, mut kept) = (0, 0);
        for i in 0..frames.len() {
            let frame = frames[i];
            if kinds == Kinds::Files && self.folio(frame).is_anonymous() {
                self.report(group, frame, Report::Busy);
                continue;
            }
            let Some(isolation) = self.folio(frame).try_isolate() else {
                if self.folio(frame).is_free() {
                    self.report(victims.group, frame, Report::Freed);
                } else {
                    is_delayed = true;
                    self.pass_over(victims.group, frame, Refusal::Busy);
                }
                continue;
            };
            let unmapped = match isolation {
                Isolation::Anonymous => self.unmap(victims, frame, &mut stale),
                Isolation::File => self.unmap_file_page(victims, frame, false, files, &mut stale),
                Isolation::DirtyFile => self.unmap_file_page(victims, frame, true, files, &mut stale),
            };
            // The places before `i` are free for those that stay isolated.
            match unmapped {
                Unmapped::All => {
                    frames[out + kept] = frames[out];
                    frames[out] = frame;
                    out += 1;
                }
                Unmapped::Some | Unmapped::Dropped | Unmapped::File => {
                    frames[out + kept] = frame;
                    kept += 1;
                }
                Unmapped::None(refusal) => {
                    is_delayed |= matches!(refusal, Refusal::Busy | Refusal::Dirty);
                    self.end_isolation(frame);
                }
            }
        }
        // Rule S4: folios are isolated until no processor has an old translation. The mutant writes and frees them before.
        let mut late = Some(stale);
        if !mutant!("written_before_invalidate") {
            late.take().into_iter().for_each(StaleBatch::finish);
        }
        let mut freed = 0;
        let mut of_files = 0;
        for &frame in &frames[out..out + kept] {
            let folio = self.folio(frame);
            if !folio.is_anonymous() && folio.mappings() == 0 {
                of_files += 1;
                let is_freed = self.end_file_page(frame, files);
                if is_freed {
                    freed += 1;
                    self.counters().add(Counter::Evictions, 1);
                    let _ = self.evicted(GroupId::ROOT);
                }
                is_delayed |= !is_freed;
                self.report(group, frame, if is_freed { Report::Freed } else { Report::Taken });
                continue;
            }
            // This was the last reference to a page that is dropped.
            self.end_isolation(frame);
            if folio.is_free() {
                freed += 1;
                self.report(group, frame, Report::Freed);
            }
        }
        self.counters().add(Counter::Reclaimed, out as u64 + of_files);
        self.sections().groups().note(group, Event::Reclaimed, out as u64 + of_files);
        let written = self.write_out(&mut frames[..out]);
        late.into_iter().for_each(StaleBatch::finish);
        freed += self.report_taken(group, &frames[..out]);
        // A page that is pinned goes when its pin does.
        let is_delayed = is_delayed || written.started != 0 || written.busy != 0;
        Reclaimed { freed, is_delayed }
    }

    /// Reports and counts a folio that stays.
    pub(super) fn pass_over(&self, group: GroupId, frame: Frame, refusal: Refusal) {
        let (report, counter) = match refusal {
            Refusal::Young => (Report::Young, Counter::PassedYoung),
            Refusal::Busy => (Report::Busy, Counter::PassedBusy),
            Refusal::Gone => (Report::Busy, Counter::PassedLost),
            Refusal::Locked | Refusal::Pinned => (Report::Busy, Counter::PassedHeld),
            Refusal::Dirty => (Report::Busy, Counter::PassedDirty),
            Refusal::Full | Refusal::NoSlot | Refusal::NotAlone => (Report::Shared, Counter::PassedNoSlot),
        };
        self.counters().add(counter, 1);
        self.report(group, frame, report);
    }

    /// Lets an isolated folio go, and drops its pin.
    pub(super) fn end_isolation(&self, frame: Frame) {
        self.folio(frame).end_isolation();
        self.unpin(frame, crate::frame::Reference::Pin);
    }

    /// Does steps 2 and 3 for a folio that the caller has isolated.
    fn unmap(&self, victims: Victims, frame: Frame, stale: &mut StaleBatch<'_, H>) -> Unmapped {
        let folio = self.folio(frame);
        // A page that only a pin keeps: it ends with the pin, and its bytes are wanted by nobody.
        if folio.mappings() == 0 && !folio.is_in_slot() {
            self.pass_over(victims.group, frame, Refusal::Gone);
            return Unmapped::None(Refusal::Gone);
        }
        if folio.may_drop() {
            // A page after MADV_FREE needs no slot, unless fork has shared its leaf table since.
            match self.unmap_to(victims, frame, None, stale) {
                Unmapped::None(Refusal::NotAlone) => {}
                unmapped => return unmapped,
            }
        }
        match self.attach_slot(frame) {
            None => {
                self.pass_over(victims.group, frame, Refusal::NoSlot);
                Unmapped::None(Refusal::NoSlot)
            }
            slot => self.unmap_to(victims, frame, slot, stale),
        }
    }

    /// Does step 3 for a folio that the caller has isolated, and attached to the slot if there is one. Reports it if it stays.
    fn unmap_to(
        &self,
        victims: Victims,
        frame: Frame,
        slot: Option<(Slot, u16)>,
        stale: &mut StaleBatch<'_, H>,
    ) -> Unmapped {
        let folio = self.folio(frame);
        let kind =
            slot.map_or(VictimKind::Dropped, |(slot, generation)| VictimKind::Swapped(slot, generation));
        let victim = Victim { frame, kind, takes_young: victims.takes_young };
        let (mut taken, mut refusal) = (0, Refusal::Gone);
        stale.make_room();
        {
            let section = self.enter();
            if let Some(places) = places(folio, &section) {
                for record in places.records(&section).take(RELATIVES) {
                    if folio.mappings() == 0 || !stale.has_room() {
                        break;
                    }
                    let took = match Found::by_record(record, &section) {
                        Some(space) => space.take(places.index, victim, stale),
                        None => self.take_shared(record, places.index, victim, stale),
                    };
                    match took {
                        Ok(()) => taken += 1,
                        Err(why) => refusal = why,
                    }
                    // A page that is used, locked or pinned somewhere stays everywhere.
                    if let Err(Refusal::Young | Refusal::Locked | Refusal::Pinned) = took {
                        break;
                    }
                }
            }
        }
        let is_unmapped = folio.mappings() == 0;
        if is_unmapped {
            return if slot.is_some() { Unmapped::All } else { Unmapped::Dropped };
        }
        if refusal == Refusal::NotAlone {
            return Unmapped::None(refusal);
        }
        self.pass_over(victims.group, frame, refusal);
        if taken != 0 {
            return Unmapped::Some;
        }
        // Rule: an entry with the write right means that the folio has no slot. If no entry names the slot, it is of no use, unless it
        // has the page's bytes. Then no entry has the write right: a fault that gives it takes the folio out before.
        if slot.is_some_and(|(slot, _)| self.is_slot_unused(slot)) {
            self.take_out(frame);
        }
        Unmapped::None(refusal)
    }
}
