//! Free frames: one list that all threads share, and caches in front of it, each used by one thread at a time.

use faultless::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use faultless::sync::plain;

/// The number of frames that move between a cache and the list at once.
#[cfg(not(loom))]
pub(crate) const BATCH: usize = 32;
#[cfg(loom)]
pub(crate) const BATCH: usize = 1;
/// The greatest number of frames in a cache.
const HOLDS: usize = 2 * BATCH;

/// A Treiber stack of free frames, on cache lines of its own.
#[repr(align(128))]
pub(crate) struct FreeList {
    /// The low `bits` bits hold the top frame's number plus one. The other bits hold a tag, which each change
    /// increases, so that a frame that was taken and came back is told apart. Changed only by read-modify-writes:
    /// Release in a push, Acquire in a pop. So all use of a frame happens before its next life.
    head: AtomicU64,
    /// The number of bits that the largest number needs. The tag has all others and wraps around after 2^(64 - bits)
    /// changes: 2^40 with 2^24 frames (64 GiB). A change moves up to a batch of frames. A pop that is preempted for
    /// exactly that many changes would mistake one list for another. Immutable.
    bits: u32,
    /// The first frame that was never used; all later ones were not either. Atomic; only grows.
    pub fresh: plain::AtomicU64,
    /// The number of frames that were taken past the caches, less those freed past them; wraps. Atomic.
    pub used: plain::AtomicU64,
    /// The number of frames in the list. A hint: a frame may be taken before it is counted, so it wraps. Atomic.
    length: plain::AtomicU64,
}

impl FreeList {
    /// Makes an empty list for frames with numbers below `frames`, which is 2^32 - 1 at most.
    pub fn new(frames: u64) -> Self {
        Self {
            head: AtomicU64::new(0),
            bits: u64::BITS - frames.leading_zeros(),
            fresh: plain::AtomicU64::new(0),
            used: plain::AtomicU64::new(0),
            length: plain::AtomicU64::new(0),
        }
    }

    /// Returns the number of frames in the list: a hint.
    pub fn length(&self) -> u64 {
        (self.length.load(Ordering::Relaxed) as i64).max(0) as u64
    }

    /// Returns the top frame's number plus one.
    fn top(&self, head: u64) -> u32 {
        (head & ((1 << self.bits) - 1)) as u32
    }

    /// Returns the head with `top` and the next tag.
    fn retag(&self, head: u64, top: u32) -> u64 {
        ((head >> self.bits).wrapping_add(1) << self.bits) | u64::from(top)
    }

    /// Pushes `frames`.
    pub fn push(&self, next: &[plain::AtomicU32], frames: impl Iterator<Item = u32>) {
        let mut frames = frames.peekable();
        let Some(&top) = frames.peek() else { return };
        let (mut bottom, mut count) = (top, 0);
        while let Some(frame) = frames.next() {
            bottom = frame;
            count += 1;
            if let Some(below) = frames.peek() {
                next[frame as usize].store(below + 1, Ordering::Relaxed);
            }
        }
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            next[bottom as usize].store(self.top(head), Ordering::Relaxed);
            let new = self.retag(head, top + 1);
            match self.head.compare_exchange_weak(head, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => {
                    self.length.fetch_add(count, Ordering::Relaxed);
                    return;
                }
                Err(now) => head = now,
            }
        }
    }

    /// Takes frames off the top, at most one for each of `places`. Returns their number.
    pub fn pop(&self, next: &[plain::AtomicU32], places: &[plain::AtomicU32]) -> usize {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let (mut top, mut count) = (self.top(head), 0);
            while let (Some(frame), Some(place)) = (top.checked_sub(1), places.get(count)) {
                place.store(frame, Ordering::Relaxed);
                // If another thread takes the frame meanwhile, this value may be wrong. Then the tag has changed and it
                // is not used.
                top = next[frame as usize].load(Ordering::Relaxed);
                count += 1;
            }
            if count == 0 {
                return 0;
            }
            let new = self.retag(head, top);
            match self.head.compare_exchange_weak(head, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => {
                    self.length.fetch_sub(count as u64, Ordering::Relaxed);
                    return count;
                }
                Err(now) => head = now,
            }
        }
    }

    /// Returns a value that changes with each push and pop. Acquire.
    pub fn version(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }
}

/// Free frames for the threads of one slot or a few, on cache lines of their own. They count as free; other threads
/// take them when the list is empty.
#[repr(C, align(128))]
pub(crate) struct Cache {
    /// True while a thread holds the cache. Acquire to take it, Release to let it go.
    held: AtomicBool,
    /// The number of frames. Written by the holder.
    count: plain::AtomicU32,
    /// The number of frames that were taken through this cache, less those freed through it; wraps. Written by the
    /// holder. Only the sum over all caches and the list is meaningful.
    pub used: plain::AtomicU64,
    /// The frames; the one that was freed last is the last. Written by the holder.
    frames: [plain::AtomicU32; HOLDS],
}

impl Cache {
    /// Makes an empty cache.
    pub fn new() -> Self {
        Self {
            held: AtomicBool::new(false),
            count: plain::AtomicU32::new(0),
            used: plain::AtomicU64::new(0),
            frames: std::array::from_fn(|_| plain::AtomicU32::new(0)),
        }
    }

    /// Takes hold of the cache, unless another thread holds it.
    #[inline]
    pub fn try_hold(&self) -> Option<Held<'_>> {
        let held = self.held.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        held.is_ok().then(|| Held(self))
    }
}

/// A cache that the calling thread holds.
pub(crate) struct Held<'a>(&'a Cache);

impl Held<'_> {
    #[inline]
    fn count(&self) -> usize {
        self.0.count.load(Ordering::Relaxed) as usize
    }

    #[inline]
    fn set_count(&self, count: usize) {
        self.0.count.store(count as u32, Ordering::Relaxed);
    }

    /// Adds `frames`, which may be negative, to the number of frames in use.
    #[inline]
    pub fn add_used(&self, frames: i64) {
        let used = self.0.used.load(Ordering::Relaxed);
        self.0.used.store(used.wrapping_add_signed(frames), Ordering::Relaxed);
    }

    /// Takes a frame out of the cache.
    #[inline]
    pub fn take(&mut self) -> Option<u32> {
        let count = self.count().checked_sub(1)?;
        self.set_count(count);
        Some(self.0.frames[count].load(Ordering::Relaxed))
    }

    /// Puts a frame into the cache. If it is full, the older half goes to the list first.
    #[inline]
    pub fn put(&mut self, frame: u32, list: &FreeList, next: &[plain::AtomicU32]) {
        if self.count() == HOLDS {
            self.drain(list, next);
        }
        let count = self.count();
        self.0.frames[count].store(frame, Ordering::Relaxed);
        self.set_count(count + 1);
    }

    #[cold]
    fn drain(&mut self, list: &FreeList, next: &[plain::AtomicU32]) {
        let frame = |index: usize| self.0.frames[index].load(Ordering::Relaxed);
        list.push(next, (0..BATCH).map(frame));
        (BATCH..HOLDS).for_each(|index| self.0.frames[index - BATCH].store(frame(index), Ordering::Relaxed));
        self.set_count(HOLDS - BATCH);
    }

    /// Fills the empty cache from the list. Returns `false` if the list is empty.
    pub fn refill(&mut self, list: &FreeList, next: &[plain::AtomicU32]) -> bool {
        let count = list.pop(next, &self.0.frames[..BATCH]);
        self.set_count(count);
        count != 0
    }

    /// Fills the empty cache with the frames from `first` up to `end`, at most a batch.
    pub fn fill(&mut self, first: u64, end: u64) {
        let (count, last) = ((end - first) as usize, (end - 1) as u32);
        // In reverse, so that the lowest is taken first.
        for (place, back) in self.0.frames[..count].iter().zip(0..) {
            place.store(last - back, Ordering::Relaxed);
        }
        self.set_count(count);
    }
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.held.store(false, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn next(frames: u32) -> Vec<plain::AtomicU32> {
        (0..frames).map(|_| plain::AtomicU32::new(0)).collect()
    }

    /// A pop that is preempted meanwhile compares with a head that it has seen before.
    #[test]
    fn four_billion_changes_do_not_bring_the_head_back() {
        let (list, next) = (FreeList::new(8), next(8));
        list.push(&next, [3].into_iter());
        let seen = list.version();
        // The tag after 2^32 - 2 changes, each of which adds one. The pop and the push below make it 2^32.
        list.head.fetch_add((u64::from(u32::MAX) - 1) << list.bits, Ordering::Relaxed);
        let places = [plain::AtomicU32::new(0)];
        assert_eq!(list.pop(&next, &places), 1);
        list.push(&next, [3].into_iter());
        assert_eq!(list.top(list.version()), list.top(seen), "the same frame is on top");
        assert_ne!(list.version(), seen, "ABA");
    }

    #[test]
    fn the_largest_number_has_room_beside_the_tag() {
        for frames in [1, 2, 7, 8, u64::from(u32::MAX)] {
            let list = FreeList::new(frames);
            let (last, head) = ((frames - 1) as u32, u64::MAX);
            assert_eq!(list.top(list.retag(head, last + 1)), last + 1);
            assert_eq!(list.retag(head, 0), 0, "the tag wraps around");
        }
    }
}
