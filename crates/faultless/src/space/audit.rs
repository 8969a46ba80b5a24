//! A check of a space in which no call is under way: do its entries agree with its mappings? For tests, and for embedders who
//! test their host.

use super::fault::shared_table::LeafOf;
use super::{AddressSpace, SpaceUsage};
use crate::address::PageNumber;
use crate::design::LockingDesign;
use crate::frame::Folio;
use crate::host::{Entry, EntryKind, Frame, Host, PageTable, Park};
use crate::protection::Protection;
use crate::sync::Section;
use crate::tables::{self, Family, LeafRecord};
use crate::vma::tree::Ranged;
use crate::vma::{AnonRecord, MappingFlags};
use core::ptr;

/// The first inconsistency that an audit found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// An entry has a page where nothing is mapped.
    #[error("invariant 3: {page:?} has an entry, and nothing is mapped there")]
    NotMapped {
        /// The page of the entry.
        page: PageNumber,
    },
    /// An entry has more rights than its mapping gives.
    #[error("invariant 3: the entry of {page:?} allows more than {protection}")]
    Rights {
        /// The page of the entry.
        page: PageNumber,
        /// The rights that the mapping gives.
        protection: Protection,
    },
    /// An entry has an announcement that no thread will clear.
    #[error("invariant 1: {page:?} is announced, but no page work is under way")]
    Announced {
        /// The page of the entry.
        page: PageNumber,
    },
    /// An entry maps a frame that is free.
    #[error("invariant 3: the entry of {page:?} names a free frame")]
    FreeFrame {
        /// The page of the entry.
        page: PageNumber,
    },
    /// An entry maps a foreign frame that its mapping does not show there, or maps a frame of the engine's where the mapping
    /// shows foreign ones.
    #[error("{page:?} maps {frame:?}, and its mapping shows {shown:?} of the foreign frames")]
    Foreign {
        /// The page of the entry.
        page: PageNumber,
        /// The frame of the entry.
        frame: Frame,
        /// The foreign frame that the mapping shows there.
        shown: Option<Frame>,
    },
    /// The usage that the limits go by differs from that of the tree.
    #[error("counts: the mappings come to {mapped}, and {counted} was counted")]
    Counts {
        /// The usage of the mappings in the tree.
        mapped: SpaceUsage,
        /// The usage that the limits go by.
        counted: SpaceUsage,
    },
    /// An anonymous page's mapping has no record of such pages, or another record than the page came by.
    #[error("records: {page:?} is anonymous, and its mapping does not have the record that it came by")]
    Record {
        /// The page of the entry.
        page: PageNumber,
    },
    /// The folio's only mapping is not the entry that its home names.
    #[error("rule H2: only {page:?} maps its folio, but the folio's home is another entry")]
    Home {
        /// The page of the entry.
        page: PageNumber,
    },
    /// The folio's home is in a table that no space has.
    #[error("rule H1: the home of the folio at {page:?} is in a table that no space has")]
    NoTable {
        /// The page of the entry.
        page: PageNumber,
    },
    /// A search from the folio's home would miss an entry that maps the folio.
    #[error("rule H4: a search from the home of the folio at {page:?} would miss its entry")]
    NotFound {
        /// The page of the entry.
        page: PageNumber,
    },
    /// The record of a leaf table is not in the list of its family.
    #[error("rule H4: the record of the leaf table over {page:?} is not in its family's list")]
    Family {
        /// The first page of the table.
        page: PageNumber,
    },
    /// The record of a leaf table differs from the facts.
    #[error("rule H4: the record of the leaf table over {page:?} names another space, or other pages")]
    TableOf {
        /// The first page of the table.
        page: PageNumber,
    },
    /// A locked mapping lies over a leaf table that others have too.
    #[error("rule H6: {page:?} is locked, and its leaf table is shared")]
    LockedAndShared {
        /// The first page that both cover.
        page: PageNumber,
    },
}

/// The number of looks at an entry that is announced or changes, after which what was found is an error.
const LOOKS: u32 = if cfg!(loom) { 0 } else { 10_000 };

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Checks every entry, the homes of anonymous pages, the records of leaf tables, and the usage that the limits go by. The
    /// result is meaningful only while no other call on the space is under way. Reclaim by threads of other spaces may go on.
    ///
    /// # Errors
    /// The first inconsistency that was found.
    pub fn audit(&self) -> Result<(), AuditError> {
        let space = &self.0;
        space.engine.assert_may_sleep("the tree lock");
        {
            let lock = space.map.lock_by(&*space.engine);
            let all = space.tree.view_locked(&lock.writer).from(PageNumber::new(0));
            let (mapped, counted) = (SpaceUsage::default().with(all.map(|vma| vma.mapping())), lock.usage);
            if mapped != counted {
                return Err(AuditError::Counts { mapped, counted });
            }
        }
        let mut rest = Some(space.whole());
        while let Some(range) = rest {
            let section = space.engine.enter();
            let Some(page) = space.table.next_leaf(&section, range) else { return Ok(()) };
            let start = page.align_down(H::Table::LEAF_PAGES);
            for page in (start.get()..start.get() + H::Table::LEAF_PAGES).map(PageNumber::new) {
                let Some(leaf) = space.table.leaf(&section, page) else { break };
                if page == start {
                    self.audit_table(&section, leaf, page)?;
                }
                // Reclaim announces and takes pages at any time. What was found is no error if the entry is another by now.
                let (mut entry, mut look) = (space.table.load(leaf, page), 0);
                while let Err(error) = self.audit_entry(&section, leaf, page, entry) {
                    let seen = core::mem::replace(&mut entry, space.table.load(leaf, page));
                    if seen == entry && !seen.is_announced() || look >= LOOKS {
                        return Err(error);
                    }
                    space.engine.host().park().spin(look);
                    look += 1;
                }
            }
            rest = crate::address::PageRange::new(
                PageNumber::new(start.get() + H::Table::LEAF_PAGES),
                range.end(),
            );
        }
        Ok(())
    }

    /// Checks the record of a leaf table that was found in `section`, whose first page is `first`.
    fn audit_table<'a>(
        &'a self,
        section: &Section<'_>,
        leaf: LeafOf<'a, H>,
        first: PageNumber,
    ) -> Result<(), AuditError> {
        let space = &self.0;
        let (record, is_shared) = (space.table.record(leaf), space.table.is_shared(leaf));
        let expected = (!is_shared).then(|| space.table.space());
        if record.space() != expected || record.first() != first.get() || !record.is_in_a_space() {
            return Err(AuditError::TableOf { page: first });
        }
        let is_listed = |family: &Family| family.records(section).any(|relative| ptr::eq(relative, record));
        if !record.family().is_none_or(is_listed) {
            return Err(AuditError::Family { page: first });
        }
        let span = space.leaf_span(first);
        let mut within =
            space.tree.view(section).from(first).take_while(|vma| vma.range().start() < span.end());
        match within.find(|vma| vma.flags().contains(MappingFlags::LOCKED)) {
            Some(locked) if is_shared => {
                Err(AuditError::LockedAndShared { page: locked.range().start().max(first) })
            }
            _ => Ok(()),
        }
    }

    fn audit_entry<'a>(
        &'a self,
        section: &Section<'_>,
        leaf: LeafOf<'a, H>,
        page: PageNumber,
        entry: Entry,
    ) -> Result<(), AuditError> {
        let space = &self.0;
        if entry.is_announced() {
            return Err(AuditError::Announced { page });
        }
        let found = space.tree.view(section).find(page);
        if entry.is_guard() && found.is_none() {
            return Err(AuditError::NotMapped { page });
        }
        if !entry.holds_page() {
            return Ok(());
        }
        let Some(vma) = found else { return Err(AuditError::NotMapped { page }) };
        let protection = vma.mapping().protection;
        let readable = protection.intersects(Protection::READ | Protection::WRITE);
        if entry.has(Entry::WRITE) && !protection.contains(Protection::WRITE)
            || entry.has(Entry::READ) && !readable
        {
            return Err(AuditError::Rights { page, protection });
        }
        let shown = vma.mapping().foreign_frame(page);
        if let EntryKind::Foreign(frame) = entry.kind() {
            return if shown == Some(frame) {
                Ok(())
            } else {
                Err(AuditError::Foreign { page, frame, shown })
            };
        }
        let Some(frame) = entry.counted_frame() else { return Ok(()) };
        if shown.is_some() {
            return Err(AuditError::Foreign { page, frame, shown });
        }
        let folio: &Folio = space.engine.folio(frame);
        if folio.is_free() {
            return Err(AuditError::FreeFrame { page });
        }
        if !folio.is_anonymous() {
            return Ok(());
        }
        let id = vma.record().and_then(AnonRecord::id).ok_or(AuditError::Record { page })?;
        // A page that fork has passed on came by the record of another space.
        #[cfg(loom)]
        if !id.is_inherited() && folio.is_exclusive() && folio.noted_record() != id.get() {
            return Err(AuditError::Record { page });
        }
        let _ = id;
        // The count is read first: a thread that drops another mapping of the folio changes the home before the count.
        let is_only = folio.mappings() == 1;
        let Some(places) = tables::places(folio, section) else { return Ok(()) };
        let (record, index) = (space.table.record(leaf), page.get() % H::Table::LEAF_PAGES);
        let names_another = |named: &LeafRecord| !ptr::eq(named, record) || places.index != index;
        if is_only && places.entry.is_some_and(names_another) {
            return Err(AuditError::Home { page });
        }
        if !places.lead_to(record, index) {
            return Err(AuditError::NotFound { page });
        }
        match places.entry {
            Some(record) if !record.is_in_a_space() => Err(AuditError::NoTable { page }),
            _ => Ok(()),
        }
    }
}
