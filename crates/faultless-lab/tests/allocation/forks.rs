//! fork without memory: the parent is unchanged, and no child exists. Truncation, writeback and the copy-on-write of
//! the parent's pages find none.

use crate::calls::lock_of_a_space;
use crate::failing::{Often, live, with_failure};
use crate::sweep::{Case, sweep};
use crate::world::{ENOMEM, World, at, bytes, listing};
use faultless::address::PAGE_SIZE;
use faultless::design::LockingDesign;
use faultless::stats::Counter;
use faultless::{ForkError, SyncFlags};
use faultless_soft::Cpu;

crate::under_every_design!(forking a_failed_fork_is_not_there);

fn fork_errno(error: ForkError) -> i32 {
    match error {
        ForkError::OutOfMemory => ENOMEM,
        ForkError::Exited => 0,
    }
}

/// The child lives as long as the call. Its end needs no memory either.
fn forking<D: LockingDesign>() {
    let passed_over = lock_of_a_space(&World::<D>::new());
    sweep::<D>(&[
        Case {
            passed_over: passed_over.clone(),
            ..Case::new("fork", |world| world.space.fork().map(|_| 0).map_err(fork_errno))
        },
        Case {
            passed_over: passed_over.clone(),
            ..Case::new("fork of a child", |world| world.child.fork().map(|_| 0).map_err(fork_errno))
        },
        Case {
            passed_over,
            ..Case::new("fork with a pinned page", |world| {
                let pinned = world.space.pin(at(10), faultless::protection::Access::Write);
                let forked = world.space.fork().map(|_| 0).map_err(fork_errno);
                drop(pinned);
                forked
            })
        },
    ]);
}

/// After a failed fork, the frames belong to the parent alone, so a store needs no copy. Truncation and writeback meet
/// no other space. The next fork is complete.
fn a_failed_fork_is_not_there<D: LockingDesign>() {
    let passed_over = lock_of_a_space(&World::<D>::new());
    for often in [Often::Once, Often::Always] {
        for n in (1..).filter(|n| !passed_over.contains(n)) {
            let what = format!("{}: fork failing {often:?} at {n}", D::NAME);
            let live_before = live();
            let world = World::<D>::new();
            let (lines, frames, spaces) = (listing(&world.space), world.frames(), world.read_only.spaces());
            let (forked, has_failed) = with_failure(n, often, || world.space.fork());
            match forked {
                Ok(child) => assert_eq!(listing(&child), lines, "{what}: the child's mappings"),
                Err(error) => {
                    assert_eq!(error, ForkError::OutOfMemory, "{what}");
                    assert_eq!(
                        world.read_only.spaces(),
                        spaces,
                        "{what}: a failed fork is found by its files"
                    );
                    is_alone(&world, frames, &what);
                    world.handle.set_length(PAGE_SIZE).unwrap();
                    world.read_only.set_length(0).unwrap();
                    world.space.audit().unwrap_or_else(|error| panic!("{what}: {error}"));
                    let child = world.space.fork().unwrap();
                    assert_eq!(bytes(&child), bytes(&world.space), "{what}: the next child's bytes");
                }
            }
            drop(lines);
            world.end(live_before, &what);
            if !has_failed {
                break;
            }
        }
    }
}

fn is_alone<D: LockingDesign>(world: &World<D>, frames: u64, what: &str) {
    world.engine.flush();
    assert_eq!(world.frames(), frames, "{what}: invariant 11: a failed fork has frames");
    let copies = world.engine.statistics().get(Counter::CowCopies);
    for page in [10, 11, 21] {
        let value = world.space.load_u64(at(page)).unwrap();
        world.space.store_u64(at(page), value).unwrap();
    }
    let copied = world.engine.statistics().get(Counter::CowCopies) - copies;
    assert_eq!(copied, 0, "{what}: a failed fork shares the parent's pages");
    world.space.store_u64(at(30), 300).unwrap();
    world.space.sync(at(30), PAGE_SIZE, SyncFlags::SYNC).unwrap();
}
