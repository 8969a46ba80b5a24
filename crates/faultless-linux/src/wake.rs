//! Sleeping and waking: for threads, and for the faults that a handler has put aside. A handler does not sleep on
//! pages.

use faultless::host::{Park, Sleeper, StdPark};
use parking_lot::Mutex;
use rustix::event::EventfdFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::sync::Arc;

/// Sleeper names from here on are those of faults that were put aside. Lower names are those of threads.
const FAULTS: u64 = 1 << 32;

/// The number of a fault that was put aside. It is unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FaultNumber(u64);

impl FaultNumber {
    /// Returns the number `count`.
    pub fn new(count: u64) -> Self {
        Self(count)
    }

    /// Returns the name by which the engine wakes the fault.
    pub fn sleeper(self) -> Sleeper {
        Sleeper(FAULTS + self.0)
    }
}

/// Tells the handlers which of the faults that were put aside may resume.
pub(crate) struct Bell {
    event: OwnedFd,
    /// The faults that were woken since the last look.
    woken: Mutex<Vec<FaultNumber>>,
}

impl Bell {
    pub fn new() -> Result<Self, Errno> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event, woken: Mutex::default() })
    }

    /// Makes a handler look, for any reason.
    pub fn ring(&self) {
        // It fails only after 2^64 rings without a look.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// Makes a handler look at `fault`.
    pub fn wake(&self, fault: FaultNumber) {
        self.woken.lock().push(fault);
        self.ring();
    }

    /// Returns the faults that were woken since the last call.
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

/// [`StdPark`] for threads, and a bell for faults that a handler has put aside.
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
