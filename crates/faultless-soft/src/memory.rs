//! Physical memory: one arena, a folio for each frame, and lists of free frames.

use faultless::address::PAGE_SIZE;
use faultless::frame::Folio;
use faultless::host::{Frame, FrameSource, FrameUsage, Slots, StdSlots};
use faultless::sync::atomic::{AtomicU64, Ordering};
use faultless::sync::plain;
use std::alloc::Layout;
use std::ptr::NonNull;

/// The most frames that a memory can have: list heads keep a frame's number, plus one, in 32 bits.
pub const MAX_FRAMES: u64 = u32::MAX as u64 - 1;

/// A free list for so many groups of threads, so that the lists are not what page faults wait for.
#[cfg(not(loom))]
const LISTS: usize = 32;
#[cfg(loom)]
const LISTS: usize = 1;
/// Never-used frames are taken so many at a time.
#[cfg(not(loom))]
const RUN: u64 = 64;
#[cfg(loom)]
const RUN: u64 = 1;

/// What free frames are filled with in debug builds, so that old bytes do not pass for zeros.
const POISON: u8 = 0xa5;

const PAGE: usize = PAGE_SIZE as usize;

/// Why there is no physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// No frames at all.
    #[error("physical memory of zero frames")]
    NoFrames,
    /// More frames than can be numbered or addressed.
    #[error("physical memory of {frames} frames: at most {MAX_FRAMES} can be addressed")]
    TooManyFrames {
        /// The frames asked for.
        frames: u64,
    },
    /// The operating system has not that much.
    #[error("no memory for {frames} frames")]
    OutOfMemory {
        /// The frames asked for.
        frames: u64,
    },
}

/// One allocation, page-aligned inside.
struct Arena {
    allocation: NonNull<u8>,
    layout: Layout,
    first_page: NonNull<u8>,
}

// SAFETY: only memory; who may use which part of it is the business of whoever uses it.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    fn new(frames: u64) -> Result<Self, MemoryError> {
        let too_many = MemoryError::TooManyFrames { frames };
        // A page more, aligned here: the allocator leaves zeroing to the operating system, page by page at the first
        // touch, only for a layout of small alignment.
        let bytes = frames.checked_add(1).and_then(|n| n.checked_mul(PAGE_SIZE)).ok_or(too_many)?;
        let bytes = usize::try_from(bytes).map_err(|_| too_many)?;
        let layout = Layout::from_size_align(bytes, align_of::<u64>()).map_err(|_| too_many)?;
        // SAFETY: the layout has a size.
        let allocation = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })
            .ok_or(MemoryError::OutOfMemory { frames })?;
        let gap = allocation.align_offset(PAGE);
        debug_assert!(gap < PAGE);
        // SAFETY: less than a page, and there is a page more than `frames`.
        let first_page = unsafe { allocation.add(gap) };
        Ok(Self { allocation, layout, first_page })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { std::alloc::dealloc(self.allocation.as_ptr(), self.layout) }
    }
}

/// A Treiber stack of free frames, on cache lines of its own.
#[repr(align(128))]
struct FreeList {
    /// The top frame's number plus one in the lower half, a tag that grows with each change in the upper one: a
    /// frame that was taken and came back is told apart. Changed by read-modify-writes only, Release by a push,
    /// Acquire by a pop: all use of a frame happens before its next life.
    head: AtomicU64,
    /// Frames that this list's threads took, less those they gave back; wraps. Atomic; the sum over all lists counts.
    used: plain::AtomicU64,
}

impl FreeList {
    /// Pushes the frames `top`, …, `bottom`, which are linked already but for the last one.
    fn push(&self, next: &[plain::AtomicU32], top: u64, bottom: u64) {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            next[bottom as usize].store(head as u32, Ordering::Relaxed);
            let new = retag(head, top as u32 + 1);
            match self.head.compare_exchange_weak(head, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    fn pop(&self, next: &[plain::AtomicU32]) -> Option<u64> {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let top = (head as u32).checked_sub(1)?;
            // Perhaps taken and pushed elsewhere meanwhile: then the tag has changed and this is not used.
            let below = next[top as usize].load(Ordering::Relaxed);
            let new = retag(head, below);
            match self.head.compare_exchange_weak(head, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(u64::from(top)),
                Err(now) => head = now,
            }
        }
    }
}

fn retag(head: u64, top: u32) -> u64 {
    ((head >> 32).wrapping_add(1) << 32) | u64::from(top)
}

/// Set in [`PhysicalMemory::failing`]: all later allocations fail too.
const FOR_EVER: u64 = 1 << 63;

/// The physical memory of a software machine.
///
/// Guests' loads and stores are atomic operations on words of eight bytes; which of them may meet is the page
/// tables' business. Under loom a frame has one word, at every offset, and [`FrameSource::memory`] is apart from it.
pub struct PhysicalMemory {
    arena: Arena,
    #[cfg(loom)]
    words: Vec<AtomicU64>,
    folios: Vec<Folio>,
    /// Below each frame on its free list: a number plus one. Written by whoever has the frame, before its push.
    next: Vec<plain::AtomicU32>,
    lists: [FreeList; LISTS],
    /// Frames from here on have never been used. Atomic; grows only.
    fresh: plain::AtomicU64,
    /// Allocations until one fails, that one included; 0: none will. Atomic; see [`FOR_EVER`].
    failing: plain::AtomicU64,
}

/// A word of a frame, as guests load and store it.
#[cfg(not(loom))]
type Word = plain::AtomicU64;
#[cfg(loom)]
type Word = AtomicU64;

impl PhysicalMemory {
    /// Memory of `frames` frames, all free. The operating system backs a frame when it is first used.
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
            arena: Arena::new(frames)?,
            #[cfg(loom)]
            words: each_frame(frames, || AtomicU64::new(u64::from_ne_bytes([POISON; 8])))?,
            folios: each_frame(frames, Folio::new)?,
            next: each_frame(frames, || plain::AtomicU32::new(0))?,
            lists: std::array::from_fn(|_| FreeList {
                head: AtomicU64::new(0),
                used: plain::AtomicU64::new(0),
            }),
            fresh: plain::AtomicU64::new(0),
            failing: plain::AtomicU64::new(0),
        })
    }

    /// From the `n`-th allocation on (1 is the next one) all fail; `None`: no longer. For tests.
    pub fn fail_from(&self, n: Option<u64>) {
        let state = n.map_or(0, |n| n.clamp(1, FOR_EVER - 1) | FOR_EVER);
        self.failing.store(state, Ordering::Relaxed);
    }

    /// The `n`-th allocation (1 is the next one) fails, and no other. For tests.
    pub fn fail_once(&self, n: u64) {
        self.failing.store(n.clamp(1, FOR_EVER - 1), Ordering::Relaxed);
    }

    #[cold]
    fn injected_failure(&self) -> bool {
        let step = |state: u64| match state {
            0 | 1 => Some(0),
            _ if state == 1 | FOR_EVER => Some(state),
            _ => Some(state - 1),
        };
        // The closure always answers, so the error is the old value as well.
        let (Ok(old) | Err(old)) = self.failing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
        old & !FOR_EVER == 1
    }

    fn home(&self) -> usize {
        StdSlots.current().get() as usize % LISTS
    }

    fn find(&self, home: usize) -> Option<u64> {
        self.lists[home]
            .pop(&self.next)
            .or_else(|| self.take_fresh(home))
            .or_else(|| (1..LISTS).find_map(|i| self.lists[(home + i) % LISTS].pop(&self.next)))
    }

    /// A never-used frame; the rest of its run goes to the list.
    fn take_fresh(&self, home: usize) -> Option<u64> {
        let limit = self.folios.len() as u64;
        let mut first = self.fresh.load(Ordering::Relaxed);
        let end = loop {
            let left = limit - first;
            if left == 0 {
                return None;
            }
            // One by one towards the end: nobody shall find nothing while a run is on its way to a list.
            let end = first + if left > 2 * RUN * LISTS as u64 { RUN } else { 1 };
            match self.fresh.compare_exchange_weak(first, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break end,
                Err(now) => first = now,
            }
        };
        if first + 1 < end {
            for frame in first + 1..end - 1 {
                // Below `frame` lies the next one, and its number plus one is kept.
                self.next[frame as usize].store(frame as u32 + 2, Ordering::Relaxed);
            }
            self.lists[home].push(&self.next, first + 1, end - 1);
        }
        for frame in first..end {
            self.poison(frame);
        }
        Some(first)
    }

    /// In debug builds: spoils what is in a frame that nobody has. (A model's words are spoiled from the start.)
    fn poison(&self, frame: u64) {
        if cfg!(all(debug_assertions, not(loom))) {
            let memory = self.address(frame, 0);
            // SAFETY: a page of the arena, which nobody else has.
            unsafe { memory.write_bytes(POISON, PAGE) };
        }
    }

    /// Where byte `offset` of a frame is. Checked in release builds too: anybody can make a `Frame`.
    fn address(&self, frame: u64, offset: u64) -> NonNull<u8> {
        assert!(frame < self.folios.len() as u64 && offset < PAGE_SIZE, "frame {frame} offset {offset}");
        // SAFETY: inside the arena, by the assertion.
        unsafe { self.arena.first_page.add(frame as usize * PAGE + offset as usize) }
    }

    /// The word that has byte `offset` of the frame in it.
    fn word(&self, frame: Frame, offset: u64) -> &Word {
        self.folio(frame).life().touch();
        #[cfg(loom)]
        {
            debug_assert!(offset < PAGE_SIZE);
            return &self.words[frame.get() as usize];
        }
        #[cfg(not(loom))]
        {
            let word = self.address(frame.get(), offset & !7).cast::<u64>();
            // SAFETY: aligned and inside the arena, which lives as long as `self`. All accesses of guests are atomic
            // and of this size; the others (zero, copy, stores) are by whoever has the frame alone.
            unsafe { Word::from_ptr(word.as_ptr()) }
        }
    }

    /// A guest's load of the word at byte `offset`, a multiple of eight. Acquire.
    pub fn load_u64(&self, frame: Frame, offset: u64) -> u64 {
        debug_assert!(offset.is_multiple_of(8));
        self.word(frame, offset).load(Ordering::Acquire)
    }

    /// A guest's store to the word at byte `offset`, a multiple of eight. Release.
    pub fn store_u64(&self, frame: Frame, offset: u64, value: u64) {
        debug_assert!(offset.is_multiple_of(8));
        self.word(frame, offset).store(value, Ordering::Release);
    }

    /// A guest's addition to the word at byte `offset`, a multiple of eight; returns what was there. AcqRel.
    pub fn fetch_add_u64(&self, frame: Frame, offset: u64, value: u64) -> u64 {
        debug_assert!(offset.is_multiple_of(8));
        self.word(frame, offset).fetch_add(value, Ordering::AcqRel)
    }

    /// A guest's load of bytes from `offset` on. Each word is one load; relaxed.
    pub fn read_bytes(&self, frame: Frame, offset: u64, mut bytes: &mut [u8]) {
        debug_assert!(offset + bytes.len() as u64 <= PAGE_SIZE);
        let mut offset = offset;
        while !bytes.is_empty() {
            let word = self.word(frame, offset).load(Ordering::Relaxed).to_ne_bytes();
            let inside = (offset % 8) as usize;
            let (now, rest) = bytes.split_at_mut(bytes.len().min(8 - inside));
            now.copy_from_slice(&word[inside..inside + now.len()]);
            offset += now.len() as u64;
            bytes = rest;
        }
    }

    /// A guest's store of bytes from `offset` on. A part of a word leaves the rest of it alone; relaxed.
    pub fn write_bytes(&self, frame: Frame, offset: u64, mut bytes: &[u8]) {
        debug_assert!(offset + bytes.len() as u64 <= PAGE_SIZE);
        let mut offset = offset;
        while !bytes.is_empty() {
            let word = self.word(frame, offset);
            let inside = (offset % 8) as usize;
            let (now, rest) = bytes.split_at(bytes.len().min(8 - inside));
            if let Ok(whole) = now.try_into() {
                word.store(u64::from_ne_bytes(whole), Ordering::Relaxed);
            } else {
                // The whole word at once: accesses of different sizes to the same bytes must not meet.
                let splice = |old: u64| {
                    let mut all = old.to_ne_bytes();
                    all[inside..inside + now.len()].copy_from_slice(now);
                    Some(u64::from_ne_bytes(all))
                };
                let _always_ok = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, splice);
            }
            offset += now.len() as u64;
            bytes = rest;
        }
    }
}

/// One `T` a frame.
fn each_frame<T>(frames: u64, make: impl FnMut() -> T) -> Result<Vec<T>, MemoryError> {
    let mut all = Vec::new();
    all.try_reserve_exact(frames as usize).map_err(|_| MemoryError::OutOfMemory { frames })?;
    all.resize_with(frames as usize, make);
    Ok(all)
}

impl FrameSource for PhysicalMemory {
    fn allocate(&self) -> Option<Frame> {
        if self.failing.load(Ordering::Relaxed) != 0 && self.injected_failure() {
            return None;
        }
        let home = self.home();
        let frame = Frame::new(self.find(home)?)?;
        self.lists[home].used.fetch_add(1, Ordering::Relaxed);
        self.folio(frame).life().renew();
        Some(frame)
    }

    fn free(&self, frame: Frame) {
        let folio = self.folio(frame);
        debug_assert!(folio.is_free(), "{frame:?} is freed while somebody has a reference to it");
        folio.life().end();
        self.poison(frame.get());
        let list = &self.lists[self.home()];
        list.used.fetch_sub(1, Ordering::Relaxed);
        list.push(&self.next, frame.get(), frame.get());
    }

    fn folio(&self, frame: Frame) -> &Folio {
        &self.folios[frame.get() as usize]
    }

    #[cfg(not(mutant = "frame_not_zeroed"))]
    fn zero(&self, frame: Frame) {
        self.folio(frame).life().own();
        #[cfg(loom)]
        self.words[frame.get() as usize].store(0, Ordering::Relaxed);
        // SAFETY: a page of the arena, which the caller has alone.
        unsafe { self.address(frame.get(), 0).write_bytes(0, PAGE) };
    }

    /// The mutant: what was there stays.
    #[cfg(mutant = "frame_not_zeroed")]
    fn zero(&self, _frame: Frame) {}

    fn copy(&self, from: Frame, to: Frame) {
        debug_assert_ne!(from, to);
        self.folio(from).life().touch();
        self.folio(to).life().own();
        #[cfg(loom)]
        {
            let word = self.words[from.get() as usize].load(Ordering::Relaxed);
            self.words[to.get() as usize].store(word, Ordering::Relaxed);
        }
        let (from, to) = (self.address(from.get(), 0), self.address(to.get(), 0));
        // SAFETY: two pages of the arena; the caller has `to` alone, and nobody writes `from`.
        unsafe { to.copy_from_nonoverlapping(from, PAGE) };
    }

    fn memory(&self, frame: Frame) -> NonNull<u8> {
        self.address(frame.get(), 0)
    }

    /// Adds up the lists' counts: exact when nobody allocates or frees meanwhile. Not for every fault.
    fn usage(&self) -> FrameUsage {
        let add = |sum: u64, list: &FreeList| sum.wrapping_add(list.used.load(Ordering::Relaxed));
        let limit = self.folios.len() as u64;
        FrameUsage { used: self.lists.iter().fold(0, add).min(limit), limit }
    }
}
