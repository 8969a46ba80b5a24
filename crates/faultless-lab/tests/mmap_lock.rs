//! Who waits on each edge of `mmap-lock` while a store is stalled: the first attempt lets go for its I/O, the second
//! holds the lock through it, and a waiting writer holds new readers back.

use faultless::address::PAGE_SIZE;
use faultless::protection::{Access, Protection};
use faultless::stats::Counter;
use faultless::store::{FileStore, GatedStore};
use faultless::{AddressSpace, Engine, Fault, File, Limits, MapRequest, PendingFault};
use faultless_lab::designs::MmapLock;
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::scope;
use std::time::{Duration, Instant};

type Space = AddressSpace<Soft, MmapLock>;
type Gate = Arc<GatedStore<FileStore>>;

/// Long enough for a thread that can go on to have done so.
const A_WHILE: Duration = Duration::from_millis(100);
/// No test waits longer.
const TOO_LONG: Duration = Duration::from_secs(20);

fn space() -> (Space, Arc<File<Soft>>, Gate) {
    let engine = Engine::new(Soft::new(256).expect("frames"), Limits::default()).expect("an engine");
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(4 * PAGE_SIZE).expect("four pages");
    let gate = Arc::new(GatedStore::new(FileStore::from_file(file).expect("a store")));
    let file = File::open(&engine, gate.clone()).expect("a length");
    (Space::new(&engine).expect("a space"), file, gate)
}

fn map_a_page(space: &Space) {
    space.map(MapRequest::anonymous(PAGE_SIZE)).expect("a mapping");
}

fn pending(fault: Fault<Soft, MmapLock>) -> PendingFault<Soft, MmapLock> {
    match fault {
        Fault::Pending(pending) => pending,
        Fault::Done => panic!("the page was there"),
    }
}

/// Whether `call` ends before the gate opens; it is opened in the end, so that `call` ends anyhow.
fn goes_on(gate: &Gate, call: impl FnOnce() + Send) -> bool {
    scope(|scope| {
        let (ended, end) = channel();
        scope.spawn(move || {
            call();
            let _ = ended.send(());
        });
        let goes_on = end.recv_timeout(A_WHILE).is_ok();
        gate.open();
        goes_on || end.recv_timeout(TOO_LONG).map(|()| false).expect("it ends when the read has")
    })
}

#[test]
fn the_first_attempt_lets_go_for_its_read() {
    let (space, file, gate) = space();
    let start = space.map(MapRequest::file(&file, 0, PAGE_SIZE, Protection::READ)).expect("a mapping");
    let fault = pending(space.fault(start, Access::Read).expect("no error"));
    let writer = || map_a_page(&space);
    assert!(goes_on(&gate, writer), "map waits for the read");
    assert!(matches!(fault.wait(), Ok(Fault::Done)));
    let counted = space.engine().statistics();
    assert_eq!((counted.get(Counter::MmapLockRead), counted.get(Counter::Retries)), (2, 1));
}

/// A fault whose page was gone when it came back.
fn second_attempt(space: &Space, file: &Arc<File<Soft>>, gate: &Gate) -> PendingFault<Soft, MmapLock> {
    let start = space.map(MapRequest::file(file, 0, PAGE_SIZE, Protection::READ)).expect("a mapping");
    let first = pending(space.fault(start, Access::Read).expect("no error"));
    // Cut off and there again: what was read is not the file's any more.
    file.set_length(0);
    file.set_length(4 * PAGE_SIZE);
    gate.pass(1);
    let second = pending(first.wait().expect("no error"));
    assert_eq!(space.engine().statistics().get(Counter::RetriesPageGone), 1);
    second
}

#[test]
fn the_second_attempt_holds_the_lock_through_its_read() {
    let (space, file, gate) = space();
    let second = second_attempt(&space, &file, &gate);
    let (waiter, writer_gate) = (space.clone(), gate.clone());
    scope(|scope| {
        // What it keeps goes along to the thread that waits.
        let fault = scope.spawn(move || second.wait());
        let writer = move || map_a_page(&waiter);
        assert!(!goes_on(&writer_gate, writer), "map does not wait for the read");
        assert!(matches!(fault.join().expect("no panic"), Ok(Fault::Done)));
    });
    assert!(space.engine().statistics().get(Counter::MmapLockWait) > 0);
}

#[test]
fn a_waiting_writer_holds_readers_back() {
    let (space, file, gate) = space();
    let other = space.map(MapRequest::anonymous(PAGE_SIZE)).expect("a mapping");
    let second = second_attempt(&space, &file, &gate);
    scope(|scope| {
        scope.spawn(|| {
            let before = space.engine().statistics().get(Counter::MmapLockWrite);
            scope.spawn(|| space.fork().map(drop).expect("a child"));
            let deadline = Instant::now() + TOO_LONG;
            while space.engine().statistics().get(Counter::MmapLockWrite) == before {
                assert!(Instant::now() < deadline, "fork does not come to the lock");
                std::thread::sleep(Duration::from_millis(1));
            }
            // Counted just before it waits.
            std::thread::sleep(A_WHILE);
            let reader = || space.store_u64(other, 1).expect("a store");
            assert!(!goes_on(&gate, reader), "a fault overtakes the fork that waits");
        });
        assert!(matches!(second.wait(), Ok(Fault::Done)));
    });
}

#[test]
fn a_fault_given_up_lets_go() {
    let (space, file, gate) = space();
    drop(second_attempt(&space, &file, &gate));
    let writer = || map_a_page(&space);
    assert!(goes_on(&gate, writer), "the lock is still held");
}
