//! Compares the parts of `faultless` with other implementations of the same operation, all in one process, in turns.
//! METHODOLOGY.md states the method and the known biases.
//!
//! ```text
//!  cli ──► run: rounds, interleaved over the entrants of a case ──► report (tables) · json
//!           │
//!           ├─ lap         one slice of one thread, timed
//!           ├─ figures     medians, spreads, the rounds that are left out
//!           ├─ bars        figures that a case is to reach, and the verdicts
//!           └─ case        name ─► its entrants
//!                ├─ index      trees of ranges: one trait, a file for ours, one for the peers, one for Linux's maple tree
//!                ├─ section    read sections
//!                ├─ lock       one lock word; the bit of an entry
//!                └─ engine     faults, changes, forks: every design on the software machine, and Linux beside them
//! ```
//! Our own implementation has no special place in a case: it is one entrant among others.
#![cfg(target_os = "linux")]
// Modules that need unsafe code allow it themselves.
#![deny(unsafe_code)]

mod bars;
mod case;
mod cli;
mod engine;
mod figures;
mod guard;
mod index;
mod json;
mod lap;
mod linux;
mod lock;
mod pressure;
mod report;
mod run;
mod section;

pub use cli::main;
