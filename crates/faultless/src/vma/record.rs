//! The record of a mapping's anonymous pages: whether it has any, and which it calls its own. Merges rest on it.

use crate::sync::atomic::{AtomicU64, Ordering};

/// Whose anonymous pages are, for merges: all that their mapping becomes when it is split, moved or merged,
/// and neighbours that differ in rights alone (Linux's anon_vma). Unique in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnonId(u64);

impl AnonId {
    /// A bit of the number: fork has passed pages on to the mapping.
    const INHERITED: u64 = 1 << 63;

    /// `serial`: a number that nobody else has; neither zero nor as great as 2^63 - 1.
    pub fn new(serial: u64) -> Self {
        Self(serial)
    }

    /// The same, for a child's copy of a mapping that had pages.
    pub fn inherited(serial: u64) -> Self {
        Self(serial | Self::INHERITED)
    }

    /// Whether fork has passed the first pages on: Linux merges these with none that has no pages, and gives the record
    /// to no neighbour.
    pub fn is_inherited(self) -> bool {
        self.0 & Self::INHERITED != 0
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// Whether a private mapping has anonymous pages, and their number: never goes back to none. Each VMA has its own.
///
/// Range work that replaces a VMA closes the record first, so that a fault that looked the VMA up before cannot add a
/// first page to it any more and looks again; a number, once there, does not change and passes on to all that the VMA
/// becomes. So a merge rests on what cannot change (c46000458d57).
#[derive(Debug)]
pub struct AnonRecord {
    /// FRESH, CLOSED or a number. FRESH to a number by page work, FRESH to CLOSED and back by range work; each by
    /// compare-and-swap.
    state: AtomicU64,
}

const FRESH: u64 = 0;
const CLOSED: u64 = u64::MAX;

impl AnonRecord {
    /// The record of a VMA that comes.
    pub fn new(anon: Option<AnonId>) -> Self {
        Self { state: AtomicU64::new(anon.map_or(FRESH, AnonId::get)) }
    }

    /// The number of its pages. None: it has none, or is closed.
    #[inline]
    pub fn id(&self) -> Option<AnonId> {
        // loom remembers one last access of each thread kind: a plain load here would hide behind the other's load, and
        // the interleaving with its store would not be tried.
        #[cfg(loom)]
        let state = self.state.fetch_add(0, Ordering::AcqRel);
        #[cfg(not(loom))]
        let state = self.state.load(Ordering::Acquire);
        Self::number(state)
    }

    /// Page work is about to make the first page, with this number unless another page was quicker. None: closed, look the
    /// VMA up again.
    pub fn begin(&self, id: AnonId) -> Option<AnonId> {
        #[cfg(mutant = "adopts_while_closed")]
        {
            self.state.store(id.0, Ordering::Release);
            return Some(id);
        }
        #[cfg(not(mutant = "adopts_while_closed"))]
        match self.state.compare_exchange(FRESH, id.0, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Some(id),
            Err(now) => Self::number(now),
        }
    }

    /// Range work is about to replace its VMA. Returns what comes next inherits; None: nothing, and it is closed.
    pub fn close(&self) -> Option<AnonId> {
        #[cfg(mutant = "merge_reads_record")]
        return Self::number(self.state.load(Ordering::Acquire));
        #[cfg(not(mutant = "merge_reads_record"))]
        match self.state.compare_exchange(FRESH, CLOSED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => None,
            Err(now) => Self::number(now),
        }
    }

    /// Range work could not replace its VMA after all.
    pub fn reopen(&self) {
        let _ = self.state.compare_exchange(CLOSED, FRESH, Ordering::AcqRel, Ordering::Relaxed);
    }

    fn number(state: u64) -> Option<AnonId> {
        (state != FRESH && state != CLOSED).then_some(AnonId(state))
    }
}
