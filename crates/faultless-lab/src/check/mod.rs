//! `faultless check`: runs the same random operations on the engine and on Linux, and compares them step by step.
//!
//! ```text
//!  seed ──► generate: episodes of operations ──┬──► engine: a space of the software machine ──► steps ─┐
//!                                              │                                                    equal?
//!                                              └─ socket ──► oracle: a process of its own ──► steps ─┘ │
//!                                                             (its children by fork, too)              │ no
//!                                              the list a person reads ◄── shrink: again, with less ◄──┘
//! ```
//! A step is the result of an operation (a number, an error, a signal), and the map if it has changed. Both sides write
//! it as a line of JSON. Equal lines are equal steps. `docs/check.md` explains how to add an operation.
//!
//! With `--memory`, the engine swaps; see `memory`. With `--threads`, both sides are the engine; see `threads`. With `--files`, a file is compared with a model; see
//! `files`.

mod command;
mod differences;
mod draw;
mod engine;
pub mod files;
mod generate;
mod group;
mod memory;
mod operation;
mod print;
mod shrink;
mod step;
mod summary;
mod threads;
mod touch;

#[cfg(target_os = "linux")]
mod link;
#[cfg(target_os = "linux")]
mod oracle;
#[cfg(target_os = "linux")]
mod run;
#[cfg(target_os = "linux")]
mod sys;

pub use command::Check;
pub use engine::{Plant, Planted};
#[cfg(target_os = "linux")]
pub use link::{Commands, own_command};
pub use memory::{Memory, Pressure};
pub use operation::{ADVICE, At, Length, Move, Object, Operation, PAGES, Place, Rights, With};
#[cfg(target_os = "linux")]
pub use oracle::{ORACLE, oracle};
#[cfg(target_os = "linux")]
pub use run::Plan;
pub use summary::{Found, From, SCHEMA, Summary};
pub use threads::{STRIDE, Together};
