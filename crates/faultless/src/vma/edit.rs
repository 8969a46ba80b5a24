//! Splitting and merging: arithmetic on mappings as values, without locks and without threads.

use super::{AnonId, Backing, Mapping, MappingFlags};
use crate::address::PageRange;
use crate::host::{Frame, Host};
use crate::protection::{Protection, Sharing};
use crate::sync::Shared;

/// The part of `mapping` inside `range`, with its place in the file, or among foreign frames, moved along.
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

/// Whether `right` goes on where `left` ends, and is like it but for rights and pages: same sharing, flags and shift, the file
/// or the foreign frames going on where they stopped.
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

/// Whether `left` and `right`, which lie side by side, are one mapping to all who look: one goes on where the other ends, with
/// the same rights, and with anonymous pages of the same number, or on one side at most. What fork has passed on joins
/// none that has no pages. (Linux's rules.)
pub fn joins<H: Host>(left: &Mapping<H>, right: &Mapping<H>) -> bool {
    let anon = match (left.anon, right.anon) {
        (Some(a), Some(b)) => a == b,
        (Some(one), None) | (None, Some(one)) => !one.is_inherited(),
        (None, None) => true,
    };
    anon && left.protection == right.protection && goes_on(left, right)
}

/// What the first anonymous page of `mapping` takes over from `neighbour`, so that the two join once their rights are the
/// same: the number of its pages, unless it came by fork.
pub fn adopts<H: Host>(mapping: &Mapping<H>, neighbour: &Mapping<H>) -> Option<AnonId> {
    let is_like_it = goes_on(mapping, neighbour) || goes_on(neighbour, mapping);
    neighbour.anon.filter(|anon| is_like_it && !anon.is_inherited())
}

/// Whether a part `new` of `old` is what it was, but for its pages.
pub fn is_alike<H: Host>(old: &Mapping<H>, new: &Mapping<H>) -> bool {
    let is_busy = |mapping: &Mapping<H>| matches!(mapping.backing, Backing::Busy);
    old.protection == new.protection
        && old.flags == new.flags
        && old.shift == new.shift
        && is_busy(old) == is_busy(new)
}

/// The one mapping that `left` and `right` are if they join.
pub fn join<H: Host>(left: &Mapping<H>, right: &Mapping<H>) -> Mapping<H> {
    let mut new = left.clone();
    new.range = left.range.hull(right.range);
    new.serial = left.serial.max(right.serial);
    new.anon = left.anon.or(right.anon);
    new
}

/// The flags of a new mapping: private memory that can be written counts as promised.
pub fn accounted(protection: Protection, sharing: Sharing, flags: MappingFlags) -> MappingFlags {
    let counts = sharing == Sharing::Private
        && protection.contains(Protection::WRITE)
        && !flags.contains(MappingFlags::NO_RESERVE);
    if counts { flags | MappingFlags::ACCOUNT } else { flags }
}

/// What mprotect makes of `mapping`. It counts as promised when it becomes writable, and after that as long as it may have
/// pages: until an anonymous one that has none loses the right.
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
