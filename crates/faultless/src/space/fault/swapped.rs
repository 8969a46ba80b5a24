//! Pages whose bytes are in a slot: swap-in. A page that is in the swap cache is mapped at once; otherwise the fault waits for
//! the read of its slot.

use super::{FaultError, Step, install_new, write_right};
use crate::address::VirtAddr;
use crate::design::LockingDesign;
use crate::engine::Engine;
use crate::frame::{Folio, Reference};
use crate::host::{Entry, Frame, FrameUse, Host, Slot};
use crate::protection::{Access, Protection};
use crate::space::Space;
use crate::space::calls::protect::entry_rights;
use crate::space::fault::page_work::Announced;
use crate::stats::Counter;
use crate::swap::Cached;
use crate::sync::Section;
use crate::tables::Home;

/// The slot that an entry names, and the generation by which it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::space) struct SlotName {
    pub slot: Slot,
    pub generation: u16,
}

/// Maps the page in `name` if it is in memory. The entry names the slot.
pub(super) fn map<H: Host, D: LockingDesign>(
    work: Announced<'_, H, D>,
    address: VirtAddr,
    name: SlotName,
    access: Access,
) -> Step<H> {
    let engine = work.engine();
    match engine.pin_cached(name.slot) {
        Cached::Busy => Step::LookAgain,
        Cached::Absent => match error_of(work.space, name, address) {
            Some(error) => {
                work.refuse();
                Step::Failed(error)
            }
            None => Step::Swap(name),
        },
        Cached::Pinned(frame) => {
            let folio = engine.folio(frame);
            let step =
                if folio.is_uptodate() { map_pinned(work, frame, name, access) } else { Step::Swap(name) };
            if matches!(step, Step::NeedMemory) {
                return Step::NeedCopy(frame);
            }
            engine.put(frame, Reference::Pin);
            step
        }
    }
}

/// Returns the error of an access to a page whose bytes cannot be had.
fn error_of<H: Host, D: LockingDesign>(
    space: &Space<H, D>,
    SlotName { slot, generation }: SlotName,
    address: VirtAddr,
) -> Option<FaultError> {
    if !space.engine.has_slot(slot) {
        return Some(FaultError::Lost { address });
    }
    let is_lost = space.engine.is_slot_lost(slot, generation);
    let lost = is_lost.then_some(FaultError::Lost { address });
    space.engine.is_poisoned(slot).map(|error| FaultError::Io { address, error }).or(lost)
}

/// Maps the folio of the slot that the announced entry names. The caller has pinned the folio; its page is up to date.
///
/// If this entry is the only one that has the page, the mapping becomes exclusive: a store goes into it in place, whatever short
/// pins there are. A copy would lose a store that an old translation makes meanwhile. While reclaim has the folio isolated, such
/// a mapping gets all rights, and the reclaim is undone (rule S2): an entry without the write right would tell fork and mprotect
/// that no processor can store.
pub(super) fn map_pinned<H: Host, D: LockingDesign>(
    work: Announced<'_, H, D>,
    frame: Frame,
    name: SlotName,
    access: Access,
) -> Step<H> {
    let folio = work.engine().folio(frame);
    // Held for these few steps, so that no other fault moves a count from the slot to the folio while this one compares both.
    // Nobody sleeps for it: another fault of the same slot tries again.
    let is_locked = !mutant!("no_lock_at_swap_in");
    if is_locked && !folio.try_lock() {
        return Step::LookAgain;
    }
    note_first_use(work.engine(), work.section(), name.slot);
    let step = map_locked(work, frame, name, access);
    if is_locked {
        folio.unlock();
    }
    step
}

/// Counts the first use of a page that was read ahead. An entry names the slot.
pub(super) fn note_first_use<H: Host>(engine: &Engine<H>, section: &Section<'_>, slot: Slot) {
    if engine.is_first_use_of_ahead(slot) {
        section.counters().add(Counter::SwapAheadHits, 1);
        section.window().hit();
    }
}

/// Sets the home of a folio that an entry is about to map, and that entry's home is `home`. Called before the mapping is counted: a
/// thread that sees the mapping sees this home. `is_mine`: no other entry has the page; `is_unmapped`: none maps it.
pub(super) fn settle_home<H: Host>(
    engine: &Engine<H>,
    folio: &Folio,
    slot: Slot,
    (is_mine, is_unmapped): (bool, bool),
    home: impl FnOnce() -> Home,
) {
    if !is_mine && engine.is_slot_moved(slot) {
        folio.forget_home();
    } else if is_unmapped {
        folio.set_home(home());
    }
}

fn map_locked<H: Host, D: LockingDesign>(
    work: Announced<'_, H, D>,
    frame: Frame,
    name: SlotName,
    access: Access,
) -> Step<H> {
    let (engine, folio) = (work.engine(), work.engine().folio(frame));
    let protection = work.vma.mapping().protection;
    let stores = access == Access::Write || work.attempt.unshares;
    // In this order: reclaim counts an entry in the slot before it drops the entry's mapping.
    let is_unmapped = folio.mappings_before_slot() == 0;
    let own_count = if mutant!("stores_into_a_write") && folio.is_writeback() { 2 } else { 1 };
    let is_mine = is_unmapped && engine.slot_count(name.slot) == own_count;
    // A write of the page reads its bytes, so no store may change them. No write begins while the folio is pinned.
    let is_written = folio.is_writeback() && !mutant!("stores_into_a_write");
    if stores && (!is_mine || is_written || mutant!("copies_its_own_page")) {
        return copy(work, frame);
    }
    settle_home(engine, folio, name.slot, (is_mine, is_unmapped), || work.home());
    let mut rights = entry_rights(protection);
    if !folio.begin_mapping(is_mine && !mutant!("reclaim_not_undone")) {
        return Step::NeedMemory;
    }
    let is_undone = folio.is_isolated() && !mutant!("window_read_only" | "reclaim_not_undone");
    let leaves_slot = is_mine && !is_written && (stores || is_undone);
    if leaves_slot {
        // A write right means: no slot.
        if !mutant!("store_keeps_the_slot") {
            engine.take_out(frame);
        }
        if protection.contains(Protection::WRITE) {
            rights |= Entry::WRITE;
        }
    }
    work.note_record(frame);
    match work.install(Entry::mapping(frame, rights)) {
        Ok(_) => {
            engine.put_slot(name.slot);
            Step::Done(None)
        }
        Err(_) => {
            let _ = folio.end_mapping();
            if leaves_slot {
                engine.attach_again(frame, name.slot);
            }
            Step::NeedMemory
        }
    }
}

/// Installs a private copy of the page. The fault invalidates before it returns, since an old translation may still read the
/// page that others have too (rule S3), and then drops the use of the slot.
fn copy<H: Host, D: LockingDesign>(work: Announced<'_, H, D>, frame: Frame) -> Step<H> {
    let frames = work.engine().frames();
    let Some(new) = work.take_frame(FrameUse::CopyOnWrite) else { return Step::NeedMemory };
    frames.copy(frame, new);
    work.section().counters().add(Counter::CowCopies, 1);
    let right = write_right(&work);
    install_new(work, new, right)
}
