//! Runs the command as a user does.
#![cfg(target_os = "linux")]

use serde_json::Value;
use std::process::{Command, Output};

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_faultless-bench")).args(arguments).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Every case runs, ends, and gives rows of the documented shape for each of its contenders.
#[test]
fn every_case_gives_rows() {
    let output = bench(&["--size", "30", "--rounds", "1", "--slice", "1ms", "--json", "-"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stderr.is_empty(), "no progress in a pipe: {}", text(&output.stderr));
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    for row in &rows {
        for key in ["case", "size", "threads", "contender", "ns_per_op", "p99_ns", "spread"] {
            assert!(row.get(key).is_some(), "{key} is missing in {row}");
        }
        for bar in row.get("bars").and_then(Value::as_array).into_iter().flatten() {
            let verdict = bar["verdict"].as_str().expect("a verdict");
            assert!(["met", "missed", "unknown"].contains(&verdict) && bar["median"].is_number(), "{bar}");
        }
        let (ns, skipped) = (&row["ns_per_op"], row.get("skipped"));
        assert!(ns.as_f64().is_some_and(|ns| ns > 0.0) != skipped.is_some(), "{row}");
        assert_eq!(
            row["p99_ns"].is_number(),
            row["case"] == "reader-under-writer" && skipped.is_none(),
            "{row}"
        );
    }
    let of = |case: &str| -> Vec<_> {
        let rows = rows.iter().filter(|row| row["case"] == case);
        rows.map(|row| (row["contender"].as_str().unwrap().to_string(), row["threads"].as_u64().unwrap()))
            .collect()
    };
    for (case, contender, threads) in [
        ("look-up", "faultless (fence)", 2),
        ("look-up", "Linux maple tree, RCU", 1),
        ("update", "BTreeMap, parking_lot RwLock", 1),
        ("two-writers", "faultless (membarrier)", 2),
        ("reader-under-writer", "sorted array, arc-swap", 1),
        ("read-section", "seize", 2),
        ("page-bit", "faultless (fence)", 1),
        ("lock-word", "count as vm_refcnt", 2),
        ("anonymous-fault", "linux (traps)", 1),
        ("anonymous-fault-zeroed-ahead", "mmap-lock", 2),
        ("giant-vma", "vma-lock", 2),
        ("map-unmap", "faultless", 2),
        ("disjoint-change", "faultless-retry", 2),
        ("disjoint-change", "faultless, a space each", 2),
        ("fork", "linux (traps)", 1),
        ("cow-break", "linux (traps)", 1),
        ("pressure-swap", "LZ4 alone", 2),
        ("pressure-reclaim", "a root lock, beside forks", 1),
        ("pressure-files", "faultless", 500),
        ("pressure-exit", "faultless", 1),
    ] {
        assert!(of(case).contains(&(contender.into(), threads)), "{case}: {:?}", of(case));
    }
    let with_bars: Vec<_> = rows.iter().filter(|row| row.get("bars").is_some()).collect();
    assert_eq!(with_bars.len(), 4, "the space with one and two threads, the files, exit: {with_bars:?}");
}

#[test]
fn an_unknown_case_tells_which_there_are() {
    let output = bench(&["--case", "look-up,nothing"]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("\"nothing\"") && said.contains("look-up, update, two-writers"), "{said}");
}

#[test]
fn tables_are_for_people_and_a_file_for_programs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("rows.json");
    let arguments = ["--case", "lock-word", "--rounds", "1", "--slice", "1ms", "--json"];
    let output = bench(&[&arguments[..], &[path.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let tables = text(&output.stdout);
    assert!(tables.contains("lock-word: ") && tables.contains("| std RwLock"), "{tables}");
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(rows.iter().all(|row| row["case"] == "lock-word" && row["size"].is_null()));
}

#[test]
fn help_has_examples() {
    let output = bench(&["--help"]);
    assert!(output.status.success());
    let help = text(&output.stdout);
    assert!(help.contains("--quick") && help.contains("scripts/maple.sh"), "{help}");
    assert!(!help.contains("fork-worker"), "{help}");
}
