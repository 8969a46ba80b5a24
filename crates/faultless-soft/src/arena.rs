//! The bytes of physical memory: pages of one allocation. Who may use which page is the business of whoever uses it.

use faultless::address::PAGE_SIZE;
use faultless::sync::plain::{AtomicU64, Ordering};
use std::alloc::Layout;
use std::ptr::NonNull;

pub(crate) const PAGE: usize = PAGE_SIZE as usize;

/// Fills free pages in debug builds, so that old bytes do not pass for zeros.
pub(crate) const POISON: u8 = 0xa5;

/// One allocation, page-aligned inside.
pub(crate) struct Arena {
    allocation: NonNull<u8>,
    layout: Layout,
    first_page: NonNull<u8>,
    pages: u64,
}

// SAFETY: only memory; who may use which part of it is the business of whoever uses it.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// `pages` pages; `None` if there is no memory for so many.
    pub fn new(pages: u64) -> Option<Self> {
        // A page more, aligned here: the allocator leaves zeroing to the operating system, page by page at the first
        // touch, only for a layout of small alignment.
        let bytes = usize::try_from(pages.checked_add(1)?.checked_mul(PAGE_SIZE)?).ok()?;
        let layout = Layout::from_size_align(bytes, align_of::<u64>()).ok()?;
        // SAFETY: the layout has a size.
        let allocation = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        let gap = allocation.align_offset(PAGE);
        debug_assert!(gap < PAGE);
        // SAFETY: less than a page, and there is a page more than `pages`.
        let first_page = unsafe { allocation.add(gap) };
        Some(Self { allocation, layout, first_page, pages })
    }

    /// Where byte `offset` of a page is. Checked in release builds too: anybody can make a `Frame`.
    fn address(&self, page: u64, offset: u64) -> NonNull<u8> {
        assert!(page < self.pages && offset < PAGE_SIZE, "frame {page} offset {offset}");
        // SAFETY: inside the arena, by the assertion.
        unsafe { self.first_page.add(page as usize * PAGE + offset as usize) }
    }

    /// Where a page begins.
    pub fn page(&self, page: u64) -> NonNull<u8> {
        self.address(page, 0)
    }

    /// The word that has byte `offset` of the page in it.
    #[inline]
    pub fn word(&self, page: u64, offset: u64) -> &AtomicU64 {
        let word = self.address(page, offset & !7).cast::<u64>();
        // SAFETY: aligned and inside the arena, which lives as long as `self`. All accesses of guests are atomic and of
        // this size; the others (poison, zero, copy, stores' transfers) are by whoever has the page alone.
        unsafe { AtomicU64::from_ptr(word.as_ptr()) }
    }

    /// In debug builds: spoils what is in a page that nobody has.
    pub fn poison(&self, page: u64) {
        if cfg!(debug_assertions) {
            // SAFETY: a page of the arena, which nobody else has.
            unsafe { self.page(page).write_bytes(POISON, PAGE) };
        }
    }

    /// Fills a page with zeros, which the caller has alone.
    pub fn zero(&self, page: u64) {
        // SAFETY: a page of the arena, which the caller has alone.
        unsafe { self.page(page).write_bytes(0, PAGE) };
    }

    /// Copies a page that nobody writes to another one, which the caller has alone.
    pub fn copy(&self, from: u64, to: u64) {
        assert_ne!(from, to);
        let (from, to) = (self.page(from), self.page(to));
        // SAFETY: two pages of the arena; the caller has `to` alone, and nobody writes `from`.
        unsafe { to.copy_from_nonoverlapping(from, PAGE) };
    }

    /// Copies bytes out of a page that others may be using, up to its end. Returns how many.
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
            // Acquire, and a store's Release: as with whole words.
            let word = self.word(page, at).load(Ordering::Acquire).to_ne_bytes();
            let now = (count - done).min(8 - within);
            bytes[done..done + now].copy_from_slice(&word[within..within + now]);
            done += now;
        }
        count
    }

    /// Copies bytes into a page that others may be using, up to its end. Returns how many.
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
                // The whole word at once: atomic accesses of different sizes to the same bytes must not meet.
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

/// How many bytes a copy of `length` bytes moves that begins at `offset` in a page.
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
        // Only what the page has.
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
