//! A file's failed writes: the errors that are reported, and the pause after many of them.

use super::flush::Flushes;
use crate::store::StoreError;
use crate::sync::plain::{AtomicU64, Ordering};

/// The time after a failed write, in nanoseconds, in which memory pressure and limits do not have such pages written again, if
/// [`MANY_FAILED`] writes have failed in a row. A device that fails at once would get hundreds of thousands of writes a second otherwise.
const PAUSE: u64 = 10_000_000;

/// The number of failed writes in a row from which on the file pauses. A device that fails now and then is tried again at once, so that
/// nobody runs out of memory for that.
const MANY_FAILED: u64 = 64;

/// The failed writes of a file since one has succeeded. Atomic.
#[derive(Debug, Default)]
pub(super) struct Failures {
    in_row: AtomicU64,
    /// The time of the last one, in nanoseconds of the host's clock.
    last_at: AtomicU64,
}

impl Failures {
    /// Notes a failed write.
    pub fn note(&self, now: u64) {
        self.in_row.fetch_add(1, Ordering::Relaxed);
        self.last_at.store(now, Ordering::Relaxed);
    }

    /// Notes a write that has succeeded.
    pub fn end(&self) {
        if self.in_row.load(Ordering::Relaxed) != 0 {
            self.in_row.store(0, Ordering::Relaxed);
        }
    }

    /// Returns whether many writes have failed in a row, the last of them not longer ago than [`PAUSE`].
    pub fn pauses(&self, now: impl FnOnce() -> u64) -> bool {
        let is_bad = self.in_row.load(Ordering::Relaxed) >= MANY_FAILED;
        is_bad && now().saturating_sub(self.last_at.load(Ordering::Relaxed)) < PAUSE
    }
}

/// A file's failed writes and flushes. An error is kept, and reported once to each account.
#[derive(Debug, Default)]
pub(super) struct Errors {
    /// The number of errors.
    pub(super) count: u64,
    /// The last.
    last: Option<StoreError>,
    /// The number of errors when one was last reported on any account.
    reported: u64,
    /// The number of errors when the file itself was last asked: by its mappings' msync and by [`File::sync`].
    pub(super) file: u64,
    /// The number of writes that left pages dirty which a sync that waited for them has to write: pages that were not tried,
    /// and pages that a failed flush may have lost.
    pub(super) left_behind: u64,
    /// The flushes of the store.
    pub(super) flushes: Flushes,
}

impl Errors {
    /// Returns the errors that a new handle has seen: all, except an error that was not reported on any account.
    pub(super) fn sample(&self) -> u64 {
        self.reported
    }

    pub(super) fn record(&mut self, error: StoreError) {
        self.count += 1;
        self.last = Some(error);
    }

    /// Returns the last error, if one came since `seen` or since there were `before`; and the new value of `seen`.
    /// `before` is the result of [`File::finish_writeback`].
    pub(super) fn report(&mut self, seen: u64, before: u64) -> (Result<(), StoreError>, u64) {
        match self.last {
            Some(error) if self.count != seen.min(before) => {
                self.reported = self.count;
                (Err(error), self.count)
            }
            _ => (Ok(()), self.count),
        }
    }
}
