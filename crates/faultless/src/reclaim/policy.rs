//! The interface of a policy: the order in which reclaim tries pages.

use super::queue::{Claimed, Distance, Folios, Part, Queue};
use crate::host::Frame;

/// The time of a page's eviction, as a count of evictions. The slot of the page keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shadow(u64);

impl Shadow {
    /// Returns the shadow of a page that is evicted after `evictions` others.
    pub fn new(evictions: u64) -> Self {
        Self(evictions)
    }

    /// Returns the number, for a slot to keep.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// The result of reclaim's try to take a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// No entry maps the page any more. Its frame is not free yet: a write is under way. Or another thread has mapped the page again, or
    /// has the frame for another page.
    Taken,
    /// The page was used since the last look. The accessed bit, or the mark of a lookup, is cleared now, and the page stays.
    Young,
    /// The page is pinned for I/O, locked, isolated by another thread, or an entry was announced. It stays. Or no entry maps the page any
    /// more, and another thread has a reference.
    Busy,
    /// The page has several mappings, and not all were found or removed. It stays.
    Shared,
    /// The frame is free.
    Freed,
}

/// The pages that reclaim asks a policy for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// A page that seems unused.
    Old,
    /// The next page, whatever its uses.
    Any,
}

/// The result of one step of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Reclaim shall try this frame, and report the result.
    Offer(Frame),
    /// The frame was dropped, or it stays for now.
    PassOver,
    /// The queues are empty.
    Nothing,
}

/// The order in which reclaim tries the pages of one class.
///
/// A policy has [queues](super::queue::Queue) of frames and reads the uses in their folios. It knows no tables and no mappings,
/// and takes no lock. All calls are made under the lock of [`Queues`](super::groups::Queues), which no fault takes.
pub(crate) trait ReclaimPolicy: Default {
    /// Makes a policy of the same kind with empty queues, for another group.
    fn of_same_kind(&self) -> Self {
        Self::default()
    }

    /// Puts a frame that has arrived into a queue. Frames of one thread come in the order of their first touch. If the page was
    /// evicted before, `distance` tells how long ago.
    fn arrived(&mut self, folios: &impl Folios, frame: Claimed, distance: Distance);

    /// Looks at one frame. An offered frame is in no queue until its report.
    fn look(&mut self, folios: &impl Folios, demand: Demand) -> Look;

    /// Puts a frame back after the `report`, which is not [`Report::Freed`]. `origin` is the number of the queue from which the
    /// frame was taken. If the report is [`Report::Young`], the use is counted already.
    fn reported(&mut self, folios: &impl Folios, frame: Claimed, origin: u64, report: Report);

    /// Looks at the frames of `part`. Those that `keeps` refuses go to `strays`; the others go to the young end of their queue.
    fn sort(&mut self, folios: &impl Folios, part: Part, keeps: impl Fn(Frame) -> bool, strays: &mut Queue);

    /// Returns whether more pages than usual have been used only once, as after a scan.
    fn has_many_used_once(&self) -> bool {
        false
    }

    /// Returns the number of frames in the queues, with those that are free by now.
    fn length(&self) -> u64;
}
