//! Models of the charges of two groups (`limit/mod.rs`), as `loom.rs`. The models in `limit/models.rs` are of a stock alone.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_limits`
#![cfg(loom)]

#[expect(dead_code, reason = "other models use it")]
mod models;

use faultless::address::PAGE_SIZE;
use faultless::{Advice, Engine, LimitConfig, Limits, MemoryLimit};
use faultless_soft::{Cpu, Soft};
use models::{Space, at, map, model, spawn};
use std::sync::Arc;

type Limit = MemoryLimit<Soft>;

/// The number of pages of a space.
const PAGES: u64 = 2;

/// Makes a space of a group of its own, with `stored` pages.
fn space(engine: &Arc<Engine<Soft>>, stored: u64) -> (Limit, Space) {
    let limit = Limit::new(engine, LimitConfig::max(8)).unwrap();
    let space = Space::new_in(engine, &limit).unwrap();
    map(&space, 0, PAGES);
    (0..stored).for_each(|page| space.store_u64(at(page), 1).unwrap());
    (limit, space)
}

/// Asserts that the group pays for `pages`, besides those in stocks.
fn assert_pays(limit: &Limit, pages: u64) {
    let usage = limit.usage();
    assert_eq!(usage.resident, pages, "a group pays for other pages than its own: {usage:?}");
}

/// Runs a model in two spaces of two groups. The first has two pages, the second has one. The thread of the model has a stock of the
/// second group. The groups pay for `after` at the end.
fn with_two_groups(
    bound: usize,
    after: [u64; 2],
    body: impl Fn(&Arc<Engine<Soft>>, [&Space; 2]) + Sync + Send + 'static,
) {
    model(bound, move || {
        let limits = Limits { shared_entries: u64::MAX, ..Limits::default() };
        let engine = Engine::new(Soft::new(12).expect("frames"), limits).expect("memory for an engine");
        let (first, one) = space(&engine, 2);
        let (second, other) = space(&engine, 1);
        body(&engine, [&one, &other]);
        engine.flush();
        [&one, &other].iter().for_each(|space| space.audit().unwrap_or_else(|error| panic!("{error}")));
        // Not zero, so that a group that pays for too little shows too.
        let groups = [&first, &second].into_iter().zip(after);
        groups.clone().for_each(|(limit, pages)| assert_pays(limit, pages));
        drop((one, other));
        engine.flush();
        groups.for_each(|(limit, _)| assert_pays(limit, 0));
        assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
    });
}

/// One thread forks a space, stores into the child and ends it. Another one, which has worked for the other group, lets the page go that
/// the child has copied. The last of them frees it, and its own group pays no longer.
#[test]
fn a_fork_beside_a_thread_of_another_group() {
    with_two_groups(1, [1, 2], |_, [one, other]| {
        let forking = one.clone();
        let fork = spawn(1, move || {
            let child = forking.fork().unwrap();
            child.store_u64(at(0), 2).unwrap();
        });
        other.store_u64(at(1), 3).unwrap();
        one.advise(at(0), PAGE_SIZE, Advice::DontNeed).unwrap();
        fork.join().unwrap();
    });
}

/// A thread that has a stock of the other group copies a page on write, while the child that has the page ends.
#[test]
fn a_copy_by_a_thread_of_another_group_beside_the_childs_end() {
    with_two_groups(2, [2, 1], |_, [one, _]| {
        let child = one.fork().unwrap();
        let end = spawn(1, move || drop(child));
        one.store_u64(at(0), 2).unwrap();
        end.join().unwrap();
    });
}
