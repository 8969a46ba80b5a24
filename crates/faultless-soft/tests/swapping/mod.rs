//! Shared by the models of reclaim and swap: a machine with a swap device, and pages that reclaim takes at its next look.

use crate::models::{Space, at, map, model, spawn};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::host::StdSlots;
use faultless::stats::Counter;
use faultless::store::{Bytes, Transfer};
use faultless::swap::SwapDevice;
use faultless::{Engine, Limits};
use faultless_soft::{Cpu, Soft};
use loom::thread::JoinHandle;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A swap device in memory. Reads end at once. Writes end at once, or when a model ends them. (loom runs one thread at a time, so ordinary
/// mutexes and counters are enough here.)
#[derive(Default)]
pub struct Device {
    /// Whether writes wait. Immutable.
    is_gated: bool,
    next: AtomicU64,
    pages: Mutex<HashMap<u64, Vec<u8>>>,
    /// The writes that wait, with the bytes as they were submitted.
    waiting: Mutex<Vec<(Transfer, Vec<u8>)>>,
    /// The number of pages that were read.
    pub reads: AtomicU64,
}

impl Device {
    /// Makes a device whose transfers end at once.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Makes a device whose writes end when [`Device::end_writes`] is called.
    pub fn gated() -> Arc<Self> {
        Arc::new(Self { is_gated: true, ..Self::default() })
    }

    /// Does the writes that wait, as the device's thread. Returns their number.
    pub fn end_writes(&self) -> usize {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap());
        let count = waiting.len();
        for (mut transfer, submitted) in waiting {
            if let Bytes::Write(page) = transfer.bytes() {
                assert!(*page == *submitted, "a store into a page that is being written");
            }
            self.transfer(transfer);
        }
        count
    }

    fn transfer(&self, mut transfer: Transfer) {
        let place = transfer.offset() / PAGE_SIZE;
        match transfer.bytes() {
            Bytes::Write(page) => {
                self.pages.lock().unwrap().insert(place, page.to_vec());
            }
            Bytes::Read(page) => {
                self.reads.fetch_add(1, Ordering::Relaxed);
                page.copy_from_slice(&self.pages.lock().unwrap()[&place]);
            }
        }
        transfer.complete(Ok(PAGE_SIZE as usize));
    }
}

impl SwapDevice for Device {
    fn capacity(&self) -> u64 {
        1024
    }

    fn reserve(&self) -> Option<u64> {
        Some(self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn release(&self, place: u64) {
        self.pages.lock().unwrap().remove(&place);
    }

    fn submit(&self, mut transfer: Transfer) {
        match transfer.bytes() {
            Bytes::Write(page) if self.is_gated => {
                let submitted = page.to_vec();
                self.waiting.lock().unwrap().push((transfer, submitted));
            }
            _ => self.transfer(transfer),
        }
    }
}

/// The kind of a machine's processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processors {
    /// Each access is a section, and walks the table: a model can stop a thread between its walk and its use of the page.
    Walking,
    /// Processors keep translations until they are invalidated, so a thread has an old one for an access of its own.
    Caching,
}

/// Makes an engine with a swap device.
pub fn engine(processors: Processors, device: &Arc<Device>, shared_entries: u64) -> Arc<Engine<Soft>> {
    let soft = match processors {
        Processors::Walking => Soft::new(FRAMES),
        Processors::Caching => Soft::with_caches(FRAMES),
    };
    let limits = Limits { shared_entries, ..Limits::default() };
    let engine = Engine::new(soft.expect("some frames"), limits).expect("memory for an engine");
    engine.add_swap(device.clone()).expect("memory for slots");
    engine
}

/// The number of frames of a machine.
const FRAMES: u64 = 8;

/// fork copies each entry.
pub const COPIES: u64 = u64::MAX;
/// fork shares a table with two entries.
pub const SHARES: u64 = 2;

/// Runs a model in a space whose page 0 has 1 in its first word, and which reclaim takes at its next look. fork copies entries.
pub fn with_a_page(
    bound: usize,
    processors: Processors,
    body: impl Fn(&Arc<Engine<Soft>>, &Space) + Sync + Send + 'static,
) {
    with_pages(bound, (processors, COPIES, 1), Device::new, move |engine, space, _| body(engine, &space));
}

/// Runs a model in a space with 1 in the first word of each of its first pages, which reclaim takes at its next look. Asserts that
/// all is free at the end of each run, and that the model shows something: reclaim takes a page in some runs.
pub fn with_pages(
    bound: usize,
    (processors, shared_entries, pages): (Processors, u64, u64),
    device: fn() -> Arc<Device>,
    body: impl Fn(&Arc<Engine<Soft>>, Space, &Arc<Device>) + Sync + Send + 'static,
) {
    let taken = Arc::new(AtomicU64::new(0));
    let count = taken.clone();
    model(bound, move || {
        let device = device();
        let engine = engine(processors, &device, shared_entries);
        let space = Space::new(&engine).unwrap();
        // With a page more than is used, so that the leaf table stays when one page is unmapped.
        map(&space, 0, pages.max(2));
        (0..pages).for_each(|page| space.store_u64(at(page), 1).unwrap());
        // After one look in vain, the next one takes pages though they are in use.
        (0..pages).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(1)));
        reclaim(&engine);
        assert_eq!(engine.statistics().get(Counter::Reclaimed), 0, "a page in use was taken");
        body(&engine, space, &device);
        if engine.statistics().get(Counter::Reclaimed) != 0 {
            count.fetch_add(1, Ordering::Relaxed);
        }
        engine.flush();
        assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
        assert_eq!(engine.swap_usage().slots, 0, "invariant 11: slots are left");
    });
    let taken = taken.load(Ordering::Relaxed);
    println!("reclaim takes a page in {taken} of them");
    assert_ne!(taken, 0, "reclaim takes a page in no run, so the model checks nothing");
}

/// Has reclaim try each page once.
pub fn reclaim(engine: &Arc<Engine<Soft>>) {
    engine.reclaim_for_tests(0);
}

/// Has reclaim try each page once, on a thread of its own.
pub fn reclaiming(engine: &Arc<Engine<Soft>>, slot: u32) -> JoinHandle<()> {
    let engine = engine.clone();
    spawn(slot, move || reclaim(&engine))
}

/// Asserts that the entries of the space agree with the counts, and that no range is taken.
pub fn audit(space: &Space) {
    space.audit().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(space.taken_ranges(), 0, "invariant 11: a range is taken, but no call is under way");
}

/// Returns the address of word `word` of page 0.
pub fn word(word: u64) -> VirtAddr {
    VirtAddr::new(word * 8)
}

/// Returns the first words of page 0.
pub fn words(space: &Space) -> (u64, u64) {
    (space.load_u64(word(0)).unwrap(), space.load_u64(word(1)).unwrap())
}

/// Does `work` as another processor than the calling thread's. No thread of the model has its slot.
pub fn on_processor<R>(slot: u32, work: impl FnOnce() -> R) -> R {
    let own = StdSlots.current().get() as u32;
    StdSlots::set_current(slot);
    let result = work();
    StdSlots::set_current(own);
    result
}
