//! mremap: longer or shorter in place, or somewhere else.

use super::moving::{Both, Part};
use super::range_work::{Joins, Taken, TreeLock, Unpublished};
use super::{AddressSpace, LimitError, Space};
use crate::address::{PAGE_SHIFT, PageNumber, PageRange, RangeError, VirtAddr};
use crate::design::{Call, LockingDesign};
use crate::errno;
use crate::host::{Host, OutOfMemory};
use crate::protection::Sharing;
use crate::sync::{Choice, Retired};
use crate::vma::tree::Ranged;
use crate::vma::{Backing, Flags, Mapping, Vma};
use alloc::vec::Vec;

bitflags::bitflags! {
    /// How memory may move.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct RemapFlags: u8 {
        /// To another place, if need be (MREMAP_MAYMOVE).
        const MAY_MOVE = 1 << 0;
        /// Just to [`RemapRequest::new`]; what is mapped there goes (MREMAP_FIXED). Needs `MAY_MOVE`.
        const FIXED = 1 << 1;
        /// The old place stays mapped, without its pages (MREMAP_DONTUNMAP). Needs `MAY_MOVE`, and as many bytes as before.
        const DONT_UNMAP = 1 << 2;
    }
}

/// What becomes of some memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemapRequest {
    /// Where it is.
    pub old: VirtAddr,
    /// How many bytes, rounded up to whole pages. None: a shared mapping is mapped once more.
    pub old_length: u64,
    /// How many it becomes, rounded up.
    pub new_length: u64,
    /// How it may move.
    pub flags: RemapFlags,
    /// With `FIXED`, where it goes. With `DONT_UNMAP` alone, where it goes if that is free.
    pub new: VirtAddr,
}

impl RemapRequest {
    /// Other bytes at the same place, or where there is room.
    pub fn resize(old: VirtAddr, old_length: u64, new_length: u64) -> Self {
        let new = VirtAddr::default();
        Self { old, old_length, new_length, flags: RemapFlags::MAY_MOVE, new }
    }

    /// `length` bytes from `old` to `new`.
    pub fn to(old: VirtAddr, length: u64, new: VirtAddr) -> Self {
        let flags = RemapFlags::MAY_MOVE | RemapFlags::FIXED;
        Self { old, old_length: length, new_length: length, flags, new }
    }
}

/// Why memory was not remapped. Unless a variant says more, the space is as before; but with `FIXED`, what was at the new
/// place, and what was to be cut off, may be gone, and of several mappings those below the one in the way have moved, as on
/// Linux. After `OutOfMemory` a mapping may stay split, as on Linux; and where there was no memory even to take back what
/// had been done, the new place stays in the listing, a hole to every access, until a call covers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemapError {
    /// An address is wrong, a length is zero or too long (EINVAL).
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Flags that do not go together (EINVAL).
    #[error("{flags:?} do not go together, or not with {old_length} bytes that become {new_length}")]
    Flags {
        /// What was asked for.
        flags: RemapFlags,
        /// The old length.
        old_length: u64,
        /// The new one.
        new_length: u64,
    },
    /// The new place lies outside of the address space, or the length is more than all of it (EINVAL).
    #[error("{length} bytes at {address} do not fit into the address space, which ends at {end}")]
    OutOfBounds {
        /// Where.
        address: VirtAddr,
        /// How many bytes.
        length: u64,
        /// The first address that cannot be mapped.
        end: VirtAddr,
    },
    /// The new place overlaps the old one (EINVAL).
    #[error("the new place {new} overlaps the old one {old}")]
    Overlap {
        /// The old place.
        old: VirtAddr,
        /// The new one.
        new: VirtAddr,
    },
    /// Old length zero, and the mapping is not shared (EINVAL).
    #[error("the mapping at {address} is private: there is nothing to map a second time")]
    Private {
        /// The address.
        address: VirtAddr,
    },
    /// It would reach past the last page a file can have (EINVAL).
    #[error("the mapping would reach past page {first} + {pages} of a file")]
    FileOffset {
        /// The page of the file that it begins with.
        first: u64,
        /// How many.
        pages: u64,
    },
    /// Nothing is mapped at the old address (EFAULT).
    #[error("nothing is mapped at {address}")]
    Hole {
        /// The address.
        address: VirtAddr,
    },
    /// The old range is more than one mapping, and that can be moved only as it is, to a fixed place (EFAULT).
    #[error("the mapping at {address} ends at {end}, before the end of what was to be remapped")]
    ManyMappings {
        /// The old address.
        address: VirtAddr,
        /// Where the mapping ends.
        end: VirtAddr,
    },
    /// Something sealed (EPERM).
    #[error("what is mapped at {address} is sealed")]
    Sealed {
        /// The first address that is.
        address: VirtAddr,
    },
    /// Something is in the way, and it may not move (ENOMEM).
    #[error("no room for {pages} pages at {address}, and no leave to move")]
    NoRoom {
        /// The old address.
        address: VirtAddr,
        /// How many pages it was to become.
        pages: u64,
    },
    /// No free place of that size (ENOMEM).
    #[error("no free place for {pages} pages")]
    NoSpace {
        /// How many pages were asked for.
        pages: u64,
    },
    /// A limit of the space (ENOMEM; EAGAIN for locked memory).
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The space has its limit of mappings, or so few less that moving might pass it (ENOMEM).
    #[error("the space has, or nearly has, its limit of {limit} mappings")]
    TooManyMappings {
        /// The limit.
        limit: usize,
    },
    /// No memory for tables and nodes (ENOMEM).
    #[error("out of memory to remap")]
    OutOfMemory,
}

impl RemapError {
    /// Linux's number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Range(_)
            | Self::Flags { .. }
            | Self::OutOfBounds { .. }
            | Self::Overlap { .. }
            | Self::Private { .. }
            | Self::FileOffset { .. } => errno::EINVAL,
            Self::Hole { .. } | Self::ManyMappings { .. } => errno::EFAULT,
            Self::Sealed { .. } => errno::EPERM,
            Self::Limit(error) => error.errno(),
            Self::NoRoom { .. } | Self::NoSpace { .. } | Self::TooManyMappings { .. } | Self::OutOfMemory => {
                errno::ENOMEM
            }
        }
    }
}

impl From<OutOfMemory> for RemapError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// mremap: makes memory longer or shorter, in place or elsewhere, or moves it. Returns where it is.
    ///
    /// Pages move by their entries: nothing is copied, read or faulted in. When this returns, no access reaches them at the
    /// old place, and none has met a hole at the new one that was not there before. Several mappings, with holes between
    /// them, can be moved together only to a fixed place and as long as they are. Waits for other range work on either place
    /// and for faults on them that are at work, for no I/O.
    ///
    /// Differs from Linux: locked memory that becomes longer is not fetched; with `DONT_UNMAP` a part of a locked mapping
    /// loses its lock, where Linux takes it from the whole mapping.
    ///
    /// # Errors
    /// [`RemapError`].
    pub fn remap(&self, request: RemapRequest) -> Result<VirtAddr, RemapError> {
        self.0.remap(&Plan::new(&request, self.0.whole())?)
    }
}

/// A request whose numbers make sense.
#[derive(Clone, Copy, Debug)]
struct Plan {
    start: PageNumber,
    old_pages: u64,
    new_pages: u64,
    flags: RemapFlags,
    /// The new place, fixed or only preferred.
    to: Option<PageRange>,
}

impl Plan {
    fn new(request: &RemapRequest, whole: PageRange) -> Result<Self, RemapError> {
        let RemapRequest { old, old_length, new_length, flags, new } = *request;
        let nonsense = RemapError::Flags { flags, old_length, new_length };
        let page = PageRange::from_bytes(old, 1)?;
        let old_pages = match old_length {
            0 => 0,
            _ => PageRange::from_bytes(VirtAddr::default(), old_length)?.pages(),
        };
        let new_pages = PageRange::from_bytes(VirtAddr::default(), new_length)?.pages();
        let out =
            |address| RemapError::OutOfBounds { address, length: new_length, end: whole.end().address() };
        if new_pages > whole.pages() {
            return Err(out(old));
        }
        let placed = flags.intersects(RemapFlags::FIXED | RemapFlags::DONT_UNMAP);
        if placed && !flags.contains(RemapFlags::MAY_MOVE)
            || flags.contains(RemapFlags::DONT_UNMAP) && old_pages != new_pages
        {
            return Err(nonsense);
        }
        let to = match placed {
            true => Some(PageRange::from_bytes(new, new_length)?),
            false => None,
        };
        if let Some(to) = to {
            if !whole.covers(to) {
                return Err(out(new));
            }
            let end = page.start().get().saturating_add(old_pages);
            if end > to.start().get() && to.end() > page.start() {
                return Err(RemapError::Overlap { old, new });
            }
        }
        Ok(Self { start: page.start(), old_pages, new_pages, flags, to })
    }

    fn has(&self, flags: RemapFlags) -> bool {
        self.flags.contains(flags)
    }

    /// The place where it has to go.
    fn fixed(&self) -> Option<PageRange> {
        self.to.filter(|_| self.has(RemapFlags::FIXED))
    }

    fn address(&self) -> VirtAddr {
        self.start.address()
    }

    /// `pages` pages at the old place, as far as there are such.
    fn here(&self, pages: u64, whole: PageRange) -> Option<PageRange> {
        let end = self.start.get().saturating_add(pages).min(whole.end().get());
        PageRange::new(self.start, PageNumber::new(end))
    }

    /// What is cut off, if it becomes shorter.
    fn tail(&self, whole: PageRange) -> Result<Option<PageRange>, RemapError> {
        if self.old_pages <= self.new_pages {
            return Ok(None);
        }
        let first = PageNumber::new(self.start.get().saturating_add(self.new_pages));
        let tail = PageRange::with_pages(first, self.old_pages - self.new_pages)?;
        match whole.covers(tail) {
            true => Ok(Some(tail)),
            false => Err(RemapError::OutOfBounds {
                address: self.address(),
                length: self.old_pages << PAGE_SHIFT,
                end: whole.end().address(),
            }),
        }
    }

    /// Whether the mapping at the old address can be remapped so.
    fn check<H: Host, D: LockingDesign>(&self, vma: &Vma<H, D>) -> Result<(), RemapError> {
        let mapping = vma.mapping();
        if vma.flags().contains(Flags::SEALED) {
            return Err(RemapError::Sealed { address: vma.range().start().address() });
        }
        if self.old_pages == 0 && mapping.sharing != Sharing::Shared {
            return Err(RemapError::Private { address: self.address() });
        }
        let inside = vma.range().end().get() - self.start.get();
        let must_be_inside = match self.old_pages.cmp(&self.new_pages) {
            core::cmp::Ordering::Less => self.old_pages,
            core::cmp::Ordering::Greater if self.has(RemapFlags::FIXED) => self.new_pages,
            core::cmp::Ordering::Equal if self.has(RemapFlags::DONT_UNMAP) && self.fixed().is_none() => {
                self.old_pages
            }
            _ => 0,
        };
        if must_be_inside > inside {
            let end = vma.range().end().address();
            return Err(RemapError::ManyMappings { address: self.address(), end });
        }
        match mapping.file_page(self.start) {
            Some((_, first))
                if first.checked_add(self.new_pages).is_none_or(|end| end > u64::MAX >> PAGE_SHIFT) =>
            {
                Err(RemapError::FileOffset { first, pages: self.new_pages })
            }
            _ => Ok(()),
        }
    }
}

/// How many mappings a call may come to make before it has cut any off: Linux refuses that much below the limit.
const HEADROOM: usize = 3;

impl<H: Host, D: LockingDesign> Space<H, D> {
    fn remap(&self, plan: &Plan) -> Result<VirtAddr, RemapError> {
        let whole = self.whole();
        if !whole.contains(plan.start) {
            return Err(RemapError::Hole { address: plan.address() });
        }
        let mut work = D::range_work(&self.lock, &self.engine, &self.tree, Call::Remap, whole);
        self.engine.assert_may_sleep("the tree lock");
        let here = plan.here(plan.old_pages.max(1), whole);
        for range in here.into_iter().chain(plan.fixed()) {
            self.exclude(&mut work, range, |_| true);
        }
        let mut retired = Vec::new();
        let result = match plan.fixed() {
            Some(target) => self.remap_fixed(&mut work, plan, target, &mut retired),
            None => self.remap_near(&mut work, plan, &mut retired),
        };
        drop(work);
        self.engine.retire(retired);
        result.map(PageNumber::address)
    }

    pub(super) fn unpublished(&self, error: Unpublished) -> RemapError {
        match error {
            Unpublished::OutOfMemory => RemapError::OutOfMemory,
            Unpublished::TooMany => {
                let limit = self.mapping_limit(&self.map.lock_by(&*self.engine));
                RemapError::TooManyMappings { limit }
            }
        }
    }

    pub(super) fn refuse_sealed(&self, lock: &TreeLock<'_>, range: PageRange) -> Result<(), RemapError> {
        match self.first_sealed(lock, range) {
            Some(sealed) => Err(RemapError::Sealed { address: sealed.address() }),
            None => Ok(()),
        }
    }

    /// Whether `more` mappings besides those that a move may come to make are within the limit.
    fn check_count(&self, lock: &TreeLock<'_>, more: usize) -> Result<(), RemapError> {
        let limit = self.mapping_limit(lock);
        match self.tree.view_locked(&lock.writer).len() + more >= limit.saturating_sub(HEADROOM) {
            true => Err(RemapError::TooManyMappings { limit }),
            false => Ok(()),
        }
    }

    /// Everything that can be said before anything is done.
    fn examine<'v>(&'v self, lock: &'v TreeLock<'_>, plan: &Plan) -> Result<&'v Vma<H, D>, RemapError> {
        if plan.to.is_some() {
            self.check_count(lock, 2)?;
        }
        let view = self.tree.view_locked(&lock.writer);
        let vma = view.find(plan.start).filter(|vma| !vma.is_busy());
        let vma = vma.ok_or(RemapError::Hole { address: plan.address() })?;
        plan.check(vma)?;
        if let Some(more) = plan.new_pages.checked_sub(plan.old_pages).filter(|more| *more > 0) {
            lock.check_locked(vma.flags(), more)?;
            lock.check_room(vma.mapping(), more)?;
        }
        Ok(vma)
    }

    /// To a place that is given.
    fn remap_fixed<'s>(
        &'s self,
        work: &mut D::Range<'s, H>,
        plan: &Plan,
        target: PageRange,
        retired: &mut Vec<Retired>,
    ) -> Result<PageNumber, RemapError> {
        let whole = self.whole();
        let source = plan.here(plan.old_pages.max(1), whole).unwrap_or(target);
        let (mut both, lock) = if source.overlaps(target) {
            // Mapped a second time, over its own end.
            let (source, lock) = self.map.take(source.hull(target), &*self.engine);
            (Both { source, target: None }, lock)
        } else {
            let ((source, target), lock) = self.map.take_both(source, target, &*self.engine);
            (Both { source, target: Some(target) }, lock)
        };
        self.examine(&lock, plan)?;
        let tail = plan.tail(whole)?;
        drop(lock);
        let result = if plan.old_pages == 0 {
            self.map_again(work, &mut both, plan, target, retired)
        } else if plan.old_pages == plan.new_pages {
            self.move_all(work, &mut both, plan, target, retired)
        } else {
            self.move_resized(work, &mut both, plan, (target, tail), retired)
        };
        result.map(|()| target.start())
    }

    /// Part by part, each mapping on its own, as Linux does it: what is in the way of one does not bring the others back.
    fn move_all<'s>(
        &'s self,
        work: &mut D::Range<'s, H>,
        both: &mut Both<'s, H>,
        plan: &Plan,
        target: PageRange,
        retired: &mut Vec<Retired>,
    ) -> Result<(), RemapError> {
        let mut rest = plan.here(plan.old_pages, self.whole());
        while let Some(range) = rest {
            let lock = both.source.lock();
            let next = self.tree.view_locked(&lock.writer).from(range.start()).next();
            let Some((vma, source)) = next.and_then(|vma| Some((vma, vma.range().intersection(range)?)))
            else {
                break;
            };
            if vma.flags().contains(Flags::SEALED) {
                return Err(RemapError::Sealed { address: vma.range().start().address() });
            }
            self.check_count(&lock, 0)?;
            drop(lock);
            let start = target.start().get() + (source.start().get() - plan.start.get());
            let target = PageRange::with_pages(PageNumber::new(start), source.pages())?;
            let part = Part { source, target, keeps: plan.has(RemapFlags::DONT_UNMAP) };
            self.move_part(work, both, part, retired)?;
            rest = PageRange::new(source.end(), range.end());
        }
        Ok(())
    }

    /// One mapping's, longer or shorter at the new place.
    fn move_resized<'s>(
        &'s self,
        work: &mut D::Range<'s, H>,
        both: &mut Both<'s, H>,
        plan: &Plan,
        (target, tail): (PageRange, Option<PageRange>),
        retired: &mut Vec<Retired>,
    ) -> Result<(), RemapError> {
        self.vacate(work, both, target, retired)?;
        if let Some(tail) = tail {
            let cut = self.cut_off(work, &mut both.source, tail, retired);
            cut.inspect_err(|_| self.give_up_move(work, both, None, target, retired))?;
        }
        let source = PageRange::with_pages(plan.start, plan.old_pages.min(plan.new_pages))?;
        self.check_count(&both.source.lock(), 0)
            .inspect_err(|_| self.give_up_move(work, both, None, target, retired))?;
        self.move_part(work, both, Part { source, target, keeps: false }, retired)
    }

    fn cut_off<'s>(
        &'s self,
        work: &mut D::Range<'s, H>,
        taken: &mut Taken<'s, H>,
        tail: PageRange,
        retired: &mut Vec<Retired>,
    ) -> Result<(), RemapError> {
        let lock = taken.lock();
        self.refuse_sealed(&lock, tail)?;
        self.unmap_taken(work, taken, lock, tail, retired).map_err(|error| self.unpublished(error))
    }

    /// Old length zero: what a shared mapping shows, at another place too.
    fn map_again<'s>(
        &'s self,
        work: &mut D::Range<'s, H>,
        both: &mut Both<'s, H>,
        plan: &Plan,
        target: PageRange,
        retired: &mut Vec<Retired>,
    ) -> Result<(), RemapError> {
        self.vacate(work, both, target, retired)?;
        let lock = both.target().lock();
        // It may have gone with what was at the target.
        let vma = self.tree.view_locked(&lock.writer).find(plan.start).filter(|vma| !vma.is_busy());
        let again = vma.map(|vma| {
            let mapping = vma.glance();
            let backing = match mapping.file_page(plan.start) {
                Some((file, first)) => Backing::File { file: file.clone(), first },
                None => mapping.backing.clone(),
            };
            Mapping { range: target, backing, ..mapping }
        });
        let mapped = match again {
            Some(again) => {
                let more = self.extend(work, both.target(), lock, again, (Joins::BothSides, &mut *retired));
                more.map_err(|error| self.unpublished(error))
            }
            None => {
                drop(lock);
                Err(RemapError::Hole { address: plan.address() })
            }
        };
        mapped.inspect_err(|_| self.give_up_move(work, both, None, target, retired))
    }

    /// In place, or where there is room.
    fn remap_near<'s>(
        &'s self,
        work: &mut D::Range<'s, H>,
        plan: &Plan,
        retired: &mut Vec<Retired>,
    ) -> Result<PageNumber, RemapError> {
        let whole = self.whole();
        let here = plan.here(plan.old_pages.max(plan.new_pages), whole).unwrap_or(whole);
        let mut claim = here;
        loop {
            let (mut source, mut lock) = self.map.take(claim, &*self.engine);
            let vma = self.examine(&lock, plan)?;
            if plan.old_pages >= plan.new_pages && !plan.has(RemapFlags::DONT_UNMAP) {
                let tail = plan.tail(whole)?;
                drop(lock);
                return match tail {
                    Some(tail) => self.cut_off(work, &mut source, tail, retired).map(|()| plan.start),
                    None => Ok(plan.start),
                };
            }
            if let Some(more) = self.room_behind(&lock, plan, vma) {
                let published = self.extend(work, &source, lock, more, (Joins::BothSides, retired));
                published.map_err(|error| self.unpublished(error))?;
                return Ok(plan.start);
            }
            if !plan.has(RemapFlags::MAY_MOVE) {
                return Err(RemapError::NoRoom { address: plan.address(), pages: plan.new_pages });
            }
            self.check_count(&lock, 0)?;
            let old = plan.here(plan.old_pages.max(1), whole).unwrap_or(here);
            let is_all = claim == whole;
            if !is_all {
                source.narrow(old, &mut lock);
            }
            let choice = match is_all {
                // All other claims are behind this one.
                true => self.free_place_at(&lock, &Default::default(), plan.to, plan.new_pages),
                false => self.free_place_at(&lock, lock.claims(), plan.to, plan.new_pages),
            };
            let target = match choice {
                Choice::Range(target) => target,
                Choice::Claimed if !is_all => {
                    drop(lock);
                    claim = whole;
                    continue;
                }
                _ => return Err(RemapError::NoSpace { pages: plan.new_pages }),
            };
            let mut both = Both { source, target: None };
            if !is_all {
                both.target = Some(self.map.take_free(target, &*self.engine, &mut lock)?);
            }
            drop(lock);
            if plan.old_pages == 0 {
                self.map_again(work, &mut both, plan, target, retired)?;
            } else {
                let keeps = plan.has(RemapFlags::DONT_UNMAP);
                self.move_part(work, &mut both, Part { source: old, target, keeps }, retired)?;
            }
            return Ok(target.start());
        }
    }

    /// What comes behind the mapping, if the old range ends where it does and the new one fits.
    fn room_behind(&self, lock: &TreeLock<'_>, plan: &Plan, vma: &Vma<H, D>) -> Option<Mapping<H>> {
        let end = vma.range().end();
        if plan.old_pages == 0 || plan.start.checked_add(plan.old_pages) != Some(end) {
            return None;
        }
        let range = PageRange::new(end, plan.start.checked_add(plan.new_pages)?)?;
        let next = self.tree.view_locked(&lock.writer).from(end).next();
        let is_free = next.is_none_or(|next| next.range().start() >= range.end());
        (is_free && self.whole().covers(range)).then(|| extension(vma, range))
    }

    /// Publishes `mapping` where nothing is, or BUSY.
    pub(super) fn extend<'s>(
        &'s self,
        work: &mut D::Range<'s, H>,
        taken: &Taken<'_, H>,
        lock: TreeLock<'s>,
        mapping: Mapping<H>,
        joins: (Joins, &mut Vec<Retired>),
    ) -> Result<(), Unpublished> {
        let range = mapping.range;
        let lock = self.follow(taken, lock, range, Some(mapping.protection))?;
        let published = self.publish_joining(work, lock, range, |_| None, Some(mapping), joins);
        published.map(drop).inspect_err(|_| self.follow_back(taken, range))
    }
}

/// What `vma` is in a range beside it that has no pages yet.
pub(super) fn extension<H: Host, D: LockingDesign>(vma: &Vma<H, D>, range: PageRange) -> Mapping<H> {
    let mapping = vma.mapping();
    let backing = match &mapping.backing {
        Backing::File { file, first } => {
            let behind = range.start().get().wrapping_sub(mapping.range.start().get());
            Backing::File { file: file.clone(), first: first.wrapping_add(behind) }
        }
        other => other.clone(),
    };
    Mapping { range, backing, anon: None, flags: vma.flags(), ..mapping.clone() }
}
