//! The work that reclaim asks of a space: to give up pages. It only tries, and waits for nothing.

use super::Space;
use crate::address::{PageNumber, PageRange};
use crate::design::{Attempt, LockingDesign, Purpose};
use crate::engine::StaleBatch;
use crate::host::{Entry, EntryKind, Frame, Host, PageTable};
use crate::reclaim::{Reach, Refusal, SpaceHead, Victim, VictimKind};
use crate::space::fault::shared_table::LeafOf;
use crate::sync::{Section, fence_after_rmw};
use crate::vma::MappingFlags;
use crate::vma::tree::Ranged as _;
use core::ptr::NonNull;

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Makes the head by which reclaim reaches the space.
    pub(in crate::space) fn new_head() -> SpaceHead<H> {
        /// # Safety
        /// `head` is the head of a `Space<H, D>`, which is memory as long as `section` lives.
        unsafe fn take<H: Host, D: LockingDesign>(
            head: NonNull<SpaceHead<H>>,
            section: &Section<'_>,
            first: u64,
            victims: &mut [Victim],
            stale: &mut StaleBatch<'_, H>,
        ) {
            // SAFETY: the head is the first field of a `repr(C)` struct, and its address has the provenance of all of it.
            let space = unsafe { head.cast::<Space<H, D>>().as_ref() };
            space.give_up(section, PageNumber::new(first), victims, stale);
        }
        /// # Safety
        /// As of `take`.
        unsafe fn forget_use<H: Host, D: LockingDesign>(
            head: NonNull<SpaceHead<H>>,
            section: &Section<'_>,
            page: u64,
            frame: Frame,
        ) {
            // SAFETY: as in `take`.
            let space = unsafe { head.cast::<Space<H, D>>().as_ref() };
            space.forget_use(section, PageNumber::new(page), frame);
        }
        // SAFETY: only a space of this type has this head, as its first field.
        unsafe { SpaceHead::new(take::<H, D>, forget_use::<H, D>) }
    }

    /// Clears the accessed bit of the entry of `page`, if it maps the page of `frame`.
    fn forget_use(&self, section: &Section<'_>, page: PageNumber, frame: Frame) {
        let view = self.tree.view(section);
        let attempt = Attempt::first(Purpose::Rmap);
        let Ok(_inside) = D::inside(&self.lock, &self.engine, view, page, attempt) else { return };
        if let Some(leaf) = self.table.leaf(section, page)
            && self.table.load(leaf, page).kind() == EntryKind::Page(frame)
        {
            self.table.age(leaf, page);
        }
    }

    /// Takes the pages of those `victims` that have no outcome yet out of their entries, if these map them and nothing speaks against
    /// it. The entries are of one leaf table, and the index of each counts from the page `first`. Gives an outcome to the first of these
    /// victims at least. Those whose pages turn out to be in another mapping get none, and may be tried again.
    ///
    /// All entries are announced first. So they need one fence, and one look at the mapping.
    ///
    /// The order of the steps for an entry is that of docs/pressure.md: the counts change before the entry, so a thread that comes by
    /// the entry finds them as they are. The counts of a file's page change after the entry: a fault that comes by the entry asks the
    /// file.
    pub(in crate::space) fn give_up<'s>(
        &'s self,
        section: &'s Section<'_>,
        first: PageNumber,
        victims: &mut [Victim],
        stale: &mut StaleBatch<'_, H>,
    ) {
        let page_of = |victim: &Victim| PageNumber::new(first.get() + u64::from(victim.index));
        let mut untried = victims.iter_mut().filter(|victim| victim.outcome.is_none());
        let Some(start) = untried.next() else { return };
        let page = page_of(start);
        start.outcome = Some(Err(Refusal::Busy));
        let early = self.tree.view(section);
        // Nothing is held from before the section: for this purpose a design takes nothing there.
        let attempt = Attempt::first(Purpose::Rmap);
        let Ok(_inside) = D::inside(&self.lock, &self.engine, early, page, attempt) else { return };
        let Some(leaf) = self.table.leaf(section, page) else {
            start.outcome = Some(Err(Refusal::Gone));
            return;
        };
        if self.table.is_shared(leaf) {
            if let VictimKind::File | VictimKind::FileInMemory = start.kind {
                let record = self.table.record(leaf);
                let taken = self.engine.take_shared(record, page.get() - record.first(), *start, stale);
                start.outcome = Some(taken);
            }
            // Otherwise it has become shared since its record was read.
            return;
        }
        start.outcome = None;
        let (mut announced, mut taken) = (0, None);
        for victim in victims.iter_mut().filter(|victim| victim.outcome.is_none()) {
            match self.announce_victim(leaf, page_of(victim), victim) {
                Ok(()) => announced += 1,
                Err(refusal) => victim.outcome = Some(Err(refusal)),
            }
        }
        if announced == 0 {
            return;
        }
        // Partner: the fence after publishing in range work, as in page work.
        fence_after_rmw();
        // A change that has published another tree meanwhile finds the bits, or this look finds that tree.
        let view = if mutant!("reclaim_looks_up_early") { early } else { self.tree.view(section) };
        let vma = view.find(page).filter(|vma| self.table.hangs(leaf) && !vma.is_busy());
        for victim in victims.iter_mut().filter(|victim| victim.outcome.is_none()) {
            let near = page_of(victim);
            let outcome = match vma {
                None => Err(Refusal::Busy),
                // Of the next mapping.
                Some(vma) if !vma.range().contains(near) => {
                    self.table.let_go(leaf, near);
                    continue;
                }
                Some(vma) if vma.flags().contains(MappingFlags::LOCKED) && !mutant!("reclaims_locked") => {
                    Err(Refusal::Locked)
                }
                Some(_) => self.take_announced(leaf, near, victim),
            };
            match outcome {
                Ok(()) => {
                    let (low, high) = taken.unwrap_or((near, near));
                    taken = Some((near.min(low), near.max(high)));
                }
                // CVE-2026-31398: the mutant puts all entries of a run back with the write right.
                Err(_) if mutant!("run_put_back_writable") => {
                    let entry = self.table.load(leaf, near).without(Entry::ANNOUNCED);
                    let _ = self.table.install(leaf, near, entry.with(Entry::WRITE));
                }
                Err(_) => self.table.let_go(leaf, near),
            }
            victim.outcome = Some(outcome);
        }
        let taken = taken.and_then(|(low, high)| PageRange::new(low, high.checked_add(1)?));
        if let Some(range) = taken {
            stale.touch_all(range);
            stale.end_part_in_section(&self.table);
        }
    }

    /// Sets the bit of the entry of `page`, if the entry maps the page of `victim` and the page is not in use.
    #[inline]
    fn announce_victim<'s>(
        &'s self,
        leaf: LeafOf<'s, H>,
        page: PageNumber,
        victim: &Victim,
    ) -> Result<(), Refusal> {
        let seen = self.table.load(leaf, page);
        match seen.kind() {
            EntryKind::Page(frame) if frame == victim.frame || mutant!("home_is_proof") => {}
            _ => return Err(Refusal::Gone),
        }
        if seen.is_announced() {
            return Err(Refusal::Busy);
        }
        let is_young = self.table.age(leaf, page);
        if is_young {
            let load = |near| self.table.load(leaf, PageNumber::new(near));
            self.engine.look_around(page.get(), load, |near| self.table.age(leaf, PageNumber::new(near)));
        }
        // A look around an entry of the same run may have cleared the bit of this one.
        let is_used = is_young || self.engine.was_found_around(victim.frame);
        if victim.reach == Reach::Nothing || is_used && victim.reach == Reach::Old {
            return Err(Refusal::Young);
        }
        let is_announced = self.table.try_announce(leaf, page, seen.without(Entry::ACCESSED));
        if is_announced { Ok(()) } else { Err(Refusal::Busy) }
    }

    /// Takes the page of `victim` out of the entry of `page`, whose bit this thread has set. On error it still has the bit.
    #[inline]
    fn take_announced<'s>(
        &'s self,
        leaf: LeafOf<'s, H>,
        page: PageNumber,
        victim: &Victim,
    ) -> Result<(), Refusal> {
        let engine = &*self.engine;
        let folio = engine.folio(victim.frame);
        let seen = self.table.load(leaf, page);
        if folio.is_pinned_for_io() && !mutant!("reclaims_pinned") {
            return Err(Refusal::Pinned);
        }
        match victim.kind {
            // A store has made the page one to be kept. Its fault had the bit.
            VictimKind::Dropped if !mutant!("drops_what_was_stored") && !folio.may_drop() => {
                return Err(Refusal::Busy);
            }
            VictimKind::Dropped => {}
            // A fault that gave the write right has taken the folio out of its slot. It had the bit.
            VictimKind::Swapped(slot, _) if !folio.is_of_slot(slot) => return Err(Refusal::Busy),
            VictimKind::Swapped(slot, generation) if !engine.try_count_slot(slot, generation) => {
                return Err(Refusal::Full);
            }
            VictimKind::Swapped(..) => {}
            // An entry with the write right means that the folio is dirty, or that writeback is about to take the right.
            VictimKind::File if seen.has(Entry::WRITE) || !folio.is_clean() => return Err(Refusal::Dirty),
            // A store by an old translation is kept too: the bytes are read after the invalidation.
            VictimKind::File | VictimKind::FileInMemory => {}
        }
        let install = |gone| self.table.install(leaf, page, gone).is_ok();
        let is_installed = match victim.kind {
            VictimKind::File | VictimKind::FileInMemory => {
                let is_installed = install(Entry::gone(victim.frame, seen.bits()));
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
                });
                if !is_installed {
                    let _ = folio.begin_mapping(was_exclusive);
                } else if is_late {
                    let _ = folio.end_mapping();
                }
                is_installed
            }
        };
        if is_installed {
            return Ok(());
        }
        // The host has no memory to follow. The entry is as it was, and so is the mapping.
        if let VictimKind::Swapped(slot, _) = victim.kind {
            engine.put_slot(slot);
        }
        Err(Refusal::Busy)
    }
}
