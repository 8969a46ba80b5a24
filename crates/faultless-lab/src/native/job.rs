//! What a round on the kernel is made of.

use super::wire::{Contents, Variant};
use crate::scenarios::Turn;
use faultless::store::Store;
use std::sync::Arc;

/// The command of this executable that is a worker.
pub const WORKER: &str = "native-round";

/// The file that a scenario maps.
pub struct Source {
    /// Where its pages come from, each read as slow as on the other machines.
    pub store: Arc<dyn Store>,
    /// Bytes that are mapped.
    pub length: u64,
    /// What is in it, so that the worker can check it.
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
    /// How accesses are made.
    pub variant: Variant,
    /// Memory for all of the scenario, its cached pages of the file among it, if the scenario is about that.
    pub memory_limit: Option<u64>,
}
