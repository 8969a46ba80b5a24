//! Removing a device: its pages are in memory or on other devices afterwards, or the device is used as before.

use super::super::{RemoveSwapError, StoreDevice, SwapDevice, SwapError, SwapRemoved};
use super::devices::{device, file};
use super::machine::{PAGE, World, noise};
use crate::store::{Direction, FailingStore, Failure, GatedStore, InjectedError};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

const EIO: InjectedError = InjectedError::Io { errno: crate::errno::EIO };

#[test]
fn the_pages_come_back_and_the_device_is_left_alone() {
    let (disk, store) = file(64);
    let first: Arc<dyn SwapDevice> = Arc::new(StoreDevice::new(store).unwrap());
    let world = World::new(&[first.clone(), device(64)]);
    let pages: Vec<_> = (0..40).map(noise).collect();
    let slots: Vec<_> = pages.iter().map(|page| world.swap_out(page)).collect();
    // Some are in memory too, one is one repeated word.
    let same = world.swap_out(&[7; PAGE]);
    let pinned = world.pin(slots[3]).unwrap();
    assert_eq!(world.0.remove_swap(&first), Ok(SwapRemoved { moved: 40, lost: 0 }));
    assert_eq!(world.on_devices(), [0], "it is not listed any more");
    assert_eq!(world.0.remove_swap(&first), Err(RemoveSwapError::Unknown));
    (0..40).for_each(|place| disk.write_all_at(&[0xee; PAGE], place * PAGE as u64).unwrap());
    world.unpin(pinned);
    for (page, swapped) in pages.iter().zip(&slots) {
        assert!(world.read(*swapped) == Ok(*page), "other bytes than were written");
    }
    assert!(world.read(same) == Ok([7; PAGE]));
    // They are as pages that were never written: the other device takes them.
    for swapped in &slots {
        let frame = world.pin(*swapped).unwrap();
        assert!(world.0.folio(frame).isolate_pinned());
        world.0.write_out(&mut [frame]);
    }
    world.wait_until(|| slots.iter().all(|(slot, _)| world.0.slot_frame(*slot).is_none()));
    assert_eq!(world.on_devices(), [40]);
    let later = world.swap_out(&noise(50));
    for (page, swapped) in pages.iter().zip(&slots) {
        assert!(world.read(*swapped) == Ok(*page), "other bytes than were written");
    }
    assert!(world.read(later) == Ok(noise(50)));
    // It can be used again, at its place among the devices.
    world.0.add_swap(first).unwrap();
    let again = world.swap_out(&noise(60));
    assert_eq!(world.on_devices(), [1, 41]);
    assert!(world.read(again) == Ok(noise(60)));
    world.end(&[&slots[..], &[same, later, again]].concat());
}

#[test]
fn without_room_the_device_stays_in_use() {
    let only = device(64);
    let world = World::new(core::slice::from_ref(&only));
    let slots: Vec<_> = (0..40).map(|number| world.swap_out(&noise(number))).collect();
    // All frames are in use but eight.
    let free = world.0.frame_usage().limit - world.0.frame_usage().used;
    let others: Vec<_> = (0..free - 8).map(|number| world.page(&[number as u8; PAGE])).collect();
    let error = world.0.remove_swap(&only).unwrap_err();
    let RemoveSwapError::NoRoom { left, lost: 0 } = error else { panic!("{error}") };
    assert!(left >= 32, "{left}");
    assert_eq!(error.to_string(), format!("there is no room for the {left} pages on the swap device"));
    assert!(world.devices()[0].takes_pages);
    others.into_iter().for_each(|frame| world.let_go(frame));
    for (number, swapped) in slots.iter().enumerate() {
        assert!(world.read(*swapped) == Ok(noise(number)), "page {number}");
    }
    let later = world.swap_out(&noise(50));
    assert_eq!(world.0.remove_swap(&only).map(|removed| removed.lost), Ok(0));
    assert!(world.read(later) == Ok(noise(50)));
    world.end(&[&slots[..], &[later]].concat());
}

/// A page whose read fails in the call is lost, also if the device stays in use: the error has the number.
#[test]
fn without_room_the_error_tells_how_many_pages_are_lost() {
    let store = FailingStore::new(file(64).1, Direction::Read, Failure::Once(1), EIO);
    let only: Arc<dyn SwapDevice> = Arc::new(StoreDevice::new(store).unwrap());
    let world = World::new(core::slice::from_ref(&only));
    let slots: Vec<_> = (0..40).map(|number| world.swap_out(&noise(number))).collect();
    let free = world.0.frame_usage().limit - world.0.frame_usage().used;
    let others: Vec<_> = (0..free - 8).map(|number| world.page(&[number as u8; PAGE])).collect();
    let error = world.0.remove_swap(&only).unwrap_err();
    let RemoveSwapError::NoRoom { left, lost } = error else { panic!("{error}") };
    assert_eq!((lost, error.errno()), (1, crate::errno::ENOMEM));
    assert!(
        error
            .to_string()
            .ends_with(&format!("{left} pages on the swap device; 1 more could not be read and are lost")),
        "{error}"
    );
    assert_eq!(world.on_devices(), [left], "a page that is lost has no place");
    assert!(world.devices()[0].takes_pages);
    others.into_iter().for_each(|frame| world.let_go(frame));
    assert!((0..2).all(|_| world.read(slots[0]).is_err()));
    for (number, swapped) in slots.iter().enumerate().skip(1) {
        assert!(world.read(*swapped) == Ok(noise(number)), "page {number}");
    }
    assert_eq!(world.0.remove_swap(&only).map(|removed| removed.lost), Ok(0), "it was counted before");
    world.end(&slots);
}

#[test]
fn a_page_that_cannot_be_read_is_an_error_from_then_on() {
    let store = FailingStore::new(file(8).1, Direction::Read, Failure::Once(3), EIO);
    let only: Arc<dyn SwapDevice> = Arc::new(StoreDevice::new(store).unwrap());
    let world = World::new(core::slice::from_ref(&only));
    let slots: Vec<_> = (0..3).map(|number| world.swap_out(&noise(number))).collect();
    // A fault has found one that cannot be read.
    let (disk, store) = file(8);
    let second: Arc<dyn SwapDevice> = Arc::new(StoreDevice::new(store).unwrap());
    assert_eq!(world.0.remove_swap(&only).map(|removed| removed.moved + removed.lost), Ok(3));
    world.0.add_swap(second.clone()).unwrap();
    let bad = [4, 5].map(|number| world.swap_out(&noise(number)));
    disk.write_all_at(&[1], 7).unwrap();
    assert!(world.read(bad[0]).is_err());
    disk.write_all_at(&[1], PAGE as u64 + 7).unwrap();
    assert_eq!(world.0.remove_swap(&second), Ok(SwapRemoved { moved: 0, lost: 2 }));
    for _ in 0..2 {
        assert!(bad.iter().all(|swapped| world.read(*swapped).is_err()));
    }
    world.end(&[&slots[..], &bad].concat());
}

/// A write that is under way ends first.
#[test]
fn a_write_under_way_is_waited_for() {
    let gate = Arc::new(GatedStore::new(file(8).1));
    let only: Arc<dyn SwapDevice> = Arc::new(StoreDevice::new(gate.clone()).unwrap());
    let world = World::new(core::slice::from_ref(&only));
    let (slots, ..) = world.write_out(&[noise(1), noise(2)]);
    gate.wait_for(1);
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| world.0.remove_swap(&only));
        world.wait_until(|| !world.devices()[0].takes_pages);
        assert_eq!(world.0.remove_swap(&only), Err(RemoveSwapError::UnderWay));
        assert_eq!(world.0.add_swap(only.clone()), Err(SwapError::InUse));
        gate.open();
        assert_eq!(removal.join().unwrap(), Ok(SwapRemoved { moved: 2, lost: 0 }));
    });
    assert!(world.read(slots[0]) == Ok(noise(1)) && world.read(slots[1]) == Ok(noise(2)));
    world.end(&slots);
}

/// Threads swap out and in while devices come and go.
#[test]
fn nothing_is_lost_while_devices_come_and_go() {
    let devices = [device(256), device(256)];
    let world = World::new(&devices);
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads = [0, 1, 2].map(|thread| {
            let world = &world;
            scope.spawn(move || {
                for round in 0..80 {
                    let number = thread * 1000 + round;
                    let (slots, ..) = world.write_out(&[noise(number), noise(number + 500)]);
                    assert!(world.read(slots[1]) == Ok(noise(number + 500)), "another page's bytes");
                    world.0.put_slot(slots[1].0);
                    assert!(world.read(slots[0]) == Ok(noise(number)), "another page's bytes");
                    world.0.put_slot(slots[0].0);
                }
            })
        });
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                for device in &devices {
                    let removed = world.0.remove_swap(device);
                    assert!(removed.is_ok_and(|removed| removed.lost == 0), "{removed:?}");
                    world.0.add_swap(device.clone()).unwrap();
                }
            }
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    world.end(&[]);
}
