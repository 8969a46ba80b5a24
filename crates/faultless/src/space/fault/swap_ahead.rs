//! The pages that a fault reads ahead from swap space: those of the same mapping and leaf table near it that are in slots.

use crate::address::PageNumber;
use crate::design::LockingDesign;
use crate::host::{EntryKind, Host, PageTable};
use crate::space::Space;
use crate::swap::{MOST_AHEAD, Named};
use crate::vma::MappingFlags;
use smallvec::SmallVec;

/// The slots that are read ahead. They need no memory of the allocator.
pub(super) type Ahead = SmallVec<[Named; MOST_AHEAD as usize]>;

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Returns the slots that the entries near `page` name, in the order of addresses, for a fault that has to read `page`. The
    /// entries may change at once: the generations of the slots tell.
    #[inline(never)]
    pub(super) fn swapped_near(&self, page: PageNumber) -> Ahead {
        let section = self.engine.enter();
        let mut ahead = Ahead::new();
        let (Some(vma), Some(leaf)) = (self.tree.view(&section).find(page), self.table.leaf(&*section, page))
        else {
            return ahead;
        };
        if vma.flags().contains(MappingFlags::RANDOM) {
            return ahead;
        }
        let first = page.get() - page.get() % H::Table::LEAF_PAGES;
        let range = vma.mapping().range;
        let limits = range.start().get().max(first)..range.end().get().min(first + H::Table::LEAF_PAGES);
        let is_sequential = vma.flags().contains(MappingFlags::SEQUENTIAL);
        let pages = section.window().plan(page.get(), limits, is_sequential);
        for near in pages.filter(|near| *near != page.get()) {
            if let EntryKind::Swapped(slot, generation) = self.table.load(leaf, PageNumber::new(near)).kind()
            {
                ahead.push((slot, generation));
            }
        }
        ahead
    }
}
