//! The nodes of the tree. The parts that a search reads never change once a reader can find the node, except for links to
//! children.
//!
//! ```text
//! Inner  keys      [ 0 | 40 | 90 ]          a link's span begins at its key and ends at the next one;
//!        children    |    |    `-> …        keys count from where the node's own span begins
//!        sums        |    `-> …
//!                    `-> Leaf  starts [ 10 | 14 | 30 ]
//!                              ends   [ 12 | 20 | 33 ]
//!                              items    |    |    `-> …
//! ```
//! Keys are 32 bits wide if the node's span is short enough ([`Near`]), so that a leaf's starts fill one cache line.

use super::key::{Far, Key, Near};
use super::leaf::{Leaf, LeafRef};
use crate::address::PageNumber;
use crate::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use crate::sync::plain::{AtomicU64, Ordering as PlainOrdering};
use crate::sync::{Life, OutOfMemory, Retired, RetiredKind, try_box_uninit};
use crate::vma::tree::Ranged;
use alloc::boxed::Box;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};

/// The number of children that an inner node has room for.
#[cfg(not(loom))]
pub const CHILDREN: usize = 32;
// The number is small so that small runs reach splits and merges.
#[cfg(loom)]
pub const CHILDREN: usize = 3;

/// The part of an inner node that does not depend on its keys. The places hold nodes, all of the same height.
#[repr(C, align(64))]
pub struct Body<T> {
    /// The links to children. Atomic. The thread that has the node to itself writes them with Release. Partner: the Acquire of
    /// readers, which see the nodes under it whole.
    children: [AtomicPtr<()>; CHILDREN],
    /// Records the thread that may write the node, see [`Body::try_take`]. Atomic.
    state: AtomicUsize,
    /// The number of levels under the node. Immutable.
    height: u8,
    /// The number of children. Immutable.
    len: u8,
    /// The number of pages of the largest hole between two items under the node, or more. Atomic. The thread that has
    /// the node to itself writes it.
    gap: AtomicU64,
    /// A summary of each child, so that a search for a hole reads only the children that it goes down to. The thread that has
    /// the node to itself writes it.
    sums: [Sums; CHILDREN],
    life: Life,
    marker: PhantomData<T>,
}

/// An inner node: a body and its keys. A pointer to it may be used for the body.
#[repr(C, align(64))]
pub struct Inner<K, T> {
    body: Body<T>,
    keys: [K; CHILDREN],
}

/// A summary of the items under a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The start of the first item.
    pub start: PageNumber,
    /// The end of the last item.
    pub end: PageNumber,
    /// The number of pages of the largest hole between two items, or more. A change makes it larger if needed. A search that
    /// finds it too large corrects it.
    pub gap: u64,
}

impl Summary {
    /// Joins the summaries of neighbours, upwards. There is at least one.
    pub fn of(parts: impl Iterator<Item = Self>) -> Self {
        let join = |a: Self, b: Self| Self {
            start: a.start,
            end: b.end,
            gap: a.gap.max(b.gap).max(hole(a.end, b.start)),
        };
        let nothing = Self { start: PageNumber::new(0), end: PageNumber::new(0), gap: 0 };
        parts.reduce(join).unwrap_or(nothing)
    }
}

/// Returns the number of pages between two items.
pub fn hole(end: PageNumber, start: PageNumber) -> u64 {
    start.get().saturating_sub(end.get())
}

/// A [`Summary`] in a node. Atomic. The thread that has the node to itself writes it.
#[derive(Default)]
struct Sums {
    start: AtomicU64,
    end: AtomicU64,
    gap: AtomicU64,
}

impl<K: Key, T> Inner<K, T> {
    /// Returns the child whose span contains the page `pages` above the node's `base`. Sets `base` to the beginning of the
    /// child's span.
    #[inline]
    pub fn down(&self, base: &mut u64, pages: u64) -> Link<'_, T> {
        // The first child's span begins where the node's does, so at least one key is not above.
        let index = K::rank(&self.keys, pages).saturating_sub(1);
        *base += self.keys[index].pages();
        self.body.child(index)
    }

    fn build(height: u8, base: PageNumber, children: &[Child<T>]) -> Option<Built> {
        let pack = |child: &Child<T>| K::pack(child.start.get() - base.get());
        pack(children.last()?)?;
        let gap = Summary::of(children.iter().map(|child| child.sum)).gap;
        let Ok(mut inner) = try_box_uninit::<Self>() else { return Some(Err(OutOfMemory)) };
        let place = inner.as_mut_ptr();
        // The fields are written one by one: stacks have no room for a node.
        for i in 0..CHILDREN {
            let child = children.get(i);
            let link = child.map_or(ptr::null_mut(), |child| child.link.as_ptr());
            let sums = child.map_or_else(Sums::default, |child| child.sum.into());
            let key = child.and_then(pack).unwrap_or(K::UNUSED);
            // SAFETY: places of the box's own, each written once.
            unsafe {
                (&raw mut (*place).body.children[i]).write(AtomicPtr::new(link));
                (&raw mut (*place).body.sums[i]).write(sums);
                (&raw mut (*place).keys[i]).write(key);
            }
        }
        // SAFETY: as above, and with these every field is written.
        let inner = unsafe {
            (&raw mut (*place).body.state).write(AtomicUsize::new(FREE));
            (&raw mut (*place).body.height).write(height);
            (&raw mut (*place).body.len).write(children.len() as u8);
            (&raw mut (*place).body.gap).write(AtomicU64::new(gap));
            (&raw mut (*place).body.life).write(Life::new());
            (&raw mut (*place).body.marker).write(PhantomData);
            inner.assume_init()
        };
        Some(Ok(link(inner, INNER | K::TAG)))
    }
}

impl From<Summary> for Sums {
    fn from(sum: Summary) -> Self {
        Self {
            start: AtomicU64::new(sum.start.get()),
            end: AtomicU64::new(sum.end.get()),
            gap: AtomicU64::new(sum.gap),
        }
    }
}

/// The state of a node that is not taken.
const FREE: usize = 0;
/// The state of a node that a thread has taken to change one leaf.
const TAKEN: usize = 1;
/// The state of a node that the thread which changes the tree's shape has taken. There is one such thread at a time.
const SHAPED: usize = 2;
/// The state of a node that is no longer in the tree.
const DEAD: usize = 3;

/// Another thread has the node, or has replaced it: the caller looks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contended;

impl<T> Body<T> {
    /// Returns the number of children.
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Returns the number of levels under the node.
    pub fn height(&self) -> usize {
        usize::from(self.height)
    }

    /// Returns child `index`.
    #[inline]
    pub fn child(&self, index: usize) -> Link<'_, T> {
        let child = self.children[index].load(Ordering::Acquire);
        // SAFETY: a used place has a child, which is freed no sooner than the node, or a grace period after it was replaced.
        unsafe { Link::new(NonNull::new_unchecked(child)) }
    }

    /// Takes the node, to put another leaf into it.
    pub fn try_take(&self) -> Result<TakenNode<'_, T>, Contended> {
        // Acquire: the changes of the thread that had it before are seen; if it is dead, so is the node that took its place.
        match self.state.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Acquire) {
            Ok(_) => Ok(TakenNode(self)),
            Err(_) => Err(Contended),
        }
    }

    /// Takes the node, to change the tree's shape. Returns false if the caller has it already. [`Body::end_shaping`] releases
    /// it.
    ///
    /// # Errors
    /// [`Contended`] if another thread has it.
    pub fn try_shape(&self) -> Result<bool, Contended> {
        match self.state.compare_exchange(FREE, SHAPED, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(true),
            Err(SHAPED) => Ok(false),
            Err(_) => Err(Contended),
        }
    }

    /// Marks a taken node as no longer in the tree.
    pub fn bury(&self) {
        self.state.store(DEAD, Ordering::Release);
    }

    /// Releases a taken node, unless it has been replaced.
    pub fn end_shaping(&self) {
        if self.state.load(Ordering::Relaxed) == SHAPED {
            self.state.store(FREE, Ordering::Release);
        }
    }

    /// Puts a child in the place of one with the same span. The caller has the node to itself.
    pub fn put(&self, index: usize, child: NonNull<()>) {
        self.children[index].store(child.as_ptr(), Ordering::Release);
    }

    /// Returns the summary of child `index`.
    pub fn sum(&self, index: usize) -> Summary {
        let Sums { start, end, gap } = &self.sums[index];
        let page = |of: &AtomicU64| PageNumber::new(of.load(PlainOrdering::Relaxed));
        Summary { start: page(start), end: page(end), gap: gap.load(PlainOrdering::Relaxed) }
    }

    /// Sets the summary of child `index`. The caller has the node to itself.
    pub fn set_sum(&self, index: usize, sum: Summary) {
        let Sums { start, end, gap } = &self.sums[index];
        start.store(sum.start.get(), PlainOrdering::Relaxed);
        end.store(sum.end.get(), PlainOrdering::Relaxed);
        gap.store(sum.gap, PlainOrdering::Relaxed);
    }

    /// Sets the largest hole in the summary of child `index`. The caller has the node to itself.
    pub fn set_gap_of(&self, index: usize, gap: u64) {
        self.sums[index].gap.store(gap, PlainOrdering::Relaxed);
    }

    /// Returns the summary of the node.
    pub fn summary(&self) -> Summary {
        Summary { end: self.sum(self.len() - 1).end, gap: self.gap(), ..self.sum(0) }
    }

    /// Returns the number of pages of the largest hole between items under the node, or more.
    pub fn gap(&self) -> u64 {
        self.gap.load(PlainOrdering::Relaxed)
    }

    /// Sets the largest hole, in pages. The caller has the node to itself.
    pub fn set_gap(&self, gap: u64) {
        self.gap.store(gap, PlainOrdering::Relaxed);
    }

    /// Returns the size of the largest hole in child `index` and beside it, in pages, if that child had the summary `sum`.
    pub fn gap_beside(&self, index: usize, sum: Summary) -> u64 {
        let below = index.checked_sub(1).map_or(0, |below| hole(self.sum(below).end, sum.start));
        let above = if index + 1 < self.len() { hole(sum.end, self.sum(index + 1).start) } else { 0 };
        sum.gap.max(below).max(above)
    }
}

/// A node that was taken to put another leaf into it. Dropping it releases the node.
pub struct TakenNode<'s, T>(&'s Body<T>);

impl<T> Drop for TakenNode<'_, T> {
    fn drop(&mut self) {
        self.0.state.store(FREE, Ordering::Release);
    }
}

/// The tag of a link to an inner node.
const INNER: usize = 2;
const TAGS: usize = 3;
const NEAR_LEAF: usize = Near::TAG;
const FAR_LEAF: usize = Far::TAG;
const NEAR_INNER: usize = INNER | Near::TAG;

/// The link to a new node, or the error of its allocation.
pub type Built = Result<NonNull<()>, OutOfMemory>;

/// Gives up the box of a node, and returns the link to the node, with the tag of its kind.
pub fn link<N>(node: Box<N>, tag: usize) -> NonNull<()> {
    NonNull::from(Box::leak(node)).cast().map_addr(|address| address | tag)
}

/// A link to a node that lives for `'s`, with all nodes and items under it. Its lower bits are the tag, which says of which
/// kind the node is.
pub struct Link<'s, T> {
    pointer: NonNull<()>,
    marker: PhantomData<&'s T>,
}

impl<T> Clone for Link<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Link<'_, T> {}

/// A node of a known kind.
pub enum Kind<'s, T> {
    /// A leaf with near keys: its items are close together.
    NearLeaf(&'s Leaf<Near, T>),
    /// A leaf with far keys.
    FarLeaf(&'s Leaf<Far, T>),
    /// An inner node with near keys: its nodes are close together.
    NearInner(&'s Inner<Near, T>),
    /// An inner node with far keys.
    FarInner(&'s Inner<Far, T>),
}

/// A node with keys of either width.
pub enum NodeRef<'s, T> {
    /// A leaf, whose places hold items.
    Leaf(LeafRef<'s, T>),
    /// An inner node, whose places hold nodes.
    Inner(InnerRef<'s, T>),
}

impl<'s, T> Link<'s, T> {
    /// # Safety
    /// `pointer` came from [`Held::build`] or [`Child::build`], and neither the node nor anything under it is freed during
    /// `'s`.
    #[inline]
    pub unsafe fn new(pointer: NonNull<()>) -> Self {
        Self { pointer, marker: PhantomData }
    }

    /// Returns the link as it stands in a node.
    pub fn pointer(self) -> NonNull<()> {
        self.pointer
    }

    /// Returns the address and the tag of the node.
    #[inline]
    fn parts(self) -> (NonNull<()>, usize) {
        let tag = self.pointer.addr().get() & TAGS;
        // SAFETY: a node's address has zeros where its link has the tag.
        (unsafe { self.pointer.byte_sub(tag) }, tag)
    }

    /// Returns the node with its keys' width.
    #[inline]
    pub fn read(self) -> Kind<'s, T> {
        let (node, tag) = self.parts();
        // SAFETY: by the contract of `new`; the tag says which kind of node was built there.
        unsafe {
            match tag {
                NEAR_LEAF => Kind::NearLeaf(alive(node, |leaf: &Leaf<Near, T>| &leaf.life)),
                FAR_LEAF => Kind::FarLeaf(alive(node, |leaf: &Leaf<Far, T>| &leaf.life)),
                NEAR_INNER => Kind::NearInner(alive(node, |inner: &Inner<Near, T>| &inner.body.life)),
                _ => Kind::FarInner(alive(node, |inner: &Inner<Far, T>| &inner.body.life)),
            }
        }
    }

    /// Returns the node, with keys of either width.
    #[inline]
    pub fn node(self) -> NodeRef<'s, T> {
        match self.read() {
            Kind::NearLeaf(leaf) => NodeRef::Leaf(LeafRef::Near(leaf)),
            Kind::FarLeaf(leaf) => NodeRef::Leaf(LeafRef::Far(leaf)),
            Kind::NearInner(inner) => {
                NodeRef::Inner(InnerRef { body: &inner.body, keys: Keys::Near(&inner.keys) })
            }
            Kind::FarInner(inner) => {
                NodeRef::Inner(InnerRef { body: &inner.body, keys: Keys::Far(&inner.keys) })
            }
        }
    }

    /// Returns the summary of the node, whose span begins at `base`.
    pub fn summary(self, base: PageNumber) -> Summary {
        match self.node() {
            NodeRef::Leaf(leaf) => Summary::of(leaf.live(base, 0..leaf.len()).map(|held| held.summary())),
            NodeRef::Inner(inner) => inner.body.summary(),
        }
    }
}

/// # Safety
/// The contract is that of [`NonNull::as_ref`]; the node is an `N`.
#[inline]
unsafe fn alive<'s, N>(node: NonNull<()>, life: impl Fn(&N) -> &Life) -> &'s N {
    // SAFETY: by the contract above.
    let node = unsafe { node.cast::<N>().as_ref() };
    life(node).touch();
    node
}

enum Keys<'s> {
    Near(&'s [Near; CHILDREN]),
    Far(&'s [Far; CHILDREN]),
}

/// An inner node with keys of either width.
pub struct InnerRef<'s, T> {
    /// The part that does not depend on the keys.
    pub body: &'s Body<T>,
    keys: Keys<'s>,
}

impl<T> Clone for InnerRef<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for InnerRef<'_, T> {}
impl Clone for Keys<'_> {
    fn clone(&self) -> Self {
        *self
    }
}
impl Copy for Keys<'_> {}

impl<T> InnerRef<'_, T> {
    /// Returns the index of the child whose span contains the page `pages` above the beginning of the node's span.
    #[inline]
    pub fn place(&self, pages: u64) -> usize {
        let rank = match self.keys {
            Keys::Near(keys) => Near::rank(keys, pages),
            Keys::Far(keys) => Far::rank(keys, pages),
        };
        rank.saturating_sub(1)
    }

    /// Returns the beginning of the span of child `index`, in a node whose own span begins at `base`.
    #[inline]
    pub fn start(&self, base: PageNumber, index: usize) -> PageNumber {
        let pages = match self.keys {
            Keys::Near(keys) => keys[index].pages(),
            Keys::Far(keys) => keys[index].pages(),
        };
        PageNumber::new(base.get() + pages)
    }
}

/// A node as an entry of its parent.
pub struct Child<T> {
    /// The beginning of the node's span.
    pub start: PageNumber,
    /// The summary of the node.
    pub sum: Summary,
    /// The link to the node.
    pub link: NonNull<()>,
    /// The type of the items.
    pub marker: PhantomData<*const T>,
}

impl<T> Clone for Child<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Child<T> {}

impl<T> Child<T> {
    /// Makes a new node whose span begins at `base`, of at least one child and at most [`CHILDREN`].
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn build(height: usize, base: PageNumber, children: &[Self]) -> Built {
        let far = || Inner::<Far, T>::build(height as u8, base, children);
        Inner::<Near, T>::build(height as u8, base, children).or_else(far).unwrap_or(Err(OutOfMemory))
    }
}

/// Frees a node, but not the nodes and items that hang in it. Under loom it only ends the node's life, and stays allocated;
/// see [`Life`].
///
/// # Safety
/// The link came from [`Held::build`] or [`Child::build`]; no thread reads the node now or later.
pub unsafe fn free_node<T>(link: NonNull<()>) {
    /// # Safety
    /// The contract is that of the outer function; the node is an `N`.
    unsafe fn free<N>(node: NonNull<()>, life: impl Fn(&N) -> &Life) {
        // SAFETY: by the contract above; the node was a box.
        unsafe {
            life(node.cast().as_ref()).end();
            if !cfg!(loom) {
                drop(Box::from_raw(node.cast::<N>().as_ptr()));
            }
        }
    }
    // SAFETY: by the contract above; a link's tag says which kind of node it leads to.
    unsafe {
        let (node, tag) = Link::<T>::new(link).parts();
        match tag {
            NEAR_LEAF => free(node, |leaf: &Leaf<Near, T>| &leaf.life),
            FAR_LEAF => free(node, |leaf: &Leaf<Far, T>| &leaf.life),
            NEAR_INNER => free(node, |inner: &Inner<Near, T>| &inner.body.life),
            _ => free(node, |inner: &Inner<Far, T>| &inner.body.life),
        }
    }
}

/// Frees an item. Under loom it only ends the item's life, and stays allocated.
///
/// # Safety
/// The item came into the tree as a box; no thread reads it now or later.
pub unsafe fn free_item<T: Ranged>(item: NonNull<()>) {
    let item = item.cast::<T>();
    // SAFETY: by the contract above.
    unsafe {
        item.as_ref().life().end();
        if !cfg!(loom) {
            drop(Box::from_raw(item.as_ptr()));
        }
    }
}

/// The kinds of things that a tree of `T`s retires.
struct Kinds<T>(PhantomData<T>);

impl<T: Ranged + 'static> Kinds<T> {
    const ITEM: RetiredKind =
        RetiredKind { free: free_item::<T>, bytes: size_of::<T>(), is_charged: true, retired: None };
    const KEEPER: RetiredKind = RetiredKind {
        free: Self::free_keeper,
        bytes: size_of::<T>(),
        is_charged: true,
        retired: Some(Self::retired),
    };

    /// # Safety
    /// The item is not freed yet.
    unsafe fn retired(item: NonNull<()>) -> bool {
        // SAFETY: by the contract above.
        unsafe { item.cast::<T>().as_ref() }.retired()
    }

    /// # Safety
    /// The contract is that of [`free_item`]. Called after [`Self::retired`].
    unsafe fn free_keeper(item: NonNull<()>) {
        // SAFETY: by the contract above.
        unsafe {
            item.cast::<T>().as_ref().freed();
            free_item::<T>(item);
        }
    }
}

impl<T: 'static> Kinds<T> {
    const NEAR_LEAF: RetiredKind = Self::node(size_of::<Leaf<Near, T>>());
    const FAR_LEAF: RetiredKind = Self::node(size_of::<Leaf<Far, T>>());
    const NEAR_INNER: RetiredKind = Self::node(size_of::<Inner<Near, T>>());
    const FAR_INNER: RetiredKind = Self::node(size_of::<Inner<Far, T>>());

    const fn node(bytes: usize) -> RetiredKind {
        RetiredKind { free: free_node::<T>, bytes, is_charged: true, retired: None }
    }
}

/// Returns the kind by which the node is freed.
fn kind_of_node<T: 'static>(link: NonNull<()>) -> &'static RetiredKind {
    match link.addr().get() & TAGS {
        NEAR_LEAF => &Kinds::<T>::NEAR_LEAF,
        FAR_LEAF => &Kinds::<T>::FAR_LEAF,
        NEAR_INNER => &Kinds::<T>::NEAR_INNER,
        _ => &Kinds::<T>::FAR_INNER,
    }
}

/// Returns the number of bytes of the node.
pub fn bytes_of_node<T: 'static>(link: NonNull<()>) -> usize {
    kind_of_node::<T>(link).bytes
}

/// Retires a node that no new reader finds.
pub fn retired_node<T: Send + 'static>(link: NonNull<()>) -> Retired {
    let kind = kind_of_node::<T>(link);
    // SAFETY: the items under the node may be sent, and `free_node` is called once, after a grace period.
    unsafe { Retired::from_raw(link, kind) }
}

/// Retires an item that no new reader finds.
pub fn retired_item<T: Ranged + Send + 'static>(item: NonNull<T>) -> Retired {
    // SAFETY: the item is freed after a grace period, which has not begun.
    let is_keeper = unsafe { item.as_ref() }.keeps_something();
    let kind = if is_keeper { &Kinds::<T>::KEEPER } else { &Kinds::<T>::ITEM };
    // SAFETY: the item may be sent, and is freed once, after a grace period.
    unsafe { Retired::from_raw(item.cast(), kind) }
}
