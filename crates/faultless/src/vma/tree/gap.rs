//! The search for a hole, by which mmap finds a place. It is off the readers' way: it reads sums that only writers keep.

use super::node::{Link, NodeRef, hole};
use super::{Ranged, Tree, Writer};
use crate::address::{PageNumber, PageRange};

impl<T: Ranged + Send + Sync + 'static> Tree<T> {
    /// Returns the start of the highest run of `pages` free pages inside `within` (mmap goes downwards); `None` if there is
    /// none or `pages` is zero.
    ///
    /// The sum of a node may give a larger hole than the node has, never a smaller one. A search that goes down there in vain
    /// corrects it. So for each change since the last search, a search reads only few nodes more than a look-up.
    pub fn highest_gap(&self, writer: &Writer, pages: u64, within: PageRange) -> Option<PageNumber> {
        if pages == 0 {
            return None;
        }
        let wanted = Wanted { pages, within };
        let Some(root) = self.view_locked(writer).root else {
            return wanted.fit(within.start(), within.end());
        };
        let base = PageNumber::new(0);
        let all = root.summary(base);
        wanted
            .fit(all.end, within.end())
            .or_else(|| wanted.under(root, base).ok())
            .or_else(|| wanted.fit(within.start(), all.start))
    }
}

/// The hole that a search looks for.
#[derive(Clone, Copy)]
struct Wanted {
    pages: u64,
    within: PageRange,
}

impl Wanted {
    /// Returns the highest place in the hole from `low` to `high`.
    fn fit(self, low: PageNumber, high: PageNumber) -> Option<PageNumber> {
        let (low, high) = (low.max(self.within.start()), high.min(self.within.end()));
        high.checked_sub(self.pages).filter(|&start| start >= low)
    }

    /// Returns the highest place in a hole between two items under `node`, whose span begins at `base`. If there is none, the
    /// error is an upper bound of the largest hole there, in pages.
    fn under<T>(self, node: Link<'_, T>, base: PageNumber) -> Result<PageNumber, u64> {
        let mut largest = 0;
        match node.node() {
            NodeRef::Leaf(leaf) => {
                let mut above = None;
                for held in leaf.live(base, 0..leaf.len()).rev() {
                    if let Some(above) = above.replace(held.start) {
                        if let Some(found) = self.fit(held.end, above) {
                            return Ok(found);
                        }
                        largest = largest.max(hole(held.end, above));
                    }
                }
            }
            NodeRef::Inner(inner) => {
                let body = inner.body;
                for i in (0..body.len()).rev() {
                    let sum = body.sum(i);
                    let mut gap = sum.gap;
                    if gap >= self.pages && sum.start < self.within.end() && sum.end > self.within.start() {
                        gap = match self.under(body.child(i), inner.start(base, i)) {
                            Ok(found) => return Ok(found),
                            Err(gap) => gap,
                        };
                        body.set_gap_of(i, gap);
                    }
                    largest = largest.max(gap);
                    let Some(below) = i.checked_sub(1).map(|below| body.sum(below).end) else { break };
                    if let Some(found) = self.fit(below, sum.start) {
                        return Ok(found);
                    }
                    largest = largest.max(hole(below, sum.start));
                }
                body.set_gap(largest);
            }
        }
        Err(largest)
    }
}
