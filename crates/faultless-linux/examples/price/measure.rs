//! Rounds, and what came of them.

use crate::case::{Case, Contender, Prepared, Setting, Work};
use crate::memory::shuffled;
use crate::trouble::Trouble;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::time::{Duration, Instant};

/// One case, one contender, one round: nanoseconds a page.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub wall: f64,
    /// Of all threads, the kernel's part included.
    pub cpu: f64,
    /// Of single touches; `None` where nothing is touched.
    pub p99: Option<f64>,
}

/// A median, and the least and greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub greatest: f64,
}

impl Spread {
    /// `None` of nothing.
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

/// A case with so many threads: for each round a sample of each contender, in their order.
pub struct Measured {
    pub case: Case,
    pub threads: usize,
    pub rounds: Vec<Vec<Sample>>,
}

impl Measured {
    /// A figure of one contender over the rounds.
    pub fn spread(&self, contender: usize, figure: impl Fn(&Sample) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(|round| figure(&round[contender])))
    }

    /// How many times the figure of `under` that of `over` was, within each round.
    pub fn ratio(&self, over: usize, under: usize, figure: impl Fn(&Sample) -> f64) -> Option<Spread> {
        Spread::of(self.rounds.iter().map(|round| figure(&round[over]) / figure(&round[under])))
    }
}

/// Runs all rounds and one before them that is not counted. `said` is called before each case of a round.
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
            // Threads made from now on, the handlers too, run where this one does.
            placement.set(measured.threads == 1 && !setting.free)?;
            let mut samples = vec![None; contenders.len()];
            for turn in 0..contenders.len() {
                // Another one begins in each round.
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
        // The last: the first is where most of a machine's interrupts go.
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
                access.ok_or(Trouble::Wrong("it has pages to touch, and nobody to touch them".into()))?;
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

/// What this process has used of its processors.
fn cpu_time() -> Result<Duration, Trouble> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: room for what the call writes.
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
