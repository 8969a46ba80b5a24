//! The thread that serves page faults: it reads them as a stream, hands each to the engine, and puts aside what waits
//! for I/O, any number at a time.

use crate::host::Linux;
use crate::kernel::{EVENTS, Event, Userfault};
use crate::table::table;
use crate::wake::Bell;
use faultless::address::PAGE_SIZE;
use faultless::design::LockingDesign;
use faultless::protection::Access;
use faultless::{AddressSpace, Fault, FaultError, PendingFault};
use parking_lot::{Mutex, RwLock};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// The spaces that are served, by their windows' first addresses.
pub(crate) struct Served<D: LockingDesign> {
    pub userfault: Arc<Userfault>,
    pub bell: Arc<Bell>,
    /// Read by a handler for each fault; written when a space comes or goes.
    spaces: RwLock<BTreeMap<usize, AddressSpace<Linux, D>>>,
    /// Faults that wait, by what for.
    pending: Mutex<HashMap<usize, Vec<Waiting<D>>>>,
    /// Held for reading while a fault is at work, until its refusal is noted: the kernel sends SIGBUS before that.
    at_work: RwLock<()>,
    /// Why a page was refused, until its window goes or it is refused for another reason.
    refused: Mutex<BTreeMap<usize, FaultError>>,
    stop: AtomicBool,
}

/// A fault put aside, and the address that its thread waits at.
struct Waiting<D: LockingDesign> {
    fault: PendingFault<Linux, D>,
    at: usize,
}

/// Where a space's window is.
fn window_of<D: LockingDesign>(space: &AddressSpace<Linux, D>) -> Range<usize> {
    let window = table(space).window();
    window.start()..window.start() + (window.pages() * PAGE_SIZE) as usize
}

impl<D: LockingDesign> Served<D> {
    pub fn new(userfault: Arc<Userfault>, bell: Arc<Bell>) -> Self {
        let (spaces, pending, refused) = (RwLock::default(), Mutex::default(), Mutex::default());
        let at_work = RwLock::default();
        Self { userfault, bell, spaces, pending, at_work, refused, stop: AtomicBool::new(false) }
    }

    /// From now on faults in the space's window are served.
    pub fn add(&self, space: &AddressSpace<Linux, D>) {
        self.spaces.write().insert(window_of(space).start, space.clone());
    }

    /// From now on they are not; who waits is woken.
    pub fn remove(&self, space: &AddressSpace<Linux, D>) {
        self.spaces.write().remove(&window_of(space).start);
        space.exit();
        // What is pending of it is given up by whoever looks.
        let given_up: Vec<_> = {
            let mut pending = self.pending.lock();
            let keys: Vec<usize> = pending.keys().copied().collect();
            keys.into_iter().flat_map(|key| take_ready(&mut pending, key)).collect()
        };
        given_up.into_iter().for_each(|waiting| self.go_on(waiting));
        let window = window_of(space);
        self.refused.lock().retain(|at, _| !window.contains(at));
    }

    /// Serves faults until told to stop.
    fn run(&self) {
        let mut events = [Event { address: 0, write: false }; EVENTS];
        while !self.stop.load(Ordering::Acquire) {
            let mut sources =
                [PollFd::new(&*self.userfault, PollFlags::IN), PollFd::new(&*self.bell, PollFlags::IN)];
            match poll(&mut sources, None) {
                Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => panic!("poll of a userfaultfd: {errno}"),
            }
            let rung = sources[1].revents().contains(PollFlags::IN);
            if rung {
                for key in self.bell.take() {
                    let ready = take_ready(&mut self.pending.lock(), key);
                    ready.into_iter().for_each(|waiting| self.go_on(waiting));
                }
            }
            match self.userfault.read(&mut events) {
                Ok(events) => events.iter().for_each(|event| self.serve(*event)),
                Err(errno) => panic!("read of a userfaultfd: {errno}"),
            }
        }
        // For the next handler: one look answers any number of rings.
        self.bell.ring();
    }

    fn serve(&self, event: Event) {
        let space = {
            let spaces = self.spaces.read();
            spaces.range(..=event.address).next_back().map(|(_, space)| space.clone())
        };
        let found = space.and_then(|space| {
            let address = table(&space).address_at(event.address)?;
            Some((space, address))
        });
        let Some((space, address)) = found else {
            // It went while this was on its way.
            let _ = self.userfault.wake(event.address);
            return;
        };
        let access = if event.write { Access::Write } else { Access::Read };
        if let Some(fault) = self.work(event.address, || space.fault(address, access)) {
            self.put_aside(Waiting { fault, at: event.address });
        }
    }

    /// Works at a fault, and returns it if it has to be put aside.
    fn work(
        &self,
        at: usize,
        fault: impl FnOnce() -> Result<Fault<Linux, D>, FaultError>,
    ) -> Option<PendingFault<Linux, D>> {
        let _at_work = self.at_work.read();
        match fault() {
            // Whoever installs a page wakes who waits for it.
            Ok(Fault::Done) => None,
            Ok(Fault::Pending(fault)) => Some(fault),
            Err(error) => {
                self.refuse(at, error);
                None
            }
        }
    }

    /// Tried again, the access meets what the kernel has been told: no rights, no mapping, SIGBUS.
    fn refuse(&self, at: usize, error: FaultError) {
        if matches!(
            error,
            FaultError::Io { .. } | FaultError::PastEnd { .. } | FaultError::OutOfMemory { .. }
        ) {
            self.refused.lock().insert(at & !(PAGE_SIZE as usize - 1), error);
        }
        // The window may be gone by now, and those who waited with it.
        let _ = self.userfault.wake(at);
    }

    /// Why accesses to the page at `at` get SIGBUS.
    pub fn refused(&self, at: usize) -> Option<FaultError> {
        // The caller may have been sent SIGBUS by a fault that is still at work.
        drop(self.at_work.write());
        self.refused.lock().get(&(at & !(PAGE_SIZE as usize - 1))).copied()
    }

    fn put_aside(&self, waiting: Waiting<D>) {
        let key = waiting.fault.waits_on();
        self.bell.expect();
        let ready = {
            let mut pending = self.pending.lock();
            pending.entry(key).or_default().push(waiting);
            take_ready(&mut pending, key)
        };
        ready.into_iter().for_each(|waiting| self.go_on(waiting));
    }

    fn go_on(&self, waiting: Waiting<D>) {
        self.bell.expect_no_more();
        let Waiting { fault, at } = waiting;
        if let Some(fault) = self.work(at, || fault.finish()) {
            self.put_aside(Waiting { fault, at });
        }
    }
}

/// Takes out the faults that wait on `key` and can go on.
fn take_ready<D: LockingDesign>(
    pending: &mut HashMap<usize, Vec<Waiting<D>>>,
    key: usize,
) -> Vec<Waiting<D>> {
    let Some(waiting) = pending.remove(&key) else { return Vec::new() };
    let (ready, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|waiting| waiting.fault.is_ready());
    if !rest.is_empty() {
        pending.insert(key, rest);
    }
    ready
}

/// Handler threads; stopped and joined when dropped.
pub(crate) struct Handlers<D: LockingDesign> {
    pub served: Arc<Served<D>>,
    threads: Vec<JoinHandle<()>>,
}

impl<D: LockingDesign> Handlers<D> {
    pub fn start(served: Served<D>, count: usize) -> std::io::Result<Self> {
        let mut handlers = Self { served: Arc::new(served), threads: Vec::new() };
        for _ in 0..count {
            let served = Arc::clone(&handlers.served);
            let run = move || {
                // Threads would wait for ever for one that is gone, and some of them hold locks.
                let abort = AbortOnPanic;
                served.run();
                std::mem::forget(abort);
            };
            handlers.threads.push(std::thread::Builder::new().name("faultless-faults".into()).spawn(run)?);
        }
        Ok(handlers)
    }
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}

impl<D: LockingDesign> Drop for Handlers<D> {
    fn drop(&mut self) {
        self.served.stop.store(true, Ordering::Release);
        self.served.bell.ring();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
