//! Pages of zeros: those of files without a store at their first touch, and those behind the end of a file that a write makes longer.

use super::account::Miss;
use super::word::{SEEN, frame_of, is_absent, word_of};
use super::{File, index};
use crate::frame::Reference;
use crate::host::{Frame, Host, OutOfMemory};
use crate::reclaim::Distance;
use crate::sync::atomic::Ordering;
use crate::sync::fence_after_rmw;

impl<H: Host> File<H> {
    /// Takes a reference to page `page` of a file that has no store. Makes the page of zeros if it is missing, in a frame that `take`
    /// returns, for which its group pays. Does not sleep.
    ///
    /// # Errors
    /// [`Miss::PastEnd`], [`Miss::Full`], [`Miss::OutOfMemory`], [`Miss::NoFrame`]; [`Miss::Forbidden`]: the file is being cut or
    /// punched there; or [`Miss::InSlot`]: the page is in a slot, or on its way there or back.
    pub(crate) fn make_page(
        &self,
        page: u64,
        reference: Reference,
        take: impl Fn() -> Option<Frame>,
    ) -> Result<Frame, Miss> {
        loop {
            if page >= self.pages() || page >= index::PAGES {
                return Err(Miss::PastEnd);
            }
            // A page that is made beside a hole that is being punched would be another one than processors still use.
            let is_forbidden = || self.is_forbidden(page) && !mutant!("pages_made_in_a_hole");
            if is_forbidden() {
                return Err(Miss::Forbidden);
            }
            if let Some(word) = self.index.get(page) {
                let seen = word.load(Ordering::Acquire);
                if seen > SEEN && !(mutant!("zeros_over_a_slot") && frame_of(seen).is_none()) {
                    return self.find_by(word, seen, reference)?.ok_or(Miss::InSlot);
                }
            }
            let frame = take().ok_or(Miss::NoFrame)?;
            let Some(frame) = self.attach_zeros(page, frame, reference)? else { continue };
            // Partner: the fence of a cut, which has lowered the length before, and that of `Forbidden::begin`.
            fence_after_rmw();
            if page < self.pages() && !is_forbidden() {
                return Ok(frame);
            }
            self.detach(page, frame);
            self.engine.put(frame, reference);
        }
    }

    /// Attaches a free frame as page `page`, filled with zeros, up to date and dirty, with one `reference`. Returns `None` if
    /// there is a page already, perhaps in a slot; the frame is then free again, as it is after an error.
    pub(super) fn attach_zeros(
        &self,
        page: u64,
        frame: Frame,
        reference: Reference,
    ) -> Result<Option<Frame>, OutOfMemory> {
        let frames = self.engine.frames();
        frames.zero(frame);
        let word = self.index.make(page).inspect_err(|_| self.engine.free_frame(frame))?;
        let folio = self.engine.folio(frame);
        folio.begin_dirty(self.home(), page, reference);
        if !self.is_in_memory() {
            self.engine.cache.count_cached(1);
        }
        let old = word.load(Ordering::Acquire);
        let attached = (is_absent(old) || mutant!("zeros_over_a_slot") && frame_of(old).is_none())
            && word.compare_exchange(old, word_of(frame), Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if attached {
            if !self.is_in_memory() {
                self.engine.arrived_in_cache(frame, Distance::NEW);
            } else if self.engine.swaps() {
                self.engine.arrived_outside(frame);
            }
            return Ok(Some(frame));
        }
        if !self.is_in_memory() {
            self.engine.cache.uncount_cached(1);
        }
        if folio.cancel_dirty(reference) {
            self.engine.free_frame(frame);
        }
        Ok(None)
    }
}
