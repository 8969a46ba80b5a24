//! Sentences on the losses, the ties and the wins of Faultless's own design. Losses come first.

use crate::compare::Run;
use crate::comparison::{Compared, Comparison, best_of};
use crate::designs;
use crate::interval::{Difference, Doubt, Interval, LEAST_ROUNDS};
use crate::measure::{Measured, Spread};
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
    /// Faultless's own design may be worse or better. The noise is too large to tell.
    Unknown,
    /// No difference, or one that is smaller than a level result allows.
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
    compared: Compared,
    /// The greatest ratio between designs that run the same code.
    noise: Option<f64>,
}

impl Duel {
    /// Compares `ours` with the best of `rivals`. `runs` are all runs of the scenario: their twins show the noise. Returns
    /// `None` if no round has the figure under both, or if designs are not compared by it.
    pub(super) fn new(ours: &Run, rivals: &[&Run], runs: &[&Run], figure: &Figure) -> Option<Self> {
        if figure.better == Better::Neither {
            return None;
        }
        let comparison = Comparison::new(runs, figure);
        let mine = ours.spread(figure)?;
        let theirs = rivals.iter().filter_map(|run| Some((*run, run.spread(figure)?)));
        let (rival, theirs) = best_of(theirs, figure.better)?;
        let compared = comparison.of(ours, rival)?;
        let kind = match compared.difference {
            Difference::Unknown(Doubt::FewRounds) => Kind::TooFew,
            Difference::Unknown(_) => Kind::Unknown,
            Difference::Level => Kind::Level,
            Difference::Beyond if compared.worse.ratio > 1.0 => Kind::Loss,
            Difference::Beyond => Kind::Win,
        };
        let (figure, scenario, noise) = (*figure, ours.scenario.name, comparison.noise);
        Some(Self { kind, figure, scenario, rival: rival.contender.name(), mine, theirs, compared, noise })
    }

    /// Returns the factor by which Faultless's own design is worse; below 1 if it is better. Infinite if the divisor
    /// is zero.
    pub(super) fn times_worse(&self) -> f64 {
        self.compared.worse.ratio
    }

    /// Returns the figures, such as "1.20 ms against 1.10 ms under vma-lock (1.09 times worse, 0.98–1.15)". Behind an
    /// unknown result stands the reason.
    pub(super) fn figures(&self) -> String {
        let value = |spread: Spread| number::value(spread.median, self.figure.unit);
        let why = match (self.compared.difference, self.noise) {
            (Difference::Unknown(Doubt::Wide), _) => "; the interval is too wide".into(),
            (Difference::Unknown(Doubt::Twins), Some(noise)) => {
                format!("; twins differ by up to {}", number::times(noise))
            }
            _ => String::new(),
        };
        let ratio = ratio(self.compared.worse);
        format!("{} against {} under {} ({ratio}{why})", value(self.mine), value(self.theirs), self.rival)
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

/// Returns a ratio and its interval, such as "1.09 times worse, 0.98–1.15". A ratio below 1 is told as its reciprocal.
fn ratio(worse: Interval) -> String {
    let (interval, word) = if worse.ratio < 1.0 { (worse.inverse(), "better") } else { (worse, "worse") };
    if !interval.ratio.is_finite() {
        return "no ratio to zero".into();
    }
    let ends = format!("{}–{}", end(interval.low), end(interval.high));
    match interval.ratio {
        times if times < 1.005 => format!("the same, {ends}"),
        times => format!("{} times {word}, {ends}", number::value(times, Unit::Ratio)),
    }
}

/// Returns an end of an interval. It may be infinite.
fn end(ratio: f64) -> String {
    if ratio.is_finite() { number::value(ratio, Unit::Ratio) } else { "∞".into() }
}

/// A rival that is worse than Faultless's own design beyond noise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Behind {
    pub rival: &'static str,
    pub scenario: &'static str,
    unit: Unit,
    mine: f64,
    theirs: f64,
    /// The factor by which the rival is worse.
    worse: Interval,
}

impl Behind {
    /// Compares one rival with `ours` in the headline. Returns `None` if the rival is not worse beyond noise, or if the
    /// divisor is zero.
    pub(super) fn new(ours: &Run, rival: &Run, comparison: &Comparison<'_>) -> Option<Self> {
        let figure = &ours.scenario.headline;
        let (mine, theirs) = (ours.headline()?.median, rival.headline()?.median);
        let Compared { worse, difference } = comparison.of(rival, ours)?;
        let is_worse = difference == Difference::Beyond && worse.ratio > 1.0 && worse.ratio.is_finite();
        let (rival, scenario) = (rival.contender.name(), ours.scenario.name);
        (is_worse && figure.better != Better::Neither).then_some(Self {
            rival,
            scenario,
            unit: figure.unit,
            mine,
            theirs,
            worse,
        })
    }

    /// Returns the factor by which the rival is worse.
    pub(super) fn times(&self) -> f64 {
        self.worse.ratio
    }

    /// Returns a sentence such as "vma-lock-hold waits longest in fork-during-io: 7.38 ms against 47.3 µs under
    /// faultless (156 times worse, 120–180)."
    pub(super) fn verdict(&self) -> Verdict {
        let verb = match self.unit {
            Unit::Nanos | Unit::Micros => "waits longest",
            Unit::PerSecond | Unit::Ratio | Unit::Each => "is furthest behind",
        };
        let [theirs, mine] = [self.theirs, self.mine].map(|value| number::value(value, self.unit));
        let text = format!(
            "{} {verb} in {}: {theirs} against {mine} under {} ({}).",
            self.rival,
            self.scenario,
            designs::OURS,
            ratio(self.worse)
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
    let figures = ours.scenario.all_figures();
    let duels: Vec<_> = figures.filter_map(|figure| Duel::new(ours, &rivals, runs, figure)).collect();
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
        (Some(_), _) if measured.iter().any(|run| run.values(figure).count() < LEAST_ROUNDS) => {
            return too_few(&[title]);
        }
        (Some((name, spread)), _) => {
            format!(
                "{} did not run. {name} has the best median of {title}: {}.",
                designs::OURS,
                value(spread)
            )
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
        let (ours, theirs) = (
            run("faultless", &[200, 206, 210, 214, 220], 0),
            run("mmap-lock", &[100, 103, 105, 107, 110], 10),
        );
        let verdicts = of_scenario(&[&theirs, &ours]);
        let kinds: Vec<_> = verdicts.iter().map(|verdict| verdict.kind).collect();
        assert!(
            kinds.is_sorted() && kinds.contains(&Kind::Loss) && kinds.contains(&Kind::Level),
            "{kinds:?}"
        );
        let loss = "faultless loses in “bystander p99”: 210 µs against 105 µs under mmap-lock (2.00 times worse, 2.00–2.00).";
        assert_eq!(verdicts[0].text, loss);
        let note = "A major fault takes mmap_lock 0 times under faultless, 1.00 times under mmap-lock.";
        assert_eq!(verdicts.last().unwrap().text, note);
        let texts = texts(&[&run("mmap-lock", &[300, 303, 305, 309, 310], 0), &ours]);
        let win = "faultless wins in “bystander p99”: 210 µs against 305 µs under mmap-lock (1.45 times better, 1.41–1.50).";
        assert!(texts.iter().any(|text| text == win), "{texts:?}");
        assert!(!texts.iter().any(|text| text.contains("loses")), "{texts:?}");
    }

    #[test]
    fn the_rivals_that_took_mmap_lock_least_and_most_are_named() {
        let rounds = [200, 205, 210, 215, 220];
        let (ours, few) = (run("faultless", &rounds, 0), run("vma-lock-hold", &rounds, 1));
        let (some, most) = (run("vma-lock", &rounds, 10), run("mmap-lock", &rounds, 20));
        let text = texts(&[&most, &some, &few, &ours]).pop().unwrap();
        assert!(text.ends_with("0.10 times under vma-lock-hold and 2.00 times under mmap-lock."), "{text}");
    }

    #[test]
    fn few_rounds_give_no_verdict() {
        let (ours, theirs) = (run("faultless", &[200; 4], 0), run("mmap-lock", &[100; 4], 20));
        let verdicts = of_scenario(&[&theirs, &ours]);
        assert_eq!(verdicts[0].kind, Kind::TooFew);
        let few = "Fewer than 5 rounds allow no verdict on “bystander p99”, “major faults” and “CPU time of a fault”: give more --seconds.";
        assert_eq!(verdicts[0].text, few);
        assert_eq!(verdicts[1].kind, Kind::Note);
    }

    #[test]
    fn a_large_ratio_with_a_wide_interval_is_unknown_and_not_level() {
        let ours = run("faultless", &[90, 95, 400, 450, 500], 0);
        let verdict = &of_scenario(&[&run("mmap-lock", &[100; 5], 0), &ours])[0];
        assert_eq!(verdict.kind, Kind::Unknown);
        let text = "Unknown whether faultless wins in “bystander p99”: 400 µs against 100 µs under mmap-lock (4.00 times worse, 0.90–5.00; the interval is too wide).";
        assert_eq!(verdict.text, text);
    }

    #[test]
    fn a_difference_that_twins_have_too_is_unknown_and_names_it() {
        // Both designs with a retry under the VMA lock run the same code, also with I/O.
        let twins = [run("vma-lock-retry", &[100; 5], 0), run("vma-lock-retry-uptodate", &[130; 5], 0)];
        let ours = run("faultless", &[120; 5], 0);
        let verdict = &of_scenario(&[&twins[0], &twins[1], &ours])[0];
        let text = "Unknown whether faultless wins in “bystander p99”: 120 µs against 100 µs under vma-lock-retry (1.20 times worse, 1.20–1.20; twins differ by up to 1.30×).";
        assert_eq!((verdict.kind, verdict.text.as_str()), (Kind::Unknown, text));
        // Without the second twin, the noise is not known.
        assert_eq!(of_scenario(&[&twins[0], &ours])[0].kind, Kind::Loss);
    }

    #[test]
    fn other_hardware_is_no_rival() {
        let (ours, native) = (run("faultless", &[200; 5], 0), run("native", &[1; 5], 20));
        assert_eq!(texts(&[&ours, &native]), ["No rival of faultless ran."]);
        let theirs = run("mmap-lock", &[200; 5], 20);
        let texts = texts(&[&ours, &native, &theirs]);
        assert!(!texts.iter().any(|text| text.contains("loses") || text.contains("native")), "{texts:?}");
        assert!(texts[0].ends_with("under mmap-lock (the same, 1.00–1.00)."), "{texts:?}");
    }

    #[test]
    fn one_design_alone_is_not_compared() {
        let theirs = run("mmap-lock", &[100], 1);
        assert_eq!(texts(&[&theirs]), ["Only mmap-lock ran: “bystander p99” is 100 µs."]);
    }

    #[test]
    fn rivals_alone_have_a_best_one_from_five_rounds_on() {
        let of = |rounds: &[u64]| texts(&[&run("mmap-lock", rounds, 1), &run("vma-lock", &[300; 5], 1)]);
        assert_eq!(
            of(&[100; 5]),
            ["faultless did not run. mmap-lock has the best median of “bystander p99”: 100 µs."]
        );
        let few = "Fewer than 5 rounds allow no verdict on “bystander p99”: give more --seconds.";
        assert_eq!(of(&[100; 4]), [few]);
    }

    #[test]
    fn a_headline_that_is_not_measured_has_its_reason() {
        let mut native = run("native", &[], 0);
        let mut measured = Measured::default();
        measured.note("mmap_lock is not counted: no tracefs");
        measured.note("fault in own process is not measured: there is one address space");
        native.total.add(&measured);
        native.rounds.push(crate::compare::Round { number: 0, measured });
        let text = "native does not measure the headline, “bystander p99”; the reason is: there is one address space.";
        assert_eq!(texts(&[&native]), [text]);
    }
}
