//! Models of the search for pages without a home (docs/home.md), as `loom.rs`.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_lost_homes`
#![cfg(loom)]

#[expect(dead_code, reason = "other models use it")]
mod models;
#[expect(dead_code, reason = "other models use it")]
mod swapping;

use faultless::address::PAGE_SIZE;
use faultless::{Advice, RemapRequest};
use faultless_soft::Cpu;
use models::{Space, at, map, model, spawn};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use swapping::{COPIES, Device, Processors, audit, engine};

/// The places of the page: in two leaf tables.
const FROM: u64 = 0;
const TO: u64 = 2;

/// A page that the parent has moved, and brought back from its slot, has no home. The child's entry names the slot. A search gives the
/// page a home at the parent's entry while the child maps it too, and the parent's entry and its table go. Whoever follows the home later
/// finds no table that has gone (rule H1).
#[test]
fn a_home_that_is_given_against_unmap() {
    let given = Arc::new([const { AtomicU64::new(0) }; 2]);
    let noted = given.clone();
    model(2, move || {
        let engine = engine(Processors::Walking, &Device::new(), COPIES);
        let parent = Space::new(&engine).unwrap();
        map(&parent, FROM, 1);
        parent.store_u64(at(FROM), 5).unwrap();
        let child = parent.fork().unwrap();
        for space in [&parent, &child] {
            space.advise(at(FROM), PAGE_SIZE, Advice::PageOut).unwrap();
        }
        parent.remap(RemapRequest::to(at(FROM), PAGE_SIZE, at(TO))).unwrap();
        assert_eq!(parent.load_u64(at(TO)), Ok(5));
        let searching = {
            let engine = engine.clone();
            spawn(1, move || engine.give_homes_for_tests())
        };
        assert_eq!(child.load_u64(at(FROM)), Ok(5));
        parent.unmap(at(TO), PAGE_SIZE).unwrap();
        let is_given = searching.join().unwrap();
        noted[usize::from(is_given)].fetch_add(1, Ordering::Relaxed);
        engine.flush();
        [&parent, &child].into_iter().for_each(audit);
        drop((parent, child));
        engine.flush();
        assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
        assert_eq!(engine.swap_usage().slots, 0, "invariant 11: slots are left");
    });
    let [not, given] = [&given[0], &given[1]].map(|count| count.load(Ordering::Relaxed));
    println!("the page gets a home in {given} runs, and none in {not}");
    assert!(given != 0 && not != 0, "the model checks nothing");
}
