//! Free frames: one list that all threads share, and caches in front of it that one thread at a time uses.

use faultless::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use faultless::sync::plain;

/// Frames that go between a cache and the list at once.
#[cfg(not(loom))]
pub(crate) const BATCH: usize = 32;
#[cfg(loom)]
pub(crate) const BATCH: usize = 1;
/// Frames that a cache holds at most.
const HOLDS: usize = 2 * BATCH;

/// A Treiber stack of free frames, on cache lines of its own.
#[repr(align(128))]
pub(crate) struct FreeList {
    /// The top frame's number plus one in the low `bits` bits, a tag that grows with each change in the others: a
    /// frame that was taken and came back is told apart. Changed by read-modify-writes only, Release by a push,
    /// Acquire by a pop: all use of a frame happens before its next life.
    head: AtomicU64,
    /// As many bits as the largest number needs, so that the tag has all others: it comes round after 2^(64 - bits) changes,
    /// 2^40 with 2^24 frames (64 GiB). A change is of up to a batch of frames. A pop that is preempted for just as many
    /// changes would mistake one list for another. Immutable.
    bits: u32,
    /// Frames from here on have never been used. Atomic; grows only.
    pub fresh: plain::AtomicU64,
    /// Frames that were taken past the caches, less those given back so; wraps. Atomic.
    pub used: plain::AtomicU64,
}

impl FreeList {
    /// No frames; later some of number 0 to `frames` - 1, which are 2^32 - 1 at most.
    pub fn new(frames: u64) -> Self {
        Self {
            head: AtomicU64::new(0),
            bits: u64::BITS - frames.leading_zeros(),
            fresh: plain::AtomicU64::new(0),
            used: plain::AtomicU64::new(0),
        }
    }

    /// The top frame's number plus one.
    fn top(&self, head: u64) -> u32 {
        (head & ((1 << self.bits) - 1)) as u32
    }

    /// The head with `top`, and the next tag.
    fn retag(&self, head: u64, top: u32) -> u64 {
        ((head >> self.bits).wrapping_add(1) << self.bits) | u64::from(top)
    }

    /// Pushes `frames`, of which there is one at least.
    pub fn push(&self, next: &[plain::AtomicU32], frames: impl Iterator<Item = u32>) {
        let mut frames = frames.peekable();
        let Some(&top) = frames.peek() else { return };
        let mut bottom = top;
        while let Some(frame) = frames.next() {
            bottom = frame;
            if let Some(below) = frames.peek() {
                next[frame as usize].store(below + 1, Ordering::Relaxed);
            }
        }
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            next[bottom as usize].store(self.top(head), Ordering::Relaxed);
            let new = self.retag(head, top + 1);
            match self.head.compare_exchange_weak(head, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes frames off the top, as many as there are places; returns how many.
    pub fn pop(&self, next: &[plain::AtomicU32], places: &[plain::AtomicU32]) -> usize {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let (mut top, mut count) = (self.top(head), 0);
            while let (Some(frame), Some(place)) = (top.checked_sub(1), places.get(count)) {
                place.store(frame, Ordering::Relaxed);
                // Perhaps taken and pushed elsewhere meanwhile: then the tag has changed and this is not used.
                top = next[frame as usize].load(Ordering::Relaxed);
                count += 1;
            }
            if count == 0 {
                return 0;
            }
            let new = self.retag(head, top);
            match self.head.compare_exchange_weak(head, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return count,
                Err(now) => head = now,
            }
        }
    }

    /// Changes with each push and pop. Acquire.
    pub fn version(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }
}

/// Free frames for the threads of one slot, or few, on cache lines of their own. They count as free, and others take
/// them where the list has none.
#[repr(C, align(128))]
pub(crate) struct Cache {
    /// True while a thread has the cache. Acquire; Release when the thread lets it go.
    held: AtomicBool,
    /// How many frames. The holder's.
    count: plain::AtomicU32,
    /// Frames that were taken by way of it, less those given back so; wraps. Written by the holder; the sum over all
    /// caches, and the list's, counts.
    pub used: plain::AtomicU64,
    /// The last one freed comes last. The holder's.
    frames: [plain::AtomicU32; HOLDS],
}

impl Cache {
    /// No frames.
    pub fn new() -> Self {
        Self {
            held: AtomicBool::new(false),
            count: plain::AtomicU32::new(0),
            used: plain::AtomicU64::new(0),
            frames: std::array::from_fn(|_| plain::AtomicU32::new(0)),
        }
    }

    /// Takes hold of it, unless somebody has.
    #[inline]
    pub fn try_hold(&self) -> Option<Held<'_>> {
        let held = self.held.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        held.is_ok().then(|| Held(self))
    }
}

/// A cache that nobody else uses meanwhile.
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

    /// Says that `frames` more, or fewer, are in use.
    #[inline]
    pub fn add_used(&self, frames: i64) {
        let used = self.0.used.load(Ordering::Relaxed);
        self.0.used.store(used.wrapping_add_signed(frames), Ordering::Relaxed);
    }

    /// Takes a frame out.
    #[inline]
    pub fn take(&mut self) -> Option<u32> {
        let count = self.count().checked_sub(1)?;
        self.set_count(count);
        Some(self.0.frames[count].load(Ordering::Relaxed))
    }

    /// Puts a frame in; half of those there go to the list first, the older ones, if it is full.
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

    /// Fills it, which is empty, from the list. False: there is nothing.
    pub fn refill(&mut self, list: &FreeList, next: &[plain::AtomicU32]) -> bool {
        let count = list.pop(next, &self.0.frames[..BATCH]);
        self.set_count(count);
        count != 0
    }

    /// Fills it, which is empty, with the frames from `first` up to `end`, a batch at most.
    pub fn fill(&mut self, first: u64, end: u64) {
        // The lowest comes out first.
        let frames = (first..end).rev();
        self.0
            .frames
            .iter()
            .zip(frames)
            .for_each(|(place, frame)| place.store(frame as u32, Ordering::Relaxed));
        self.set_count((end - first) as usize);
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

    /// A pop that is preempted meanwhile compares with a head that it has seen.
    #[test]
    fn four_billion_changes_do_not_bring_the_head_back() {
        let (list, next) = (FreeList::new(8), next(8));
        list.push(&next, [3].into_iter());
        let seen = list.version();
        // The state after 2^32 changes less one: each change adds to the tag.
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
            assert_eq!(list.retag(head, 0), 0, "the tag comes round");
        }
    }
}
