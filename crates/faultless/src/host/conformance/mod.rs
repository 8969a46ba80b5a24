//! The duties of every [`Host`], as checks that a new host runs. A host that passes them is not proved right: the faults that
//! they cannot see are listed below. A host that fails one is wrong.
//!
//! A host's own test implements [`Rig`], which makes machines and does a processor's loads and stores, and calls [`check`]. Thirty
//! lines do it for the software machine: `crates/faultless-soft/tests/conformance/main.rs`. Hosts with one planted fault each, all of
//! which fail, are in `wrong.rs` beside it.
//!
//! # Before that
//!
//! 1. Frames: one [`Folio`](crate::frame::Folio) for each, zero from the start. No method of [`FrameSource`](super::FrameSource)
//!    sleeps.
//! 2. Entries: one word each, changed by one atomic step. A processor that sets accessed and dirty bits sets them in that word, or
//!    in one that `install` and `exchange` look at.
//! 3. `invalidate` returns when no processor uses an older translation of the range, nor an upper entry that led to a leaf table
//!    over it. It is called with no lock of the engine held.
//! 4. Sleeping: a wake-up that comes before the sleep is kept.
//! 5. Slots: two threads (in a kernel: processors) that live at once have two numbers.
//! 6. Leaf tables that fork shares, if the host has that ability: a processor stores through no place that is marked,
//!    regardless of the entries of the leaf allow. `found` is a value of the lookup; `now` reads the place.
//! 7. Foreign frames, if the host maps them: an entry keeps [`Entry::FOREIGN`](super::Entry::FOREIGN). The host counts and frees
//!    no frame of such an entry.
//! 8. In a kernel: docs/contexts.md lists the calls that each context allows, and the contexts in which the engine
//!    calls the host.
//!
//! # Faults that these checks do not see
//!
//! Orderings on a machine whose memory is weaker than that of the one that runs them; faults that need two processors at one
//! moment, but for those that happen in the short races here; a [`Barrier`](super::Barrier) that is too weak; I/O of a device; time.

mod accesses;
mod foreign;
mod frames;
mod services;
mod sharing;
mod tables;

use crate::AddressSpace;
use crate::address::VirtAddr;
use crate::design::Faultless;
use crate::engine::Engine;
use crate::host::Host;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

/// A host under test, and its processors.
pub trait Rig: Sync {
    /// The host.
    type Host: Host;
    /// The state needed to use a space as a program does: the space itself, or the object that serves its faults.
    type Process: Send + Sync;

    /// Makes an engine on a new machine that has at least `frames` frames (1024 at most), with nothing in them.
    fn engine(&self, frames: u64) -> Arc<Engine<Self::Host>>;

    /// Begins to serve the faults of `space`, if the host needs that.
    fn process(&self, space: AddressSpace<Self::Host, Faultless>) -> Self::Process;

    /// Returns the space of a process.
    fn space<'a>(&self, process: &'a Self::Process) -> &'a AddressSpace<Self::Host, Faultless>;

    /// Loads the word at `address`, a multiple of eight, as a program in the space does; faults are served. Returns `None` if
    /// the access cannot be served, where a process would get a signal.
    fn load(&self, process: &Self::Process, address: VirtAddr) -> Option<u64>;

    /// Stores a word, as [`Rig::load`] loads one. Returns false if the access cannot be served.
    fn store(&self, process: &Self::Process, address: VirtAddr, value: u64) -> bool;

    /// Runs `work` on `count` threads (or processors) at once, with numbers from 0 on, and returns true when all have ended.
    /// Returns false if the host has no threads here, and has run nothing: the checks that need them are skipped, and reported
    /// as skipped.
    fn side_by_side(&self, count: usize, work: &(dyn Fn(usize) + Sync)) -> bool {
        #[cfg(feature = "std")]
        {
            std::thread::scope(|scope| {
                for number in 0..count {
                    scope.spawn(move || work(number));
                }
            });
            true
        }
        #[cfg(not(feature = "std"))]
        {
            let _ = (count, work);
            false
        }
    }
}

/// The outcome of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The host does what the check demands.
    Passed,
    /// The check needs something that this host does not have.
    Skipped(&'static str),
    /// The host does not do what the check demands.
    Failed(String),
}

/// One check and its outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The duty of the host that was checked.
    pub name: &'static str,
    /// The outcome of the check.
    pub outcome: Outcome,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Passed => write!(f, "passed   {}", self.name),
            Outcome::Skipped(why) => write!(f, "skipped  {}: {why}", self.name),
            Outcome::Failed(what) => write!(f, "FAILED   {}: {what}", self.name),
        }
    }
}

/// The result of one check.
type Finding = Result<(), Unmet>;

/// The reason why a check did not pass.
enum Unmet {
    Failed(String),
    Skipped(&'static str),
}

impl From<&str> for Unmet {
    fn from(what: &str) -> Self {
        Self::Failed(String::from(what))
    }
}

impl From<String> for Unmet {
    fn from(what: String) -> Self {
        Self::Failed(what)
    }
}

/// Fails a check unless `$holds`. The arguments that describe the finding are those of `format!`.
macro_rules! must {
    ($holds:expr, $($found:tt)+) => {
        if !$holds {
            return Err(alloc::format!($($found)+).into());
        }
    };
}
use must;

type Check<R> = (&'static str, fn(&R) -> Finding);

/// Runs all checks, in order, and returns their outcomes. A check that follows a failed one may fail for that reason, panic, or
/// wait for ever: mend the first failure first. `tell` is called after each check.
pub fn run<R: Rig>(rig: &R, mut tell: impl FnMut(&Checked)) -> Vec<Checked> {
    let parts = frames::checks().into_iter().chain(tables::checks()).chain(sharing::checks());
    let all = parts.chain(services::checks()).chain(accesses::checks()).chain(foreign::checks());
    let mut checked = Vec::new();
    for (name, check) in all {
        let outcome = match check(rig) {
            Ok(()) => Outcome::Passed,
            Err(Unmet::Skipped(why)) => Outcome::Skipped(why),
            Err(Unmet::Failed(what)) => Outcome::Failed(what),
        };
        let one = Checked { name, outcome };
        tell(&one);
        let failed = matches!(one.outcome, Outcome::Failed(_));
        checked.push(one);
        if failed {
            break;
        }
    }
    checked
}

/// Runs all checks up to the first that fails.
///
/// # Panics
/// Panics if the host fails a check. The message has the name of the check and the finding. With `std`, each outcome is printed
/// before.
pub fn check<R: Rig>(rig: &R) {
    let checked = run(rig, |one| {
        #[cfg(feature = "std")]
        std::println!("{one}");
        let _ = one;
    });
    if let Some(failed) = checked.iter().find(|one| matches!(one.outcome, Outcome::Failed(_))) {
        panic!("this host is wrong: {failed}");
    }
}
