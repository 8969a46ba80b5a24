//! No wake-up is lost, in either order.

use super::*;
use crate::host::{StdPark, StdSlots};
use loom::sync::Arc;
use loom::thread;

struct Common {
    park: StdPark,
    list: WaitList,
    is_there: [AtomicBool; 2],
}

impl Common {
    fn wait(&self, slot: u32, key: usize) {
        StdSlots::set_current(slot);
        let is_there = || self.is_there[key].load(Ordering::Relaxed);
        let me = self.park.current();
        while !is_there() {
            self.list.with_waiter(me, key, |waiter| {
                while !waiter.is_woken() && !is_there() {
                    self.park.park(me);
                }
            });
        }
    }

    fn bring(&self, key: usize) {
        self.is_there[key].store(true, Ordering::Relaxed);
        self.list.wake(&self.park, key);
    }
}

fn model(preemptions: usize, keys: [usize; 2], brings: fn(&Common)) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || {
        StdSlots::set_current(0);
        let common = Arc::new(Common {
            park: StdPark::default(),
            list: WaitList::default(),
            is_there: [const { false }; 2].map(AtomicBool::new),
        });
        let threads = [1, 2].map(|slot| {
            let common = common.clone();
            thread::spawn(move || common.wait(slot, keys[slot as usize - 1]))
        });
        brings(&common);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(common.list.waiting.load(Ordering::Relaxed), 0, "a waiter is still in the queue");
    });
}

#[test]
fn all_who_wait_for_one_thing_are_woken() {
    model(3, [0, 0], |common| common.bring(0));
}

#[test]
fn each_is_woken_for_what_it_waits_for() {
    model(3, [0, 1], |common| {
        common.bring(1);
        common.bring(0);
    });
}
