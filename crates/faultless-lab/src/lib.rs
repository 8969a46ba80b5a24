//! The laboratory. It runs locking designs that kernels have, had, or were proposed as plug-ins of the same engine,
//! with the same workload, on the same software machine.
//!
//! ```text
//!  cli ──► check: the same operations on the engine and on Linux; a subsystem of its own
//!   ├───► diff: two results of compare, as JSON
//!   ├───► generate: shell completions and man pages
//!   └───► compare ── rounds, interleaved over the contenders ──► report (view, text) · html · json
//!             │
//!             ├─ comparison  two designs in one figure, and the noise between designs that run the same code
//!             ├─ interval    two series of numbers ─► their ratio, its confidence interval, a verdict
//!             ├─ contender   name ─► a design of the engine, or the kernel of this host
//!             ├─ designs     name ─► type: a LockingDesign, one file each
//!             ├─ machine     the machine of a scenario: processes, memory, fork; in software, under a design
//!             ├─ native      the same on the kernel itself, in a separate process for each round
//!             ├─ record      operations and waits of each thread in one more round, and the holders of locks
//!             └─ scenarios   name ─► a round: its threads, their waits, the checks; and its figures
//! ```
//! A round builds a machine, runs the scenario's threads on it, and checks their results: every byte of a file, the
//! order of stamps in every child, the return of every frame. An error in a check ends the run, so figures come only
//! from correct designs. Designs and scenarios do not depend on each other: a scenario is generic over
//! [`machine::Machine`]. Reports depend on neither: a table shows a scenario's [`scenarios::Figure`]s.
// Only `native::sys` and `check::sys` have unsafe code. They make system calls and accesses that Rust cannot check.
#![deny(unsafe_code)]

pub mod check;
pub mod cli;
pub mod compare;
pub mod comparison;
pub mod contender;
pub mod designs;
pub mod diff;
pub mod generate;
mod help;
pub mod html;
pub mod interval;
pub mod json;
pub mod machine;
pub mod measure;
pub mod native;
pub mod output;
pub mod parse;
pub mod progress;
pub mod record;
pub mod report;
pub mod scenarios;
pub mod skipped;
pub mod trouble;
