//! Splitting and merging of mappings: arithmetic on values, without locks and without threads.

use super::{AnonId, Backing, Mapping, MappingFlags};
use crate::address::PageRange;
use crate::host::{Frame, Host};
use crate::protection::{Protection, Sharing};
use crate::sync::Shared;

/// Returns the part of `mapping` inside `range`, if any. Its place in the file, or among foreign frames, moves along.
pub fn cut<H: Host>(mapping: &Mapping<H>, range: PageRange) -> Option<Mapping<H>> {
    let part = mapping.range.intersection(range)?;
    let mut new = mapping.clone();
    let pages = part.start().get() - mapping.range.start().get();
    match &mut new.backing {
        Backing::File { first, .. } => *first += pages,
        Backing::Foreign { first } => *first = Frame::new(first.get() + pages)?,
        Backing::Anonymous | Backing::Busy => {}
    }
    new.range = part;
    Some(new)
}

/// Returns whether `right` continues `left`: it begins where `left` ends, with the same sharing, flags and shift, and the
/// file or the foreign frames continue there too. Rights and pages may differ.
fn goes_on<H: Host>(left: &Mapping<H>, right: &Mapping<H>) -> bool {
    let backing = match (&left.backing, &right.backing) {
        (Backing::Anonymous, Backing::Anonymous) => true,
        (Backing::File { file: a, first: x }, Backing::File { file: b, first: y }) => {
            Shared::ptr_eq(a, b) && x.checked_add(left.range.pages()) == Some(*y)
        }
        (Backing::Foreign { first: x }, Backing::Foreign { first: y }) => {
            x.get() + left.range.pages() == y.get()
        }
        _ => false,
    };
    backing
        && left.range.end() == right.range.start()
        && left.sharing == right.sharing
        && left.flags == right.flags
        && left.shift == right.shift
}

/// Returns whether the neighbours `left` and `right` count as one mapping. `right` must continue `left` with the same
/// rights. Either both have anonymous pages of the same number, or at most one of them has any. A mapping whose pages
/// fork has passed on does not join one that has no pages. (Linux's rules.)
pub fn joins<H: Host>(left: &Mapping<H>, right: &Mapping<H>) -> bool {
    let anon = match (left.anon, right.anon) {
        (Some(a), Some(b)) => a == b,
        (Some(one), None) | (None, Some(one)) => !one.is_inherited(),
        (None, None) => true,
    };
    anon && left.protection == right.protection && goes_on(left, right)
}

/// Returns the number that the first anonymous page of `mapping` takes over from `neighbour`, so that the two can join
/// once their rights are the same. `None` if `neighbour` is not like it, has no pages, or has its number from fork.
pub fn adopts<H: Host>(mapping: &Mapping<H>, neighbour: &Mapping<H>) -> Option<AnonId> {
    let is_like_it = goes_on(mapping, neighbour) || goes_on(neighbour, mapping);
    neighbour.anon.filter(|anon| is_like_it && !anon.is_inherited())
}

/// Returns whether a part `new` of `old` is the same as before, apart from its pages.
pub fn is_alike<H: Host>(old: &Mapping<H>, new: &Mapping<H>) -> bool {
    let is_busy = |mapping: &Mapping<H>| matches!(mapping.backing, Backing::Busy);
    old.protection == new.protection
        && old.flags == new.flags
        && old.shift == new.shift
        && is_busy(old) == is_busy(new)
}

/// Returns the one mapping that `left` and `right` make together. The caller has checked that they join.
pub fn join<H: Host>(left: &Mapping<H>, right: &Mapping<H>) -> Mapping<H> {
    let mut new = left.clone();
    new.range = left.range.hull(right.range);
    new.serial = left.serial.max(right.serial);
    new.anon = left.anon.or(right.anon);
    new
}

/// Returns the flags of a new mapping: writable private memory counts as promised, unless it has `NO_RESERVE`.
pub fn accounted(protection: Protection, sharing: Sharing, flags: MappingFlags) -> MappingFlags {
    let counts = sharing == Sharing::Private
        && protection.contains(Protection::WRITE)
        && !flags.contains(MappingFlags::NO_RESERVE);
    if counts { flags | MappingFlags::ACCOUNT } else { flags }
}

/// Returns `mapping` with the rights that mprotect gives it. The mapping counts as promised when it becomes writable, and
/// after that as long as it may have pages: an anonymous mapping without pages that loses the right stops counting.
pub fn protected<H: Host>(mapping: Mapping<H>, protection: Protection) -> Mapping<H> {
    let flags = match protection.contains(Protection::WRITE) {
        _ if protection == mapping.protection => mapping.flags,
        true if mapping.protection.contains(Protection::WRITE) => mapping.flags,
        true => accounted(protection, mapping.sharing, mapping.flags),
        false if matches!(mapping.backing, Backing::Anonymous) && mapping.anon.is_none() => {
            mapping.flags - MappingFlags::ACCOUNT
        }
        false => mapping.flags,
    };
    Mapping { protection, flags, ..mapping }
}
