//! The count of shared leaf tables, and the reason why no count of a page's mappings overflows through their copies.
//!
//! The copy of a shared table counts each page in it once more. It cannot be refused, since the store that asked for it
//! has to go on. So room is kept for all copies that may come. [`MAPPINGS_FULL`](crate::frame::MAPPINGS_FULL) mappings
//! are counted one by one; beyond that number only copies may count. A table has a page at most
//! [`MAX_SAME_PAGE`](crate::frame::MAX_SAME_PAGE) times, and at most [`MAX_SHARED_TABLES`] tables are counted at once.
//!
//! ```text
//! fork:   count the table (AcqRel)                     copy:   count its pages
//!         is some page full? each page of it:                  one is full: note it
//!         one is full: count the table off, copy               count the table off (Release)
//!         share it
//! ```
//! The proof, for one page:
//!
//! 1. Take the last moment at which the page's count was not full. All counts after that moment are counts by copies.
//! 2. Take the first table that is counted off after its copy has counted the page after that moment. The copy has noted
//!    before that some page is full.
//! 3. A fork that counts a table later sees that note, finds the page full, and does not share a table that has the page.
//! 4. So each copy after the moment is of a table that was counted before step 2. Some of these tables were counted off
//!    before step 2: their copies counted the page before the moment, or not at all. The others were counted at the same
//!    time, so there are at most `MAX_SHARED_TABLES` of them.
//!
//! Page work that is in a table while it is shared may still map the page there. Page work is refused if the page is
//! full, and the table then has the page no more often than a table may.

use crate::frame::Folio;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crossbeam_utils::CachePadded;

/// The largest number of leaf tables shared at once. Each is counted once for every space but one that has it.
#[cfg(not(loom))]
pub(crate) const MAX_SHARED_TABLES: u64 = 1 << 20;
#[cfg(loom)]
pub(crate) const MAX_SHARED_TABLES: u64 = 2;

/// The count of the tables that are shared now. There is one such count an engine.
#[derive(Default)]
pub(crate) struct SharedTables {
    /// Each table is counted once for every space but one that has it. Atomic; on a cache line of its own, as is the next
    /// field.
    count: CachePadded<AtomicU64>,
    /// Says whether a copy has found the count of a page full since the start. Atomic. Set for good, and very rarely.
    has_full_page: CachePadded<AtomicBool>,
}

impl SharedTables {
    /// Counts a table that is about to be shared. Returns false if it may not be shared: the limit is reached, or
    /// `is_full` finds a page in the table that is full ([`Folio::is_mapping_full`]). The table is not counted then.
    pub(crate) fn try_count(&self, is_full: impl Fn() -> bool) -> bool {
        let has_full = || self.has_full_page.load(Ordering::Relaxed) && is_full();
        let early = mutant!("full_asked_before_the_count").then(&has_full);
        // Acquire, partner: `uncount`. This thread sees the pages that copies of tables counted off before have counted.
        let is_room = self.count.fetch_add(1, Ordering::AcqRel) < MAX_SHARED_TABLES;
        // After the count: step 3 above.
        let may_be = is_room && !early.unwrap_or_else(has_full);
        if !may_be {
            self.uncount();
        }
        may_be
    }

    /// Undoes [`SharedTables::try_count`]. Called if the table is not shared after all, or if it is copied and its pages
    /// are counted. Release.
    pub(crate) fn uncount(&self) {
        let order = if mutant!("uncount_relaxed") { Ordering::Relaxed } else { Ordering::Release };
        self.count.fetch_sub(1, order);
    }

    /// Counts a page of a shared table that is being copied. Called before the table is counted off.
    pub(crate) fn count_copy(&self, folio: &Folio) {
        if folio.count_copy() {
            self.note_full_page();
        }
    }

    /// Notes that a copy has found a count full, of a page or of a swap slot.
    #[cold]
    pub(crate) fn note_full_page(&self) {
        self.has_full_page.store(true, Ordering::Relaxed);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::frame::MAPPINGS_FULL;
    use std::sync::Arc;

    /// A page that each table has once, and the count of the tables.
    struct Common {
        folio: Folio,
        tables: SharedTables,
    }

    impl Common {
        fn share(&self) -> bool {
            self.tables.try_count(|| self.folio.is_mapping_full())
        }

        fn copy(&self) {
            self.tables.count_copy(&self.folio);
            self.tables.uncount();
        }
    }

    /// One more mapping makes the page full. As many tables with it are shared as allowed, and all are copied. Meanwhile
    /// forks share tables with the page, whose copies count it too.
    #[test]
    fn copies_at_the_limit_beside_forks() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(Some(3));
        builder.check(|| {
            let common = Arc::new(Common { folio: Folio::new(), tables: SharedTables::default() });
            common.folio.begin_mapped(MAPPINGS_FULL - 1);
            assert!((0..MAX_SHARED_TABLES).all(|_| common.share()));
            let threads = [(); MAX_SHARED_TABLES as usize].map(|()| {
                let common = common.clone();
                loom::thread::spawn(move || common.copy())
            });
            if common.share() {
                common.copy();
            }
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            let most = MAPPINGS_FULL - 1 + MAX_SHARED_TABLES;
            assert!(common.folio.mappings() <= most, "a count of mappings runs over");
        });
    }
}
