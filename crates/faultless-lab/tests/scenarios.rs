//! Checks of the scenarios themselves. On a machine that sometimes returns a wrong word or byte, every scenario must
//! end with an error. On a correct machine none may, and nothing may be left over.

use faultless::address::VirtAddr;
use faultless::design::Faultless;
use faultless::protection::{Access, Protection, Sharing};
use faultless_lab::contender::Contender;
use faultless_lab::machine::{Machine, Memory, Process, SoftMachine, Task, Touched};
use faultless_lab::measure::{IN_MAJOR_FAULTS, Measured};
use faultless_lab::record::Recorder;
use faultless_lab::scenarios::{ALL, Page, Prepared, Scenario, Settings, Turn};
use faultless_lab::trouble::Trouble;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

type Inner = SoftMachine<Faultless>;
type InnerProcess = <Inner as Machine>::Process;

/// One of this many loads is wrong.
const EVERY: u64 = 41;

/// Machine that returns wrong values on request.
struct Faulty {
    inner: Inner,
    is_wrong: bool,
    loads: Arc<AtomicU64>,
}

struct FaultyProcess {
    inner: InnerProcess,
    is_wrong: bool,
    loads: Arc<AtomicU64>,
}

impl FaultyProcess {
    fn is_wrong_now(&self) -> bool {
        self.is_wrong && self.loads.fetch_add(1, Ordering::Relaxed) % EVERY == EVERY - 1
    }
}

impl Memory for FaultyProcess {
    fn map_anonymous(&self, bytes: u64) -> Result<VirtAddr, Trouble> {
        self.inner.map_anonymous(bytes)
    }
    fn map_file(&self, sharing: Sharing) -> Result<VirtAddr, Trouble> {
        self.inner.map_file(sharing)
    }
    fn unmap_file(&self, start: VirtAddr) -> Result<(), Trouble> {
        self.inner.unmap_file(start)
    }
    fn unmap(&self, start: VirtAddr, bytes: u64) -> Result<(), Trouble> {
        self.inner.unmap(start, bytes)
    }
    fn protect(&self, start: VirtAddr, bytes: u64, protection: Protection) -> Result<(), Trouble> {
        self.inner.protect(start, bytes, protection)
    }
    fn discard(&self, start: VirtAddr, bytes: u64) -> Result<(), Trouble> {
        self.inner.discard(start, bytes)
    }
    fn load(&self, at: VirtAddr) -> Result<u64, Trouble> {
        Ok(self.inner.load(at)? ^ u64::from(self.is_wrong_now()) << 17)
    }
    fn store(&self, at: VirtAddr, value: u64) -> Result<(), Trouble> {
        self.inner.store(at, value)
    }
    fn read_page(&self, start: VirtAddr, page: &mut Page) -> Result<(), Trouble> {
        self.inner.read_page(start, page)?;
        page[1234] ^= u8::from(self.is_wrong_now());
        Ok(())
    }
    fn touch(&self, at: VirtAddr, access: Access) -> Result<Touched, Trouble> {
        self.inner.touch(at, access)
    }
    fn counted(&self) -> [Option<u64>; IN_MAJOR_FAULTS.len()] {
        // This machine counts none of these.
        [None; IN_MAJOR_FAULTS.len()]
    }
}

impl Process for FaultyProcess {
    type Child = <InnerProcess as Process>::Child;
    fn fork(&self, task: &Arc<dyn Task>) -> Result<Self::Child, Trouble> {
        self.inner.fork(task)
    }
}

impl Machine for Faulty {
    type Process = FaultyProcess;
    fn process(&self) -> Result<FaultyProcess, Trouble> {
        let Self { inner, is_wrong, loads } = self;
        Ok(FaultyProcess { inner: inner.process()?, is_wrong: *is_wrong, loads: loads.clone() })
    }
    fn statistics(&self) -> BTreeMap<String, u64> {
        self.inner.statistics()
    }
    fn finish(self) -> Result<(), Trouble> {
        self.inner.finish()
    }
}

fn settings() -> Settings {
    Settings { memory: 64 << 20, io_latency: Duration::from_micros(200), ..Settings::default() }
}

fn run(prepared: &Prepared, is_wrong: bool) -> Result<Measured, Trouble> {
    let settings = settings();
    let inner = Inner::new(&prepared.needs(), prepared.file(), &settings)?;
    let machine = Faulty { inner, is_wrong, loads: Arc::default() };
    let interrupted = AtomicBool::new(false);
    let length = Duration::from_millis(100);
    let turn = Turn { settings: &settings, length, seed: 1, interrupted: &interrupted, recorder: None };
    let measured = prepared.run(&machine, &turn);
    machine.finish()?;
    measured
}

fn check(scenario: &'static Scenario) {
    let prepared = scenario.prepare(&settings()).expect("settings that it takes");
    match run(&prepared, true) {
        Err(Trouble::Wrong(_)) => {}
        Err(other) => panic!("{}: {other}", scenario.name),
        Ok(_) => panic!("{} does not notice the wrong value", scenario.name),
    }
    let measured = run(&prepared, false).expect("nothing is wrong");
    let value = (scenario.headline.of)(&measured);
    assert!(value.is_some_and(|value| value > 0.0 && value.is_finite()), "{}: {value:?}", scenario.name);
    // A figure that the machine does not count is unknown, not zero.
    assert!(IN_MAJOR_FAULTS.iter().all(|(name, _)| measured.counted(name).is_none()), "{}", scenario.name);
    for figure in scenario.figures {
        assert!((figure.of)(&measured).is_none_or(f64::is_finite), "{} {}", scenario.name, figure.name);
    }
}

#[test]
fn every_scenario_sees_what_is_wrong() {
    ALL.iter().for_each(check);
}

#[test]
fn figures_have_different_names() {
    for scenario in ALL {
        let mut names: Vec<_> = scenario.figures.iter().map(|figure| figure.name).collect();
        names.push(scenario.headline.name);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{}: {names:?}", scenario.name);
    }
}

/// A machine without a second process runs a part of the scenario, with a note.
#[test]
fn one_process_is_enough_for_a_part_of_giant_vma() {
    struct One(Inner, AtomicBool);
    impl Machine for One {
        type Process = InnerProcess;
        fn process(&self) -> Result<InnerProcess, Trouble> {
            match self.1.swap(true, Ordering::Relaxed) {
                false => self.0.process(),
                true => Err(Trouble::Cannot("there is one process only".into())),
            }
        }
        fn statistics(&self) -> BTreeMap<String, u64> {
            self.0.statistics()
        }
        fn finish(self) -> Result<(), Trouble> {
            self.0.finish()
        }
    }
    let scenario = ALL.iter().find(|scenario| scenario.name == "giant-vma").expect("the scenario");
    let (settings, interrupted) = (settings(), AtomicBool::new(false));
    let prepared = scenario.prepare(&settings).expect("settings");
    let inner = Inner::new(&prepared.needs(), None, &settings).expect("a machine");
    let machine = One(inner, AtomicBool::new(false));
    let length = Duration::from_millis(50);
    let turn = Turn { settings: &settings, length, seed: 1, interrupted: &interrupted, recorder: None };
    let measured = prepared.run(&machine, &turn).expect("a round");
    machine.finish().expect("nothing is left");
    assert_eq!((scenario.headline.of)(&measured), None);
    assert!(scenario.is_measured(&measured));
    assert_eq!(measured.notes, ["fault in own process is not measured: there is one process only"]);
}

/// The parent returns the error of a child unchanged. A child that is not waited for leaves nothing.
#[test]
fn children_tell_what_is_wrong_or_go_unheard() {
    struct Says(Trouble);
    impl Task for Says {
        fn run(&self, child: &dyn Memory) -> Result<(), Trouble> {
            child.map_anonymous(1 << 20)?;
            Err(self.0.clone())
        }
    }
    let prepared = ALL[0].prepare(&settings()).expect("settings");
    let machine = Inner::new(&prepared.needs(), prepared.file(), &settings()).expect("a machine");
    let process = machine.process().expect("a process");
    for said in [Trouble::Wrong("torn".into()), Trouble::Input("raise --memory".into())] {
        let task: Arc<dyn Task> = Arc::new(Says(said.clone()));
        drop(process.fork(&task).expect("a child"));
        let child = process.fork(&task).expect("a child");
        assert_eq!(faultless_lab::machine::Child::join(child), Err(said));
    }
    drop(process);
    machine.finish().expect("nothing is left");
}

/// The end of a machine finds resources that were not given back.
#[test]
fn a_leak_is_found() {
    let prepared = ALL[0].prepare(&settings()).expect("settings");
    let machine = Inner::new(&prepared.needs(), prepared.file(), &settings()).expect("a machine");
    let process = machine.process().expect("a process");
    let at = process.map_anonymous(4096).expect("a mapping");
    process.store(at, 1).expect("a store");
    assert_eq!(process.touch(at, Access::Write).expect("a store"), Touched::Minor);
    let end = machine.finish();
    assert!(matches!(end, Err(Trouble::Wrong(text)) if text.contains("leaked frames")));
    drop(process);
}

/// Each scenario begins to record when its warm-up is over.
#[test]
fn a_round_of_each_scenario_can_be_recorded() {
    let ours = Contender::find("faultless").expect("the design");
    for scenario in ALL {
        let (settings, interrupted) = (settings(), AtomicBool::new(false));
        let prepared = scenario.prepare(&settings).expect("settings");
        let recorder = Arc::new(Recorder::default());
        let length = Duration::from_millis(50);
        let turn = Turn {
            settings: &settings,
            length,
            seed: 1,
            interrupted: &interrupted,
            recorder: Some(&recorder),
        };
        prepared.round(ours, &turn).expect("a round");
        let recording = recorder.finish();
        assert!(
            recording.extent().is_some(),
            "{}: {} lanes without a span",
            scenario.name,
            recording.lanes.len()
        );
    }
}
