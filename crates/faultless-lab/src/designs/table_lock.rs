//! `table-lock`: a lock for each leaf table. A fault takes the lock of its page's table. A change takes the locks of
//! all tables under its range. There is no lock of the whole space.
//!
//! The design follows CortenMM (Zhang and others, "CortenMM: Efficient Memory Management with Strong Correctness
//! Guarantees", SOSP 2025). CortenMM follows RadixVM (Clements, Kaashoek, Zeldovich, "RadixVM: Scalable address spaces
//! for multithreaded applications", EuroSys 2013).
//!
//! | here | there |
//! |---|---|
//! | a fault takes the lock of the table that has its page's entry, for the whole of its work | CortenMM: a transaction on the page locks the page-table page; RadixVM: `pagefault` locks the page's slot of the radix tree |
//! | mmap, munmap and mprotect take the locks under their range, in ascending order, until they have swept it | CortenMM: the lowest page-table page over the range, and all below it; RadixVM: the slots of the range, from left to right |
//! | a missing table has a lock too | RadixVM: the slot above stands for it; CortenMM: the page-table page above is locked |
//! | MADV_DONTNEED takes the same locks as munmap | both: every change of entries locks them |
//! | fork, exit, brk, mremap and the growth of a stack take the locks of all tables | both: the range is everything |
//! | a fault that waits for I/O holds nothing and starts over, as often as needed | CortenMM: no I/O in a transaction |
//! | [`Purpose::Rmap`] takes nothing | – |
//!
//! During reclaim for a frame, nothing is held. In both papers a fault allocates with the lock held.
//!
//! Known differences:
//! * The locks lie in a fixed array for each space. The number of a table is hashed to an index. So a lock needs no
//!   memory and no walk. Two tables share a lock in one case of 64. In CortenMM the lock lies in the table's
//!   descriptor. A change of more than 64 tables takes all locks, and does not check which tables exist.
//! * Only leaf tables have locks. CortenMM's `rw` protocol locks upper tables for reading on the way down. Its `adv`
//!   protocol does not. In CortenMM, a change of several leaf tables locks the upper one.
//! * RadixVM's locks are finer: a bit in each page's slot, as `faultless` has one in its entry. But its changes hold
//!   the bits through their sweep.
//! * There is a tree of VMAs beside the tables, with its short lock, as under every design. Both papers have none.
//! * The lock is parking_lot's, which sleeps after it has spun for a while. In the papers it spins.
//! * mmap without an address tries the locks over the place that the engine has found and claimed for it. If one is not
//!   free at once, mmap drops everything, waits for the locks, and checks whether the place is still free. In CortenMM
//!   each processor allocates from its own addresses, so mmap meets no other lock holder.
//! * Page work of the reverse map takes no lock, because its caller may already hold the range. The entry's bit keeps
//!   it apart from faults, as under every design.

use faultless::Engine;
use faultless::address::{PageNumber, PageRange};
use faultless::design::{AfterIo, Attempt, Awaits, Blocked, Call, LockingDesign, Purpose};
use faultless::host::{Clock, Host, PageTable};
use faultless::stats::Counter;
use faultless::sync::Shared;
use faultless::vma::Vma;
use faultless::vma::tree::{Tree, View};
use parking_lot::{Mutex, MutexGuard};
use std::convert::Infallible;
use std::hint::spin_loop;

/// The `table-lock` design; see the module.
#[derive(Debug)]
pub struct TableLock;

/// Number of locks in a space: one for each bit of a [`Set`].
const LOCKS: usize = 64;

/// Number of attempts at a lock before the wait is counted.
const TURNS: usize = 32;

/// Set of a space's locks, one bit each.
type Set = u64;

/// The locks of a space's leaf tables.
#[derive(Debug)]
pub struct TableLocks([Lock; LOCKS]);

/// One lock, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Lock(Mutex<()>);

impl Default for TableLocks {
    fn default() -> Self {
        Self([const { Lock(Mutex::new(())) }; LOCKS])
    }
}

type Guard<'s> = MutexGuard<'s, ()>;

/// Returns the index of the lock of the table over `page`.
#[inline]
fn lock_of<H: Host>(page: PageNumber) -> usize {
    // Neighbouring tables have different locks (Fibonacci hashing).
    let table = page.get() / H::Table::LEAF_PAGES;
    (table.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - LOCKS.ilog2())) as usize
}

/// Returns the locks of the tables under `range`.
fn locks_of<H: Host>(range: PageRange) -> Set {
    let pages = H::Table::LEAF_PAGES;
    let tables = range.start().get() / pages..=(range.end().get() - 1) / pages;
    if tables.end() - tables.start() >= LOCKS as u64 {
        return Set::MAX;
    }
    tables.fold(0, |set, table| set | 1 << lock_of::<H>(PageNumber::new(table * pages)))
}

/// Returns the indexes of a set in ascending order. So a holder of one lock never waits for a lower one.
fn numbers(mut set: Set) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let number = (set != 0).then(|| set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(number)
    })
}

impl TableLocks {
    /// Takes lock `number`. A wait of a few turns is not counted: it ends before a clock could be read.
    #[inline]
    fn take<H: Host>(&self, engine: &Engine<H>, number: usize) -> Guard<'_> {
        engine.assert_may_sleep("a table lock");
        for _ in 0..TURNS {
            if let Some(guard) = self.0[number].0.try_lock() {
                return guard;
            }
            spin_loop();
        }
        self.wait(engine, number)
    }

    #[cold]
    fn wait<H: Host>(&self, engine: &Engine<H>, number: usize) -> Guard<'_> {
        let start = engine.host().clock().now_ns();
        let guard = self.0[number].0.lock();
        engine.end_wait(Counter::TableLockWait, start);
        guard
    }
}

/// Locks that range work holds. A mmap that looks for a place holds none yet.
#[derive(Debug)]
pub struct Range<'s> {
    locks: &'s TableLocks,
    held: [Option<Guard<'s>>; LOCKS],
}

impl LockingDesign for TableLock {
    const NAME: &'static str = "table-lock";
    type Space = TableLocks;
    type Vma = ();
    type Outside<'s, H: Host> = Option<Guard<'s>>;
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
    ) -> Option<Guard<'s>> {
        match attempt.purpose {
            Purpose::Rmap => None,
            Purpose::Fault => Some(space.take(engine, lock_of::<H>(page))),
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

    fn keep<'o, 's, H: Host>(_: &Shared<TableLocks>, _: Option<Guard<'o>>, (): ()) -> Option<Infallible> {
        None
    }

    fn range_work<'s, H: Host>(
        space: &'s Shared<TableLocks>,
        engine: &'s Engine<H>,
        _: &'s Tree<Vma<H, Self>>,
        call: Call,
        range: PageRange,
    ) -> Range<'s> {
        let mut work = Range { locks: space, held: [const { None }; LOCKS] };
        if call != Call::Place {
            for number in numbers(locks_of::<H>(range)) {
                work.held[number] = Some(space.take(engine, number));
            }
        }
        work
    }

    fn placed<'s, H: Host>(work: &mut Range<'s>, place: PageRange) -> Result<(), Blocked> {
        for number in numbers(locks_of::<H>(place)) {
            if work.held[number].is_none() {
                work.held[number] = Some(work.locks.0[number].0.try_lock().ok_or(Blocked::Wait)?);
            }
        }
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

    fn range(start: u64, end: u64) -> PageRange {
        PageRange::new(PageNumber::new(start), PageNumber::new(end)).unwrap()
    }

    #[test]
    fn tables_beside_each_other_have_locks_of_their_own() {
        assert_eq!(locks_of::<Soft>(range(3, 4)), locks_of::<Soft>(range(PAGES - 1, PAGES)));
        assert_eq!(locks_of::<Soft>(range(PAGES - 1, PAGES + 1)).count_ones(), 2);
        assert_eq!(locks_of::<Soft>(range(0, 16 * PAGES)).count_ones(), 16);
        let used =
            (0..640).fold(0, |set: Set, table| set | 1 << lock_of::<Soft>(PageNumber::new(table * PAGES)));
        assert_eq!(used, Set::MAX, "all locks are used");
        assert_eq!(locks_of::<Soft>(range(0, 1 << 36)), Set::MAX);
        assert!(numbers(0b1010_0001).eq([0, 5, 7]));
    }

    /// A fault on another table runs beside a change. A fault on the same table waits for the change to end.
    #[test]
    fn a_change_keeps_faults_off_its_tables() {
        let engine = Engine::new(Soft::new(16).unwrap(), Limits::default()).unwrap();
        let (locks, waited) = (Shared::try_new(TableLocks::default()).unwrap(), Duration::from_millis(50));
        scope(|scope| {
            let change = locks.take(&engine, lock_of::<Soft>(PageNumber::new(2)));
            let (ended, end) = channel();
            for page in [1, PAGES + 1] {
                let (locks, engine, ended) = (&locks, &engine, ended.clone());
                scope.spawn(move || {
                    drop(locks.take(engine, lock_of::<Soft>(PageNumber::new(page))));
                    ended.send(page).unwrap();
                });
            }
            assert_eq!(end.recv().unwrap(), PAGES + 1);
            assert!(end.recv_timeout(waited).is_err(), "the fault on the same table waits for the change");
            drop(change);
            assert_eq!(end.recv().unwrap(), 1);
        });
        assert!(engine.statistics().get(Counter::TableLockWait) > 0);
    }
}
