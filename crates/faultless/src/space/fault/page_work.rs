//! Page work: announce in the page's own entry, then look the VMA up.

use crate::address::{PageNumber, PageRange};
use crate::design::{Attempt, Blocked, Capability, LockingDesign};
use crate::engine::Engine;
use crate::host::{Entry, Frame, FrameSource, FrameUse, GroupId, Host, OutOfMemory, PageTable};
use crate::space::Space;
use crate::space::fault::shared_page::{SharedPage, SharedWork};
use crate::space::fault::shared_table::LeafOf;
use crate::sync::Section;
use crate::sync::fence_after_rmw;
use crate::tables::{Home, PendingLeave, Unshared};
#[cfg(loom)]
use crate::vma::AnonRecord;
use crate::vma::Vma;

/// The reason why page work did not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::space) enum Refused {
    /// Nothing is mapped at the page.
    Hole,
    /// There is no leaf table, and the caller wants none made.
    NoTable,
    /// There is no memory for a table.
    OutOfMemory,
}

/// The treatment of a missing leaf table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::space) enum Leaves {
    Make,
    Existing,
}

/// A page whose entry carries this thread's announcement, with the VMA looked up after that. While it lives, no other page work
/// touches the page and no range work over it goes on. So its thread neither sleeps nor waits.
///
/// [`Announced::install`] ends it. Dropping it ends it too, and leaves the entry as it is.
pub(in crate::space) struct Announced<'a, H: Host, D: LockingDesign> {
    pub space: &'a Space<H, D>,
    pub page: PageNumber,
    /// The mapping that has the page.
    pub vma: &'a Vma<H, D>,
    /// The entry when it was announced, without the bit. Accessed and dirty bits may have been set since.
    pub entry: Entry,
    /// The attempt, as the design has marked it by now.
    pub attempt: Attempt,
    leaf: <H::Table as PageTable>::Leaf<'a>,
    section: &'a Section<'a>,
    held: bool,
}

impl<'a, H: Host, D: LockingDesign> Announced<'a, H, D> {
    /// Returns the engine of the space.
    pub fn engine(&self) -> &'a Engine<H> {
        &self.space.engine
    }

    /// Returns the read section in which the page was announced.
    pub fn section(&self) -> &'a Section<'a> {
        self.section
    }

    /// Allocates a frame, as [`Space::take_frame`] does.
    #[inline]
    pub fn take_frame(&self, purpose: FrameUse) -> Option<Frame> {
        self.space.take_frame(self.section, purpose)
    }

    /// Returns the home of the folio that the entry maps.
    #[inline]
    pub fn home(&self) -> Home {
        self.space.table.home(self.leaf, self.page)
    }

    /// Notes by which record the page in `frame` was made, for models. `audit` compares it.
    #[inline]
    pub fn note_record(&self, frame: Frame) {
        #[cfg(loom)]
        if let Some(id) = self.vma.record().and_then(AnonRecord::id) {
            self.engine().folio(frame).note_record(id.get());
        }
        let _ = frame;
    }

    /// Makes the page's home forget this entry, which is about to lose the page (rule H1 of docs/home.md). The mapping is dropped
    /// when the entry has been let go.
    pub fn leave_home(&self) {
        if let Some(frame) = self.entry.counted_frame() {
            let table = &self.space.table;
            self.engine().folio(frame).leave_home_early(|| table.home_and_family(self.leaf, self.page));
        }
    }

    /// Puts `new` in the entry and ends the announcement, by the same store. Returns the entry before.
    pub fn install(mut self, new: Entry) -> Result<Entry, OutOfMemory> {
        // Only reclaim makes such entries (`space/reclaim.rs`).
        debug_assert!(!new.is_absent(), "page work makes {new:?}");
        let old = self.space.table.install(self.leaf, self.page, new)?;
        self.held = false;
        Ok(old)
    }

    /// Ends the announcement of an access that cannot be served.
    pub fn refuse(mut self) {
        self.space.table.refuse(self.leaf, self.page);
        self.held = false;
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Allocates a frame that the space's group pays for. Its folio is to get the group. Returns `None` if there is no frame, or if the
    /// group or one above it is at max. Does not sleep.
    #[inline]
    fn take_frame(&self, section: &Section<'_>, purpose: FrameUse) -> Option<Frame> {
        let group = self.group();
        if group != GroupId::ROOT && !section.stock().take(group) && !self.charge_more(section) {
            return None;
        }
        let frame = self.engine.frames().allocate(group, purpose);
        if frame.is_none() {
            self.uncharge();
        }
        frame
    }

    /// Allocates a frame for a page of a file, as [`Space::take_frame`] does, and counts it as such.
    pub(super) fn take_file_frame(&self, section: &Section<'_>) -> Option<Frame> {
        let frame = self.take_frame(section, FrameUse::File)?;
        self.engine.begin_charge_of_file_page(section, self.group(), frame);
        Some(frame)
    }

    // The rare steps of `take_frame`. Their only argument is one that a fault has at hand, so that a fault in no group keeps nothing
    // for them.

    #[cold]
    #[inline(never)]
    fn charge_more(&self, section: &Section<'_>) -> bool {
        self.engine.charge_more(section, self.group())
    }

    #[cold]
    #[inline(never)]
    fn uncharge(&self) {
        if self.group() != GroupId::ROOT {
            self.engine.uncharge_page(self.group(), false);
        }
    }
}

impl<H: Host, D: LockingDesign> Drop for Announced<'_, H, D> {
    fn drop(&mut self) {
        if self.held {
            self.space.table.let_go(self.leaf, self.page);
        }
    }
}

/// The result of page work, and the locks that were kept if the result asked for them.
pub(in crate::space) struct Worked<R, K> {
    pub result: R,
    pub kept: Option<K>,
}

/// The result of one try to announce.
enum AnnounceOutcome<R, K> {
    Worked(Worked<R, K>),
    Refused(Refused),
    /// The mapping or its table changed. The caller tries again at once.
    Again,
    /// The design does not allow it.
    Blocked,
    /// Another thread has its bit in the entry.
    Bit,
    /// The range has no new mapping yet: it is BUSY.
    Busy,
    /// A table of this space's own has replaced a shared one.
    Left(PendingLeave),
}

/// The reason why a leaf table was not made.
enum Unmade {
    Refused(Refused),
    Blocked(Blocked),
}

impl<R, K> From<Unmade> for AnnounceOutcome<R, K> {
    fn from(unmade: Unmade) -> Self {
        match unmade {
            Unmade::Refused(refused) => Self::Refused(refused),
            Unmade::Blocked(blocked) => blocked.into(),
        }
    }
}

impl<R, K> From<Blocked> for AnnounceOutcome<R, K> {
    fn from(blocked: Blocked) -> Self {
        match blocked {
            Blocked::Wait => Self::Blocked,
            Blocked::Again => Self::Again,
        }
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Announces `page`, looks its VMA up, and calls `work` once. `holding` says that what the design needs has been held since
    /// before a wait. `keeps` returns whether it is to be held on after this result.
    ///
    /// If others have the leaf table too, the space gets a table of its own first.
    #[inline]
    pub(in crate::space) fn page_work<R>(
        &self,
        page: PageNumber,
        attempt: &mut Attempt,
        leaves: Leaves,
        holding: bool,
        work: impl Fn(Announced<'_, H, D>) -> R,
        keeps: impl Fn(&R, Attempt) -> bool,
    ) -> Result<Worked<R, D::Kept>, Refused> {
        self.page_work_or_shared(page, attempt, leaves, holding, work, None, keeps)
    }

    /// Does page work as [`Space::page_work`] does. If others have the leaf table too, it asks `shared` first, under the lock of the
    /// table. The table stays shared if `shared` returns a result.
    #[inline]
    #[expect(clippy::too_many_arguments, reason = "the parts of page work; its callers are few")]
    pub(in crate::space) fn page_work_or_shared<R>(
        &self,
        page: PageNumber,
        attempt: &mut Attempt,
        leaves: Leaves,
        holding: bool,
        work: impl Fn(Announced<'_, H, D>) -> R,
        shared: Option<SharedWork<'_, H, D, R>>,
        keeps: impl Fn(&R, Attempt) -> bool,
    ) -> Result<Worked<R, D::Kept>, Refused> {
        let mut look = 0;
        loop {
            let tried = self.announce(page, *attempt, leaves, holding, (&work, shared), &keeps);
            match tried {
                AnnounceOutcome::Worked(worked) => return Ok(worked),
                AnnounceOutcome::Refused(refused) => return Err(refused),
                AnnounceOutcome::Again => {}
                AnnounceOutcome::Blocked => D::blocked(&self.lock, &self.engine, attempt),
                AnnounceOutcome::Bit => {
                    self.engine.pause_on_bit(look);
                    look += 1;
                }
                AnnounceOutcome::Left(left) => self.leave(page, left),
                AnnounceOutcome::Busy => {
                    if self.wait_out_busy(page) {
                        return Err(Refused::Hole);
                    }
                }
            }
        }
    }

    /// Sleeps until range work over `page`, a BUSY page, has released some range. Returns true if there is no such range work:
    /// it ran out of memory to publish a hole, and left a BUSY mapping that counts as a hole.
    fn wait_out_busy(&self, page: PageNumber) -> bool {
        if self.map.wait_for_release(page, &*self.engine) {
            return false;
        }
        let lock = self.map.lock_by(&*self.engine);
        lock.claims().overlapping(PageRange::single(page)).is_none()
            && self.tree.view_locked(&lock.writer).find(page).is_some_and(Vma::is_busy)
    }

    /// Makes the leaf table over `page`, which is missing.
    #[cold]
    #[inline(never)]
    fn make_leaf<'s>(
        &'s self,
        section: &'s Section<'_>,
        page: PageNumber,
        (attempt, leaves): (Attempt, Leaves),
        found: Option<&Vma<H, D>>,
    ) -> Result<LeafOf<'s, H>, Unmade> {
        if leaves == Leaves::Existing {
            return Err(Unmade::Refused(Refused::NoTable));
        }
        if found.or_else(|| self.tree.view(section).find(page)).is_none() {
            return Err(Unmade::Refused(Refused::Hole));
        }
        D::allows(&self.lock, &self.engine, attempt, Capability::LeafTable).map_err(Unmade::Blocked)?;
        self.table.make_leaf(section, page).map_err(|OutOfMemory| Unmade::Refused(Refused::OutOfMemory))
    }

    /// Locks the shared table with `leaf`, looks the VMA up, and calls `shared` once. Returns the result, `Ok(None)` if the work needs
    /// a table of the space's own, or the reason why nothing was done.
    #[cold]
    #[inline(never)]
    fn work_in_shared<'s, R>(
        &'s self,
        section: &'s Section<'_>,
        leaf: LeafOf<'s, H>,
        (page, attempt): (PageNumber, Attempt),
        found: Option<&'s Vma<H, D>>,
        confirm: &dyn Fn() -> Result<(), Blocked>,
        shared: SharedWork<'_, H, D, R>,
    ) -> Result<Option<R>, AnnounceOutcome<R, D::Kept>> {
        let mut locked = Some(self.table.try_lock_shared(leaf).ok_or(AnnounceOutcome::Bit)?);
        if mutant!("shared_fault_not_locked") {
            locked = None;
        }
        // No fence is needed here. Range work that changes the entry takes the lock, whether or not the page is there; if it comes
        // first, the lock was refused above. Range work that does not change the entry leaves its rights to all mappings.
        let vma = found.or_else(|| self.tree.view(section).find(page)).ok_or(AnnounceOutcome::Again)?;
        if vma.is_busy() {
            return Err(AnnounceOutcome::Busy);
        }
        confirm().map_err(AnnounceOutcome::from)?;
        let entry = self.table.load(leaf, page);
        // Page work that came before the table was shared lets go without a change.
        if entry.is_announced() {
            return Err(AnnounceOutcome::Bit);
        }
        Ok(shared(&SharedPage { space: self, page, vma, entry, attempt, leaf, section, locked }))
    }

    /// Makes one try, step by step as in docs/protocol.md.
    fn announce<R>(
        &self,
        page: PageNumber,
        attempt: Attempt,
        leaves: Leaves,
        holding: bool,
        (work, shared): (&impl Fn(Announced<'_, H, D>) -> R, Option<SharedWork<'_, H, D, R>>),
        keeps: &impl Fn(&R, Attempt) -> bool,
    ) -> AnnounceOutcome<R, D::Kept> {
        let outside = (!holding).then(|| D::outside(&self.lock, &self.engine, page, attempt));
        let section = self.engine.enter();
        let view = self.tree.view(&section);
        let inside = match holding {
            true => None,
            false => match D::inside(&self.lock, &self.engine, view, page, attempt) {
                Ok(inside) => Some(inside),
                Err(blocked) => return blocked.into(),
            },
        };
        // If the design has looked up the VMA and keeps it from changing, that one is used.
        let found = inside.as_ref().and_then(D::found);
        // A mutant: the VMA found here is used in place of the one found under the bit.
        let early = if mutant!("vma_before_bit") { self.tree.view(&section).find(page) } else { None };
        let leaf = match self.table.leaf(&section, page) {
            Some(leaf) => leaf,
            None => match self.make_leaf(&section, page, (attempt, leaves), found) {
                Ok(leaf) => leaf,
                Err(unmade) => return unmade.into(),
            },
        };
        // No thread announces in a table that others have too.
        if self.table.is_shared(leaf) {
            if found.or_else(|| view.find(page)).is_none() {
                return AnnounceOutcome::Refused(Refused::Hole);
            }
            if let Some(shared) = shared {
                let confirm = || outside.as_ref().map_or(Ok(()), |outside| D::confirm(&self.lock, outside));
                match self.work_in_shared(&section, leaf, (page, attempt), found, &confirm, shared) {
                    Ok(None) => {}
                    Ok(Some(result)) => {
                        let kept = match (outside, inside) {
                            (Some(outside), Some(inside)) if keeps(&result, attempt) => {
                                D::keep(&self.lock, outside, inside)
                            }
                            _ => None,
                        };
                        return AnnounceOutcome::Worked(Worked { result, kept });
                    }
                    Err(not_yet) => return not_yet,
                }
            }
            return match self.try_unshare(&section, leaf, page, |_, entry| entry) {
                Unshared::Own => AnnounceOutcome::Again,
                Unshared::Busy => AnnounceOutcome::Bit,
                Unshared::Left(left) => AnnounceOutcome::Left(left),
            };
        }
        let entry = self.table.load(leaf, page);
        if entry.is_announced() {
            return AnnounceOutcome::Bit;
        }
        if !self.table.try_announce(leaf, page, entry) {
            return AnnounceOutcome::Again;
        }
        // Partner: the fence after publishing in range work. If ours comes first, the sweep meets the bit and waits for us. If
        // theirs comes first, the look-up below finds the new mapping.
        if !mutant!("no_page_fence") {
            fence_after_rmw();
        }
        let vma = early.or(found).or_else(|| self.tree.view(&section).find(page));
        // This comes after the look-up: a leaf that is unhooked was swept before, as part of a hole.
        if !self.table.hangs(leaf) {
            self.table.let_go(leaf, page);
            return AnnounceOutcome::Again;
        }
        let Some(vma) = vma else {
            self.table.let_go(leaf, page);
            return AnnounceOutcome::Refused(Refused::Hole);
        };
        if vma.is_busy() {
            self.table.let_go(leaf, page);
            return AnnounceOutcome::Busy;
        }
        if !mutant!("unconfirmed")
            && let Some(Err(blocked)) = outside.as_ref().map(|outside| D::confirm(&self.lock, outside))
        {
            self.table.let_go(leaf, page);
            return blocked.into();
        }
        let result =
            work(Announced { space: self, page, vma, entry, attempt, leaf, section: &section, held: true });
        let kept = match (outside, inside) {
            (Some(outside), Some(inside)) if keeps(&result, attempt) => D::keep(&self.lock, outside, inside),
            _ => None,
        };
        AnnounceOutcome::Worked(Worked { result, kept })
    }
}
