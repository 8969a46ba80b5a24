//! The list of scenarios and the types that they share. Each scenario uses [`crate::machine`] alone.

mod actors;
mod contents;
mod disjoint_change;
mod faults;
mod figure;
mod fork_during_io;
mod giant_vma;
mod many_threads;
mod map_unmap;
mod page_fault;
mod retry_storm;
mod same_folio;
mod short_process;
mod stage;
mod stamps;

pub use contents::{Page, TestFile};
pub use figure::{Better, Figure, Unit};

use crate::contender::Contender;
use crate::designs::{LeafTables, Visitor};
use crate::machine::{Machine, SoftMachine};
use crate::measure::Measured;
use crate::native::{self, Job, Served, Source, Variant};
use crate::record::Recorder;
use crate::trouble::Trouble;
use faultless::address::PAGE_SIZE;
use faultless::design::LockingDesign;
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// A scenario: its description, its figures and its default settings.
#[derive(Debug)]
pub struct Scenario {
    /// Its name in commands and reports.
    pub name: &'static str,
    /// A one-line description.
    pub about: &'static str,
    /// The discussion that it reproduces.
    pub source: &'static str,
    /// The conclusions that it does not support.
    pub cannot_show: &'static str,
    /// Its main figure.
    pub headline: Figure,
    /// Further figures in the report.
    pub figures: &'static [Figure],
    /// Counters of checks, each with its name in the report.
    pub checked: &'static [(&'static str, &'static str)],
    /// Counters that should be zero, each with its name in the report. On a busy machine they may exceed zero.
    pub missed: &'static [(&'static str, &'static str)],
    /// Each actor at a fixed rate, with its default rate in operations per second. `--rate` overrides it.
    pub rates: &'static [(&'static str, f64)],
    /// The default number of threads. `--threads` overrides it. Actors at fixed rates are not counted.
    pub threads: usize,
    /// The work of those threads, in a few words.
    pub work: &'static str,
    /// Whether faults wait for I/O. If not, designs that differ only by their I/O run the same code.
    pub does_io: bool,
    kind: Kind,
}

impl Scenario {
    /// Returns whether a round measured the headline or another figure by which designs are compared.
    pub fn is_measured(&self, measured: &Measured) -> bool {
        let compared = self.figures.iter().filter(|figure| figure.better != Better::Neither);
        std::iter::once(&self.headline).chain(compared).any(|figure| (figure.of)(measured).is_some())
    }

    /// Returns the headline and the further figures.
    pub fn all_figures(&self) -> impl Iterator<Item = &Figure> {
        std::iter::once(&self.headline).chain(self.figures)
    }
}

/// The settings that all rounds of a run share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Threads that do a scenario's work; `None`: the scenario's default.
    pub threads: Option<usize>,
    /// The minimum duration of each read.
    pub io_latency: Duration,
    /// The maximum number of concurrent reads at the device; `None`: unlimited.
    pub queue_depth: Option<NonZeroUsize>,
    /// The treatment of leaf tables by fork, under all designs; `None`: each design's own.
    pub fork: Option<LeafTables>,
    /// Rates that override a scenario's defaults, by actor. The last entry of an actor counts.
    pub rates: Vec<(String, f64)>,
    /// The file to map; `None`: a temporary file.
    pub file: Option<PathBuf>,
    /// The same file as the parent process serves it. Set only in a worker process of the native machine.
    #[serde(skip)]
    pub served: Option<Served>,
    /// Physical memory of the machine, in bytes.
    pub memory: u64,
    /// The seed of every random choice.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            threads: None,
            io_latency: Duration::ZERO,
            queue_depth: None,
            fork: None,
            rates: Vec::new(),
            file: None,
            served: None,
            memory: 256 << 20,
            seed: 1,
        }
    }
}

impl Settings {
    /// Returns the number of threads that do the scenario's work.
    pub fn threads(&self, scenario: &Scenario) -> usize {
        self.threads.unwrap_or(scenario.threads)
    }

    /// Returns an actor's rate, in operations per second.
    pub fn rate(&self, scenario: &Scenario, actor: &str) -> f64 {
        let own = scenario.rates.iter().find(|(name, _)| *name == actor).map_or(1.0, |(_, hertz)| *hertz);
        self.rates.iter().rev().find(|(name, _)| name == actor).map_or(own, |(_, hertz)| *hertz)
    }

    /// Returns the number of frames of the machine.
    fn frames(&self) -> u64 {
        self.memory / PAGE_SIZE
    }

    fn too_small(&self, threads: usize, frames: u64) -> Trouble {
        Trouble::Input(format!(
            "--memory: {} KiB is too little for {threads} {}; give at least {} KiB",
            self.memory >> 10,
            if threads == 1 { "thread" } else { "threads" },
            (frames * PAGE_SIZE) >> 10,
        ))
    }

    /// Returns the number of frames for each of `threads`, at most `most`. All get the same share, and half of the
    /// memory remains free.
    ///
    /// # Errors
    /// [`Trouble::Input`] if the share is less than `least`.
    fn share(&self, threads: usize, least: u64, most: u64) -> Result<u64, Trouble> {
        let share = (self.frames() / 2 / threads as u64).min(most);
        if share < least { Err(self.too_small(threads, 2 * least * threads as u64)) } else { Ok(share) }
    }
}

/// The parameters of one round.
#[derive(Clone, Copy)]
pub struct Turn<'a> {
    /// The settings that all rounds share.
    pub settings: &'a Settings,
    /// The time to measure.
    pub length: Duration,
    /// The seed of this round.
    pub seed: u64,
    /// Set by Ctrl-C.
    pub interrupted: &'a AtomicBool,
    /// The recorder; `None` if the round is not recorded.
    pub recorder: Option<&'a Arc<Recorder>>,
}

/// The requirements of a scenario on the machine of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Physical memory, in frames. A machine that has more memory need not limit it.
    pub frames: u64,
    /// The maximum number of file pages kept in memory; `None`: no limit but the memory. A machine that cannot limit
    /// this number may evict pages by other means, unless `is_thrashing`.
    pub cached_pages: Option<u64>,
    /// The number of bytes of the file that the scenario maps; `None`: it maps no file.
    pub file_bytes: Option<u64>,
    /// The number of processes that the scenario creates. Children of fork are not counted.
    pub processes: usize,
    /// Whether lack of memory must evict pages while faults of other threads wait for them. Then `cached_pages` is
    /// essential to the scenario.
    pub is_thrashing: bool,
    /// The approximate number of concurrent threads.
    pub threads: usize,
}

impl Needs {
    fn new(frames: u64) -> Self {
        Self { frames, cached_pages: None, file_bytes: None, processes: 1, is_thrashing: false, threads: 16 }
    }
}

/// The interface of each scenario's module.
trait Play: Sized {
    /// Makes the state that all rounds share.
    ///
    /// # Errors
    /// [`Trouble::Input`] if the settings do not allow it.
    fn new(settings: &Settings) -> Result<Self, Trouble>;

    /// Returns the requirements on the machine.
    fn needs(&self) -> Needs;

    /// Returns the file that the scenario maps, if any.
    fn file(&self) -> Option<&Arc<TestFile>> {
        None
    }

    /// Runs one round. When this returns, no process of the round exists.
    ///
    /// # Errors
    /// [`Trouble`] if the round fails.
    fn run<M: Machine>(&self, machine: &M, turn: &Turn<'_>) -> Result<Measured, Trouble>;
}

macro_rules! scenarios {
    ($($kind:ident = $module:ident,)*) => {
        #[derive(Clone, Copy, Debug)]
        enum Kind { $($kind,)* }

        enum Ready { $($kind($module::Prepared),)* }

        /// Every scenario, in the order of reports.
        pub const ALL: &[Scenario] = &[$($module::SCENARIO,)*];

        impl Scenario {
            /// Makes the state that all rounds share.
            ///
            /// # Errors
            /// [`Trouble::Input`] if the settings do not allow it.
            pub fn prepare(&'static self, settings: &Settings) -> Result<Prepared, Trouble> {
                let ready = match self.kind {
                    $(Kind::$kind => Ready::$kind($module::Prepared::new(settings)?),)*
                };
                Ok(Prepared { scenario: self, ready })
            }
        }

        impl Prepared {
            /// Returns the requirements on the machine.
            pub fn needs(&self) -> Needs {
                match &self.ready { $(Ready::$kind(prepared) => prepared.needs(),)* }
            }

            /// Returns the file that the scenario maps, if any. A machine's [`crate::machine::Memory::map_file`] maps
            /// all of it.
            pub fn file(&self) -> Option<&Arc<TestFile>> {
                match &self.ready { $(Ready::$kind(prepared) => prepared.file(),)* }
            }

            /// Runs one round on `machine`, which must be new and meet [`Prepared::needs`].
            ///
            /// # Errors
            /// [`Trouble`] if the round fails.
            pub fn run<M: Machine>(&self, machine: &M, turn: &Turn<'_>) -> Result<Measured, Trouble> {
                match &self.ready { $(Ready::$kind(prepared) => prepared.run(machine, turn),)* }
            }
        }
    };
}

/// The names of the scenarios that `compare` runs if no scenario is given.
const TOUR: [&str; 4] = ["fork-during-io", "retry-storm", "giant-vma", "disjoint-change"];

scenarios! {
    ForkDuringIo = fork_during_io,
    RetryStorm = retry_storm,
    SameFolio = same_folio,
    GiantVma = giant_vma,
    DisjointChange = disjoint_change,
    PageFault = page_fault,
    MapUnmap = map_unmap,
    ShortProcess = short_process,
    ManyThreads = many_threads,
}

/// Returns the scenarios that `compare` runs if no scenario is given, in order.
pub fn tour() -> Vec<&'static Scenario> {
    TOUR.iter().filter_map(|name| find(name)).collect()
}

/// Returns the scenario called `name`.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

/// Returns the names of all scenarios, separated by commas, for a message.
pub fn names() -> String {
    ALL.iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(", ")
}

/// A scenario and the state that its rounds share, ready to run on any machine.
pub struct Prepared {
    scenario: &'static Scenario,
    ready: Ready,
}

impl Prepared {
    /// Returns the scenario.
    pub fn scenario(&self) -> &'static Scenario {
        self.scenario
    }

    /// Runs one round of `contender` on a new machine. A software machine is checked after the round.
    ///
    /// # Errors
    /// [`Trouble`] if the round or the check fails.
    pub fn round(&self, contender: Contender, turn: &Turn<'_>) -> Result<Measured, Trouble> {
        struct Run<'a>(&'a Prepared, &'a Turn<'a>);
        impl Visitor for Run<'_> {
            type Output = Result<Measured, Trouble>;
            fn visit<D: LockingDesign>(self) -> Self::Output {
                let Run(prepared, turn) = self;
                let machine = SoftMachine::<D>::for_turn(&prepared.needs(), prepared.file(), turn)?;
                let measured = prepared.run(&machine, turn)?;
                machine.finish()?;
                Ok(measured)
            }
        }
        match contender {
            Contender::Engine(design) => design.visit(Run(self, turn)),
            Contender::Native { syscall } => self.on_the_kernel(syscall, turn),
        }
    }

    /// Runs one round on the kernel of this host, in a separate process.
    fn on_the_kernel(&self, syscall: bool, turn: &Turn<'_>) -> Result<Measured, Trouble> {
        let needs = self.needs();
        if let (true, Some(pages)) = (needs.is_thrashing, needs.cached_pages) {
            return Err(Trouble::Cannot(format!(
                "the kernel's page cache cannot be made as small as {pages} pages for one process"
            )));
        }
        let source = |file: &Arc<TestFile>| {
            let (store, contents) = (file.delayed(turn.settings)?, file.contents());
            Ok::<_, Trouble>(Source { store, length: file.length(), contents })
        };
        let file = self.file().map(source).transpose()?;
        let variant = if syscall { Variant::SystemCall } else { Variant::Access };
        let job = Job { scenario: self.scenario.name, turn, file, variant, memory_limit: None };
        native::round(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_does_io_if_it_maps_a_file() {
        for scenario in ALL {
            let prepared = scenario.prepare(&Settings::default()).expect("the defaults suit each scenario");
            assert_eq!(prepared.needs().file_bytes.is_some(), scenario.does_io, "{}", scenario.name);
            assert_eq!(prepared.file().is_some(), scenario.does_io, "{}", scenario.name);
        }
    }
}
