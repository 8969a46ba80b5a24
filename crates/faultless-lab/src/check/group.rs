//! The group of the spaces of an episode, with tight limits: see [`Shortage`].
//!
//! Linux has enough memory for locked pages, and they cannot be reclaimed. So the limits grow by the number of locked pages. Before an
//! operation that may lock pages they grow by a window. They shrink again afterwards.

use super::operation::{Operation, PAGES, With};
use faultless::vma::MappingFlags;
use faultless::{Engine, LimitConfig, MappingInfo, MemoryLimit, MemoryLimitError, MemoryUsage};
use faultless_soft::Soft;
use std::sync::{Arc, Mutex, PoisonError};

/// MCL_FUTURE.
const FUTURE: u8 = 2;

/// The reason why memory is short in an episode. It follows from the seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shortage {
    /// The machine has few frames.
    Frames,
    /// The spaces are in a group with a max: a thread that needs a page reclaims one of the group first.
    Max,
    /// The spaces are in a group with a high, below one with a max: a thread that has taken a page too many reclaims some, or sleeps,
    /// before its next fault.
    High,
}

impl Shortage {
    /// Returns the shortage in the episode with this seed.
    pub fn of(seed: u64) -> Self {
        match seed % 3 {
            0 => Self::Frames,
            1 => Self::Max,
            _ => Self::High,
        }
    }
}

/// The group of an episode's spaces.
#[derive(Clone)]
pub(super) struct Group {
    limit: MemoryLimit<Soft>,
    /// The group above, which has the max, if `limit` has a high.
    above: Option<MemoryLimit<Soft>>,
    /// The number of pages to which the group is limited, without locked ones.
    pages: u64,
    /// The number of pages that are locked, or may become so. Held while the limits are changed.
    locked: Arc<Mutex<u64>>,
}

impl Group {
    /// Makes a group of `pages` pages. Returns `None` if the shortage needs no group.
    ///
    /// # Errors
    /// [`MemoryLimitError`].
    pub fn new(
        engine: &Arc<Engine<Soft>>,
        shortage: Shortage,
        pages: u64,
    ) -> Result<Option<Self>, MemoryLimitError> {
        let (limit, above) = match shortage {
            Shortage::Frames => return Ok(None),
            Shortage::Max => (MemoryLimit::new(engine, LimitConfig::max(pages))?, None),
            Shortage::High => {
                let above = MemoryLimit::new(engine, LimitConfig::max(max_above(pages)))?;
                (above.child(high(pages))?, Some(above))
            }
        };
        Ok(Some(Self { limit, above, pages, locked: Arc::default() }))
    }

    /// Returns the group that spaces are made in.
    pub fn limit(&self) -> &MemoryLimit<Soft> {
        &self.limit
    }

    /// Changes the number of locked pages of one thread from `old` to `new`, and the limits.
    pub fn set_locked(&self, old: u64, new: u64) -> Result<(), MemoryLimitError> {
        let mut locked = self.locked.lock().unwrap_or_else(PoisonError::into_inner);
        *locked = *locked + new - old;
        let pages = self.pages + *locked;
        match &self.above {
            Some(above) => {
                above.set(LimitConfig::max(max_above(pages)))?;
                self.limit.set(high(pages))
            }
            None => self.limit.set(LimitConfig::max(pages)),
        }
    }

    /// Returns the pages that the group has now, with those of the group above.
    pub fn usage(&self) -> MemoryUsage {
        self.above.as_ref().unwrap_or(&self.limit).usage()
    }

    /// Checks that the group pays for nothing. The caller has dropped all spaces and files.
    ///
    /// # Errors
    /// The pages that it still pays for.
    pub fn balance(&self) -> Result<(), String> {
        let usage = self.usage();
        let MemoryUsage { resident, anonymous, file, dirty, writeback, swap, .. } = usage;
        match [resident, anonymous, file, dirty, writeback, swap] {
            [0, 0, 0, 0, 0, 0] => Ok(()),
            _ => Err(format!("a group pays for pages after the last space has gone: {usage:?}")),
        }
    }
}

/// Returns limits with `high` alone.
fn high(pages: u64) -> LimitConfig {
    LimitConfig { high: pages, max: LimitConfig::NONE }
}

/// Returns the max of the group above one with high `pages`.
fn max_above(pages: u64) -> u64 {
    pages + (pages / 2).clamp(1, 64)
}

/// Returns the number of pages of these mappings that are locked, or that a touch may lock.
pub(super) fn locked<'a>(mappings: impl IntoIterator<Item = &'a MappingInfo>) -> u64 {
    let pages = |info: &MappingInfo| match () {
        () if !info.flags.contains(MappingFlags::LOCKED) => 0,
        // A touch below it makes it longer.
        () if info.flags.contains(MappingFlags::GROWS_DOWN) => PAGES,
        () => info.range.pages(),
    };
    mappings.into_iter().map(pages).sum()
}

/// Returns whether `operation` may lock pages. `has_locks`: there are locked pages, or MCL_FUTURE was set.
pub(super) fn may_lock(operation: &Operation, has_locks: bool) -> bool {
    match operation {
        Operation::Lock { .. } | Operation::LockAll { .. } => true,
        Operation::Map { with, .. } => has_locks || with.contains(With::LOCKED),
        Operation::Remap { .. } | Operation::Break { .. } => has_locks,
        _ => false,
    }
}

/// Returns whether `operation` sets MCL_FUTURE.
pub(super) fn locks_future(operation: &Operation) -> bool {
    matches!(operation, Operation::LockAll { flags } if flags & FUTURE != 0)
}
