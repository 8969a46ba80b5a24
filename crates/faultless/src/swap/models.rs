//! Models of the steps that change a folio and its slot together, on the real code.

use super::device::{Devices, SwapDevice};
use super::slot::{Location, SwapSlot};
use super::steps::{Cached, Evicted, NoWrite, PlaceLeft, Steps, Surroundings};
use super::table::SlotTable;
use crate::frame::{Folio, Reference, Remaining};
use crate::host::{Frame, GroupId, Slot};
use crate::store::Transfer;
use crate::sync::{Sections, plain};
use crate::tables::Home;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread::{spawn, yield_now};
use std::sync::Arc;

/// A machine with three frames. A frame's bytes are one number, and so are those of a place on the device.
struct World {
    slots: SlotTable,
    folios: [Folio; 3],
    bytes: [AtomicU64; 3],
    is_free: [plain::AtomicBool; 3],
    /// Whether a frame that is freed becomes another page's at once.
    is_crowded: plain::AtomicBool,
    device: AtomicU64,
    released: plain::AtomicU64,
}

const HERE: Location = Location { device: 0, place: 0 };

impl Surroundings for World {
    fn folio(&self, frame: Frame) -> &Folio {
        &self.folios[frame.get() as usize]
    }

    fn free(&self, frame: Frame) {
        self.folio(frame).life().end();
        self.is_free[frame.get() as usize].store(true, plain::Ordering::Relaxed);
        if self.is_crowded.load(plain::Ordering::Relaxed) {
            self.take(frame);
            self.bytes[frame.get() as usize].store(5, Ordering::Relaxed);
            self.folio(frame).begin_anonymous(Home::NONE);
        }
    }

    /// The place is another page's from now on.
    fn release(&self, _: Location) {
        self.device.store(9, Ordering::Release);
        self.released.fetch_add(1, plain::Ordering::Relaxed);
    }
}

fn frame(number: u64) -> Frame {
    Frame::new(number).expect("a small number")
}

impl World {
    fn new() -> Self {
        Self {
            slots: SlotTable::new(Sections::try_shared().expect("memory")).expect("memory"),
            folios: core::array::from_fn(|_| Folio::new()),
            bytes: core::array::from_fn(|_| AtomicU64::new(0)),
            is_free: core::array::from_fn(|_| plain::AtomicBool::new(false)),
            is_crowded: plain::AtomicBool::new(false),
            device: AtomicU64::new(0),
            released: plain::AtomicU64::new(0),
        }
    }

    fn steps(&self) -> Steps<'_, Self> {
        Steps { slots: &self.slots, around: self }
    }

    /// Attaches frame 0, with one pin, to a slot that `entries` entries name.
    fn attach(&self, entries: u64) -> (Slot, &SwapSlot, u16) {
        self.folio(frame(0)).begin_unmapped();
        let (number, slot) = self.slots.take().expect("memory");
        let generation = self.steps().attach(number, slot, frame(0), HERE).expect("the folio has no slot");
        (0..entries).for_each(|_| assert!(slot.try_count(generation)));
        (number, slot, generation)
    }

    /// Makes a slot that `entries` entries name, with bytes and without a folio. Frame 0 is free afterwards.
    fn evicted(&self, entries: u64) -> (Slot, &SwapSlot, u16) {
        let made = self.attach(entries);
        self.write(frame(0), 1);
        assert_eq!(self.steps().try_evict(frame(0)), Evicted::Freed);
        self.take(frame(0));
        made
    }

    /// Writes the pinned folio, if nothing else has it.
    fn write(&self, frame: Frame, bytes: u64) {
        if let Ok((number, _, slot)) = self.steps().begin_write(frame) {
            self.device.store(bytes, Ordering::Release);
            self.steps().end_write(number, slot, frame, true);
        }
    }

    fn is_free(&self, frame: Frame) -> bool {
        self.is_free[frame.get() as usize].load(plain::Ordering::Relaxed)
    }

    /// Takes a free frame.
    fn take(&self, frame: Frame) {
        assert!(self.is_free[frame.get() as usize].swap(false, plain::Ordering::Relaxed));
        self.folio(frame).life().renew();
    }

    /// Checks that nothing is kept that nobody wants.
    fn check_that_all_is_free(&self, frames: &[u64]) {
        let kept = frames.iter().find(|number| !self.is_free(frame(**number)));
        assert_eq!(kept, None, "a page is kept that nobody wants");
        assert_eq!(self.slots.used(), 0, "a slot is kept that nobody wants");
    }
}

fn check(bound: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(bound));
    builder.check(model);
}

/// The last entry and the last pin go at once: the later of the two frees the folio and the slot.
#[test]
fn the_last_entry_and_the_last_pin() {
    check(4, || {
        let world = Arc::new(World::new());
        let (number, ..) = world.attach(1);
        let theirs = world.clone();
        let thread = spawn(move || {
            let slot = theirs.slots.get(number.get()).expect("it is there");
            theirs.steps().put(number.get(), slot);
        });
        world.steps().unpin(frame(0));
        thread.join().expect("no panic");
        world.check_that_all_is_free(&[0]);
        assert_eq!(world.released.load(plain::Ordering::Relaxed), 1);
    });
}

/// A write begins and ends at once, since the slot has the bytes already. Meanwhile another reclaimer isolates the folio: it stays
/// isolated until that one ends it.
#[test]
fn a_write_that_is_not_needed_leaves_others_isolation_alone() {
    check(3, || {
        let world = Arc::new(World::new());
        let (number, slot, _) = world.attach(1);
        world.write(frame(0), 1);
        assert!(world.folio(frame(0)).isolate_pinned());
        let theirs = world.clone();
        let thread = spawn(move || {
            let folio = theirs.folio(frame(0));
            if folio.try_isolate().is_some() {
                assert!(folio.is_isolated(), "another thread has ended the isolation");
                folio.end_isolation();
                theirs.steps().unpin(frame(0));
            }
        });
        if world.steps().begin_write(frame(0)).is_err_and(|why| why == NoWrite::NotBegun) {
            world.folio(frame(0)).end_isolation();
        }
        world.steps().unpin(frame(0));
        thread.join().expect("no panic");
        world.steps().put(number.get(), slot);
        world.check_that_all_is_free(&[0]);
    });
}

/// An entry that shared the page goes, as the last that names the slot. Meanwhile reclaim takes the last mapping and names the slot
/// again: the page stays.
#[test]
fn a_page_that_is_wanted_again() {
    check(4, || {
        let world = Arc::new(World::new());
        let (number, slot, generation) = world.attach(1);
        assert!(world.folio(frame(0)).begin_mapping(false));
        let theirs = world.clone();
        let thread = spawn(move || {
            let slot = theirs.slots.get(number.get()).expect("it is there");
            theirs.steps().put(number.get(), slot);
        });
        assert!(slot.try_count(generation));
        assert!(!world.folio(frame(0)).put(Reference::Mapping));
        world.steps().unpin(frame(0));
        thread.join().expect("no panic");
        assert!(!world.is_free(frame(0)), "a page is lost that an entry wants");
        world.steps().put(number.get(), slot);
        world.check_that_all_is_free(&[0]);
    });
}

/// A store takes the folio out of its slot, while reclaim attaches the folio to another one. Each slot is left once.
#[test]
fn a_take_out_beside_an_attach() {
    check(4, || {
        let world = Arc::new(World::new());
        world.attach(0);
        assert!(world.folio(frame(0)).begin_mapping(false));
        let theirs = world.clone();
        let thread = spawn(move || theirs.steps().take_out(frame(0)));
        // No loop: loom lets a thread that has yielded go on only when the other has ended. And a step that writes before the look: a load
        // alone is hidden from loom by that with which the other thread's step begins.
        world.folio(frame(0)).try_get(Reference::Pin).expect("it is in use");
        assert_eq!(world.folio(frame(0)).release(Reference::Pin), Remaining::Others);
        if !world.folio(frame(0)).is_in_slot() {
            // A store of the same number, slot 0's, without a load of this thread before it: that load would hide the other thread's from
            // loom, which would not try this order of both.
            world.folio(frame(0)).set_group(GroupId::ROOT);
            let (number, slot) = world.slots.take().expect("memory");
            let _ = world.steps().attach(number, slot, frame(0), HERE);
        }
        assert!(thread.join().expect("no panic"), "the folio had a slot");
        assert_eq!(
            world.slots.used(),
            u64::from(world.folio(frame(0)).is_in_slot()),
            "the wrong slot was left"
        );
        world.steps().take_out(frame(0));
        assert!(!world.folio(frame(0)).put(Reference::Mapping));
        world.steps().unpin(frame(0));
        world.check_that_all_is_free(&[0]);
    });
}

/// While a thread looks at a folio that it has dropped, the page is taken out of its slot and freed, and frame and slot have their
/// next lives together. An entry names the slot in its next life, so the page stays.
#[test]
fn a_late_look_at_the_next_life() {
    check(3, || {
        let world = Arc::new(World::new());
        let (number, slot, _) = world.attach(1);
        let theirs = world.clone();
        let thread = spawn(move || {
            // Another pin of the same folio, as of a fault that has looked at it.
            let slot = theirs.slots.get(number.get()).expect("it is there");
            if let Cached::Pinned(pinned) = theirs.steps().pin_cached(slot) {
                theirs.steps().unpin(pinned);
            }
        });
        // An entry takes the page for itself and lets it go.
        assert!(world.steps().take_out(frame(0)));
        world.steps().put(number.get(), slot);
        world.steps().unpin(frame(0));
        if world.is_free(frame(0)) {
            world.take(frame(0));
            world.attach(1);
            world.steps().unpin(frame(0));
        }
        thread.join().expect("no panic");
        if world.slots.used() == 1 {
            assert!(!world.is_free(frame(0)), "a page is lost that an entry wants");
            world.steps().put(number.get(), slot);
        }
        world.check_that_all_is_free(&[0]);
    });
}

/// While a page is written, a fault takes it in place, and the slot goes to another page.
#[test]
fn a_write_beside_the_next_life_of_its_slot() {
    check(3, || {
        let world = Arc::new(World::new());
        let (number, slot, _) = world.attach(1);
        let theirs = world.clone();
        let thread = spawn(move || {
            theirs.write(frame(0), 1);
            if theirs.steps().try_evict(frame(0)) == Evicted::Kept {
                theirs.steps().unpin(frame(0));
            }
        });
        let mut is_reused = false;
        if let Cached::Pinned(pinned) = world.steps().pin_cached(slot) {
            if world.steps().take_out(pinned) {
                world.steps().put(number.get(), slot);
                world.folio(frame(1)).begin_unmapped();
                let (again, slot) = world.slots.take().expect("memory");
                // The write has the slot, or another thread takes this one.
                if again == number {
                    let attached = world.steps().attach(again, slot, frame(1), HERE);
                    assert!(slot.try_count(attached.expect("it has no slot")));
                    assert!(!slot.state().is_written(), "taken for written");
                    world.device.store(9, Ordering::Release);
                    is_reused = true;
                } else {
                    world.slots.free(again.get(), slot);
                }
            }
            world.steps().unpin(pinned);
        }
        thread.join().expect("no panic");
        if is_reused {
            assert_eq!(world.device.load(Ordering::Relaxed), 9, "an older write came late");
            assert!(!slot.state().is_written(), "taken for written");
        }
    });
}

/// Two faults of one slot: one read, and one folio.
#[test]
fn two_faults_read_once() {
    check(3, || {
        let world = Arc::new(World::new());
        let (number, ..) = world.evicted(2);
        let reads = Arc::new(plain::AtomicU64::new(0));
        let fault = |world: Arc<World>, reads: Arc<plain::AtomicU64>, mine: Frame| {
            move || {
                let (steps, slot) = (world.steps(), world.slots.get(number.get()).expect("it is there"));
                let found = loop {
                    match steps.pin_cached(slot) {
                        Cached::Pinned(found) => break found,
                        Cached::Busy => yield_now(),
                        Cached::Absent => {
                            if steps.begin_read(number, slot, 0, mine, false).is_ok() {
                                reads.fetch_add(1, plain::Ordering::Relaxed);
                                let bytes = world.device.load(Ordering::Acquire);
                                world.bytes[mine.get() as usize].store(bytes, Ordering::Relaxed);
                                world.folio(mine).finish_read();
                                steps.put(number.get(), slot);
                                steps.unpin(mine);
                                break mine;
                            }
                        }
                    }
                };
                while world.folio(found).is_reading() {
                    yield_now();
                }
                assert_eq!(world.bytes[found.get() as usize].load(Ordering::Relaxed), 1);
                assert!(world.folio(found).begin_mapping(false));
                steps.put(number.get(), slot);
                steps.unpin(found);
                found
            }
        };
        let thread = spawn(fault(world.clone(), reads.clone(), frame(1)));
        let mine = fault(world.clone(), reads.clone(), frame(2))();
        assert_eq!(mine, thread.join().expect("no panic"), "two folios of one slot");
        assert_eq!(reads.load(plain::Ordering::Relaxed), 1, "read twice");
        assert_eq!(world.folio(mine).mappings(), 2);
    });
}

/// A fault begins to read while the folio is evicted. The slot keeps the mark of the new folio.
#[test]
fn a_read_beside_an_eviction() {
    check(3, || {
        let world = Arc::new(World::new());
        let (number, slot, generation) = world.attach(1);
        world.write(frame(0), 1);
        let theirs = world.clone();
        let thread = spawn(move || {
            let (steps, slot) = (theirs.steps(), theirs.slots.get(number.get()).expect("it is there"));
            match steps.pin_cached(slot) {
                Cached::Pinned(found) => {
                    steps.unpin(found);
                    None
                }
                _ => steps.begin_read(number, slot, generation, frame(1), false).ok(),
            }
        });
        if world.steps().try_evict(frame(0)) == Evicted::Kept {
            world.steps().unpin(frame(0));
        }
        let has_begun = thread.join().expect("no panic").is_some();
        let there =
            if has_begun { Some(frame(1)) } else { Some(frame(0)).filter(|frame| !world.is_free(*frame)) };
        assert_eq!(slot.attached(), there);
        assert_eq!(slot.state().is_in_cache(), there.is_some(), "mark and folio differ");
    });
}

/// A fault finds the folio while it is evicted, and the frame goes on to another page.
#[test]
fn a_pin_beside_an_eviction() {
    check(4, || {
        let world = Arc::new(World::new());
        let (number, ..) = world.attach(1);
        world.bytes[0].store(1, Ordering::Relaxed);
        world.write(frame(0), 1);
        world.is_crowded.store(true, plain::Ordering::Relaxed);
        let theirs = world.clone();
        let thread = spawn(move || {
            let slot = theirs.slots.get(number.get()).expect("it is there");
            if let Cached::Pinned(found) = theirs.steps().pin_cached(slot) {
                theirs.folio(found).life().touch();
                assert_eq!(theirs.bytes[0].load(Ordering::Relaxed), 1, "pinned, and another page's");
                theirs.steps().unpin(found);
            }
        });
        if world.steps().try_evict(frame(0)) == Evicted::Kept {
            world.steps().unpin(frame(0));
        }
        thread.join().expect("no panic");
        let _ = world.folio(frame(0)).release(Reference::Mapping);
    });
}

impl World {
    /// Pins the folio of a slot, and reads it into `mine` if it is not in memory, as a fault does.
    fn pin_or_read(&self, number: Slot, mine: Frame) -> Frame {
        let (steps, slot) = (self.steps(), self.slots.get(number.get()).expect("it is there"));
        loop {
            match steps.pin_cached(slot) {
                Cached::Pinned(found) => return found,
                Cached::Busy => yield_now(),
                Cached::Absent => {
                    if steps.begin_read(number, slot, 0, mine, false).is_ok() {
                        let bytes = self.device.load(Ordering::Acquire);
                        self.bytes[mine.get() as usize].store(bytes, Ordering::Relaxed);
                        self.folio(mine).finish_read();
                        steps.put(number.get(), slot);
                        steps.unpin(mine);
                        return mine;
                    }
                }
            }
        }
    }

    /// Takes the place from a slot, as swapoff does in one look. Returns whether it did.
    fn take_off(&self, number: Slot, mine: Frame) -> bool {
        let slot = self.slots.get(number.get()).expect("it is there");
        let frame = self.pin_or_read(number, mine);
        let folio = self.folio(frame);
        let mut is_left = false;
        if folio.isolate_pinned() {
            let can_be_moved = folio.is_uptodate() && !folio.is_writeback();
            is_left = can_be_moved && self.steps().leave_place(number.get(), slot, 0) == PlaceLeft::Left;
            folio.end_isolation();
        }
        self.steps().unpin(frame);
        is_left
    }

    fn released(&self) -> u64 {
        self.released.load(plain::Ordering::Relaxed)
    }
}

/// A fault reads a slot while swapoff takes its device away: the fault has the right bytes, and the place is given back once.
#[test]
fn swapoff_beside_a_swap_in() {
    check(3, || {
        let world = Arc::new(World::new());
        let (number, slot, _) = world.evicted(1);
        let theirs = world.clone();
        let thread = spawn(move || theirs.take_off(number, frame(2)));
        let mine = world.pin_or_read(number, frame(1));
        while !world.folio(mine).is_uptodate() {
            yield_now();
        }
        assert!(world.folio(mine).begin_mapping(false));
        world.steps().put(number.get(), slot);
        world.steps().unpin(mine);
        let is_left = thread.join().expect("no panic");
        assert_eq!(world.bytes[mine.get() as usize].load(Ordering::Relaxed), 1, "another page's bytes");
        assert_eq!((world.released(), slot.location().is_none()), (u64::from(is_left), is_left));
        assert_ne!(is_left, slot.state().is_written(), "bytes without a place, or a place without bytes");
    });
}

/// Reclaim frees a clean folio while swapoff takes its place: the bytes are in one of both.
#[test]
fn swapoff_beside_an_eviction() {
    check(3, || {
        let world = Arc::new(World::new());
        let (number, slot, _) = world.attach(1);
        world.bytes[0].store(1, Ordering::Relaxed);
        world.write(frame(0), 1);
        let theirs = world.clone();
        let thread = spawn(move || theirs.take_off(number, frame(1)));
        if world.steps().try_evict(frame(0)) == Evicted::Kept {
            world.steps().unpin(frame(0));
        }
        let is_left = thread.join().expect("no panic");
        assert_eq!(world.released(), u64::from(is_left), "a place given back twice");
        match slot.attached() {
            None => assert!(slot.state().is_written() && !is_left, "the bytes are lost"),
            Some(there) => {
                assert_ne!(
                    is_left,
                    slot.state().is_written(),
                    "bytes without a place, or a place without bytes"
                );
                assert_eq!(world.bytes[there.get() as usize].load(Ordering::Relaxed), 1);
            }
        }
    });
}

/// A store takes the page out of its slot, and frees the slot, while swapoff takes its place: the place is given back once.
#[test]
fn swapoff_beside_a_store() {
    check(4, || {
        let world = Arc::new(World::new());
        let (number, slot, _) = world.attach(1);
        world.write(frame(0), 1);
        let theirs = world.clone();
        let thread = spawn(move || {
            if let Cached::Pinned(pinned) = theirs.steps().pin_cached(slot_of(&theirs, number)) {
                let folio = theirs.folio(pinned);
                if folio.isolate_pinned() {
                    theirs.steps().leave_place(number.get(), slot_of(&theirs, number), 0);
                    folio.end_isolation();
                }
                theirs.steps().unpin(pinned);
            }
        });
        let is_mine = world.folio(frame(0)).mappings_before_slot() == 0 && slot.state().count() == 1;
        if is_mine {
            assert!(world.folio(frame(0)).begin_mapping(true));
            world.steps().take_out(frame(0));
        }
        world.steps().put(number.get(), slot);
        world.steps().unpin(frame(0));
        thread.join().expect("no panic");
        assert_eq!((world.released(), world.slots.used()), (1, 0), "a place given back twice, or never");
        assert_eq!(world.is_free(frame(0)), !is_mine);
    });
}

fn slot_of(world: &World, number: Slot) -> &SwapSlot {
    world.slots.get(number.get()).expect("it is there")
}

/// A device with room for pages, which moves none.
struct Room;

impl SwapDevice for Room {
    fn capacity(&self) -> u64 {
        8
    }

    fn reserve(&self) -> Option<u64> {
        Some(0)
    }

    fn release(&self, _: u64) {}

    fn submit(&self, _: Transfer) {}
}

/// A thread takes a place while swapoff begins: either it gets none, or swapoff sees that the device has a page. A device that was found
/// empty gets no page afterwards.
#[test]
fn a_reservation_beside_a_removal() {
    check(4, || {
        let device: Arc<dyn SwapDevice> = Arc::new(Room);
        let devices = Arc::new(Devices::default());
        assert_eq!(devices.add(device.clone()), Ok(true));
        let theirs = devices.clone();
        let thread = spawn(move || theirs.reserve(0).is_some());
        let (_, attached) = devices.find(&device).expect("it was added");
        assert!(attached.begin_removal());
        let is_empty = attached.is_empty();
        let has_place = thread.join().expect("no panic");
        assert!(!(is_empty && has_place), "a device that is empty gets a page");
        assert_eq!(attached.pages(), u64::from(has_place));
        attached.end_removal(is_empty);
    });
}
