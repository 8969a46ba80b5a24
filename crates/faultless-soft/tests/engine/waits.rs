//! Waits: the wake-ups, and their order.

use crate::zeros::Zeros;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::host::{Host, Park, Sleeper};
use faultless::protection::{Access, Protection};
use faultless::stats::Counter;
use faultless::store::GatedStore;
use faultless::{Engine, Fault, FaultError, File, Limits, MapRequest, PendingFault};
use faultless_soft::Soft;
use std::cell::RefCell;
use std::sync::Arc;

type Space = faultless::AddressSpace<Soft, faultless::design::Faultless>;
type Pending = PendingFault<Soft, faultless::design::Faultless>;

/// Pages of zeros.
const PAGES: u64 = 16;

/// Makes an engine that pins at most `pins` pages for reads, a gate before its store, and a space that maps the file.
fn world(pins: u64) -> (Arc<Engine<Soft>>, Arc<GatedStore<Zeros>>, Space, VirtAddr) {
    let limits = Limits { cached_pages: 2 * pins, ..Limits::default() };
    let engine = Engine::new(Soft::new(64).unwrap(), limits).unwrap();
    let gate = Arc::new(GatedStore::new(Zeros(PAGES)));
    let file = File::open(&engine, gate.clone()).unwrap();
    let space = Space::new(&engine).unwrap();
    let at = space.map(MapRequest::file(&file, 0, PAGES * PAGE_SIZE, Protection::READ)).unwrap();
    (engine, gate, space, at)
}

fn pending(space: &Space, at: VirtAddr, page: u64) -> Pending {
    match space.fault(VirtAddr::new(at.get() + page * PAGE_SIZE), Access::Read).unwrap() {
        Fault::Pending(pending) => pending,
        Fault::Done => panic!("page {page} came without a read"),
    }
}

fn is_done(pending: Pending) -> bool {
    matches!(pending.finish().unwrap(), Fault::Done)
}

/// A host that serves many faults is told of each one when its read ends.
#[test]
fn a_sleeper_is_woken_when_its_read_ends() {
    let (engine, gate, space, at) = world(8);
    let park = engine.host().park();
    let mut fault = pending(&space, at, 3);
    let me = park.current();
    fault.notify(me).unwrap();
    assert!(!fault.is_ready());
    std::thread::scope(|scope| {
        scope.spawn(|| gate.pass(1));
        // In a loop, since a wake-up may be spurious.
        while !fault.is_ready() {
            park.park(me);
        }
    });
    assert!(is_done(fault));
    assert_eq!(space.resident(at, PAGES * PAGE_SIZE).unwrap().iter().filter(|page| **page).count(), 1);
}

/// A name that no thread has does no harm.
#[test]
fn a_name_of_no_thread_is_never_woken() {
    let (_, gate, space, at) = world(8);
    let mut fault = pending(&space, at, 3);
    fault.notify(Sleeper(u64::MAX)).unwrap();
    gate.open();
    assert!(is_done(fault));
}

/// The same when its space exits.
#[test]
fn a_sleeper_is_woken_when_its_space_exits() {
    let (engine, gate, space, at) = world(8);
    let park = engine.host().park();
    let (mut fault, other) = (pending(&space, at, 3), Space::new(&engine).unwrap());
    let me = park.current();
    fault.notify(me).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            other.exit();
            space.exit();
        });
        while !fault.is_ready() {
            park.park(me);
        }
    });
    assert!(matches!(fault.finish(), Err(FaultError::Exited { .. })));
    gate.open();
}

/// Faults that find too many pages pinned resume in the order of their arrival, as many as there is room for. A new
/// fault waits behind them.
#[test]
fn misses_wait_for_memory_in_order() {
    let (engine, gate, space, at) = world(2);
    let me = engine.host().park().current();
    let reads = [0, 1].map(|page| pending(&space, at, page));
    let mut queued: Vec<_> = (2..6).map(|page| pending(&space, at, page)).collect();
    assert_eq!(gate.waiting(), 2, "two pages are pinned for reads, and no more");
    queued.iter_mut().for_each(|fault| fault.notify(me).unwrap());
    let ready = |queued: &[Pending]| queued.iter().map(Pending::is_ready).collect::<Vec<_>>();
    assert_eq!(ready(&queued), [false; 4]);

    gate.pass(1);
    let [first, second] = reads;
    assert!(is_done(first));
    // The read had a pin of its own, which is released; and so is the fault's.
    assert_eq!(ready(&queued), [true, false, false, false]);
    let newcomer = pending(&space, at, 9);
    assert_eq!(gate.waiting(), 1, "a new fault passes the waiting ones");
    drop(newcomer);

    let turn = queued.remove(0);
    let Fault::Pending(reading) = turn.finish().unwrap() else { panic!("its read is to come") };
    assert_eq!((gate.waiting(), ready(&queued)), (2, vec![false; 3]));
    // A fault that is dropped gives up its place, and its turn.
    drop(queued.remove(0));
    gate.pass(2);
    assert!(is_done(second));
    assert_eq!(ready(&queued), [true, false]);
    drop(queued.remove(0));
    assert_eq!(ready(&queued), [true], "the turn has passed on");
    assert!(is_done(reading));
    gate.open();
    let Fault::Pending(last) = queued.remove(0).finish().unwrap() else { panic!("it has begun a read") };
    assert!(is_done(last));
}

/// The host is told of each wait, as many and as long as the counters say, in the thread that has waited.
#[test]
fn a_trace_has_all_waits_that_are_counted() {
    thread_local! {
        static WAITS: RefCell<Vec<(Counter, u64, u64)>> = const { RefCell::new(Vec::new()) };
    }
    fn note(counter: Counter, from: u64, to: u64) {
        WAITS.with_borrow_mut(|waits| waits.push((counter, from, to)));
    }
    let limits = Limits { cached_pages: 16, ..Limits::default() };
    let engine = Engine::new(Soft::new(64).unwrap().with_trace(note), limits).unwrap();
    let gate = Arc::new(GatedStore::new(Zeros(PAGES)));
    let file = File::open(&engine, gate.clone()).unwrap();
    let space = Space::new(&engine).unwrap();
    let at = space.map(MapRequest::file(&file, 0, PAGES * PAGE_SIZE, Protection::READ)).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            space.fault_and_wait(at, Access::Read).unwrap();
            WAITS.take()
        });
        while gate.waiting() == 0 {
            std::thread::yield_now();
        }
        gate.pass(1);
        let waits = waiting.join().unwrap();
        let of = |wanted| waits.iter().filter(move |(counter, ..)| *counter == wanted);
        let told: u64 = of(Counter::IoWait).map(|(_, from, to)| to - from).sum();
        assert_eq!(told, engine.statistics().get(Counter::IoWait));
        assert_eq!(of(Counter::IoWait).count(), 1, "one read, one sleep");
    });
    assert!(WAITS.take().is_empty(), "this thread has waited for nothing");
}
