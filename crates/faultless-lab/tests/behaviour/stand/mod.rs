//! Hosts for the tests: the interface that a test needs from a machine, independent of the kind of machine.

#[cfg(target_os = "linux")]
mod linux;
pub(crate) mod pressure;
mod soft;

#[cfg(target_os = "linux")]
pub(crate) use linux::Linux;

use faultless::address::VirtAddr;
use faultless::design::LockingDesign;
use faultless::host::{Host, OutOfMemory};
use faultless::{
    AddressSpace, AuditError, Engine, FaultError, ForkError, Limits, MemoryLimit, MemoryLimitError,
};
use faultless_lab::skipped::skipped;
use faultless_soft::{AccessError, Cpu, PageFault};
use std::fmt::Display;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Host on which tests run, with the facts that they need to know about it.
pub(crate) trait Stand: Host {
    /// The reason why no machine is available here, so that the test is skipped. Uninhabited for a stand that is always
    /// available.
    type Refused: Display;

    /// A space as the processors that run in it use it. Any thread is one of them.
    ///
    /// A page fault is served once for each try. The access gets the error of its own fault, so a page whose read
    /// failed once can be read by the next access. A `try_` access may read the page table instead of faulting. After
    /// the drop, nothing holds the space or its engine any more.
    type Processor<D: LockingDesign>: Cpu + Send + Sync;

    /// Number of frames in use while nothing is mapped or cached.
    const IDLE_FRAMES: u64;
    /// Number of frames that the first load from a page of anonymous memory takes: zero if it shows a shared page of
    /// zeros. The first store takes one frame in total, with or without a load before.
    const FRAMES_OF_A_LOAD: u64;
    /// Number of pages that a space can address, from page 0 on. It is more than 8,192.
    const PAGES: u64;
    /// The last word that a test may access.
    const LAST_WORD: VirtAddr;

    /// Makes a machine with `frames` frames.
    ///
    /// # Errors
    /// The reason why this machine is not available here.
    fn engine(frames: u64, limits: Limits) -> Result<Arc<Engine<Self>>, Self::Refused>;

    /// Makes the processor of a space. Called once for each space, also for a fork's child, before its memory is
    /// touched. The processor is dropped after the test's own handle of the space.
    fn attach<D: LockingDesign>(space: &AddressSpace<Self, D>) -> Self::Processor<D>;

    /// Makes all frame allocations fail from the `nth` one on. `None` ends the failures.
    fn fail_frames_from(&self, nth: Option<u64>);
}

/// Result of a test that did not fail: done, or refused a machine.
pub(crate) type Ran<S> = Result<(), <S as Stand>::Refused>;

/// Prints the reason if a test was skipped.
pub(crate) fn report<S: Stand>(ran: Ran<S>) {
    if let Err(reason) = ran {
        skipped(reason);
    }
}

/// Space on a stand, with its processor.
pub(crate) struct Space<S: Stand, D: LockingDesign> {
    // The fields are dropped in this order.
    space: AddressSpace<S, D>,
    processor: S::Processor<D>,
}

impl<S: Stand, D: LockingDesign> Space<S, D> {
    pub fn new(engine: &Arc<Engine<S>>) -> Result<Self, OutOfMemory> {
        AddressSpace::new(engine).map(Self::attached)
    }

    pub fn new_in(engine: &Arc<Engine<S>>, limit: &MemoryLimit<S>) -> Result<Self, MemoryLimitError> {
        AddressSpace::new_in(engine, limit).map(Self::attached)
    }

    pub fn fork(&self) -> Result<Self, ForkError> {
        self.space.fork().map(Self::attached)
    }

    /// Audits the space. On some stands an access can finish before its serving thread does, so this waits for
    /// announcements.
    pub fn audit(&self) -> Result<(), AuditError> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match self.space.audit() {
                Err(AuditError::Announced { .. }) if Instant::now() < deadline => std::thread::yield_now(),
                audited => return audited,
            }
        }
    }

    fn attached(space: AddressSpace<S, D>) -> Self {
        Self { processor: S::attach(&space), space }
    }
}

impl<S: Stand, D: LockingDesign> Deref for Space<S, D> {
    type Target = AddressSpace<S, D>;

    fn deref(&self) -> &AddressSpace<S, D> {
        &self.space
    }
}

impl<S: Stand, D: LockingDesign> Cpu for Space<S, D> {
    fn try_load_u64(&self, address: VirtAddr) -> Result<u64, AccessError<PageFault>> {
        self.processor.try_load_u64(address)
    }

    fn try_store_u64(&self, address: VirtAddr, value: u64) -> Result<(), AccessError<PageFault>> {
        self.processor.try_store_u64(address, value)
    }

    fn load_u64(&self, address: VirtAddr) -> Result<u64, AccessError> {
        self.processor.load_u64(address)
    }

    fn store_u64(&self, address: VirtAddr, value: u64) -> Result<(), AccessError> {
        self.processor.store_u64(address, value)
    }

    fn fetch_add_u64(&self, address: VirtAddr, value: u64) -> Result<u64, AccessError> {
        self.processor.fetch_add_u64(address, value)
    }

    fn read_bytes(&self, address: VirtAddr, bytes: &mut [u8]) -> Result<(), FaultError> {
        self.processor.read_bytes(address, bytes)
    }

    fn write_bytes(&self, address: VirtAddr, bytes: &[u8]) -> Result<(), FaultError> {
        self.processor.write_bytes(address, bytes)
    }

    fn is_dirty(&self, address: VirtAddr) -> bool {
        self.processor.is_dirty(address)
    }
}

/// Sets the flag when it is dropped, also by a failed assertion. The other threads of the test end then, and the failure is shown.
pub(crate) struct Stopped<'a>(pub &'a AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
