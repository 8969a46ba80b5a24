//! The threads of a round: its measured time, its errors, and actors that work at a fixed rate.

use crate::machine::{Machine, Memory};
use crate::measure::{Latency, Measured};
use crate::record::Recorder;
use crate::scenarios::Turn;
use crate::trouble::Trouble;
use faultless::address::PAGE_SIZE;
#[cfg(target_os = "linux")]
use rustix::thread::CpuSet;
use rustix::time::{ClockId, clock_gettime};
use std::any::Any;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// The longest sleep between two checks for the end of the round.
const LOOK: Duration = Duration::from_millis(20);

/// The sleep of an actor that is late twice in a row. Without it, a late actor would never sleep. As a real-time
/// thread it would then occupy a processor, and the threads that it waits for might never run.
const BREATH: Duration = Duration::from_micros(20);

/// The measured time of one round, and the state of its end.
pub struct Round<'a> {
    /// Set by Ctrl-C.
    interrupted: &'a AtomicBool,
    /// The time at which the round ended for all threads. Set once.
    over: OnceLock<Instant>,
    /// The first error that ended the round. Protected by its lock.
    trouble: Mutex<Option<Trouble>>,
    /// The end of the warm-up. Operations scheduled from then on are measured. Immutable.
    from: Instant,
    /// The time to measure. Immutable.
    length: Duration,
    /// The recorder of the round's threads. Immutable.
    recorder: Option<&'a Arc<Recorder>>,
}

impl<'a> Round<'a> {
    /// Begins a round with its warm-up. The warm-up of a short round takes at most half its length.
    pub fn new(turn: &Turn<'a>, warm_up: Duration) -> Self {
        let warm_up = warm_up.min(turn.length / 2);
        Self { recorder: turn.recorder, ..Self::unrecorded(turn.interrupted, warm_up, turn.length) }
    }

    /// Begins a round that is not recorded, with its warm-up.
    pub fn unrecorded(interrupted: &'a AtomicBool, warm_up: Duration, length: Duration) -> Self {
        let from = Instant::now() + warm_up;
        let (over, trouble) = (OnceLock::new(), Mutex::new(None));
        Self { interrupted, over, trouble, from, length, recorder: None }
    }

    /// Tells the recorder that the warm-up is over.
    pub fn start_recording(&self) {
        if let Some(recorder) = self.recorder {
            recorder.start();
        }
    }

    /// Returns whether the round is over. Its threads must then end.
    pub fn is_over(&self) -> bool {
        self.over.get().is_some()
    }

    /// Ends the round for all threads.
    pub fn end(&self) {
        self.over.get_or_init(Instant::now);
    }

    /// Ends the round with an error. Later errors are dropped.
    pub fn fail(&self, trouble: Trouble) {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(trouble);
        self.end();
    }

    /// Returns the error that ended the round, if any.
    pub fn into_trouble(self) -> Option<Trouble> {
        self.trouble.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the planned time to measure.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// Ends the round if Ctrl-C was pressed.
    pub fn look(&self) {
        if self.interrupted.load(Ordering::Relaxed) {
            self.end();
        }
    }

    /// Returns whether an operation scheduled for this moment is measured. Operations of the warm-up are not.
    pub fn measures(&self, scheduled: Instant) -> bool {
        scheduled >= self.from
    }

    /// Sleeps until `deadline` or the end of the round.
    pub fn sleep_until(&self, deadline: Instant) {
        while !self.is_over() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(LOOK));
        }
    }

    /// Runs the round: sleeps through the warm-up, calls `begin`, sleeps until the end, calls `end`, and ends the
    /// round for all threads. Another thread may end the round earlier. Called by the thread that started the round.
    /// Returns the measured time.
    pub fn run(&self, begin: impl FnOnce(), end: impl FnOnce()) -> Duration {
        let wait = |deadline: Instant| {
            while !self.is_over() && Instant::now() < deadline {
                self.sleep_until((Instant::now() + LOOK).min(deadline));
                self.look();
            }
        };
        wait(self.from);
        self.start_recording();
        begin();
        let start = Instant::now();
        wait(self.from + self.length);
        end();
        self.end();
        start.elapsed()
    }

    /// Runs the round like [`Round::run`]. Adds the measured time and the increase of the machine's counters to
    /// `measured`.
    pub fn count(&self, machine: &impl Machine, measured: &mut Measured) {
        let (mut before, mut after) = Default::default();
        let length = self.run(|| before = machine.statistics(), || after = machine.statistics());
        measured.seconds = length.as_secs_f64();
        measured.count_since(&before, &after);
    }

    /// Returns the error that ended the round, or else `measured`.
    ///
    /// # Errors
    /// The first [`Trouble`] of the round, or that of `measured`.
    pub fn result(self, measured: Result<Measured, Trouble>) -> Result<Measured, Trouble> {
        match self.into_trouble() {
            Some(trouble) => Err(trouble),
            None => measured,
        }
    }

    /// Starts a thread of the round. If the thread fails or panics, the round ends.
    ///
    /// # Errors
    /// [`Trouble::Input`] if the operating system cannot start the thread. The round is then over.
    pub fn spawn<'s, T: Send + 's>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        name: &str,
        work: impl FnOnce() -> Result<T, Trouble> + Send + 's,
    ) -> Result<ScopedJoinHandle<'s, Option<T>>, Trouble> {
        let thread = name.to_string();
        let run = move || {
            let _joined = self.recorder.and_then(|recorder| recorder.join(&thread));
            match catch_unwind(AssertUnwindSafe(work)) {
                Ok(Ok(value)) => Some(value),
                Ok(Err(trouble)) => {
                    self.fail(trouble);
                    None
                }
                Err(panic) => {
                    self.fail(Trouble::Wrong(format!("the {thread} thread panicked: {}", words_of(&*panic))));
                    None
                }
            }
        };
        Builder::new().name(name.into()).spawn_scoped(scope, run).map_err(|error| {
            self.end();
            Trouble::no_thread(error)
        })
    }
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("?");
    text.lines().next().unwrap_or_default()
}

/// The measurements of an actor at a fixed rate.
#[derive(Clone, Debug, Default)]
pub struct Periodic {
    /// The latency of each operation, counted from its scheduled start. An operation that never began is recorded
    /// too, with the time from its scheduled start to the end of the round. An actor that hangs therefore does not
    /// look fast.
    pub latency: Latency,
    /// Operations done.
    pub done: u64,
    /// Operations scheduled before the end of the round that did not begin.
    pub missed: u64,
    /// Whether the system refused to give the actor real-time priority.
    pub is_ordinary: bool,
}

impl Periodic {
    /// Adds these measurements to `measured`: the latency under `name`, and the two counts under `done` and `missed`.
    pub fn add_to(&self, measured: &mut Measured, name: &str, [done, missed]: [&str; 2]) {
        measured.add_latency(name, &self.latency);
        measured.count(done, self.done);
        measured.count(missed, self.missed);
        if self.is_ordinary {
            measured.note("actors at a fixed rate run as ordinary threads: run as root for steadier figures");
        }
    }
}

/// Runs a bystander. It maps a page, stores to it and unmaps it, `hertz` times a second, until the round is over.
///
/// # Errors
/// The first error of the memory.
pub fn stand_by(memory: &impl Memory, round: &Round<'_>, hertz: f64) -> Result<Periodic, Trouble> {
    at_fixed_rate(round, hertz, |_| {
        let page = memory.map_anonymous(PAGE_SIZE)?;
        memory.store(page, 1)?;
        memory.unmap(page, PAGE_SIZE)?;
        Ok(Instant::now())
    })
}

/// Waits for a thread of a round. Returns its result, or `None` if it failed or panicked.
pub fn ended<T>(thread: ScopedJoinHandle<'_, Option<T>>) -> Option<T> {
    thread.join().ok().flatten()
}

/// Calls `act` `hertz` times a second until the round is over. A late operation does not move the schedule of later
/// ones. Its latency counts from its scheduled start (no coordinated omission). `act` receives the scheduled start
/// and returns the time of its end.
///
/// # Errors
/// The first error of `act`.
pub fn at_fixed_rate(
    round: &Round<'_>,
    hertz: f64,
    mut act: impl FnMut(Instant) -> Result<Instant, Trouble>,
) -> Result<Periodic, Trouble> {
    wake_precisely();
    let mut periodic = Periodic { is_ordinary: !go_before_others(), ..Periodic::default() };
    let mut was_late = false;
    let start = Instant::now();
    let due = |n: u64| start + Duration::from_secs_f64(n as f64 / hertz);
    for n in 0.. {
        let scheduled = due(n);
        let is_late = Instant::now() > scheduled;
        if is_late && was_late {
            std::thread::sleep(BREATH);
        }
        was_late = is_late;
        round.sleep_until(scheduled);
        if let Some(end) = round.over.get() {
            for scheduled in (n..).map(due).take_while(|scheduled| scheduled < end) {
                if round.measures(scheduled) {
                    periodic.latency.record(*end - scheduled);
                    periodic.missed += 1;
                }
            }
            break;
        }
        let ended = act(scheduled)?;
        if round.measures(scheduled) {
            periodic.latency.record(ended.saturating_duration_since(scheduled));
            periodic.done += 1;
        }
    }
    Ok(periodic)
}

/// Makes this thread's sleeps end on time. By default, Linux may add 50 µs.
pub fn wake_precisely() {
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
}

/// Gives this thread real-time priority, if the system allows it (root). Call it only in threads that mostly sleep. A
/// measured actor must wait for the design and not for the scheduler, which lets a running thread finish its time
/// slice. The priority is the same for every design.
///
/// Returns whether the system allowed it. If not, the thread gets a higher ordinary priority, if possible.
fn go_before_others() -> bool {
    #[cfg(target_os = "linux")]
    if crate::native::go_before_others().is_ok() {
        return true;
    }
    go_first();
    false
}

/// Gives this thread a higher ordinary priority, if the system allows it (root). The priority is the same for every
/// design.
pub fn go_first() {
    // On Linux a priority belongs to a thread. Zero names the calling thread.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(None, -15);
}

/// Pins this thread to the `nth` processor that it may use. If there are fewer, the count starts again from the
/// first.
pub fn stay_on_processor(nth: usize) {
    #[cfg(not(target_os = "linux"))]
    let _ = nth;
    #[cfg(target_os = "linux")]
    if let Ok(allowed) = rustix::thread::sched_getaffinity(None) {
        let there = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        if let Some(cpu) = there.cycle().nth(nth % allowed.count().max(1) as usize) {
            let mut mine = CpuSet::new();
            mine.set(cpu);
            // If the system refuses, the scheduler places the thread.
            let _ = rustix::thread::sched_setaffinity(None, &mine);
        }
    }
}

/// Returns the processor time that this thread has used.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round<'a>(interrupted: &'a AtomicBool, milliseconds: u64) -> Round<'a> {
        Round::unrecorded(interrupted, Duration::ZERO, Duration::from_millis(milliseconds))
    }

    #[test]
    fn the_latency_of_late_operations_counts_from_their_scheduled_start() {
        let interrupted = AtomicBool::new(false);
        let round = round(&interrupted, 50);
        let mut first = true;
        let periodic = std::thread::scope(|scope| {
            let actor = round.spawn(scope, "actor", || {
                at_fixed_rate(&round, 1000.0, |_| {
                    if std::mem::take(&mut first) {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    Ok(Instant::now())
                })
            });
            round.run(|| {}, || {});
            actor.unwrap().join().unwrap().unwrap()
        });
        // Operations scheduled during those 20 ms waited too. At least ten of them waited 9 ms or more.
        assert!(periodic.latency.max_us() >= 20_000.0);
        let waited = periodic.done + periodic.missed;
        assert!(waited >= 40, "{periodic:?}");
        let tenth_longest = 1.0 - 10.0 / waited as f64;
        assert!(periodic.latency.quantile_us(tenth_longest) >= 9_000.0);
    }

    #[test]
    fn an_actor_that_cannot_keep_its_rate_lets_others_run() {
        let interrupted = AtomicBool::new(false);
        let round = round(&interrupted, 100);
        let (cpu, done) = std::thread::scope(|scope| {
            let actor = round.spawn(scope, "actor", || {
                let before = thread_cpu();
                let periodic = at_fixed_rate(&round, 1e6, |_| Ok(Instant::now()))?;
                Ok((thread_cpu() - before, periodic.done))
            });
            round.run(|| {}, || {});
            actor.unwrap().join().unwrap().unwrap()
        });
        // At a million operations a second, late operations sleep at least 20 µs each. Without that sleep, all would
        // run.
        assert!(done < 10_000 && cpu < Duration::from_millis(100), "{done} acts took {cpu:?}");
    }

    #[test]
    fn an_actor_without_real_time_says_so() {
        let note = |is_ordinary| {
            let mut measured = Measured::default();
            let periodic = Periodic { is_ordinary, ..Periodic::default() };
            periodic.add_to(&mut measured, "fork", ["forks", "forks_missed"]);
            measured.notes
        };
        assert!(note(false).is_empty());
        assert!(note(true)[0].contains("ordinary threads"));
    }

    #[test]
    fn errors_and_panics_end_the_round() {
        let interrupted = AtomicBool::new(false);
        for panics in [false, true] {
            let round = round(&interrupted, 60_000);
            std::thread::scope(|scope| {
                let bad = round.spawn(scope, "bad", || -> Result<(), Trouble> {
                    if panics { panic!("planted by the test") } else { Err(Trouble::Wrong("bad".into())) }
                });
                bad.unwrap();
                round.run(|| {}, || {});
            });
            let trouble = round.into_trouble().unwrap().to_string();
            assert_eq!(trouble, if panics { "the bad thread panicked: planted by the test" } else { "bad" });
        }
    }

    #[test]
    fn an_interrupt_ends_the_round() {
        let interrupted = AtomicBool::new(true);
        let round = round(&interrupted, 60_000);
        round.run(|| {}, || {});
        assert!(round.is_over() && round.into_trouble().is_none());
    }
}
