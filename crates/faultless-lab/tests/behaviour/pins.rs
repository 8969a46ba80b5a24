//! Pages pinned for I/O: a device reads the last stores of the space.

use crate::shared::{Real, shared};
use crate::*;
use faultless::protection::Access;
use faultless::{Fault, PinnedPage};
use faultless_soft::Cpu;

under_every_design! {
    a_page_pinned_for_reading_shows_stores_after_fork
    a_page_pinned_for_reading_shows_stores_after_the_child_has_gone
    zeros_pinned_for_reading_become_a_page_of_the_space
    a_private_file_page_pinned_for_reading_becomes_the_spaces_own
    a_page_that_has_to_be_read_is_pinned_as_the_spaces_own
    a_read_only_page_is_pinned_as_the_spaces_own_and_stays_read_only
    a_pin_for_reading_leaves_a_shared_mapping_alone
    a_pin_for_reading_without_memory_leaves_the_page_as_it_was
}

on_real_memory! {
    a_page_pinned_for_reading_shows_stores_after_fork
    zeros_pinned_for_reading_become_a_page_of_the_space
    a_private_file_page_pinned_for_reading_becomes_the_spaces_own
}

/// Returns the first word that a device sees.
fn seen<S: Stand>(pinned: &PinnedPage<S>) -> u64 {
    let mut word = [0; 8];
    assert_eq!(pinned.read(0, &mut word), 8);
    u64::from_ne_bytes(word)
}

fn a_page_pinned_for_reading_shows_stores_after_fork<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 2)).unwrap();
    space.store_u64(at(10), 1).unwrap();
    space.store_u64(at(11), 1).unwrap();
    let child = space.fork().unwrap();
    let pinned = space.pin(at(10), Access::Read).unwrap();
    space.store_u64(at(10), 2).unwrap();
    assert_eq!(seen(&pinned), 2, "the device reads a page that the space has left");
    assert_eq!(child.load_u64(at(10)), Ok(1));
    // The child's pin is on a page of its own too.
    let of_child = child.pin(at(11), Access::Read).unwrap();
    child.store_u64(at(11), 3).unwrap();
    assert_eq!((seen(&of_child), space.load_u64(at(11))), (3, Ok(1)));
    // A fork while the page is pinned leaves the page to the space.
    let second = space.fork().unwrap();
    space.store_u64(at(10), 4).unwrap();
    assert_eq!((seen(&pinned), second.load_u64(at(10))), (4, Ok(2)));
    space.audit().unwrap();
    drop((pinned, of_child, space, child, second));
    machine.end()
}

fn a_page_pinned_for_reading_shows_stores_after_the_child_has_gone<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 1)).unwrap();
    space.store_u64(at(10), 1).unwrap();
    drop(space.fork().unwrap());
    machine.engine.flush();
    let frames = machine.frames();
    let pinned = space.pin(at(10), Access::Read).unwrap();
    assert_eq!(machine.frames(), frames, "no other space has the page, so it is not copied");
    space.store_u64(at(10), 2).unwrap();
    assert_eq!(seen(&pinned), 2);
    space.audit().unwrap();
    drop((pinned, space));
    machine.end()
}

fn zeros_pinned_for_reading_become_a_page_of_the_space<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 2)).unwrap();
    assert_eq!(space.load_u64(at(10)), Ok(0));
    // A page that was loaded, and a page that was never touched.
    for page in [10, 11] {
        let pinned = space.pin(at(page), Access::Read).unwrap();
        space.store_u64(at(page), page).unwrap();
        assert_eq!(seen(&pinned), page);
    }
    space.audit().unwrap();
    drop(space);
    machine.end()
}

fn a_private_file_page_pinned_for_reading_becomes_the_spaces_own<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, other, file) = (machine.space::<D>(), machine.space::<D>(), machine.file(2));
    for space in [&space, &other] {
        space.map(of_file(&file, 10, 2, READ_WRITE)).unwrap();
    }
    assert_eq!(space.load_u64(at(10)), Ok(word(1)));
    for page in [10, 11] {
        let pinned = space.pin(at(page), Access::Read).unwrap();
        space.store_u64(at(page), page).unwrap();
        assert_eq!(seen(&pinned), page);
        assert_eq!(other.load_u64(at(page)), Ok(word(page as u8 - 9)));
    }
    space.audit().unwrap();
    drop((space, other, file));
    machine.end()
}

fn a_page_that_has_to_be_read_is_pinned_as_the_spaces_own<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (file, gate) = machine.gated_file(1);
    let space = machine.space::<D>();
    space.map(of_file(&file, 10, 1, READ_WRITE)).unwrap();
    let pinned = std::thread::scope(|scope| {
        let pin = scope.spawn(|| space.pin(at(10), Access::Read).unwrap());
        gate.wait_for(1);
        gate.open();
        pin.join().unwrap()
    });
    assert_eq!(seen(&pinned), word(1));
    space.store_u64(at(10), 7).unwrap();
    assert_eq!(seen(&pinned), 7);
    drop((pinned, space, file, gate));
    machine.end()
}

fn a_read_only_page_is_pinned_as_the_spaces_own_and_stays_read_only<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(1));
    space.map(anonymous(10, 2)).unwrap();
    space.store_u64(at(10), 1).unwrap();
    space.protect(at(10), 2 * PAGE_SIZE, Protection::READ).unwrap();
    space.map(of_file(&file, 12, 1, Protection::READ)).unwrap();
    assert_eq!(space.load_u64(at(12)), Ok(word(1)));
    let child = space.fork().unwrap();
    // A page shared with the child, a page of zeros, and a page of the file.
    let pinned = [10, 11, 12].map(|page| space.pin(at(page), Access::Read).unwrap());
    for page in 10..13 {
        let refused = space.fault(at(page), Access::Write);
        assert!(matches!(refused, Err(FaultError::Protection { .. })), "page {page}");
        assert!(space.try_store_u64(at(page), 9).is_err(), "page {page}");
    }
    space.audit().unwrap();
    space.protect(at(10), 3 * PAGE_SIZE, READ_WRITE).unwrap();
    for (page, pinned) in (10..).zip(&pinned) {
        space.store_u64(at(page), page).unwrap();
        assert_eq!(seen(pinned), page, "page {page}");
    }
    let of_child = [10, 11, 12].map(|page| child.load_u64(at(page)).unwrap());
    assert_eq!(of_child, [1, 0, word(1)]);
    drop((pinned, space, child, file));
    machine.end()
}

fn a_pin_for_reading_leaves_a_shared_mapping_alone<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, other, real) = (machine.space::<D>(), machine.space::<D>(), Real::new(&machine, 1));
    for space in [&space, &other] {
        space.map(shared(&real.file, 10, 1, READ_WRITE)).unwrap();
    }
    let pinned = space.pin(at(10), Access::Read).unwrap();
    other.store_u64(at(10), 7).unwrap();
    assert_eq!((seen(&pinned), space.load_u64(at(10))), (7, Ok(7)));
    drop((pinned, space, other, real));
    machine.end()
}

fn a_pin_for_reading_without_memory_leaves_the_page_as_it_was<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 1)).unwrap();
    space.store_u64(at(10), 1).unwrap();
    let child = space.fork().unwrap();
    // The space already has its own table, so only a frame is missing.
    assert!(matches!(space.fault(at(10), Access::Read), Ok(Fault::Done)));
    machine.engine.host().fail_frames_from(Some(1));
    let refused = space.pin(at(10), Access::Read);
    assert!(matches!(refused, Err(FaultError::OutOfMemory { .. })));
    machine.engine.host().fail_frames_from(None);
    assert_eq!((space.load_u64(at(10)), child.load_u64(at(10))), (Ok(1), Ok(1)));
    let pinned = space.pin(at(10), Access::Read).unwrap();
    space.store_u64(at(10), 2).unwrap();
    assert_eq!((seen(&pinned), child.load_u64(at(10))), (2, Ok(1)));
    drop((refused.err(), pinned, space, child));
    machine.end()
}
