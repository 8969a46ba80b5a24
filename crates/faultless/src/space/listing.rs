//! The maps listing: reads the tree in a section, and never makes the observed wait.

use super::AddressSpace;
use crate::address::{PageNumber, PageRange};
use crate::design::LockingDesign;
use crate::host::Host;
use crate::protection::{Protection, Sharing};
use crate::vma::tree::Ranged;
use crate::vma::{Backing, Flags};
use alloc::vec::Vec;

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
    pub flags: Flags,
    /// The file's number and the page of the file that the mapping begins with.
    pub file: Option<(u64, u64)>,
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// The mappings, upwards. Each line was true at some moment during the call; the space does not stand still.
    pub fn mappings(&self) -> Vec<MappingInfo> {
        let mut lines = Vec::new();
        let mut from = PageNumber::new(0);
        loop {
            // One at a time: making room for a line does not happen in the section.
            let section = self.engine().enter();
            let info = self.0.tree.view(&section).from(from).next().map(|vma| {
                let mapping = vma.mapping();
                let file = match &mapping.backing {
                    Backing::File { file, first } => Some((file.id(), *first)),
                    _ => None,
                };
                let (protection, sharing) = (mapping.protection, mapping.sharing);
                let flags = mapping.flags - Flags::OWN;
                MappingInfo { range: vma.range(), protection, sharing, flags, file }
            });
            drop(section);
            let Some(info) = info else { return lines };
            from = info.range.end();
            lines.push(info);
        }
    }
}
