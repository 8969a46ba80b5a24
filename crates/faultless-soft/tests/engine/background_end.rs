//! The end of an engine, of which the background worker has a part: its thread ends, and nothing of the engine stays.

use crate::devices::compressed;
use crate::stuck::Stuck;
use crate::until;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::store::Transfer;
use faultless::swap::SwapDevice;
use faultless::{AddressSpace, Engine, LimitConfig, Limits, MapRequest, MemoryLimit, Placement, Reserve};
use faultless_soft::{Cpu, Soft};
use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

const FRAMES: u64 = 256;

/// Notes the end of a thread, when its thread-local values are dropped.
struct NotesEnd(Arc<AtomicBool>);

impl Drop for NotesEnd {
    fn drop(&mut self) {
        // A thread that does not wait for the end mostly comes to its look before this.
        (0..1_000).for_each(|_| std::thread::yield_now());
        self.0.store(true, Ordering::Release);
    }
}

thread_local! {
    static END: RefCell<Option<NotesEnd>> = const { RefCell::new(None) };
}

/// A device that notes the end of the background worker's thread, if that has called it.
struct Watched {
    device: Arc<dyn SwapDevice>,
    has_worker: AtomicBool,
    has_ended: Arc<AtomicBool>,
}

impl Watched {
    fn new(device: Arc<dyn SwapDevice>) -> Arc<Self> {
        Arc::new(Self { device, has_worker: AtomicBool::new(false), has_ended: Arc::default() })
    }
}

impl SwapDevice for Watched {
    fn capacity(&self) -> u64 {
        self.device.capacity()
    }

    fn reserve(&self) -> Option<u64> {
        self.device.reserve()
    }

    fn release(&self, place: u64) {
        self.device.release(place);
    }

    fn submit(&self, transfer: Transfer) {
        if std::thread::current().name() == Some("faultless-behind") {
            END.with_borrow_mut(|end| _ = end.get_or_insert_with(|| NotesEnd(self.has_ended.clone())));
            self.has_worker.store(true, Ordering::Release);
        }
        self.device.submit(transfer);
    }
}

/// Makes an engine that keeps 10 to 20 % of its frames free.
fn engine(device: Arc<dyn SwapDevice>) -> Arc<Engine<Soft>> {
    let limits = Limits { reserve: Reserve::per_mille(100, 200).unwrap(), ..Limits::default() };
    let engine = Engine::new(Soft::with_caches(FRAMES).unwrap(), limits).unwrap();
    engine.add_swap(device).unwrap();
    engine
}

/// Stores into as many pages as the machine has frames, so that the worker has work. Returns the space, and its group.
fn fill(engine: &Arc<Engine<Soft>>) -> (AddressSpace<Soft>, MemoryLimit<Soft>) {
    let limit = MemoryLimit::new(engine, LimitConfig { high: FRAMES / 2, max: LimitConfig::NONE }).unwrap();
    let space = AddressSpace::new_in(engine, &limit).unwrap();
    let first = VirtAddr::new(1024 * PAGE_SIZE);
    space.map(MapRequest::anonymous(FRAMES * PAGE_SIZE).at(Placement::Fixed(first))).unwrap();
    for page in 0..FRAMES {
        // Words that differ, so that each page goes to the device.
        space.store_u64(VirtAddr::new(first.get() + page * PAGE_SIZE + 8), page + 1).unwrap();
    }
    (space, limit)
}

/// Checks that nothing has the engine or its device any more.
#[track_caller]
fn is_gone(engine: &Weak<Engine<Soft>>, device: &Arc<Watched>) {
    assert_eq!(engine.strong_count(), 0, "the engine is still there");
    assert_eq!(Arc::strong_count(device), 1, "the engine's device is still in use");
    assert!(device.has_ended.load(Ordering::Acquire), "the worker's thread goes on");
}

/// The last handle of a host's goes while the worker is in the device. The worker's owner is dropped after that: when it returns, the
/// thread has ended, and the engine is gone with all that it had.
#[test]
fn an_engine_that_is_dropped_while_its_worker_works_is_gone_with_the_worker() {
    for _ in 0..4 {
        let stuck = Stuck::new(compressed());
        let device = Watched::new(stuck.clone());
        let engine = engine(device.clone());
        let worker = engine.spawn_background().unwrap();
        let memory = fill(&engine);
        until("the worker is at the device", || stuck.has_worker());
        let weak = Arc::downgrade(&engine);
        drop(memory);
        drop(engine);
        let is_kept = weak.strong_count() != 0;
        stuck.let_go();
        drop(worker);
        assert!(is_kept, "the worker works without an engine");
        is_gone(&weak, &device);
    }
}

/// The owner of the worker is dropped by one thread while the worker is in the device. It waits for the thread, and not only for its round.
#[test]
fn the_owner_of_a_worker_that_works_waits_for_its_thread() {
    let stuck = Stuck::new(compressed());
    let device = Watched::new(stuck.clone());
    let engine = engine(device.clone());
    let worker = engine.spawn_background().unwrap();
    let memory = fill(&engine);
    until("the worker is at the device", || stuck.has_worker());
    std::thread::scope(|scope| {
        let owner = scope.spawn(move || drop(worker));
        let is_waiting = engine.spawn_background().is_err() && !owner.is_finished();
        stuck.let_go();
        owner.join().unwrap();
        assert!(is_waiting, "the worker is in the device");
    });
    assert!(device.has_ended.load(Ordering::Acquire), "the worker's thread goes on");
    // Another one can follow.
    drop(engine.spawn_background().unwrap());
    let weak = Arc::downgrade(&engine);
    drop((memory, engine));
    is_gone(&weak, &device);
}

/// Nobody drops the worker's owner: the thread ends with the engine, asleep or at work.
#[test]
fn the_thread_of_a_worker_ends_with_its_engine() {
    for waits_for_sleep in [false, true] {
        let device = Watched::new(compressed());
        let engine = engine(device.clone());
        // If the thread does not end, the test fails, and does not wait for it.
        let worker = ManuallyDrop::new(engine.spawn_background().unwrap());
        let memory = fill(&engine);
        until("the worker has come to the device", || device.has_worker.load(Ordering::Acquire));
        let weak = Arc::downgrade(&engine);
        drop(memory);
        if waits_for_sleep {
            // While it works it has a handle of the engine.
            until("the worker sleeps", || (0..1_000).all(|_| Arc::strong_count(&engine) == 1));
        }
        drop(engine);
        until("the worker's thread has ended", || device.has_ended.load(Ordering::Acquire));
        until("the engine is gone", || weak.strong_count() == 0);
        drop(ManuallyDrop::into_inner(worker));
        is_gone(&weak, &device);
    }
}
