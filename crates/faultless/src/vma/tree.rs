//! The tree of VMAs: a B+tree of items by their page ranges, which do not overlap. Nodes are never written once they
//! are published: a change builds new ones along its way from the leaves to the root (`draft`) and swings the root,
//! so that readers see all of a change or nothing, and take no lock. What it replaced is freed after a grace period.
//!
//! | who | holds | may |
//! |---|---|---|
//! | reader | a [`Section`] | read through a [`View`] until the section ends |
//! | writer | the tree lock, with the [`Writer`] in it | read through a locked view, [`Tree::replace`] |

mod draft;
mod node;
#[cfg(all(test, not(loom), not(shuttle)))]
mod tests;

use crate::address::{PageNumber, PageRange};
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::sync::plain::{AtomicU64, Ordering as PlainOrdering};
use crate::sync::{Life, OutOfMemory, Retired, Section, try_box};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;
use core::ptr::{self, NonNull};
use draft::Draft;
use node::{Kind, Leaf, Node, NodeRef, Removed};

/// What a tree holds.
pub trait Ranged {
    /// The pages it covers. Asked once, when the item comes into the tree.
    fn range(&self) -> PageRange;
    /// The mark that a reader touches before it gets the item.
    fn life(&self) -> &Life;
}

/// Items by their ranges, for one writer and any number of readers.
pub struct Tree<T: Ranged + Send + Sync + 'static> {
    /// Null when empty. Written by the writer, with Release; partner: the Acquire of [`Tree::view`], which sees the
    /// nodes and items under the root it finds whole. An older root stays readable: its reader's section is one that
    /// the grace period waits for.
    root: AtomicPtr<Node<T>>,
    /// Equal in the tree and in its writer. Immutable.
    id: u64,
}

/// Whoever has it is the only writer of its tree. It lives in the tree lock's mutex.
#[derive(Debug)]
pub struct Writer {
    /// The tree's.
    id: u64,
}

impl<T: Ranged + Send + Sync + 'static> Tree<T> {
    /// An empty tree and its writer.
    pub fn new() -> (Self, Writer) {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, PlainOrdering::Relaxed);
        (Self { root: AtomicPtr::new(ptr::null_mut()), id }, Writer { id })
    }

    /// The tree as it is now, for a reader.
    #[inline]
    pub fn view<'s>(&'s self, _section: &'s Section<'_>) -> View<'s, T> {
        let root = NonNull::new(self.root.load(Ordering::Acquire));
        // SAFETY: nodes are built by `draft`; what a later change replaces is freed after a grace period, which
        // waits for this section.
        View { root: root.map(|root| unsafe { NodeRef::new(root) }) }
    }

    /// The tree as it is, for the writer.
    pub fn view_locked<'s>(&'s self, writer: &'s Writer) -> View<'s, T> {
        self.check(writer);
        // Relaxed: the writer's own store, or one of the writer before, whose lock was taken since.
        let root = NonNull::new(self.root.load(Ordering::Relaxed));
        // SAFETY: nodes are built by `draft`; only the writer replaces them, and it is borrowed.
        View { root: root.map(|root| unsafe { NodeRef::new(root) }) }
    }

    /// In one step, takes out every item inside `range` and puts `new` in their place: sorted, inside `range`, without
    /// overlap. No item straddles an end of `range`. Returns what to free after a grace period.
    ///
    /// # Errors
    /// [`OutOfMemory`], and `new` again: the tree is as before.
    pub fn replace(
        &self,
        writer: &mut Writer,
        range: PageRange,
        new: Vec<Box<T>>,
    ) -> Result<Option<Retired>, (OutOfMemory, Vec<Box<T>>)> {
        let root = self.view_locked(writer).root;
        let new = into_pointers(new);
        let prepared = (|| {
            let (draft, root) = Draft::new(root, range, &new)?;
            // Taken before the change is published, filled after it.
            Ok((draft, root, try_box(Removed { nodes: Vec::new(), items: Vec::new() })?))
        })();
        let (draft, root, mut removed) = match prepared {
            Ok(prepared) => prepared,
            // SAFETY: the draft is undone, nobody has seen the items.
            Err(error) => return Err((error, unsafe { into_boxes(new) })),
        };
        if draft.changes() {
            // Release: see the field.
            self.root.store(root, Ordering::Release);
            *removed = draft.publish();
            if cfg!(mutant = "stackrot") {
                // CVE-2023-3269: replaced nodes were freed while readers without the lock were in them.
                drop(removed);
            } else if !removed.is_empty() {
                return Ok(Some(Retired::new(removed)));
            }
        }
        Ok(None)
    }

    /// Takes everything out, which needs no memory: the caller waits for a grace period before it drops what comes back.
    pub fn take_all(&self, writer: &mut Writer) -> Tree<T> {
        self.check(writer);
        // Readers of an older root see the tree whole.
        let root = self.root.swap(ptr::null_mut(), Ordering::AcqRel);
        Tree { root: AtomicPtr::new(root), id: self.id }
    }

    /// A writer of another tree does not exclude this tree's changes.
    fn check(&self, writer: &Writer) {
        assert!(self.id == writer.id, "the writer of another tree");
    }
}

impl<T: Ranged + Send + Sync + 'static> Drop for Tree<T> {
    fn drop(&mut self) {
        /// # Safety
        /// Nobody reads the node or anything under it, now or later.
        unsafe fn free<T: Ranged>(node: NodeRef<'_, T>) {
            match node.read() {
                Kind::Leaf(leaf) => {
                    for index in 0..leaf.len() {
                        // SAFETY: by the contract above; this leaf is the only one that holds the item.
                        unsafe { node::free_item(leaf.pointer(index)) };
                    }
                }
                Kind::Inner(inner) => {
                    for index in 0..inner.len() {
                        // SAFETY: by the contract above.
                        unsafe { free(inner.child(index)) };
                    }
                }
            }
            // SAFETY: by the contract above.
            unsafe { node::free_node(node.pointer()) };
        }
        if let Some(root) = NonNull::new(self.root.load(Ordering::Relaxed)) {
            // SAFETY: `&mut self`: neither a reader nor a writer is left.
            unsafe { free(NodeRef::new(root)) };
        }
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

/// The tree as it was when the view was taken.
pub struct View<'s, T> {
    root: Option<NodeRef<'s, T>>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for View<'_, T> {}

impl<'s, T: Ranged> View<'s, T> {
    /// The item that contains `page`.
    #[inline]
    pub fn find(self, page: PageNumber) -> Option<&'s T> {
        let mut node = self.root?;
        loop {
            match node.read() {
                Kind::Inner(inner) => node = inner.child(inner.rank(page).checked_sub(1)?),
                Kind::Leaf(leaf) => {
                    let index = leaf.rank(page).checked_sub(1)?;
                    return (page < leaf.end(index)).then(|| leaf.item(index));
                }
            }
        }
    }

    /// The items that end above `page`, upwards.
    pub fn from(self, page: PageNumber) -> impl Iterator<Item = &'s T> {
        let mut place = self.first_above(page);
        core::iter::from_fn(move || {
            let (leaf, index) = place?;
            // The next leaf is found from the root: that is once for many items, and needs no stack.
            place = match index + 1 < leaf.len() {
                true => Some((leaf, index + 1)),
                false => self.first_above(leaf.end(index)),
            };
            Some(leaf.item(index))
        })
    }

    /// Where the first item lies that ends above `page`.
    fn first_above(self, page: PageNumber) -> Option<(&'s Leaf<T>, usize)> {
        let mut node = self.root?;
        loop {
            match node.read() {
                Kind::Inner(inner) => {
                    let index = inner.rank(page).saturating_sub(1);
                    // The last one that starts low enough, unless all of it lies too low.
                    let index = index + usize::from(inner.sums()[index].end <= page);
                    if index == inner.len() {
                        return None;
                    }
                    node = inner.child(index);
                }
                Kind::Leaf(leaf) => {
                    let index = leaf.rank(page).saturating_sub(1);
                    let index = index + usize::from(leaf.end(index) <= page);
                    return (index < leaf.len()).then_some((leaf, index));
                }
            }
        }
    }

    /// The last item that ends at `page` or below.
    pub fn before(self, page: PageNumber) -> Option<&'s T> {
        let mut node = self.root?;
        // Starts at the page before it or below: starts below the page, as what ends at the page does.
        let start = page.checked_sub(1)?;
        // All of it lies lower than what has not been looked at.
        let mut lower = None;
        loop {
            match node.read() {
                Kind::Inner(inner) => {
                    let index = inner.rank(start).saturating_sub(1);
                    if index > 0 {
                        lower = Some(inner.child(index - 1));
                    }
                    node = inner.child(index);
                }
                Kind::Leaf(leaf) => {
                    let started = leaf.rank(start);
                    let ended = started - usize::from(started > 0 && leaf.end(started - 1) > page);
                    return match ended.checked_sub(1) {
                        Some(index) => Some(leaf.item(index)),
                        None => lower.map(last_item),
                    };
                }
            }
        }
    }

    /// How many items.
    pub fn len(self) -> usize {
        self.root.map_or(0, |root| root.summary().count)
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.root.is_none()
    }

    /// Where the highest run of `pages` free pages inside `within` starts (mmap goes downwards).
    ///
    /// Only on the two ways to the ends of `within` a large hole may turn out to lie outside; so this reads as many
    /// nodes as three look-ups at most.
    pub fn highest_gap(self, pages: u64, within: PageRange) -> Option<PageNumber> {
        if pages == 0 {
            return None;
        }
        let wanted = Wanted { pages, within };
        let Some(root) = self.root else { return wanted.fit(within.start(), within.end()) };
        let all = root.summary();
        wanted
            .fit(all.end, within.end())
            .or_else(|| wanted.under(root))
            .or_else(|| wanted.fit(within.start(), all.start))
    }
}

fn last_item<T: Ranged>(mut node: NodeRef<'_, T>) -> &T {
    loop {
        match node.read() {
            Kind::Inner(inner) => node = inner.child(inner.len() - 1),
            Kind::Leaf(leaf) => return leaf.item(leaf.len() - 1),
        }
    }
}

/// A hole that is looked for.
#[derive(Clone, Copy)]
struct Wanted {
    pages: u64,
    within: PageRange,
}

impl Wanted {
    /// The highest place in the hole from `low` to `high`.
    fn fit(self, low: PageNumber, high: PageNumber) -> Option<PageNumber> {
        let (low, high) = (low.max(self.within.start()), high.min(self.within.end()));
        high.checked_sub(self.pages).filter(|&start| start >= low)
    }

    /// The highest place in a hole between two items under `node`.
    fn under<T>(self, node: NodeRef<'_, T>) -> Option<PageNumber> {
        match node.read() {
            Kind::Leaf(leaf) => (1..leaf.len()).rev().find_map(|i| self.fit(leaf.end(i - 1), leaf.start(i))),
            Kind::Inner(inner) => {
                let sums = inner.sums();
                (0..sums.len()).rev().find_map(|i| {
                    let may_have = sums[i].gap >= self.pages
                        && sums[i].start < self.within.end()
                        && sums[i].end > self.within.start();
                    let inside = may_have.then(|| self.under(inner.child(i))).flatten();
                    inside.or_else(|| self.fit(sums[i.checked_sub(1)?].end, sums[i].start))
                })
            }
        }
    }
}
