//! Pages that are read with the page of a fault: in which transfers, and what becomes of those that fail.

use super::super::{StoreDevice, SwapIn};
use super::devices::file;
use super::machine::{PAGE, Swapped, World, noise};
use super::writes::Noting;
use crate::host::Frame;
use crate::stats::Counter;
use crate::store::{Direction, FailingStore, Failure, InjectedError};
use crate::sync::plain::Ordering;
use std::sync::{Arc, Mutex};

/// Writes `count` pages to places that follow each other.
fn written(world: &World, count: usize) -> Vec<Swapped> {
    let pages: Vec<_> = (0..count).map(noise).collect();
    let (slots, ..) = world.write_out(&pages);
    world.wait_until(|| slots.iter().all(|(slot, _)| world.0.slot_frame(*slot).is_none()));
    slots
}

/// Begins the read for a fault at `slots[at]`, with the others of `ahead`. Returns the fault's frame when all transfers have ended.
fn read(world: &World, slots: &[Swapped], at: usize, ahead: &[usize]) -> Frame {
    let frame = world.frame();
    let ahead: Vec<_> = ahead.iter().map(|at| slots[*at]).collect();
    assert_eq!(world.0.begin_swap_in(slots[at].0, slots[at].1, frame, &ahead), SwapIn::Started);
    world.wait_until(|| world.0.cache.transfers.load(Ordering::Relaxed) == 0);
    frame
}

#[test]
fn pages_whose_places_follow_are_one_transfer() {
    let noting = Arc::new(Noting { inner: file(64).1, seen: Mutex::default() });
    let world = World::new(&[Arc::new(StoreDevice::new(noting.clone()).unwrap())]);
    let slots = written(&world, 12);
    core::mem::take(&mut *noting.seen.lock().unwrap());
    // The run of the fault's page goes first, and a page in memory is not read again.
    let mine = read(&world, &slots, 5, &[1, 4, 6, 7, 10]);
    assert_eq!(core::mem::take(&mut *noting.seen.lock().unwrap()), [(4, 4), (1, 1), (10, 1)]);
    let other = read(&world, &slots, 8, &[7, 9]);
    assert_eq!(core::mem::take(&mut *noting.seen.lock().unwrap()), [(8, 2)]);
    assert_eq!((world.count(Counter::SwapIns), world.count(Counter::SwapAhead)), (8, 6));
    for at in [1, 4, 5, 6, 7, 8, 9, 10] {
        assert!(world.read(slots[at]) == Ok(noise(at)), "page {at}");
    }
    assert_eq!(world.count(Counter::SwapIns), 8, "all were in memory");
    [mine, other].into_iter().for_each(|frame| world.unpin(frame));
    world.end(&slots);
}

/// A page before that of the fault fails, and so the fault's page is read alone. Nothing is lost: the access itself tries again.
#[test]
fn a_page_that_cannot_be_read_ahead_is_not_lost() {
    let error = InjectedError::Io { errno: crate::errno::EIO };
    let store = FailingStore::new(file(8).1, Direction::Read, Failure::Once(1), error);
    let world = World::new(&[Arc::new(StoreDevice::new(store).unwrap())]);
    let slots = written(&world, 3);
    let mine = read(&world, &slots, 1, &[0, 2]);
    assert!(world.0.folio(mine).is_uptodate());
    assert!(slots.iter().all(|(slot, _)| world.0.is_poisoned(*slot).is_none()));
    let is_there = slots.iter().map(|(slot, _)| world.0.slot_frame(*slot).is_some());
    assert_eq!(is_there.collect::<Vec<_>>(), [false, true, false]);
    for (at, swapped) in slots.iter().enumerate() {
        assert!(world.read(*swapped) == Ok(noise(at)), "page {at}");
    }
    world.unpin(mine);
    world.end(&slots);
}

/// The slot of a page that nobody wants any more, in its next life.
#[test]
fn a_page_of_another_generation_is_not_read() {
    let world = World::new(&[Arc::new(StoreDevice::new(file(8).1).unwrap())]);
    let slots = written(&world, 2);
    world.0.put_slot(slots[1].0);
    let again = world.swap_out(&noise(7));
    assert_eq!(again, (slots[1].0, slots[1].1 + 1));
    let mine = read(&world, &slots, 0, &[1]);
    assert_eq!((world.0.slot_frame(again.0), world.count(Counter::SwapAhead)), (None, 0));
    world.unpin(mine);
    world.end(&[slots[0], again]);
}

/// Without a free frame the fault's page is read alone.
#[test]
fn no_frame_is_taken_that_is_not_free() {
    let world = World::new(&[Arc::new(StoreDevice::new(file(8).1).unwrap())]);
    let slots = written(&world, 3);
    let free = world.0.frame_usage().limit - world.0.frame_usage().used;
    let all: Vec<_> = (0..free - 1).map(|number| world.page(&[number as u8; PAGE])).collect();
    let mine = read(&world, &slots, 1, &[0, 2]);
    assert_eq!((world.count(Counter::SwapIns), world.count(Counter::SwapAhead)), (1, 0));
    world.unpin(mine);
    all.into_iter().for_each(|frame| world.let_go(frame));
    world.end(&slots);
}
