//! Models of the worker's states: it misses no call, whenever the call comes.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless --lib --profile checked background`

use super::*;
use crate::host::{StdPark, StdSlots};
use crate::sync::atomic::AtomicU32;
use loom::sync::Arc;
use loom::thread;

struct Common {
    park: StdPark,
    background: Background,
    /// The number of pieces of work.
    work: AtomicU32,
}

impl Common {
    /// Does the rounds of a worker until it has seen `all` pieces of work.
    fn work_until(&self, all: u32) {
        StdSlots::set_current(1);
        let me = self.park.current();
        self.background.is_done_by(me);
        loop {
            self.background.begin_round();
            if self.work.load(Ordering::Relaxed) == all {
                return self.background.resign();
            }
            if self.background.rest() {
                while self.background.sleeps() {
                    self.park.park(me);
                }
            }
        }
    }

    fn bring_work(&self) {
        self.work.fetch_add(1, Ordering::Relaxed);
        self.background.call(&self.park);
    }
}

fn model(callers: u32) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        StdSlots::set_current(0);
        let common = Arc::new(Common {
            park: StdPark::default(),
            background: Background::default(),
            work: AtomicU32::new(0),
        });
        common.background.claim().unwrap();
        assert_eq!(common.background.claim(), Err(BackgroundError::Running));
        let all = 1 + callers;
        let worker = common.clone();
        let mut threads = vec![thread::spawn(move || worker.work_until(all))];
        for slot in 0..callers {
            let caller = common.clone();
            threads.push(thread::spawn(move || {
                StdSlots::set_current(2 + slot);
                caller.bring_work();
            }));
        }
        common.bring_work();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        // Nobody is woken.
        common.background.call(&common.park);
        // An exchange: a load may see a call that is older than the worker's end, since loom keeps no order of two stores.
        assert_eq!(common.background.claim(), Ok(()), "the worker has ended");
    });
}

/// A worker that found no work is woken by the one caller, or sees its work.
#[test]
fn a_call_reaches_a_worker_that_is_about_to_sleep() {
    model(0);
}

/// Of two calls, the second may come while the worker begins the round of the first.
#[test]
fn a_call_during_a_round_brings_another() {
    model(1);
}
