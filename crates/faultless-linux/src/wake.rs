//! Sleeping, and how the end of a page's I/O reaches the handler, which does not sleep on pages.

use faultless::host::{Park, Sleeper, StdPark};
use parking_lot::Mutex;
use rustix::event::EventfdFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::sync::Arc;

/// Names from here on are those of faults that the handler has put aside; below are threads'.
const FAULTS: u64 = 1 << 32;

/// The number of a fault that the handler has put aside. No other fault of the process gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FaultNumber(u64);

impl FaultNumber {
    /// Number `count`.
    pub fn new(count: u64) -> Self {
        Self(count)
    }

    /// The name by which the engine wakes it.
    pub fn sleeper(self) -> Sleeper {
        Sleeper(FAULTS + self.0)
    }
}

/// Tells the handler which of its faults may go on.
pub(crate) struct Bell {
    event: OwnedFd,
    /// What has been woken since the last look.
    woken: Mutex<Vec<FaultNumber>>,
}

impl Bell {
    pub fn new() -> Result<Self, Errno> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event, woken: Mutex::default() })
    }

    /// Has the handler look, whatever for.
    pub fn ring(&self) {
        // It fails only if it was rung 2^64 times without a look.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// Has the handler look at a fault.
    pub fn wake(&self, fault: FaultNumber) {
        self.woken.lock().push(fault);
        self.ring();
    }

    /// What has been woken since the last call.
    pub fn take(&self) -> Vec<FaultNumber> {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.event, &mut count);
        std::mem::take(&mut *self.woken.lock())
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// [`StdPark`] for threads; wakes faults that the handler has put aside by a bell.
pub struct WakingPark {
    park: StdPark,
    bell: Arc<Bell>,
}

impl WakingPark {
    pub(crate) fn new(bell: &Arc<Bell>) -> Self {
        Self { park: StdPark::default(), bell: Arc::clone(bell) }
    }
}

impl Park for WakingPark {
    fn current(&self) -> Sleeper {
        self.park.current()
    }

    fn park(&self, me: Sleeper) {
        self.park.park(me);
    }

    fn unpark(&self, sleeper: Sleeper) {
        match sleeper.0.checked_sub(FAULTS) {
            Some(number) => self.bell.wake(FaultNumber(number)),
            None => self.park.unpark(sleeper),
        }
    }

    fn spin(&self, look: u32) {
        self.park.spin(look);
    }
}
