//! `table-lock`: a lock for each page table. A fault takes the lock of its page's leaf table. A change takes the lowest
//! table that covers its range, and all tables below it under the range. There is no lock of the whole space.
//!
//! The design follows CortenMM (Zhang and others, "CortenMM: Efficient Memory Management with Strong Correctness
//! Guarantees", SOSP 2025), in its `adv` protocol: threads go down the tables without locks, under RCU. CortenMM follows
//! RadixVM (Clements, Kaashoek, Zeldovich, "RadixVM: Scalable address spaces for multithreaded applications", EuroSys
//! 2013). [`tree`] has the locks and their order.
//!
//! | here | there |
//! |---|---|
//! | a fault takes the lock of the table that has its page's entry, for the whole of its work | CortenMM: a transaction on the page locks the page-table page; RadixVM: `pagefault` locks the page's slot of the radix tree |
//! | mmap, munmap and mprotect take the lowest table over their range, and those below it under their range, in ascending order, until they have swept it | CortenMM: `lock_range`, by `try_traverse_and_lock_subtree_root` and `dfs_acquire_lock` in `ostd/src/mm/page_table/cursor/locking.rs` of Asterinas; RadixVM: the slots of the range, from left to right |
//! | a fault that finds its leaf table without a lock first takes the table above, and so waits for a change that covers it | CortenMM: a missing table is made with the one above locked; RadixVM: the slot above stands for it |
//! | MADV_DONTNEED takes the same locks as munmap | both: every change of entries locks them |
//! | fork, exit, brk, mremap and the growth of a stack take the root and all tables | both: the range is everything |
//! | a fault that waits for I/O holds nothing and starts over, as often as needed | CortenMM: no I/O in a transaction |
//! | [`Purpose::Rmap`] takes nothing | – |
//!
//! During reclaim for a frame, nothing is held. In both papers a fault allocates with the lock held.
//!
//! Known differences:
//! * The locks are in a tree of their own, beside the page tables. In CortenMM a lock lies in its table's descriptor, so
//!   that one walk finds both. Here a fault walks twice.
//! * A table's lock is made when the table is first taken, and stays until the space ends. CortenMM frees a table that an
//!   unmap has emptied, marks it as stray, and a thread that has waited for its lock starts over.
//! * A lock stands for a table of 512 entries on each of four levels, regardless of the upper tables of the host.
//! * If there is no memory for a lock, the table above is taken in its place. In CortenMM the transaction fails.
//! * CortenMM's `rw` protocol, which locks the upper tables for reading on the way down, is not modelled.
//! * RadixVM's locks are finer: a bit in each page's slot, as `faultless` has one in its entry. But its changes hold
//!   the bits through their sweep.
//! * There is a tree of VMAs beside the tables, with its short lock, as under every design. Both papers have none.
//!   CortenMM notes a mapping in the entries of the covering table, and so leaves most mmaps without a table below.
//! * The lock sleeps after it has spun for a while. In the papers it spins, with preemption off.
//! * mmap without an address tries the locks over the place that the engine has found and claimed for it. If one is not
//!   free at once, mmap drops everything, waits for the locks, and checks whether the place is still free. In CortenMM
//!   each processor allocates from its own addresses, so mmap meets no other lock holder.
//! * Page work of the reverse map takes no lock, because its caller may already hold the range. The entry's bit keeps
//!   it apart from faults, as under every design.

mod tree;

use faultless::Engine;
use faultless::address::{PageNumber, PageRange};
use faultless::design::{AfterIo, Attempt, Awaits, Blocked, Call, LockingDesign, Purpose};
use faultless::host::{Clock, Host, PageTable};
use faultless::stats::Counter;
use faultless::sync::Shared;
use faultless::vma::Vma;
use faultless::vma::tree::{Tree, View};
use std::convert::Infallible;
use std::hint::spin_loop;
use tree::{Held, Span, Table};

/// The `table-lock` design; see the module.
#[derive(Debug)]
pub struct TableLock;

/// Number of attempts at a lock before the wait is counted.
const TURNS: usize = 32;

/// The locks of a space's tables: that of the root, from which the others hang.
#[derive(Debug, Default)]
pub struct TableLocks(Table);

/// Returns the leaf tables under `range`.
#[inline]
fn span_of<H: Host>(range: PageRange) -> Span {
    let pages = H::Table::LEAF_PAGES;
    Span::new(range.start().get() / pages..=(range.end().get() - 1) / pages)
}

/// Takes the lock of one table. A wait of a few turns is not counted: it ends before a clock could be read.
#[inline]
fn lock<H: Host>(engine: &Engine<H>, table: &Table) {
    engine.assert_may_sleep("a table lock");
    for _ in 0..TURNS {
        if table.try_lock() {
            return;
        }
        spin_loop();
    }
    wait(engine, table);
}

#[cold]
fn wait<H: Host>(engine: &Engine<H>, table: &Table) {
    let start = engine.host().clock().now_ns();
    table.lock();
    engine.end_wait(Counter::TableLockWait, start);
}

impl TableLocks {
    /// Takes a span of tables. May sleep.
    #[inline]
    fn take<H: Host>(&self, engine: &Engine<H>, span: Span) -> Option<Held<'_>> {
        let lock = |table: &Table| {
            lock(engine, table);
            true
        };
        tree::take(&self.0, span, lock)
    }
}

/// Locks that range work holds. A mmap that looks for a place holds none yet.
#[derive(Debug)]
pub struct Range<'s> {
    locks: &'s TableLocks,
    held: Option<Held<'s>>,
}

impl LockingDesign for TableLock {
    const NAME: &'static str = "table-lock";
    type Space = TableLocks;
    type Vma = ();
    type Outside<'s, H: Host> = Option<Held<'s>>;
    type Inside<'s, H: Host> = ();
    type Kept = Infallible;
    type Range<'s, H: Host> = Range<'s>;
    /// Range work on the whole space already holds all locks.
    type Fork<'s, H: Host> = ();

    #[inline]
    fn outside<'s, H: Host>(
        space: &'s Shared<TableLocks>,
        engine: &'s Engine<H>,
        page: PageNumber,
        attempt: Attempt,
    ) -> Option<Held<'s>> {
        match attempt.purpose {
            Purpose::Rmap => None,
            Purpose::Fault => {
                let table = page.get() / H::Table::LEAF_PAGES;
                space.take(engine, Span::new(table..=table))
            }
        }
    }

    #[inline]
    fn inside<'s, H: Host>(
        _: &'s Shared<TableLocks>,
        _: &'s Engine<H>,
        _: View<'s, Vma<H, Self>>,
        _: PageNumber,
        _: Attempt,
    ) -> Result<(), Blocked> {
        Ok(())
    }

    fn blocked<H: Host>(_: &Shared<TableLocks>, _: &Engine<H>, _: &mut Attempt) {}

    fn after_io(_: Attempt, _: Awaits) -> AfterIo {
        AfterIo::Retry
    }

    fn keep<'o, 's, H: Host>(_: &Shared<TableLocks>, _: Option<Held<'o>>, (): ()) -> Option<Infallible> {
        None
    }

    fn range_work<'s, H: Host>(
        space: &'s Shared<TableLocks>,
        engine: &'s Engine<H>,
        _: &'s Tree<Vma<H, Self>>,
        call: Call,
        range: PageRange,
    ) -> Range<'s> {
        let held = if call == Call::Place { None } else { space.take(engine, span_of::<H>(range)) };
        Range { locks: space, held }
    }

    fn placed<'s, H: Host>(work: &mut Range<'s>, place: PageRange) -> Result<(), Blocked> {
        let span = span_of::<H>(place);
        if work.held.as_ref().is_some_and(|held| held.is(span)) {
            return Ok(());
        }
        // Another place than the one that was locked, which is of no use now.
        work.held = None;
        work.held = Some(tree::take(&work.locks.0, span, Table::try_lock).ok_or(Blocked::Wait)?);
        Ok(())
    }

    fn fork<'s, H: Host>(_: &'s Shared<TableLocks>, _: &'s Engine<H>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use faultless::Limits;
    use faultless_soft::Soft;
    use std::sync::mpsc::channel;
    use std::thread::scope;
    use std::time::Duration;

    const PAGES: u64 = <<Soft as Host>::Table as PageTable>::LEAF_PAGES;
    /// Pages under one table of the level above the leaves.
    const UPPER: u64 = 512 * PAGES;
    const A_WHILE: Duration = Duration::from_millis(50);

    fn range(start: u64, end: u64) -> PageRange {
        PageRange::new(PageNumber::new(start), PageNumber::new(end)).unwrap()
    }

    fn engine() -> std::sync::Arc<Engine<Soft>> {
        Engine::new(Soft::new(16).unwrap(), Limits::default()).unwrap()
    }

    #[test]
    fn spans_are_of_whole_tables() {
        assert_eq!(span_of::<Soft>(range(3, 4)), span_of::<Soft>(range(PAGES - 1, PAGES)));
        assert_eq!(span_of::<Soft>(range(PAGES - 1, PAGES + 1)), Span::new(0..=1));
    }

    /// Takes each range in a thread of its own while `change` is taken. Checks that the `free` ones are taken beside it,
    /// and that the others wait for its end.
    fn beside(change: PageRange, free: &[PageRange], waiting: &[PageRange]) {
        let engine = engine();
        let locks = TableLocks::default();
        let (ended, end) = channel();
        scope(|scope| {
            let change = locks.take(&engine, span_of::<Soft>(change));
            for other in free.iter().chain(waiting).copied() {
                let (locks, engine, ended) = (&locks, &engine, ended.clone());
                scope.spawn(move || {
                    drop(locks.take(engine, span_of::<Soft>(other)));
                    ended.send(other).unwrap();
                });
            }
            for _ in free {
                let other = end.recv().unwrap();
                assert!(free.contains(&other), "{other:?} does not wait");
            }
            assert!(end.recv_timeout(A_WHILE).is_err(), "one does not wait");
            drop(change);
            for _ in waiting {
                assert!(waiting.contains(&end.recv().unwrap()));
            }
        });
        assert!(engine.statistics().get(Counter::TableLockWait) > 0);
    }

    #[test]
    fn a_change_keeps_faults_off_its_tables() {
        beside(range(2, 3), &[range(PAGES + 1, PAGES + 2)], &[range(1, 2)]);
    }

    #[test]
    fn a_range_takes_its_covering_upper_table() {
        let elsewhere = range(UPPER, UPPER + 2 * PAGES);
        let page_elsewhere = range(UPPER + 9, UPPER + 10);
        // Page work under the locked table, and a range with the same covering table and other leaf tables.
        let page = range(PAGES, PAGES + 1);
        let same = range(8 * PAGES, 10 * PAGES);
        beside(range(0, 2 * PAGES), &[elsewhere, page_elsewhere], &[page, same]);
    }

    /// A place that is refused leaves nothing locked, and another place takes the locks of the first.
    #[test]
    fn a_place_is_tried() {
        let engine = engine();
        let locks = TableLocks::default();
        let mut work = Range { locks: &locks, held: None };
        let placed = |work: &mut Range<'_>, place| <TableLock as LockingDesign>::placed::<Soft>(work, place);
        assert_eq!(placed(&mut work, range(0, 1)), Ok(()));
        assert_eq!(placed(&mut work, range(PAGES, PAGES + 1)), Ok(()));
        let fault = locks.take(&engine, span_of::<Soft>(range(0, 1)));
        assert_eq!(placed(&mut work, range(0, 1)), Err(Blocked::Wait));
        drop(fault);
        drop(locks.take(&engine, span_of::<Soft>(range(0, 2 * PAGES))));
    }
}
