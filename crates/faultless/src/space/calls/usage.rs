//! The figures of smaps: how much of each mapping is in memory, and with whom it is shared. It only reads the tree and the
//! tables, in short sections. It allocates in none of them, and never makes the observed space wait (sources: Corbet 2022).

use crate::address::{PAGE_SIZE, PageNumber, PageRange};
use crate::design::LockingDesign;
use crate::host::{Entry, EntryKind, Host, PageTable};
use crate::protection::Sharing;
use crate::space::calls::listing::MappingInfo;
use crate::space::calls::resident::FEW;
use crate::space::{AddressSpace, Space};
use crate::vma::MappingFlags;
use alloc::vec::Vec;

/// A mapping and its pages. All figures are in bytes.
///
/// As in Linux's smaps, a page of a file is dirty in every mapping of it from the first store on, through whichever mapping or
/// handle, until a write of it begins.
///
/// Differs from Linux: the pages of a file in memory, shared anonymous memory included, are always dirty. Linux 6.18 counts a
/// page of tmpfs that was only read as clean, and as dirty from the first store or write on, for ever. The sum of both is the
/// same.
///
/// All figures of a mapping of foreign frames are zero, as on Linux, whose walk for smaps skips VM_PFNMAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingUsage {
    /// The mapping.
    pub mapping: MappingInfo,
    /// Pages in memory that are mapped here (Rss). The page of zeros is not counted.
    pub resident: u64,
    /// Resident pages, each divided by the number of its mappings (Pss). A shared leaf table (docs/fork.md) counts once for
    /// each space that has it. To a space that has the page by another table, it counts once in all.
    pub proportional: u64,
    /// Resident pages that are mapped elsewhere too, and are equal to the file.
    pub shared_clean: u64,
    /// Resident pages that are mapped elsewhere too, and whose contents are nowhere else.
    pub shared_dirty: u64,
    /// Resident pages that are mapped here only, and are equal to the file.
    pub private_clean: u64,
    /// Resident pages that are mapped here only, and whose contents are nowhere else.
    pub private_dirty: u64,
    /// Resident pages that were used lately.
    pub referenced: u64,
    /// Resident pages that belong to no file.
    pub anonymous: u64,
    /// The figure `proportional` if the mapping is locked, otherwise zero.
    pub locked: u64,
    /// The part of `proportional` that is of pages whose contents are nowhere else (Pss_Dirty).
    pub proportional_dirty: u64,
    /// Resident pages that may be dropped when memory is short, after MADV_FREE (LazyFree).
    pub lazy_free: u64,
    /// Anonymous pages that a slot of swap space has, and no entry of the mapping; in a shared mapping of a file without a store, the
    /// pages of the file that are in slots (Swap).
    pub swap: u64,
    /// The anonymous pages of `swap`, each divided by the number of entries that name its slot (SwapPss).
    pub swap_proportional: u64,
}

impl MappingUsage {
    fn of(mapping: MappingInfo) -> Self {
        Self {
            mapping,
            resident: 0,
            proportional: 0,
            shared_clean: 0,
            shared_dirty: 0,
            private_clean: 0,
            private_dirty: 0,
            referenced: 0,
            anonymous: 0,
            locked: 0,
            proportional_dirty: 0,
            lazy_free: 0,
            swap: 0,
            swap_proportional: 0,
        }
    }

    /// Adds one entry. `others` is how many other spaces have the same table, and the page by it.
    fn add<H: Host, D: LockingDesign>(&mut self, space: &Space<H, D>, entry: Entry, others: u64) {
        let frame = match entry.kind() {
            EntryKind::Page(frame) | EntryKind::Kept(frame) => frame,
            EntryKind::Swapped(slot, _) => {
                self.swap += PAGE_SIZE;
                self.swap_proportional += PAGE_SIZE / (space.engine.slot_count(slot).max(1) + others);
                return;
            }
            EntryKind::Foreign(_) | EntryKind::Empty | EntryKind::Guard | EntryKind::Gone(_) => return,
        };
        if frame == space.engine.zero_frame() {
            return;
        }
        let folio = space.engine.folio(frame);
        // The page may be gone by now, and its frame used otherwise. The figure is one of a moment.
        let mappings = folio.mappings().max(1) + others;
        let is_anonymous = folio.is_anonymous();
        let is_dirty = is_anonymous || entry.has(Entry::DIRTY) || folio.is_dirty();
        *match (mappings > 1, is_dirty) {
            (true, false) => &mut self.shared_clean,
            (true, true) => &mut self.shared_dirty,
            (false, false) => &mut self.private_clean,
            (false, true) => &mut self.private_dirty,
        } += PAGE_SIZE;
        self.resident += PAGE_SIZE;
        self.proportional += PAGE_SIZE / mappings;
        self.proportional_dirty += if is_dirty { PAGE_SIZE / mappings } else { 0 };
        self.lazy_free += if is_anonymous && folio.may_drop() { PAGE_SIZE } else { 0 };
        self.referenced += if entry.has(Entry::ACCESSED) { PAGE_SIZE } else { 0 };
        self.anonymous += if is_anonymous { PAGE_SIZE } else { 0 };
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Returns the mappings, upwards, with the pages that they have in memory. Each figure was true at some moment
    /// during the call, but not all at the same one. Waits for nothing.
    ///
    /// Aborts if there is no memory for the list, as [`AddressSpace::mappings`] does.
    pub fn usage(&self) -> Vec<MappingUsage> {
        self.mappings().into_iter().map(|mapping| self.usage_of(mapping)).collect()
    }

    /// Returns the usage of one mapping. Needs no memory.
    pub fn usage_of(&self, mapping: MappingInfo) -> MappingUsage {
        let mut usage = MappingUsage::of(mapping);
        self.0.count_pages(&mut usage);
        if mapping.flags.contains(MappingFlags::LOCKED) {
            usage.locked = usage.proportional;
        }
        usage
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    fn count_pages(&self, usage: &mut MappingUsage) {
        usage.swap = PAGE_SIZE * self.shared_pages_in_slots(usage.mapping.range);
        let mut rest = Some(usage.mapping.range);
        while let Some(part) = rest {
            let section = self.engine.enter();
            let Some(start) = self.table.next_leaf(&section, part) else { break };
            let few = FEW.min(H::Table::LEAF_PAGES);
            let end = PageNumber::new(start.align_down(few).get() + few).min(part.end());
            if let Some(leaf) = self.table.leaf(&section, start) {
                let others = self.table.others(leaf);
                for page in (start.get()..end.get()).map(PageNumber::new) {
                    usage.add(self, self.table.load(leaf, page), others);
                }
            }
            rest = PageRange::new(end, part.end());
        }
    }

    /// Returns the number of pages in slots that the first mapping of `range` shows, if it is a shared one of a file without a store.
    fn shared_pages_in_slots(&self, range: PageRange) -> u64 {
        let section = self.engine.enter();
        let vma = self.tree.view(&section).find(range.start());
        let shown = vma.filter(|vma| vma.mapping().sharing == Sharing::Shared);
        let shown = shown.and_then(|vma| vma.mapping().file_page(range.start()));
        let shown = shown.map(|(file, page)| (file.clone(), page));
        drop(section);
        shown.map_or(0, |(file, page)| file.pages_in_slots(page..page + range.pages()))
    }
}
