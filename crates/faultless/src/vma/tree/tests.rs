//! Tests of the tree against a model: a sorted map, searched from end to end.

use super::leaf::ITEMS;
use super::node::{CHILDREN, Link, NodeRef, Summary};
use super::{Ranged, Tree, Unchanged, View, Writer};
use crate::address::{PageNumber, PageRange};
use crate::host::StdSlots;
use crate::sync::{FenceBarrier, Life, RetiredList, Sections};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

struct Item {
    range: PageRange,
    life: Life,
    /// Counts the items that are not freed.
    _alive: Arc<()>,
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

fn page(n: u64) -> PageNumber {
    PageNumber::new(n)
}

fn range(start: u64, end: u64) -> PageRange {
    PageRange::new(page(start), page(end)).unwrap()
}

fn item(start: u64, end: u64, alive: &Arc<()>) -> Box<Item> {
    Box::new(Item { range: range(start, end), life: Life::new(), _alive: alive.clone() })
}

fn pair(item: &Item) -> (u64, u64) {
    (item.range.start().get(), item.range.end().get())
}

/// Asserts the rules of every node in the span, and returns the summary of the items under it.
fn check(link: Link<'_, Item>, (base, end): (PageNumber, u64), height: Option<usize>) -> Summary {
    let is_root = height.is_none();
    let (len, minimum, capacity, sum) = match link.node() {
        NodeRef::Leaf(leaf) => {
            assert_eq!(height.unwrap_or(0), 0);
            let held: Vec<_> = leaf.live(base, 0..leaf.len()).collect();
            held.windows(2).for_each(|pair| assert!(pair[0].end <= pair[1].start));
            assert!(held.iter().all(|held| held.start >= base && held.end.get() <= end));
            (held.len(), 1.max(ITEMS / 4), ITEMS, Summary::of(held.iter().map(|held| held.summary())))
        }
        NodeRef::Inner(inner) => {
            let body = inner.body;
            assert_eq!(height.unwrap_or(body.height()), body.height());
            assert_eq!(inner.start(base, 0), base, "spans leave nothing out");
            let sums: Vec<_> = (0..body.len())
                .map(|i| {
                    let start = inner.start(base, i);
                    assert_eq!(inner.place(start.get() - base.get()), i);
                    let end = if i + 1 < body.len() { inner.start(base, i + 1).get() } else { end };
                    let sum = check(body.child(i), (start, end), Some(body.height() - 1));
                    let said = body.sum(i);
                    assert_eq!((said.start, said.end), (sum.start, sum.end));
                    assert!(said.gap >= sum.gap, "a hole would not be found");
                    sum
                })
                .collect();
            let sum = Summary::of(sums.into_iter());
            assert!(body.gap() >= sum.gap, "a hole would not be found");
            (body.len(), CHILDREN / 4, CHILDREN, sum)
        }
    };
    let minimum = if is_root { 1 + usize::from(matches!(link.node(), NodeRef::Inner(_))) } else { minimum };
    assert!((minimum..=capacity).contains(&len), "{len} places");
    sum
}

/// A tree and the items that it should hold.
struct Twin {
    tree: Tree<Item>,
    writer: Writer,
    model: BTreeMap<u64, u64>,
    alive: Arc<()>,
}

impl Twin {
    fn new() -> Self {
        let (tree, writer) = Tree::new();
        Self { tree, writer, model: BTreeMap::new(), alive: Arc::new(()) }
    }

    fn view(&self) -> View<'_, Item> {
        self.tree.view_locked(&self.writer)
    }

    fn replace(&mut self, place: PageRange, new: &[(u64, u64)]) {
        let items = new.iter().map(|&(start, end)| item(start, end, &self.alive));
        let (mut items, mut retired): (Vec<_>, _) = (items.collect(), RetiredList::new());
        self.tree.replace(&mut self.writer, place, &mut items, &mut retired).unwrap();
        assert!(items.is_empty());
        // SAFETY: there are no readers.
        retired.into_iter().for_each(|retired| unsafe { retired.free() });
        while let Some((&start, _)) = self.model.range(place.start().get()..place.end().get()).next() {
            self.model.remove(&start);
        }
        self.model.extend(new.iter().copied());
    }

    /// Changes the tree like munmap or MAP_FIXED: items that straddle the ends of `place` are cut, and `new` comes between.
    fn carve(&mut self, place: PageRange, new: &[(u64, u64)]) {
        let (start, end) = (place.start().get(), place.end().get());
        let hit = |&(s, e): &(u64, u64)| s < end && e > start;
        let all: Vec<_> = self.model.iter().map(|(&s, &e)| (s, e)).filter(hit).collect();
        let hull = all.iter().fold(place, |hull, &(s, e)| hull.hull(range(s, e)));
        let below = all.first().filter(|cut| cut.0 < start).map(|cut| (cut.0, start));
        let above = all.last().filter(|cut| cut.1 > end).map(|cut| (end, cut.1));
        let new: Vec<_> = below.into_iter().chain(new.iter().copied()).chain(above).collect();
        self.replace(hull, &new);
    }

    fn check_structure(&self) {
        let view = self.view();
        assert_eq!(view.is_empty(), self.model.is_empty());
        assert_eq!(Arc::strong_count(&self.alive) - 1, self.model.len());
        view.root.map(|root| check(root, (page(0), u64::MAX), None));
        assert!(view.from(page(0)).map(pair).eq(self.model.iter().map(|(&s, &e)| (s, e))));
    }

    fn check_look_ups(&self, at: u64) {
        let view = self.view();
        let found = self.model.range(..=at).next_back().filter(|(_, end)| **end > at);
        assert_eq!(view.find(page(at)).map(pair), found.map(|(&s, &e)| (s, e)), "find {at}");
        let first = self.model.iter().find(|(_, end)| **end > at);
        assert_eq!(view.from(page(at)).next().map(pair), first.map(|(&s, &e)| (s, e)), "from {at}");
        let last = self.model.range(..at).rev().find(|(_, end)| **end <= at);
        assert_eq!(view.before(page(at)).map(pair), last.map(|(&s, &e)| (s, e)), "before {at}");
    }

    fn check_gap(&self, pages: u64, within: PageRange) {
        let mut low = within.start().get();
        let mut found = None;
        let holes = self.model.iter().map(|(&s, &e)| (s, e)).chain([(u64::MAX, u64::MAX)]);
        for (start, end) in holes {
            let high = start.min(within.end().get());
            if low + pages <= high {
                found = Some(page(high - pages));
            }
            low = low.max(end);
        }
        assert_eq!(self.tree.highest_gap(&self.writer, pages, within), found, "{pages} pages in {within}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Cuts out a range, and puts in items. Each item is a hole and a length in pages; as many are put in as fit.
    Carve { start: u64, pages: u64, new: Vec<(u64, u64)> },
    /// Puts one item in the place of all items that touch the range.
    Merge { start: u64, pages: u64 },
    /// Takes out all items that touch the range.
    Clear { start: u64, pages: u64 },
}

const SPAN: u64 = 2000;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = || (0..SPAN, prop_oneof![3 => 1..8u64, 2 => 1..200u64, 1 => 1..SPAN]);
    let items = || {
        prop_oneof![4 => prop::collection::vec((0..3u64, 1..4u64), 0..4),
                               1 => prop::collection::vec((0..3u64, 1..3u64), 0..600)]
    };
    let step = prop_oneof![
        4 => (place(), items()).prop_map(|((start, pages), new)| Step::Carve { start, pages, new }),
        1 => place().prop_map(|(start, pages)| Step::Merge { start, pages }),
        1 => place().prop_map(|(start, pages)| Step::Clear { start, pages }),
    ];
    prop::collection::vec(step, 1..40)
}

fn run(steps: Vec<Step>, looks: &[(u64, u64, u64)]) {
    let mut twin = Twin::new();
    for step in steps {
        match step {
            Step::Carve { start, pages, new } => {
                let (mut at, end) = (start, start + pages);
                let fits = new.into_iter().map_while(|(hole, length)| {
                    let item = (at + hole, at + hole + length);
                    at = item.1;
                    (item.1 <= end).then_some(item)
                });
                let fits: Vec<_> = fits.collect();
                twin.carve(range(start, end), &fits);
            }
            Step::Merge { start, pages } | Step::Clear { start, pages } => {
                let place = range(start, start + pages);
                let all = twin.model.iter().map(|(&s, &e)| range(s, e)).filter(|r| r.overlaps(place));
                let hull = all.fold(place, PageRange::hull);
                let one = (hull.start().get(), hull.end().get());
                twin.replace(
                    hull,
                    if matches!(step, Step::Merge { .. }) { std::slice::from_ref(&one) } else { &[] },
                );
            }
        }
        twin.check_structure();
        for &(at, pages, length) in looks {
            twin.check_look_ups(at);
            twin.check_gap(pages, range(at, at + length));
            twin.check_gap(pages, range(0, 2 * SPAN));
        }
    }
    (0..SPAN + 2).for_each(|at| twin.check_look_ups(at));
    let alive = twin.alive.clone();
    drop(twin);
    assert_eq!(Arc::strong_count(&alive), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn as_the_model(steps in steps(), looks in prop::collection::vec((0..SPAN, 1..40u64, 1..SPAN), 8)) {
        run(steps, &looks);
    }
}

#[test]
fn empty() {
    let mut twin = Twin::new();
    twin.replace(range(0, 9), &[]);
    twin.check_structure();
    twin.check_look_ups(0);
    twin.check_gap(3, range(1, 4));
    twin.check_gap(4, range(1, 4));
    assert_eq!(twin.tree.highest_gap(&twin.writer, 0, range(1, 4)), None);
}

#[test]
fn the_ends_of_the_numbers() {
    let mut twin = Twin::new();
    let top = (u64::MAX >> 12) + 1;
    twin.replace(range(0, top), &[(0, 1), (top - 1, top)]);
    twin.check_structure();
    for at in [0, 1, top - 2, top - 1, top, u64::MAX] {
        twin.check_look_ups(at);
    }
    twin.check_gap(top - 2, range(0, top));
    twin.check_gap(top - 1, range(0, top));
}

#[test]
fn nothing_changes_where_nothing_is() {
    let mut twin = Twin::new();
    twin.replace(range(0, 9), &[(0, 2), (5, 9)]);
    let mut retired = RetiredList::new();
    twin.tree.replace(&mut twin.writer, range(2, 5), &mut Vec::new(), &mut retired).unwrap();
    assert!(retired.is_empty());
    twin.check_structure();
}

/// Adds items upwards, downwards and from both sides, one at a time, and then removes them until the tree is empty.
#[test]
fn many_items_one_by_one() {
    const ITEMS: u64 = 12_000;
    let orders: [fn(u64) -> u64; 3] = [|n| n, |n| ITEMS - 1 - n, |n| n * 7919 % ITEMS];
    for order in orders {
        let mut twin = Twin::new();
        for n in (0..ITEMS).map(order) {
            twin.replace(range(3 * n, 3 * n + 2), &[(3 * n, 3 * n + 2)]);
        }
        twin.check_structure();
        for at in (0..3 * ITEMS).step_by(997) {
            twin.check_look_ups(at);
        }
        twin.check_gap(1, range(0, 3 * ITEMS - 1));
        twin.check_gap(2, range(0, 3 * ITEMS));
        for (done, n) in (0..ITEMS).map(order).enumerate() {
            twin.replace(range(3 * n, 3 * n + 2), &[]);
            if done % 3000 == 0 {
                twin.check_structure();
                twin.check_gap(4, range(0, 3 * ITEMS));
            }
        }
        twin.check_structure();
        assert!(twin.view().is_empty());
    }
}

#[test]
fn many_items_at_once() {
    const ITEMS: u64 = 60_000;
    let mut twin = Twin::new();
    let all: Vec<_> = (0..ITEMS).map(|n| (2 * n, 2 * n + 1)).collect();
    twin.replace(range(0, 2 * ITEMS), &all);
    twin.check_structure();
    twin.replace(range(1000, 2 * ITEMS - 1000), &[(5000, 5001)]);
    twin.check_structure();
    twin.check_gap(100, range(0, 5000));
}

#[test]
#[should_panic(expected = "the writer of another tree")]
fn a_writer_is_of_one_tree() {
    let ((tree, _), (_, writer)) = (Tree::<Item>::new(), Tree::<Item>::new());
    tree.view_locked(&writer);
}

/// Some mappings of a process: its program low, its libraries high, so that keys of 32 bits do not reach. Then come a mapping
/// that is longer than these keys reach, and one in the hole between.
#[test]
fn far_apart() {
    let mut twin = Twin::new();
    let (low, high) = (0x5_5555_5554_u64, 0x7_ffff_7000_u64);
    for n in 0..40 {
        twin.carve(range(low + 3 * n, low + 3 * n + 2), &[(low + 3 * n, low + 3 * n + 2)]);
        twin.carve(range(high + 2 * n, high + 2 * n + 1), &[(high + 2 * n, high + 2 * n + 1)]);
        twin.check_structure();
    }
    let (start, end) = (low + 0x1000, low + 0x1000 + (3 << 32));
    twin.carve(range(start, end), &[(start, end)]);
    for at in [low, low + 2, start - 1, start, start + (1 << 32), end - 1, end, high - 1, high, high + 79] {
        twin.check_look_ups(at);
    }
    twin.check_gap(0x800, range(0, 1 << 35));
    twin.carve(range(start + 5, end - 5), &[]);
    twin.check_structure();
    twin.check_gap(1 << 33, range(0, high));
    twin.check_look_ups(start + 6);
    while let Some((&start, &end)) = twin.model.iter().next_back() {
        twin.replace(range(start, end), &[]);
        twin.check_structure();
    }
}

/// Threads that each change a part of their own find each change made and none lost, and the tree whole. This holds at the
/// borders of the parts too, since a leaf there holds items of both.
#[test]
fn writers_side_by_side() {
    const SPAN: u64 = 600;
    let (tree, writer) = Tree::new();
    let (writers, sections, alive) = (writer.share(), Sections::new(), Arc::new(()));
    let retired = std::sync::Mutex::new(RetiredList::new());
    let models: Vec<BTreeMap<u64, u64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3_u64)
            .map(|thread| {
                let (tree, writers, sections, alive, retired) =
                    (&tree, &writers, &sections, &alive, &retired);
                scope.spawn(move || {
                    let (mut model, mut state, mut mine) = (BTreeMap::new(), thread + 1, RetiredList::new());
                    for round in 0..4000 {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        let at = 2 * ((state >> 33) % SPAN);
                        // Of each three stretches of 40 pages, one is this thread's.
                        let at = (at / 40 * 3 + thread) * 40 + at % 40;
                        let is_new = round % 3 != 0;
                        let mut new: Vec<_> =
                            is_new.then(|| item(at, at + 1 + state % 2, alive)).into_iter().collect();
                        loop {
                            // SAFETY: the slot is this thread's.
                            let section = unsafe { sections.enter(StdSlots.current(), &FenceBarrier) };
                            let place = range(at, at + 2);
                            // SAFETY: the stretch is this thread's alone, and all readers enter by `sections`.
                            let done =
                                unsafe { tree.replace_beside(writers, &section, place, &mut new, &mut mine) };
                            let found = tree.view(&section).find(page(at)).is_some();
                            drop(section);
                            match done {
                                Ok(_) => break assert_eq!(found, is_new),
                                Err(Unchanged::Contended) => std::thread::yield_now(),
                                Err(Unchanged::OutOfMemory(error)) => panic!("{error}"),
                            }
                        }
                        match is_new {
                            true => _ = model.insert(at, at + 1 + state % 2),
                            false => _ = model.remove(&at),
                        }
                    }
                    retired.lock().unwrap().extend(mine);
                    model
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let model = models.into_iter().flatten().collect();
    let twin = Twin { tree, writer: Writer { id: writers.id }, model, alive };
    // SAFETY: the readers have gone.
    retired.into_inner().unwrap().into_iter().for_each(|retired| unsafe { retired.free() });
    twin.check_structure();
}
