//! The maps listing: reads the tree in a section, and never makes the observed space wait.

use crate::address::{PageNumber, PageRange};
use crate::design::LockingDesign;
use crate::host::{Frame, Host};
use crate::protection::{Protection, Sharing};
use crate::space::AddressSpace;
use crate::vma::tree::Ranged;
use crate::vma::{Backing, MappingFlags};
use alloc::vec::Vec;
use core::iter;

/// One line of the listing of mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingInfo {
    /// The pages of the mapping.
    pub range: PageRange,
    /// The accesses that the mapping allows.
    pub protection: Protection,
    /// Private: stores stay in the space. Shared: they reach the mapped file.
    pub sharing: Sharing,
    /// Further properties of the mapping.
    pub flags: MappingFlags,
    /// The file's number and the page of the file that the mapping begins with.
    pub file: Option<(u64, u64)>,
    /// The first frame of a mapping of frames that the engine does not own.
    pub foreign: Option<Frame>,
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Returns the mappings, upwards. Each line was true at some moment during the call, but not all at the same one.
    ///
    /// Aborts if there is no memory for the list, as any `collect` does; [`AddressSpace::mapping_from`] needs none.
    pub fn mappings(&self) -> Vec<MappingInfo> {
        let mut from = PageNumber::new(0);
        let next = || {
            let info = self.mapping_from(from)?;
            from = info.range.end();
            Some(info)
        };
        // Room for a line is not made in the section.
        iter::from_fn(next).collect()
    }

    /// Returns the first mapping that ends above `page`.
    pub fn mapping_from(&self, page: PageNumber) -> Option<MappingInfo> {
        let section = self.engine().enter();
        // A placeholder for a place that mremap empties is no mapping.
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
