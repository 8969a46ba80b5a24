//! A file's index: page number to frame, a radix tree of atomic words. Looked up without a lock; nodes live as long as
//! the file, words come and go.

use crate::sync::OutOfMemory;
use crate::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use crate::sync::try_box;
use alloc::boxed::Box;
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

/// Pages that an index can hold: 2^36, or 256 TiB.
pub(super) const PAGES: u64 = 1 << (BITS * (UPPER_LEVELS + 1));

struct Upper([AtomicPtr<()>; FANOUT]);
struct Leaf([AtomicU64; FANOUT]);

impl Upper {
    fn new() -> Self {
        Self(core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())))
    }
}

/// See the module.
pub(super) struct Index {
    root: Upper,
}

impl Index {
    pub(super) fn new() -> Self {
        Self { root: Upper::new() }
    }

    fn place(upper: &Upper, page: u64, level: u32) -> &AtomicPtr<()> {
        &upper.0[(page >> (BITS * level)) as usize % FANOUT]
    }

    /// The word of `page`, if its node exists.
    pub(super) fn get(&self, page: u64) -> Option<&AtomicU64> {
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
                return Some(unsafe { &(*child.cast::<Leaf>()).0[page as usize % FANOUT] });
            }
            // SAFETY: higher levels point to upper nodes, which live as long as `self`.
            upper = unsafe { &*child.cast::<Upper>() };
        }
        None
    }

    /// The word of `page`, its node made if it is missing. `page` is below [`PAGES`].
    pub(super) fn make(&self, page: u64) -> Result<&AtomicU64, OutOfMemory> {
        let mut upper = &self.root;
        for level in (2..=UPPER_LEVELS).rev() {
            let child = Self::make_child(Self::place(upper, page, level), Upper::new)?;
            // SAFETY: higher levels point to upper nodes, which live as long as `self`.
            upper = unsafe { &*child.cast::<Upper>() };
        }
        let leaf = Self::make_child(Self::place(upper, page, 1), || {
            Leaf(core::array::from_fn(|_| AtomicU64::new(0)))
        })?;
        // SAFETY: level 1 points to leaves, which live as long as `self`.
        Ok(unsafe { &(*leaf.cast::<Leaf>()).0[page as usize % FANOUT] })
    }

    fn make_child<T>(place: &AtomicPtr<()>, new: impl FnOnce() -> T) -> Result<*mut (), OutOfMemory> {
        let child = place.load(Ordering::Acquire);
        if !child.is_null() {
            return Ok(child);
        }
        let new = Box::into_raw(try_box(new())?);
        match place.compare_exchange(ptr::null_mut(), new.cast(), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(new.cast()),
            Err(theirs) => {
                // SAFETY: `new` came from a Box just now and nobody else has seen it.
                drop(unsafe { Box::from_raw(new) });
                Ok(theirs)
            }
        }
    }

    /// Calls `f` for every word from page `first` on whose node exists.
    pub(super) fn each_from(&self, first: u64, f: &mut impl FnMut(u64, &AtomicU64)) {
        Self::each(&self.root, UPPER_LEVELS, 0, first, f);
    }

    fn each(upper: &Upper, level: u32, base: u64, first: u64, f: &mut impl FnMut(u64, &AtomicU64)) {
        for (i, place) in upper.0.iter().enumerate() {
            let base = base + ((i as u64) << (BITS * level));
            let child = place.load(Ordering::Acquire);
            if child.is_null() || base + (1 << (BITS * level)) <= first {
                continue;
            }
            if level > 1 {
                // SAFETY: higher levels point to upper nodes, which live as long as the index.
                Self::each(unsafe { &*child.cast::<Upper>() }, level - 1, base, first, f);
                continue;
            }
            // SAFETY: level 1 points to leaves, which live as long as the index.
            let leaf = unsafe { &*child.cast::<Leaf>() };
            for (i, word) in leaf.0.iter().enumerate() {
                if base + i as u64 >= first {
                    f(base + i as u64, word);
                }
            }
        }
    }

    fn free(upper: &Upper, level: u32) {
        for place in &upper.0 {
            let child = place.load(Ordering::Relaxed);
            if child.is_null() {
                continue;
            }
            if level > 1 {
                // SAFETY: only Drop calls this: the node is used no more, and came from a Box.
                let child = unsafe { Box::from_raw(child.cast::<Upper>()) };
                Self::free(&child, level - 1);
            } else {
                // SAFETY: as above.
                drop(unsafe { Box::from_raw(child.cast::<Leaf>()) });
            }
        }
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        Self::free(&self.root, UPPER_LEVELS);
    }
}

#[cfg(all(test, not(loom), not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_again() {
        let index = Index::new();
        assert!(index.get(5).is_none() && index.get(PAGES).is_none());
        for page in [0, 5, 511, 512, 1 << 20, PAGES - 1] {
            index.make(page).unwrap().store(page + 1, Ordering::Relaxed);
        }
        let mut seen = alloc::vec::Vec::new();
        index.each_from(5, &mut |page, word| {
            if word.load(Ordering::Relaxed) != 0 {
                seen.push(page);
            }
        });
        assert_eq!(seen, [5, 511, 512, 1 << 20, PAGES - 1]);
        assert_eq!(index.get(512).map(|word| word.load(Ordering::Relaxed)), Some(513));
    }
}
