//! Checks of the duties of every [`Host`]. The author of a new host runs them. A host that fails a check is wrong. A host
//! that passes all checks may still be wrong: a list below names the faults that they cannot see.
//!
//! The test of a host implements [`Rig`], which makes machines and does the loads and stores of a processor. It then calls
//! [`check`]. For the software machine, this takes thirty lines: `crates/faultless-soft/tests/conformance/main.rs`. Beside
//! it, `wrong.rs` has hosts with one planted fault each, and all of them fail.
//!
//! # Duties to read first
//!
//! 1. Frames: each frame has its own [`Folio`](crate::frame::Folio), which is zero at the start. No method of
//!    [`FrameSource`](super::FrameSource) sleeps.
//! 2. Entries: an entry is one word, which one atomic step changes. A processor that sets accessed and dirty bits sets them
//!    in that word, or in a word that `install` and `exchange` read too.
//! 3. Invalidation: `invalidate` returns when no processor uses an older translation of the range, or an upper entry that
//!    led to a leaf table over the range. The engine holds no lock during the call.
//! 4. Sleeping: a wake-up before the sleep is not lost.
//! 5. Slots: two threads (in a kernel: processors) that exist at the same time have different numbers.
//! 6. Leaf tables that fork shares, if the host has this ability: a processor stores through no marked entry of the upper
//!    table, whatever the entries of the leaf table allow. `found` returns the word that the lookup read; `now` reads the
//!    table again.
//! 7. Foreign frames, if the host maps them: an entry keeps [`Entry::FOREIGN`](super::Entry::FOREIGN). The host neither
//!    counts nor frees the frame of such an entry.
//! 8. In a kernel: docs/contexts.md lists the calls that each context allows, and the contexts in which the engine calls
//!    the host.
//!
//! # Faults that these checks cannot see
//!
//! * a wrong memory order, on a machine whose memory model is weaker than that of the machine that runs the checks
//! * a fault that needs two processors at the same moment, except in the short races of these checks
//! * a [`Barrier`](super::Barrier) that is too weak
//! * I/O of a device
//! * time

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

    /// Makes an engine on a new machine with at least `frames` frames (1024 at most), all free.
    fn engine(&self, frames: u64) -> Arc<Engine<Self::Host>>;

    /// Makes a process with this space. A host that must be told begins to serve the faults of the space.
    fn process(&self, space: AddressSpace<Self::Host, Faultless>) -> Self::Process;

    /// Returns the space of a process.
    fn space<'a>(&self, process: &'a Self::Process) -> &'a AddressSpace<Self::Host, Faultless>;

    /// Loads the word at `address`, a multiple of eight, as a program in the space does. Faults are served. Returns `None` if
    /// the access fails and a program would receive a signal.
    fn load(&self, process: &Self::Process, address: VirtAddr) -> Option<u64>;

    /// Stores a word, as [`Rig::load`] loads one. Returns false if the access fails.
    fn store(&self, process: &Self::Process, address: VirtAddr, value: u64) -> bool;

    /// Runs `work` on `count` threads (or processors) at the same time, and returns true when all have ended. The threads
    /// have numbers from 0 on. If the host has no threads here, returns false and runs nothing. Checks that need threads are
    /// then reported as skipped.
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
    /// The host fulfils the duty.
    Passed,
    /// The check needs something that this host does not have.
    Skipped(&'static str),
    /// The host does not fulfil the duty, for this reason.
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

/// Runs the checks in order, up to the first that fails, and returns their outcomes. `tell` is called after each check.
///
/// The checks after a failed one do not run. They might fail for the same reason, panic, or wait for ever.
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
/// Panics if the host fails a check. The message has the name of the check and the finding. With `std`, each outcome is
/// printed first.
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
