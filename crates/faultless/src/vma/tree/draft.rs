//! A change to the tree: every new node is built before any reader can see one, level by level, upwards.
//!
//! On each level the nodes from `left` to `right` are replaced. What they held outside the change is kept:
//!
//! ```text
//! level 1    [ a   b   c ]        [ d   e   f ]         left and right on level 1
//!            keep  |                    |  keep
//! level 0          [ 1  2  3 ] … [ 4  5  6 ]            left and right on level 0
//!                   keep └─ removed ─┘ keep
//! ```

use super::node::{Child, Entry, Held, Kind, Node, NodeRef, Removed, free_node};
use crate::address::{PageNumber, PageRange};
use crate::sync::OutOfMemory;
use crate::vma::tree::Ranged;
use alloc::vec::Vec;
use core::ptr::{self, NonNull};

/// Levels of a tree of 2^35 items, with every node filled to the minimum: more than there can be.
const LEVELS: usize = 12;

/// The way from the root to a place in a leaf.
struct Path<'s, T> {
    /// The node on each level, up to the root's, and the place in it; on inner levels the place of the node below.
    steps: [Option<(NodeRef<'s, T>, usize)>; LEVELS],
}

impl<T> Clone for Path<'_, T> {
    fn clone(&self) -> Self {
        Self { steps: self.steps }
    }
}

impl<'s, T> Path<'s, T> {
    /// Goes down, where `rank` counts the places whose start is low enough: to the last of them, in the leaf behind it.
    fn new(root: NodeRef<'s, T>, rank: impl Fn(Kind<'s, T>) -> usize) -> Self {
        let mut path = Self { steps: [None; LEVELS] };
        let mut node = root;
        loop {
            let rank = rank(node.read());
            let Kind::Inner(inner) = node.read() else {
                path.steps[0] = Some((node, rank));
                return path;
            };
            let place = rank.saturating_sub(1);
            path.steps[node.height()] = Some((node, place));
            node = inner.child(place);
        }
    }

    fn at(&self, level: usize) -> (NodeRef<'s, T>, usize) {
        self.steps[level].expect("the path reaches from the leaf to the root")
    }

    /// On `level` and above: to the next node of the level (`forward`: its first place), or to the one before it
    /// (behind its last place). False where there is none.
    fn advance(&mut self, level: usize, forward: bool) -> bool {
        let beside = |(node, place): (NodeRef<'s, T>, usize)| match forward {
            true => (place + 1 < node.len()).then_some(place + 1),
            false => place.checked_sub(1),
        };
        let branch = (level + 1..LEVELS).find_map(|l| {
            let step = self.steps[l]?;
            beside(step).map(|place| (l, step.0, place))
        });
        let Some((mut l, mut node, mut place)) = branch else { return false };
        loop {
            self.steps[l] = Some((node, place));
            if l == level {
                return true;
            }
            let Kind::Inner(inner) = node.read() else { unreachable!("only level 0 has leaves") };
            (node, l) = (inner.child(place), l - 1);
            place = match forward {
                true => 0,
                // On `level` itself everything in the node is before the place.
                false => node.len() - usize::from(l > level),
            };
        }
    }
}

/// New nodes that nobody has seen, and what they replace.
pub struct Draft<T: Ranged> {
    new: Vec<NonNull<Node<T>>>,
    old: Vec<NonNull<Node<T>>>,
    items: Vec<NonNull<T>>,
}

impl<T: Ranged> Drop for Draft<T> {
    fn drop(&mut self) {
        for &node in &self.new {
            // SAFETY: built here, never published.
            unsafe { free_node(node) };
        }
    }
}

impl<T: Ranged> Draft<T> {
    /// The tree under `root` with `new` instead of what was in `range`: the new root, or null. Dropping the draft
    /// undoes it.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(
        root: Option<NodeRef<'_, T>>,
        range: PageRange,
        new: &[NonNull<T>],
    ) -> Result<(Self, *mut Node<T>), OutOfMemory> {
        let mut draft = Self { new: Vec::new(), old: Vec::new(), items: Vec::new() };
        let mut held = Vec::new();
        held.try_reserve_exact(new.len()).map_err(|_| OutOfMemory)?;
        held.extend(new.iter().map(|&item| {
            // SAFETY: a new item, which the caller owns.
            let new_range = unsafe { item.as_ref() }.range();
            debug_assert!(range.covers(new_range), "{new_range} is put in the place of {range}");
            Held::new(new_range, item)
        }));
        let mut level = 0;
        let mut nodes = match root {
            None => draft.build(0, held)?,
            Some(root) => {
                let (mut left, mut right) = draft.cut(root, range)?;
                if new.is_empty() && draft.items.is_empty() {
                    return Ok((draft, root.pointer().as_ptr()));
                }
                let mut nodes = draft.rebuild(0, &mut left, &mut right, held)?;
                while level < root.height() {
                    level += 1;
                    nodes = draft.rebuild(level, &mut left, &mut right, nodes)?;
                }
                nodes
            }
        };
        while nodes.len() > 1 {
            level += 1;
            nodes = draft.build(level, nodes)?;
        }
        let root = nodes.first().map_or(ptr::null_mut(), |child| child.pointer().as_ptr());
        Ok((draft, root))
    }

    /// Whether publishing it changes anything.
    pub fn changes(&self) -> bool {
        !(self.new.is_empty() && self.old.is_empty())
    }

    /// What is to be freed once readers have gone. The new nodes are the tree's now.
    pub fn publish(mut self) -> Removed<T> {
        self.new = Vec::new();
        Removed { nodes: core::mem::take(&mut self.old), items: core::mem::take(&mut self.items) }
    }

    /// Where the range begins and ends, and the items between.
    fn cut<'s>(
        &mut self,
        root: NodeRef<'s, T>,
        range: PageRange,
    ) -> Result<(Path<'s, T>, Path<'s, T>), OutOfMemory> {
        let below = |page: PageNumber| {
            // Starts at or below the page before it: starts below the page.
            move |kind: Kind<'s, T>| match (page.checked_sub(1), kind) {
                (None, _) => 0,
                (Some(page), Kind::Leaf(leaf)) => leaf.rank(page),
                (Some(page), Kind::Inner(inner)) => inner.rank(page),
            }
        };
        let (mut left, right) = (Path::new(root, below(range.start())), Path::new(root, below(range.end())));
        let (node, place) = left.at(0);
        if place == node.len() && node != right.at(0).0 {
            left.advance(0, true); // nothing of that leaf is removed
        }
        let mut at = left.clone();
        loop {
            let (node, first) = at.at(0);
            let Kind::Leaf(leaf) = node.read() else { unreachable!("level 0 has leaves") };
            let is_last = node == right.at(0).0;
            let behind = if is_last { right.at(0).1 } else { leaf.len() };
            debug_assert!(first == 0 || leaf.end(first - 1) <= range.start(), "an item straddles the start");
            debug_assert!(behind == 0 || leaf.end(behind - 1) <= range.end(), "an item straddles the end");
            self.items.try_reserve(behind - first).map_err(|_| OutOfMemory)?;
            self.items.extend((first..behind).map(|i| leaf.pointer(i)));
            if is_last {
                return Ok((left, right));
            }
            at.advance(0, true);
        }
    }

    /// Replaces the nodes from `left` to `right` on `level` by ones that hold `middle` between what is kept.
    fn rebuild<E: Entry<T>>(
        &mut self,
        level: usize,
        left: &mut Path<'_, T>,
        right: &mut Path<'_, T>,
        middle: Vec<E>,
    ) -> Result<Vec<Child<T>>, OutOfMemory> {
        let ((first, keep), (last, behind)) = (left.at(level), right.at(level));
        // On inner levels the place of `right` is the last child that is replaced.
        let behind = behind + usize::from(level > 0);
        let mut entries = Vec::new();
        // A neighbour may come in too.
        entries.try_reserve(middle.len() + 3 * E::CAPACITY).map_err(|_| OutOfMemory)?;
        entries.extend(E::of(first, 0..keep));
        entries.extend(middle);
        entries.extend(E::of(last, behind..last.len()));
        if (1..E::MINIMUM).contains(&entries.len()) {
            if left.advance(level, false) {
                let neighbour = left.at(level).0;
                entries.extend(E::of(neighbour, 0..neighbour.len()));
                entries.rotate_right(neighbour.len());
            } else if right.advance(level, true) {
                let neighbour = right.at(level).0;
                entries.extend(E::of(neighbour, 0..neighbour.len()));
            }
        }
        self.retire(level, left, right)?;
        self.build(level, entries)
    }

    /// Notes the nodes from `left` to `right` on `level`.
    fn retire(&mut self, level: usize, left: &Path<'_, T>, right: &Path<'_, T>) -> Result<(), OutOfMemory> {
        let mut at = left.clone();
        loop {
            let node = at.at(level).0;
            self.old.try_reserve(1).map_err(|_| OutOfMemory)?;
            self.old.push(node.pointer());
            if node == right.at(level).0 {
                return Ok(());
            }
            at.advance(level, true);
        }
    }

    /// Nodes for `entries`, evenly filled. A single node needs no parent.
    fn build<E: Entry<T>>(&mut self, level: usize, entries: Vec<E>) -> Result<Vec<Child<T>>, OutOfMemory> {
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
            let child = E::build(level, part)?;
            self.new.push(child.pointer());
            nodes.push(child);
        }
        Ok(nodes)
    }
}
