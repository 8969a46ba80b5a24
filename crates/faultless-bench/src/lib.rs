//! Benchmarks side by side: the pieces of `faultless` against what others have for the same work, all in one process, in
//! turns. METHODOLOGY.md says how it is measured and what is known to be unfair.
//!
//! ```text
//!  cli ──► run: rounds, interleaved over the entrants of a case ──► report (tables) · json
//!           │
//!           ├─ lap         what one thread does in one slice, timed
//!           ├─ figures     medians, spreads, which rounds are dropped
//!           └─ case        name ─► its entrants, set up
//!                ├─ index      trees of ranges: one trait, a file for ours, one for the peers, one for Linux's maple tree
//!                ├─ section    read sections
//!                ├─ lock       one lock word; the bit of an entry
//!                └─ engine     faults, changes, forks: every design on the software machine, and Linux beside them
//! ```
//! Ours has no place of its own in a case: it is one entrant among others.
#![cfg(target_os = "linux")]
// The modules that need it say so.
#![deny(unsafe_code)]

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
mod report;
mod run;
mod section;

pub use cli::main;
