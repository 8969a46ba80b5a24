//! Nodes. What a search reads of them never changes once a reader can find them, but for the links to children.
//!
//! ```text
//! Inner  keys      [ 0 | 40 | 90 ]          a link's span begins at its key and ends at the next one;
//!        children    |    |    `-> …        keys count from where the node's own span begins
//!        sums        |    `-> …
//!                    `-> Leaf  starts [ 10 | 14 | 30 ]
//!                              ends   [ 12 | 20 | 33 ]
//!                              items    |    |    `-> …
//! ```
//! Keys are 32 bits wide where the node's span is short enough ([`Near`]), so that a leaf's starts fill one cache line.

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

/// Children of an inner node.
#[cfg(not(loom))]
pub const CHILDREN: usize = 32;
// Small runs reach splits and merges.
#[cfg(loom)]
pub const CHILDREN: usize = 3;

/// A node whose places hold nodes, all of the same height: what does not depend on its keys.
#[repr(C, align(64))]
pub struct Body<T> {
    /// Written by who has the node, with Release; partner: the Acquire of readers, who see what is under it whole.
    children: [AtomicPtr<()>; CHILDREN],
    /// Who may write the node, see [`Body::try_take`].
    state: AtomicUsize,
    height: u8,
    len: u8,
    /// Pages of the largest hole between two items under it, or more. Written by who has the node.
    gap: AtomicU64,
    /// What is under each child, so that a search for a hole reads only the children it goes down to. Written by who has
    /// the node.
    sums: [Sums; CHILDREN],
    life: Life,
    marker: PhantomData<T>,
}

/// A body and its keys. A pointer to it may be used for the body.
#[repr(C, align(64))]
pub struct Inner<K, T> {
    body: Body<T>,
    keys: [K; CHILDREN],
}

/// What is under a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Start of the first item.
    pub start: PageNumber,
    /// End of the last item.
    pub end: PageNumber,
    /// Pages of the largest hole between two items, or more: a change makes it larger where it must, and a search that
    /// finds it too large makes it less.
    pub gap: u64,
}

impl Summary {
    /// Of neighbours, upwards; there is one.
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

/// Pages between two items.
pub fn hole(end: PageNumber, start: PageNumber) -> u64 {
    start.get().saturating_sub(end.get())
}

/// A [`Summary`] that is written under its node's lock.
#[derive(Default)]
struct Sums {
    start: AtomicU64,
    end: AtomicU64,
    gap: AtomicU64,
}

impl<K: Key, T> Inner<K, T> {
    /// The child whose span has `pages` from where this node's begins, and where its own span begins.
    #[inline]
    pub fn down(&self, base: &mut u64, pages: u64) -> Link<'_, T> {
        // The first child's span begins where the node's does: at least one key is not above.
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
        // Field by field: stacks have no room for a node.
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

/// Nobody has the node.
const FREE: usize = 0;
/// Somebody has it who changes one leaf.
const TAKEN: usize = 1;
/// Who changes the tree's shape has it; that is one at a time.
const SHAPED: usize = 2;
/// It is in the tree no more.
const DEAD: usize = 3;

/// Somebody else has the node, or has replaced it: look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contended;

impl<T> Body<T> {
    /// How many children.
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// How many levels are under it.
    pub fn height(&self) -> usize {
        usize::from(self.height)
    }

    /// Child `index`.
    #[inline]
    pub fn child(&self, index: usize) -> Link<'_, T> {
        let child = self.children[index].load(Ordering::Acquire);
        // SAFETY: a used place has a child, which is freed no sooner than the node, or a grace period after it was
        // replaced.
        unsafe { Link::new(NonNull::new_unchecked(child)) }
    }

    /// Takes the node, to put another leaf into it.
    pub fn try_take(&self) -> Result<TakenNode<'_, T>, Contended> {
        // Acquire: what who had it before has done; if it is dead, what has come in its place.
        match self.state.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Acquire) {
            Ok(_) => Ok(TakenNode(self)),
            Err(_) => Err(Contended),
        }
    }

    /// Takes the node, to change the tree's shape; also if the caller has it already. [`Body::end_shaping`] lets it go.
    ///
    /// # Errors
    /// [`Contended`].
    pub fn try_shape(&self) -> Result<bool, Contended> {
        match self.state.compare_exchange(FREE, SHAPED, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(true),
            Err(SHAPED) => Ok(false),
            Err(_) => Err(Contended),
        }
    }

    /// A node taken is in the tree no more.
    pub fn bury(&self) {
        self.state.store(DEAD, Ordering::Release);
    }

    /// Lets go of a node taken, unless it has been replaced.
    pub fn end_shaping(&self) {
        if self.state.load(Ordering::Relaxed) == SHAPED {
            self.state.store(FREE, Ordering::Release);
        }
    }

    /// Puts a child in the place of one with the same span. The caller has taken the node.
    pub fn put(&self, index: usize, child: NonNull<()>) {
        self.children[index].store(child.as_ptr(), Ordering::Release);
    }

    /// What is under child `index`.
    pub fn sum(&self, index: usize) -> Summary {
        let Sums { start, end, gap } = &self.sums[index];
        let page = |of: &AtomicU64| PageNumber::new(of.load(PlainOrdering::Relaxed));
        Summary { start: page(start), end: page(end), gap: gap.load(PlainOrdering::Relaxed) }
    }

    /// Says so. The caller has taken the node.
    pub fn set_sum(&self, index: usize, sum: Summary) {
        let Sums { start, end, gap } = &self.sums[index];
        start.store(sum.start.get(), PlainOrdering::Relaxed);
        end.store(sum.end.get(), PlainOrdering::Relaxed);
        gap.store(sum.gap, PlainOrdering::Relaxed);
    }

    /// As [`Body::set_sum`], of the largest hole alone.
    pub fn set_gap_of(&self, index: usize, gap: u64) {
        self.sums[index].gap.store(gap, PlainOrdering::Relaxed);
    }

    /// What is under the node.
    pub fn summary(&self) -> Summary {
        Summary { end: self.sum(self.len() - 1).end, gap: self.gap(), ..self.sum(0) }
    }

    /// Pages of the largest hole, or more.
    pub fn gap(&self) -> u64 {
        self.gap.load(PlainOrdering::Relaxed)
    }

    /// Says so. The caller has taken the node.
    pub fn set_gap(&self, gap: u64) {
        self.gap.store(gap, PlainOrdering::Relaxed);
    }

    /// The largest hole in the sums, as far as they say, and beside child `index` if that had `sum`.
    pub fn gap_beside(&self, index: usize, sum: Summary) -> u64 {
        let below = index.checked_sub(1).map_or(0, |below| hole(self.sum(below).end, sum.start));
        let above = if index + 1 < self.len() { hole(sum.end, self.sum(index + 1).start) } else { 0 };
        sum.gap.max(below).max(above)
    }
}

/// A node taken to put another leaf into it; let go by dropping it.
pub struct TakenNode<'s, T>(&'s Body<T>);

impl<T> Drop for TakenNode<'_, T> {
    fn drop(&mut self) {
        self.0.state.store(FREE, Ordering::Release);
    }
}

/// What a link carries that leads to an inner node.
const INNER: usize = 2;
const TAGS: usize = 3;
const NEAR_LEAF: usize = Near::TAG;
const FAR_LEAF: usize = Far::TAG;
const NEAR_INNER: usize = INNER | Near::TAG;

/// The link to a new node.
pub type Built = Result<NonNull<()>, OutOfMemory>;

pub fn link<N>(node: Box<N>, tag: usize) -> NonNull<()> {
    NonNull::from(Box::leak(node)).cast().map_addr(|address| address | tag)
}

/// A link to a node that lives for `'s`, with everything under it. Its lower bits say of which kind the node is.
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

/// A node, looked at.
pub enum Kind<'s, T> {
    /// Items, close together.
    NearLeaf(&'s Leaf<Near, T>),
    /// Items.
    FarLeaf(&'s Leaf<Far, T>),
    /// Nodes, close together.
    NearInner(&'s Inner<Near, T>),
    /// Nodes.
    FarInner(&'s Inner<Far, T>),
}

/// The same, where it does not matter how wide its keys are.
pub enum NodeRef<'s, T> {
    /// Items.
    Leaf(LeafRef<'s, T>),
    /// Nodes.
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

    /// The link as it stands in a node.
    pub fn pointer(self) -> NonNull<()> {
        self.pointer
    }

    /// Where the node lies, and of which kind it is.
    #[inline]
    fn parts(self) -> (NonNull<()>, usize) {
        let tag = self.pointer.addr().get() & TAGS;
        // SAFETY: a node's address has zeros where its link has the tag.
        (unsafe { self.pointer.byte_sub(tag) }, tag)
    }

    /// The node.
    #[inline]
    pub fn read(self) -> Kind<'s, T> {
        let (node, tag) = self.parts();
        // SAFETY: by the contract of `new`; the tag says what was built there.
        unsafe {
            match tag {
                NEAR_LEAF => Kind::NearLeaf(alive(node, |leaf: &Leaf<Near, T>| &leaf.life)),
                FAR_LEAF => Kind::FarLeaf(alive(node, |leaf: &Leaf<Far, T>| &leaf.life)),
                NEAR_INNER => Kind::NearInner(alive(node, |inner: &Inner<Near, T>| &inner.body.life)),
                _ => Kind::FarInner(alive(node, |inner: &Inner<Far, T>| &inner.body.life)),
            }
        }
    }

    /// The node.
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

    /// What is under it; its span begins at `base`.
    pub fn summary(self, base: PageNumber) -> Summary {
        match self.node() {
            NodeRef::Leaf(leaf) => Summary::of(leaf.live(base, 0..leaf.len()).map(|held| held.summary())),
            NodeRef::Inner(inner) => inner.body.summary(),
        }
    }
}

/// # Safety
/// As [`NonNull::as_ref`]; the node is an `N`.
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
    /// The rest of it.
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
    /// The child whose span has `pages` from where this node's begins.
    #[inline]
    pub fn place(&self, pages: u64) -> usize {
        let rank = match self.keys {
            Keys::Near(keys) => Near::rank(keys, pages),
            Keys::Far(keys) => Far::rank(keys, pages),
        };
        rank.saturating_sub(1)
    }

    /// Where the span of child `index` begins, in a node whose own begins at `base`.
    #[inline]
    pub fn start(&self, base: PageNumber, index: usize) -> PageNumber {
        let pages = match self.keys {
            Keys::Near(keys) => keys[index].pages(),
            Keys::Far(keys) => keys[index].pages(),
        };
        PageNumber::new(base.get() + pages)
    }
}

/// A node, as its parent holds it.
pub struct Child<T> {
    /// Where its span begins.
    pub start: PageNumber,
    /// What is under it.
    pub sum: Summary,
    /// Itself.
    pub link: NonNull<()>,
    /// Of what.
    pub marker: PhantomData<*const T>,
}

impl<T> Clone for Child<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Child<T> {}

impl<T> Child<T> {
    /// A new node whose span begins at `base`, of at least one child, and no more than [`CHILDREN`].
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn build(height: usize, base: PageNumber, children: &[Self]) -> Built {
        let far = || Inner::<Far, T>::build(height as u8, base, children);
        Inner::<Near, T>::build(height as u8, base, children).or_else(far).unwrap_or(Err(OutOfMemory))
    }
}

/// Frees a node, not what hangs in it. Under loom it says so and stays allocated, see [`Life`].
///
/// # Safety
/// The link came from [`Held::build`] or [`Child::build`]; nobody reads the node now or later.
pub unsafe fn free_node<T>(link: NonNull<()>) {
    /// # Safety
    /// As above; the node is an `N`.
    unsafe fn free<N>(node: NonNull<()>, life: impl Fn(&N) -> &Life) {
        // SAFETY: by the contract above; the node was a box.
        unsafe {
            life(node.cast().as_ref()).end();
            if !cfg!(loom) {
                drop(Box::from_raw(node.cast::<N>().as_ptr()));
            }
        }
    }
    // SAFETY: by the contract above; a link's tag says what it leads to.
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

/// Frees an item. Under loom it says so and stays allocated.
///
/// # Safety
/// The item came into the tree as a box; nobody reads it now or later.
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

/// Kinds of what a tree of `T`s retires.
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
    /// The item is there.
    unsafe fn retired(item: NonNull<()>) -> bool {
        // SAFETY: by the contract above.
        unsafe { item.cast::<T>().as_ref() }.retired()
    }

    /// # Safety
    /// As [`free_item`], after [`Self::retired`].
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

/// What a node is freed by.
fn kind_of_node<T: 'static>(link: NonNull<()>) -> &'static RetiredKind {
    match link.addr().get() & TAGS {
        NEAR_LEAF => &Kinds::<T>::NEAR_LEAF,
        FAR_LEAF => &Kinds::<T>::FAR_LEAF,
        NEAR_INNER => &Kinds::<T>::NEAR_INNER,
        _ => &Kinds::<T>::FAR_INNER,
    }
}

/// What a node takes.
pub fn bytes_of_node<T: 'static>(link: NonNull<()>) -> usize {
    kind_of_node::<T>(link).bytes
}

/// A node that no new reader finds.
pub fn retired_node<T: Send + 'static>(link: NonNull<()>) -> Retired {
    let kind = kind_of_node::<T>(link);
    // SAFETY: what the node points to may be sent, and `free_node` is called once, after a grace period.
    unsafe { Retired::from_raw(link, kind) }
}

/// An item that no new reader finds.
pub fn retired_item<T: Ranged + Send + 'static>(item: NonNull<T>) -> Retired {
    // SAFETY: it is freed after a grace period, which has not begun.
    let is_keeper = unsafe { item.as_ref() }.keeps_something();
    let kind = if is_keeper { &Kinds::<T>::KEEPER } else { &Kinds::<T>::ITEM };
    // SAFETY: the item may be sent, and is freed once, after a grace period.
    unsafe { Retired::from_raw(item.cast(), kind) }
}
