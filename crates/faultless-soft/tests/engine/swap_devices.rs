//! Swap devices whose bytes another engine has overwritten, or had written before.

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::fault::{FaultError, Signal};
use faultless::store::{FileStore, StoreError};
use faultless::swap::{StoreDevice, SwapDevice, SwapError};
use faultless::{AddressSpace, Engine, Limits, MapRequest, Placement, errno};
use faultless_soft::{AccessError, Cpu, Soft};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

type Space = AddressSpace<Soft, Faultless>;

const PAGES: u64 = 8;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

/// Makes a file with room for the pages of one space, so that two engines use the same places.
fn disk() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGES * PAGE_SIZE).unwrap();
    file
}

fn device(disk: &File) -> Arc<dyn SwapDevice> {
    let store = FileStore::from_file(disk.try_clone().unwrap()).unwrap();
    Arc::new(StoreDevice::new(store).unwrap())
}

/// Makes an engine with `device`, and a space whose pages are on it. Page `n` has the word `mark + n`.
fn swapped(device: &Arc<dyn SwapDevice>, mark: u64) -> (Arc<Engine<Soft>>, Space) {
    let engine = Engine::new(Soft::with_caches(64).unwrap(), Limits::default()).unwrap();
    engine.add_swap(device.clone()).unwrap();
    let space = Space::new(&engine).unwrap();
    space.map(MapRequest::anonymous(PAGES * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    for page in 0..PAGES {
        space.store_u64(at(page), mark + page).unwrap();
        while engine.frame_usage().used != 1 {
            engine.reclaim_for_tests(PAGES);
            std::thread::yield_now();
        }
    }
    assert_eq!(engine.swap_usage().devices[0].pages, PAGES);
    (engine, space)
}

/// Checks that each access to each page is SIGBUS, with the cause.
fn assert_lost(space: &Space) {
    for page in (0..PAGES).chain(0..PAGES) {
        match space.load_u64(at(page)) {
            Err(AccessError::Fault(error)) => {
                assert!(
                    matches!(error, FaultError::Io { error: StoreError::WrongBytes { .. }, .. }),
                    "{error}"
                );
                assert_eq!(error.signal(), Signal::NoPage);
            }
            other => panic!("another engine's bytes: {other:?}"),
        }
    }
}

fn assert_there(space: &Space, mark: u64) {
    (0..PAGES).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(mark + page)));
}

/// Both devices give out the same places, so the second engine overwrites the pages of the first.
#[test]
fn two_engines_with_devices_over_one_file() {
    let disk = disk();
    let (_first, lost) = swapped(&device(&disk), 0x100);
    let (_second, there) = swapped(&device(&disk), 0x200);
    assert_lost(&lost);
    assert_there(&there, 0x200);
    // The space is of use again.
    lost.discard(at(0), PAGES * PAGE_SIZE).unwrap();
    lost.store_u64(at(0), 7).unwrap();
    assert_eq!(lost.load_u64(at(0)), Ok(7));
}

/// The file comes back as an earlier engine left it, as if the writes of this engine were lost.
#[test]
fn a_file_with_pages_of_an_earlier_engine() {
    let disk = disk();
    let mut old = vec![0; (PAGES * PAGE_SIZE) as usize];
    let (engine, space) = swapped(&device(&disk), 0x100);
    disk.read_exact_at(&mut old, 0).unwrap();
    drop((space, engine));
    let mut words: Vec<_> = old.chunks(PAGE_SIZE as usize).map(|page| page[0]).collect();
    words.sort_unstable();
    assert_eq!(words, [0, 1, 2, 3, 4, 5, 6, 7], "the pages of the earlier engine");
    let (_engine, space) = swapped(&device(&disk), 0x200);
    disk.write_all_at(&old, 0).unwrap();
    assert_lost(&space);
}

/// An engine that begins with such a file reads nothing from it that it has not written.
#[test]
fn an_engine_begins_with_the_file_of_an_earlier_one() {
    let disk = disk();
    drop(swapped(&device(&disk), 0x100));
    let (_engine, space) = swapped(&device(&disk), 0x200);
    assert_there(&space, 0x200);
}

#[test]
fn engines_with_one_device_lose_nothing() {
    let disk = disk();
    disk.set_len(2 * PAGES * PAGE_SIZE).unwrap();
    let shared = device(&disk);
    let (first, one) = swapped(&shared, 0x100);
    let (second, other) = swapped(&shared, 0x200);
    assert_eq!(second.add_swap(shared.clone()), Err(SwapError::InUse));
    assert_eq!(SwapError::InUse.errno(), errno::EBUSY);
    assert_eq!(first.remove_swap(&shared).map(|removed| removed.lost), Ok(0));
    assert_there(&one, 0x100);
    assert_there(&other, 0x200);
}
