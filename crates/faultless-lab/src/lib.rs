//! The laboratory: the locking designs that kernels have, had, or were proposed, as plug-ins of the same engine, on
//! the same work, over the same software machine.
//!
//! ```text
//!  cli ──► compare ── rounds, interleaved over the designs ──► report (a table, a sentence) · json
//!             │
//!             ├─ designs     name ─► type: a LockingDesign, one file each
//!             └─ scenarios   name ─► a round: a machine, its threads, what they waited, what they saw
//! ```
//! A round builds a machine, runs the scenario's threads on it, and checks what they saw: every byte of a file,
//! the order of stamps in every child, every frame given back. What is wrong ends the run with an error; a design is only
//! measured while it is right. Designs know no scenario and scenarios no design: a scenario is generic over
//! [`faultless::design::LockingDesign`].
#![forbid(unsafe_code)]

pub mod cli;
pub mod compare;
pub mod designs;
pub mod json;
pub mod measure;
pub mod parse;
mod progress;
pub mod report;
pub mod scenarios;
pub mod trouble;
