//! Trees of ranges: the lookup of a page, as each fault does it, and the changes that mappings make.
//!
//! Every contender holds the same ranges. Each has eight pages, with holes between them. One half is at low addresses
//! and one half at high ones, as heap and libraries are. A lookup finds a separate object, as a VMA is. Its end and one
//! more word are read under the contender's own protection.

mod cases;
mod maple;
mod ours;
mod peers;
#[cfg(test)]
mod tests;

pub use cases::{LOOK_UP, READER, TWO_WRITERS, UPDATE};
pub use maple::Maple;

/// The pages of a range.
const PAGES: u64 = 8;
/// The pages from the start of one range to the start of the next.
const STRIDE: u64 = 16;
/// The first pages of the lower half and of the upper one: of a heap, and below a stack. Multiples of `STRIDE`.
const BASES: [u64; 2] = [0x5_5555_5550, 0x7_ff00_0000];

/// The words that a lookup reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    end: u64,
    word: u64,
}

/// The object that a lookup finds.
#[derive(Debug, PartialEq, Eq)]
struct Item {
    start: u64,
    end: u64,
    word: u64,
}

impl Item {
    /// Returns the words that a lookup reads, if the item reaches beyond `page`.
    #[inline]
    fn at(&self, page: u64) -> Option<Found> {
        (page < self.end).then_some(Found { end: self.end, word: self.word })
    }
}

/// A contender.
trait Index: Send + Sync + Sized + 'static {
    /// A thread's handle of it.
    type Handle<'a>: Handle;

    fn name() -> String;

    /// Makes an empty index.
    ///
    /// # Errors
    /// The reason for which it is not available here.
    fn new() -> Result<Self, String>;

    /// Returns a handle for the calling thread.
    fn handle(&self) -> Self::Handle<'_>;
}

trait Handle {
    /// Returns the range that contains `page`.
    fn find(&mut self, page: u64) -> Option<Found>;

    /// Inserts an item where there is none.
    fn insert(&mut self, item: Item);

    /// Removes the item from `start` to `end`. Returns whether there was one.
    fn remove(&mut self, start: u64, end: u64) -> bool;

    /// Fills an empty index with items in ascending order. Contenders override it if that is faster than single
    /// insertions.
    fn fill(&mut self, items: impl Iterator<Item = Item>) {
        items.for_each(|item| self.insert(item));
    }
}

/// Returns the first page of range `number` of `ranges`.
fn start_of(number: u64, ranges: u64) -> u64 {
    BASES[usize::from(number >= ranges.div_ceil(2))] + number * STRIDE
}

/// Returns the item that begins at `start`.
fn item(start: u64, word: u64) -> Item {
    Item { start, end: start + PAGES, word }
}

/// Returns the end of the range that has `page`.
fn end_of(page: u64) -> u64 {
    page - page % STRIDE + PAGES
}

/// A fast generator of random numbers (xorshift64*).
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

    /// Returns a number less than `limit`, which must be less than 2^32.
    #[inline]
    pub fn below(&mut self, limit: u64) -> u64 {
        ((self.next() >> 32) * limit) >> 32
    }

    /// Makes the next number depend on `word`, which is 0, so that the next lookup cannot begin before this one has
    /// ended.
    #[inline]
    fn follows(&mut self, word: u64) {
        self.0 ^= word;
    }

    /// Returns a page in one of `ranges` ranges.
    #[inline]
    fn page(&mut self, ranges: u64) -> u64 {
        start_of(self.below(ranges), ranges) + self.0 % PAGES
    }
}
