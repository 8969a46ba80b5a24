//! Pages that were taken out of all entries, and that no device takes: they are no progress. Each page is one of a slot that an entry
//! names, and is tried as reclaim tries it from its fifth step on.

use super::super::ageing::{BATCH, PASSES};
use super::super::groups::{Victims, Wanted};
use super::super::policy::Report;
use crate::frame::Reference;
use crate::host::{Frame, GroupId};
use crate::store::{StoreError, Transfer};
use crate::swap::SwapDevice;
use crate::swap::tests::machine::{PAGE, Swapped, World, noise};
use crate::tables::Home;
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
    entries: Vec<Swapped>,
}

impl Pages {
    /// Makes so many pages. The device has refused each once, so that none has a place.
    fn new(count: usize) -> Self {
        let device = Arc::new(Device::default());
        let world = World::new(&[device.clone() as Arc<dyn SwapDevice>]);
        let pages: Vec<_> = (0..count).map(noise).collect();
        let (entries, frames, _) = world.write_out(&pages);
        frames.iter().for_each(|frame| world.0.arrived_outside(*frame));
        Self { world, device, entries }
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

    /// Writes the offered frames out, and reports the outcome. `meanwhile` runs in between, as another thread may. Returns the number of
    /// frames that are free.
    fn try_out(&self, victims: Victims, frames: &mut [Frame], meanwhile: impl FnOnce()) -> u64 {
        let engine = &self.world.0;
        for frame in frames.iter() {
            assert!(engine.folio(*frame).try_isolate().is_some(), "{frame:?} is at work");
        }
        engine.write_out(frames);
        meanwhile();
        engine.report_taken(victims.class, frames).0
    }

    /// Tries all pages again and again until any page is due. Panics if that takes more than a pass longer than [`PASSES`] passes.
    fn are_demanded(&self) {
        let (mut batch, mut offers, count) = ([self.world.0.zero_frame(); BATCH], 0, self.entries.len());
        loop {
            let victims = self.offer(&mut batch);
            offers += victims.count;
            assert_eq!(self.try_out(victims, &mut batch[..victims.count], || ()), 0);
            if victims.takes_young {
                break;
            }
            let most = (PASSES as usize + 1) * count + BATCH;
            assert!(offers <= most, "{count} pages: not demanded after {offers} offers");
        }
        assert!(offers >= PASSES as usize * count, "{count} pages: demanded after {offers}");
    }

    /// Tries one page, and checks that the next one is not offered whatever its uses. `meanwhile` has the page's frame between its write and
    /// the report. Returns the frame.
    fn ends_the_demand(&self, freed: u64, meanwhile: impl FnOnce(Frame)) -> Frame {
        let mut batch = [self.world.0.zero_frame()];
        let victims = self.offer(&mut batch);
        assert!(victims.takes_young, "the test shows nothing");
        let [frame] = batch;
        assert_eq!(self.try_out(victims, &mut batch, || meanwhile(frame)), freed);
        let victims = self.offer(&mut batch);
        assert!(!victims.takes_young, "progress ends the demand");
        self.world.0.report(victims.class, batch[0], Report::Busy);
        frame
    }

    /// Returns the entry of the page in `frame`.
    fn entry(&self, frame: Frame) -> Swapped {
        let is_there = |(slot, _): &&Swapped| self.world.0.slot_frame(*slot) == Some(frame);
        *self.entries.iter().find(is_there).expect("the slot of a page that was tried")
    }

    /// Returns how often `frame` is in the queues.
    fn in_queues(&self, frame: Frame) -> usize {
        let mut batch = [self.world.0.zero_frame(); BATCH];
        let victims = self.offer(&mut batch);
        let frames = &batch[..victims.count];
        frames.iter().for_each(|frame| self.world.0.report(victims.class, *frame, Report::Busy));
        frames.iter().filter(|other| **other == frame).count()
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
            pages.ends_the_demand(freed, |_| ());
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

/// Another thread takes the page, or its frame, after the write and before the report. That is progress of its own, and the frame is in the
/// queues once.
#[test]
fn a_frame_that_is_taken_between_its_write_and_its_report() {
    let demanded = |then| {
        let pages = Pages::new(3);
        pages.device_does(REFUSES);
        pages.are_demanded();
        pages.device_does(then);
        pages
    };
    // The write has ended, and the frame has its next life.
    let pages = demanded(WRITES);
    let engine = &pages.world.0;
    let frame = pages.ends_the_demand(0, |freed| {
        let frame = pages.world.frame();
        assert_eq!(frame, freed, "another frame was free");
        engine.folio(frame).begin_anonymous(Home::NONE);
        engine.arrived_outside(frame);
    });
    assert_eq!(pages.in_queues(frame), 1, "the page of the next life");

    // The device has refused the page, and a fault maps it again.
    let pages = demanded(REFUSES);
    let engine = &pages.world.0;
    let frame = pages.ends_the_demand(0, |frame| {
        assert_eq!(pages.world.pin(pages.entry(frame)), Ok(frame));
        assert!(engine.folio(frame).begin_mapping(false));
        engine.unpin(frame, Reference::Pin);
    });
    assert_eq!(pages.in_queues(frame), 1, "the page that is mapped again");

    // The device has refused the page, and its last entry goes.
    let pages = demanded(REFUSES);
    let engine = &pages.world.0;
    let frame = pages.ends_the_demand(1, |frame| engine.put_slot(pages.entry(frame).0));
    assert!(engine.folio(frame).is_free());
    assert_eq!(pages.in_queues(frame), 0, "a free frame");
}
