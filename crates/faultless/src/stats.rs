//! What happened, and what was waited for: counters in each thread's own slot, so that counting costs no shared line.

use crate::sync::plain::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What is counted. Names ending in `_ns` are nanoseconds, the others are events.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Counter { $($(#[$doc])* $variant,)* }

        impl Counter {
            /// Every counter, in the order of reports.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in reports.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

counters! {
    /// Faults taken, retries and resumes not counted again.
    Faults = "faults",
    /// Faults that had to wait for a read.
    MajorFaults = "major_faults",
    /// Faults that started over after I/O.
    Retries = "retries",
    /// Retries that found the page gone from the cache again.
    RetriesPageGone = "retries_page_gone",
    /// Faults that resumed after I/O, and found their mapping changed.
    ResumesChanged = "resumes_changed",
    /// Pages whose read was started.
    IoReads = "io_reads",
    /// Reads of a page that had been read before and was evicted.
    IoRereads = "io_rereads",
    /// Dirty pages whose write was started.
    IoWrites = "io_writes",
    /// Writes that failed, each of one or more dirty pages; and flushes that failed.
    WritebackErrors = "writeback_errors",
    /// Time that stores, syncs and truncations waited for writes of dirty pages.
    WritebackWait = "writeback_wait_ns",
    /// Clean folios evicted from the page cache.
    Evictions = "evictions",
    /// Folios that eviction looked at, whatever came of it.
    EvictionLooks = "eviction_looks",
    /// Mappings that writeback, truncation and holes looked at, to find those that show a page of the file.
    RmapLooks = "rmap_looks",
    /// Time faults waited for I/O.
    IoWait = "io_wait_ns",
    /// Times that page or range work met an entry's bit and had to wait.
    PageBitWaits = "page_bit_waits",
    /// Time of those waits.
    PageBitWait = "page_bit_wait_ns",
    /// Of those waits, how many outlasted spinning: the announcer was probably preempted (rule 11).
    PreemptedWaits = "preempted_waits",
    /// Their time after spinning; part of the time above.
    PreemptedWait = "preempted_wait_ns",
    /// Time range work waited for overlapping range work, and faults for a range marked BUSY.
    RangeWait = "range_wait_ns",
    /// Time range work waited for the short tree lock.
    TreeLockWait = "tree_lock_wait_ns",
    /// Time page work waited for a fork's copy to end.
    FreezeWait = "freeze_wait_ns",
    /// Time spent waiting for grace periods: older read and access sections.
    GraceWait = "grace_wait_ns",
    /// Time range work and copies of pages waited until no processor used an older translation.
    InvalidateWait = "invalidate_wait_ns",
    /// Time faults and calls on files waited for memory, or for a place among the pins of a page.
    MemoryWait = "memory_wait_ns",
    /// Time faults and calls on files waited for a cut, a hole or a reading anew of the file to end.
    ResizeWait = "resize_wait_ns",
    /// mmap_lock taken for reading, by faults and by madvise.
    MmapLockRead = "mmap_lock_read",
    /// mmap_lock taken for writing.
    MmapLockWrite = "mmap_lock_write",
    /// Time waited for mmap_lock; the next four are its parts, by what the wait was for when it began.
    MmapLockWait = "mmap_lock_wait_ns",
    /// While some fault of the space held a lock through its I/O.
    MmapLockWaitIo = "mmap_lock_wait_io_ns",
    /// For a fork.
    MmapLockWaitFork = "mmap_lock_wait_fork_ns",
    /// For another change: map, unmap, protect.
    MmapLockWaitChange = "mmap_lock_wait_change_ns",
    /// For faults at work.
    MmapLockWaitFault = "mmap_lock_wait_fault_ns",
    /// VMA locks taken for reading, by faults and by madvise.
    VmaLockRead = "vma_lock_read",
    /// Faults that found their VMA locked or nowhere, or could not try mmap_lock for a first anonymous page, and took
    /// mmap_lock instead.
    VmaLockAborts = "vma_lock_aborts",
    /// Time range work waited for VMA locks; the next two are its parts.
    VmaLockWait = "vma_lock_wait_ns",
    /// While some fault of the space held a lock through its I/O.
    VmaLockWaitIo = "vma_lock_wait_io_ns",
    /// For faults at work.
    VmaLockWaitFault = "vma_lock_wait_fault_ns",
    /// Faults that could not go on without mmap_lock, or for which it had been taken meanwhile: they took it.
    SpeculationAborts = "speculation_aborts",
    /// Time faults and range work waited in a design's lock of ranges.
    RangeLockWait = "range_lock_wait_ns",
    /// Time faults and range work waited for locks of leaf tables.
    TableLockWait = "table_lock_wait_ns",
    /// Time faults waited for a folio that was up to date and locked.
    FolioLockWait = "folio_lock_wait_ns",
    /// Copy-on-write breaks that copied the page.
    CowCopies = "cow_copies",
    /// Copy-on-write breaks that reused the page in place.
    CowReuses = "cow_reuses",
    /// Leaf tables that forks shared.
    TablesShared = "tables_shared",
    /// Leaf tables copied since, by who was first to write an entry.
    TablesCopied = "tables_copied",
    /// Entries of pages that were swapped, gone or kept, counted once more: by fork, or by leaving a shared table.
    AbsentCopied = "absent_entries_copied",
    /// Entries of pages that were swapped, gone or kept, dropped.
    AbsentDropped = "absent_entries_dropped",
}

const COUNTERS: usize = Counter::ALL.len();

/// One thread's counters. Written by that thread only, read by anybody.
#[derive(Debug)]
pub struct Counters([AtomicU64; COUNTERS]);

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; COUNTERS])
    }
}

impl Counters {
    /// Adds, without a locked instruction: the line has one writer.
    #[inline]
    pub fn add(&self, counter: Counter, n: u64) {
        let place = &self.0[counter as usize];
        place.store(place.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }
}

/// The sum over all threads at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistics([u64; COUNTERS]);

impl Default for Statistics {
    fn default() -> Self {
        Self([0; COUNTERS])
    }
}

impl Statistics {
    /// One figure.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// Adds one thread's counters.
    pub fn accumulate(&mut self, counters: &Counters) {
        for (sum, one) in self.0.iter_mut().zip(&counters.0) {
            *sum = sum.wrapping_add(one.load(Ordering::Relaxed));
        }
    }

    /// What happened since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self(core::array::from_fn(|i| self.0[i].wrapping_sub(earlier.0[i])))
    }

    /// Every figure with its counter.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> {
        Counter::ALL.iter().map(|&c| (c, self.get(c)))
    }
}
