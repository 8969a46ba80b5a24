//! The groups of an engine, found by number without a lock, and charges up their tree.
//!
//! A record is never freed before the engine. It serves another group when its own has ended and nothing is charged to it. The
//! group above counts all that the groups below pay for. So it is not used again before them, and a thread that gives something
//! back reads the number of the group above before it does.

use super::group::{Event, Group, MOST_STOCK, State};
use super::{LimitConfig, MemoryLimitError};
use crate::host::GroupId;
use crate::sync::{Mutex, MutexGuard, OnceBox, OutOfMemory, try_box};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// The number of records in the first level. Each level has twice as many as the one before.
const FIRST: usize = 8;
/// The number of levels.
const LEVELS: usize = 12;
/// The greatest number of groups beside the root.
pub(crate) const MOST_GROUPS: usize = FIRST * ((1 << LEVELS) - 1);

/// The greatest number of groups from a group up to the root.
pub(super) const MOST_DEEP: usize = 32;

/// The pages of one charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Charged {
    pub pages: u64,
    /// Whether a group is over high now.
    pub is_high: bool,
    /// Whether a group is near high now, or over it.
    pub is_near: bool,
}

/// The groups of an engine, without the root, which has no limit.
#[derive(Default)]
pub(crate) struct Groups {
    records: [OnceBox<Box<[Group]>>; LEVELS],
    /// Held while limits are compared with those of groups above and below, and stored. So a group's max is never above that of the group
    /// above it, and high never above max. Faults read limits without it. A short lock; no other is taken under it, and nothing is
    /// allocated. `set` looks at each record under it, at [`MOST_GROUPS`] at most.
    limits: Mutex<()>,
}

impl Groups {
    /// Returns a group's record. `None` for the root.
    #[inline]
    pub fn get(&self, group: GroupId) -> Option<&Group> {
        let (level, place) = place_of(group)?;
        self.records.get(level)?.get()?.get(place)
    }

    /// Goes from `group` up to the root, which has no record. Each step reads the number of the next group before it returns.
    fn up(&self, group: GroupId) -> impl Iterator<Item = (GroupId, &Group)> {
        let mut next = group;
        core::iter::from_fn(move || {
            let (id, group) = (next, self.get(next)?);
            next = group.parent();
            Some((id, group))
        })
    }

    /// Returns whether `group` is `of` or below it.
    pub fn is_within(&self, group: GroupId, of: GroupId) -> bool {
        of == GroupId::ROOT || self.up(group).any(|(id, _)| id == of)
    }

    /// Returns the number of groups from `group` up to the root.
    pub(super) fn depth(&self, group: GroupId) -> usize {
        self.up(group).count()
    }

    /// Takes a record for a new group. Returns `None` if there are as many groups as there can be.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub(super) fn take(&self) -> Result<Option<GroupId>, OutOfMemory> {
        for level in 0..LEVELS {
            let records = match self.records[level].get() {
                Some(records) => records,
                None => self.records[level].set(try_box(level_of(FIRST << level)?)?).0,
            };
            if let Some(place) = records.iter().position(Group::take) {
                let number = (FIRST << level) - FIRST + place + 1;
                return Ok(Some(GroupId::new(number as u32)));
            }
        }
        Ok(None)
    }

    /// Returns the bytes of the records.
    pub(crate) fn room(&self) -> usize {
        self.records.iter().filter_map(OnceBox::get).map(|level| size_of_val(&**level)).sum()
    }

    /// Begins the life of a group whose record the caller has taken.
    ///
    /// # Errors
    /// [`MemoryLimitError`]: the limits are wrong, or above those of the group above. The record is free again.
    pub(super) fn begin(
        &self,
        group: GroupId,
        above: GroupId,
        config: LimitConfig,
    ) -> Result<(), MemoryLimitError> {
        let Some(record) = self.get(group) else { return Ok(()) };
        let limits = self.limits.lock();
        let checked = config.check(self.max_of(above));
        let limits = self.kept(limits);
        match checked {
            Ok(()) => record.begin(above, config.high, config.max),
            Err(_) => record.end(),
        }
        drop(limits);
        checked
    }

    /// Ends a group that nothing names any more. The groups above count its pages already.
    pub(super) fn end(&self, group: GroupId) {
        if let Some(group) = self.get(group) {
            group.end();
        }
    }

    /// Changes the limits of a group that a handle names.
    ///
    /// # Errors
    /// [`MemoryLimitError`]: the limits are as before.
    pub(super) fn set(&self, group: GroupId, config: LimitConfig) -> Result<(), MemoryLimitError> {
        let Some(record) = self.get(group) else { return Ok(()) };
        let limits = self.limits.lock();
        config.check(self.max_of(record.parent()))?;
        let mut below = None;
        self.each_live(|_, other| {
            let max = other.max();
            if other.parent() == group && max > config.max && max != LimitConfig::NONE {
                below = Some(max);
            }
        });
        if let Some(max) = below {
            return Err(MemoryLimitError::AboveParent { max, parent: config.max });
        }
        let limits = self.kept(limits);
        record.set(config.high, config.max);
        drop(limits);
        Ok(())
    }

    /// Returns a group's max. `None` for the root.
    fn max_of(&self, group: GroupId) -> Option<u64> {
        self.get(group).map(Group::max)
    }

    /// Keeps the lock between the check of limits and their store.
    fn kept<'a>(&'a self, limits: MutexGuard<'a, ()>) -> MutexGuard<'a, ()> {
        if mutant!("limits_stored_later") {
            drop(limits);
            return self.limits.lock();
        }
        limits
    }

    /// Returns whether the group, or one that had its record before, has ended.
    pub(super) fn is_ended(&self, group: GroupId) -> bool {
        self.get(group).is_some_and(|group| group.is(State::Ended))
    }

    /// Calls `f` with each group that is live.
    pub(super) fn each_live(&self, mut f: impl FnMut(GroupId, &Group)) {
        for (level, records) in
            self.records.iter().enumerate().filter_map(|(n, level)| Some((n, level.get()?)))
        {
            for (place, group) in records.iter().enumerate().filter(|(_, group)| group.is(State::Live)) {
                f(GroupId::new(((FIRST << level) - FIRST + place + 1) as u32), group);
            }
        }
    }

    /// Calls `f` with each live group that is near its high limit, or over it.
    pub(crate) fn each_near_high(&self, mut f: impl FnMut(GroupId, &Group)) {
        self.each_live(|id, group| {
            if group.is_near_high(group.usage()) {
                f(id, group);
            }
        });
    }

    /// Returns whether groups have ended that still pay for something.
    pub(super) fn has_ended(&self) -> bool {
        let levels = self.records.iter().filter_map(OnceBox::get);
        levels.flatten().any(|group| group.is(State::Ended))
    }

    /// Charges pages for a stock: as many as `group` and those above it can spare, and one at least.
    ///
    /// # Errors
    /// The group that would go over max.
    pub(super) fn charge_some(&self, group: GroupId) -> Result<Charged, GroupId> {
        let share = self.up(group).map(|(_, group)| group.share()).min().unwrap_or(MOST_STOCK);
        let many = if share > 1 { self.charge(group, share).ok() } else { None };
        many.map_or_else(|| self.charge(group, 1), Ok)
    }

    /// Charges `pages` to `group` and those above it.
    ///
    /// # Errors
    /// The group that would go over max; nothing is charged.
    pub(super) fn charge(&self, group: GroupId, pages: u64) -> Result<Charged, GroupId> {
        let (mut is_high, mut is_near) = (false, false);
        for (id, above) in self.up(group) {
            let Some(usage) = above.try_add(pages) else {
                self.up(group).take_while(|(below, _)| *below != id).for_each(|(_, g)| g.subtract(pages));
                return Err(id);
            };
            is_high |= usage > above.high();
            is_near |= above.is_near_high(usage);
        }
        Ok(Charged { pages, is_high, is_near })
    }

    /// Takes `pages` off `group` and those above it.
    pub(super) fn uncharge(&self, group: GroupId, pages: u64) {
        if pages != 0 {
            self.up(group).for_each(|(_, group)| group.subtract(pages));
        }
    }

    /// Changes the count of pages of files that `group` and those above it pay for.
    pub(super) fn count_files(&self, group: GroupId, change: i64) {
        if change != 0 {
            self.up(group).for_each(|(_, group)| group.count_files(change));
        }
    }

    pub(super) fn add_stock(&self, group: GroupId) {
        self.up(group).for_each(|(_, group)| group.add_stock());
    }

    pub(super) fn subtract_stock(&self, group: GroupId) {
        self.up(group).for_each(|(_, group)| group.subtract_stock());
    }

    /// Counts a slot of swap space that has a page of `group`.
    pub(crate) fn add_swap(&self, group: GroupId) {
        self.up(group).for_each(|(_, group)| group.add_swap());
    }

    /// Takes a slot of swap space back from the count.
    pub(crate) fn subtract_swap(&self, group: GroupId) {
        self.up(group).for_each(|(_, group)| group.subtract_swap());
    }

    /// Counts an event of `group`, and of those above it.
    pub(crate) fn note(&self, group: GroupId, event: Event, count: u64) {
        self.up(group).for_each(|(_, group)| group.note(event, count));
    }

    /// Returns the first group, from `group` up, that cannot pay for so many more pages.
    pub(crate) fn full(&self, group: GroupId, pages: u64) -> Option<GroupId> {
        let is_full = |group: &Group| group.usage().saturating_add(pages) > group.max();
        self.up(group).find(|(_, group)| is_full(group)).map(|(id, _)| id)
    }

    /// Returns the first group, from `group` up, that is over high.
    pub(super) fn over_high(&self, group: GroupId) -> Option<(GroupId, &Group)> {
        self.up(group).find(|(_, group)| group.usage() > group.high())
    }
}

/// Returns the level of a group's record, and its place there. `None` for the root.
#[inline]
fn place_of(group: GroupId) -> Option<(usize, usize)> {
    let number = (group.get() as usize).checked_sub(1)? + FIRST;
    let level = (number / FIRST).ilog2() as usize;
    Some((level, number - (FIRST << level)))
}

fn level_of(count: usize) -> Result<Box<[Group]>, OutOfMemory> {
    let mut records = Vec::new();
    records.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
    records.resize_with(count, Group::default);
    Ok(records.into_boxed_slice())
}
