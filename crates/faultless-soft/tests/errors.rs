//! Injected I/O errors: reads and writes of swap devices and of a file fail at random, once or for ever, and none is silent.
//!
//! ```text
//! a read fails       the access that needs the page is an error, and no other access is
//!                    an anonymous page is lost then: each later access is an error, until the page is discarded
//! a write fails      the page keeps its bytes in memory, and a later write may bring them to the store;
//!                    the next sync of a file is an error
//! at the end         each page that is not lost has its bytes, the file has its bytes in the store, and nothing is left
//! ```
//! A device that fails spoils bytes too: a failed write leaves garbage in the store, and a failed read leaves garbage in memory.
#![cfg(not(loom))]

use fastrand::Rng;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::Protection;
use faultless::store::{Bytes, Direction, Store, StoreError, Transfer};
use faultless::swap::StoreDevice;
use faultless::{
    AddressSpace, Advice, Engine, FaultError, File, FileHandle, LimitConfig, Limits, MapRequest, MemoryLimit,
};
use faultless_soft::{AccessError, Cpu, Soft};
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

type Space = AddressSpace<Soft, Faultless>;

/// The anonymous pages and the pages of the file, of each thread.
const ANONYMOUS: u64 = 48;
const FILE: u64 = 24;
/// The most threads of a round, and the accesses of each.
const THREADS: u64 = 3;
const ACCESSES: u32 = 1500;

/// The most pages of a store that fail for ever. The page cache may have more: otherwise no page of it could be written in the end, and each
/// access to another one would wait for memory before it fails.
const MOST_BAD: usize = 8;

thread_local! {
    /// The reads that have failed on this thread. A transfer runs on the thread that has submitted it.
    static FAILED_READS: Cell<u64> = const { Cell::new(0) };
}

/// A store in memory that fails.
struct Failing {
    state: Mutex<Pages>,
    is_healed: AtomicBool,
    /// The errors so far: reads, writes.
    errors: [AtomicU64; 2],
}

struct Pages {
    pages: HashMap<u64, Box<[u8]>>,
    /// The pages that fail for ever, in each direction.
    bad: [HashSet<u64>; 2],
    numbers: Rng,
}

impl Failing {
    fn new(seed: u64) -> Arc<Self> {
        let numbers = Rng::with_seed(seed);
        let state = Pages { pages: HashMap::new(), bad: Default::default(), numbers };
        Arc::new(Self {
            state: Mutex::new(state),
            is_healed: AtomicBool::new(false),
            errors: Default::default(),
        })
    }

    fn errors(&self, direction: Direction) -> u64 {
        self.errors[direction as usize].load(Ordering::SeqCst)
    }

    fn heal(&self) {
        self.is_healed.store(true, Ordering::SeqCst);
    }

    fn first_word(&self, page: u64) -> u64 {
        let state = self.state.lock().unwrap();
        state.pages.get(&page).map_or(0, |page| u64::from_ne_bytes(page[..8].try_into().unwrap()))
    }

    /// Decides whether an operation fails: one in eight does, and of these one in eight fails for ever from then on.
    fn fails(&self, state: &mut Pages, direction: Direction, page: u64) -> bool {
        if self.is_healed.load(Ordering::SeqCst) {
            return false;
        }
        let bad = &mut state.bad[direction as usize];
        let fails = bad.contains(&page) || state.numbers.u32(..8) == 0;
        if fails && bad.len() < MOST_BAD && state.numbers.u32(..8) == 0 {
            bad.insert(page);
        }
        fails
    }
}

/// A handle of a store, for a device or a file.
struct Handle(Arc<Failing>);

impl Store for Handle {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(1024 * PAGE_SIZE)
    }

    fn submit(&self, mut transfer: Transfer) {
        let direction = transfer.direction();
        let result = transfer.move_pages(|offset, bytes| {
            let mut state = self.0.state.lock().unwrap();
            let page = offset / PAGE_SIZE;
            let fails = self.0.fails(&mut state, direction, page);
            match bytes {
                Bytes::Write(bytes) => {
                    let mut written: Box<[u8]> = bytes.into();
                    if fails {
                        written[..1024].fill(0xee);
                    }
                    state.pages.insert(page, written);
                }
                Bytes::Read(bytes) if fails => bytes[..1024].fill(0xdd),
                Bytes::Read(bytes) => match state.pages.get(&page) {
                    Some(read) => bytes.copy_from_slice(read),
                    None => bytes.fill(0),
                },
            }
            if !fails {
                return Ok(PAGE_SIZE as usize);
            }
            self.0.errors[direction as usize].fetch_add(1, Ordering::SeqCst);
            if direction == Direction::Read {
                FAILED_READS.set(FAILED_READS.get() + 1);
            }
            Err(StoreError::Io { offset, errno: 5 })
        });
        transfer.complete(result);
    }
}

/// The machine of a round.
struct Round {
    engine: Arc<Engine<Soft>>,
    limit: MemoryLimit<Soft>,
    space: Space,
    handle: FileHandle<Soft>,
    anonymous: VirtAddr,
    file: VirtAddr,
    devices: [Arc<Failing>; 2],
    store: Arc<Failing>,
}

/// The memory of a thread as it should be.
#[derive(Default)]
struct Model {
    anonymous: HashMap<u64, u64>,
    lost: HashSet<u64>,
    file: HashMap<u64, u64>,
}

impl Round {
    fn new(seed: u64) -> Self {
        // Room for all pages: the limits make the pressure.
        let limits = Limits { cached_pages: FILE, ..Limits::default() };
        let engine = Engine::new(Soft::with_caches(512).unwrap(), limits).unwrap();
        let devices = [Failing::new(3 * seed), Failing::new(3 * seed + 1)];
        for device in &devices {
            engine.add_swap(Arc::new(StoreDevice::new(Handle(device.clone())).unwrap())).unwrap();
        }
        let limit = MemoryLimit::new(&engine, LimitConfig::max(THREADS * ANONYMOUS / 4)).unwrap();
        let space = Space::new_in(&engine, &limit).unwrap();
        let anonymous = space.map(MapRequest::anonymous(THREADS * ANONYMOUS * PAGE_SIZE)).unwrap();
        let store = Failing::new(3 * seed + 2);
        let file = File::open_rw(&engine, Arc::new(Handle(store.clone()))).unwrap();
        let rights = Protection::READ | Protection::WRITE;
        let length = THREADS * FILE * PAGE_SIZE;
        let at = space.map(MapRequest::shared_file(&file, 0, length, rights)).unwrap();
        // A page that is read ahead and fails is no error, since no access needs it. So nothing is read ahead.
        space.advise(at, length, Advice::Random).unwrap();
        space.advise(anonymous, THREADS * ANONYMOUS * PAGE_SIZE, Advice::Random).unwrap();
        let handle = file.handle();
        Self { engine, limit, space, handle, anonymous, file: at, devices, store }
    }

    fn write_errors(&self) -> u64 {
        self.devices.iter().chain([&self.store]).map(|store| store.errors(Direction::Write)).sum()
    }

    fn has_swap(&self) -> bool {
        self.engine.swap_usage().devices.iter().any(|device| device.takes_pages)
    }

    /// Loads or stores a word. Returns its value, or `None` after an error that a failed read of this access explains.
    fn access(&self, at: VirtAddr, stored: Option<u64>, is_lost: bool) -> Option<u64> {
        let before = FAILED_READS.get();
        let result = match stored {
            Some(value) => self.space.store_u64(at, value).map(|()| value),
            None => self.space.load_u64(at),
        };
        let has_failed = FAILED_READS.get() != before;
        match result {
            Ok(value) => {
                assert!(!has_failed, "a failed read was silent at {at}");
                assert!(!is_lost, "a lost page came back at {at}");
                Some(value)
            }
            Err(AccessError::Fault(FaultError::Io { .. })) => {
                assert!(has_failed || is_lost, "an error without a failed read at {at}");
                None
            }
            // No page can be taken if writes fail.
            Err(AccessError::Fault(FaultError::OutOfMemory { .. })) if self.write_errors() != 0 => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Makes one thread's accesses.
    fn work(&self, thread: u64, numbers: &mut Rng, model: &mut Model) {
        for access in 1..=ACCESSES {
            let value = u64::from(access) << 8 | thread;
            let stored = numbers.bool().then_some(value);
            match numbers.u32(..32) {
                0 if thread == 0 => self.sync(),
                0 | 1 => {
                    let lost = model.lost.iter().next().copied();
                    let page = lost.unwrap_or_else(|| numbers.u64(..ANONYMOUS));
                    self.space.discard(self.anonymous_at(thread, page), PAGE_SIZE).unwrap();
                    model.lost.remove(&page);
                    model.anonymous.remove(&page);
                }
                2..8 => {
                    let page = numbers.u64(..FILE);
                    self.file_access(thread, page, stored, model);
                }
                _ => {
                    let page = numbers.u64(..ANONYMOUS);
                    self.anonymous_access(thread, page, stored, model);
                }
            }
            if !self.has_swap() {
                // Both devices have failed three times in a row. The next round has new ones.
                break;
            }
        }
    }

    fn anonymous_at(&self, thread: u64, page: u64) -> VirtAddr {
        VirtAddr::new(self.anonymous.get() + (thread * ANONYMOUS + page) * PAGE_SIZE)
    }

    fn anonymous_access(&self, thread: u64, page: u64, stored: Option<u64>, model: &mut Model) {
        let expected = model.anonymous.get(&page).copied().unwrap_or(0);
        let failed = FAILED_READS.get();
        match (self.access(self.anonymous_at(thread, page), stored, model.lost.contains(&page)), stored) {
            (Some(_), Some(value)) => _ = model.anonymous.insert(page, value),
            (Some(seen), None) => assert_eq!(seen, expected, "a wrong byte in anonymous page {page}"),
            (None, _) if FAILED_READS.get() != failed => _ = model.lost.insert(page),
            (None, _) => {}
        }
    }

    fn file_access(&self, thread: u64, page: u64, stored: Option<u64>, model: &mut Model) {
        let at = VirtAddr::new(self.file.get() + (thread * FILE + page) * PAGE_SIZE);
        let expected = model.file.get(&page).copied().unwrap_or(0);
        match (self.access(at, stored, false), stored) {
            (Some(_), Some(value)) => _ = model.file.insert(page, value),
            (Some(seen), None) => assert_eq!(seen, expected, "a wrong byte in page {page} of the file"),
            (None, _) => {}
        }
    }

    /// Syncs the file. Only one thread does.
    fn sync(&self) {
        let before = self.store.errors(Direction::Write);
        let (surely, perhaps) = SYNCED.get();
        let result = self.handle.sync();
        let after = self.store.errors(Direction::Write);
        assert!(before == perhaps || result.is_err(), "a failed write was silent");
        assert!(after != surely || result.is_ok(), "an error without a failed write");
        // An error of another thread during the sync is this one's or the next one's.
        SYNCED.set((before, after));
    }

    /// Checks each page without further errors, and that nothing is left.
    fn end(self, models: Vec<Model>) {
        self.devices.iter().chain([&self.store]).for_each(|store| store.heal());
        self.limit.set(LimitConfig::max(512)).unwrap();
        for (thread, mut model) in (0..).zip(models) {
            for page in 0..ANONYMOUS {
                let value = self.access(self.anonymous_at(thread, page), None, model.lost.contains(&page));
                assert_eq!(value.is_none(), model.lost.contains(&page), "page {page} of thread {thread}");
                let expected = model.anonymous.get(&page).copied().unwrap_or(0);
                assert_eq!(value.unwrap_or(expected), expected, "a wrong byte in anonymous page {page}");
            }
            (0..FILE).for_each(|page| self.file_access(thread, page, None, &mut model));
            // The first sync reports the failures before.
            let _ = self.handle.sync();
            self.handle.sync().unwrap();
            for (page, value) in model.file {
                assert_eq!(self.store.first_word(thread * FILE + page), value, "page {page} in the store");
            }
        }
        self.space.audit().unwrap();
        let Self { engine, limit, space, handle, .. } = self;
        drop((space, handle));
        engine.flush();
        assert_eq!(engine.frame_usage().used, 1, "frames are left");
        assert_eq!(engine.swap_usage().slots, 0, "slots are left");
        assert_eq!(engine.cached_pages(), 0, "pages are counted as cached");
        assert!(engine.swap_usage().devices.iter().all(|device| device.pages == 0), "places are left");
        let usage = limit.usage();
        assert_eq!((usage.resident, usage.anonymous, usage.swap), (0, 0, 0), "charges are left");
    }
}

thread_local! {
    /// The failed writes of the file before the last sync began, which it has reported, and those before it ended.
    static SYNCED: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// Runs rounds until this many errors were injected, a twentieth of them of each kind. Each second round has several threads. A page
/// whose writes fail for ever is tried again and again, so most errors are writes of the file.
fn inject(wanted: u64) {
    let (mut injected, mut kinds) = (0, [[0; 2]; 2]);
    for seed in 0.. {
        if injected >= wanted && kinds.as_flattened().iter().all(|kind| *kind >= wanted / 20) {
            break;
        }
        let round = Round::new(seed);
        let threads = if seed % 2 == 0 { 1 } else { THREADS };
        let models: Vec<Model> = std::thread::scope(|scope| {
            let run = |thread| {
                let round = &round;
                move || {
                    SYNCED.set((0, 0));
                    let mut model = Model::default();
                    round.work(thread, &mut Rng::with_seed(seed * THREADS + thread), &mut model);
                    model
                }
            };
            let workers: Vec<_> = (0..threads).map(|thread| scope.spawn(run(thread))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        for (kind, store) in round.devices.iter().map(|device| (0, device)).chain([(1, &round.store)]) {
            for direction in [Direction::Read, Direction::Write] {
                kinds[kind][direction as usize] += store.errors(direction);
                injected += store.errors(direction);
            }
        }
        round.end(models);
    }
    println!("{injected} errors; swap: {:?} reads and writes, file: {:?}", kinds[0], kinds[1]);
}

#[test]
fn none_of_ten_thousand_errors_is_silent() {
    inject(10_000);
}

/// `just errors`.
#[test]
#[ignore = "minutes"]
fn none_of_a_million_errors_is_silent() {
    inject(1_000_000);
}
