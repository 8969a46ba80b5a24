//! Changes of the tree. A change inside one leaf is made there, or in a leaf that takes its place. It takes only the leaf's
//! parent, so changes of different parts go on side by side. All other changes change the tree's shape ([`super::shape`]),
//! one at a time.

use super::leaf::{LeafRef, Put};
use super::node::{self, Contended, Link, NodeRef};
use super::shape::Draft;
use super::{Ranged, into_boxes, into_pointers};
use crate::address::{PageNumber, PageRange};
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::sync::{OutOfMemory, Retired, RetiredList};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ptr::NonNull;

/// The reason why a change was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unchanged {
    /// There is no memory for nodes.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// Another thread changes the same part of the tree now.
    #[error("another thread changes the same part of the tree")]
    Contended,
}

impl From<Contended> for Unchanged {
    fn from(_: Contended) -> Self {
        Self::Contended
    }
}

/// A requested change, see [`super::Tree::replace`].
pub struct Change<'a, T> {
    /// The pages whose items are replaced.
    pub range: PageRange,
    /// The new items; empty when they are in the tree.
    pub new: &'a mut Vec<Box<T>>,
    /// The list that takes the replaced items and nodes.
    pub retired: &'a mut RetiredList,
    /// The number of bytes of the items and nodes that the change has put into the tree.
    pub made: usize,
}

impl<T: Ranged + Send + 'static> Change<'_, T> {
    /// Makes the change if it lies inside one leaf that has a parent. Returns false if it does not; nothing is changed then.
    pub fn in_one_leaf(&mut self, root: Link<'_, T>) -> Result<bool, Unchanged> {
        let Self { range, ref mut new, ref mut retired, ref mut made } = *self;
        let (mut link, mut base, mut end) = (root, PageNumber::new(0), PageNumber::new(u64::MAX));
        let mut parent = None;
        while let NodeRef::Inner(inner) = link.node() {
            let index = inner.place(range.start().get() - base.get());
            if index + 1 < inner.body.len() {
                end = inner.start(base, index + 1);
            }
            base = inner.start(base, index);
            link = inner.body.child(index);
            parent = Some((inner.body, index, parent.is_none()));
        }
        let Some((body, index, is_root)) = parent.filter(|_| range.end() <= end) else { return Ok(false) };
        let _taken = body.try_take()?;
        // Where spans begin never changes; the items of this span may have changed.
        let NodeRef::Leaf(leaf) = body.child(index).node() else { return Ok(false) };
        let places = leaf.places(base, range);
        if new.is_empty() && places.is_empty() {
            return Ok(true);
        }
        let old = body.sum(index);
        let Some(sum) = leaf.sum_after(base, &places, new, old) else {
            return Ok(false);
        };
        let mut gap = body.gap();
        // Mostly nothing changes here: the largest hole stays the largest until a search corrects it.
        if sum != old {
            gap = gap.max(body.gap_beside(index, sum));
            let ends_move =
                (index == 0 && sum.start != old.start) || (index + 1 == body.len() && sum.end != old.end);
            if !is_root && (ends_move || gap != body.gap()) {
                return Ok(false);
            }
        }
        retired.try_reserve(1 + places.len())?;
        let items = new.len() * size_of::<T>();
        match leaf.put(base, places, new, |item| retire(retired, node::retired_item(item)))? {
            Put::Here => *made += items,
            Put::There(new) => {
                *made += items + node::bytes_of_node::<T>(new);
                let old = body.child(index).pointer();
                body.put(index, new);
                retire(retired, node::retired_node::<T>(old));
            }
            Put::Full => return Ok(false),
        }
        if sum != old {
            body.set_sum(index, sum);
            body.set_gap(gap);
        }
        Ok(true)
    }

    /// Makes the change if the root is a leaf and stays one. Returns false if it would not; nothing is changed then.
    #[inline(never)]
    fn in_the_root(&mut self, root: &AtomicPtr<()>, leaf: LeafRef<'_, T>) -> Result<bool, OutOfMemory> {
        let Self { range, ref mut new, ref mut retired, ref mut made } = *self;
        let base = PageNumber::new(0);
        let places = leaf.places(base, range);
        if new.is_empty() && !leaf.keeps_some(&places) {
            return Ok(false);
        }
        retired.try_reserve(1 + places.len())?;
        let items = new.len() * size_of::<T>();
        match leaf.put(base, places, new, |item| retire(retired, node::retired_item(item)))? {
            Put::Here => *made += items,
            Put::There(new) => {
                *made += items + node::bytes_of_node::<T>(new);
                let old = NonNull::new(root.swap(new.as_ptr(), Ordering::Release));
                old.into_iter().for_each(|old| retire(retired, node::retired_node::<T>(old)));
            }
            Put::Full => return Ok(false),
        }
        Ok(true)
    }

    /// Makes the change with all its effects on the tree. The caller is the only thread that changes the tree's shape.
    pub fn of_shape(&mut self, root: &AtomicPtr<()>) -> Result<(), Unchanged> {
        let old_root = NonNull::new(root.load(Ordering::Relaxed));
        // SAFETY: no other thread replaces the root, and the nodes under it are freed a grace period after they were
        // replaced. The caller is the only writer, or in a section.
        let old_root = old_root.map(|root| unsafe { Link::new(root) });
        if let Some(old_root) = old_root
            && let NodeRef::Leaf(leaf) = old_root.node()
            && self.in_the_root(root, leaf)?
        {
            return Ok(());
        }
        let pointers = into_pointers(core::mem::take(self.new));
        let changed = {
            let mut draft = Draft::new();
            let drafted = draft.make(old_root, self.range, &pointers);
            drafted.and_then(|()| Ok(self.retired.try_reserve(draft.replaced())?)).inspect(|()| {
                self.made += pointers.len() * size_of::<T>() + draft.bytes();
                draft.publish(root, self.retired);
            })
        };
        changed.inspect_err(|_| {
            // SAFETY: the draft is undone, and no thread has seen the items.
            *self.new = unsafe { into_boxes(pointers) };
        })
    }
}

/// Adds `thing` to the list. The caller has made room for it.
pub fn retire(retired: &mut RetiredList, thing: Retired) {
    if mutant!("stackrot") {
        // CVE-2023-3269: replaced nodes were freed while readers without the lock were in them.
        // SAFETY: not kept; a mutant.
        return unsafe { thing.free() };
    }
    retired.push(thing);
}
