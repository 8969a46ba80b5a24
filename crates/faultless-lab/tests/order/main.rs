//! The order in which calls unhook leaf tables, invalidate, and free (invariant 15).
//!
//! A processor with page tables in hardware walks them outside any section, and caches the upper levels. So an unhooked
//! table may be freed only after a later invalidation. Here a host records the calls, so that each order is checked
//! without threads. Models on `Soft::with_caches` check the behaviour of a processor meanwhile.

#[macro_use]
#[path = "../every_design/mod.rs"]
mod every_design;
mod batches;
mod entry_kinds;
mod host;

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::LockingDesign;
use faultless::host::{FrameUse, PageTable};
use faultless::protection::{Access, Protection};
use faultless::store::{GatedStore, Store, StoreError, Transfer};
use faultless::{AddressSpace, Engine, Fault, File, Limits, MapError, MapRequest, Placement, RemapRequest};
use faultless_soft::RadixTable;
use host::{Recorder, Seen};
use std::ops::{Deref, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

macro_rules! under {
    ($names:tt; $($module:ident: $design:ty),*) => { $(mod $module { $crate::tests_of!($design, $names); })* };
}
macro_rules! tests_of {
    ($design:ty, ($($name:ident)*)) => {
        $(#[test] fn $name() { super::$name::<$design>(); })*
    };
}
pub(crate) use {tests_of, under};

every_design! { [under] (
    munmap_unhooks_then_invalidates
    exit_unhooks_then_invalidates
    exit_abandons_the_table_before_it_sweeps
    map_fixed_unhooks_then_invalidates
    mremap_unhooks_then_invalidates
    brk_unhooks_then_invalidates
    a_sweep_of_many_frames_ends_with_the_tables
    nothing_removed_is_nothing_invalidated
    the_last_handle_unloads_then_frees
    invariant_1_no_transfer_ends_in_an_interrupt
    nothing_is_mapped_below_the_lowest_address
    a_host_hears_what_a_frame_is_for
) }

const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);
/// Number of pages of a leaf table.
const LEAF: u64 = RadixTable::LEAF_PAGES;
/// Length of a leaf table's range, in bytes.
const LENGTH: u64 = LEAF * PAGE_SIZE;
/// The first page that the tests map, under the second leaf table.
const FIRST: u64 = LEAF;

/// A space on the recording machine.
struct Watched<D: LockingDesign>(AddressSpace<Recorder, D>);

impl<D: LockingDesign> Deref for Watched<D> {
    type Target = AddressSpace<Recorder, D>;

    fn deref(&self) -> &AddressSpace<Recorder, D> {
        &self.0
    }
}

impl<D: LockingDesign> Watched<D> {
    fn new() -> Self {
        Self::beside(&Engine::new(Recorder::new(), Limits::default()).unwrap())
    }

    fn beside(engine: &Arc<Engine<Recorder>>) -> Self {
        Self(AddressSpace::new(engine).unwrap())
    }

    /// Maps the pages of `tables` leaf tables, over any existing mappings.
    fn map_tables(&self, first: u64, tables: u64) {
        let request = MapRequest::anonymous(tables * LENGTH);
        self.map(request.at(Placement::Fixed(at(first)))).unwrap();
    }

    fn touch(&self, pages: Range<u64>) {
        pages.for_each(|page| self.fault_and_wait(at(page), Access::Write).unwrap());
    }

    fn seen(&self) -> Seen {
        self.engine().host().log.seen()
    }

    /// Runs `call`, and checks the numbers of unhooked leaf tables (one), freed frames and invalidations. The log
    /// itself checks the order.
    fn check<R>(&self, frames: usize, invalidations: usize, call: impl FnOnce() -> R) {
        let before = self.seen();
        call();
        let now = self.seen();
        assert_eq!(now.unhooked - before.unhooked, 1, "leaf tables unhooked");
        assert_eq!(now.frames_freed - before.frames_freed, frames, "frames are free when the call returns");
        assert_eq!(now.invalidations - before.invalidations, invalidations, "invalidations");
        self.engine().flush();
        assert_eq!(self.seen().tables_freed, self.seen().unhooked, "all tables are freed in the end");
    }
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

fn munmap_unhooks_then_invalidates<D: LockingDesign>() {
    let space = Watched::<D>::new();
    space.map_tables(FIRST, 1);
    space.touch(FIRST..FIRST + 3);
    space.check(3, 1, || space.unmap(at(FIRST), LENGTH).unwrap());
    // A table without pages.
    space.map_tables(FIRST, 1);
    space.touch(FIRST..FIRST + 1);
    space.discard(at(FIRST), PAGE_SIZE).unwrap();
    space.check(0, 1, || space.unmap(at(FIRST), LENGTH).unwrap());
}

/// exit invalidates once for private memory, which goes first, and once for the tables. It retires its unhooked tables before that. So
/// they are free when exit returns, without another call.
fn exit_unhooks_then_invalidates<D: LockingDesign>() {
    let space = Watched::<D>::new();
    space.map_tables(FIRST, 1);
    space.touch(FIRST..FIRST + 3);
    space.check(3, 2, || {
        space.exit();
        assert_eq!(space.seen().tables_freed, 1, "free when exit returns");
    });
}

/// exit abandons the table once, before it removes any entry. Other calls never do.
fn exit_abandons_the_table_before_it_sweeps<D: LockingDesign>() {
    let space = Watched::<D>::new();
    space.map_tables(FIRST, 2);
    space.touch(FIRST..FIRST + 130);
    space.unmap(at(FIRST), PAGE_SIZE).unwrap();
    space.protect(at(FIRST + 1), PAGE_SIZE, Protection::READ).unwrap();
    let child = space.fork().unwrap();
    child.fault_and_wait(at(FIRST + 2), Access::Write).unwrap();
    drop(child);
    let before = space.seen();
    assert_eq!(before.abandoned, 0, "nothing has exited; the drop of a child is no exit");
    assert!(before.frames_freed > 1);
    let frames = space.engine().frame_usage().used;
    space.exit();
    let now = space.seen();
    assert_eq!(now.abandoned, 1, "once");
    assert_eq!(now.emptied_before, before.emptied, "before the first entry is swept");
    assert_eq!(now.emptied - before.emptied, 129, "all entries");
    assert_eq!(space.engine().frame_usage().used, 1, "all {frames} but the page of zeros");
    space.clone().exit();
    assert_eq!(space.seen().abandoned, 1, "a second exit finds it abandoned");
}

fn map_fixed_unhooks_then_invalidates<D: LockingDesign>() {
    let space = Watched::<D>::new();
    space.map_tables(FIRST, 1);
    space.touch(FIRST..FIRST + 3);
    space.check(3, 1, || space.map_tables(FIRST, 1));
}

fn mremap_unhooks_then_invalidates<D: LockingDesign>() {
    let space = Watched::<D>::new();
    space.map_tables(FIRST, 1);
    space.touch(FIRST..FIRST + 3);
    let moved = RemapRequest::to(at(FIRST), LENGTH, at(4 * LEAF));
    space.check(0, 1, || space.remap(moved).unwrap());
    // Shorter, in place.
    space.map_tables(8 * LEAF, 2);
    space.touch(9 * LEAF..9 * LEAF + 2);
    let shorter = RemapRequest::resize(at(8 * LEAF), 2 * LENGTH, LENGTH);
    space.check(2, 1, || space.remap(shorter).unwrap());
}

fn brk_unhooks_then_invalidates<D: LockingDesign>() {
    let space = Watched::<D>::new();
    space.set_heap(at(FIRST));
    space.set_break(at(FIRST + LEAF)).unwrap();
    space.touch(FIRST..FIRST + 3);
    space.check(3, 1, || space.set_break(at(FIRST)).unwrap());
}

/// Frames are freed in batches of 1,024, each after an invalidation. The last batch follows the unhooking of the
/// tables.
fn a_sweep_of_many_frames_ends_with_the_tables<D: LockingDesign>() {
    let space = Watched::<D>::new();
    space.map_tables(FIRST, 1);
    space.touch(FIRST..FIRST + 130);
    space.check(130, 1, || space.unmap(at(FIRST), LENGTH).unwrap());
    space.map_tables(FIRST, 3);
    space.touch(FIRST..FIRST + 1030);
    let before = space.seen();
    space.unmap(at(FIRST), 3 * LENGTH).unwrap();
    let now = space.seen();
    assert_eq!((now.frames_freed - before.frames_freed, now.invalidations - before.invalidations), (1030, 2));
}

fn nothing_removed_is_nothing_invalidated<D: LockingDesign>() {
    let space = Watched::<D>::new();
    space.map_tables(FIRST, 1);
    space.protect(at(FIRST), PAGE_SIZE, Protection::READ).unwrap();
    space.discard(at(FIRST), LENGTH).unwrap();
    space.unmap(at(FIRST), LENGTH).unwrap();
    assert_eq!(space.seen(), Seen::default());
}

/// Without an exit before. The log checks that no frame is freed while a processor has the table loaded.
fn the_last_handle_unloads_then_frees<D: LockingDesign>() {
    let space = Watched::<D>::new();
    space.map_tables(FIRST, 1);
    space.touch(FIRST..FIRST + 3);
    let log = space.engine().host().log.clone();
    drop(space);
    assert!(log.seen().frames_freed >= 3, "the pages are freed, and the page of zeros with the engine");
}

fn a_host_hears_what_a_frame_is_for<D: LockingDesign>() {
    let space = Watched::<D>::new();
    let log = space.engine().host().log.clone();
    assert_eq!(log.taken_for(), [FrameUse::ZeroPage]);
    space.map_tables(FIRST, 1);
    space.touch(FIRST..FIRST + 1);
    assert_eq!(log.taken_for(), [FrameUse::Anonymous]);
    let child = space.fork().unwrap();
    space.touch(FIRST..FIRST + 1);
    assert_eq!(log.taken_for(), [FrameUse::CopyOnWrite]);
    drop(child);
    let pinned = space.pin(at(FIRST), Access::Write).unwrap();
    drop(space.fork().unwrap());
    assert_eq!(log.taken_for(), [FrameUse::Fork]);
    drop(pinned);
    let file = File::open(space.engine(), Arc::new(Zeros(1))).unwrap();
    let request = MapRequest::file(&file, 0, PAGE_SIZE, READ_WRITE).at(Placement::Fixed(at(FIRST)));
    space.map(request).unwrap();
    space.fault_and_wait(at(FIRST), Access::Read).unwrap();
    assert_eq!(log.taken_for(), [FrameUse::File]);
    space.touch(FIRST..FIRST + 1);
    assert_eq!(log.taken_for(), [FrameUse::CopyOnWrite]);
}

fn nothing_is_mapped_below_the_lowest_address<D: LockingDesign>() {
    let space = Watched::<D>::new();
    let anonymous = |length| MapRequest::anonymous(length);
    for (first, pages) in [(0, 1), (FIRST - 1, 1), (FIRST - 1, 2)] {
        for placement in [Placement::Fixed(at(first)), Placement::FixedNoReplace(at(first))] {
            let refused = space.map(anonymous(pages * PAGE_SIZE).at(placement));
            assert!(matches!(refused, Err(MapError::OutOfBounds { .. })), "{refused:?}");
        }
        assert!(space.unmap(at(first), pages * PAGE_SIZE).is_err());
    }
    assert!(space.fault(at(FIRST - 1), Access::Read).is_err());
    assert!(space.map(anonymous(PAGE_SIZE).at(Placement::Hint(at(1)))).unwrap() >= at(FIRST));
    // The mapping takes the whole space, so its place is the lowest one.
    let whole = anonymous((RadixTable::PAGES - LEAF - 1) * PAGE_SIZE);
    assert_eq!(space.map(whole).unwrap(), at(FIRST));
    assert!(matches!(space.map(anonymous(PAGE_SIZE)), Err(MapError::NoSpace { .. })));
    space.fault_and_wait(at(FIRST), Access::Write).unwrap();
    space.exit();
    assert_eq!(space.engine().frame_usage().used, 1, "the page of zeros");
}

/// Debug builds report an error to a host that completes a transfer in an interrupt.
fn invariant_1_no_transfer_ends_in_an_interrupt<D: LockingDesign>() {
    if !cfg!(debug_assertions) {
        return;
    }
    let space = Watched::<D>::new();
    let store = Arc::new(GatedStore::new(Zeros(1)));
    let file = File::open(space.engine(), store.clone()).unwrap();
    let request = MapRequest::file(&file, 0, PAGE_SIZE, Protection::READ).at(Placement::Fixed(at(FIRST)));
    space.map(request).unwrap();
    let Fault::Pending(fault) = space.fault(at(FIRST), Access::Read).unwrap() else { panic!("it is read") };
    let log = space.engine().host().log.clone();
    log.is_in_interrupt.store(true, Ordering::Relaxed);
    let result = catch_unwind(AssertUnwindSafe(|| store.open()));
    log.is_in_interrupt.store(false, Ordering::Relaxed);
    let message = result.expect_err("a transfer ended in an interrupt");
    let message = message.downcast_ref::<String>().expect("a message");
    assert!(message.starts_with("invariant 1: an interrupt would wait"), "{message}");
    // The read never ends.
    std::mem::forget((space, file, fault));
}

/// A store of this many pages.
struct Zeros(u64);

impl Store for Zeros {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.0 * PAGE_SIZE)
    }

    fn submit(&self, transfer: Transfer) {
        transfer.complete(Ok(PAGE_SIZE as usize));
    }

    fn punch(&self, _: u64, _: u64) -> Result<(), StoreError> {
        Ok(())
    }
}
