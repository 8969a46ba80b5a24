//! The invariants of the design, by number. The models (`faultless-soft/tests/loom.rs`) check those that need every
//! interleaving. `threads.rs` checks those that need many threads.

use crate::*;
use faultless::fault::{Fault, PendingFault};
use faultless::protection::Access;
use faultless::stats::Counter;
use faultless::store::{Direction, FailingStore, Failure, InjectedError};
use faultless_lab::skipped::skipped;
use faultless_soft::Cpu;

under_every_design! {
    invariant_1_who_would_sleep_in_a_section_is_stopped
    invariant_4_frames_are_zeroed_before_they_are_mapped
    invariant_4_a_failed_read_shows_no_bytes
    invariant_5_a_write_fault_ends_with_a_private_page
    invariant_6_a_pinned_page_is_not_written_in_place
    invariant_6_a_page_under_io_is_copied_for_the_child
    invariant_8_a_fork_without_memory_changes_nothing
    invariant_10_exit_waits_for_no_io
    invariant_11_everything_is_given_back_after_errors
    invariant_12_waits_are_counted
}

// All tests but invariant 2 by type, which does not depend on the host. Invariant 2 by trial is run here for designs
// that hold nothing through a first read. On the software machine it is run separately, for the default design.
on_real_memory! {
    invariant_1_who_would_sleep_in_a_section_is_stopped
    invariant_2_range_work_goes_on_with_a_fault_pending
    invariant_4_frames_are_zeroed_before_they_are_mapped
    invariant_4_a_failed_read_shows_no_bytes
    invariant_5_a_write_fault_ends_with_a_private_page
    invariant_6_a_pinned_page_is_not_written_in_place
    invariant_6_a_page_under_io_is_copied_for_the_child
    invariant_8_a_fork_without_memory_changes_nothing
    invariant_10_exit_waits_for_no_io
    invariant_11_everything_is_given_back_after_errors
    invariant_12_waits_are_counted
}

fn invariant_1_who_would_sleep_in_a_section_is_stopped<S: Stand, D: LockingDesign>() -> Ran<S> {
    if !cfg!(debug_assertions) {
        skipped("invariant 1 is checked in builds with debug assertions only");
        return Ok(());
    }
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let engine = machine.engine.clone();
    let sleeps: [fn(&Space<S, D>); 2] =
        [|space| _ = space.map(anonymous(10, 1)), |space| _ = space.unmap(at(10), 1)];
    for sleep in sleeps {
        let slept = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // SAFETY: the contract is broken on purpose, in a debug build. The call panics before it changes anything.
            let _section = unsafe { engine.enter_section() };
            sleep(&space);
        }));
        let message = *slept.expect_err("it slept").downcast::<String>().expect("a message");
        assert!(message.contains("invariant 1"), "{message}");
    }
    drop((space, engine));
    machine.end()
}

/// Invariant 2 by type: the state that a pending fault keeps through I/O has no values in the default design, and it
/// may move to any thread.
#[test]
fn invariant_2_a_pending_fault_holds_no_guard() {
    use faultless::design::Faultless;
    use faultless_soft::Soft;
    fn is_free<T: Send + 'static>() {}
    is_free::<PendingFault<Soft, Faultless>>();
    assert_eq!(size_of::<Option<<Faultless as LockingDesign>::Kept>>(), 0);
    report::<Soft>(invariant_2_range_work_goes_on_with_a_fault_pending::<Soft, Faultless>());
}

/// Invariant 2 by trial: with a fault pending, its own thread does all kinds of range work. Under a design that holds a
/// lock through I/O, that thread would wait for itself.
fn invariant_2_range_work_goes_on_with_a_fault_pending<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (file, gate) = machine.gated_file(1);
    let space = machine.space::<D>();
    space.map(of_file(&file, 10, 1, READ_WRITE)).unwrap();
    let Fault::Pending(pending) = space.fault(at(10), Access::Read).unwrap() else { panic!("a cold page") };
    drop(space.fork().unwrap());
    space.protect(at(10), PAGE_SIZE, Protection::READ).unwrap();
    space.discard(at(10), PAGE_SIZE).unwrap();
    space.unmap(at(10), PAGE_SIZE).unwrap();
    gate.open();
    assert!(matches!(pending.wait(), Err(FaultError::NoMapping { .. })));
    drop((space, file, gate));
    machine.end()
}

fn invariant_4_frames_are_zeroed_before_they_are_mapped<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::with(S::IDLE_FRAMES + 7, Limits::default())?;
    let space = machine.space::<D>();
    for _ in 0..4 {
        space.map(anonymous(10, 7)).unwrap();
        for page in 10..17 {
            space.store_u64(at(page), u64::MAX).unwrap();
            let mut bytes = [1; PAGE_SIZE as usize - 8];
            space.read_bytes(VirtAddr::new(at(page).get() + 8), &mut bytes).unwrap();
            assert!(bytes.iter().all(|&byte| byte == 0), "invariant 4: old bytes in a new page");
            space.write_bytes(at(page), &[0xff; PAGE_SIZE as usize]).unwrap();
        }
        space.unmap(at(10), 7 * PAGE_SIZE).unwrap();
    }
    drop(space);
    machine.end()
}

fn invariant_4_a_failed_read_shows_no_bytes<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let failing =
        FailingStore::new(numbered(4), Direction::Read, Failure::From(1), InjectedError::Io { errno: 5 });
    let failing = Arc::new(failing);
    let file = File::open(&machine.engine, failing.clone()).unwrap();
    let space = machine.space::<D>();
    space.map(of_file(&file, 10, 4, READ_WRITE)).unwrap();
    for page in 10..14 {
        assert!(matches!(fault_of(space.load_u64(at(page))), FaultError::Io { .. }));
        assert!(matches!(fault_of(space.store_u64(at(page), 1)), FaultError::Io { .. }));
        assert!(
            space.try_load_u64(at(page)).is_err(),
            "invariant 4: something is mapped after a failed read"
        );
    }
    failing.set(None);
    for page in 0..4 {
        assert_eq!(space.load_u64(at(10 + page)).unwrap(), word(page as u8 + 1));
    }
    drop((space, file, failing));
    machine.end()
}

fn invariant_5_a_write_fault_ends_with_a_private_page<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (file, gate) = machine.gated_file(1);
    let space = machine.space::<D>();
    space.map(of_file(&file, 10, 1, READ_WRITE)).unwrap();
    space.map(of_file(&file, 20, 1, Protection::READ)).unwrap();
    let mut fault = space.fault(at(10), Access::Write).unwrap();
    gate.wait_for(1);
    // Another fault maps the page for reading while the write fault waits. The write fault must still end with a
    // writable page.
    gate.open();
    assert_eq!(space.load_u64(at(10)).unwrap(), word(1));
    while let Fault::Pending(pending) = fault {
        fault = pending.wait().unwrap();
    }
    assert!(
        space.try_store_u64(at(10), 9).is_ok(),
        "invariant 5: a write fault ended without a writable page"
    );
    let pinned = space.pin(at(10), Access::Write).unwrap();
    assert_eq!(pinned.write(0, &[7; 8]), 8);
    assert_eq!(space.load_u64(at(10)).unwrap(), word(7));
    drop(pinned);
    assert_eq!(space.load_u64(at(20)).unwrap(), word(1), "invariant 5: a store reached the page cache");
    drop((space, file, gate));
    machine.end()
}

fn invariant_6_a_pinned_page_is_not_written_in_place<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let parent = machine.space::<D>();
    parent.map(anonymous(10, 1)).unwrap();
    parent.store_u64(at(10), 1).unwrap();
    let child = parent.fork().unwrap();
    let pinned = child.pin(at(10), Access::Read).unwrap();
    child.unmap(at(10), PAGE_SIZE).unwrap();
    parent.store_u64(at(10), 2).unwrap();
    let mut seen = [0; 8];
    assert_eq!(pinned.read(0, &mut seen), 8);
    assert_eq!(u64::from_ne_bytes(seen), 1, "invariant 6: written in place while the child has it pinned");
    assert_eq!(pinned.write(0, &seen), 0, "the page is not pinned for writing");
    drop((pinned, parent, child));
    machine.end()
}

fn invariant_6_a_page_under_io_is_copied_for_the_child<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let parent = machine.space::<D>();
    parent.map(anonymous(10, 1)).unwrap();
    parent.store_u64(at(10), 1).unwrap();
    let device = parent.pin(at(10), Access::Write).unwrap();
    let child = parent.fork().unwrap();
    assert_eq!(device.write(0, &5_u64.to_ne_bytes()), 8);
    assert_eq!(parent.load_u64(at(10)).unwrap(), 5, "the device writes into the parent's page");
    assert_eq!(child.load_u64(at(10)).unwrap(), 1, "the child's page never changes");
    parent.store_u64(at(10), 6).unwrap();
    let mut seen = [0; 8];
    assert_eq!(device.read(0, &mut seen), 8);
    assert_eq!(u64::from_ne_bytes(seen), 6, "the page is the parent's still");
    drop((device, parent, child));
    machine.end()
}

fn invariant_8_a_fork_without_memory_changes_nothing<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let parent = machine.space::<D>();
    parent.map(anonymous(10, 4)).unwrap();
    for page in 10..14 {
        parent.store_u64(at(page), page).unwrap();
    }
    // fork needs a frame for the copy of a page under I/O.
    let device = parent.pin(at(12), Access::Write).unwrap();
    let (shape, used) = (parent.mappings(), machine.frames());
    machine.engine.host().fail_frames_from(Some(1));
    assert!(matches!(parent.fork(), Err(faultless::ForkError::OutOfMemory)));
    machine.engine.host().fail_frames_from(None);
    assert_eq!((parent.mappings(), machine.frames()), (shape, used));
    assert_eq!(parent.taken_ranges(), 0);
    for page in 10..14 {
        assert_eq!(parent.load_u64(at(page)).unwrap(), page);
        parent.store_u64(at(page), page + 100).unwrap();
    }
    assert_eq!(machine.frames(), used, "invariant 6: no other space shares the pages after a failed fork");
    parent.audit().unwrap();
    drop((device, parent));
    machine.end()
}

fn invariant_10_exit_waits_for_no_io<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (file, gate) = machine.gated_file(2);
    let space = machine.space::<D>();
    space.map(of_file(&file, 10, 2, Protection::READ)).unwrap();
    space.map(anonymous(20, 1)).unwrap();
    space.store_u64(at(20), 1).unwrap();
    let Fault::Pending(pending) = space.fault(at(10), Access::Read).unwrap() else { panic!("a cold page") };
    gate.wait_for(1);
    // The read is stalled. The locks that a design holds through I/O are dropped by the waiting fault.
    let waiter = std::thread::spawn(|| pending.wait().map(drop));
    space.exit();
    assert_eq!(machine.frames(), 1, "all frames are free but the one that the read has pinned");
    assert!(matches!(waiter.join().unwrap(), Err(FaultError::Exited { .. })));
    gate.open();
    drop((space, file, gate));
    machine.end()
}

fn invariant_11_everything_is_given_back_after_errors<S: Stand, D: LockingDesign>() -> Ran<S> {
    for fail in 1..12 {
        let machine = Machine::<S>::with(64, Limits { cached_pages: 8, ..Limits::default() })?;
        let (space, file) = (machine.space::<D>(), machine.file(4));
        space.map(anonymous(10, 4)).unwrap();
        space.map(of_file(&file, 20, 4, READ_WRITE)).unwrap();
        machine.engine.host().fail_frames_from(Some(fail));
        for page in [10, 11, 20, 21] {
            let _ = space.store_u64(at(page), page);
            let _ = space.load_u64(at(page));
        }
        let child = space.fork();
        if let Ok(child) = &child {
            for page in [10, 11, 20, 21] {
                let _ = child.store_u64(at(page), 1);
            }
        }
        let _ = space.unmap(at(10), 2 * PAGE_SIZE);
        assert_eq!(space.taken_ranges(), 0, "invariant 11: ranges are taken");
        space.audit().unwrap();
        machine.engine.host().fail_frames_from(None);
        drop((space, child, file));
        machine.end()?;
    }
    Ok(())
}

fn invariant_12_waits_are_counted<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (file, gate) = machine.gated_file(1);
    let space = machine.space::<D>();
    space.map(of_file(&file, 10, 1, Protection::READ)).unwrap();
    std::thread::scope(|scope| {
        let fault = scope.spawn(|| space.load_u64(at(10)).unwrap());
        gate.wait_for(1);
        gate.open();
        assert_eq!(fault.join().unwrap(), word(1));
    });
    let seen = machine.engine.statistics();
    assert_eq!((seen.get(Counter::MajorFaults), seen.get(Counter::IoReads)), (1, 1));
    drop((space, file, gate));
    machine.end()
}
