//! Read sections. A thread marks in its own slot that it reads the tree and the tables, or that it uses memory as a processor
//! does. There are two kinds, with marks of their own, since different calls wait for them:
//!
//! | | threads in it | waited for by | how often | ordered by |
//! |---|---|---|---|---|
//! | [`Section`] | page work, and threads that read the maps | [`Sections::grace`]: freeing retired things; fork's freeze | once for many changes | the [`Barrier`]: the entry as cheap as can be |
//! | [`AccessSection`] | a software processor's load or store | [`Sections::grace_of`]: `invalidate`; also [`Sections::grace`] | each unmap | a fence on both sides: neither is expensive |
//!
//! ```text
//! enter:  word.store(odd, Release); light          leave:  word.store(even, Release)
//! grace:  heavy; for each slot: s = load(Acquire); if odd, until load(Acquire) != s
//! ```
//! (A section of a thread that reports quiescent states is not marked: [`QuiescentStates`](super::QuiescentStates).) Between
//! `light` and `heavy`, either the grace period sees the word odd and waits, or the reader sees everything published before the
//! grace period. An access names its page; a shootdown of other pages need not wait for it.

use super::atomic::{AtomicPtr, AtomicUsize, Ordering};
use super::barrier::{Barrier, FenceBarrier, mark_with_fence};
use super::life::try_box_uninit;
use super::listed::Listed;
use super::meter::Meter;
use super::retired::{Awaited, List, Periods};
use super::slot::{CHUNK_SLOTS, CHUNKS, Chunk, Slot, SlotIndex, State};
use super::{OutOfMemory, full_fence, plain};
use crate::limit::{Groups, Stock};
use crate::reclaim::queue::Arrivals;
use crate::stats::{Counter, Counters};
use crate::swap::Window;
use crate::tables::SpareFamilies;
use alloc::alloc::handle_alloc_error;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::alloc::Layout;
use core::marker::PhantomData;
use core::ops::Range;
use core::ptr::{self, NonNull};
use crossbeam_utils::CachePadded;

/// The slots of all threads that use one engine.
pub struct Sections {
    /// The chunks of slots. A chunk is made when a slot in it is first used, and freed with `self`.
    chunks: [AtomicPtr<Chunk>; CHUNKS],
    /// The number of places of `chunks` up to the last chunk that was made. It keeps scans of all chunks short. Atomic.
    places: plain::AtomicUsize,
    /// Null, or a chunk that has no number yet, for first uses of a slot when there is no memory. Like chunks of high numbers,
    /// it reports each byte that it keeps at once.
    spare: plain::AtomicPtr<Chunk>,
    /// The slots that scans look at: all that are in use, except those whose threads sleep.
    pub(super) listed: Listed<{ (SlotIndex::MAX as usize).div_ceil(64) }>,
    /// The retired things of slots that are no longer in use.
    pub(super) left: List,
    /// The grace periods for retired things.
    pub(super) periods: CachePadded<Periods>,
    /// The bytes that the engine and its host's tables have from the allocator, without the chunks and their contents.
    meter: Meter,
    /// The groups of the engine's memory limits. They are here, since a slot's thread that ends gives its stock back.
    pub(super) groups: Groups,
    /// The families of leaf tables that have ended. They are here, since leaf tables end with the sections' retired things.
    families: SpareFamilies,
}

impl Default for Sections {
    fn default() -> Self {
        Self::new()
    }
}

impl Sections {
    /// Makes sections without slots.
    pub fn new() -> Self {
        Self {
            chunks: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            places: plain::AtomicUsize::new(0),
            spare: plain::AtomicPtr::new(ptr::null_mut()),
            listed: Listed::new(),
            left: List::of_all(),
            periods: CachePadded::default(),
            meter: Meter::default(),
            groups: Groups::default(),
            families: SpareFamilies::default(),
        }
    }

    /// Returns the families of leaf tables that have ended.
    pub(crate) fn families(&self) -> &SpareFamilies {
        &self.families
    }

    /// Makes sections as [`Sections::new`] does, behind an [`Arc`]. They are made in place, since a kernel's stack has no room
    /// for them.
    ///
    /// # Errors
    /// [`OutOfMemory`]. The program is aborted, as by [`Arc::new`], if there is room for the sections but not for the count.
    pub fn try_shared() -> Result<Arc<Self>, OutOfMemory> {
        let mut sections = try_box_uninit::<Self>()?;
        let place = sections.as_mut_ptr();
        // SAFETY: places of the box's own; each field is written once, and none is read.
        let sections = unsafe {
            for i in 0..CHUNKS {
                (&raw mut (*place).chunks[i]).write(AtomicPtr::new(ptr::null_mut()));
            }
            (&raw mut (*place).places).write(plain::AtomicUsize::new(0));
            (&raw mut (*place).spare).write(plain::AtomicPtr::new(ptr::null_mut()));
            Listed::write_to(&raw mut (*place).listed);
            (&raw mut (*place).left).write(List::of_all());
            (&raw mut (*place).periods).write(CachePadded::default());
            (&raw mut (*place).meter).write(Meter::default());
            (&raw mut (*place).groups).write(Groups::default());
            (&raw mut (*place).families).write(SpareFamilies::default());
            sections.assume_init()
        };
        Ok(Arc::from(sections))
    }

    /// Returns slot `index`, if it is ready and listed.
    #[inline]
    fn listed_slot(&self, index: SlotIndex) -> Option<&Slot> {
        let index = index.get() as usize;
        // The remainder changes nothing, and costs less than a bounds check.
        let chunk = self.chunks[index / CHUNK_SLOTS % CHUNKS].load(Ordering::Acquire);
        if chunk.is_null() {
            return None;
        }
        // SAFETY: chunks are freed only in Drop.
        let slot = unsafe { &(*chunk).slots[index % CHUNK_SLOTS] };
        slot.is(State::Listed).then_some(slot)
    }

    /// Returns slot `index`. Its first use takes the spare chunk if it needs one and there is no memory.
    #[inline]
    pub(super) fn slot(&self, index: SlotIndex) -> &Slot {
        self.listed_slot(index).unwrap_or_else(|| self.list(index.get() as usize))
    }

    /// Makes slot `index` ready, and returns its counters. No later use of the slot needs memory for it, until it is given up
    /// ([`Sections::unlist`]). Call it where a lack of memory can be reported: when a processor comes online, or at the
    /// beginning of a call that may be a thread's first. The first use of a slot makes it ready if it was not prepared. If
    /// there is no memory then, it takes the stock of [`Sections::keep_spare`], and aborts if that is used up.
    ///
    /// # Errors
    /// [`OutOfMemory`]: the slot is unchanged.
    #[inline]
    pub fn prepare(&self, index: SlotIndex) -> Result<&Counters, OutOfMemory> {
        match self.listed_slot(index) {
            Some(slot) => Ok(&slot.counters),
            None => self.make_ready(index.get() as usize),
        }
    }

    /// Counts a fault of the thread with slot `index`. Returns whether the thread has put work off (`Stock::owes`).
    ///
    /// # Errors
    /// As for [`Sections::prepare`].
    #[inline]
    pub(crate) fn begin_fault(&self, index: SlotIndex) -> Result<bool, OutOfMemory> {
        let Some(slot) = self.listed_slot(index) else {
            // A new slot owes nothing.
            return self.make_ready(index.get() as usize).map(|counters| {
                counters.add(Counter::Faults, 1);
                false
            });
        };
        slot.counters.add(Counter::Faults, 1);
        Ok(slot.stock.owes())
    }

    /// Takes memory for 64 slots, if none is in stock. It serves first uses that cannot report a lack of memory.
    ///
    /// # Errors
    /// [`OutOfMemory`]: there is no such stock.
    pub fn keep_spare(&self) -> Result<(), OutOfMemory> {
        // Models are small; and all their slots are in one chunk.
        if CHUNKS > 1 && self.spare.load(Ordering::Relaxed).is_null() {
            self.give_spare(Chunk::boxed(usize::MAX)?);
        }
        Ok(())
    }

    /// Keeps the unused `chunk` as the spare one, or frees it if there is a spare one already.
    fn give_spare(&self, chunk: Box<Chunk>) {
        let chunk = Box::into_raw(chunk);
        // Release, partner: the Acquire of the thread that takes it.
        let given = self.spare.compare_exchange(ptr::null_mut(), chunk, Ordering::Release, Ordering::Relaxed);
        if given.is_err() {
            // SAFETY: it has just come from a Box, and no other thread has seen it.
            drop(unsafe { Box::from_raw(chunk) });
        }
    }

    #[cold]
    fn make_ready(&self, index: usize) -> Result<&Counters, OutOfMemory> {
        let slot = self.list_in(index, Chunk::boxed)?;
        // If there is no memory, calls that can report it go on without a spare chunk.
        let _ = self.keep_spare();
        Ok(&slot.counters)
    }

    /// Makes slot `index` ready at its first use, or at its first use since it was given up.
    #[cold]
    fn list(&self, index: usize) -> &Slot {
        let chunk = |first| {
            Chunk::boxed(first).or_else(|OutOfMemory| {
                let spare =
                    NonNull::new(self.spare.swap(ptr::null_mut(), Ordering::Acquire)).ok_or(OutOfMemory)?;
                // SAFETY: from a Box, and no other thread has it any more.
                Ok(unsafe { Box::from_raw(spare.as_ptr()) })
            })
        };
        match self.list_in(index, chunk) {
            Ok(slot) => slot,
            Err(OutOfMemory) => handle_alloc_error(Layout::new::<Chunk>()),
        }
    }

    /// Lists slot `index`. `chunk` makes the chunk if there is none.
    fn list_in(
        &self,
        index: usize,
        chunk: impl FnOnce(usize) -> Result<Box<Chunk>, OutOfMemory>,
    ) -> Result<&Slot, OutOfMemory> {
        let place = &self.chunks[index / CHUNK_SLOTS];
        let mut there = place.load(Ordering::Acquire);
        if there.is_null() {
            let new = Box::into_raw(chunk(index - index % CHUNK_SLOTS)?);
            there = match place.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.places.fetch_max(index / CHUNK_SLOTS + 1, Ordering::Release);
                    new
                }
                Err(theirs) => {
                    // SAFETY: `new` has just come from a Box, and no other thread has seen it.
                    self.give_spare(unsafe { Box::from_raw(new) });
                    theirs
                }
            };
        }
        // SAFETY: chunks are freed only in Drop.
        let slot = unsafe { &(*there).slots[index % CHUNK_SLOTS] };
        if slot.is(State::Sleeps) {
            self.listed.wake(index);
        } else {
            self.listed.set(index);
        }
        slot.set(State::Listed);
        Ok(slot)
    }

    /// Returns slot `index`, with the numbers that the period under way waits for there. Returns `None` if no slot of its chunk
    /// has been used.
    #[inline]
    fn made(&self, index: usize) -> Option<(&Slot, &Awaited)> {
        let chunk = self.chunks[index / CHUNK_SLOTS].load(Ordering::Acquire);
        // SAFETY: null, or a chunk, and those are freed only in Drop.
        let chunk = unsafe { chunk.as_ref() }?;
        Some((&chunk.slots[index % CHUNK_SLOTS], &chunk.awaited[index % CHUNK_SLOTS]))
    }

    /// Gives a slot up: grace periods and shootdowns no longer look at it. Call it when the slot's thread ends, or in a kernel
    /// when the processor goes offline. If the slot was never used, nothing happens. The slot's next use lists it again. Its
    /// counters stay in the statistics. Other slots free the things that it has retired.
    ///
    /// If there is no memory to hand on the things that it has retired, the slot stays listed. The only cost is that scans look
    /// at it.
    ///
    /// # Safety
    /// No other code uses `index` during the call. Its thread is in no section and no access, and waits for nothing.
    /// The next user of `index` begins after the call.
    pub unsafe fn unlist(&self, index: SlotIndex) {
        let index = index.get() as usize;
        let Some((slot, _)) = self.made(index).filter(|(slot, _)| !slot.is(State::Unused)) else { return };
        slot.go_offline();
        slot.stock.give_back(&FenceBarrier, &self.groups);
        if self.leave_behind(&slot.retired).is_ok() {
            if !mutant!("unlisted_by_half") {
                slot.set(State::Unused);
            }
            self.listed.clear(index);
        }
    }

    /// Notes that the thread of a slot is about to sleep. Until its next use of the slot, grace periods and shootdowns do not
    /// look at the slot. If the slot has retired things that are not freed yet, they continue to look.
    ///
    /// # Safety
    /// No other thread uses `index` while the thread sleeps, so it is not a processor's. The thread is in no section
    /// and no access.
    pub(crate) unsafe fn sleep(&self, index: SlotIndex) {
        let slot = self.slot(index);
        if slot.retired.is_empty() {
            slot.go_offline();
            if !mutant!("sleeps_by_half") {
                slot.set(State::Sleeps);
            }
            self.listed.sleep(index.get() as usize);
        }
    }

    /// Returns the number of slots that a grace period looks at: those of threads that have used these sections, have not
    /// ended, and do not sleep. (In a kernel: of processors that have not gone offline since.)
    pub fn listed(&self) -> usize {
        let mut count = 0;
        self.each_slot(|_| count += 1);
        count
    }

    /// Enters a read section. Sections do not nest; a thread in one does not sleep.
    ///
    /// # Safety
    /// Only one thread at a time uses `index`. All threads that enter and wait have the same `barrier`, or, if that marks
    /// sections, one at least as strong as [`FenceBarrier`](super::FenceBarrier) on entering.
    #[inline]
    pub unsafe fn enter<B: Barrier>(&self, index: SlotIndex, barrier: &B) -> Section<'_> {
        let slot = self.slot(index);
        let sequence = slot.sequence.load(Ordering::Relaxed);
        if B::MARKS {
            // The check is made in releases too: a nested section would hide the outer one from grace periods.
            assert!(sequence & 1 == 0, "a read section inside a read section");
            barrier.mark(&slot.sequence, sequence + 1);
        } else {
            if sequence & 1 == 0 {
                slot.come_online(barrier);
            }
            slot.set_in_unmarked(true);
        }
        Section { slot, is_marked: B::MARKS, not_send: PhantomData }
    }

    /// Reports that the thread of this slot is in no section now, for [`QuiescentStates`](super::QuiescentStates). Its earlier
    /// sections have ended for grace periods.
    ///
    /// # Safety
    /// Only the thread of `index` calls this. It is in no section: it has no [`Section`].
    #[inline]
    pub unsafe fn quiescent(&self, index: SlotIndex) {
        let slot = self.slot(index);
        slot.check_no_unmarked();
        let sequence = slot.sequence.load(Ordering::Relaxed);
        if sequence & 1 == 1 {
            // It acts as the end of a section and the beginning of the next one.
            mark_with_fence(&slot.sequence, sequence + 2);
        }
    }

    /// Reports a quiescent state, as [`Sections::quiescent`] does, for [`QuiescentStates`](super::QuiescentStates). In
    /// addition, no other thread waits for this thread until its next section begins.
    ///
    /// # Safety
    /// The caller guarantees the same as for [`Sections::quiescent`].
    #[inline]
    pub unsafe fn offline(&self, index: SlotIndex) {
        self.slot(index).go_offline();
    }

    /// Enters a section in which its thread accesses `subject` as a processor does. [`Sections::grace_of`] looks at the
    /// subject, which is [`u64::MAX`] until the first such section.
    ///
    /// # Safety
    /// Only one thread at a time uses `index`.
    #[inline]
    pub unsafe fn enter_access(&self, index: SlotIndex, subject: u64) -> AccessSection<'_> {
        let slot = self.slot(index);
        let access = slot.access.load(Ordering::Relaxed);
        assert!(access & 1 == 0, "an access inside an access");
        // Release: a thread that reads this subject sees all that older accesses of this thread did, so they have ended for it.
        let order = if mutant!("subject_relaxed") { Ordering::Relaxed } else { Ordering::Release };
        slot.subject.store(subject, order);
        if mutant!("access_unfenced") {
            slot.access.store(access + 1, Ordering::Release);
        } else {
            mark_with_fence(&slot.access, access + 1);
        }
        AccessSection { slot, not_send: PhantomData }
    }

    /// Waits until every section and every access that was entered before has ended. `wait` is called between looks with the
    /// number of the look. The caller is in no section and no access.
    pub fn grace(&self, barrier: &impl Barrier, mut wait: impl FnMut(u32)) {
        barrier.heavy();
        self.each_slot(|slot| {
            wait_out(&slot.sequence, || true, &mut wait);
            wait_out(&slot.access, || true, &mut wait);
        });
    }

    /// Waits until every access that was entered before has ended, if `wanted` returns true for its subject. The cost
    /// is a fence here and one in each access. A cheaper access would make this call, which each unmap needs, more
    /// expensive.
    pub fn grace_of(&self, wanted: impl Fn(u64) -> bool, mut wait: impl FnMut(u32)) {
        if !mutant!("shootdown_unfenced") {
            full_fence();
        }
        self.each_slot(|slot| {
            // The subject was stored before the odd number that was read. Acquire: if it is that of a later access, the access
            // that was found has ended, and its effects are seen.
            wait_out(&slot.access, || wanted(slot.subject.load(Ordering::Acquire)), &mut wait);
        });
    }

    /// Returns whether the thread of this slot is in a section or an access now. It serves the check that no thread
    /// sleeps in one. A release does not know of sections that are not marked.
    pub fn inside<B: Barrier>(&self, index: SlotIndex, _barrier: &B) -> bool {
        let slot = self.slot(index);
        let in_section = match B::MARKS {
            true => slot.sequence.load(Ordering::Relaxed) & 1 == 1,
            false => slot.is_in_unmarked(),
        };
        in_section || slot.access.load(Ordering::Relaxed) & 1 == 1
    }

    /// Returns a number from the stock of the thread of this slot; `more` fills the stock when it is empty.
    pub(crate) fn number(&self, index: SlotIndex, more: impl FnOnce() -> Range<u64>) -> u64 {
        let [next, end] = &self.slot(index).numbers;
        let mut number = next.load(Ordering::Relaxed);
        if number == end.load(Ordering::Relaxed) {
            let stock = more();
            number = stock.start;
            end.store(stock.end, Ordering::Relaxed);
        }
        next.store(number + 1, Ordering::Relaxed);
        number
    }

    /// Charges `bytes` bytes, which have come from the allocator for the engine, or for its host's page tables:
    /// [`Engine::metadata_bytes`](crate::Engine::metadata_bytes).
    #[inline]
    pub fn charge(&self, bytes: usize) {
        self.meter.add(bytes);
    }

    /// Uncharges `bytes` bytes, which have gone back to the allocator.
    #[inline]
    pub fn uncharge(&self, bytes: usize) {
        self.meter.subtract(bytes);
    }

    /// Returns the bytes that were charged, and those that the sections themselves take: for slots, and for lists of retired
    /// things.
    pub fn charged(&self) -> usize {
        let spare = usize::from(!self.spare.load(Ordering::Relaxed).is_null());
        // Slots of threads that sleep are counted too; scans pass over them.
        let in_chunk = |chunk: &Chunk| {
            size_of::<Chunk>() + chunk.slots.iter().map(|slot| slot.retired.room()).sum::<usize>()
        };
        let chunks = self.made_chunks().map(in_chunk).sum::<usize>();
        size_of::<Self>()
            + spare * size_of::<Chunk>()
            + chunks
            + self.left.room()
            + self.meter.sum()
            + self.groups.room()
    }

    /// Returns the counters of the thread of slot `index`.
    #[inline]
    pub fn counters(&self, index: SlotIndex) -> &Counters {
        &self.slot(index).counters
    }

    /// Calls `f` with every slot's counters, including those of threads that have ended.
    pub fn each_counters(&self, mut f: impl FnMut(&Counters)) {
        self.made_chunks().flat_map(|chunk| &chunk.slots).for_each(|slot| f(&slot.counters));
    }

    /// Returns the arrivals of the thread of slot `index`.
    #[inline]
    pub(crate) fn arrivals(&self, index: SlotIndex) -> &Arrivals {
        &self.slot(index).arrivals
    }

    /// Calls `f` with every slot's arrivals, including those of threads that have ended.
    pub(crate) fn each_arrivals(&self, mut f: impl FnMut(&Arrivals)) {
        self.made_chunks().flat_map(|chunk| &chunk.slots).for_each(|slot| f(&slot.arrivals));
    }

    /// Returns the chunks of which some slots have been used. It may miss one that is being made.
    pub(super) fn made_chunks(&self) -> impl Iterator<Item = &Chunk> {
        let places = self.chunks.iter().take(self.places.load(Ordering::Acquire));
        // SAFETY: null, or a chunk, and those are freed only in Drop.
        places.filter_map(|chunk| unsafe { chunk.load(Ordering::Acquire).as_ref() })
    }

    /// Returns every slot that is in use.
    #[inline]
    pub(super) fn each_slot(&self, mut f: impl FnMut(&Slot)) {
        self.find_slot(0, |slot, _| (f(slot), false).1);
    }

    /// Returns the first slot in use, from `first` on, for which `f` returns true. It may miss a slot that comes into use
    /// meanwhile.
    #[inline]
    pub(super) fn find_slot(
        &self,
        first: usize,
        mut f: impl FnMut(&Slot, &Awaited) -> bool,
    ) -> Option<usize> {
        self.listed.find(first, |index| self.made(index).is_some_and(|(slot, awaited)| f(slot, awaited)))
    }

    /// Calls `f` with every list of retired things.
    pub(super) fn each_list(&self, mut f: impl FnMut(&List)) {
        self.each_slot(|slot| f(&slot.retired));
        f(&self.left);
    }
}

impl Drop for Sections {
    fn drop(&mut self) {
        // SAFETY: `&mut self`: no section is left.
        unsafe { self.free_all() };
        let spare = self.spare.load(Ordering::Relaxed);
        for chunk in self.chunks.iter().map(|place| place.load(Ordering::Relaxed)).chain([spare]) {
            if !chunk.is_null() {
                // SAFETY: `&mut self`: no section is left, and the chunk came from a Box.
                drop(unsafe { Box::from_raw(chunk) });
            }
        }
    }
}

/// Waits until `word` has changed, if its number is odd and `concerns` returns true.
pub(super) fn wait_out(word: &AtomicUsize, concerns: impl FnOnce() -> bool, wait: &mut impl FnMut(u32)) {
    // Acquire, partner: the Release of the thread that left. The effects of its section are seen.
    let seen = word.load(Ordering::Acquire);
    if seen & 1 == 0 || !concerns() {
        return;
    }
    let mut look = 0;
    while word.load(Ordering::Acquire) == seen {
        wait(look);
        look += 1;
    }
}

/// Proof that its thread is in a read section. No part of the tree and the tables that the thread reaches is freed.
pub struct Section<'a> {
    slot: &'a Slot,
    is_marked: bool,
    not_send: PhantomData<*const ()>,
}

impl Section<'_> {
    /// Returns the counters of this thread.
    #[inline]
    pub fn counters(&self) -> &Counters {
        &self.slot.counters
    }

    /// Returns this thread's arrivals.
    #[inline]
    pub(crate) fn arrivals(&self) -> &Arrivals {
        &self.slot.arrivals
    }

    /// Returns this thread's stock of charged pages.
    #[inline]
    pub(crate) fn stock(&self) -> &Stock {
        &self.slot.stock
    }

    /// Returns this thread's window of read-ahead in swap space.
    pub(crate) fn window(&self) -> &Window {
        &self.slot.window
    }
}

impl Drop for Section<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.is_marked {
            let sequence = self.slot.sequence.load(Ordering::Relaxed);
            self.slot.sequence.store(sequence + 1, Ordering::Release);
        } else {
            self.slot.set_in_unmarked(false);
        }
    }
}

/// Proof that its thread is in an access, as a processor makes it. No table that it walks and no frame that it finds is freed,
/// and `invalidate` of its page waits.
pub struct AccessSection<'a> {
    slot: &'a Slot,
    not_send: PhantomData<*const ()>,
}

impl Drop for AccessSection<'_> {
    #[inline]
    fn drop(&mut self) {
        let access = self.slot.access.load(Ordering::Relaxed);
        self.slot.access.store(access + 1, Ordering::Release);
    }
}

#[cfg(all(test, feature = "std", not(loom)))]
mod tests;
