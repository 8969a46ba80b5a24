//! The tree under loom: a node that a reader can still reach is not freed, and a reader sees all of a change or nothing.
#![cfg(loom)]

use faultless::address::{PageNumber, PageRange};
use faultless::sync::{FenceBarrier, Life, QuiescentStates, RetiredList, Section, Sections, SlotIndex};
use faultless::vma::tree::{Ranged, Tree, Unchanged, View, Writer, Writers};
use loom::sync::Arc;
use loom::thread;

struct Item {
    range: PageRange,
    life: Life,
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

fn range(start: u64, end: u64) -> PageRange {
    PageRange::new(PageNumber::new(start), PageNumber::new(end)).unwrap()
}

fn items(ranges: &[(u64, u64)]) -> Vec<Box<Item>> {
    ranges
        .iter()
        .map(|&(start, end)| Box::new(Item { range: range(start, end), life: Life::new() }))
        .collect()
}

const END: u64 = 6;

/// Pages 0..6 are covered before, between and after the changes.
fn read(view: View<'_, Item>, page: u64) {
    let page = PageNumber::new(page);
    let item = view.find(page).expect("every page is covered, always");
    assert!(item.range().contains(page));
    let mut at = PageNumber::new(0);
    for item in view.from(at) {
        assert!(item.range().contains(at), "torn: a hole");
        at = item.range().end();
    }
    assert_eq!(at.get(), END);
}

fn replace(tree: &Tree<Item>, writer: &mut Writer, place: PageRange, new: &[(u64, u64)]) -> RetiredList {
    let mut retired = RetiredList::new();
    tree.replace(writer, place, &mut items(new), &mut retired).unwrap();
    retired
}

/// Two readers; a writer that splits the present items (leaves and root), merges it again, and frees after each.
#[test]
fn readers_beside_a_writer() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let (tree, mut writer) = Tree::new();
        drop(replace(&tree, &mut writer, range(0, END), &[(0, 2), (2, END)]));
        let shared = Arc::new((tree, Sections::new()));
        let readers: Vec<_> = (1..=2)
            .map(|slot| {
                let shared = shared.clone();
                thread::spawn(move || {
                    // SAFETY: one thread a slot.
                    let section = unsafe { shared.1.enter(SlotIndex::new(slot).unwrap(), &FenceBarrier) };
                    read(shared.0.view(&section), 2 + u64::from(slot));
                })
            })
            .collect();
        let changes: [(PageRange, &[(u64, u64)]); 2] =
            [(range(2, END), &[(2, 4), (4, END)]), (range(0, END), &[(0, END)])];
        for (place, new) in changes {
            let retired = replace(&shared.0, &mut writer, place, new);
            shared.1.grace(&FenceBarrier, |_| thread::yield_now());
            // SAFETY: after a grace period.
            retired.into_iter().for_each(|retired| unsafe { retired.free() });
        }
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        read(shared.0.view_locked(&writer), 0);
    });
}

/// The same with a writer that does not wait. One of its later calls frees its retired nodes, when it finds that the
/// grace period has passed. Here each call looks.
#[test]
fn readers_beside_a_writer_that_does_not_wait() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let (tree, mut writer) = Tree::new();
        drop(replace(&tree, &mut writer, range(0, END), &[(0, 2), (2, END)]));
        let shared = Arc::new((tree, Sections::new()));
        let reader = {
            let shared = shared.clone();
            thread::spawn(move || {
                // SAFETY: one thread a slot.
                let section = unsafe { shared.1.enter(SlotIndex::new(1).unwrap(), &FenceBarrier) };
                read(shared.0.view(&section), 3);
            })
        };
        let changes: [(PageRange, &[(u64, u64)]); 3] = [
            (range(2, END), &[(2, 4), (4, END)]),
            (range(0, END), &[(0, END)]),
            (range(0, END), &[(0, 3), (3, END)]),
        ];
        for (place, new) in changes {
            let mut things = replace(&shared.0, &mut writer, place, new);
            // SAFETY: readers enter by these sections, with this barrier.
            unsafe { shared.1.retire((SlotIndex::new(0).unwrap(), ()), &FenceBarrier, &mut things) }.unwrap();
        }
        reader.join().unwrap();
        read(shared.0.view_locked(&writer), 0);
    });
}

/// A reader whose sections are not marked: it says when it is in none, and in the end that it is offline.
#[test]
fn a_reader_with_quiescent_states_beside_a_writer() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let (tree, mut writer) = Tree::new();
        drop(replace(&tree, &mut writer, range(0, END), &[(0, 2), (2, END)]));
        let shared = Arc::new((tree, Sections::new()));
        let reader = {
            let shared = shared.clone();
            thread::spawn(move || {
                let slot = SlotIndex::new(1).unwrap();
                for page in [1, 3] {
                    {
                        // SAFETY: one thread a slot.
                        let section = unsafe { shared.1.enter(slot, &QuiescentStates) };
                        read(shared.0.view(&section), page);
                    }
                    // SAFETY: in no section.
                    unsafe { shared.1.quiescent(slot) };
                }
                // SAFETY: in no section.
                unsafe { shared.1.offline(slot) };
            })
        };
        let changes: [&[(u64, u64)]; 2] = [&[(0, 2), (2, 4), (4, END)], &[(0, END)]];
        for new in changes {
            let retired = replace(&shared.0, &mut writer, range(0, END), new);
            shared.1.grace(&QuiescentStates, |_| thread::yield_now());
            // SAFETY: after a grace period.
            retired.into_iter().for_each(|retired| unsafe { retired.free() });
        }
        reader.join().unwrap();
        read(shared.0.view_locked(&writer), 0);
    });
}

/// A tree with several writers.
struct Common {
    tree: Tree<Item>,
    writers: Writers,
    sections: Sections,
}

impl Common {
    fn section(&self, slot: u32) -> Section<'_> {
        // SAFETY: one thread a slot.
        unsafe { self.sections.enter(SlotIndex::new(slot).unwrap(), &FenceBarrier) }
    }

    /// Puts `new` into the place, beside other writers. Frees nothing: two writers that wait for readers would block them here.
    fn replace(&self, slot: u32, place: PageRange, new: &[(u64, u64)]) -> RetiredList {
        let (mut new, mut retired) = (items(new), RetiredList::new());
        loop {
            let section = self.section(slot);
            // SAFETY: each thread of a model has places of its own, and all enter by `sections`.
            let done =
                unsafe { self.tree.replace_beside(&self.writers, &section, place, &mut new, &mut retired) };
            drop(section);
            match done {
                Ok(_) => return retired,
                Err(Unchanged::Contended) => thread::yield_now(),
                Err(Unchanged::OutOfMemory(error)) => panic!("{error}"),
            }
        }
    }
}

type Ranges = &'static [(u64, u64)];

fn ranges(view: View<'_, Item>) -> Vec<(u64, u64)> {
    let all = view.from(PageNumber::new(0)).map(|item| item.range());
    all.map(|range| (range.start().get(), range.end().get())).collect()
}

/// Makes each change in a thread of its own. Afterwards the tree must have the ranges `after`.
fn side_by_side(changes: [(PageRange, Ranges); 2], after: Ranges) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(move || {
        let (tree, mut writer) = Tree::new();
        // Two leaves.
        drop(replace(&tree, &mut writer, range(0, END), &[(0, 2), (2, 4), (4, END)]));
        let common = Arc::new(Common { tree, writers: writer.share(), sections: Sections::new() });
        let threads: Vec<_> = (1..)
            .zip(changes)
            .map(|(slot, (place, new))| {
                let common = common.clone();
                thread::spawn(move || common.replace(slot, place, new))
            })
            .collect();
        let section = common.section(0);
        let seen = ranges(common.tree.view(&section));
        drop(section);
        // Of each change all is seen or nothing.
        for (place, new) in changes {
            let inside = |&(start, end): &(u64, u64)| place.covers(range(start, end));
            let seen: Vec<_> = seen.iter().copied().filter(inside).collect();
            let old = (place.start().get(), place.end().get());
            assert!(seen == [old] || seen == new, "{seen:?} in {place}");
        }
        let retired: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        // SAFETY: no other thread is left.
        retired.into_iter().for_each(|retired| unsafe { retired.free() });
        let section = common.section(0);
        assert_eq!(ranges(common.tree.view(&section)), after, "a change was lost");
    });
}

#[test]
fn writers_of_different_leaves() {
    let changes: [(_, Ranges); 2] = [(range(0, 2), &[(0, 2)]), (range(4, END), &[(4, 5), (5, END)])];
    side_by_side(changes, &[(0, 2), (2, 4), (4, 5), (5, END)]);
}

#[test]
fn writers_in_one_leaf() {
    let changes: [(_, Ranges); 2] = [(range(0, 2), &[(0, 2)]), (range(2, 4), &[(2, 4)])];
    side_by_side(changes, &[(0, 2), (2, 4), (4, END)]);
}

/// Each puts a copy of the leaf, with its own change, in the leaf's place.
#[test]
fn writers_that_copy_one_leaf() {
    let changes: [(_, Ranges); 2] = [(range(0, 2), &[(0, 1)]), (range(2, 4), &[(3, 4)])];
    side_by_side(changes, &[(0, 1), (3, 4), (4, END)]);
}

#[test]
fn a_writer_beside_a_change_of_shape() {
    let changes: [(_, Ranges); 2] = [(range(0, 2), &[(0, 1), (1, 2)]), (range(2, 4), &[(2, 4)])];
    side_by_side(changes, &[(0, 1), (1, 2), (2, 4), (4, END)]);
}
