//! mmap.

use crate::address::{PAGE_SHIFT, PAGE_SIZE, PageNumber, PageRange, RangeError, VirtAddr};
use crate::design::{Call, LockingDesign};
use crate::errno;
use crate::host::{Host, OutOfMemory, PageTable};
use crate::page_cache::{File, FileHandle, FileRef, FileRights, Hull};
use crate::protection::{Protection, Sharing};
use crate::space::calls::grow::guarded;
use crate::space::calls::populate::Goal;
use crate::space::change::publish::{Joins, Origin, Refused, Unpublished};
use crate::space::change::range_change::RangeChange;
use crate::space::change::range_work::TreeLock;
use crate::space::foreign::ForeignFrames;
use crate::space::limits::TooMany;
use crate::space::{AddressSpace, LimitError, Space, TreeState};
use crate::sync::{Choice, Claims, Shared};
use crate::vma::tree::{Ranged, View};
use crate::vma::{Backing, Mapping, MappingFlags, Vma, edit};
use alloc::sync::Arc;

/// The page with the greatest offset that a signed number of 64 bits can say: no mapping is made of it or of what lies
/// behind it. One that is there may become that long (mremap).
const LAST_FILE_PAGE: u64 = i64::MAX as u64 >> PAGE_SHIFT;

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
    /// A file by a handle, whose rights bound the mapping's for ever: one that may not read is not mapped at all; what is shared
    /// by one that may not write never becomes writable. The mapping keeps the file, and not the handle.
    Handle {
        /// The handle.
        handle: Arc<FileHandle<H>>,
        /// As above.
        first: u64,
        /// As above.
        sharing: Sharing,
    },
    /// Frames that the engine does not own, from the first on; the mapping is no longer than they are many. A private mapping can
    /// never be written.
    Foreign {
        /// The frames.
        frames: ForeignFrames,
        /// Whether the mapping may ever be writable: `Shared`.
        sharing: Sharing,
    },
}

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The highest free place, as Linux does it.
    Anywhere,
    /// There if that is free, in the page of the address; else anywhere (an address without MAP_FIXED). The first page is no
    /// hint. As on Linux, the gap that a mapping which grows down keeps below it is not free.
    Hint(VirtAddr),
    /// Just there; what is mapped there goes (MAP_FIXED).
    Fixed(VirtAddr),
    /// Just there, if nothing is (MAP_FIXED_NOREPLACE).
    FixedNoReplace(VirtAddr),
}

/// A mapping to be made.
///
/// Of mmap's flags there is no MAP_SHARED_VALIDATE, which only has unknown flags refused (EOPNOTSUPP): whoever has them as a
/// number asks [`MappingFlags::from_bits`]. There is no MAP_HUGETLB, MAP_SYNC or MAP_32BIT.
pub struct MapRequest<H: Host> {
    /// Bytes; rounded up to whole pages.
    pub length: u64,
    /// What may be done with it.
    pub protection: Protection,
    /// What is mapped.
    pub source: Source<H>,
    /// Where it goes.
    pub placement: Placement,
    /// What else holds for it. With [`MappingFlags::LOCKED`] its pages are fetched too, as with `populate`.
    pub flags: MappingFlags,
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
            flags: MappingFlags::empty(),
            populate: false,
        }
    }

    /// `length` bytes of `file` from page `first` on, private, anywhere.
    pub fn file(file: &FileRef<H>, first: u64, length: u64, protection: Protection) -> Self {
        let source = Source::File { file: file.clone(), first, sharing: Sharing::Private };
        Self { length, protection, source, ..Self::anonymous(length) }
    }

    /// `length` bytes of zeros, readable and writable, shared with the children of fork, anywhere.
    pub fn shared_anonymous(length: u64) -> Self {
        Self { source: Source::AnonymousShared, ..Self::anonymous(length) }
    }

    /// `length` bytes of `file` from page `first` on, shared, anywhere.
    pub fn shared_file(file: &FileRef<H>, first: u64, length: u64, protection: Protection) -> Self {
        let source = Source::File { file: file.clone(), first, sharing: Sharing::Shared };
        Self { source, ..Self::file(file, first, length, protection) }
    }

    /// `length` bytes of the file behind `handle` from page `first` on, anywhere.
    pub fn handle(
        handle: &Arc<FileHandle<H>>,
        first: u64,
        length: u64,
        protection: Protection,
        sharing: Sharing,
    ) -> Self {
        let source = Source::Handle { handle: handle.clone(), first, sharing };
        Self { source, protection, ..Self::anonymous(length) }
    }

    /// All of `frames`, which the engine does not own, shared, anywhere.
    pub fn foreign(frames: ForeignFrames, protection: Protection) -> Self {
        let source = Source::Foreign { frames, sharing: Sharing::Shared };
        Self { source, protection, ..Self::anonymous(frames.count() * PAGE_SIZE) }
    }

    /// The same elsewhere.
    pub fn at(self, placement: Placement) -> Self {
        Self { placement, ..self }
    }

    /// The same with other rights.
    pub fn protection(self, protection: Protection) -> Self {
        Self { protection, ..self }
    }
}

/// The new mapping.
struct Mapped {
    range: PageRange,
    /// With those that mlockall has wanted.
    flags: MappingFlags,
    serial: u64,
}

/// Why nothing was mapped; the space is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The length or the address is wrong (EINVAL).
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The range lies outside of what the table can address (ENOMEM).
    #[error("{range} lies outside of the address space, {space}")]
    OutOfBounds {
        /// What was asked for.
        range: PageRange,
        /// What can be mapped.
        space: PageRange,
    },
    /// The mapping would reach the page with the last byte a file can have, number 2^63 - 1 (EOVERFLOW).
    #[error(
        "{pages} pages of a file from page {first} on reach past what a file can have, {LAST_FILE_PAGE} pages"
    )]
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
    /// A writable shared mapping of a file that was opened to be read only, or by a handle that was (EACCES).
    #[error("a shared mapping of a file that was not opened for writing cannot be writable")]
    SharedWrite,
    /// A mapping of whatever rights by a handle that was opened to write only (EACCES).
    #[error("a file that was not opened for reading cannot be mapped")]
    NotReadable,
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
    /// The host's tables can map no frame but the host's own (EOPNOTSUPP): see
    /// [`PageTable::MAPS_FOREIGN`](crate::host::PageTable::MAPS_FOREIGN).
    #[error("this host maps no foreign frames")]
    ForeignUnsupported,
    /// More pages than there are foreign frames (EINVAL).
    #[error("{pages} pages of {frames} foreign frames")]
    ForeignLength {
        /// How many pages were asked for.
        pages: u64,
        /// How many frames there are.
        frames: u64,
    },
    /// A private mapping of foreign frames that can be written (EINVAL): the engine does not copy them.
    #[error("a private mapping of foreign frames cannot be writable")]
    ForeignPrivate,
    /// No free place of that size (ENOMEM).
    #[error("no free place for {pages} pages")]
    NoSpace {
        /// How many pages were asked for.
        pages: u64,
    },
    /// What grows down is private and anonymous (EINVAL).
    #[error("a mapping of a file or of foreign frames cannot grow down")]
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
            Self::GrowingFile | Self::ForeignLength { .. } | Self::ForeignPrivate => errno::EINVAL,
            Self::Limit(error) => error.errno(),
            Self::FileOffset { .. } => errno::EOVERFLOW,
            Self::Exists { .. } => errno::EEXIST,
            Self::SharedWrite | Self::NotReadable => errno::EACCES,
            Self::Sealed { .. } | Self::LockNotPermitted => errno::EPERM,
            Self::SharedWriteUnsupported | Self::ForeignUnsupported => errno::EOPNOTSUPP,
            Self::OutOfBounds { .. }
            | Self::NoSpace { .. }
            | Self::TooManyMappings { .. }
            | Self::OutOfMemory
            | Self::Exited => errno::ENOMEM,
        }
    }
}

impl From<TooMany> for MapError {
    fn from(TooMany { limit }: TooMany) -> Self {
        Self::TooManyMappings { limit }
    }
}

impl From<Refused> for MapError {
    fn from(error: Refused) -> Self {
        match error {
            Refused::Exited => Self::Exited,
            Refused::Limit(error) => error.into(),
            Refused::Unpublished(Unpublished::OutOfMemory) => Self::OutOfMemory,
            Refused::Unpublished(Unpublished::TooMany { limit }) => Self::TooManyMappings { limit },
        }
    }
}

impl From<OutOfMemory> for MapError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// How an attempt to map somewhere ended.
enum Placed {
    /// It is mapped there, with these flags.
    There(PageRange, MappingFlags),
    /// The design could not have what it needs for that place without waiting.
    Refused(PageRange),
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Maps something; returns its first address. Waits for other range work on the same pages; for I/O only if its
    /// pages are to be fetched, and then holds nothing. That a page cannot be fetched is no error, and what somebody
    /// else has mapped over it meanwhile is left alone.
    ///
    /// # Errors
    /// [`MapError`]; the space is as before.
    pub fn map(&self, request: MapRequest<H>) -> Result<VirtAddr, MapError> {
        self.0.engine.prepare()?;
        let (asked, flags) = {
            let lock = self.0.map.lock_by(&*self.0.engine);
            let asked = self.0.asked(&lock, request.placement, request.length)?;
            (asked, lock.flags_asked(request.flags, asked.pages())?)
        };
        let populate = request.populate;
        let Mapped { range, flags, serial } = self.0.map(self, MapRequest { flags, ..request }, asked)?;
        if flags.is_fetched() || populate && !flags.contains(MappingFlags::LOCKED_ON_FAULT) {
            let goal = if flags.is_fetched() { Goal::Lock } else { Goal::New(serial) };
            let _ = self.populate(range, goal);
        }
        Ok(range.start().address())
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// The pages that are asked for. What is wrong with several things at once is told in Linux's order: length, how much is
    /// mapped already, end, address, what is there already; and the rest after that.
    fn asked(&self, map: &TreeState, placement: Placement, length: u64) -> Result<PageRange, MapError> {
        let (at, is_placed) = match placement {
            Placement::Anywhere | Placement::Hint(_) => (VirtAddr::default(), false),
            Placement::Fixed(at) | Placement::FixedNoReplace(at) => (at, true),
        };
        let range = PageRange::from_bytes(at.page().address(), length)?;
        self.may_map_more(map)?;
        let space = self.whole();
        let fits = if is_placed { space.covers(range) } else { range.pages() <= space.pages() };
        // A last address inside the last page fits no more: what begins in a page is counted in bytes.
        if !fits || at.get() > space.end().address().get() - range.bytes() {
            return Err(MapError::OutOfBounds { range, space });
        }
        if at.offset_in_page() != 0 {
            return Err(RangeError::Unaligned { address: at }.into());
        }
        if matches!(placement, Placement::FixedNoReplace(_)) {
            refuse_existing(self.tree.view_locked(&map.writer), range)?;
        }
        Ok(range)
    }

    fn map(
        &self,
        handle: &AddressSpace<H, D>,
        request: MapRequest<H>,
        asked: PageRange,
    ) -> Result<Mapped, MapError> {
        let MapRequest { protection, placement, .. } = request;
        let (backing, sharing, flags) = self.backing(handle, request, asked)?;
        let serial = self.engine.next_serial();
        let flags = edit::accounted(protection, sharing, flags);
        let mapping =
            Mapping { range: asked, protection, sharing, flags, backing, serial, shift: 0, anon: None };
        let (range, flags) = match placement {
            Placement::Anywhere => self.map_anywhere(None, mapping),
            Placement::Hint(at) => {
                let hint = PageRange::with_pages(at.page(), asked.pages()).ok();
                self.map_anywhere(hint.filter(|hint| self.whole().covers(*hint)), mapping)
            }
            Placement::Fixed(_) => self.map_fixed(asked, mapping),
            Placement::FixedNoReplace(_) => self.map_no_replace(asked, mapping),
        }?;
        Ok(Mapped { range, flags, serial })
    }

    /// What a new mapping shows, and the flags that it gets from that. A file hears that the space may show it. Not inlined: the
    /// stack has no room for this and the publication.
    #[inline(never)]
    fn backing(
        &self,
        handle: &AddressSpace<H, D>,
        request: MapRequest<H>,
        asked: PageRange,
    ) -> Result<(Backing<H>, Sharing, MappingFlags), MapError> {
        let mut flags = request.flags;
        let (file, first, sharing) = match request.source {
            Source::Anonymous => return Ok((Backing::Anonymous, Sharing::Private, flags)),
            Source::AnonymousShared => {
                if flags.contains(MappingFlags::GROWS_DOWN) {
                    return Err(MapError::GrowingFile);
                }
                if !H::Table::SHARES_WRITES {
                    return Err(MapError::SharedWriteUnsupported);
                }
                let file = File::in_memory(&self.engine, asked.pages() * PAGE_SIZE)?;
                file.register(self.id, || handle.as_mapped_by(), &Hull::EMPTY)?;
                return Ok((Backing::File { file, first: 0 }, Sharing::Shared, flags));
            }
            Source::Handle { handle: by, first, sharing } => {
                let rights = by.rights();
                if !rights.contains(FileRights::READ) {
                    return Err(MapError::NotReadable);
                }
                let is_bound = sharing == Sharing::Shared && !rights.contains(FileRights::WRITE);
                flags |= if is_bound { MappingFlags::READ_ONLY } else { MappingFlags::empty() };
                (by.file().clone(), first, sharing)
            }
            Source::File { file, first, sharing } => (file, first, sharing),
            Source::Foreign { frames, sharing } => {
                let backing = frames.backing::<H>(asked.pages(), sharing, request.protection)?;
                if flags.contains(MappingFlags::GROWS_DOWN) {
                    return Err(MapError::GrowingFile);
                }
                return Ok((backing, sharing, flags - MappingFlags::LOCKS));
            }
        };
        if first.checked_add(asked.pages()).is_none_or(|end| end > LAST_FILE_PAGE) {
            return Err(MapError::FileOffset { first, pages: asked.pages() });
        }
        if sharing == Sharing::Shared && request.protection.contains(Protection::WRITE) {
            if !file.is_writable() || flags.contains(MappingFlags::READ_ONLY) {
                return Err(MapError::SharedWrite);
            }
            if !H::Table::SHARES_WRITES {
                return Err(MapError::SharedWriteUnsupported);
            }
        }
        if flags.contains(MappingFlags::GROWS_DOWN) {
            return Err(MapError::GrowingFile);
        }
        // What it shows, and where, the file hears when that is known: see `publish_new`.
        file.register(self.id, || handle.as_mapped_by(), &Hull::EMPTY)?;
        Ok((Backing::File { file, first }, sharing, flags))
    }

    /// Maps `mapping` where there is room for it, at `hint` if there is some there.
    fn map_anywhere(
        &self,
        hint: Option<PageRange>,
        mapping: Mapping<H>,
    ) -> Result<(PageRange, MappingFlags), MapError> {
        let (mut mapping, mut refused) = (Some(mapping), None);
        loop {
            match self.map_somewhere(hint, refused, &mut mapping)? {
                Placed::There(range, flags) => return Ok((range, flags)),
                // All is let go, and comes back with what this place needs.
                Placed::Refused(place) => refused = Some(place),
            }
        }
    }

    /// One attempt of [`Space::map_anywhere`]; `refused`: the place that the design could not have in the last one. The call is too
    /// large to be moved, so that it ends here.
    #[inline(never)]
    fn map_somewhere(
        &self,
        hint: Option<PageRange>,
        refused: Option<PageRange>,
        mapping: &mut Option<Mapping<H>>,
    ) -> Result<Placed, MapError> {
        let pages = mapping.as_ref().map_or(0, |mapping| mapping.range.pages());
        let (kind, range) = refused.map_or((Call::Place, self.whole()), |place| (Call::Map, place));
        let mut call = self.change(kind, range);
        let at = refused.or(hint);
        let choose = |map: &TreeState, claims: &Claims| self.free_place_at(map, claims, at, pages);
        let lock = call.take_chosen(choose).ok_or(MapError::NoSpace { pages })?;
        let range = call.range();
        if D::placed(call.work(), range).is_err() {
            return Ok(Placed::Refused(range));
        }
        // A hole before, this after: page work of before has found nothing, so there is nothing to sweep.
        let mapping = Mapping { range, ..mapping.take().expect("it is mapped once") };
        call.map_hole(lock, mapping).map(|flags| Placed::There(range, flags))
    }

    /// `at`, if it is free, nobody has claimed any of it and it is not the first page; else [`Space::free_place`].
    pub(in crate::space) fn free_place_at(
        &self,
        map: &TreeState,
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
    pub(in crate::space) fn free_place(&self, map: &TreeState, claims: &Claims, pages: u64) -> Choice {
        let view = self.tree.view_locked(&map.writer);
        let mut otherwise = Choice::Nothing;
        let first = self.whole().start().max(PageNumber::new(1));
        let mut within = PageRange::new(first, self.whole().end());
        while let Some(start) = within.and_then(|within| self.tree.highest_gap(&map.writer, pages, within)) {
            let Ok(range) = PageRange::with_pages(start, pages) else { break };
            let guard = view.from(range.end()).next().map(guarded).filter(|guard| guard.overlaps(range));
            if let Some(guard) = guard {
                within = PageRange::new(first, guard.start());
                continue;
            }
            let Some(claimed) = claims.overlapping(range) else { return Choice::Range(range) };
            otherwise = Choice::Claimed;
            within = PageRange::new(first, claimed.start());
        }
        otherwise
    }

    #[inline(never)]
    fn map_no_replace(
        &self,
        range: PageRange,
        mapping: Mapping<H>,
    ) -> Result<(PageRange, MappingFlags), MapError> {
        let mut call = self.change(Call::Map, range);
        let lock = call.take(range);
        refuse_existing(self.tree.view_locked(&lock.writer), range)?;
        call.map_hole(lock, mapping).map(|flags| (range, flags))
    }

    /// Over something: the new mapping, busy, then a sweep, so that no page faulted into the new one is swept away.
    #[inline(never)]
    fn map_fixed(
        &self,
        range: PageRange,
        mut mapping: Mapping<H>,
    ) -> Result<(PageRange, MappingFlags), MapError> {
        let mut call = self.change_excluding(Call::Map, range);
        let lock = call.take(range);
        let view = self.tree.view_locked(&lock.writer);
        if self.is_hole(view, range) {
            return call.map_hole(lock, mapping).map(|flags| (range, flags));
        }
        if let Some(sealed) = self.first_sealed(view, range) {
            return Err(MapError::Sealed { range, address: sealed.address() });
        }
        // Page work waits until it is settled, which takes no memory.
        let busy =
            if cfg!(mutant = "fixed_without_busy") { MappingFlags::empty() } else { MappingFlags::MOVING };
        mapping.flags |= busy;
        let protection = mapping.protection;
        let lock = call.publish_new(lock, (&mut mapping, Origin::Fresh), Joins::BOTH)?;
        let flags = mapping.flags;
        drop(lock);
        // Before the host gives the new rights: to what was mapped they must not come.
        call.sweep_away(range, Some(range));
        let followed = self.table.follow(range, Some(protection));
        if followed.is_ok() {
            call.settle(range, Joins { inside: true, ..Joins::BOTH });
        } else {
            // The old mapping is gone, as Linux leaves it when it fails that late. Without memory for a hole what stands
            // there is one when it is let go.
            let lock = call.lock();
            let _ = call.publish(lock, range, |_| None);
            self.follow_back(call.taken.over(range), range);
        }
        followed.map(|()| (range, flags)).map_err(MapError::from)
    }
}

impl<'a, H: Host, D: LockingDesign> RangeChange<'a, H, D> {
    /// Has the host follow, and publishes what comes where nothing is; then lets the range go. Returns the flags.
    fn map_hole(&mut self, lock: TreeLock<'a>, mut mapping: Mapping<H>) -> Result<MappingFlags, MapError> {
        let lock = self.publish_followed(lock, (&mut mapping, Origin::Fresh), Joins::BOTH)?;
        self.release_locked(lock);
        Ok(mapping.flags)
    }
}

/// Whether nothing is mapped in `range`.
fn refuse_existing<H: Host, D: LockingDesign>(
    view: View<'_, Vma<H, D>>,
    range: PageRange,
) -> Result<(), MapError> {
    match view.from(range.start()).next().map(Ranged::range).filter(|existing| existing.overlaps(range)) {
        Some(existing) => Err(MapError::Exists { range, existing }),
        None => Ok(()),
    }
}
