//! Invalidation in batches, over several tables and spaces, by somebody who has not taken the pages: truncation and writeback.
//!
//! ```text
//! the batch counts itself
//! for each space: entries are weakened or taken out (as page work, or by exchange); the batch notes the pages
//! one invalidation for all of them        then the bytes may be read, and the references of what was taken out dropped
//! the batch counts itself no more
//! ```
//! Between the second line and the third a processor may use what no entry says any more. Range work that finds an empty entry, or
//! one without the write right, would take it that no processor uses more, and return. So it asks [`Engine::has_stale`] after its
//! sweep, and invalidates all that it has swept if there is such a batch: no access succeeds after munmap or mprotect has returned
//! (invariant 3).

use super::Engine;
use crate::address::{PageNumber, PageRange};
use crate::host::{Entry, Host, PageTable};
use crate::stats::Counter;
use crate::sync::atomic::{Ordering, fence};
use crate::sync::plain;
use smallvec::{Array, SmallVec};

/// Parts that a batch has place for on the stack.
#[cfg(not(loom))]
const FEW_PARTS: usize = 4;
#[cfg(loom)]
const FEW_PARTS: usize = 2;
/// The same with memory: 4 KiB at most.
const MANY_PARTS: usize = 128;

/// References that a list has place for on the stack.
const FEW: usize = 64;
/// The same with memory: a munmap of 64 MiB invalidates 16 times. The frames of a batch are free only after it.
const MANY: usize = 1024;

/// The name of some pages of a table of `H`, for an invalidation that may come when the table is gone.
type StaleOf<H> = <<H as Host>::Table as PageTable>::Stale;

/// How many batches have weakened entries, perhaps, and not invalidated them.
#[derive(Default)]
pub(crate) struct OpenBatches(plain::AtomicU64);

/// Pages of tables, perhaps of several spaces, whose entries were weakened by somebody who has not taken them.
pub(crate) struct StaleBatch<'a, H: Host> {
    engine: &'a Engine<H>,
    /// More than its place only if there is memory.
    stale: SmallVec<[StaleOf<H>; FEW_PARTS]>,
    /// What the pages of the table at work lie in.
    range: Option<PageRange>,
}

impl<'a, H: Host> StaleBatch<'a, H> {
    /// An empty batch. Before the first entry is weakened.
    pub fn open(engine: &'a Engine<H>) -> Self {
        const { assert!(size_of::<StaleOf<H>>() <= 32, "some of them are on the stack") };
        // Partner: `has_stale`. The entry's change comes after this, with Release: who finds the entry finds the batch counted.
        engine.open_batches.0.fetch_add(1, plain::Ordering::Relaxed);
        Self { engine, stale: SmallVec::new(), range: None }
    }

    /// The entry of `page`, of the table at work, was weakened.
    pub fn touch(&mut self, page: PageNumber) {
        self.touch_all(PageRange::single(page));
    }

    /// Entries of `range`, of the table at work, may have been.
    pub fn touch_all(&mut self, range: PageRange) {
        self.range = Some(self.range.map_or(range, |all| all.hull(range)));
    }

    /// The next pages are of another table, or far from those of `table` before.
    pub fn end_part(&mut self, table: &H::Table) {
        if let Some(range) = self.range.take() {
            if self.stale.len() == self.stale.capacity() && !grow(&mut self.stale, MANY_PARTS) {
                self.flush();
            }
            self.stale.push(table.stale(range));
        }
    }

    /// Returns when no processor uses an older translation of the pages of all parts that have ended.
    fn flush(&mut self) {
        if !self.stale.is_empty() {
            self.engine.invalidate_all(&mut self.stale);
            self.stale.clear();
        }
    }

    /// The same for all pages. The batch is counted no more. After a panic it stays counted: nothing was invalidated.
    pub fn finish(mut self) {
        debug_assert!(self.range.is_none(), "a part that has not ended");
        self.flush();
        // Release, partner: `has_stale`: who does not find it counted finds all of it invalidated.
        self.engine.open_batches.0.fetch_sub(1, plain::Ordering::Release);
    }
}

/// Entries that were taken out of several tables. What they count is dropped when no processor uses them any more (rule 6).
pub(crate) struct RemovedBatch<'a, H: Host> {
    stale: StaleBatch<'a, H>,
    removed: RemovedEntries,
}

impl<'a, H: Host> RemovedBatch<'a, H> {
    /// An empty batch. Before the first entry is taken out.
    pub fn open(engine: &'a Engine<H>) -> Self {
        Self { stale: StaleBatch::open(engine), removed: RemovedEntries::default() }
    }

    /// Takes over what `entry`, which was at `page` of `table`, counts.
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

    /// As [`StaleBatch::end_part`].
    pub fn end_part(&mut self, table: &H::Table) {
        self.stale.end_part(table);
    }

    fn flush(&mut self) {
        if cfg!(mutant = "batch_freed_early") {
            self.removed.drop_all(self.stale.engine);
        }
        self.stale.flush();
        self.removed.drop_all(self.stale.engine);
    }

    /// Invalidates, drops the references, and is counted no more.
    pub fn finish(mut self) {
        self.flush();
        self.stale.finish();
    }
}

/// Entries that were taken out, with what they count. On the way out of a panic that is leaked: a processor may use it.
#[derive(Default)]
pub(crate) struct RemovedEntries(SmallVec<[Entry; FEW]>);

impl RemovedEntries {
    /// Whether there is room for one more. Gets memory for a large batch when the places on the stack are taken.
    #[inline]
    pub fn has_room(&mut self) -> bool {
        self.0.len() < self.0.capacity() || grow(&mut self.0, MANY)
    }

    /// There is room.
    #[inline]
    pub fn push(&mut self, entry: Entry) {
        self.0.push(entry);
    }

    /// Drops what the entries count. No processor uses them.
    #[inline]
    pub fn drop_all<H: Host>(&mut self, engine: &Engine<H>) {
        if self.0.is_empty() {
            return;
        }
        while let Some(entry) = self.0.pop() {
            engine.drop_entry(entry);
        }
        engine.tell_freed();
    }
}

/// Gets a batch room for `many`. False: there is no memory, or it has it already.
#[cold]
fn grow<A: Array>(batch: &mut SmallVec<A>, many: usize) -> bool {
    !batch.spilled() && batch.try_grow(many).is_ok()
}

impl<H: Host> Engine<H> {
    /// Whether processors may use what some entries do not say any more, though nobody has taken the pages. Range work asks
    /// after its sweep.
    #[inline]
    pub(crate) fn has_stale(&self) -> bool {
        // Partner: the Release with which the entries were changed that the sweep has found so.
        fence(Ordering::Acquire);
        // Acquire, partner: the end of a batch.
        self.open_batches.0.load(plain::Ordering::Acquire) != 0 && !cfg!(mutant = "sweep_ignores_batches")
    }

    /// Returns when no processor uses an older translation of any of these.
    fn invalidate_all(&self, batch: &mut [StaleOf<H>]) {
        self.assert_may_wait_for_processors("invalidate_all");
        let all = |wait: &mut dyn FnMut(u32)| self.host.invalidate_all(&self.sections, batch, wait);
        self.timed(Counter::InvalidateWait, all);
    }
}
