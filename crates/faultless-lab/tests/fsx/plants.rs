//! Planted differences: one in each kind of operation, and one for each change that a failed operation could have made.

use crate::{files, run};
use faultless_lab::check::Found;
use faultless_lab::check::files::{Answer, FileOperation, FilePlant, FilePlanted, Files, KINDS, Place};
use std::cell::Cell;

const PAGE: u64 = 4096;

/// Returns the difference that is found with this plant and not without it.
fn found(files: Files, plant: FilePlant) -> Found {
    let found = run(&Files { plant: Some(plant), ..files }).difference.expect("it is found");
    println!("{}\n", found.text());
    assert!(found.list.len() <= 12, "{}", found.text());
    // The command in the report repeats the difference. The command cannot name the place of the file, so it is set
    // here.
    let again = Files { seed: found.seed, operations: found.operations, plant: Some(plant), ..files };
    assert!(run(&again).difference.is_some(), "{}", found.command);
    let without = run(&Files { plant: None, ..again }).difference;
    assert!(without.is_none(), "without the plant: {}", without.unwrap_or_default().text());
    found
}

/// Leaves the operation out, and answers as if it was done.
fn forgotten(operation: &FileOperation) -> FilePlanted {
    let done = match *operation {
        FileOperation::Write { length, .. } | FileOperation::Store { length, .. } => length,
        _ => 0,
    };
    FilePlanted::Answered(Answer::Done(done))
}

/// Returns the planted difference for an operation of this kind.
fn planted(kind: &str, operation: &FileOperation) -> FilePlanted {
    use FileOperation::*;
    use FilePlanted::{And, Instead, Nothing};
    if operation.kind() != kind {
        return Nothing;
    }
    match *operation {
        Read { offset, length } if length > 1 => Instead(Read { offset, length: length - 1 }),
        Read { .. } => Nothing,
        // The rest of its last page stays.
        SetLength { length } => Instead(SetLength { length: length.next_multiple_of(PAGE) }),
        Load { offset, private } => Instead(Load { offset: offset ^ 1, private }),
        // The answer covers all pages, but only the first one is written.
        SyncMapping { page, pages } if pages > 1 => Instead(SyncMapping { page, pages: 1 }),
        // Leaving one of these out would not be visible, so the plant does another operation instead.
        SyncMapping { .. } => Nothing,
        StartSync | Evict | Remap => Instead(Remove { page: 0, pages: 4 }),
        Discard { page, pages } => Instead(Remove { page, pages }),
        Reopen { .. } => Instead(SetLength { length: 0 }),
        // The shown bytes are those from before this write.
        Look => And(Write { offset: 0, length: 1, value: 77 }),
        Write { .. } | Store { .. } | Punch { .. } | Remove { .. } | Sync { .. } | Fail { .. } => {
            forgotten(operation)
        }
    }
}

thread_local! {
    /// The kind with the planted difference. The run is on the thread that sets it.
    static KIND: Cell<&'static str> = const { Cell::new("") };
}

#[test]
fn a_difference_in_any_operation_is_found_and_shrunk() {
    // A store that ignores the order to fail is no difference, because the model asks the store for its failures.
    for kind in KINDS.into_iter().filter(|kind| *kind != "fail") {
        KIND.set(kind);
        found(files("faultless", Place::Kept, 20_000), |operation, answer| match answer {
            None => planted(KIND.get(), operation),
            Some(_) => match planted(KIND.get(), operation) {
                and @ FilePlanted::And(_) => and,
                _ => FilePlanted::Nothing,
            },
        });
    }
}

fn has_failed(answer: Option<&Answer>) -> bool {
    matches!(answer, Some(Answer::Error(_)))
}

#[test]
fn a_refused_hole_that_loses_pages_is_found() {
    let found = found(files("faultless", Place::Kept, 20_000), |operation, answer| match *operation {
        // An earlier bug of the engine: the pages are gone, and the store's old bytes show again.
        FileOperation::Punch { offset, .. } if has_failed(answer) => {
            FilePlanted::And(FileOperation::Write { offset, length: 3 * PAGE, value: 0 })
        }
        _ => FilePlanted::Nothing,
    });
    assert!(found.said[0].contains("a hole that failed"), "{found:?}");
}

#[test]
fn a_write_that_fails_and_extends_the_file_is_found() {
    found(files("faultless", Place::Kept, 20_000), |operation, answer| match *operation {
        FileOperation::Write { offset, length, .. } if has_failed(answer) => {
            FilePlanted::And(FileOperation::SetLength { length: offset + length })
        }
        _ => FilePlanted::Nothing,
    });
}

#[test]
fn a_short_write_that_says_that_it_was_whole_is_found() {
    found(files("faultless", Place::Kept, 40_000), |operation, answer| match (operation, answer) {
        (FileOperation::Write { length, .. }, Some(Answer::Done(done))) if done < length => {
            FilePlanted::Answered(Answer::Done(*length))
        }
        _ => FilePlanted::Nothing,
    });
}

#[test]
fn a_length_that_was_refused_and_changed_is_found() {
    found(files("faultless", Place::Kept, 20_000), |operation, answer| match *operation {
        FileOperation::SetLength { .. } if has_failed(answer) => {
            FilePlanted::And(FileOperation::Write { offset: 15 * PAGE, length: PAGE, value: 1 })
        }
        _ => FilePlanted::Nothing,
    });
}

#[test]
fn a_failed_write_or_flush_of_which_sync_says_nothing_is_found() {
    let found = found(files("faultless", Place::Kept, 20_000), |operation, answer| match operation {
        FileOperation::Sync { .. } if has_failed(answer) => FilePlanted::Answered(Answer::Done(0)),
        _ => FilePlanted::Nothing,
    });
    assert!(found.said[0].contains("reports success"), "{found:?}");
}

#[test]
fn a_sync_that_does_not_wait_is_found() {
    for place in [Place::Late, Place::Disk] {
        let found = found_beside(files("faultless", place, 20_000), |operation, answer| match operation {
            FileOperation::Sync { .. } if answer.is_none() => FilePlanted::Instead(FileOperation::StartSync),
            _ => FilePlanted::Nothing,
        });
        assert!(found.said[0].contains("the store"), "{found:?}");
    }
}

/// Finds a difference that depends on other threads. It need not appear in every run.
fn found_beside(files: Files, plant: FilePlant) -> Found {
    let found = run(&Files { plant: Some(plant), ..files }).difference.expect("it is found");
    println!("{}\n", found.text());
    found
}
