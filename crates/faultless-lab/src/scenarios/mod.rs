//! The scenarios there are, by name, and what they have in common.

mod actors;
mod contents;
mod fork_during_io;
mod stamps;

use crate::designs::{Design, Visitor};
use crate::measure::Measured;
use crate::trouble::Trouble;
use faultless::design::LockingDesign;
use faultless::fault::FaultError;
use faultless::{ForkError, MapError, UnmapError};
use faultless_soft::AccessError;
use std::num::NonZeroUsize;
use std::path::PathBuf;
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
    /// The one figure that it is about.
    pub headline: Headline,
    /// The actors at fixed rates, and how often a second each acts unless `--rate` says otherwise.
    pub rates: &'static [(&'static str, f64)],
    kind: Kind,
}

/// A scenario's one figure: a quantile of a latency, in microseconds, lower being better.
#[derive(Clone, Copy, Debug)]
pub struct Headline {
    /// Its name in reports.
    pub name: &'static str,
    /// Whose latency.
    pub latency: &'static str,
    /// Which quantile.
    pub quantile: f64,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    ForkDuringIo,
}

/// Every scenario, in the order of reports.
pub const ALL: &[Scenario] = &[Scenario {
    name: "fork-during-io",
    about: "fork, and a bystander's mmap and munmap, while other threads' faults read cold file pages",
    source: "linux-mm, May 2026, reduce mmap_lock contention: fork waits for every VMA's I/O, and everybody for fork",
    headline: Headline { name: "bystander_p99", latency: "bystander", quantile: 0.99 },
    rates: &[("fork", 50.0), ("bystander", 500.0)],
    kind: Kind::ForkDuringIo,
}];

/// The scenario of that name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

/// All names, for a message.
pub fn names() -> String {
    ALL.iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(", ")
}

/// What all rounds of a run have in common.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Threads that fault or stamp; actors at fixed rates are not counted.
    pub threads: usize,
    /// What each read takes at least.
    pub io_latency: Duration,
    /// Reads at the device at a time; `None`: any number.
    pub queue_depth: Option<NonZeroUsize>,
    /// Rates that differ from the scenario's own.
    pub rates: Vec<(String, f64)>,
    /// The file to map; `None`: a temporary one.
    pub file: Option<PathBuf>,
    /// Physical memory of the machine, in bytes.
    pub memory: u64,
    /// What every random choice follows from.
    pub seed: u64,
}

impl Settings {
    /// How often a second an actor acts.
    pub fn rate(&self, scenario: &Scenario, actor: &str) -> f64 {
        let own = scenario.rates.iter().find(|(name, _)| *name == actor).map_or(1.0, |(_, hertz)| *hertz);
        self.rates.iter().rev().find(|(name, _)| name == actor).map_or(own, |(_, hertz)| *hertz)
    }
}

/// One round to be run.
pub struct Turn<'a> {
    /// What it has in common with the others.
    pub settings: &'a Settings,
    /// How long to measure.
    pub length: Duration,
    /// Its own seed.
    pub seed: u64,
    /// Set by Ctrl-C.
    pub interrupted: &'a AtomicBool,
}

/// A scenario with what its rounds share, ready to run under any design.
pub struct Prepared {
    scenario: &'static Scenario,
    ready: Ready,
}

enum Ready {
    ForkDuringIo(fork_during_io::Prepared),
}

impl Scenario {
    /// Makes what all rounds share.
    ///
    /// # Errors
    /// [`Trouble::Input`] where the settings do not allow it.
    pub fn prepare(&'static self, settings: &Settings) -> Result<Prepared, Trouble> {
        let ready = match self.kind {
            Kind::ForkDuringIo => Ready::ForkDuringIo(fork_during_io::Prepared::new(settings)?),
        };
        Ok(Prepared { scenario: self, ready })
    }
}

impl Prepared {
    /// Runs one round under a design.
    ///
    /// # Errors
    /// [`Trouble`]: what went wrong in it.
    pub fn round(&self, design: &Design, turn: &Turn<'_>) -> Result<Measured, Trouble> {
        struct Run<'a>(&'a Prepared, &'a Turn<'a>);
        impl Visitor for Run<'_> {
            type Output = Result<Measured, Trouble>;
            fn visit<D: LockingDesign>(self) -> Self::Output {
                match &self.0.ready {
                    Ready::ForkDuringIo(prepared) => prepared.round::<D>(self.0.scenario, self.1),
                }
            }
        }
        design.visit(Run(self, turn))
    }
}

/// A call on the machine that a scenario makes should work; only memory may be too small.
fn refused(call: &str, error: &dyn std::error::Error, no_memory: bool) -> Trouble {
    match no_memory {
        true => Trouble::Input(format!("{error}; raise --memory")),
        false => Trouble::Wrong(format!("{call} fails: {error}")),
    }
}

fn not_mapped(error: MapError) -> Trouble {
    refused("map", &error, error == MapError::OutOfMemory)
}

fn not_unmapped(error: UnmapError) -> Trouble {
    refused("unmap", &error, matches!(error, UnmapError::OutOfMemory { .. }))
}

fn not_forked(error: ForkError) -> Trouble {
    refused("fork", &error, error == ForkError::OutOfMemory)
}

fn not_served(error: AccessError) -> Trouble {
    refused("an access", &error, matches!(error, AccessError::Fault(FaultError::OutOfMemory { .. })))
}
