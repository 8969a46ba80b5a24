//! Tests of the comparison and the reading, without files. `tests/diff.rs` runs the command.

use super::read::parse;
use super::text::text;
use super::{Changes, Lone, Reason, Source, Verdict, compare};
use crate::interval::Doubt;
use serde_json::{Value, json};

/// Returns the values of `rounds` rounds with this median, minimum and maximum. The others lie close to the median.
fn by_round([median, min, max]: [f64; 3], rounds: usize) -> Vec<f64> {
    let ends = if rounds < 3 { vec![median; rounds] } else { vec![min, max] };
    let between = (ends.len()..rounds).map(|_| median).collect();
    [ends, between].concat()
}

/// Returns a figure of `rounds` rounds.
fn figure(better: &str, [median, min, max]: [f64; 3], rounds: usize) -> Value {
    let by_round = by_round([median, min, max], rounds);
    json!({
        "value": median, "median": median, "min": min, "max": max, "rounds": rounds, "unit": "us", "better": better,
        "by_round": by_round,
    })
}

/// Returns an entry with a headline of nine rounds.
fn entry(scenario: &str, design: &str, [median, min, max]: [f64; 3], figures: Value) -> Value {
    json!({
        "scenario": scenario, "design": design, "rmap": "none", "threads": 5, "rounds": 9, "round_seconds": 1.0,
        "seconds": 5.0, "latency_us": {}, "cpu_us_per_major_fault": null, "counters": {}, "figures": figures,
        "headline": {
            "name": "bystander_p99", "value": median, "min": min, "max": max, "rounds": 9, "unit": "us", "better": "lower",
            "by_round": by_round([median, min, max], 9),
        },
    })
}

fn result(entries: &[Value]) -> Value {
    json!({
        "schema": 1, "version": "0.1.0", "interrupted": false, "results": entries,
        "machine": { "cpus": 2, "kernel": "Linux 6.18", "arch": "x86_64", "memory_bytes": 1 },
        "settings": {
            "io_latency_us": 2000.0, "queue_depth": null, "rates": {}, "file": null, "memory_bytes": 1, "seed": 1,
        },
    })
}

fn source(result: &Value) -> Source {
    Source { name: "r.json".into(), report: parse(result.to_string().as_bytes()).expect("a result") }
}

fn changes(a: &Value, b: &Value) -> Changes {
    compare(&source(a), &source(b))
}

/// Returns the verdict and the ratio of a figure that is `a` in A and `b` in B.
fn verdict_of(better: &str, rounds: usize, a: [f64; 3], b: [f64; 3]) -> (Verdict, Option<f64>) {
    let with = |sample| {
        let level = [10.0, 9.0, 11.0];
        result(&[entry(
            "fork-during-io",
            "faultless",
            level,
            json!({ "it": figure(better, sample, rounds) }),
        )])
    };
    let changes = changes(&with(a), &with(b));
    let change = changes.figures.iter().find(|change| change.figure == "it").expect("the figure");
    (change.verdict, change.ratio)
}

const LOW: [f64; 3] = [100.0, 90.0, 110.0];
const HIGH: [f64; 3] = [200.0, 190.0, 210.0];

#[test]
fn the_direction_decides_between_worse_and_better() {
    assert_eq!(verdict_of("lower", 9, LOW, HIGH), (Verdict::Worse, Some(2.0)));
    assert_eq!(verdict_of("lower", 9, HIGH, LOW), (Verdict::Better, Some(0.5)));
    assert_eq!(verdict_of("higher", 9, LOW, HIGH), (Verdict::Better, Some(2.0)));
    assert_eq!(verdict_of("higher", 9, HIGH, LOW), (Verdict::Worse, Some(0.5)));
    assert_eq!(verdict_of("neither", 9, LOW, HIGH), (Verdict::Changed, Some(2.0)));
}

#[test]
fn noise_and_few_rounds_give_no_change() {
    assert_eq!(verdict_of("lower", 9, LOW, [100.5, 95.0, 108.0]).0, Verdict::Level);
    assert_eq!(verdict_of("lower", 4, LOW, HIGH).0, Verdict::Unknown);
    // Half of the rounds of B are as those of A.
    let both = |value: f64| {
        let mut entry = entry("page-fault", "faultless", LOW, json!({}));
        entry["headline"]["by_round"] = json!([100.0, value, 100.0, value, value]);
        result(&[entry])
    };
    let changes = changes(&both(100.0), &both(200.0));
    assert_eq!(changes.figures[0].verdict, Verdict::Unknown);
    assert_eq!(changes.figures[0].reason, Some(Reason::Doubt(Doubt::Wide)));
}

#[test]
fn a_change_that_twins_of_either_file_have_too_is_unknown() {
    let with = |sample, noise: Value| {
        let mut entry = entry("page-fault", "faultless", sample, json!({}));
        entry["headline"]["noise"] = noise;
        result(&[entry])
    };
    let changed = |in_a: Value, in_b: Value| {
        let changes = changes(&with(LOW, in_a), &with(HIGH, in_b));
        (changes.figures[0].verdict, changes.figures[0].reason, changes.figures[0].noise)
    };
    assert_eq!(changed(Value::Null, Value::Null), (Verdict::Worse, None, None));
    assert_eq!(changed(1.2.into(), 1.1.into()), (Verdict::Worse, None, Some(1.2)));
    let twins = Some(Reason::Doubt(Doubt::Twins));
    assert_eq!(changed(2.5.into(), Value::Null), (Verdict::Unknown, twins, Some(2.5)));
    assert_eq!(changed(1.1.into(), 2.5.into()), (Verdict::Unknown, twins, Some(2.5)));
}

#[test]
fn a_file_without_values_of_single_rounds_has_no_verdict() {
    let mut old = entry("page-fault", "faultless", LOW, json!({}));
    old["headline"].as_object_mut().expect("an object").remove("by_round");
    let changes = changes(&result(&[old]), &result(&[entry("page-fault", "faultless", HIGH, json!({}))]));
    let change = &changes.figures[0];
    assert_eq!((change.verdict, change.reason), (Verdict::Unknown, Some(Reason::NoRounds)));
    assert_eq!((change.ratio, change.interval), (Some(2.0), None));
    let text = text(&changes, false, 80);
    assert!(text.contains("\nUnknown, a file has no values of single rounds: 1 figure.\n"), "{text}");
    assert!(json!(changes)["figures"][0]["reason"] == "no-rounds");
}

#[test]
fn zero_has_no_ratio_and_differs_by_more_than_any() {
    let none = [0.0, 0.0, 0.0];
    assert_eq!(verdict_of("lower", 9, none, LOW), (Verdict::Worse, None));
    assert_eq!(verdict_of("lower", 9, LOW, none), (Verdict::Better, Some(0.0)));
    assert_eq!(verdict_of("lower", 9, none, none), (Verdict::Level, None));
    let of = |sample| result(&[entry("page-fault", "faultless", sample, json!({}))]);
    let changes = changes(&of(none), &of(LOW));
    assert_eq!(changes.worse_by_more_than(1e6), 1);
    assert!(text(&changes, false, 80).contains("worse, was 0  bystander_p99  0 µs"));
}

#[test]
fn the_largest_loss_comes_first_and_neither_never_fails() {
    let with = |headline, times: f64| {
        let times = |name: &str, better| (name.to_string(), figure(better, LOW.map(|n| n * times), 9));
        let figures: serde_json::Map<_, _> =
            [times("wait", "lower"), times("rate", "higher"), times("count", "neither")]
                .into_iter()
                .collect();
        result(&[entry("fork-during-io", "faultless", headline, figures.into())])
    };
    let changes = changes(&with(LOW, 1.0), &with(HIGH, 3.0));
    let order: Vec<_> =
        changes.figures.iter().map(|change| (change.figure.as_str(), change.verdict)).collect();
    let worse = Verdict::Worse;
    assert_eq!(
        order,
        [("wait", worse), ("bystander_p99", worse), ("rate", Verdict::Better), ("count", Verdict::Changed)]
    );
    assert!(changes.figures[1].headline && !changes.figures[0].headline);
    assert_eq!([1.5, 2.0, 2.9, 3.0].map(|ratio| changes.worse_by_more_than(ratio)), [2, 1, 1, 0]);
}

#[test]
fn old_results_are_compared_by_values_of_all_rounds() {
    let with = |value: f64, median: Option<f64>| {
        let mut old = figure("lower", [value, 90.0, 310.0], 5);
        let object = old.as_object_mut().expect("an object");
        object.remove("rounds");
        object.remove("median");
        if let Some(median) = median {
            object.insert("median".into(), median.into());
        }
        result(&[entry("fork-during-io", "faultless", LOW, json!({ "it": old }))])
    };
    let changes = changes(&with(100.0, None), &with(120.0, Some(300.0)));
    let change = changes.figures.iter().find(|change| change.figure == "it").expect("the figure");
    assert_eq!((change.ratio, change.a.map(|a| a.rounds)), (Some(1.2), Some(9)));
    assert!(!changes.medians && text(&changes, false, 80).contains("no medians"));
}

#[test]
fn pairs_of_one_file_are_listed_with_the_reason() {
    let mut skipped = entry("giant-vma", "range-lock", LOW, json!({}));
    skipped["headline"] = json!({
        "name": "giant_over_apart", "value": null, "min": null, "max": null, "rounds": 0, "unit": "ratio",
        "better": "lower",
    });
    skipped["skipped"] = "it needs\n4 GiB".into();
    let both = entry("page-fault", "faultless", LOW, json!({}));
    let a = result(&[both.clone(), entry("giant-vma", "range-lock", LOW, json!({}))]);
    let b = result(&[both, skipped, entry("map-unmap", "vma-lock", LOW, json!({}))]);
    let changes = changes(&a, &b);
    let lone = |scenario: &str, design: &str, ran_in, skipped: Option<&str>| Lone {
        scenario: scenario.into(),
        design: design.into(),
        ran_in,
        skipped: skipped.map(Into::into),
    };
    assert_eq!(
        changes.only,
        [
            lone("giant-vma", "range-lock", "a", Some("it needs\n4 GiB")),
            lone("map-unmap", "vma-lock", "b", None)
        ]
    );
    let text = text(&changes, false, 80);
    assert!(
        text.contains("Only in A: giant-vma/range-lock; it did not run in B: it needs 4 GiB\n"),
        "{text}"
    );
    assert!(text.contains("Only in B: map-unmap/vma-lock\n"), "{text}");
}

#[test]
fn figures_of_one_file_or_of_other_units_are_not_compared() {
    let with = |figures| result(&[entry("page-fault", "faultless", LOW, figures)]);
    let mut nanos = figure("lower", HIGH, 5);
    nanos["unit"] = "ns".into();
    let a = with(
        json!({ "one": figure("lower", LOW, 5), "two": figure("lower", LOW, 5), "three": figure("lower", LOW, 5) }),
    );
    let b = with(json!({ "two": nanos, "three": figure("higher", HIGH, 5) }));
    let changes = changes(&a, &b);
    let apart: Vec<_> =
        changes.with(Verdict::Apart).map(|change| (change.figure.as_str(), change.ratio)).collect();
    assert_eq!(apart, [("one", None), ("three", None), ("two", None)]);
}

#[test]
fn settings_that_differ_are_told_once() {
    let entries = |threads: usize| -> Vec<Value> {
        let designs = ["faultless", "mmap-lock", "vma-lock", "range-lock", "table-lock"];
        let entries = designs.map(|design| {
            let mut entry = entry("page-fault", design, LOW, json!({}));
            entry["threads"] = threads.into();
            entry
        });
        entries.into()
    };
    let (a, mut b) = (result(&entries(5)), result(&entries(16)));
    b["settings"]["seed"] = 7.into();
    b["settings"]["queue_depth"] = 1.into();
    b["machine"]["kernel"] = "Linux 7.0".into();
    let text = text(&changes(&a, &b), false, 80);
    let different: Vec<_> = text.lines().filter(|line| line.starts_with("Different ")).collect();
    assert_eq!(
        different,
        [
            "Different machine.kernel: Linux 6.18 in A, Linux 7.0 in B",
            "Different settings.queue_depth: not set in A, 1 in B",
            "Different settings.seed: 1 in A, 7 in B",
            "Different threads: 5 in A, 16 in B; of page-fault/faultless,",
        ]
    );
    assert!(text.contains("\n  page-fault/mmap-lock, page-fault/range-lock and 2 more\n"), "{text}");
    assert_eq!(changes(&a, &a).settings, []);
}

#[test]
fn the_longest_names_and_numbers_fit_100_columns_and_usual_ones_80() {
    let name = "mmap_lock_reads_a_major_fault_xy";
    let with = |name: &str, sample| {
        let longest = format!("{}-of-32-letters", "s".repeat(18));
        result(&[entry(&longest, &longest, LOW, json!({ name: figure("lower", sample, 5) }))])
    };
    let widest = |name: &str, a, b| {
        let text = text(&changes(&with(name, a), &with(name, b)), true, 80);
        text.lines().map(|line| line.chars().count()).max().expect("lines")
    };
    let (small, large) = ([10_001.0, 10_001.0, 10_001.0], [99_999.4, 99_999.4, 99_999.4]);
    assert!(widest(name, large, small) <= 100);
    assert!(widest(name, small, [9.9e300, 9.9e300, 9.9e300]) <= 100);
    assert!(widest(name, large, [0.0, 0.0, 0.0]) <= 100);
    assert!(widest("bystander_p50", [779.9, 368.8, 1190.9], [12_345.0, 10_001.0, 18_000.0]) <= 80);
}

#[test]
fn a_file_that_is_no_result_is_refused_with_the_reason() {
    let mut noisy = figure("lower", LOW, 5);
    noisy["noise"] = 1.1.into();
    let whole = result(&[entry("page-fault", "faultless", LOW, json!({ "it": noisy }))]);
    let text = serde_json::to_string_pretty(&whole).expect("JSON");
    let refused = |text: &str| parse(text.as_bytes()).expect_err("it is refused");
    assert!(refused(&text[..text.len() / 2]).starts_with("it is cut off: it ends at line "));
    assert!(refused(" \n").starts_with("it is empty"));
    assert!(refused("hello").starts_with("it is not JSON: "));
    assert!(refused(&format!("{text}x")).starts_with("it is not JSON: trailing characters"));
    assert!(refused("[1]").ends_with("it has no schema"));
    assert!(refused("{}").ends_with("it has no schema"));
    assert!(refused("{\"schema\": \"1\"}").ends_with("its schema is not a number"));
    assert_eq!(refused("{\"schema\": 2}"), "it has schema 2; this program reads schema 1");
    assert!(refused("{\"schema\": 1}").contains("missing field `machine`"));

    let refused_with = |pointer: &str, value: Value| {
        let mut changed = whole.clone();
        *changed.pointer_mut(pointer).expect("the field") = value;
        refused(&changed.to_string())
    };
    assert!(
        refused_with("/results/0/scenario", "\u{1b}[2J".into()).contains("an invalid name: \"\\u{1b}[2J\"")
    );
    assert!(refused_with("/results/0/design", "a".repeat(33).into()).contains("an invalid name"));
    assert!(
        refused_with("/results/0/figures/it/better", "up".into())
            .contains("it has an unknown direction: \"up\"")
    );
    assert!(refused_with("/results/0/figures/it/unit", "\u{9b}".into()).contains("an unknown unit"));
    assert!(refused_with("/results/0/headline/min", 101.into()).contains("not in order"));
    assert!(refused_with("/results/0/figures/it/min", (-1).into()).contains("not in order"));
    assert!(refused_with("/results/0/figures/it/by_round/0", (-1).into()).contains("a round below zero"));
    assert!(refused_with("/results/0/figures/it/noise", 0.5.into()).contains("a noise below 1"));
    let twice = [whole["results"][0].clone(), whole["results"][0].clone()];
    assert_eq!(refused(&result(&twice).to_string()), "it has page-fault under faultless twice");
}

#[test]
fn all_our_names_can_be_read() {
    use crate::contender::Contender;
    use crate::scenarios;
    let names = scenarios::ALL.iter().map(|scenario| scenario.name);
    for name in names.chain(Contender::all().iter().map(Contender::name)) {
        assert_eq!(super::read::name(name), Ok(()));
    }
    for scenario in scenarios::ALL {
        for figure in scenario.figures.iter().chain([&scenario.headline]) {
            assert_eq!(super::read::name(figure.name), Ok(()));
        }
    }
}

#[test]
fn a_text_of_a_file_is_short_and_keeps_its_direction() {
    let a = result(&[entry("fork-during-io", "faultless", LOW, json!({}))]);
    let mut b = a.clone();
    b["machine"]["kernel"] = format!("Linux\u{202e}\n{}", "x".repeat(500)).into();
    let text = text(&changes(&a, &b), false, 80);
    assert!(text.contains(&"x".repeat(53)) && text.contains('…'), "{text}");
    assert!(!text.contains(&"x".repeat(54)) && !text.contains('\u{202e}'), "{text}");
}

#[test]
fn a_file_with_a_million_rounds_and_more_is_refused() {
    let file = |rounds: usize| {
        let mut file =
            result(&[entry("fork-during-io", "faultless", LOW, json!({ "it": figure("lower", LOW, 3) }))]);
        file["results"][0]["figures"]["it"]["rounds"] = rounds.into();
        parse(file.to_string().as_bytes()).map(|_| ())
    };
    assert_eq!(file(1_000_000), Ok(()));
    let wrong = file(1_000_001).unwrap_err();
    assert!(wrong.contains("1,000,001 rounds") && wrong.contains("at most 1,000,000"), "{wrong}");
}

#[test]
fn no_line_is_wider_than_80_columns_or_the_screen() {
    let name = "a_name_of_thirty_two_characters_";
    let figures = json!({ name: figure("lower", [123.4, 100.1, 15_873.0], 5) });
    let a = result(&[entry("fork-during-io", "faultless", LOW, figures)]);
    for width in [40, 60, 80, 100] {
        let text = text(&changes(&a, &a), true, width);
        assert!(text.contains(name), "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= width.min(80), "{line}");
        }
    }
}

#[test]
fn the_text_has_titles_and_tells_level_from_unknown() {
    let figures = |fork, faults| json!({ "fork_p99": figure("lower", fork, 9), "of_later": figure("higher", faults, 5) });
    let with = |fork, faults| result(&[entry("fork-during-io", "faultless", LOW, figures(fork, faults))]);
    let (a, b) = (with(LOW, LOW), with([99.8, 90.0, 110.0], [140.0, 90.0, 210.0]));
    let changes = changes(&a, &b);
    let all = text(&changes, true, 80);
    let wanted = "
Unknown, the interval of the ratio is too wide: 1 figure
fork-during-io under faultless
  1.40× higher  of_later  100 µs (90.0–110) → 140 µs (90.0–210)

Level, the interval of the ratio contains 1 and is narrower than 1.2 times: 2
figures
fork-during-io under faultless
  equal  fork p99       100 µs (90.0–110) → 99.8 µs (90.0–110)
  equal  bystander p99  100 µs (90.0–110) → 100 µs (90.0–110)
";
    assert!(all.contains(wanted), "{all}");
    let short = text(&changes, false, 80);
    let wanted = "\nUnknown, the interval of the ratio is too wide: 1 figure.\nLevel, ";
    assert!(short.contains(wanted), "{short}");
}
