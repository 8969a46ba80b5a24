//! Nodes: never written once a reader can find them, freed after a grace period.
//!
//! ```text
//! Inner  starts  [ 10 | 40 | 90 ]     Leaf  starts  [ 10 | 14 | 30 ]
//!        children  |    |    `-> …          slots   { end 12, item } { end 20, item } { end 33, item }
//!        sums      |    `-> …
//!                  `-> that leaf: 10..33, gap 10 (20..30), count 3
//! ```

use crate::address::{PageNumber, PageRange};
use crate::sync::{Life, OutOfMemory, try_box};
use crate::vma::tree::Ranged;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::marker::PhantomData;
use core::ops::Range;
use core::ptr::NonNull;

/// Items of a leaf: with the header their starts fill two cache lines.
#[cfg(not(loom))]
const ITEMS: usize = 15;
/// Children of an inner node: with the header their starts fill four cache lines.
#[cfg(not(loom))]
const CHILDREN: usize = 31;
// Small runs reach splits and merges.
#[cfg(loom)]
const ITEMS: usize = 2;
#[cfg(loom)]
const CHILDREN: usize = 3;

/// What stands in unused places.
const UNUSED: PageNumber = PageNumber::new(u64::MAX);

/// The head of a leaf (height 0) or of an inner node; a pointer to it may be used for the whole node.
#[repr(C)]
pub struct Node<T> {
    height: u8,
    len: u8,
    life: Life,
    marker: PhantomData<*const T>,
}

impl<T> Node<T> {
    fn new(height: u8, len: usize) -> Self {
        Self { height, len: len as u8, life: Life::new(), marker: PhantomData }
    }
}

/// A node whose places hold items.
#[repr(C, align(64))]
pub struct Leaf<T> {
    node: Node<T>,
    starts: [PageNumber; ITEMS],
    slots: [Slot<T>; ITEMS],
}

/// What a search reads behind the start: one cache line.
#[repr(C, align(16))]
struct Slot<T> {
    end: PageNumber,
    item: NonNull<T>,
}

/// A node whose places hold nodes, all of the same height.
#[repr(C, align(64))]
pub struct Inner<T> {
    node: Node<T>,
    starts: [PageNumber; CHILDREN],
    children: [NonNull<Node<T>>; CHILDREN],
    /// What is under each child, so that a search for a gap reads only the children it goes down to.
    sums: [Summary; CHILDREN],
}

#[cfg(not(loom))]
const _: () = {
    assert!(core::mem::offset_of!(Leaf<u8>, slots) == 128 && size_of::<Leaf<u8>>() == 384);
    assert!(core::mem::offset_of!(Inner<u8>, children) == 256);
};

/// What is under a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Start of the first item.
    pub start: PageNumber,
    /// End of the last item.
    pub end: PageNumber,
    /// Pages of the largest hole between two items.
    pub gap: u64,
    /// Items.
    pub count: usize,
}

impl Summary {
    const NOTHING: Self = Self { start: UNUSED, end: UNUSED, gap: 0, count: 0 };

    /// Of neighbours, upwards.
    fn of(parts: impl Iterator<Item = Self>) -> Self {
        let join = |a: Self, b: Self| Self {
            start: a.start,
            end: b.end,
            gap: a.gap.max(b.gap).max(b.start.get().saturating_sub(a.end.get())),
            count: a.count + b.count,
        };
        parts.reduce(join).unwrap_or(Self::NOTHING)
    }
}

/// How many of `starts` are not above `page`. (Comparing all of them without a branch took twice as long.)
#[inline]
fn rank(starts: &[PageNumber], len: usize, page: PageNumber) -> usize {
    starts[..len].partition_point(|&start| start <= page)
}

impl<T> Leaf<T> {
    /// How many items; at least one.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.node.len)
    }

    /// How many items start at `page` or below.
    #[inline]
    pub fn rank(&self, page: PageNumber) -> usize {
        rank(&self.starts, self.len(), page)
    }

    fn slots(&self) -> &[Slot<T>] {
        &self.slots[..self.len()]
    }

    /// Start of item `index`.
    pub fn start(&self, index: usize) -> PageNumber {
        self.starts[index]
    }

    /// End of item `index`.
    #[inline]
    pub fn end(&self, index: usize) -> PageNumber {
        self.slots()[index].end
    }

    /// Where item `index` lies.
    pub fn pointer(&self, index: usize) -> NonNull<T> {
        self.slots()[index].item
    }

    /// Item `index`.
    #[inline]
    pub fn item(&self, index: usize) -> &T
    where
        T: Ranged,
    {
        // SAFETY: the used slots of a leaf hold items that are freed no sooner than the leaf.
        let item = unsafe { self.slots()[index].item.as_ref() };
        item.life().touch();
        item
    }
}

impl<T> Inner<T> {
    /// How many children; at least two.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.node.len)
    }

    /// How many children start at `page` or below.
    #[inline]
    pub fn rank(&self, page: PageNumber) -> usize {
        rank(&self.starts, self.len(), page)
    }

    /// What is under each child.
    pub fn sums(&self) -> &[Summary] {
        &self.sums[..self.len()]
    }

    /// Child `index`.
    #[inline]
    pub fn child(&self, index: usize) -> NodeRef<'_, T> {
        NodeRef { pointer: self.children[..self.len()][index], marker: PhantomData }
    }
}

/// A node that lives for `'s`, with everything under it.
pub struct NodeRef<'s, T> {
    pointer: NonNull<Node<T>>,
    marker: PhantomData<&'s T>,
}

impl<T> Clone for NodeRef<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for NodeRef<'_, T> {}
impl<T> PartialEq for NodeRef<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        self.pointer == other.pointer
    }
}

/// A node, looked at.
pub enum Kind<'s, T> {
    /// Height 0.
    Leaf(&'s Leaf<T>),
    /// Any other height.
    Inner(&'s Inner<T>),
}

impl<'s, T> NodeRef<'s, T> {
    /// # Safety
    /// `pointer` came from [`Entry::build`], and neither the node nor anything under it is freed during `'s`.
    #[inline]
    pub unsafe fn new(pointer: NonNull<Node<T>>) -> Self {
        Self { pointer, marker: PhantomData }
    }

    /// The node.
    #[inline]
    pub fn read(self) -> Kind<'s, T> {
        // SAFETY: by the contract of `new`; a leaf has height 0 and an inner node another one, and the pointer may be
        // used for the whole of either.
        unsafe {
            let node = self.pointer.as_ref();
            node.life.touch();
            match node.height {
                0 => Kind::Leaf(self.pointer.cast().as_ref()),
                _ => Kind::Inner(self.pointer.cast().as_ref()),
            }
        }
    }

    /// Where it lies.
    pub fn pointer(self) -> NonNull<Node<T>> {
        self.pointer
    }

    /// How many levels are under it.
    pub fn height(self) -> usize {
        // SAFETY: by the contract of `new`.
        usize::from(unsafe { self.pointer.as_ref() }.height)
    }

    /// How many places it uses.
    pub fn len(self) -> usize {
        match self.read() {
            Kind::Leaf(leaf) => leaf.len(),
            Kind::Inner(inner) => inner.len(),
        }
    }

    /// What is under it.
    pub fn summary(self) -> Summary {
        match self.read() {
            Kind::Leaf(leaf) => Summary::of((0..leaf.len()).map(|i| Held::of(leaf, i).summary())),
            Kind::Inner(inner) => Summary::of(inner.sums().iter().copied()),
        }
    }
}

/// What a place of a node holds, on its way from an old node to a new one.
pub trait Entry<T>: Copy {
    /// Places of a node.
    const CAPACITY: usize;
    /// Places that every node uses which has a neighbour.
    const MINIMUM: usize;

    /// The entries in `places` of `node`, which has the right height.
    fn of(node: NodeRef<'_, T>, places: Range<usize>) -> impl Iterator<Item = Self>;

    /// The node, if it is one: it can be the root.
    fn into_child(self) -> Option<Child<T>>;

    /// A new node that holds `entries`: at least one, and no more than [`Entry::CAPACITY`].
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn build(height: usize, entries: &[Self]) -> Result<Child<T>, OutOfMemory>;
}

/// An item, as a leaf holds it.
pub struct Held<T> {
    start: PageNumber,
    end: PageNumber,
    item: NonNull<T>,
}

impl<T> Clone for Held<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Held<T> {}

impl<T> Held<T> {
    /// An item and its range.
    pub fn new(range: PageRange, item: NonNull<T>) -> Self {
        Self { start: range.start(), end: range.end(), item }
    }

    fn of(leaf: &Leaf<T>, index: usize) -> Self {
        Self { start: leaf.start(index), end: leaf.end(index), item: leaf.pointer(index) }
    }

    fn summary(self) -> Summary {
        Summary { start: self.start, end: self.end, gap: 0, count: 1 }
    }
}

impl<T> Entry<T> for Held<T> {
    const CAPACITY: usize = ITEMS;
    const MINIMUM: usize = ITEMS.div_ceil(4);

    fn of(node: NodeRef<'_, T>, places: Range<usize>) -> impl Iterator<Item = Self> {
        let Kind::Leaf(leaf) = node.read() else { unreachable!("height 0 is a leaf") };
        places.map(|i| Held::of(leaf, i))
    }

    fn into_child(self) -> Option<Child<T>> {
        None
    }

    fn build(height: usize, entries: &[Self]) -> Result<Child<T>, OutOfMemory> {
        debug_assert!(height == 0);
        let at = |i: usize| entries.get(i);
        let leaf = try_box(Leaf {
            node: Node::new(0, entries.len()),
            starts: core::array::from_fn(|i| at(i).map_or(UNUSED, |held| held.start)),
            slots: core::array::from_fn(|i| Slot {
                end: at(i).map_or(UNUSED, |held| held.end),
                item: at(i).map_or(NonNull::dangling(), |held| held.item),
            }),
        })?;
        let summary = Summary::of(entries.iter().map(|held| held.summary()));
        Ok(Child { summary, node: pointer_to(leaf) })
    }
}

/// A node, as its parent holds it.
pub struct Child<T> {
    summary: Summary,
    node: NonNull<Node<T>>,
}

impl<T> Clone for Child<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Child<T> {}

impl<T> Child<T> {
    /// Where the node lies.
    pub fn pointer(self) -> NonNull<Node<T>> {
        self.node
    }
}

impl<T> Entry<T> for Child<T> {
    const CAPACITY: usize = CHILDREN;
    // Two at least, or the tree would grow without branching.
    const MINIMUM: usize = if CHILDREN < 8 { 2 } else { CHILDREN.div_ceil(4) };

    fn of(node: NodeRef<'_, T>, places: Range<usize>) -> impl Iterator<Item = Self> {
        let Kind::Inner(inner) = node.read() else { unreachable!("height above 0 is an inner node") };
        places.map(|i| Child { summary: inner.sums()[i], node: inner.child(i).pointer })
    }

    fn into_child(self) -> Option<Child<T>> {
        Some(self)
    }

    fn build(height: usize, entries: &[Self]) -> Result<Child<T>, OutOfMemory> {
        debug_assert!(height > 0);
        let at = |i: usize| entries.get(i);
        let inner = try_box(Inner {
            node: Node::new(height as u8, entries.len()),
            starts: core::array::from_fn(|i| at(i).map_or(UNUSED, |child| child.summary.start)),
            children: core::array::from_fn(|i| at(i).map_or(NonNull::dangling(), |child| child.node)),
            sums: core::array::from_fn(|i| at(i).map_or(Summary::NOTHING, |child| child.summary)),
        })?;
        let summary = Summary::of(entries.iter().map(|child| child.summary));
        Ok(Child { summary, node: pointer_to(inner) })
    }
}

fn pointer_to<N, T>(node: Box<N>) -> NonNull<Node<T>> {
    NonNull::from(Box::leak(node)).cast()
}

/// Frees a node, not what hangs in it. Under loom it says so and stays allocated, see [`Life`].
///
/// # Safety
/// The node came from [`Entry::build`]; nobody reads it now or later.
pub unsafe fn free_node<T>(node: NonNull<Node<T>>) {
    // SAFETY: by the contract above. What has height 0 was a boxed leaf, all else a boxed inner node.
    unsafe {
        node.as_ref().life.end();
        match node.as_ref().height {
            _ if cfg!(loom) => (),
            0 => drop(Box::from_raw(node.cast::<Leaf<T>>().as_ptr())),
            _ => drop(Box::from_raw(node.cast::<Inner<T>>().as_ptr())),
        }
    }
}

/// Frees an item. Under loom it says so and stays allocated.
///
/// # Safety
/// The item came into the tree as a box; nobody reads it now or later.
pub unsafe fn free_item<T: Ranged>(item: NonNull<T>) {
    // SAFETY: by the contract above.
    unsafe {
        item.as_ref().life().end();
        if !cfg!(loom) {
            drop(Box::from_raw(item.as_ptr()));
        }
    }
}

/// What a change took out of the tree. Frees it when dropped: after a grace period, or with nobody there to read.
///
/// The pointers stay raw until then: a `Box` would claim, while readers are about, that nobody else reads.
pub struct Removed<T: Ranged> {
    /// The nodes that were replaced.
    pub nodes: Vec<NonNull<Node<T>>>,
    /// The items that were in the range.
    pub items: Vec<NonNull<T>>,
}

// SAFETY: it owns nodes and items as boxes would; nodes hold nothing but pointers to such.
unsafe impl<T: Ranged + Send> Send for Removed<T> {}

impl<T: Ranged> Removed<T> {
    /// Whether there is nothing to free.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.items.is_empty()
    }
}

impl<T: Ranged> Drop for Removed<T> {
    fn drop(&mut self) {
        // SAFETY: unhooked, and whoever drops this sees to the grace period.
        self.nodes.iter().for_each(|&node| unsafe { free_node(node) });
        // SAFETY: as above.
        self.items.iter().for_each(|&item| unsafe { free_item(item) });
    }
}
