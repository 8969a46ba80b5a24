//! One scenario under several designs.

use super::figures::Figures;
use super::verdict::{self, Verdict};
use super::waits::Waits;
use crate::compare::{Plan, Run};
use crate::comparison::twins;
use crate::contender::Contender;
use crate::designs::LeafTables;
use crate::report::number;
use std::collections::BTreeSet;

/// The contents of a report about one scenario.
#[derive(Clone, Debug)]
pub struct ScenarioView {
    /// The name of the scenario.
    pub name: &'static str,
    /// A one-line description.
    pub about: &'static str,
    /// The settings of the run: threads, rates, rounds.
    pub setup: Vec<String>,
    /// The checks, with counts. All of them passed.
    pub checked: Vec<String>,
    /// The figures. The headline comes first.
    pub figures: Figures,
    /// The waits of each design's threads; empty if no thread waited.
    pub waits: Vec<Waits>,
    /// The comparisons of Faultless's own design with its rivals. Losses come first.
    pub verdicts: Vec<Verdict>,
    /// The noise between designs that run the same code, in sentences.
    pub noise: String,
    /// The reasons why designs did not run or stopped, and facts about the machine that affect the figures.
    pub notes: Vec<String>,
}

impl ScenarioView {
    /// Creates the view of all runs of one scenario.
    pub(super) fn new(runs: &[&Run], plan: &Plan) -> Self {
        let scenario = runs[0].scenario;
        let figures = Figures::of_scenario(runs);
        Self {
            name: scenario.name,
            about: scenario.about,
            setup: setup(runs, plan),
            checked: counts(runs, scenario.checked).into_iter().chain(frames(runs)).collect(),
            noise: noise(&twins(runs), &figures),
            figures,
            waits: Waits::of(runs),
            verdicts: verdict::of_scenario(runs),
            notes: notes(runs).into_iter().chain(counts(runs, scenario.missed)).collect(),
        }
    }
}

/// Says that no two designs run the same code.
pub(super) const NO_TWINS: &str =
    "No two of these designs run the same code here. So only the rounds show the noise.";
/// The consequence of the noise between twins.
pub(super) const INSIDE: &str = "A difference counts only if it is larger.";

/// Returns the names of the designs of each group.
pub(super) fn names(groups: &[Vec<&Run>]) -> Vec<Vec<&'static str>> {
    groups.iter().map(|group| group.iter().map(|run| run.contender.name()).collect()).collect()
}

/// Says which designs run the same code.
pub(super) fn same_code(groups: &[Vec<&str>]) -> String {
    let list = |group: &Vec<&str>| number::list(&group.iter().map(ToString::to_string).collect::<Vec<_>>());
    let groups: Vec<_> = groups.iter().map(list).collect();
    format!("Twins run the same code: {}.", groups.join("; "))
}

/// Returns sentences about the noise between twins, in the main figures by which designs are compared.
fn noise(groups: &[Vec<&Run>], figures: &Figures) -> String {
    let main = figures.columns.iter().filter(|column| !column.is_detail);
    let places =
        main.filter_map(|column| Some(format!("{} in “{}”", number::times(column.noise?), column.title)));
    let places: Vec<_> = places.collect();
    match groups.is_empty() || places.is_empty() {
        true => NO_TWINS.into(),
        false => {
            format!("{} They differ by up to {}. {INSIDE}", same_code(&names(groups)), number::list(&places))
        }
    }
}

fn counted(runs: &[&Run], name: &str) -> u64 {
    runs.iter().filter_map(|run| run.total.counted(name)).sum()
}

fn setup(runs: &[&Run], plan: &Plan) -> Vec<String> {
    let (scenario, settings) = (runs[0].scenario, &plan.settings);
    let mut setup = vec![number::plural(settings.threads(scenario), "thread")];
    if counted(runs, "major_faults") != 0 {
        setup.push(format!("each read takes at least {:?}", settings.io_latency));
    }
    setup
        .extend(scenario.rates.iter().map(|(name, _)| format!("{name} {}/s", settings.rate(scenario, name))));
    if runs.iter().any(|run| run.total.latency.contains_key("fork")) {
        setup.extend(leaf_tables(runs, settings.fork));
    }
    setup.push(rounds(runs, plan));
    setup
}

/// Describes the treatment of leaf tables by fork. `all`: the one that the user has chosen for all designs. Returns `None` if only the
/// kernel takes part.
fn leaf_tables(runs: &[&Run], all: Option<LeafTables>) -> Option<String> {
    let ways: Vec<_> = runs
        .iter()
        .filter_map(|run| match run.contender {
            Contender::Engine(design) => Some((design.name, all.unwrap_or(design.fork))),
            Contender::Native { .. } => None,
        })
        .collect();
    let under = |way| ways.iter().filter(|(_, its)| *its == way).map(|(name, _)| *name).collect::<Vec<_>>();
    let (copying, sharing) = (under(LeafTables::Copy), under(LeafTables::Share));
    match (copying.as_slice(), sharing.as_slice()) {
        ([], []) => None,
        (_, []) => Some("fork copies leaf tables".into()),
        ([], _) => Some("fork shares leaf tables".into()),
        (_, sharing) => Some(format!(
            "fork shares leaf tables under {} and copies them under the others",
            sharing.join(" and ")
        )),
    }
}

/// Describes the check at the end of each round on the software machine; `None` if there was no such round. If each
/// design has the same number of rounds in each scenario, the product is shown.
pub(super) fn frames(runs: &[&Run]) -> Option<String> {
    let here: Vec<_> =
        runs.iter().filter(|run| !run.contender.is_native() && !run.rounds.is_empty()).collect();
    let rounds: usize = here.iter().map(|run| run.rounds.len()).sum();
    let each = here.first()?.rounds.len();
    let designs: BTreeSet<_> = here.iter().map(|run| run.contender.name()).collect();
    let scenarios: BTreeSet<_> = here.iter().map(|run| run.scenario.name).collect();
    let factors = [(designs.len(), "design"), (scenarios.len(), "scenario"), (each, "round")];
    let shown = factors.iter().filter(|(n, noun)| *n != 1 || *noun == "round");
    let product = shown.map(|(n, noun)| number::plural(*n, noun)).collect::<Vec<_>>().join(" × ");
    let is_product = rounds != each && rounds == factors.iter().map(|(n, _)| n).product::<usize>();
    let how = if is_product { format!(" ({product})") } else { String::new() };
    let rounds = number::plural(rounds, "round");
    Some(format!("all frames returned, in {rounds} on the software machine{how}"))
}

/// Describes the rounds, such as "3 rounds of 0.4 s for each design".
fn rounds(runs: &[&Run], plan: &Plan) -> String {
    let rounds = runs.iter().map(|run| run.rounds.len()).max().unwrap_or(0);
    let length = plan.pace().length;
    let seconds = (length.as_secs_f64() * 100.0).round() / 100.0;
    format!("{} of {seconds} s for each design", number::plural(rounds, "round"))
}

/// Returns the values of `counters`, each with its description.
fn counts(runs: &[&Run], counters: &[(&str, &str)]) -> Vec<String> {
    let counts = counters.iter().map(|(name, what)| (counted(runs, name), what));
    counts.filter(|(n, _)| *n != 0).map(|(n, what)| format!("{} {what}", number::count(n))).collect()
}

/// Returns the reasons why designs did not run or stopped, and the notes of the machines, each once with its designs.
pub(super) fn notes(runs: &[&Run]) -> Vec<String> {
    let mut notes: Vec<(String, Vec<&str>)> = Vec::new();
    let ran: Vec<&str> =
        runs.iter().filter(|run| !run.rounds.is_empty()).map(|run| run.contender.name()).collect();
    for run in runs {
        let name = run.contender.name();
        let end = if run.rounds.is_empty() { "cannot run" } else { "stopped" };
        let skipped = run.skipped.iter().map(|reason| format!("{end}: {reason}"));
        for note in skipped.chain(run.total.notes.iter().cloned()) {
            match notes.iter_mut().find(|(other, _)| *other == note) {
                Some((_, names)) if names.contains(&name) => {}
                Some((_, names)) => names.push(name),
                None => notes.push((note, vec![name])),
            }
        }
    }
    let said = notes.into_iter().map(|(note, names)| match &names[..] {
        // A note on all designs concerns the machine, so it needs no names.
        _ if names.len() > 1 && names == ran => note,
        [name] if note.starts_with("cannot run") || note.starts_with("stopped") => format!("{name} {note}"),
        _ => format!("{}: {note}", names.join(", ")),
    });
    said.collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn a_note_is_said_once() {
        let note = "mmap_lock is not counted: no tracefs";
        let (mut native, mut ours) = (run("native", &[100], 1), run("faultless", &[100], 1));
        native.total.note(note);
        assert_eq!(notes(&[&native, &native]), [format!("native: {note}")]);
        ours.total.note(note);
        assert_eq!(notes(&[&native, &ours]), [note]);
        let theirs = run("mmap-lock", &[100], 1);
        assert_eq!(notes(&[&theirs, &native, &ours]), [format!("native, faultless: {note}")]);
    }

    #[test]
    fn a_design_that_did_not_run_has_its_reason() {
        let skipped = |rounds: &[u64]| Run { skipped: Some("no FUSE".into()), ..run("native", rounds, 0) };
        assert_eq!(notes(&[&skipped(&[])]), ["native cannot run: no FUSE"]);
        assert_eq!(notes(&[&skipped(&[1])]), ["native stopped: no FUSE"]);
    }
}
