//! The effect of each kind of fault.

use crate::*;
use faultless::fault::Fault;
use faultless::protection::{Access, Sharing};
use faultless::stats::Counter;
use faultless::store::{Direction, FailingStore, Failure, InjectedError, StoreError};
use faultless::{FaultError, Source};
use faultless_soft::Cpu;

under_every_design! {
    anonymous_memory_is_zero_and_takes_a_frame_on_write
    a_file_is_read_and_its_private_copy_written
    one_read_however_many_ask
    past_the_end_is_an_error
    what_lies_past_the_end_has_an_address
    a_failed_read_is_an_error_then_read_again
    memory_runs_out_with_a_typed_error
    clean_pages_are_evicted_under_the_limit
    fork_shares_until_written
    truncation_takes_pages_and_copies
    a_pending_fault_may_be_dropped
    a_shared_file_shows_one_page
    a_file_that_grows_shows_what_came
    pins_are_counted_up_to_a_limit
    code_can_be_pinned
    nothing_keeps_a_file_that_nobody_has
}

// All tests but the one about addresses. The two about pins count and refuse, and read no byte through a pin.
on_real_memory! {
    anonymous_memory_is_zero_and_takes_a_frame_on_write
    a_file_is_read_and_its_private_copy_written
    one_read_however_many_ask
    past_the_end_is_an_error
    a_failed_read_is_an_error_then_read_again
    memory_runs_out_with_a_typed_error
    clean_pages_are_evicted_under_the_limit
    fork_shares_until_written
    truncation_takes_pages_and_copies
    a_pending_fault_may_be_dropped
    a_shared_file_shows_one_page
    a_file_that_grows_shows_what_came
    pins_are_counted_up_to_a_limit
    code_can_be_pinned
    nothing_keeps_a_file_that_nobody_has
}

fn anonymous_memory_is_zero_and_takes_a_frame_on_write<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 3)).unwrap();
    assert_eq!(space.load_u64(at(10)).unwrap(), 0);
    assert_eq!(machine.frames(), S::FRAMES_OF_A_LOAD, "a read takes no frame of its own");
    space.store_u64(at(10), 5).unwrap();
    space.store_u64(at(11), 6).unwrap();
    assert_eq!((space.load_u64(at(10)).unwrap(), space.load_u64(at(11)).unwrap()), (5, 6));
    assert_eq!(machine.frames(), 2);
    drop(space);
    machine.end()
}

fn a_file_is_read_and_its_private_copy_written<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(3));
    space.map(of_file(&file, 10, 3, READ_WRITE)).unwrap();
    space.map(of_file(&file, 20, 3, Protection::READ)).unwrap();
    assert_eq!(space.load_u64(at(11)).unwrap(), word(2));
    space.store_u64(at(11), 7).unwrap(); // already mapped
    space.store_u64(at(12), 8).unwrap(); // not read yet
    assert_eq!((space.load_u64(at(11)).unwrap(), space.load_u64(at(12)).unwrap()), (7, 8));
    assert_eq!((space.load_u64(at(21)).unwrap(), space.load_u64(at(22)).unwrap()), (word(2), word(3)));
    drop((space, file));
    machine.end()
}

fn one_read_however_many_ask<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (file, gate) = machine.gated_file(1);
    let spaces: Vec<_> = (0..4).map(|_| machine.space::<D>()).collect();
    let mut pending = Vec::new();
    for space in &spaces {
        space.map(of_file(&file, 10, 1, Protection::READ)).unwrap();
        match space.fault(at(10), Access::Read).unwrap() {
            Fault::Pending(fault) => pending.push(fault),
            Fault::Done => panic!("the page has not been read"),
        }
    }
    gate.wait_for(1);
    assert!(pending.iter().all(|fault| !fault.is_ready()));
    gate.open();
    for (fault, space) in pending.into_iter().zip(&spaces) {
        let mut fault = fault.wait().unwrap();
        while let Fault::Pending(again) = fault {
            fault = again.wait().unwrap();
        }
        assert_eq!(space.try_load_u64(at(10)).unwrap(), word(1));
    }
    assert_eq!(machine.engine.statistics().get(Counter::IoReads), 1);
    drop((spaces, file, gate));
    machine.end()
}

/// A signal has the address of the access, anywhere in its page.
fn what_lies_past_the_end_has_an_address<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(2));
    space.map(of_file(&file, 10, 4, READ_WRITE)).unwrap();
    let places = [at(12), VirtAddr::new(12 * PAGE_SIZE + 8), VirtAddr::new(13 * PAGE_SIZE + 4088)];
    for place in places {
        for result in [space.load_u64(place).map(|_| ()), space.store_u64(place, 1)] {
            assert!(matches!(fault_of(result), FaultError::PastEnd { address, .. } if address == place));
        }
    }
    drop((space, file));
    machine.end()
}

fn past_the_end_is_an_error<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(2));
    space.map(of_file(&file, 10, 4, READ_WRITE)).unwrap();
    assert_eq!(space.load_u64(at(11)).unwrap(), word(2));
    for result in [space.load_u64(at(12)).map(|_| ()), space.store_u64(at(13), 1)] {
        assert!(matches!(fault_of(result), FaultError::PastEnd { length: 8192, .. }));
    }
    drop((space, file));
    machine.end()
}

fn a_failed_read_is_an_error_then_read_again<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let failing =
        FailingStore::new(numbered(1), Direction::Read, Failure::Once(1), InjectedError::Io { errno: 5 });
    let file = File::open(&machine.engine, Arc::new(failing)).unwrap();
    let space = machine.space::<D>();
    space.map(of_file(&file, 10, 1, Protection::READ)).unwrap();
    let error = fault_of(space.load_u64(at(10)));
    assert!(
        matches!(error, FaultError::Io { error: StoreError::Io { errno: 5, .. }, .. }),
        "invariant 4: a failed read is an error at the access: {error:?}"
    );
    assert_eq!(space.load_u64(at(10)).unwrap(), word(1));
    drop((space, file));
    machine.end()
}

fn memory_runs_out_with_a_typed_error<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::with(S::IDLE_FRAMES + 8, Limits::default())?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 20)).unwrap();
    for page in 10..18 {
        space.store_u64(at(page), page).unwrap();
    }
    assert!(matches!(fault_of(space.store_u64(at(18), 1)), FaultError::OutOfMemory { .. }));
    let untouched = space.load_u64(at(19));
    if S::FRAMES_OF_A_LOAD == 0 {
        assert_eq!(untouched, Ok(0), "the page of zeros needs none");
    } else {
        assert!(matches!(fault_of(untouched), FaultError::OutOfMemory { .. }));
    }
    for page in 10..18 {
        assert_eq!(space.load_u64(at(page)).unwrap(), page);
    }
    space.unmap(at(10), PAGE_SIZE).unwrap();
    space.store_u64(at(18), 1).unwrap();
    space.audit().unwrap();
    drop(space);
    machine.end()
}

fn clean_pages_are_evicted_under_the_limit<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::with(64, Limits { cached_pages: 4, ..Limits::default() })?;
    let (space, file) = (machine.space::<D>(), machine.file(32));
    space.map(of_file(&file, 100, 32, Protection::READ)).unwrap();
    for round in 0..3 {
        for page in 0..32 {
            assert_eq!(space.load_u64(at(100 + page)).unwrap(), word(page as u8 + 1));
            assert!(machine.engine.cached_pages() <= 4, "round {round}");
            space.discard(at(100 + page), PAGE_SIZE).unwrap();
        }
    }
    let seen = machine.engine.statistics();
    // The store's threads decide which four pages stay, by the time when they unpin theirs. Those pages need no second
    // read.
    let reads = seen.get(Counter::IoReads);
    assert!((96 - 2 * 4..=96).contains(&(reads - seen.get(Counter::RetriesPageGone))), "{reads} reads");
    assert_eq!(seen.get(Counter::IoRereads), reads - 32);
    drop((space, file));
    machine.end()
}

fn fork_shares_until_written<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (parent, file) = (machine.space::<D>(), machine.file(2));
    parent.map(anonymous(10, 3)).unwrap();
    parent.map(of_file(&file, 20, 2, READ_WRITE)).unwrap();
    parent.store_u64(at(10), 1).unwrap();
    parent.store_u64(at(11), 2).unwrap();
    parent.store_u64(at(20), 3).unwrap();
    let used = machine.frames();
    let child = parent.fork().unwrap();
    assert_eq!(machine.frames(), used, "nothing is copied by fork");
    parent.store_u64(at(10), 100).unwrap();
    child.store_u64(at(11), 200).unwrap();
    child.store_u64(at(20), 300).unwrap();
    let read = |space: &Space<S, D>| [10, 11, 12, 20, 21].map(|page| space.load_u64(at(page)).unwrap());
    assert_eq!(read(&parent), [100, 2, 0, 3, word(2)]);
    assert_eq!(read(&child), [1, 200, 0, 300, word(2)]);
    let grandchild = child.fork().unwrap();
    drop(child);
    assert_eq!(read(&grandchild), [1, 200, 0, 300, word(2)]);
    drop(grandchild);
    let reuses = machine.engine.statistics().get(Counter::CowReuses);
    parent.store_u64(at(11), 7).unwrap();
    assert_eq!(machine.engine.statistics().get(Counter::CowReuses), reuses + 1, "alone again: in place");
    parent.audit().unwrap();
    drop((parent, file));
    machine.end()
}

fn truncation_takes_pages_and_copies<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(3));
    space.map(of_file(&file, 10, 3, READ_WRITE)).unwrap();
    for page in 0..3 {
        assert_eq!(space.load_u64(at(10 + page)).unwrap(), word(page as u8 + 1));
    }
    space.store_u64(at(12), 9).unwrap();
    let child = space.fork().unwrap();
    file.set_length(PAGE_SIZE).unwrap();
    for space in [&space, &child] {
        assert_eq!(space.load_u64(at(10)).unwrap(), word(1));
        for page in [11, 12] {
            assert!(matches!(fault_of(space.load_u64(at(page))), FaultError::PastEnd { .. }), "page {page}");
        }
    }
    drop((space, child, file));
    machine.end()
}

fn a_pending_fault_may_be_dropped<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (file, gate) = machine.gated_file(2);
    let space = machine.space::<D>();
    space.map(of_file(&file, 10, 2, Protection::READ)).unwrap();
    let Fault::Pending(first) = space.fault(at(10), Access::Read).unwrap() else { panic!("a cold page") };
    let Fault::Pending(second) = space.fault(at(11), Access::Read).unwrap() else { panic!("a cold page") };
    drop(first);
    // The space may be gone before the fault is resumed.
    drop(space);
    gate.open();
    assert!(matches!(second.wait(), Err(FaultError::Exited { .. })));
    drop((file, gate));
    machine.end()
}

fn a_shared_file_shows_one_page<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (a, b, file) = (machine.space::<D>(), machine.space::<D>(), machine.file(1));
    for space in [&a, &b] {
        let source = Source::File { file: file.clone(), first: 0, sharing: Sharing::Shared };
        let request = MapRequest { source, ..anonymous(10, 1) }.protection(Protection::READ);
        space.map(request).unwrap();
        assert_eq!(space.load_u64(at(10)).unwrap(), word(1));
    }
    assert_eq!(machine.frames(), 1, "the file's frame");
    assert!(a.protect(at(10), PAGE_SIZE, READ_WRITE).is_err());
    drop((a, b, file));
    machine.end()
}

fn a_file_that_grows_shows_what_came<S: Stand, D: LockingDesign>() -> Ran<S> {
    use std::os::unix::fs::FileExt;
    let machine = Machine::<S>::new()?;
    let real = tempfile::tempfile().unwrap();
    real.write_all_at(&[1; PAGE_SIZE as usize + 16], 0).unwrap();
    let store = FileStore::from_file(real.try_clone().unwrap()).unwrap();
    let file = File::open(&machine.engine, Arc::new(store)).unwrap();
    let space = machine.space::<D>();
    space.map(of_file(&file, 10, 3, READ_WRITE)).unwrap();
    let tail = VirtAddr::new(at(11).get() + 16);
    assert_eq!(space.load_u64(tail).unwrap(), 0, "behind the end of the file");
    real.write_all_at(&[2; 2 * PAGE_SIZE as usize], PAGE_SIZE + 16).unwrap();
    file.set_length(3 * PAGE_SIZE).unwrap();
    assert_eq!(space.load_u64(tail).unwrap(), word(2));
    assert_eq!(space.load_u64(at(12)).unwrap(), word(2));
    drop((space, file));
    machine.end()
}

/// If the count overflowed, a page of the cache would look exclusive.
fn pins_are_counted_up_to_a_limit<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (a, b, file) = (machine.space::<D>(), machine.space::<D>(), machine.file(1));
    for space in [&a, &b] {
        space.map(of_file(&file, 10, 1, READ_WRITE)).unwrap();
        assert_eq!(space.load_u64(at(10)).unwrap(), word(1));
    }
    let pins: Vec<_> = (0..4095).map(|_| a.pin(at(10), Access::Read).unwrap()).collect();
    assert!(matches!(a.pin(at(10), Access::Read), Err(FaultError::TooManyPins { .. })));
    a.store_u64(at(10), 7).unwrap();
    assert_eq!(b.load_u64(at(10)).unwrap(), word(1), "invariant 6: a store reached the page cache");
    drop((pins, a, b, file));
    machine.end()
}

fn code_can_be_pinned<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(1));
    space.map(of_file(&file, 10, 1, Protection::EXECUTE)).unwrap();
    assert!(space.pin(at(10), Access::Execute).is_ok());
    assert!(matches!(space.pin(at(10), Access::Read), Err(FaultError::Protection { .. })));
    drop((space, file));
    machine.end()
}

/// Retired memory keeps neither a file nor its engine alive, even without an exit.
fn nothing_keeps_a_file_that_nobody_has<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (file, gate) = machine.gated_file(1);
    gate.open();
    let space = machine.space::<D>();
    space.map(of_file(&file, 10, 1, Protection::READ)).unwrap();
    assert_eq!(space.load_u64(at(10)).unwrap(), word(1));
    space.unmap(at(10), PAGE_SIZE).unwrap();
    let engine = Arc::downgrade(&machine.engine);
    drop((space, file, machine));
    // The completion may still be about to release the file.
    wait_until("invariant 11: the gate is kept", || Arc::strong_count(&gate) == 1);
    wait_until("invariant 11: the engine is kept", || engine.strong_count() == 0);
    Ok(())
}
