//! Reclaim of mapped pages of files. A page is found through the file: its spaces, and their mappings of it.
//!
//! ```text
//!  folio ──list's pointer──► file ──spaces, in the order of their numbers──► mappings that show the page ──► entries
//! ```
//! The count of mappings decides whether the page can be freed, so a walk may end early, and may miss an entry that moves.

use super::groups::Victims;
use super::space_head::{Refusal, Victim, VictimKind};
use super::walk::Unmapped;
use crate::engine::{Engine, StaleBatch};
use crate::frame::Folio;
use crate::host::{Frame, Host};
use crate::page_cache::File;
use crate::sync::Shared;
use smallvec::SmallVec;

/// The greatest number of mappings in which one page is looked for at a time.
const MAPPINGS: usize = 1000;

/// The search for the entries of one page, which ends when no entry is left, or when one must stay.
pub(crate) struct Taking<'a, 'b, H: Host> {
    victim: Victim,
    folio: &'a Folio,
    stale: &'a mut StaleBatch<'b, H>,
    looks: usize,
    taken: usize,
    refusal: Refusal,
}

impl<'b, H: Host> Taking<'_, 'b, H> {
    /// Returns whether the search goes on.
    pub(crate) fn goes_on(&self) -> bool {
        // A page that is used, locked or pinned somewhere stays everywhere. So does a page that a store has made dirty.
        let stays =
            matches!(self.refusal, Refusal::Young | Refusal::Locked | Refusal::Pinned | Refusal::Dirty);
        !stays && self.looks < MAPPINGS && self.folio.mappings() != 0
    }

    /// Tries to take one entry, by `take`. The caller is in no section.
    pub(crate) fn take(&mut self, take: impl FnOnce(Victim, &mut StaleBatch<'b, H>) -> Result<(), Refusal>) {
        self.stale.make_room();
        self.looks += 1;
        match take(self.victim, self.stale) {
            Ok(()) => self.taken += 1,
            // Mappings that show the page need not have mapped it.
            Err(Refusal::Gone) => {}
            Err(refusal) => self.refusal = refusal,
        }
    }
}

/// Files of the pages of a batch.
pub(super) struct Files<H: Host> {
    /// The file of the last page: neighbours in the queues are often of one file.
    last: Option<Shared<File<H>>>,
    /// Pages that have to be written, as far as there is memory to note them.
    dirty: SmallVec<[(Shared<File<H>>, u64); 4]>,
}

impl<H: Host> Files<H> {
    pub fn new() -> Self {
        Self { last: None, dirty: SmallVec::new() }
    }

    /// Returns the file of `frame`, which the caller has isolated.
    fn of(&mut self, engine: &Engine<H>, frame: Frame) -> Option<&Shared<File<H>>> {
        let is_last = self.last.as_ref().is_some_and(|file| engine.folio(frame).is_page_of(file.id()));
        if !is_last {
            self.last = engine.file_of(frame);
        }
        self.last.as_ref()
    }

    /// Starts the writeback of the dirty pages, in the order of their files. The caller is in no section, and has no open batch.
    #[inline(never)]
    pub fn start_writeback(&mut self) {
        self.last = None;
        self.dirty.sort_unstable_by_key(|(file, page)| (file.id(), *page));
        let mut rest = &self.dirty[..];
        while let [(file, first), ..] = rest {
            let follows = |(place, (other, page)): &(u64, &(Shared<File<H>>, u64))| {
                other.id() == file.id() && *page == first + place
            };
            let count = (0..).zip(rest).take_while(follows).count();
            file.start_writeback(*first..first + count as u64);
            rest = &rest[count..];
        }
        self.dirty.clear();
    }
}

impl<H: Host> Engine<H> {
    /// Does step 3 for a file's page that the caller has isolated. With `is_dirty`, notes that it has to be written.
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
        let Some(file) = files.of(self, frame) else {
            self.pass_over(victims.group, frame, Refusal::Busy);
            return Unmapped::None(Refusal::Busy);
        };
        if is_dirty {
            let noted = (file.clone(), page);
            if files.dirty.len() < files.dirty.capacity() || files.dirty.try_reserve(super::BATCH).is_ok() {
                files.dirty.push(noted);
            }
            self.pass_over(victims.group, frame, Refusal::Dirty);
            return Unmapped::None(Refusal::Dirty);
        }
        let victim = Victim { frame, kind: VictimKind::File, takes_young: victims.takes_young };
        let mut taking = Taking { victim, folio, stale, looks: 0, taken: 0, refusal: Refusal::Gone };
        file.unmap_everywhere(page, &mut taking);
        let (taken, refusal) = (taking.taken, taking.refusal);
        if folio.mappings() == 0 {
            return Unmapped::File;
        }
        self.pass_over(victims.group, frame, refusal);
        if taken != 0 { Unmapped::Some } else { Unmapped::None(refusal) }
    }

    /// Ends the isolation of a file's page that no entry maps, after the invalidation. Returns whether its frame is free now. If not,
    /// another thread has a reference, or the idle list has, and evicts it.
    pub(super) fn end_file_page(&self, frame: Frame, files: &mut Files<H>) -> bool {
        let is_freed = files.of(self, frame).is_some_and(|file| file.evict_isolated(frame));
        if !is_freed {
            self.end_isolation(frame);
        }
        is_freed
    }
}
