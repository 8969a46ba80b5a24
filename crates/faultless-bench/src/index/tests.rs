//! Checks each contender against std's BTreeMap, since the benchmark of a wrong structure is worthless.

use super::maple::MapleTree;
use super::ours::Ours;
use super::peers::{Array, BTree, Concurrent, Ranges, Scc, Skip};
use super::{Found, Handle, Index, Item, PAGES, Random, STRIDE, end_of, item, start_of};
use crate::guard::Membarrier;
use faultless::host::FenceBarrier;
use faultless_lab::skipped::skipped;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// Makes a contender. Returns `None`, and prints the reason, if it is not available.
fn new<I: Index>() -> Option<I> {
    I::new().inspect_err(|reason| skipped(format!("{}: {reason}", I::name()))).ok()
}

fn filled<I: Index>(ranges: u64) -> Option<I> {
    let index: I = new()?;
    let starts = (0..ranges).map(|number| start_of(number, ranges));
    index.handle().fill(starts.map(|start| item(start, start)));
    Some(index)
}

/// Checks that random operations of one thread give the results of the model.
fn follows_the_model<I: Index>() {
    let Some(index) = new::<I>() else { return };
    let (mut handle, mut random) = (index.handle(), Random::new(7));
    let mut model: BTreeMap<u64, Found> = BTreeMap::new();
    for step in 0..20_000 {
        let (start, word) = (start_of(random.below(300), 300), random.next() >> 1);
        let end = start + 1 + random.below(STRIDE);
        match model.get(&start).copied() {
            Some(old) => {
                assert!(handle.remove(start, old.end), "{} step {step}", I::name());
                model.remove(&start);
            }
            None => {
                handle.insert(Item { start, end, word });
                model.insert(start, Found { end, word });
            }
        }
        for _ in 0..4 {
            let page = start_of(random.below(301), 300) + random.below(STRIDE);
            let expected = model.range(..=page).next_back().map(|(_, found)| *found);
            let expected = expected.filter(|found| page < found.end);
            assert_eq!(handle.find(page), expected, "{} step {step} page {page:#x}", I::name());
        }
    }
}

/// Checks two writers, each in its own half of the ranges, and, if allowed, a reader. Each lookup must find a whole
/// range, and all ranges must be there at the end.
fn stands_two_writers<I: Index>(with_readers: bool) {
    const RANGES: u64 = 500;
    let Some(index) = filled::<I>(RANGES) else { return };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (index, over) = (&index, &over);
        let writers = [0, 1].map(|me| {
            scope.spawn(move || {
                let (mut handle, mut random) = (index.handle(), Random::new(me));
                for _ in 0..10_000 {
                    let start = start_of(random.below(RANGES / 2) + me * (RANGES / 2), RANGES);
                    assert!(handle.remove(start, start + PAGES), "{}", I::name());
                    assert!(!with_readers || handle.find(start).is_none(), "{}", I::name());
                    handle.insert(item(start, start));
                    assert!(!with_readers || handle.find(start).is_some(), "{}", I::name());
                }
            })
        });
        if with_readers {
            scope.spawn(move || {
                let (mut handle, mut random) = (index.handle(), Random::new(9));
                while !over.load(Ordering::Relaxed) {
                    let page = random.page(RANGES);
                    if let Some(found) = handle.find(page) {
                        let end = end_of(page);
                        assert_eq!(found, Found { end, word: end - PAGES }, "{}", I::name());
                    }
                }
            });
        }
        let ended = writers.map(|writer| writer.join());
        over.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|ended| ended.expect("a writer fails"));
    });
    let mut handle = index.handle();
    for start in (0..RANGES).map(|number| start_of(number, RANGES)) {
        assert_eq!(handle.find(start), Some(Found { end: start + PAGES, word: start }), "{}", I::name());
        assert_eq!(handle.find(start + PAGES), None, "{}", I::name());
        assert_eq!(handle.find(start - 1), None, "{}", I::name());
    }
}

macro_rules! each {
    ($($name:ident: $index:ty;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn gives_what_the_model_gives() {
                follows_the_model::<$index>();
            }

            #[test]
            fn stands_two_writers_and_a_reader() {
                stands_two_writers::<$index>(true);
            }
        }
    )*};
}

each! {
    ours_with_fences: Ours<FenceBarrier>;
    ours_with_membarrier: Ours<Membarrier>;
    maple_tree: MapleTree<true>;
    btree_std: BTree<std::sync::RwLock<_>>;
    btree_parking_lot: BTree<parking_lot::RwLock<_>>;
    rangemap: Ranges;
    skip_list: Skip;
    scc_tree_index: Scc;
    concurrent_map: Concurrent;
    sorted_array: Array;
}

#[test]
fn maple_tree_without_rcu() {
    follows_the_model::<MapleTree<false>>();
    stands_two_writers::<MapleTree<false>>(false);
}

#[test]
fn ranges_lie_apart_and_upwards() {
    for ranges in [4, 5, 30, 1_000] {
        let starts: Vec<_> = (0..ranges).map(|number| start_of(number, ranges)).collect();
        assert!(starts.windows(2).all(|pair| pair[0] + PAGES < pair[1]));
        assert!(starts.iter().all(|start| end_of(start + PAGES - 1) == start + PAGES));
        let mut random = Random::new(1);
        for _ in 0..1000 {
            let page = random.page(ranges);
            assert!(starts.binary_search(&(end_of(page) - PAGES)).is_ok() && page < end_of(page));
        }
    }
}
