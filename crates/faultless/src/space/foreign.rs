//! Frames that the engine does not own: a device's memory, a framebuffer, a page that a kernel shows to all (Linux's
//! VM_PFNMAP).

use super::MapError;
use crate::host::{Frame, Host, PageTable};
use crate::protection::{Protection, Sharing};
use crate::vma::Backing;

/// Consecutive frames that the engine does not own, and that the caller of [`ForeignFrames::new`] answers for.
/// [`Source::Foreign`](crate::Source::Foreign) needs such a value; safe code alone cannot make one.
///
/// The engine maps the frames, and does nothing else with them:
///
/// * It never asks for their [`Folio`](crate::frame::Folio), and counts no mapping of them.
/// * It never reads, writes, copies or frees them, and never looks whether they are dirty.
/// * A fault gives all rights of the mapping at once.
/// * A child of fork has the mapping, and faults its pages in by itself.
/// * A mapping never becomes longer than it was made.
///
/// ```
/// # use faultless::address::PAGE_SIZE;
/// # use faultless::host::{FrameSource, FrameUse, GroupId, Host};
/// # use faultless::protection::Protection;
/// # use faultless::{AddressSpace, Engine, ForeignFrames, Limits, MapRequest};
/// # use faultless_soft::{Cpu, Soft};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let engine = Engine::new(Soft::new(64)?, Limits::default())?;
/// # let device = engine.host().frames().allocate(GroupId::ROOT, FrameUse::Anonymous).ok_or("a frame")?;
/// // SAFETY: `device` is ours, and stays until `space` has gone.
/// let frames = unsafe { ForeignFrames::new(device, 1) }.ok_or("a frame that an entry has room for")?;
/// let space: AddressSpace<Soft> = AddressSpace::new(&engine)?;
/// let registers = space.map(MapRequest::foreign(frames, Protection::READ | Protection::WRITE))?;
/// space.store_u64(registers, 1)?;
/// # assert_eq!(space.usage()[0].resident, 0);
/// # Ok(())
/// # }
/// ```
///
/// Safe code cannot make such a value:
///
/// ```compile_fail,E0133
/// # use faultless::{ForeignFrames, host::Frame};
/// fn show_all_memory() -> Option<ForeignFrames> {
///     ForeignFrames::new(Frame::new(0)?, 1 << 20)
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignFrames {
    first: Frame,
    count: u64,
}

impl ForeignFrames {
    /// Makes a value of the `count` frames from `first` on. Returns `None` if `count` is zero, or if a frame's number would
    /// exceed [`Frame::COUNT`].
    ///
    /// # Safety
    /// Until the last mapping that was made with this value or with a copy of it has gone, the caller guarantees:
    ///
    /// * The frames are the host's to map, and are never changed into others: no code frees them or uses them for
    ///   something else. None is one that the engine has from its [`FrameSource`](crate::host::FrameSource), or may get
    ///   from it.
    /// * The engine may map them in the space of the request, and in every space that inherits the mapping by fork, with all
    ///   rights that the mapping has or that mprotect gives it: those of a shared mapping for writing too, those of a private
    ///   one for reading and executing.
    ///
    /// A mapping has gone when the call that unmaps it has returned, or when the last handle of its space is dropped. The
    /// engine does not report where frames are mapped: the caller keeps track of the spaces.
    pub const unsafe fn new(first: Frame, count: u64) -> Option<Self> {
        if count == 0 || count > Frame::COUNT - first.get() {
            return None;
        }
        Some(Self { first, count })
    }

    /// Returns the first frame.
    pub const fn first(self) -> Frame {
        self.first
    }

    /// Returns the number of frames, at least one.
    pub const fn count(self) -> u64 {
        self.count
    }

    /// Returns the backing of a mapping of `pages` of the frames.
    pub(super) fn backing<H: Host>(
        self,
        pages: u64,
        sharing: Sharing,
        protection: Protection,
    ) -> Result<Backing<H>, MapError> {
        if !H::Table::MAPS_FOREIGN {
            return Err(MapError::ForeignUnsupported);
        }
        if pages > self.count {
            return Err(MapError::ForeignLength { pages, frames: self.count });
        }
        if sharing == Sharing::Private && protection.contains(Protection::WRITE) {
            return Err(MapError::ForeignPrivate);
        }
        Ok(Backing::Foreign { first: self.first })
    }
}
