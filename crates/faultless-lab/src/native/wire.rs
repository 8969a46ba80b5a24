//! Messages between the parent and the worker of a round: one line of JSON in each direction.

use crate::measure::{Latency, Measured};
use crate::scenarios::Settings;
use crate::trouble::Trouble;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Kind of access that may fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Variant {
    /// A load or a store of the program.
    Access,
    /// A system call that copies from or to the address. Faults of the kernel's own accesses do not use VMA locks. They
    /// take mmap_lock, as all faults did up to Linux 6.3.
    SystemCall,
}

/// Expected contents of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Contents {
    /// The pattern of a temporary file.
    Pattern {
        /// The seed of the pattern.
        seed: u64,
    },
    /// The contents of another file.
    File {
        /// Its path.
        path: PathBuf,
    },
}

/// The file that the scenario maps, served by the parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// The path at which the worker opens it.
    pub path: PathBuf,
    /// Length of the mapping, in bytes.
    pub length: u64,
    /// Its expected contents.
    pub contents: Contents,
}

/// Order for a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// The scenario's name.
    pub scenario: String,
    /// The settings that all rounds share.
    pub settings: Settings,
    /// Length of the measurement.
    pub length: Duration,
    /// The round's own seed.
    pub seed: u64,
    /// The file, if the scenario maps one.
    pub file: Option<Served>,
    /// The number of the tracepoint that counts mmap_lock, or the reason why there is none.
    pub tracepoint: Result<u64, String>,
    /// The kind of accesses.
    pub variant: Variant,
}

/// Answer of a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The measured figures.
    Measured(Figures),
    /// [`Trouble::Wrong`].
    Wrong(String),
    /// [`Trouble::Input`].
    Input(String),
    /// [`Trouble::Cannot`].
    Cannot(String),
}

/// [`Measured`] for the wire. A latency is a list of values in nanoseconds, each with its number of occurrences.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    seconds: f64,
    latency: BTreeMap<String, Vec<(u64, u64)>>,
    counters: BTreeMap<String, u64>,
    fault_cpu: Duration,
    faults_timed: u64,
    notes: Vec<String>,
}

impl From<&Measured> for Figures {
    fn from(measured: &Measured) -> Self {
        let values = |latency: &Latency| latency.iter().collect();
        Self {
            seconds: measured.seconds,
            latency: measured.latency.iter().map(|(name, l)| (name.clone(), values(l))).collect(),
            counters: measured.counters.clone(),
            fault_cpu: measured.fault_cpu,
            faults_timed: measured.faults_timed,
            notes: measured.notes.clone(),
        }
    }
}

impl From<Figures> for Measured {
    fn from(figures: Figures) -> Self {
        let rebuild = |values: Vec<(u64, u64)>| {
            let mut latency = Latency::default();
            values.into_iter().for_each(|(nanoseconds, count)| latency.record_n(nanoseconds, count));
            latency
        };
        Self {
            seconds: figures.seconds,
            latency: figures.latency.into_iter().map(|(name, values)| (name, rebuild(values))).collect(),
            counters: figures.counters,
            fault_cpu: figures.fault_cpu,
            faults_timed: figures.faults_timed,
            notes: figures.notes,
        }
    }
}

impl From<Trouble> for Reply {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Wrong(what) => Self::Wrong(what),
            Trouble::Input(what) => Self::Input(what),
            Trouble::Cannot(what) => Self::Cannot(what),
        }
    }
}

impl From<Result<Measured, Trouble>> for Reply {
    fn from(result: Result<Measured, Trouble>) -> Self {
        match result {
            Ok(measured) => Self::Measured((&measured).into()),
            Err(trouble) => trouble.into(),
        }
    }
}

impl From<Reply> for Result<Measured, Trouble> {
    fn from(reply: Reply) -> Self {
        match reply {
            Reply::Measured(figures) => Ok(figures.into()),
            Reply::Wrong(what) => Err(Trouble::Wrong(what)),
            Reply::Input(what) => Err(Trouble::Input(what)),
            Reply::Cannot(what) => Err(Trouble::Cannot(what)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_comes_through() {
        let mut measured = Measured { seconds: 1.5, faults_timed: 3, ..Measured::default() };
        let mut fault = Latency::default();
        (1..5000_u64).for_each(|i| fault.record(Duration::from_nanos(i * i)));
        measured.add_latency("fault", &fault);
        measured.count("children", 7);
        measured.note("one thing");
        let line = serde_json::to_string(&Reply::from(Ok(measured.clone()))).unwrap();
        assert!(!line.contains('\n'));
        let reply: Reply = serde_json::from_str(&line).unwrap();
        let again = Result::from(reply).unwrap();
        assert_eq!((again.seconds, again.faults_timed, again.counters["children"]), (1.5, 3, 7));
        assert_eq!(again.notes, measured.notes);
        for quantile in [0.0, 0.5, 0.99, 1.0] {
            assert_eq!(again.quantile_us("fault", quantile), measured.quantile_us("fault", quantile));
        }
    }

    #[test]
    fn troubles_keep_their_kind() {
        for trouble in [Trouble::Wrong("w".into()), Trouble::Input("i".into()), Trouble::Cannot("c".into())] {
            let line = serde_json::to_string(&Reply::from(trouble.clone())).unwrap();
            let reply: Reply = serde_json::from_str(&line).unwrap();
            assert_eq!(Result::from(reply).unwrap_err(), trouble);
        }
    }
}
