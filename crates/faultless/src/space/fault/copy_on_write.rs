//! Writes to pages that others may see: the page is reused in place if it is this mapping's alone, and copied otherwise.

use super::file::{Found, NotReady, find};
use super::{Step, install, install_new, write_right};
use crate::address::{PAGE_SIZE, VirtAddr};
use crate::design::LockingDesign;
use crate::frame::Reference;
use crate::host::{Frame, FrameUse, Host};
use crate::page_cache::File;
use crate::space::fault::page_work::Announced;
use crate::stats::Counter;

/// Serves a write to a page that is mapped read-only: one shared with a child or a parent, a file's, or the page of zeros. Also
/// serves a pin of such a page, which need not be for writing.
pub(super) fn break_or_reuse<H: Host, D: LockingDesign>(work: Announced<'_, H, D>, frame: Frame) -> Step<H> {
    let engine = work.engine();
    let (frames, counters) = (engine.frames(), work.section().counters());
    if frame == engine.zero_frame() {
        let Some(new) = work.take_frame(FrameUse::Anonymous) else { return Step::NeedMemory };
        frames.zero(new);
        let right = write_right(&work);
        return install_new(work, new, right);
    }
    let folio = engine.folio(frame);
    let was_anonymous = folio.is_anonymous();
    // A page in a slot, as after swap-in for a load, may be the space's own too. While it is being written, it is copied.
    if !folio.is_writeback() && (folio.try_reuse() || engine.leave_unused_slot(frame) && folio.try_reuse()) {
        // A write right means: no slot.
        if !mutant!("store_keeps_the_slot") {
            engine.take_out(frame);
        }
        let home = work.home();
        if !mutant!("home_stored_late") {
            folio.set_home(home);
        }
        work.note_record(frame);
        counters.add(Counter::CowReuses, 1);
        let (new, section) = (work.entry.restored().with(write_right(&work)), work.section());
        let step = install(work, new);
        if mutant!("home_stored_late") {
            folio.set_home(home);
        }
        // A file's page that had left the page cache is anonymous from now on.
        if !was_anonymous && engine.reclaims() {
            engine.arrived(section, frame, engine.folio(frame));
        }
        return step;
    }
    // The mapping's own reference keeps the old frame until the new one is installed. It is dropped after `invalidate`.
    copy_of(work, frame)
}

/// Serves the first write to a page of a private mapping that is not mapped: copies the file's page, if that is in memory.
pub(super) fn from_file<H: Host, D: LockingDesign>(
    work: Announced<'_, H, D>,
    address: VirtAddr,
    file: &File<H>,
    page: u64,
) -> Result<Step<H>, NotReady> {
    match find(work.space, work.section(), address, file, page, Reference::Pin) {
        Found::Ready(frame) => {
            let engine = work.engine();
            let step = copy_of(work, frame);
            if matches!(step, Step::NeedMemory) {
                return Ok(Step::NeedCopy(frame));
            }
            engine.put(frame, Reference::Pin);
            Ok(step)
        }
        Found::NotReady(why) => Err(why),
        Found::NoMemory => Ok(Step::NeedMemory),
        Found::NoPlace => Ok(Step::NeedTable),
        Found::PastEnd(error) => {
            work.refuse();
            Ok(Step::Failed(error))
        }
    }
}

/// The number of bytes copied at once by way of the stack, which has no room for a page. Each copy is a step of a model.
const PART: usize = if cfg!(loom) { PAGE_SIZE as usize } else { 512 };

/// Installs a private copy of `frame`, which a pin or the entry itself keeps meanwhile.
pub(super) fn copy_of<H: Host, D: LockingDesign>(work: Announced<'_, H, D>, frame: Frame) -> Step<H> {
    let frames = work.engine().frames();
    let Some(new) = work.take_frame(FrameUse::CopyOnWrite) else { return Step::NeedMemory };
    let shown = work.vma.mapping().file_page(work.page);
    match shown.is_some_and(|(file, _)| file.is_writable()) {
        false => frames.copy(frame, new),
        // Copied word by word: others may be storing into the page.
        true => {
            let mut bytes = [0; PART];
            for offset in (0..PAGE_SIZE as usize).step_by(PART) {
                if frames.read(frame, offset, &mut bytes) < PART {
                    // The host has lost the bytes. It reports this at the address where the copy is mapped.
                    frames.copy(frame, new);
                    break;
                }
                frames.write(new, offset, &bytes);
            }
        }
    }
    work.section().counters().add(Counter::CowCopies, 1);
    work.leave_home();
    let right = write_right(&work);
    install_new(work, new, right)
}
