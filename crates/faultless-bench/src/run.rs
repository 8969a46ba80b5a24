//! Runs cases in rounds. In a round each entrant has one slice, in an order that changes.

use crate::bars::{Judged, Rounds};
use crate::case::{Case, Entrant, Work};
use crate::figures::{Figures, Round};
use crate::index::Random;
use crate::lap;
use faultless_lab::measure::Latency;
use faultless_lab::progress::Progress;
use faultless_lab::trouble::Trouble;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The cases to run, and their parameters.
pub struct Plan {
    /// The cases in this order, each with its sizes; `None` for a case without sizes.
    pub cases: Vec<(&'static Case, Vec<Option<u64>>)>,
    pub rounds: usize,
    pub slice: Duration,
}

/// One row of a report.
pub struct Row {
    pub case: &'static Case,
    pub size: Option<u64>,
    pub threads: usize,
    pub contender: String,
    /// The figures, or the reason for which there are none.
    pub figures: Result<Figures, String>,
    pub note: Option<String>,
    /// The bars that are about this row.
    pub bars: Vec<Judged>,
}

impl Plan {
    /// Runs the plan. Hands the rows of each case and size to `done` as soon as they are complete.
    ///
    /// # Errors
    /// The first [`Trouble`]: a contender that gives a wrong result is not measured.
    pub fn run(&self, mut done: impl FnMut(Vec<Row>) -> Result<(), Trouble>) -> Result<(), Trouble> {
        let steps: usize = self.cases.iter().map(|(_, sizes)| sizes.len() * self.rounds).sum();
        let progress = Progress::new(steps, "setting up");
        for (case, sizes) in &self.cases {
            for &size in sizes {
                let of = size.map_or(String::new(), |size| format!(" of {size}"));
                progress.say(&format!("{}{of}: setting up", case.name));
                let entrants = (case.set_up)(size.unwrap_or(0))?;
                let rounds = self.rounds_of(case, &entrants, |round| {
                    progress.say(&format!("{}{of}: round {round} of {}", case.name, self.rounds));
                    if round != 1 {
                        progress.step();
                    }
                })?;
                progress.step();
                let all: Vec<Rounds<'_>> = entrants.iter().zip(&rounds).map(rounds_of_entrant).collect();
                let row = |(entrant, own): (&Entrant, &Rounds<'_>)| Row {
                    case,
                    size,
                    threads: entrant.threads,
                    contender: entrant.contender.clone(),
                    note: entrant.work.as_ref().ok().and_then(|work| work.note()),
                    bars: case.bars.iter().filter_map(|bar| bar.judge(*own, &all)).collect(),
                    figures: entrant.work.as_ref().map(|_| Figures::of(own.rounds)).map_err(Clone::clone),
                };
                done(entrants.iter().zip(&all).map(row).collect())?;
            }
        }
        Ok(())
    }

    /// Runs all rounds of a case and returns those of each entrant.
    fn rounds_of(
        &self,
        case: &Case,
        entrants: &[Entrant],
        mut begins: impl FnMut(usize),
    ) -> Result<Vec<Vec<Round>>, Trouble> {
        let mut rounds: Vec<Vec<Round>> = entrants.iter().map(|_| Vec::new()).collect();
        let mut random = Random::new(0);
        for number in 1..=self.rounds {
            begins(number);
            for place in shuffled(entrants.len(), &mut random) {
                let entrant = &entrants[place];
                if let Ok(work) = &entrant.work {
                    let round = slice(&**work, entrant.threads, self.slice * case.slices, number);
                    rounds[place].push(
                        round.map_err(|trouble| trouble.in_round(case.name, &entrant.contender, number))?,
                    );
                }
            }
        }
        Ok(rounds)
    }
}

fn rounds_of_entrant<'a>((entrant, rounds): (&'a Entrant, &'a Vec<Round>)) -> Rounds<'a> {
    Rounds { contender: &entrant.contender, threads: entrant.threads, rounds }
}

/// Runs one slice of all threads at the same time, after a shorter slice that warms up.
fn slice(work: &dyn Work, threads: usize, length: Duration, number: usize) -> Result<Round, Trouble> {
    let (over, start) = (AtomicBool::new(false), Barrier::new(threads));
    std::thread::scope(|scope| {
        if work.has_beside() {
            scope.spawn(|| work.beside(&over));
        }
        let one = |me| {
            let (start, seed) = (&start, 2 * (number * threads + me) as u64);
            scope.spawn(move || {
                let warm = lap::run(length / 4, seed, |lap| work.lap(me, lap));
                // All threads wait here, even after an error: otherwise the others would wait for ever.
                start.wait();
                warm.and_then(|_| lap::run(length, seed + 1, |lap| work.lap(me, lap)))
            })
        };
        let all: Vec<_> = (0..threads).map(one).collect();
        let all: Vec<_> = all.into_iter().map(|thread| thread.join()).collect();
        over.store(true, Ordering::Relaxed);
        let mut round = Round { threads: Vec::new(), latency: Latency::default(), measures: Vec::new() };
        for thread in all {
            let read = thread.unwrap_or_else(|_| Err(Trouble::Wrong("a thread has panicked".into())));
            let (reading, latency) = read?;
            round.latency.add(&latency);
            round.threads.push(reading);
        }
        round.measures = work.measures(&round.threads);
        Ok(round)
    })
}

/// Returns a random order, so that no entrant always follows the same other one.
fn shuffled(count: usize, random: &mut Random) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, random.below(last as u64 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_order_has_all_of_them_once() {
        let mut random = Random::new(1);
        let orders: Vec<_> = (0..20).map(|_| shuffled(5, &mut random)).collect();
        assert!(orders.iter().any(|order| order != &orders[0]));
        for mut order in orders {
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2, 3, 4]);
        }
    }
}
