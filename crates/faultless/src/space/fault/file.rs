//! A file's page, read-only, from the page cache.

use super::super::page_work::Announced;
use super::{FaultError, Step};
use crate::address::VirtAddr;
use crate::design::LockingDesign;
use crate::frame::Reference;
use crate::host::{Entry, Frame, Host};
use crate::page_cache::{File, Full};
use crate::space::protect::entry_rights;

/// The page is not in memory, or locked: the fault has to wait.
pub(super) struct NotReady {
    pub locked: bool,
}

/// Maps page `page` of `file` if it is in memory.
pub(super) fn map<H: Host, D: LockingDesign>(
    work: Announced<'_, H, D>,
    file: &File<H>,
    page: u64,
) -> Result<Step<H>, NotReady> {
    let frame = match find(&work, file, page, Reference::Mapping) {
        Found::Ready(frame) => frame,
        Found::NotReady { locked } => return Err(NotReady { locked }),
        Found::Full => return Ok(Step::NeedMemory),
        Found::PastEnd(error) => {
            work.refuse();
            return Ok(Step::Failed(error));
        }
    };
    Ok(map_frame(work, frame))
}

/// Maps a frame whose mapping reference this fault has taken.
pub(super) fn map_frame<H: Host, D: LockingDesign>(work: Announced<'_, H, D>, frame: Frame) -> Step<H> {
    let engine = work.engine();
    let new = Entry::mapping(frame, entry_rights(work.vma.mapping().protection));
    match work.install(new) {
        Ok(_) => Step::Done(None),
        Err(_) => {
            engine.put(frame, Reference::Mapping);
            Step::NeedMemory
        }
    }
}

/// What the page cache has.
pub(super) enum Found {
    /// Up to date, with the reference asked for.
    Ready(Frame),
    /// Not there, being read, or locked.
    NotReady {
        /// The last.
        locked: bool,
    },
    /// Mapped or pinned as often as can be counted: like no memory.
    Full,
    /// The file has no such page.
    PastEnd(FaultError),
}

/// Looks for a page while announced: after the fence that follows the bit, so that truncation, which lowers the
/// length and detaches before it looks at the entry, either is seen here or finds the bit.
pub(super) fn find<H: Host, D: LockingDesign>(
    work: &Announced<'_, H, D>,
    file: &File<H>,
    page: u64,
    reference: Reference,
) -> Found {
    let address: VirtAddr = work.page.address();
    if page >= file.pages() {
        return Found::PastEnd(super::past_end(address, file, page));
    }
    match file.find(page, reference) {
        Err(Full) => Found::Full,
        Ok(None) => Found::NotReady { locked: false },
        Ok(Some(frame)) => {
            let folio = work.engine().folio(frame);
            let (ready, locked) = (folio.is_uptodate(), D::LOCKS_FOLIOS && folio.is_locked());
            if ready && !locked {
                return Found::Ready(frame);
            }
            work.engine().put(frame, reference);
            Found::NotReady { locked: ready }
        }
    }
}
