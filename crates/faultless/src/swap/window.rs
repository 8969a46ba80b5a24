//! The window of a thread's read-ahead in swap space: how many pages a fault reads, and on which side.
//!
//! ```text
//!            the run that was read last, of `length` pages
//!  ... [ ] [x][x][x][x] [ ] ...          a fault in the run or next to it: the window doubles
//!       │                │               a page of the run was used meanwhile: the window doubles
//!       └─ down          └─ up           neither: the window halves
//! ```
//! A window of one page reads nothing ahead, so random reads read only what they need.

use crate::sync::plain::{AtomicU64, Ordering};
use core::ops::Range;

/// The most pages of a window, with the page of the fault.
pub(crate) const MOST: u64 = 8;

/// The window of one thread: the last run, its direction, the window's size, and the number of pages read ahead that the thread has
/// used since. One word, which its thread alone writes.
#[derive(Debug, Default)]
pub(crate) struct Window(AtomicU64);

const PAGE: u64 = (1 << 44) - 1;
const LENGTH: u32 = 44;
const SIZE: u32 = 48;
const DOWN: u64 = 1 << 52;
const HIT: u64 = 1 << 53;

impl Window {
    /// Notes that the thread has used a page that was read ahead.
    pub fn hit(&self) {
        self.0.store(self.0.load(Ordering::Relaxed) | HIT, Ordering::Relaxed);
    }

    /// Returns the pages that a fault at `page`, which has to read, reads: `page` and those that follow or precede it. All of them
    /// lie in `limits`, which contains `page`. If `is_sequential`, they are as many as there can be.
    pub fn plan(&self, page: u64, limits: Range<u64>, is_sequential: bool) -> Range<u64> {
        let old = self.0.load(Ordering::Relaxed);
        let (first, length) = (old & PAGE, old >> LENGTH & 15);
        // Enough bits: a page number that is cut may only spoil a guess.
        let here = page & PAGE;
        let is_near = length > 0 && here + 1 >= first && here <= first + length;
        let size = (old >> SIZE & 15).max(1);
        let size = match is_near || old & HIT != 0 {
            _ if is_sequential => MOST,
            true => (size * 2).min(MOST),
            false => (size / 2).max(1),
        };
        let is_down = if is_near { here < first || here < first + length && old & DOWN != 0 } else { false };
        let pages = if is_down {
            (page + 1).saturating_sub(size).max(limits.start)..page + 1
        } else {
            page..(page + size).min(limits.end)
        };
        let direction = if is_down { DOWN } else { 0 };
        let run = pages.start & PAGE | (pages.end - pages.start) << LENGTH;
        self.0.store(run | size << SIZE | direction, Ordering::Relaxed);
        pages
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const ALL: Range<u64> = 0..1 << 40;

    #[test]
    fn a_run_upwards_doubles_the_window() {
        let window = Window::default();
        let mut next = 100;
        let runs: Vec<_> = (0..6)
            .map(|_| {
                let run = window.plan(next, ALL, false);
                assert_eq!(run.start, next);
                next = run.end;
                run.end - run.start
            })
            .collect();
        assert_eq!(runs, [1, 2, 4, 8, 8, 8]);
    }

    #[test]
    fn a_run_downwards_too() {
        let window = Window::default();
        let mut next = 1000;
        for length in [1, 2, 4, 8, 8] {
            assert_eq!(window.plan(next, ALL, false), next + 1 - length..next + 1);
            next -= length;
        }
        assert_eq!(window.plan(2, ALL, false).end - window.plan(2, ALL, false).start, 4, "far away");
    }

    #[test]
    fn pages_far_apart_halve_it_and_hits_double_it() {
        let window = Window::default();
        assert_eq!(window.plan(50, ALL, true), 50..58);
        assert_eq!(window.plan(500, ALL, false), 500..504);
        window.hit();
        assert_eq!(window.plan(5000, ALL, false), 5000..5008);
        let sizes = [10, 1000, 20, 2000].map(|page| window.plan(page, ALL, false).count());
        assert_eq!(sizes, [4, 2, 1, 1]);
    }

    #[test]
    fn a_window_ends_with_the_leaf_table_or_the_mapping() {
        let window = Window::default();
        assert_eq!(window.plan(510, 300..512, true), 510..512);
        assert_eq!(window.plan(512, 512..514, true), 512..514);
        assert_eq!(window.plan(511, 510..512, true), 510..512, "downwards");
    }
}
