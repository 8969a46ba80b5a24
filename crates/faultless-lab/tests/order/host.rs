//! A host that records each invalidation, unhooking and release. It fails the test if memory is freed too early.

use crate::{FIRST, LEAF};
use faultless::address::{PageNumber, PageRange};
use faultless::frame::Folio;
use faultless::host::{
    Entry, Frame, FrameSource, FrameUsage, FrameUse, GroupId, LeafRecord, OutOfMemory, PageTable, PlaceWord,
    ShareLeaves, SpareLink, Stable, StdHost, StdPark, StdServices, Unsupported,
};
use faultless::sync::{Retired, Sections};
use faultless_soft::{Leaf, PhysicalMemory, RadixTable, Tag};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Default)]
pub struct Log {
    /// The frames, rights and leaf tables that a processor may still use, by table. An entry named them before, or they
    /// were unhooked. An invalidation removes those in its range.
    old: Mutex<Vec<(Tag, Old)>>,
    seen: Mutex<Seen>,
    /// The ranges that were invalidated, with their table.
    pub invalidated: Mutex<Vec<(Tag, PageRange)>>,
    /// The use of each frame that was taken.
    taken_for: Mutex<Vec<FrameUse>>,
    /// Whether the processor serves an interrupt.
    pub is_in_interrupt: AtomicBool,
    /// Called when the next invalidation begins, in place of another thread.
    hook: Mutex<Option<Hook>>,
    /// Called when an entry is about to be exchanged.
    before_exchange: Mutex<Option<Hook>>,
}

type Hook = Box<dyn FnOnce() + Send>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Old {
    Frame(PageNumber, Frame),
    WriteRight(PageNumber, Frame),
    Leaf(PageRange),
}

impl Old {
    fn is_in(self, range: PageRange) -> bool {
        match self {
            Self::Frame(page, _) | Self::WriteRight(page, _) => range.contains(page),
            Self::Leaf(span) => range.covers(span),
        }
    }
}

/// Range of pages in a table.
pub struct Stale {
    /// `None`: all tables.
    table: Option<Tag>,
    range: PageRange,
}

/// Counts of recorded events.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The number of spaces whose table is no longer needed by any access.
    pub abandoned: usize,
    /// The number of entries that have lost their page.
    pub emptied: usize,
    /// `emptied` at the time when the last table was abandoned.
    pub emptied_before: usize,
    pub invalidations: usize,
    pub unhooked: usize,
    pub tables_freed: usize,
    pub frames_freed: usize,
}

/// Locks a mutex, also after a panic, because the drops after a panic are recorded too.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Log {
    pub fn seen(&self) -> Seen {
        *lock(&self.seen)
    }

    /// Returns the uses of the frames that were taken since the last call.
    pub fn taken_for(&self) -> Vec<FrameUse> {
        std::mem::take(&mut lock(&self.taken_for))
    }

    /// Has `hook` called when the next invalidation begins.
    pub fn when_invalidated(&self, hook: impl FnOnce() + Send + 'static) {
        *lock(&self.hook) = Some(Box::new(hook));
    }

    /// Has `hook` called before the next exchange of an entry.
    pub fn before_exchange(&self, hook: impl FnOnce() + Send + 'static) {
        *lock(&self.before_exchange) = Some(Box::new(hook));
    }

    /// Returns whether a processor may use an old translation of `page` of this table.
    pub fn has_old(&self, table: Tag, page: PageNumber) -> bool {
        let is_it = |(of, old): &(Tag, Old)| *of == table && old.is_in(PageRange::single(page));
        lock(&self.old).iter().any(is_it)
    }

    /// Records that the entry of `page` changed from `seen` to `new`.
    fn change(&self, table: Tag, page: PageNumber, seen: Entry, new: Entry) {
        let Some(frame) = seen.counted_frame() else { return };
        if new.counted_frame() != Some(frame) {
            lock(&self.seen).emptied += 1;
            lock(&self.old).push((table, Old::Frame(page, frame)));
        }
        if seen.has(Entry::WRITE) && !(new.mapped_frame() == Some(frame) && new.has(Entry::WRITE)) {
            lock(&self.old).push((table, Old::WriteRight(page, frame)));
        }
    }

    fn unhook(&self, table: Tag, span: PageRange) {
        lock(&self.seen).unhooked += 1;
        lock(&self.old).push((table, Old::Leaf(span)));
    }

    fn begin_invalidation(&self) {
        lock(&self.seen).invalidations += 1;
        let hook = lock(&self.hook).take();
        hook.into_iter().for_each(|hook| hook());
    }

    fn invalidate(&self, table: Tag, range: PageRange) {
        lock(&self.invalidated).push((table, range));
        lock(&self.old).retain(|(of, old)| *of != table || !old.is_in(range));
    }

    fn invalidate_in_all(&self, range: PageRange) {
        lock(&self.old).retain(|(_, old)| !old.is_in(range));
    }

    /// Records that a store reads or writes the bytes of `frame` beside the processors.
    fn transfer(&self, frame: Frame) {
        let is_it = |(_, old): &(Tag, Old)| matches!(old, Old::WriteRight(_, of) if *of == frame);
        let is_old = lock(&self.old).iter().any(is_it);
        assert!(!is_old, "invariant 9: a page is written back, and a processor may store into it");
    }

    fn abandon(&self) {
        let mut seen = lock(&self.seen);
        seen.abandoned += 1;
        seen.emptied_before = seen.emptied;
    }

    fn free_table(&self, freed: PageRange) {
        lock(&self.seen).tables_freed += 1;
        let is_it = |(_, old): &(Tag, Old)| matches!(old, Old::Leaf(span) if *span == freed);
        let is_stale = lock(&self.old).iter().any(is_it);
        assert!(!is_stale, "invariant 15: the leaf table over {freed} is freed, and a processor may walk it");
    }

    fn free_frame(&self, freed: Frame) {
        lock(&self.seen).frames_freed += 1;
        let is_it = |(_, old): &(Tag, Old)| matches!(old, Old::Frame(_, frame) if *frame == freed);
        let is_stale = lock(&self.old).iter().any(is_it);
        assert!(!is_stale, "invariant 15: a frame is freed, and a processor may use it");
    }
}

/// The software machine, with a recording.
pub struct Recorder {
    services: StdServices,
    frames: RecordedFrames,
    pub log: Arc<Log>,
}

impl Recorder {
    pub fn new() -> Self {
        let log = Arc::new(Log::default());
        let frames = RecordedFrames { memory: PhysicalMemory::new(2048).unwrap(), log: log.clone() };
        Self { services: StdServices::default(), frames, log }
    }
}

/// The recorded page table of a space.
pub struct RecordedTable {
    table: RadixTable,
    log: Arc<Log>,
    /// Whether no processor has the table loaded any more.
    is_unloaded: AtomicBool,
}

/// The recorded memory.
pub struct RecordedFrames {
    memory: PhysicalMemory,
    log: Arc<Log>,
}

/// A leaf table that was unhooked, until it is freed.
struct Unhooked {
    table: Option<Retired>,
    span: PageRange,
    log: Arc<Log>,
}

impl Drop for Unhooked {
    fn drop(&mut self) {
        self.log.free_table(self.span);
        if let Some(table) = self.table.take() {
            // SAFETY: this object was retired in place of the table, and is dropped when that may be freed.
            unsafe { table.free() };
        }
    }
}

// SAFETY: the fields are returned unchanged and stay the same. Each keeps its own contract.
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

    /// Invalidates by the log alone, because no processor accesses memory here.
    fn invalidate_all(&self, _: &Sections, batch: &mut [Stale], _: impl FnMut(u32)) {
        self.log.begin_invalidation();
        for Stale { table, range } in batch {
            match table {
                Some(table) => self.log.invalidate(*table, *range),
                None => self.log.invalidate_in_all(*range),
            }
        }
    }
}

// SAFETY: the inner table does everything. Unhooked tables are freed later than it demands, never sooner.
unsafe impl PageTable for RecordedTable {
    type Leaf<'s> = Leaf<'s>;
    type Root<'s> = Tag;
    type Stale = Stale;
    type Sharing = Self;
    type Following = Unsupported;
    type Refusing = Unsupported;
    const LEAF_PAGES: u64 = RadixTable::LEAF_PAGES;

    /// Returns all pages except those of the first leaf table.
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

    fn age(&self, leaf: Leaf<'_>, page: PageNumber) -> bool {
        self.table.age(leaf, page)
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
        let old = unsafe { self.table.install(leaf, page, new) }?;
        self.log.change(self.root(), page, old, new);
        Ok(old)
    }

    unsafe fn exchange(
        &self,
        leaf: Leaf<'_>,
        page: PageNumber,
        seen: Entry,
        new: Entry,
    ) -> Result<(), Entry> {
        let hook = lock(&self.log.before_exchange).take();
        hook.into_iter().for_each(|hook| hook());
        // SAFETY: by the same contract.
        unsafe { self.table.exchange(leaf, page, seen, new) }?;
        if !self.is_unloaded.load(Ordering::Relaxed) {
            self.log.change(self.root(), page, seen, new);
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
        self.log.unhook(self.root(), span);
        Some(Retired::new(Box::new(Unhooked { table: Some(table), span, log: self.log.clone() })))
    }

    fn invalidate(&self, range: PageRange, wait: impl FnMut(u32)) {
        self.log.begin_invalidation();
        self.table.invalidate(range, wait);
        self.log.invalidate(self.root(), range);
    }

    fn stale(&self, range: PageRange) -> Stale {
        Stale { table: Some(self.root()), range }
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

// SAFETY: the inner table does everything.
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

    unsafe fn load_by_record(record: &LeafRecord, index: u64) -> Entry {
        // SAFETY: by the same contract.
        unsafe { RadixTable::load_by_record(record, index) }
    }

    unsafe fn exchange_by_record(
        record: &LeafRecord,
        index: u64,
        seen: Entry,
        new: Entry,
    ) -> Result<(), Entry> {
        // SAFETY: by the same contract.
        unsafe { RadixTable::exchange_by_record(record, index, seen, new) }
    }

    fn stale_in_all(range: PageRange) -> Stale {
        Stale { table: None, range }
    }
}

// SAFETY: the inner memory does everything.
unsafe impl FrameSource for RecordedFrames {
    fn allocate(&self, group: GroupId, purpose: FrameUse) -> Option<Frame> {
        assert_eq!(group, GroupId::ROOT);
        lock(&self.log.taken_for).push(purpose);
        self.memory.allocate(group, purpose)
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
        self.log.transfer(frame);
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
