//! Models of a design that looks the VMA up before it sets the bit, and confirms it afterwards by a count of changes.
//! It is the laboratory's `speculative`, with a lock that loom knows in place of mmap_lock. As `loom.rs`.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_design`
#![cfg(loom)]

#[expect(dead_code, reason = "other models use it")]
mod models;

use faultless::address::{PAGE_SIZE, PageNumber, PageRange};
use faultless::design::{AfterIo, Attempt, Awaits, Blocked, Call, Capability, LockingDesign, Purpose};
use faultless::host::Host;
use faultless::protection::Access;
use faultless::sync::atomic::{AtomicU64, Ordering};
use faultless::sync::{Mutex, MutexGuard, Shared, full_fence};
use faultless::vma::Vma;
use faultless::vma::tree::{Tree, View};
use faultless::{AddressSpace, Engine, FaultError, Limits};
use faultless_soft::{AccessError, Cpu, Soft};
use models::{at, beside, end, map, model};
use std::convert::Infallible;
use std::sync::Arc;

struct Counted;

#[derive(Default)]
struct CountedLock {
    lock: Mutex<()>,
    /// Odd while a change is under way.
    changes: AtomicU64,
}

enum Outside<'s> {
    Lock { _guard: MutexGuard<'s, ()> },
    Count(u64),
    Nothing,
}

struct Change<'s> {
    space: &'s CountedLock,
    _guard: MutexGuard<'s, ()>,
}

impl CountedLock {
    fn seen(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn step(&self, order: Ordering) {
        self.changes.store(self.changes.load(Ordering::Relaxed) + 1, order);
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.space.step(Ordering::Release);
    }
}

impl LockingDesign for Counted {
    const NAME: &'static str = "counted";
    type Space = CountedLock;
    type Vma = ();
    type Outside<'s, H: Host> = Outside<'s>;
    type Inside<'s, H: Host> = Option<&'s Vma<H, Self>>;
    type Kept = Infallible;
    type Range<'s, H: Host> = Change<'s>;
    type Fork<'s, H: Host> = ();

    fn outside<'s, H: Host>(
        space: &'s Shared<CountedLock>,
        _: &'s Engine<H>,
        _: PageNumber,
        attempt: Attempt,
    ) -> Outside<'s> {
        match attempt.purpose {
            Purpose::Rmap => Outside::Nothing,
            Purpose::Fault if attempt.slow => Outside::Lock { _guard: space.lock.lock() },
            Purpose::Fault => Outside::Count(space.seen()),
        }
    }

    fn inside<'s, H: Host>(
        space: &'s Shared<CountedLock>,
        _: &'s Engine<H>,
        view: View<'s, Vma<H, Self>>,
        page: PageNumber,
        attempt: Attempt,
    ) -> Result<Option<&'s Vma<H, Self>>, Blocked> {
        if attempt.slow || attempt.purpose == Purpose::Rmap {
            return Ok(None);
        }
        if !space.seen().is_multiple_of(2) {
            return Err(Blocked::Wait);
        }
        view.find(page).map(Some).ok_or(Blocked::Wait)
    }

    fn found<'s, H: Host>(inside: &Self::Inside<'s, H>) -> Option<&'s Vma<H, Self>> {
        *inside
    }

    fn confirm<H: Host>(space: &Shared<CountedLock>, outside: &Outside<'_>) -> Result<(), Blocked> {
        match outside {
            Outside::Count(count) if *count != space.seen() => Err(Blocked::Wait),
            _ => Ok(()),
        }
    }

    fn allows<H: Host>(
        _: &Shared<CountedLock>,
        _: &Engine<H>,
        attempt: Attempt,
        _: Capability,
    ) -> Result<(), Blocked> {
        if attempt.slow { Ok(()) } else { Err(Blocked::Wait) }
    }

    fn blocked<H: Host>(_: &Shared<CountedLock>, _: &Engine<H>, attempt: &mut Attempt) {
        attempt.slow = true;
    }

    fn after_io(_: Attempt, _: Awaits) -> AfterIo {
        AfterIo::Retry
    }

    fn keep<'o, 's, H: Host>(
        _: &Shared<CountedLock>,
        _: Outside<'o>,
        _: Self::Inside<'s, H>,
    ) -> Option<Infallible> {
        None
    }

    fn range_work<'s, H: Host>(
        space: &'s Shared<CountedLock>,
        _: &'s Engine<H>,
        _: &'s Tree<Vma<H, Self>>,
        _: Call,
        _: PageRange,
    ) -> Change<'s> {
        let guard = space.lock.lock();
        space.step(Ordering::Relaxed);
        full_fence();
        Change { space, _guard: guard }
    }

    fn fork<'s, H: Host>(_: &'s Shared<CountedLock>, _: &'s Engine<H>) {}
}

type Space = AddressSpace<Soft, Counted>;

fn machine() -> (Arc<Engine<Soft>>, Space) {
    let engine = Engine::new(Soft::new(6).expect("six frames"), Limits::default()).expect("an engine");
    let space = Space::new(&engine).expect("a space");
    (engine, space)
}

/// Invariant 3: no access succeeds after unmap has returned, although the fault has looked the VMA up before.
#[test]
fn a_speculation_against_unmap() {
    model(3, || {
        let (engine, space) = machine();
        // The next page stays mapped, and with it the leaf table and the record, so that the fault needs neither.
        map(&space, 0, 2);
        space.store_u64(at(0), 1).unwrap();
        let fault = beside(&space, move |other| {
            let _ = other.fault(at(1), Access::Write);
        });
        space.unmap(at(1), PAGE_SIZE).unwrap();
        fault.join().unwrap();
        let seen = space.load_u64(at(1));
        let is_unmapped = matches!(seen, Err(AccessError::Fault(FaultError::NoMapping { .. })));
        assert!(is_unmapped, "invariant 3: an access succeeds after unmap");
        end(&engine, space);
    });
}

/// Invariant 7: the child never sees the second store without the first. Only the count keeps speculations out of fork.
#[test]
fn a_speculation_against_fork() {
    model(3, || {
        let (engine, space) = machine();
        map(&space, 0, 2);
        space.store_u64(at(0), 0).unwrap();
        space.store_u64(at(1), 0).unwrap();
        let stores = beside(&space, move |other| {
            other.store_u64(at(0), 1).unwrap();
            other.store_u64(at(1), 1).unwrap();
        });
        let child = space.fork().unwrap();
        let cut = (child.load_u64(at(0)).unwrap(), child.load_u64(at(1)).unwrap());
        assert_ne!(cut, (0, 1), "invariant 7: the child sees the second store without the first");
        stores.join().unwrap();
        drop(child);
        end(&engine, space);
    });
}
