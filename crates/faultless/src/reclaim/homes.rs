//! The search for pages without a home.
//!
//! A page that fork has shared loses its home when mremap moves one of its entries: its other entries have another index, or are of
//! another family. It cannot be found while it is shared. When one mapping is left, the page stays without a home until a store, so it
//! would stay in memory if nobody stores. Reclaim counts how often it meets such pages. After a few it looks through the tables of all
//! spaces, and gives each such page a home at the entry in which it is found.
//!
//! ```text
//! a batch meets pages without a home ─► counts them
//! a call ends, and has met enough of them, or has freed too little ─► one thread has the turn
//!     for some entries from the hand on: a page without a home, mapped once ─► the entry is its home
//! ```
//! The hand goes round all spaces. A call that has freed enough moves it by [`FEW_ENTRIES`], any other by [`MANY_ENTRIES`].

use super::Reclaim;
use crate::address::PageNumber;
use crate::engine::{Engine, Tally};
use crate::host::Host;
use crate::sync::plain::{AtomicBool, AtomicU64, Ordering};

/// The number of meetings with pages without a home after which a call that has freed enough searches.
const MEETINGS: u64 = 64;
/// The largest number of meetings to which [`MEETINGS`] grows while searches find no page.
const MOST_MEETINGS: u64 = 1 << 20;
/// The number of entries that one call looks at if it has freed enough. Some hundred microseconds.
const FEW_ENTRIES: u64 = 1 << 14;
/// The number of entries that one call looks at if it has freed too little: those of 4 GiB.
const MANY_ENTRIES: u64 = 1 << 20;

/// The state of the search. Only hints: each field is plain.
pub(super) struct Homeless {
    /// The number of times that reclaim has met a page without a home since the last search.
    met: AtomicU64,
    /// The number of meetings from which a search is due.
    due: AtomicU64,
    /// Whether a thread searches. The thread that has set it has the hand.
    has_turn: AtomicBool,
    /// The hand: the number of the last space that was searched to its end, and the page of the next one to go on from.
    last: AtomicU64,
    next: AtomicU64,
}

impl Default for Homeless {
    fn default() -> Self {
        let (met, has_turn, last, next) = Default::default();
        Self { met, due: AtomicU64::new(MEETINGS), has_turn, last, next }
    }
}

impl Reclaim {
    /// Counts a page that was found to have no home.
    pub(super) fn note_homeless(&self) {
        self.homeless.met.fetch_add(1, Ordering::Relaxed);
    }
}

impl<H: Host> Engine<H> {
    /// Gives homes to pages that have none, if it is time for that. `has_enough`: the caller has freed as much as it wanted. Returns
    /// whether there are more pages for reclaim now. The caller is in no section and has announced nothing.
    pub(super) fn give_homes_if_due(&self, has_enough: bool) -> bool {
        let homeless = &self.reclaim.homeless;
        let met = homeless.met.load(Ordering::Relaxed);
        let is_due = met >= if has_enough { homeless.due.load(Ordering::Relaxed) } else { 1 };
        is_due
            && !mutant!("homes_stay_lost")
            && self.give_homes(if has_enough { FEW_ENTRIES } else { MANY_ENTRIES })
    }

    /// Searches a round, and returns whether a page has got a home. For tests.
    #[cfg(any(test, feature = "audit"))]
    pub fn give_homes_for_tests(&self) -> bool {
        self.give_homes(MANY_ENTRIES)
    }

    #[cold]
    #[inline(never)]
    fn give_homes(&self, most: u64) -> bool {
        let homeless = &self.reclaim.homeless;
        if homeless.has_turn.swap(true, Ordering::Acquire) {
            return false;
        }
        let mut tally = Tally::default();
        let begin = homeless.last.load(Ordering::Relaxed);
        let (mut last, mut next) = (begin, homeless.next.load(Ordering::Relaxed));
        let mut is_round = false;
        while tally.looks < most {
            // Each space has a number above 0.
            let Some((number, space)) = self.next_space(Some(last)) else {
                // One round is enough.
                if core::mem::replace(&mut is_round, true) || last == 0 {
                    break;
                }
                (last, next) = (0, 0);
                continue;
            };
            if is_round && number > begin {
                break;
            }
            // A space without a table counts too.
            tally.looks += 1;
            let mut rest =
                space.filter(|space| !space.is_dying()).map(|space| (space, PageNumber::new(next)));
            while let Some((space, start)) = rest.take() {
                match space.give_homes(start, &mut tally) {
                    Some(page) if tally.looks < most => rest = Some((space, page)),
                    Some(page) => next = page.get(),
                    None => (last, next) = (number, 0),
                }
            }
            if tally.looks < most {
                (last, next) = (number, 0);
            }
        }
        homeless.last.store(last, Ordering::Relaxed);
        homeless.next.store(next, Ordering::Relaxed);
        homeless.met.store(0, Ordering::Relaxed);
        let due = if tally.homes != 0 { MEETINGS } else { 2 * homeless.due.load(Ordering::Relaxed) };
        homeless.due.store(due.min(MOST_MEETINGS), Ordering::Relaxed);
        homeless.has_turn.store(false, Ordering::Release);
        tally.homes != 0
    }
}
