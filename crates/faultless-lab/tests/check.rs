//! `faultless check`: the engine behaves as this Linux does, and planted differences are found. Under AddressSanitizer
//! the comparisons with Linux are skipped with a message, because mlockall would make the kernel fetch terabytes of
//! shadow memory.
#![cfg(target_os = "linux")]

use faultless_lab::check::{
    At, Found, From, Length, Memory, Move, ORACLE, Operation, Plan, Plant, Planted, Pressure, STRIDE,
    Summary, Together, With,
};
use faultless_lab::designs;
use faultless_lab::skipped::skipped;
use faultless_lab::trouble::Trouble;
use std::cell::Cell;
use std::process::{Command, Output};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

const PAGE: u64 = 4096;

fn oracle() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_faultless"));
    command.arg(ORACLE);
    command
}

fn plan(design: &str, operations: u64, merged: bool) -> Plan {
    Plan { operations, merged, ..Plan::new(designs::find(design).unwrap()) }
}

fn run(plan: &Plan) -> Result<Summary, Trouble> {
    plan.run(&oracle, &AtomicBool::new(false))
}

/// Checks that there is no difference except known ones.
fn agrees(plan: &Plan) {
    if std::env::var_os("ASAN_OPTIONS").is_some() {
        return skipped("under AddressSanitizer mlockall locks its shadow memory");
    }
    let summary = run(plan).unwrap();
    if let Some(found) = &summary.difference {
        panic!("{}", found.text());
    }
    assert_eq!(summary.episodes, plan.operations.div_ceil(1000));
    if plan.memory.is_some() {
        assert_swapped(summary.pressure.as_ref());
    }
    // Each operation is compared, or left out for a known difference.
    assert_eq!(summary.operations + summary.left_out, plan.operations);
    println!("{}", summary.text());
}

// 50,000 operations in three parts that run in parallel. Together they take about ten seconds in a debug build.

#[test]
fn the_engine_does_as_linux_does() {
    agrees(&plan("faultless", 20_000, true));
}

#[test]
fn the_engine_does_as_linux_does_from_other_seeds() {
    agrees(&Plan { seed: 1_000_000, ..plan("faultless", 20_000, true) });
}

#[test]
fn the_engine_merges_as_linux_does() {
    agrees(&plan("faultless", 10_000, false));
}

#[test]
fn so_it_does_under_a_rival() {
    agrees(&plan("vma-lock", 10_000, true));
}

/// Returns a memory of four frames.
fn few_frames() -> Option<Memory> {
    Some(Memory::new(4 * PAGE).unwrap())
}

fn assert_swapped(pressure: Option<&Pressure>) {
    let pressure = pressure.expect("the memory is limited");
    assert!(pressure.swapped_out > 100 && pressure.swapped_in > 100, "{}", pressure.text());
}

#[test]
fn under_pressure_the_engine_does_as_linux_does() {
    for design in ["faultless", "vma-lock"] {
        agrees(&Plan { seed: 3, memory: few_frames(), ..plan(design, 10_000, true) });
    }
}

/// Leaves out the last page of the range, if it has several.
fn one_page_less(operation: &Operation) -> Planted {
    let mut less = *operation;
    if let Some(length) = less.length_mut().filter(|length| length.0 > PAGE && length.0 < 1 << 30) {
        length.0 = length.0.div_ceil(PAGE) * PAGE - PAGE;
    }
    Planted::Instead(less)
}

/// Returns the planted difference for operations of this kind.
fn plant(kind: &str) -> fn(&Operation) -> Planted {
    use Operation::*;
    use Planted::{Forgotten, Instead, Nothing};
    match kind {
        "mmap LOCKED" => |operation| match *operation {
            Map { at, length, rights, object, place, with } => {
                Instead(Map { at, length, rights, object, place, with: with - With::LOCKED })
            }
            _ => Nothing,
        },
        "mmap GROWSDOWN" => |operation| match *operation {
            Map { at, length, rights, object, place, with } => {
                Instead(Map { at, length, rights, object, place, with: with - With::GROWSDOWN })
            }
            _ => Nothing,
        },
        "mprotect GROWSDOWN" => |operation| match *operation {
            Protect { at, length, rights, .. } => Instead(Protect { at, length, rights, down: false }),
            _ => Nothing,
        },
        "mremap" => |operation| match *operation {
            Remap { at, length, new_length, moves } if new_length.0 > PAGE => {
                Instead(Remap { at, length, new_length: Length(new_length.0 - PAGE), moves })
            }
            _ => Nothing,
        },
        "mremap MAYMOVE" => |operation| match *operation {
            Remap { at, length, new_length, .. } => {
                Instead(Remap { at, length, new_length, moves: Move::No })
            }
            _ => Nothing,
        },
        // The old place stays mapped.
        "mremap FIXED" => |operation| match *operation {
            Remap { at, length, new_length, moves: Move::To(to) } if length == new_length => {
                Instead(Remap { at, length, new_length, moves: Move::Leaving(to) })
            }
            _ => Nothing,
        },
        "mremap DONTUNMAP" => |operation| match *operation {
            Remap { at, length, new_length, moves: Move::Leaving(to) } => {
                Instead(Remap { at, length, new_length, moves: Move::To(to) })
            }
            _ => Nothing,
        },
        "brk" => |operation| match *operation {
            Break { at } => Instead(Break { at: At(at.0 & !(PAGE - 1)) }),
            _ => Nothing,
        },
        // This does only what every advice does.
        "madvise RANDOM"
        | "madvise SEQUENTIAL"
        | "madvise DONTFORK"
        | "madvise DOFORK"
        | "madvise WIPEONFORK"
        | "madvise KEEPONFORK"
        | "madvise GUARD_REMOVE" => |operation| match *operation {
            Advise { at, length, .. } => Instead(Advise { at, length, advice: 0 }),
            _ => Nothing,
        },
        "munlock" => |operation| match *operation {
            Unlock { at, length } => Instead(Lock { at, length, on_fault: true }),
            _ => Nothing,
        },
        // The pages are dropped at once.
        "madvise FREE" => |operation| match *operation {
            Advise { at, length, .. } => Instead(Advise { at, length, advice: 4 }),
            _ => Nothing,
        },
        // The pages become readable but not writable.
        "madvise POPULATE_WRITE" => |operation| match *operation {
            Advise { at, length, .. } => Instead(Advise { at, length, advice: 22 }),
            _ => Nothing,
        },
        "mlock" => |operation| match *operation {
            Lock { at, length, .. } => Instead(Lock { at, length, on_fault: true }),
            _ => Nothing,
        },
        "mlock2 ONFAULT" => |operation| match *operation {
            Lock { at, length, .. } => Instead(Lock { at, length, on_fault: false }),
            _ => Nothing,
        },
        "mlockall" => |operation| match *operation {
            LockAll { flags } => Instead(LockAll { flags: flags ^ 4 }),
            _ => Nothing,
        },
        "load" => |operation| match *operation {
            Load { at } => Instead(Load { at: At(at.0 ^ 8) }),
            _ => Nothing,
        },
        "load byte" => |operation| match *operation {
            LoadByte { at } => Instead(LoadByte { at: At(at.0 ^ 1) }),
            _ => Nothing,
        },
        "store" => |operation| match *operation {
            Store { at, value } => Instead(Store { at, value: value ^ 1 << 63 }),
            _ => Nothing,
        },
        "store byte" => |operation| match *operation {
            StoreByte { at, value } => Instead(StoreByte { at, value: value ^ 1 }),
            _ => Nothing,
        },
        "add" => |operation| match *operation {
            Add { at, value } => Instead(Add { at, value: value + 1 }),
            _ => Nothing,
        },
        "read pages" => |operation| match *operation {
            Read { at, pages } if pages > 1 => Instead(Read { at, pages: pages - 1 }),
            _ => Nothing,
        },
        "process_vm_writev" => |operation| match *operation {
            WriteRemote { at, length, value } => Instead(WriteRemote { at, length, value: value ^ 1 }),
            _ => Nothing,
        },
        "pwrite" => |operation| match *operation {
            WriteFile { file, offset, length, value } => {
                Instead(WriteFile { file, offset, length, value: value ^ 1 })
            }
            _ => Nothing,
        },
        // The rest of the last page stays.
        "ftruncate" => |operation| match *operation {
            Truncate { file, length } => Instead(Truncate { file, length: length.next_multiple_of(PAGE) }),
            _ => Nothing,
        },
        "mmap"
        | "mmap shared"
        | "mmap POPULATE"
        | "munmap"
        | "mprotect"
        | "mincore"
        | "madvise DONTNEED"
        | "madvise GUARD_INSTALL"
        | "madvise REMOVE"
        | "process_vm_readv"
        | "pread"
        | "punch hole" => one_page_less,
        // A forgotten fork: the child uses its parent's own memory. A forgotten exit: the child continues as its
        // parent.
        _ => |_| Forgotten,
    }
}

thread_local! {
    /// The kind with the planted difference. The engine of a run works on the thread that runs it.
    static KIND: Cell<&'static str> = const { Cell::new("") };
}

fn planted(operation: &Operation) -> Planted {
    let kind = KIND.get();
    if operation.kind() == kind { plant(kind)(operation) } else { Planted::Nothing }
}

// In three parts that run in parallel. `just plants` runs them all.

#[test]
#[ignore = "a minute: just plants"]
fn a_difference_in_any_operation_is_found_and_shrunk_1() {
    differences_are_found(0);
}

#[test]
#[ignore = "a minute: just plants"]
fn a_difference_in_any_operation_is_found_and_shrunk_2() {
    differences_are_found(1);
}

#[test]
fn a_difference_in_any_operation_is_found_and_shrunk_3() {
    differences_are_found(2);
}

/// Checks that a difference in every third kind, from `first` on, is found.
fn differences_are_found(first: usize) {
    for kind in Operation::KINDS.into_iter().skip(first).step_by(3) {
        KIND.set(kind);
        let plan = Plan { plant: Some(planted), ..plan("faultless", 100_000, true) };
        let summary = run(&plan).unwrap();
        let Some(found) = &summary.difference else { panic!("{kind}: nothing found") };
        println!("{kind}: after {} operations\n{}\n", summary.operations, found.text());
        assert!(found.list.len() <= 8, "{kind}:\n{}", found.text());
        assert!(found.command.contains(&format!("--seed {} --ops {}", found.seed, found.operations)));
        if kind != "ftruncate" {
            continue;
        }
        // The command in the report repeats the difference. This kind is not found in the first episode.
        let again = run(&Plan { seed: found.seed, operations: found.operations, ..plan }).unwrap();
        assert_eq!(again.difference.map(|found| found.list), Some(found.list.clone()), "{kind}");
    }
}

#[test]
fn a_process_that_cannot_be_made_or_says_nothing_is_no_difference() {
    let run = |program: &'static str| {
        let mut plan = plan("faultless", 10, true);
        plan.patience = Duration::from_secs(2);
        plan.run(
            &|| {
                let mut command = Command::new(program);
                command.arg("1000");
                command
            },
            &AtomicBool::new(false),
        )
        .unwrap_err()
    };
    for (program, said) in
        [("true", "ended without an answer"), ("/no/such", "cannot start"), ("sleep", "hangs")]
    {
        match run(program) {
            Trouble::Cannot(what) => assert!(what.contains(said), "{program}: {what}"),
            other => panic!("{program}: {other:?}"),
        }
    }
}

/// Runs a check with an oracle that is ready, and then dies or hangs.
fn after_ready(then: &'static str) -> Summary {
    let command = move || {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo ready >&0; {then}")]);
        command
    };
    let plan = Plan { patience: Duration::from_secs(2), ..plan("faultless", 10, true) };
    plan.run(&command, &AtomicBool::new(false)).unwrap()
}

#[test]
fn a_process_that_dies_or_hangs_is_told_with_the_seed() {
    for (then, said) in [("kill -SEGV $$", "SIGSEGV"), ("sleep 1000", "hangs")] {
        let found = after_ready(then).difference.expect("it was lost");
        assert!(found.said.iter().any(|line| line.contains(said)), "{found:?}");
        assert_eq!((found.seed, found.operations), (1, 10));
    }
}

#[test]
fn interrupted_it_says_what_there_was() {
    let plan = plan("faultless", 1_000_000, true);
    let summary = plan.run(&oracle, &AtomicBool::new(true)).unwrap();
    assert!(summary.interrupted && summary.difference.is_none() && summary.operations < 1000);
    assert!(summary.text().contains("no difference until the interrupt"));
}

fn together(design: &str, threads: usize, operations: u64) -> Together {
    Together { operations, ..Together::new(designs::find(design).unwrap(), threads) }
}

/// Returns the difference that four threads find if the first one works with `plant`.
fn found_together(plant: Plant, patience: Duration) -> Found {
    let plan = Together { plant: Some(plant), patience, ..together("faultless", 4, 100_000) };
    let found = plan.run(&AtomicBool::new(false)).unwrap().difference.expect("it is found");
    println!("{}\n", found.text());
    assert!(found.command.contains(&format!("--threads 4 --design faultless --seed {}", found.seed)));
    found
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn threads_give_together_what_each_gives_alone() {
    for (design, threads) in [("faultless", 4), ("faultless", 9), ("vma-lock", 4), ("mmap-lock-hold", 3)] {
        let summary = together(design, threads, 5_000).run(&AtomicBool::new(false)).unwrap();
        if let Some(found) = &summary.difference {
            panic!("{design}: {}", found.text());
        }
        assert_eq!(summary.threads, threads);
        assert!(summary.operations >= 5_000 && summary.episodes >= 6, "{summary:?}");
    }
}

#[test]
fn under_pressure_threads_give_together_what_each_gives_alone() {
    for design in ["faultless", "vma-lock"] {
        let plan = Together { memory: few_frames(), ..together(design, 4, 4_000) };
        let summary = plan.run(&AtomicBool::new(false)).unwrap();
        assert_eq!(summary.difference.map(|found| found.text()), None);
        assert_swapped(summary.pressure.as_ref());
    }
}

#[test]
fn a_call_that_one_thread_forgets_is_found_and_shrunk() {
    let forget: Plant = |operation| match operation {
        Operation::Unmap { .. } => Planted::Forgotten,
        _ => Planted::Nothing,
    };
    let found = found_together(forget, LONG);
    assert_eq!(found.from, From::Place { thread: 0 });
    assert!(found.list.len() <= 4, "{found:?}");
}

#[test]
fn what_one_thread_does_to_the_next_one_s_window_is_found() {
    let harm: Plant = |operation| match *operation {
        Operation::Unmap { at, .. } => {
            let there = At(at.0 / PAGE * PAGE + STRIDE);
            Planted::And(Operation::Advise { at: there, length: Length::pages(1), advice: 4 })
        }
        _ => Planted::Nothing,
    };
    let found = found_together(harm, LONG);
    assert!(matches!(found.from, From::Alone { thread: 1, .. }), "{found:?}");
    assert!(!found.list.is_empty() && found.text().contains("several runs"));
}

#[test]
fn a_thread_that_panics_or_hangs_is_told_with_the_seed() {
    let panic: Plant = |operation| match operation {
        Operation::Fork => panic!("planted"),
        _ => Planted::Nothing,
    };
    let hang: Plant = |operation| {
        if *operation == Operation::Look {
            std::thread::sleep(LONG);
        }
        Planted::Nothing
    };
    for (plant, patience, said) in
        [(panic, LONG, "panicked: planted"), (hang, Duration::from_millis(500), "thread 0 is at read all")]
    {
        let found = found_together(plant, patience);
        assert_eq!(found.from, From::Rules);
        assert!(found.said.iter().any(|line| line.contains(said)), "{found:?}");
    }
}

#[test]
fn threads_that_are_interrupted_say_what_there_was() {
    let summary = together("faultless", 2, 1_000_000).run(&AtomicBool::new(true)).unwrap();
    assert!(summary.interrupted && summary.difference.is_none() && summary.operations <= 2000);
}

fn faultless(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_faultless")).args(arguments).output().expect("the command runs")
}

#[test]
fn the_command_prints_a_table_or_json() {
    let table = faultless(&["check", "--ops", "500", "--merged"]);
    assert_eq!(table.status.code(), Some(0));
    let text = String::from_utf8_lossy(&table.stdout);
    assert!(text.contains("| mprotect") && text.contains("500 operations in 1 episode,"), "{text}");
    let json = faultless(&["check", "--ops", "500", "--merged", "--json", "-"]);
    let summary: Summary = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((summary.operations, summary.seed), (500, 1));
    let json = faultless(&["check", "--ops", "500", "--threads", "2", "--json"]);
    let summary: Summary = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((summary.operations, summary.threads, summary.kernel.as_str()), (500, 2, ""));
}

#[test]
fn bad_values_get_one_line() {
    for (arguments, said) in [
        (["--ops", "0"], "at least one"),
        (["--ops", "many"], "'many'"),
        (["--ops", "-3"], "'-3'"),
        (["--seed", "-1"], "0 is the least"),
        (["--threads", "0"], "at least one thread"),
        (["--threads", "33"], "at most 32 threads"),
        (["--design", "nope"], "there are: mmap-lock"),
        (["--json", "/no/such/folder/r.json"], "/no/such/folder"),
    ] {
        let output = faultless(&["check", arguments[0], arguments[1]]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        assert!(errors.contains(said), "{errors}");
        assert!(output.stdout.is_empty());
    }
}
