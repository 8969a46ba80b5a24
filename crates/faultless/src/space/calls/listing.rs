//! The maps listing: reads the tree in a section, and never makes the observed wait.

use crate::address::{PageNumber, PageRange};
use crate::design::LockingDesign;
use crate::host::{Frame, Host};
use crate::protection::{Protection, Sharing};
use crate::space::AddressSpace;
use crate::vma::tree::Ranged;
use crate::vma::{Backing, MappingFlags};
use alloc::vec::Vec;
use core::iter;

/// One line of the listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingInfo {
    /// The pages.
    pub range: PageRange,
    /// What may be done with them.
    pub protection: Protection,
    /// Whether stores stay in the space.
    pub sharing: Sharing,
    /// What else holds for it.
    pub flags: MappingFlags,
    /// The file's number and the page of the file that the mapping begins with.
    pub file: Option<(u64, u64)>,
    /// The frame that a mapping of frames which the engine does not own begins with.
    pub foreign: Option<Frame>,
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// The mappings, upwards. Each line was true at some moment during the call; the space does not stand still.
    ///
    /// Aborts where there is no memory for the list, as any `collect`; [`AddressSpace::mapping_from`] needs none.
    pub fn mappings(&self) -> Vec<MappingInfo> {
        let mut from = PageNumber::new(0);
        let next = || {
            let info = self.mapping_from(from)?;
            from = info.range.end();
            Some(info)
        };
        // Making room for a line does not happen in the section.
        iter::from_fn(next).collect()
    }

    /// The first mapping that ends above `page`.
    pub fn mapping_from(&self, page: PageNumber) -> Option<MappingInfo> {
        let section = self.engine().enter();
        // What stands for a place that mremap empties is no mapping.
        let mut vmas = self.0.tree.view(&section).from(page);
        let vma = vmas.find(|vma| !matches!(vma.mapping().backing, Backing::Busy))?;
        let mapping = vma.mapping();
        let file = match &mapping.backing {
            Backing::File { file, first } => Some((file.id(), *first)),
            _ => None,
        };
        let (protection, sharing) = (mapping.protection, mapping.sharing);
        let flags = mapping.flags - MappingFlags::OWN;
        let foreign = mapping.foreign_frame(mapping.range.start());
        Some(MappingInfo { range: vma.range(), protection, sharing, flags, file, foreign })
    }
}
