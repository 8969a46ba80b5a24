//! Homes of anonymous pages and records of leaf tables (docs/home.md). After each step, `audit` checks both in all
//! spaces.

use crate::*;
use faultless::{Advice, LockAll, LockMode, RemapRequest};
use faultless_soft::Cpu;

under_every_design! {
    homes_through_faults_and_forks
    homes_through_range_work
    homes_of_those_who_end
    homes_of_pages_that_move
    homes_of_private_pages_of_a_file
    homes_of_pages_pinned_in_a_fork
    locked_pages_are_in_tables_of_their_own
}

const PAGES: u64 = 8;
/// The first page under another leaf table.
const FAR: u64 = 512;

/// Makes a machine in which fork shares every table with an entry, or copies every entry.
fn machine<S: Stand>(shares: bool) -> Result<Machine<S>, S::Refused> {
    let shared_entries = if shares { 1 } else { u64::MAX };
    Machine::with(512, Limits { shared_entries, ..Limits::default() })
}

fn parent<S: Stand, D: LockingDesign>(machine: &Machine<S>) -> Space<S, D> {
    let space = machine.space::<D>();
    space.map(anonymous(0, PAGES)).unwrap();
    (0..PAGES).for_each(|page| space.store_u64(at(page), page).unwrap());
    space
}

fn audit<S: Stand, D: LockingDesign>(step: &str, spaces: &[&Space<S, D>]) {
    for (i, space) in spaces.iter().enumerate() {
        space.audit().unwrap_or_else(|error| panic!("{step}, space {i}: {error}"));
    }
}

fn homes_through_faults_and_forks<S: Stand, D: LockingDesign>() -> Ran<S> {
    for shares in [true, false] {
        let machine = machine::<S>(shares)?;
        let space = parent::<S, D>(&machine);
        audit("first faults", &[&space]);
        let child = space.fork().unwrap();
        audit("fork", &[&space, &child]);
        let grandchild = child.fork().unwrap();
        audit("fork of the child", &[&space, &child, &grandchild]);
        for (page, writer) in [&child, &space, &grandchild].into_iter().enumerate() {
            for page in [page as u64, PAGES - 1] {
                writer.store_u64(at(page), 50).unwrap();
                audit("a copy", &[&space, &child, &grandchild]);
            }
        }
        let second = space.fork().unwrap();
        audit("a second fork", &[&space, &child, &grandchild, &second]);
        drop(child);
        audit("the child's end", &[&space, &grandchild, &second]);
        drop(space);
        audit("the parent's end", &[&grandchild, &second]);
        (0..PAGES).for_each(|page| second.store_u64(at(page), 60).unwrap());
        audit("reuse in place, or a copy", &[&grandchild, &second]);
        drop(second);
        (0..PAGES).for_each(|page| grandchild.store_u64(at(page), 70).unwrap());
        audit("reuse in place", &[&grandchild]);
        drop(grandchild);
        machine.end()?;
    }
    Ok(())
}

fn homes_through_range_work<S: Stand, D: LockingDesign>() -> Ran<S> {
    type Work<S, D> = fn(&Space<S, D>);
    let works: [(&str, Work<S, D>); 5] = [
        ("munmap of all", |space| space.unmap(at(0), PAGES * PAGE_SIZE).unwrap()),
        ("munmap of a part", |space| space.unmap(at(2), 3 * PAGE_SIZE).unwrap()),
        ("DONTNEED", |space| space.advise(at(1), 4 * PAGE_SIZE, Advice::DontNeed).unwrap()),
        ("MAP_FIXED", |space| _ = space.map(anonymous(1, 4)).unwrap()),
        ("mprotect", |space| space.protect(at(1), 4 * PAGE_SIZE, Protection::READ).unwrap()),
    ];
    for shares in [true, false] {
        for (step, work) in works {
            for is_parent in [true, false] {
                let machine = machine::<S>(shares)?;
                let space = parent::<S, D>(&machine);
                let child = space.fork().unwrap();
                let (one, other) = if is_parent { (space, child) } else { (child, space) };
                work(&one);
                audit(step, &[&one, &other]);
                for page in 0..PAGES {
                    // The store succeeds only if the page is still mapped and writable.
                    let _ = one.try_store_u64(at(page), 1);
                    audit(step, &[&one, &other]);
                }
                work(&other);
                audit(step, &[&one, &other]);
                drop(one);
                audit(step, &[&other]);
                drop(other);
                machine.end()?;
            }
        }
    }
    Ok(())
}

fn homes_of_those_who_end<S: Stand, D: LockingDesign>() -> Ran<S> {
    for shares in [true, false] {
        for exits in [true, false] {
            for is_parent_first in [true, false] {
                let machine = machine::<S>(shares)?;
                let space = parent::<S, D>(&machine);
                let child = space.fork().unwrap();
                child.store_u64(at(3), 3).unwrap();
                let (first, last) = if is_parent_first { (space, child) } else { (child, space) };
                if exits {
                    first.exit();
                    audit("exit", &[&first, &last]);
                }
                drop(first);
                audit("the end of the first", &[&last]);
                (0..PAGES).for_each(|page| last.store_u64(at(page), 4).unwrap());
                audit("what is left", &[&last]);
                drop(last);
                machine.end()?;
            }
        }
    }
    Ok(())
}

fn homes_of_pages_that_move<S: Stand, D: LockingDesign>() -> Ran<S> {
    for shares in [true, false] {
        for is_parent in [true, false] {
            let machine = machine::<S>(shares)?;
            let space = parent::<S, D>(&machine);
            let to = |from, page| RemapRequest::to(at(from), 4 * PAGE_SIZE, at(page));
            space.remap(to(0, FAR)).unwrap();
            audit("mremap", &[&space]);
            space.remap(to(FAR, 0)).unwrap();
            let child = space.fork().unwrap();
            let (one, other) = if is_parent { (space, child) } else { (child, space) };
            one.store_u64(at(1), 1).unwrap();
            for (from, page) in [(0, 20), (20, FAR + 2), (FAR + 2, 0)] {
                one.remap(to(from, page)).unwrap();
                audit("mremap of shared pages", &[&one, &other]);
            }
            other.remap(to(0, FAR)).unwrap();
            audit("mremap by the other", &[&one, &other]);
            drop(other);
            audit("the end of the other", &[&one]);
            one.remap(to(0, FAR)).unwrap();
            audit("mremap of what is left", &[&one]);
            drop(one);
            machine.end()?;
        }
    }
    Ok(())
}

/// Truncation, and writes to private mappings of a file.
fn homes_of_private_pages_of_a_file<S: Stand, D: LockingDesign>() -> Ran<S> {
    for shares in [true, false] {
        let machine = machine::<S>(shares)?;
        let file = machine.file(PAGES);
        let space = parent::<S, D>(&machine);
        space.map(of_file(&file, 20, PAGES, READ_WRITE)).unwrap();
        for page in 20..24 {
            space.store_u64(at(page), 1).unwrap();
        }
        space.load_u64(at(24)).unwrap();
        audit("copies of a file's pages", &[&space]);
        let child = space.fork().unwrap();
        child.store_u64(at(20), 2).unwrap();
        audit("a copy of a copy", &[&space, &child]);
        file.set_length(2 * PAGE_SIZE).unwrap();
        audit("truncation", &[&space, &child]);
        space.store_u64(at(21), 3).unwrap();
        audit("a store after truncation", &[&space, &child]);
        drop(space);
        audit("the parent's end", &[&child]);
        drop((child, file));
        machine.end()?;
    }
    Ok(())
}

fn homes_of_pages_pinned_in_a_fork<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = machine::<S>(true)?;
    let space = parent::<S, D>(&machine);
    let pin = space.pin(at(2), faultless::protection::Access::Write).unwrap();
    let child = space.fork().unwrap();
    audit("fork beside a pin", &[&space, &child]);
    drop(pin);
    child.store_u64(at(2), 1).unwrap();
    drop(space);
    audit("the parent's end", &[&child]);
    drop(child);
    machine.end()
}

/// Rule H6 of docs/home.md.
fn locked_pages_are_in_tables_of_their_own<S: Stand, D: LockingDesign>() -> Ran<S> {
    type Work<S, D> = fn(&Space<S, D>);
    let works: [(&str, Work<S, D>); 5] = [
        ("mlock", |space| space.lock(at(1), PAGE_SIZE, LockMode::Now).unwrap()),
        ("mlock2", |space| space.lock(at(1), PAGE_SIZE, LockMode::OnFault).unwrap()),
        ("mlockall", |space| space.lock_all(LockAll::CURRENT).unwrap()),
        ("mlockall, mmap beside", |space| {
            space.lock_all(LockAll::FUTURE | LockAll::ON_FAULT).unwrap();
            space.map(anonymous(PAGES + 2, 1)).unwrap();
        }),
        ("mremap of a locked mapping", |space| {
            space.map(anonymous(FAR, 1)).unwrap();
            space.lock(at(FAR), PAGE_SIZE, LockMode::OnFault).unwrap();
            space.remap(RemapRequest::to(at(FAR), PAGE_SIZE, at(PAGES + 2))).unwrap();
        }),
    ];
    for (step, work) in works {
        for is_before in [true, false] {
            let machine = machine::<S>(true)?;
            let space = parent::<S, D>(&machine);
            if is_before {
                work(&space);
            }
            let child = space.fork().unwrap();
            audit("fork", &[&space, &child]);
            if !is_before {
                work(&space);
                audit(step, &[&space, &child]);
                work(&child);
            }
            audit(step, &[&space, &child]);
            space.store_u64(at(1), 9).unwrap();
            assert_eq!((space.load_u64(at(1)), child.load_u64(at(1))), (Ok(9), Ok(1)), "{step}");
            audit(step, &[&space, &child]);
            space.unlock_all().unwrap();
            let second = space.fork().unwrap();
            audit(step, &[&space, &child, &second]);
            drop((space, child, second));
            machine.end()?;
        }
    }
    Ok(())
}
