//! What a scenario runs on: the same threads and calls, once on the engine under a design ([`SoftMachine`]) and once on the
//! kernel that this runs on (`native`). Scenarios are written against these traits alone, and have no branch on which
//! of the two it is.

mod soft;

pub use soft::SoftMachine;

use crate::measure::IN_MAJOR_FAULTS;
use crate::scenarios::Page;
use crate::trouble::Trouble;
use faultless::address::VirtAddr;
use faultless::protection::{Access, Protection, Sharing};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How an access went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touched {
    /// No fault, or one that needed no read.
    Minor,
    /// A fault that had to wait for a read.
    Major,
}

/// The memory of one process, as its threads see it. Every method may be called by any number of threads at once.
pub trait Memory: Send + Sync {
    /// mmap of anonymous private memory that may be read and written, where the machine likes.
    ///
    /// # Errors
    /// [`Trouble`], as all of these.
    fn map_anonymous(&self, bytes: u64) -> Result<VirtAddr, Trouble>;

    /// mmap of the whole file of the round, read-only, with no read-ahead.
    ///
    /// # Errors
    /// [`Trouble`].
    fn map_file(&self, sharing: Sharing) -> Result<VirtAddr, Trouble>;

    /// munmap of what [`Memory::map_file`] gave. Pages that it showed may turn cold.
    ///
    /// # Errors
    /// [`Trouble`].
    fn unmap_file(&self, start: VirtAddr) -> Result<(), Trouble>;

    /// munmap.
    ///
    /// # Errors
    /// [`Trouble`].
    fn unmap(&self, start: VirtAddr, bytes: u64) -> Result<(), Trouble>;

    /// mprotect.
    ///
    /// # Errors
    /// [`Trouble`].
    fn protect(&self, start: VirtAddr, bytes: u64, protection: Protection) -> Result<(), Trouble>;

    /// madvise(MADV_DONTNEED).
    ///
    /// # Errors
    /// [`Trouble`].
    fn discard(&self, start: VirtAddr, bytes: u64) -> Result<(), Trouble>;

    /// A load of an aligned word.
    ///
    /// # Errors
    /// [`Trouble`].
    fn load(&self, at: VirtAddr) -> Result<u64, Trouble>;

    /// A store of an aligned word.
    ///
    /// # Errors
    /// [`Trouble`].
    fn store(&self, at: VirtAddr, value: u64) -> Result<(), Trouble>;

    /// Loads all of the page at `start`.
    ///
    /// # Errors
    /// [`Trouble`].
    fn read_page(&self, start: VirtAddr, page: &mut Page) -> Result<(), Trouble>;

    /// A load or a store (of 1), and whether it had to wait for a read.
    ///
    /// # Errors
    /// [`Trouble`].
    fn touch(&self, at: VirtAddr, access: Access) -> Result<Touched, Trouble>;

    /// What [`IN_MAJOR_FAULTS`] names, counted for the calling thread so far; `None` for what this machine cannot count.
    fn counted(&self) -> [Option<u64>; IN_MAJOR_FAULTS.len()];
}

/// What a child of a fork does with its memory.
pub trait Task: Send + Sync {
    /// Runs in the child, with nobody else in it.
    ///
    /// # Errors
    /// [`Trouble::Wrong`]: what is wrong with what the child sees; or what its memory says.
    fn run(&self, child: &dyn Memory) -> Result<(), Trouble>;
}

/// A process: its memory, and fork.
pub trait Process: Memory {
    /// A child of it.
    type Child: Child;

    /// fork. The child does `task`, at once or when it is joined, and exits. Returns as soon as the parent goes on.
    ///
    /// # Errors
    /// [`Trouble`].
    fn fork(&self, task: &Arc<dyn Task>) -> Result<Self::Child, Trouble>;
}

/// A child that is doing its task, or is about to. Dropped, it is ended with its task undone.
pub trait Child: Send {
    /// Returns when the task is done and the child has exited.
    ///
    /// # Errors
    /// What the task said; [`Trouble::Input`].
    fn join(self) -> Result<(), Trouble>;
}

/// A machine for one round.
pub trait Machine: Sized + Sync {
    /// Its processes.
    type Process: Process;

    /// A process with nothing mapped that the scenario knows of. The first call gives the one whose locks are counted.
    ///
    /// # Errors
    /// [`Trouble`]; [`Trouble::Cannot`] where the machine has no second process.
    fn process(&self) -> Result<Self::Process, Trouble>;

    /// What all of it has counted since it was made, by the names of reports.
    fn statistics(&self) -> BTreeMap<String, u64>;

    /// Ends it. Called when no process is left.
    ///
    /// # Errors
    /// [`Trouble::Wrong`] if something was not given back.
    fn finish(self) -> Result<(), Trouble>;
}
