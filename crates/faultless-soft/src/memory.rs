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
use faultless::host::{Frame, FrameSource, FrameUsage, FrameUse, GroupId, Sections, StdSlots};
use faultless::mutant;
#[cfg(loom)]
use faultless::sync::atomic::AtomicU64;
use faultless::sync::atomic::Ordering;
use faultless::sync::plain;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

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
    /// The number of free frames below which a thread that fills its cache notes that; 0: none notes it. Atomic.
    low: plain::AtomicU64,
    /// The place for the note: the sections of the engine that has asked for it first.
    watcher: OnceLock<Arc<Sections>>,
    /// A function that is called in the middle of each copy of bytes. Immutable.
    pause: Option<fn()>,
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
            low: plain::AtomicU64::new(0),
            watcher: OnceLock::new(),
            pause: None,
            #[cfg(debug_assertions)]
            processors: None,
        })
    }

    /// Returns this memory with a function that is called in the middle of each copy of bytes.
    pub(crate) fn paused_by(self, pause: fn()) -> Self {
        Self { pause: Some(pause), ..self }
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
        self.note_if_few();
    }

    /// Notes for the engine that few frames are free, if so. Called when a thread takes frames off the list that all share. The frames
    /// in caches are counted only if the others are few, since other threads write those counts.
    fn note_if_few(&self) {
        let low = self.low.load(Ordering::Relaxed);
        let fresh = (self.folios.len() as u64).saturating_sub(self.list.fresh.load(Ordering::Relaxed));
        if low == 0 || self.list.length() + fresh >= low {
            return;
        }
        let FrameUsage { used, limit } = self.usage();
        if limit - used.min(limit) < low
            && let Some(sections) = self.watcher.get()
            && !mutant!("few_frames_not_noted")
        {
            sections.note_few_frames(StdSlots.current());
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
            self.note_if_few();
            self.list.used.fetch_add(1, Ordering::Relaxed);
            Some(found)
        });
        let frame = Frame::new(u64::from(found?))?;
        self.folio(frame).life().renew();
        Some(frame)
    }

    /// Checks that a frame that is about to be free is used by nobody, in debug builds and models.
    #[inline]
    fn end_life(&self, frame: Frame) {
        let folio = self.folio(frame);
        debug_assert!(folio.is_free(), "{frame:?} is freed while it is still referenced");
        #[cfg(all(debug_assertions, not(loom)))]
        if let Some(processors) = &self.processors {
            processors.assert_forgotten(frame);
        }
        folio.life().end();
        self.arena.poison(frame.get());
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
        self.end_life(frame);
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

    unsafe fn free_all(&self, frames: &[Frame]) {
        // Few frames go to the thread's cache, where its next faults find them.
        let (few, many) = frames.split_at(frames.len() % BATCH);
        for frame in few {
            // SAFETY: by the same contract.
            unsafe { self.free(*frame) }
        }
        if many.is_empty() {
            return;
        }
        for frame in many {
            self.end_life(*frame);
        }
        self.list.used.fetch_sub(many.len() as u64, Ordering::Relaxed);
        // Numbers that `allocate` has returned fit into 32 bits.
        self.list.push(&self.next, many.iter().map(|frame| frame.get() as u32));
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
        let Some(pause) = self.pause else { return self.arena.read(frame.get(), offset, bytes) };
        let (first, second) = bytes.split_at_mut(bytes.len() / 2);
        let done = self.arena.read(frame.get(), offset, first);
        pause();
        done + self.arena.read(frame.get(), offset.saturating_add(done), second)
    }

    unsafe fn write(&self, frame: Frame, offset: usize, bytes: &[u8]) -> usize {
        self.step(frame, Ordering::Release);
        let Some(pause) = self.pause else { return self.arena.write(frame.get(), offset, bytes) };
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let done = self.arena.write(frame.get(), offset, first);
        pause();
        done + self.arena.write(frame.get(), offset.saturating_add(done), second)
    }

    fn watch(&self, sections: &Arc<Sections>, low: u64) {
        self.watcher.get_or_init(|| Arc::clone(sections));
        self.low.store(low, Ordering::Relaxed);
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
mod tests;

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
