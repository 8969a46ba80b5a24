//! Read sections: a thread says in its own slot that it reads the tree and the tables. They govern only when what
//! was retired may be freed, and when a processor's older accesses have ended.
//!
//! ```text
//! enter:  slot.store(odd, Release); light          leave:  slot.store(even, Release)
//! grace:  heavy; for each slot: s = load(Acquire); if odd, until load(Acquire) != s
//! ```
//! A section may say which page it accesses as a processor does ([`Sections::enter_access`]); then a shootdown of
//! other pages need not wait for it ([`Sections::grace_of`]).
//!
//! `light` and `heavy` are one SeqCst fence each ([`FenceBarrier`]) or, together, a membarrier. Between them either
//! the grace period sees the slot odd and waits, or the reader sees everything published before the grace period.

use super::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use super::{full_fence, plain};
use crate::stats::Counters;
use alloc::boxed::Box;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use crossbeam_utils::CachePadded;

#[cfg(not(loom))]
const CHUNKS: usize = 1024;
#[cfg(loom)]
const CHUNKS: usize = 1;
#[cfg(not(loom))]
const CHUNK_SLOTS: usize = 64;
#[cfg(loom)]
const CHUNK_SLOTS: usize = 4;

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
    pub fn get(self) -> u32 {
        self.0
    }
}

/// How a read section's entry and a grace period are ordered against each other: after both have run, one of the
/// two sides has seen the other.
pub trait Barrier: Send + Sync {
    /// On entering a section: as cheap as can be.
    fn light(&self);
    /// At the start of a grace period.
    fn heavy(&self);
}

/// A SeqCst fence on both sides: portable, and what loom models.
#[derive(Clone, Copy, Debug, Default)]
pub struct FenceBarrier;

impl Barrier for FenceBarrier {
    #[inline]
    fn light(&self) {
        full_fence();
    }

    fn heavy(&self) {
        full_fence();
    }
}

/// What one thread writes and nobody else: two cache lines of its own (the padding's size).
struct Slot {
    /// Odd while in a section. Written by the slot's thread; partner: [`Sections::grace`].
    sequence: AtomicUsize,
    /// What the section accesses as a processor does; of one that accesses nothing so, what an earlier one did, which may
    /// cost somebody a wait. Written by the slot's thread before it makes `sequence` odd.
    subject: AtomicU64,
    /// What the thread sleeps on, if the end of its space may wake it; else zero. Written by the slot's thread; partner:
    /// [`Sections::each_waits_on`], between their fences.
    waits_on: plain::AtomicUsize,
    /// Written by the slot's thread, read by [`Sections::each_counters`].
    counters: Counters,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            sequence: AtomicUsize::new(0),
            subject: AtomicU64::new(u64::MAX),
            waits_on: plain::AtomicUsize::new(0),
            counters: Counters::default(),
        }
    }
}

type Chunk = [CachePadded<Slot>; CHUNK_SLOTS];

/// The slots of all threads that use one engine.
pub struct Sections {
    /// Chunks, made when a slot in them is first used, freed with `self`.
    chunks: [AtomicPtr<Chunk>; CHUNKS],
    /// One more than the highest slot used. Grows only; SeqCst against the fence of a grace period: a thread that a
    /// grace period does not count has entered after it began.
    used: AtomicUsize,
}

impl Default for Sections {
    fn default() -> Self {
        Self::new()
    }
}

impl Sections {
    /// No slots yet.
    pub fn new() -> Self {
        Self { chunks: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())), used: AtomicUsize::new(0) }
    }

    #[inline]
    fn slot(&self, index: SlotIndex) -> &Slot {
        let index = index.0 as usize;
        let chunk = self.chunks[index / CHUNK_SLOTS].load(Ordering::Acquire);
        if chunk.is_null() || index >= self.used.load(Ordering::Relaxed) {
            return self.first_use(index);
        }
        // SAFETY: chunks are freed only in Drop.
        unsafe { &(*chunk)[index % CHUNK_SLOTS] }
    }

    #[cold]
    fn first_use(&self, index: usize) -> &Slot {
        let place = &self.chunks[index / CHUNK_SLOTS];
        let mut chunk = place.load(Ordering::Acquire);
        if chunk.is_null() {
            let new: Box<Chunk> = Box::new(core::array::from_fn(|_| CachePadded::default()));
            let new = Box::into_raw(new);
            match place.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => chunk = new,
                Err(theirs) => {
                    // SAFETY: `new` came from a Box just now and nobody else has seen it.
                    drop(unsafe { Box::from_raw(new) });
                    chunk = theirs;
                }
            }
        }
        self.used.fetch_max(index + 1, Ordering::SeqCst);
        // SAFETY: chunks are freed only in Drop.
        unsafe { &(*chunk)[index % CHUNK_SLOTS] }
    }

    /// Enters a read section. Sections do not nest; a thread in one does not sleep.
    ///
    /// # Safety
    /// Only one thread at a time uses `index`.
    #[inline]
    pub unsafe fn enter(&self, index: SlotIndex, barrier: &impl Barrier) -> Section<'_> {
        let slot = self.slot(index);
        let sequence = slot.sequence.load(Ordering::Relaxed);
        // Also in a release: a nested section would hide the outer one from grace periods.
        assert!(sequence & 1 == 0, "a read section inside a read section");
        slot.sequence.store(sequence + 1, Ordering::Release);
        barrier.light();
        Section { slot, not_send: PhantomData }
    }

    /// As [`Sections::enter`], for an access to `subject`, which [`Sections::grace_of`] asks for. Until there is a first one it
    /// is [`u64::MAX`].
    ///
    /// # Safety
    /// As [`Sections::enter`].
    #[inline]
    pub unsafe fn enter_access(&self, index: SlotIndex, barrier: &impl Barrier, subject: u64) -> Section<'_> {
        // Release: who reads this one sees all that older sections of this thread did, so that they have ended for it.
        let order = if cfg!(mutant = "subject_relaxed") { Ordering::Relaxed } else { Ordering::Release };
        self.slot(index).subject.store(subject, order);
        // SAFETY: by the contract above.
        unsafe { self.enter(index, barrier) }
    }

    /// Waits until every section that was entered before has ended. `wait` is called between looks with the number
    /// of the look; the caller is in no section.
    pub fn grace(&self, barrier: &impl Barrier, wait: impl FnMut(u32)) {
        self.wait_for(barrier, |_| true, wait);
    }

    /// As [`Sections::grace`], but only for accesses to what is `wanted`.
    pub fn grace_of(&self, barrier: &impl Barrier, wanted: impl Fn(u64) -> bool, wait: impl FnMut(u32)) {
        self.wait_for(
            barrier,
            |slot| {
                // Stored before the odd number that was read. Acquire: if it is a later section's, the one that was read has
                // ended, and what it did is seen.
                wanted(slot.subject.load(Ordering::Acquire))
            },
            wait,
        );
    }

    fn wait_for(&self, barrier: &impl Barrier, concerns: impl Fn(&Slot) -> bool, mut wait: impl FnMut(u32)) {
        barrier.heavy();
        let used = self.used.load(Ordering::SeqCst);
        for first in (0..used).step_by(CHUNK_SLOTS) {
            let chunk = self.chunks[first / CHUNK_SLOTS].load(Ordering::Acquire);
            if chunk.is_null() {
                continue; // its thread has not entered yet: `used` may be ahead for a lower chunk
            }
            // SAFETY: chunks are freed only in Drop.
            let chunk = unsafe { &*chunk };
            for slot in chunk.iter().take(used - first) {
                let seen = slot.sequence.load(Ordering::Acquire);
                if seen & 1 == 0 || !concerns(slot) {
                    continue;
                }
                let mut look = 0;
                while slot.sequence.load(Ordering::Acquire) == seen {
                    wait(look);
                    look += 1;
                }
            }
        }
    }

    /// Whether the thread of this slot is in a section now. For the check that nobody sleeps in one.
    pub fn inside(&self, index: SlotIndex) -> bool {
        self.slot(index).sequence.load(Ordering::Relaxed) & 1 == 1
    }

    /// The counters of one thread.
    #[inline]
    pub fn counters(&self, index: SlotIndex) -> &Counters {
        &self.slot(index).counters
    }

    /// Every slot's counters.
    pub fn each_counters(&self, mut f: impl FnMut(&Counters)) {
        self.each_slot(|slot| f(&slot.counters));
    }

    /// Says what the thread of this slot sleeps on; zero for nothing.
    pub fn set_waits_on(&self, index: SlotIndex, key: usize) {
        self.slot(index).waits_on.store(key, Ordering::Relaxed);
    }

    /// What any thread said that it sleeps on.
    pub fn each_waits_on(&self, mut f: impl FnMut(usize)) {
        self.each_slot(|slot| match slot.waits_on.load(Ordering::Relaxed) {
            0 => {}
            key => f(key),
        });
    }

    fn each_slot(&self, mut f: impl FnMut(&Slot)) {
        let used = self.used.load(Ordering::SeqCst);
        for first in (0..used).step_by(CHUNK_SLOTS) {
            let chunk = self.chunks[first / CHUNK_SLOTS].load(Ordering::Acquire);
            if !chunk.is_null() {
                // SAFETY: chunks are freed only in Drop.
                unsafe { &*chunk }.iter().take(used - first).for_each(|slot| f(slot));
            }
        }
    }
}

impl Drop for Sections {
    fn drop(&mut self) {
        for place in &self.chunks {
            let chunk = place.load(Ordering::Relaxed);
            if !chunk.is_null() {
                // SAFETY: `&mut self`: no section is left, and the chunk came from a Box.
                drop(unsafe { Box::from_raw(chunk) });
            }
        }
    }
}

/// Proof that its thread is in a read section: what it reaches in the tree and the tables is not freed.
pub struct Section<'a> {
    slot: &'a Slot,
    not_send: PhantomData<*const ()>,
}

impl Section<'_> {
    /// The counters of this thread.
    #[inline]
    pub fn counters(&self) -> &Counters {
        &self.slot.counters
    }
}

impl Drop for Section<'_> {
    #[inline]
    fn drop(&mut self) {
        let sequence = self.slot.sequence.load(Ordering::Relaxed);
        self.slot.sequence.store(sequence + 1, Ordering::Release);
    }
}

/// Something that readers may still reach: unhooked, and to be freed after a grace period.
pub struct Retired {
    pointer: NonNull<()>,
    free: unsafe fn(NonNull<()>),
}

// SAFETY: `Retired::new` takes only what may be sent.
unsafe impl Send for Retired {}

impl Retired {
    /// Takes `thing`, which no new reader can find any more.
    pub fn new<T: Send + 'static>(thing: Box<T>) -> Self {
        /// # Safety
        /// `pointer` came from `Box::<T>::into_raw` and is passed once.
        unsafe fn free<T>(pointer: NonNull<()>) {
            // SAFETY: by the contract above.
            drop(unsafe { Box::from_raw(pointer.cast::<T>().as_ptr()) });
        }
        // A Box is never null.
        let pointer = NonNull::from(Box::leak(thing)).cast();
        Self { pointer, free: free::<T> }
    }

    /// Takes what is at `pointer`, which no new reader can find any more, and which `free` frees.
    ///
    /// # Safety
    /// `free` may be called with `pointer` once, by any thread.
    pub unsafe fn from_raw(pointer: NonNull<()>, free: unsafe fn(NonNull<()>)) -> Self {
        Self { pointer, free }
    }

    /// Frees it.
    ///
    /// # Safety
    /// A grace period has passed since it was unhooked.
    pub unsafe fn free(self) {
        // SAFETY: made by `new`, and consumed here.
        unsafe { (self.free)(self.pointer) }
    }
}

const _: () = assert!(size_of::<Retired>() == 16);
