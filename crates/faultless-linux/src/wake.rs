//! Sleeping, and how the end of a page's I/O reaches the handler, which does not sleep on pages.

use faultless::host::{Park, StdPark};
use parking_lot::Mutex;
use rustix::event::EventfdFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

/// Tells the handler what was woken.
pub(crate) struct Bell {
    event: OwnedFd,
    /// Faults that the handler has put aside. Written by handlers.
    waiting: AtomicUsize,
    /// What has been woken since the last look.
    keys: Mutex<Vec<usize>>,
}

impl Bell {
    pub fn new() -> Result<Self, Errno> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event, waiting: AtomicUsize::new(0), keys: Mutex::default() })
    }

    /// Has the handler look, whatever for.
    pub fn ring(&self) {
        // It fails only if it was rung 2^64 times without a look.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// A fault is put aside: from now on what is woken is told. The caller looks once more whether it is ready.
    pub fn expect(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // Partner: the fence of `woken`. If ours comes first, it finds the fault waiting; if its, our look finds it ready.
        fence(Ordering::SeqCst);
    }

    /// The fault has gone on.
    pub fn expect_no_more(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    fn woken(&self, key: usize) {
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) != 0 {
            self.keys.lock().push(key);
            self.ring();
        }
    }

    /// What has been woken since the last call.
    pub fn take(&self) -> Vec<usize> {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.event, &mut count);
        std::mem::take(&mut *self.keys.lock())
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// [`StdPark`], which also rings a bell while the handler has faults put aside.
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
    fn park(&self, key: usize, blocked: &mut dyn FnMut() -> bool) {
        self.park.park(key, blocked);
    }

    fn wake_all(&self, key: usize) {
        self.park.wake_all(key);
        self.bell.woken(key);
    }

    fn pause(&self, look: u32) {
        self.park.pause(look);
    }
}
