//! The order in which calls unhook leaf tables, invalidate, and free (invariant 15). A processor with page tables in hardware
//! walks them in no section, and keeps what it has read of the upper ones; so a table that is unhooked is free only after an
//! invalidation that came later. Here a host records the calls, so that each order is checked without threads; models on
//! `Soft::with_caches` check what a processor does meanwhile.

#[macro_use]
mod every_design;

use faultless::address::{PAGE_SIZE, PageNumber, PageRange, VirtAddr};
use faultless::design::LockingDesign;
use faultless::frame::Folio;
use faultless::host::{
    Entry, Frame, FrameSource, FrameUsage, LeafRecord, OutOfMemory, PageTable, PlaceWord, ShareLeaves,
    SpareLink, Stable, StdHost, StdPark, StdServices, Unsupported,
};
use faultless::protection::{Access, Protection};
use faultless::store::{GatedStore, Store, StoreError, Transfer};
use faultless::sync::{Retired, Sections};
use faultless::{AddressSpace, Engine, Fault, File, Limits, MapError, MapRequest, Placement, RemapRequest};
use faultless_soft::{Leaf, PhysicalMemory, RadixTable, Tag};
use std::ops::{Deref, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

macro_rules! under {
    ($names:tt; $($module:ident: $design:ty),*) => { $(mod $module { tests_of!($design, $names); })* };
}
macro_rules! tests_of {
    ($design:ty, ($($name:ident)*)) => {
        $(#[test] fn $name() { super::$name::<$design>(); })*
    };
}

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
) }

/// Pages of a leaf table.
const LEAF: u64 = RadixTable::LEAF_PAGES;
/// The same in bytes.
const LENGTH: u64 = LEAF * PAGE_SIZE;
/// Where the tests map: the second leaf table.
const FIRST: u64 = LEAF;

#[derive(Default)]
struct Log {
    /// Pages that a processor may use still: what was taken out of their entries, and leaf tables that were unhooked. Those of
    /// an invalidation go.
    stale: Mutex<Vec<Stale>>,
    seen: Mutex<Seen>,
    /// The processor serves an interrupt.
    is_in_interrupt: AtomicBool,
}

enum Stale {
    Frame(PageNumber, Frame),
    Leaf(PageRange),
}

impl Stale {
    fn is_in(&self, range: PageRange) -> bool {
        match self {
            Self::Frame(page, _) => range.contains(*page),
            Self::Leaf(span) => range.covers(*span),
        }
    }
}

/// How often something happened.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
struct Seen {
    /// Spaces whose table no access needs any more.
    abandoned: usize,
    /// Entries that were swept before that.
    swept_before: usize,
    invalidations: usize,
    unhooked: usize,
    tables_freed: usize,
    frames_freed: usize,
}

/// Also after a panic: what is dropped then is recorded too.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Log {
    fn unhook(&self, span: PageRange) {
        lock(&self.seen).unhooked += 1;
        lock(&self.stale).push(Stale::Leaf(span));
    }

    fn invalidate(&self, range: PageRange) {
        lock(&self.seen).invalidations += 1;
        lock(&self.stale).retain(|stale| !stale.is_in(range));
    }

    fn abandon(&self) {
        let mut seen = lock(&self.seen);
        seen.abandoned += 1;
        seen.swept_before = lock(&self.stale).len();
    }

    fn free_table(&self, freed: PageRange) {
        lock(&self.seen).tables_freed += 1;
        let is_it = |stale: &Stale| matches!(stale, Stale::Leaf(span) if *span == freed);
        let is_stale = lock(&self.stale).iter().any(is_it);
        assert!(!is_stale, "invariant 15: the leaf table over {freed} is freed, and a processor may walk it");
    }

    fn free_frame(&self, freed: Frame) {
        lock(&self.seen).frames_freed += 1;
        let is_it = |stale: &Stale| matches!(stale, Stale::Frame(_, frame) if *frame == freed);
        let is_stale = lock(&self.stale).iter().any(is_it);
        assert!(!is_stale, "invariant 15: a frame is freed, and a processor may use it");
    }
}

/// The software machine, recorded.
struct Recorder {
    services: StdServices,
    frames: RecordedFrames,
    log: Arc<Log>,
}

/// The table of a space of it.
struct RecordedTable {
    table: RadixTable,
    log: Arc<Log>,
    /// No processor has it loaded any more.
    is_unloaded: AtomicBool,
}

/// Its memory.
struct RecordedFrames {
    memory: PhysicalMemory,
    log: Arc<Log>,
}

/// A leaf table that was unhooked.
struct Unhooked {
    table: Option<Retired>,
    span: PageRange,
    log: Arc<Log>,
}

impl Drop for Unhooked {
    fn drop(&mut self) {
        self.log.free_table(self.span);
        if let Some(table) = self.table.take() {
            // SAFETY: this is what was retired in its place, and it is dropped when that is freed.
            unsafe { table.free() };
        }
    }
}

// SAFETY: the fields are given out as they are, and stay; each keeps its own contract.
unsafe impl StdHost for Recorder {
    type Table = RecordedTable;
    type Frames = RecordedFrames;
    type Park = StdPark;

    fn frames(&self) -> &RecordedFrames {
        &self.frames
    }

    fn services(&self) -> &StdServices {
        &self.services
    }

    fn is_in_interrupt(&self) -> bool {
        self.log.is_in_interrupt.load(Ordering::Relaxed)
    }

    fn new_table(&self, sections: &Arc<Sections>) -> Result<RecordedTable, OutOfMemory> {
        let table = RadixTable::new(Arc::clone(sections))?;
        Ok(RecordedTable { table, log: self.log.clone(), is_unloaded: AtomicBool::new(false) })
    }
}

// SAFETY: as the table inside, which does it all. What is unhooked is freed later than that table demands, not sooner.
unsafe impl PageTable for RecordedTable {
    type Leaf<'s> = Leaf<'s>;
    type Root<'s> = Tag;
    type Sharing = Self;
    type Following = Unsupported;
    type Refusing = Unsupported;
    const LEAF_PAGES: u64 = RadixTable::LEAF_PAGES;

    /// All but those of the first leaf table.
    fn pages(&self) -> PageRange {
        PageRange::new(PageNumber::new(FIRST), self.table.pages().end()).expect("there is more than one")
    }

    fn root(&self) -> Tag {
        self.table.root()
    }

    fn sharing(&self) -> Option<&Self> {
        Some(self)
    }

    fn following(&self) -> Option<&Unsupported> {
        None
    }

    fn refusing(&self) -> Option<&Unsupported> {
        None
    }

    fn leaf<'s>(&'s self, proof: &'s impl Stable, page: PageNumber) -> Option<Leaf<'s>> {
        self.table.leaf(proof, page)
    }

    fn make_leaf<'s>(&'s self, proof: &'s impl Stable, page: PageNumber) -> Result<Leaf<'s>, OutOfMemory> {
        self.table.make_leaf(proof, page)
    }

    fn record<'s>(&'s self, leaf: Leaf<'s>) -> &'s LeafRecord {
        self.table.record(leaf)
    }

    fn hangs(&self, leaf: Leaf<'_>) -> bool {
        self.table.hangs(leaf)
    }

    fn load(&self, leaf: Leaf<'_>, page: PageNumber) -> Entry {
        self.table.load(leaf, page)
    }

    fn try_announce(&self, leaf: Leaf<'_>, page: PageNumber, seen: Entry) -> bool {
        self.table.try_announce(leaf, page, seen)
    }

    unsafe fn let_go(&self, leaf: Leaf<'_>, page: PageNumber) {
        // SAFETY: by the same contract.
        unsafe { self.table.let_go(leaf, page) }
    }

    unsafe fn install(&self, leaf: Leaf<'_>, page: PageNumber, new: Entry) -> Result<Entry, OutOfMemory> {
        // SAFETY: by the same contract.
        unsafe { self.table.install(leaf, page, new) }
    }

    unsafe fn exchange(
        &self,
        leaf: Leaf<'_>,
        page: PageNumber,
        seen: Entry,
        new: Entry,
    ) -> Result<(), Entry> {
        // SAFETY: by the same contract.
        unsafe { self.table.exchange(leaf, page, seen, new) }?;
        let goes = new.mapped_frame() != seen.mapped_frame() && !self.is_unloaded.load(Ordering::Relaxed);
        if let Some(frame) = seen.mapped_frame().filter(|_| goes) {
            lock(&self.log.stale).push(Stale::Frame(page, frame));
        }
        Ok(())
    }

    unsafe fn fill(&self, leaf: Leaf<'_>, page: PageNumber, new: Entry) {
        // SAFETY: by the same contract.
        unsafe { self.table.fill(leaf, page, new) }
    }

    fn next_leaf(&self, proof: &impl Stable, range: PageRange) -> Option<PageNumber> {
        self.table.next_leaf(proof, range)
    }

    unsafe fn unhook(&self, page: PageNumber) -> Option<Retired> {
        // SAFETY: by the same contract.
        let table = unsafe { self.table.unhook(page) }?;
        let span = PageRange::with_pages(page.align_down(LEAF), LEAF).unwrap();
        self.log.unhook(span);
        Some(Retired::new(Box::new(Unhooked { table: Some(table), span, log: self.log.clone() })))
    }

    fn invalidate(&self, range: PageRange, wait: impl FnMut(u32)) {
        self.table.invalidate(range, wait);
        self.log.invalidate(range);
    }

    fn unload(&self, wait: impl FnMut(u32)) {
        self.table.unload(wait);
        self.is_unloaded.store(true, Ordering::Relaxed);
    }

    fn abandon(&self, wait: impl FnMut(u32)) {
        self.table.abandon(wait);
        self.log.abandon();
    }
}

// SAFETY: as the table inside, which does it all.
unsafe impl ShareLeaves<Self> for RecordedTable {
    fn found(&self, leaf: Leaf<'_>) -> PlaceWord {
        self.table.found(leaf)
    }

    fn now(&self, leaf: Leaf<'_>) -> PlaceWord {
        self.table.now(leaf)
    }

    unsafe fn put(&self, leaf: Leaf<'_>, word: PlaceWord) {
        // SAFETY: by the same contract.
        unsafe { self.table.put(leaf, word) }
    }

    unsafe fn reserve(&self, page: PageNumber) -> Result<NonNull<SpareLink>, OutOfMemory> {
        // SAFETY: by the same contract.
        unsafe { self.table.reserve(page) }
    }

    unsafe fn hang(&self, page: PageNumber, word: PlaceWord) {
        // SAFETY: by the same contract.
        unsafe { self.table.hang(page, word) }
    }

    unsafe fn open<'s>(&'s self, leaf: Leaf<'s>, spare: NonNull<SpareLink>) -> Leaf<'s> {
        // SAFETY: by the same contract.
        unsafe { self.table.open(leaf, spare) }
    }

    unsafe fn weaken(&self, leaf: Leaf<'_>, page: PageNumber) {
        // SAFETY: by the same contract.
        unsafe { self.table.weaken(leaf, page) }
    }
}

// SAFETY: as the memory inside, which does it all.
unsafe impl FrameSource for RecordedFrames {
    fn allocate(&self) -> Option<Frame> {
        self.memory.allocate()
    }

    unsafe fn free(&self, frame: Frame) {
        self.log.free_frame(frame);
        // SAFETY: by the same contract.
        unsafe { self.memory.free(frame) }
    }

    fn folio(&self, frame: Frame) -> &Folio {
        self.memory.folio(frame)
    }

    unsafe fn zero(&self, frame: Frame) {
        // SAFETY: by the same contract.
        unsafe { self.memory.zero(frame) }
    }

    unsafe fn copy(&self, from: Frame, to: Frame) {
        // SAFETY: by the same contract.
        unsafe { self.memory.copy(from, to) }
    }

    unsafe fn memory(&self, frame: Frame) -> NonNull<u8> {
        // SAFETY: by the same contract.
        unsafe { self.memory.memory(frame) }
    }

    unsafe fn read(&self, frame: Frame, offset: usize, bytes: &mut [u8]) -> usize {
        // SAFETY: by the same contract.
        unsafe { self.memory.read(frame, offset, bytes) }
    }

    unsafe fn write(&self, frame: Frame, offset: usize, bytes: &[u8]) -> usize {
        // SAFETY: by the same contract.
        unsafe { self.memory.write(frame, offset, bytes) }
    }

    fn usage(&self) -> FrameUsage {
        self.memory.usage()
    }
}

/// A space of such a machine.
struct Watched<D: LockingDesign>(AddressSpace<Recorder, D>);

impl<D: LockingDesign> Deref for Watched<D> {
    type Target = AddressSpace<Recorder, D>;

    fn deref(&self) -> &AddressSpace<Recorder, D> {
        &self.0
    }
}

impl<D: LockingDesign> Watched<D> {
    fn new() -> Self {
        let log = Arc::new(Log::default());
        let frames = RecordedFrames { memory: PhysicalMemory::new(2048).unwrap(), log: log.clone() };
        let host = Recorder { services: StdServices::default(), frames, log };
        Self(AddressSpace::new(&Engine::new(host, Limits::default()).unwrap()).unwrap())
    }

    /// Maps so many leaf tables' pages over whatever is there.
    fn map_tables(&self, first: u64, tables: u64) {
        let request = MapRequest::anonymous(tables * LENGTH);
        self.map(request.at(Placement::Fixed(at(first)))).unwrap();
    }

    fn touch(&self, pages: Range<u64>) {
        pages.for_each(|page| self.fault_and_wait(at(page), Access::Write).unwrap());
    }

    fn seen(&self) -> Seen {
        *lock(&self.engine().host().log.seen)
    }

    /// Calls `call`, and checks that it unhooks one leaf table and frees `frames` frames, with so many `invalidations`. The log
    /// itself checks the order.
    fn check<R>(&self, frames: usize, invalidations: usize, call: impl FnOnce() -> R) {
        let before = self.seen();
        call();
        let now = self.seen();
        assert_eq!(now.unhooked - before.unhooked, 1, "leaf tables unhooked");
        assert_eq!(now.frames_freed - before.frames_freed, frames, "frames are free when the call returns");
        assert_eq!(now.invalidations - before.invalidations, invalidations, "invalidations");
        self.engine().flush();
        assert_eq!(self.seen().tables_freed, self.seen().unhooked, "all are freed in the end");
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

/// What exit has unhooked is retired before it flushes: so it is free when exit returns, not only with the next thing
/// that is retired.
fn exit_unhooks_then_invalidates<D: LockingDesign>() {
    let space = Watched::<D>::new();
    space.map_tables(FIRST, 1);
    space.touch(FIRST..FIRST + 3);
    space.check(3, 1, || {
        space.exit();
        assert_eq!(space.seen().tables_freed, 1, "free when exit returns");
    });
}

/// Once, with all entries there still; and not for what is not an exit.
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
    assert_eq!(before.abandoned, 0, "nothing has exited: a child that was dropped has not");
    assert!(before.frames_freed > 1);
    let frames = space.engine().frame_usage().used;
    space.exit();
    let now = space.seen();
    assert_eq!((now.abandoned, now.swept_before), (1, 0), "once, before the first entry is swept");
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

/// Frames go in batches of 1,024, each after an invalidation; the last one comes after the tables were unhooked.
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

/// Without an exit before. The log checks that no frame goes while a processor has the table loaded.
fn the_last_handle_unloads_then_frees<D: LockingDesign>() {
    let space = Watched::<D>::new();
    space.map_tables(FIRST, 1);
    space.touch(FIRST..FIRST + 3);
    let log = space.engine().host().log.clone();
    drop(space);
    assert!(lock(&log.seen).frames_freed >= 3, "the pages, and the page of zeros with the engine");
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
    // All that there is: the last place is the lowest.
    let whole = anonymous((RadixTable::PAGES - LEAF - 1) * PAGE_SIZE);
    assert_eq!(space.map(whole).unwrap(), at(FIRST));
    assert!(matches!(space.map(anonymous(PAGE_SIZE)), Err(MapError::NoSpace { .. })));
    space.fault_and_wait(at(FIRST), Access::Write).unwrap();
    space.exit();
    assert_eq!(space.engine().frame_usage().used, 1, "the page of zeros");
}

/// Debug builds say so to a host that completes a transfer there.
fn invariant_1_no_transfer_ends_in_an_interrupt<D: LockingDesign>() {
    if !cfg!(debug_assertions) {
        return;
    }
    let space = Watched::<D>::new();
    let store = Arc::new(GatedStore::new(Zeros));
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

/// One page.
struct Zeros;

impl Store for Zeros {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(PAGE_SIZE)
    }

    fn submit(&self, transfer: Transfer) {
        transfer.complete(Ok(PAGE_SIZE as usize));
    }
}
