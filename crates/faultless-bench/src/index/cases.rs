//! The cases. All contenders run the same code.

use super::maple::MapleTree;
use super::ours::Ours;
use super::peers::{Array, BTree, Concurrent, Ranges, Scc, Skip};
use super::{Handle, Index, PAGES, Random, end_of, item, start_of};
use crate::case::{Case, Entrant, Sizes, Work};
use crate::guard::Membarrier;
use crate::lap::Lap;
use faultless::host::FenceBarrier;
use faultless_lab::trouble::Trouble;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SIZES: Option<Sizes> =
    Some(Sizes { of: "ranges", usual: &[30, 1_000, 60_000], least: 4, most: 1_000_000 });

/// The updates a second of the writer beside a reader: each is a removal and an insertion.
const RATE: u64 = 10_000;

pub const LOOK_UP: Case = Case {
    name: "look-up",
    about: "find the range of a random page, and read its end and a word; the next page depends on the word",
    sizes: SIZES,
    slices: 1,
    bars: &[],
    set_up: |ranges| entrants(ranges, &[1, 2], &LookUps, true),
};

pub const UPDATE: Case = Case {
    name: "update",
    about: "remove a random range, or insert it again: each is one operation; the removed range is freed",
    sizes: SIZES,
    slices: 1,
    bars: &[],
    set_up: |ranges| entrants(ranges, &[1], &Updates, true),
};

pub const TWO_WRITERS: Case = Case {
    name: "two-writers",
    about: "as update, each thread in its own half of the ranges",
    sizes: SIZES,
    slices: 1,
    bars: &[],
    set_up: |ranges| entrants(ranges, &[1, 2], &Updates, true),
};

pub const READER: Case = Case {
    name: "reader-under-writer",
    about: "as look-up, each operation timed alone, beside a writer with 10,000 updates a second; ns/op is the median",
    sizes: SIZES,
    slices: 4,
    bars: &[],
    set_up: |ranges| entrants(ranges, &[1], &Readers, false),
};

/// Makes the work of a case from a contender.
trait Make {
    fn work<I: Index>(&self, index: I, ranges: u64) -> Arc<dyn Work>;
}

/// Returns the entrants of all contenders. A tree without RCU has no readers beside its writers, so it is optional.
fn entrants(
    ranges: u64,
    threads: &[usize],
    make: &impl Make,
    without_rcu: bool,
) -> Result<Vec<Entrant>, Trouble> {
    let mut all = Vec::new();
    macro_rules! enter {
        ($($index:ty),*) => {
            $(all.extend(entrant::<$index>(ranges, threads, make));)*
        };
    }
    enter!(Ours<FenceBarrier>, Ours<Membarrier>, MapleTree<true>);
    if without_rcu {
        enter!(MapleTree<false>);
    }
    enter!(BTree<std::sync::RwLock<_>>, BTree<parking_lot::RwLock<_>>, Ranges, Skip, Scc, Concurrent, Array);
    Ok(all)
}

fn entrant<I: Index>(ranges: u64, threads: &[usize], make: &impl Make) -> impl Iterator<Item = Entrant> {
    let work = I::new().map(|index| {
        index.handle().fill((0..ranges).map(|number| item(start_of(number, ranges), 0)));
        make.work(index, ranges)
    });
    Entrant::with_threads(I::name(), threads, work)
}

struct LookUps;

impl Make for LookUps {
    fn work<I: Index>(&self, index: I, ranges: u64) -> Arc<dyn Work> {
        Arc::new(LookUp { index, ranges })
    }
}

struct LookUp<I> {
    index: I,
    ranges: u64,
}

impl<I: Index> Work for LookUp<I> {
    fn lap(&self, _me: usize, lap: &mut Lap) -> Result<(), Trouble> {
        let (mut handle, mut random) = (self.index.handle(), Random::new(lap.seed()));
        lap.repeat(64, 1, || {
            let page = random.page(self.ranges);
            match handle.find(page) {
                Some(found) if found.end == end_of(page) => random.follows(found.word),
                _ => return Err(not_found(page)),
            }
            Ok(())
        })
    }
}

#[cold]
fn not_found(page: u64) -> Trouble {
    Trouble::Wrong(format!("the range of page {page:#x} is not found"))
}

struct Updates;

impl Make for Updates {
    fn work<I: Index>(&self, index: I, ranges: u64) -> Arc<dyn Work> {
        Arc::new(Update { index, ranges })
    }
}

struct Update<I> {
    index: I,
    ranges: u64,
}

impl<I: Index> Work for Update<I> {
    fn lap(&self, me: usize, lap: &mut Lap) -> Result<(), Trouble> {
        let (mut handle, mut random) = (self.index.handle(), Random::new(lap.seed()));
        let half = self.ranges / 2;
        lap.repeat(1, 2, || {
            let start = start_of(random.below(half) + me as u64 * half, self.ranges);
            update(&mut handle, start)
        })
    }
}

/// Removes a range and inserts a new one in its place.
#[inline]
fn update(handle: &mut impl Handle, start: u64) -> Result<(), Trouble> {
    if !handle.remove(start, start + PAGES) {
        return Err(not_found(start));
    }
    handle.insert(item(start, 0));
    Ok(())
}

struct Readers;

impl Make for Readers {
    fn work<I: Index>(&self, index: I, ranges: u64) -> Arc<dyn Work> {
        let (due, done) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Reader { index, ranges, due, done })
    }
}

struct Reader<I> {
    index: I,
    ranges: u64,
    /// The updates that were due, and those that were made.
    due: AtomicU64,
    done: AtomicU64,
}

impl<I: Index> Work for Reader<I> {
    fn lap(&self, _me: usize, lap: &mut Lap) -> Result<(), Trouble> {
        let (mut handle, mut random) = (self.index.handle(), Random::new(lap.seed()));
        lap.repeat_each(|| {
            let page = random.page(self.ranges);
            match handle.find(page) {
                Some(found) if found.end != end_of(page) => return Err(not_found(page)),
                Some(found) => random.follows(found.word),
                // The writer has just removed the range.
                None => {}
            }
            Ok(())
        })
    }

    fn has_beside(&self) -> bool {
        true
    }

    /// Updates at a fixed rate. A writer that is late catches up.
    fn beside(&self, over: &AtomicBool) {
        let (mut handle, mut random) = (self.index.handle(), Random::new(1 << 40));
        let (start, mut done) = (Instant::now(), 0);
        let due = |at: Duration| (at.as_secs_f64() * RATE as f64) as u64;
        while !over.load(Ordering::Relaxed) {
            while done < due(start.elapsed()) && !over.load(Ordering::Relaxed) {
                let at = start_of(random.below(self.ranges), self.ranges);
                update(&mut handle, at).expect("the only writer finds the range that it has inserted");
                done += 1;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        self.due.fetch_add(due(start.elapsed()), Ordering::Relaxed);
        self.done.fetch_add(done, Ordering::Relaxed);
    }

    fn note(&self) -> Option<String> {
        let (done, due) = (self.done.load(Ordering::Relaxed), self.due.load(Ordering::Relaxed));
        (done * 100 < due * 95)
            .then(|| format!("its writer made only {} of {RATE} updates a second", done * RATE / due))
    }
}
