//! Pages of files from the page cache. They are mapped read-only, or, in a shared mapping, dirty and with the write right.

use super::{FaultError, Step};
use crate::address::VirtAddr;
use crate::design::LockingDesign;
use crate::frame::Reference;
use crate::host::{Entry, Frame, Host};
use crate::page_cache::{File, Full, Miss};
use crate::protection::{Access, Protection, Sharing};
use crate::space::Space;
use crate::space::calls::protect::entry_rights;
use crate::space::fault::page_work::Announced;
use crate::sync::Section;

/// The reason why a fault on a page of a file has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::space) enum NotReady {
    /// The page is not in memory, or is being read.
    Absent,
    /// A file system has the page locked.
    Locked,
    /// The page is being written, and the fault is for a store.
    Writeback,
}

/// Maps page `page` of `file` if it is in memory. For a store, the page must not be under writeback.
pub(super) fn map<H: Host, D: LockingDesign>(
    work: Announced<'_, H, D>,
    address: VirtAddr,
    file: &File<H>,
    page: u64,
    access: Access,
) -> Result<Step<H>, NotReady> {
    let frame = match find(work.space, work.section(), address, file, page, Reference::Mapping) {
        Found::Ready(frame) => frame,
        Found::NotReady(why) => return Err(why),
        Found::NoMemory => return Ok(Step::NeedMemory),
        Found::NoPlace => return Ok(Step::NeedTable),
        Found::PastEnd(error) => {
            work.refuse();
            return Ok(Step::Failed(error));
        }
    };
    map_frame(work, file, page, access, frame)
}

/// Maps a frame whose mapping reference this fault has taken.
pub(super) fn map_frame<H: Host, D: LockingDesign>(
    work: Announced<'_, H, D>,
    file: &File<H>,
    page: u64,
    access: Access,
    frame: Frame,
) -> Result<Step<H>, NotReady> {
    let engine = work.engine();
    let mapping = work.vma.mapping();
    let shared_write = mapping.sharing == Sharing::Shared && mapping.protection.contains(Protection::WRITE);
    let mut rights = entry_rights(mapping.protection);
    // It does not matter when a file in memory is written, so its pages need not be found clean.
    if shared_write && (access == Access::Write || file.is_in_memory()) {
        if !file.make_dirty_for(work.space.id, page, frame) {
            engine.put(frame, Reference::Mapping);
            return Err(NotReady::Writeback);
        }
        rights |= Entry::WRITE;
    }
    let new = Entry::mapping(frame, rights);
    Ok(match work.install(new) {
        Ok(old) => Step::Done(super::outlived(engine, old, new)),
        Err(_) => {
            engine.put(frame, Reference::Mapping);
            Step::NeedMemory
        }
    })
}

/// Lets the mapping store into the page of the file that it maps already.
pub(super) fn make_writable<H: Host, D: LockingDesign>(
    work: Announced<'_, H, D>,
    address: VirtAddr,
    file: &File<H>,
    page: u64,
    frame: Frame,
) -> Result<Step<H>, NotReady> {
    if page >= file.pages() {
        // The page is being cut off: truncation comes to this entry too.
        let error = super::past_end(address, file, page);
        work.refuse();
        return Ok(Step::Failed(error));
    }
    if D::LOCKS_FOLIOS && work.engine().folio(frame).is_locked() {
        return Err(NotReady::Locked);
    }
    if !file.make_dirty_for(work.space.id, page, frame) {
        return Err(NotReady::Writeback);
    }
    let new = work.entry.restored().with(Entry::WRITE | entry_rights(work.vma.mapping().protection));
    Ok(super::install(work, new))
}

/// The result of a look into the page cache.
pub(super) enum Found {
    /// The page is up to date, and the reference asked for has been taken.
    Ready(Frame),
    /// The page is not in memory, being read, or locked; or it is pinned as often as can be counted.
    NotReady(NotReady),
    /// There is no frame for the page. Or it is mapped as often as can be counted, which is treated alike.
    NoMemory,
    /// The allocator has no memory for the page's place in the file.
    NoPlace,
    /// The file has no such page.
    PastEnd(FaultError),
}

/// Looks for a page while announced, or with a shared table locked. `address` is the address of the access.
///
/// The look comes after the fence that follows the bit. Truncation lowers the length and detaches pages before it looks at the
/// entry. So either the truncation is seen here, or it finds the bit. In a shared table, it finds the table locked.
pub(super) fn find<H: Host, D: LockingDesign>(
    space: &Space<H, D>,
    section: &Section<'_>,
    address: VirtAddr,
    file: &File<H>,
    page: u64,
    reference: Reference,
) -> Found {
    if page >= file.pages() {
        return Found::PastEnd(super::past_end(address, file, page));
    }
    if file.is_in_memory() {
        return match file.make_page(page, reference, || space.take_file_frame(section)) {
            Ok(frame) => Found::Ready(frame),
            Err(Miss::PastEnd) => Found::PastEnd(super::past_end(address, file, page)),
            Err(Miss::Full(_) | Miss::InSlot | Miss::Lost(_) | Miss::Forbidden) => {
                Found::NotReady(NotReady::Absent)
            }
            Err(Miss::NoFrame) => Found::NoMemory,
            Err(Miss::OutOfMemory(_) | Miss::Queue(_)) => Found::NoPlace,
        };
    }
    match file.find(page, reference) {
        Err(Full { reference: Reference::Mapping, .. }) => Found::NoMemory,
        // The fault pins the page to wait for it, and waits for room for the pin first.
        Err(Full { .. }) => Found::NotReady(NotReady::Absent),
        Ok(None) => Found::NotReady(NotReady::Absent),
        Ok(Some(frame)) => {
            let folio = space.engine.folio(frame);
            let (ready, locked) = (folio.is_uptodate(), D::LOCKS_FOLIOS && folio.is_locked());
            if ready && !locked {
                return Found::Ready(frame);
            }
            space.engine.put(frame, reference);
            Found::NotReady(if ready { NotReady::Locked } else { NotReady::Absent })
        }
    }
}
