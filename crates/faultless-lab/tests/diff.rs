//! `faultless diff` as a user has it: exit codes, one line for bad input, files.

use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn faultless(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_faultless"));
    command.args(arguments).current_dir(folder).output().expect("the command runs")
}

/// The exit code, standard output and standard error.
fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A result whose headline is `p99`, in nine rounds, and whose only figure is `rate`.
fn result(p99: f64, rate: f64) -> Value {
    let entry = json!({
        "scenario": "fork-during-io", "design": "faultless", "rmap": "none", "threads": 5, "rounds": 9,
        "round_seconds": 1.0, "seconds": 9.0, "latency_us": {}, "cpu_us_per_major_fault": null, "counters": {},
        "headline": {
            "name": "bystander_p99", "value": p99, "min": p99 * 0.9, "max": p99 * 1.1, "rounds": 9, "unit": "us",
            "better": "lower", "by_round": [p99 * 0.9, p99, p99, p99, p99, p99, p99, p99, p99 * 1.1],
        },
        "figures": {
            "faults_a_second": {
                "value": rate, "median": rate, "min": rate, "max": rate, "rounds": 9, "unit": "1/s", "better": "higher",
                "by_round": vec![rate; 9],
            },
        },
    });
    json!({
        "schema": 1, "version": "0.1.0", "interrupted": false, "results": [entry],
        "machine": { "cpus": 2, "kernel": "Linux 6.18", "arch": "x86_64", "memory_bytes": 1 },
        "settings": {
            "io_latency_us": 2000.0, "queue_depth": null, "rates": {}, "file": null, "memory_bytes": 1, "seed": 1,
        },
    })
}

/// A folder with a.json; b.json, whose latency is 2.4 times worse and whose rate is 2 times better; and others.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("a file");
    let (a, b) = (result(100.0, 1000.0), result(240.0, 2000.0));
    write("a.json", &a.to_string());
    write("b.json", &b.to_string());
    write("cut.json", &a.to_string()[..300]);
    write("other.json", "{\"schema\": 1, \"design\": \"faultless\"}");
    write("two.json", "{\"schema\": 2}");
    write("text.json", "no JSON\nat all");
    let mut alone = a;
    alone["results"][0]["design"] = "vma-lock".into();
    write("alone.json", &alone.to_string());
    folder
}

#[test]
fn what_changed_beyond_noise_is_printed_with_its_direction() {
    let folder = folder();
    let (code, text, errors) = said(&faultless(folder.path(), &["diff", "a.json", "b.json"]));
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let expected = "\
A is a.json, by faultless 0.1.0.
B is b.json, by faultless 0.1.0.

Beyond noise: 1 figure worse in B, 1 better.

Worse in B: 1 figure
fork-during-io under faultless
  2.40× worse  bystander p99  100 µs (90.0–110) → 240 µs (216–264)

Better in B: 1 figure
fork-during-io under faultless
  2.00× better  faults_a_second  1.00 k/s → 2.00 k/s

Each figure: median (least–greatest round) in A, then in B.
";
    assert_eq!(text, expected);

    let (code, text, _) = said(&faultless(folder.path(), &["diff", "a.json", "a.json"]));
    assert_eq!(code, Some(0));
    let level = "
Level, the interval of the ratio contains 1 and is narrower than 1.2 times: 2
figures.
--all lists them.
";
    assert!(text.contains(level), "{text}");
    let (_, text, _) = said(&faultless(folder.path(), &["diff", "a.json", "a.json", "--all"]));
    assert!(text.contains("  equal  bystander p99    100 µs"), "{text}");
}

#[test]
fn a_loss_beyond_the_limit_is_exit_code_1() {
    let folder = folder();
    let run = |a, b, ratio| said(&faultless(folder.path(), &["diff", a, b, "--fail-above", ratio]));
    let (code, text, errors) = run("a.json", "b.json", "1.5");
    assert_eq!((code, errors.as_str()), (Some(1), ""));
    assert!(text.ends_with("\n\nWorse by more than 1.5 times, beyond noise: 1 figure.\n"), "{text}");
    // The latency is better then. The rate is worse: 2.0 times.
    assert_eq!(run("b.json", "a.json", "1.9").0, Some(1));
    assert_eq!(run("b.json", "a.json", "2.1").0, Some(0));
    assert_eq!(run("a.json", "b.json", "2.5").0, Some(0));
    assert_eq!(run("a.json", "a.json", "1").0, Some(0));
}

#[test]
fn json_has_every_figure() {
    let folder = folder();
    let arguments = ["diff", "a.json", "b.json", "--fail-above", "2", "--json"];
    let (code, text, _) = said(&faultless(folder.path(), &arguments));
    assert_eq!(code, Some(1));
    let diff: Value = serde_json::from_str(&text).expect("JSON and nothing else");
    assert_eq!((&diff["schema"], &diff["failed"], &diff["fail_above"]), (&2.into(), &1.into(), &2.0.into()));
    assert_eq!((&diff["a"]["name"], &diff["a"]["version"]), (&"a.json".into(), &"0.1.0".into()));
    let first = &diff["figures"][0];
    assert_eq!((&first["figure"], &first["headline"]), (&"bystander_p99".into(), &true.into()));
    assert_eq!((&first["verdict"], &first["ratio"]), (&"worse".into(), &2.4.into()));
    assert_eq!(first["b"]["median"], 240.0);
    assert_eq!(first["b"]["rounds"], 9);
    assert!(first["interval"][0].as_f64().is_some_and(|low| low > 1.5), "{first}");
    assert_eq!(diff["figures"].as_array().map(Vec::len), Some(2));

    let (code, text, _) = said(&faultless(folder.path(), &[&arguments[..3], &["--json=diff.json"]].concat()));
    assert!(code == Some(0) && text.contains("2.40× worse"), "the text as well: {text}");
    let written = std::fs::read_to_string(folder.path().join("diff.json")).expect("the file");
    assert!(serde_json::from_str::<Value>(&written).is_ok_and(|diff| diff["figures"].is_array()));
    // The comparison is no result.
    refused(folder.path(), &["diff", "a.json", "diff.json"], "diff.json: it is not a result of");
}

#[test]
fn standard_input_is_a_file() {
    let folder = folder();
    let mut command = Command::new(env!("CARGO_BIN_EXE_faultless"));
    let command = command.args(["diff", "a.json", "-"]).current_dir(folder.path());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the command runs");
    let text = result(50.0, 1000.0).to_string();
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    let (code, text, _) = said(&child.wait_with_output().expect("it ends"));
    assert!(code == Some(0) && text.contains("B is standard input"), "{text}");
    assert!(text.contains("2.00× better  bystander p99"), "{text}");
}

/// Exit code 2, nothing on standard output, and one line that says `wanted`.
fn refused(folder: &Path, arguments: &[&str], wanted: &str) {
    let (code, text, errors) = said(&faultless(folder, arguments));
    assert_eq!(code, Some(2), "{arguments:?}: {errors}");
    assert_eq!(errors.lines().count(), 1, "{arguments:?}: {errors}");
    assert!(errors.contains(wanted), "{arguments:?}: {errors}");
    assert!(text.is_empty(), "{arguments:?}: {text}");
}

#[test]
fn bad_input_gets_one_line_and_exit_code_2() {
    let folder = folder();
    let path = folder.path();
    let before = std::fs::read(path.join("a.json")).expect("the file");
    for (wrong, wanted) in [
        ("missing.json", "cannot read missing.json: No such file"),
        (".", "cannot read .: Is a directory"),
        ("cut.json", "cut.json: it is cut off"),
        ("other.json", "other.json: it is not a result of `faultless compare --json`: missing field"),
        ("two.json", "two.json: it has schema 2; this program reads schema 1"),
        ("text.json", "text.json: it is not JSON"),
        ("alone.json", "no scenario under the same design in common"),
        ("two\nlines", "cannot read two lines"),
    ] {
        refused(path, &["diff", "a.json", wrong], wanted);
        refused(path, &["diff", wrong, "b.json", "--json=out.json"], wanted);
    }
    assert!(!path.join("out.json").exists(), "a refused comparison writes nothing");
    for ratio in
        ["0", "0.99", "-1", "-0.5", "1e3", "nan", "inf", "", ".", "1.5x", "1000001", "99999999999999999999"]
    {
        refused(path, &["diff", "a.json", "b.json", "--fail-above", ratio], "--fail-above");
        refused(path, &["diff", "a.json", "b.json", "--fail-above", ratio], ratio);
    }
    refused(path, &["diff", "-", "-"], "only one of the two files");
    refused(path, &["diff", "a.json"], "<B.json>; see faultless diff --help");
    refused(path, &["diff", "a.json", "b.json", "--json", "a.json"], "this is the file of A");
    refused(path, &["diff", "a.json", "b.json", "--json", "no/such/folder"], "cannot write no/such/folder");
    assert_eq!(std::fs::read(path.join("a.json")).expect("the file"), before);
}

/// A real result has what the comparison reads.
#[test]
fn results_of_compare_can_be_compared() {
    let folder = folder();
    let run =
        ["compare", "map-unmap", "--design", "faultless,mmap-lock", "--seconds", "0.3", "--json=real.json"];
    assert_eq!(faultless(folder.path(), &run).status.code(), Some(0));
    let (code, text, errors) = said(&faultless(folder.path(), &["diff", "real.json", "real.json"]));
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert!(text.contains("Unknown, fewer than 5 rounds: "), "{text}");
    let report = std::fs::read(folder.path().join("real.json")).expect("the file");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    let figures = report["results"][0]["figures"].as_object().expect("figures");
    // There is one round: it is its own median.
    assert!(!figures.is_empty());
    for figure in figures.values() {
        assert_eq!((&figure["median"], &figure["rounds"]), (&figure["min"], &1.into()), "{figure}");
    }
}
