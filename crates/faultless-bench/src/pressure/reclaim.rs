//! Reclaim of exclusive anonymous pages without I/O, and the cost of a root lock that other designs take for each page.

use super::{Engine, Space, page_at, unusable, wrong};
use crate::case::{Case, Entrant, Loop, Work};
use crate::index::Random;
use crate::lap::Lap;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::protection::Access;
use faultless::swap::CompressedMemory;
use faultless::{Limits, MapRequest};
use faultless_lab::trouble::Trouble;
use faultless_soft::{Cpu, Soft};
use parking_lot::{Mutex, RwLock};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The pages of a part, which are reclaimed in batches of 64.
const PAGES: u64 = 4096;
/// The pages that one call is asked for.
const CALL: u64 = 512;
/// The time between two changes of the reverse map by the thread that contends.
const PERIOD: Duration = Duration::from_micros(100);

const OURS: &str = "faultless";

pub const RECLAIM: Case = Case {
    name: "pressure-reclaim",
    about: "reclaim of a page that one entry maps, whose slot has its bytes, in batches of 64. A root lock: taken for reading and \
            released once for each page, as with a lock of the anon_vma kind; the rest of the work is not in that row",
    sizes: None,
    slices: 2,
    bars: &[],
    set_up: |_| entrants(),
};

fn entrants() -> Result<Vec<Entrant>, Trouble> {
    let mut all: Vec<Entrant> = Entrant::with_threads(OURS, &[1], Ok(Arc::new(Reclaiming::new()?))).collect();
    let locked = |lock: RwLock<u64>| {
        Loop(move |_me: usize, lap: &mut Lap| {
            lap.repeat(64, 1, || {
                black_box(*lock.read());
                Ok(())
            })
        })
    };
    all.extend(Entrant::with_threads("a root lock", &[1, 2], Ok(Arc::new(locked(RwLock::new(0))))));
    let beside = Arc::new(Beside(RwLock::new(0)));
    all.extend(Entrant::with_threads("a root lock, beside forks", &[1], Ok(beside)));
    Ok(all)
}

/// A space whose pages are all in slots.
struct Reclaiming {
    engine: Arc<Engine>,
    space: Space,
    at: VirtAddr,
    /// One slice at a time brings pages back and reclaims them.
    turn: Mutex<()>,
    looks: AtomicU64,
    freed: AtomicU64,
}

impl Reclaiming {
    fn new() -> Result<Self, Trouble> {
        let soft = Soft::new(PAGES + 512).map_err(unusable)?;
        let engine = Engine::new(soft, Limits::default()).map_err(unusable)?;
        let device = CompressedMemory::new(2 * PAGES, usize::MAX).map_err(unusable)?;
        engine.add_swap(Arc::new(device)).map_err(unusable)?;
        let space = Space::new(&engine).map_err(unusable)?;
        let at = space.map(MapRequest::anonymous(PAGES * PAGE_SIZE)).map_err(wrong)?;
        (0..PAGES).try_for_each(|page| space.store_u64(page_at(at, page), page + 1)).map_err(wrong)?;
        // Some looks clear the accessed bits, and the next ones write the pages.
        (0..8).for_each(|_| _ = engine.reclaim(PAGES));
        let (looks, freed) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { engine, space, at, turn: Mutex::new(()), looks, freed })
    }
}

impl Work for Reclaiming {
    fn lap(&self, _me: usize, lap: &mut Lap) -> Result<(), Trouble> {
        let _turn = self.turn.lock();
        let mut random = Random::new(lap.seed());
        loop {
            // A fault for a load maps the page without the accessed bit: the access that would set it is not made.
            let fault = |page| self.space.fault_and_wait(page_at(self.at, page), Access::Read).map_err(wrong);
            (0..PAGES).try_for_each(fault)?;
            let page = random.below(PAGES);
            let used = self.engine.frame_usage().used;
            // One call looks at some batches only.
            lap.part(PAGES, || {
                (0..PAGES / CALL).for_each(|_| _ = self.engine.reclaim(CALL));
                Ok(())
            })?;
            let freed = used - self.engine.frame_usage().used;
            self.looks.fetch_add(PAGES, Ordering::Relaxed);
            self.freed.fetch_add(freed, Ordering::Relaxed);
            let word = self.space.load_u64(page_at(self.at, page)).map_err(wrong)?;
            if word != page + 1 {
                return Err(Trouble::Wrong(format!("page {page} has the word {word}")));
            }
            if lap.is_over() {
                return Ok(());
            }
        }
    }

    fn measures(&self, _: &[crate::lap::Reading]) -> Vec<(&'static str, f64)> {
        let [looks, freed] = [&self.looks, &self.freed].map(|count| count.swap(0, Ordering::Relaxed) as f64);
        vec![("pages looked at for a page freed", looks / freed)]
    }
}

/// A root lock that another thread takes for writing ten thousand times a second, as fork does to change the reverse map.
struct Beside(RwLock<u64>);

impl Work for Beside {
    fn lap(&self, _me: usize, lap: &mut Lap) -> Result<(), Trouble> {
        lap.repeat(64, 1, || {
            black_box(*self.0.read());
            Ok(())
        })
    }

    fn has_beside(&self) -> bool {
        true
    }

    fn beside(&self, over: &AtomicBool) {
        let mut due = Instant::now();
        while !over.load(Ordering::Relaxed) {
            if Instant::now() < due {
                std::hint::spin_loop();
                continue;
            }
            due += PERIOD;
            let mut changes = self.0.write();
            // As long as an insertion into a tree takes.
            (0..64).for_each(|_| *changes = black_box(*changes + 1));
        }
    }
}
