//! A file's index, from page number to frame: a radix tree of atomic words. A lookup takes no lock. Nodes live as long
//! as the file; words are set and cleared. Each leaf also has bits for each page: dirty, under writeback and written.
//! So a search for such pages does not visit every page.

use crate::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use crate::sync::try_box_zeroed;
use crate::sync::{OutOfMemory, Sections};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ops::Range;
use core::ptr;

#[cfg(not(loom))]
const BITS: u32 = 9;
#[cfg(loom)]
const BITS: u32 = 1;
const FANOUT: usize = 1 << BITS;
#[cfg(not(loom))]
const UPPER_LEVELS: u32 = 3;
#[cfg(loom)]
const UPPER_LEVELS: u32 = 1;

/// The number of pages that an index can hold: 2^36, or 256 TiB.
pub(super) const PAGES: u64 = 1 << (BITS * (UPPER_LEVELS + 1));
const _: () = assert!(PAGES - 1 <= crate::frame::NUMBER);

struct Upper([AtomicPtr<()>; FANOUT]);

/// The number of words of bits for one tag of a leaf.
const BIT_WORDS: usize = FANOUT.div_ceil(64);

struct Leaf {
    words: [AtomicU64; FANOUT],
    /// One bit a page for each [`Tag`], so that a search for tagged pages reads one word for 64 of them.
    tags: [[AtomicU64; BIT_WORDS]; 4],
}

/// The tag by which a page is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// The page may be dirty.
    Dirty,
    /// A write of the page may be under way.
    Writing,
    /// A write of the page has succeeded, but perhaps not reached the device. Never cleared; read only after a flush
    /// has failed.
    Written,
    /// A write of the page has failed, or was not tried because an earlier page of its transfer failed. The next write
    /// of it is a transfer of its own.
    Alone,
}

impl Leaf {
    fn new() -> Self {
        Self {
            words: core::array::from_fn(|_| AtomicU64::new(0)),
            tags: core::array::from_fn(|_| core::array::from_fn(|_| AtomicU64::new(0))),
        }
    }

    /// Returns the first page in `from..end` with the tag; both are relative to the leaf's first page.
    fn next_tagged(&self, tag: Tag, from: usize, end: usize) -> Option<usize> {
        let mut at = from;
        while at < end {
            // Acquire, partner: `Index::tag`.
            let bits = self.tags[tag as usize][at / 64].load(Ordering::Acquire) >> (at % 64);
            if bits != 0 {
                let found = at + bits.trailing_zeros() as usize;
                return (found < end).then_some(found);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }
}

impl Upper {
    fn new() -> Self {
        Self(core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())))
    }
}

/// The index of a file: see the module.
pub(super) struct Index {
    root: Upper,
    /// The sections to which the index's nodes are charged.
    sections: Arc<Sections>,
}

impl Index {
    #[cfg(all(test, not(loom)))]
    pub(super) fn new(sections: Arc<Sections>) -> Self {
        Self { root: Upper::new(), sections }
    }

    /// Writes an index to `place`, part by part, since stacks have no room for one.
    ///
    /// # Safety
    /// `place` is the caller's to write, and aligned.
    pub(super) unsafe fn write(place: *mut Self, sections: Arc<Sections>) {
        for i in 0..FANOUT {
            // SAFETY: by the contract above.
            unsafe { (&raw mut (*place).root.0[i]).write(AtomicPtr::new(ptr::null_mut())) };
        }
        // SAFETY: by the contract above. These are all fields.
        unsafe { (&raw mut (*place).sections).write(sections) };
    }

    fn place(upper: &Upper, page: u64, level: u32) -> &AtomicPtr<()> {
        &upper.0[(page >> (BITS * level)) as usize % FANOUT]
    }

    /// Returns the word of `page`, if its node exists.
    pub(super) fn get(&self, page: u64) -> Option<&AtomicU64> {
        Some(&self.leaf(page)?.words[page as usize % FANOUT])
    }

    /// Sets the page's tag (Release, so that the cause of the tag is visible with it). Only for a page that has a word. Returns
    /// whether it was not set before.
    pub(super) fn tag(&self, page: u64, tag: Tag) -> bool {
        let Some(leaf) = self.leaf(page) else { return false };
        let at = page as usize % FANOUT;
        let bit = 1 << (at % 64);
        leaf.tags[tag as usize][at / 64].fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// Clears the page's tag. Acquire, so that the cause of the tag is visible. Returns whether it was set.
    pub(super) fn untag(&self, page: u64, tag: Tag) -> bool {
        let Some(leaf) = self.leaf(page) else { return false };
        let at = page as usize % FANOUT;
        let bit = 1 << (at % 64);
        leaf.tags[tag as usize][at / 64].fetch_and(!bit, Ordering::AcqRel) & bit != 0
    }

    /// Returns whether the page has the tag.
    pub(super) fn is_tagged(&self, page: u64, tag: Tag) -> bool {
        let at = page as usize % FANOUT;
        self.leaf(page).is_some_and(|leaf| leaf.next_tagged(tag, at, at + 1).is_some())
    }

    /// Returns the first page of `pages` that has the tag.
    pub(super) fn next_tagged(&self, pages: Range<u64>, tag: Tag) -> Option<u64> {
        Self::next(&self.root, UPPER_LEVELS, 0, &pages, tag)
    }

    fn next(upper: &Upper, level: u32, base: u64, pages: &Range<u64>, tag: Tag) -> Option<u64> {
        let span = 1 << (BITS * level);
        for (i, place) in upper.0.iter().enumerate() {
            let base = base + i as u64 * span;
            if base + span <= pages.start {
                continue;
            }
            if base >= pages.end {
                return None;
            }
            let child = place.load(Ordering::Acquire);
            if child.is_null() {
                continue;
            }
            let found = if level > 1 {
                // SAFETY: higher levels point to upper nodes, which live as long as the index.
                Self::next(unsafe { &*child.cast::<Upper>() }, level - 1, base, pages, tag)
            } else {
                let from = pages.start.saturating_sub(base) as usize;
                let end = (pages.end - base).min(FANOUT as u64) as usize;
                // SAFETY: level 1 points to leaves, which live as long as the index.
                let leaf = unsafe { &*child.cast::<Leaf>() };
                leaf.next_tagged(tag, from, end).map(|at| base + at as u64)
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    fn leaf(&self, page: u64) -> Option<&Leaf> {
        if page >= PAGES {
            return None;
        }
        let mut upper = &self.root;
        for level in (1..=UPPER_LEVELS).rev() {
            let child = Self::place(upper, page, level).load(Ordering::Acquire);
            if child.is_null() {
                return None;
            }
            if level == 1 {
                // SAFETY: level 1 points to leaves, which live as long as `self`.
                return Some(unsafe { &*child.cast::<Leaf>() });
            }
            // SAFETY: higher levels point to upper nodes, which live as long as `self`.
            upper = unsafe { &*child.cast::<Upper>() };
        }
        None
    }

    /// Returns the word of `page`, and makes missing nodes. `page` must be below [`PAGES`].
    pub(super) fn make(&self, page: u64) -> Result<&AtomicU64, OutOfMemory> {
        let mut upper = &self.root;
        for level in (2..=UPPER_LEVELS).rev() {
            let child = self.make_child(Self::place(upper, page, level), Upper::new)?;
            // SAFETY: higher levels point to upper nodes, which live as long as `self`.
            upper = unsafe { &*child.cast::<Upper>() };
        }
        let leaf = self.make_child(Self::place(upper, page, 1), Leaf::new)?;
        // SAFETY: level 1 points to leaves, which live as long as `self`.
        Ok(unsafe { &(*leaf.cast::<Leaf>()).words[page as usize % FANOUT] })
    }

    fn make_child<T>(&self, place: &AtomicPtr<()>, new: impl FnOnce() -> T) -> Result<*mut (), OutOfMemory> {
        let child = place.load(Ordering::Acquire);
        if !child.is_null() {
            return Ok(child);
        }
        // SAFETY: both kinds of nodes are words of zero, and null pointers.
        let new = Box::into_raw(unsafe { try_box_zeroed(new) }?);
        match place.compare_exchange(ptr::null_mut(), new.cast(), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                self.sections.charge(size_of::<T>());
                Ok(new.cast())
            }
            Err(theirs) => {
                // SAFETY: `new` has just come from a Box, and no other thread has seen it.
                drop(unsafe { Box::from_raw(new) });
                Ok(theirs)
            }
        }
    }

    /// Calls `f` for every word of `pages` whose node exists.
    pub(super) fn each(&self, pages: Range<u64>, f: &mut impl FnMut(u64, &AtomicU64)) {
        self.each_until(pages, &mut |page, word| {
            f(page, word);
            false
        });
    }

    /// Calls `f` for every word of `pages` whose node exists, until it returns true. Returns the page for which it did.
    pub(super) fn each_until(
        &self,
        pages: Range<u64>,
        f: &mut impl FnMut(u64, &AtomicU64) -> bool,
    ) -> Option<u64> {
        Self::each_below(&self.root, UPPER_LEVELS, 0, &pages, f)
    }

    fn each_below(
        upper: &Upper,
        level: u32,
        base: u64,
        pages: &Range<u64>,
        f: &mut impl FnMut(u64, &AtomicU64) -> bool,
    ) -> Option<u64> {
        for (i, place) in upper.0.iter().enumerate() {
            let base = base + ((i as u64) << (BITS * level));
            let child = place.load(Ordering::Acquire);
            if child.is_null() || base + (1 << (BITS * level)) <= pages.start {
                continue;
            }
            if base >= pages.end {
                break;
            }
            let found = if level > 1 {
                // SAFETY: higher levels point to upper nodes, which live as long as the index.
                Self::each_below(unsafe { &*child.cast::<Upper>() }, level - 1, base, pages, f)
            } else {
                // SAFETY: level 1 points to leaves, which live as long as the index.
                let leaf = unsafe { &*child.cast::<Leaf>() };
                let mut words = (base..).zip(&leaf.words).filter(|(page, _)| pages.contains(page));
                words.find_map(|(page, word)| f(page, word).then_some(page))
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Frees the nodes below `upper`, and returns their size in bytes.
    fn free(upper: &Upper, level: u32) -> usize {
        let mut bytes = 0;
        for place in &upper.0 {
            let child = place.load(Ordering::Relaxed);
            if child.is_null() {
                continue;
            }
            if level > 1 {
                // SAFETY: only Drop calls this. The node is no longer in use, and came from a Box.
                let child = unsafe { Box::from_raw(child.cast::<Upper>()) };
                bytes += size_of::<Upper>() + Self::free(&child, level - 1);
            } else {
                // SAFETY: as above.
                drop(unsafe { Box::from_raw(child.cast::<Leaf>()) });
                bytes += size_of::<Leaf>();
            }
        }
        bytes
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.sections.uncharge(Self::free(&self.root, UPPER_LEVELS));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_again() {
        let index = Index::new(Arc::new(Sections::new()));
        assert!(index.get(5).is_none() && index.get(PAGES).is_none());
        for page in [0, 5, 511, 512, 1 << 20, PAGES - 1] {
            index.make(page).unwrap().store(page + 1, Ordering::Relaxed);
        }
        let mut seen = alloc::vec::Vec::new();
        index.each(5..PAGES, &mut |page, word| {
            if word.load(Ordering::Relaxed) != 0 {
                seen.push(page);
            }
        });
        assert_eq!(seen, [5, 511, 512, 1 << 20, PAGES - 1]);
        assert_eq!(index.get(512).map(|word| word.load(Ordering::Relaxed)), Some(513));
    }
    #[test]
    fn tagged_pages_are_found() {
        let index = Index::new(Arc::new(Sections::new()));
        let pages = [0, 63, 64, 511, 512, 1 << 20];
        for page in pages {
            index.make(page).unwrap();
            index.tag(page, Tag::Dirty);
        }
        let all = |from| {
            let mut from = from;
            let next = || {
                let found = index.next_tagged(from..PAGES, Tag::Dirty)?;
                from = found + 1;
                Some(found)
            };
            core::iter::from_fn(next).collect::<alloc::vec::Vec<_>>()
        };
        assert_eq!(all(0), pages);
        assert_eq!(index.next_tagged(65..511, Tag::Dirty), None);
        assert_eq!(index.next_tagged(0..PAGES, Tag::Writing), None);
        index.untag(64, Tag::Dirty);
        assert!(!index.is_tagged(64, Tag::Dirty) && index.is_tagged(63, Tag::Dirty));
        assert_eq!(all(1), [63, 511, 512, 1 << 20]);
    }
}
