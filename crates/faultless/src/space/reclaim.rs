//! The work that reclaim asks of a space: to give up one page. It only tries, and waits for nothing.

use super::Space;
use crate::address::PageNumber;
use crate::design::{Attempt, LockingDesign, Purpose};
use crate::engine::StaleBatch;
use crate::host::{Entry, EntryKind, Host, PageTable};
use crate::reclaim::{Reach, Refusal, SpaceHead, Victim, VictimKind};
use crate::sync::{Section, fence_after_rmw};
use crate::vma::MappingFlags;
use core::ptr::NonNull;

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Makes the head by which reclaim reaches the space.
    pub(in crate::space) fn new_head() -> SpaceHead<H> {
        /// # Safety
        /// `head` is the head of a `Space<H, D>`, which is memory as long as `section` lives.
        unsafe fn take<H: Host, D: LockingDesign>(
            head: NonNull<SpaceHead<H>>,
            section: &Section<'_>,
            page: u64,
            victim: Victim,
            stale: &mut StaleBatch<'_, H>,
        ) -> Result<(), Refusal> {
            // SAFETY: the head is the first field of a `repr(C)` struct, and its address has the provenance of all of it.
            let space = unsafe { head.cast::<Space<H, D>>().as_ref() };
            space.give_up(section, PageNumber::new(page), victim, stale)
        }
        // SAFETY: only a space of this type has this head, as its first field.
        unsafe { SpaceHead::new(take::<H, D>) }
    }

    /// Takes the page of `victim` out of the entry of `page`, if the entry maps it and nothing speaks against it. The order of
    /// the steps is that of docs/pressure.md: the counts change before the entry, so a thread that comes by the entry finds them as
    /// they are. The counts of a file's page change after the entry: a fault that comes by the entry asks the file.
    pub(in crate::space) fn give_up(
        &self,
        section: &Section<'_>,
        page: PageNumber,
        victim: Victim,
        stale: &mut StaleBatch<'_, H>,
    ) -> Result<(), Refusal> {
        let engine = &*self.engine;
        let view = self.tree.view(section);
        // Nothing is held from before the section: for this purpose a design takes nothing there.
        let attempt = Attempt::first(Purpose::Rmap);
        let _inside = D::inside(&self.lock, engine, view, page, attempt).map_err(|_| Refusal::Busy)?;
        let leaf = self.table.leaf(section, page).ok_or(Refusal::Gone)?;
        if self.table.is_shared(leaf) {
            if let VictimKind::File | VictimKind::FileInMemory = victim.kind {
                let record = self.table.record(leaf);
                return engine.take_shared(record, page.get() - record.first(), victim, stale);
            }
            // It has become shared since its record was read.
            return Err(Refusal::Busy);
        }
        let seen = self.table.load(leaf, page);
        if seen.kind() != EntryKind::Page(victim.frame) {
            return Err(Refusal::Gone);
        }
        if seen.is_announced() {
            return Err(Refusal::Busy);
        }
        let is_young = self.table.age(leaf, page);
        if is_young {
            let load = |near| self.table.load(leaf, PageNumber::new(near));
            engine.look_around(page.get(), load, |near| self.table.age(leaf, PageNumber::new(near)));
        }
        if victim.reach == Reach::Nothing || is_young && victim.reach == Reach::Old {
            return Err(Refusal::Young);
        }
        if !self.table.try_announce(leaf, page, seen.without(Entry::ACCESSED)) {
            return Err(Refusal::Busy);
        }
        // Partner: the fence after publishing in range work, as in page work.
        fence_after_rmw();
        let folio = engine.folio(victim.frame);
        let refusal = match self.tree.view(section).find(page) {
            _ if !self.table.hangs(leaf) => Some(Refusal::Busy),
            None => Some(Refusal::Busy),
            Some(vma) if vma.is_busy() => Some(Refusal::Busy),
            Some(vma) if vma.flags().contains(MappingFlags::LOCKED) && !mutant!("reclaims_locked") => {
                Some(Refusal::Locked)
            }
            Some(_) if folio.is_pinned_for_io() && !mutant!("reclaims_pinned") => Some(Refusal::Pinned),
            Some(_) => match victim.kind {
                // A store has made the page one to be kept. Its fault had the bit.
                VictimKind::Dropped if !folio.may_drop() => Some(Refusal::Busy),
                VictimKind::Dropped => None,
                // A fault that gave the write right has taken the folio out of its slot. It had the bit.
                VictimKind::Swapped(slot, _) if !folio.is_of_slot(slot) => Some(Refusal::Busy),
                VictimKind::Swapped(slot, generation) if !engine.try_count_slot(slot, generation) => {
                    Some(Refusal::Full)
                }
                VictimKind::Swapped(..) => None,
                // An entry with the write right means that the folio is dirty, or that writeback is about to take the right.
                VictimKind::File if seen.has(Entry::WRITE) || !folio.is_clean() => Some(Refusal::Dirty),
                // A store by an old translation is kept too: the bytes are read after the invalidation.
                VictimKind::File | VictimKind::FileInMemory => None,
            },
        };
        if let Some(refusal) = refusal {
            self.table.let_go(leaf, page);
            return Err(refusal);
        }
        stale.touch(page);
        let install = |gone| self.table.install(leaf, page, gone);
        let is_installed = match victim.kind {
            VictimKind::File | VictimKind::FileInMemory => {
                let is_installed = install(Entry::gone(victim.frame, seen.bits())).is_ok();
                if is_installed {
                    let _ = folio.end_mapping();
                }
                is_installed
            }
            VictimKind::Swapped(..) | VictimKind::Dropped => {
                self.leave_home(leaf, page, seen);
                // The pin of the caller keeps the folio. The mutant ends the mapping after the entry.
                let is_late = mutant!("mapping_ends_late");
                let was_exclusive = !is_late && folio.end_mapping();
                let is_installed = install(match victim.kind {
                    VictimKind::Swapped(slot, generation) => Entry::swapped(slot, generation, seen.bits()),
                    // A processor may still read the page: a fault that installs another one invalidates (rule S3).
                    _ => Entry::gone(victim.frame, seen.bits()),
                })
                .is_ok();
                if !is_installed {
                    let _ = folio.begin_mapping(was_exclusive);
                } else if is_late {
                    let _ = folio.end_mapping();
                }
                is_installed
            }
        };
        if !is_installed {
            // The host has no memory to follow. The entry is as it was, and so is the mapping.
            self.table.let_go(leaf, page);
            if let VictimKind::Swapped(slot, _) = victim.kind {
                engine.put_slot(slot);
            }
        }
        stale.end_part_in_section(&self.table);
        if is_installed { Ok(()) } else { Err(Refusal::Busy) }
    }
}
