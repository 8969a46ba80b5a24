//! Devices are removed while spaces use their pages: no bytes are lost, and no call waits for another space.

use crate::until;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::store::FileStore;
use faultless::swap::{CompressedMemory, RemoveSwapError, StoreDevice, SwapDevice};
use faultless::{AddressSpace, Advice, Engine, LimitConfig, Limits, MapRequest, MemoryLimit, Placement};
use faultless_soft::{Cpu, Soft};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

type Space = AddressSpace<Soft, Faultless>;

const FRAMES: u64 = 256;
const PAGES: u64 = 1024;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new((1024 + page) * PAGE_SIZE)
}

/// A real file with room for `pages`, and a handle of it.
fn file(pages: u64) -> (Arc<dyn SwapDevice>, std::fs::File) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(pages * PAGE_SIZE).unwrap();
    let other = file.try_clone().unwrap();
    (Arc::new(StoreDevice::new(FileStore::from_file(file).unwrap()).unwrap()), other)
}

fn engine(device: &Arc<dyn SwapDevice>) -> Arc<Engine<Soft>> {
    let engine = Engine::new(Soft::with_caches(FRAMES).unwrap(), Limits::default()).unwrap();
    engine.add_swap(device.clone()).unwrap();
    engine
}

fn space(engine: &Arc<Engine<Soft>>) -> Space {
    let space = Space::new(engine).unwrap();
    space.map(MapRequest::anonymous(PAGES * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    (0..PAGES).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    space
}

fn check(space: &Space, pages: impl Iterator<Item = u64>) {
    pages.for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page + 1), "page {page}"));
}

fn end(engine: &Engine<Soft>) {
    engine.flush();
    for _ in 0..10_000 {
        if engine.frame_usage().used > 1 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    assert_eq!((engine.frame_usage().used, engine.swap_usage().slots), (1, 0), "invariant 11");
}

#[test]
fn pages_go_from_a_file_to_another_device() {
    let (first, disk) = file(2 * PAGES);
    let engine = engine(&first);
    let space = space(&engine);
    let child = space.fork().unwrap();
    let used = engine.swap_usage().devices[0].pages;
    assert!(used >= PAGES - FRAMES, "{used} pages");
    engine.add_swap(Arc::new(CompressedMemory::new(2 * PAGES, usize::MAX).unwrap())).unwrap();
    let removed = engine.remove_swap(&first).unwrap();
    assert_eq!(removed.lost, 0);
    assert_eq!(engine.swap_usage().devices.len(), 1);
    // The file is not read any more.
    (0..2 * PAGES).for_each(|place| disk.write_all_at(&[0xee; 4096], place * PAGE_SIZE).unwrap());
    check(&space, 0..PAGES);
    check(&child, (0..PAGES).rev());
    space.audit().unwrap();
    drop((space, child));
    end(&engine);
}

/// The device stays in use, and the pages that were read back stay where they are.
#[test]
fn without_room_nothing_is_lost() {
    let (only, _) = file(2 * PAGES);
    let engine = engine(&only);
    let space = space(&engine);
    let Err(RemoveSwapError::NoRoom { left, lost: 0 }) = engine.remove_swap(&only) else {
        panic!("there is no room")
    };
    assert!(left > 0 && engine.swap_usage().devices[0].takes_pages);
    check(&space, 0..PAGES);
    (0..PAGES).for_each(|page| space.store_u64(at(page), page + 1).unwrap());
    check(&space, (0..PAGES).rev());
    assert_eq!(engine.remove_swap(&file(1).0), Err(RemoveSwapError::Unknown));
    // A second device has room for a part only.
    engine.add_swap(file(64).0).unwrap();
    assert!(matches!(engine.remove_swap(&only), Err(RemoveSwapError::NoRoom { .. })));
    check(&space, 0..PAGES);
    // When the space has gone, there is room.
    drop(space);
    end(&engine);
    assert_eq!(engine.remove_swap(&only).map(|removed| removed.lost), Ok(0));
}

/// Threads store and load, children are forked, and two files are removed and added in turn.
#[test]
fn stores_and_forks_beside_removals() {
    let devices = [file(2 * PAGES).0, file(2 * PAGES).0];
    let engine = engine(&devices[0]);
    engine.add_swap(devices[1].clone()).unwrap();
    let space = space(&engine);
    let running = AtomicU64::new(4);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (space, running) = (&space, &running);
            scope.spawn(move || {
                let mut stamps = [0; (PAGES / 4) as usize];
                let mut number = thread + 1;
                for round in 1..1500 {
                    number = (number * 1_103_515_245 + 12_345) % (1 << 31);
                    let mine = number / 8 % (PAGES / 4);
                    let address = at(mine * 4 + thread);
                    let stamp = &mut stamps[mine as usize];
                    let expected = if *stamp == 0 { mine * 4 + thread + 1 } else { *stamp };
                    assert_eq!(space.load_u64(address), Ok(expected), "a store was lost");
                    *stamp = round << 32;
                    space.store_u64(address, *stamp).unwrap();
                }
                running.fetch_sub(1, Ordering::Relaxed);
            });
        }
        scope.spawn(|| {
            for round in 0..8 {
                let child = space.fork().unwrap();
                check(&child, (0..PAGES / 4).map(|page| page * 4 + 3).filter(|page| page % 8 == round));
                child.exit();
            }
            running.fetch_sub(1, Ordering::Relaxed);
        });
        scope.spawn(|| {
            while running.load(Ordering::Relaxed) != 0 {
                for device in &devices {
                    match engine.remove_swap(device) {
                        Ok(removed) => {
                            assert_eq!(removed.lost, 0);
                            engine.add_swap(device.clone()).unwrap();
                        }
                        Err(RemoveSwapError::NoRoom { .. } | RemoveSwapError::Busy { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        });
    });
    space.audit().unwrap();
    drop(space);
    end(&engine);
}

/// When a device is removed, each group pays for its own pages, also for those that come with the read of another group's page.
#[test]
fn each_group_pays_for_its_pages_when_a_device_is_removed() {
    let (only, _) = file(2 * PAGES);
    let engine = engine(&only);
    let groups = [(); 2].map(|()| MemoryLimit::new(&engine, LimitConfig::max(FRAMES)).unwrap());
    let spaces = [0, 1].map(|group| {
        let space = Space::new_in(&engine, &groups[group]).unwrap();
        space.map(MapRequest::anonymous(8 * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
        space
    });
    // The slots of one group are next to those of the other. A page that was used needs a second call.
    let write_out = |space: &Space, page| space.advise(at(page), PAGE_SIZE, Advice::PageOut).unwrap();
    for page in 0..8 {
        for space in &spaces {
            space.store_u64(at(page), page + 1).unwrap();
            write_out(space, page);
        }
    }
    until("the pages are in swap space", || {
        spaces.iter().for_each(|space| (0..8).for_each(|page| write_out(space, page)));
        groups.iter().all(|group| group.usage().swap == 8 && group.usage().resident == 0)
    });
    assert_eq!(engine.remove_swap(&only).map(|removed| removed.lost), Ok(0));
    for (group, space) in groups.iter().zip(&spaces) {
        assert_eq!(group.usage().resident, 8, "a group pays for pages of another one");
        check(space, 0..8);
    }
}
