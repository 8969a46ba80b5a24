//! Writes that fail, and folios that change hands while they are written.

use super::super::{Cached, StoreDevice, SwapDevice};
use super::devices::{device, file};
use super::machine::{PAGE, World, noise};
use crate::frame::Reference;
use crate::stats::Counter;
use crate::store::{
    Direction, FailingStore, Failure, GatedStore, InjectedError, Store, StoreError, Transfer,
};
use std::sync::{Arc, Mutex};

const EIO: InjectedError = InjectedError::Io { errno: crate::errno::EIO };

type Failing<S> = FailingStore<S>;

/// Makes a device whose writes fail as `failure` says.
fn failing(
    pages: u64,
    failure: Failure,
    error: InjectedError,
) -> Arc<StoreDevice<Failing<crate::store::FileStore>>> {
    let store = FailingStore::new(file(pages).1, Direction::Write, failure, error);
    Arc::new(StoreDevice::new(store).unwrap())
}

/// Notes the offset and the pages of each transfer.
pub(super) struct Noting<S> {
    pub(super) inner: S,
    pub(super) seen: Mutex<Vec<(u64, usize)>>,
}

impl<S: Store> Store for Noting<S> {
    fn length(&self) -> Result<u64, StoreError> {
        self.inner.length()
    }

    fn submit(&self, transfer: Transfer) {
        self.seen.lock().unwrap().push((transfer.offset() / PAGE as u64, transfer.pages()));
        self.inner.submit(transfer);
    }

    fn max_pages(&self) -> usize {
        self.inner.max_pages()
    }
}

fn wait_for_writes(world: &World) {
    world.wait_until(|| world.0.cache.transfers.load(crate::sync::plain::Ordering::Relaxed) == 0);
}

#[test]
fn a_batch_is_written_as_runs() {
    let noting = Arc::new(Noting { inner: file(200).1, seen: Mutex::default() });
    let world = World::new(&[Arc::new(StoreDevice::new(noting.clone()).unwrap())]);
    let pages: Vec<_> = (0..100).map(noise).collect();
    let (slots, ..) = world.write_out(&pages);
    wait_for_writes(&world);
    let seen = core::mem::take(&mut *noting.seen.lock().unwrap());
    assert_eq!(seen, [(0, 64), (64, 36)]);
    assert_eq!(world.count(Counter::SwapOuts), 100);
    world.end(&slots);
}

#[test]
fn a_failed_write_goes_to_another_place() {
    let device = failing(8, Failure::Once(2), EIO);
    let world = World::new(&[device]);
    let pages: Vec<_> = (0..4).map(noise).collect();
    let (slots, ..) = world.write_out(&pages);
    world.wait_until(|| slots.iter().all(|(slot, _)| world.0.slot_frame(*slot).is_none()));
    assert_eq!(world.count(Counter::SwapWriteErrors), 1);
    for (page, swapped) in pages.iter().zip(&slots) {
        assert!(world.read(*swapped) == Ok(*page));
    }
    world.end(&slots);
}

/// The page that cannot be written stays in memory. The device takes no more, and the next one does.
#[test]
fn three_failures_in_a_row_end_a_device() {
    let bad = failing(8, Failure::From(1), EIO);
    let world = World::new(&[bad]);
    let (slots, frames, _) = world.write_out(&[noise(1)]);
    wait_for_writes(&world);
    assert_eq!(world.count(Counter::SwapWriteErrors), 3);
    assert_eq!((world.0.slot_frame(slots[0].0), world.on_devices()), (Some(frames[0]), vec![0]));
    assert!(!world.devices()[0].takes_pages);
    assert!(world.read(slots[0]) == Ok(noise(1)), "nothing is lost");
    let other = world.page(&noise(2));
    assert_eq!(world.attach(other), None, "no device takes pages");
    world.0.add_swap(device(8)).unwrap();
    let second = world.attach(other).unwrap();
    // Both are offered again, and the first is written this time.
    assert!(matches!(world.0.pin_cached(slots[0].0), Cached::Pinned(frame) if frame == frames[0]));
    assert!(world.0.folio(frames[0]).isolate_pinned());
    let out = world.0.write_out(&mut [frames[0], other]);
    assert_eq!(out.started, 2);
    world.wait_until(|| world.0.slot_frame(slots[0].0).or(world.0.slot_frame(second.0)).is_none());
    assert_eq!(world.on_devices(), [0, 2]);
    assert!(world.read(slots[0]) == Ok(noise(1)) && world.read(second) == Ok(noise(2)));
    world.end(&[slots[0], second]);
}

#[test]
fn failures_that_are_not_in_a_row_do_not_end_a_device() {
    let failing = failing(64, Failure::Once(1), EIO);
    let world = World::new(&[failing.clone() as Arc<dyn SwapDevice>]);
    let slots: Vec<_> = (0..6)
        .map(|number| {
            let store = failing.store();
            store.set(Some(Failure::Once(store.operations() + 1)));
            world.swap_out(&noise(number))
        })
        .collect();
    assert_eq!(world.count(Counter::SwapWriteErrors), 6);
    assert!(world.devices()[0].takes_pages);
    world.end(&slots);
}

/// A device that is full when it is written to, as a sparse file on a full disk.
#[test]
fn a_device_without_space_passes_the_page_on() {
    let full = failing(8, Failure::From(1), InjectedError::NoSpace);
    let world = World::new(&[full, device(8)]);
    let slots: Vec<_> = (0..5).map(|number| world.swap_out(&noise(number))).collect();
    assert_eq!((world.on_devices(), world.count(Counter::SwapWriteErrors)), (vec![0, 5], 0));
    assert!(world.devices()[0].takes_pages, "a refusal is no failure");
    assert!(world.read(slots[4]) == Ok(noise(4)));
    world.end(&slots);
}

/// Makes a world whose only device holds its transfers, with one page that is being written.
fn being_written()
-> (World, Arc<GatedStore<crate::store::FileStore>>, super::machine::Swapped, crate::host::Frame) {
    let gate = Arc::new(GatedStore::new(file(8).1));
    let device: Arc<dyn SwapDevice> = Arc::new(StoreDevice::new(gate.clone()).unwrap());
    let world = World::new(&[device]);
    let (slots, frames, out) = world.write_out(&[noise(1)]);
    assert_eq!(out.started, 1);
    gate.wait_for(1);
    (world, gate, slots[0], frames[0])
}

/// A fault takes the page out of its slot while it is written, and the slot goes to another page when the write has ended.
#[test]
fn a_page_that_leaves_its_slot_while_it_is_written() {
    let (world, gate, (slot, generation), frame) = being_written();
    assert_eq!(world.0.pin_cached(slot), Cached::Pinned(frame));
    assert!(world.0.take_out(frame) && !world.0.take_out(frame));
    assert!(world.0.folio(frame).is_writeback(), "so the fault gives no write right yet");
    assert_eq!(world.0.attach_slot(frame), None, "no second write");
    world.0.put_slot(slot);
    assert_eq!(world.0.slot_count(slot), 1, "the write has the slot");
    assert!(!world.0.try_count_slot(slot, generation + 1));
    gate.open();
    wait_for_writes(&world);
    assert_eq!((world.0.swap_usage().slots, world.on_devices()), (0, vec![0]));
    let folio = world.0.folio(frame);
    assert!(!folio.is_writeback() && !folio.is_in_slot() && !folio.is_free(), "the page is the fault's");
    world.unpin(frame);
    world.end(&[]);
}

/// The last entry goes while the page is written: the end of the write frees all.
#[test]
fn a_page_that_nobody_wants_any_more_while_it_is_written() {
    let (world, gate, (slot, _), _) = being_written();
    world.0.put_slot(slot);
    assert_eq!(world.0.swap_usage().slots, 1);
    gate.open();
    world.end(&[]);
}

/// A fault maps the page for reading while it is written. It keeps its slot, which has the bytes at the end.
#[test]
fn a_page_that_is_read_while_it_is_written() {
    let (world, gate, (slot, generation), frame) = being_written();
    assert_eq!(world.0.pin_cached(slot), Cached::Pinned(frame));
    assert!(world.0.folio(frame).begin_mapping(false));
    world.unpin(frame);
    gate.open();
    wait_for_writes(&world);
    assert_eq!(world.0.slot_frame(slot), Some(frame), "it is mapped");
    // Reclaim again: nothing is to be written.
    let folio = world.0.folio(frame);
    assert_eq!(folio.try_get(Reference::Pin), Ok(()));
    assert!(folio.isolate_pinned());
    world.0.put(frame, Reference::Mapping);
    let out = world.0.write_out(&mut [frame]);
    assert_eq!((out.freed, out.started, out.kept), (1, 0, 0));
    assert!(world.read((slot, generation)) == Ok(noise(1)));
    world.end(&[(slot, generation)]);
}

/// A folio that somebody uses is kept, and is no longer isolated.
#[test]
fn a_folio_in_use_is_kept() {
    let world = World::new(&[device(8)]);
    let frame = world.page(&noise(1));
    let swapped = world.attach(frame).unwrap();
    assert_eq!(world.0.attach_slot(frame), Some(swapped));
    assert_eq!(world.0.folio(frame).try_get(Reference::Pin), Ok(()));
    let out = world.0.write_out(&mut [frame]);
    assert_eq!((out.freed, out.started, out.kept), (0, 0, 1));
    assert!(!world.0.folio(frame).is_isolated());
    world.unpin(frame);
    assert_eq!(world.0.slot_frame(swapped.0), Some(frame));
    world.end(&[swapped]);
}

/// Threads swap pages out and in, drop entries and count new ones, on devices that are slow and that fail.
#[test]
fn nothing_is_lost_or_left() {
    let slow = crate::store::DelayedStore::new(file(64).1, std::time::Duration::from_micros(50));
    let failing = FailingStore::new(slow, Direction::Write, Failure::Once(5), EIO);
    let world = World::new(&[Arc::new(StoreDevice::new(failing).unwrap()), device(256)]);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let world = &world;
            scope.spawn(move || {
                for round in 0..60 {
                    let number = thread * 1000 + round;
                    let (slots, ..) = world.write_out(&[noise(number), noise(number + 500)]);
                    assert!(world.0.try_count_slot(slots[0].0, slots[0].1), "as fork does");
                    assert!(world.read(slots[0]) == Ok(noise(number)), "another page's bytes");
                    world.0.put_slot(slots[1].0);
                    world.0.put_slot(slots[0].0);
                    assert!(world.read(slots[0]) == Ok(noise(number)), "another page's bytes");
                    world.0.put_slot(slots[0].0);
                }
            });
        }
    });
    world.end(&[]);
}
