//! Where the tests run: what a test needs of a machine, and nothing of which machine it is.

#[cfg(target_os = "linux")]
mod linux;
mod soft;

#[cfg(target_os = "linux")]
pub(crate) use linux::Linux;

use faultless::address::VirtAddr;
use faultless::design::LockingDesign;
use faultless::host::{Host, OutOfMemory};
use faultless::{AddressSpace, AuditError, Engine, FaultError, ForkError, Limits};
use faultless_soft::{AccessError, Cpu, PageFault};
use std::fmt::Display;
use std::io::Write;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A host on which tests run, and what they have to know of it.
pub(crate) trait Stand: Host {
    /// Why there can be no machine here: the test is skipped. A stand that is never refused says so by this type.
    type Refused: Display;

    /// A space as the processors that run in it use it; any thread is one of them.
    ///
    /// A page fault is served once for each try, and the access that made it gets the error of just that fault: a page
    /// whose read failed once can be had by the next. A `try_` access may look in the page table instead of faulting.
    /// When this has been dropped, nothing of it holds the space or its engine any more.
    type Processor<D: LockingDesign>: Cpu + Send + Sync;

    /// Frames in use while nothing is mapped or cached.
    const IDLE_FRAMES: u64;
    /// Frames that the first load from a page of anonymous memory takes: none where it shows a shared page of zeros.
    /// The first store there takes one in all, whether or not there was a load before.
    const FRAMES_OF_A_LOAD: u64;
    /// Pages that a space can address, from page 0 on: more than 8,192.
    const PAGES: u64;
    /// The last word to which an access may be tried.
    const LAST_WORD: VirtAddr;

    /// A machine with so many frames.
    ///
    /// # Errors
    /// It is not granted here.
    fn engine(frames: u64, limits: Limits) -> Result<Arc<Engine<Self>>, Self::Refused>;

    /// Called once for each space, a fork's child too, before anything touches its memory. The processor is dropped
    /// after the test's own handle of the space.
    fn attach<D: LockingDesign>(space: &AddressSpace<Self, D>) -> Self::Processor<D>;

    /// From the `nth` allocation on there is no frame; with `None` there is again.
    fn fail_frames_from(&self, nth: Option<u64>);
}

/// How a test ended that did not fail: done, or refused a machine.
pub(crate) type Ran<S> = Result<(), <S as Stand>::Refused>;

/// Says why a test was skipped, if it was. On the real stderr: the harness shows nobody what a test that passes prints.
pub(crate) fn report<S: Stand>(ran: Ran<S>) {
    if let Err(reason) = ran {
        let _ = writeln!(std::io::stderr(), "skipped: {reason}");
    }
}

/// A space on a stand.
pub(crate) struct Space<S: Stand, D: LockingDesign> {
    // Dropped in this order.
    space: AddressSpace<S, D>,
    processor: S::Processor<D>,
}

impl<S: Stand, D: LockingDesign> Space<S, D> {
    pub fn new(engine: &Arc<Engine<S>>) -> Result<Self, OutOfMemory> {
        AddressSpace::new(engine).map(Self::attached)
    }

    pub fn fork(&self) -> Result<Self, ForkError> {
        self.space.fork().map(Self::attached)
    }

    /// As the space's own, for a stand where an access can be done before the thread that served it has let go.
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
