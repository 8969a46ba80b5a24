//! A small engine with a swap device that fails, and with devices that are removed without room for their pages.
//!
//! An access may fail here: by an I/O error, or since there is no memory. If it succeeds, its bytes are right. A page whose bytes cannot
//! be had fails until its memory is discarded.

use crate::counts::{Counts, Kind};
use crate::machine::World;
use crate::model::{bytes_of, compare, wrong};
use crate::waits::{self, waited};
use crate::{Failure, Space};
use fastrand::Rng;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::store::{Direction, FileStore, Store, StoreError, Transfer};
use faultless::swap::{RemoveSwapError, StoreDevice, SwapDevice};
use faultless::{Advice, Engine, FaultError, ForkError, Limits, MapRequest, errno};
use faultless_soft::{Cpu, Soft};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The threads of the engine. Each uses the pages with its remainder.
pub const THREADS: usize = 2;
const PAGES: u64 = 128;
const FRAMES: u64 = 56;
/// The places of the devices: without the first one, the pages do not fit.
const PLACES: [u64; 2] = [112, 24];

/// A store whose transfers fail now and then. Some reads succeed without the bytes.
struct Failing {
    inner: FileStore,
    numbers: Mutex<Rng>,
    failures: Arc<AtomicU64>,
}

impl Store for Failing {
    fn length(&self) -> Result<u64, StoreError> {
        self.inner.length()
    }

    fn submit(&self, transfer: Transfer) {
        let number = self.numbers.lock().unwrap_or_else(PoisonError::into_inner).u32(..200);
        let (offset, bytes) = (transfer.offset(), transfer.pages() * PAGE_SIZE as usize);
        let result = match (number, transfer.direction()) {
            (0..4, _) => Err(StoreError::Io { offset, errno: errno::EIO }),
            (4, _) => Err(StoreError::NoSpace { offset }),
            (5, Direction::Read) => Ok(bytes),
            _ => return self.inner.submit(transfer),
        };
        self.failures.fetch_add(1, Ordering::Relaxed);
        transfer.complete(result);
    }

    fn max_pages(&self) -> usize {
        self.inner.max_pages()
    }
}

pub struct Troubled {
    engine: Arc<Engine<Soft>>,
    devices: [Arc<dyn SwapDevice>; 2],
    failures: Arc<AtomicU64>,
    space: Space,
    at: VirtAddr,
}

impl Troubled {
    pub fn new() -> Result<Self, Failure> {
        let engine = Engine::new(Soft::with_caches(FRAMES)?.with_trace(waited), Limits::default())?;
        let failures = Arc::new(AtomicU64::new(0));
        let device = |places: u64| -> Result<Arc<dyn SwapDevice>, Failure> {
            let file = tempfile::tempfile()?;
            file.set_len(places * PAGE_SIZE)?;
            let (inner, numbers) = (FileStore::from_file(file)?, Mutex::new(Rng::with_seed(places)));
            Ok(Arc::new(StoreDevice::new(Failing { inner, numbers, failures: failures.clone() })?))
        };
        let devices = [device(PLACES[0])?, device(PLACES[1])?];
        for device in &devices {
            engine.add_swap(device.clone())?;
        }
        let space = Space::new(&engine)?;
        let at = space.map(MapRequest::anonymous(PAGES * PAGE_SIZE))?;
        Ok(Self { engine, devices, failures, space, at })
    }

    /// Makes operations until the run ends.
    pub fn run(&self, world: &World, me: usize, thread: usize) -> Result<(), Failure> {
        let numbers = Rng::with_seed(thread as u64 + 1);
        let stamps = vec![0; PAGES as usize / THREADS];
        let mut user = User { all: self, counts: &world.counts, me: me as u64, numbers, stamps, stamp: 0 };
        while !world.is_over() {
            waits::begin();
            world.begun[thread].store(world.since_start(), Ordering::Relaxed);
            for _ in 0..8 {
                user.operation()?;
            }
            world.begun[thread].store(0, Ordering::Relaxed);
            // The other engines need the processors more.
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends the space. Returns the engine, in which nothing must be left.
    pub fn end(self, counts: &Counts) -> Result<Arc<Engine<Soft>>, Failure> {
        counts.add(Kind::Injected, self.failures.load(Ordering::Relaxed));
        self.space.audit()?;
        Ok(self.engine)
    }
}

struct User<'a> {
    all: &'a Troubled,
    counts: &'a Counts,
    me: u64,
    numbers: Rng,
    /// The stamps of this thread's pages.
    stamps: Vec<u64>,
    stamp: u64,
}

impl User<'_> {
    fn operation(&mut self) -> Result<(), Failure> {
        let page = self.numbers.usize(..self.stamps.len());
        match self.numbers.u32(..256) {
            0..240 => self.access(page),
            240..248 => self.fork(page),
            248..255 => {
                let advice = [Advice::PageOut, Advice::Cold, Advice::WillNeed][self.numbers.usize(..3)];
                Ok(self.all.space.advise(self.page(page), 8 * PAGE_SIZE, advice).or_else(no_hole)?)
            }
            _ if self.me == 0 => self.swap_off_and_on(),
            _ => Ok(()),
        }
    }

    fn page(&self, mine: usize) -> VirtAddr {
        VirtAddr::new(self.all.at.get() + (mine as u64 * THREADS as u64 + self.me) * PAGE_SIZE)
    }

    /// Notes the error of an access. Returns whether the page is lost.
    fn note(&self, error: FaultError) -> Result<bool, Failure> {
        let (kind, is_lost) = match error {
            FaultError::Io { error: StoreError::WrongBytes { .. }, .. } => (Kind::WrongBytes, true),
            FaultError::Io { .. } => (Kind::IoError, true),
            FaultError::OutOfMemory { .. } => (Kind::NoMemory, false),
            error => return Err(wrong(format!("an access with the error {error}"))),
        };
        self.counts.note(kind);
        Ok(is_lost)
    }

    /// Reads a page and compares it. Returns the error, if there is one.
    fn read(&self, space: &Space, mine: usize) -> Result<Option<FaultError>, Failure> {
        let mut bytes = vec![0xaa; PAGE_SIZE as usize];
        self.counts.note(Kind::FailedAccess);
        match space.read_bytes(self.page(mine), &mut bytes) {
            Ok(()) => {
                let place = format!("page {mine} of thread {} beside a failing device", self.me);
                compare(&place, &bytes, &[self.stamps[mine]]).map(|_| None)
            }
            Err(error) => Ok(Some(error)),
        }
    }

    fn access(&mut self, mine: usize) -> Result<(), Failure> {
        let space = &self.all.space;
        if let Some(error) = self.read(space, mine)? {
            return self.failed(mine, error);
        }
        self.stamp += 64;
        let stamp = self.stamp << 8 | self.me;
        match space.write_bytes(self.page(mine), &bytes_of(stamp, PAGE_SIZE)) {
            Ok(()) => self.stamps[mine] = stamp,
            Err(error) => self.failed(mine, error)?,
        }
        Ok(())
    }

    /// Discards a page that is lost. Without memory, discards some pages.
    fn failed(&mut self, mine: usize, error: FaultError) -> Result<(), Failure> {
        if self.note(error)? {
            // It is lost for ever.
            match self.read(&self.all.space, mine)? {
                None => return Err(wrong(format!("page {mine} came back after the error {error}"))),
                Some(error) => self.note(error)?,
            };
            return self.discard(mine);
        }
        (0..8).try_for_each(|step| self.discard((mine + step) % self.stamps.len()))
    }

    fn discard(&mut self, mine: usize) -> Result<(), Failure> {
        self.all.space.discard(self.page(mine), PAGE_SIZE)?;
        self.stamps[mine] = 0;
        Ok(())
    }

    /// Forks, and reads and stores in the child. No store of the child is seen here.
    fn fork(&mut self, mine: usize) -> Result<(), Failure> {
        let child = match self.all.space.fork() {
            Ok(child) => child,
            Err(ForkError::OutOfMemory) => {
                self.counts.note(Kind::NoMemory);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        for page in (0..4).map(|step| (mine + step) % self.stamps.len()) {
            match self.read(&child, page)? {
                Some(error) => {
                    self.note(error)?;
                }
                None => {
                    if let Err(error) = child.write_bytes(self.page(page), &bytes_of(64, PAGE_SIZE)) {
                        self.note(error)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes a device. If there is no room for its pages, it is used as before.
    fn swap_off_and_on(&mut self) -> Result<(), Failure> {
        let device = &self.all.devices[self.numbers.usize(..2)];
        let lost = match self.all.engine.remove_swap(device) {
            Ok(removed) => {
                self.counts.note(Kind::SwapOff);
                self.all.engine.add_swap(device.clone())?;
                self.counts.note(Kind::SwapOn);
                removed.lost
            }
            Err(RemoveSwapError::NoRoom { lost, .. }) => {
                self.counts.note(Kind::SwapOffNoRoom);
                lost
            }
            Err(RemoveSwapError::Busy { lost, .. }) => {
                self.counts.note(Kind::SwapOffBusy);
                lost
            }
            Err(error) => return Err(error.into()),
        };
        self.counts.add(Kind::LostPages, lost);
        Ok(())
    }
}

/// Advice about a range that passes the end of the mapping is taken for the rest of it.
fn no_hole(error: faultless::AdviseError) -> Result<(), faultless::AdviseError> {
    if matches!(error, faultless::AdviseError::Hole { .. }) { Ok(()) } else { Err(error) }
}
