//! Each anonymous page of an engine that reclaims is in a queue, once, as is each mapped page of a file that has a store.

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::host::{Frame, PageTable};
use faultless::protection::{Access, Protection};
use faultless::{AddressSpace, Engine, File, Limits, MapRequest, Placement};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;

type Space = AddressSpace<Soft, Faultless>;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

fn engine() -> Arc<Engine<Soft>> {
    let engine = Engine::new(Soft::with_caches(64).unwrap(), Limits::default()).unwrap();
    engine.queue_pages_for_reclaim();
    engine
}

fn space(engine: &Arc<Engine<Soft>>, pages: u64) -> Space {
    let space = Space::new(engine).unwrap();
    space.map(MapRequest::anonymous(pages * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    space
}

/// Returns the frame at `page`.
fn frame(space: &Space, page: u64) -> Frame {
    // SAFETY: dropped before anything waits.
    let section = unsafe { space.engine().enter_section() };
    // SAFETY: only read.
    let table = unsafe { space.table() };
    let page = at(page).page();
    table.load(table.leaf(&section, page).unwrap(), page).mapped_frame().unwrap()
}

fn sorted(mut frames: Vec<Frame>) -> Vec<Frame> {
    frames.sort_unstable_by_key(|frame| frame.get());
    frames
}

/// Asserts that the pages of `spaces` are those in the queues.
fn assert_queued(engine: &Engine<Soft>, pages: &[(&Space, u64)]) {
    let expected = pages.iter().map(|(space, page)| frame(space, *page)).collect();
    assert_eq!(sorted(engine.frames_for_reclaim()), sorted(expected));
}

#[test]
fn first_pages_are_queued_in_the_order_of_their_first_touch() {
    let engine = engine();
    let space = space(&engine, 8);
    [5, 2, 7].into_iter().for_each(|page| space.store_u64(at(page), page).unwrap());
    let order = [5, 2, 7].map(|page| frame(&space, page));
    assert_eq!(engine.frames_for_reclaim(), order);
    assert_eq!(engine.frames_for_reclaim(), order, "they were put back");
    assert_eq!(space.load_u64(at(3)), Ok(0));
    assert_eq!(engine.frames_for_reclaim(), order, "the page of zeros is not reclaimed");
}

#[test]
fn pages_that_are_unmapped_leave_and_their_frames_come_again() {
    let engine = engine();
    let space = space(&engine, 8);
    for round in 0..20 {
        (0..4).for_each(|page| space.store_u64(at(page), round).unwrap());
        if round % 3 == 0 {
            assert_queued(&engine, &[0, 1, 2, 3].map(|page| (&space, page)));
        }
        space.discard(at(1), 3 * PAGE_SIZE).unwrap();
        engine.flush();
        if round % 2 == 0 {
            assert_queued(&engine, &[(&space, 0)]);
        }
    }
}

#[test]
fn copies_are_queued_like_first_pages() {
    let engine = engine();
    let parent = space(&engine, 2);
    (0..2).for_each(|page| parent.store_u64(at(page), page).unwrap());
    let child = parent.fork().unwrap();
    assert_queued(&engine, &[(&parent, 0), (&parent, 1)]);
    child.store_u64(at(1), 7).unwrap();
    assert_queued(&engine, &[(&parent, 0), (&parent, 1), (&child, 1)]);
    // fork copies a page that is pinned for I/O.
    let pin = parent.pin(at(0), Access::Write).unwrap();
    let other = parent.fork().unwrap();
    drop(pin);
    assert_ne!(frame(&other, 0), frame(&parent, 0));
    let frames = sorted(engine.frames_for_reclaim());
    assert!(frames.contains(&frame(&other, 0)), "the copy that fork made");
    drop((child, other));
    engine.flush();
    assert_queued(&engine, &[(&parent, 0), (&parent, 1)]);
}

#[test]
fn of_a_private_mapping_of_a_file_the_copies_are_queued() {
    let engine = engine();
    let file = File::in_memory(&engine, 2 * PAGE_SIZE).unwrap();
    let space = Space::new(&engine).unwrap();
    let rights = Protection::READ | Protection::WRITE;
    space.map(MapRequest::file(&file, 0, 2 * PAGE_SIZE, rights).at(Placement::Fixed(at(0)))).unwrap();
    (0..2).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(0)));
    assert_eq!(engine.frames_for_reclaim(), []);
    space.store_u64(at(1), 3).unwrap();
    assert_queued(&engine, &[(&space, 1)]);
}
