//! mmap: makes a new mapping.

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

/// The page with the greatest offset that a signed number of 64 bits can hold. A new mapping includes neither this page nor any
/// behind it. An existing mapping may grow that far (mremap).
const LAST_FILE_PAGE: u64 = i64::MAX as u64 >> PAGE_SHIFT;

/// The contents of a new mapping.
pub enum Source<H: Host> {
    /// Private memory that reads as zeros.
    Anonymous,
    /// Memory that reads as zeros and is shared with the children of fork. It is a file in memory of its own, which is freed
    /// with its last mapping.
    AnonymousShared,
    /// A file, from its page `first` on. Pages past its end can be mapped; an access to one is an error.
    File {
        /// The file to map.
        file: Shared<File<H>>,
        /// The page of the file that the mapping begins with.
        first: u64,
        /// Private: stores stay in the space. Shared: they reach the file.
        sharing: Sharing,
    },
    /// A file by a handle, whose rights limit the mapping's for its whole life. If the handle may not read, nothing is mapped.
    /// If it may not write, a shared mapping never becomes writable. The mapping keeps the file, and not the handle.
    Handle {
        /// The handle whose file is mapped.
        handle: Arc<FileHandle<H>>,
        /// The page of the file that the mapping begins with.
        first: u64,
        /// Private: stores stay in the space. Shared: they reach the file.
        sharing: Sharing,
    },
    /// Frames that the engine does not own, from the first on. The mapping may not have more pages than there are frames. A
    /// private mapping of them can never be written.
    Foreign {
        /// The frames to map.
        frames: ForeignFrames,
        /// The mapping may be writable, now or later, only if this is `Shared`.
        sharing: Sharing,
    },
}

/// The place of a new mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The highest free place, as Linux chooses it.
    Anywhere,
    /// The page of the address if the place is free, otherwise anywhere (an address without MAP_FIXED). The first page is no
    /// hint. As on Linux, the gap that a mapping which grows down keeps below it is not free.
    Hint(VirtAddr),
    /// Exactly this address. Existing mappings there are replaced (MAP_FIXED).
    Fixed(VirtAddr),
    /// Exactly this address, if nothing is mapped there (MAP_FIXED_NOREPLACE).
    FixedNoReplace(VirtAddr),
}

/// A request to make a mapping.
///
/// mmap's MAP_SHARED_VALIDATE is missing: it only makes unknown flags an error (EOPNOTSUPP). A caller that has flags as a
/// number can check them by [`MappingFlags::from_bits`]. MAP_HUGETLB, MAP_SYNC and MAP_32BIT are missing too.
pub struct MapRequest<H: Host> {
    /// The length in bytes, rounded up to whole pages.
    pub length: u64,
    /// The accesses that the mapping allows.
    pub protection: Protection,
    /// The contents of the mapping.
    pub source: Source<H>,
    /// The place of the mapping.
    pub placement: Placement,
    /// Further properties of the mapping. With [`MappingFlags::LOCKED`] its pages are fetched too, as with `populate`.
    pub flags: MappingFlags,
    /// Fetches the pages before the call returns (MAP_POPULATE), as far as they can be fetched.
    pub populate: bool,
}

impl<H: Host> MapRequest<H> {
    /// Requests `length` bytes of zeros, readable and writable, private, anywhere.
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

    /// Requests `length` bytes of `file` from page `first` on, private, anywhere.
    pub fn file(file: &FileRef<H>, first: u64, length: u64, protection: Protection) -> Self {
        let source = Source::File { file: file.clone(), first, sharing: Sharing::Private };
        Self { length, protection, source, ..Self::anonymous(length) }
    }

    /// Requests `length` bytes of zeros, readable and writable, shared with the children of fork, anywhere.
    pub fn shared_anonymous(length: u64) -> Self {
        Self { source: Source::AnonymousShared, ..Self::anonymous(length) }
    }

    /// Requests `length` bytes of `file` from page `first` on, shared, anywhere.
    pub fn shared_file(file: &FileRef<H>, first: u64, length: u64, protection: Protection) -> Self {
        let source = Source::File { file: file.clone(), first, sharing: Sharing::Shared };
        Self { source, ..Self::file(file, first, length, protection) }
    }

    /// Requests `length` bytes of the file behind `handle` from page `first` on, anywhere.
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

    /// Requests all of `frames`, which the engine does not own, shared, anywhere.
    pub fn foreign(frames: ForeignFrames, protection: Protection) -> Self {
        let source = Source::Foreign { frames, sharing: Sharing::Shared };
        Self { source, protection, ..Self::anonymous(frames.count() * PAGE_SIZE) }
    }

    /// Replaces the place of the request.
    pub fn at(self, placement: Placement) -> Self {
        Self { placement, ..self }
    }

    /// Replaces the accesses that the mapping is to allow.
    pub fn protection(self, protection: Protection) -> Self {
        Self { protection, ..self }
    }
}

/// A mapping that was just made.
struct Mapped {
    range: PageRange,
    /// The mapping's flags, with those that mlockall set for new mappings.
    flags: MappingFlags,
    serial: u64,
}

/// The reason why nothing was mapped. The space is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The length or the address is wrong (EINVAL).
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The range lies outside of what the table can address (ENOMEM).
    #[error("{range} lies outside of the address space, {space}")]
    OutOfBounds {
        /// The range asked for.
        range: PageRange,
        /// All pages that can be mapped.
        space: PageRange,
    },
    /// The mapping would reach the page with the last byte a file can have, number 2^63 - 1 (EOVERFLOW).
    #[error(
        "{pages} pages of a file from page {first} on reach past the greatest file, {LAST_FILE_PAGE} pages"
    )]
    FileOffset {
        /// The first page asked for.
        first: u64,
        /// The number of pages asked for.
        pages: u64,
    },
    /// Something is mapped there already (EEXIST).
    #[error("{existing} is mapped already, inside the {range} asked for")]
    Exists {
        /// The range asked for.
        range: PageRange,
        /// The first mapping in the way.
        existing: PageRange,
    },
    /// A shared mapping cannot be writable if its file, or its handle, was opened only for reading (EACCES).
    #[error("a shared mapping of a file that was not opened for writing cannot be writable")]
    SharedWrite,
    /// A handle that was opened only for writing cannot be mapped, with any rights (EACCES).
    #[error("a file that was not opened for reading cannot be mapped")]
    NotReadable,
    /// A mapping that would be replaced is sealed at `address` (EPERM).
    #[error("the mapping at {address}, inside the {range} to map, is sealed")]
    Sealed {
        /// The range asked for.
        range: PageRange,
        /// The first address that is sealed.
        address: VirtAddr,
    },
    /// The mapping is to be locked, and the limit of locked memory is zero (EPERM).
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
    /// The mapping has more pages than there are foreign frames (EINVAL).
    #[error("{pages} pages of {frames} foreign frames")]
    ForeignLength {
        /// The number of pages asked for.
        pages: u64,
        /// The number of frames.
        frames: u64,
    },
    /// A private mapping of foreign frames cannot be writable (EINVAL): the engine does not copy them.
    #[error("a private mapping of foreign frames cannot be writable")]
    ForeignPrivate,
    /// There is no free place of that size (ENOMEM).
    #[error("no free place for {pages} pages")]
    NoSpace {
        /// The number of pages asked for.
        pages: u64,
    },
    /// Only a private anonymous mapping can grow down (EINVAL).
    #[error("a mapping of a file or of foreign frames cannot grow down")]
    GrowingFile,
    /// A limit of the space would be exceeded (ENOMEM; EAGAIN for locked memory).
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The space has as many mappings as its limit allows (ENOMEM).
    #[error("the space has its limit of {limit} mappings")]
    TooManyMappings {
        /// The limit of mappings.
        limit: usize,
    },
    /// There is no memory for tables and nodes (ENOMEM).
    #[error("out of memory for the mapping")]
    OutOfMemory,
    /// The space has exited (ENOMEM).
    #[error("the space has exited")]
    Exited,
}

impl MapError {
    /// Returns Linux's error number.
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

/// The result of one attempt to map somewhere.
enum Placed {
    /// The mapping is at this range, with these flags.
    There(PageRange, MappingFlags),
    /// The design could not take what it needs for that place without waiting.
    Refused(PageRange),
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Maps something and returns its first address.
    ///
    /// Waits for other range work on the same pages. Waits for I/O only if pages are to be fetched, and then holds nothing. A
    /// page that cannot be fetched is no error. If another thread has mapped something over it meanwhile, that is left alone.
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
    /// Returns the pages that are asked for. If several things are wrong, the error is that which Linux gives. Linux checks the
    /// length, the number of mappings, the end, the address and the existing mappings, in this order, and all else after them.
    fn asked(&self, map: &TreeState, placement: Placement, length: u64) -> Result<PageRange, MapError> {
        let (at, is_placed) = match placement {
            Placement::Anywhere | Placement::Hint(_) => (VirtAddr::default(), false),
            Placement::Fixed(at) | Placement::FixedNoReplace(at) => (at, true),
        };
        let range = PageRange::from_bytes(at.page().address(), length)?;
        self.may_map_more(map)?;
        let space = self.whole();
        let fits = if is_placed { space.covers(range) } else { range.pages() <= space.pages() };
        // An address inside the last page does not fit either: Linux counts from the address, in bytes.
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

    /// Returns the object that a new mapping shows, and the flags that follow from it. Registers the space with the
    /// file, if there is one. Not inlined: the stack has no room for this and the publication.
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
        // The file learns which pages the mapping shows, and where, when that is known: see `publish_new`.
        file.register(self.id, || handle.as_mapped_by(), &Hull::EMPTY)?;
        Ok((Backing::File { file, first }, sharing, flags))
    }

    /// Maps `mapping` at `hint` if the hint is free, otherwise where there is room.
    fn map_anywhere(
        &self,
        hint: Option<PageRange>,
        mapping: Mapping<H>,
    ) -> Result<(PageRange, MappingFlags), MapError> {
        let (mut mapping, mut refused) = (Some(mapping), None);
        loop {
            match self.map_somewhere(hint, refused, &mut mapping)? {
                Placed::There(range, flags) => return Ok((range, flags)),
                // The attempt has let go of all it held. The next one takes the locks that this place needs.
                Placed::Refused(place) => refused = Some(place),
            }
        }
    }

    /// Makes one attempt of [`Space::map_anywhere`]. `refused` is the place that the design could not take in the last attempt.
    /// The call is too large to be moved, so that it ends in this function.
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
        // The place was a hole. Page work from before found nothing there, so there is nothing to sweep.
        let mapping = Mapping { range, ..mapping.take().expect("it is mapped once") };
        call.map_hole(lock, mapping).map(|flags| Placed::There(range, flags))
    }

    /// Chooses `at` if it is free, no part of it is claimed and it is not the first page. Otherwise chooses as
    /// [`Space::free_place`].
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

    /// Chooses the highest free place of which no part is claimed. The first page stays free, so that null is never mapped.
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

    /// Maps over existing mappings: publishes the new mapping as busy, then sweeps. Page work waits for a busy mapping, so that
    /// no page faulted into the new mapping is swept away.
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
        // Page work waits until the mapping is settled. To settle takes no memory.
        let busy = if mutant!("fixed_without_busy") { MappingFlags::empty() } else { MappingFlags::MOVING };
        mapping.flags |= busy;
        let protection = mapping.protection;
        let lock = call.publish_new(lock, (&mut mapping, Origin::Fresh), Joins::BOTH)?;
        let flags = mapping.flags;
        drop(lock);
        // This comes before the host gives the new rights, which must never apply to the pages of the old mapping.
        call.sweep_away(range, Some(range));
        let followed = self.table.follow(range, Some(protection));
        if followed.is_ok() {
            call.settle(range, Joins { inside: true, ..Joins::BOTH });
        } else {
            // The old mapping is gone, as on Linux after so late a failure. Without memory to publish a hole, the mapping left
            // here acts as one when the range is released.
            let lock = call.lock();
            let _ = call.publish(lock, range, |_| None);
            self.follow_back(call.taken.over(range), range);
        }
        followed.map(|()| (range, flags)).map_err(MapError::from)
    }
}

impl<'a, H: Host, D: LockingDesign> RangeChange<'a, H, D> {
    /// Publishes `mapping` where nothing is mapped, after the host has followed; then releases the range. Returns the mapping's
    /// flags.
    fn map_hole(&mut self, lock: TreeLock<'a>, mut mapping: Mapping<H>) -> Result<MappingFlags, MapError> {
        let lock = self.publish_followed(lock, (&mut mapping, Origin::Fresh), Joins::BOTH)?;
        self.release_locked(lock);
        Ok(mapping.flags)
    }
}

/// Checks that nothing is mapped in `range`.
fn refuse_existing<H: Host, D: LockingDesign>(
    view: View<'_, Vma<H, D>>,
    range: PageRange,
) -> Result<(), MapError> {
    match view.from(range.start()).next().map(Ranged::range).filter(|existing| existing.overlaps(range)) {
        Some(existing) => Err(MapError::Exists { range, existing }),
        None => Ok(()),
    }
}
