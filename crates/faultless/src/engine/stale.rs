//! Invalidation in batches, over several tables and spaces, by work that has not taken the pages: truncation and
//! writeback.
//!
//! ```text
//! the batch counts itself
//! for each space: entries are weakened or taken out (as page work, or by exchange); the batch notes the pages
//! one invalidation for all of them        then the bytes may be read, and the references of removed entries dropped
//! the batch counts itself no more
//! ```
//! Between the second line and the third a processor may use translations that the entries no longer have. Range work
//! that finds an empty entry, or one without the write right, would assume that no processor uses more, and return. So it
//! asks [`Engine::has_stale`] after its sweep. If there is such a batch, it invalidates all that it has swept. No access
//! succeeds after munmap or mprotect has returned (invariant 3).

use super::Engine;
use crate::address::{PageNumber, PageRange};
use crate::host::{Entry, Host, PageTable, ShareLeaves};
use crate::stats::Counter;
use crate::sync::atomic::{Ordering, fence};
use crate::sync::plain;
use smallvec::{Array, SmallVec};

/// The number of parts that a batch holds on the stack.
#[cfg(not(loom))]
const FEW_PARTS: usize = 4;
#[cfg(loom)]
const FEW_PARTS: usize = 2;
/// The number of parts that a batch holds with memory from the allocator, 4 KiB at most.
const MANY_PARTS: usize = 128;

/// The number of references that a list holds on the stack.
const FEW: usize = 64;
/// The number of references that a list holds with memory from the allocator. A munmap of 64 MiB invalidates 16 times.
/// The frames of a batch are free only after its invalidation.
const MANY: usize = 1024;

/// The name of some pages of a table of `H`, for an invalidation that may come when the table is gone.
type StaleOf<H> = <<H as Host>::Table as PageTable>::Stale;

/// The number of batches that may have weakened entries and have not invalidated them. Atomic.
#[derive(Default)]
pub(crate) struct OpenBatches(plain::AtomicU64);

/// Pages of tables, perhaps of several spaces, whose entries were weakened by work that has not taken the pages.
pub(crate) struct StaleBatch<'a, H: Host> {
    engine: &'a Engine<H>,
    /// The parts that have ended. It outgrows its place on the stack only if there is memory.
    stale: SmallVec<[StaleOf<H>; FEW_PARTS]>,
    /// The range that covers the touched pages of the current table.
    range: Option<PageRange>,
}

impl<'a, H: Host> StaleBatch<'a, H> {
    /// Opens an empty batch. Called before the first entry is weakened.
    pub fn open(engine: &'a Engine<H>) -> Self {
        const { assert!(size_of::<StaleOf<H>>() <= 32, "some of them are on the stack") };
        // Partner: `has_stale`. The entry's change comes after this, with Release: a thread that finds the entry finds
        // the batch counted.
        engine.open_batches.0.fetch_add(1, plain::Ordering::Relaxed);
        Self { engine, stale: SmallVec::new(), range: None }
    }

    /// Notes that the entry of `page`, in the current table, was weakened.
    pub fn touch(&mut self, page: PageNumber) {
        self.touch_all(PageRange::single(page));
    }

    /// Notes that entries of `range`, in the current table, may have been weakened.
    pub fn touch_all(&mut self, range: PageRange) {
        self.range = Some(self.range.map_or(range, |all| all.hull(range)));
    }

    /// Ends the part of `table`. The next pages are of another table, or far away from those before.
    pub fn end_part(&mut self, table: &H::Table) {
        if self.range.is_some() {
            self.make_room();
            self.end_part_in_section(table);
        }
    }

    /// Returns whether one more part can end without a wait.
    pub fn has_room(&self) -> bool {
        self.stale.len() < self.stale.capacity()
    }

    /// Makes room for at least one more part. The caller is in no section.
    pub fn make_room(&mut self) {
        if !self.has_room() && !grow(&mut self.stale, MANY_PARTS) {
            self.flush();
        }
    }

    /// Ends the part of `table` as [`StaleBatch::end_part`] does, for a caller in a section: there is room for it.
    pub fn end_part_in_section(&mut self, table: &H::Table) {
        debug_assert!(self.has_room());
        if let Some(range) = self.range.take() {
            self.stale.push(table.stale(range));
        }
    }

    /// Notes that the entry of `page` was weakened in a leaf table that several spaces share, for a caller in a section: there is
    /// room for it.
    pub fn touch_in_all(&mut self, page: PageNumber) {
        debug_assert!(self.has_room());
        self.stale.push(<H::Table as PageTable>::Sharing::stale_in_all(PageRange::single(page)));
    }

    /// Waits until no processor uses an older translation of the pages of all parts that have ended.
    fn flush(&mut self) {
        if !self.stale.is_empty() {
            self.engine.invalidate_all(&mut self.stale);
            self.stale.clear();
        }
    }

    /// Invalidates the rest of the pages and no longer counts the batch. After a panic a batch stays counted: nothing was
    /// invalidated.
    #[inline(never)]
    pub fn finish(mut self) {
        debug_assert!(self.range.is_none(), "a part that has not ended");
        self.flush();
        // Release, partner: `has_stale`. A thread that does not find the batch counted finds all of it invalidated.
        self.engine.open_batches.0.fetch_sub(1, plain::Ordering::Release);
    }
}

/// Entries that were taken out of several tables. Their references are dropped when no processor uses them any more (rule
/// 6).
pub(crate) struct RemovedBatch<'a, H: Host> {
    stale: StaleBatch<'a, H>,
    removed: RemovedEntries,
}

impl<'a, H: Host> RemovedBatch<'a, H> {
    /// Opens an empty batch. Called before the first entry is taken out.
    pub fn open(engine: &'a Engine<H>) -> Self {
        Self { stale: StaleBatch::open(engine), removed: RemovedEntries::default() }
    }

    /// Takes over the references of `entry`, which was at `page` of `table`.
    pub fn add(&mut self, table: &H::Table, page: PageNumber, entry: Entry) {
        if !entry.holds_page() {
            return;
        }
        if !self.removed.has_room() {
            self.stale.end_part(table);
            self.flush();
        }
        self.removed.push(entry);
        self.stale.touch(page);
    }

    /// Notes that the entry of `page`, in the current table, was weakened.
    pub fn touch(&mut self, page: PageNumber) {
        self.stale.touch(page);
    }

    /// Notes that entries of `range`, in the current table, may have been weakened.
    pub fn touch_all(&mut self, range: PageRange) {
        self.stale.touch_all(range);
    }

    /// Ends the part of `table`, as [`StaleBatch::end_part`] does.
    pub fn end_part(&mut self, table: &H::Table) {
        self.stale.end_part(table);
    }

    fn flush(&mut self) {
        if mutant!("batch_freed_early") {
            self.removed.drop_all(self.stale.engine);
        }
        self.stale.flush();
        self.removed.drop_all(self.stale.engine);
    }

    /// Invalidates the pages, drops the references, and no longer counts the batch.
    pub fn finish(mut self) {
        self.flush();
        self.stale.finish();
    }
}

/// Entries that were taken out, with their references. If a panic unwinds, the references leak: a processor may use the
/// pages.
#[derive(Default)]
pub(crate) struct RemovedEntries(SmallVec<[Entry; FEW]>);

impl RemovedEntries {
    /// Returns whether there is room for one more entry. Gets memory for a large batch when the places on the stack are
    /// taken.
    #[inline]
    pub fn has_room(&mut self) -> bool {
        self.0.len() < self.0.capacity() || grow(&mut self.0, MANY)
    }

    /// Returns whether there is room for all of `entries`. Gets memory as [`RemovedEntries::has_room`] does.
    #[inline]
    pub fn has_room_for(&mut self, entries: usize) -> bool {
        let is_enough = |all: &SmallVec<_>| all.len() + entries <= all.capacity();
        is_enough(&self.0) || grow(&mut self.0, MANY) && is_enough(&self.0)
    }

    /// Adds entries. The caller has checked that there is room.
    #[inline]
    pub fn push_all(&mut self, entries: &[Entry]) {
        self.0.extend_from_slice(entries);
    }

    /// Adds an entry. The caller has checked that there is room.
    #[inline]
    pub fn push(&mut self, entry: Entry) {
        self.0.push(entry);
    }

    /// Drops the references of the entries. The caller has made sure that no processor uses them.
    #[inline]
    pub fn drop_all<H: Host>(&mut self, engine: &Engine<H>) {
        if self.0.is_empty() {
            return;
        }
        engine.drop_entries(&self.0);
        self.0.clear();
        engine.tell_freed();
    }
}

/// Gives a batch room for `many`. Returns false if there is no memory, or if the batch has had that room already.
#[cold]
fn grow<A: Array>(batch: &mut SmallVec<A>, many: usize) -> bool {
    !batch.spilled() && batch.try_grow(many).is_ok()
}

impl<H: Host> Engine<H> {
    /// Returns whether processors may use translations that some entries no longer have, though no thread has taken the
    /// pages. Range work asks this after its sweep.
    #[inline]
    pub(crate) fn has_stale(&self) -> bool {
        self.open_batches() != 0 && !mutant!("sweep_ignores_batches")
    }

    /// Returns the same for a caller that has such a batch of its own.
    pub(crate) fn has_other_stale(&self) -> bool {
        self.open_batches() > 1
    }

    #[inline]
    fn open_batches(&self) -> u64 {
        // Partner: the Release with which the entries that the sweep found were changed.
        fence(Ordering::Acquire);
        // Acquire, partner: the end of a batch.
        self.open_batches.0.load(plain::Ordering::Acquire)
    }

    /// Waits until no processor uses an older translation of any of these pages.
    fn invalidate_all(&self, batch: &mut [StaleOf<H>]) {
        self.assert_may_wait_for_processors("invalidate_all");
        let all = |wait: &mut dyn FnMut(u32)| self.host.invalidate_all(&self.sections, batch, wait);
        self.timed(Counter::InvalidateWait, all);
    }
}
