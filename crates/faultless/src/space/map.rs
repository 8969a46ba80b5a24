//! mmap.

use super::grow::guarded;
use super::populate::Goal;
use super::range_work::{Taken, TreeLock, Unpublished};
use super::{AddressSpace, LimitError, Map, Space};
use crate::address::{PAGE_SHIFT, PAGE_SIZE, PageNumber, PageRange, RangeError, VirtAddr};
use crate::design::{Call, LockingDesign};
use crate::errno;
use crate::host::{Host, OutOfMemory, PageTable};
use crate::page_cache::File;
use crate::protection::{Protection, Sharing};
use crate::sync::{Choice, Claims, Retired, Shared};
use crate::vma::tree::Ranged;
use crate::vma::{Backing, Flags, Mapping};
use alloc::vec::Vec;

/// What is mapped.
pub enum Source<H: Host> {
    /// Zeros, private.
    Anonymous,
    /// Zeros, shared with the children of fork: a file in memory of its own, which goes with the last mapping.
    AnonymousShared,
    /// A file from its page `first` on. Pages past its end can be mapped; touching them is an error.
    File {
        /// The file.
        file: Shared<File<H>>,
        /// The page of the file that the mapping begins with.
        first: u64,
        /// Whether stores stay in the space.
        sharing: Sharing,
    },
}

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The highest free place, as Linux does it.
    Anywhere,
    /// Just there; what is mapped there goes (MAP_FIXED).
    Fixed(VirtAddr),
    /// Just there, if nothing is (MAP_FIXED_NOREPLACE).
    FixedNoReplace(VirtAddr),
}

/// A mapping to be made.
pub struct MapRequest<H: Host> {
    /// Bytes; rounded up to whole pages.
    pub length: u64,
    /// What may be done with it.
    pub protection: Protection,
    /// What is mapped.
    pub source: Source<H>,
    /// Where it goes.
    pub placement: Placement,
    /// What else holds for it. With [`Flags::LOCKED`] its pages are fetched too, as with `populate`.
    pub flags: Flags,
    /// Its pages are fetched before the call returns (MAP_POPULATE), as far as they can be.
    pub populate: bool,
}

impl<H: Host> MapRequest<H> {
    /// `length` bytes of zeros, readable and writable, anywhere.
    pub fn anonymous(length: u64) -> Self {
        Self {
            length,
            protection: Protection::READ | Protection::WRITE,
            source: Source::Anonymous,
            placement: Placement::Anywhere,
            flags: Flags::empty(),
            populate: false,
        }
    }

    /// `length` bytes of `file` from page `first` on, private, anywhere.
    pub fn file(file: &Shared<File<H>>, first: u64, length: u64, protection: Protection) -> Self {
        let source = Source::File { file: file.clone(), first, sharing: Sharing::Private };
        Self { length, protection, source, ..Self::anonymous(length) }
    }

    /// `length` bytes of zeros, readable and writable, shared with the children of fork, anywhere.
    pub fn shared_anonymous(length: u64) -> Self {
        Self { source: Source::AnonymousShared, ..Self::anonymous(length) }
    }

    /// `length` bytes of `file` from page `first` on, shared, anywhere.
    pub fn shared_file(file: &Shared<File<H>>, first: u64, length: u64, protection: Protection) -> Self {
        let source = Source::File { file: file.clone(), first, sharing: Sharing::Shared };
        Self { source, ..Self::file(file, first, length, protection) }
    }

    /// The same elsewhere.
    pub fn at(self, placement: Placement) -> Self {
        Self { placement, ..self }
    }

    /// The same with other rights.
    pub fn with(self, protection: Protection) -> Self {
        Self { protection, ..self }
    }
}

/// Why nothing was mapped; the space is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The length or the address is wrong (EINVAL).
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The range lies outside of what the table can address (ENOMEM).
    #[error("{range} lies outside of the address space, which ends at {end}")]
    OutOfBounds {
        /// What was asked for.
        range: PageRange,
        /// The first address that cannot be mapped.
        end: VirtAddr,
    },
    /// The mapping would reach past the last page a file can have (EOVERFLOW).
    #[error("the mapping would reach past page {first} + {pages} of a file")]
    FileOffset {
        /// The first page asked for.
        first: u64,
        /// How many.
        pages: u64,
    },
    /// Something is mapped there already (EEXIST).
    #[error("{existing} is mapped already, inside the {range} asked for")]
    Exists {
        /// What was asked for.
        range: PageRange,
        /// The first mapping in the way.
        existing: PageRange,
    },
    /// A writable shared mapping of a file that was opened to be read only (EACCES).
    #[error("a shared mapping of a file that was not opened for writing cannot be writable")]
    SharedWrite,
    /// What is mapped at `address`, and would go, is sealed (EPERM).
    #[error("what is mapped at {address}, inside the {range} to map, is sealed")]
    Sealed {
        /// What was asked for.
        range: PageRange,
        /// The first address that is sealed.
        address: VirtAddr,
    },
    /// It is to be locked, and the limit is zero (EPERM).
    #[error("locking memory is not permitted")]
    LockNotPermitted,
    /// The host cannot show one page in two places (EOPNOTSUPP): see
    /// [`PageTable::SHARES_WRITES`](crate::host::PageTable::SHARES_WRITES).
    #[error("this host has no writable shared mappings")]
    SharedWriteUnsupported,
    /// No free place of that size (ENOMEM).
    #[error("no free place for {pages} pages")]
    NoSpace {
        /// How many pages were asked for.
        pages: u64,
    },
    /// What grows down is private and anonymous (EINVAL).
    #[error("a mapping of a file cannot grow down")]
    GrowingFile,
    /// A limit of the space (ENOMEM).
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The space has its limit of mappings (ENOMEM).
    #[error("the space has its limit of {limit} mappings")]
    TooManyMappings {
        /// The limit.
        limit: usize,
    },
    /// No memory for tables and nodes (ENOMEM).
    #[error("out of memory for the mapping")]
    OutOfMemory,
    /// The space has exited.
    #[error("the space has exited")]
    Exited,
}

impl MapError {
    /// Linux's number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Range(error) => error.errno(),
            Self::GrowingFile => errno::EINVAL,
            Self::Limit(error) => error.errno(),
            Self::FileOffset { .. } => errno::EOVERFLOW,
            Self::Exists { .. } => errno::EEXIST,
            Self::SharedWrite => errno::EACCES,
            Self::Sealed { .. } | Self::LockNotPermitted => errno::EPERM,
            Self::SharedWriteUnsupported => errno::EOPNOTSUPP,
            Self::OutOfBounds { .. }
            | Self::NoSpace { .. }
            | Self::TooManyMappings { .. }
            | Self::OutOfMemory
            | Self::Exited => errno::ENOMEM,
        }
    }
}

impl From<OutOfMemory> for MapError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Maps something; returns its first address. Waits for other range work on the same pages; for I/O only if its
    /// pages are to be fetched, and then holds nothing. That a page cannot be fetched is no error, and what somebody
    /// else has mapped over it meanwhile is left alone.
    ///
    /// # Errors
    /// [`MapError`]; the space is as before.
    pub fn map(&self, request: MapRequest<H>) -> Result<VirtAddr, MapError> {
        let is_locked = request.flags.contains(Flags::LOCKED);
        let (flags, populate) = (request.flags | self.0.flags_to_come(is_locked)?, request.populate);
        let pages = request.length.div_ceil(PAGE_SIZE);
        let (start, serial) = self.0.map(self, MapRequest { flags, ..request })?;
        if flags.is_fetched() || populate && !flags.contains(Flags::LOCKED_ON_FAULT) {
            let goal = if flags.is_fetched() { Goal::Lock } else { Goal::New(serial) };
            let range = PageRange::with_pages(start.page(), pages)?;
            let _ = self.populate(range, goal);
        }
        Ok(start)
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Returns the first address and the serial too.
    fn map(&self, handle: &AddressSpace<H, D>, request: MapRequest<H>) -> Result<(VirtAddr, u64), MapError> {
        let at = match request.placement {
            Placement::Anywhere => VirtAddr::default(),
            Placement::Fixed(at) | Placement::FixedNoReplace(at) => at,
        };
        let asked = PageRange::from_bytes(at, request.length)?;
        if !self.whole().covers(asked) {
            return Err(MapError::OutOfBounds { range: asked, end: self.whole().end().address() });
        }
        let (backing, sharing) = match request.source {
            Source::Anonymous => (Backing::Anonymous, Sharing::Private),
            Source::File { .. } | Source::AnonymousShared if request.flags.contains(Flags::GROWS_DOWN) => {
                return Err(MapError::GrowingFile);
            }
            Source::AnonymousShared => {
                if !H::Table::SHARES_WRITES {
                    return Err(MapError::SharedWriteUnsupported);
                }
                let bytes = asked.pages() * PAGE_SIZE;
                let file = File::in_memory(&self.engine, bytes)?;
                file.register(self.id, handle.as_maps())?;
                (Backing::File { file, first: 0 }, Sharing::Shared)
            }
            Source::File { file, first, sharing } => {
                if first.checked_add(asked.pages()).is_none_or(|end| end > u64::MAX >> PAGE_SHIFT) {
                    return Err(MapError::FileOffset { first, pages: asked.pages() });
                }
                if sharing == Sharing::Shared && request.protection.contains(Protection::WRITE) {
                    if !file.is_writable() {
                        return Err(MapError::SharedWrite);
                    }
                    if !H::Table::SHARES_WRITES {
                        return Err(MapError::SharedWriteUnsupported);
                    }
                }
                // Before its first page can be mapped.
                file.register(self.id, handle.as_maps())?;
                (Backing::File { file, first }, sharing)
            }
        };
        let (serial, flags) = (self.engine.next_serial(), request.flags);
        let mapping = |range| Mapping {
            range,
            protection: request.protection,
            sharing,
            flags,
            backing,
            serial,
            shift: 0,
            anon: None,
        };
        match request.placement {
            Placement::Anywhere => self.map_anywhere(asked.pages(), mapping),
            Placement::Fixed(_) => self.map_fixed(asked, mapping(asked)),
            Placement::FixedNoReplace(_) => self.map_no_replace(asked, mapping(asked)),
        }
        .map(|range| (range.start().address(), serial))
    }

    fn map_anywhere(
        &self,
        pages: u64,
        mapping: impl FnOnce(PageRange) -> Mapping<H>,
    ) -> Result<PageRange, MapError> {
        let mut work = D::range_work(&self.lock, &self.engine, &self.tree, Call::Map, self.whole());
        self.engine.assert_may_sleep("the tree lock");
        let choose = |map: &Map, claims: &Claims| self.free_place(map, claims, pages);
        let Some((taken, lock)) = self.map.take_chosen(&*self.engine, self.whole(), choose) else {
            return Err(MapError::NoSpace { pages });
        };
        // A hole before, this after: page work of before has found nothing, so there is nothing to sweep.
        let range = taken.range();
        let mapping = mapping(range);
        self.check_limits(&lock, &mapping)?;
        let mut retired = Vec::new();
        let published = self.map_hole(&mut work, &taken, lock, mapping, &mut retired);
        drop(taken);
        drop(work);
        self.engine.retire(retired);
        published.map(|()| range)
    }

    /// `at`, if it is free, nobody has claimed any of it and it is not the first page; else [`Space::free_place`].
    pub(super) fn free_place_at(
        &self,
        map: &Map,
        claims: &Claims,
        at: Option<PageRange>,
        pages: u64,
    ) -> Choice {
        let view = self.tree.view_locked(&map.writer);
        let is_free = |at: &PageRange| {
            at.start().get() != 0
                && view.from(at.start()).next().is_none_or(|next| guarded(next).start() >= at.end())
                && claims.overlapping(*at).is_none()
        };
        at.filter(is_free).map_or_else(|| self.free_place(map, claims, pages), Choice::Range)
    }

    /// The highest free place that nobody has claimed. The first page stays free, so that null is never mapped.
    pub(super) fn free_place(&self, map: &Map, claims: &Claims, pages: u64) -> Choice {
        let view = self.tree.view_locked(&map.writer);
        let mut otherwise = Choice::Nothing;
        let mut within = PageRange::new(PageNumber::new(1), self.whole().end());
        while let Some(start) = within.and_then(|within| view.highest_gap(pages, within)) {
            let Ok(range) = PageRange::with_pages(start, pages) else { break };
            let guard = view.from(range.end()).next().map(guarded).filter(|guard| guard.overlaps(range));
            if let Some(guard) = guard {
                within = PageRange::new(PageNumber::new(1), guard.start());
                continue;
            }
            let Some(claimed) = claims.overlapping(range) else { return Choice::Range(range) };
            otherwise = Choice::Claimed;
            within = PageRange::new(PageNumber::new(1), claimed.start());
        }
        otherwise
    }

    fn map_no_replace(&self, range: PageRange, mapping: Mapping<H>) -> Result<PageRange, MapError> {
        let mut work = D::range_work(&self.lock, &self.engine, &self.tree, Call::Map, range);
        self.engine.assert_may_sleep("the tree lock");
        let (taken, lock) = self.map.take(range, &*self.engine);
        let existing = self.tree.view_locked(&lock.writer).from(range.start()).next().map(Ranged::range);
        let mut retired = Vec::new();
        let published = match existing {
            Some(existing) if existing.overlaps(range) => {
                drop(lock);
                Err(MapError::Exists { range, existing })
            }
            _ if let Err(error) = self.check_limits(&lock, &mapping) => {
                drop(lock);
                Err(error.into())
            }
            _ => self.map_hole(&mut work, &taken, lock, mapping, &mut retired),
        };
        drop(taken);
        drop(work);
        self.engine.retire(retired);
        published.map(|()| range)
    }

    /// Over something: the new mapping, busy, then a sweep, so that no page faulted into the new one is swept away.
    fn map_fixed(&self, range: PageRange, mapping: Mapping<H>) -> Result<PageRange, MapError> {
        let mut work = D::range_work(&self.lock, &self.engine, &self.tree, Call::Map, range);
        self.engine.assert_may_sleep("the tree lock");
        self.exclude(&mut work, range, |_| true);
        let (taken, lock) = self.map.take(range, &*self.engine);
        if let Some(sealed) = self.first_sealed(&lock, range) {
            return Err(MapError::Sealed { range, address: sealed.address() });
        }
        self.check_limits(&lock, &mapping)?;
        let over_something = self
            .tree
            .view_locked(&lock.writer)
            .from(range.start())
            .next()
            .is_some_and(|vma| vma.range().overlaps(range));
        let mut retired = Vec::new();
        if !over_something || cfg!(mutant = "fixed_without_busy") {
            let published = self.map_hole(&mut work, &taken, lock, mapping, &mut retired);
            if over_something && published.is_ok() {
                self.sweep_away(&taken, range);
            }
            drop(taken);
            drop(work);
            self.engine.retire(retired);
            return published.map(|()| range);
        }
        // Page work waits until it is settled, which takes no memory.
        let (protection, flags) = (mapping.protection, mapping.flags | Flags::MOVING);
        drop(self.publish_new(&mut work, lock, range, Mapping { flags, ..mapping }, &mut retired)?);
        self.sweep_away(&taken, range);
        self.unhook_leaves(&taken, &mut retired);
        let followed = self.table.follow(range, Some(protection));
        if followed.is_ok() {
            self.settle(&mut work, &taken, range, &mut retired);
        } else {
            // The old mapping is gone, as Linux leaves it when it fails that late. Without memory for a hole what stands
            // there is one when it is let go.
            let _ = self.publish(&mut work, taken.lock(), range, |_| None, None, &mut retired);
            self.follow_back(&taken, range);
        }
        drop(taken);
        drop(work);
        self.engine.retire(retired);
        followed.map(|()| range).map_err(MapError::from)
    }

    /// Has the host follow, and publishes what comes where nothing is, or BUSY.
    fn map_hole<'s>(
        &'s self,
        work: &mut D::Range<'s, H>,
        taken: &Taken<'_, H>,
        lock: TreeLock<'s>,
        mapping: Mapping<H>,
        retired: &mut Vec<Retired>,
    ) -> Result<(), MapError> {
        let range = mapping.range;
        let lock = self.follow(taken, lock, range, Some(mapping.protection))?;
        let published = self.publish_new(work, lock, range, mapping, retired);
        published.map(drop).inspect_err(|_| self.follow_back(taken, range))
    }

    fn publish_new<'s>(
        &'s self,
        work: &mut D::Range<'s, H>,
        lock: TreeLock<'s>,
        range: PageRange,
        mapping: Mapping<H>,
        retired: &mut Vec<Retired>,
    ) -> Result<TreeLock<'s>, MapError> {
        if lock.exited {
            return Err(MapError::Exited);
        }
        self.may_map_locked(&lock, range, mapping.flags)?;
        self.publish(work, lock, range, |_| None, Some(mapping), retired).map_err(|error| match error {
            Unpublished::OutOfMemory => MapError::OutOfMemory,
            Unpublished::TooMany => {
                let limit = self.mapping_limit(&self.map.lock_by(&*self.engine));
                MapError::TooManyMappings { limit }
            }
        })
    }
}
