//! mprotect: changes the accesses that mappings allow.

use crate::address::{PageNumber, PageRange, RangeError, VirtAddr};
use crate::design::{Call, LockingDesign};
use crate::errno;
use crate::host::{Entry, Host, PageTable};
use crate::protection::{Protection, Sharing};
use crate::space::calls::populate::Goal;
use crate::space::change::concurrent::Exclusion;
use crate::space::change::publish::Unpublished;
use crate::space::change::range_change::RangeChange;
use crate::space::{AddressSpace, LimitError, Space};
use crate::vma::tree::{Ranged, View};
use crate::vma::{Mapping, Vma, edit};
use core::cell::Cell;

/// The reason why the protection was not changed, or not everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtectError {
    /// The address or the length is wrong (EINVAL).
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Nothing is mapped at `address`. Everything below it has been changed, as on Linux (ENOMEM).
    #[error("nothing is mapped at {address}, inside the {range} to protect; the part below it has changed")]
    Hole {
        /// The range asked for.
        range: PageRange,
        /// The first address of the hole.
        address: VirtAddr,
    },
    /// The mapping at `address` can never be writable. Everything below it has been changed (EACCES). This holds for a shared
    /// mapping of a file that was opened only for reading, by itself or by the handle. It holds for all shared mappings of
    /// files on a host without writable ones, and for private mappings of foreign frames.
    #[error("the mapping at {address} cannot become writable; the part below it has changed")]
    SharedWrite {
        /// The first address of the mapping, or of the range in it.
        address: VirtAddr,
    },
    /// The mapping at `address` is sealed. Everything below it has been changed (EPERM).
    #[error("the mapping at {address} is sealed; the part below it has changed")]
    Sealed {
        /// The first address that is sealed.
        address: VirtAddr,
    },
    /// To split a mapping would exceed the limit of mappings. Everything below that mapping has been changed (ENOMEM).
    #[error("protecting {range} would split a mapping, and the space has its limit of {limit}")]
    TooManyMappings {
        /// The range asked for.
        range: PageRange,
        /// The limit of mappings.
        limit: usize,
    },
    /// Private memory that becomes writable would exceed the limit of data. Everything below it has been changed (ENOMEM).
    #[error("{error}; the part below {address} has changed")]
    Limit {
        /// The address where that memory begins.
        address: VirtAddr,
        /// The limit that would be exceeded.
        error: LimitError,
    },
    /// The mapping does not grow down, as [`AddressSpace::protect_down`] demands (EINVAL).
    #[error("the mapping at {address} does not grow down")]
    NotGrowing {
        /// The first address of the mapping.
        address: VirtAddr,
    },
    /// There is no memory for nodes (ENOMEM).
    #[error("out of memory to protect {range}")]
    OutOfMemory {
        /// The range asked for.
        range: PageRange,
    },
}

impl ProtectError {
    /// Returns Linux's error number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Range(error) => error.errno(),
            Self::NotGrowing { .. } => errno::EINVAL,
            Self::SharedWrite { .. } => errno::EACCES,
            Self::Sealed { .. } => errno::EPERM,
            Self::Hole { .. }
            | Self::Limit { .. }
            | Self::TooManyMappings { .. }
            | Self::OutOfMemory { .. } => errno::ENOMEM,
        }
    }
}

/// Returns the rights that an entry may have under `protection`. The write right is not among them: only a fault gives it,
/// since a fault knows whether the page belongs to this mapping alone.
pub(in crate::space) fn entry_rights(protection: Protection) -> u64 {
    let mut rights = 0;
    if protection.intersects(Protection::READ | Protection::WRITE) {
        rights |= Entry::READ;
    }
    if protection.contains(Protection::EXECUTE) {
        rights |= Entry::EXECUTE;
    }
    rights
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Changes the accesses that `length` bytes at `address` allow (mprotect). When this returns, no access that is now
    /// forbidden succeeds. Waits as [`AddressSpace::unmap`].
    ///
    /// PROT_GROWSDOWN is [`AddressSpace::protect_down`]. Nothing grows up, so PROT_GROWSUP, which is then EINVAL, cannot be
    /// expressed. The caller refuses bits that [`Protection`] does not have.
    ///
    /// # Errors
    /// [`ProtectError`]. After `Hole`, `SharedWrite`, `Sealed`, `Limit` and `TooManyMappings` the part below has changed, as on
    /// Linux. Unlike here, Linux also leaves a mapping split if there was room for only one of two cuts.
    pub fn protect(
        &self,
        address: VirtAddr,
        length: u64,
        protection: Protection,
    ) -> Result<(), ProtectError> {
        let range = match PageRange::from_bytes(address, length) {
            Err(RangeError::ZeroLength { .. }) => return Ok(()),
            range => range?,
        };
        self.protect_range(range, protection, |_| true).unwrap_or(Ok(()))
    }

    /// Changes the protection of `range`. Returns `None` if `still`, called when the range is taken, returned false.
    pub(in crate::space) fn protect_range(
        &self,
        range: PageRange,
        protection: Protection,
        still: impl Fn(View<'_, Vma<H, D>>) -> bool,
    ) -> Option<Result<(), ProtectError>> {
        let mut part = range;
        loop {
            let none = ProtectError::Hole { range: part, address: part.start().address() };
            let Some(inside) = part.intersection(self.0.whole()) else { return Some(Err(none)) };
            let mut fetched = None;
            let is_still = |view: View<'_, Vma<H, D>>| part != range || still(view);
            let protected = self.0.protect(part, inside, protection, is_still, &mut fetched).transpose();
            // A page that cannot be fetched is no error of this call.
            let rest = fetched.and_then(|fetched| {
                let _ = self.populate(fetched, Goal::LockAll);
                PageRange::new(fetched.end(), part.end())
            });
            match (protected, rest) {
                (Some(Ok(())), Some(rest)) => part = rest,
                (protected, _) => return protected,
            }
        }
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Makes one step of [`AddressSpace::protect_range`]. Sets `fetched` to the first locked private memory that has become
    /// writable, and changes nothing behind it. Its pages are fetched first, as on Linux, where the order shows in the mappings
    /// that merge.
    fn protect(
        &self,
        range: PageRange,
        inside: PageRange,
        protection: Protection,
        still: impl Fn(View<'_, Vma<H, D>>) -> bool,
        fetched: &mut Option<PageRange>,
    ) -> Result<Option<()>, ProtectError> {
        let mut call = self.change_excluding(Call::Protect, inside);
        let map = call.take_concurrent(inside, |_, _, _| {});
        if !still(self.view_of(&map)) {
            return Ok(None);
        }
        let Extent { end, error, fetched: wanted } = self.extent(&map, range, inside.start(), protection);
        if let Some(prefix) = PageRange::new(inside.start(), end) {
            let each = |mapping| Some(edit::protected(mapping, protection));
            call.publish_concurrent(map, (prefix, Some(protection)), each).map_err(|error| match error {
                Unpublished::OutOfMemory => ProtectError::OutOfMemory { range },
                Unpublished::TooMany { limit } => ProtectError::TooManyMappings { range, limit },
            })?;
            call.sweep_rights(prefix, protection);
            *fetched = wanted;
        }
        error.map_or(Ok(Some(())), Err)
    }

    /// Finds how much of `range`, from `start` on, can be changed, by all checks that can be made before anything is changed.
    #[inline(never)]
    fn extent(
        &self,
        still: &Exclusion<'_, H>,
        range: PageRange,
        start: PageNumber,
        protection: Protection,
    ) -> Extent {
        let view = self.view_of(still);
        let mut vmas = view.from(start).map(|vma| (vma.range(), may_become_writable(vma.mapping())));
        let (mut end, mut error) = protectable(range, protection, &mut vmas);
        if let Some(sealed) = self.first_sealed(view, range).filter(|sealed| *sealed < end) {
            (end, error) = (sealed, Some(ProtectError::Sealed { address: sealed.address() }));
        }
        if let Some(prefix) = PageRange::new(start, end)
            && let Some(map) = still.limited()
            && let Err((page, limit)) = self.protectable_data(map, view, prefix, protection)
        {
            (end, error) = (page, Some(ProtectError::Limit { address: page.address(), error: limit }));
        }
        let fetched = PageRange::new(start, end).and_then(|part| becomes_writable(view, part, protection));
        if let Some(fetched) = fetched.filter(|fetched| fetched.end() < end) {
            (end, error) = (fetched.end(), None);
        }
        let each = |mapping| Some(edit::protected(mapping, protection));
        if let Some(prefix) = PageRange::new(start, end)
            && let Some(map) = still.limited()
            && let Err(page) = self.splittable(map, view, prefix, each)
        {
            let limit = self.mapping_limit(map);
            (end, error) = (page, Some(ProtectError::TooManyMappings { range, limit }));
        }
        Extent { end, error, fetched }
    }
}

/// The part of a range that a call changes.
struct Extent {
    /// The end of the part: everything below is changed.
    end: PageNumber,
    /// The error that stops the call at `end`, if one does.
    error: Option<ProtectError>,
    /// The first locked private memory that becomes writable.
    fetched: Option<PageRange>,
}

impl<H: Host, D: LockingDesign> RangeChange<'_, H, D> {
    fn sweep_rights(&mut self, range: PageRange, protection: Protection) {
        let rights = entry_rights(protection);
        let keep_write = if protection.contains(Protection::WRITE) { Entry::WRITE } else { 0 };
        let change = |old: Entry| {
            let write = old.bits() & keep_write;
            old.without(Entry::READ | Entry::WRITE | Entry::EXECUTE).with(rights | write)
        };
        // An old translation of an absent page may give more rights than its entry does.
        let absent = Cell::new(None);
        let step = |page, old: Entry| {
            if old.has(Entry::MAPPED) {
                return change(old);
            }
            if old.is_absent() {
                note(&absent, page);
                return if mutant!("protect_leaves_slots") { old } else { change(old) };
            }
            old
        };
        self.sweep(range, step, |weakened, page, old, new| {
            if old.bits() & !new.bits() != 0 {
                weakened.touch(page);
            }
        });
        if let Some(pages) = absent.get() {
            self.weakened.touch_all(pages);
        }
    }
}

/// Adds `page` to the range that is invalidated.
#[cold]
fn note(pages: &Cell<Option<PageRange>>, page: PageNumber) {
    let page = PageRange::single(page);
    pages.set(Some(pages.get().map_or(page, |all| all.hull(page))));
}

/// Returns the first part of a mapping in `range` that is locked, private and not writable yet, and that `protection` makes
/// writable.
fn becomes_writable<H: Host, D: LockingDesign>(
    view: View<'_, Vma<H, D>>,
    range: PageRange,
    protection: Protection,
) -> Option<PageRange> {
    let vmas = view.from(range.start());
    let wanted = |mapping: &Mapping<H>| {
        mapping.flags.is_fetched()
            && mapping.sharing == Sharing::Private
            && protection.contains(Protection::WRITE)
            && !mapping.protection.contains(Protection::WRITE)
    };
    let mut vmas = vmas.take_while(|vma| vma.range().start() < range.end());
    vmas.find(|vma| wanted(vma.mapping()))?.range().intersection(range)
}

/// Returns whether the mapping can be made writable.
fn may_become_writable<H: Host>(mapping: &Mapping<H>) -> bool {
    if mapping.is_foreign() {
        return mapping.sharing == Sharing::Shared;
    }
    mapping.sharing == Sharing::Private || mapping.reaches_its_file() && H::Table::SHARES_WRITES
}

/// Returns how far the protection can be changed, and the error that stops the call there, if one does.
fn protectable(
    range: PageRange,
    protection: Protection,
    vmas: &mut dyn Iterator<Item = (PageRange, bool)>,
) -> (PageNumber, Option<ProtectError>) {
    let mut end = range.start();
    while end < range.end() {
        match vmas.next() {
            Some((vma, may_write)) if vma.start() <= end => {
                if !may_write && protection.contains(Protection::WRITE) {
                    return (end, Some(ProtectError::SharedWrite { address: end.address() }));
                }
                end = vma.end().min(range.end());
            }
            _ => return (end, Some(ProtectError::Hole { range, address: end.address() })),
        }
    }
    (end, None)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> PageRange {
        PageRange::new(PageNumber::new(start), PageNumber::new(end)).unwrap()
    }

    #[test]
    fn the_prefix_before_a_hole_is_changed() {
        //   asked   [2 . . . . . 8)
        //   mapped [0 . . 4)  [6 . .
        let mapped = [(range(0, 4), true), (range(6, 9), true)];
        let (end, error) = protectable(range(2, 8), Protection::READ, &mut mapped.into_iter());
        assert_eq!(end.get(), 4);
        assert!(matches!(error, Some(ProtectError::Hole { address, .. }) if address.get() == 0x4000));
    }

    #[test]
    fn a_range_that_is_all_mapped_is_changed() {
        let mapped = [(range(0, 4), true), (range(4, 9), false)];
        let (end, error) = protectable(range(2, 8), Protection::READ, &mut mapped.into_iter());
        assert_eq!((end.get(), error), (8, None));
    }
}
