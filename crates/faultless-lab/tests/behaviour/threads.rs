//! Tests with many threads at once that check every byte. FAULTLESS_STRESS_MS is the duration of each in milliseconds,
//! 700 by default.

use crate::*;
use faultless_soft::Cpu;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

under_every_design! {
    no_memory_beside_changes_is_an_error_and_no_hang
    invariant_3_no_access_reaches_what_is_gone
    invariant_7_a_fork_is_one_instant
    faults_maps_and_forks_side_by_side
    a_file_under_a_tight_limit_shows_its_bytes
}

// All tests but the one about missing memory. They need only spaces, loads and stores.
on_real_memory! {
    invariant_3_no_access_reaches_what_is_gone
    invariant_7_a_fork_is_one_instant
    faults_maps_and_forks_side_by_side
    a_file_under_a_tight_limit_shows_its_bytes
}

fn time() -> Duration {
    let ms = std::env::var("FAULTLESS_STRESS_MS").ok().and_then(|ms| ms.parse().ok()).unwrap_or(700);
    Duration::from_millis(ms)
}

/// A fixed sequence of numbers, so that runs differ only by their schedule.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Readers run while a writer unmaps and maps anew. They must see zero, or a store in the present mapping. They must
/// never see the poison of a freed frame, bytes of another page, or bytes of an older mapping.
fn invariant_3_no_access_reaches_what_is_gone<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::with(256, Limits::default())?;
    let space = machine.space::<D>();
    let (stop, mapped) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _stopped = Stopped(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for page in 10..18 {
                        let oldest = mapped.load(Ordering::Acquire);
                        if let Ok(seen) = space.load_u64(at(page)) {
                            assert!(
                                seen == 0 || seen >> 32 == page && seen & 0xffff_ffff >= oldest,
                                "invariant 3: page {page} shows {seen:#x}, mapping {oldest} is gone"
                            );
                        }
                    }
                }
            });
        }
        let end = Instant::now() + time();
        let mut generation = 0;
        while Instant::now() < end {
            generation += 1;
            space.map(anonymous(10, 8)).unwrap();
            // The previous mapping is gone by now.
            mapped.store(generation, Ordering::Release);
            for page in 10..18 {
                space.store_u64(at(page), page << 32 | generation).unwrap();
            }
            if generation % 2 == 0 {
                space.unmap(at(10), 8 * PAGE_SIZE).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    space.audit().unwrap();
    drop(space);
    machine.end()
}

/// Two threads stamp pages in a dependent order. Every child must have them as of one instant.
fn invariant_7_a_fork_is_one_instant<S: Stand, D: LockingDesign>() -> Ran<S> {
    const PAGES: u64 = 24;
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(100, PAGES)).unwrap();
    space.map(anonymous(1000, PAGES)).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stopped = Stopped(&stop);
        for second in [false, true] {
            let (space, stop) = (&space, &stop);
            scope.spawn(move || {
                for generation in 1.. {
                    for page in 0..PAGES {
                        // The second thread stamps a page after it has seen the first thread's stamp on its twin.
                        while second && space.load_u64(at(100 + page)).unwrap() < generation {
                            if stop.load(Ordering::Relaxed) {
                                return;
                            }
                        }
                        let base = if second { 1000 } else { 100 };
                        space.store_u64(at(base + page), generation).unwrap();
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                }
            });
        }
        let end = Instant::now() + time();
        while Instant::now() < end {
            let child = space.fork().unwrap();
            let stamps = |base: u64| -> Vec<u64> {
                (0..PAGES).map(|page| child.load_u64(at(base + page)).unwrap()).collect()
            };
            let (first, second) = (stamps(100), stamps(1000));
            for stamps in [&first, &second] {
                let torn = stamps.windows(2).any(|pair| pair[0] < pair[1])
                    || stamps[0] > stamps[PAGES as usize - 1] + 1;
                assert!(!torn, "invariant 7: a torn child: {stamps:?}");
            }
            let late = first.iter().zip(&second).all(|(first, second)| first >= second);
            assert!(late, "invariant 7: a torn child: {first:?} before {second:?}");
            assert_eq!((stamps(100), stamps(1000)), (first, second), "invariant 7: the child changed");
        }
        stop.store(true, Ordering::Relaxed);
    });
    space.audit().unwrap();
    drop(space);
    machine.end()
}

/// Threads map, write, protect, discard and unmap pages of their own and check each byte. One more thread forks.
fn faults_maps_and_forks_side_by_side<S: Stand, D: LockingDesign>() -> Ran<S> {
    const OWN: u64 = 64;
    let machine = Machine::<S>::with(4096, Limits::default())?;
    let space = machine.space::<D>();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stopped = Stopped(&stop);
        for thread in 0..4_u64 {
            let (space, stop) = (&space, &stop);
            // The ranges do not start at a leaf table, so that neighbours share tables.
            let base = 1000 + thread * OWN;
            scope.spawn(move || {
                let mut random = Random(thread + 1);
                let mut model = vec![None; OWN as usize];
                while !stop.load(Ordering::Relaxed) {
                    let first = random.below(OWN);
                    let pages = 1 + random.below((OWN - first).min(9));
                    let range = first as usize..(first + pages) as usize;
                    let (address, length) = (at(base + first), pages * PAGE_SIZE);
                    match random.below(6) {
                        0 => {
                            space.map(anonymous(base + first, pages)).unwrap();
                            model[range].fill(Some(0));
                        }
                        1 => {
                            space.unmap(address, length).unwrap();
                            model[range].fill(None);
                        }
                        2 => {
                            let all = model[range.clone()].iter().all(Option::is_some);
                            assert_eq!(space.discard(address, length).is_ok(), all);
                            model[range].iter_mut().flatten().for_each(|value| *value = 0);
                        }
                        3 => {
                            let _ = space.protect(address, length, Protection::READ);
                            let _ = space.protect(address, length, READ_WRITE);
                        }
                        _ => {
                            for page in range {
                                let value = random.below(1 << 30);
                                let stored = space.store_u64(at(base + page as u64), value).is_ok();
                                assert_eq!(stored, model[page].is_some(), "page {page} of thread {thread}");
                                model[page] = model[page].map(|_| value);
                            }
                        }
                    }
                    let page = random.below(OWN);
                    let seen = space.load_u64(at(base + page)).ok();
                    assert_eq!(seen, model[page as usize], "page {page} of thread {thread}");
                }
            });
        }
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let child = space.fork().unwrap();
                let sum = |child: &Space<S, D>| -> u64 {
                    (1000..1000 + 4 * OWN).filter_map(|page| child.load_u64(at(page)).ok()).sum()
                };
                assert_eq!(sum(&child), sum(&child));
                child.audit().unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        std::thread::sleep(time());
        stop.store(true, Ordering::Relaxed);
    });
    space.audit().unwrap();
    assert_eq!(space.taken_ranges(), 0);
    drop(space);
    machine.end()
}

fn a_file_under_a_tight_limit_shows_its_bytes<S: Stand, D: LockingDesign>() -> Ran<S> {
    const PAGES: u64 = 64;
    let machine = Machine::<S>::with(512, Limits { cached_pages: 12, ..Limits::default() })?;
    let (space, file) = (machine.space::<D>(), machine.file(PAGES));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stopped = Stopped(&stop);
        for thread in 0..4_u64 {
            let (space, file, stop) = (&space, &file, &stop);
            scope.spawn(move || {
                let base = 1000 * (thread + 1);
                let mut random = Random(thread);
                space.map(of_file(file, base, PAGES, READ_WRITE)).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let page = random.below(PAGES);
                    let own = random.below(4) == 0;
                    if own {
                        space.store_u64(at(base + page), 77).unwrap();
                    }
                    let expected = if own { 77 } else { word(page as u8 + 1) };
                    assert_eq!(space.load_u64(at(base + page)).unwrap(), expected, "page {page}");
                    space.discard(at(base + page), PAGE_SIZE).unwrap();
                }
            });
        }
        std::thread::sleep(time());
        stop.store(true, Ordering::Relaxed);
    });
    space.audit().unwrap();
    drop((space, file));
    machine.end()
}

/// A fault that holds a lock while it looks for memory, and finds none, must not ask for the lock again behind a
/// writer.
fn no_memory_beside_changes_is_an_error_and_no_hang<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::with(S::IDLE_FRAMES + 2, Limits::default())?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 3)).unwrap();
    space.store_u64(at(10), 1).unwrap();
    space.store_u64(at(11), 1).unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                space.map(anonymous(20, 1)).unwrap();
                space.unmap(at(20), PAGE_SIZE).unwrap();
            }
        });
        for _ in 0..20 {
            assert!(matches!(fault_of(space.store_u64(at(12), 1)), FaultError::OutOfMemory { .. }));
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    drop(space);
    machine.end()
}
