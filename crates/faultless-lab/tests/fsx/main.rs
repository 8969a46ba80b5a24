//! `faultless check --files`: a file behaves as its model in every kind of place, and planted differences are found. A
//! debug build does these operations in some seconds. `just fsx` does a million.

mod beside;
mod plants;

use faultless_lab::check::Summary;
use faultless_lab::check::files::{Files, Place};
use faultless_lab::designs;
use std::process::{Command, Output};
use std::sync::atomic::AtomicBool;

fn files(design: &str, place: Place, operations: u64) -> Files {
    let design = designs::find(design).unwrap();
    Files { operations, place: Some(place), episode: 250, ..Files::new(design) }
}

fn run(files: &Files) -> Summary {
    files.run(&AtomicBool::new(false)).unwrap()
}

/// Checks that there is no difference.
fn agrees(files: &Files) {
    let summary = run(files);
    if let Some(found) = &summary.difference {
        panic!("{}", found.text());
    }
    assert_eq!(summary.episodes, files.operations.div_ceil(files.episode));
    println!("{}", summary.text());
}

#[test]
fn a_file_in_memory_is_as_its_model() {
    agrees(&files("faultless", Place::Memory, 6_000));
}

#[test]
fn a_file_whose_store_fails_and_refuses_is_as_its_model() {
    agrees(&files("faultless", Place::Kept, 10_000));
}

#[test]
fn a_file_whose_store_is_late_is_as_its_model() {
    agrees(&files("faultless", Place::Late, 6_000));
}

#[test]
fn a_file_on_disk_is_as_its_model() {
    agrees(&files("faultless", Place::Disk, 3_000));
}

#[test]
fn so_it_is_under_a_rival() {
    agrees(&files("vma-lock", Place::Kept, 2_000));
    agrees(&files("mmap-lock-hold", Place::Late, 1_000));
}

#[test]
fn the_same_seed_gives_the_same_operations_and_answers() {
    let [first, second] = [(); 2].map(|()| run(&files("faultless", Place::Kept, 1_000)));
    assert_eq!((first.results, first.operations), (second.results, second.operations));
}

#[test]
fn interrupted_it_says_what_there_was() {
    let summary = files("faultless", Place::Kept, 1_000_000).run(&AtomicBool::new(true)).unwrap();
    assert!(summary.interrupted && summary.difference.is_none() && summary.operations < 1000);
}

fn faultless(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_faultless")).args(arguments).output().expect("the command runs")
}

#[test]
fn the_command_prints_a_table_or_json() {
    let table = faultless(&["check", "--files", "--ops", "300"]);
    let text = String::from_utf8_lossy(&table.stdout);
    assert_eq!(table.status.code(), Some(0), "{text}");
    assert!(text.contains("| write_at") && text.contains("300 operations in 1 episode,"), "{text}");
    assert!(text.contains("by a model of a file"), "{text}");
    let json = faultless(&["check", "--files", "--ops", "300", "--json", "-"]);
    let summary: Summary = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((summary.operations, summary.threads, summary.kernel.as_str()), (300, 0, ""));
    let both = faultless(&["check", "--files", "--threads", "2"]);
    assert_eq!(both.status.code(), Some(2));
}
