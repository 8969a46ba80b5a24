//! The limits of a space (RLIMIT_AS, RLIMIT_DATA, RLIMIT_STACK, RLIMIT_MEMLOCK, vm.max_map_count), and its usage.

use super::{AddressSpace, Space, TreeState};
use crate::address::{PAGE_SHIFT, PageNumber, PageRange};
use crate::design::LockingDesign;
use crate::errno;
use crate::host::Host;
use crate::protection::{Protection, Sharing};
use crate::sync::Edited;
use crate::vma::tree::{Ranged, View};
use crate::vma::{Mapping, MappingFlags, Vma, edit};
use core::fmt;

/// The limits of a space. A child of fork inherits them. Limits of memory are in bytes, of which only whole pages count.
///
/// As on Linux, a limit is checked when a call asks for more. If a limit is lowered, existing mappings stay. While another call
/// is under way, a call may find that call's pages counted in both places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceLimits {
    /// The greatest size of all mappings together (RLIMIT_AS).
    pub address_space: u64,
    /// The greatest size of private memory that can be written and does not grow down (RLIMIT_DATA). It also limits the heap of
    /// [`AddressSpace::brk`] on its own.
    pub data: u64,
    /// The greatest size of one mapping that grows down (RLIMIT_STACK).
    pub stack: u64,
    /// The greatest size of locked memory (RLIMIT_MEMLOCK).
    pub locked: u64,
    /// The greatest number of mappings (vm.max_map_count), never more than [`Limits::mappings`](crate::Limits::mappings). As on
    /// Linux, a call that maps is refused if there are more mappings than that, and a call that splits if there are that many.
    /// So there can be one mapping more than the limit.
    pub mappings: usize,
}

impl SpaceLimits {
    /// Returns whether the number of mapped pages is unlimited.
    fn are_unlimited(&self) -> bool {
        [self.address_space, self.data] == [u64::MAX; 2]
    }
}

impl Default for SpaceLimits {
    /// Returns Linux's defaults: 65,530 mappings and 8 MiB for each that grows down. Nothing else is limited.
    fn default() -> Self {
        Self { address_space: u64::MAX, data: u64::MAX, stack: 8 << 20, locked: u64::MAX, mappings: 65_530 }
    }
}

/// The limit that a call would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The mappings of the space would exceed [`SpaceLimits::address_space`] (ENOMEM).
    #[error("{pages} more pages would pass the space's limit of {limit} bytes")]
    AddressSpace {
        /// The number of pages that the call would add.
        pages: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Private memory that can be written would exceed [`SpaceLimits::data`] (ENOMEM).
    #[error("{pages} more pages would pass the limit of {limit} bytes of private writable memory")]
    Data {
        /// The number of pages that the call would add.
        pages: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Locked memory would exceed [`SpaceLimits::locked`] (EAGAIN; ENOMEM where a call locks).
    #[error("{pages} more pages would pass the limit of {limit} bytes of locked memory")]
    Locked {
        /// The number of pages that the call would add.
        pages: u64,
        /// The limit in bytes.
        limit: u64,
    },
}

/// The space has as many mappings as its limit allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany {
    pub limit: usize,
}

impl LimitError {
    /// Returns Linux's error number, for calls that map.
    pub fn errno(&self) -> i32 {
        match self {
            Self::AddressSpace { .. } | Self::Data { .. } => errno::ENOMEM,
            Self::Locked { .. } => errno::EAGAIN,
        }
    }
}

/// The usage of a space, counted as its limits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SpaceUsage {
    /// The number of mappings.
    pub mappings: usize,
    /// The pages of all mappings.
    pub pages: u64,
    /// The pages of mappings that count as data.
    pub data: u64,
    /// The pages of mappings that are locked.
    pub locked: u64,
}

impl fmt::Display for SpaceUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mappings, pages, data, locked } = self;
        write!(f, "{mappings} mappings of {pages} pages, {data} of data, {locked} locked")
    }
}

impl SpaceUsage {
    /// Returns the usage with `pages` pages of `mapping` added, as one mapping more.
    fn and<H: Host>(self, mapping: &Mapping<H>, pages: u64) -> Self {
        let data = is_data(mapping.protection, mapping.sharing, mapping.flags);
        let locked = mapping.flags.contains(MappingFlags::LOCKED);
        Self {
            mappings: self.mappings + 1,
            pages: self.pages + pages,
            data: self.data + if data { pages } else { 0 },
            locked: self.locked + if locked { pages } else { 0 },
        }
    }

    /// Returns the usage with `mappings` added.
    pub(super) fn with<'a, H: Host>(self, mappings: impl IntoIterator<Item = &'a Mapping<H>>) -> Self {
        mappings.into_iter().fold(self, |sum, mapping| sum.and(mapping, mapping.range.pages()))
    }

    /// Checks that `pages` more pages of memory like that of `mapping` fit within `limits`.
    fn check_room<H: Host>(
        &self,
        limits: &SpaceLimits,
        mapping: &Mapping<H>,
        pages: u64,
    ) -> Result<(), LimitError> {
        let limit = limits.address_space;
        if self.pages.saturating_add(pages) > limit >> PAGE_SHIFT {
            return Err(LimitError::AddressSpace { pages, limit });
        }
        match is_data(mapping.protection, mapping.sharing, mapping.flags) {
            true => self.check_data(limits, pages),
            false => Ok(()),
        }
    }

    fn check_data(&self, limits: &SpaceLimits, pages: u64) -> Result<(), LimitError> {
        let limit = limits.data;
        match self.data.saturating_add(pages) > limit >> PAGE_SHIFT {
            true => Err(LimitError::Data { pages, limit }),
            false => Ok(()),
        }
    }

    /// Returns the change of usage when mappings of usage `self` take the place of those of usage `gone`. Modulo 2^64.
    pub(super) fn change_from(self, gone: Self) -> [u64; 4] {
        [
            (self.mappings as u64).wrapping_sub(gone.mappings as u64),
            self.pages.wrapping_sub(gone.pages),
            self.data.wrapping_sub(gone.data),
            self.locked.wrapping_sub(gone.locked),
        ]
    }

    /// Applies a change that `change_from` returned.
    pub(super) fn change_by(&mut self, [mappings, pages, data, locked]: [u64; 4]) {
        self.mappings = self.mappings.wrapping_add(mappings as usize);
        self.pages = self.pages.wrapping_add(pages);
        self.data = self.data.wrapping_add(data);
        self.locked = self.locked.wrapping_add(locked);
    }
}

/// Returns whether such memory counts against the limit of data: it is private, can be written, and does not grow down.
pub(super) fn is_data(protection: Protection, sharing: Sharing, flags: MappingFlags) -> bool {
    sharing == Sharing::Private
        && protection.contains(Protection::WRITE)
        && !flags.contains(MappingFlags::GROWS_DOWN)
}

impl Edited for TreeState {
    fn edited(&mut self, note: [u64; 4]) {
        self.usage.change_by(note);
    }
}

impl TreeState {
    /// Checks that `pages` more pages of memory like that of `mapping` fit within the space's limits.
    pub(super) fn check_room<H: Host>(&self, mapping: &Mapping<H>, pages: u64) -> Result<(), LimitError> {
        self.usage.check_room(&self.limits, mapping, pages)
    }

    /// Checks that `pages` more pages of data fit within the limit of data.
    pub(super) fn check_data(&self, pages: u64) -> Result<(), LimitError> {
        self.usage.check_data(&self.limits, pages)
    }

    /// Checks that a mapping with these flags may become `pages` longer within the limit of locked memory.
    pub(super) fn check_locked(&self, flags: MappingFlags, pages: u64) -> Result<(), LimitError> {
        let limit = self.limits.locked;
        let passes = self.usage.locked.saturating_add(pages) > limit >> PAGE_SHIFT;
        match flags.contains(MappingFlags::LOCKED) && passes {
            true => Err(LimitError::Locked { pages, limit }),
            false => Ok(()),
        }
    }
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Sets the limits of the space. Memory in use that exceeds a new limit stays.
    pub fn set_limits(&self, limits: SpaceLimits) {
        self.engine().assert_may_sleep("the tree lock");
        self.0.map.lock_by(&**self.engine()).limits = limits;
    }

    /// Returns the limits of the space.
    pub fn limits(&self) -> SpaceLimits {
        self.engine().assert_may_sleep("the tree lock");
        self.0.map.lock_by(&**self.engine()).limits
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Returns how many mappings the space may have.
    pub(super) fn mapping_limit(&self, map: &TreeState) -> usize {
        map.limits.mappings.min(self.engine.limits().mappings)
    }

    /// Returns whether any `changes` changes of one range each fit within the limits, so that no limit has to be checked.
    pub(super) fn has_room_for(&self, map: &TreeState, changes: usize) -> bool {
        // Each change splits at two ends, and adds one mapping.
        let most = map.usage.mappings.saturating_add(changes.saturating_mul(3));
        let SpaceLimits { address_space, data, locked, .. } = map.limits;
        most <= self.mapping_limit(map) && [address_space, data, locked] == [u64::MAX; 3]
    }

    /// Checks that a call may map something, regardless of where it goes and which mappings it joins.
    pub(super) fn may_map_more(&self, map: &TreeState) -> Result<(), TooMany> {
        let limit = self.mapping_limit(map);
        if map.usage.mappings > limit { Err(TooMany { limit }) } else { Ok(()) }
    }

    /// Checks that `each` may change the mappings in `range` within the limit of mappings. Fails with the page from which on it
    /// does not.
    ///
    /// Mappings are checked upwards, one by one, as Linux does. A changed part that joins no neighbour is split off at each
    /// end.
    pub(super) fn splittable(
        &self,
        map: &TreeState,
        view: View<'_, Vma<H, D>>,
        range: PageRange,
        each: impl Fn(Mapping<H>) -> Option<Mapping<H>>,
    ) -> Result<(), PageNumber> {
        let limit = self.mapping_limit(map);
        // At most two ends are cut.
        if map.usage.mappings.saturating_add(2) <= limit {
            return Ok(());
        }
        Self::splittable_below(limit, map, view, range, each)
    }

    #[cold]
    #[inline(never)]
    fn splittable_below(
        limit: usize,
        map: &TreeState,
        view: View<'_, Vma<H, D>>,
        range: PageRange,
        each: impl Fn(Mapping<H>) -> Option<Mapping<H>>,
    ) -> Result<(), PageNumber> {
        let mut count = map.usage.mappings;
        let mut left = view.before(range.start()).map(Vma::glance);
        let mut old = view.from(range.start()).map(Vma::glance).peekable();
        while let Some(whole) = old.next_if(|old| old.range.start() < range.end()) {
            let Some(part) = edit::cut(&whole, range) else { break };
            let is_like_it = |new: &Mapping<H>| (new.protection, new.flags) == (part.protection, part.flags);
            let Some(new) = each(part.clone()).filter(|new| !is_like_it(new)) else {
                left = Some(whole);
                continue;
            };
            let cuts = [part.range.start() > whole.range.start(), part.range.end() < whole.range.end()];
            let on_the_left = left.filter(|left| !cuts[0] && edit::joins(left, &new));
            let joins_left = on_the_left.is_some();
            let joined = on_the_left.map_or(new.clone(), |left| edit::join(&left, &new));
            let joins_right = !cuts[1] && old.peek().is_some_and(|right| edit::joins(&joined, right));
            if !joins_left && !joins_right {
                for _ in cuts.iter().filter(|cut| **cut) {
                    if count >= limit {
                        return Err(part.range.start());
                    }
                    count += 1;
                }
            } else if cuts == [false, false] {
                count -= usize::from(joins_left) + usize::from(joins_right);
            }
            left = Some(joined);
        }
        Ok(())
    }

    /// Checks that `mapping` may replace the mappings in its range. All pages mapped there are subtracted from the usage, and
    /// as many from data as from all, as Linux does.
    pub(super) fn check_limits(&self, map: &TreeState, mapping: &Mapping<H>) -> Result<(), LimitError> {
        if map.limits.are_unlimited() {
            return Ok(());
        }
        let goes = self.usage_in(map, mapping.range).pages;
        map.check_room(mapping, mapping.range.pages() - goes)
    }

    /// Checks that `more` pages of memory like that of `mapping` may be moved to its range. Present mappings there are not
    /// counted.
    pub(super) fn check_moved(
        &self,
        map: &TreeState,
        mapping: &Mapping<H>,
        more: u64,
    ) -> Result<(), LimitError> {
        if map.limits.are_unlimited() {
            return Ok(());
        }
        let goes = self.usage_in(map, mapping.range);
        let (pages, data) = (map.usage.pages - goes.pages, map.usage.data - goes.data);
        let usage = SpaceUsage { pages, data, ..map.usage };
        usage.check_room(&map.limits, mapping, more)
    }

    /// Returns the usage of the mappings in `range`, of each only the part inside.
    pub(super) fn usage_in(&self, map: &TreeState, range: PageRange) -> SpaceUsage {
        let vmas = self.tree.view_locked(&map.writer).from(range.start());
        let parts = vmas.map_while(|vma| Some((vma.mapping(), vma.range().intersection(range)?)));
        parts.fold(SpaceUsage::default(), |sum, (mapping, part)| sum.and(mapping, part.pages()))
    }

    /// Checks that `range` may get these rights within the limit of data. Mappings are checked upwards, one by one, and those
    /// that become data count. Fails with the start of the first part that exceeds the limit.
    pub(super) fn protectable_data(
        &self,
        map: &TreeState,
        view: View<'_, Vma<H, D>>,
        range: PageRange,
        protection: Protection,
    ) -> Result<(), (PageNumber, LimitError)> {
        if map.limits.data == u64::MAX {
            return Ok(());
        }
        let mut becomes = 0;
        for vma in view.from(range.start()) {
            let Some(part) = vma.range().intersection(range) else { break };
            let mapping = vma.mapping();
            let (sharing, flags) = (mapping.sharing, mapping.flags);
            if !is_data(mapping.protection, sharing, flags) && is_data(protection, sharing, flags) {
                map.check_data(becomes + part.pages()).map_err(|error| (part.start(), error))?;
                becomes += part.pages();
            }
        }
        Ok(())
    }
}
