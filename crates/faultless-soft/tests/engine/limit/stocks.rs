//! The stocks of threads: pages that they have charged to a group in advance, and that others take back.

use super::*;
use std::sync::Barrier;
use std::sync::atomic::AtomicU64;

/// Pages that another thread has charged in advance are taken back before a fault fails: of a thread that sleeps, and of one that
/// has ended.
#[test]
fn stocks_of_other_threads_are_found() {
    let engine = engine(256, None);
    let limit = Limit::new(&engine, LimitConfig::max(64)).unwrap();
    let space = space(&engine, &limit);
    let (touched, go_on) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            store(&space, 0..1);
            touched.wait();
            go_on.wait();
            assert!(space.fault_and_wait(at(64), Access::Write).is_err(), "its stock is gone");
        });
        touched.wait();
        assert!(limit.usage().stock > 0, "the test shows something only if there is a stock");
        store(&space, 1..64);
        assert_eq!((limit.usage().resident, limit.usage().stock), (64, 0));
        go_on.wait();
    });
    space.discard(at(0), 64 * PAGE_SIZE).unwrap();
    std::thread::spawn({
        let space = space.clone();
        move || store(&space, 0..1)
    })
    .join()
    .unwrap();
    // A thread that was joined has ended, and has given its stock back.
    let usage = limit.usage();
    let own = usage.stock;
    store(&space, 1..64);
    assert_eq!((limit.usage().resident, limit.usage().stock), (64, 0), "{own}");
    drop(space);
    engine.flush();
    is_empty(&limit);
}

/// Two threads need the pages that a third one has charged in advance. One of them takes these back, which takes a grace period. The other
/// one waits for it, and does not fail.
#[test]
fn a_fault_waits_for_stocks_that_another_takes() {
    let engine = engine(256, None);
    let limit = Limit::new(&engine, LimitConfig::max(64)).unwrap();
    let space = space(&engine, &limit);
    let (touched, go_on, reads) = (Barrier::new(2), Barrier::new(2), Barrier::new(2));
    let ended = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            store(&space, 0..1);
            touched.wait();
            go_on.wait();
        });
        touched.wait();
        store(&space, 1..2);
        assert!(limit.usage().stock > 0, "the test shows something only if there is a stock");
        scope.spawn(|| {
            // SAFETY: dropped before anything waits for this thread but the grace period.
            let section = unsafe { engine.enter_section() };
            reads.wait();
            // As long as a thread that does not wait needs to fail.
            let begin = std::time::Instant::now();
            while begin.elapsed().as_millis() < 200 && ended.load(Ordering::Relaxed) == 0 {
                std::hint::spin_loop();
            }
            drop(section);
        });
        reads.wait();
        let faulting = [2..33, 33..64].map(|pages| {
            let (space, ended) = (&space, &ended);
            scope.spawn(move || {
                let failed = pages.filter(|page| space.fault_and_wait(at(*page), Access::Write).is_err());
                let failed = failed.count();
                ended.fetch_add(1, Ordering::Relaxed);
                failed
            })
        });
        let failed = faulting.map(|thread| thread.join().unwrap());
        go_on.wait();
        assert_eq!(failed, [0, 0], "faults failed");
    });
    drop(space);
    engine.flush();
    is_empty(&limit);
}

/// No fault is lost from the count when another thread takes the stock of a thread that faults.
#[test]
fn faults_are_counted_beside_threads_that_take_stocks() {
    const ROUNDS: u64 = 2_000;
    let engine = engine(1024, Some(compressed()));
    let limit = Limit::new(&engine, LimitConfig::max(200)).unwrap();
    let space = space(&engine, &limit);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|thread| {
                let space = &space;
                scope.spawn(move || {
                    // At the low limit a fault may fail.
                    let serve = |round: u64| {
                        let address = at(thread * 50 + round % 50);
                        let is_served = space.fault_and_wait(address, Access::Write).is_ok();
                        space.discard(address, PAGE_SIZE).unwrap();
                        u64::from(is_served)
                    };
                    (0..ROUNDS).map(serve).sum::<u64>()
                })
            })
            .collect();
        scope.spawn(|| {
            // Below the usage, so that the pages in stocks are taken back.
            while !is_over.load(Ordering::Relaxed) {
                for max in [8, 200] {
                    limit.set(LimitConfig::max(max)).unwrap();
                }
            }
        });
        let served: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        is_over.store(true, Ordering::Relaxed);
        let served: u64 = served.into_iter().map(Result::unwrap).sum();
        assert_eq!(limit.usage().faults, served);
        assert!(served > ROUNDS);
    });
}
