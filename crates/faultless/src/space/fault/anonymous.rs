//! Anonymous memory: the page of zeros for a read, a zeroed frame for a write.

use super::super::page_work::Announced;
use super::{Step, install, install_new};
use crate::design::LockingDesign;
use crate::host::{Entry, FrameSource, Host};
use crate::space::protect::entry_rights;
use crate::vma::AnonRecord;

/// A read of what nobody has written.
pub(super) fn map_zero<H: Host, D: LockingDesign>(work: Announced<'_, H, D>) -> Step<H> {
    let new = Entry::mapping(work.engine().zero_frame(), entry_rights(work.vma.mapping().protection));
    install(work, new)
}

/// The first write.
pub(super) fn fill<H: Host, D: LockingDesign>(work: Announced<'_, H, D>, record: &AnonRecord) -> Step<H> {
    if !record.add_page() {
        return Step::LookAgain;
    }
    let frames = work.engine().host().frames();
    let Some(frame) = frames.allocate() else { return Step::NeedMemory };
    frames.zero(frame);
    install_new(work, record, frame)
}
