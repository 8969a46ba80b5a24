//! The way from an anonymous folio back to the entries that may map it, as reclaim goes it (docs/home.md).

use super::LeafRecord;
use super::family::Family;
use super::home::{ENTRY, FAMILY, Home};
use crate::frame::Folio;
use crate::sync::Section;
use core::ptr;

/// The places to which a home leads, in the order of a search: the entry that it names, then the entries of that table's
/// relatives, the youngest first.
pub(crate) struct Places<'s> {
    /// The entry that the home names.
    pub entry: Option<&'s LeafRecord>,
    /// The family of that entry's table, or the one that the home names.
    pub family: Option<&'s Family>,
    /// The index of the entry in each table.
    pub index: u64,
}

/// Returns the places to which the home of `folio` leads. `None` if the folio is not mapped or not anonymous, or if its home is
/// none. The folio may meanwhile be another page's, and the entries may map other folios: a caller that needs certainty reads
/// the entries.
pub(crate) fn places<'s>(folio: &Folio, section: &'s Section<'_>) -> Option<Places<'s>> {
    folio.mapped_home().and_then(|home| Places::of(home, section))
}

impl<'s> Places<'s> {
    /// Returns the places to which `home` leads: see [`places`].
    pub(crate) fn of(home: Home, _section: &'s Section<'_>) -> Option<Self> {
        let index = home.index();
        match home.kind() {
            ENTRY => {
                // SAFETY: by its kind, the home has the address of a record. Rule H1: this section has seen a mapping, and then
                // the home. A thread that takes the table out redirects each home that names it, unless the entry is the only
                // mapping; then it drops the mapping; then it retires the table. So the home names a table that is retired
                // after the section began, if at all, and that is freed after the section ends.
                let record = unsafe { &*ptr::with_exposed_provenance::<LeafRecord>(home.address()) };
                record.touch();
                Some(Self { entry: Some(record), family: record.family(), index })
            }
            FAMILY => {
                // SAFETY: by its kind, the home has the address of a family, whose memory stays as long as the engine. It may have
                // ended: see `family.rs`.
                let family = unsafe { &*ptr::with_exposed_provenance::<Family>(home.address()) };
                Some(Self { entry: None, family: Some(family), index })
            }
            _ => None,
        }
    }

    /// Returns whether a search from here asks the entry at `index` of the table with `record`.
    #[cfg(any(test, feature = "audit"))]
    pub fn lead_to(&self, record: &LeafRecord, index: u64) -> bool {
        let is_relative = || match (self.family, record.family()) {
            (Some(family), Some(of_record)) => ptr::eq(family, of_record),
            _ => false,
        };
        self.index == index && (self.entry.is_some_and(|entry| ptr::eq(entry, record)) || is_relative())
    }

    /// Returns the records of all tables that a search asks, in its order.
    #[cfg(any(test, feature = "audit"))]
    pub fn records(&self, section: &'s Section<'_>) -> impl Iterator<Item = &'s LeafRecord> {
        self.entry.into_iter().chain(self.relatives(section))
    }

    /// Returns the records of the tables that a search asks after the entry that the home names, in its order.
    pub fn relatives(&self, section: &'s Section<'_>) -> impl Iterator<Item = &'s LeafRecord> {
        let entry = self.entry;
        let relatives = self.family.into_iter().flat_map(|family| family.records(section));
        relatives.filter(move |record| !entry.is_some_and(|entry| ptr::eq(entry, *record)))
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::frame::Reference;
    use crate::tables::SpaceMark;
    use core::ptr::NonNull;
    use std::boxed::Box;
    use std::sync::Arc;

    /// Makes the record of a new table. It is memory to the end: a loom thread would find no other use.
    fn record(first: u64) -> &'static LeafRecord {
        let record: &LeafRecord = Box::leak(Box::new(LeafRecord::new()));
        record.begin(SpaceMark::new(NonNull::dangling()), first);
        record
    }

    /// A space lets a page go while another space, whose entry names the page's slot, brings it back. The home must not name the
    /// entry that is gone: its table is freed, and the other space's mapping leads a thread there.
    #[test]
    fn a_home_is_left_beside_a_swap_in() {
        loom::model(|| {
            let (folio, [one, other]) = (Arc::new(Folio::new()), [2, 4].map(record));
            let [left, theirs] = [one, other].map(|record| Home::of_entry(record, 0));
            folio.begin_anonymous(left);
            assert!(folio.attach(0));
            let leaver = {
                let folio = folio.clone();
                loom::thread::spawn(move || {
                    folio.leave_home(|| (left, Home::of_relatives(one, 0)));
                    let _ = folio.release(Reference::Mapping);
                })
            };
            // As `space/fault/swapped.rs`, with the folio's lock.
            folio.try_get(Reference::Pin).unwrap();
            if folio.mappings_before_slot() == 0 {
                folio.set_home(theirs);
            }
            assert!(folio.begin_mapping(false));
            leaver.join().unwrap();
            assert_ne!(folio.mapped_home(), Some(left), "rule H1");
        });
    }

    /// A frame has its next life, in a table that is new. A thread that has seen the mapping of the life before may read the next
    /// home, and finds the record as its maker left it.
    #[test]
    fn a_home_of_the_next_life() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(Some(3));
        builder.check(|| {
            let folio = Arc::new(Folio::new());
            folio.begin_anonymous(Home::of_entry(record(2), 0));
            let theirs = folio.clone();
            let follower = loom::thread::spawn(move || {
                let Some(home) = theirs.mapped_home() else { return };
                assert_eq!(home.kind(), ENTRY);
                // SAFETY: a record, which stays.
                let record = unsafe { &*ptr::with_exposed_provenance::<LeafRecord>(home.address()) };
                assert_eq!((record.first(), record.is_in_a_space()), (2 + 2 * home.index(), true));
            });
            assert!(folio.put(Reference::Mapping));
            folio.begin_anonymous(Home::of_entry(record(4), 1));
            follower.join().unwrap();
        });
    }
}
