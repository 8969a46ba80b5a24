//! What a space may use (RLIMIT_AS, RLIMIT_DATA, RLIMIT_STACK, RLIMIT_MEMLOCK, vm.max_map_count), and what it uses.

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

/// What a space may use; a child of fork inherits it. Bytes, of which whole pages count.
///
/// As on Linux, a limit is asked when a call wants more: what is there already stays when a limit is lowered. A call that
/// goes on while another one is under way may find its pages counted in both places for that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceLimits {
    /// All that is mapped (RLIMIT_AS).
    pub address_space: u64,
    /// Private memory that can be written and does not grow down (RLIMIT_DATA); the heap of [`AddressSpace::brk`] for
    /// itself, too.
    pub data: u64,
    /// One mapping that grows down (RLIMIT_STACK).
    pub stack: u64,
    /// What is locked (RLIMIT_MEMLOCK).
    pub locked: u64,
    /// Mappings (vm.max_map_count); never more than [`Limits::mappings`](crate::Limits::mappings). As on Linux a call that
    /// maps is refused when there are more than that, and one that splits when there are that many: so there can be one more.
    pub mappings: usize,
}

impl SpaceLimits {
    /// Whether the pages of mappings are not limited.
    fn are_unlimited(&self) -> bool {
        [self.address_space, self.data] == [u64::MAX; 2]
    }
}

impl Default for SpaceLimits {
    /// 65,530 mappings and 8 MiB for each that grows down, as Linux sets out; otherwise no limits.
    fn default() -> Self {
        Self { address_space: u64::MAX, data: u64::MAX, stack: 8 << 20, locked: u64::MAX, mappings: 65_530 }
    }
}

/// A limit that a call would pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The whole space (ENOMEM).
    #[error("{pages} more pages would pass the space's limit of {limit} bytes")]
    AddressSpace {
        /// What was to come.
        pages: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Private memory that can be written (ENOMEM).
    #[error("{pages} more pages would pass the limit of {limit} bytes of private writable memory")]
    Data {
        /// What was to come.
        pages: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Locked memory (EAGAIN; ENOMEM where a call locks).
    #[error("{pages} more pages would pass the limit of {limit} bytes of locked memory")]
    Locked {
        /// What was to come.
        pages: u64,
        /// The limit in bytes.
        limit: u64,
    },
}

/// The space has its limit of mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany {
    pub limit: usize,
}

impl LimitError {
    /// Linux's number, for calls that map.
    pub fn errno(&self) -> i32 {
        match self {
            Self::AddressSpace { .. } | Self::Data { .. } => errno::ENOMEM,
            Self::Locked { .. } => errno::EAGAIN,
        }
    }
}

/// What the mappings of a space come to, as its limits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SpaceUsage {
    /// How many there are.
    pub mappings: usize,
    /// Pages of all.
    pub pages: u64,
    /// Pages of those that count as data.
    pub data: u64,
    /// Pages of those that are locked.
    pub locked: u64,
}

impl fmt::Display for SpaceUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mappings, pages, data, locked } = self;
        write!(f, "{mappings} mappings of {pages} pages, {data} of data, {locked} locked")
    }
}

impl SpaceUsage {
    /// With so many pages of `mapping` too.
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

    /// With these mappings too.
    pub(super) fn with<'a, H: Host>(self, mappings: impl IntoIterator<Item = &'a Mapping<H>>) -> Self {
        mappings.into_iter().fold(self, |sum, mapping| sum.and(mapping, mapping.range.pages()))
    }

    /// Whether `pages` more of memory like that of `mapping` may come to this.
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

    /// What becomes of it where these take the place of `gone`; modulo 2^64.
    pub(super) fn change_from(self, gone: Self) -> [u64; 4] {
        [
            (self.mappings as u64).wrapping_sub(gone.mappings as u64),
            self.pages.wrapping_sub(gone.pages),
            self.data.wrapping_sub(gone.data),
            self.locked.wrapping_sub(gone.locked),
        ]
    }

    /// Becomes what it is with such a change.
    pub(super) fn change_by(&mut self, [mappings, pages, data, locked]: [u64; 4]) {
        self.mappings = self.mappings.wrapping_add(mappings as usize);
        self.pages = self.pages.wrapping_add(pages);
        self.data = self.data.wrapping_add(data);
        self.locked = self.locked.wrapping_add(locked);
    }
}

/// Whether such memory counts against the limit of data: private, writable, and no stack.
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
    /// Whether `pages` more of memory like that of `mapping` may come.
    pub(super) fn check_room<H: Host>(&self, mapping: &Mapping<H>, pages: u64) -> Result<(), LimitError> {
        self.usage.check_room(&self.limits, mapping, pages)
    }

    /// Whether `pages` may become data.
    pub(super) fn check_data(&self, pages: u64) -> Result<(), LimitError> {
        self.usage.check_data(&self.limits, pages)
    }

    /// Whether a mapping with these flags may become `pages` longer as far as locked memory goes.
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
    /// Sets what the space may use. What it uses already stays.
    pub fn set_limits(&self, limits: SpaceLimits) {
        self.engine().assert_may_sleep("the tree lock");
        self.0.map.lock_by(&**self.engine()).limits = limits;
    }

    /// What the space may use.
    pub fn limits(&self) -> SpaceLimits {
        self.engine().assert_may_sleep("the tree lock");
        self.0.map.lock_by(&**self.engine()).limits
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// How many mappings there may be.
    pub(super) fn mapping_limit(&self, map: &TreeState) -> usize {
        map.limits.mappings.min(self.engine.limits().mappings)
    }

    /// Whether there is room for whatever `changes` changes of one range each may come to, so that none asks.
    pub(super) fn has_room_for(&self, map: &TreeState, changes: usize) -> bool {
        // Each splits at two ends, and puts one mapping more.
        let most = map.usage.mappings.saturating_add(changes.saturating_mul(3));
        let SpaceLimits { address_space, data, locked, .. } = map.limits;
        most <= self.mapping_limit(map) && [address_space, data, locked] == [u64::MAX; 3]
    }

    /// Whether a call may map something, wherever it goes and whatever it joins.
    pub(super) fn may_map_more(&self, map: &TreeState) -> Result<(), TooMany> {
        let limit = self.mapping_limit(map);
        if map.usage.mappings > limit { Err(TooMany { limit }) } else { Ok(()) }
    }

    /// Up to where there is room for what `each` makes of the mappings in `range`, mapping by mapping upwards, as Linux asks:
    /// where a part changes that joins no neighbour, it is split off at each end.
    pub(super) fn splittable(
        &self,
        map: &TreeState,
        view: View<'_, Vma<H, D>>,
        range: PageRange,
        each: impl Fn(Mapping<H>) -> Option<Mapping<H>>,
    ) -> Result<(), PageNumber> {
        let limit = self.mapping_limit(map);
        // Only two ends are cut.
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

    /// Whether `mapping` may come, in the place of what is mapped there. Its pages are taken off what counts, as Linux does: of
    /// data as many as of all.
    pub(super) fn check_limits(&self, map: &TreeState, mapping: &Mapping<H>) -> Result<(), LimitError> {
        if map.limits.are_unlimited() {
            return Ok(());
        }
        let goes = self.usage_in(map, mapping.range).pages;
        map.check_room(mapping, mapping.range.pages() - goes)
    }

    /// Whether `more` pages of memory like that of `mapping` may come by a move to its range, when what is mapped there has
    /// gone.
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

    /// What the mappings in `range` come to, of each the part in it.
    pub(super) fn usage_in(&self, map: &TreeState, range: PageRange) -> SpaceUsage {
        let vmas = self.tree.view_locked(&map.writer).from(range.start());
        let parts = vmas.map_while(|vma| Some((vma.mapping(), vma.range().intersection(range)?)));
        parts.fold(SpaceUsage::default(), |sum, (mapping, part)| sum.and(mapping, part.pages()))
    }

    /// Up to where `range` may get these rights: what becomes data by them counts, mapping by mapping.
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
