//! Rounds on the kernel of this computer: the file behind FUSE, the counts, fork, and the clean-up. Features that the
//! kernel does not grant are skipped, with the reason.
#![cfg(target_os = "linux")]

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::protection::{Access, Sharing};
use faultless::store::{DelayedStore, Direction, FailingStore, Failure, InjectedError};
use faultless_lab::machine::{Child, Machine, Memory, Process, Task, Touched};
use faultless_lab::measure::{Latency, Measured};
use faultless_lab::native::{Job, NativeMachine, Request, Source, Variant, round_by, worker};
use faultless_lab::scenarios::{Settings, TestFile, Turn};
use faultless_lab::skipped::skipped;
use faultless_lab::trouble::Trouble;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PAGES: u64 = 512;
const AS_WORKER: &str = "FAULTLESS_TEST_AS_WORKER";

/// Not a test: the body of the workers of the tests.
#[test]
fn as_worker() {
    if std::env::var_os(AS_WORKER).is_some() {
        // The parent has already received the result.
        let _ = worker(play);
        std::process::exit(0);
    }
}

fn play(request: &Request, machine: &NativeMachine, turn: &Turn<'_>) -> Result<Measured, Trouble> {
    match request.scenario.as_str() {
        "faults" => faults(request, machine, 1),
        "faults of four" => faults(request, machine, 4),
        "cold again" => cold_again(request, machine),
        "fork" => fork(machine),
        "torn child" => one_child(machine, Arc::new(Torn)),
        "dying child" => one_child(machine, Arc::new(Dying)),
        "dropped child" => dropped_child(machine),
        "calls" => calls(machine),
        "two processes" => machine.process().and_then(|_one| machine.process().map(|_| Measured::default())),
        "wild access" => machine.process()?.load(VirtAddr::new(1 << 45)).map(|_| Measured::default()),
        "outside" => machine
            .process()?
            .load(VirtAddr::new(AS_WORKER.as_ptr().addr() as u64))
            .map(|_| Measured::default()),
        "until the end" => until_the_end(turn),
        "much memory" => much_memory(machine),
        other => panic!("no scenario {other}"),
    }
}

/// Touches and checks every page of the file once, by several threads. Each page belongs to one of them.
fn faults(request: &Request, machine: &NativeMachine, threads: u64) -> Result<Measured, Trouble> {
    let file = TestFile::of(&Settings { served: request.file.clone(), ..settings() }, 0)?;
    let process = machine.process()?;
    let before = machine.statistics();
    let mut measured = Measured::default();
    let parts: Vec<Result<Measured, Trouble>> = std::thread::scope(|scope| {
        let part = |me: u64| {
            let (file, process) = (&file, &process);
            move || {
                let start = process.map_file(Sharing::Shared)?;
                let (mut part, mut latency) = (Measured::default(), Latency::default());
                let mut page = [0; PAGE_SIZE as usize];
                for number in (me..file.pages()).step_by(threads as usize) {
                    let at = VirtAddr::new(start.get() + number * PAGE_SIZE);
                    let (counted, begun) = (process.counted()[0], Instant::now());
                    let touched = process.touch(at, Access::Read)?;
                    latency.record(begun.elapsed());
                    if let (Some(after), Some(before)) = (process.counted()[0], counted) {
                        part.count("reads_of_mmap_lock", after - before);
                    }
                    part.count("major", u64::from(touched == Touched::Major));
                    process.read_page(at, &mut page)?;
                    file.check(number, &page)?;
                    part.count("pages", 1);
                }
                // The three accesses follow each other at once, because the kernel may drop a clean page at any time.
                let again =
                    (0..3).map(|_| process.touch(start, Access::Read)).collect::<Result<Vec<_>, _>>()?;
                part.count("again_is_minor", u64::from(again.contains(&Touched::Minor)));
                process.unmap_file(start)?;
                part.add_latency("fault", &latency);
                Ok(part)
            }
        };
        let started: Vec<_> = (0..threads).map(|me| scope.spawn(part(me))).collect();
        started.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    for part in parts {
        measured.add(&part?);
    }
    measured.count_since(&before, &machine.statistics());
    measured.seconds = 1.0;
    Ok(measured)
}

fn cold_again(request: &Request, machine: &NativeMachine) -> Result<Measured, Trouble> {
    let bytes = request.file.as_ref().expect("a file").length;
    let process = machine.process()?;
    let mut measured = Measured::default();
    for _ in 0..3 {
        let start = process.map_file(Sharing::Private)?;
        let count = |pages: Vec<bool>| pages.into_iter().filter(|resident| *resident).count() as u64;
        measured.count("resident_before", count(process.resident(start, bytes)?));
        for page in 0..10 {
            // The pages are far apart, so that read-ahead and fault-around do not reach the next one.
            let at = VirtAddr::new(start.get() + page * 40 * PAGE_SIZE);
            measured.count("major", u64::from(process.touch(at, Access::Read)? == Touched::Major));
        }
        measured.count("resident_after", count(process.resident(start, bytes)?));
        process.unmap_file(start)?;
    }
    Ok(measured)
}

struct Sees(VirtAddr);

impl Task for Sees {
    fn run(&self, child: &dyn Memory) -> Result<(), Trouble> {
        let seen = child.load(self.0)?;
        child.store(self.0, 99)?;
        if seen == 7 { Ok(()) } else { Err(Trouble::Wrong(format!("{seen} instead of 7"))) }
    }
}

struct Torn;

impl Task for Torn {
    fn run(&self, _: &dyn Memory) -> Result<(), Trouble> {
        Err(Trouble::Wrong("torn, as the test wants it".into()))
    }
}

struct Dying;

impl Task for Dying {
    fn run(&self, child: &dyn Memory) -> Result<(), Trouble> {
        let at = child.map_anonymous(PAGE_SIZE)?;
        child.unmap(at, PAGE_SIZE)?;
        child.load(at).map(drop)
    }
}

struct Endless;

impl Task for Endless {
    fn run(&self, _: &dyn Memory) -> Result<(), Trouble> {
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

fn fork(machine: &NativeMachine) -> Result<Measured, Trouble> {
    let process = machine.process()?;
    let page = process.map_anonymous(PAGE_SIZE)?;
    process.store(page, 7)?;
    let task: Arc<dyn Task> = Arc::new(Sees(page));
    let mut measured = Measured::default();
    // Two threads fork at the same time, each with two children at once.
    std::thread::scope(|scope| {
        let forks = || {
            for _ in 0..20 {
                let children = [process.fork(&task)?, process.fork(&task)?];
                children.into_iter().try_for_each(Child::join)?;
            }
            Ok(())
        };
        let threads = [scope.spawn(forks), scope.spawn(forks)];
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    measured.count("children", 80);
    measured.count("parent_sees", process.load(page)?);
    Ok(measured)
}

fn one_child(machine: &NativeMachine, task: Arc<dyn Task>) -> Result<Measured, Trouble> {
    machine.process()?.fork(&task)?.join()?;
    Ok(Measured::default())
}

fn dropped_child(machine: &NativeMachine) -> Result<Measured, Trouble> {
    let task: Arc<dyn Task> = Arc::new(Endless);
    drop(machine.process()?.fork(&task)?);
    // `finish` checks that no child is left.
    Ok(Measured::default())
}

fn calls(machine: &NativeMachine) -> Result<Measured, Trouble> {
    use faultless::protection::Protection;
    let process = machine.process()?;
    let bytes = 8 * PAGE_SIZE;
    let start = process.map_anonymous(bytes)?;
    let last = VirtAddr::new(start.get() + bytes - 8);
    let mut measured = Measured::default();
    assert_eq!(process.touch(last, Access::Write)?, Touched::Minor);
    measured.count("stored_by_touch", process.load(last)?);
    process.protect(start, bytes, Protection::READ)?;
    measured.count("read_only", process.load(last)?);
    process.protect(start, bytes, Protection::READ | Protection::WRITE)?;
    process.store(last, 5)?;
    process.discard(start, bytes)?;
    measured.count("discarded", process.load(last)?);
    process.unmap(start, bytes)?;
    // The thread that unmapped the address maps it again first.
    measured.count("same_place", u64::from(process.map_anonymous(bytes)? == start));
    Ok(measured)
}

fn until_the_end(turn: &Turn<'_>) -> Result<Measured, Trouble> {
    while !turn.interrupted.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut measured = Measured { seconds: 0.5, ..Measured::default() };
    measured.count("ended", 1);
    Ok(measured)
}

fn much_memory(machine: &NativeMachine) -> Result<Measured, Trouble> {
    let process = machine.process()?;
    let bytes = 256 << 20;
    let start = process.map_anonymous(bytes)?;
    for page in (0..bytes).step_by(PAGE_SIZE as usize) {
        process.store(VirtAddr::new(start.get() + page), 1)?;
    }
    Ok(Measured::default())
}

fn settings() -> Settings {
    Settings { io_latency: Duration::from_millis(1), ..Settings::default() }
}

struct With {
    file: bool,
    failing: bool,
    variant: Variant,
    memory_limit: Option<u64>,
    interrupted: bool,
}

const PLAIN: With =
    With { file: false, failing: false, variant: Variant::Access, memory_limit: None, interrupted: false };

fn run(scenario: &str, with: &With) -> Result<Measured, Trouble> {
    let (settings, interrupted) = (settings(), AtomicBool::new(with.interrupted));
    let turn = Turn {
        settings: &settings,
        length: Duration::from_millis(10),
        seed: 3,
        interrupted: &interrupted,
        recorder: None,
    };
    let file = with.file.then(|| {
        let file = TestFile::temporary(PAGES * PAGE_SIZE, 42).expect("a temporary file");
        let failure = Failure::From(if with.failing { 10 } else { u64::MAX });
        let error = InjectedError::Io { errno: 5 };
        let store = FailingStore::new(file.store().expect("a store"), Direction::Read, failure, error);
        let store = Arc::new(DelayedStore::new(store, settings.io_latency));
        Source { store, length: file.length(), contents: file.contents() }
    });
    let mut command = Command::new("/proc/self/exe");
    command.args(["as_worker", "--exact", "--nocapture", "--test-threads=1"]).env(AS_WORKER, "1");
    let (variant, memory_limit) = (with.variant, with.memory_limit);
    round_by(command, Job { scenario, turn: &turn, file, variant, memory_limit })
}

/// Returns the measurements. If the kernel does not grant a feature, prints the reason and returns `None`.
fn granted(scenario: &str, with: &With) -> Option<Measured> {
    match run(scenario, with) {
        Err(Trouble::Cannot(reason)) => {
            skipped(format!("{scenario}: {reason}"));
            None
        }
        done => Some(done.expect(scenario)),
    }
}

#[test]
fn each_page_of_the_file_is_read_alone_and_right() {
    for (scenario, threads) in [("faults", 1), ("faults of four", 4)] {
        for variant in [Variant::Access, Variant::SystemCall] {
            let Some(measured) = granted(scenario, &With { file: true, variant, ..PLAIN }) else { return };
            assert_eq!(measured.counted("pages"), Some(PAGES));
            assert_eq!(measured.counted("major"), Some(PAGES), "{scenario}, {variant:?}");
            assert_eq!(measured.counted("again_is_minor"), Some(threads));
            assert!(measured.counted("major_faults") >= Some(PAGES));
            // No page is read ahead. A second read of a page means that the kernel has dropped it meanwhile.
            let reads = measured.counted("io_reads").unwrap();
            assert!((PAGES..PAGES + PAGES / 8).contains(&reads), "{reads} reads of {PAGES} pages");
            assert_eq!(measured.latency["fault"].count(), PAGES);
            match measured.ratio("reads_of_mmap_lock", "major") {
                None => eprintln!("not counted: {:?}", measured.notes),
                Some(each) => {
                    eprintln!("{scenario}, {variant:?}: {each:.3} reads of mmap_lock a major fault");
                    assert!(measured.counted("mmap_lock_read") >= measured.counted("reads_of_mmap_lock"));
                    assert!(measured.counted("mmap_lock_write") > Some(0));
                    // A fault of the kernel's own takes mmap_lock at least once, on every kernel.
                    assert!(variant == Variant::Access || each >= 1.0);
                }
            }
        }
    }
}

#[test]
fn pages_turn_cold_when_they_are_unmapped() {
    let Some(measured) = granted("cold again", &With { file: true, ..PLAIN }) else { return };
    assert_eq!(measured.counted("resident_before"), Some(0));
    // The kernel may have dropped some pages already.
    assert!(matches!(measured.counted("resident_after"), Some(25..=30)));
    assert_eq!(measured.counted("major"), Some(30));
}

#[test]
fn children_have_a_memory_of_their_own() {
    let measured = run("fork", &PLAIN).unwrap();
    assert_eq!((measured.counted("children"), measured.counted("parent_sees")), (Some(80), Some(7)));
}

#[test]
fn what_a_child_says_reaches_the_parent() {
    assert_eq!(run("torn child", &PLAIN).unwrap_err(), Trouble::Wrong("torn, as the test wants it".into()));
    let died = run("dying child", &PLAIN).unwrap_err().to_string();
    assert_eq!(died, "a child of fork was ended by SIGSEGV (signal 11)");
    run("dropped child", &PLAIN).unwrap();
}

#[test]
fn calls_do_what_they_should() {
    for variant in [Variant::Access, Variant::SystemCall] {
        let measured = run("calls", &With { variant, ..PLAIN }).unwrap();
        let counted = |name| measured.counted(name).unwrap();
        assert_eq!(["stored_by_touch", "read_only", "discarded", "same_place"].map(counted), [1, 1, 0, 1]);
    }
}

#[test]
fn a_worker_that_dies_is_one_line() {
    let died = run("wild access", &PLAIN).unwrap_err();
    assert_eq!(died, Trouble::Wrong("the worker was ended by SIGSEGV (signal 11)".into()));
    // Memory of the program itself is never accessed.
    let refused = run("outside", &PLAIN).unwrap_err().to_string();
    assert!(refused.starts_with("a load fails: "), "{refused}");
    assert!(matches!(run("two processes", &PLAIN), Err(Trouble::Cannot(_))));
}

#[test]
fn a_read_that_fails_is_one_line() {
    for variant in [Variant::Access, Variant::SystemCall] {
        let failed = run("faults", &With { file: true, failing: true, variant, ..PLAIN });
        match failed.unwrap_err() {
            Trouble::Cannot(reason) => skipped(reason),
            other => assert_eq!(
                other,
                Trouble::Input("cannot read the file: I/O error (errno 5) at byte 36864".into())
            ),
        }
    }
}

#[test]
fn an_interrupt_ends_the_round_with_what_was_measured() {
    let measured = run("until the end", &With { interrupted: true, ..PLAIN }).unwrap();
    assert_eq!((measured.seconds, measured.counted("ended")), (0.5, Some(1)));
}

#[test]
fn memory_is_limited() {
    match run("much memory", &With { memory_limit: Some(64 << 20), ..PLAIN }) {
        Err(Trouble::Cannot(reason)) => skipped(format!("a memory limit: {reason}")),
        Err(Trouble::Input(text)) => assert!(text.contains("64 MiB of memory were too little"), "{text}"),
        other => panic!("the limit was not kept: {other:?}"),
    }
    run("much memory", &PLAIN).unwrap();
}

#[test]
fn nothing_stays_mounted() {
    // Rounds of other tests may run meanwhile. Their mounts are not visible either.
    let ours = || std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let count = |mounts: &str| mounts.lines().filter(|line| line.starts_with("faultless ")).count();
    let before = count(&ours());
    let done = run("faults", &With { file: true, ..PLAIN });
    let failed = run("wild access", &With { file: true, ..PLAIN });
    if let Err(Trouble::Cannot(reason)) = done {
        skipped(reason);
    } else {
        assert!(done.is_ok() && failed.is_err());
    }
    assert_eq!(count(&ours()), before);
}
