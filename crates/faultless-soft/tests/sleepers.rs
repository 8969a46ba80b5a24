//! Slots that were freed, or whose threads sleep, beside all other operations.
#![cfg(not(loom))]

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::host::{Slots, StdSlots};
use faultless::protection::{Access, Protection};
use faultless::store::{Bytes, GatedStore, Store, StoreError, Transfer};
use faultless::sync::{QuiescentStates, Sections};
use faultless::{AddressSpace, Engine, FaultError, File, Limits, MapRequest, Placement};
use faultless_soft::{Cpu, Soft};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

/// Checks "A thread that ends without a word, in a program whose threads tell quiescent states, is not waited for"
/// (retired/tests.rs), also if other engines of the process end at the same time.
#[test]
fn a_thread_that_ends_while_engines_go_is_not_waited_for() {
    const ENGINES: usize = 60;
    let mut hangs = 0;
    for _ in 0..100 {
        let all: Vec<Arc<Sections>> = (0..ENGINES).map(|_| Arc::new(Sections::new())).collect();
        all.iter().for_each(|sections| StdSlots.attach(sections).unwrap());
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let slot = StdSlots.current();
                for sections in &all {
                    // SAFETY: this thread's slot.
                    drop(unsafe { sections.enter(slot, &QuiescentStates) });
                }
                start.wait();
            });
            start.wait();
            for sections in &all[..ENGINES / 2] {
                StdSlots.detach(sections);
                std::thread::yield_now();
            }
            thread.join().unwrap();
        });
        for sections in &all[ENGINES / 2..] {
            // The ended threads were joined by `join`, not by the scope.
            let mut given_up = false;
            if sections.listed() != 0 {
                let result = std::panic::catch_unwind(|| {
                    sections.grace(&QuiescentStates, |look| {
                        std::thread::yield_now();
                        assert!(look < 1000, "waits for ever");
                    });
                });
                given_up = result.is_err();
            }
            hangs += u32::from(given_up);
            StdSlots.detach(sections);
        }
    }
    assert_eq!(hangs, 0, "grace periods wait for ever for a thread that has ended and been joined");
}

struct Stamped;
const PAGES: u64 = 8;

impl Store for Stamped {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(PAGES * PAGE_SIZE)
    }
    fn submit(&self, mut transfer: Transfer) {
        let page = transfer.offset() / PAGE_SIZE;
        if let Bytes::Read(bytes) = transfer.bytes() {
            bytes.chunks_mut(8).for_each(|word| word.copy_from_slice(&(page + 1).to_ne_bytes()));
        }
        transfer.complete(Ok(PAGE_SIZE as usize));
    }
}

type Space = AddressSpace<Soft, Faultless>;

/// Hundreds of threads sleep for reads, wake, use the pages that they read while others unmap them, and end. Spaces
/// exit meanwhile. A machine with caches detects pages that are freed too early.
fn sleepers(engine: Arc<Engine<Soft>>) {
    let rounds = 12;
    let (finished, wrong) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let last = Arc::new(AtomicBool::new(false));
    let watched = (finished.clone(), last.clone(), engine.clone());
    let watch = std::thread::spawn(move || {
        let (finished, last, engine) = watched;
        let (mut seen, mut at) = (0, Instant::now());
        while !last.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(100));
            let now = finished.load(Ordering::SeqCst);
            if now != seen {
                (seen, at) = (now, Instant::now());
            }
            if at.elapsed().as_secs() > 20 {
                eprintln!(
                    "HANG after {now}: {:?}, {} listed",
                    engine.statistics(),
                    engine.sections().listed()
                );
                std::process::exit(101);
            }
        }
    });
    for round in 0..rounds {
        let gate = Arc::new(GatedStore::new(Stamped));
        let file = File::open(&engine, gate.clone()).unwrap();
        let spaces: Vec<Space> = (0..4).map(|_| Space::new(&engine).unwrap()).collect();
        let base = VirtAddr::new(0x1000_0000);
        let rights = Protection::READ | Protection::WRITE;
        for space in &spaces {
            space
                .map(MapRequest::file(&file, 0, PAGES * PAGE_SIZE, rights).at(Placement::Fixed(base)))
                .unwrap();
        }
        let threads: Vec<_> = (0..160_u64)
            .map(|number| {
                let (space, finished, wrong) =
                    (spaces[number as usize % 4].clone(), finished.clone(), wrong.clone());
                std::thread::spawn(move || {
                    for step in 0..6 {
                        let page = (number / 4 + step * 3) % PAGES;
                        let at = VirtAddr::new(base.get() + page * PAGE_SIZE);
                        let result = if (number + step) % 3 == 0 {
                            space.store_u64(at, page + 1).map(|()| page + 1)
                        } else {
                            space.load_u64(at)
                        };
                        match result {
                            Ok(word) if word != 0 && word != page + 1 => {
                                _ = wrong.fetch_add(1, Ordering::SeqCst)
                            }
                            _ => {}
                        }
                    }
                    finished.fetch_add(1, Ordering::SeqCst);
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(5));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..40 {
                    gate.pass(3);
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
            scope.spawn(|| {
                for step in 0..60_u64 {
                    let at = VirtAddr::new(base.get() + step % PAGES * PAGE_SIZE);
                    let _ = match step % 3 {
                        0 => spaces[1].unmap(at, PAGE_SIZE).is_ok(),
                        1 => {
                            let request = MapRequest::file(&file, step % PAGES, PAGE_SIZE, rights);
                            spaces[1].map(request.at(Placement::Fixed(at))).is_ok()
                        }
                        _ => spaces[1].discard(at, PAGE_SIZE).is_ok(),
                    };
                }
            });
            if round % 2 == 0 {
                spaces[0].exit();
                let result = spaces[0].fault_and_wait(base, Access::Read);
                assert!(matches!(result, Err(FaultError::NoMapping { .. } | FaultError::Exited { .. })));
                spaces[2].exit();
            }
        });
        if round % 3 == 2 {
            spaces.iter().for_each(Space::exit);
        }
        gate.open();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        drop((spaces, file));
    }
    last.store(true, Ordering::SeqCst);
    watch.join().unwrap();
    engine.flush();
    assert_eq!(wrong.load(Ordering::SeqCst), 0, "invariant 3: a wrong word");
    let listed = engine.sections().listed();
    assert!(listed <= 2, "{listed} slots are listed");
}

#[test]
fn sleepers_wake_and_end() {
    sleepers(Engine::new(Soft::new(60).unwrap(), Limits { cached_pages: 6, ..Limits::default() }).unwrap());
}

#[test]
fn sleepers_wake_and_end_with_caches() {
    sleepers(
        Engine::new(Soft::with_caches(60).unwrap(), Limits { cached_pages: 6, ..Limits::default() }).unwrap(),
    );
}

#[test]
fn sleepers_wake_and_end_with_frames_enough() {
    sleepers(Engine::new(Soft::with_caches(400).unwrap(), Limits::default()).unwrap());
}
