//! Mappings: immutable VMAs, the tree that holds them, and the pure rules of splitting and merging.
//!
//! A change publishes new VMAs; nobody changes one in place. The one thing about a mapping that changes under page
//! work is whether it has anonymous pages, and that stands in a record beside it, see [`AnonRecord`].

pub mod edit;
pub mod tree;

use crate::address::{PageNumber, PageRange};
use crate::design::LockingDesign;
use crate::host::Host;
use crate::page_cache::File;
use crate::protection::{Protection, Sharing};
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
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
    /// Nothing yet: range work clears the pages of what was here and will publish what comes next (docs/protocol.md,
    /// rule 1). Page work that meets it waits for that range.
    Busy,
}

impl<H: Host> Clone for Backing<H> {
    fn clone(&self) -> Self {
        match self {
            Self::Anonymous => Self::Anonymous,
            Self::File { file, first } => Self::File { file: file.clone(), first: *first },
            Self::Busy => Self::Busy,
        }
    }
}

bitflags::bitflags! {
    /// What else holds for a mapping, besides its rights. Mappings with different flags do not merge.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Flags: u16 {
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
        /// The engine's own, and never asked for: mremap moves its pages, see [`Vma::settle`].
        const MOVING = 1 << 15;
    }
}

impl Flags {
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
    pub flags: Flags,
    /// Where pages come from.
    pub backing: Backing<H>,
    /// Which map call made it; split parts keep it, and what joined has the newest. A fault that comes back from I/O
    /// compares it, and what populates a new mapping.
    pub serial: u64,
    /// How many pages lower it lies than where its anonymous pages came into being (modulo 2^64): zero until mremap moves
    /// them. Linux merges anonymous memory by it (`vm_pgoff`).
    pub shift: u64,
    /// The record of its anonymous pages, once it has some.
    pub anon: Option<Shared<AnonRecord>>,
}

impl<H: Host> Clone for Mapping<H> {
    fn clone(&self) -> Self {
        Self { backing: self.backing.clone(), anon: self.anon.clone(), ..*self }
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
}

impl<H: Host> fmt::Debug for Mapping<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sharing = if self.sharing == Sharing::Private { 'p' } else { 's' };
        write!(f, "{} {}{sharing}", self.range, self.protection)?;
        match &self.backing {
            Backing::Anonymous => Ok(()),
            Backing::File { file, first } => write!(f, " file {} from page {first}", file.id()),
            Backing::Busy => f.write_str(" busy"),
        }
    }
}

/// Whether a private mapping has anonymous pages: never goes back to no. Linux decides merges by it.
///
/// A record without pages belongs to one VMA. Range work that replaces this VMA closes the record first, so that a
/// fault that looked the VMA up before cannot add a page to it any more and looks again; a record with pages
/// passes on to all that its VMA becomes. So the decision rests on what cannot change (c46000458d57).
#[derive(Debug)]
pub struct AnonRecord {
    id: u64,
    /// FRESH to HAS_PAGES by page work, FRESH to CLOSED and back by range work; each by compare-and-swap.
    state: AtomicU32,
}

const FRESH: u32 = 0;
const HAS_PAGES: u32 = 1;
const CLOSED: u32 = 2;

impl AnonRecord {
    /// A record without pages. `id` is unique in the engine.
    pub fn new(id: u64) -> Self {
        Self { id, state: AtomicU32::new(FRESH) }
    }

    /// The number that its folios carry.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether there are anonymous pages.
    pub fn has_pages(&self) -> bool {
        // loom remembers one last access of each thread kind: a plain load here would hide behind the other's load, and
        // the interleaving with its store would not be tried.
        #[cfg(loom)]
        return self.state.fetch_add(0, Ordering::AcqRel) == HAS_PAGES;
        #[cfg(not(loom))]
        return self.state.load(Ordering::Acquire) == HAS_PAGES;
    }

    /// Page work is about to add a page. False: closed, look the VMA up again.
    #[inline]
    pub fn add_page(&self) -> bool {
        match self.state.load(Ordering::Acquire) {
            HAS_PAGES => true,
            CLOSED => false,
            _ => match self.state.compare_exchange(FRESH, HAS_PAGES, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => true,
                Err(now) => now == HAS_PAGES,
            },
        }
    }

    /// Range work is about to replace its VMA. False: it has pages, and what comes next inherits it.
    pub fn close(&self) -> bool {
        #[cfg(mutant = "merge_reads_record")]
        return self.state.load(Ordering::Acquire) == FRESH;
        #[cfg(not(mutant = "merge_reads_record"))]
        self.state.compare_exchange(FRESH, CLOSED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Range work could not replace its VMA after all.
    pub fn reopen(&self) {
        let _ = self.state.compare_exchange(CLOSED, FRESH, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// A mapping in the tree. Immutable; freed a grace period after it was replaced.
pub struct Vma<H: Host, D: LockingDesign> {
    mapping: Mapping<H>,
    /// The record of a private mapping, with pages or without.
    record: Option<Shared<AnonRecord>>,
    /// What the design keeps in each VMA.
    lock: D::Vma,
    /// Whether mremap moves its pages: page work that meets it waits, as for [`Backing::Busy`]. Atomic; set from the
    /// beginning, cleared by who has taken the range, with Release; partner: the Acquire of [`Vma::is_busy`].
    moving: AtomicBool,
    life: Life,
}

impl<H: Host, D: LockingDesign> Vma<H, D> {
    /// The VMA of `mapping`. A private mapping without anonymous pages gets a record of its own, number `record`.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(mapping: Mapping<H>, record: u64) -> Result<Self, OutOfMemory> {
        let record = match (&mapping.anon, mapping.sharing) {
            (Some(anon), _) => Some(anon.clone()),
            (None, Sharing::Private) if !matches!(mapping.backing, Backing::Busy) => {
                Some(Shared::try_new(AnonRecord::new(record))?)
            }
            (None, _) => None,
        };
        let moving = AtomicBool::new(mapping.flags.contains(Flags::MOVING));
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

    /// The record of its anonymous pages; `None` for a shared mapping.
    pub fn record(&self) -> Option<&Shared<AnonRecord>> {
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
    pub fn flags(&self) -> Flags {
        match self.moving.load(Ordering::Relaxed) {
            true => self.mapping.flags,
            false => self.mapping.flags - Flags::MOVING,
        }
    }

    /// The mapping as it is now, its record closed if it had no pages: range work is about to replace it.
    pub(crate) fn close(&self) -> Mapping<H> {
        let anon = self.record.as_ref().filter(|record| !record.close()).cloned();
        Mapping { anon, flags: self.flags(), ..self.mapping.clone() }
    }

    /// The mapping as it seems now, nothing closed.
    pub(crate) fn glance(&self) -> Mapping<H> {
        let anon = self.record.as_ref().filter(|record| record.has_pages()).cloned();
        Mapping { anon, flags: self.flags(), ..self.mapping.clone() }
    }

    /// Takes [`Vma::close`] back.
    pub(crate) fn reopen(&self) {
        if let Some(record) = &self.record {
            record.reopen();
        }
    }
}

impl<H: Host, D: LockingDesign> Ranged for Vma<H, D> {
    fn range(&self) -> PageRange {
        self.mapping.range
    }

    fn life(&self) -> &Life {
        &self.life
    }
}
