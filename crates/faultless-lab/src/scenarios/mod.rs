//! The scenarios there are, by name, and what they have in common. Each is written against [`crate::machine`] alone.

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
use crate::designs::Visitor;
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

/// A scenario, as people choose it.
#[derive(Debug)]
pub struct Scenario {
    /// Its name in commands and reports.
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// The discussion it comes from.
    pub source: &'static str,
    /// What nobody should conclude from it.
    pub cannot_show: &'static str,
    /// The one figure that it is about.
    pub headline: Figure,
    /// What is reported besides.
    pub figures: &'static [Figure],
    /// Counters of what was checked, and what that is called.
    pub checked: &'static [(&'static str, &'static str)],
    /// Counters of what should be zero but may not be on a busy machine, and what that is called.
    pub missed: &'static [(&'static str, &'static str)],
    /// The actors at fixed rates, and how often a second each acts unless `--rate` says otherwise.
    pub rates: &'static [(&'static str, f64)],
    /// Its threads unless `--threads` says otherwise; actors at fixed rates are not counted.
    pub threads: usize,
    /// What those threads do, in a few words.
    pub work: &'static str,
    kind: Kind,
}

impl Scenario {
    /// Whether a round says anything: the headline or another figure that designs are compared by.
    pub fn is_measured(&self, measured: &Measured) -> bool {
        let compared = self.figures.iter().filter(|figure| figure.better != Better::Neither);
        std::iter::once(&self.headline).chain(compared).any(|figure| (figure.of)(measured).is_some())
    }
}

/// What all rounds of a run have in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Threads that do a scenario's work; `None`: its own number.
    pub threads: Option<usize>,
    /// What each read takes at least.
    pub io_latency: Duration,
    /// Reads at the device at a time; `None`: any number.
    pub queue_depth: Option<NonZeroUsize>,
    /// Rates that differ from the scenario's own.
    pub rates: Vec<(String, f64)>,
    /// The file to map; `None`: a temporary one.
    pub file: Option<PathBuf>,
    /// In a worker of the native machine: that file as its parent serves it.
    #[serde(skip)]
    pub served: Option<Served>,
    /// Physical memory of the machine, in bytes.
    pub memory: u64,
    /// What every random choice follows from.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            threads: None,
            io_latency: Duration::ZERO,
            queue_depth: None,
            rates: Vec::new(),
            file: None,
            served: None,
            memory: 256 << 20,
            seed: 1,
        }
    }
}

impl Settings {
    /// Threads that do the scenario's work.
    pub fn threads(&self, scenario: &Scenario) -> usize {
        self.threads.unwrap_or(scenario.threads)
    }

    /// How often a second an actor acts.
    pub fn rate(&self, scenario: &Scenario, actor: &str) -> f64 {
        let own = scenario.rates.iter().find(|(name, _)| *name == actor).map_or(1.0, |(_, hertz)| *hertz);
        self.rates.iter().rev().find(|(name, _)| name == actor).map_or(own, |(_, hertz)| *hertz)
    }

    /// Frames of the machine.
    fn frames(&self) -> u64 {
        self.memory / PAGE_SIZE
    }

    fn too_small(&self, threads: usize, frames: u64) -> Trouble {
        Trouble::Input(format!(
            "--memory: {} KiB are too little for {threads} {}, which need {} KiB",
            self.memory >> 10,
            if threads == 1 { "thread" } else { "threads" },
            (frames * PAGE_SIZE) >> 10,
        ))
    }

    /// The frames for each of `threads` that get the same share, at least `least`, half of the memory left alone.
    fn share(&self, threads: usize, least: u64, most: u64) -> Result<u64, Trouble> {
        let share = (self.frames() / 2 / threads as u64).min(most);
        if share < least { Err(self.too_small(threads, 2 * least * threads as u64)) } else { Ok(share) }
    }
}

/// One round to be run.
#[derive(Clone, Copy)]
pub struct Turn<'a> {
    /// What it has in common with the others.
    pub settings: &'a Settings,
    /// How long to measure.
    pub length: Duration,
    /// Its own seed.
    pub seed: u64,
    /// Set by Ctrl-C.
    pub interrupted: &'a AtomicBool,
    /// What records it, if it is recorded.
    pub recorder: Option<&'a Arc<Recorder>>,
}

/// What a scenario needs of the machine of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Physical memory, in frames. A machine whose memory is larger anyhow need not limit it.
    pub frames: u64,
    /// Pages of files kept in memory, at most; `None`: as many as there is room for. A machine that cannot limit it may
    /// have other means to turn pages cold, unless `is_thrashing`.
    pub cached_pages: Option<u64>,
    /// What is mapped of the file; `None`: it maps none.
    pub file_bytes: Option<u64>,
    /// Processes that it asks for, children of fork not counted.
    pub processes: usize,
    /// Whether pages have to be evicted for want of memory while others' faults wait for them: `cached_pages` is then
    /// what the scenario is about.
    pub is_thrashing: bool,
    /// Threads at a time, roughly.
    pub threads: usize,
}

impl Needs {
    fn new(frames: u64) -> Self {
        Self { frames, cached_pages: None, file_bytes: None, processes: 1, is_thrashing: false, threads: 16 }
    }
}

/// What each scenario's module has.
trait Play: Sized {
    /// What all rounds share.
    ///
    /// # Errors
    /// [`Trouble::Input`] where the settings do not allow it.
    fn new(settings: &Settings) -> Result<Self, Trouble>;

    /// What its machine needs.
    fn needs(&self) -> Needs;

    /// The file it maps.
    fn file(&self) -> Option<&Arc<TestFile>> {
        None
    }

    /// One round. Every process of it is gone when this returns.
    ///
    /// # Errors
    /// [`Trouble`].
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
            /// Makes what all rounds share.
            ///
            /// # Errors
            /// [`Trouble::Input`] where the settings do not allow it.
            pub fn prepare(&'static self, settings: &Settings) -> Result<Prepared, Trouble> {
                let ready = match self.kind {
                    $(Kind::$kind => Ready::$kind($module::Prepared::new(settings)?),)*
                };
                Ok(Prepared { scenario: self, ready })
            }
        }

        impl Prepared {
            /// What a machine needs to run it.
            pub fn needs(&self) -> Needs {
                match &self.ready { $(Ready::$kind(prepared) => prepared.needs(),)* }
            }

            /// The file that it maps; a machine's [`crate::machine::Memory::map_file`] maps all of it.
            pub fn file(&self) -> Option<&Arc<TestFile>> {
                match &self.ready { $(Ready::$kind(prepared) => prepared.file(),)* }
            }

            /// Runs one round on a machine that was made as [`Prepared::needs`] says, and is new.
            ///
            /// # Errors
            /// [`Trouble`]: what went wrong in it.
            pub fn run<M: Machine>(&self, machine: &M, turn: &Turn<'_>) -> Result<Measured, Trouble> {
                match &self.ready { $(Ready::$kind(prepared) => prepared.run(machine, turn),)* }
            }
        }
    };
}

/// The scenarios of `compare` without a scenario.
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

/// The scenarios of a tour, in its order.
pub fn tour() -> Vec<&'static Scenario> {
    TOUR.iter().filter_map(|name| find(name)).collect()
}

/// The scenario of that name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

/// All names, for a message.
pub fn names() -> String {
    ALL.iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(", ")
}

/// A scenario with what its rounds share, ready to run on any machine.
pub struct Prepared {
    scenario: &'static Scenario,
    ready: Ready,
}

impl Prepared {
    /// Which one it is.
    pub fn scenario(&self) -> &'static Scenario {
        self.scenario
    }

    /// Runs one round under a design, on a machine of its own, which is checked at the end.
    ///
    /// # Errors
    /// [`Trouble`]: what went wrong in it.
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

    /// One round on the kernel that this runs on, in a process of its own.
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
