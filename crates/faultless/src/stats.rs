//! Counters of events and of waiting times. Each thread counts in its own slot, so that counting shares no cache line.

use crate::sync::plain::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A counter. Names ending in `_ns` count nanoseconds, the others events.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Counter { $($(#[$doc])* $variant,)* }

        impl Counter {
            /// All counters, in the order of reports.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Returns the counter's name in reports.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

counters! {
    /// Faults taken. Retries and resumes are not counted again.
    Faults = "faults",
    /// Faults that had to wait for a read.
    MajorFaults = "major_faults",
    /// Faults that started over after I/O.
    Retries = "retries",
    /// Retries that found the page gone from the cache again.
    RetriesPageGone = "retries_page_gone",
    /// Faults that resumed after I/O and found their mapping changed.
    ResumesChanged = "resumes_changed",
    /// Pages whose read was started.
    IoReads = "io_reads",
    /// Reads of a page that had been read before and was evicted.
    IoRereads = "io_rereads",
    /// Dirty pages whose write was started.
    IoWrites = "io_writes",
    /// Failed writes, each of one or more dirty pages, and failed flushes.
    WritebackErrors = "writeback_errors",
    /// Times that a thread was slowed down, since there were more dirty pages than the limit.
    DirtyThrottled = "dirty_throttled",
    /// Time that threads slept for that.
    DirtyWait = "dirty_wait_ns",
    /// Time that stores, syncs and truncations waited for writes of dirty pages, and syncs for flushes by other threads.
    WritebackWait = "writeback_wait_ns",
    /// Clean folios that reclaim evicted from the page cache.
    Evictions = "evictions",
    /// Mappings that writeback, truncation and holes looked at, to find those that show a page of the file.
    RmapLooks = "rmap_looks",
    /// Time that faults waited for I/O.
    IoWait = "io_wait_ns",
    /// Times that page or range work met an entry's bit and had to wait.
    PageBitWaits = "page_bit_waits",
    /// Time of the waits that `PageBitWaits` counts.
    PageBitWait = "page_bit_wait_ns",
    /// Waits of `PageBitWaits` that outlasted spinning: the announcing thread was probably preempted (rule 11).
    PreemptedWaits = "preempted_waits",
    /// Time of the waits of `PreemptedWaits` after spinning; a part of `PageBitWait`.
    PreemptedWait = "preempted_wait_ns",
    /// Time that range work waited for overlapping range work, and faults for a range marked BUSY.
    RangeWait = "range_wait_ns",
    /// Time that range work waited for the short tree lock.
    TreeLockWait = "tree_lock_wait_ns",
    /// Time that page work waited for a fork's copy to end.
    FreezeWait = "freeze_wait_ns",
    /// Time of waits for grace periods, that is, for older read and access sections.
    GraceWait = "grace_wait_ns",
    /// Time that range work and copies of pages waited until no processor used an older translation.
    InvalidateWait = "invalidate_wait_ns",
    /// Time that faults and calls on files waited for memory, or for a place among the pins of a page.
    MemoryWait = "memory_wait_ns",
    /// Time that faults and calls on files waited until a truncation, a hole or a reading anew of the file had ended.
    ResizeWait = "resize_wait_ns",
    /// Times that faults and madvise took mmap_lock for reading.
    MmapLockRead = "mmap_lock_read",
    /// Times that mmap_lock was taken for writing.
    MmapLockWrite = "mmap_lock_write",
    /// Time of waits for mmap_lock. The next four counters are its parts, by what the holder did meanwhile.
    MmapLockWait = "mmap_lock_wait_ns",
    /// Time of waits for mmap_lock while a fault held it through its I/O, or while its writer waited for such a fault's VMA lock.
    MmapLockWaitIo = "mmap_lock_wait_io_ns",
    /// Time of waits for mmap_lock while a fork was at work.
    MmapLockWaitFork = "mmap_lock_wait_fork_ns",
    /// Time of waits for mmap_lock while another change was at work: map, unmap, protect.
    MmapLockWaitChange = "mmap_lock_wait_change_ns",
    /// Time of waits for mmap_lock while faults were at work.
    MmapLockWaitFault = "mmap_lock_wait_fault_ns",
    /// Times that faults and madvise took a VMA lock for reading.
    VmaLockRead = "vma_lock_read",
    /// Faults that found their VMA locked or missing, or could not try mmap_lock for a first anonymous page, and took
    /// mmap_lock instead.
    VmaLockAborts = "vma_lock_aborts",
    /// Time that range work waited for VMA locks. The next two counters are its parts.
    VmaLockWait = "vma_lock_wait_ns",
    /// Time of waits for VMA locks while a fault held the lock through its I/O.
    VmaLockWaitIo = "vma_lock_wait_io_ns",
    /// Time of waits for VMA locks while faults were at work.
    VmaLockWaitFault = "vma_lock_wait_fault_ns",
    /// Faults that took mmap_lock, since they needed it to go on or another thread had taken it meanwhile.
    SpeculationAborts = "speculation_aborts",
    /// Time that faults and range work waited in a design's lock of ranges.
    RangeLockWait = "range_lock_wait_ns",
    /// Time that faults and range work waited for locks of leaf tables.
    TableLockWait = "table_lock_wait_ns",
    /// Time that faults waited for a folio that was up to date and locked.
    FolioLockWait = "folio_lock_wait_ns",
    /// Pages that reclaim took out of all entries.
    Reclaimed = "reclaimed",
    /// Frames that direct reclaim has freed: reclaim and eviction by threads that found no memory, or whose group is over its high
    /// limit.
    ReclaimedDirectly = "reclaimed_directly",
    /// Frames that the background worker has freed by reclaim and eviction.
    ReclaimedInBackground = "reclaimed_in_background",
    /// Pages that reclaim looked at.
    ReclaimLooks = "reclaim_looks",
    /// Pages that reclaim passed over since they had been used.
    PassedYoung = "reclaim_passed_young",
    /// Pages that reclaim found in use when it looked at the entries around a page that was in use.
    FoundAround = "reclaim_found_around",
    /// Pages that reclaim passed over since other work was under way on them.
    PassedBusy = "reclaim_passed_busy",
    /// Pages that reclaim passed over since their home led to no entry that maps them.
    PassedLost = "reclaim_passed_lost",
    /// Pages that reclaim passed over since they are locked or pinned for I/O.
    PassedHeld = "reclaim_passed_held",
    /// Pages of files that reclaim passed over since they have to be written first, which it has started.
    PassedDirty = "reclaim_passed_dirty",
    /// Pages for which there was no slot, or no place on a device.
    PassedNoSlot = "reclaim_passed_no_slot",
    /// Spaces that were ended since there was no memory.
    VictimsEnded = "victims_ended",
    /// Copy-on-write breaks that copied the page.
    CowCopies = "cow_copies",
    /// Copy-on-write breaks that reused the page in place.
    CowReuses = "cow_reuses",
    /// Pages that fork copied at once: pages pinned for I/O, and those of mappings with `COPY_AT_FORK`.
    ForkCopies = "fork_copies",
    /// Leaf tables that forks shared.
    TablesShared = "tables_shared",
    /// Shared leaf tables copied since by the first thread that wrote an entry.
    TablesCopied = "tables_copied",
    /// Entries of pages that were swapped, gone or kept, and that fork or leaving a shared table counted once more.
    AbsentCopied = "absent_entries_copied",
    /// Entries of pages that were swapped, gone or kept, and that were dropped.
    AbsentDropped = "absent_entries_dropped",
    /// Pages whose write to a swap device was started, and pages of one repeated word, which need no device.
    SwapOuts = "swap_outs",
    /// Pages whose read from swap space was started, with those of one repeated word.
    SwapIns = "swap_ins",
    /// Pages of `SwapIns` that were read ahead, since a fault had to read a page near them.
    SwapAhead = "swap_ahead",
    /// Pages of `SwapAhead` that a fault used before they were reclaimed.
    SwapAheadHits = "swap_ahead_hits",
    /// Failed writes of a page to a swap device. A device that refuses a page is not counted.
    SwapWriteErrors = "swap_write_errors",
    /// Swapped pages that were found in memory.
    SwapCacheHits = "swap_cache_hits",
}

const COUNTERS: usize = Counter::ALL.len();

/// The counters of one thread. Only that thread writes them; any thread may read them.
#[derive(Debug)]
pub struct Counters([AtomicU64; COUNTERS]);

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; COUNTERS])
    }
}

impl Counters {
    /// Adds `n` to `counter`, without a locked instruction. Only the thread that owns the counters may call it.
    #[inline]
    pub fn add(&self, counter: Counter, n: u64) {
        let place = &self.0[counter as usize];
        place.store(place.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }
}

/// The sums of all threads' counters at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistics([u64; COUNTERS]);

impl Default for Statistics {
    fn default() -> Self {
        Self([0; COUNTERS])
    }
}

impl Statistics {
    /// Returns the value of one counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// Adds the counters of one thread.
    pub fn accumulate(&mut self, counters: &Counters) {
        for (sum, one) in self.0.iter_mut().zip(&counters.0) {
            *sum = sum.wrapping_add(one.load(Ordering::Relaxed));
        }
    }

    /// Returns the growth of each counter since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self(core::array::from_fn(|i| self.0[i].wrapping_sub(earlier.0[i])))
    }

    /// Iterates over all counters with their values.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> {
        Counter::ALL.iter().map(|&c| (c, self.get(c)))
    }
}
