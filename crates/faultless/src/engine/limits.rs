//! The limits of an engine's resources.

use crate::reclaim::ReclaimOrder;

/// The limits of an engine's resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest number of pages of files kept in memory. A page that is mapped or being read counts. If a read would exceed the
    /// number, it first reclaims other pages of files, mapped or not. Files without a store do not count.
    pub cached_pages: u64,
    /// The largest number of mappings in one space (vm.max_map_count, 65,530). See
    /// [`SpaceLimits::mappings`](crate::SpaceLimits::mappings).
    pub mappings: usize,
    /// The number of entries from which on fork shares a leaf table. A shared table is copied when the parent or the
    /// child needs another entry. Fork copies the entries of a table that has fewer. With `u64::MAX`, no table is ever
    /// shared.
    pub shared_entries: u64,
    /// The order in which reclaim tries pages.
    pub reclaim: ReclaimOrder,
    /// The number of free frames that the background worker keeps in reserve. The worker needs a thread: see
    /// [`Engine::run_background`](crate::Engine::run_background).
    pub reserve: Reserve,
    /// The numbers of dirty pages of files above which they are written, and above which threads that make more are slowed down.
    pub dirty: DirtyLimits,
}

/// An eighth of a leaf table of 512 entries.
#[cfg(not(loom))]
const SHARED_ENTRIES: u64 = 64;
#[cfg(loom)]
const SHARED_ENTRIES: u64 = 2;

impl Default for Limits {
    fn default() -> Self {
        Self {
            cached_pages: u64::MAX,
            mappings: 65_530,
            shared_entries: SHARED_ENTRIES,
            reclaim: ReclaimOrder::default(),
            reserve: Reserve::default(),
            dirty: DirtyLimits::default(),
        }
    }
}

/// The shares of a machine's frames that the background worker keeps free, in thousandths (the watermarks of kswapd).
///
/// If fewer frames are free than the low mark, the background worker is woken. It reclaims until as many frames are free as the high
/// mark. The default is 10 and 20 thousandths. In a machine of fewer than 100 frames the default low mark is 0 frames, so the worker
/// does not reclaim there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    low: u64,
    high: u64,
}

impl Reserve {
    /// No reserve: threads reclaim when no frame is free.
    pub const NONE: Self = Self { low: 0, high: 0 };

    /// Returns a reserve with these marks, in thousandths of the machine's frames, from 0 to 1000.
    ///
    /// # Errors
    /// [`LimitsError`] if `low` is above `high`, or `high` above 1000.
    pub const fn per_mille(low: u64, high: u64) -> Result<Self, LimitsError> {
        if low > high {
            return Err(LimitsError::LowAboveHigh { low, high });
        }
        if high > 1000 {
            return Err(LimitsError::AboveWhole { share: high, whole: 1000 });
        }
        Ok(Self { low, high })
    }

    /// Returns the low and the high mark of a machine with this many frames.
    pub(crate) fn marks(self, frames: u64) -> (u64, u64) {
        (share(frames, self.low, 1000), share(frames, self.high, 1000))
    }
}

impl Default for Reserve {
    fn default() -> Self {
        Self { low: 10, high: 20 }
    }
}

/// Returns the part of `all` that `share` is of `whole`.
fn share(all: u64, share: u64, whole: u64) -> u64 {
    (u128::from(all) * u128::from(share) / u128::from(whole)) as u64
}

/// The limits of dirty pages of files, in percent of the machine's frames or of [`Limits::cached_pages`], whichever is less (Linux:
/// vm.dirty_background_ratio and vm.dirty_ratio). The default is [`DirtyLimits::NONE`].
///
/// Above the background share, the background worker writes dirty pages, in the order of each file
/// ([`Engine::run_background`](crate::Engine::run_background)). The limit also counts pages that are being written. Above it, a thread
/// that makes pages dirty sleeps at its next fault, or after its write, holding nothing, until there are fewer, 10 ms at most. If there is no worker,
/// it starts some writes first. So the limit slows threads down, and may be exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyLimits {
    background: u64,
    limit: u64,
}

impl DirtyLimits {
    /// No limits: dirty pages are written by syncs, and when memory is short.
    pub const NONE: Self = Self { background: u64::MAX, limit: u64::MAX };

    /// The limits of Linux: 10 percent in the background, 20 percent as the limit.
    pub const LINUX: Self = Self { background: 10, limit: 20 };

    /// Returns limits with these shares, in percent: `background` from 0 to `limit`, `limit` from 1 to 100.
    ///
    /// # Errors
    /// [`LimitsError`] if a share is out of its range.
    pub const fn percent(background: u64, limit: u64) -> Result<Self, LimitsError> {
        if limit == 0 {
            return Err(LimitsError::NoDirtyPages);
        }
        if limit > 100 {
            return Err(LimitsError::AboveWhole { share: limit, whole: 100 });
        }
        if background > limit {
            return Err(LimitsError::BackgroundAboveLimit { background, limit });
        }
        Ok(Self { background, limit })
    }

    /// Returns the two numbers of pages, of so many in all. The limit is one page at least.
    pub(crate) fn marks(self, pages: u64) -> (u64, u64) {
        if self == Self::NONE {
            return (u64::MAX, u64::MAX);
        }
        (share(pages, self.background, 100), share(pages, self.limit, 100).max(1))
    }
}

impl Default for DirtyLimits {
    fn default() -> Self {
        Self::NONE
    }
}

/// The error of [`Reserve::per_mille`] and [`DirtyLimits::percent`]: a share is out of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitsError {
    /// The low mark is above the high mark.
    #[error("the low mark is {low} thousandths and the high mark is {high}: low has to be {high} at most")]
    LowAboveHigh {
        /// The low mark in thousandths.
        low: u64,
        /// The high mark in thousandths.
        high: u64,
    },
    /// The limit of dirty pages is 0.
    #[error("a limit of 0 percent for dirty pages: no page could be written to")]
    NoDirtyPages,
    /// The background share is above the limit.
    #[error(
        "the background share is {background} percent and the limit is {limit}: it has to be {limit} at most"
    )]
    BackgroundAboveLimit {
        /// The background share in percent.
        background: u64,
        /// The limit in percent.
        limit: u64,
    },
    /// A share is more than the whole.
    #[error("a share of {share} in {whole}: it has to be {whole} at most")]
    AboveWhole {
        /// The share.
        share: u64,
        /// The whole, in the same unit.
        whole: u64,
    },
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_that_makes_no_sense_is_an_error() {
        assert_eq!(Reserve::per_mille(2, 1), Err(LimitsError::LowAboveHigh { low: 2, high: 1 }));
        assert_eq!(Reserve::per_mille(1, 1001), Err(LimitsError::AboveWhole { share: 1001, whole: 1000 }));
        assert_eq!(Reserve::per_mille(0, 0), Ok(Reserve::NONE));
        assert_eq!(Reserve::per_mille(1000, 1000).unwrap().marks(u64::MAX), (u64::MAX, u64::MAX));
    }

    #[test]
    fn dirty_limits_that_make_no_sense_are_errors() {
        assert_eq!(DirtyLimits::percent(0, 0), Err(LimitsError::NoDirtyPages));
        assert_eq!(DirtyLimits::percent(0, 101), Err(LimitsError::AboveWhole { share: 101, whole: 100 }));
        let above = LimitsError::BackgroundAboveLimit { background: 21, limit: 20 };
        assert_eq!(DirtyLimits::percent(21, 20), Err(above));
        assert_eq!(DirtyLimits::percent(0, 1).unwrap().marks(10), (0, 1));
        assert_eq!(DirtyLimits::LINUX.marks(1024), (102, 204));
        assert_eq!(DirtyLimits::percent(100, 100).unwrap().marks(u64::MAX), (u64::MAX, u64::MAX));
    }

    #[test]
    fn marks_are_shares_of_the_frames() {
        assert_eq!(Reserve::default().marks(99), (0, 1));
        assert_eq!(Reserve::default().marks(1024), (10, 20));
    }
}
