//! Anonymous memory: the page of zeros for a read, a zeroed frame for a write.

use super::{Step, install, install_new};
use crate::design::LockingDesign;
use crate::host::{Entry, FrameUse, Host};
use crate::protection::{Access, Protection};
use crate::space::calls::protect::entry_rights;
use crate::space::fault::page_work::Announced;

/// Maps the page of zeros, for a read of a page that was never written.
pub(super) fn map_zero<H: Host, D: LockingDesign>(work: Announced<'_, H, D>) -> Step<H> {
    let new = Entry::mapping(work.engine().zero_frame(), entry_rights(work.vma.mapping().protection));
    install(work, new)
}

/// Maps a zeroed frame, for the first write, or for the first access if the page of zeros cannot be mapped.
///
/// Inlined, since a call copies the announced page.
#[inline(always)]
pub(super) fn fill<H: Host, D: LockingDesign>(work: Announced<'_, H, D>, access: Access) -> Step<H> {
    let Some(frame) = work.take_frame(FrameUse::Anonymous) else { return Step::NeedMemory };
    work.engine().frames().zero(frame);
    let bits = match access {
        // The store comes next, so the processor need not find the page clean.
        Access::Write => Entry::WRITE | Entry::HARDWARE,
        _ if work.vma.mapping().protection.contains(Protection::WRITE) => Entry::WRITE,
        _ => 0,
    };
    install_new(work, frame, bits)
}
