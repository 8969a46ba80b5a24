//! Waits for memory, and names that hosts give to faults: bugs that were found by adversarial tests. The tests' own
//! host runs a hook in those calls at which another thread may come between.
#![cfg(not(loom))]

mod zeros;

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::host::{Host, OutOfMemory, Park, Sleeper, StdHost, StdPark, StdServices};
use faultless::protection::{Access, Protection};
use faultless::store::{GatedStore, Store, StoreError, Transfer};
use faultless::sync::{Sections, Shared};
use faultless::{AddressSpace, Engine, Fault, File, Limits, LockMode, MapRequest, PendingFault};
use faultless_soft::{PhysicalMemory, RadixTable, Stale};
use std::cell::RefCell;
use std::sync::{Arc, Mutex};
use zeros::Zeros;

/// The number of calls to let pass, and the function to run at the next one.
type Hook = (u32, Box<dyn FnOnce()>);

thread_local! {
    /// The hook, which runs once. Each call of `Noting` counts it down, and at zero it runs.
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

fn arm(after: u32, hook: impl FnOnce() + 'static) {
    HOOK.set(Some((after, Box::new(hook))));
}

/// Counts the hook down, and runs it if its call has come.
fn run_hook() {
    let hook = HOOK.with_borrow_mut(|place| match place {
        Some((0, _)) => place.take().map(|(_, hook)| hook),
        Some((count, _)) => {
            *count -= 1;
            None
        }
        None => None,
    });
    if let Some(hook) = hook {
        hook();
    }
}

/// Removes the hook. Returns whether it has run.
fn disarm() -> bool {
    HOOK.take().is_none()
}

/// Names from here on are the host's own; their wake-ups are noted.
const OWN: u64 = 1 << 32;

#[derive(Default)]
struct Noting {
    park: StdPark,
    woken: Mutex<Vec<u64>>,
}

impl Noting {
    fn woken(&self) -> Vec<u64> {
        std::mem::take(&mut self.woken.lock().unwrap())
    }
}

impl Park for Noting {
    fn current(&self) -> Sleeper {
        run_hook();
        self.park.current()
    }
    fn park(&self, me: Sleeper) {
        run_hook();
        self.park.park(me);
    }
    fn unpark(&self, sleeper: Sleeper) {
        run_hook();
        if sleeper.0 >= OWN {
            self.woken.lock().unwrap().push(sleeper.0 - OWN);
        } else {
            self.park.unpark(sleeper);
        }
    }
    fn spin(&self, look: u32) {
        run_hook();
        self.park.spin(look);
    }
}

struct Hooked {
    memory: PhysicalMemory,
    services: StdServices<Noting>,
}

// SAFETY: as `Soft`.
unsafe impl StdHost for Hooked {
    type Table = RadixTable;
    type Frames = PhysicalMemory;
    type Park = Noting;

    fn frames(&self) -> &PhysicalMemory {
        &self.memory
    }
    fn services(&self) -> &StdServices<Noting> {
        &self.services
    }
    fn new_table(&self, sections: &Arc<Sections>) -> Result<RadixTable, OutOfMemory> {
        RadixTable::new(Arc::clone(sections))
    }
    fn invalidate_all(&self, sections: &Sections, batch: &mut [Stale], wait: impl FnMut(u32)) {
        Stale::wait_for_all(sections, batch, wait);
    }
}

type Space = AddressSpace<Hooked, Faultless>;
type Pending = PendingFault<Hooked, Faultless>;

const PAGES: u64 = 16;

struct World {
    engine: Arc<Engine<Hooked>>,
    gate: Arc<GatedStore<Zeros>>,
    file: Shared<File<Hooked>>,
    space: Space,
    at: VirtAddr,
}

fn world(cached_pages: u64) -> World {
    let limits = Limits { cached_pages, ..Limits::default() };
    let host = Hooked { memory: PhysicalMemory::new(64).unwrap(), services: StdServices::default() };
    let engine = Engine::new(host, limits).unwrap();
    let gate = Arc::new(GatedStore::new(Zeros(PAGES)));
    let file = File::open_rw(&engine, gate.clone()).unwrap();
    let space = Space::new(&engine).unwrap();
    let rights = Protection::READ | Protection::WRITE;
    let at = space.map(MapRequest::shared_file(&file, 0, PAGES * PAGE_SIZE, rights)).unwrap();
    World { engine, gate, file, space, at }
}

impl World {
    fn at(&self, page: u64) -> VirtAddr {
        VirtAddr::new(self.at.get() + page * PAGE_SIZE)
    }
    fn pending(&self, page: u64, access: Access) -> Pending {
        match self.space.fault(self.at(page), access).unwrap() {
            Fault::Pending(pending) => pending,
            Fault::Done => panic!("page {page} came without a wait"),
        }
    }
    fn park(&self) -> &Noting {
        self.engine.host().park()
    }
    /// Maps three pages, and locks them, so that reclaim leaves them.
    fn fault_three(&self) {
        for page in 0..3 {
            self.gate.pass(1);
            self.space.fault_and_wait(self.at(page), Access::Read).unwrap();
        }
        self.space.lock(self.at, 3 * PAGE_SIZE, LockMode::Now).unwrap();
    }
    /// Returns a fault on `page` that waits for memory, and wakes `name` when it can resume.
    fn waiting(&self, page: u64, name: u64) -> Pending {
        let mut fault = self.pending(page, Access::Read);
        fault.notify(Sleeper(OWN + name)).unwrap();
        assert!(!fault.is_ready(), "a page is free, but all should be in use");
        fault
    }
    /// Returns two faults that wait for memory, of which the first has its turn.
    fn first_of_two(&self) -> [Pending; 2] {
        let reading = self.pending(0, Access::Read);
        let [first, second] = [self.waiting(1, 1), self.waiting(2, 2)];
        drop(reading);
        assert!(first.is_ready() && !second.is_ready());
        [first, second]
    }
    /// Runs `change`, which frees memory, in a cache of four pages of which three are mapped and locked. A fault that waits for
    /// memory must then resume, as a new one does.
    fn frees_memory(&self, change: impl FnOnce()) {
        // A read whose store does not answer.
        let hangs = self.pending(3, Access::Read);
        let waits = self.waiting(4, 1);
        change();
        let is_ready = waits.is_ready();
        drop(waits);
        // A new fault begins a read at once.
        let newcomer = self.pending(4, Access::Read);
        let reads = self.gate.waiting();
        drop((newcomer, hangs));
        self.gate.open();
        assert_eq!(
            (reads, is_ready),
            (2, true),
            "a new fault gets memory of which the waiting fault was not told"
        );
    }
}

/// A wake-up may be spurious. Then a host gives the name again.
#[test]
fn a_sleeper_that_was_woken_for_nothing_is_woken_again() {
    let w = world(16);
    w.gate.pass(1);
    w.file.handle().write_at(0, &[1; 8]).unwrap();
    w.file.handle().start_sync();
    assert_eq!(w.gate.waiting(), 1, "the write is under way");
    let mut fault = w.pending(0, Access::Write);
    fault.notify(Sleeper(OWN + 7)).unwrap();
    assert!(!fault.is_ready());
    std::thread::scope(|scope| {
        // Locks the folio, finds that it is under writeback, and unlocks it.
        let other = scope.spawn(|| w.file.handle().write_at(8, &[2; 8]).unwrap());
        let start = std::time::Instant::now();
        let mut early = Vec::new();
        while early.is_empty() && start.elapsed().as_secs() < 2 {
            early.extend(w.park().woken());
            std::thread::yield_now();
        }
        let Fault::Pending(mut fault) = fault.finish().unwrap() else { panic!("it is being written still") };
        fault.notify(Sleeper(OWN + 7)).unwrap();
        assert!(!fault.is_ready());
        w.gate.pass(1);
        other.join().unwrap();
        assert!(fault.is_ready(), "it could go on");
        let late = w.park().woken();
        w.gate.open();
        assert_eq!(late, [7], "spuriously woken before: {early:?}");
    });
}

/// Two faults wait for memory. The first has its turn, finds none, and is dropped; meanwhile the pin that it found
/// goes. Then the second can resume. `after`: the pin goes at this call of the host's `Park` during the first one's
/// turn.
fn drops_a_pin_in_a_turn(after: u32) -> Option<bool> {
    let w = world(2);
    let [first, second] = w.first_of_two();
    // Its page is in memory, and being read: it is pinned at once.
    let again = w.pending(0, Access::Read);
    arm(after, move || drop(again));
    let result = first.finish().unwrap();
    let has_run = disarm();
    drop(result);
    w.gate.open();
    // The engine has no other pin, except perhaps that of the read.
    has_run.then(|| second.is_ready())
}

#[test]
fn a_turn_that_finds_nothing_beside_a_pin_that_goes_is_not_lost() {
    let lost: Vec<u32> = (0..100)
        .map_while(|after| Some((after, drops_a_pin_in_a_turn(after)?)))
        .filter(|x| !x.1)
        .map(|x| x.0)
        .collect();
    assert_eq!(lost, [0; 0], "the other fault sleeps for ever if the pin goes at these calls of Host::park");
}

#[test]
fn memory_that_munmap_frees_wakes_who_waits_for_memory() {
    let w = world(4);
    w.fault_three();
    w.frees_memory(|| w.space.unmap(w.at, 3 * PAGE_SIZE).unwrap());
}

/// A space exits beside reads under way. A fault of another space waits for memory, and does not fail for lack of it.
#[test]
fn reads_that_were_given_up_do_not_fail_other_faults() {
    let w = world(2);
    drop(w.pending(0, Access::Read));
    drop(w.pending(1, Access::Read));
    assert_eq!(w.gate.waiting(), 2, "both reads go on");
    let result = w.space.fault(w.at(2), Access::Read);
    let error = result.err();
    w.gate.open();
    assert_eq!(error, None, "memory comes as soon as one of the reads ends");
}

/// A fault that was notified and has its turn keeps the turn when a thread waits for the fault.
#[test]
fn a_notified_fault_that_is_waited_for_keeps_its_turn() {
    let w = world(2);
    let [first, second] = w.first_of_two();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(move || {
            let result = first.wait();
            matches!(result, Ok(Fault::Pending(_)))
        });
        std::thread::sleep(std::time::Duration::from_millis(200));
        let has_passed = second.is_ready();
        let is_over = waiter.is_finished();
        drop(second);
        let result = waiter.join().unwrap();
        w.gate.open();
        assert!(result);
        assert!(is_over || !has_passed, "the second fault has the turn, before the oldest was served");
    });
}

/// A store of zeros whose holes do not end before `go` is raised.
struct SlowHoles(Arc<std::sync::atomic::AtomicU32>);

impl Store for SlowHoles {
    fn length(&self) -> Result<u64, StoreError> {
        Zeros(PAGES).length()
    }
    fn submit(&self, transfer: Transfer) {
        Zeros(PAGES).submit(transfer);
    }
    fn set_length(&self, _: u64) -> Result<(), StoreError> {
        Ok(())
    }
    fn punch(&self, _: u64, _: u64) -> Result<(), StoreError> {
        use std::sync::atomic::Ordering;
        self.0.fetch_add(1, Ordering::SeqCst);
        while self.0.load(Ordering::SeqCst) == 1 {
            std::thread::yield_now();
        }
        Ok(())
    }
}

/// A read by handle has its turn, and waits with it for the end of a hole in its file. Faults on other files must be
/// served, since there is enough memory.
#[test]
fn a_read_that_waits_for_a_hole_does_not_keep_its_turn() {
    use std::sync::atomic::{AtomicU32, Ordering};
    let w = world(2);
    let state = Arc::new(AtomicU32::new(0));
    let slow = File::open_rw(&w.engine, Arc::new(SlowHoles(state.clone()))).unwrap();
    let reading = w.pending(0, Access::Read);
    let moment = || std::thread::sleep(std::time::Duration::from_millis(150));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| slow.handle().read_at(5 * PAGE_SIZE, &mut [0; 8]).unwrap());
        moment();
        let mut other = w.pending(1, Access::Read);
        other.notify(Sleeper(OWN + 1)).unwrap();
        let hole = scope.spawn(|| slow.handle().punch_hole(4 * PAGE_SIZE, 4 * PAGE_SIZE).unwrap());
        while state.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        assert!(!reader.is_finished() && !other.is_ready());
        drop(reading);
        moment();
        moment();
        let is_ready = other.is_ready();
        drop(other);
        state.store(2, Ordering::SeqCst);
        hole.join().unwrap();
        reader.join().unwrap();
        w.gate.open();
        assert!(
            is_ready,
            "no page is pinned, and only a read that waits for another file's hole has the turn"
        );
    });
}

/// A read has ended, and its fault is served. The thread that ends it is preempted before it releases the page. Another
/// fault waits for that moment.
#[test]
fn a_read_that_is_just_ending_does_not_fail_other_faults() {
    let w = world(1);
    let mut first = w.pending(0, Access::Read);
    first.notify(Sleeper(OWN + 1)).unwrap();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let gate = w.gate.clone();
    let ends = std::thread::spawn(move || {
        // Runs when the threads that wait for the page are woken.
        arm(0, move || gone.recv().unwrap());
        gate.open();
        disarm()
    });
    while !first.is_ready() {
        std::thread::yield_now();
    }
    assert!(matches!(first.finish(), Ok(Fault::Done)));
    w.space.unmap(w.at, PAGE_SIZE).unwrap();
    let result = w.space.fault(w.at(1), Access::Read).err();
    go.send(()).unwrap();
    assert!(ends.join().unwrap());
    assert_eq!(result, None, "the page goes as soon as that thread runs on");
}

/// madvise(MADV_WILLNEED) of as many pages as the cache has, of a slow store. Faults of all other spaces and files wait
/// for it, and get no SIGBUS.
#[test]
fn pages_that_are_read_ahead_do_not_fail_other_faults() {
    let w = world(8);
    let other = Space::new(&w.engine).unwrap();
    let quick = File::open(&w.engine, Arc::new(Zeros(PAGES))).unwrap();
    let at = other.map(MapRequest::file(&quick, 0, PAGE_SIZE, Protection::READ)).unwrap();
    w.space.advise(w.at, PAGES * PAGE_SIZE, faultless::Advice::WillNeed).unwrap();
    assert_eq!(w.gate.waiting(), 8);
    let result = other.fault(at, Access::Read).err();
    w.gate.open();
    assert_eq!(result, None, "8 reads are under way: memory comes");
}

/// The same with an engine's default limits: all frames are being read into, and a fault of anonymous memory must wait,
/// not fail.
#[test]
fn pages_that_are_read_ahead_do_not_fail_stores_to_anonymous_memory() {
    use faultless_soft::Soft;
    let engine = Engine::new(Soft::new(12).unwrap(), Limits::default()).unwrap();
    let gate = Arc::new(GatedStore::new(Zeros(PAGES)));
    let file = File::open(&engine, gate.clone()).unwrap();
    let reader = AddressSpace::<Soft, Faultless>::new(&engine).unwrap();
    let at = reader.map(MapRequest::file(&file, 0, PAGES * PAGE_SIZE, Protection::READ)).unwrap();
    let other = AddressSpace::<Soft, Faultless>::new(&engine).unwrap();
    let anonymous = other.map(MapRequest::anonymous(PAGE_SIZE)).unwrap();
    reader.advise(at, PAGES * PAGE_SIZE, faultless::Advice::WillNeed).unwrap();
    let reads = gate.waiting();
    let result = other.fault(anonymous, Access::Write).err();
    gate.open();
    assert_eq!((reads, result), (11, None), "reads are under way: memory comes");
}

/// Pages of another file are cut off, or dropped with it: their memory is free for faults that wait.
#[test]
fn a_file_that_is_cut_off_or_goes_wakes_who_waits_for_memory() {
    for is_cut in [true, false] {
        let w = world(4);
        let quick = File::open_rw(&w.engine, Arc::new(SlowHoles(Arc::default()))).unwrap();
        let handle = quick.handle();
        let locks: Vec<_> = (0..3)
            .map(|page| {
                handle.write_at(page * PAGE_SIZE, &[1]).unwrap();
                handle.sync().unwrap();
                let request = MapRequest::shared_file(&quick, page, PAGE_SIZE, Protection::READ);
                let other = Space::new(&w.engine).unwrap();
                let at = other.map(request).unwrap();
                other.fault_and_wait(at, Access::Read).unwrap();
                other.lock(at, PAGE_SIZE, LockMode::Now).unwrap();
                other
            })
            .collect();
        w.frees_memory(|| {
            if is_cut {
                handle.set_length(0).unwrap();
            } else {
                drop((handle, quick, locks));
                w.engine.flush();
            }
        });
    }
}

/// A page of a file that is pinned for I/O is unmapped, and then unpinned: its memory is free for faults that wait.
#[test]
fn a_pin_for_io_that_goes_wakes_who_waits_for_memory() {
    let w = world(4);
    w.fault_three();
    let pinned = w.space.pin(w.at(0), Access::Read).unwrap();
    w.space.unmap(w.at, PAGE_SIZE).unwrap();
    w.frees_memory(|| drop(pinned));
}
