//! The slots of threads. A slot has the marks that grace periods look at, and the things that its thread keeps. Slots come in
//! chunks. `section.rs` has the protocol.

use super::atomic::{AtomicU64, AtomicUsize, Ordering};
use super::barrier::Barrier;
use super::life::try_box_uninit;
use super::retired::{Awaited, List};
use super::{OutOfMemory, plain};
use crate::limit::Stock;
use crate::page_cache::Dirtied;
use crate::reclaim::queue::Arrivals;
use crate::stats::Counters;
use crate::swap::Window;
use alloc::boxed::Box;
use core::ops::Deref;
use crossbeam_utils::CachePadded;

#[cfg(not(loom))]
pub(super) const CHUNKS: usize = 1024;
#[cfg(loom)]
pub(super) const CHUNKS: usize = 1;
#[cfg(not(loom))]
pub(super) const CHUNK_SLOTS: usize = 64;
#[cfg(loom)]
pub(super) const CHUNK_SLOTS: usize = 4;

/// The number of a thread's (in a kernel: a processor's) slot; below [`SlotIndex::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotIndex(u32);

impl SlotIndex {
    /// The largest number of slots.
    pub const MAX: u32 = (CHUNKS * CHUNK_SLOTS) as u32;

    /// Returns slot `index`, or `None` if it is not below [`SlotIndex::MAX`].
    pub fn new(index: u32) -> Option<Self> {
        (index < Self::MAX).then_some(Self(index))
    }

    /// Returns the number.
    #[inline]
    pub fn get(self) -> u32 {
        self.0
    }
}

/// A value that belongs to a slot, such as a read section, with the guard that keeps its thread at the slot. The guard is
/// dropped last.
pub struct Pinned<T, G> {
    value: T,
    _guard: G,
}

impl<T, G> Pinned<T, G> {
    /// Pairs `value` with `guard`. Both are of the same slot.
    #[inline]
    pub(crate) fn new(value: T, guard: G) -> Self {
        Self { value, _guard: guard }
    }
}

impl<T, G> Deref for Pinned<T, G> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

/// The state of a slot, as scans see it.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum State {
    /// No thread has used the slot, or it was given up.
    Unused,
    /// The slot is in use, and scans look at it.
    Listed,
    /// The slot is in use, and scans pass over it, since its thread sleeps.
    Sleeps,
}

/// A slot: the fields that mostly one thread writes, on cache lines of their own.
#[repr(C)]
pub(super) struct Slot {
    /// A number that is odd while the thread is in a section, or, where sections are not marked, while it is online. Written by
    /// the slot's thread. Partners: [`Sections::grace`](super::Sections::grace) and the periods.
    pub sequence: AtomicUsize,
    /// A number that is odd while the thread is in an access. Written by the slot's thread. Partners:
    /// [`Sections::grace`](super::Sections::grace), the periods, and [`Sections::grace_of`](super::Sections::grace_of).
    pub access: AtomicUsize,
    /// The subject of the access. Written by the slot's thread before it makes `access` odd.
    pub subject: AtomicU64,
    /// The frames in which this thread has installed anonymous pages. The slot's thread pushes; reclaim takes all. They stay
    /// when the thread ends.
    pub arrivals: Arrivals,
    /// The pages that a memory limit has charged already. `limit/stock.rs` states who may write.
    pub stock: Stock,
    /// The pages of files that the slot's thread has made dirty.
    pub dirtied: Dirtied,
    /// A [`State`]. Written by the slot's thread; [`Sections::unlist`](super::Sections::unlist) hands it on.
    state: plain::AtomicU8,
    /// The counters of the slot's thread. Written by that thread, read by
    /// [`Sections::each_counters`](super::Sections::each_counters).
    pub counters: Counters,
    /// The numbers in stock: the next one, and the end. Used by the slot's thread alone.
    pub numbers: [plain::AtomicU64; 2],
    /// The window of read-ahead in swap space. Used by the slot's thread alone.
    pub window: Window,
    /// Tells whether the thread is in a section that is not marked, for checks. Used by the slot's thread alone.
    #[cfg(debug_assertions)]
    in_unmarked: plain::AtomicUsize,
    /// The things that the slot's thread has retired. Other threads only free things that were left behind.
    pub retired: List,
}

impl Slot {
    fn new(index: usize) -> Self {
        Self {
            sequence: AtomicUsize::new(0),
            access: AtomicUsize::new(0),
            subject: AtomicU64::new(u64::MAX),
            arrivals: Arrivals::new(),
            stock: Stock::new(),
            dirtied: Dirtied::default(),
            state: plain::AtomicU8::new(State::Unused as u8),
            counters: Counters::default(),
            numbers: [const { plain::AtomicU64::new(0) }; 2],
            window: Window::default(),
            #[cfg(debug_assertions)]
            in_unmarked: plain::AtomicUsize::new(0),
            retired: List::new(index),
        }
    }

    #[inline]
    pub fn is(&self, state: State) -> bool {
        self.state.load(Ordering::Relaxed) == state as u8
    }

    pub fn set(&self, state: State) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    #[inline]
    pub fn set_in_unmarked(&self, inside: bool) {
        #[cfg(debug_assertions)]
        {
            let before = self.in_unmarked.swap(usize::from(inside), Ordering::Relaxed);
            assert!(before != usize::from(inside), "a read section inside a read section");
        }
        let _ = inside;
    }

    pub fn is_in_unmarked(&self) -> bool {
        #[cfg(debug_assertions)]
        return self.in_unmarked.load(Ordering::Relaxed) != 0;
        #[cfg(not(debug_assertions))]
        return false;
    }

    #[inline]
    pub fn check_no_unmarked(&self) {
        debug_assert!(!self.is_in_unmarked(), "a quiescent state inside a read section");
    }
    /// Begins the first section since the slot was offline, and orders the reads of the section after the slot's coming online.
    #[cold]
    pub fn come_online(&self, barrier: &impl Barrier) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        barrier.mark(&self.sequence, sequence + 1);
    }

    /// Takes the slot offline: no other thread waits for its thread, which is in no section, until its next section.
    pub fn go_offline(&self) {
        self.check_no_unmarked();
        let sequence = self.sequence.load(Ordering::Relaxed);
        if sequence & 1 == 1 {
            self.sequence.store(sequence + 1, Ordering::Release);
        }
    }
}

/// Slots whose memory is allocated together.
pub(super) struct Chunk {
    pub slots: [CachePadded<Slot>; CHUNK_SLOTS],
    /// For each slot, the numbers that the grace period under way waits for. They are apart from the slots, whose threads do
    /// not look at them.
    pub awaited: [Awaited; CHUNK_SLOTS],
}

impl Chunk {
    /// Makes a chunk whose first slot has number `first`. It is written slot by slot, since the stacks of a kernel's threads
    /// have no room for all.
    pub fn boxed(first: usize) -> Result<Box<Self>, OutOfMemory> {
        let mut chunk = try_box_uninit::<Self>()?;
        let place = chunk.as_mut_ptr();
        for i in 0..CHUNK_SLOTS {
            // SAFETY: places of the box's own, each written once.
            unsafe {
                (&raw mut (*place).slots[i]).write(CachePadded::new(Slot::new(first.saturating_add(i))));
                (&raw mut (*place).awaited[i]).write(Awaited::default());
            }
        }
        // SAFETY: both arrays have been filled, and there is nothing else in it.
        Ok(unsafe { chunk.assume_init() })
    }
}
