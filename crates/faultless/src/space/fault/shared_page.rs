//! A fault for reading in a leaf table that spaces have shared since a fork. If reclaim has taken the page, it comes back for all of
//! them by one change of the entry, and the table stays shared.
//!
//! ```text
//!  in a section: the place names the table, and is marked
//!  the lock of the table's record is tried         with it, nobody else changes, copies, shares or takes over the table
//!  the place still names the table; the VMA is looked up
//!  a page in a slot: the mapping + 1, the entry by compare-and-swap, the slot's count - 1
//!  a file's page:    the mapping + 1, the entry by compare-and-swap
//! ```
//! The entry gets the rights that it has kept, and no write right. These rights hold for each space that has the table, since a space
//! that changes them leaves the table first. Range work that finds the entry leaves the table too, with or without the page in it. So
//! it makes no difference to range work whether the page comes back before it or not at all.

use super::file::{self, Found};
use super::swapped::{self, SlotName};
use super::{Step, needed, outlived};
use crate::address::{PageNumber, VirtAddr};
use crate::design::{Attempt, LockingDesign};
use crate::engine::Engine;
use crate::frame::Reference;
use crate::host::{Entry, EntryKind, Frame, Host};
use crate::page_cache::File;
use crate::protection::Access;
use crate::space::Space;
use crate::space::fault::shared_table::LeafOf;
use crate::swap::Cached;
use crate::sync::{Section, Shared};
use crate::tables::Locked;
use crate::vma::{Backing, Vma};

/// The work in a shared table: returns its result, or `None` if the work needs a table of the space's own.
pub(in crate::space) type SharedWork<'f, H, D, R> = &'f dyn Fn(&SharedPage<'_, H, D>) -> Option<R>;

/// A page of a leaf table that several spaces have. The table's lock is held, and the faulting space's VMA was looked up under it. While
/// this value lives, nobody else changes the entry, except for accessed bits. Its thread neither sleeps nor waits.
pub(in crate::space) struct SharedPage<'a, H: Host, D: LockingDesign> {
    pub space: &'a Space<H, D>,
    pub page: PageNumber,
    /// The mapping that has the page.
    pub vma: &'a Vma<H, D>,
    /// The entry.
    pub entry: Entry,
    pub attempt: Attempt,
    pub(super) leaf: LeafOf<'a, H>,
    pub(super) section: &'a Section<'a>,
    #[expect(dead_code, reason = "dropped with the page")]
    pub(super) locked: Option<Locked<'a>>,
}

impl<H: Host, D: LockingDesign> SharedPage<'_, H, D> {
    fn engine(&self) -> &Engine<H> {
        &self.space.engine
    }

    /// Returns whether the mapping admits the access, and the entry has the right for it.
    pub(super) fn admits(&self, access: Access) -> bool {
        let mapping = self.vma.mapping();
        mapping.protection.allows(access)
            && self.attempt.only.admits(mapping)
            && self.entry.has(needed(access))
    }

    /// Maps `frame`, whose mapping the caller has counted, for all spaces that have the table. Returns whether it did.
    fn map(&self, frame: Frame) -> bool {
        // The mutant lets a space that takes the table over store into a page that has a slot, or is a file's.
        let write = if mutant!("shared_fault_writes") { Entry::WRITE } else { 0 };
        let rights = self.entry.bits() & (Entry::READ | Entry::EXECUTE) | write;
        let new = Entry::mapping(frame, rights);
        self.space.table.exchange_in_all(self.leaf, self.page, self.entry, new).is_ok()
    }

    /// Maps the folio of the slot that the entry names. The caller has pinned the folio; its page is up to date. Returns `None` if
    /// the page has as many mappings as can be counted.
    ///
    /// The page is exclusive to nobody, and stays in its slot.
    pub(super) fn map_pinned<R>(
        &self,
        frame: Frame,
        name: SlotName,
        step: impl Fn(Step<H>) -> R,
    ) -> Option<R> {
        let (engine, folio) = (self.engine(), self.engine().folio(frame));
        // As in `swapped::map_pinned`.
        if !folio.try_lock() {
            return Some(step(Step::LookAgain));
        }
        swapped::note_first_use(engine, self.section, name.slot);
        let is_unmapped = folio.mappings_before_slot() == 0;
        let is_mine = is_unmapped && engine.slot_count(name.slot) == 1;
        swapped::settle_home(engine, folio, name.slot, (is_mine, is_unmapped), || {
            self.space.table.home(self.leaf, self.page)
        });
        let is_counted = folio.begin_mapping(false);
        let is_mapped = is_counted && self.map(frame);
        if is_mapped {
            engine.put_slot(name.slot);
            if mutant!("shared_fault_drops_twice") {
                engine.put_slot(name.slot);
            }
        } else if is_counted {
            let _ = folio.end_mapping();
        }
        folio.unlock();
        is_counted.then(|| step(if is_mapped { Step::Done(None) } else { Step::LookAgain }))
    }

    /// Maps a file's page whose mapping the caller has counted. Returns `None` if processors may still use another frame by the entry.
    /// Then the fault continues in a table of the space's own, and invalidates.
    pub(super) fn map_file(&self, file: &File<H>, frame: Frame) -> Option<Step<H>> {
        let engine = self.engine();
        if outlived(engine, self.entry, Entry::mapping(frame, 0)).is_some() {
            engine.put(frame, Reference::Mapping);
            return None;
        }
        if !self.map(frame) {
            engine.put(frame, Reference::Mapping);
            return Some(Step::LookAgain);
        }
        if engine.reclaims_files() && !file.is_in_memory() {
            engine.arrived(self.section, frame, engine.folio(frame));
        }
        Some(Step::Done(None))
    }
}

/// Serves a fault for reading or for fetching an instruction in a shared table. Returns `None` if the fault needs a table of the space's
/// own: that is so unless the page is there, or reclaim has taken it.
pub(super) fn read<H: Host, D: LockingDesign>(
    work: &SharedPage<'_, H, D>,
    address: VirtAddr,
    access: Access,
) -> Option<Step<H>> {
    if !work.admits(access) {
        return None;
    }
    match (work.entry.kind(), &work.vma.mapping().backing) {
        // Another space that has the table was faster.
        (EntryKind::Page(_), _) => Some(Step::Done(None)),
        (EntryKind::Swapped(slot, generation), _) => bring_back(work, SlotName { slot, generation }),
        (EntryKind::Gone(_), Backing::File { file, .. }) => bring_file_page(work, address, file),
        (EntryKind::Gone(_), Backing::Anonymous | Backing::Foreign { .. } | Backing::Busy) => None,
        (EntryKind::Empty | EntryKind::Guard | EntryKind::Foreign(_) | EntryKind::Kept(_), _) => None,
    }
}

fn bring_back<H: Host, D: LockingDesign>(work: &SharedPage<'_, H, D>, name: SlotName) -> Option<Step<H>> {
    let engine = work.engine();
    match engine.pin_cached(name.slot) {
        Cached::Busy => Some(Step::LookAgain),
        // The process is told by an entry of its own.
        Cached::Absent if !engine.has_slot(name.slot) || engine.is_poisoned(name.slot).is_some() => None,
        Cached::Absent if engine.is_slot_lost(name.slot, name.generation) => None,
        Cached::Absent => Some(Step::Swap(name)),
        Cached::Pinned(frame) => {
            let step = match engine.folio(frame).is_uptodate() {
                true => work.map_pinned(frame, name, |step| step),
                false => Some(Step::Swap(name)),
            };
            engine.put(frame, Reference::Pin);
            step
        }
    }
}

fn bring_file_page<H: Host, D: LockingDesign>(
    work: &SharedPage<'_, H, D>,
    address: VirtAddr,
    file: &Shared<File<H>>,
) -> Option<Step<H>> {
    let (_, page) = work.vma.mapping().file_page(work.page)?;
    match file::find(work.space, work.section, address, file, page, Reference::Mapping) {
        Found::Ready(frame) => work.map_file(file, frame),
        Found::NotReady(why) => Some(super::wait(work.vma, file, page, why)),
        Found::NoMemory | Found::NoPlace | Found::PastEnd(_) => None,
    }
}
