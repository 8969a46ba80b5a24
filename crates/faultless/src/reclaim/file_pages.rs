//! Reclaim of pages of files. The entries of a mapped page are found through the file: its spaces, and their mappings of it.
//!
//! ```text
//!  folio ──home──► file ──spaces, in the order of their numbers──► mappings that show the page ──► entries
//! ```
//! A page that no entry maps is evicted without a walk. The count of mappings decides whether the page can be freed. So a walk may end
//! early, and may miss an entry that moves.
//!
//! A page of a file without a store is taken in the same way, and goes to a slot after the invalidation (`page_cache/in_slots.rs`).

use super::groups::{Class, Victims};
use super::policy::Report;
use super::space_head::{Reach, Refusal, Victim, VictimKind};
use super::walk::Unmapped;
use crate::engine::{Engine, StaleBatch};
use crate::frame::Folio;
use crate::host::{Frame, Host};
use crate::page_cache::File;
use crate::sync::Shared;
use smallvec::SmallVec;

/// The greatest number of entries that one search for the entries of a page tries.
const ENTRIES: usize = 1000;

/// The greatest number of mappings in which the searches of one call look after their first [`ENTRIES`]. Most of these may have no entry
/// with the page, such as those of an earlier search that ended early.
const LOOKS: usize = 64 * ENTRIES;

/// The number of noted dirty pages at which reclaim has them written, if it has freed no page. Together they are few transfers.
const MANY_DIRTY: usize = 16;

/// The search for the entries of one page, which ends when no entry is left, or when one must stay.
pub(crate) struct Taking<'a, 'b, H: Host> {
    victim: Victim,
    folio: &'a Folio,
    stale: &'a mut StaleBatch<'b, H>,
    looks: usize,
    most_looks: usize,
    tried: usize,
    taken: usize,
    refusal: Refusal,
}

impl<'b, H: Host> Taking<'_, 'b, H> {
    /// Returns whether the search goes on.
    pub(crate) fn goes_on(&self) -> bool {
        // A page that is used, locked or pinned somewhere stays everywhere. So does a page that a store has made dirty.
        let stays =
            matches!(self.refusal, Refusal::Young | Refusal::Locked | Refusal::Pinned | Refusal::Dirty);
        let is_long = self.looks >= self.most_looks || self.tried >= ENTRIES;
        !stays && !is_long && self.folio.mappings() != 0
    }

    /// Tries to take one entry, by `take`. The caller is in no section.
    pub(crate) fn take(&mut self, take: impl FnOnce(Victim, &mut StaleBatch<'b, H>) -> Result<(), Refusal>) {
        self.stale.make_room();
        self.looks += 1;
        match take(self.victim, self.stale) {
            Ok(()) => self.taken += 1,
            // Mappings that show the page need not have mapped it.
            Err(Refusal::Gone) if mutant!("looks_are_tries") => {}
            Err(Refusal::Gone) => return,
            Err(refusal) => self.refusal = refusal,
        }
        self.tried += 1;
    }
}

/// Files of the pages of a batch.
pub(super) struct Files<H: Host> {
    /// The file of the last page: neighbours in the queues are often of one file.
    last: Option<Shared<File<H>>>,
    /// Pages that have to be written, as far as there is memory to note them: [`MANY_DIRTY`] at most.
    dirty: SmallVec<[(Shared<File<H>>, u64); 1]>,
    /// Whether a noted page was met again: all pages have been looked at.
    has_met_again: bool,
    /// Whether dirty pages were handed over to the worker.
    has_handed_over: bool,
    /// Whether writeback of dirty pages was started.
    has_started: bool,
    /// The number of looks that are left of [`LOOKS`].
    looks_left: usize,
    /// Whether a swap device had a place when a page of a file without a store asked last.
    has_place: Option<bool>,
}

impl<H: Host> Files<H> {
    pub fn new() -> Self {
        Self {
            last: None,
            dirty: SmallVec::new(),
            has_met_again: false,
            has_handed_over: false,
            has_started: false,
            looks_left: LOOKS,
            has_place: None,
        }
    }

    /// Returns the file of `frame`, which the caller has isolated.
    fn of(&mut self, engine: &Engine<H>, frame: Frame) -> Option<&Shared<File<H>>> {
        let is_last = self.last.as_ref().is_some_and(|file| engine.folio(frame).is_page_of(file.home()));
        if !is_last {
            self.last = engine.file_of(frame);
        }
        self.last.as_ref()
    }

    /// Notes that `page` of the last file has to be written.
    fn note_dirty(&mut self, page: u64) {
        let Some(file) = &self.last else { return };
        let is_noted = |(other, noted): &(Shared<File<H>>, u64)| *noted == page && other.id() == file.id();
        if self.dirty.iter().any(is_noted) {
            self.has_met_again = true;
        } else if self.dirty.len() < MANY_DIRTY
            && (self.dirty.len() < self.dirty.capacity() || self.dirty.try_reserve(MANY_DIRTY).is_ok())
        {
            self.dirty.push((file.clone(), page));
        }
    }

    /// Has the noted dirty pages written, if there are many, or if all pages have been looked at.
    pub fn write_if_many(&mut self, engine: &Engine<H>) {
        if self.has_met_again || self.dirty.len() >= MANY_DIRTY {
            self.start_writeback(engine);
        }
    }

    /// Returns whether dirty pages were handed over to the worker.
    pub fn has_handed_over(&self) -> bool {
        self.has_handed_over
    }

    /// Returns whether writeback of dirty pages was started.
    pub fn has_started(&self) -> bool {
        self.has_started
    }

    /// Hands the dirty pages to the background worker, or starts their writeback, in the order of their files. The caller is in no
    /// section, and has no open batch.
    #[inline(never)]
    pub fn start_writeback(&mut self, engine: &Engine<H>) {
        self.last = None;
        self.has_met_again = false;
        if self.dirty.is_empty() {
            return;
        }
        let takes_over = engine.ask_worker();
        self.dirty.sort_unstable_by_key(|(file, page)| (file.id(), *page));
        let mut rest = &self.dirty[..];
        let mut pauses = None;
        while let [(file, first), ..] = rest {
            let follows = |(place, (other, page)): &(u64, &(Shared<File<H>>, u64))| {
                other.id() == file.id() && *page == first + place
            };
            let count = (0..).zip(rest).take_while(follows).count();
            if takes_over && file.hand_over(*first) {
                self.has_handed_over = true;
            } else {
                // Asked once for a file, so that each of its pages gets its try.
                let is_paused = match pauses {
                    Some((id, is_paused)) if id == file.id() => is_paused,
                    _ => file.pauses(),
                };
                pauses = Some((file.id(), is_paused));
                file.start_writeback_for_room(*first..first + count as u64, is_paused);
                self.has_started = true;
            }
            rest = &rest[count..];
        }
        // The worker itself comes to these pages later in its round.
        if takes_over && !engine.is_worker() {
            engine.wake_background();
        }
        self.dirty.clear();
    }
}

impl<H: Host> Engine<H> {
    /// Does step 3 for a file's page that the caller has isolated. With `is_dirty`, notes that it has to be written. Not inlined, so that
    /// its frame is off the stack during the other steps.
    #[inline(never)]
    pub(super) fn unmap_file_page(
        &self,
        victims: Victims,
        frame: Frame,
        is_dirty: bool,
        files: &mut Files<H>,
        stale: &mut StaleBatch<'_, H>,
    ) -> Unmapped {
        let folio = self.folio(frame);
        let page = folio.index();
        let stay = |refusal| {
            self.pass_over(victims.class, frame, refusal);
            Unmapped::None(refusal)
        };
        let is_in_memory = files.of(self, frame).map(|file| file.is_in_memory());
        let Some(is_in_memory) = is_in_memory else { return stay(Refusal::Busy) };
        let is_used = !victims.takes_young && folio.take_referenced();
        let is_mapped = folio.mappings() != 0;
        if is_used && !is_mapped {
            return stay(Refusal::Young);
        }
        if is_in_memory {
            // A full device is seen before an entry changes.
            if !*files.has_place.get_or_insert_with(|| self.has_place_in_swap()) {
                return stay(Refusal::NoSlot);
            }
        } else if is_dirty {
            files.note_dirty(page);
            return stay(Refusal::Dirty);
        }
        let unmapped = || if is_in_memory { Unmapped::All } else { Unmapped::File };
        if !is_mapped {
            // No delay: threads with pins may wait for this one, so this one must not wait for them.
            return if folio.is_pinned_by_others() { stay(Refusal::Pinned) } else { unmapped() };
        }
        // A page that a lookup has found is in use. The same use has set an accessed bit, which counts no second time.
        let reach = if is_used { Reach::Nothing } else { Reach::of(victims.takes_young) };
        let most_looks = ENTRIES + files.looks_left;
        let Some(file) = files.of(self, frame) else { return stay(Refusal::Busy) };
        let kind = if is_in_memory { VictimKind::FileInMemory } else { VictimKind::File };
        let victim = Victim::new(frame, kind, reach, 0);
        let refusal = Refusal::Gone;
        let mut taking = Taking { victim, folio, stale, looks: 0, most_looks, tried: 0, taken: 0, refusal };
        file.unmap_everywhere(page, &mut taking);
        let (looks, taken, refusal) = (taking.looks, taking.taken, taking.refusal);
        files.looks_left = files.looks_left.saturating_sub(looks.saturating_sub(ENTRIES));
        if folio.mappings() == 0 {
            return unmapped();
        }
        self.pass_over(victims.class, frame, refusal);
        if taken != 0 { Unmapped::Some } else { Unmapped::None(refusal) }
    }

    /// Makes each page of `frames` that is of a file without a store that of a slot, to be written as an anonymous one. No entry maps
    /// the pages, and no processor has an old translation of one. A page that is in use again stays the file's. Such pages come last
    /// then, and are let go. Returns the number of the others.
    pub(super) fn move_to_slots(&self, class: Class, frames: &mut [Frame], files: &mut Files<H>) -> usize {
        let (mut count, mut index) = (frames.len(), 0);
        while index < count {
            let frame = frames[index];
            let is_of_slot = self.folio(frame).is_anonymous()
                || files.of(self, frame).is_some_and(|file| file.move_to_slot(frame));
            if is_of_slot {
                index += 1;
                continue;
            }
            // Perhaps the devices are full now.
            files.has_place = None;
            count -= 1;
            frames.swap(index, count);
            self.end_isolation(frame);
            let report = if self.folio(frame).is_free() { Report::Freed } else { Report::Busy };
            self.report(class, frame, report);
        }
        count
    }

    /// Ends the isolation of a file's page that no entry maps, after the invalidation. Returns whether its frame is free now. If not,
    /// another thread has a reference, or a store has made it dirty.
    pub(super) fn end_file_page(&self, frame: Frame, files: &mut Files<H>) -> bool {
        let is_freed = files.of(self, frame).is_some_and(|file| file.evict_isolated(frame));
        if !is_freed {
            self.end_isolation(frame);
        }
        is_freed
    }
}
