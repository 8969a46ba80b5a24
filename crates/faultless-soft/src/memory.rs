//! Physical memory: an arena, a folio for each frame, and the free frames.
//!
//! A thread takes frames from the cache of its slot, and frees them there. Only from time to time a batch moves between
//! the cache and the list that all threads share. So an allocation usually writes only the slot's memory and the
//! frame's.

use crate::arena::Arena;
use crate::free_list::{BATCH, Cache, FreeList, Held};
use crate::scarcity::Scarcity;
#[cfg(debug_assertions)]
use crate::table::Processors;
use faultless::frame::Folio;
use faultless::host::{Frame, FrameSource, FrameUsage, FrameUse, GroupId, StdSlots};
use faultless::mutant;
#[cfg(loom)]
use faultless::sync::atomic::AtomicU64;
use faultless::sync::atomic::Ordering;
use faultless::sync::plain;
use std::ptr::NonNull;
#[cfg(debug_assertions)]
use std::sync::Arc;

/// The greatest number of frames of a memory: the head of a list keeps a frame's number plus one in 32 bits.
pub const MAX_FRAMES: u64 = u32::MAX as u64 - 1;

/// The number of caches. A slot has a cache of its own as long as there are no more slots than caches. A thread that
/// finds its cache in use goes to the list.
#[cfg(not(loom))]
const CACHES: usize = 128;
#[cfg(loom)]
const CACHES: usize = 1;

/// The number of times that all lists and caches are searched while frames seem to move between them.
const LOOKS: u32 = 64;

/// Errors of making physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The memory would have no frames.
    #[error("physical memory of zero frames cannot be made: give it at least one frame")]
    NoFrames,
    /// There are more frames than can be numbered or addressed.
    #[error("physical memory of {frames} frames: at most {MAX_FRAMES} can be addressed")]
    TooManyFrames {
        /// The requested number of frames.
        frames: u64,
    },
    /// The operating system does not have that much memory.
    #[error("no memory for {frames} frames")]
    OutOfMemory {
        /// The requested number of frames.
        frames: u64,
    },
}

/// A bit of [`PhysicalMemory::failing`]: all later allocations fail too.
const FOR_EVER: u64 = 1 << 63;
/// A bit of [`PhysicalMemory::failing`]: there is a limit, see [`Scarcity`].
const SCARCE: u64 = 1 << 62;

/// The physical memory of a software machine.
///
/// Loads and stores of guests are atomic operations on words of eight bytes. The page tables decide which of them may
/// be concurrent. Under loom the bytes are plain memory, and each access is a step on an atomic of the frame, so that
/// loom tries it at every moment. [`faultless::sync::Life`] checks `zero` and `copy`.
pub struct PhysicalMemory {
    arena: Arena,
    #[cfg(loom)]
    steps: Vec<AtomicU64>,
    folios: Vec<Folio>,
    /// For each frame on a free list, the number plus one of the frame below it. Written by the frame's owner before
    /// its push.
    next: Vec<plain::AtomicU32>,
    list: FreeList,
    caches: [Cache; CACHES],
    /// The number of allocations up to and including one that fails; 0: none will fail. Atomic; see [`FOR_EVER`] and
    /// [`SCARCE`].
    failing: plain::AtomicU64,
    /// A limit below the number of frames.
    scarcity: Scarcity,
    /// The processors' caches. They must not name a frame that is freed. Immutable.
    #[cfg(debug_assertions)]
    processors: Option<Arc<Processors>>,
}

impl PhysicalMemory {
    /// Makes a memory of `frames` frames, all free. The operating system backs a frame when it is first used.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn new(frames: u64) -> Result<Self, MemoryError> {
        if frames == 0 {
            return Err(MemoryError::NoFrames);
        }
        if frames > MAX_FRAMES {
            return Err(MemoryError::TooManyFrames { frames });
        }
        Ok(Self {
            arena: Arena::new(frames).ok_or(MemoryError::OutOfMemory { frames })?,
            #[cfg(loom)]
            steps: each_frame(frames, || AtomicU64::new(0))?,
            folios: each_frame(frames, Folio::new)?,
            next: each_frame(frames, || plain::AtomicU32::new(0))?,
            list: FreeList::new(frames),
            caches: std::array::from_fn(|_| Cache::new()),
            failing: plain::AtomicU64::new(0),
            scarcity: Scarcity::default(),
            #[cfg(debug_assertions)]
            processors: None,
        })
    }

    /// Returns this memory with processors whose caches may name its frames.
    #[cfg(debug_assertions)]
    pub(crate) fn cached_by(mut self, processors: Option<Arc<Processors>>) -> Self {
        self.processors = processors;
        self
    }

    /// Makes all allocations from the `n`-th on fail (1 is the next one); `None` ends that. For tests.
    pub fn fail_from(&self, n: Option<u64>) {
        self.set_failing(n.map_or(0, |n| n.clamp(1, SCARCE - 1) | FOR_EVER));
    }

    /// Makes the `n`-th allocation (1 is the next one) fail, and no other. For tests.
    pub fn fail_once(&self, n: u64) {
        self.set_failing(n.clamp(1, SCARCE - 1));
    }

    /// Makes memory scarce, for tests of an engine that reclaims. While `limit` frames or more are in use, a thread's allocation
    /// fails, and its next `granted` (at least 1) succeed even if nothing can be reclaimed. So a thread has to make room all the
    /// time, and gets on. A design that starts over after a read needs 2: for the page and for its copy.
    pub fn make_scarce(&self, limit: u64, granted: u32) {
        self.scarcity.set(limit, granted);
        self.failing.fetch_or(SCARCE, Ordering::Relaxed);
    }

    fn set_failing(&self, state: u64) {
        self.change_failing(|old| state | old & SCARCE);
    }

    /// Changes `failing`, and returns the old value.
    fn change_failing(&self, step: impl Fn(u64) -> u64) -> u64 {
        let step = |state| Some(step(state));
        // The closure always returns `Some`, so the error cannot occur; it would be the old value as well.
        let (Ok(old) | Err(old)) = self.failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
        old
    }

    /// Returns whether this allocation is to fail.
    #[cold]
    fn is_refused(&self) -> bool {
        let old = self.change_failing(|state| match state & !SCARCE {
            0 | 1 => state & SCARCE,
            left if left == 1 | FOR_EVER => state,
            _ => state - 1,
        });
        if old & !(FOR_EVER | SCARCE) == 1 {
            return true;
        }
        old & SCARCE != 0 && self.scarcity.refuses(StdSlots.current().get(), || self.usage().used)
    }

    /// Takes hold of the calling thread's cache, unless another thread holds it.
    #[inline]
    fn own_cache(&self) -> Option<Held<'_>> {
        self.caches[StdSlots.current().get() as usize % CACHES].try_hold()
    }

    /// Fills an empty cache with freed frames, or with frames that were never used.
    #[cold]
    fn refill(&self, cache: &mut Held<'_>) {
        if !cache.refill(&self.list, &self.next)
            && let Some((first, end)) = self.take_fresh(BATCH as u64)
        {
            cache.fill(first, end);
        }
    }

    /// Takes up to `most` frames that were never used. Returns the first, and the end.
    fn take_fresh(&self, most: u64) -> Option<(u64, u64)> {
        let limit = self.folios.len() as u64;
        let take = |first: u64| (first < limit).then(|| limit.min(first + most));
        let first = self.list.fresh.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        let end = limit.min(first + most);
        (first..end).for_each(|frame| self.arena.poison(frame));
        Some((first, end))
    }

    /// Finds a frame that is free anywhere, if the thread's cache had none or was in use. A frame that stays free is
    /// found: it is on the list or in a cache, or it moves between them, and then the list's version changes and the
    /// search is repeated.
    #[cold]
    fn find(&self) -> Option<u32> {
        for _ in 0..LOOKS {
            let version = self.list.version();
            let place = [const { plain::AtomicU32::new(0) }; 1];
            let found = match self.list.pop(&self.next, &place) {
                0 => self.take_fresh(1).map(|(first, _)| first as u32).or_else(|| self.take_back()),
                _ => Some(place[0].load(Ordering::Relaxed)),
            };
            if found.is_some() || self.list.version() == version {
                return found;
            }
        }
        None
    }

    /// Takes a frame out of another thread's cache. If a thread holds the cache, waits, since it is about to let go.
    fn take_back(&self) -> Option<u32> {
        self.caches.iter().find_map(|cache| {
            let mut looks = 0;
            loop {
                match cache.try_hold() {
                    Some(mut held) => return held.take(),
                    None => wait_for_holder(looks),
                }
                looks += 1;
            }
        })
    }

    /// Begins an access of a guest. Under loom a model can switch threads here, and `ordering` is the step's.
    #[inline]
    fn step(&self, frame: Frame, ordering: Ordering) {
        self.folio(frame).life().touch();
        #[cfg(loom)]
        self.steps[frame.get() as usize].fetch_add(1, ordering);
        let _ = ordering;
    }

    /// Loads the word at byte `offset`, a multiple of eight, for a guest. Acquire.
    #[inline]
    pub(crate) fn load_u64(&self, frame: Frame, offset: u64) -> u64 {
        debug_assert!(offset.is_multiple_of(8));
        self.step(frame, Ordering::Acquire);
        self.arena.word(frame.get(), offset).load(Ordering::Acquire)
    }

    /// Stores the word at byte `offset`, a multiple of eight, for a guest. Release.
    #[inline]
    pub(crate) fn store_u64(&self, frame: Frame, offset: u64, value: u64) {
        debug_assert!(offset.is_multiple_of(8));
        self.step(frame, Ordering::Release);
        self.arena.word(frame.get(), offset).store(value, Ordering::Release);
    }

    /// Adds to the word at byte `offset`, a multiple of eight, for a guest. Wraps. Returns the old value. AcqRel.
    #[inline]
    pub(crate) fn fetch_add_u64(&self, frame: Frame, offset: u64, value: u64) -> u64 {
        debug_assert!(offset.is_multiple_of(8));
        self.step(frame, Ordering::AcqRel);
        self.arena.word(frame.get(), offset).fetch_add(value, Ordering::AcqRel)
    }
}

/// Waits a step for a holder, which needs only a few instructions unless it was preempted.
fn wait_for_holder(looks: u32) {
    if cfg!(loom) || looks < 64 {
        faultless::sync::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

/// Makes one `T` for each frame.
fn each_frame<T>(frames: u64, make: impl FnMut() -> T) -> Result<Vec<T>, MemoryError> {
    let mut all = Vec::new();
    all.try_reserve_exact(frames as usize).map_err(|_| MemoryError::OutOfMemory { frames })?;
    all.resize_with(frames as usize, make);
    Ok(all)
}

impl PhysicalMemory {
    /// Allocates a frame; see [`FrameSource::allocate`].
    pub(crate) fn take_frame(&self) -> Option<Frame> {
        if self.failing.load(Ordering::Relaxed) != 0 && self.is_refused() {
            return None;
        }
        let cached = self.own_cache().and_then(|mut cache| {
            let frame = cache.take().or_else(|| {
                self.refill(&mut cache);
                cache.take()
            });
            cache.add_used(i64::from(frame.is_some()));
            frame
        });
        let found = cached.or_else(|| {
            let found = self.find()?;
            self.list.used.fetch_add(1, Ordering::Relaxed);
            Some(found)
        });
        let frame = Frame::new(u64::from(found?))?;
        self.folio(frame).life().renew();
        Some(frame)
    }
}

// SAFETY: the list and the caches give a frame out only once until it is freed; frame n has page n of the arena.
unsafe impl FrameSource for PhysicalMemory {
    /// Allocates a frame. All frames are alike, so the arguments are not used.
    #[inline]
    fn allocate(&self, _: GroupId, _: FrameUse) -> Option<Frame> {
        self.take_frame()
    }

    unsafe fn free(&self, frame: Frame) {
        let folio = self.folio(frame);
        debug_assert!(folio.is_free(), "{frame:?} is freed while it is still referenced");
        #[cfg(all(debug_assertions, not(loom)))]
        if let Some(processors) = &self.processors {
            processors.assert_forgotten(frame);
        }
        folio.life().end();
        self.arena.poison(frame.get());
        // A number that `allocate` has returned fits into 32 bits.
        let number = frame.get() as u32;
        match self.own_cache() {
            Some(mut cache) => {
                cache.put(number, &self.list, &self.next);
                cache.add_used(-1);
            }
            None => {
                self.list.used.fetch_sub(1, Ordering::Relaxed);
                self.list.push(&self.next, std::iter::once(number));
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    fn prefetch(&self, frame: Frame) {
        use core::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: a prefetch reads and writes nothing.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(core::ptr::from_ref(self.folio(frame)).cast()) }
    }

    fn folio(&self, frame: Frame) -> &Folio {
        &self.folios[frame.get() as usize]
    }

    unsafe fn zero(&self, frame: Frame) {
        // The mutant keeps the old bytes.
        if mutant!("frame_not_zeroed") {
            return;
        }
        self.folio(frame).life().own();
        self.arena.zero(frame.get());
    }

    unsafe fn copy(&self, from: Frame, to: Frame) {
        self.folio(from).life().touch();
        self.folio(to).life().own();
        self.arena.copy(from.get(), to.get());
    }

    unsafe fn memory(&self, frame: Frame) -> NonNull<u8> {
        self.arena.page(frame.get())
    }

    unsafe fn read(&self, frame: Frame, offset: usize, bytes: &mut [u8]) -> usize {
        self.step(frame, Ordering::Acquire);
        self.arena.read(frame.get(), offset, bytes)
    }

    unsafe fn write(&self, frame: Frame, offset: usize, bytes: &[u8]) -> usize {
        self.step(frame, Ordering::Release);
        self.arena.write(frame.get(), offset, bytes)
    }

    /// Adds up the counts of the caches, so do not call it for every fault. The result is exact when no thread
    /// allocates or frees meanwhile. Frames in a cache count as free.
    fn usage(&self) -> FrameUsage {
        let add = |sum: u64, cache: &Cache| sum.wrapping_add(cache.used.load(Ordering::Relaxed));
        let used = self.caches.iter().fold(self.list.used.load(Ordering::Relaxed), add);
        // The sum can be below zero if a frame is freed through another cache than it was taken from, between two
        // loads.
        let used = (used as i64).max(0) as u64;
        FrameUsage { used, limit: self.folios.len() as u64 }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::Soft;
    use crate::alone::Frames;
    use crate::arena::{PAGE, POISON};
    use faultless::address::PAGE_SIZE;
    use faultless::host::Host;
    use faultless::{Engine, Limits};
    use std::collections::HashSet;
    use std::sync::Barrier;

    fn memory(frames: u64) -> Frames<Box<PhysicalMemory>> {
        Frames(Box::new(PhysicalMemory::new(frames).unwrap()))
    }

    #[test]
    fn impossible_sizes_are_typed_errors() {
        assert_eq!(PhysicalMemory::new(0).err(), Some(MemoryError::NoFrames));
        for frames in [MAX_FRAMES + 1, u64::MAX / PAGE_SIZE, u64::MAX] {
            assert_eq!(PhysicalMemory::new(frames).err(), Some(MemoryError::TooManyFrames { frames }));
        }
    }

    #[test]
    fn the_limit_is_reached_and_not_passed() {
        for frames in [1, 3, 63, 64, 65, 3 * (BATCH * CACHES) as u64 + 7] {
            let memory = memory(frames);
            let taken: HashSet<_> = std::iter::from_fn(|| memory.take_frame()).collect();
            assert_eq!(taken.len() as u64, frames);
            assert_eq!(memory.usage(), FrameUsage { used: frames, limit: frames });
            taken.into_iter().for_each(|frame| memory.free(frame));
            assert_eq!(memory.usage(), FrameUsage { used: 0, limit: frames });
            assert_eq!(std::iter::from_fn(|| memory.take_frame()).count() as u64, frames);
        }
    }

    #[test]
    fn no_frame_is_given_out_twice() {
        const THREADS: u64 = 4;
        // Just enough frames, so that other threads' caches are emptied; and many.
        for frames in [THREADS * 50, 3 * (BATCH * CACHES) as u64] {
            take_and_give_back(&memory(frames), THREADS);
        }
    }

    fn take_and_give_back(memory: &Frames<Box<PhysicalMemory>>, threads: u64) {
        let start = Barrier::new(threads as usize);
        std::thread::scope(|scope| {
            for id in 1..=threads {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    for _ in 0..500 {
                        // Each thread's share is always free, wherever the other frames are.
                        let mine: Vec<_> =
                            (0..50).map(|_| memory.take_frame().expect("within the limit")).collect();
                        mine.iter().for_each(|&frame| memory.store_u64(frame, 8, id));
                        for frame in mine {
                            assert_eq!(memory.load_u64(frame, 8), id, "{frame:?} has two owners");
                            memory.free(frame);
                        }
                    }
                });
            }
        });
        assert_eq!(memory.usage().used, 0);
    }

    #[test]
    fn a_frame_freed_by_another_thread_is_found() {
        let memory = memory(1);
        let frame = memory.take_frame().unwrap();
        assert_eq!(memory.take_frame(), None);
        std::thread::scope(|scope| scope.spawn(|| memory.free(frame)).join().unwrap());
        assert_eq!(memory.take_frame(), Some(frame));
    }

    #[test]
    fn failures_come_where_they_are_asked_for() {
        let memory = memory(8);
        let outcome = |n| -> Vec<bool> {
            let frames: Vec<_> = (0..n).map(|_| memory.take_frame()).collect();
            frames.iter().flatten().for_each(|&frame| memory.free(frame));
            frames.iter().map(Option::is_some).collect()
        };
        memory.fail_once(2);
        assert_eq!(outcome(4), [true, false, true, true]);
        memory.fail_from(Some(3));
        assert_eq!(outcome(5), [true, true, false, false, false]);
        memory.fail_from(None);
        assert_eq!(outcome(2), [true, true]);
        memory.fail_once(1);
        assert_eq!(outcome(2), [false, true]);
        assert_eq!(memory.usage().used, 0);
    }

    #[test]
    fn a_thread_gets_on_when_memory_is_scarce() {
        let memory = memory(100);
        memory.make_scarce(3, 2);
        let take = |n: u32| (0..n).map(|_| memory.take_frame()).collect::<Vec<_>>();
        let succeed = |frames: &[Option<Frame>]| frames.iter().map(Option::is_some).collect::<Vec<_>>();
        let frames = take(8);
        assert_eq!(succeed(&frames), [true, true, true, false, true, true, false, true]);
        for frame in frames.into_iter().flatten() {
            memory.free(frame);
        }
        // Below the limit again, and with an injected failure that ends.
        memory.fail_once(1);
        assert_eq!(succeed(&take(6)), [false, true, true, true, true, false]);
    }

    #[test]
    fn one_failure_hits_one_thread() {
        let memory = memory(1000);
        memory.fail_once(77);
        let failed: usize = std::thread::scope(|scope| {
            let count = || (0..100).filter(|_| memory.take_frame().is_none()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(failed, 1);
    }

    #[test]
    fn zero_and_copy() {
        let memory = memory(4);
        let (a, b) = (memory.take_frame().unwrap(), memory.take_frame().unwrap());
        memory.store_u64(a, 4088, 7);
        memory.copy(a, b);
        assert_eq!(memory.load_u64(b, 4088), 7);
        memory.zero(a);
        let mut bytes = [1; PAGE];
        assert_eq!(memory.read(a, 0, &mut bytes), PAGE);
        assert_eq!(bytes, [0; PAGE]);
        assert!(memory.memory(b).addr().get().is_multiple_of(PAGE));
    }

    #[test]
    #[should_panic(expected = "while it is still referenced")]
    #[cfg(debug_assertions)]
    fn a_frame_in_use_is_not_freed() {
        let engine = Engine::new(Soft::new(1).unwrap(), Limits::default()).unwrap();
        // It panics before anything changes, so the engine keeps its page of zeros.
        Frames(engine.host().frames()).free(engine.zero_frame());
    }

    #[test]
    #[cfg(debug_assertions)]
    fn old_bytes_are_spoiled() {
        let memory = memory(1);
        let frame = memory.take_frame().unwrap();
        assert_eq!(memory.load_u64(frame, 0).to_ne_bytes(), [POISON; 8]);
        memory.store_u64(frame, 0, 1);
        memory.free(frame);
        assert_eq!(memory.load_u64(frame, 0).to_ne_bytes(), [POISON; 8]);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::alone::Frames;
    use loom::thread;
    use std::sync::Arc;

    #[test]
    fn a_frame_has_one_owner() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let memory = Arc::new(Frames(Box::new(PhysicalMemory::new(2).unwrap())));
            // Both frames are on the list, so a frame can come back to the top while a pop is under way.
            let (a, b) = (memory.take_frame().unwrap(), memory.take_frame().unwrap());
            memory.free(a);
            memory.free(b);
            let theirs = Arc::clone(&memory);
            let other = thread::spawn(move || {
                let first = theirs.take_frame();
                let second = theirs.take_frame();
                first.inspect(|&frame| theirs.free(frame));
                second.inspect(|&frame| {
                    // Reports any use that is not ordered before this one.
                    theirs.zero(frame);
                    theirs.free(frame);
                });
            });
            let mine = [memory.take_frame(), memory.take_frame()];
            for frame in mine.into_iter().flatten() {
                memory.zero(frame);
                memory.free(frame);
            }
            other.join().unwrap();
            assert_eq!(memory.usage().used, 0);
        });
    }
}
