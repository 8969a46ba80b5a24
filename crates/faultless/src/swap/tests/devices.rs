//! A read from a device returns the right bytes or an error.

#[cfg(feature = "lz4")]
use super::super::CompressedMemory;
use super::super::{RemoveSwapError, StoreDevice, StoreDeviceError, SwapDevice, SwapError, SwapRemoved};
use super::machine::{PAGE, World, noise, text};
use crate::address::PAGE_SIZE;
use crate::errno;
use crate::stats::Counter;
use crate::store::{
    DelayedStore, Direction, FailingStore, Failure, FileStore, GatedStore, InjectedError, StoreError,
};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

/// Makes a swap file with room for `pages`.
pub(super) fn file(pages: u64) -> (File, FileStore) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(pages * PAGE_SIZE).unwrap();
    (file.try_clone().unwrap(), FileStore::from_file(file).unwrap())
}

pub(super) fn device(pages: u64) -> Arc<dyn SwapDevice> {
    Arc::new(StoreDevice::new(file(pages).1).unwrap())
}

#[test]
fn pages_come_back_from_a_file() {
    let world = World::new(&[device(64)]);
    let pages: Vec<_> = (0..20).map(text).chain((0..20).map(noise)).collect();
    let (slots, _, out) = world.write_out(&pages);
    assert_eq!((out.started, out.kept + out.freed), (40, 0));
    world.wait_until(|| slots.iter().all(|(slot, _)| world.0.slot_frame(*slot).is_none()));
    assert_eq!(world.on_devices(), [40]);
    for (page, swapped) in pages.iter().zip(&slots) {
        assert!(world.read(*swapped) == Ok(*page), "other bytes than were written");
    }
    assert_eq!((world.count(Counter::SwapOuts), world.count(Counter::SwapIns)), (40, 40));
    // They are in memory now.
    assert!(world.read(slots[3]) == Ok(pages[3]));
    assert_eq!((world.count(Counter::SwapIns), world.count(Counter::SwapCacheHits)), (40, 1));
    world.end(&slots);
}

#[test]
fn a_page_of_one_word_needs_no_device() {
    let world = World::new(&[device(1)]);
    let slots: Vec<_> = [0, 0x77].map(|byte| world.swap_out(&[byte; PAGE])).into();
    assert_eq!((world.on_devices(), world.0.swap_usage().slots), (vec![0], 2));
    assert!(world.read(slots[0]) == Ok([0; PAGE]) && world.read(slots[1]) == Ok([0x77; PAGE]));
    world.end(&slots);
}

#[cfg(feature = "lz4")]
#[test]
fn a_page_goes_to_the_first_device_that_takes_it() {
    let memory = Arc::new(CompressedMemory::new(16, 1 << 16).unwrap());
    let world = World::new(&[memory.clone(), device(16)]);
    let pages = [text(1), noise(1), text(2), noise(2)];
    let slots: Vec<_> = pages.iter().map(|page| world.swap_out(page)).collect();
    assert_eq!(world.on_devices(), [2, 2]);
    assert!(memory.bytes() > 0 && memory.bytes() < PAGE, "{}", memory.bytes());
    for (page, swapped) in pages.iter().zip(&slots) {
        assert!(world.read(*swapped) == Ok(*page), "other bytes than were written");
    }
    assert_eq!(world.count(Counter::SwapWriteErrors), 0, "a refusal is no error");
    assert!(world.devices().iter().all(|device| device.takes_pages));
    world.end(&slots);
}

/// Without room for bytes, the compressed memory refuses pages that it could compress. Places that are given back have room again.
#[cfg(feature = "lz4")]
#[test]
fn compressed_memory_has_as_many_bytes_as_it_was_given() {
    let world = World::new(&[Arc::new(CompressedMemory::new(1 << 20, 1000).unwrap()), device(16)]);
    let slots: Vec<_> = (0..6).map(|number| world.swap_out(&text(number))).collect();
    let used = world.on_devices();
    assert!(used[0] > 0 && used[1] > 0 && used[0] + used[1] == 6, "{used:?}");
    slots.iter().for_each(|(slot, _)| world.0.put_slot(*slot));
    let again = world.swap_out(&text(9));
    assert_eq!(world.on_devices(), [1, 0]);
    assert!(world.read(again) == Ok(text(9)));
    world.end(&[again]);
}

#[test]
fn a_full_device_gives_no_slot() {
    let world = World::new(&[device(2)]);
    let slots = [world.swap_out(&noise(1)), world.swap_out(&noise(2))];
    let frame = world.page(&noise(3));
    assert_eq!((world.attach(frame), world.0.swap_usage().slots), (None, 2));
    world.0.put_slot(slots[0].0);
    let third = world.attach(frame).expect("a place is free again");
    // The slot that was freed, in its next life.
    assert_eq!(third, (slots[0].0, slots[0].1 + 1));
    world.0.write_out(&mut [frame]);
    assert!(world.read(third) == Ok(noise(3)));
    world.end(&[slots[1], third]);
}

#[test]
fn a_file_that_was_cut_is_an_error_at_each_access() {
    let (disk, store) = file(4);
    let world = World::new(&[Arc::new(StoreDevice::new(store).unwrap())]);
    let slots = [world.swap_out(&noise(1)), world.swap_out(&noise(2))];
    disk.set_len(PAGE_SIZE).unwrap();
    assert!(world.read(slots[0]) == Ok(noise(1)));
    for _ in 0..2 {
        assert!(matches!(world.read(slots[1]), Err(StoreError::PastEnd { .. })));
    }
    assert!(world.0.is_poisoned(slots[1].0).is_some() && world.0.is_poisoned(slots[0].0).is_none());
    disk.set_len(4 * PAGE_SIZE).unwrap();
    assert!(world.read(slots[1]).is_err(), "zeros are not the page");
    assert_eq!(world.count(Counter::SwapIns), 2, "a page that is lost is not read again");
    world.end(&slots);
}

/// Bytes that another program wrote, and pages that the device has exchanged.
#[test]
fn foreign_bytes_are_an_error_and_never_data() {
    let (disk, store) = file(4);
    let world = World::new(&[Arc::new(StoreDevice::new(store).unwrap())]);
    // Two pages with the same bytes, so that only the slot tells them apart.
    let slots = [1, 2, 2].map(|number| world.swap_out(&noise(number)));
    disk.write_all_at(&[1], 7).unwrap();
    let mut page = noise(2);
    disk.read_exact_at(&mut page, 2 * PAGE_SIZE).unwrap();
    assert!(page == noise(2));
    let wrong = |at| matches!(world.read(slots[at]), Err(StoreError::WrongBytes { .. }));
    assert!(wrong(0) && wrong(0));
    assert!(world.read(slots[1]) == Ok(noise(2)) && world.read(slots[2]) == Ok(noise(2)));
    world.end(&slots);
}

/// The same bytes at the same place, of the slot's life before.
#[test]
fn bytes_of_an_earlier_life_are_an_error() {
    let (disk, store) = file(1);
    let world = World::new(&[Arc::new(StoreDevice::new(store).unwrap())]);
    let first = world.swap_out(&noise(1));
    let mut old = [0; PAGE];
    disk.read_exact_at(&mut old, 0).unwrap();
    world.0.put_slot(first.0);
    let second = world.swap_out(&noise(2));
    assert_eq!((second.0, second.1), (first.0, first.1 + 1));
    disk.write_all_at(&old, 0).unwrap();
    assert!(matches!(world.read(second), Err(StoreError::WrongBytes { .. })));
    world.end(&[second]);
}

#[test]
fn a_read_that_fails_without_memory_may_be_tried_again() {
    let error = InjectedError::Io { errno: crate::errno::ENOMEM };
    let store = FailingStore::new(file(2).1, Direction::Read, Failure::Once(1), error);
    let world = World::new(&[Arc::new(StoreDevice::new(store).unwrap())]);
    let swapped = world.swap_out(&noise(1));
    assert_eq!(world.read(swapped).map_err(|error| error.errno()), Err(crate::errno::ENOMEM));
    assert!(world.read(swapped) == Ok(noise(1)));
    world.end(&[swapped]);
}

#[test]
fn an_unreadable_page_is_an_error_at_each_access() {
    let error = InjectedError::Io { errno: crate::errno::EIO };
    let store = FailingStore::new(file(2).1, Direction::Read, Failure::Once(1), error);
    let world = World::new(&[Arc::new(StoreDevice::new(store).unwrap())]);
    let swapped = world.swap_out(&noise(1));
    for _ in 0..3 {
        assert_eq!(world.read(swapped).map_err(|error| error.errno()), Err(crate::errno::EIO));
    }
    world.end(&[swapped]);
}

/// Eight threads need one page that a slow device has.
#[test]
fn threads_that_need_one_page_read_it_once() {
    let store = DelayedStore::new(file(2).1, Duration::from_millis(2));
    let world = World::new(&[Arc::new(StoreDevice::new(store).unwrap())]);
    for round in 0..8 {
        let swapped = world.swap_out(&noise(round));
        let before = world.count(Counter::SwapIns);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let frame = world.pin(swapped).unwrap();
                    // Kept until all have it.
                    let mut bytes = [0; PAGE];
                    world.0.frames().read(frame, 0, &mut bytes);
                    assert!(bytes == noise(round));
                    world.unpin(frame);
                });
            }
        });
        assert_eq!(world.count(Counter::SwapIns) - before, 1, "it stays in the swap cache");
        world.0.put_slot(swapped.0);
    }
    world.end(&[]);
}

#[test]
fn a_generation_that_is_over_is_not_read() {
    let world = World::new(&[device(2)]);
    let swapped = world.swap_out(&noise(1));
    world.0.put_slot(swapped.0);
    let again = world.swap_out(&noise(2));
    assert_eq!(again.0, swapped.0);
    let frame = world.page(&noise(3));
    assert!(!world.0.try_count_slot(swapped.0, swapped.1));
    assert!(world.0.folio(frame).put(crate::frame::Reference::Pin));
    assert_eq!(world.0.begin_swap_in(swapped.0, swapped.1, frame, &[]), super::super::SwapIn::Gone);
    world.end(&[again]);
}

#[test]
fn what_cannot_be_a_device_says_why() {
    let tiny = tempfile::tempfile().unwrap();
    tiny.set_len(100).unwrap();
    let refused = StoreDevice::new(FileStore::from_file(tiny).unwrap()).err();
    assert_eq!(refused, Some(StoreDeviceError::TooSmall { length: 100 }));
    assert_eq!(refused.map(|error| error.errno()), Some(errno::EINVAL));
    let world = World::new(&[device(1)]);
    let most = super::super::slot::Location::DEVICES;
    (1..most).for_each(|_| world.0.add_swap(device(1)).unwrap());
    let refused = world.0.add_swap(device(1));
    assert_eq!(refused, Err(SwapError::TooManyDevices { most }));
    assert_eq!(refused.map_err(|error| error.errno()), Err(errno::EPERM));
    #[cfg(feature = "lz4")]
    {
        let none = Arc::new(CompressedMemory::new(0, 100).unwrap());
        assert_eq!(world.0.add_swap(none), Err(SwapError::NoRoom));
    }
}

/// All memory of slots and devices is counted, and is given back with the engine.
#[test]
fn the_memory_is_counted() {
    let sections = crate::sync::Sections::try_shared().unwrap();
    let before = sections.charged();
    let space = super::super::Space::new(sections.clone()).unwrap();
    let empty = sections.charged();
    space.add(device(64)).unwrap();
    let with_device = sections.charged();
    space.slots.take().unwrap();
    assert!(before < empty && empty < with_device && with_device < sections.charged());
    drop(space);
    assert_eq!(sections.charged(), before);
}

#[test]
fn a_gated_store_is_a_device() {
    let gate = Arc::new(GatedStore::new(file(2).1));
    let world = World::new(&[Arc::new(StoreDevice::new(gate.clone()).unwrap())]);
    let (slots, frames, _) = world.write_out(&[noise(1)]);
    gate.wait_for(1);
    assert!(world.0.folio(frames[0]).is_writeback() && !world.0.folio(frames[0]).is_isolated());
    gate.open();
    world.wait_until(|| world.0.slot_frame(slots[0].0).is_none());
    world.end(&slots);
}

/// Such a device would be listed twice, and one removal would leave it in use.
#[test]
fn a_device_that_is_in_use_is_refused() {
    let (first, second) = (device(8), device(8));
    let world = World::new(&[first.clone(), second.clone()]);
    let slots = [1, 2].map(|number| world.swap_out(&noise(number)));
    let before = world.devices();
    for used in [&first, &second] {
        let refused = world.0.add_swap(used.clone());
        assert_eq!(refused, Err(SwapError::InUse));
        assert_eq!(refused.map_err(|error| error.errno()), Err(errno::EBUSY));
    }
    assert_eq!(world.devices(), before);
    assert_eq!(world.0.remove_swap(&first), Ok(SwapRemoved { moved: 2, lost: 0 }));
    assert_eq!(world.0.remove_swap(&first), Err(RemoveSwapError::Unknown));
    world.0.add_swap(first.clone()).unwrap();
    assert_eq!(world.0.add_swap(first), Err(SwapError::InUse));
    assert!(world.read(slots[0]) == Ok(noise(1)) && world.read(slots[1]) == Ok(noise(2)));
    world.end(&slots);
}

#[test]
fn threads_that_add_one_device_add_it_once() {
    let devices = [device(8), device(8)];
    for _ in 0..50 {
        let world = World::new(&[]);
        let start = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            let add = |number: usize| {
                start.wait();
                world.0.add_swap(devices[number % 2].clone())
            };
            let threads = [0, 1, 2, 3].map(|number| scope.spawn(move || add(number)));
            let results = threads.map(|thread| thread.join().unwrap());
            assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 2, "{results:?}");
            assert_eq!(results.iter().filter(|result| **result == Err(SwapError::InUse)).count(), 2);
        });
        assert_eq!(world.devices().len(), 2);
        world.end(&[]);
    }
}

/// Each place of the device is of one engine.
#[test]
fn engines_share_a_device() {
    let shared = device(32);
    let worlds = [(); 2].map(|()| World::new(core::slice::from_ref(&shared)));
    let mut slots = [Vec::new(), Vec::new()];
    for number in 0..16 {
        for (world, slots) in worlds.iter().zip(&mut slots) {
            slots.push(world.swap_out(&noise(number + 100 * slots.len())));
        }
    }
    let is_full = |world: &World| {
        let frame = world.page(&noise(0));
        let attached = world.attach(frame);
        world.let_go(frame);
        attached.is_none()
    };
    assert!(worlds.iter().all(is_full), "the engines have all places");
    let check = |engine: usize| {
        for (number, swapped) in slots[engine].iter().enumerate() {
            assert!(worlds[engine].read(*swapped) == Ok(noise(number + 100 * number)), "another page");
        }
    };
    assert_eq!(worlds[0].0.remove_swap(&shared), Ok(SwapRemoved { moved: 16, lost: 0 }));
    assert_eq!((worlds[0].on_devices(), worlds[1].on_devices()), (vec![], vec![16]));
    check(0);
    check(1);
    worlds.into_iter().zip(slots).for_each(|(world, slots)| world.end(&slots));
}

#[test]
fn a_file_that_another_device_uses_is_refused() {
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(4 * PAGE_SIZE).unwrap();
    let open = || FileStore::open_rw(named.path()).unwrap();
    let first = StoreDevice::new(open()).unwrap();
    let refused = StoreDevice::new(open()).err();
    assert_eq!(refused, Some(StoreDeviceError::InUse));
    assert_eq!(refused.map(|error| error.errno()), Some(errno::EBUSY));
    let failing = FailingStore::new(open(), Direction::Read, Failure::Once(1), InjectedError::PastEnd);
    assert_eq!(StoreDevice::new(failing).err(), refused);
    assert_eq!(StoreDevice::new(DelayedStore::new(open(), Duration::ZERO)).err(), refused);
    assert_eq!(StoreDevice::new(GatedStore::new(open())).err(), refused);
    drop(first);
    // One store that two devices share.
    let shared = Arc::new(open());
    let second = StoreDevice::new(shared.clone()).unwrap();
    assert_eq!(StoreDevice::new(shared.clone()).err(), refused);
    drop((second, shared));
    assert!(StoreDevice::new(open()).is_ok(), "the file is free again");
}

#[test]
fn a_store_that_cannot_be_written_is_refused() {
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(4 * PAGE_SIZE).unwrap();
    let open = || FileStore::open(named.path()).unwrap();
    let refused = StoreDevice::new(open()).err();
    assert_eq!(refused, Some(StoreDeviceError::ReadOnly));
    assert_eq!(refused.map(|error| error.errno()), Some(errno::EACCES));
    let by_hand = FileStore::from_file(File::open(named.path()).unwrap()).unwrap();
    assert_eq!(StoreDevice::new(by_hand).err(), refused);
    // Stores around it say the same.
    let failing = FailingStore::new(open(), Direction::Read, Failure::Once(1), InjectedError::PastEnd);
    assert_eq!(StoreDevice::new(failing).err(), refused);
    assert_eq!(StoreDevice::new(DelayedStore::new(open(), Duration::ZERO)).err(), refused);
    assert_eq!(StoreDevice::new(Arc::new(GatedStore::new(open()))).err(), refused);
    let device = StoreDevice::new(FileStore::open_rw(named.path()).unwrap()).unwrap();
    let world = World::new(&[Arc::new(device)]);
    let swapped = world.swap_out(&noise(1));
    assert!(world.read(swapped) == Ok(noise(1)));
    world.end(&[swapped]);
}
