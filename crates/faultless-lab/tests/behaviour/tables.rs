//! Leaf tables that a fork has shared (docs/fork.md). All rules of fork hold with them, for every order of writes,
//! range work, ends and further forks.

use crate::*;
use faultless::protection::Access;
use faultless::stats::Counter;
use faultless::{Advice, LockMode, RemapRequest};
use faultless_soft::Cpu;
use std::sync::atomic::{AtomicBool, Ordering};

under_every_design! {
    a_table_is_shared_until_one_of_both_writes
    who_is_left_has_the_table_for_himself
    grandchildren_and_second_children_share_it
    range_work_on_a_shared_table_is_its_spaces_own
    what_a_table_keeps_is_counted
    a_sweep_that_changes_nothing_leaves_it_shared
    a_read_of_what_is_not_there_takes_a_table
    a_table_that_is_not_all_inherited_is_copied
    what_is_pinned_is_not_shared
    a_pin_takes_a_table
    guards_are_in_shared_tables
    truncation_reaches_shared_tables
    usage_counts_who_shares
    without_memory_nothing_is_shared
    many_stores_beside_forks_and_ends
}

const FIRST: u64 = 8;
const PAGES: u64 = 8;
const LAST: u64 = FIRST + PAGES - 1;

/// Makes a machine in which fork shares every table with an entry.
fn machine<S: Stand>() -> Result<Machine<S>, S::Refused> {
    Machine::with(512, Limits { shared_entries: 1, ..Limits::default() })
}

/// Makes a space whose pages hold their own numbers.
fn parent<S: Stand, D: LockingDesign>(machine: &Machine<S>) -> Space<S, D> {
    let space = machine.space::<D>();
    space.map(anonymous(FIRST, PAGES)).unwrap();
    (FIRST..=LAST).for_each(|page| space.store_u64(at(page), page).unwrap());
    space
}

fn words<S: Stand, D: LockingDesign>(space: &Space<S, D>) -> Vec<u64> {
    (FIRST..=LAST).map(|page| space.load_u64(at(page)).unwrap()).collect()
}

/// Returns the words of [`parent`] with one of them replaced.
fn words_with(page: u64, value: u64) -> Vec<u64> {
    (FIRST..=LAST).map(|other| if other == page { value } else { other }).collect()
}

fn count<S: Stand>(machine: &Machine<S>, counter: Counter) -> u64 {
    machine.engine.statistics().get(counter)
}

fn a_table_is_shared_until_one_of_both_writes<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = machine::<S>()?;
    let space = parent::<S, D>(&machine);
    let child = space.fork().unwrap();
    assert_eq!(count(&machine, Counter::TablesShared), 1);
    assert_eq!((words(&space), words(&child)), (words_with(0, 0), words_with(0, 0)));
    assert_eq!((count(&machine, Counter::TablesCopied), machine.frames()), (0, PAGES), "nothing is copied");
    space.store_u64(at(LAST), 1).unwrap();
    assert_eq!((count(&machine, Counter::TablesCopied), machine.frames()), (1, PAGES + 1));
    child.store_u64(at(FIRST), 2).unwrap();
    assert_eq!(count(&machine, Counter::TablesCopied), 1, "only the child has the table now");
    assert_eq!(machine.frames(), PAGES + 2, "invariant 6: the parent has the page too");
    child.store_u64(at(LAST), 3).unwrap();
    assert_eq!(
        machine.frames(),
        PAGES + 2,
        "the parent has a page of its own, so this one is written in place"
    );
    assert_eq!(words(&space), words_with(LAST, 1));
    assert_eq!((child.load_u64(at(FIRST)), child.load_u64(at(LAST))), (Ok(2), Ok(3)));
    space.audit().unwrap();
    child.audit().unwrap();
    drop((space, child));
    machine.end()
}

fn who_is_left_has_the_table_for_himself<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = machine::<S>()?;
    for is_parent in [true, false] {
        let copies = count(&machine, Counter::CowCopies);
        let space = parent::<S, D>(&machine);
        let child = space.fork().unwrap();
        let left = if is_parent {
            drop(child);
            space
        } else {
            drop(space);
            child
        };
        (FIRST..=LAST).for_each(|page| left.store_u64(at(page), page + 100).unwrap());
        assert_eq!(machine.frames(), PAGES);
        assert_eq!((count(&machine, Counter::CowCopies), words(&left)[0]), (copies, FIRST + 100));
        left.audit().unwrap();
        // The table is now its own, and can be shared again.
        let next = left.fork().unwrap();
        next.exit();
        left.audit().unwrap();
        assert_eq!(words(&left)[1], FIRST + 101);
        drop((left, next));
    }
    machine.end()
}

fn grandchildren_and_second_children_share_it<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = machine::<S>()?;
    // With each space in turn as the first to write and the last to end.
    for first in 0..4 {
        let space = parent::<S, D>(&machine);
        let child = space.fork().unwrap();
        let grandchild = child.fork().unwrap();
        let second = space.fork().unwrap();
        let mut family = vec![space, child, grandchild, second];
        family.rotate_left(first);
        for (i, space) in family.iter().enumerate() {
            let page = FIRST + i as u64;
            space.store_u64(at(page), 50).unwrap();
            assert_eq!(words(space), words_with(page, 50), "invariant 7: a store was seen elsewhere");
            // A child of a space that already has a table of its own.
            let next = space.fork().unwrap();
            next.store_u64(at(LAST), 60).unwrap();
            assert_eq!((words(space), next.load_u64(at(page))), (words_with(page, 50), Ok(50)));
        }
        while let Some(space) = family.pop() {
            for (i, space) in family.iter().enumerate() {
                assert_eq!(words(space), words_with(FIRST + i as u64, 50));
                space.audit().unwrap();
            }
            drop(space);
        }
    }
    machine.end()
}

fn range_work_on_a_shared_table_is_its_spaces_own<S: Stand, D: LockingDesign>() -> Ran<S> {
    type Work<S, D> = fn(&Space<S, D>);
    let works: [(&str, Work<S, D>); 8] = [
        ("unmap", |s| s.unmap(at(10), PAGE_SIZE).unwrap()),
        ("unmap all", |s| s.unmap(at(FIRST), PAGES * PAGE_SIZE).unwrap()),
        ("discard", |s| s.discard(at(10), PAGE_SIZE).unwrap()),
        ("discard all", |s| s.discard(at(FIRST), PAGES * PAGE_SIZE).unwrap()),
        ("protect", |s| s.protect(at(10), PAGE_SIZE, Protection::READ).unwrap()),
        ("guard", |s| s.advise(at(10), PAGE_SIZE, Advice::GuardInstall).unwrap()),
        ("map over", |s| _ = s.map(anonymous(10, 1)).unwrap()),
        ("remap", |s| _ = s.remap(RemapRequest::to(at(10), PAGE_SIZE, at(40))).unwrap()),
    ];
    let machine = machine::<S>()?;
    for (name, work) in works {
        for in_child in [true, false] {
            let space = parent::<S, D>(&machine);
            let child = space.fork().unwrap();
            let shared = count(&machine, Counter::TablesShared);
            let (worked, other) = if in_child { (&child, &space) } else { (&space, &child) };
            work(worked);
            assert_eq!(words(other), words_with(0, 0), "{name}: the other space sees the change");
            worked.audit().unwrap_or_else(|error| panic!("{name}: {error}"));
            other.audit().unwrap_or_else(|error| panic!("{name}: {error}"));
            if !name.ends_with("all") {
                assert_eq!(worked.load_u64(at(11)), Ok(11), "{name}: a page outside the range changed");
                assert_eq!(worked.load_u64(at(9)), Ok(9), "{name}: a page outside the range changed");
            }
            match name {
                "unmap" | "remap" | "guard" | "unmap all" => {
                    assert!(worked.try_load_u64(at(10)).is_err(), "{name}: invariant 3");
                }
                "protect" => assert!(worked.store_u64(at(10), 1).is_err(), "{name}: invariant 3"),
                _ => assert_eq!(worked.load_u64(at(10)), Ok(0), "{name}"),
            }
            if name == "remap" {
                assert_eq!(worked.load_u64(at(40)), Ok(10));
                worked.store_u64(at(40), 1).unwrap();
            }
            other.store_u64(at(10), 70).unwrap();
            assert_eq!(words(other), words_with(10, 70), "{name}");
            assert_eq!(count(&machine, Counter::TablesShared), shared);
            drop((space, child));
            machine.engine.flush();
            assert_eq!(machine.frames(), 0, "{name}: invariant 11: frames are left");
        }
    }
    machine.end()
}

/// A page in a shared table counts as mapped in another space. A page that a sweep has skipped in its copy does not.
fn what_a_table_keeps_is_counted<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = machine::<S>()?;
    let space = parent::<S, D>(&machine);
    let child = space.fork().unwrap();
    // The copy has all pages except one. That page then belongs to the parent alone.
    child.discard(at(10), PAGE_SIZE).unwrap();
    let copies = count(&machine, Counter::CowCopies);
    space.store_u64(at(10), 1).unwrap();
    assert_eq!(count(&machine, Counter::CowCopies), copies, "no other space has the page");
    space.store_u64(at(11), 1).unwrap();
    assert_eq!(count(&machine, Counter::CowCopies), copies + 1, "invariant 6: the child has the page");
    assert_eq!((child.load_u64(at(10)), child.load_u64(at(11))), (Ok(0), Ok(11)));
    drop((space, child));
    machine.end()
}

fn a_sweep_that_changes_nothing_leaves_it_shared<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = machine::<S>()?;
    let space = parent::<S, D>(&machine);
    let child = space.fork().unwrap();
    child.protect(at(FIRST), PAGES * PAGE_SIZE, READ_WRITE).unwrap();
    space.unmap(at(100), 100 * PAGE_SIZE).unwrap();
    assert_eq!(count(&machine, Counter::TablesCopied), 0);
    assert_eq!((words(&space), words(&child)), (words_with(0, 0), words_with(0, 0)));
    child.lock(at(FIRST), PAGES * PAGE_SIZE, LockMode::OnFault).unwrap();
    assert_eq!(
        count(&machine, Counter::TablesCopied),
        1,
        "rule H6: locked pages are in a table of their own"
    );
    drop((space, child));
    machine.end()
}

fn a_read_of_what_is_not_there_takes_a_table<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = machine::<S>()?;
    let space = machine.space::<D>();
    space.map(anonymous(FIRST, PAGES)).unwrap();
    space.store_u64(at(FIRST), 1).unwrap();
    let child = space.fork().unwrap();
    assert_eq!(child.load_u64(at(LAST)), Ok(0));
    assert_eq!(count(&machine, Counter::TablesCopied), 1);
    // Outside the mapping nothing is mapped, for either owner of the table.
    assert!(matches!(fault_of(space.load_u64(at(LAST + 1))), FaultError::NoMapping { .. }));
    child.map(anonymous(LAST + 1, 1)).unwrap();
    child.store_u64(at(LAST + 1), 2).unwrap();
    assert!(matches!(fault_of(space.load_u64(at(LAST + 1))), FaultError::NoMapping { .. }));
    space.store_u64(at(LAST), 3).unwrap();
    assert_eq!((child.load_u64(at(LAST)), child.load_u64(at(LAST + 1))), (Ok(0), Ok(2)));
    space.audit().unwrap();
    child.audit().unwrap();
    drop((space, child));
    machine.end()
}

fn a_table_that_is_not_all_inherited_is_copied<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = machine::<S>()?;
    let file = machine.file(2);
    for advice in [Some(Advice::DontFork), Some(Advice::WipeOnFork), None] {
        let shared = count(&machine, Counter::TablesShared);
        let space = parent::<S, D>(&machine);
        match advice {
            Some(advice) => space.advise(at(10), PAGE_SIZE, advice).unwrap(),
            None => {
                let request = MapRequest::shared_file(&file, 0, 2 * PAGE_SIZE, Protection::READ);
                _ = space.map(request.at(Placement::Fixed(at(100)))).unwrap();
                assert_eq!(space.load_u64(at(101)), Ok(word(2)));
            }
        }
        let child = space.fork().unwrap();
        assert_eq!(count(&machine, Counter::TablesShared), shared);
        for page in (FIRST..=LAST).filter(|page| *page != 10) {
            assert_eq!(child.load_u64(at(page)), Ok(page));
        }
        match advice {
            Some(Advice::WipeOnFork) => assert_eq!(child.load_u64(at(10)), Ok(0)),
            Some(_) => assert!(matches!(fault_of(child.load_u64(at(10))), FaultError::NoMapping { .. })),
            None => assert_eq!((child.load_u64(at(10)), child.load_u64(at(100))), (Ok(10), Ok(word(1)))),
        }
        // A table that is already shared, and then must not be inherited unchanged.
        drop(child);
        if let Some(Advice::WipeOnFork) = advice {
            space.advise(at(10), PAGE_SIZE, Advice::KeepOnFork).unwrap();
            let first = space.fork().unwrap();
            assert_eq!(count(&machine, Counter::TablesShared), shared + 1);
            space.advise(at(11), PAGE_SIZE, Advice::WipeOnFork).unwrap();
            let second = space.fork().unwrap();
            assert_eq!(count(&machine, Counter::TablesShared), shared + 1);
            assert_eq!((first.load_u64(at(11)), second.load_u64(at(11))), (Ok(11), Ok(0)));
            assert_eq!(words(&space), words_with(0, 0));
            space.audit().unwrap();
            second.audit().unwrap();
        }
    }
    drop(file);
    machine.end()
}

fn what_is_pinned_is_not_shared<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = machine::<S>()?;
    let space = parent::<S, D>(&machine);
    let device = space.pin(at(10), Access::Write).unwrap();
    let child = space.fork().unwrap();
    assert_eq!(count(&machine, Counter::TablesShared), 0);
    assert_eq!(device.write(0, &5_u64.to_ne_bytes()), 8);
    assert_eq!((space.load_u64(at(10)), child.load_u64(at(10))), (Ok(5), Ok(10)));
    space.store_u64(at(10), 6).unwrap();
    let mut seen = [0; 8];
    assert_eq!(
        (device.read(0, &mut seen), u64::from_ne_bytes(seen)),
        (8, 6),
        "the page still belongs to the parent"
    );
    drop(device);
    let second = space.fork().unwrap();
    assert_eq!(count(&machine, Counter::TablesShared), 1, "nothing is pinned any more");
    assert_eq!(words(&second), words_with(10, 6));
    drop((space, child, second));
    machine.end()
}

fn a_pin_takes_a_table<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = machine::<S>()?;
    let space = parent::<S, D>(&machine);
    let child = space.fork().unwrap();
    let reader = child.pin(at(10), Access::Read).unwrap();
    let writer = space.pin(at(11), Access::Write).unwrap();
    space.store_u64(at(10), 1).unwrap();
    child.store_u64(at(10), 2).unwrap();
    let mut seen = [0; 8];
    assert_eq!(
        (reader.read(0, &mut seen), u64::from_ne_bytes(seen)),
        (8, 2),
        "the child's last store, and no store of the parent"
    );
    assert_eq!(writer.write(0, &3_u64.to_ne_bytes()), 8);
    assert_eq!((space.load_u64(at(11)), child.load_u64(at(11))), (Ok(3), Ok(11)));
    // The table has only one owner now.
    let grandchild = child.fork().unwrap();
    assert_eq!(words(&grandchild), words_with(10, 2));
    drop((reader, writer, space, child, grandchild));
    machine.end()
}

fn guards_are_in_shared_tables<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = machine::<S>()?;
    let space = parent::<S, D>(&machine);
    let is_guard = |space: &Space<S, D>| matches!(fault_of(space.load_u64(at(10))), FaultError::Guard { .. });
    space.advise(at(10), PAGE_SIZE, Advice::GuardInstall).unwrap();
    let child = space.fork().unwrap();
    let second = space.fork().unwrap();
    assert_eq!(count(&machine, Counter::TablesShared), 2);
    assert!(is_guard(&space) && is_guard(&child));
    child.advise(at(10), PAGE_SIZE, Advice::GuardRemove).unwrap();
    child.store_u64(at(10), 1).unwrap();
    assert!(is_guard(&space) && is_guard(&second));
    second.discard(at(FIRST), PAGES * PAGE_SIZE).unwrap();
    assert!(is_guard(&second), "dropping pages leaves guards");
    assert_eq!((second.load_u64(at(11)), space.load_u64(at(11))), (Ok(0), Ok(11)));
    drop((space, child, second));
    machine.end()
}

fn truncation_reaches_shared_tables<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = machine::<S>()?;
    let file = machine.file(4);
    let space = parent::<S, D>(&machine);
    space.map(of_file(&file, 20, 4, READ_WRITE)).unwrap();
    space.store_u64(at(21), 1).unwrap();
    assert_eq!((space.load_u64(at(22)), space.load_u64(at(20))), (Ok(word(3)), Ok(word(1))));
    let child = space.fork().unwrap();
    let grandchild = child.fork().unwrap();
    assert_eq!(count(&machine, Counter::TablesShared), 2);
    file.set_length(PAGE_SIZE).unwrap();
    for space in [&space, &child, &grandchild] {
        for page in [21, 22] {
            assert!(matches!(fault_of(space.load_u64(at(page))), FaultError::PastEnd { .. }));
        }
        assert_eq!((space.load_u64(at(20)), words(space)), (Ok(word(1)), words_with(0, 0)));
        space.audit().unwrap();
    }
    drop((space, child, grandchild, file));
    machine.end()
}

fn usage_counts_who_shares<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = machine::<S>()?;
    let space = parent::<S, D>(&machine);
    let child = space.fork().unwrap();
    let all = PAGES * PAGE_SIZE;
    for space in [&space, &child] {
        let usage = &space.usage()[0];
        assert_eq!((usage.resident, usage.shared_dirty, usage.private_dirty), (all, all, 0));
        assert_eq!(usage.proportional, all / 2);
    }
    let second = space.fork().unwrap();
    assert_eq!(second.usage()[0].proportional, PAGES * (PAGE_SIZE / 3));
    drop((space, second));
    let usage = &child.usage()[0];
    assert_eq!((usage.private_dirty, usage.proportional), (all, all), "all pages belong to the child");
    drop(child);
    machine.end()
}

/// Only a frame may be missing here. Without one, a store fails and both spaces keep their pages.
fn without_memory_nothing_is_shared<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = machine::<S>()?;
    let space = parent::<S, D>(&machine);
    let child = space.fork().unwrap();
    machine.engine.host().fail_frames_from(Some(1));
    assert!(matches!(fault_of(space.store_u64(at(10), 1)), FaultError::OutOfMemory { .. }));
    child.discard(at(11), PAGE_SIZE).unwrap();
    space.store_u64(at(11), 1).unwrap();
    machine.engine.host().fail_frames_from(None);
    assert_eq!(words(&space), words_with(11, 1));
    assert_eq!((child.load_u64(at(10)), child.load_u64(at(11))), (Ok(10), Ok(0)));
    drop((space, child));
    machine.end()
}

/// Threads of the parent stamp pages in order while another thread forks. Each child sees one instant, writes, and ends
/// while the next one is made.
fn many_stores_beside_forks_and_ends<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = machine::<S>()?;
    let space = parent::<S, D>(&machine);
    (FIRST..=LAST).for_each(|page| space.store_u64(at(page), 0).unwrap());
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stopped = Stopped(stop);
        let space = &space;
        for half in [FIRST, FIRST + PAGES / 2] {
            scope.spawn(move || {
                let pages = half..half + PAGES / 2;
                for value in 1.. {
                    pages.clone().for_each(|page| space.store_u64(at(page), value).unwrap());
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        let mut last: Option<Space<S, D>> = None;
        for round in 0..60 {
            let child = space.fork().unwrap();
            let seen = words(&child);
            for half in seen.chunks(PAGES as usize / 2) {
                let is_cut = half.windows(2).all(|two| two[0] == two[1] || two[0] == two[1] + 1);
                assert!(is_cut && half[0] <= half[half.len() - 1] + 1, "invariant 7: {half:?}");
            }
            let older = last.take();
            let end = scope.spawn(move || drop(older));
            if round % 3 == 0 {
                child.store_u64(at(FIRST + round % PAGES), u64::MAX).unwrap();
            } else {
                let grandchild = child.fork().unwrap();
                assert_eq!(words(&grandchild), seen, "invariant 7: the child changed after fork");
            }
            assert_eq!(
                child.load_u64(at(FIRST + (round + 1) % PAGES)).unwrap(),
                seen[(round as usize + 1) % PAGES as usize]
            );
            child.audit().unwrap();
            last = Some(child);
            end.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(space);
    machine.end()
}
