//! The tree of VMAs: a B+tree of items by their page ranges, which do not overlap. Every page belongs to the span of one
//! leaf. What a search compares is never written once a reader can find it: a change puts one item in the place of another,
//! or builds new nodes (`change`, `shape`) and swings one link, so that readers find what was there or what comes, and take no lock.
//! What it replaced is freed after a grace period.
//!
//! | who | holds | may |
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

/// What a tree holds.
///
/// # Safety
/// The tree places an item, and finds it again to free it, by its answers: of an item whose range changes it would free one
/// that readers still have, or read memory that holds none. So, for as long as the item lives:
/// * [`Ranged::range`] always returns the same pages.
/// * [`Ranged::life`] always returns the item's own mark, which no other item has.
/// * [`Ranged::keeps_something`] always returns the same.
/// * No method panics.
pub unsafe trait Ranged {
    /// The pages it covers.
    fn range(&self) -> PageRange;
    /// The mark that a reader touches before it gets the item.
    fn life(&self) -> &Life;
    /// Whether the next two are to be called.
    fn keeps_something(&self) -> bool {
        false
    }
    /// The item has been retired. True: what it keeps is kept by nothing else that is not retired, and should end soon.
    fn retired(&self) -> bool {
        false
    }
    /// The item, which was retired, is freed next.
    fn freed(&self) {}
}

/// Items by their ranges, for one writer or several, and any number of readers.
pub struct Tree<T: Ranged + Send + Sync + 'static> {
    /// The link to the root, whose span begins at page 0; null when empty. Written by who changes the tree's shape, with
    /// Release; partner: the Acquire of [`Tree::view`], which sees the nodes and items under the root it finds whole. An
    /// older root stays readable: its reader's section is one that the grace period waits for.
    root: AtomicPtr<()>,
    /// Whether somebody changes the tree's shape. Atomic; Acquire and Release, among those who do.
    shaping: AtomicBool,
    /// Equal in the tree and in its writer. Immutable.
    id: u64,
    items: PhantomData<T>,
}

/// Whoever has it is the only writer of its tree. It lives in the tree lock's mutex.
#[derive(Debug)]
pub struct Writer {
    /// The tree's.
    id: u64,
}

/// The writer given up, for good or for a while, so that anybody may write: changes of different leaves go on side by side.
#[derive(Debug)]
pub struct Writers {
    /// The tree's.
    id: u64,
}

impl Writer {
    /// Gives up being alone.
    pub fn share(self) -> Writers {
        Writers { id: self.id }
    }

    /// Gives it up for a while.
    ///
    /// # Safety
    /// As long as what comes back is there, the writer is used for nothing but to lend it again.
    pub unsafe fn lend(&self) -> Writers {
        Writers { id: self.id }
    }
}

/// The tree's shape, being changed by one.
struct Shaping<'a>(&'a AtomicBool);

impl Drop for Shaping<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl<T: Ranged + Send + Sync + 'static> Tree<T> {
    /// An empty tree and its writer.
    pub fn new() -> (Self, Writer) {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, PlainOrdering::Relaxed);
        (Self::under(ptr::null_mut(), id), Writer { id })
    }

    fn under(root: *mut (), id: u64) -> Self {
        Self { root: AtomicPtr::new(root), shaping: AtomicBool::new(false), id, items: PhantomData }
    }

    /// The tree as it is now, for a reader. Each item that it finds was there at some moment since; one that was there all
    /// the time is found.
    #[inline]
    pub fn view<'s>(&'s self, _section: &'s Section<'_>) -> View<'s, T> {
        let root = NonNull::new(self.root.load(Ordering::Acquire));
        // SAFETY: nodes are whole when a link leads to them; what a later change replaces is freed after a grace period, which
        // waits for this section.
        View { root: root.map(|root| unsafe { Link::new(root) }) }
    }

    /// The tree as it is, for the writer.
    pub fn view_locked<'s>(&'s self, writer: &'s Writer) -> View<'s, T> {
        self.check(writer.id);
        // Relaxed: the writer's own store, or one of a writer before, after which the lock was taken or an edit's end was seen.
        let root = NonNull::new(self.root.load(Ordering::Relaxed));
        // SAFETY: nodes are whole when a link leads to them; only the writer replaces them, and it is borrowed.
        View { root: root.map(|root| unsafe { Link::new(root) }) }
    }

    /// The tree as it is, for somebody who keeps others from changing it without the writer's lock.
    ///
    /// # Safety
    /// As long as the view is used, nobody changes the tree. The caller has had the writer's lock since the last change.
    pub unsafe fn view_still<'s>(&'s self, _proof: &'s impl Stable) -> View<'s, T> {
        let root = NonNull::new(self.root.load(Ordering::Acquire));
        // SAFETY: nodes are whole when a link leads to them; nobody replaces any, by the contract above.
        View { root: root.map(|root| unsafe { Link::new(root) }) }
    }

    /// In one step, takes out every item inside `range` and puts `new` in their place: sorted, inside `range`, without
    /// overlap. No item straddles an end of `range`. `new` is empty then, and `retired` has what to free after a grace
    /// period. Returns how many bytes the items and nodes that have come take.
    ///
    /// # Errors
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
                // There is nobody.
                Err(Unchanged::Contended) => spin_loop(),
            }
        }
    }

    /// As [`Tree::replace`], while others do the same.
    ///
    /// # Errors
    /// [`Unchanged`]; where somebody else is at work, the caller ends its section, lets a moment pass, and asks again.
    ///
    /// # Safety
    /// Nobody else puts anything into `range` meanwhile, or takes anything out. The section is of the engine, or of the
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

    /// Takes everything out, which needs no memory.
    ///
    /// # Safety
    /// Before what comes back is dropped, also by unwinding, a grace period passes.
    pub unsafe fn take_all(&self, writer: &mut Writer) -> Tree<T> {
        self.check(writer.id);
        // Readers of an older root see the tree whole.
        Self::under(self.root.swap(ptr::null_mut(), Ordering::AcqRel), self.id)
    }

    /// A writer of another tree does not exclude this tree's changes.
    fn check(&self, id: u64) {
        assert!(self.id == id, "the writer of another tree");
    }
}

impl<T: Ranged + Send + Sync + 'static> Tree<T> {
    /// Frees everything in it. Returns how many bytes that took.
    pub fn clear(&mut self) -> usize {
        /// # Safety
        /// Nobody reads the node or anything under it, now or later.
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

/// Boxes and pointers lie alike, so that turning one into the other needs no memory.
fn into_pointers<T>(boxes: Vec<Box<T>>) -> Vec<NonNull<T>> {
    let mut boxes = ManuallyDrop::new(boxes);
    // SAFETY: the vector's own parts, given up above; a Box of a sized type lies in memory as a NonNull does.
    unsafe { Vec::from_raw_parts(boxes.as_mut_ptr().cast(), boxes.len(), boxes.capacity()) }
}

/// # Safety
/// `pointers` came from [`into_pointers`], and nobody else uses them.
unsafe fn into_boxes<T>(pointers: Vec<NonNull<T>>) -> Vec<Box<T>> {
    let mut pointers = ManuallyDrop::new(pointers);
    // SAFETY: as in `into_pointers`; by the contract above the boxes own what they point to.
    unsafe { Vec::from_raw_parts(pointers.as_mut_ptr().cast(), pointers.len(), pointers.capacity()) }
}

/// The tree for who reads it.
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
    /// Where the next leaf's span begins, if there is one.
    end: Option<PageNumber>,
    index: usize,
}

impl<'s, T: Ranged> View<'s, T> {
    /// The item that contains `page`.
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

    /// The leaf over `page`, and how many of its places start there or below.
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

    /// The items that end above `page`, upwards.
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
                    // The next leaf is found from the root: that is once for many items, and needs no stack.
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

    /// The last item that ends at `page` or below.
    pub fn before(self, page: PageNumber) -> Option<&'s T> {
        // Starts at the page before it or below: starts below the page, as what ends at the page does.
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

    /// Whether changes of different parts may go on side by side: all in one leaf, they come one after the other.
    pub fn has_parts(self) -> bool {
        self.root.is_some_and(|root| matches!(root.node(), NodeRef::Inner(_)))
    }

    /// Whether there is no item.
    pub fn is_empty(self) -> bool {
        self.root.is_none()
    }
}
