//! The pages that fork itself copies: those into which I/O goes on, and those of mappings that copy at fork.

use super::{Failed, ForkError, Inherited};
use crate::address::{PAGE_SIZE, PageNumber};
use crate::design::LockingDesign;
use crate::host::{Entry, Frame, FrameUse, GroupId, Host, OutOfMemory, PageTable};
use crate::space::Space;
use crate::space::change::range_work::RangeReservation;
use crate::space::fault::shared_table::LeafOf;
use crate::stats::Counter;

/// The copies of pages that a fork makes.
#[derive(Default)]
pub(super) struct Copies {
    /// The number of pages to be copied, as far as the fork has come.
    count: u64,
    /// Whether there was no frame for one of them. From then on pages are counted and not copied.
    lack_frames: bool,
}

impl Copies {
    /// Returns an error if there was no frame for one of them.
    pub fn all(self) -> Result<(), Failed> {
        if self.lack_frames { Err(Failed::NoFrame(self.count)) } else { Ok(()) }
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Gives the child copies of the pages with I/O under way, and of all anonymous pages if the mapping copies at fork. They are
    /// as they are now that no processor writes them. A device may go on writing: its writes belong to no instant. The parent's
    /// next write finds its page exclusive; if the mapping copies at fork, it needs no fault.
    pub(super) fn copy_now(
        &self,
        taken: &RangeReservation<'_, H>,
        (child, child_taken): (&Self, &RangeReservation<'_, H>),
        mapping: Inherited,
        copies: &mut Copies,
    ) -> Result<(), Failed> {
        let all = mapping.is_copied;
        let rights = if all { mapping.write } else { 0 };
        let mut result = Ok(());
        self.each_table(taken, mapping.range, |part| {
            // No page in a shared table is copied here.
            let leaf = self.table.leaf(taken, part.start()).filter(|leaf| !self.table.is_shared(*leaf));
            let Some(leaf) = leaf else { return };
            for page in part.iter() {
                if result.is_err() {
                    return;
                }
                // The end of the parent waits for this call.
                if self.space_flags.dying.is_set() {
                    result = Err(Failed::For(ForkError::Exited));
                    return;
                }
                let Some(entry) = self.announce_page(leaf, page) else { continue };
                // The child has an entry of every page that is not to be copied here.
                let is_there = child
                    .table
                    .leaf(child_taken, page)
                    .is_some_and(|leaf| child.table.load(leaf, page) != Entry::EMPTY);
                let frame = entry.counted_frame().filter(|_| !is_there);
                copies.count += u64::from(frame.is_some());
                let Some(frame) = frame.filter(|_| !copies.lack_frames) else {
                    if !is_there && entry.counted_frame().is_none() && !mutant!("fork_passes_reclaimed") {
                        result = self.copy_reclaimed(leaf, (child, child_taken), page, entry);
                    }
                    self.table.let_go(leaf, page);
                    continue;
                };
                let leaf_made = child.table.make_leaf(child_taken, page).map_err(Failed::from);
                result = leaf_made.and_then(|child_leaf| {
                    let Some(copy) = self.copy_frame(child.group(), frame)? else {
                        copies.lack_frames = true;
                        return Ok(());
                    };
                    self.engine.folio(copy).begin_anonymous(child.table.home(child_leaf, page));
                    let rights = rights | entry.bits() & (Entry::READ | Entry::EXECUTE);
                    child.table.fill(child_leaf, page, Entry::mapping(copy, rights));
                    self.engine.arrived_outside(copy);
                    Ok(())
                });
                // A write right means: no slot. A write of the page reads its bytes.
                let folio = self.engine.folio(frame);
                if result.is_ok()
                    && !copies.lack_frames
                    && rights != 0
                    && entry.mapped_frame().is_some()
                    && !folio.is_writeback()
                    && folio.try_reuse()
                {
                    self.engine.take_out(frame);
                    folio.set_home(self.table.home(leaf, page));
                    #[cfg(loom)]
                    mapping.record.into_iter().for_each(|id| folio.note_record(id.get()));
                    if self.table.install(leaf, page, entry.with(rights)).is_ok() {
                        continue;
                    }
                }
                self.table.let_go(leaf, page);
            }
        });
        result
    }

    /// Gives the child an entry like `entry`, that of `page` in `leaf`, which this thread has announced: reclaim has taken the page since
    /// it was left to be copied.
    fn copy_reclaimed<'p>(
        &'p self,
        leaf: LeafOf<'p, H>,
        (child, child_taken): (&Self, &RangeReservation<'_, H>),
        page: PageNumber,
        entry: Entry,
    ) -> Result<(), Failed> {
        let child_leaf = self.make_relative(leaf, (child, child_taken), page)?;
        if let Some(copy) = self.engine.copy_entry(entry)? {
            child.table.fill(child_leaf, page, copy);
        }
        Ok(())
    }

    /// Returns a copy of `frame`, of which no processor has a translation to store by. `group` pays for it. Returns `None` if there is
    /// no frame for the copy.
    fn copy_frame(&self, group: GroupId, frame: Frame) -> Result<Option<Frame>, Failed> {
        let frames = self.engine.frames();
        let Some(copy) = self.engine.take_frame(group, FrameUse::Fork) else { return Ok(None) };
        self.engine.counters().add(Counter::ForkCopies, 1);
        if !self.engine.folio(frame).is_pinned_for_io() {
            frames.copy(frame, copy);
            return Ok(Some(copy));
        }
        // Copied word by word, since the device may be writing.
        let mut bytes = [0; PAGE_SIZE as usize];
        if frames.read(frame, 0, &mut bytes) < bytes.len() {
            // The host has lost the bytes. The fork fails, rather than give the child zeros there.
            self.engine.free_frame(copy);
            return Err(OutOfMemory.into());
        }
        frames.write(copy, 0, &bytes);
        Ok(Some(copy))
    }
}
