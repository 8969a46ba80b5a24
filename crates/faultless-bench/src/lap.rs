//! What one thread does in one slice of time, and what it took.

use faultless_lab::measure::Latency;
use faultless_lab::trouble::Trouble;
use rustix::time::ClockId;
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What a thread's slice has come to.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Reading {
    /// Operations.
    pub ops: u64,
    /// What they took, by the clock. What was done between timed parts is not in it.
    pub wall: Duration,
    /// What they took of a processor.
    pub cpu: Duration,
    /// All of the slice, what is not timed too.
    pub whole: Duration,
    /// Of that, when the thread could have run and did not.
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

    /// What its random choices follow from: the same for each contender, another one in each lap.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Whether it is over. Looked at between parts of some microseconds.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// Does `op` again and again until the slice is over, and looks at the clock every `calls` times. Each call is so many
    /// operations.
    ///
    /// # Errors
    /// The first of `op`.
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

    /// As [`Lap::repeat`], with each operation timed alone; what the clock itself takes is taken off.
    ///
    /// # Errors
    /// The first of `op`.
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

    /// Does a part that counts, of so many operations and some ten microseconds at least. What is done between parts
    /// does not count.
    ///
    /// # Errors
    /// That of `work`.
    pub fn part<T>(&mut self, ops: u64, work: impl FnOnce() -> Result<T, Trouble>) -> Result<T, Trouble> {
        let (cpu, start) = (thread_cpu(), Instant::now());
        let done = work()?;
        self.reading.wall += start.elapsed();
        self.reading.cpu += thread_cpu() - cpu;
        self.reading.ops += ops;
        Ok(done)
    }

    /// Takes what another process has read of itself.
    pub fn take(&mut self, reading: Reading) {
        self.reading = reading;
    }

    /// What is left of it.
    pub fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }
}

/// Runs `work` for a slice, on the calling thread, and asks Linux what has become of the thread meanwhile.
///
/// # Errors
/// That of `work`.
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

/// What Linux has counted of the calling thread.
struct Usage {
    cpu: Duration,
    /// Waited for a processor, ready to run.
    queued: Option<Duration>,
    /// Went to sleep by itself, so many times.
    slept: u64,
}

impl Usage {
    fn now() -> Self {
        // On a processor, waiting for one, in nanoseconds; and how often.
        let queued = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
        let queued = queued.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        Self { cpu: thread_cpu(), queued: queued.map(Duration::from_nanos), slept: crate::linux::sleeps() }
    }

    /// How long it did not run though it could have. A thread that never slept should have run all the time, also where a
    /// hypervisor took the processor. One that slept, as for a lock, was away as long as it stood in a queue.
    fn away_since(&self, before: &Self, whole: Duration) -> Duration {
        match (self.slept != before.slept, self.queued, before.queued) {
            (true, Some(now), Some(then)) => now.saturating_sub(then),
            (true, ..) => Duration::ZERO,
            (false, ..) => whole.saturating_sub(self.cpu - before.cpu),
        }
    }
}

/// What the calling thread has used of processors.
fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// What a look at the clock takes: the middle one of many.
pub fn clock_cost() -> Duration {
    static COST: OnceLock<Duration> = OnceLock::new();
    *COST.get_or_init(|| {
        let mut looks: Vec<Duration> = (0..4001).map(|_| Instant::now().elapsed()).collect();
        looks.sort_unstable();
        looks[looks.len() / 2]
    })
}
