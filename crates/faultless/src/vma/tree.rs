//! The tree of VMAs: a B+tree of items by their page ranges, which do not overlap. Each page belongs to the span of one leaf.
//! The keys that a search compares are never written once a reader can find them. A change puts one item in the place of
//! another, or builds new nodes (`change`, `shape`) and swings one link. So readers find the old state or the new one, and
//! take no lock. Replaced items and nodes are freed after a grace period.
//!
//! | thread | holds | may |
//! |---|---|---|
//! | reader | a [`Section`] | read through a [`View`] until the section ends |
//! | the writer | the tree lock, with the [`Writer`] in it | read through a locked view, [`Tree::replace`] |
//! | one of several writers | [`Writers`] and a [`Section`] | read through a [`View`], [`Tree::replace_beside`] |

mod change;
mod gap;
mod key;
mod leaf;
mod node;
mod shape;
#[cfg(all(test, not(loom)))]
mod tests;

pub use change::Unchanged;

use crate::address::{PageNumber, PageRange};
use crate::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use crate::sync::plain::{AtomicU64, Ordering as PlainOrdering};
use crate::sync::{Life, OutOfMemory, RetiredList, Section, Stable, spin_loop};
use alloc::boxed::Box;
use alloc::vec::Vec;
use change::Change;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::{self, NonNull};
use leaf::LeafRef;
use node::{Kind, Link, NodeRef};

/// An item of a tree, with the range of pages by which the tree orders it.
///
/// # Safety
/// The tree places an item by these answers, and finds it again by them to free it. If the range of an item changed, the tree
/// could free an item that readers still have, or read memory that holds none. So, for as long as the item lives:
/// * [`Ranged::range`] always returns the same pages.
/// * [`Ranged::life`] always returns the item's own mark, which no other item has.
/// * [`Ranged::keeps_something`] always returns the same.
/// * No method panics.
pub unsafe trait Ranged {
    /// Returns the pages that the item covers.
    fn range(&self) -> PageRange;
    /// Returns the item's mark, which a reader touches before it gets the item.
    fn life(&self) -> &Life;
    /// Returns whether the tree calls [`Ranged::retired`] and [`Ranged::freed`] for this item.
    fn keeps_something(&self) -> bool {
        false
    }
    /// Notes that the item has been retired. Returns true if the item keeps an object that only retired things keep, and that
    /// should end soon.
    fn retired(&self) -> bool {
        false
    }
    /// Notes that the retired item is freed next.
    fn freed(&self) {}
}

/// A tree of items by their ranges, for one writer or several, and any number of readers.
pub struct Tree<T: Ranged + Send + Sync + 'static> {
    /// The link to the root, whose span begins at page 0; null when the tree is empty. Atomic. The thread that changes the
    /// tree's shape writes it with Release. Partner: the Acquire of [`Tree::view`], which sees the nodes and items under the
    /// root whole. An older root stays readable: the grace period waits for the section of its reader.
    root: AtomicPtr<()>,
    /// Says whether a thread changes the tree's shape. Atomic; Acquire and Release, among the threads that do so.
    shaping: AtomicBool,
    /// The number that a tree and its writer have in common. Immutable.
    id: u64,
    items: PhantomData<T>,
}

/// The right to be the only writer of a tree. It lives in the tree lock's mutex.
#[derive(Debug)]
pub struct Writer {
    /// The tree's number. Immutable.
    id: u64,
}

/// The right to write beside other writers, after the only writer was given up for good or for a while. Changes of different
/// leaves go on side by side.
#[derive(Debug)]
pub struct Writers {
    /// The tree's number. Immutable.
    id: u64,
}

impl Writer {
    /// Gives up being the only writer, for good.
    pub fn share(self) -> Writers {
        Writers { id: self.id }
    }

    /// Gives up being the only writer, for a while.
    ///
    /// # Safety
    /// As long as the returned value lives, the writer is used only to lend it again.
    pub unsafe fn lend(&self) -> Writers {
        Writers { id: self.id }
    }
}

/// The right to change the tree's shape, which one thread has at a time. Dropping it gives it up.
struct Shaping<'a>(&'a AtomicBool);

impl Drop for Shaping<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl<T: Ranged + Send + Sync + 'static> Tree<T> {
    /// Makes an empty tree and its writer.
    pub fn new() -> (Self, Writer) {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, PlainOrdering::Relaxed);
        (Self::under(ptr::null_mut(), id), Writer { id })
    }

    fn under(root: *mut (), id: u64) -> Self {
        Self { root: AtomicPtr::new(root), shaping: AtomicBool::new(false), id, items: PhantomData }
    }

    /// Returns the tree as it is now, for a reader. Each item that the reader finds was in the tree at some moment since
    /// then. An item that was there all the time is found.
    #[inline]
    pub fn view<'s>(&'s self, _section: &'s Section<'_>) -> View<'s, T> {
        let root = NonNull::new(self.root.load(Ordering::Acquire));
        // SAFETY: nodes are whole when a link leads to them. Replaced nodes are freed after a grace period, which waits for
        // this section.
        View { root: root.map(|root| unsafe { Link::new(root) }) }
    }

    /// Returns the tree as it is, for the writer.
    pub fn view_locked<'s>(&'s self, writer: &'s Writer) -> View<'s, T> {
        self.check(writer.id);
        // Relaxed: the store was the writer's own, or an earlier writer's, after which the lock was taken or the end of an
        // edit was seen.
        let root = NonNull::new(self.root.load(Ordering::Relaxed));
        // SAFETY: nodes are whole when a link leads to them; only the writer replaces them, and it is borrowed.
        View { root: root.map(|root| unsafe { Link::new(root) }) }
    }

    /// Returns the tree as it is, for a caller that keeps other threads from changing it without the writer's lock.
    ///
    /// # Safety
    /// As long as the view is used, no thread changes the tree. The caller has had the writer's lock since the last change.
    pub unsafe fn view_still<'s>(&'s self, _proof: &'s impl Stable) -> View<'s, T> {
        let root = NonNull::new(self.root.load(Ordering::Acquire));
        // SAFETY: nodes are whole when a link leads to them; no thread replaces any, by the contract above.
        View { root: root.map(|root| unsafe { Link::new(root) }) }
    }

    /// Takes out all items inside `range` and puts `new` in their place, in one step. `new` is sorted, lies inside `range`,
    /// and does not overlap. No item straddles an end of `range`. Afterwards `new` is empty, and `retired` has the things to
    /// free after a grace period. Returns the number of bytes of the new items and nodes.
    ///
    /// # Errors
    /// [`OutOfMemory`]; the tree and `new` are as before.
    /// [`OutOfMemory`]: the tree and `new` are as before.
    pub fn replace(
        &self,
        writer: &mut Writer,
        range: PageRange,
        new: &mut Vec<Box<T>>,
        retired: &mut RetiredList,
    ) -> Result<usize, OutOfMemory> {
        self.check(writer.id);
        loop {
            match self.change(Change { range, new: &mut *new, retired: &mut *retired, made: 0 }) {
                Ok(made) => return Ok(made),
                Err(Unchanged::OutOfMemory(error)) => return Err(error),
                // There is no other writer.
                Err(Unchanged::Contended) => spin_loop(),
            }
        }
    }

    /// Replaces items as [`Tree::replace`] does, while other threads do the same.
    ///
    /// # Errors
    /// [`Unchanged`]. If another thread is at work, the caller ends its section, lets a moment pass, and tries again.
    ///
    /// # Safety
    /// No other thread puts items into `range` meanwhile, or takes any out. The section is of the engine, or of the
    /// [`Sections`](crate::sync::Sections), that all readers of this tree enter.
    pub unsafe fn replace_beside(
        &self,
        writers: &Writers,
        _section: &Section<'_>,
        range: PageRange,
        new: &mut Vec<Box<T>>,
        retired: &mut RetiredList,
    ) -> Result<usize, Unchanged> {
        self.check(writers.id);
        self.change(Change { range, new, retired, made: 0 })
    }

    fn change(&self, mut change: Change<'_, T>) -> Result<usize, Unchanged> {
        let root = NonNull::new(self.root.load(Ordering::Acquire));
        // SAFETY: the caller is the only writer, or in a section.
        if let Some(root) = root.map(|root| unsafe { Link::new(root) })
            && change.in_one_leaf(root)?
        {
            return Ok(change.made);
        }
        let taken = self.shaping.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        taken.map_err(|_| Unchanged::Contended)?;
        let _shaping = Shaping(&self.shaping);
        change.of_shape(&self.root)?;
        Ok(change.made)
    }

    /// Takes out all items. Needs no memory.
    ///
    /// # Safety
    /// A grace period passes before the returned tree is dropped, also by unwinding.
    pub unsafe fn take_all(&self, writer: &mut Writer) -> Tree<T> {
        self.check(writer.id);
        // Readers of an older root see the whole tree.
        Self::under(self.root.swap(ptr::null_mut(), Ordering::AcqRel), self.id)
    }

    /// Checks that the writer is this tree's: the writer of another tree does not exclude this tree's changes.
    fn check(&self, id: u64) {
        assert!(self.id == id, "the writer of another tree");
    }
}

impl<T: Ranged + Send + Sync + 'static> Tree<T> {
    /// Frees all items and nodes. Returns the number of bytes that they took.
    pub fn clear(&mut self) -> usize {
        /// # Safety
        /// No thread reads the node or anything under it, now or later.
        unsafe fn free<T: Ranged + 'static>(link: Link<'_, T>) -> usize {
            let mut bytes = node::bytes_of_node::<T>(link.pointer());
            match link.node() {
                NodeRef::Leaf(leaf) => {
                    for held in leaf.live(PageNumber::new(0), 0..leaf.len()) {
                        // SAFETY: by the contract above; this leaf is the only one that holds the item.
                        unsafe { node::free_item::<T>(held.item.cast()) };
                        bytes += size_of::<T>();
                    }
                }
                NodeRef::Inner(inner) => {
                    for index in 0..inner.body.len() {
                        // SAFETY: by the contract above.
                        bytes += unsafe { free(inner.body.child(index)) };
                    }
                }
            }
            // SAFETY: by the contract above.
            unsafe { node::free_node::<T>(link.pointer()) };
            bytes
        }
        let root = NonNull::new(self.root.load(Ordering::Relaxed));
        self.root.store(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: `&mut self`: neither a reader nor a writer is left.
        root.map_or(0, |root| unsafe { free(Link::<T>::new(root)) })
    }
}

impl<T: Ranged + Send + Sync + 'static> Drop for Tree<T> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Turns boxes into pointers. Both have the same layout, so this needs no memory.
fn into_pointers<T>(boxes: Vec<Box<T>>) -> Vec<NonNull<T>> {
    let mut boxes = ManuallyDrop::new(boxes);
    // SAFETY: the vector's own parts, given up above; a Box of a sized type lies in memory as a NonNull does.
    unsafe { Vec::from_raw_parts(boxes.as_mut_ptr().cast(), boxes.len(), boxes.capacity()) }
}

/// # Safety
/// `pointers` came from [`into_pointers`], and are not used elsewhere.
unsafe fn into_boxes<T>(pointers: Vec<NonNull<T>>) -> Vec<Box<T>> {
    let mut pointers = ManuallyDrop::new(pointers);
    // SAFETY: as in `into_pointers`; by the contract above the boxes own the values that they point to.
    unsafe { Vec::from_raw_parts(pointers.as_mut_ptr().cast(), pointers.len(), pointers.capacity()) }
}

/// The tree as a reader sees it.
pub struct View<'s, T> {
    root: Option<Link<'s, T>>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for View<'_, T> {}

/// A leaf, its span, and a place in it.
struct Place<'s, T> {
    leaf: LeafRef<'s, T>,
    base: PageNumber,
    /// The page at which the next leaf's span begins, if there is one.
    end: Option<PageNumber>,
    index: usize,
}

impl<'s, T: Ranged> View<'s, T> {
    /// Returns the item that contains `page`.
    #[inline]
    pub fn find(self, page: PageNumber) -> Option<&'s T> {
        let (mut link, mut base) = (self.root?, 0);
        loop {
            let pages = page.get() - base;
            link = match link.read() {
                Kind::NearLeaf(leaf) => return leaf.find(pages),
                Kind::FarLeaf(leaf) => return leaf.find(pages),
                Kind::NearInner(inner) => inner.down(&mut base, pages),
                Kind::FarInner(inner) => inner.down(&mut base, pages),
            };
        }
    }

    /// Returns the leaf over `page`, and the number of its places that start there or below.
    fn leaf_over(self, page: PageNumber) -> Option<Place<'s, T>> {
        let (mut link, mut base, mut end) = (self.root?, PageNumber::new(0), None);
        loop {
            let pages = page.get() - base.get();
            match link.node() {
                NodeRef::Leaf(leaf) => return Some(Place { leaf, base, end, index: leaf.rank(pages) }),
                NodeRef::Inner(inner) => {
                    let index = inner.place(pages);
                    if index + 1 < inner.body.len() {
                        end = Some(inner.start(base, index + 1));
                    }
                    base = inner.start(base, index);
                    link = inner.body.child(index);
                }
            }
        }
    }

    /// Iterates over the items that end above `page`, upwards.
    pub fn from(self, page: PageNumber) -> impl Iterator<Item = &'s T> {
        let above = move |page: PageNumber| {
            let mut place = self.leaf_over(page)?;
            let last = place.index.checked_sub(1);
            if last.is_some_and(|last| place.leaf.range(place.base, last).1 > page) {
                place.index -= 1;
            }
            Some(place)
        };
        let mut place = above(page);
        core::iter::from_fn(move || {
            loop {
                let here = place.as_mut()?;
                if here.index == here.leaf.len() {
                    // The next leaf is found from the root. That happens once for many items, and needs no stack.
                    place = above(here.end?);
                    continue;
                }
                here.index += 1;
                if let Some(item) = here.leaf.item(here.index - 1) {
                    return Some(item);
                }
            }
        })
    }

    /// Returns the last item that ends at `page` or below.
    pub fn before(self, page: PageNumber) -> Option<&'s T> {
        // The search looks for starts at the page before `page` or below: an item that ends at `page` starts below it.
        let mut at = page.checked_sub(1)?;
        loop {
            let Place { leaf, base, index, .. } = self.leaf_over(at)?;
            let mut ended = (0..index).rev().filter(|&i| leaf.range(base, i).1 <= page);
            match ended.find_map(|i| leaf.item(i)) {
                Some(item) => return Some(item),
                None => at = base.checked_sub(1)?,
            }
        }
    }

    /// Returns whether changes of different parts may go on side by side. If all items are in one leaf, changes come one
    /// after the other.
    pub fn has_parts(self) -> bool {
        self.root.is_some_and(|root| matches!(root.node(), NodeRef::Inner(_)))
    }

    /// Returns whether the tree has no item.
    pub fn is_empty(self) -> bool {
        self.root.is_none()
    }
}
