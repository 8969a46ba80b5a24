//! The summary of several scenarios: their headlines, and a sentence for each.

use super::figures::Figures;
use super::scenario::{INSIDE, NO_TWINS, frames, names, notes, same_code};
use super::verdict::{self, Behind, Duel, Kind, Verdict};
use crate::compare::{Outcome, Plan, Run};
use crate::comparison::{Comparison, twins};
use crate::designs;
use crate::report::number;

/// The contents of a report about several scenarios together.
#[derive(Clone, Debug)]
pub struct TourView {
    /// The headlines, with a column for each scenario.
    pub matrix: Figures,
    /// The least and the greatest number of rounds of a cell. Cells that did not run are not counted.
    pub rounds: (usize, usize),
    /// The results of Faultless's own design: a sentence for each scenario, one for losses in other figures, and one
    /// for the rival that is furthest behind.
    pub verdicts: Vec<Verdict>,
    /// The noise between designs that run the same code, in sentences.
    pub noise: String,
    /// The scenario to look at first.
    pub closer: Closer,
    /// The checks of all scenarios, with counts. All of them passed.
    pub checked: Vec<String>,
    /// The reasons why designs did not run, and facts about machines that affect the figures.
    pub notes: Vec<String>,
}

/// The scenario to look at first, and the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closer {
    /// The name of the scenario.
    pub scenario: &'static str,
    /// The reason, as a sentence.
    pub why: &'static str,
}

impl Closer {
    /// Chooses the largest loss, in a headline if possible. Without a loss, chooses the rival that is furthest behind.
    fn new(headlines: &[Duel], others: &[Duel], behind: Option<&Behind>, first: &'static str) -> Self {
        let loss = |duels, why| Some(Self { scenario: worst(duels)?.scenario, why });
        loss(headlines, "It has the largest loss of faultless.")
            .or_else(|| loss(others, "It has the largest loss of faultless in a figure of --details."))
            .or_else(|| Some(Self { scenario: behind?.scenario, why: "It has the largest difference." }))
            .unwrap_or(Self { scenario: first, why: "It is the first one. No difference is beyond noise." })
    }
}

impl TourView {
    /// Creates the summary of several scenarios, whether they ran as a tour or not; `None` for one scenario.
    pub fn of_several(outcome: &Outcome, plan: &Plan) -> Option<Self> {
        let runs = super::by_scenario(outcome, plan);
        (runs.len() > 1).then(|| Self::new(&runs))
    }

    /// Creates the summary from the runs of each scenario.
    pub(super) fn new(scenarios: &[Vec<&Run>]) -> Self {
        let all = || scenarios.iter().flatten();
        let rounds = || all().map(|run| run.rounds.len()).filter(|rounds| *rounds != 0);
        let rounds = (rounds().min().unwrap_or(0), rounds().max().unwrap_or(0));
        let (headlines, others) = duels(scenarios);
        let behind = furthest_behind(scenarios);
        Self {
            matrix: Figures::of_headlines(scenarios),
            rounds,
            closer: Closer::new(&headlines, &others, behind.as_ref(), scenarios[0][0].scenario.name),
            verdicts: verdicts(&headlines, &others, behind),
            noise: noise(scenarios),
            checked: checked_together(scenarios),
            notes: notes_together(scenarios),
        }
    }
}

/// Returns the comparisons in the headlines, and those in all other figures.
fn duels(scenarios: &[Vec<&Run>]) -> (Vec<Duel>, Vec<Duel>) {
    let (mut headlines, mut others) = (Vec::new(), Vec::new());
    for runs in scenarios {
        let (Some(ours), rivals) = verdict::split(runs) else { continue };
        headlines.extend(Duel::new(ours, &rivals, runs, &ours.scenario.headline));
        let figures = ours.scenario.figures.iter();
        others.extend(figures.filter_map(|figure| Duel::new(ours, &rivals, runs, figure)));
    }
    (headlines, others)
}

/// Returns the rival that is worse than Faultless's own design by the largest ratio, of all headlines.
fn furthest_behind(scenarios: &[Vec<&Run>]) -> Option<Behind> {
    let behind = scenarios.iter().flat_map(|runs| {
        let (ours, rivals) = verdict::split(runs);
        let comparison = Comparison::new(runs, &runs[0].scenario.headline);
        rivals.into_iter().filter_map(move |rival| Behind::new(ours?, rival, &comparison))
    });
    behind.max_by(|a, b| a.times().total_cmp(&b.times()))
}

fn verdicts(headlines: &[Duel], others: &[Duel], behind: Option<Behind>) -> Vec<Verdict> {
    let mut verdicts = verdict::sorted(headlines, |duel| duel.scenario.into());
    let losses = verdicts.iter().filter(|verdict| verdict.kind == Kind::Loss).count();
    // A loss in another figure than the headline must be reported too.
    if let Some(others) = other_losses(others) {
        verdicts.insert(losses, others);
    }
    // A win over the same rival has the same figures.
    let is_said = |behind: &Behind| {
        let mut wins = headlines.iter().filter(|duel| duel.kind == Kind::Win);
        wins.any(|duel| (duel.scenario, duel.rival) == (behind.scenario, behind.rival))
    };
    if let Some(behind) = behind.filter(|behind| !is_said(behind)) {
        let place = verdicts.iter().position(|verdict| verdict.kind > Kind::Level).unwrap_or(verdicts.len());
        verdicts.insert(place, behind.verdict());
    }
    verdicts
}

/// Returns sentences about the noise between twins in the headlines. Scenarios with the same twins share a sentence.
fn noise(scenarios: &[Vec<&Run>]) -> String {
    let mut alike: Vec<(Vec<Vec<&str>>, Vec<String>)> = Vec::new();
    for runs in scenarios {
        let groups: Vec<Vec<&str>> = names(&twins(runs));
        let Some(noise) = Comparison::new(runs, &runs[0].scenario.headline).noise else { continue };
        let place = format!("{} in {}", number::times(noise), runs[0].scenario.name);
        match alike.iter_mut().find(|(other, _)| *other == groups) {
            Some((_, places)) => places.push(place),
            None => alike.push((groups, vec![place])),
        }
    }
    let said = alike.iter().map(|(groups, places)| {
        format!("{} They differ by up to {}.", same_code(groups), number::list(places))
    });
    let said: Vec<_> = said.collect();
    if said.is_empty() { NO_TWINS.into() } else { format!("{} {INSIDE}", said.join(" ")) }
}

/// Returns the loss with the largest ratio.
fn worst(duels: &[Duel]) -> Option<&Duel> {
    let losses = duels.iter().filter(|duel| duel.kind == Kind::Loss);
    losses.max_by(|a, b| a.times_worse().total_cmp(&b.times_worse()))
}

fn other_losses(others: &[Duel]) -> Option<Verdict> {
    let compared = others.iter().filter(|duel| duel.kind != Kind::TooFew).count();
    let losses = others.iter().filter(|duel| duel.kind == Kind::Loss).count();
    let worst = worst(others)?;
    let text = format!(
        "{} loses in {losses} of the {compared} other figures (--details). The largest loss: {} in {}, {}.",
        designs::OURS,
        verdict::quoted(&worst.figure),
        worst.scenario,
        worst.figures()
    );
    Some(Verdict { kind: Kind::Loss, text })
}

/// Returns the checks of all scenarios. Counts of the same check are added.
fn checked_together(scenarios: &[Vec<&Run>]) -> Vec<String> {
    let mut together: Vec<(&str, u64)> = Vec::new();
    for runs in scenarios {
        for (counter, what) in runs[0].scenario.checked {
            let n: u64 = runs.iter().filter_map(|run| run.total.counted(counter)).sum();
            match together.iter_mut().find(|(other, _)| other == what) {
                Some((_, sum)) => *sum += n,
                None => together.push((what, n)),
            }
        }
    }
    let counts = together.iter().map(|(what, n)| format!("{} {what}", number::count(*n)));
    counts.chain(frames(&scenarios.concat())).collect()
}

/// Returns each note once, with its scenarios unless it concerns all of them.
fn notes_together(scenarios: &[Vec<&Run>]) -> Vec<String> {
    let mut together: Vec<(String, Vec<&str>)> = Vec::new();
    for runs in scenarios {
        for note in notes(runs) {
            match together.iter_mut().find(|(other, _)| *other == note) {
                Some((_, names)) => names.push(runs[0].scenario.name),
                None => together.push((note, vec![runs[0].scenario.name])),
            }
        }
    }
    let said = together.into_iter().map(|(note, names)| match names.len() {
        n if n == scenarios.len() => note,
        _ => format!("{note} ({})", names.join(", ")),
    });
    said.collect()
}
