//! One slice of time of one thread: its operations, and the time that they took.

use faultless_lab::measure::Latency;
use faultless_lab::trouble::Trouble;
use rustix::time::ClockId;
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The measurements of a thread's slice.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Reading {
    /// The number of operations.
    pub ops: u64,
    /// Wall time of the operations. Time between timed parts is not included.
    pub wall: Duration,
    /// Processor time of the operations.
    pub cpu: Duration,
    /// Wall time of the whole slice, including untimed parts.
    pub whole: Duration,
    /// The part of `whole` in which the thread was ready to run and did not run.
    pub away: Duration,
}

/// One slice of one thread.
pub struct Lap {
    seed: u64,
    end: Instant,
    reading: Reading,
    latency: Latency,
}

impl Lap {
    fn new(length: Duration, seed: u64) -> Self {
        Self { seed, end: Instant::now() + length, reading: Reading::default(), latency: Latency::default() }
    }

    /// Returns the seed of the random choices: the same for each contender, different in each lap.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns whether the slice is over. Callers look between parts of some microseconds.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// Repeats `op` until the slice is over, and reads the clock after every `calls` calls. Each call counts as `ops`
    /// operations.
    ///
    /// # Errors
    /// The first error of `op`.
    #[inline]
    pub fn repeat(
        &mut self,
        calls: u64,
        ops: u64,
        mut op: impl FnMut() -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let (cpu, start) = (thread_cpu(), Instant::now());
        let end = loop {
            for _ in 0..calls {
                op()?;
            }
            self.reading.ops += calls * ops;
            let now = Instant::now();
            if now >= self.end {
                break now;
            }
        };
        self.reading.wall += end - start;
        self.reading.cpu += thread_cpu() - cpu;
        Ok(())
    }

    /// Does what [`Lap::repeat`] does, and times each operation alone. The cost of the clock itself is subtracted.
    ///
    /// # Errors
    /// The first error of `op`.
    #[inline]
    pub fn repeat_each(&mut self, mut op: impl FnMut() -> Result<(), Trouble>) -> Result<(), Trouble> {
        let own = clock_cost();
        let cpu = thread_cpu();
        loop {
            let start = Instant::now();
            op()?;
            let end = Instant::now();
            let took = (end - start).saturating_sub(own);
            self.latency.record(took);
            self.reading.ops += 1;
            self.reading.wall += took;
            if end >= self.end {
                break;
            }
        }
        self.reading.cpu += thread_cpu() - cpu;
        Ok(())
    }

    /// Runs a timed part of `ops` operations, which should take ten microseconds or more. Time between parts is not
    /// counted.
    ///
    /// # Errors
    /// The error of `work`.
    pub fn part<T>(&mut self, ops: u64, work: impl FnOnce() -> Result<T, Trouble>) -> Result<T, Trouble> {
        let (cpu, start) = (thread_cpu(), Instant::now());
        let done = work()?;
        self.reading.wall += start.elapsed();
        self.reading.cpu += thread_cpu() - cpu;
        self.reading.ops += ops;
        Ok(done)
    }

    /// Replaces the measurements by those that another process has made of itself.
    pub fn take(&mut self, reading: Reading) {
        self.reading = reading;
    }

    /// Returns the rest of the slice.
    pub fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }
}

/// Runs `work` for a slice on the calling thread, and reads Linux's figures of the thread for that time.
///
/// # Errors
/// The error of `work`.
pub fn run(
    length: Duration,
    seed: u64,
    work: impl FnOnce(&mut Lap) -> Result<(), Trouble>,
) -> Result<(Reading, Latency), Trouble> {
    let mut lap = Lap::new(length, seed);
    let (before, start) = (Usage::now(), Instant::now());
    work(&mut lap)?;
    let (whole, after) = (start.elapsed(), Usage::now());
    if lap.reading.whole.is_zero() {
        lap.reading.whole = whole;
        lap.reading.away = after.away_since(&before, whole);
    }
    Ok((lap.reading, lap.latency))
}

/// Linux's figures of the calling thread.
struct Usage {
    cpu: Duration,
    /// The time for which the thread was ready to run and waited for a processor.
    queued: Option<Duration>,
    /// The number of times that the thread went to sleep by itself.
    slept: u64,
}

impl Usage {
    fn now() -> Self {
        // The fields: nanoseconds on a processor, nanoseconds waiting for one, number of runs.
        let queued = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
        let queued = queued.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        Self { cpu: thread_cpu(), queued: queued.map(Duration::from_nanos), slept: crate::linux::sleeps() }
    }

    /// Returns the time for which the thread was ready to run and did not run. A thread that never slept should have
    /// run for the whole slice, so that includes time that a hypervisor took. For a thread that slept, as for a lock,
    /// it is the time for which it waited in the run queue.
    fn away_since(&self, before: &Self, whole: Duration) -> Duration {
        match (self.slept != before.slept, self.queued, before.queued) {
            (true, Some(now), Some(then)) => now.saturating_sub(then),
            (true, ..) => Duration::ZERO,
            (false, ..) => whole.saturating_sub(self.cpu - before.cpu),
        }
    }
}

/// Returns the processor time that the calling thread has used.
fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Returns the cost of reading the clock: the median of many readings.
pub fn clock_cost() -> Duration {
    static COST: OnceLock<Duration> = OnceLock::new();
    *COST.get_or_init(|| {
        let mut looks: Vec<Duration> = (0..4001).map(|_| Instant::now().elapsed()).collect();
        looks.sort_unstable();
        looks[looks.len() / 2]
    })
}
