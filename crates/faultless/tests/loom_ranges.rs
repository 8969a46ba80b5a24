//! Taken ranges under loom. Only one thread at a time has a page, and no waiting thread is forgotten, however a range
//! is released. A thread that changes something without the lock has it alone.
#![cfg(loom)]

use faultless::address::{PageNumber, PageRange};
use faultless::host::{StdPark, StdSlots};
use faultless::sync::{Choice, Claims, Edited, Ranges};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

fn range(start: u64, end: u64) -> PageRange {
    PageRange::new(PageNumber::new(start), PageNumber::new(end)).unwrap()
}

/// A count of changes.
struct Count(usize);

impl Edited for Count {
    fn edited(&mut self, [more, ..]: [u64; 4]) {
        self.0 += more as usize;
    }
}

struct Common {
    ranges: Ranges<Count>,
    park: StdPark,
    /// The number of threads that work on page 1.
    inside: AtomicUsize,
    /// The places that edits change. loom sees two threads that are at one place at a time.
    places: [UnsafeCell<usize>; 4],
}

// SAFETY: loom reports two threads in one place.
unsafe impl Sync for Common {}
// SAFETY: as above.
unsafe impl Send for Common {}

impl Common {
    /// Takes `range`, which has page 1, and lets it go: by its flag, if one is free, or with the lock.
    fn work(&self, range: PageRange) {
        let (taken, mut lock) = self.ranges.take(range, &self.park);
        lock.0 += 1;
        drop(lock);
        assert_eq!(self.inside.fetch_add(1, Ordering::Relaxed), 0, "two have a page");
        self.inside.fetch_sub(1, Ordering::Relaxed);
        drop(taken);
    }

    fn change(&self, hull: PageRange) {
        for page in hull.iter() {
            // SAFETY: loom reports a second thread there.
            self.places[page.get() as usize].with_mut(|place| unsafe { *place += 1 });
        }
    }

    /// Takes `range` and changes `hull`, without the lock if that may be.
    fn edit(&self, range: PageRange, hull: PageRange) {
        let (taken, lock) = self.ranges.take_beside(range, &self.park);
        if taken.may_edit() && lock.is_free(hull) {
            let edit = lock.edit(&taken, hull);
            self.change(hull);
            edit.done([1, 0, 0, 0]);
        } else {
            let mut lock = lock.alone(&self.park);
            self.change(hull);
            lock.0 += 1;
        }
    }

    /// Looks at everything, and changes it.
    fn change_all(&self) {
        let mut lock = self.ranges.lock_by(&self.park);
        self.change(range(0, 4));
        lock.0 += 1;
    }
}

fn model(preemptions: usize, others: [fn(&Common); 2]) {
    model_of(preemptions, |common| common.work(range(0, 2)), others);
}

fn model_of(preemptions: usize, own: fn(&Common), others: [fn(&Common); 2]) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || {
        let common = Common {
            ranges: Ranges::try_new(Count(0)).unwrap(),
            park: StdPark::default(),
            inside: AtomicUsize::new(0),
            places: core::array::from_fn(|_| UnsafeCell::new(0)),
        };
        let common = Arc::new(common);
        StdSlots::set_current(0);
        let mut slot = 0;
        let threads = others.map(|other| {
            let common = common.clone();
            slot += 1;
            thread::spawn(move || {
                StdSlots::set_current(slot);
                other(&common);
            })
        });
        own(&common);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(common.ranges.claimed(), 0);
        assert_eq!(common.ranges.lock_by(&common.park).0, 3);
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
        lock.0 += 1;
        drop(lock);
        drop(taken);
    };
    model(3, [|common| common.work(range(1, 3)), apart]);
}

/// One thread releases its range under the lock that it holds already, as mmap does.
#[test]
fn one_finishes_under_the_lock() {
    let finishes = |common: &Common| {
        let choose = |_: &Count, claims: &Claims| match claims.overlapping(range(1, 2)) {
            None => Choice::Range(range(1, 2)),
            Some(_) => Choice::Claimed,
        };
        let (taken, mut lock) = common.ranges.take_chosen(&common.park, range(0, 9), choose).unwrap();
        lock.0 += 1;
        assert_eq!(common.inside.load(Ordering::Relaxed), 0, "two have a page");
        taken.finish(&mut lock);
    };
    model(3, [|common| common.work(range(1, 3)), finishes]);
}

/// Two edit apart, and side by side; one looks at everything.
#[test]
fn edits_go_on_side_by_side() {
    model_of(
        3,
        |common| common.edit(range(0, 1), range(0, 2)),
        [|common| common.edit(range(3, 4), range(2, 4)), Common::change_all],
    );
}

/// One thread edits pages that a second one has taken. The second one releases them while a third one edits.
#[test]
fn an_edit_of_a_page_that_is_taken() {
    model_of(
        3,
        |common| common.edit(range(0, 1), range(0, 2)),
        [|common| common.edit(range(0, 1), range(0, 2)), |common| common.edit(range(3, 4), range(2, 4))],
    );
    model_of(
        2,
        |common| common.work(range(0, 2)),
        [|common| common.edit(range(1, 2), range(0, 2)), |common| common.edit(range(3, 4), range(2, 4))],
    );
}

/// Two disjoint ranges whose edits change the same pages.
#[test]
fn edits_of_the_same() {
    model_of(
        3,
        |common| common.edit(range(0, 1), range(0, 3)),
        [|common| common.edit(range(3, 4), range(1, 4)), |common| common.edit(range(1, 2), range(0, 3))],
    );
}
