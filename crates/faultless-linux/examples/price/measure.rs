//! The rounds of a measurement, and their results.

use crate::case::{Case, Contender, Prepared, Setting, Work};
use crate::memory::shuffled;
use crate::trouble::Trouble;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::time::{Duration, Instant};

/// One round of one case and one contender, in nanoseconds for each page.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub wall: f64,
    /// Processor time of all threads, including the kernel's.
    pub cpu: f64,
    /// The 99th percentile of single touches; `None` if no page is touched.
    pub p99: Option<f64>,
}

/// The median, the least and the greatest of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub greatest: f64,
}

impl Spread {
    /// Returns the spread of `values`, or `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (least, greatest) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { median, least, greatest })
    }
}

/// A case with a number of threads. For each round there is one sample of each contender, in their order.
pub struct Measured {
    pub case: Case,
    pub threads: usize,
    pub rounds: Vec<Vec<Sample>>,
}

impl Measured {
    /// Returns the spread of a figure of one contender over the rounds.
    pub fn spread(&self, contender: usize, figure: impl Fn(&Sample) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(|round| figure(&round[contender])))
    }

    /// Returns the spread of the ratio `over` / `under` of a figure, taken within each round.
    pub fn ratio(&self, over: usize, under: usize, figure: impl Fn(&Sample) -> f64) -> Option<Spread> {
        Spread::of(self.rounds.iter().map(|round| figure(&round[over]) / figure(&round[under])))
    }
}

/// Runs `rounds` rounds, after one warm-up round that is not counted. Calls `said` before each case of a round.
pub fn measure(
    cases: &[Case],
    contenders: &mut [Box<dyn Contender>],
    setting: &Setting,
    rounds: usize,
    said: impl Fn(Case),
) -> Result<Vec<Measured>, Trouble> {
    let with_threads = cases.iter().flat_map(|case| case.threads().iter().map(|threads| (*case, *threads)));
    let mut measured: Vec<Measured> =
        with_threads.map(|(case, threads)| Measured { case, threads, rounds: Vec::new() }).collect();
    let placement = Placement::new()?;
    for round in 0..=rounds {
        let order = shuffled(setting.pages, round as u64 + 1);
        for measured in &mut measured {
            said(measured.case);
            // Threads that are made from now on, including handlers, run where this thread does.
            placement.set(measured.threads == 1 && !setting.free)?;
            let mut samples = vec![None; contenders.len()];
            for turn in 0..contenders.len() {
                // A different contender begins in each round.
                let who = (turn + round) % contenders.len();
                let name = contenders[who].name();
                let done = contenders[who]
                    .prepare(measured.case, measured.threads, setting)
                    .and_then(|prepared| time(prepared, measured, &order));
                samples[who] = Some(done.map_err(|trouble| match trouble {
                    Trouble::Wrong(what) => {
                        Trouble::Wrong(format!("{} of {name}: {what}", measured.case.name()))
                    }
                    cannot @ Trouble::Cannot(_) => cannot,
                })?);
            }
            if round != 0 {
                measured.rounds.push(samples.into_iter().flatten().collect());
            }
        }
    }
    Ok(measured)
}

/// The processors that this process may use.
struct Placement {
    all: CpuSet,
    one: CpuSet,
}

impl Placement {
    fn new() -> Result<Self, Trouble> {
        let all = sched_getaffinity(None).map_err(|errno| Trouble::system("sched_getaffinity", errno))?;
        let mut one = CpuSet::new();
        // The last processor: most of a machine's interrupts go to the first.
        if let Some(last) = (0..CpuSet::MAX_CPU).rev().find(|cpu| all.is_set(*cpu)) {
            one.set(last);
        }
        Ok(Self { all, one })
    }

    fn set(&self, one: bool) -> Result<(), Trouble> {
        sched_setaffinity(None, if one { &self.one } else { &self.all })
            .map_err(|errno| Trouble::system("sched_setaffinity", errno))
    }
}

fn time(prepared: Prepared, measured: &Measured, order: &[usize]) -> Result<Sample, Trouble> {
    let Prepared { work, check, keep } = prepared;
    let cpu = cpu_time()?;
    let (wall, mut singles, left) = match work {
        Work::Touch(pages) => {
            let access = measured.case.access();
            let access =
                access.ok_or(Trouble::Wrong("the case has pages to touch but no access for them".into()))?;
            let touches = pages.touch(order, access, measured.threads)?;
            (touches.wall, touches.singles, None)
        }
        Work::Call(call) => {
            let begun = Instant::now();
            let left = call()?;
            (begun.elapsed(), Vec::new(), Some(left))
        }
    };
    let cpu = cpu_time()?.saturating_sub(cpu);
    check()?;
    drop((left, keep));
    let each = |time: Duration| time.as_nanos() as f64 / order.len() as f64;
    singles.sort_unstable();
    let p99 = singles.get(singles.len() * 99 / 100).map(|single| *single as f64);
    Ok(Sample { wall: each(wall), cpu: each(cpu), p99 })
}

/// Returns the processor time that this process has used.
fn cpu_time() -> Result<Duration, Trouble> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: room for the structure that the call writes.
    if unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) } != 0 {
        return Err(Trouble::last("getrusage"));
    }
    // SAFETY: plain numbers, written by the call.
    let usage = unsafe { usage.assume_init() };
    let of = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    Ok(of(usage.ru_utime) + of(usage.ru_stime))
}
