//! What there is to measure: cases by name, and the entrants of each.

use crate::lap::Lap;
use crate::{engine, index, lock, section};
use faultless_lab::trouble::Trouble;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A case: the same work for each of its entrants.
pub struct Case {
    /// Its name in commands and reports.
    pub name: &'static str,
    /// What one operation is.
    pub about: &'static str,
    /// What its sizes are, if it has any.
    pub sizes: Option<Sizes>,
    /// Its slices are so many times as long as others': rare events are to be seen.
    pub slices: u32,
    /// Sets its entrants up at a size.
    pub set_up: fn(u64) -> Result<Vec<Entrant>, Trouble>,
}

/// The sizes of a case.
pub struct Sizes {
    /// What is counted.
    pub of: &'static str,
    /// Measured when nobody says which.
    pub usual: &'static [u64],
    /// What can be asked for.
    pub least: u64,
    /// What can be asked for.
    pub most: u64,
}

/// A contender with so many threads.
pub struct Entrant {
    pub contender: String,
    pub threads: usize,
    /// Or why it cannot take part.
    pub work: Result<Arc<dyn Work>, String>,
}

impl Entrant {
    /// The same contender with each number of threads.
    pub fn with_threads(
        contender: impl Into<String>,
        threads: &[usize],
        work: Result<Arc<dyn Work>, String>,
    ) -> impl Iterator<Item = Self> {
        let contender = contender.into();
        threads.iter().map(move |&threads| Self { contender: contender.clone(), threads, work: work.clone() })
    }
}

/// A contender, set up.
pub trait Work: Send + Sync {
    /// One slice of thread `me`. Each is on a new thread.
    ///
    /// # Errors
    /// What it does wrong.
    fn lap(&self, me: usize, lap: &mut Lap) -> Result<(), Trouble>;

    /// Whether there is something to be done beside the threads that are measured.
    fn has_beside(&self) -> bool {
        false
    }

    /// Does it, until told.
    fn beside(&self, over: &AtomicBool) {
        let _ = over;
    }

    /// What has to be known to read its figures.
    fn note(&self) -> Option<String> {
        None
    }
}

/// A contender that is no more than its loop.
pub struct Loop<F>(pub F);

impl<F: Fn(usize, &mut Lap) -> Result<(), Trouble> + Send + Sync> Work for Loop<F> {
    fn lap(&self, me: usize, lap: &mut Lap) -> Result<(), Trouble> {
        (self.0)(me, lap)
    }
}

/// All of them, in the order of reports.
pub const ALL: [&Case; 14] = [
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
];

/// The case of that name.
pub fn find(name: &str) -> Option<&'static Case> {
    ALL.into_iter().find(|case| case.name == name)
}

/// All names, for a message.
pub fn names() -> String {
    ALL.map(|case| case.name).join(", ")
}
