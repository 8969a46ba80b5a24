//! The record of a mapping's anonymous pages: whether the mapping has any, and their number. Merges rest on it.

use crate::sync::atomic::{AtomicU64, Ordering};

/// The number of a mapping's anonymous pages, by which mappings merge (Linux's anon_vma). All mappings that come from one
/// mapping by splits, moves and merges have the same number, and so have neighbours that differ in rights alone. The
/// number is unique in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnonId(u64);

impl AnonId {
    /// The bit of the number that says that fork has passed pages on to the mapping.
    const INHERITED: u64 = 1 << 63;

    /// Makes a number from `serial`, which must be unique, not zero, and less than 2^63 - 1.
    pub fn new(serial: u64) -> Self {
        Self(serial)
    }

    /// Makes the number of a child's copy of a mapping that had pages. `serial` is as in [`AnonId::new`].
    pub fn inherited(serial: u64) -> Self {
        Self(serial | Self::INHERITED)
    }

    /// Returns whether fork has passed the first pages on. As in Linux, such a mapping does not merge with one that has
    /// no pages, and its neighbours do not take its number over.
    pub fn is_inherited(self) -> bool {
        self.0 & Self::INHERITED != 0
    }

    /// Returns the number.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// Says whether a private mapping has anonymous pages, and holds their number. It never goes back to none. Each VMA has
/// its own record.
///
/// Range work closes the record before it replaces the VMA. A fault that looked the VMA up before can then no longer add
/// a first page, and looks again. Once there is a number, it does not change, and it passes on to all mappings that come
/// from the VMA. So a merge rests on a state that cannot change (c46000458d57).
#[derive(Debug)]
pub struct AnonRecord {
    /// FRESH, CLOSED or a number. Atomic. Page work changes FRESH to a number; range work changes FRESH to CLOSED and
    /// back. Each change is a compare-and-swap.
    state: AtomicU64,
}

const FRESH: u64 = 0;
const CLOSED: u64 = u64::MAX;

impl AnonRecord {
    /// Makes the record of a new VMA.
    pub fn new(anon: Option<AnonId>) -> Self {
        Self { state: AtomicU64::new(anon.map_or(FRESH, AnonId::get)) }
    }

    /// Returns the number of the mapping's pages; `None` if there are no pages or the record is closed.
    #[inline]
    pub fn id(&self) -> Option<AnonId> {
        // loom remembers one last access of each thread kind. A plain load here would hide behind the load of another
        // thread, and loom would not try the interleaving with that thread's store.
        #[cfg(loom)]
        let state = self.state.fetch_add(0, Ordering::AcqRel);
        #[cfg(not(loom))]
        let state = self.state.load(Ordering::Acquire);
        Self::number(state)
    }

    /// Prepares the mapping for its first page: sets the number to `id`, unless another page came first. Returns the
    /// number that holds; `None` if the record is closed, and page work has to look the VMA up again.
    pub fn begin(&self, id: AnonId) -> Option<AnonId> {
        if mutant!("adopts_while_closed") {
            self.state.store(id.0, Ordering::Release);
            return Some(id);
        }
        match self.state.compare_exchange(FRESH, id.0, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Some(id),
            Err(now) => Self::number(now),
        }
    }

    /// Closes the record before range work replaces its VMA. Returns the number that the next mapping inherits; `None` if
    /// there are no pages, and the record is closed.
    pub fn close(&self) -> Option<AnonId> {
        if mutant!("merge_reads_record") {
            return Self::number(self.state.load(Ordering::Acquire));
        }
        match self.state.compare_exchange(FRESH, CLOSED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => None,
            Err(now) => Self::number(now),
        }
    }

    /// Reopens the record, if range work could not replace its VMA after all.
    pub fn reopen(&self) {
        let _ = self.state.compare_exchange(CLOSED, FRESH, Ordering::AcqRel, Ordering::Relaxed);
    }

    fn number(state: u64) -> Option<AnonId> {
        (state != FRESH && state != CLOSED).then_some(AnonId(state))
    }
}
