//! Trees of ranges: the look-up of a page, as each fault does it, and the changes that mappings make.
//!
//! Every contender holds the same: ranges of eight pages, with holes between them, half of them low and half high up, as
//! heap and libraries lie. What is found is an object of its own, as a VMA is; its end and one word more are read while it
//! is protected by what the contender protects it with.

mod cases;
mod maple;
mod ours;
mod peers;
#[cfg(test)]
mod tests;

pub use cases::{LOOK_UP, READER, TWO_WRITERS, UPDATE};
pub use maple::Maple;

/// Pages of a range.
const PAGES: u64 = 8;
/// From the start of one to the start of the next.
const STRIDE: u64 = 16;
/// Where the lower half begins, and the upper one: pages of a heap, and below a stack. Multiples of `STRIDE`.
const BASES: [u64; 2] = [0x5_5555_5550, 0x7_ff00_0000];

/// What a look-up reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    end: u64,
    word: u64,
}

/// What is found: an object of its own.
#[derive(Debug, PartialEq, Eq)]
struct Item {
    start: u64,
    end: u64,
    word: u64,
}

impl Item {
    /// Read, if it reaches beyond `page`.
    #[inline]
    fn at(&self, page: u64) -> Option<Found> {
        (page < self.end).then_some(Found { end: self.end, word: self.word })
    }
}

/// A contender.
trait Index: Send + Sync + Sized + 'static {
    /// How a thread uses it.
    type Handle<'a>: Handle;

    fn name() -> String;

    /// An empty one.
    ///
    /// # Errors
    /// Why it is not to be had here.
    fn new() -> Result<Self, String>;

    /// The calling thread's.
    fn handle(&self) -> Self::Handle<'_>;
}

trait Handle {
    /// What contains `page`.
    fn find(&mut self, page: u64) -> Option<Found>;

    /// Where nothing is.
    fn insert(&mut self, item: Item);

    /// What begins at `start`, if anything does, and ends at `end`.
    fn remove(&mut self, start: u64, end: u64) -> bool;

    /// Many into an empty one, upwards. For those to which that is not the same as one by one.
    fn fill(&mut self, items: impl Iterator<Item = Item>) {
        items.for_each(|item| self.insert(item));
    }
}

/// Where range `number` of so many begins.
fn start_of(number: u64, ranges: u64) -> u64 {
    BASES[usize::from(number >= ranges.div_ceil(2))] + number * STRIDE
}

/// The range that begins at `start`.
fn item(start: u64, word: u64) -> Item {
    Item { start, end: start + PAGES, word }
}

/// Where the range that has `page` ends.
fn end_of(page: u64) -> u64 {
    page - page % STRIDE + PAGES
}

/// Cheap random numbers (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    #[inline]
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `limit`, which is less than 2^32.
    #[inline]
    pub fn below(&mut self, limit: u64) -> u64 {
        ((self.next() >> 32) * limit) >> 32
    }

    /// Comes after what was found: the next number cannot be had before `word` is, which is 0.
    #[inline]
    fn follows(&mut self, word: u64) {
        self.0 ^= word;
    }

    /// A page in one of so many ranges.
    #[inline]
    fn page(&mut self, ranges: u64) -> u64 {
        start_of(self.below(ranges), ranges) + self.0 % PAGES
    }
}
