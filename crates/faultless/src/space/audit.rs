//! A look at a space that stands still: do its entries agree with its mappings? For tests and for embedders who doubt
//! their host.

use super::{AddressSpace, SpaceUsage};
use crate::address::PageNumber;
use crate::design::LockingDesign;
use crate::frame::Folio;
use crate::host::{Entry, EntryKind, Frame, Host, PageTable};
use crate::protection::Protection;
use crate::vma::AnonId;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// An entry without a mapping.
    #[error("invariant 3: {page:?} has an entry, and nothing is mapped there")]
    NotMapped {
        /// The page.
        page: PageNumber,
    },
    /// More rights than the mapping gives.
    #[error("invariant 3: the entry of {page:?} allows more than {protection}")]
    Rights {
        /// The page.
        page: PageNumber,
        /// What the mapping gives.
        protection: Protection,
    },
    /// A bit that nobody will clear.
    #[error("invariant 1: {page:?} is announced, and nobody is at work")]
    Announced {
        /// The page.
        page: PageNumber,
    },
    /// The frame is free.
    #[error("invariant 3: the entry of {page:?} names a free frame")]
    FreeFrame {
        /// The page.
        page: PageNumber,
    },
    /// The entry maps a foreign frame that its mapping does not show there, or a frame of the engine's where the mapping shows foreign
    /// ones.
    #[error("{page:?} maps {frame:?}, and its mapping shows {shown:?} of the foreign frames")]
    Foreign {
        /// The page.
        page: PageNumber,
        /// The frame of the entry.
        frame: Frame,
        /// The foreign frame that the mapping shows there.
        shown: Option<Frame>,
    },
    /// The limits are held against a wrong sum.
    #[error("counts: the mappings come to {mapped}, and {counted} was counted")]
    Counts {
        /// What the tree has.
        mapped: SpaceUsage,
        /// What the limits go by.
        counted: SpaceUsage,
    },
    /// An exclusive anonymous page that belongs to another record than its mapping.
    #[error("records: {page:?} belongs to record {owner}, its mapping has {record}")]
    Record {
        /// The page.
        page: PageNumber,
        /// The record that the page names.
        owner: u64,
        /// The mapping's.
        record: u64,
    },
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Checks every entry, and the sums that the limits go by. Meaningful while no other call on the space is under way.
    ///
    /// # Errors
    /// The first thing that is wrong.
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
                let is_shared = space.table.is_shared(leaf);
                self.audit_entry(&section, page, space.table.load(leaf, page), is_shared)?;
            }
            rest = crate::address::PageRange::new(
                PageNumber::new(start.get() + H::Table::LEAF_PAGES),
                range.end(),
            );
        }
        Ok(())
    }

    fn audit_entry(
        &self,
        section: &crate::sync::Section<'_>,
        page: PageNumber,
        entry: Entry,
        is_shared: bool,
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
        match vma.record() {
            // In a shared table it is not exclusive, whatever its word says.
            Some(record) if !is_shared && folio.is_exclusive() && frame != space.engine.zero_frame() => {
                let (owner, record) = (folio.owner(), record.id().map_or(0, AnonId::get));
                if owner == record { Ok(()) } else { Err(AuditError::Record { page, owner, record }) }
            }
            _ => Ok(()),
        }
    }
}
