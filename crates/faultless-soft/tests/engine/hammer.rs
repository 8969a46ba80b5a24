//! Stress tests with watchdogs: many threads, few frames, tiny page caches.

use fastrand::Rng;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::host::{Host, Park};
use faultless::protection::{Access, Protection};
use faultless::store::{Bytes, DelayedStore, Store, StoreError, Transfer};
use faultless::{AddressSpace, Advice, Engine, Fault, FaultError, File, Limits, MapRequest, Placement};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

type Space = AddressSpace<Soft, Faultless>;

/// A store in which each word of page `n` is `n + 1`.
struct Stamped(u64);

impl Store for Stamped {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.0 * PAGE_SIZE)
    }
    fn submit(&self, mut transfer: Transfer) {
        let page = transfer.offset() / PAGE_SIZE;
        if let Bytes::Read(bytes) = transfer.bytes() {
            bytes.chunks_mut(8).for_each(|word| word.copy_from_slice(&(page + 1).to_ne_bytes()));
        }
        transfer.complete(Ok(PAGE_SIZE as usize));
    }
    fn set_length(&self, _: u64) -> Result<(), StoreError> {
        Ok(())
    }
    fn punch(&self, _: u64, _: u64) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Returns the number of seconds for which each test runs.
fn seconds() -> u64 {
    std::env::var("HAMMER_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1)
}

/// Runs `threads` threads, each of which calls `work` with its number until the time is up. Exits the process on a
/// hang.
fn hammer(name: &str, engine: &Arc<Engine<Soft>>, threads: u64, work: impl Fn(u64, &mut Rng) + Sync) {
    let progress: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
    let (stop, left) = (AtomicBool::new(false), AtomicU64::new(threads));
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (progress, stop, left, work) = (&progress, &stop, &left, &work);
            scope.spawn(move || {
                struct Leaves<'a>(&'a AtomicU64);
                impl Drop for Leaves<'_> {
                    fn drop(&mut self) {
                        self.0.fetch_sub(1, Ordering::SeqCst);
                    }
                }
                let _leaves = Leaves(left);
                let mut random = Rng::with_seed(thread);
                while !stop.load(Ordering::Relaxed) {
                    work(thread, &mut random);
                    progress[thread as usize].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let (start, mut last, mut moved) =
            (Instant::now(), vec![0; threads as usize], vec![Instant::now(); threads as usize]);
        while left.load(Ordering::SeqCst) != 0 {
            std::thread::sleep(Duration::from_millis(50));
            if start.elapsed().as_secs() >= seconds() {
                stop.store(true, Ordering::Relaxed);
            }
            for thread in 0..threads as usize {
                let now = progress[thread].load(Ordering::Relaxed);
                if now != last[thread] {
                    (last[thread], moved[thread]) = (now, Instant::now());
                } else if moved[thread].elapsed().as_secs() >= 15 && left.load(Ordering::SeqCst) != 0 {
                    let is_any = moved.iter().any(|moved| moved.elapsed().as_secs() < 10);
                    eprintln!(
                        "HANG in {name}: thread {thread} after {now} rounds, others move: {is_any}, left {}",
                        left.load(Ordering::SeqCst)
                    );
                    eprintln!("rounds {last:?}\n{:?}\n{:?}", engine.statistics(), engine.frame_usage());
                    std::process::exit(101);
                }
            }
        }
        eprintln!("{name}: {} rounds", last.iter().sum::<u64>());
    });
}

fn add(at: VirtAddr, pages: u64) -> VirtAddr {
    VirtAddr::new(at.get() + pages * PAGE_SIZE)
}

/// Faults that are given up at any time, with and without a name, beside others that wait as threads.
fn misses(cached_pages: u64, writable: bool) {
    const PAGES: u64 = 12;
    let limits = Limits { cached_pages, ..Limits::default() };
    let engine = Engine::new(Soft::new(40).unwrap(), limits).unwrap();
    let store = DelayedStore::new(Stamped(PAGES), Duration::from_micros(20))
        .with_jitter(Duration::from_micros(200), 3);
    let store: Arc<dyn Store> = Arc::new(store);
    let file = if writable { File::open_rw(&engine, store) } else { File::open(&engine, store) }.unwrap();
    let (errors, served, lost) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    hammer(&format!("misses {cached_pages} {writable}"), &engine, 12, |thread, random| {
        let space = Space::new(&engine).unwrap();
        let rights = Protection::READ | if writable { Protection::WRITE } else { Protection::empty() };
        let request = if writable {
            MapRequest::shared_file(&file, 0, PAGES * PAGE_SIZE, rights)
        } else {
            MapRequest::file(&file, 0, PAGES * PAGE_SIZE, rights)
        };
        let at = space.map(request).unwrap();
        let exits = random.u64(..4) == 0;
        std::thread::scope(|scope| {
            if exits {
                let other = space.clone();
                let delay = random.u64(..400);
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_micros(delay));
                    other.exit();
                });
            }
            for _ in 0..random.u64(..6) {
                let page = random.u64(..PAGES);
                let access = if writable && random.u64(..3) == 0 { Access::Write } else { Access::Read };
                let mut fault = space.fault(add(at, page), access);
                let me = engine.host().park().current();
                loop {
                    let mut pending = match fault {
                        Ok(Fault::Pending(pending)) => pending,
                        Ok(Fault::Done) => {
                            served.fetch_add(1, Ordering::Relaxed);
                            break;
                        }
                        Err(FaultError::OutOfMemory { .. }) => {
                            errors.fetch_add(1, Ordering::Relaxed);
                            break;
                        }
                        Err(FaultError::Exited { .. } | FaultError::NoMapping { .. }) if exits => break,
                        Err(FaultError::PastEnd { .. }) if writable => break,
                        Err(error) => panic!("{error}"),
                    };
                    fault = match random.u64(..if thread == 0 { 1 } else { 8 }) {
                        0 | 1 => pending.wait(),
                        2 => break drop(pending),
                        3 => {
                            pending.notify(me).unwrap();
                            break drop(pending);
                        }
                        4 => {
                            pending.notify(me).unwrap();
                            std::thread::sleep(Duration::from_micros(random.u64(..300)));
                            break drop(pending);
                        }
                        5 => {
                            pending.notify(me).unwrap();
                            if random.u64(..2) == 0 {
                                pending.notify(me).unwrap();
                            }
                            pending.wait()
                        }
                        6 => {
                            let mut looks = 0;
                            while !pending.is_ready() && looks < 100 {
                                std::thread::sleep(Duration::from_micros(20));
                                looks += 1;
                            }
                            pending.finish()
                        }
                        _ => {
                            pending.notify(me).unwrap();
                            while !pending.is_ready() {
                                engine.host().park().park(me);
                                // A known fault: a name is woken only once.
                                if !pending.is_ready() {
                                    lost.fetch_add(1, Ordering::Relaxed);
                                    pending.notify(me).unwrap();
                                }
                            }
                            pending.finish()
                        }
                    };
                }
            }
            if writable {
                match random.u64(..12) {
                    0 => file.handle().start_sync(),
                    1 => _ = file.handle().sync(),
                    2 => file.handle().set_length(random.u64(..PAGES * PAGE_SIZE) + 1).unwrap(),
                    3 => file.handle().set_length(PAGES * PAGE_SIZE).unwrap(),
                    4 => {
                        _ = file
                            .handle()
                            .punch_hole(random.u64(..PAGES * PAGE_SIZE), random.u64(..4 * PAGE_SIZE) + 1)
                    }
                    5 => _ = file.handle().write_at(random.u64(..PAGES * PAGE_SIZE), &[1; 9000]),
                    6 => _ = file.handle().read_at(random.u64(..PAGES * PAGE_SIZE), &mut [1; 9000]),
                    _ => {}
                }
            }
        });
    });
    eprintln!("  served {served:?}, no memory {errors:?}, woken spuriously {lost:?}");
    // A fault after the test is served at once.
    file.set_length(PAGES * PAGE_SIZE).unwrap();
    file.sync().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    if cached_pages > 0 {
        let (space, other) = (Space::new(&engine).unwrap(), engine.clone());
        let at = space.map(MapRequest::file(&file, 0, PAGES * PAGE_SIZE, Protection::READ)).unwrap();
        let is_done = Arc::new(AtomicBool::new(false));
        let done = is_done.clone();
        let thread = std::thread::spawn(move || {
            for page in 0..PAGES {
                let mut tries = 0;
                while let Err(error) = space.fault_and_wait(add(at, page), Access::Read) {
                    tries += 1;
                    eprintln!("  {error}; try {tries}, {} cached", space.engine().cached_pages());
                    assert!(tries < 20, "memory is lost");
                    std::thread::sleep(Duration::from_millis(10));
                }
                space.advise(at, PAGES * PAGE_SIZE, Advice::DontNeed).unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        for _ in 0..500 {
            if is_done.load(Ordering::SeqCst) || thread.is_finished() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(thread.is_finished(), "the queue is stuck: {:?}", other.statistics());
        thread.join().unwrap();
    }
}

#[test]
fn misses_of_a_cache_of_0() {
    misses(0, false);
}
#[test]
fn misses_of_a_cache_of_1() {
    misses(1, false);
}
#[test]
fn misses_of_a_cache_of_2() {
    misses(2, false);
}
#[test]
fn misses_of_a_cache_of_3() {
    misses(3, false);
}
#[test]
fn misses_of_a_cache_of_6() {
    misses(6, false);
}
#[test]
fn writes_of_a_cache_of_1() {
    misses(1, true);
}
#[test]
fn writes_of_a_cache_of_2() {
    misses(2, true);
}
#[test]
fn writes_of_a_cache_of_3() {
    misses(3, true);
}
#[test]
fn writes_of_a_cache_of_8() {
    misses(8, true);
}

/// 64 threads map, unmap, protect, fork and touch overlapping ranges.
#[test]
fn ranges_by_64_threads() {
    let engine = Engine::new(Soft::new(4000).unwrap(), Limits::default()).unwrap();
    let space = Space::new(&engine).unwrap();
    let base = VirtAddr::new(0x1000_0000);
    hammer("ranges", &engine, 64, |_, random| {
        let (first, pages) = (random.u64(..200), random.u64(..60) + 1);
        let at = add(base, first);
        match random.u64(..9) {
            0..3 => {
                let _ = space.map(MapRequest::anonymous(pages * PAGE_SIZE).at(Placement::Fixed(at)));
            }
            3 => _ = space.unmap(at, pages * PAGE_SIZE),
            4 => _ = space.protect(at, pages * PAGE_SIZE, Protection::READ),
            5 => _ = space.protect(at, pages * PAGE_SIZE, Protection::READ | Protection::WRITE),
            6 if random.u64(..16) == 0 => _ = space.fork(),
            7 => {
                if let Ok(at) = space.map(MapRequest::anonymous(pages * PAGE_SIZE)) {
                    space.unmap(at, pages * PAGE_SIZE).unwrap();
                }
            }
            _ => {
                let _ = space.store_u64(at, first);
                if let Ok(word) = space.load_u64(at) {
                    assert!(word == 0 || word == first, "a wrong word {word} at {first}");
                }
            }
        }
    });
    space.exit();
    drop(space);
    engine.flush();
    assert_eq!(engine.frame_usage().used, 1, "frames other than the page of zeros are left");
}

/// Threads start and end, sleep for I/O, and read pages that other threads unmap and map again.
fn comers(engine: Arc<Engine<Soft>>) {
    const PAGES: u64 = 8;
    let store = DelayedStore::new(Stamped(PAGES), Duration::from_micros(50));
    let file = File::open(&engine, Arc::new(store)).unwrap();
    let space = Space::new(&engine).unwrap();
    let base = VirtAddr::new(0x1000_0000);
    let comers = AtomicU64::new(0);
    let rights = Protection::READ | Protection::WRITE;
    hammer("comers", &engine, 6, |thread, random| {
        let page = random.u64(..PAGES);
        let at = add(base, page);
        if thread < 2 {
            // Page n holds n + 1, from the file or from private memory; new memory holds zeros.
            match random.u64(..4) {
                0 => _ = space.unmap(at, PAGE_SIZE),
                1 => {
                    let request = MapRequest::file(&file, page, PAGE_SIZE, rights);
                    space.map(request.at(Placement::Fixed(at))).unwrap();
                }
                2 => {
                    space.map(MapRequest::anonymous(PAGE_SIZE).at(Placement::Fixed(at))).unwrap();
                    let _ = space.store_u64(at, page + 1);
                }
                _ => {
                    let _ = space.advise(at, PAGE_SIZE, Advice::DontNeed);
                }
            }
            return;
        }
        let threads: Vec<_> = (0..random.u64(..8) + 1)
            .map(|_| {
                let (space, page, seed) = (space.clone(), random.u64(..PAGES), random.u64(..));
                comers.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || {
                    let mut random = Rng::with_seed(seed);
                    for _ in 0..random.u64(..4) + 1 {
                        let at = VirtAddr::new(add(base, page).get() + 8 * random.u64(..512));
                        if let Ok(word) = space.load_u64(at) {
                            assert!(word == 0 || word == page + 1, "invariant 3: {word} in page {page}");
                        }
                        if random.u64(..3) == 0 {
                            let at = add(base, page);
                            let _ = space.store_u64(at, page + 1);
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    eprintln!("  {comers:?} threads, {} slots listed", engine.sections().listed());
    space.exit();
    drop((space, file));
    engine.flush();
}

#[test]
fn threads_that_come_and_go() {
    comers(Engine::new(Soft::new(24).unwrap(), Limits { cached_pages: 4, ..Limits::default() }).unwrap());
}

#[test]
fn threads_that_come_and_go_with_caches() {
    comers(
        Engine::new(Soft::with_caches(24).unwrap(), Limits { cached_pages: 4, ..Limits::default() }).unwrap(),
    );
}

/// A child never has a later store without an earlier one.
#[test]
fn fork_sees_one_instant() {
    const PAGES: u64 = 24;
    let limits = Limits { shared_entries: 8, ..Limits::default() };
    let engine = Engine::new(Soft::new(3000).unwrap(), limits).unwrap();
    let space = Space::new(&engine).unwrap();
    let base = VirtAddr::new(0x1000_0000);
    // The ranges are in two leaf tables.
    let starts = [base, VirtAddr::new(0x1000_0000 + (1 << 22))];
    for start in starts {
        space.map(MapRequest::anonymous(PAGES * PAGE_SIZE).at(Placement::Fixed(start))).unwrap();
    }
    let counts: Vec<AtomicU64> = (0..3).map(|_| AtomicU64::new(0)).collect();
    hammer("fork", &engine, 7, |thread, random| match thread {
        0..3 => {
            // Increments word `thread` in all pages of both ranges, in ascending order.
            let count = counts[thread as usize].fetch_add(1, Ordering::Relaxed) + 1;
            for start in starts {
                for page in 0..PAGES {
                    let at = VirtAddr::new(add(start, page).get() + 8 * thread);
                    while space.store_u64(at, count).is_err() {}
                }
            }
        }
        3 => {
            let at = add(starts[random.u64(..2) as usize], random.u64(..PAGES));
            space.protect(at, PAGE_SIZE, Protection::READ).unwrap();
            space.protect(base, PAGES * PAGE_SIZE, Protection::READ | Protection::WRITE).unwrap();
            space.protect(starts[1], PAGES * PAGE_SIZE, Protection::READ | Protection::WRITE).unwrap();
        }
        _ => {
            let child = match space.fork() {
                Ok(child) => child,
                Err(_) => return,
            };
            for word in 0..3 {
                let mut last = u64::MAX;
                let mut first = None;
                for start in starts {
                    for page in 0..PAGES {
                        let at = VirtAddr::new(add(start, page).get() + 8 * word);
                        let now = child.load_u64(at).unwrap();
                        assert!(
                            now <= last,
                            "invariant: a later store without an earlier one: {now} after {last}"
                        );
                        last = now;
                        first.get_or_insert(now);
                    }
                }
                assert!(first.unwrap() - last <= 1, "{first:?} and {last}");
            }
        }
    });
}

/// All operations on a file and a mapping of it, by 14 threads, in a tiny cache.
fn files(name: &str, engine: &Arc<Engine<Soft>>) {
    const PAGES: u64 = 9;
    let store = DelayedStore::new(Stamped(PAGES), Duration::from_micros(10))
        .with_jitter(Duration::from_micros(100), 5);
    let file = File::open_rw(engine, Arc::new(store)).unwrap();
    let space = Space::new(engine).unwrap();
    let base = VirtAddr::new(0x1000_0000);
    let rights = Protection::READ | Protection::WRITE;
    let done: Vec<AtomicU64> = (0..20).map(|_| AtomicU64::new(0)).collect();
    hammer(name, engine, 14, |_, random| {
        let page = random.u64(..PAGES);
        let at = add(base, page);
        let (offset, length) = (random.u64(..PAGES * PAGE_SIZE), random.u64(..3 * PAGE_SIZE) + 1);
        let op = random.u64(..20);
        let is_ok = match op {
            0 => space.load_u64(at).is_ok(),
            1 => space.store_u64(at, 7).is_ok(),
            2 => file.handle().read_at(offset, &mut vec![0; length as usize]).is_ok(),
            3 => file.handle().write_at(offset, &vec![3; length as usize]).is_ok(),
            4 => file.handle().set_length(offset).is_ok(),
            5 => file.handle().set_length(PAGES * PAGE_SIZE).is_ok(),
            6 => file.handle().punch_hole(offset, length).is_ok(),
            7 => file.refresh(page * PAGE_SIZE, 2 * PAGE_SIZE).is_ok(),
            8 => file.handle().sync().is_ok(),
            9 => (file.handle().start_sync(), true).1,
            10 => space.sync(base, PAGES * PAGE_SIZE, faultless::SyncFlags::SYNC).is_ok(),
            11 => space.pin(at, if page % 2 == 0 { Access::Read } else { Access::Write }).is_ok(),
            12 => random.u64(..8) == 0 && space.fork().is_ok_and(|child| child.load_u64(at).is_ok()),
            13 => space.unmap(at, 2 * PAGE_SIZE).is_ok(),
            14 => {
                let request = match page % 3 {
                    0 => MapRequest::file(&file, 0, PAGES * PAGE_SIZE, rights),
                    _ => MapRequest::shared_file(&file, 0, PAGES * PAGE_SIZE, rights),
                };
                space.map(request.at(Placement::Fixed(base))).is_ok()
            }
            15 => space.read_remote(base, &mut vec![0; 5 * 4096]).is_ok(),
            16 => space.write_remote(at, &[9; 5000]).is_ok(),
            17 => space.advise(base, PAGES * PAGE_SIZE, Advice::WillNeed).is_ok(),
            18 => file.try_lock_folio(page).is_some(),
            _ => space.advise(base, PAGES * PAGE_SIZE, Advice::DontNeed).is_ok(),
        };
        done[op as usize].fetch_add(u64::from(is_ok), Ordering::Relaxed);
    });
    eprintln!("  done {done:?}");
    space.exit();
    drop((space, file));
    engine.flush();
    let start = Instant::now();
    while engine.frame_usage().used != 1 {
        assert!(
            start.elapsed().as_secs() < 5,
            "frames are left: {:?}, {} cached",
            engine.frame_usage(),
            engine.cached_pages()
        );
        std::thread::sleep(Duration::from_millis(10));
        engine.flush();
    }
}

#[test]
fn files_in_a_cache_of_2() {
    files(
        "files 2",
        &Engine::new(Soft::new(60).unwrap(), Limits { cached_pages: 2, ..Limits::default() }).unwrap(),
    );
}
#[test]
fn files_in_a_cache_of_3() {
    files(
        "files 3",
        &Engine::new(Soft::new(60).unwrap(), Limits { cached_pages: 3, ..Limits::default() }).unwrap(),
    );
}
#[test]
fn files_in_a_cache_of_6_with_processors_caches() {
    files(
        "files 6",
        &Engine::new(Soft::with_caches(60).unwrap(), Limits { cached_pages: 6, ..Limits::default() })
            .unwrap(),
    );
}
#[test]
fn files_with_few_frames() {
    files("files, frames", &Engine::new(Soft::with_caches(8).unwrap(), Limits::default()).unwrap());
}
