//! Mappings: immutable VMAs, the tree that holds them, and the pure rules of splitting and merging.
//!
//! A change publishes new VMAs; no VMA is changed in place. One fact about a mapping changes under page work: whether it
//! has anonymous pages. It stands in a record beside the mapping, see [`AnonRecord`].

pub mod edit;
mod record;
pub mod tree;

pub use record::{AnonId, AnonRecord};

use crate::address::{PageNumber, PageRange};
use crate::design::LockingDesign;
use crate::host::{Frame, Host};
use crate::page_cache::File;
use crate::protection::{Protection, Sharing};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Life, Shared};
use core::fmt;
use tree::Ranged;

/// The source of a mapping's pages.
pub enum Backing<H: Host> {
    /// Zeros: each page is anonymous.
    Anonymous,
    /// A file, from its page `first` on.
    File {
        /// The file.
        file: Shared<File<H>>,
        /// The page of the file that the mapping begins with.
        first: u64,
    },
    /// Frames that the engine does not own, from `first` on. See [`ForeignFrames`](crate::ForeignFrames).
    Foreign {
        /// The frame that the mapping begins with.
        first: Frame,
    },
    /// Nothing yet. Range work clears the pages of the earlier mapping and will publish the next one (docs/protocol.md,
    /// rule 1). Page work that meets this backing waits for that range work.
    Busy,
}

impl<H: Host> Clone for Backing<H> {
    fn clone(&self) -> Self {
        match self {
            Self::Anonymous => Self::Anonymous,
            Self::File { file, first } => Self::File { file: file.clone(), first: *first },
            Self::Foreign { first } => Self::Foreign { first: *first },
            Self::Busy => Self::Busy,
        }
    }
}

bitflags::bitflags! {
    /// Properties of a mapping other than its rights. Mappings with different flags do not merge.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct MappingFlags: u16 {
        /// The pages stay in memory once they are there (mlock).
        const LOCKED = 1 << 0;
        /// With `LOCKED`: pages are not fetched ahead of the first touch (MLOCK_ONFAULT).
        const LOCKED_ON_FAULT = 1 << 1;
        /// A child of fork does not get the mapping (MADV_DONTFORK).
        const DONT_FORK = 1 << 2;
        /// A child of fork gets the mapping empty (MADV_WIPEONFORK).
        const WIPE_ON_FORK = 1 << 3;
        /// A fault just below the mapping extends it downwards (MAP_GROWSDOWN).
        const GROWS_DOWN = 1 << 4;
        /// Pages will be read in order (MADV_SEQUENTIAL).
        const SEQUENTIAL = 1 << 5;
        /// Pages will be read in no order (MADV_RANDOM).
        const RANDOM = 1 << 6;
        /// The mapping cannot be unmapped, moved or changed (mseal).
        const SEALED = 1 << 7;
        /// No memory is set aside for the mapping (MAP_NORESERVE).
        const NO_RESERVE = 1 << 8;
        /// The mapping is shared through a handle that may only read, and never becomes writable (no VM_MAYWRITE). No
        /// caller sets it.
        const READ_ONLY = 1 << 9;
        /// fork copies the anonymous pages of a private mapping for the child at once ([`Advice::CopyAtFork`](crate::Advice)).
        const COPY_AT_FORK = 1 << 10;
        /// The mapping counts as promised memory (VM_ACCOUNT, "ac" in smaps). Internal to the engine; no caller sets it.
        const ACCOUNT = 1 << 14;
        /// mremap is moving the mapping's pages, see [`Vma::settle`]. Internal to the engine; no caller sets it.
        const MOVING = 1 << 15;
    }
}

impl MappingFlags {
    /// The flags that no caller asks for and that no caller is told of.
    pub const OWN: Self = Self::ACCOUNT.union(Self::MOVING);

    /// Both flags of locking.
    pub const LOCKS: Self = Self::LOCKED.union(Self::LOCKED_ON_FAULT);

    /// Returns whether the mapping's pages are locked and fetched ahead of the first touch.
    pub fn is_fetched(self) -> bool {
        self.contains(Self::LOCKED) && !self.contains(Self::LOCKED_ON_FAULT)
    }
}

/// A mapping as a value. Splitting and merging work with such values.
pub struct Mapping<H: Host> {
    /// The pages that the mapping covers.
    pub range: PageRange,
    /// The rights of the mapping.
    pub protection: Protection,
    /// Says whether stores stay in this space.
    pub sharing: Sharing,
    /// Properties other than the rights.
    pub flags: MappingFlags,
    /// The source of the mapping's pages.
    pub backing: Backing<H>,
    /// The number of the map call that made the mapping. Split parts keep it; a merged mapping has the newest. A fault
    /// that comes back from I/O compares it, and so does the work that populates a new mapping.
    pub serial: u64,
    /// The distance in pages from the place where the mapping's anonymous pages came into being down to where it lies now
    /// (modulo 2^64). It is zero until mremap moves the pages. Linux merges anonymous memory by it (`vm_pgoff`).
    pub shift: u64,
    /// The number of the mapping's record, once the mapping has anonymous pages.
    pub anon: Option<AnonId>,
}

impl<H: Host> Clone for Mapping<H> {
    fn clone(&self) -> Self {
        Self { backing: self.backing.clone(), ..*self }
    }
}

impl<H: Host> Mapping<H> {
    /// Returns the file, and the page of it that `page` shows; `None` if the mapping is not of a file.
    pub fn file_page(&self, page: PageNumber) -> Option<(&Shared<File<H>>, u64)> {
        match &self.backing {
            Backing::File { file, first } => Some((file, first + (page.get() - self.range.start().get()))),
            _ => None,
        }
    }

    /// Returns the frame that `page` shows, for a mapping of frames that the engine does not own. The mapping must cover
    /// `page`.
    pub fn foreign_frame(&self, page: PageNumber) -> Option<Frame> {
        match self.backing {
            Backing::Foreign { first } => Frame::new(first.get() + (page.get() - self.range.start().get())),
            _ => None,
        }
    }

    /// Returns whether the mapping shows frames that the engine does not own.
    pub fn is_foreign(&self) -> bool {
        matches!(self.backing, Backing::Foreign { .. })
    }
}

impl<H: Host> Mapping<H> {
    /// Returns whether stores go to the mapping's file, if its rights allow stores now or later.
    pub fn reaches_its_file(&self) -> bool {
        let is_writable = match &self.backing {
            Backing::File { file, .. } => file.is_writable(),
            Backing::Anonymous | Backing::Foreign { .. } | Backing::Busy => false,
        };
        is_writable && self.sharing == Sharing::Shared && !self.flags.contains(MappingFlags::READ_ONLY)
    }
}

impl<H: Host> fmt::Debug for Mapping<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sharing = if self.sharing == Sharing::Private { 'p' } else { 's' };
        write!(f, "{} {}{sharing}", self.range, self.protection)?;
        match &self.backing {
            Backing::Anonymous => Ok(()),
            Backing::File { file, first } => write!(f, " file {} from page {first}", file.id()),
            Backing::Foreign { first } => write!(f, " foreign {first:?}"),
            Backing::Busy => f.write_str(" busy"),
        }
    }
}

/// A mapping in the tree. It is immutable, and is freed a grace period after it was replaced.
pub struct Vma<H: Host, D: LockingDesign> {
    mapping: Mapping<H>,
    /// The record of a private mapping, with pages or without. A mapping of foreign frames has none.
    record: Option<AnonRecord>,
    /// The state of the design in this VMA.
    lock: D::Vma,
    /// Says whether mremap moves the mapping's pages. Page work that meets it waits, as for [`Backing::Busy`]. Atomic. It
    /// is set when the VMA is made. The thread that has taken the range clears it with Release; the partner is the
    /// Acquire of [`Vma::is_busy`].
    moving: AtomicBool,
    life: Life,
}

impl<H: Host, D: LockingDesign> Vma<H, D> {
    /// Makes the VMA of `mapping`.
    pub fn new(mapping: Mapping<H>) -> Self {
        // The engine never copies frames that it does not own, so a private mapping of them has no anonymous pages
        // either.
        let has_none = matches!(mapping.backing, Backing::Foreign { .. } | Backing::Busy);
        let is_private = mapping.sharing == Sharing::Private && !has_none;
        let record = is_private.then(|| AnonRecord::new(mapping.anon));
        let moving = AtomicBool::new(mapping.flags.contains(MappingFlags::MOVING));
        Self { mapping, record, lock: D::Vma::default(), moving, life: Life::new() }
    }

    /// Returns the mapping. Its `anon` is as it was when the VMA was made; see [`Vma::record`].
    pub fn mapping(&self) -> &Mapping<H> {
        &self.mapping
    }

    /// Returns the pages that the mapping covers.
    pub fn pages(&self) -> PageRange {
        self.mapping.range
    }

    /// Returns the record of the mapping's anonymous pages. `None` if the mapping never has any: a shared one, or one of
    /// foreign frames.
    pub fn record(&self) -> Option<&AnonRecord> {
        self.record.as_ref()
    }

    /// Returns the state of the design in this VMA.
    pub fn lock(&self) -> &D::Vma {
        &self.lock
    }

    /// Returns whether the range's next mapping is not published yet, or its pages are being moved.
    pub fn is_busy(&self) -> bool {
        matches!(self.mapping.backing, Backing::Busy) || self.moving.load(Ordering::Acquire)
    }

    /// Notes that the mapping's pages are where they belong: page work may go on. Unlike a publication it takes no
    /// memory, so that nothing can fail once pages have begun to move.
    pub(crate) fn settle(&self) {
        self.moving.store(false, Ordering::Release);
    }

    /// Returns the mapping's flags as they are now.
    pub fn flags(&self) -> MappingFlags {
        match self.moving.load(Ordering::Relaxed) {
            true => self.mapping.flags,
            false => self.mapping.flags - MappingFlags::MOVING,
        }
    }

    /// Returns the mapping as it is now, and closes its record if it had no pages. Range work calls this before it
    /// replaces the VMA.
    pub(crate) fn close(&self) -> Mapping<H> {
        let anon = self.record.as_ref().and_then(AnonRecord::close);
        Mapping { anon, flags: self.flags(), ..self.mapping.clone() }
    }

    /// Returns the mapping as it seems now, and closes nothing.
    pub(crate) fn glance(&self) -> Mapping<H> {
        let anon = self.record.as_ref().and_then(AnonRecord::id);
        Mapping { anon, flags: self.flags(), ..self.mapping.clone() }
    }

    /// Undoes [`Vma::close`].
    pub(crate) fn reopen(&self) {
        if let Some(record) = &self.record {
            record.reopen();
        }
    }
}

// SAFETY: a VMA is immutable but for its record and its locks.
unsafe impl<H: Host, D: LockingDesign> Ranged for Vma<H, D> {
    fn range(&self) -> PageRange {
        self.mapping.range
    }

    fn life(&self) -> &Life {
        &self.life
    }

    fn keeps_something(&self) -> bool {
        matches!(self.mapping.backing, Backing::File { .. })
    }

    fn retired(&self) -> bool {
        match &self.mapping.backing {
            Backing::File { file, .. } => file.count_as_retired(),
            Backing::Anonymous | Backing::Foreign { .. } | Backing::Busy => false,
        }
    }

    fn freed(&self) {
        if let Backing::File { file, .. } = &self.mapping.backing {
            file.count_as_freed();
        }
    }
}
