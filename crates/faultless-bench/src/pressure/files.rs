//! 500 threads that read a mapped file. The file is larger than the page cache may be.

use super::{Engine, Space, page_at, unusable, wrong};
use crate::bars::{Bar, Of};
use crate::case::{Case, Entrant, Sizes, Work};
use crate::index::Random;
use crate::lap::{Lap, Reading};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::protection::Protection;
use faultless::store::{Bytes, DelayedStore, Store, StoreError, Transfer};
use faultless::{Advice, File, Limits, MapRequest};
use faultless_lab::trouble::Trouble;
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const THREADS: usize = 500;
/// The time of a read, about that of a fast disk.
const LATENCY: Duration = Duration::from_micros(100);

const OURS: &str = "faultless";
const READS: &str = "pages read for an access";
const SLOWEST: &str = "accesses of the median thread over those of the slowest";

pub const FILES: Case = Case {
    name: "pressure-files",
    about: "500 threads; a load from a random page of a mapped file 4 times as large as the page cache may be, on a store that takes \
            100 µs for a read; no read-ahead (MADV_RANDOM)",
    sizes: Some(Sizes { of: "pages in the page cache", usual: &[256, 4096], least: 8, most: 1 << 18 }),
    // Linux gives each of 500 threads its turn.
    slices: 100,
    bars: &[
        Bar {
            about: "pages read from the store for each access that completed",
            most: 1.02,
            of: Of::Measure { contender: OURS, name: READS },
        },
        Bar {
            about: "the slowest thread against the median",
            most: 5.0,
            of: Of::Measure { contender: OURS, name: SLOWEST },
        },
    ],
    set_up: |pages| {
        let work = Reads::new(pages)?;
        Ok(Entrant::with_threads(OURS, &[THREADS], Ok(Arc::new(work))).collect())
    },
};

/// A store whose pages have their number as first word. It counts the pages that were read.
struct Numbered {
    pages: u64,
    read: Arc<AtomicU64>,
}

impl Store for Numbered {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.pages * PAGE_SIZE)
    }

    fn submit(&self, mut transfer: Transfer) {
        self.read.fetch_add(transfer.pages() as u64, Ordering::Relaxed);
        let result = transfer.move_pages(|offset, bytes| {
            if let Bytes::Read(page) = bytes {
                page.fill(0);
                page[..8].copy_from_slice(&(offset / PAGE_SIZE).to_le_bytes());
            }
            Ok(PAGE_SIZE as usize)
        });
        transfer.complete(result);
    }
}

struct Reads {
    space: Space,
    at: VirtAddr,
    pages: u64,
    read: Arc<AtomicU64>,
    completed: AtomicU64,
}

impl Reads {
    fn new(limit: u64) -> Result<Self, Trouble> {
        let limits = Limits { cached_pages: limit, ..Limits::default() };
        let engine = Engine::new(Soft::new(limit + 4096).map_err(unusable)?, limits).map_err(unusable)?;
        let (pages, read) = (4 * limit, Arc::new(AtomicU64::new(0)));
        let store = DelayedStore::new(Numbered { pages, read: Arc::clone(&read) }, LATENCY);
        let file = File::open(&engine, Arc::new(store)).map_err(unusable)?;
        let space = Space::new(&engine).map_err(unusable)?;
        let at = space.map(MapRequest::file(&file, 0, pages * PAGE_SIZE, Protection::READ)).map_err(wrong)?;
        space.advise(at, pages * PAGE_SIZE, Advice::Random).map_err(wrong)?;
        Ok(Self { space, at, pages, read, completed: AtomicU64::new(0) })
    }
}

impl Work for Reads {
    fn lap(&self, _me: usize, lap: &mut Lap) -> Result<(), Trouble> {
        let mut random = Random::new(lap.seed());
        let mut completed = 0;
        let done = lap.repeat(1, 1, || {
            let page = random.below(self.pages);
            let word = self.space.load_u64(page_at(self.at, page)).map_err(wrong)?;
            completed += 1;
            if word == page {
                Ok(())
            } else {
                Err(Trouble::Wrong(format!("page {page} has the word {word}")))
            }
        });
        self.completed.fetch_add(completed, Ordering::Relaxed);
        done
    }

    fn measures(&self, threads: &[Reading]) -> Vec<(&'static str, f64)> {
        let [read, completed] = [&*self.read, &self.completed].map(|count| count.swap(0, Ordering::Relaxed));
        let mut accesses: Vec<u64> = threads.iter().map(|thread| thread.ops).collect();
        accesses.sort_unstable();
        let [slowest, median] = [accesses[0], accesses[accesses.len() / 2]];
        // A thread counts its last access, which may end after the slice. So each has one.
        vec![(READS, read as f64 / completed as f64), (SLOWEST, median as f64 / slowest as f64)]
    }
}
