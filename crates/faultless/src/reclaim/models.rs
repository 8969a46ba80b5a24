//! Models of the stacks of arrivals and the queues.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless --lib --profile checked reclaim`

use super::queue::{Arrivals, Claimed, Distance, Folios, Gathered, Queue};
use crate::frame::{Folio, Reference};
use crate::host::Frame;
use crate::tables::Home;
use loom::thread;
use std::sync::Arc;

/// A machine with two frames and two slots.
struct Machine {
    folios: [Folio; 2],
    arrivals: [Arrivals; 2],
}

impl Folios for Machine {
    fn folio(&self, frame: Frame) -> &Folio {
        &self.folios[usize::try_from(frame.get()).unwrap()]
    }
}

impl Machine {
    fn new() -> Arc<Self> {
        Arc::new(Self { folios: [Folio::new(), Folio::new()], arrivals: [Arrivals::new(), Arrivals::new()] })
    }

    /// Begins a life of `frame` as an anonymous page.
    fn begin(&self, frame: u64) {
        self.folios[frame as usize].begin_anonymous(Home::NONE);
    }

    fn arrive(&self, slot: usize, frame: u64) {
        let folio = &self.folios[frame as usize];
        self.arrivals[slot].push(folio, Frame::new(frame).unwrap(), Distance::NEW);
    }

    fn free(&self, frame: u64) {
        assert!(self.folios[frame as usize].put(Reference::Mapping));
    }

    fn gather(&self, slot: usize, queue: &mut Queue) {
        let mut gathered = Gathered::from(&self.arrivals[slot], self);
        while let Some((frame, _)) = gathered.next(self) {
            queue.push(self, frame);
        }
    }

    /// Takes a frame off, and puts it back if its page is in use.
    fn take_and_return(&self, queue: &mut Queue) {
        let Some(taken) = queue.take(self, 1) else { return };
        if taken.uses.is_some()
            && let Some((frame, _)) = Claimed::claim(self, taken.frame)
        {
            queue.push(self, frame);
        }
    }

    /// Asserts that the queue and the stacks together have exactly the frames `all`, each once.
    fn assert_has(&self, mut queue: Queue, all: &[u64]) {
        (0..2).for_each(|slot| self.gather(slot, &mut queue));
        let mut found = Vec::new();
        while let Some(taken) = queue.take(self, 0) {
            if taken.uses.is_some() {
                found.push(taken.frame.get());
            }
        }
        found.sort_unstable();
        assert_eq!(found, all, "pages in the queues");
    }
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(4));
    builder.check(f);
}

/// A frame is in the queue since its last life, and begins another one while reclaim takes it off.
#[test]
fn a_life_that_begins_while_its_frame_is_taken() {
    model(|| {
        let (machine, mut queue) = (Machine::new(), Queue::default());
        machine.begin(0);
        machine.arrive(0, 0);
        machine.gather(0, &mut queue);
        machine.free(0);
        let theirs = machine.clone();
        let fault = thread::spawn(move || {
            theirs.begin(0);
            theirs.arrive(1, 0);
        });
        machine.take_and_return(&mut queue);
        fault.join().unwrap();
        machine.assert_has(queue, &[0]);
    });
}

/// The same, with the frame in a stack that reclaim gathers.
#[test]
fn a_life_that_begins_while_its_frame_is_gathered() {
    model(|| {
        let (machine, mut queue) = (Machine::new(), Queue::default());
        machine.begin(0);
        machine.arrive(0, 0);
        machine.free(0);
        let theirs = machine.clone();
        let fault = thread::spawn(move || {
            theirs.begin(0);
            theirs.arrive(1, 0);
        });
        machine.gather(0, &mut queue);
        machine.take_and_return(&mut queue);
        fault.join().unwrap();
        machine.assert_has(queue, &[0]);
    });
}

/// A thread pushes while reclaim empties its stack, and takes from the queue.
#[test]
fn a_push_against_gathering() {
    model(|| {
        let (machine, mut queue) = (Machine::new(), Queue::default());
        (0..2).for_each(|frame| machine.begin(frame));
        machine.arrive(0, 0);
        let theirs = machine.clone();
        let fault = thread::spawn(move || theirs.arrive(0, 1));
        machine.gather(0, &mut queue);
        machine.take_and_return(&mut queue);
        fault.join().unwrap();
        machine.assert_has(queue, &[0, 1]);
    });
}

/// A fault is late: its page is gone, and the frame has its next life, which another thread notes at the same time.
#[test]
fn two_faults_note_one_frame() {
    model(|| {
        let (machine, mut queue) = (Machine::new(), Queue::default());
        machine.begin(0);
        let faults = [0, 1].map(|slot| {
            let theirs = machine.clone();
            thread::spawn(move || theirs.arrive(slot, 0))
        });
        machine.gather(0, &mut queue);
        machine.take_and_return(&mut queue);
        faults.into_iter().for_each(|fault| fault.join().unwrap());
        machine.assert_has(queue, &[0]);
    });
}
