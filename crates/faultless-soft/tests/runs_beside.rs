//! Runs of pages on their way to the store, beside another thread's operation: a pin or a sync at each step of a write.
//!
//! The machine's frames stop a thread at a chosen step: one of its accesses to a folio. So the tests need no luck and
//! no delay.
#![cfg(not(loom))]

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::host::{
    Folio, Frame, FrameSource, FrameUsage, FrameUse, GroupId, OutOfMemory, StdHost, StdPark, StdServices,
};
use faultless::protection::{Access, Protection};
use faultless::store::{Bytes, Direction, MAX_PAGES, Store, StoreError, Transfer};
use faultless::sync::{Sections, Shared};
use faultless::{AddressSpace, Engine, File, FileHandle, Limits, MapRequest, SyncError, SyncFlags};
use faultless_soft::{PhysicalMemory, RadixTable, Stale};
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const P: usize = PAGE_SIZE as usize;
const EIO: i32 = 5;
/// The pages of a run, and of the file.
const PAGES: u64 = 4;
/// More steps than a write of `PAGES` pages has.
const STEPS: u32 = 32;
/// The time after which a stopped thread resumes, for a test in which the other thread has to wait for it.
const PATIENCE: Duration = Duration::from_millis(50);

thread_local! {
    /// The number of accesses to folios between this thread and its stop.
    static STEPS_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    /// The channels by which this thread reports that it has stopped, and waits for permission to resume.
    static STOP: Cell<Option<(Sender<()>, Receiver<()>)>> = const { Cell::new(None) };
}

fn step() {
    match STEPS_LEFT.take() {
        None => {}
        Some(0) => {
            if let Some((stopped, go_on)) = STOP.take() {
                stopped.send(()).unwrap();
                let _ = go_on.recv_timeout(PATIENCE);
            }
        }
        Some(left) => STEPS_LEFT.set(Some(left - 1)),
    }
}

struct SteppedFrames(PhysicalMemory);

// SAFETY: the frames are the memory's own.
unsafe impl FrameSource for SteppedFrames {
    fn allocate(&self, group: GroupId, purpose: FrameUse) -> Option<Frame> {
        self.0.allocate(group, purpose)
    }
    unsafe fn free(&self, frame: Frame) {
        // SAFETY: by the same contract.
        unsafe { self.0.free(frame) }
    }
    fn folio(&self, frame: Frame) -> &Folio {
        step();
        self.0.folio(frame)
    }
    unsafe fn zero(&self, frame: Frame) {
        // SAFETY: by the same contract.
        unsafe { self.0.zero(frame) }
    }
    unsafe fn copy(&self, from: Frame, to: Frame) {
        // SAFETY: by the same contract.
        unsafe { self.0.copy(from, to) }
    }
    unsafe fn memory(&self, frame: Frame) -> NonNull<u8> {
        // SAFETY: by the same contract.
        unsafe { self.0.memory(frame) }
    }
    unsafe fn read(&self, frame: Frame, offset: usize, bytes: &mut [u8]) -> usize {
        // SAFETY: by the same contract.
        unsafe { self.0.read(frame, offset, bytes) }
    }
    unsafe fn write(&self, frame: Frame, offset: usize, bytes: &[u8]) -> usize {
        // SAFETY: by the same contract.
        unsafe { self.0.write(frame, offset, bytes) }
    }
    fn usage(&self) -> FrameUsage {
        self.0.usage()
    }
}

struct Machine {
    frames: SteppedFrames,
    services: StdServices,
}

// SAFETY: frames and tables are the software machine's.
unsafe impl StdHost for Machine {
    type Table = RadixTable;
    type Frames = SteppedFrames;
    type Park = StdPark;
    fn frames(&self) -> &SteppedFrames {
        &self.frames
    }
    fn services(&self) -> &StdServices {
        &self.services
    }
    fn new_table(&self, sections: &Arc<Sections>) -> Result<RadixTable, OutOfMemory> {
        RadixTable::new(Arc::clone(sections))
    }
    fn invalidate_all(&self, sections: &Sections, batch: &mut [Stale], wait: impl FnMut(u32)) {
        Stale::wait_for_all(sections, batch, wait);
    }
}

/// The point at which the writing thread begins to count its steps.
#[derive(Clone, Copy)]
enum From {
    /// Its pages are chosen, and no run is formed yet.
    Choice,
    /// The store has finished its work.
    End,
}

struct Disk {
    bytes: Mutex<Vec<u8>>,
    /// A page that cannot be written.
    bad: Option<u64>,
    counts: Mutex<Option<(From, u32)>>,
}

impl Disk {
    fn first_byte(&self, page: u64) -> u8 {
        self.bytes.lock().unwrap()[page as usize * P]
    }

    fn count_from(&self, here: impl Fn(From) -> bool) {
        if let Some((_, steps)) = self.counts.lock().unwrap().take_if(|(from, _)| here(*from)) {
            STEPS_LEFT.set(Some(steps));
        }
    }
}

impl Store for Disk {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn submit(&self, mut transfer: Transfer) {
        let is_write = transfer.direction() == Direction::Write;
        let mut bytes = self.bytes.lock().unwrap();
        let result = transfer.move_pages(|offset, page| {
            let at = offset as usize;
            match page {
                Bytes::Read(page) => page.copy_from_slice(&bytes[at..at + P]),
                Bytes::Write(_) if self.bad == Some(offset / PAGE_SIZE) => {
                    return Err(StoreError::Io { offset, errno: EIO });
                }
                Bytes::Write(page) => bytes[at..at + P].copy_from_slice(page),
            }
            Ok(P)
        });
        drop(bytes);
        if is_write {
            self.count_from(|from| matches!(from, From::End));
        }
        transfer.complete(result);
    }

    fn max_pages(&self) -> usize {
        self.count_from(|from| matches!(from, From::Choice));
        MAX_PAGES
    }
}

type Space = AddressSpace<Machine, Faultless>;

struct World {
    disk: Arc<Disk>,
    file: Shared<File<Machine>>,
    space: Space,
    at: VirtAddr,
}

/// Makes a file of `PAGES` pages and a clean one, mapped shared.
fn world(bad: Option<u64>) -> World {
    let frames = SteppedFrames(PhysicalMemory::new(64).unwrap());
    let engine =
        Engine::new(Machine { frames, services: StdServices::default() }, Limits::default()).unwrap();
    let bytes = Mutex::new(vec![0; (PAGES as usize + 1) * P]);
    let disk = Arc::new(Disk { bytes, bad, counts: Mutex::new(None) });
    let file = File::open_rw(&engine, disk.clone()).unwrap();
    let space = Space::new(&engine).unwrap();
    let rights = Protection::READ | Protection::WRITE;
    let at = space.map(MapRequest::shared_file(&file, 0, (PAGES + 1) * PAGE_SIZE, rights)).unwrap();
    World { disk, file, space, at }
}

impl World {
    fn address(&self, page: u64) -> VirtAddr {
        VirtAddr::new(self.at.get() + page * PAGE_SIZE)
    }

    /// Makes each page of the run dirty.
    fn store(&self, value: u8) {
        for page in 0..PAGES {
            assert_eq!(self.file.handle().write_at(page * PAGE_SIZE, &[value; P]), Ok(P));
        }
    }

    fn sync(&self, page: u64) -> Result<(), SyncError> {
        self.space.sync(self.address(page), PAGE_SIZE, SyncFlags::SYNC)
    }

    /// Runs `write` in a thread that stops at a step of its first write, and runs `other` meanwhile. Returns `false`
    /// for the stop if the write has fewer steps.
    fn beside<T: Send>(
        &self,
        (from, steps): (From, u32),
        write: impl FnOnce(&FileHandle<Machine>) -> T + Send,
        other: impl FnOnce(),
    ) -> (T, bool) {
        let handle = self.file.handle();
        *self.disk.counts.lock().unwrap() = Some((from, steps));
        let (stopped, is_stopped) = channel();
        let (go_on, may_go_on) = channel();
        thread::scope(|scope| {
            let writer = scope.spawn(move || {
                STOP.set(Some((stopped, may_go_on)));
                let result = write(&handle);
                // If it ended without a stop: dropping the sender tells the receiver.
                STOP.take();
                STEPS_LEFT.take();
                result
            });
            let has_stopped = is_stopped.recv().is_ok();
            if has_stopped {
                other();
            }
            let _ = go_on.send(());
            (writer.join().unwrap(), has_stopped)
        })
    }
}

/// A pin for reading needs no write right, so it can come while its page is on its way to the store. Failed before pins
/// were checked only once: the store got the first page of a run of four, and sync reported that the others lie past
/// the end.
#[test]
fn a_pin_for_reading_at_any_step_of_a_sync_is_no_error() {
    for page in 0..PAGES {
        let w = world(None);
        for step in 0..STEPS {
            w.store(step as u8 + 1);
            let mut pinned = None;
            let write = |handle: &FileHandle<_>| handle.sync();
            let other = || pinned = Some(w.space.pin(w.address(page), Access::Read).unwrap());
            let (synced, has_stopped) = w.beside((From::Choice, step), write, other);
            assert_eq!(synced, Ok(()), "page {page} pinned at step {step}");
            for page in 0..PAGES {
                assert_eq!(w.disk.first_byte(page), step as u8 + 1, "page {page}, step {step}");
            }
            assert!(has_stopped || step > 4, "the test reaches no step");
        }
    }
}

/// The page is pinned before the sync, and unpinned at some step of it.
#[test]
fn a_pin_for_reading_that_goes_at_any_step_of_a_sync_is_no_error() {
    for page in 0..PAGES {
        let w = world(None);
        for step in 0..STEPS {
            w.store(step as u8 + 1);
            let mut pinned = Some(w.space.pin(w.address(page), Access::Read).unwrap());
            let write = |handle: &FileHandle<_>| handle.sync();
            let (synced, _) = w.beside((From::Choice, step), write, || drop(pinned.take()));
            assert_eq!(synced, Ok(()), "page {page} unpinned at step {step}");
            for page in 0..PAGES {
                assert_eq!(w.disk.first_byte(page), step as u8 + 1, "page {page}, step {step}");
            }
        }
    }
}

/// Page 0 cannot be written, and the run fails there. The run's last page can be written. A sync of it leaves it in the
/// store, at any step of the run's end. Failed before the end of a failed write held the lock of the errors.
/// The sync looked for dirty pages before that page was dirty again, and for failed runs after that run was counted. If
/// another caller had been told of the error, the sync returned Ok.
#[test]
fn a_sync_at_any_step_of_the_end_of_a_failing_run_writes_its_page() {
    for is_told in [false, true] {
        for step in 0..STEPS {
            let w = world(Some(0));
            w.store(7);
            let write = |handle: &FileHandle<_>| handle.start_sync();
            let other = || {
                if is_told {
                    // This sync is of a clean page.
                    let _ = w.sync(PAGES);
                }
                let synced = w.sync(PAGES - 1);
                assert_eq!(w.disk.first_byte(PAGES - 1), 7, "{synced:?} at step {step}, told: {is_told}");
            };
            let (_, has_stopped) = w.beside((From::End, step), write, other);
            assert!(has_stopped || step > 4, "the test reaches no step");
            if !has_stopped {
                break;
            }
        }
    }
}

/// As above, for the page that cannot be written: no sync of it reports success.
#[test]
fn a_sync_at_any_step_of_the_end_of_a_failing_write_tells_that_its_page_failed() {
    for bad in [0, PAGES - 1] {
        for step in 0..STEPS {
            let w = world(Some(bad));
            w.store(7);
            let write = |handle: &FileHandle<_>| handle.start_sync();
            let other = || {
                let _ = w.sync(PAGES);
                assert!(w.sync(bad).is_err(), "page {bad} is not in the store, step {step}");
            };
            let (_, has_stopped) = w.beside((From::End, step), write, other);
            if !has_stopped {
                break;
            }
        }
    }
}
