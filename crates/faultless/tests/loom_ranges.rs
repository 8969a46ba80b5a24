//! Taken ranges under loom: one at a time has a page, and nobody who waits is forgotten, however a range is let go.
#![cfg(loom)]

use faultless::address::{PageNumber, PageRange};
use faultless::host::StdPark;
use faultless::sync::{Choice, Claims, Ranges};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

fn range(start: u64, end: u64) -> PageRange {
    PageRange::new(PageNumber::new(start), PageNumber::new(end)).unwrap()
}

struct Common {
    ranges: Ranges<usize>,
    park: StdPark,
    /// How many are at work on page 1.
    inside: AtomicUsize,
}

impl Common {
    /// Takes `range`, which has page 1, and lets it go: by its flag, if one is free, or with the lock.
    fn work(&self, range: PageRange) {
        let (taken, mut lock) = self.ranges.take(range, &self.park);
        *lock += 1;
        drop(lock);
        assert_eq!(self.inside.fetch_add(1, Ordering::Relaxed), 0, "two have a page");
        self.inside.fetch_sub(1, Ordering::Relaxed);
        drop(taken);
    }
}

fn model(preemptions: usize, others: [fn(&Common); 2]) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || {
        let common = Common {
            ranges: Ranges::try_new(0).unwrap(),
            park: StdPark::default(),
            inside: AtomicUsize::new(0),
        };
        let common = Arc::new(common);
        let threads = others.map(|other| {
            let common = common.clone();
            thread::spawn(move || other(&common))
        });
        common.work(range(0, 2));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(common.ranges.claimed(), 0);
        assert_eq!(*common.ranges.lock(), 3);
    });
}

#[test]
fn all_want_a_page() {
    model(3, [|common| common.work(range(1, 3)), |common| common.work(range(1, 2))]);
}

/// One has another page, and with it the only flag, perhaps.
#[test]
fn one_is_apart() {
    let apart = |common: &Common| {
        let (taken, mut lock) = common.ranges.take(range(5, 6), &common.park);
        *lock += 1;
        drop(lock);
        drop(taken);
    };
    model(3, [|common| common.work(range(1, 3)), apart]);
}

/// One lets its place go with the lock that it has anyhow, as mmap does.
#[test]
fn one_finishes_under_the_lock() {
    let finishes = |common: &Common| {
        let choose = |_: &usize, claims: &Claims| match claims.overlapping(range(1, 2)) {
            None => Choice::Range(range(1, 2)),
            Some(_) => Choice::Claimed,
        };
        let (taken, mut lock) = common.ranges.take_chosen(&common.park, range(0, 9), choose).unwrap();
        *lock += 1;
        assert_eq!(common.inside.load(Ordering::Relaxed), 0, "two have a page");
        taken.finish(&mut lock);
    };
    model(3, [|common| common.work(range(1, 3)), finishes]);
}
