//! A thread's slot: what it says of itself to grace periods, and what it keeps. Slots come in chunks. `section.rs` has the
//! protocol.

use super::atomic::{AtomicU64, AtomicUsize, Ordering};
use super::barrier::Barrier;
use super::life::try_box_uninit;
use super::retired::{Awaited, List};
use super::{OutOfMemory, plain};
use crate::stats::Counters;
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
    /// How many slots there can be.
    pub const MAX: u32 = (CHUNKS * CHUNK_SLOTS) as u32;

    /// Slot `index`, or `None` from [`SlotIndex::MAX`] on.
    pub fn new(index: u32) -> Option<Self> {
        (index < Self::MAX).then_some(Self(index))
    }

    /// The number.
    #[inline]
    pub fn get(self) -> u32 {
        self.0
    }
}

/// Something that belongs to a slot, such as a read section, and the guard that keeps its thread there meanwhile. The guard goes
/// last.
pub struct Pinned<T, G> {
    value: T,
    _guard: G,
}

impl<T, G> Pinned<T, G> {
    /// `value` is of the slot that `guard` is for.
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

/// How a slot stands to scans.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum State {
    /// Nobody has used it, or it was given up.
    Unused,
    /// It is in use, and scans look at it.
    Listed,
    /// It is in use, and scans pass over it: its thread sleeps.
    Sleeps,
}

/// What one thread writes and hardly anybody else, on cache lines of its own.
#[repr(C)]
pub(super) struct Slot {
    /// Odd while in a section, or, where sections are not marked, while online. Written by the slot's thread; partners:
    /// [`Sections::grace`](super::Sections::grace) and the periods.
    pub sequence: AtomicUsize,
    /// Odd while in an access. Written by the slot's thread; partners: as above, and [`Sections::grace_of`](super::Sections::grace_of).
    pub access: AtomicUsize,
    /// What the access is to. Written by the slot's thread before it makes `access` odd.
    pub subject: AtomicU64,
    /// A [`State`]. The slot's thread's; [`Sections::unlist`](super::Sections::unlist) hands it on.
    state: plain::AtomicU8,
    /// Written by the slot's thread, read by [`Sections::each_counters`](super::Sections::each_counters).
    pub counters: Counters,
    /// Numbers in stock: the next one, and the end. The slot's thread's.
    pub numbers: [plain::AtomicU64; 2],
    /// Whether in a section that is not marked; for checks. The slot's thread's.
    #[cfg(debug_assertions)]
    in_unmarked: plain::AtomicUsize,
    /// What the slot's thread has retired. Others come only to free what was left behind.
    pub retired: List,
}

impl Slot {
    fn new(index: usize) -> Self {
        Self {
            sequence: AtomicUsize::new(0),
            access: AtomicUsize::new(0),
            subject: AtomicU64::new(u64::MAX),
            state: plain::AtomicU8::new(State::Unused as u8),
            counters: Counters::default(),
            numbers: [const { plain::AtomicU64::new(0) }; 2],
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
    /// Begins the first section since the slot was offline: orders what it will read after its being online.
    #[cold]
    pub fn come_online(&self, barrier: &impl Barrier) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        barrier.mark(&self.sequence, sequence + 1);
    }

    /// Nobody waits for the slot's thread, which is in no section, until its next one.
    pub fn go_offline(&self) {
        self.check_no_unmarked();
        let sequence = self.sequence.load(Ordering::Relaxed);
        if sequence & 1 == 1 {
            self.sequence.store(sequence + 1, Ordering::Release);
        }
    }
}

/// Slots whose memory comes at once.
pub(super) struct Chunk {
    pub slots: [CachePadded<Slot>; CHUNK_SLOTS],
    /// By slot: whom the grace period under way waits for. Apart from the slots, whose threads do not look at it.
    pub awaited: [Awaited; CHUNK_SLOTS],
}

impl Chunk {
    /// A chunk whose first slot has number `first`. Slot by slot: the stacks of a kernel's threads have no room for all.
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
