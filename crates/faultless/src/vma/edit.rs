//! Splitting and merging: arithmetic on mappings as values, without locks and without threads.

use super::{Backing, Mapping};
use crate::address::PageRange;
use crate::host::Host;
use crate::sync::Shared;

/// The part of `mapping` inside `range`, with its place in the file moved along.
pub fn cut<H: Host>(mapping: &Mapping<H>, range: PageRange) -> Option<Mapping<H>> {
    let part = mapping.range.intersection(range)?;
    let mut new = mapping.clone();
    if let Backing::File { first, .. } = &mut new.backing {
        *first += part.start().get() - mapping.range.start().get();
    }
    new.range = part;
    Some(new)
}

/// Whether `left` and `right`, which lie side by side, are one mapping to all who look: same rights, sharing, flags and shift,
/// the file going on where it stopped, and anonymous pages on one side at most, or of one record (Linux's rule).
pub fn joins<H: Host>(left: &Mapping<H>, right: &Mapping<H>) -> bool {
    let backing = match (&left.backing, &right.backing) {
        (Backing::Anonymous, Backing::Anonymous) => true,
        (Backing::File { file: a, first: x }, Backing::File { file: b, first: y }) => {
            Shared::ptr_eq(a, b) && x.checked_add(left.range.pages()) == Some(*y)
        }
        _ => false,
    };
    let anon = match (&left.anon, &right.anon) {
        (Some(a), Some(b)) => Shared::ptr_eq(a, b),
        _ => true,
    };
    backing
        && anon
        && left.range.end() == right.range.start()
        && left.protection == right.protection
        && left.sharing == right.sharing
        && left.flags == right.flags
        && left.shift == right.shift
}

/// The one mapping that `left` and `right` are if they join.
pub fn join<H: Host>(left: &Mapping<H>, right: &Mapping<H>) -> Mapping<H> {
    let mut new = left.clone();
    new.range = left.range.hull(right.range);
    new.serial = left.serial.max(right.serial);
    if new.anon.is_none() {
        new.anon = right.anon.clone();
    }
    new
}
