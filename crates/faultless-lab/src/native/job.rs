//! Description of a round on the kernel.

use super::wire::{Contents, Variant};
use crate::scenarios::Turn;
use faultless::store::Store;
use std::sync::Arc;

/// Subcommand of this executable that runs a worker.
pub const WORKER: &str = "native-round";

/// The file that a scenario maps.
pub struct Source {
    /// The store with its pages. Each read has the same latency as on the other machines.
    pub store: Arc<dyn Store>,
    /// Length of the mapping, in bytes.
    pub length: u64,
    /// Its contents, so that the worker can check them.
    pub contents: Contents,
}

/// One round on the kernel.
pub struct Job<'a> {
    /// The scenario's name.
    pub scenario: &'a str,
    /// The round.
    pub turn: &'a Turn<'a>,
    /// The file, if the scenario maps one.
    pub file: Option<Source>,
    /// The kind of accesses.
    pub variant: Variant,
    /// Memory limit for the whole scenario in bytes, cached file pages included, if the scenario needs one.
    pub memory_limit: Option<u64>,
}
