//! The locks of page tables: a tree that has the form of the tables, with one lock for each.
//!
//! ```text
//!   level 4    root                      a range that spans two tables of level 3
//!   level 3      upper tables            ... two tables of level 2: 1 GiB each
//!   level 2        upper tables          ... two leaf tables: 2 MiB each
//!   level 1          leaf tables         a page, or a range inside one leaf table
//! ```
//!
//! A span of tables is taken as follows. The thread goes down, without locks, to the lowest table that covers the span,
//! and locks it. Then it locks all tables below that lie under the span, each before those below it, in ascending order.
//! If a table on the way has no lock yet, the thread locks the table above, makes the lock, and releases the one above.
//! So nobody makes a lock below a table that is locked: whoever holds the covering table also excludes tables that are
//! missing. If there is no memory for a lock, the thread keeps the table above, which excludes more.
//!
//! Locks are taken downwards, and on each level upwards in address. So no two threads wait for each other.

use faultless::host::OutOfMemory;
use faultless::sync::Shared;
use parking_lot::{Condvar, Mutex};
use std::ops::RangeInclusive;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Entries of an upper table.
const ENTRIES: u64 = 512;
/// Level of leaf tables.
const LEAF: u32 = 1;
/// Level of the root.
const ROOT: u32 = 4;
/// Number of the last leaf table. Tables beyond it share its lock.
const LAST: u64 = ENTRIES.pow(ROOT - 1) - 1;

/// Lock of one table, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Table {
    /// [`FREE`], [`HELD`] or [`AWAITED`]. Atomic.
    state: AtomicU32,
    /// Held by a thread that goes to sleep or wakes one. Protects nothing else.
    sleep: Mutex<()>,
    wake: Condvar,
    /// The tables below. Made with the lock held, and immutable from then on; read without.
    below: OnceLock<Vec<OnceLock<Shared<Table>>>>,
}

const FREE: u32 = 0;
const HELD: u32 = 1;
/// Held, and a thread may sleep.
const AWAITED: u32 = 2;

impl Table {
    /// Takes the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> bool {
        self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Takes the lock. Sleeps until it is free.
    pub fn lock(&self) {
        let mut sleep = self.sleep.lock();
        while self.state.swap(AWAITED, Ordering::Acquire) != FREE {
            self.wake.wait(&mut sleep);
        }
    }

    #[inline]
    fn unlock(&self) {
        if self.state.swap(FREE, Ordering::Release) == AWAITED {
            // The sleeper has set the state with `sleep` locked: it sleeps by the time that this thread has `sleep`.
            drop(self.sleep.lock());
            self.wake.notify_one();
        }
    }

    fn below(&self, entry: u64) -> Option<&Table> {
        self.below.get()?[entry as usize].get().map(|table| &**table)
    }

    /// Makes the lock of a table below. The caller holds this one.
    fn make(&self, entry: u64) -> Result<(), OutOfMemory> {
        if self.below.get().is_none() {
            let mut below = Vec::new();
            below.try_reserve_exact(ENTRIES as usize).map_err(|_| OutOfMemory)?;
            below.resize_with(ENTRIES as usize, OnceLock::new);
            let _ = self.below.set(below);
        }
        let made = Shared::try_new(Self::default())?;
        let _ = self.below.get().map(|below| below[entry as usize].set(made));
        Ok(())
    }
}

/// Tables beside each other, by the numbers of the first and the last leaf table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    first: u64,
    last: u64,
}

impl Span {
    /// Returns the span of these leaf tables.
    pub fn new(tables: RangeInclusive<u64>) -> Self {
        Self { first: (*tables.start()).min(LAST), last: (*tables.end()).min(LAST) }
    }

    /// Returns the entries that the span has in a table of `level` that covers it.
    fn entries(self, level: u32) -> RangeInclusive<u64> {
        let entry = |table: u64| table / ENTRIES.pow(level - 2) % ENTRIES;
        entry(self.first)..=entry(self.last)
    }

    /// Returns the part of the span that is under `entry` of a table of `level` that covers the span.
    fn under(self, level: u32, entry: u64) -> Self {
        let (tables, entries) = (ENTRIES.pow(level - 2), self.entries(level));
        let start = self.first - self.first % tables + (entry - entries.start()) * tables;
        Self { first: self.first.max(start), last: self.last.min(start + tables - 1) }
    }

    /// Returns the entry that has all of the span, in an upper table that covers it.
    fn single_entry(self, level: u32) -> Option<u64> {
        if level == LEAF {
            return None;
        }
        let entries = self.entries(level);
        (entries.start() == entries.end()).then_some(*entries.start())
    }
}

/// A span that is taken. Dropping it releases its locks.
#[derive(Debug)]
pub struct Held<'s> {
    table: &'s Table,
    level: u32,
    span: Span,
}

impl Held<'_> {
    /// Returns whether the span is this one.
    pub fn is(&self, span: Span) -> bool {
        self.span == span
    }

    /// Returns the level of the covering table.
    #[cfg(test)]
    pub fn level(&self) -> u32 {
        self.level
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        release(self.table, self.level, self.span);
    }
}

/// Takes `span`, with `lock` for each lock. If `lock` returns false, releases all, and returns `None`.
pub fn take(root: &Table, span: Span, lock: impl Fn(&Table) -> bool) -> Option<Held<'_>> {
    let (table, level) = cover(root, span, &lock)?;
    if !lock_below(table, level, span, &lock) {
        table.unlock();
        return None;
    }
    Some(Held { table, level, span })
}

/// Locks the lowest table that covers the span. Returns it with its level.
fn cover<'s>(root: &'s Table, span: Span, lock: &impl Fn(&Table) -> bool) -> Option<(&'s Table, u32)> {
    let (mut table, mut level, mut is_held) = (root, ROOT, false);
    while let Some(entry) = span.single_entry(level) {
        if let Some(below) = table.below(entry) {
            if is_held {
                table.unlock();
            }
            (table, level, is_held) = (below, level - 1, false);
        } else if is_held {
            // Without memory, this table stands for the one below.
            if table.make(entry).is_err() {
                break;
            }
        } else if lock(table) {
            is_held = true;
        } else {
            return None;
        }
    }
    (is_held || lock(table)).then_some((table, level))
}

/// Locks the tables below `table`, which is locked.
fn lock_below(table: &Table, level: u32, span: Span, lock: &impl Fn(&Table) -> bool) -> bool {
    if level == LEAF {
        return true;
    }
    for entry in span.entries(level) {
        let Some(below) = table.below(entry) else { continue };
        let part = span.under(level, entry);
        let is_locked = lock(below);
        if !is_locked || !lock_below(below, level - 1, part, lock) {
            if is_locked {
                below.unlock();
            }
            for earlier in *span.entries(level).start()..entry {
                release_entry(table, level, span, earlier);
            }
            return false;
        }
    }
    true
}

/// Releases `table` and the tables below it under the span, those below first.
fn release(table: &Table, level: u32, span: Span) {
    if level != LEAF {
        for entry in span.entries(level) {
            release_entry(table, level, span, entry);
        }
    }
    table.unlock();
}

fn release_entry(table: &Table, level: u32, span: Span, entry: u64) {
    if let Some(below) = table.below(entry) {
        release(below, level - 1, span.under(level, entry));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(first: u64, last: u64) -> Span {
        Span::new(first..=last)
    }

    fn try_take(root: &Table, span: Span) -> Option<Held<'_>> {
        take(root, span, Table::try_lock)
    }

    /// Tables in one table of level 2.
    const MIDDLE: u64 = ENTRIES;
    /// Tables in one table of level 3.
    const UPPER: u64 = ENTRIES * ENTRIES;

    #[test]
    fn spans_are_divided_at_the_borders_of_tables() {
        let wide = span(MIDDLE - 2, 3 * MIDDLE + 4);
        assert_eq!(wide.single_entry(4), Some(0));
        assert_eq!(wide.entries(3), 0..=3);
        assert_eq!(wide.under(3, 0), span(MIDDLE - 2, MIDDLE - 1));
        assert_eq!(wide.under(3, 2), span(2 * MIDDLE, 3 * MIDDLE - 1));
        assert_eq!(wide.under(3, 3), span(3 * MIDDLE, 3 * MIDDLE + 4));
        assert_eq!(span(7, 7).single_entry(LEAF), None);
        assert_eq!(span(0, u64::MAX), span(0, LAST));
        assert_eq!(span(u64::MAX, u64::MAX), span(LAST, LAST));
    }

    #[test]
    fn the_covering_table_is_the_lowest_one() {
        let root = Table::default();
        let level = |span| try_take(&root, span).unwrap().level();
        assert_eq!(level(span(5, 5)), 1);
        assert_eq!(level(span(5, 6)), 2);
        assert_eq!(level(span(MIDDLE - 1, MIDDLE)), 3);
        assert_eq!(level(span(UPPER - 1, UPPER)), 4);
        assert_eq!(level(span(0, LAST)), 4);
    }

    #[test]
    fn ranges_exclude_each_other_by_their_covering_tables() {
        let root = Table::default();
        let first = try_take(&root, span(0, 1)).unwrap();
        // Another upper table, and one above that has no table of the first range under it.
        let other = try_take(&root, span(MIDDLE, MIDDLE + 1)).unwrap();
        let third = try_take(&root, span(2 * MIDDLE, 4 * MIDDLE)).unwrap();
        assert_eq!(third.level(), 3);
        // The same covering table, although the leaf tables differ.
        assert!(try_take(&root, span(2, 3)).is_none());
        assert!(try_take(&root, span(0, LAST)).is_none());
        drop((first, other, third));
        assert!(try_take(&root, span(0, LAST)).is_some(), "a refusal releases all that it has locked");
    }

    #[test]
    fn a_table_is_excluded_under_a_locked_one_if_it_is_in_the_range_or_missing() {
        let root = Table::default();
        for table in [1, 9] {
            assert!(try_take(&root, span(table, table)).is_some());
        }
        let range = try_take(&root, span(0, 3)).unwrap();
        assert!(try_take(&root, span(1, 1)).is_none(), "in the range");
        assert!(try_take(&root, span(2, 2)).is_none(), "in the range, and missing");
        assert!(try_take(&root, span(8, 8)).is_none(), "not in the range, but missing");
        assert!(try_take(&root, span(9, 9)).is_some(), "not in the range");
        drop(range);
        assert!(try_take(&root, span(8, 8)).is_some());
    }

    #[test]
    fn a_leaf_that_is_held_keeps_ranges_above_away() {
        let root = Table::default();
        let page = try_take(&root, span(1, 1)).unwrap();
        assert!(try_take(&root, span(0, MIDDLE)).is_none());
        assert!(try_take(&root, span(2, MIDDLE)).is_some());
        drop(page);
        assert!(try_take(&root, span(0, MIDDLE)).is_some());
    }

    #[test]
    fn spans_exclude_each_other_among_threads() {
        let (root, inside) = (Table::default(), [const { AtomicU32::new(0) }; 8]);
        // Tables 0 to 7 lie around a border of upper tables.
        let numbers = |first: u64, last: u64| span(MIDDLE - 4 + first, MIDDLE - 4 + last);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (root, inside) = (&root, &inside);
                scope.spawn(move || {
                    for turn in 0..2000u64 {
                        let first = (turn * 5 + thread * 3) % 8;
                        let last = if turn % 3 == 0 { (first + turn % 5).min(7) } else { first };
                        let lock = |table: &Table| {
                            if !table.try_lock() {
                                table.lock();
                            }
                            true
                        };
                        let held = take(root, numbers(first, last), lock).unwrap();
                        let tables = &inside[first as usize..=last as usize];
                        for table in tables {
                            assert_eq!(table.fetch_add(1, Ordering::Relaxed), 0);
                        }
                        for table in tables {
                            table.fetch_sub(1, Ordering::Relaxed);
                        }
                        drop(held);
                    }
                });
            }
        });
        assert!(try_take(&root, span(0, LAST)).is_some());
    }
}
