//! The cases of the benchmark by name, and the contenders in each.

use crate::bars::Bar;
use crate::lap::{Lap, Reading};
use crate::{engine, index, lock, pressure, section};
use faultless_lab::trouble::Trouble;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A case: the same operation for each of its entrants.
pub struct Case {
    /// The name in commands and reports.
    pub name: &'static str,
    /// A description of one operation.
    pub about: &'static str,
    /// The sizes, if the case has any.
    pub sizes: Option<Sizes>,
    /// The factor by which slices are longer than usual, so that rare events occur in them.
    pub slices: u32,
    /// The bars of the case: the greatest values that its figures may have.
    pub bars: &'static [Bar],
    /// Makes the entrants for a size.
    pub set_up: fn(u64) -> Result<Vec<Entrant>, Trouble>,
}

/// The sizes of a case.
pub struct Sizes {
    /// The unit of a size.
    pub of: &'static str,
    /// The sizes that are measured by default.
    pub usual: &'static [u64],
    /// The least size that can be chosen.
    pub least: u64,
    /// The greatest size that can be chosen.
    pub most: u64,
}

/// A contender with a number of threads.
pub struct Entrant {
    pub contender: String,
    pub threads: usize,
    /// The contender, ready to run, or the reason for which it cannot take part.
    pub work: Result<Arc<dyn Work>, String>,
}

impl Entrant {
    /// Returns an entrant of the same contender for each number of threads.
    pub fn with_threads(
        contender: impl Into<String>,
        threads: &[usize],
        work: Result<Arc<dyn Work>, String>,
    ) -> impl Iterator<Item = Self> {
        let contender = contender.into();
        threads.iter().map(move |&threads| Self { contender: contender.clone(), threads, work: work.clone() })
    }
}

/// A contender that is ready to run.
pub trait Work: Send + Sync {
    /// Runs one slice of thread `me`. Each slice is on a new thread.
    ///
    /// # Errors
    /// A wrong result of the contender.
    fn lap(&self, me: usize, lap: &mut Lap) -> Result<(), Trouble>;

    /// Returns whether [`Work::beside`] must run beside the measured threads.
    fn has_beside(&self) -> bool {
        false
    }

    /// Runs beside the measured threads until `over` is set.
    fn beside(&self, over: &AtomicBool) {
        let _ = over;
    }

    /// Returns measures of a round besides the time of an operation, each with its name. Called after each round. `threads` has the
    /// readings of the round's threads.
    fn measures(&self, threads: &[Reading]) -> Vec<(&'static str, f64)> {
        let _ = threads;
        Vec::new()
    }

    /// Returns a note that a reader of the figures needs, if there is one.
    fn note(&self) -> Option<String> {
        None
    }
}

/// A contender that consists of its loop only.
pub struct Loop<F>(pub F);

impl<F: Fn(usize, &mut Lap) -> Result<(), Trouble> + Send + Sync> Work for Loop<F> {
    fn lap(&self, me: usize, lap: &mut Lap) -> Result<(), Trouble> {
        (self.0)(me, lap)
    }
}

/// All cases, in the order of reports.
pub const ALL: [&Case; 18] = [
    &index::LOOK_UP,
    &index::UPDATE,
    &index::TWO_WRITERS,
    &index::READER,
    &section::CASE,
    &lock::PAGE_BIT,
    &lock::LOCK_WORD,
    &engine::FAULT,
    &engine::FAULT_ZEROED_AHEAD,
    &engine::GIANT_VMA,
    &engine::MAP_UNMAP,
    &engine::DISJOINT_CHANGE,
    &engine::FORK,
    &engine::COW_BREAK,
    &pressure::SWAP,
    &pressure::RECLAIM,
    &pressure::FILES,
    &pressure::EXIT,
];

/// Returns the case with this name, or the cases whose names begin with it and a hyphen.
pub fn find(name: &str) -> Vec<&'static Case> {
    let is_of = |case: &&Case| case.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'));
    match ALL.into_iter().find(|case| case.name == name) {
        Some(case) => vec![case],
        None => ALL.into_iter().filter(is_of).collect(),
    }
}

/// Returns all names, separated by commas, for a message.
pub fn names() -> String {
    ALL.map(|case| case.name).join(", ")
}
