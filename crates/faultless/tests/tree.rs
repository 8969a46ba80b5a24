//! The tree beside real threads, and without memory.
#![cfg(not(loom))]

use faultless::address::{PageNumber, PageRange};
use faultless::host::{FenceBarrier, StdPark, StdSlots};
use faultless::sync::{Life, OutOfMemory, Park, RetiredList, Sections};
use faultless::vma::tree::{Ranged, Tree, View, Writer};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The system's allocator, which fails once when a thread has so many allocations behind it.
struct Failing;

thread_local! {
    static UNTIL_FAILURE: Cell<Option<u32>> = const { Cell::new(None) };
}

// SAFETY: the system's allocator, or no memory.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let left = UNTIL_FAILURE.get();
        UNTIL_FAILURE.set(left.and_then(|n| n.checked_sub(1)));
        if left == Some(0) {
            return std::ptr::null_mut();
        }
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// The value of a freed item, for a thread that reads it all the same.
const FREED: u64 = u64::MAX;

struct Item {
    range: PageRange,
    life: Life,
    /// Start and end, added up; [`FREED`] later.
    sum: u64,
}

// SAFETY: the fields never change.
unsafe impl Ranged for Item {
    fn range(&self) -> PageRange {
        self.range
    }
    fn life(&self) -> &Life {
        &self.life
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        // Volatile: the compiler would leave out a store to a dropped value.
        // SAFETY: its own field.
        unsafe { std::ptr::write_volatile(&mut self.sum, FREED) };
    }
}

fn page(n: u64) -> PageNumber {
    PageNumber::new(n)
}

fn range(start: u64, end: u64) -> PageRange {
    PageRange::new(page(start), page(end)).unwrap()
}

fn item(start: u64, end: u64) -> Box<Item> {
    Box::new(Item { range: range(start, end), life: Life::new(), sum: start + end })
}

fn pairs(view: View<'_, Item>) -> Vec<(u64, u64)> {
    view.from(page(0)).map(|i| (i.range.start().get(), i.range.end().get())).collect()
}

#[expect(clippy::vec_box, reason = "as the tree takes them")]
fn replace_alone(tree: &Tree<Item>, writer: &mut Writer, place: PageRange, mut new: Vec<Box<Item>>) {
    let mut retired = RetiredList::new();
    tree.replace(writer, place, &mut new, &mut retired).unwrap();
    // SAFETY: there are no readers.
    retired.into_iter().for_each(|retired| unsafe { retired.free() });
}

/// Random numbers (an LCG's upper bits).
fn random(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*state >> 33) % below
}

const PAGES: u64 = 4096;

/// The writer splits and merges; every page is covered before and after each change, so it is for each reader.
#[test]
fn readers_beside_a_writer() {
    let (tree, mut writer) = Tree::new();
    replace_alone(&tree, &mut writer, range(0, PAGES), vec![item(0, PAGES)]);
    let (sections, park, done, looks) =
        (Sections::new(), StdPark::default(), AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for seed in 1..=2 {
            let (tree, sections, done, looks) = (&tree, &sections, &done, &looks);
            scope.spawn(move || {
                let mut state = seed;
                while !done.load(Ordering::Relaxed) {
                    // SAFETY: the slot is this thread's.
                    let section = unsafe { sections.enter(StdSlots.current(), &FenceBarrier) };
                    let view = tree.view(&section);
                    let at = page(random(&mut state, PAGES));
                    let found = view.find(at).expect("every page is covered, always");
                    assert!(found.range.contains(at));
                    if let Some(below) = view.before(at) {
                        assert!(below.range.end() <= at);
                        assert_eq!(below.sum, below.range.start().get() + below.range.end().get(), "freed");
                    }
                    let is_whole = random(&mut state, 8) == 0;
                    let mut end = if is_whole { page(0) } else { at };
                    for item in view.from(end).take(if is_whole { usize::MAX } else { 40 }) {
                        assert!(item.range.contains(end), "torn: a hole");
                        end = item.range.end();
                        assert_eq!(item.sum, item.range.start().get() + end.get(), "freed");
                    }
                    assert!(!is_whole || end == page(PAGES));
                    looks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut state = 99;
        let mut changes = 0;
        while changes < 300 || looks.load(Ordering::Relaxed) < 300 {
            changes += 1;
            let start = random(&mut state, PAGES);
            let length = 1 + random(&mut state, if changes % 50 == 0 { PAGES } else { 60 });
            let view = tree.view_locked(&writer);
            let first = view.find(page(start)).unwrap().range;
            let last = view.find(page((start + length).min(PAGES) - 1)).unwrap().range;
            let hull = first.hull(last);
            // Splits the present items into pieces, or merges them.
            let piece = if changes % 3 == 0 { PAGES } else { 1 + random(&mut state, 40) };
            let (mut at, end) = (hull.start().get(), hull.end().get());
            let mut new = Vec::new();
            while at < end {
                let next = (at + piece).min(end);
                new.push(item(at, next));
                at = next;
            }
            let mut retired = RetiredList::new();
            tree.replace(&mut writer, hull, &mut new, &mut retired).unwrap();
            sections.grace(&FenceBarrier, |look| park.spin(look));
            // SAFETY: after a grace period.
            retired.into_iter().for_each(|retired| unsafe { retired.free() });
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Each allocation of a change fails once: nothing has changed, and the items are there again.
#[test]
fn without_memory_nothing_changes() {
    let (tree, mut writer) = Tree::new();
    let all: Vec<_> = (0..2000).map(|n| item(2 * n, 2 * n + 1)).collect();
    replace_alone(&tree, &mut writer, range(0, 4000), all);
    let mut failures = 0;
    for (place, count) in
        [(range(100, 102), 1), (range(100, 200), 3), (range(0, 3000), 800), (range(0, 4000), 0)]
    {
        let new = |count: u64| -> Vec<_> {
            (0..count).map(|n| place.start().get() + n).map(|at| item(at, at + 1)).collect()
        };
        let before = pairs(tree.view_locked(&writer));
        for failing in 0.. {
            let (mut items, mut retired) = (new(count), RetiredList::new());
            UNTIL_FAILURE.set(Some(failing));
            let result = tree.replace(&mut writer, place, &mut items, &mut retired);
            let has_failed = UNTIL_FAILURE.replace(None).is_none();
            match result {
                Err(OutOfMemory) => {
                    assert!(has_failed);
                    failures += 1;
                    assert!(items.iter().map(|item| item.range).eq(new(count).iter().map(|item| item.range)));
                    assert_eq!(pairs(tree.view_locked(&writer)), before);
                }
                Ok(_) => {
                    assert!(!has_failed, "a failure was passed over");
                    // SAFETY: there are no readers.
                    retired.into_iter().for_each(|retired| unsafe { retired.free() });
                    break;
                }
            }
        }
        let after = pairs(tree.view_locked(&writer));
        let kept = before.iter().filter(|pair| !place.contains(page(pair.0))).count();
        assert_eq!(after.len(), kept + count as usize);
    }
    // The first change finds its item's place, and needs none.
    assert!(failures > 20, "{failures}");
    assert!(tree.view_locked(&writer).is_empty());
}
