//! Unsharing, and moving pages within a space (docs/pressure.md): the bytes are as without it, in every space.

use crate::*;
use faultless::{Advice, MoveCause, MoveRequest};
use faultless_soft::Cpu;
use std::sync::atomic::{AtomicBool, Ordering};

under_every_design! {
    unsharing_changes_no_bytes
    copies_at_fork_are_of_one_instant
    pages_move_and_come_back
    a_shared_page_does_not_move
    stores_beside_moves_and_forks
}

const FIRST: u64 = 8;
const PAGES: u64 = 8;
/// In another leaf table.
const TARGET: u64 = 1024;

/// Makes a machine in which fork shares every table with an entry, or copies each entry.
fn machine<S: Stand>(shares: bool) -> Result<Machine<S>, S::Refused> {
    let shared_entries = if shares { 1 } else { u64::MAX };
    Machine::with(512, Limits { shared_entries, ..Limits::default() })
}

/// Makes a space whose pages hold their own numbers.
fn parent<S: Stand, D: LockingDesign>(machine: &Machine<S>) -> Space<S, D> {
    let space = machine.space::<D>();
    space.map(anonymous(FIRST, PAGES)).unwrap();
    space.map(anonymous(TARGET, PAGES)).unwrap();
    (0..PAGES).for_each(|page| space.store_u64(at(FIRST + page), page).unwrap());
    space
}

#[track_caller]
fn assert_words<S: Stand, D: LockingDesign>(space: &Space<S, D>, first: u64, word: impl Fn(u64) -> u64) {
    for page in 0..PAGES {
        assert_eq!(space.load_u64(at(first + page)), Ok(word(page)), "page {page}");
    }
    space.audit().unwrap_or_else(|error| panic!("{error}"));
}

/// Moves all pages, as a program does: what was used meanwhile is tried again.
fn move_all<S: Stand, D: LockingDesign>(space: &Space<S, D>, from: u64, to: u64) {
    let (mut done, deadline) = (0, Instant::now() + Duration::from_secs(30));
    while done < PAGES {
        let request = MoveRequest::new(at(from + done), (PAGES - done) * PAGE_SIZE, at(to + done));
        match space.move_pages(request) {
            Ok(()) => return,
            Err(error) => {
                done += error.moved / PAGE_SIZE;
                assert!(matches!(error.cause, MoveCause::Changed { .. }), "{error}");
                assert!(Instant::now() < deadline, "pages that never move");
            }
        }
    }
}

fn unsharing_changes_no_bytes<S: Stand, D: LockingDesign>() -> Ran<S> {
    for shares in [false, true] {
        let machine = machine::<S>(shares)?;
        let parent = parent::<S, D>(&machine);
        let child = parent.fork().unwrap();
        let cost = parent.unshare(at(FIRST), PAGES * PAGE_SIZE).unwrap();
        assert!(cost.copied + cost.remarked + cost.read <= PAGES, "{cost:?}");
        (0..PAGES).for_each(|page| parent.store_u64(at(FIRST + page), 100 + page).unwrap());
        assert_words(&child, FIRST, |page| page);
        child.isolate_cowed(at(FIRST), PAGES * PAGE_SIZE).unwrap();
        let grandchild = child.fork().unwrap();
        (0..PAGES).for_each(|page| child.store_u64(at(FIRST + page), 200 + page).unwrap());
        assert_words(&parent, FIRST, |page| 100 + page);
        assert_words(&grandchild, FIRST, |page| page);
        drop(parent);
        assert_words(&child, FIRST, |page| 200 + page);
        drop((child, grandchild));
        machine.end()?;
    }
    Ok(())
}

/// Two pages always have the same word, or the first has one more. So has the child.
fn copies_at_fork_are_of_one_instant<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = machine::<S>(true)?;
    let parent = parent::<S, D>(&machine);
    parent.advise(at(FIRST), PAGES * PAGE_SIZE, Advice::CopyAtFork).unwrap();
    parent.store_u64(at(FIRST + 1), 0).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut word = 1;
            while !is_over.load(Ordering::Relaxed) {
                parent.store_u64(at(FIRST), word).unwrap();
                parent.store_u64(at(FIRST + 1), word).unwrap();
                word += 1;
            }
        });
        let _stopped = Stopped(&is_over);
        for _ in 0..20 {
            let child = parent.fork().unwrap();
            let first = child.load_u64(at(FIRST)).unwrap();
            let second = child.load_u64(at(FIRST + 1)).unwrap();
            assert!(first == second || first == second + 1, "invariant 7: {first} and {second}");
            child.store_u64(at(FIRST), 0).unwrap();
        }
    });
    drop(parent);
    machine.end()
}

fn pages_move_and_come_back<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = machine::<S>(false)?;
    let space = parent::<S, D>(&machine);
    for round in 0..4 {
        let (from, to) = if round % 2 == 0 { (FIRST, TARGET) } else { (TARGET, FIRST) };
        move_all(&space, from, to);
        assert_words(&space, to, |page| page);
        assert_words(&space, from, |_| 0);
        // The zeros that were read are pages too.
        space.discard(at(from), PAGES * PAGE_SIZE).unwrap();
    }
    drop(space);
    machine.end()
}

fn a_shared_page_does_not_move<S: Stand, D: LockingDesign>() -> Ran<S> {
    for shares in [false, true] {
        let machine = machine::<S>(shares)?;
        let parent = parent::<S, D>(&machine);
        let child = parent.fork().unwrap();
        for space in [&parent, &child] {
            let error = space.move_pages(MoveRequest::new(at(FIRST), PAGE_SIZE, at(TARGET))).unwrap_err();
            let is_refused = matches!(error.cause, MoveCause::Busy { .. } | MoveCause::Changed { .. });
            assert!(is_refused && error.moved == 0, "{error}");
        }
        assert_words(&parent, FIRST, |page| page);
        drop(child);
        move_all(&parent, FIRST, TARGET);
        assert_words(&parent, TARGET, |page| page);
        drop(parent);
        machine.end()?;
    }
    Ok(())
}

/// Each page is at one of two places in the parent and in every child, whatever moves meanwhile. No addition is lost.
fn stores_beside_moves_and_forks<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = machine::<S>(true)?;
    let space = parent::<S, D>(&machine);
    let is_over = AtomicBool::new(false);
    const ADDED: u64 = 500;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let there = MoveRequest::new(at(FIRST), 2 * PAGE_SIZE, at(TARGET));
                let back = MoveRequest::new(at(TARGET), 2 * PAGE_SIZE, at(FIRST));
                let _ = (space.move_pages(there), space.move_pages(back));
            }
        });
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let child = space.fork().unwrap();
                child.audit().unwrap_or_else(|error| panic!("{error}"));
            }
        });
        let _stopped = Stopped(&is_over);
        for round in 0..ADDED {
            space.fetch_add_u64(at(if round % 16 == 0 { TARGET } else { FIRST }), 1).unwrap();
        }
    });
    let sum = space.load_u64(at(FIRST)).unwrap() + space.load_u64(at(TARGET)).unwrap();
    assert_eq!(sum, ADDED, "a store was lost");
    space.audit().unwrap_or_else(|error| panic!("{error}"));
    drop(space);
    machine.end()
}
