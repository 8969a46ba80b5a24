//! A cut inside a page of a file without a store, while the page is on its way to its slot or back: the bytes behind the new end are zeros
//! when the file grows again, and those before it are kept.

use crate::devices::file_store;
use crate::until;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::Protection;
use faultless::stats::Counter;
use faultless::store::{Bytes, FileStore, GatedStore, Store, StoreError, Transfer};
use faultless::swap::StoreDevice;
use faultless::{AddressSpace, Engine, File, FileError, FileRef, Limits, MapRequest, Placement};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;

type Space = AddressSpace<Soft, Faultless>;

const RIGHTS: Protection = Protection::READ.union(Protection::WRITE);
const PAGES: u64 = 8;
/// The page that is cut, and the bytes of it that stay.
const PAGE: u64 = 3;
const STAYS: u64 = 16;

/// A file whose writes fail, if it is told so.
struct Disk {
    inner: FileStore,
    fails: bool,
}

impl Store for Disk {
    fn length(&self) -> Result<u64, StoreError> {
        self.inner.length()
    }

    fn submit(&self, mut transfer: Transfer) {
        let offset = transfer.offset();
        match transfer.bytes() {
            Bytes::Write(_) if self.fails => transfer.complete(Err(StoreError::Io { offset, errno: 5 })),
            _ => self.inner.submit(transfer),
        }
    }
}

type Device = Arc<StoreDevice<GatedStore<Disk>>>;

/// Opens the device when dropped, so that a test that fails does not wait for the device.
struct Opens<'a>(&'a Device);

impl Drop for Opens<'_> {
    fn drop(&mut self) {
        self.0.store().open();
    }
}

struct World {
    engine: Arc<Engine<Soft>>,
    file: FileRef<Soft>,
    space: Space,
    device: Device,
}

fn at(page: u64, byte: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE + byte)
}

impl World {
    /// Makes a file with words at both ends of page [`PAGE`], and in its middle. All transfers of the device are held.
    fn new(fails: bool) -> Self {
        let engine = Engine::new(Soft::with_caches(64).unwrap(), Limits::default()).unwrap();
        let store = GatedStore::new(Disk { inner: file_store(), fails });
        let device = Arc::new(StoreDevice::new(store).unwrap());
        engine.add_swap(device.clone()).unwrap();
        let file = File::in_memory(&engine, PAGES * PAGE_SIZE).unwrap();
        let space = Space::new(&engine).unwrap();
        let request = MapRequest::shared_file(&file, 0, PAGES * PAGE_SIZE, RIGHTS);
        space.map(request.at(Placement::Fixed(at(0, 0)))).unwrap();
        for byte in [0, 8, 16, 2048, 4088] {
            space.store_u64(at(PAGE, byte), byte + 1).unwrap();
        }
        Self { engine, file, space, device }
    }

    /// Reclaims until the write of the page is held at the device.
    fn begin_write(&self) {
        until("the page is being written", || {
            self.engine.reclaim_for_tests(PAGES);
            self.device.store().waiting() == 1
        });
        assert_eq!(self.engine.swap_usage().slots, 1);
    }

    /// Reclaims until the page is in its slot alone. One transfer passes for that.
    fn swap_out(&self) {
        self.begin_write();
        self.device.store().pass(1);
        until("the page is in its slot", || {
            self.engine.reclaim_for_tests(PAGES);
            self.engine.frame_usage().used == 1
        });
    }

    fn hits(&self) -> u64 {
        self.engine.statistics().get(Counter::SwapCacheHits)
    }

    fn read(&self, byte: u64) -> u64 {
        let mut bytes = [0; 8];
        assert_eq!(self.file.handle().read_at(PAGE * PAGE_SIZE + byte, &mut bytes), Ok(8));
        u64::from_ne_bytes(bytes)
    }

    /// Makes `change` in a thread, and opens the device when `is_waiting`: the change has found the page on its way.
    fn change_beside(
        &self,
        is_waiting: impl Fn() -> bool,
        change: impl FnOnce(&FileRef<Soft>) -> Result<(), FileError> + Send,
    ) {
        std::thread::scope(|scope| {
            let opens = Opens(&self.device);
            let change = scope.spawn(|| change(&self.file));
            until("the change has come to the page", || is_waiting() || change.is_finished());
            assert!(!change.is_finished(), "the bytes of the page cannot be had yet");
            drop(opens);
            change.join().unwrap().unwrap();
        });
    }

    /// Makes the file long again, and checks the words of the page by its mapping, by a new one, and by a handle.
    #[track_caller]
    fn check(&self, words: [u64; 5]) {
        self.file.set_length(PAGES * PAGE_SIZE).unwrap();
        let other = Space::new(&self.engine).unwrap();
        let request = MapRequest::shared_file(&self.file, 0, PAGES * PAGE_SIZE, RIGHTS);
        other.map(request.at(Placement::Fixed(at(0, 0)))).unwrap();
        for (byte, word) in [0, 8, 16, 2048, 4088].into_iter().zip(words) {
            let found =
                (self.space.load_u64(at(PAGE, byte)), other.load_u64(at(PAGE, byte)), self.read(byte));
            assert_eq!(found, (Ok(word), Ok(word), word), "byte {byte}");
        }
        self.space.audit().unwrap_or_else(|error| panic!("{error}"));
    }

    /// Puts the page into its slot once more: the old bytes must not come back from there.
    fn swap_out_again(&self) {
        until("the page is in its slot again", || {
            self.engine.reclaim_for_tests(PAGES);
            self.engine.frame_usage().used == 1
        });
    }

    fn end(self) {
        let Self { engine, file, space, .. } = self;
        drop((space, file));
        until("nothing is left", || {
            engine.flush();
            engine.frame_usage().used == 1 && engine.swap_usage().slots == 0
        });
    }
}

/// The words at bytes 0, 8, 16, 2048 and 4088 after a cut behind byte 16.
const AFTER_CUT: [u64; 5] = [1, 9, 0, 0, 0];

fn cut(file: &FileRef<Soft>) -> Result<(), FileError> {
    file.set_length(PAGE * PAGE_SIZE + STAYS)
}

fn cut_by_handle(file: &FileRef<Soft>) -> Result<(), FileError> {
    file.handle().set_length(PAGE * PAGE_SIZE + STAYS)
}

/// The write ends well, or with an error that leaves the page in memory.
#[test]
fn bytes_behind_a_cut_are_zeros_if_the_page_was_being_written() {
    for (fails, cut) in
        [(false, cut as fn(&_) -> _), (true, cut), (false, cut_by_handle), (true, cut_by_handle)]
    {
        let world = World::new(fails);
        world.begin_write();
        let hits = world.hits();
        world.change_beside(|| world.hits() > hits, cut);
        world.check(AFTER_CUT);
        if !fails {
            world.swap_out_again();
            world.check(AFTER_CUT);
        }
        world.end();
    }
}

/// The cut reads the page, and the read is held.
#[test]
fn bytes_behind_a_cut_are_zeros_if_the_page_was_in_its_slot() {
    for cut in [cut as fn(&_) -> _, cut_by_handle] {
        let world = World::new(false);
        world.swap_out();
        world.change_beside(|| world.device.store().waiting() == 1, cut);
        world.check(AFTER_CUT);
        world.swap_out_again();
        world.check(AFTER_CUT);
        world.end();
    }
}

/// A fault has begun to read the page, and the cut finds that read under way. The fault has the page, with zeros behind the end.
#[test]
fn bytes_behind_a_cut_are_zeros_if_a_fault_was_reading_the_page() {
    for cut in [cut as fn(&_) -> _, cut_by_handle] {
        let world = World::new(false);
        world.swap_out();
        std::thread::scope(|scope| {
            let _opens = Opens(&world.device);
            let load = scope.spawn(|| world.space.load_u64(at(PAGE, 0)));
            until("the page is being read", || world.device.store().waiting() == 1);
            let hits = world.hits();
            world.change_beside(|| world.hits() > hits, cut);
            assert_eq!(load.join().unwrap(), Ok(1));
        });
        world.check(AFTER_CUT);
        world.swap_out_again();
        world.check(AFTER_CUT);
        world.end();
    }
}

/// A hole inside the page takes the bytes in it alone.
#[test]
fn bytes_of_a_hole_are_zeros_if_the_page_was_being_written() {
    for fails in [false, true] {
        let world = World::new(fails);
        world.begin_write();
        let hits = world.hits();
        world.change_beside(|| world.hits() > hits, |file| file.punch_hole(PAGE * PAGE_SIZE + STAYS, 2040));
        let words = [1, 9, 0, 0, 4089];
        world.check(words);
        if !fails {
            world.swap_out_again();
            world.check(words);
        }
        world.end();
    }
}

/// The cut is at the page's end or at its beginning, so no byte of it is needed: it waits for no transfer, and the page is whole or gone.
#[test]
fn a_cut_between_pages_does_not_wait_for_a_page_that_is_being_written() {
    let all = [1, 9, 17, 2049, 4089];
    for (length, words) in [(PAGE + 1, all), (PAGE, [0; 5])] {
        let world = World::new(false);
        world.begin_write();
        std::thread::scope(|scope| {
            let _opens = Opens(&world.device);
            let cut = scope.spawn(|| world.file.set_length(length * PAGE_SIZE));
            until("the cut is made", || cut.is_finished());
            cut.join().unwrap().unwrap();
            assert_eq!(world.device.store().waiting(), 1, "the write has ended");
        });
        world.check(words);
        world.end();
    }
}
