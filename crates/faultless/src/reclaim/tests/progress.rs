//! Pages that were taken out of all entries, and that no device takes: they are no progress. Each page is one of a slot that an entry
//! names, and is tried as reclaim tries it from its fifth step on.

use super::super::ageing::{BATCH, PASSES};
use super::super::groups::{Victims, Wanted};
use crate::host::{Frame, GroupId};
use crate::store::{StoreError, Transfer};
use crate::swap::SwapDevice;
use crate::swap::tests::machine::{PAGE, World, noise};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The device gives places, and refuses the bytes.
const REFUSES: u8 = 0;
/// The device gives no place.
const FULL: u8 = 1;
/// The device takes the bytes, and does not end the write.
const HOLDS: u8 = 2;
/// The device ends each write at once.
const WRITES: u8 = 3;

/// A device that does as it is told.
#[derive(Default)]
struct Device {
    does: AtomicU8,
    next: AtomicU64,
    held: Mutex<Vec<Transfer>>,
}

impl SwapDevice for Device {
    fn capacity(&self) -> u64 {
        1 << 20
    }

    fn reserve(&self) -> Option<u64> {
        let is_full = self.does.load(Ordering::Relaxed) == FULL;
        (!is_full).then(|| self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn release(&self, _place: u64) {}

    fn submit(&self, transfer: Transfer) {
        let offset = transfer.offset();
        match self.does.load(Ordering::Relaxed) {
            REFUSES => transfer.complete(Err(StoreError::NoSpace { offset })),
            HOLDS => self.held.lock().unwrap().push(transfer),
            _ => {
                let bytes = transfer.pages() * PAGE;
                transfer.complete(Ok(bytes));
            }
        }
    }
}

/// Pages that are attached to slots, and in reclaim's queues.
struct Pages {
    world: World,
    device: Arc<Device>,
    count: usize,
}

impl Pages {
    /// Makes so many pages. The device has refused each once, so that none has a place.
    fn new(count: usize) -> Self {
        let device = Arc::new(Device::default());
        let world = World::new(&[device.clone() as Arc<dyn SwapDevice>]);
        let pages: Vec<_> = (0..count).map(noise).collect();
        let (_, frames, _) = world.write_out(&pages);
        frames.iter().for_each(|frame| world.0.arrived_outside(*frame));
        Self { world, device, count }
    }

    fn device_does(&self, what: u8) {
        self.device.does.store(what, Ordering::Relaxed);
    }

    fn offer(&self, batch: &mut [Frame]) -> Victims {
        let wanted = Wanted { gathers: true, ..Wanted::all_of(GroupId::ROOT) };
        let victims = self.world.0.next_victims(wanted, batch);
        assert_ne!(victims.count, 0, "a page is in no queue");
        victims
    }

    /// Writes the offered frames out, and reports the outcome. Returns the number of frames that are free.
    fn try_out(&self, victims: Victims, frames: &mut [Frame]) -> u64 {
        let engine = &self.world.0;
        for frame in frames.iter() {
            assert!(engine.folio(*frame).try_isolate().is_some(), "{frame:?} is at work");
        }
        engine.write_out(frames);
        engine.report_taken(victims.class, frames).0
    }

    /// Tries all pages again and again until any page is due. Panics if that takes more than a pass longer than [`PASSES`] passes.
    fn are_demanded(&self) {
        let (mut batch, mut offers) = ([self.world.0.zero_frame(); BATCH], 0);
        loop {
            let victims = self.offer(&mut batch);
            offers += victims.count;
            assert_eq!(self.try_out(victims, &mut batch[..victims.count]), 0);
            if victims.takes_young {
                break;
            }
            let most = (PASSES as usize + 1) * self.count + BATCH;
            assert!(offers <= most, "{} pages: not demanded after {offers} offers", self.count);
        }
        assert!(offers >= PASSES as usize * self.count, "{} pages: demanded after {offers}", self.count);
    }

    /// Tries one page, and checks that the next one is not offered whatever its uses.
    fn ends_the_demand(&self, freed: u64) {
        let mut batch = [self.world.0.zero_frame()];
        let victims = self.offer(&mut batch);
        assert!(victims.takes_young, "the test shows nothing");
        assert_eq!(self.try_out(victims, &mut batch), freed);
        let victims = self.offer(&mut batch);
        assert!(!victims.takes_young, "progress ends the demand");
    }
}

/// A full device gives no place: after some passes over such pages, any page is due. A page whose write was started, and one that is free,
/// are progress.
#[test]
fn pages_for_which_no_device_has_a_place_are_no_progress() {
    for count in [3, 64, 150] {
        for (then, freed) in [(HOLDS, 0), (WRITES, 1)] {
            let pages = Pages::new(count);
            pages.device_does(FULL);
            pages.are_demanded();
            pages.device_does(then);
            pages.ends_the_demand(freed);
            pages.device_does(WRITES);
            let held = core::mem::take(&mut *pages.device.held.lock().unwrap());
            held.into_iter().for_each(|transfer| pages.device.submit(transfer));
        }
    }
}

/// A device that gives a place and refuses the bytes at once, as one that compresses does when it is full: the page is neither free nor
/// being written when the outcome is reported.
#[test]
fn pages_that_a_device_refuses_at_once_are_no_progress() {
    for count in [3, 64, 150] {
        let pages = Pages::new(count);
        pages.device_does(REFUSES);
        pages.are_demanded();
    }
}
