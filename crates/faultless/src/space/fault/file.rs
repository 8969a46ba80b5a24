//! A file's page, read-only, from the page cache.

use super::super::page_work::Announced;
use super::{FaultError, Step};
use crate::address::VirtAddr;
use crate::design::LockingDesign;
use crate::frame::Reference;
use crate::host::{Entry, Frame, Host};
use crate::page_cache::{File, Full};
use crate::space::protect::entry_rights;

/// Maps page `page` of `file` if it is in memory; else gives the work back.
pub(super) fn map<'a, H: Host, D: LockingDesign>(
    work: Announced<'a, H, D>,
    file: &File<H>,
    page: u64,
) -> Result<Step<H>, Announced<'a, H, D>> {
    let frame = match find(&work, file, page, Reference::Mapping) {
        Found::Ready(frame) => frame,
        Found::Absent => return Err(work),
        Found::Full => return Ok(Step::NeedMemory),
        Found::PastEnd(error) => return Ok(Step::Failed(error)),
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
    /// Not there, or being read.
    Absent,
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
        Ok(None) => Found::Absent,
        Ok(Some(frame)) if work.engine().folio(frame).is_uptodate() => Found::Ready(frame),
        Ok(Some(frame)) => {
            work.engine().put(frame, reference);
            Found::Absent
        }
    }
}
