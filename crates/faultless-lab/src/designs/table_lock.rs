//! `table-lock`: a lock for each leaf table. A fault takes that of its page, a change those under its range; there is no lock
//! of the whole space. As in CortenMM (Zhang and others, "CortenMM: Efficient Memory Management with Strong Correctness
//! Guarantees", SOSP 2025), which follows RadixVM (Clements, Kaashoek, Zeldovich, "RadixVM: Scalable address spaces for
//! multithreaded applications", EuroSys 2013).
//!
//! | here | there |
//! |---|---|
//! | a fault takes the lock of the table that its page's entry is in, for the whole of its work | CortenMM: a transaction on the page locks the page-table page; RadixVM: `pagefault` locks the page's slot of the radix tree |
//! | mmap, munmap and mprotect take those under their range, upwards, until they have swept it | CortenMM: the lowest page-table page over the range, and all below it; RadixVM: the slots of the range, from left to right |
//! | a table that is not there has its lock all the same | RadixVM: the slot above stands for it; CortenMM: the page-table page above is locked |
//! | MADV_DONTNEED as munmap | both: whoever changes entries locks them |
//! | fork, exit, brk, mremap and the growing of a stack: all tables | both: the range is everything |
//! | a fault that waits for I/O keeps nothing, starts over, and may do so as often as it takes | CortenMM: no I/O in a transaction |
//! | [`Purpose::Rmap`] takes nothing | – |
//!
//! Kept while room is made for a frame: nothing. There a fault allocates with the lock held.
//!
//! Differences that are known:
//! * The locks lie in a fixed array a space, which the number of a table is hashed to: no memory is needed for one, nor a
//!   walk. Two tables have the same lock at times, one in 64; there the lock lies in the table's descriptor. Who wants as many
//!   tables as that takes all locks, and does not look which tables there are.
//! * Only leaf tables have locks. CortenMM's `rw` protocol locks upper ones for reading on the way down, its `adv` protocol
//!   does not; a change that reaches over several leaf tables locks the upper one there.
//! * RadixVM's locks are finer: a bit in each page's slot, as `faultless` has one in its entry; but its changes hold
//!   them through their sweep.
//! * There is a tree of VMAs beside the tables, with its short lock, as under every design; both papers have none.
//! * The lock is parking_lot's, which sleeps when it has spun for a while; there it spins.
//! * mmap without an address tries the locks over the place that the engine has found and claimed for it; if one is not to be
//!   had at once, it lets go of everything, waits for them, and looks whether the place is still free. There each
//!   processor has addresses of its own to give away (CortenMM), so that it meets nobody's locks.
//! * Who comes by the file or the folio does not take the lock, since he may have taken the range already; the entry's
//!   bit keeps him apart from faults, as under every design.

use faultless::Engine;
use faultless::address::{PageNumber, PageRange};
use faultless::design::{AfterIo, Attempt, Blocked, Call, LockingDesign, Purpose};
use faultless::host::{Clock, Host, OutOfMemory, PageTable};
use faultless::stats::Counter;
use faultless::sync::Shared;
use faultless::vma::Vma;
use faultless::vma::tree::{Tree, View};
use parking_lot::{Mutex, MutexGuard};
use std::convert::Infallible;
use std::hint::spin_loop;

/// The design; see the module.
#[derive(Debug)]
pub struct TableLock;

/// How many locks a space has: one for each bit of a [`Set`].
const LOCKS: usize = 64;

/// Looks at a lock before its wait is counted.
const TURNS: usize = 32;

/// Some of a space's locks.
type Set = u64;

/// The locks of a space's leaf tables.
#[derive(Debug)]
pub struct TableLocks([Lock; LOCKS]);

/// A cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Lock(Mutex<()>);

impl Default for TableLocks {
    fn default() -> Self {
        Self([const { Lock(Mutex::new(())) }; LOCKS])
    }
}

type Guard<'s> = MutexGuard<'s, ()>;

/// Which lock the table over `page` has.
#[inline]
fn lock_of<H: Host>(page: PageNumber) -> usize {
    // Neighbours have different ones (Fibonacci hashing).
    let table = page.get() / H::Table::LEAF_PAGES;
    (table.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - LOCKS.ilog2())) as usize
}

/// Which locks the tables under `range` have.
fn locks_of<H: Host>(range: PageRange) -> Set {
    let pages = H::Table::LEAF_PAGES;
    let tables = range.start().get() / pages..=(range.end().get() - 1) / pages;
    if tables.end() - tables.start() >= LOCKS as u64 {
        return Set::MAX;
    }
    tables.fold(0, |set, table| set | 1 << lock_of::<H>(PageNumber::new(table * pages)))
}

/// The locks of a set, upwards: nobody who has one waits for a lower one.
fn numbers(mut set: Set) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let number = (set != 0).then(|| set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(number)
    })
}

impl TableLocks {
    /// A wait of some turns is not counted: it is over before a clock is read.
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

/// What range work holds; of a mmap that looks for a place nothing yet.
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
    /// Range work on the whole space has all locks.
    type Fork<'s, H: Host> = ();

    fn new_vma() -> Result<(), OutOfMemory> {
        Ok(())
    }

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

    fn after_io(_: Attempt) -> AfterIo {
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
        assert_eq!(used, Set::MAX, "all are used");
        assert_eq!(locks_of::<Soft>(range(0, 1 << 36)), Set::MAX);
        assert!(numbers(0b1010_0001).eq([0, 5, 7]));
    }

    /// Who wants the other table goes on beside a change, who wants the same one waits for its end.
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
            assert!(end.recv_timeout(waited).is_err(), "it waits for the change");
            drop(change);
            assert_eq!(end.recv().unwrap(), 1);
        });
        assert!(engine.statistics().get(Counter::TableLockWait) > 0);
    }
}
