//! The end of a process with much memory, while the swap device is stalled.

use super::{Engine, Space, page_at, unusable, wrong};
use crate::bars::{Bar, Of};
use crate::case::{Case, Entrant, Sizes, Work};
use crate::lap::{Lap, Reading};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::store::{Bytes, Direction, Transfer};
use faultless::swap::SwapDevice;
use faultless::{Advice, Limits, MapRequest};
use faultless_lab::trouble::Trouble;
use faultless_soft::{Cpu, Soft};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The pages that are in slots before, and the pages whose write is under way.
const AWAY: u64 = 256;
/// The threads that wait for the device.
const WAITERS: u64 = 4;

const OURS: &str = "faultless";
const FREE: &str = "ms until its memory is free";

pub const EXIT: Case = Case {
    name: "pressure-exit",
    about: "the end of a process while the swap device is stalled: 4 of its threads wait for reads, and writes are under way",
    sizes: Some(Sizes { of: "MiB resident", usual: &[1024], least: 8, most: 8192 }),
    slices: 1,
    bars: &[Bar { about: FREE, most: 10.0, of: Of::Measure { contender: OURS, name: FREE } }],
    set_up: |mebibytes| {
        let work = Exits::new(mebibytes << 20)?;
        Ok(Entrant::with_threads(OURS, &[1], Ok(Arc::new(work))).collect())
    },
};

/// A swap device that can be stalled.
#[derive(Default)]
struct Stalling {
    next: AtomicU64,
    pages: Mutex<HashMap<u64, Box<[u8]>>>,
    /// The transfers that wait, while it is stalled.
    held: Mutex<Option<Vec<Transfer>>>,
}

impl Stalling {
    fn stall(&self) {
        self.held.lock().get_or_insert_default();
    }

    fn go_on(&self) {
        let held = self.held.lock().take();
        held.into_iter().flatten().for_each(|transfer| self.run(transfer));
    }

    fn held(&self, direction: Direction) -> u64 {
        let held = self.held.lock();
        held.iter().flatten().filter(|one| one.direction() == direction).map(|one| one.pages() as u64).sum()
    }

    fn run(&self, mut transfer: Transfer) {
        let result = transfer.move_pages(|offset, bytes| {
            let mut pages = self.pages.lock();
            match bytes {
                Bytes::Write(page) => _ = pages.insert(offset, page.into()),
                Bytes::Read(page) => {
                    pages.get(&offset).into_iter().for_each(|kept| page.copy_from_slice(kept))
                }
            }
            Ok(PAGE_SIZE as usize)
        });
        transfer.complete(result);
    }
}

impl SwapDevice for Stalling {
    fn capacity(&self) -> u64 {
        1 << 30
    }

    fn reserve(&self) -> Option<u64> {
        Some(self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn release(&self, place: u64) {
        // It may take no lock here. The place is never used again, and the map goes with the device.
        let _ = place;
    }

    fn submit(&self, transfer: Transfer) {
        let mut held = self.held.lock();
        match &mut *held {
            Some(held) => held.push(transfer),
            None => {
                drop(held);
                self.run(transfer);
            }
        }
    }

    fn max_pages(&self) -> usize {
        16
    }
}

struct Exits {
    engine: Arc<Engine>,
    device: Arc<Stalling>,
    pages: u64,
    took: Mutex<Vec<Duration>>,
}

impl Exits {
    fn new(bytes: u64) -> Result<Self, Trouble> {
        let pages = bytes / PAGE_SIZE;
        let soft = Soft::new(pages + 4 * AWAY).map_err(unusable)?;
        let engine = Engine::new(soft, Limits::default()).map_err(unusable)?;
        let device = Arc::new(Stalling::default());
        engine.add_swap(Arc::clone(&device) as Arc<dyn SwapDevice>).map_err(unusable)?;
        Ok(Self { engine, device, pages, took: Mutex::default() })
    }

    /// Pages `AWAY` pages out, from page `first` on.
    fn page_out(&self, space: &Space, at: VirtAddr, first: u64) -> Result<(), Trouble> {
        space.advise(page_at(at, first), AWAY * PAGE_SIZE, Advice::PageOut).map_err(wrong)
    }

    fn fill(&self) -> Result<(Space, VirtAddr), Trouble> {
        let space = Space::new(&self.engine).map_err(unusable)?;
        let at = space.map(MapRequest::anonymous(self.pages * PAGE_SIZE)).map_err(wrong)?;
        (0..self.pages).try_for_each(|page| space.store_u64(page_at(at, page), page + 1)).map_err(wrong)?;
        self.page_out(&space, at, 0)?;
        self.device.stall();
        Ok((space, at))
    }

    /// Ends the process once, and returns the time until its memory was free.
    fn end_once(&self, lap: &mut Lap) -> Result<Duration, Trouble> {
        let (space, at) = self.fill()?;
        let before = self.engine.frame_usage().used;
        let in_slots: Vec<u64> = (0..AWAY).filter(|page| is_away(&space, at, *page)).collect();
        std::thread::scope(|scope| {
            let space = &space;
            for page in in_slots.iter().take(WAITERS as usize).copied() {
                // Its process ends while it waits, and so does the access.
                scope.spawn(move || space.load_u64(page_at(at, page)).is_ok());
            }
            let ended = (|| {
                while self.device.held(Direction::Read) < WAITERS.min(in_slots.len() as u64) {
                    std::thread::yield_now();
                }
                self.page_out(space, at, AWAY)?;
                if self.device.held(Direction::Write) == 0 {
                    return Err(Trouble::Wrong("no page is being written".into()));
                }
                let start = Instant::now();
                // The page of zeros, and the pages that the device has.
                let pinned = 1 + self.device.held(Direction::Read) + self.device.held(Direction::Write);
                lap.part(1, || {
                    space.exit();
                    Ok(())
                })?;
                while self.engine.frame_usage().used > pinned {
                    if start.elapsed() > Duration::from_secs(60) {
                        let left = self.engine.frame_usage().used;
                        return Err(Trouble::Wrong(format!(
                            "{left} frames of {before} are not free after 60 s"
                        )));
                    }
                    std::thread::yield_now();
                }
                Ok(start.elapsed())
            })();
            self.device.go_on();
            ended
        })
    }
}

fn is_away(space: &Space, at: VirtAddr, page: u64) -> bool {
    space.resident(page_at(at, page), PAGE_SIZE).is_ok_and(|pages| pages == [false])
}

impl Work for Exits {
    fn lap(&self, _me: usize, lap: &mut Lap) -> Result<(), Trouble> {
        let took = self.end_once(lap)?;
        self.took.lock().push(took);
        self.engine.flush();
        let left = self.engine.frame_usage().used;
        if left == 1 { Ok(()) } else { Err(Trouble::Wrong(format!("{} frames are left", left - 1))) }
    }

    fn measures(&self, _: &[Reading]) -> Vec<(&'static str, f64)> {
        // The slice's, not that of the warm-up before it.
        let last = mem::take(&mut *self.took.lock()).pop();
        last.into_iter().map(|took| (FREE, took.as_secs_f64() * 1e3)).collect()
    }
}
