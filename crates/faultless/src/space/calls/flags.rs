//! Changing the flags of mappings, for madvise, mlock and mseal: publish, and sweep without editing an entry. So any thread
//! that looked an old mapping up has finished when the call returns (docs/protocol.md, rule 4).

use crate::address::{PageNumber, PageRange, VirtAddr};
use crate::design::{Call, LockingDesign};
use crate::host::Host;
use crate::protection::{Protection, Sharing};
use crate::space::change::publish::Unpublished;
use crate::space::change::range_work::TreeLock;
use crate::space::{Space, TreeState};
use crate::vma::tree::{Ranged, View};
use crate::vma::{Backing, Mapping, MappingFlags, Vma};

/// The treatment of pages in a call's range that are not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::space) enum Holes {
    /// Skips them, and reports them at the end.
    Skip,
    /// Changes the part below the first of them and stops there.
    Stop,
    /// Changes nothing.
    Refuse,
}

/// The part of a range that a call changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::space) struct Reach<R> {
    /// The end of that part: everything mapped below is changed.
    pub end: PageNumber,
    /// The error to report after that, if any.
    pub error: Option<Wrong<R>>,
}

/// The reason why a call does not do its work, or not everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::space) enum Wrong<R> {
    /// Nothing is mapped at this address.
    Hole(VirtAddr),
    /// The mapping, or the part of it, that begins here is refused. The part below is done.
    Refused(VirtAddr, R),
    /// The whole call is refused, regardless of the mappings. Nothing is done.
    All(R),
    /// There is no room to split a mapping. The part below it is done.
    TooMany { limit: usize },
    /// There is no memory. Nothing is done.
    OutOfMemory,
}

impl<R> From<Unpublished> for Wrong<R> {
    fn from(error: Unpublished) -> Self {
        match error {
            Unpublished::OutOfMemory => Self::OutOfMemory,
            Unpublished::TooMany { limit } => Self::TooMany { limit },
        }
    }
}

/// Finds how much of `range` a call changes. Looks at the mappings upwards, one by one.
pub(in crate::space) fn reach<M, R>(
    range: PageRange,
    holes: Holes,
    mapped: impl Iterator<Item = (PageRange, M)>,
    refuse: impl Fn(M) -> Option<R>,
) -> Reach<R> {
    let (mut at, mut hole) = (range.start(), None);
    let stop = |at: PageNumber| {
        let end = if holes == Holes::Refuse { range.start() } else { at };
        Reach { end, error: Some(Wrong::Hole(at.address())) }
    };
    for (part, mapping) in mapped {
        if part.start() >= range.end() {
            break;
        }
        if part.start() > at {
            if holes != Holes::Skip {
                return stop(at);
            }
            hole = hole.or(Some(at));
        }
        let start = part.start().max(range.start());
        if let Some(refusal) = refuse(mapping) {
            return Reach { end: start, error: Some(Wrong::Refused(start.address(), refusal)) };
        }
        at = part.end();
    }
    if at < range.end() {
        if holes != Holes::Skip {
            return stop(at);
        }
        hole = hole.or(Some(at));
    }
    Reach { end: range.end(), error: hole.map(|hole| Wrong::Hole(hole.address())) }
}

impl<H: Host> Mapping<H> {
    /// Returns whether mseal forbids advice that loses contents: the mapping is sealed, and its owner could not overwrite them.
    pub(in crate::space) fn keeps_contents(&self) -> bool {
        self.flags.contains(MappingFlags::SEALED)
            && self.sharing == Sharing::Private
            && matches!(self.backing, Backing::Anonymous)
            && !self.protection.contains(Protection::WRITE)
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Does what [`reach`] does, in the tree. The part of `range` that no table can address is a hole.
    #[inline(never)]
    pub(in crate::space) fn reach<R>(
        &self,
        map: &TreeState,
        range: PageRange,
        holes: Holes,
        refuse: impl Fn(&Mapping<H>) -> Option<R>,
    ) -> Reach<R> {
        let vmas = self.tree.view_locked(&map.writer).from(range.start());
        reach(range, holes, vmas.map(|vma| (vma.range(), vma.mapping())), refuse)
    }

    /// Returns the start of the first sealed part of `range`.
    pub(in crate::space) fn first_sealed(
        &self,
        view: View<'_, Vma<H, D>>,
        range: PageRange,
    ) -> Option<PageNumber> {
        let sealed = view
            .from(range.start())
            .take_while(|vma| vma.range().start() < range.end())
            .find(|vma| vma.mapping().flags.contains(MappingFlags::SEALED));
        sealed.map(|vma| vma.range().start().max(range.start()))
    }

    /// Publishes the flags that `change` makes of each mapping in `range`, as far as `refuse` allows. `before` decides on the
    /// whole, in the same step.
    pub(in crate::space) fn change_flags<R>(
        &self,
        range: PageRange,
        holes: Holes,
        before: impl FnOnce(&TreeState) -> Result<(), R>,
        refuse: impl Fn(&Mapping<H>) -> Option<R>,
        change: impl Fn(&Mapping<H>) -> MappingFlags,
    ) -> Result<(), Wrong<R>> {
        let none = Wrong::Hole(range.start().address());
        let inside = range.intersection(self.whole()).ok_or(none)?;
        let mut call = self.change_excluding(Call::Protect, inside);
        let lock = call.take(inside);
        before(&lock).map_err(Wrong::All)?;
        let mut reach = self.reach(&lock, range, holes, refuse);
        let each = |mapping: Mapping<H>| Some(Mapping { flags: change(&mapping), ..mapping });
        let part = |reach: &Reach<R>| PageRange::new(inside.start(), reach.end.min(inside.end()));
        if let Some(part) = part(&reach)
            && let Err(end) = self.splittable(&lock, self.tree.view_locked(&lock.writer), part, each)
        {
            let limit = self.mapping_limit(&lock);
            reach = Reach { end, error: Some(Wrong::TooMany { limit }) };
        }
        let part = part(&reach);
        if let Some(part) = part.filter(|part| self.changes(&lock, *part, &change)) {
            drop(call.publish(lock, part, each)?);
            call.sweep(part, |_, entry| entry, |_, _, _, _| {});
        }
        reach.error.map_or(Ok(()), Err)
    }

    fn changes(
        &self,
        lock: &TreeLock<'_>,
        part: PageRange,
        change: &impl Fn(&Mapping<H>) -> MappingFlags,
    ) -> bool {
        let vmas = self.tree.view_locked(&lock.writer).from(part.start());
        let mut mappings = vmas.take_while(|vma| vma.range().start() < part.end()).map(Vma::mapping);
        mappings.any(|mapping| change(mapping) != mapping.flags)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> PageRange {
        PageRange::new(PageNumber::new(start), PageNumber::new(end)).unwrap()
    }

    fn at(page: u64) -> VirtAddr {
        PageNumber::new(page).address()
    }

    //   asked     [2 . . . . . . . 10)
    //   mapped   [0 . . 4)  [6 . 8)[8 . .
    fn reached(holes: Holes, refused: u64) -> Reach<()> {
        let mapped = [(range(0, 4), 0), (range(6, 8), 6), (range(8, 12), 8)];
        reach(range(2, 10), holes, mapped.into_iter(), |start| (start == refused).then_some(()))
    }

    #[test]
    fn holes_are_skipped_or_end_it() {
        let hole = Some(Wrong::Hole(at(4)));
        assert_eq!(reached(Holes::Skip, 99), Reach { end: PageNumber::new(10), error: hole });
        assert_eq!(reached(Holes::Stop, 99), Reach { end: PageNumber::new(4), error: hole });
        assert_eq!(reached(Holes::Refuse, 99), Reach { end: PageNumber::new(2), error: hole });
    }

    #[test]
    fn what_is_refused_ends_it_and_hides_a_hole() {
        let refused = |page| Some(Wrong::Refused(at(page), ()));
        assert_eq!(reached(Holes::Skip, 8), Reach { end: PageNumber::new(8), error: refused(8) });
        assert_eq!(reached(Holes::Skip, 0), Reach { end: PageNumber::new(2), error: refused(2) });
    }

    #[test]
    fn nothing_mapped_is_a_hole_from_the_start() {
        let nothing = reach(range(2, 10), Holes::Skip, [].into_iter(), |()| None::<()>);
        assert_eq!(nothing, Reach { end: PageNumber::new(10), error: Some(Wrong::Hole(at(2))) });
        let all = reach(range(2, 3), Holes::Stop, [(range(0, 4), ())].into_iter(), |()| None::<()>);
        assert_eq!(all, Reach { end: PageNumber::new(3), error: None });
    }
}
