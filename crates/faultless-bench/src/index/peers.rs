//! Other structures that can find a range. Each keeps its items behind a pointer, as a tree of VMAs must.

use super::{Found, Handle, Index, Item};
use arc_swap::ArcSwap;
use concurrent_map::ConcurrentMap;
use crossbeam_skiplist::SkipMap;
use rangemap::RangeMap;
use scc::{Guard, TreeIndex};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex};

/// A reader-writer lock around a map: std's or parking_lot's.
pub trait Lock<T>: Send + Sync + 'static {
    const NAME: &'static str;
    fn new(value: T) -> Self;
    fn read<R>(&self, read: impl FnOnce(&T) -> R) -> R;
    fn write<R>(&self, write: impl FnOnce(&mut T) -> R) -> R;
}

impl<T: Send + Sync + 'static> Lock<T> for std::sync::RwLock<T> {
    const NAME: &'static str = "std RwLock";
    fn new(value: T) -> Self {
        Self::new(value)
    }
    #[inline]
    fn read<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.read().expect("no thread panics with this lock"))
    }
    #[inline]
    fn write<R>(&self, write: impl FnOnce(&mut T) -> R) -> R {
        write(&mut self.write().expect("no thread panics with this lock"))
    }
}

impl<T: Send + Sync + 'static> Lock<T> for parking_lot::RwLock<T> {
    const NAME: &'static str = "parking_lot RwLock";
    fn new(value: T) -> Self {
        Self::new(value)
    }
    #[inline]
    fn read<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.read())
    }
    #[inline]
    fn write<R>(&self, write: impl FnOnce(&mut T) -> R) -> R {
        write(&mut self.write())
    }
}

/// std's B-tree under a lock.
pub struct BTree<L>(L);

impl<L: Lock<BTreeMap<u64, Box<Item>>>> Index for BTree<L> {
    type Handle<'a> = &'a Self;

    fn name() -> String {
        format!("BTreeMap, {}", L::NAME)
    }

    fn new() -> Result<Self, String> {
        Ok(Self(L::new(BTreeMap::new())))
    }

    fn handle(&self) -> &Self {
        self
    }
}

impl<L: Lock<BTreeMap<u64, Box<Item>>>> Handle for &BTree<L> {
    #[inline]
    fn find(&mut self, page: u64) -> Option<Found> {
        self.0.read(|map| map.range(..=page).next_back()?.1.at(page))
    }

    fn insert(&mut self, item: Item) {
        let item = Box::new(item);
        self.0.write(|map| map.insert(item.start, item));
    }

    fn remove(&mut self, start: u64, _end: u64) -> bool {
        // The removed item is freed after the lock is released.
        self.0.write(|map| map.remove(&start)).is_some()
    }
}

/// The crate `rangemap` under a lock. It uses std's B-tree.
pub struct Ranges(parking_lot::RwLock<RangeMap<u64, Arc<Item>>>);

impl Index for Ranges {
    type Handle<'a> = &'a Self;

    fn name() -> String {
        "rangemap, parking_lot RwLock".into()
    }

    fn new() -> Result<Self, String> {
        Ok(Self(parking_lot::RwLock::default()))
    }

    fn handle(&self) -> &Self {
        self
    }
}

impl Handle for &Ranges {
    #[inline]
    fn find(&mut self, page: u64) -> Option<Found> {
        self.0.read().get(&page)?.at(page)
    }

    fn insert(&mut self, item: Item) {
        let item = Arc::new(item);
        self.0.write().insert(item.start..item.end, item);
    }

    fn remove(&mut self, start: u64, end: u64) -> bool {
        self.0.write().remove(start..end);
        true
    }
}

/// A skip list without locks.
pub struct Skip(SkipMap<u64, Box<Item>>);

impl Index for Skip {
    type Handle<'a> = &'a Self;

    fn name() -> String {
        "crossbeam-skiplist".into()
    }

    fn new() -> Result<Self, String> {
        Ok(Self(SkipMap::new()))
    }

    fn handle(&self) -> &Self {
        self
    }
}

impl Handle for &Skip {
    #[inline]
    fn find(&mut self, page: u64) -> Option<Found> {
        self.0.upper_bound(Bound::Included(&page))?.value().at(page)
    }

    fn insert(&mut self, item: Item) {
        self.0.insert(item.start, Box::new(item));
    }

    fn remove(&mut self, start: u64, _end: u64) -> bool {
        self.0.remove(&start).is_some()
    }
}

/// A B+ tree whose readers take no lock. It is ordered by the ends of the ranges, since its iterators go upwards.
pub struct Scc(TreeIndex<u64, Arc<Item>>);

impl Index for Scc {
    type Handle<'a> = &'a Self;

    fn name() -> String {
        "scc TreeIndex".into()
    }

    fn new() -> Result<Self, String> {
        Ok(Self(TreeIndex::new()))
    }

    fn handle(&self) -> &Self {
        self
    }
}

impl Handle for &Scc {
    #[inline]
    fn find(&mut self, page: u64) -> Option<Found> {
        let guard = Guard::new();
        let (_, item) = self.0.range(page + 1.., &guard).next()?;
        (item.start <= page).then(|| item.at(page)).flatten()
    }

    fn insert(&mut self, item: Item) {
        let inserted = self.0.insert_sync(item.end, Arc::new(item));
        assert!(inserted.is_ok(), "an item with this end is there already");
    }

    fn remove(&mut self, _start: u64, end: u64) -> bool {
        self.0.remove_sync(&end)
    }
}

/// A lock-free B+ tree, as in sled. A lookup returns a clone.
pub struct Concurrent(Mutex<ConcurrentMap<u64, Arc<Item>>>);

impl Index for Concurrent {
    type Handle<'a> = ConcurrentMap<u64, Arc<Item>>;

    fn name() -> String {
        "concurrent-map".into()
    }

    fn new() -> Result<Self, String> {
        Ok(Self(Mutex::new(ConcurrentMap::new())))
    }

    fn handle(&self) -> Self::Handle<'_> {
        self.0.lock().expect("no thread panics with this lock").clone()
    }
}

impl Handle for ConcurrentMap<u64, Arc<Item>> {
    #[inline]
    fn find(&mut self, page: u64) -> Option<Found> {
        self.get_lte(&page)?.1.at(page)
    }

    fn insert(&mut self, item: Item) {
        ConcurrentMap::insert(self, item.start, Arc::new(item));
    }

    fn remove(&mut self, start: u64, _end: u64) -> bool {
        ConcurrentMap::remove(self, &start).is_some()
    }
}

/// A sorted array that a writer copies and swaps. It is the best case for lookups and the worst for changes.
pub struct Array {
    now: ArcSwap<Sorted>,
    writer: Mutex<()>,
}

#[derive(Clone, Default)]
struct Sorted {
    starts: Vec<u64>,
    items: Vec<Arc<Item>>,
}

impl Index for Array {
    type Handle<'a> = &'a Self;

    fn name() -> String {
        "sorted array, arc-swap".into()
    }

    fn new() -> Result<Self, String> {
        Ok(Self { now: ArcSwap::default(), writer: Mutex::new(()) })
    }

    fn handle(&self) -> &Self {
        self
    }
}

impl Array {
    fn change<R>(&self, change: impl FnOnce(&mut Sorted) -> R) -> R {
        let _writer = self.writer.lock().expect("no thread panics with this lock");
        let mut new = Sorted::clone(&self.now.load());
        let result = change(&mut new);
        self.now.store(Arc::new(new));
        result
    }
}

impl Handle for &Array {
    #[inline]
    fn find(&mut self, page: u64) -> Option<Found> {
        let now = self.now.load();
        let above = now.starts.partition_point(|&start| start <= page);
        now.items[above.checked_sub(1)?].at(page)
    }

    fn insert(&mut self, item: Item) {
        let item = Arc::new(item);
        self.change(|sorted| {
            let place = sorted.starts.partition_point(|&other| other < item.start);
            sorted.starts.insert(place, item.start);
            sorted.items.insert(place, item);
        });
    }

    fn remove(&mut self, start: u64, _end: u64) -> bool {
        self.change(|sorted| {
            let place = sorted.starts.binary_search(&start);
            place.is_ok_and(|place| {
                sorted.starts.remove(place);
                sorted.items.remove(place);
                true
            })
        })
    }

    fn fill(&mut self, items: impl Iterator<Item = Item>) {
        self.change(|sorted| {
            (sorted.starts, sorted.items) = items.map(|item| (item.start, Arc::new(item))).unzip();
        });
    }
}
