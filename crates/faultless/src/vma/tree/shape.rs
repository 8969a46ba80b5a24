//! Changes of the tree's shape. A change builds all new nodes before a reader can see one, level by level, upwards, until one
//! new node takes the place of one old node.
//!
//! On each level the nodes from `left` to `right` are replaced. The entries that they held outside the change are kept:
//!
//! ```text
//! level 1    [ a   b   c ]        [ d   e   f ]         left and right on level 1
//!            keep  |                    |  keep
//! level 0          [ 1  2  3 ] … [ 4  5  6 ]            left and right on level 0
//!                   keep └─ removed ─┘ keep
//! ```

use super::Ranged;
use super::change::{Unchanged, retire};
use super::leaf::{Held, ITEMS, MINIMUM};
use super::node::{self, Body, CHILDREN, Child, Link, NodeRef, Summary};
use crate::address::{PageNumber, PageRange};
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::sync::{OutOfMemory, RetiredList};
use alloc::vec::Vec;
use core::marker::PhantomData;
use core::ops::Range;
use core::ptr::{self, NonNull};

/// The number of levels of a tree of 2^35 items with every node filled to the minimum. No tree can have more.
const LEVELS: usize = 13;

/// The largest distance in pages from the beginning of a leaf's span to its first item: half of the reach of a near key.
const ROOM: u64 = 1 << 31;

/// An entry of a place of a node, on its way from an old node to a new one.
trait Entry<T>: Copy {
    /// The number of places of a node.
    const CAPACITY: usize;
    /// The number of places that each node with a neighbour uses at least.
    const MINIMUM: usize;

    /// Returns the entries in `places` of the step's node, which has the right height.
    fn of(step: Step<'_, T>, places: Range<usize>) -> impl Iterator<Item = Self>;
    /// Returns the entry as a node, if it is one: it can be the root.
    fn into_child(self) -> Option<Child<T>>;
    /// Returns the summary of the entry.
    fn sum(&self) -> Summary;
    /// Returns the beginning of the span of a node whose first entry is this one. `below` is the last entry of the node
    /// before it.
    fn begins(&self, below: &Self) -> PageNumber;
    /// Makes a new node.
    fn build(height: usize, base: PageNumber, entries: &[Self]) -> Result<NonNull<()>, OutOfMemory>;
}

impl<T> Entry<T> for Held<T> {
    const CAPACITY: usize = ITEMS;
    const MINIMUM: usize = MINIMUM;

    fn of(step: Step<'_, T>, places: Range<usize>) -> impl Iterator<Item = Self> {
        let NodeRef::Leaf(leaf) = step.link.node() else { unreachable!("height 0 is a leaf") };
        leaf.live(step.base, places)
    }

    fn into_child(self) -> Option<Child<T>> {
        None
    }

    fn sum(&self) -> Summary {
        self.summary()
    }

    fn begins(&self, below: &Self) -> PageNumber {
        // New mappings come downwards, so there is room below.
        below.end.max(PageNumber::new(self.start.get().saturating_sub(ROOM)))
    }

    fn build(_: usize, base: PageNumber, entries: &[Self]) -> Result<NonNull<()>, OutOfMemory> {
        Held::build(base, entries)
    }
}

impl<T> Entry<T> for Child<T> {
    const CAPACITY: usize = CHILDREN;
    // The minimum is at least two, or the tree would grow without branching.
    const MINIMUM: usize = if CHILDREN < 8 { 2 } else { CHILDREN.div_ceil(4) };

    fn of(step: Step<'_, T>, places: Range<usize>) -> impl Iterator<Item = Self> {
        let NodeRef::Inner(inner) = step.link.node() else { unreachable!("height above 0 is an inner node") };
        places.map(move |i| Child {
            start: inner.start(step.base, i),
            sum: inner.body.sum(i),
            link: inner.body.child(i).pointer(),
            marker: PhantomData,
        })
    }

    fn into_child(self) -> Option<Self> {
        Some(self)
    }

    fn sum(&self) -> Summary {
        self.sum
    }

    fn begins(&self, _: &Self) -> PageNumber {
        self.start
    }

    fn build(height: usize, base: PageNumber, entries: &[Self]) -> Result<NonNull<()>, OutOfMemory> {
        Child::build(height, base, entries)
    }
}

/// A node, the beginning of its span, and a place in it.
struct Step<'s, T> {
    link: Link<'s, T>,
    base: PageNumber,
    place: usize,
}

impl<T> Clone for Step<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Step<'_, T> {}

impl<T> Step<'_, T> {
    fn len(&self) -> usize {
        match self.link.node() {
            NodeRef::Leaf(leaf) => leaf.len(),
            NodeRef::Inner(inner) => inner.body.len(),
        }
    }
}

/// The path from the root to a place in a leaf.
struct Path<'s, T> {
    /// The node on each level, up to the root's. Separate arrays take half as much of the stack as one array of steps.
    links: [Option<Link<'s, T>>; LEVELS],
    bases: [PageNumber; LEVELS],
    /// The place on each level. On inner levels it is that of the node below.
    places: [u8; LEVELS],
}

impl<T> Clone for Path<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Path<'_, T> {}

impl<'s, T> Path<'s, T> {
    const fn new() -> Self {
        Self { links: [None; LEVELS], bases: [PageNumber::new(0); LEVELS], places: [0; LEVELS] }
    }

    fn get(&self, level: usize) -> Option<Step<'s, T>> {
        let link = self.links.get(level).copied().flatten()?;
        Some(Step { link, base: self.bases[level], place: usize::from(self.places[level]) })
    }

    fn at(&self, level: usize) -> Step<'s, T> {
        self.get(level).expect("the path reaches from the leaf to the root")
    }

    fn set(&mut self, level: usize, step: Step<'s, T>) {
        self.links[level] = Some(step.link);
        self.bases[level] = step.base;
        // Nodes have fewer places than a byte counts.
        self.places[level] = step.place as u8;
    }
}

/// The last step of a change, which makes the new nodes part of the tree.
struct Swing<T> {
    /// The new node; `None` if the tree becomes empty.
    child: Option<Child<T>>,
    /// The level of the draft's path whose node gets the new node; `None` for the root of the tree.
    level: Option<usize>,
}

/// New nodes that no reader has seen, and the nodes and items that they replace. Dropping an unpublished draft undoes it.
pub struct Draft<'s, T: Ranged> {
    new: Vec<NonNull<()>>,
    old: Vec<Link<'s, T>>,
    items: Vec<NonNull<T>>,
    /// The nodes that the draft has taken; leaves hang in each of them.
    shaped: Vec<&'s Body<T>>,
    /// The last step; `None` if nothing changes.
    swing: Option<Swing<T>>,
    /// The path to the replaced nodes.
    path: Path<'s, T>,
}

impl<T: Ranged> Drop for Draft<'_, T> {
    fn drop(&mut self) {
        for &node in &self.new {
            // SAFETY: built here, never published.
            unsafe { node::free_node::<T>(node) };
        }
        self.shaped.iter().for_each(|body| body.end_shaping());
    }
}

impl<'s, T: Ranged + Send + 'static> Draft<'s, T> {
    /// Makes an empty draft. It stays where it is made: stacks have no room for several.
    #[inline(always)]
    pub fn new() -> Self {
        Self {
            new: Vec::new(),
            old: Vec::new(),
            items: Vec::new(),
            shaped: Vec::new(),
            swing: None,
            path: Path::new(),
        }
    }

    /// Drafts the tree under `root` with `new` instead of the items in `range`.
    ///
    /// # Errors
    /// [`Unchanged`].
    #[inline(never)]
    pub fn make(
        &mut self,
        root: Option<Link<'s, T>>,
        range: PageRange,
        new: &[NonNull<T>],
    ) -> Result<(), Unchanged> {
        let mut held = Vec::new();
        held.try_reserve_exact(new.len()).map_err(|_| OutOfMemory)?;
        held.extend(new.iter().map(|&item| {
            // SAFETY: a new item, which the caller owns.
            let new_range = unsafe { item.as_ref() }.range();
            debug_assert!(range.covers(new_range), "{new_range} is put in the place of {range}");
            Held::new(new_range, item)
        }));
        let zero = PageNumber::new(0);
        let mut level = 0;
        let mut nodes;
        if let Some(root) = root {
            let (mut left, mut right) = (Path::new(), Path::new());
            self.cut(root, range, &mut left, &mut right)?;
            if new.is_empty() && self.items.is_empty() {
                return Ok(());
            }
            let height = match root.node() {
                NodeRef::Leaf(_) => 0,
                NodeRef::Inner(inner) => inner.body.height(),
            };
            nodes = self.rebuild(0, &mut left, &mut right, held)?;
            loop {
                if let [child] = nodes[..]
                    && level < height
                    && left.at(level).link.pointer() == right.at(level).link.pointer()
                {
                    self.path = left;
                    self.swing = Some(Swing { child: Some(child), level: Some(level + 1) });
                    return Ok(());
                }
                if level == height {
                    break;
                }
                level += 1;
                nodes = self.rebuild(level, &mut left, &mut right, nodes)?;
            }
        } else {
            nodes = self.build(0, zero, held)?;
        }
        while nodes.len() > 1 {
            level += 1;
            nodes = self.build(level, zero, nodes)?;
        }
        self.swing = Some(Swing { child: nodes.first().copied(), level: None });
        Ok(())
    }

    /// Returns the number of nodes and items that the draft replaces.
    pub fn replaced(&self) -> usize {
        self.old.len() + self.items.len()
    }

    /// Returns the number of bytes of the draft's new nodes.
    pub fn bytes(&self) -> usize {
        self.new.iter().map(|node| node::bytes_of_node::<T>(*node)).sum()
    }

    /// Makes the draft part of the tree. `retired` has room for the replaced nodes and items.
    #[inline(never)]
    pub fn publish(&mut self, root: &AtomicPtr<()>, retired: &mut RetiredList) {
        let Some(swing) = self.swing.take() else { return };
        let link = swing.child.map_or(ptr::null_mut(), |child| child.link.as_ptr());
        let path = &self.path;
        match (swing.level, swing.child) {
            (Some(level), Some(child)) => {
                let mut sum = child.sum;
                for (above, step) in (level..).map_while(|level| path.get(level)).enumerate() {
                    let NodeRef::Inner(inner) = step.link.node() else { break };
                    let (body, before) = (inner.body, inner.body.summary());
                    if above == 0 {
                        body.put(step.place, child.link);
                    }
                    body.set_sum(step.place, sum);
                    body.set_gap(body.gap().max(body.gap_beside(step.place, sum)));
                    sum = body.summary();
                    if sum == before {
                        break;
                    }
                }
            }
            // Release, partner: the Acquire of `Tree::view`.
            _ => root.store(link, Ordering::Release),
        }
        for link in &self.old {
            // c13af03de46b: a replaced node did not look dead to a writer that came to it.
            if !mutant!("unburied")
                && let NodeRef::Inner(inner) = link.node()
            {
                inner.body.bury();
            }
        }
        self.new.clear();
        let nodes = self.old.iter().map(|link| node::retired_node::<T>(link.pointer()));
        let items = self.items.iter().map(|&item| node::retired_item(item));
        self.shaped.drain(..).for_each(|body| body.end_shaping());
        items.chain(nodes).for_each(|thing| retire(retired, thing));
    }

    /// Takes an inner node of a path, if leaves hang in it.
    fn shape(&mut self, link: Link<'s, T>) -> Result<(), Unchanged> {
        if let NodeRef::Inner(inner) = link.node()
            && inner.body.height() == 1
        {
            self.shaped.try_reserve(1).map_err(|_| OutOfMemory)?;
            if inner.body.try_shape()? {
                self.shaped.push(inner.body);
            }
        }
        Ok(())
    }

    /// Sets `path` to the path to the leaf over `page`. The place in the leaf is behind the last one that starts below `end`.
    fn find(
        &mut self,
        root: Link<'s, T>,
        page: PageNumber,
        end: PageNumber,
        path: &mut Path<'s, T>,
    ) -> Result<(), Unchanged> {
        let (mut link, mut base) = (root, PageNumber::new(0));
        loop {
            self.shape(link)?;
            match link.node() {
                NodeRef::Leaf(leaf) => {
                    path.set(0, Step { link, base, place: leaf.below(base, end) });
                    return Ok(());
                }
                NodeRef::Inner(inner) => {
                    let place = inner.place(page.get() - base.get());
                    path.set(inner.body.height(), Step { link, base, place });
                    base = inner.start(base, place);
                    link = inner.body.child(place);
                }
            }
        }
    }

    /// Moves `path`, on `level` and above, to the next node of the level and its first place (`forward`), or to the node
    /// before it and behind its last place. Returns false if there is no such node.
    fn advance(&mut self, path: &mut Path<'s, T>, level: usize, forward: bool) -> Result<bool, Unchanged> {
        let beside = |step: &Step<'s, T>| match forward {
            true => (step.place + 1 < step.len()).then_some(step.place + 1),
            false => step.place.checked_sub(1),
        };
        let branch = (level + 1..LEVELS).find_map(|l| {
            let step = path.get(l)?;
            beside(&step).map(|place| (l, Step { place, ..step }))
        });
        let Some((mut l, mut step)) = branch else { return Ok(false) };
        loop {
            path.set(l, step);
            self.shape(step.link)?;
            if l == level {
                return Ok(true);
            }
            let NodeRef::Inner(inner) = step.link.node() else { unreachable!("only level 0 has leaves") };
            let (link, base) = (inner.body.child(step.place), inner.start(step.base, step.place));
            l -= 1;
            step = Step { link, base, place: 0 };
            if !forward {
                // On `level` itself, all entries of the node are before the place.
                step.place = step.len() - usize::from(l > level);
            }
        }
    }

    /// Finds the beginning and the end of the range, and the items between them.
    #[inline(never)]
    fn cut(
        &mut self,
        root: Link<'s, T>,
        range: PageRange,
        left: &mut Path<'s, T>,
        right: &mut Path<'s, T>,
    ) -> Result<(), Unchanged> {
        self.find(root, range.start(), range.start(), left)?;
        self.find(root, PageNumber::new(range.end().get() - 1), range.end(), right)?;
        let mut at = *left;
        loop {
            let Step { link, base, place: first } = at.at(0);
            let NodeRef::Leaf(leaf) = link.node() else { unreachable!("level 0 has leaves") };
            let is_last = link.pointer() == right.at(0).link.pointer();
            let behind = if is_last { right.at(0).place } else { leaf.len() };
            let reaches_above = |places: usize, page: PageNumber| {
                leaf.live(base, 0..places).next_back().is_some_and(|last| last.end > page)
            };
            debug_assert!(!reaches_above(first, range.start()), "an item straddles the start");
            debug_assert!(!reaches_above(behind, range.end()), "an item straddles the end");
            self.items.try_reserve(behind - first).map_err(|_| OutOfMemory)?;
            self.items.extend(leaf.live(base, first..behind).map(|held| held.item));
            if is_last {
                return Ok(());
            }
            self.advance(&mut at, 0, true)?;
        }
    }

    /// Replaces the nodes from `left` to `right` on `level` by nodes that hold `middle` between the kept entries. Inlined, so that
    /// [`Draft::make`] has one frame on the stack.
    #[inline(always)]
    fn rebuild<E: Entry<T>>(
        &mut self,
        level: usize,
        left: &mut Path<'s, T>,
        right: &mut Path<'s, T>,
        middle: Vec<E>,
    ) -> Result<Vec<Child<T>>, Unchanged> {
        let (first, last) = (left.at(level), right.at(level));
        // On inner levels the place of `right` is the last child that is replaced.
        let behind = last.place + usize::from(level > 0);
        let mut entries = Vec::new();
        // The entries of a neighbour may be added too.
        entries.try_reserve(middle.len() + 3 * E::CAPACITY).map_err(|_| OutOfMemory)?;
        entries.extend(E::of(first, 0..first.place));
        entries.extend(middle);
        entries.extend(E::of(last, behind..last.len()));
        if entries.len() < E::MINIMUM {
            if self.advance(left, level, false)? {
                let neighbour = left.at(level);
                let behind = entries.len();
                entries.extend(E::of(neighbour, 0..neighbour.len()));
                entries.rotate_left(behind);
            } else if self.advance(right, level, true)? {
                let neighbour = right.at(level);
                entries.extend(E::of(neighbour, 0..neighbour.len()));
            }
        }
        self.retire(level, left, right)?;
        self.build(level, left.at(level).base, entries)
    }

    /// Notes the nodes from `left` to `right` on `level` as replaced.
    fn retire(&mut self, level: usize, left: &Path<'s, T>, right: &Path<'s, T>) -> Result<(), Unchanged> {
        let mut at = *left;
        loop {
            let link = at.at(level).link;
            self.old.try_reserve(1).map_err(|_| OutOfMemory)?;
            self.old.push(link);
            if link.pointer() == right.at(level).link.pointer() {
                return Ok(());
            }
            self.advance(&mut at, level, true)?;
        }
    }

    /// Makes nodes for `entries`, evenly filled. The first node's span begins at `base`. A single node needs no parent.
    fn build<E: Entry<T>>(
        &mut self,
        level: usize,
        mut base: PageNumber,
        entries: Vec<E>,
    ) -> Result<Vec<Child<T>>, Unchanged> {
        let mut nodes = Vec::new();
        let count = entries.len().div_ceil(E::CAPACITY);
        nodes.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
        self.new.try_reserve(count).map_err(|_| OutOfMemory)?;
        if let [only] = entries[..]
            && let Some(child) = only.into_child()
        {
            nodes.push(child);
            return Ok(nodes);
        }
        let mut rest = &entries[..];
        for parts in (1..=count).rev() {
            let part = rest.split_off(..rest.len().div_ceil(parts)).expect("no more than the rest");
            let link = E::build(level, base, part)?;
            self.new.push(link);
            nodes.push(Child {
                start: base,
                sum: Summary::of(part.iter().map(E::sum)),
                link,
                marker: PhantomData,
            });
            if let (Some(below), Some(next)) = (part.last(), rest.first()) {
                base = next.begins(below);
            }
        }
        Ok(nodes)
    }
}
