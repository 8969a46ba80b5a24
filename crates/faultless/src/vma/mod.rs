//! Mappings: immutable VMAs, the tree that holds them, and the pure rules of splitting and merging.
//!
//! A change publishes new VMAs; nobody changes one in place. The one thing about a mapping that changes under page
//! work is whether it has anonymous pages, and that stands in a record beside it, see [`AnonRecord`].

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
use crate::sync::{Life, OutOfMemory, Shared};
use core::fmt;
use tree::Ranged;

/// What a mapping's pages come from.
pub enum Backing<H: Host> {
    /// Zeros.
    Anonymous,
    /// A file, from its page `first` on.
    File {
        /// The file.
        file: Shared<File<H>>,
        /// The page of the file that the mapping begins with.
        first: u64,
    },
    /// Frames that the engine does not own, from `first` on: see [`ForeignFrames`](crate::ForeignFrames).
    Foreign {
        /// The frame that the mapping begins with.
        first: Frame,
    },
    /// Nothing yet: range work clears the pages of what was here and will publish what comes next (docs/protocol.md,
    /// rule 1). Page work that meets it waits for that range.
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
    /// What else holds for a mapping, besides its rights. Mappings with different flags do not merge.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct MappingFlags: u16 {
        /// Its pages stay in memory once they are there (mlock).
        const LOCKED = 1 << 0;
        /// With `LOCKED`: pages are not fetched ahead of the first touch (MLOCK_ONFAULT).
        const LOCKED_ON_FAULT = 1 << 1;
        /// A child of fork does not get it (MADV_DONTFORK).
        const DONT_FORK = 1 << 2;
        /// A child of fork gets it empty (MADV_WIPEONFORK).
        const WIPE_ON_FORK = 1 << 3;
        /// A fault just below makes it longer (MAP_GROWSDOWN).
        const GROWS_DOWN = 1 << 4;
        /// Pages will be read in order (MADV_SEQUENTIAL).
        const SEQUENTIAL = 1 << 5;
        /// Pages will be read in no order (MADV_RANDOM).
        const RANDOM = 1 << 6;
        /// It cannot be unmapped, moved or changed (mseal).
        const SEALED = 1 << 7;
        /// No memory is set aside for it (MAP_NORESERVE).
        const NO_RESERVE = 1 << 8;
        /// Never asked for: it is shared by a handle that may only read, and never becomes writable (no VM_MAYWRITE).
        const READ_ONLY = 1 << 9;
        /// The engine's own, and never asked for: it counts as memory that is promised (VM_ACCOUNT, "ac" in smaps).
        const ACCOUNT = 1 << 14;
        /// The engine's own, and never asked for: mremap moves its pages, see [`Vma::settle`].
        const MOVING = 1 << 15;
    }
}

impl MappingFlags {
    /// Those that nobody asks for, nor is told of.
    pub const OWN: Self = Self::ACCOUNT.union(Self::MOVING);

    /// Both flags of locking.
    pub const LOCKS: Self = Self::LOCKED.union(Self::LOCKED_ON_FAULT);

    /// Whether its pages are locked and fetched ahead of the first touch.
    pub fn is_fetched(self) -> bool {
        self.contains(Self::LOCKED) && !self.contains(Self::LOCKED_ON_FAULT)
    }
}

/// A mapping as a value: what splitting and merging work with.
pub struct Mapping<H: Host> {
    /// The pages.
    pub range: PageRange,
    /// What may be done with them.
    pub protection: Protection,
    /// Whether stores stay in this space.
    pub sharing: Sharing,
    /// What else holds for it.
    pub flags: MappingFlags,
    /// Where pages come from.
    pub backing: Backing<H>,
    /// Which map call made it; split parts keep it, and what joined has the newest. A fault that comes back from I/O
    /// compares it, and what populates a new mapping.
    pub serial: u64,
    /// How many pages lower it lies than where its anonymous pages came into being (modulo 2^64): zero until mremap moves
    /// them. Linux merges anonymous memory by it (`vm_pgoff`).
    pub shift: u64,
    /// The number of its record, once it has anonymous pages.
    pub anon: Option<AnonId>,
}

impl<H: Host> Clone for Mapping<H> {
    fn clone(&self) -> Self {
        Self { backing: self.backing.clone(), ..*self }
    }
}

impl<H: Host> Mapping<H> {
    /// The page of the file that `page` shows, for a file's mapping.
    pub fn file_page(&self, page: PageNumber) -> Option<(&Shared<File<H>>, u64)> {
        match &self.backing {
            Backing::File { file, first } => Some((file, first + (page.get() - self.range.start().get()))),
            _ => None,
        }
    }

    /// The frame that `page`, which it covers, shows, for a mapping of frames that the engine does not own.
    pub fn foreign_frame(&self, page: PageNumber) -> Option<Frame> {
        match self.backing {
            Backing::Foreign { first } => Frame::new(first.get() + (page.get() - self.range.start().get())),
            _ => None,
        }
    }

    /// Whether it shows frames that the engine does not own.
    pub fn is_foreign(&self) -> bool {
        matches!(self.backing, Backing::Foreign { .. })
    }
}

impl<H: Host> Mapping<H> {
    /// Whether stores into it, if its rights allow them or are made to, go to its file.
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

/// A mapping in the tree. Immutable; freed a grace period after it was replaced.
pub struct Vma<H: Host, D: LockingDesign> {
    mapping: Mapping<H>,
    /// The record of a private mapping, with pages or without; of foreign frames there is none.
    record: Option<AnonRecord>,
    /// What the design keeps in each VMA.
    lock: D::Vma,
    /// Whether mremap moves its pages: page work that meets it waits, as for [`Backing::Busy`]. Atomic; set from the
    /// beginning, cleared by who has taken the range, with Release; partner: the Acquire of [`Vma::is_busy`].
    moving: AtomicBool,
    life: Life,
}

impl<H: Host, D: LockingDesign> Vma<H, D> {
    /// The VMA of `mapping`.
    ///
    /// # Errors
    /// There is no memory for the design's lock.
    pub fn new(mapping: Mapping<H>) -> Result<Self, OutOfMemory> {
        // What the engine does not own it never copies, so that a private mapping of it has no anonymous pages either.
        let has_none = matches!(mapping.backing, Backing::Foreign { .. } | Backing::Busy);
        let is_private = mapping.sharing == Sharing::Private && !has_none;
        let record = is_private.then(|| AnonRecord::new(mapping.anon));
        let moving = AtomicBool::new(mapping.flags.contains(MappingFlags::MOVING));
        Ok(Self { mapping, record, lock: D::new_vma()?, moving, life: Life::new() })
    }

    /// What is mapped. Its `anon` is what was known when the VMA was made; see [`Vma::record`].
    pub fn mapping(&self) -> &Mapping<H> {
        &self.mapping
    }

    /// The pages.
    pub fn pages(&self) -> PageRange {
        self.mapping.range
    }

    /// The record of its anonymous pages; `None` for a mapping that never has any: a shared one, or one of foreign frames.
    pub fn record(&self) -> Option<&AnonRecord> {
        self.record.as_ref()
    }

    /// What the design keeps in it.
    pub fn lock(&self) -> &D::Vma {
        &self.lock
    }

    /// Whether it stands for a range whose next mapping is not published yet, or whose pages are being moved.
    pub fn is_busy(&self) -> bool {
        matches!(self.mapping.backing, Backing::Busy) || self.moving.load(Ordering::Acquire)
    }

    /// Its pages are where they belong: page work may go on. Takes no memory, unlike a publication, so that nothing can go
    /// wrong any more once pages have begun to move.
    pub(crate) fn settle(&self) {
        self.moving.store(false, Ordering::Release);
    }

    /// What else holds for the mapping, as it is now.
    pub fn flags(&self) -> MappingFlags {
        match self.moving.load(Ordering::Relaxed) {
            true => self.mapping.flags,
            false => self.mapping.flags - MappingFlags::MOVING,
        }
    }

    /// The mapping as it is now, its record closed if it had no pages: range work is about to replace it.
    pub(crate) fn close(&self) -> Mapping<H> {
        let anon = self.record.as_ref().and_then(AnonRecord::close);
        Mapping { anon, flags: self.flags(), ..self.mapping.clone() }
    }

    /// The mapping as it seems now, nothing closed.
    pub(crate) fn glance(&self) -> Mapping<H> {
        let anon = self.record.as_ref().and_then(AnonRecord::id);
        Mapping { anon, flags: self.flags(), ..self.mapping.clone() }
    }

    /// Takes [`Vma::close`] back.
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
