//! The bytes of physical memory: the pages of one allocation. The callers decide who may use a page.

use faultless::address::PAGE_SIZE;
use faultless::sync::plain::{AtomicU64, Ordering};
use std::alloc::Layout;
use std::ptr::NonNull;

pub(crate) const PAGE: usize = PAGE_SIZE as usize;

/// Fills free pages in debug builds, so that old bytes do not pass for zeros.
pub(crate) const POISON: u8 = 0xa5;

/// The pages of one allocation, page-aligned inside it.
pub(crate) struct Arena {
    allocation: NonNull<u8>,
    layout: Layout,
    first_page: NonNull<u8>,
    pages: u64,
}

// SAFETY: it is only memory. Its users decide which thread may use which part.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Makes an arena of `pages` pages. Returns `None` if there is not enough memory.
    pub fn new(pages: u64) -> Option<Self> {
        // One page more, and the alignment is done here. The allocator leaves zeroing to the operating system, page by
        // page at the first touch, only for a layout of small alignment.
        let bytes = usize::try_from(pages.checked_add(1)?.checked_mul(PAGE_SIZE)?).ok()?;
        let layout = Layout::from_size_align(bytes, align_of::<u64>()).ok()?;
        // SAFETY: the layout has a size.
        let allocation = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        let gap = allocation.align_offset(PAGE);
        debug_assert!(gap < PAGE);
        // SAFETY: the gap is less than a page, and the allocation is a page longer than `pages`.
        let first_page = unsafe { allocation.add(gap) };
        Some(Self { allocation, layout, first_page, pages })
    }

    /// Returns the address of byte `offset` of a page. Checks its arguments in release builds too, since any code can
    /// make a `Frame`.
    fn address(&self, page: u64, offset: u64) -> NonNull<u8> {
        assert!(page < self.pages && offset < PAGE_SIZE, "frame {page} offset {offset}");
        // SAFETY: inside the arena, by the assertion.
        unsafe { self.first_page.add(page as usize * PAGE + offset as usize) }
    }

    /// Returns the first address of a page.
    pub fn page(&self, page: u64) -> NonNull<u8> {
        self.address(page, 0)
    }

    /// Returns the word that contains byte `offset` of the page.
    #[inline]
    pub fn word(&self, page: u64, offset: u64) -> &AtomicU64 {
        let word = self.address(page, offset & !7).cast::<u64>();
        // SAFETY: aligned and inside the arena, which lives as long as `self`. All accesses of guests are atomic and of
        // this size. The others (poison, zero, copy, transfers of stores) are made by code that uses the page alone.
        unsafe { AtomicU64::from_ptr(word.as_ptr()) }
    }

    /// Overwrites a free page, in debug builds.
    pub fn poison(&self, page: u64) {
        if cfg!(debug_assertions) {
            // SAFETY: a page of the arena that no other code uses.
            unsafe { self.page(page).write_bytes(POISON, PAGE) };
        }
    }

    /// Fills a page with zeros. Only the caller may use the page meanwhile.
    pub fn zero(&self, page: u64) {
        // SAFETY: a page of the arena that only the caller uses.
        unsafe { self.page(page).write_bytes(0, PAGE) };
    }

    /// Copies page `from` to page `to`. No thread may write `from`, and only the caller may use `to`.
    pub fn copy(&self, from: u64, to: u64) {
        assert_ne!(from, to);
        let (from, to) = (self.page(from), self.page(to));
        // SAFETY: two pages of the arena; only the caller uses `to`, and no thread writes `from`.
        unsafe { to.copy_from_nonoverlapping(from, PAGE) };
    }

    /// Copies bytes out of a page that other threads may be using, up to its end. Returns the number of bytes.
    pub fn read(&self, page: u64, offset: usize, bytes: &mut [u8]) -> usize {
        let count = inside_page(offset, bytes.len());
        let mut done = 0;
        if offset.is_multiple_of(8) {
            for whole in bytes[..count].as_chunks_mut().0 {
                *whole = self.word(page, (offset + done) as u64).load(Ordering::Acquire).to_ne_bytes();
                done += whole.len();
            }
        }
        while done < count {
            let (at, within) = ((offset + done) as u64, (offset + done) % 8);
            // Acquire here and Release in a store, as with whole words.
            let word = self.word(page, at).load(Ordering::Acquire).to_ne_bytes();
            let now = (count - done).min(8 - within);
            bytes[done..done + now].copy_from_slice(&word[within..within + now]);
            done += now;
        }
        count
    }

    /// Copies bytes into a page that other threads may be using, up to its end. Returns the number of bytes.
    pub fn write(&self, page: u64, offset: usize, bytes: &[u8]) -> usize {
        let count = inside_page(offset, bytes.len());
        let mut done = 0;
        if offset.is_multiple_of(8) {
            for whole in bytes[..count].as_chunks().0 {
                let word = self.word(page, (offset + done) as u64);
                word.store(u64::from_ne_bytes(*whole), Ordering::Release);
                done += whole.len();
            }
        }
        while done < count {
            let (at, within) = ((offset + done) as u64, (offset + done) % 8);
            let part = &bytes[done..count.min(done + 8 - within)];
            let word = self.word(page, at);
            if let Ok(whole) = part.try_into() {
                word.store(u64::from_ne_bytes(whole), Ordering::Release);
            } else {
                // The whole word at once: atomic accesses of different sizes must not be made to the same bytes at a
                // time.
                let splice = |old: u64| {
                    let mut all = old.to_ne_bytes();
                    all[within..within + part.len()].copy_from_slice(part);
                    Some(u64::from_ne_bytes(all))
                };
                let _always_ok = word.fetch_update(Ordering::Release, Ordering::Relaxed, splice);
            }
            done += part.len();
        }
        count
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { std::alloc::dealloc(self.allocation.as_ptr(), self.layout) }
    }
}

/// Returns the number of bytes that a copy of `length` bytes moves if it begins at `offset` in a page.
fn inside_page(offset: usize, length: usize) -> usize {
    length.min(PAGE.saturating_sub(offset))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn bytes_at_any_place() {
        let arena = Arena::new(1).unwrap();
        let mut expected = [0u8; PAGE];
        for (round, (offset, length)) in
            [(0, 8), (3, 2), (5, 11), (4091, 5), (16, 0), (7, 4089), (9, 1)].into_iter().enumerate()
        {
            let bytes = vec![round as u8 + 1; length];
            assert_eq!(arena.write(0, offset, &bytes), length);
            expected[offset..offset + length].copy_from_slice(&bytes);
            let mut all = [0; PAGE];
            arena.read(0, 0, &mut all);
            assert_eq!(all, expected);
            let mut some = vec![0; length];
            arena.read(0, offset, &mut some);
            assert_eq!(some, bytes);
        }
        // A copy ends at the end of the page.
        assert_eq!(arena.write(0, PAGE - 3, &[9; 8]), 3);
        assert_eq!(arena.read(0, PAGE - 1, &mut [0; 8]), 1);
        assert_eq!(arena.read(0, PAGE, &mut [0; 8]), 0);
        assert_eq!(arena.write(0, usize::MAX, &[0; 8]), 0);
    }

    #[test]
    #[should_panic(expected = "frame 1")]
    fn no_page_behind_the_last() {
        Arena::new(1).unwrap().page(1);
    }
}
