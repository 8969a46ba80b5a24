use super::*;
use crate::compare::Round;
use crate::contender::Contender;
use crate::measure::{Latency, Measured};
use crate::scenarios::{self, Scenario, Settings};
use faultless::stats::Counter;
use std::time::Duration;

/// Returns a run of the first scenario with the given bystander latencies, in µs, one a round. `reads` is the number
/// of times that ten major faults took mmap_lock.
pub(crate) fn run(design: &str, bystander: &[u64], reads: u64) -> Run {
    let round = |us: &u64| {
        let mut measured = Measured { seconds: 1.0, ..Measured::default() };
        let mut latency = Latency::default();
        latency.record(Duration::from_micros(*us));
        measured.add_latency("bystander", &latency);
        measured.count(Counter::MajorFaults.name(), 10);
        measured.count("major_fault_mmap_lock_read", reads);
        // This counter includes all faults, so it must not be used for major faults.
        measured.count(Counter::MmapLockRead.name(), 1000 + reads);
        measured.faults_timed = 10;
        measured
    };
    of_rounds(&scenarios::ALL[0], design, bystander.iter().map(round).collect())
}

fn of_rounds(scenario: &'static Scenario, design: &str, rounds: Vec<Measured>) -> Run {
    let mut total = Measured::default();
    rounds.iter().for_each(|round| total.add(round));
    let contender = Contender::find(design).unwrap();
    let numbered = rounds.into_iter().enumerate();
    let rounds = numbered.map(|(number, measured)| Round { number, measured }).collect();
    Run { scenario, contender, rounds, total, skipped: None, recording: None }
}

/// Returns a tour with invented figures: losses, wins, noise, and a design that cannot run.
pub(crate) fn tour() -> (Outcome, Plan) {
    const SCENARIOS: [&str; 4] = ["fork-during-io", "retry-storm", "giant-vma", "disjoint-change"];
    // For each design: the bystander's p99 in µs, reads for ten pages, a fault in one VMA in ns (a fault in an own
    // process takes 200), and changes in ten milliseconds.
    const FIGURES: [(&str, [u64; 4]); 6] = [
        ("mmap-lock", [1210, 13, 310, 1502]),
        ("vma-lock", [1195, 14, 300, 4540]),
        ("vma-lock-retry", [1300, 15, 298, 3100]),
        ("vma-lock-hold", [9800, 10, 297, 3050]),
        ("faultless", [1250, 10, 201, 2200]),
        ("native", [55, 0, 350, 1090]),
    ];
    let mut runs = Vec::new();
    for (at, name) in SCENARIOS.into_iter().enumerate() {
        let scenario = scenarios::find(name).unwrap();
        for (design, figures) in FIGURES {
            let rounds = (0..5).map(|round| invented(at, figures[at], round));
            let is_there = figures[at] != 0;
            let mut run = of_rounds(scenario, design, rounds.filter(|_| is_there).collect());
            if !is_there {
                run.skipped = Some("the kernel's page cache cannot be made small for one process".into());
            }
            runs.push(run);
        }
    }
    let plan = Plan {
        scenarios: SCENARIOS.map(|name| scenarios::find(name).unwrap()).into(),
        contenders: FIGURES.map(|(design, _)| Contender::find(design).unwrap()).into(),
        settings: Settings { io_latency: Duration::from_millis(2), ..Settings::default() },
        seconds: None,
        records: false,
        is_tour: true,
    };
    (Outcome { runs, interrupted: false, round: plan.pace().length }, plan)
}

/// Returns the measurements of an invented round. Its figure is up to 3 % away from `figure`, in another way for each
/// design.
fn invented(scenario: usize, figure: u64, round: u64) -> Measured {
    const NOISE: [u64; 5] = [1000, 1020, 980, 1030, 970];
    let (whole, figure) = (figure, figure * NOISE[((figure * 7 / 10 + round) % 5) as usize] / 1000);
    let mut measured = Measured {
        seconds: 0.4,
        faults_timed: 100,
        fault_cpu: Duration::from_micros(900 + figure / 100),
        ..Measured::default()
    };
    let mut latency = |name: &str, nanoseconds: u64| {
        let mut one = Latency::default();
        one.record(Duration::from_nanos(nanoseconds));
        measured.add_latency(name, &one);
    };
    match scenario {
        0 => {
            latency("bystander", figure * 1000);
            // Faultless's own design forks slowly, which is a loss in another figure than the headline.
            let slow = if whole == 1250 { 250 } else { 100 };
            latency("fork", slow * figure);
            latency("fault", 2_300_000 + 1000 * figure);
            measured.count("pages_checked", 90_000);
            measured.count("children_checked", 17);
            measured.count("major_faults", 500);
            measured.count("major_fault_mmap_lock_read", figure / 12);
            measured.count("io_wait_ns", 1_100_000_000);
            measured.count("mmap_lock_wait_ns", 100_000 * figure);
            measured.count("mmap_lock_wait_fork_ns", 60_000 * figure);
            measured.count("mmap_lock_wait_change_ns", 40_000 * figure);
        }
        1 => {
            latency("bystander", 900_000);
            measured.count("io_reads", 100 * figure);
            measured.count("pages_used", 1000);
            measured.count("pages_checked", 1000);
        }
        2 => {
            latency("giant", figure);
            latency("apart", 200);
            latency("alone", 199);
            measured.count("pages_checked", 12_000);
        }
        _ => {
            latency("beside_changes", 700);
            measured.count("beside_changes_done", figure);
            measured.count("beside_changes_wall_ns", 10_000_000);
            measured.count("words_checked", 50_000);
        }
    }
    measured
}

fn classes(runs: &[&Run]) -> Vec<Class> {
    let figures = Figures::of_scenario(runs);
    figures.rows.into_iter().map(|row| row.cells[0].class.clone()).collect()
}

#[test]
fn a_figure_is_best_level_or_worse_beyond_noise() {
    let runs = [
        run("mmap-lock", &[100, 101, 102, 103, 104], 0),
        run("vma-lock", &[105, 98, 104, 107, 101], 0),
        run("vma-lock-retry", &[150, 151, 152, 154, 156], 0),
        // Its rounds are on both sides of those of the best.
        run("vma-lock-hold", &[90, 92, 800, 900, 950], 0),
        run("faultless", &[300, 310, 320, 330, 340], 0),
    ];
    let wanted = [Class::Best, Class::Level, Class::Between, Class::Unknown, Class::Worse];
    assert_eq!(classes(&runs.iter().collect::<Vec<_>>()), wanted);
}

/// A run of the scenario without I/O, with these faults of one VMA in ns, one a round.
fn giant(design: &str, faults: &[u64]) -> Run {
    let round = |ns: &u64| {
        let mut measured = Measured { seconds: 1.0, ..Measured::default() };
        for (name, ns) in [("giant", *ns), ("apart", 1000)] {
            let mut latency = Latency::default();
            latency.record(Duration::from_nanos(ns));
            measured.add_latency(name, &latency);
        }
        measured
    };
    of_rounds(scenarios::find("giant-vma").unwrap(), design, faults.iter().map(round).collect())
}

#[test]
fn no_difference_within_that_of_twins_counts() {
    let designs = |twin: u64| {
        [giant("vma-lock", &[1000; 6]), giant("vma-lock-hold", &[twin; 6]), giant("faultless", &[1100; 6])]
    };
    let of = |runs: &[Run; 3]| {
        let runs: Vec<&Run> = runs.iter().collect();
        let figures = Figures::of_scenario(&runs);
        (classes(&runs), figures.columns[0].noise.unwrap())
    };
    let (classes, noise) = of(&designs(1050));
    assert!((noise - 1.05).abs() < 0.001);
    // The twin differs by as much as twins do. The other design differs by more.
    assert_eq!(classes, [Class::Best, Class::Unknown, Class::Between]);
    let (classes, noise) = of(&designs(1150));
    assert!((noise - 1.15).abs() < 0.001);
    assert_eq!(classes, [Class::Best, Class::Unknown, Class::Unknown]);
    // In a scenario with I/O the same designs are no twins.
    let runs = [run("vma-lock", &[100; 6], 0), run("vma-lock-hold", &[115; 6], 0)];
    let runs: Vec<&Run> = runs.iter().collect();
    assert_eq!(Figures::of_scenario(&runs).columns[0].noise, None);
    assert_eq!(self::classes(&runs), [Class::Best, Class::Between]);
}

#[test]
fn the_report_names_the_twins_and_their_difference() {
    let (outcome, plan) = tour();
    let view = View::new(&outcome, &plan);
    let noise = &view.tour.unwrap().noise;
    let twins = "Twins run the same code: vma-lock, vma-lock-retry and vma-lock-hold. They differ by up to ";
    assert!(noise.starts_with(twins) && noise.contains(" in giant-vma and "), "{noise}");
    assert!(noise.ends_with(" in disjoint-change. A difference counts only if it is larger."), "{noise}");
    assert!(view.scenarios[0].noise.starts_with("No two of these designs"), "{}", view.scenarios[0].noise);
    assert!(view.scenarios[2].noise.contains(" in “fault in one VMA”"), "{}", view.scenarios[2].noise);
}

#[test]
fn other_hardware_is_never_the_best() {
    let (theirs, native) = (run("mmap-lock", &[101; 5], 0), run("native", &[10, 11, 12, 11, 11], 0));
    let figures = Figures::of_scenario(&[&theirs, &native]);
    assert_eq!(figures.rows[0].cells[0].class, Class::Best);
    let native = &figures.rows[1];
    assert!(native.is_elsewhere && native.cells[0].class == Class::Elsewhere);
    assert!((native.cells[0].times_worse().unwrap() - 11.0 / 101.0).abs() < 1e-3);
}

#[test]
fn few_rounds_are_not_classed_and_missing_figures_have_no_ratio() {
    let (few, many) =
        (run("mmap-lock", &[100, 101, 102, 103], 0), run("vma-lock", &[200, 201, 202, 203, 204], 0));
    let refused = Run { skipped: Some("no FUSE".into()), ..run("native", &[], 0) };
    assert_eq!(
        classes(&[&few, &many, &refused]),
        [Class::TooFew, Class::TooFew, Class::NotRun("no FUSE".into())]
    );
    let figures = Figures::of_scenario(&[&few, &many]);
    let fork = figures.columns.iter().position(|column| column.name == "fork_p99").unwrap();
    let cell = &figures.rows[0].cells[fork];
    assert_eq!((&cell.class, cell.worse, cell.spread), (&Class::NotMeasured, None, None));
    let reads = figures.columns.iter().position(|column| column.name == "retries_a_major_fault").unwrap();
    assert!(figures.rows[0].cells[reads].worse.is_none());
}

#[test]
fn a_tour_has_a_sentence_for_each_scenario_and_one_for_other_losses() {
    let (outcome, plan) = tour();
    let view = View::new(&outcome, &plan);
    assert_eq!(view.scenarios.len(), 4);
    let tour = view.tour.unwrap();
    assert_eq!((tour.matrix.columns.len(), tour.matrix.rows.len(), tour.rounds), (4, 6, (5, 5)));
    let kinds: Vec<_> = tour.verdicts.iter().map(|verdict| verdict.kind).collect();
    assert_eq!(
        kinds,
        [Kind::Loss, Kind::Loss, Kind::Level, Kind::Level, Kind::Note, Kind::Win],
        "{:?}",
        tour.verdicts
    );
    let others = "The largest loss: “fork p99” in fork-during-io, ";
    assert!(tour.verdicts[1].text.contains(others), "{:?}", tour.verdicts);
    let behind = "vma-lock-hold waits longest in fork-during-io: 9.81 ms against 1.25 ms under faultless (7.84 times worse, ";
    assert!(tour.verdicts[4].text.starts_with(behind), "{:?}", tour.verdicts);
    let closer = Closer { scenario: "disjoint-change", why: "It has the largest loss of faultless." };
    assert_eq!(tour.closer, closer);
    for scenario in &plan.scenarios {
        assert!(
            tour.verdicts.iter().any(|verdict| verdict.text.contains(scenario.name)),
            "{}",
            scenario.name
        );
    }
    let note = &tour.notes[0];
    assert!(note.starts_with("native cannot run: ") && note.ends_with(" (retry-storm)"), "{note}");
    // Two scenarios check pages of the file. Their counts are added.
    assert_eq!(tour.checked[0], "2,725,000 pages of the file, byte by byte");
    // Native rounds are not counted, because their frames cannot be checked.
    assert_eq!(
        tour.checked.last().unwrap(),
        "all frames returned, in 100 rounds on the software machine (5 designs × 4 scenarios × 5 rounds)"
    );
}

#[test]
fn an_interrupted_run_shows_the_measured_figures() {
    let (mut outcome, plan) = tour();
    outcome.runs.truncate(7);
    outcome.interrupted = true;
    let view = View::new(&outcome, &plan);
    assert!(view.is_interrupted);
    let tour = view.tour.unwrap();
    assert_eq!((tour.matrix.columns.len(), tour.matrix.rows.len()), (2, 6));
    assert_eq!(tour.matrix.rows[1].cells[1].class, Class::NotMeasured);
    outcome.runs.clear();
    assert!(View::new(&outcome, &plan).tour.is_none());
}

#[test]
fn without_a_loss_the_largest_difference_is_named() {
    let (mut outcome, plan) = tour();
    let closer = |outcome: &Outcome| View::new(outcome, &plan).tour.unwrap().closer;
    // Without its winner, the scenario of the loss has none.
    outcome.runs.retain(|run| !(run.contender.is_rival() && run.scenario.name == "disjoint-change"));
    let why = "It has the largest loss of faultless in a figure of --details.";
    assert_eq!(closer(&outcome), Closer { scenario: "fork-during-io", why });
    outcome.runs.retain(|run| run.contender.name() != "vma-lock-hold" || run.scenario.name == "giant-vma");
    for run in &mut outcome.runs {
        run.rounds.iter_mut().for_each(|round| _ = round.measured.latency.remove("fork"));
    }
    assert_eq!(closer(&outcome).why, "It has the largest difference.");
    outcome.runs.iter_mut().for_each(|run| run.rounds.truncate(2));
    let why = "It is the first one. No difference is beyond noise.";
    assert_eq!(closer(&outcome), Closer { scenario: "fork-during-io", why });
}

#[test]
fn rounds_that_are_no_product_have_no_factors() {
    let (mut outcome, plan) = tour();
    outcome.runs[0].rounds.pop();
    let checked = View::new(&outcome, &plan).tour.unwrap().checked;
    assert_eq!(checked.last().unwrap(), "all frames returned, in 99 rounds on the software machine");
}
