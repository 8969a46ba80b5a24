//! The limit of mappings: the result of each call one mapping below the limit, at it, and one above. The expected
//! results were observed on Linux 6.18, with a limit of 65,530.

use crate::moves::{FIXED, HERE, KEEP, MOVE, remap};
use crate::*;
use faultless::{Advice, LockMode, MapError, SpaceLimits};

under_every_design! {
    calls_at_the_limit_of_mappings
    moves_below_the_limit_of_mappings
    what_a_split_without_room_has_done
}

on_real_memory! {
    calls_at_the_limit_of_mappings
    moves_below_the_limit_of_mappings
    what_a_split_without_room_has_done
}

const LIMIT: usize = 32;

/// Makes a space with these mappings, a heap without pages, and single pages up to `count` mappings:
///
/// ```text
/// 100 rw 110      120 rw 130 r 140      160 r 165 rw 170 r 175      300      1000 rw 1001  1002 rw ...
/// ```
fn space_with<S: Stand, D: LockingDesign>(machine: &Machine<S>, count: usize) -> Space<S, D> {
    let space = machine.space::<D>();
    let map = |page, pages, rights| space.map(anonymous(page, pages).protection(rights)).unwrap();
    map(100, 10, READ_WRITE);
    map(120, 10, READ_WRITE);
    map(130, 10, Protection::READ);
    map(160, 5, Protection::READ);
    map(165, 5, READ_WRITE);
    map(170, 5, Protection::READ);
    space.set_heap(at(300));
    for page in (1000..).step_by(2).take(count - 6) {
        map(page, 1, READ_WRITE);
    }
    space.set_limits(SpaceLimits { mappings: LIMIT, ..SpaceLimits::default() });
    assert_eq!(space.mappings().len(), count);
    space
}

/// Row of a table: the name, the call, and its result with one mapping less than the limit, at the limit, and with one
/// more. A result is an error number, or the change of the number of mappings.
type Row<S, D> = (&'static str, fn(&Space<S, D>) -> Result<(), i32>, [Result<i32, i32>; 3]);

fn run<S: Stand, D: LockingDesign>(machine: &Machine<S>, rows: &[Row<S, D>], counts: [usize; 3]) {
    for (name, call, expected) in rows {
        for (count, expected) in counts.into_iter().zip(expected) {
            let space = space_with::<S, D>(machine, count);
            let done = call(&space);
            let change = space.mappings().len() as i32 - count as i32;
            assert_eq!(done.map(|()| change), *expected, "{name} with {count} mappings");
            if done.is_err() {
                assert_eq!(change, 0, "{name} with {count} mappings");
            }
            space.audit().unwrap();
        }
    }
}

fn map<S: Stand, D: LockingDesign>(space: &Space<S, D>, request: MapRequest<S>) -> Result<(), i32> {
    space.map(request).map(drop).map_err(|error| error.errno())
}

fn calls_at_the_limit_of_mappings<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    const R: Protection = Protection::READ;
    const X: Protection = Protection::READ.union(Protection::EXECUTE);
    macro_rules! protect {
        ($page:expr, $pages:expr, $rights:expr) => {
            |space| space.protect(at($page), $pages * PAGE_SIZE, $rights).map_err(|error| error.errno())
        };
    }
    macro_rules! advise {
        ($page:expr, $pages:expr, $advice:ident) => {
            |space| {
                let done = space.advise(at($page), $pages * PAGE_SIZE, Advice::$advice);
                done.map_err(|error| error.errno())
            }
        };
    }
    macro_rules! lock {
        ($page:expr, $pages:expr) => {
            |space| {
                let done = space.lock(at($page), $pages * PAGE_SIZE, LockMode::OnFault);
                done.map_err(|error| error.errno())
            }
        };
    }
    macro_rules! unmap {
        ($page:expr, $pages:expr) => {
            |space| space.unmap(at($page), $pages * PAGE_SIZE).map_err(|error| error.errno())
        };
    }
    let full = [Ok(1), Ok(1), Err(12)];
    let split = [Ok(1), Err(12), Err(12)];
    let same = [Ok(0), Ok(0), Ok(0)];
    let rows: &[Row<S, D>] = &[
        ("map", |s| map(s, MapRequest::anonymous(1).protection(X)), full),
        ("map what joins", |s| map(s, anonymous(110, 1)), [Ok(0), Ok(0), Err(12)]),
        ("map over the middle", |s| map(s, anonymous(103, 2).protection(R)), [Ok(2), Err(12), Err(12)]),
        ("map the same over the middle", |s| map(s, anonymous(103, 2)), [Ok(0), Err(12), Err(12)]),
        ("map over a start", |s| map(s, anonymous(100, 2).protection(R)), full),
        ("map over all of one", |s| map(s, anonymous(100, 10).protection(R)), [Ok(0), Ok(0), Err(12)]),
        ("map over an end and a start", |s| map(s, anonymous(128, 4).protection(X)), full),
        ("unmap the middle", unmap!(103, 1), split),
        ("unmap a start", unmap!(100, 1), same),
        ("unmap an end and a start", unmap!(128, 4), same),
        ("protect a start", protect!(100, 1, R), split),
        ("protect an end", protect!(109, 1, R), split),
        ("protect the middle", protect!(103, 1, R), [Err(12), Err(12), Err(12)]),
        ("protect an end that joins", protect!(128, 2, R), same),
        ("protect an end and a start", protect!(128, 4, X), split),
        ("protect an end and all of the next", protect!(128, 12, X), [Ok(0), Err(12), Err(12)]),
        ("protect an end that joins, and a start", protect!(122, 18, R), same),
        ("protect what joins on both sides", protect!(162, 10, READ_WRITE), same),
        ("advise a start", advise!(100, 1, DontFork), [Ok(1), Err(11), Err(11)]),
        ("advise the middle", advise!(103, 1, DontFork), [Err(11), Err(11), Err(11)]),
        ("discard the middle", advise!(103, 1, DontNeed), same),
        ("guard the middle", advise!(103, 1, GuardInstall), same),
        ("lock a start", lock!(100, 1), split),
        ("lock the middle", lock!(103, 1), [Err(12), Err(12), Err(12)]),
        ("lock all", |s| s.lock_all(faultless::LockAll::CURRENT).map_err(|error| error.errno()), same),
        ("seal a start", |s| s.seal(at(100), 1).map_err(|error| error.errno()), split),
        ("seal the middle", |s| s.seal(at(103), 1).map_err(|error| error.errno()), [Err(12); 3]),
        ("grow the heap", |s| s.set_break(at(301)).map_err(|error| error.errno()), full),
        ("fork", |s| s.fork().map(drop).map_err(|_| 0), same),
        ("grow in place", |s| moved(s, (100, 10), 12, HERE, 0), same),
        ("shrink", |s| moved(s, (100, 10), 9, HERE, 0), same),
        ("shrink in the middle", |s| moved(s, (100, 5), 4, HERE, 0), split),
        ("leave as it is", |s| moved(s, (100, 10), 10, MOVE, 0), same),
    ];
    run(&machine, rows, [LIMIT - 1, LIMIT, LIMIT + 1]);
    machine.end()
}

fn moved<S: Stand, D: LockingDesign>(
    space: &Space<S, D>,
    old: (u64, u64),
    pages: u64,
    flags: faultless::RemapFlags,
    new: u64,
) -> Result<(), i32> {
    remap(space, old, pages, flags, new).map(drop).map_err(|error| error.errno())
}

fn moves_below_the_limit_of_mappings<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let rows: &[Row<S, D>] = &[
        ("move one", |s| moved(s, (100, 10), 10, FIXED, 500), [Ok(0), Err(12), Err(12)]),
        ("move the middle", |s| moved(s, (103, 2), 2, FIXED, 500), [Ok(2), Err(12), Err(12)]),
        ("keep the old place", |s| moved(s, (100, 10), 10, KEEP, 0), [Ok(1), Err(12), Err(12)]),
        ("shrink and move", |s| moved(s, (102, 4), 2, FIXED, 500), [Ok(2), Err(12), Err(12)]),
        ("move onto the middle", |s| moved(s, (100, 2), 2, FIXED, 123), [Ok(0), Err(12), Err(12)]),
    ];
    run(&machine, rows, [LIMIT - 6, LIMIT - 5, LIMIT - 4]);
    let rows: &[Row<S, D>] =
        &[("grow elsewhere", |s| moved(s, (120, 10), 12, MOVE, 0), [Ok(0), Err(12), Err(12)])];
    run(&machine, rows, [LIMIT - 4, LIMIT - 3, LIMIT - 2]);
    machine.end()
}

/// If a mapping cannot be split at the limit, the mappings below it have been changed.
fn what_a_split_without_room_has_done<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let shape = |space: &Space<S, D>| {
        let mut mappings = space.mappings();
        mappings.retain(|m| (100..150).contains(&m.range.start().get()));
        let line = |m: &faultless::MappingInfo| (m.range.start().get(), m.protection.to_string(), m.flags);
        mappings.iter().map(line).collect::<Vec<_>>()
    };
    let none = faultless::vma::MappingFlags::empty();
    let dont_fork = faultless::vma::MappingFlags::DONT_FORK;
    let space = space_with::<S, D>(&machine, LIMIT - 1);
    let error = space.advise(at(128), 4 * PAGE_SIZE, Advice::DontFork).unwrap_err();
    assert_eq!(error.errno(), 11);
    let expected = [(100, "rw-", none), (120, "rw-", none), (128, "rw-", dont_fork), (130, "r--", none)];
    assert_eq!(shape(&space), expected.map(|(page, rights, flags)| (page, rights.into(), flags)));
    let error = space.protect(at(128), 4 * PAGE_SIZE, Protection::empty()).unwrap_err();
    assert_eq!(error.errno(), 12);
    let expected = [(100, "rw-", none), (120, "rw-", none), (128, "---", dont_fork), (130, "r--", none)];
    assert_eq!(shape(&space), expected.map(|(page, rights, flags)| (page, rights.into(), flags)));
    drop(space);
    machine.end()
}

/// vm.max_map_count is 65,530 by default.
#[test]
fn a_space_has_one_mapping_more_than_linux_says() {
    type Default = faultless::design::Faultless;
    let machine = Machine::<faultless_soft::Soft>::new().unwrap_or_else(|never| match never {});
    let space = machine.space::<Default>();
    let mut page = 2;
    let error = loop {
        match space.map(anonymous(page, 1)) {
            Ok(_) => page += 2,
            Err(error) => break error,
        }
    };
    assert_eq!(error, MapError::TooManyMappings { limit: 65_530 });
    assert_eq!(space.mappings().len(), 65_531);
    drop(space);
    machine.end().unwrap_or_else(|never| match never {});
}
