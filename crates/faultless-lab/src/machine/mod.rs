//! The machines that scenarios run on. The same threads and calls run on the engine under a design ([`SoftMachine`])
//! and on the kernel of this computer (`native`). Scenarios use these traits alone, and have no branch for one of the
//! two machines.

mod soft;

pub use soft::SoftMachine;

use crate::measure::IN_MAJOR_FAULTS;
use crate::scenarios::Page;
use crate::trouble::Trouble;
use faultless::address::VirtAddr;
use faultless::protection::{Access, Protection, Sharing};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Result of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touched {
    /// The access caused no fault, or a fault that needed no read.
    Minor,
    /// The access caused a fault that had to wait for a read.
    Major,
}

/// The memory of one process, as its threads see it. Any number of threads may call any method at once.
pub trait Memory: Send + Sync {
    /// Maps anonymous private memory that may be read and written, at an address that the machine chooses (mmap).
    ///
    /// # Errors
    /// [`Trouble`], as for all methods of this trait.
    fn map_anonymous(&self, bytes: u64) -> Result<VirtAddr, Trouble>;

    /// Maps the whole file of the round read-only, without read-ahead (mmap).
    ///
    /// # Errors
    /// [`Trouble`].
    fn map_file(&self, sharing: Sharing) -> Result<VirtAddr, Trouble>;

    /// Unmaps a mapping that [`Memory::map_file`] returned (munmap). Its pages may leave the page cache.
    ///
    /// # Errors
    /// [`Trouble`].
    fn unmap_file(&self, start: VirtAddr) -> Result<(), Trouble>;

    /// Unmaps a range (munmap).
    ///
    /// # Errors
    /// [`Trouble`].
    fn unmap(&self, start: VirtAddr, bytes: u64) -> Result<(), Trouble>;

    /// Changes the rights of a range (mprotect).
    ///
    /// # Errors
    /// [`Trouble`].
    fn protect(&self, start: VirtAddr, bytes: u64, protection: Protection) -> Result<(), Trouble>;

    /// Discards the pages of a range (madvise with MADV_DONTNEED).
    ///
    /// # Errors
    /// [`Trouble`].
    fn discard(&self, start: VirtAddr, bytes: u64) -> Result<(), Trouble>;

    /// Loads an aligned word.
    ///
    /// # Errors
    /// [`Trouble`].
    fn load(&self, at: VirtAddr) -> Result<u64, Trouble>;

    /// Stores an aligned word.
    ///
    /// # Errors
    /// [`Trouble`].
    fn store(&self, at: VirtAddr, value: u64) -> Result<(), Trouble>;

    /// Loads the whole page at `start`.
    ///
    /// # Errors
    /// [`Trouble`].
    fn read_page(&self, start: VirtAddr, page: &mut Page) -> Result<(), Trouble>;

    /// Loads or stores (the value 1), and returns whether the access had to wait for a read.
    ///
    /// # Errors
    /// [`Trouble`].
    fn touch(&self, at: VirtAddr, access: Access) -> Result<Touched, Trouble>;

    /// Returns the counters that [`IN_MAJOR_FAULTS`] names, for the calling thread so far. `None` stands for a counter
    /// that this machine does not have.
    fn counted(&self) -> [Option<u64>; IN_MAJOR_FAULTS.len()];
}

/// Work of a child of a fork, on the child's memory.
pub trait Task: Send + Sync {
    /// Runs in the child, with no other thread in it.
    ///
    /// # Errors
    /// [`Trouble::Wrong`] if the child sees wrong contents. Otherwise the error of the child's memory.
    fn run(&self, child: &dyn Memory) -> Result<(), Trouble>;
}

/// Process: a memory that can fork.
pub trait Process: Memory {
    /// Type of its children.
    type Child: Child;

    /// Forks. The child does `task`, at once or when it is joined, and exits. Returns as soon as the parent can go on.
    ///
    /// # Errors
    /// [`Trouble`].
    fn fork(&self, task: &Arc<dyn Task>) -> Result<Self::Child, Trouble>;
}

/// Child that does its task, or is about to. If it is dropped, it ends and the task may be incomplete.
pub trait Child: Send {
    /// Waits until the task is done and the child has exited.
    ///
    /// # Errors
    /// The error of the task, or [`Trouble::Input`].
    fn join(self) -> Result<(), Trouble>;
}

/// Machine for one round.
pub trait Machine: Sized + Sync {
    /// Type of its processes.
    type Process: Process;

    /// Returns a process with no mapping that the scenario knows of. The statistics count the locks of the first
    /// process.
    ///
    /// # Errors
    /// [`Trouble`]; [`Trouble::Cannot`] if the machine has no second process.
    fn process(&self) -> Result<Self::Process, Trouble>;

    /// Returns all counters since the machine was made, by the names that reports use.
    fn statistics(&self) -> BTreeMap<String, u64>;

    /// Ends the machine. The caller has dropped all processes.
    ///
    /// # Errors
    /// [`Trouble::Wrong`] if a resource was not given back.
    fn finish(self) -> Result<(), Trouble>;
}
