//! A swap device that holds up the background worker.

use faultless::store::Transfer;
use faultless::swap::SwapDevice;
use std::sync::{Arc, Condvar, Mutex};

/// A device that does not return from `submit`, if the background worker calls it.
pub struct Stuck {
    device: Arc<dyn SwapDevice>,
    /// Whether the worker may go on, and whether it has come.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Stuck {
    pub fn new(device: Arc<dyn SwapDevice>) -> Arc<Self> {
        Arc::new(Self { device, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Returns whether the worker has come to the device.
    pub fn has_worker(&self) -> bool {
        self.state.lock().unwrap().1
    }

    /// Lets the worker go on, now and later.
    pub fn let_go(&self) {
        self.state.lock().unwrap().0 = true;
        self.changed.notify_all();
    }
}

impl SwapDevice for Stuck {
    fn capacity(&self) -> u64 {
        self.device.capacity()
    }

    fn reserve(&self) -> Option<u64> {
        self.device.reserve()
    }

    fn release(&self, place: u64) {
        self.device.release(place);
    }

    fn submit(&self, transfer: Transfer) {
        if std::thread::current().name() == Some("faultless-behind") {
            let mut state = self.state.lock().unwrap();
            state.1 = true;
            while !state.0 {
                state = self.changed.wait(state).unwrap();
            }
        }
        self.device.submit(transfer);
    }
}
