use super::super::view::tests::{run, tour};
use super::*;
use crate::compare::{Outcome, Plan};
use std::sync::LazyLock;
use std::time::Duration;

static COMMAND: LazyLock<Command> =
    LazyLock::new(|| Command::new(&["faultless"], ["compare".into()].into_iter()));

fn options() -> Options<'static> {
    Options { details: false, command: &COMMAND, kernel: "Linux 6.18.0" }
}

fn plain(width: usize) -> Screen {
    Screen { width, has_colour: false }
}

fn drawn(options: &Options<'_>, screen: Screen) -> String {
    let (outcome, plan) = tour();
    report(&View::new(&outcome, &plan), options, screen)
}

/// Returns the report of the same runs, chosen by name and not as a tour.
fn sections(options: &Options<'_>, screen: Screen) -> String {
    let (outcome, plan) = tour();
    report(&View::new(&outcome, &Plan { is_tour: false, ..plan }), options, screen)
}

fn assert_fits(text: &str, width: usize) {
    for line in text.lines() {
        assert!(line.chars().count() <= width, "wider than {width}: {line}");
        assert!(!line.ends_with(' '), "blanks at the end: {line:?}");
    }
}

/// Compares `text` with a golden file. To update the files, run `FAULTLESS_BLESS=1 cargo test -p faultless-lab --lib
/// golden`, and read the diff.
fn assert_golden(text: &str, name: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/report/text/golden").join(name);
    if std::env::var_os("FAULTLESS_BLESS").is_some() {
        std::fs::write(&path, format!("{text}\n")).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap();
    assert!(format!("{text}\n") == wanted, "{} differs; it is now:\n{text}", path.display());
}

#[test]
fn the_tour_is_as_the_golden_text() {
    assert_golden(&drawn(&options(), plain(100)), "tour.txt");
    assert_golden(&drawn(&options(), plain(80)), "tour-80.txt");
}

#[test]
fn a_scenario_is_as_the_golden_text() {
    let (mut outcome, plan) = tour();
    outcome.runs.retain(|run| run.scenario.name == plan.scenarios[0].name);
    let view = View::new(&outcome, &Plan { is_tour: false, ..plan });
    assert_golden(&report(&view, &options(), plain(100)), "scenario.txt");
}

#[test]
fn no_line_is_wider_than_the_screen() {
    for width in [40, 50, 60, 80, 100] {
        for details in [false, true] {
            let options = Options { details, ..options() };
            assert_fits(&drawn(&options, plain(width)), width);
            assert_fits(&sections(&options, plain(width)), width);
        }
        assert_fits(&designs(plain(width)), width);
        assert_fits(&scenarios(plain(width)), width);
    }
}

#[test]
fn a_narrow_screen_drops_columns_and_names_them() {
    let wide = drawn(&options(), plain(100));
    assert!(!wide.contains("Not shown"), "{wide}");
    let narrow = drawn(&options(), plain(60));
    assert!(narrow.contains("Not shown in 60 columns: disjoint-change."), "{narrow}");
    let (outcome, plan) = tour();
    let view = View::new(&outcome, &Plan { is_tour: false, ..plan });
    let fork = |width| one_scenario(&view.scenarios[0], &options(), plain(width));
    assert!(fork(60).contains("Not shown in 60 columns: fault p99; major faults."), "{}", fork(60));
    assert!(fork(60).contains("Not shown in 60 columns: the third cause."), "{}", fork(60));
}

#[test]
fn details_show_every_figure_and_every_cause() {
    let (outcome, plan) = tour();
    let view = View::new(&outcome, &Plan { is_tour: false, ..plan });
    let words = |text: &str| text.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    let text = one_scenario(&view.scenarios[0], &Options { details: true, ..options() }, plain(80));
    for column in &view.scenarios[0].figures.columns {
        // A title may be wrapped over several lines, so its words are sought one by one.
        assert!(
            words(column.title).iter().all(|word| text.contains(word.as_str())),
            "{}: {text}",
            column.title
        );
    }
    assert!(text.contains("bystander") && text.contains("max"), "{text}");
    assert!(!text.contains("Not shown"), "{text}");
}

#[test]
fn a_narrow_screen_keeps_every_figure_and_every_cause_in_more_lines() {
    let name = "vma-lock-retry-uptodate";
    let mut waiter = run(name, &[80_100, 90_100, 90_200, 90_300, 99_300], 1);
    waiter.total.count("page_bit_wait_preempted_ns", 15_000_000);
    let runs = [waiter, run("faultless", &[100, 109, 110, 111, 120], 1)];
    let outcome = Outcome { runs: runs.into(), interrupted: false, round: Duration::from_secs(1) };
    let view = View::new(&outcome, &Plan { is_tour: false, ..tour().1 });
    let lines = |width| {
        let text = report(&view, &Options { details: true, ..options() }, plain(width));
        assert_fits(&text, width);
        text.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n")
            .collect::<String>()
    };
    let wanted = [
        (40, "90.2 ms 820×\n(80.2–99.4)\nfaultless 110 µs best\n(100–120)\n"),
        (36, "90.2 ms\n(80.2–99.4)\n820×\nfaultless 110 µs\n(100–120)\nbest\n"),
        (40, "3.00 ms page\nbit (preempted\nthread)\n"),
    ];
    for (width, figures) in wanted {
        let text = lines(width);
        assert!(text.contains(&format!("\n{name} {figures}")), "{text}");
    }
}

#[test]
fn only_three_causes_of_waiting_are_shown_the_largest_first() {
    let mut waiter = run("mmap-lock", &[100, 100], 1);
    for (name, ms) in [("io_wait_ns", 9), ("grace_wait_ns", 3), ("memory_wait_ns", 5), ("range_wait_ns", 1)] {
        waiter.total.count(name, 2_000_000 * ms);
    }
    let runs = [waiter, run("faultless", &[100, 100], 1)];
    let plan = Plan { is_tour: false, ..tour().1 };
    let outcome = Outcome { runs: runs.into(), interrupted: false, round: plan.pace().length };
    let text = |details| {
        let options = Options { details, ..options() };
        report(&View::new(&outcome, &plan), &options, plain(100))
    };
    let row = text(false).lines().find(|line| line.contains("ms I/O")).unwrap().to_string();
    assert!(row.contains("9.00 ms I/O  5.00 ms memory  3.00 ms grace period"), "{row}");
    assert!(!text(false).contains("ms range") && text(true).contains("1.00 ms range"), "{}", text(true));
}

#[test]
fn colour_is_only_where_it_is_asked_for() {
    for text in [
        drawn(&options(), plain(100)),
        sections(&options(), plain(100)),
        designs(plain(80)),
        scenarios(plain(80)),
    ] {
        assert!(!text.contains('\u{1b}'), "{text}");
    }
    let screen = Screen { width: 100, has_colour: true };
    let text = drawn(&options(), screen);
    assert!(text.contains("\u{1b}[38;5;2m") && text.contains("\u{1b}[38;5;1m"), "{text:?}");
    // Without its colours, the text must equal the plain one.
    let mut bare = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        bare.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    bare.push_str(rest);
    let trimmed = |text: &str| text.lines().map(|line| line.trim_end().to_string()).collect::<Vec<_>>();
    assert_eq!(trimmed(&bare), trimmed(&drawn(&options(), plain(100))));
}

#[test]
fn an_interrupted_run_says_so() {
    let (outcome, plan) = tour();
    let text = report(&View::new(&Outcome { interrupted: true, ..outcome }, &plan), &options(), plain(80));
    assert!(text.contains("Interrupted: "), "{text}");
}

#[test]
fn scenarios_say_what_they_cannot_show() {
    let text = scenarios(plain(1000));
    for scenario in crate::scenarios::ALL {
        for wanted in [scenario.name, scenario.source, scenario.cannot_show] {
            assert!(!wanted.is_empty() && text.contains(wanted), "{wanted}");
        }
    }
}

#[test]
fn a_run_of_one_design_and_one_round_has_singular_forms_and_no_empty_parts() {
    let (mut outcome, plan) = tour();
    outcome.runs.retain(|run| run.contender.name() == "native");
    outcome.runs.iter_mut().for_each(|run| run.rounds.truncate(1));
    let text = report(&View::new(&outcome, &plan), &options(), plain(100));
    let title = "Four scenarios under one locking design. Each column has its own unit. Medians of 1 round.";
    assert!(text.replace('\n', " ").contains(title), "{text}");
    let blank = |text: &str| text.contains("\n\n\n");
    assert!(!blank(&text), "{text}");
    let text = report(&View::new(&outcome, &Plan { is_tour: false, ..plan }), &options(), plain(100));
    assert!(!blank(&text), "{text}");
}

#[test]
fn the_commands_keep_the_arguments_of_the_run() {
    let arguments = ["compare", "--design", "mmap-lock,faultless", "--file", "a b"].map(Into::into);
    let command = Command::new(&["faultless"], arguments.into_iter());
    let options = Options { command: &command, ..options() };
    let text = drawn(&options, plain(60));
    let closer = "\
Look closer: faultless compare disjoint-change --design \\
               mmap-lock,faultless --file 'a b'
";
    assert!(text.contains(closer), "{text}");
    assert_fits(&text, 60);
}

#[test]
fn no_screen_is_too_narrow() {
    for width in [1, 13, 20, 40] {
        for details in [false, true] {
            let options = Options { details, ..options() };
            assert!(
                !drawn(&options, plain(width)).is_empty() && !sections(&options, plain(width)).is_empty()
            );
        }
    }
}
