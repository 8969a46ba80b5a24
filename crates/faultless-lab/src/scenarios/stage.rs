//! Threads that work in steps and begin each step together. For scenarios that compare several things within a round,
//! in turns. The turns are short, so that the load of the machine affects all things alike.

use super::actors::{Round, go_first, stay_on_processor};
use crate::machine::Machine;
use crate::measure::Measured;
use crate::trouble::Trouble;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest sleep between two checks for the end of the round.
const LOOK: Duration = Duration::from_millis(20);

/// One step of the workers.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The number of the step, counted from 1.
    pub number: u64,
    /// The index of the phase. The scenario defines its meaning.
    pub phase: usize,
    /// The number of workers that take part. They are the first ones.
    pub active: usize,
    /// The duration of a phase that has no end of its own.
    pub length: Duration,
    /// Whether the step is measured. Steps of the warm-up pass are not.
    pub measured: bool,
}

/// One of the things that a scenario does in turns.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// The number of workers that take part. They are the first ones.
    pub active: usize,
    /// The duration of a phase that has no end of its own.
    pub length: Duration,
}

struct State {
    /// The current step, if one has begun. Protected by the lock.
    step: Option<Step>,
    /// The number of workers that have not ended the step yet. Protected by the lock.
    left: usize,
}

/// The point at which the workers of a round meet.
pub struct Stage<'a> {
    round: &'a Round<'a>,
    state: Mutex<State>,
    changed: Condvar,
    /// The number of arrivals at [`Stage::meet`] in this step. Atomic.
    ready: AtomicUsize,
}

impl<'a> Stage<'a> {
    /// Creates the meeting point of the workers of `round`.
    pub fn new(round: &'a Round<'a>) -> Self {
        let state = Mutex::new(State { step: None, left: 0 });
        Self { round, state, changed: Condvar::new(), ready: AtomicUsize::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sleep<'g>(&self, state: MutexGuard<'g, State>) -> MutexGuard<'g, State> {
        self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Runs worker number `me`. Calls `act` in each step that includes this worker, until the round is over. Pins the
    /// thread to a processor, its own one if there are enough. Raises the thread's priority if the system allows it
    /// (root). Both are the same for every design.
    ///
    /// # Errors
    /// The first error of `act`.
    pub fn work(&self, me: usize, mut act: impl FnMut(Step) -> Result<(), Trouble>) -> Result<(), Trouble> {
        // A thread that sleeps may wake on the processor of another worker. On a busy machine both may stay there.
        // Their operations would then never overlap.
        go_first();
        stay_on_processor(me);
        let mut seen = 0;
        while let Some(step) = self.next(seen) {
            seen = step.number;
            if me >= step.active {
                continue;
            }
            self.meet(step, 1);
            let done = act(step);
            let mut state = self.lock();
            state.left = state.left.saturating_sub(1);
            if state.left == 0 {
                self.changed.notify_all();
            }
            drop(state);
            done?;
        }
        Ok(())
    }

    /// Waits for the first step after `seen`. Returns `None` when the round is over.
    fn next(&self, seen: u64) -> Option<Step> {
        let mut state = self.lock();
        loop {
            if self.round.is_over() {
                return None;
            }
            match state.step.filter(|step| step.number > seen) {
                Some(step) => return Some(step),
                None => state = self.sleep(state),
            }
        }
    }

    /// Waits without sleeping until all workers of the step have arrived here for the `nth` time, or the round is
    /// over. No worker then has a head start. The beginning of the step is the first time.
    pub fn meet(&self, step: Step, nth: usize) {
        self.ready.fetch_add(1, Ordering::AcqRel);
        let mut look = 0_u32;
        while self.ready.load(Ordering::Acquire) < nth * step.active && !self.round.is_over() {
            look += 1;
            if look > 64 { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }

    /// Runs one step. Returns when all workers have ended it, or when the round is over. Returns false if the round
    /// is over. Called by the thread that runs the round.
    pub fn step(&self, phase: usize, Phase { active, length }: Phase, measured: bool) -> bool {
        let mut state = self.lock();
        let number = state.step.map_or(1, |step| step.number + 1);
        self.ready.store(0, Ordering::Release);
        state.step = Some(Step { number, phase, active, length, measured });
        state.left = active;
        self.changed.notify_all();
        while state.left != 0 && !self.round.is_over() {
            state = self.sleep(state);
            self.round.look();
        }
        self.round.look();
        !self.round.is_over()
    }

    /// Runs one pass over the phases to warm up, calls `begin`, then runs measured passes until the time to measure
    /// is over. There is at least one measured pass. Each pass reverses the order of the last one. Returns the
    /// measured time, which is zero if the round ended during the warm-up. Does not end the round. Called by the
    /// thread that runs the round.
    pub fn take_turns(&self, phases: &[Phase], begin: impl FnOnce()) -> Duration {
        // A lane may be full after one phase. A phase of one thread has no waits to show.
        let most = phases.iter().map(|phase| phase.active).max().unwrap_or(0);
        let pass = |backwards: bool, measured| {
            let phases = phases.iter().enumerate();
            let mut step = |(number, phase): (usize, &Phase)| {
                if measured && phase.active == most {
                    self.round.start_recording();
                }
                self.step(number, *phase, measured)
            };
            match backwards {
                false => phases.into_iter().all(&mut step),
                true => phases.rev().all(&mut step),
            }
        };
        if !pass(false, false) {
            return Duration::ZERO;
        }
        begin();
        let start = Instant::now();
        let mut backwards = false;
        while pass(backwards, true) && start.elapsed() < self.round.length() {
            backwards = !backwards;
        }
        start.elapsed()
    }

    /// Runs the phases like [`Stage::take_turns`]. Adds the measured time and the increase of the machine's counters
    /// to `measured`. Then ends the round.
    pub fn count(&self, phases: &[Phase], machine: &impl Machine, measured: &mut Measured) {
        let mut before = BTreeMap::new();
        let length = self.take_turns(phases, || before = machine.statistics());
        measured.seconds = length.as_secs_f64();
        if !length.is_zero() {
            measured.count_since(&before, &machine.statistics());
        }
        self.round.end();
    }
}

/// The end of a step that lasts a given time.
pub struct Until(Instant);

impl Until {
    /// Returns the end of `step`. A worker calls it at the beginning of the step.
    pub fn end_of(step: Step) -> Self {
        Self(Instant::now() + step.length)
    }

    /// Returns whether the step or the round is over.
    pub fn is_past(&self, now: Instant, round: &Round<'_>) -> bool {
        now >= self.0 || round.is_over()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn with_workers(
        workers: usize,
        act: impl Fn(usize, Step) -> Result<(), Trouble> + Sync,
        lead: impl FnOnce(&Stage<'_>),
    ) -> Option<Trouble> {
        let interrupted = AtomicBool::new(false);
        let round = Round::unrecorded(&interrupted, Duration::ZERO, Duration::from_millis(20));
        let stage = Stage::new(&round);
        std::thread::scope(|scope| {
            for me in 0..workers {
                let (stage, act) = (&stage, &act);
                round.spawn(scope, "worker", move || stage.work(me, |step| act(me, step))).unwrap();
            }
            lead(&stage);
            round.end();
        });
        round.into_trouble()
    }

    #[test]
    fn the_first_workers_of_a_phase_take_part_together() {
        let seen = Mutex::new(Vec::new());
        let act = |me, step: Step| {
            seen.lock().unwrap().push((step.number, step.phase, me));
            Ok(())
        };
        let phase = |active| Phase { active, length: Duration::ZERO };
        let trouble = with_workers(3, act, |stage| {
            assert!(stage.step(0, phase(1), true));
            assert!(stage.step(1, phase(3), true));
            assert!(stage.step(0, phase(2), true));
        });
        assert_eq!(trouble, None);
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        assert_eq!(seen, [(1, 0, 0), (2, 1, 0), (2, 1, 1), (2, 1, 2), (3, 0, 0), (3, 0, 1)]);
    }

    #[test]
    fn turns_alternate_until_the_time_is_over() {
        let steps = Mutex::new(Vec::new());
        let act = |_, step: Step| {
            steps.lock().unwrap().push((step.phase, step.measured));
            std::thread::sleep(step.length);
            Ok(())
        };
        let phase = Phase { active: 1, length: Duration::from_millis(3) };
        let mut begun = 0;
        with_workers(1, act, |stage| {
            let measured = stage.take_turns(&[phase, phase], || begun += 1);
            assert!(measured >= Duration::from_millis(20));
        });
        let steps = steps.into_inner().unwrap();
        assert_eq!(steps[..6], [(0, false), (1, false), (0, true), (1, true), (1, true), (0, true)]);
        assert!(begun == 1 && steps.len() % 2 == 0);
    }

    #[test]
    fn an_error_of_one_worker_ends_the_round() {
        let act = |me, _| if me == 1 { Err(Trouble::Wrong("bad".into())) } else { Ok(()) };
        let phase = Phase { active: 2, length: Duration::ZERO };
        let trouble = with_workers(2, act, |stage| while stage.step(0, phase, true) {});
        assert_eq!(trouble, Some(Trouble::Wrong("bad".into())));
    }

    /// A recording begins with the first measured phase of the most workers: a phase of one worker shows no contention, and could
    /// fill the lane before there is any.
    #[test]
    fn a_recording_begins_with_a_phase_of_most_workers() {
        use crate::record::{Activity, Operation, Recorder, operation};
        use crate::scenarios::{Settings, Turn};
        let (settings, interrupted) = (Settings::default(), AtomicBool::new(false));
        let recorder = std::sync::Arc::new(Recorder::default());
        let length = Duration::from_millis(5);
        let turn = Turn {
            settings: &settings,
            length,
            seed: 1,
            interrupted: &interrupted,
            recorder: Some(&recorder),
        };
        let round = Round::new(&turn, Duration::ZERO);
        let stage = Stage::new(&round);
        let phase = |active| Phase { active, length: Duration::ZERO };
        let act = |step: Step| {
            let kind = if step.active == 1 { Operation::Map } else { Operation::Fault };
            operation(kind, || step.number, || ());
            Ok(())
        };
        std::thread::scope(|scope| {
            for me in 0..2 {
                let stage = &stage;
                round.spawn(scope, "worker", move || stage.work(me, act)).unwrap();
            }
            stage.take_turns(&[phase(1), phase(2)], || {});
            round.end();
        });
        let lanes = recorder.finish().lanes;
        assert_eq!(lanes.len(), 2);
        for lane in lanes {
            assert_eq!(lane.spans[0].activity, Activity::Operation(Operation::Fault), "{}", lane.name);
        }
    }
}
