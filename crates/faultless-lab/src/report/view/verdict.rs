//! Sentences on the losses, the ties and the wins of Faultless's own design. Losses come first.

use super::figures::{best_of, rounds, times_worse};
use crate::compare::Run;
use crate::designs;
use crate::measure::{Difference, LEAST_ROUNDS, Measured, Spread};
use crate::report::number;
use crate::scenarios::{Better, Figure, Unit};
use faultless::stats::Counter;

/// A sentence, and its kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The kind of the sentence.
    pub kind: Kind,
    /// A full sentence, with figures.
    pub text: String,
}

/// The kind of a verdict. The kinds are ordered as in reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Faultless's own design is worse than a rival.
    Loss,
    /// Faultless's own design is worse or better, but the rounds overlap. The difference may be chance.
    Unknown,
    /// No difference, or a small one.
    Level,
    /// Faultless's own design is better than every rival.
    Win,
    /// Too few rounds for a verdict.
    TooFew,
    /// Other information that the reader needs.
    Note,
}

/// The comparison of Faultless's own design with the best rival in one figure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Duel {
    pub kind: Kind,
    pub figure: Figure,
    pub scenario: &'static str,
    pub rival: &'static str,
    mine: Spread,
    theirs: Spread,
}

impl Duel {
    /// Compares `ours` with the best of `rivals`. Returns `None` if either has no such figure, or if designs are not
    /// compared by it.
    pub(super) fn new(ours: &Run, rivals: &[&Run], figure: &Figure) -> Option<Self> {
        if figure.better == Better::Neither {
            return None;
        }
        let mine = ours.spread(figure.of)?;
        let theirs = rivals.iter().filter_map(|run| Some((*run, run.spread(figure.of)?)));
        let (rival, theirs) = best_of(theirs, figure.better)?;
        let kind = if rounds(ours, figure).min(rounds(rival, figure)) < LEAST_ROUNDS {
            Kind::TooFew
        } else {
            let is_higher = mine.median > theirs.median;
            match mine.compared(theirs) {
                Difference::Level => Kind::Level,
                Difference::Unknown => Kind::Unknown,
                Difference::Beyond if is_higher == (figure.better == Better::Lower) => Kind::Loss,
                Difference::Beyond => Kind::Win,
            }
        };
        let (figure, scenario) = (*figure, ours.scenario.name);
        Some(Self { kind, figure, scenario, rival: rival.contender.name(), mine, theirs })
    }

    /// Returns the factor by which Faultless's own design is worse; below 1 if it is better. Infinite if the divisor
    /// is zero.
    pub(super) fn times_worse(&self) -> f64 {
        times_worse(self.mine.median, self.theirs.median, self.figure.better).unwrap_or(f64::INFINITY)
    }

    /// Returns the figures, such as "1.20 ms against 1.10 ms under vma-lock (1.09 times worse)". If the rounds overlap,
    /// the smallest and the largest one stand with each figure.
    pub(super) fn figures(&self) -> String {
        let value = |spread: Spread| match self.kind {
            Kind::Unknown => number::spread(spread, self.figure.unit),
            _ => number::value(spread.median, self.figure.unit),
        };
        let times = self.times_worse();
        let ratio = |times, word| format!("{} times {word}", number::value(times, Unit::Ratio));
        let compared = match times {
            _ if (times - 1.0).abs() < 0.005 => "the same".into(),
            _ if !times.is_finite() || times == 0.0 => "no ratio to zero".into(),
            worse if worse > 1.0 => ratio(worse, "worse"),
            better => ratio(1.0 / better, "better"),
        };
        let why = if self.kind == Kind::Unknown { ", but the rounds overlap" } else { "" };
        format!("{} against {} under {} ({compared}{why})", value(self.mine), value(self.theirs), self.rival)
    }

    /// Returns a sentence about `subject`: the figure, or the scenario whose headline it is.
    pub(super) fn verdict(&self, subject: &str) -> Verdict {
        let start = match self.kind {
            Kind::Loss => format!("{} loses in", designs::OURS),
            Kind::Win => format!("{} wins in", designs::OURS),
            Kind::Unknown => format!("Unknown whether {} wins in", designs::OURS),
            _ => format!("{} is level in", designs::OURS),
        };
        Verdict { kind: self.kind, text: format!("{start} {subject}: {}.", self.figures()) }
    }
}

/// A rival that is worse than Faultless's own design beyond noise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Behind {
    pub rival: &'static str,
    pub scenario: &'static str,
    /// The factor by which the rival is worse.
    pub times: f64,
    unit: Unit,
    mine: f64,
    theirs: f64,
}

impl Behind {
    /// Compares one rival with `ours` in the headline. Returns `None` if the rival is not worse beyond noise, if there
    /// are too few rounds, or if the divisor is zero.
    pub(super) fn new(ours: &Run, rival: &Run) -> Option<Self> {
        let figure = &ours.scenario.headline;
        let (mine, theirs) = (ours.headline()?, rival.headline()?);
        let is_worse = (theirs.median > mine.median) == (figure.better == Better::Lower);
        let has_rounds = rounds(ours, figure).min(rounds(rival, figure)) >= LEAST_ROUNDS;
        if figure.better == Better::Neither
            || !is_worse
            || !has_rounds
            || mine.compared(theirs) != Difference::Beyond
        {
            return None;
        }
        let times = times_worse(theirs.median, mine.median, figure.better)?;
        let (rival, scenario) = (rival.contender.name(), ours.scenario.name);
        Some(Self { rival, scenario, times, unit: figure.unit, mine: mine.median, theirs: theirs.median })
    }

    /// Returns a sentence such as "vma-lock-hold waits longest in fork-during-io: 7.38 ms against 47.3 µs under
    /// faultless (156 times worse)."
    pub(super) fn verdict(&self) -> Verdict {
        let verb = match self.unit {
            Unit::Nanos | Unit::Micros => "waits longest",
            Unit::PerSecond | Unit::Ratio | Unit::Each => "is furthest behind",
        };
        let [theirs, mine] = [self.theirs, self.mine].map(|value| number::value(value, self.unit));
        let text = format!(
            "{} {verb} in {}: {theirs} against {mine} under {} ({} times worse).",
            self.rival,
            self.scenario,
            designs::OURS,
            number::value(self.times, Unit::Ratio)
        );
        Verdict { kind: Kind::Note, text }
    }
}

/// Separates Faultless's own design from its rivals. Runs without rounds are omitted.
pub(super) fn split<'a>(runs: &[&'a Run]) -> (Option<&'a Run>, Vec<&'a Run>) {
    let ran = runs.iter().copied().filter(|run| !run.rounds.is_empty());
    let (ours, others): (Vec<_>, Vec<_>) = ran.partition(|run| run.contender.is_ours());
    (ours.first().copied(), others.into_iter().filter(|run| run.contender.is_rival()).collect())
}

/// Returns the verdicts in the order of their kinds, with one sentence for all figures of too few rounds.
pub(super) fn sorted(duels: &[Duel], subject: impl Fn(&Duel) -> String) -> Vec<Verdict> {
    let (few, enough): (Vec<&Duel>, Vec<&Duel>) = duels.iter().partition(|duel| duel.kind == Kind::TooFew);
    let mut verdicts: Vec<_> = enough.iter().map(|duel| duel.verdict(&subject(duel))).collect();
    if !few.is_empty() {
        let few: Vec<_> = few.into_iter().map(&subject).collect();
        verdicts.push(too_few(&few));
    }
    // The sort is stable, so verdicts of one kind stay in the order of figures.
    verdicts.sort_by_key(|verdict| verdict.kind);
    verdicts
}

fn too_few(subjects: &[String]) -> Verdict {
    let subjects = number::list(subjects);
    let text =
        format!("Fewer than {LEAST_ROUNDS} rounds allow no verdict on {subjects}: give more --seconds.");
    Verdict { kind: Kind::TooFew, text }
}

/// Returns the title of a figure as a name within a sentence.
pub(super) fn quoted(figure: &Figure) -> String {
    format!("“{}”", figure.title)
}

/// Returns the verdicts of one scenario.
pub(super) fn of_scenario(runs: &[&Run]) -> Vec<Verdict> {
    let (ours, rivals) = split(runs);
    let Some(ours) = ours.filter(|_| !rivals.is_empty()) else { return vec![without_comparison(runs)] };
    let figures = std::iter::once(&ours.scenario.headline).chain(ours.scenario.figures);
    let duels: Vec<_> = figures.filter_map(|figure| Duel::new(ours, &rivals, figure)).collect();
    let mut verdicts = sorted(&duels, |duel| quoted(&duel.figure));
    verdicts.extend(mmap_lock_reads(ours, &rivals));
    verdicts
}

/// Returns the number of times that a major fault took mmap_lock, under Faultless's own design and under the rivals
/// that took it least and most.
fn mmap_lock_reads(ours: &Run, rivals: &[&Run]) -> Option<Verdict> {
    let reads = |measured: &Measured| measured.per_major_fault(Counter::MmapLockRead);
    let mine = reads(&ours.total)?;
    let mut theirs: Vec<_> =
        rivals.iter().filter_map(|run| Some((run.contender.name(), reads(&run.total)?))).collect();
    theirs.sort_by(|a, b| a.1.total_cmp(&b.1));
    let under = |(name, each): (&str, f64)| format!("{} times under {name}", number::value(each, Unit::Each));
    let others = match &theirs[..] {
        [] => return None,
        [one] => under(*one),
        [least, .., most] => format!("{} and {}", under(*least), under(*most)),
    };
    let mine = under((ours.contender.name(), mine));
    let text = format!("A major fault takes mmap_lock {mine}, {others}.");
    Some(Verdict { kind: Kind::Note, text })
}

fn without_comparison(runs: &[&Run]) -> Verdict {
    let ran: Vec<_> = runs.iter().filter(|run| !run.rounds.is_empty()).collect();
    let figure = &runs[0].scenario.headline;
    let measured: Vec<_> = ran.iter().filter(|run| run.headline().is_some()).collect();
    let spreads = measured.iter().filter_map(|run| Some((run.contender.name(), run.headline()?)));
    let value = |spread: Spread| number::value(spread.median, figure.unit);
    let title = quoted(figure);
    let text = match (best_of(spreads, figure.better), &ran[..]) {
        (Some((name, spread)), [_]) => format!("Only {name} ran: {title} is {}.", value(spread)),
        (Some(_), ran) if ran.iter().any(|run| run.contender.is_ours()) => {
            format!("No rival of {} ran.", designs::OURS)
        }
        (Some(_), _) if measured.iter().any(|run| rounds(run, figure) < LEAST_ROUNDS) => {
            return too_few(&[title]);
        }
        (Some((name, spread)), _) => {
            format!("{} did not run. {name} has the best {title}: {}.", designs::OURS, value(spread))
        }
        (None, []) => "The run was too short to measure anything: give more --seconds.".into(),
        (None, ran) => not_measured(ran, &title),
    };
    Verdict { kind: Kind::Note, text }
}

/// Says that runs with rounds have no headline, with the reason from their notes.
fn not_measured(ran: &[&&Run], title: &str) -> String {
    let names: Vec<_> = ran.iter().map(|run| run.contender.name().to_string()).collect();
    let verb = if names.len() == 1 { "does" } else { "do" };
    let mut notes = ran.iter().flat_map(|run| &run.total.notes);
    let reason = notes.find_map(|note| Some(note.split_once(" is not measured: ")?.1));
    let reason = reason.map_or("give more --seconds".into(), |reason| format!("the reason is: {reason}"));
    format!("{} {verb} not measure the headline, {title}; {reason}.", number::list(&names))
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    fn texts(runs: &[&Run]) -> Vec<String> {
        of_scenario(runs).into_iter().map(|verdict| verdict.text).collect()
    }

    #[test]
    fn losses_come_first() {
        let (ours, theirs) = (run("faultless", &[200, 210, 220], 0), run("mmap-lock", &[100, 105, 110], 10));
        let verdicts = of_scenario(&[&theirs, &ours]);
        let kinds: Vec<_> = verdicts.iter().map(|verdict| verdict.kind).collect();
        assert!(
            kinds.is_sorted() && kinds.contains(&Kind::Loss) && kinds.contains(&Kind::Level),
            "{kinds:?}"
        );
        let loss =
            "faultless loses in “bystander p99”: 210 µs against 105 µs under mmap-lock (2.00 times worse).";
        assert_eq!(verdicts[0].text, loss);
        let note = "A major fault takes mmap_lock 0 times under faultless, 1.00 times under mmap-lock.";
        assert_eq!(verdicts.last().unwrap().text, note);
        let texts = texts(&[&run("mmap-lock", &[300, 305, 310], 0), &ours]);
        let win =
            "faultless wins in “bystander p99”: 210 µs against 305 µs under mmap-lock (1.45 times better).";
        assert!(texts.iter().any(|text| text == win), "{texts:?}");
        assert!(!texts.iter().any(|text| text.contains("loses")), "{texts:?}");
    }

    #[test]
    fn the_rivals_that_took_mmap_lock_least_and_most_are_named() {
        let rounds = [200, 210, 220];
        let (ours, few) = (run("faultless", &rounds, 0), run("vma-lock-hold", &rounds, 1));
        let (some, most) = (run("vma-lock", &rounds, 10), run("mmap-lock", &rounds, 20));
        let text = texts(&[&most, &some, &few, &ours]).pop().unwrap();
        assert!(text.ends_with("0.10 times under vma-lock-hold and 2.00 times under mmap-lock."), "{text}");
    }

    #[test]
    fn few_rounds_give_no_verdict() {
        let (ours, theirs) = (run("faultless", &[200, 210], 0), run("mmap-lock", &[100, 105], 20));
        let verdicts = of_scenario(&[&theirs, &ours]);
        assert_eq!(verdicts[0].kind, Kind::TooFew);
        let few = "Fewer than 3 rounds allow no verdict on “bystander p99”, “major faults” and “CPU time of a fault”: give more --seconds.";
        assert_eq!(verdicts[0].text, few);
        assert_eq!(verdicts[1].kind, Kind::Note);
    }

    #[test]
    fn a_large_ratio_within_the_spread_is_unknown_and_not_level() {
        let (ours, theirs) = (run("faultless", &[90, 400, 500], 0), run("mmap-lock", &[100, 105, 110], 0));
        let verdict = &of_scenario(&[&theirs, &ours])[0];
        assert_eq!(verdict.kind, Kind::Unknown);
        let text = "Unknown whether faultless wins in “bystander p99”: 400 µs (90.0–500) against 105 µs (100–110) under mmap-lock (3.81 times worse, but the rounds overlap).";
        assert_eq!(verdict.text, text);
    }

    #[test]
    fn other_hardware_is_no_rival() {
        let (ours, native) = (run("faultless", &[200, 210, 220], 0), run("native", &[1, 1, 1], 20));
        assert_eq!(texts(&[&ours, &native]), ["No rival of faultless ran."]);
        let theirs = run("mmap-lock", &[200, 210, 220], 20);
        let texts = texts(&[&ours, &native, &theirs]);
        assert!(!texts.iter().any(|text| text.contains("loses") || text.contains("native")), "{texts:?}");
        assert!(texts[0].ends_with("under mmap-lock (the same)."), "{texts:?}");
    }

    #[test]
    fn one_design_alone_is_not_compared() {
        let theirs = run("mmap-lock", &[100], 1);
        assert_eq!(texts(&[&theirs]), ["Only mmap-lock ran: “bystander p99” is 100 µs."]);
    }

    #[test]
    fn rivals_alone_have_a_best_one_from_three_rounds_on() {
        let of =
            |rounds: &[u64]| texts(&[&run("mmap-lock", rounds, 1), &run("vma-lock", &[300, 300, 300], 1)]);
        assert_eq!(
            of(&[100, 100, 100]),
            ["faultless did not run. mmap-lock has the best “bystander p99”: 100 µs."]
        );
        let few = "Fewer than 3 rounds allow no verdict on “bystander p99”: give more --seconds.";
        assert_eq!(of(&[100, 100]), [few]);
    }

    #[test]
    fn a_headline_that_is_not_measured_has_its_reason() {
        let mut native = run("native", &[], 0);
        let mut measured = Measured::default();
        measured.note("mmap_lock is not counted: no tracefs");
        measured.note("fault in own process is not measured: there is one address space");
        native.total.add(&measured);
        native.rounds.push(measured);
        let text = "native does not measure the headline, “bystander p99”; the reason is: there is one address space.";
        assert_eq!(texts(&[&native]), [text]);
    }
}
