//! The leaves of the tree. Their keys never change once a reader can find them. The item in a place does: it goes, it comes
//! back with the same range, or another one takes its place. So the commonest changes write one word.

use super::key::{Far, Key, Near};
use super::node::{Built, Summary, hole, link};
use crate::address::{PageNumber, PageRange};
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::sync::{Life, OutOfMemory, try_box, try_box_uninit};
use crate::vma::tree::Ranged;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;
use core::ptr::{self, NonNull};

/// The number of places of a leaf.
#[cfg(not(loom))]
pub const ITEMS: usize = 16;
// The number is small so that small runs reach splits and merges.
#[cfg(loom)]
pub const ITEMS: usize = 2;

/// The smallest number of items in a leaf that has a neighbour.
pub const MINIMUM: usize = ITEMS.div_ceil(4);

/// A node whose places hold items. It is aligned like any memory: allocators are much slower if the memory has to begin with
/// a cache line.
#[repr(C, align(16))]
pub struct Leaf<K, T> {
    /// The items; null in a place whose item has gone. Atomic. The thread that has taken the leaf's parent writes them with
    /// Release; for a root, the thread that changes the tree's shape does. Partner: the Acquire of readers, which see the item
    /// whole.
    items: [AtomicPtr<T>; ITEMS],
    starts: [K; ITEMS],
    ends: [K; ITEMS],
    /// The mark by which loom checks the leaf's life.
    pub(super) life: Life,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Leaf<Near, u8>>() == 256 && size_of::<Leaf<Far, u8>>() == 384);

impl<K: Key, T> Leaf<K, T> {
    /// Returns the item over the page `pages` above the beginning of the leaf's span.
    #[inline]
    pub fn find(&self, pages: u64) -> Option<&T>
    where
        T: Ranged,
    {
        let index = K::rank(&self.starts, pages).checked_sub(1)?;
        if !self.ends[index].is_above(pages) {
            return None;
        }
        alive(&self.items[index])
    }

    fn range(&self, base: PageNumber, index: usize) -> (PageNumber, PageNumber) {
        let page = |key: K| PageNumber::new(base.get() + key.pages());
        (page(self.starts[index]), page(self.ends[index]))
    }

    /// Makes a leaf of this leaf's items, with room for `new` instead of the items in `places`. Returns it, and the first
    /// place of the new items, which are not there yet. `None` if an item lies too far away for the keys.
    fn splice<To: Key>(
        &self,
        base: PageNumber,
        places: &Range<usize>,
        new: &[Box<T>],
    ) -> Option<Spliced<To, T>>
    where
        T: Ranged,
    {
        let mut leaf = Leaf::<To, T>::empty();
        let keep = |leaf: &mut Leaf<To, T>, mut at: usize, from: Range<usize>| {
            for from in from {
                let item = self.items[from].load(Ordering::Relaxed);
                if !item.is_null() {
                    leaf.items[at] = AtomicPtr::new(item);
                    leaf.starts[at] = To::pack(self.starts[from].pages())?;
                    leaf.ends[at] = To::pack(self.ends[from].pages())?;
                    at += 1;
                }
            }
            Some(at)
        };
        let first = keep(&mut leaf, 0, 0..places.start)?;
        for (i, range) in (first..).zip(new.iter().map(|item| item.range())) {
            leaf.starts[i] = To::pack(range.start().get() - base.get())?;
            leaf.ends[i] = To::pack(range.end().get() - base.get())?;
        }
        keep(&mut leaf, first + new.len(), places.end..K::rank(&self.starts, u64::MAX))?;
        Some(try_box(leaf).map(|leaf| (leaf, first)))
    }

    #[inline]
    fn is_live(&self, index: usize) -> bool {
        !self.items[index].load(Ordering::Relaxed).is_null()
    }

    /// Returns the number of items outside of `places`, at most `most`.
    #[inline]
    fn kept(&self, places: &Range<usize>, most: usize) -> usize {
        let mut kept = 0;
        for index in 0..ITEMS {
            if kept == most {
                break;
            }
            kept += usize::from(!places.contains(&index) && self.is_live(index));
        }
        kept
    }

    /// Returns the leaf's summary with `new` instead of the items in `places`. `old` is the summary before. `None` if fewer
    /// than [`MINIMUM`] items would be left. The caller has taken the leaf's parent.
    #[inline]
    fn sum_after(
        &self,
        base: PageNumber,
        places: &Range<usize>,
        new: &[Box<T>],
        old: Summary,
    ) -> Option<Summary>
    where
        T: Ranged,
    {
        let needed = MINIMUM.saturating_sub(new.len());
        if self.kept(places, needed) < needed {
            return None;
        }
        // New holes appear only at the places that have changed.
        let mut sum = old;
        let before = (0..places.start).rev().find(|&index| self.is_live(index));
        let next = (places.end..ITEMS).find(|&index| self.is_live(index));
        let (mut end, next) = (before.map(|i| self.range(base, i).1), next.map(|i| self.range(base, i).0));
        if end.is_none() {
            sum.start = new.first().map(|item| item.range().start()).or(next)?;
        }
        for range in new.iter().map(|item| item.range()) {
            sum.gap = sum.gap.max(end.map_or(0, |end| hole(end, range.start())));
            end = Some(range.end());
        }
        match (end, next) {
            (Some(end), Some(next)) => sum.gap = sum.gap.max(hole(end, next)),
            (Some(end), None) => sum.end = end,
            (None, _) => {}
        }
        Some(sum)
    }

    /// Returns, for each of `new`, the one of `places` that has its range. `None` if one has no such place.
    #[inline]
    fn matching(&self, base: PageNumber, mut places: Range<usize>, new: &[Box<T>]) -> Option<[u8; ITEMS]>
    where
        T: Ranged,
    {
        let mut found = [0; ITEMS];
        for (found, item) in found.iter_mut().zip(new) {
            let range = item.range();
            let at = places.find(|&i| self.range(base, i) == (range.start(), range.end()))?;
            *found = at as u8;
        }
        (new.len() <= ITEMS).then_some(found)
    }

    /// Puts `new` into `places`, and takes out the items there. The change is made here, or in a leaf that takes this one's
    /// place. Afterwards `new` is empty, unless the result is [`Put::Full`]. `removed` is called with each item that goes.
    /// The caller has taken the leaf's parent.
    ///
    /// # Errors
    /// [`OutOfMemory`]; all is as before.
    /// [`OutOfMemory`]: all is as before.
    fn put(
        &self,
        base: PageNumber,
        places: Range<usize>,
        new: &mut Vec<Box<T>>,
        mut removed: impl FnMut(NonNull<T>),
    ) -> Result<Put, OutOfMemory>
    where
        T: Ranged,
    {
        if let Some(found) = self.matching(base, places.clone(), new) {
            let mut coming = found.iter().zip(new.drain(..)).peekable();
            for index in places {
                let new = coming.next_if(|(found, _)| usize::from(**found) == index);
                let new = new.map_or(ptr::null_mut(), |(_, item)| Box::into_raw(item));
                let old = self.items[index].load(Ordering::Relaxed);
                if old != new {
                    self.items[index].store(new, Ordering::Release);
                }
                NonNull::new(old).map(&mut removed);
            }
            return Ok(Put::Here);
        }
        if self.kept(&places, ITEMS) + new.len() > ITEMS {
            return Ok(Put::Full);
        }
        let link = match self.splice::<Near>(base, &places, new) {
            Some(spliced) => hang(spliced?, new),
            None => hang(self.splice::<Far>(base, &places, new).unwrap_or(Err(OutOfMemory))?, new),
        };
        let gone = self.items[places].iter().filter_map(|item| NonNull::new(item.load(Ordering::Relaxed)));
        gone.for_each(removed);
        Ok(Put::There(link))
    }

    fn empty() -> Self {
        Self {
            items: core::array::from_fn(|_| AtomicPtr::default()),
            starts: [K::UNUSED; ITEMS],
            ends: [K::UNUSED; ITEMS],
            life: Life::new(),
        }
    }

    /// Makes a leaf of items, or returns `None` if one lies too far away for the keys.
    fn build(base: PageNumber, held: &[Held<T>]) -> Option<Built> {
        let pack = |page: PageNumber| K::pack(page.get() - base.get());
        // The other items lie below it.
        held.last().map_or(Some(K::UNUSED), |last| pack(last.end))?;
        let Ok(mut leaf) = try_box_uninit::<Self>() else { return Some(Err(OutOfMemory)) };
        let place = leaf.as_mut_ptr();
        // The fields are written one by one, so that the leaf is not built on the stack and copied.
        for i in 0..ITEMS {
            let held = held.get(i);
            let item = held.map_or(ptr::null_mut(), |held| held.item.as_ptr());
            let start = held.and_then(|held| pack(held.start)).unwrap_or(K::UNUSED);
            let end = held.and_then(|held| pack(held.end)).unwrap_or(K::UNUSED);
            // SAFETY: places of the box's own, each written once.
            unsafe {
                (&raw mut (*place).items[i]).write(AtomicPtr::new(item));
                (&raw mut (*place).starts[i]).write(start);
                (&raw mut (*place).ends[i]).write(end);
            }
        }
        // SAFETY: as above, and with this one every field is written.
        let leaf = unsafe {
            (&raw mut (*place).life).write(Life::new());
            leaf.assume_init()
        };
        Some(Ok(link(leaf, K::TAG)))
    }
}

/// Returns the item in a place, if there is one.
#[inline]
fn alive<'s, T: Ranged>(place: &AtomicPtr<T>) -> Option<&'s T> {
    let item = NonNull::new(place.load(Ordering::Acquire))?;
    // SAFETY: the items of a leaf are freed a grace period after they left it, or after the leaf is freed.
    let item = unsafe { item.as_ref() };
    item.life().touch();
    Some(item)
}

/// A leaf with keys of either width.
pub enum LeafRef<'s, T> {
    /// A leaf with keys of 32 bits.
    Near(&'s Leaf<Near, T>),
    /// A leaf with keys of 64 bits.
    Far(&'s Leaf<Far, T>),
}

impl<T> Clone for LeafRef<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for LeafRef<'_, T> {}

impl<'s, T> LeafRef<'s, T> {
    /// Returns the number of places that are used or were used; at least one.
    pub fn len(self) -> usize {
        // No place starts above this number.
        self.rank(u64::MAX)
    }

    /// Returns the number of places that start at or below the page `pages` above the beginning of the leaf's span.
    #[inline]
    pub fn rank(self, pages: u64) -> usize {
        match self {
            Self::Near(leaf) => Near::rank(&leaf.starts, pages),
            Self::Far(leaf) => Far::rank(&leaf.starts, pages),
        }
    }

    /// Returns the number of places that start below `page`, in a leaf whose span begins at `base`.
    #[inline]
    pub fn below(self, base: PageNumber, page: PageNumber) -> usize {
        page.get().saturating_sub(base.get()).checked_sub(1).map_or(0, |pages| self.rank(pages))
    }

    #[inline]
    fn place(self, index: usize) -> &'s AtomicPtr<T> {
        match self {
            Self::Near(leaf) => &leaf.items[index],
            Self::Far(leaf) => &leaf.items[index],
        }
    }

    /// Returns the start and the end of place `index`, in a leaf whose span begins at `base`.
    #[inline]
    pub fn range(self, base: PageNumber, index: usize) -> (PageNumber, PageNumber) {
        match self {
            Self::Near(leaf) => leaf.range(base, index),
            Self::Far(leaf) => leaf.range(base, index),
        }
    }

    /// Returns the item in place `index` with its range, if there is one.
    #[inline]
    pub fn held(self, base: PageNumber, index: usize) -> Option<Held<T>> {
        let item = NonNull::new(self.place(index).load(Ordering::Acquire))?;
        let (start, end) = self.range(base, index);
        Some(Held { start, end, item })
    }

    /// Iterates over the items in `places` with their ranges.
    pub fn live(self, base: PageNumber, places: Range<usize>) -> impl DoubleEndedIterator<Item = Held<T>> {
        places.filter_map(move |index| self.held(base, index))
    }

    /// Returns the item in place `index`, if there is one.
    pub fn item(self, index: usize) -> Option<&'s T>
    where
        T: Ranged,
    {
        alive(self.place(index))
    }

    /// Returns the places that begin in `range`, in a leaf whose span begins at `base`.
    #[inline]
    pub fn places(self, base: PageNumber, range: PageRange) -> Range<usize> {
        self.below(base, range.start())..self.below(base, range.end())
    }
}

impl<T: Ranged> LeafRef<'_, T> {
    /// Returns the summary after a change, see [`Leaf::sum_after`].
    #[inline]
    pub fn sum_after(
        self,
        base: PageNumber,
        places: &Range<usize>,
        new: &[Box<T>],
        old: Summary,
    ) -> Option<Summary> {
        match self {
            Self::Near(leaf) => leaf.sum_after(base, places, new, old),
            Self::Far(leaf) => leaf.sum_after(base, places, new, old),
        }
    }

    /// Returns whether there is an item outside of `places`.
    pub fn keeps_some(self, places: &Range<usize>) -> bool {
        match self {
            Self::Near(leaf) => leaf.kept(places, 1) != 0,
            Self::Far(leaf) => leaf.kept(places, 1) != 0,
        }
    }

    /// Makes a change of the leaf, see [`Leaf::put`].
    ///
    /// # Errors
    /// [`OutOfMemory`]; all is as before.
    #[inline]
    pub fn put(
        self,
        base: PageNumber,
        places: Range<usize>,
        new: &mut Vec<Box<T>>,
        removed: impl FnMut(NonNull<T>),
    ) -> Result<Put, OutOfMemory> {
        match self {
            Self::Near(leaf) => leaf.put(base, places, new, removed),
            Self::Far(leaf) => leaf.put(base, places, new, removed),
        }
    }
}

/// The outcome of a change of a leaf.
pub enum Put {
    /// The change was made in the leaf itself.
    Here,
    /// The change was made in a new leaf, with this link.
    There(NonNull<()>),
    /// The leaf has no room. Nothing was changed.
    Full,
}

/// A new leaf, and the first place of the new items.
type Spliced<K, T> = Result<(Box<Leaf<K, T>>, usize), OutOfMemory>;

/// Puts the new items into the leaf, and returns its link.
fn hang<K: Key, T>((mut leaf, first): (Box<Leaf<K, T>>, usize), new: &mut Vec<Box<T>>) -> NonNull<()> {
    let new = new.drain(..).map(|item| AtomicPtr::new(Box::into_raw(item)));
    leaf.items[first..].iter_mut().zip(new).for_each(|(place, item)| *place = item);
    link(leaf, K::TAG)
}

/// An item as a leaf holds it.
pub struct Held<T> {
    /// The first page of the item.
    pub start: PageNumber,
    /// The page behind the item's last page.
    pub end: PageNumber,
    /// The item.
    pub item: NonNull<T>,
}

impl<T> Clone for Held<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Held<T> {}

impl<T> Held<T> {
    /// Makes the value from an item and its range.
    pub fn new(range: PageRange, item: NonNull<T>) -> Self {
        Self { start: range.start(), end: range.end(), item }
    }

    /// Returns the summary of the one item.
    pub fn summary(self) -> Summary {
        Summary { start: self.start, end: self.end, gap: 0 }
    }

    /// Makes a new leaf whose span begins at `base`, of at least one item and at most [`ITEMS`].
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn build(base: PageNumber, held: &[Self]) -> Built {
        let far = || Leaf::<Far, T>::build(base, held);
        Leaf::<Near, T>::build(base, held).or_else(far).unwrap_or(Err(OutOfMemory))
    }
}
