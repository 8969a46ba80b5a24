//! The threads that serve page faults. Each reads faults as a stream and hands them to the engine. A fault that waits
//! for I/O is put aside; any number of faults can wait at a time.

use crate::host::Linux;
use crate::kernel::{BlockedSignals, EVENTS, Event, Userfault};
use crate::table::table;
use crate::wake::{Bell, FaultNumber};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::LockingDesign;
use faultless::host::{OutOfMemory, Sleeper};
use faultless::protection::Access;
use faultless::{AddressSpace, Fault, FaultError, PendingFault};
use parking_lot::{Mutex, RwLock};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::collections::HashMap;
use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// The spaces of any design whose faults are served, and the faults that wait.
pub(crate) struct Served {
    userfault: Arc<Userfault>,
    bell: Arc<Bell>,
    /// Keyed by the first address of each window. A handler reads it for each fault; it is written when a space comes
    /// or goes.
    spaces: RwLock<BTreeMap<usize, Arc<dyn Faults>>>,
    /// The faults that wait.
    pending: Mutex<HashMap<FaultNumber, PutAside>>,
    /// The count of faults that have waited, which gives each its number.
    numbers: AtomicU64,
    /// Held while a page is discarded that the program has dropped.
    dropped: Mutex<()>,
    /// The last reason for which each page was refused, kept until the page's window goes.
    refused: Mutex<BTreeMap<usize, FaultError>>,
    stop: AtomicBool,
}

/// The view that a handler has of a space.
trait Faults: Send + Sync {
    /// Serves an access. Returns `None` if its address is not in the space's window.
    fn fault(&self, event: Event) -> Option<Outcome>;
}

/// The view that a handler has of a fault that waits.
trait Waits: Send {
    fn notify(&mut self, sleeper: Sleeper) -> Result<(), OutOfMemory>;
    fn is_ready(&self) -> bool;
    fn finish(self: Box<Self>) -> Outcome;
}

/// The result of serving a fault.
enum Outcome {
    /// The page is installed. The thread that installed it has woken the threads that waited for it.
    Done,
    Wait(Box<dyn Waits>),
    Refused(FaultError),
}

/// A fault that was put aside, and the address at which its thread waits.
struct PutAside {
    fault: Box<dyn Waits>,
    at: usize,
}

impl<D: LockingDesign> From<Result<Fault<Linux, D>, FaultError>> for Outcome {
    fn from(result: Result<Fault<Linux, D>, FaultError>) -> Self {
        match result {
            Ok(Fault::Done) => Self::Done,
            Ok(Fault::Pending(fault)) => Self::Wait(Box::new(fault)),
            Err(error) => Self::Refused(error),
        }
    }
}

impl<D: LockingDesign> Faults for AddressSpace<Linux, D> {
    fn fault(&self, event: Event) -> Option<Outcome> {
        let address = self.root().address_at(event.address)?;
        let access = if event.write { Access::Write } else { Access::Read };
        if event.missing && self.may_be_dropped(address) {
            self.serve_anew(address);
        }
        let served = match AddressSpace::fault(self, address, access) {
            // The kernel does not tell instruction fetches from reads. A page that may be fetched may be read, as on
            // x86-64.
            Err(FaultError::Protection { access: Access::Read, .. }) => {
                AddressSpace::fault(self, address, Access::Execute)
            }
            served => served,
        };
        Some(served.into())
    }
}

/// The steps of a handler for a page that the program itself has dropped.
trait Dropped {
    /// Returns whether an entry says that the kernel has a page at `address`, although a fault has found none.
    fn may_be_dropped(&self, address: VirtAddr) -> bool;

    /// Discards the page at `address` if the program has dropped it. As after `discard`, it is zeros or the file's
    /// page.
    fn serve_anew(&self, address: VirtAddr);
}

impl<D: LockingDesign> Dropped for AddressSpace<Linux, D> {
    fn may_be_dropped(&self, address: VirtAddr) -> bool {
        // SAFETY: dropped here; the table's methods call no engine.
        let section = unsafe { self.engine().enter_section() };
        table(self).is_loaded(&section, address.page())
    }

    fn serve_anew(&self, address: VirtAddr) {
        // One handler at a time. A second handler that has a fault on the page waits here, and then finds the page
        // discarded. It must not take the lost bytes before that, and must not discard bytes that were stored after it.
        let _turn = self.engine().host().served().dropped.lock();
        let table = table(self);
        // SAFETY: dropped here; the table's methods call no engine.
        let section = unsafe { self.engine().enter_section() };
        let is_dropped = table.note_dropped(&section, address.page());
        drop(section);
        if is_dropped && self.discard(address.page().address(), PAGE_SIZE).is_err() {
            // The engine refuses to discard the page. Bytes that only the dropped page had are lost, and accesses to
            // them get SIGBUS. All other bytes are kept.
            // SAFETY: dropped here; the table's methods call no engine.
            let section = unsafe { self.engine().enter_section() };
            table.unload_dropped(&section, address.page());
        }
    }
}

impl<D: LockingDesign> Waits for PendingFault<Linux, D> {
    fn notify(&mut self, sleeper: Sleeper) -> Result<(), OutOfMemory> {
        PendingFault::notify(self, sleeper)
    }

    fn is_ready(&self) -> bool {
        PendingFault::is_ready(self)
    }

    fn finish(self: Box<Self>) -> Outcome {
        PendingFault::finish(*self).into()
    }
}

impl Served {
    pub fn new(userfault: Arc<Userfault>, bell: Arc<Bell>) -> Self {
        let (spaces, pending, refused) = (RwLock::default(), Mutex::default(), Mutex::default());
        let (dropped, numbers) = (Mutex::default(), AtomicU64::new(0));
        Self { userfault, bell, spaces, pending, numbers, dropped, refused, stop: AtomicBool::new(false) }
    }

    /// Returns whether the calling process is a child, by fork(2), of the process whose faults are served.
    pub fn is_inherited(&self) -> bool {
        self.userfault.is_inherited()
    }

    /// Begins to serve faults in the space's window. Returns `false` if they are served already.
    pub fn add<D: LockingDesign>(&self, space: &AddressSpace<Linux, D>) -> bool {
        match self.spaces.write().entry(space.root().range().start) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert(Arc::new(space.clone()));
                true
            }
        }
    }

    /// Ends the space: its faults are no longer served, and the threads that wait for them are woken.
    pub fn end<D: LockingDesign>(&self, space: &AddressSpace<Linux, D>) {
        let window = space.root().range();
        self.spaces.write().remove(&window.start);
        space.exit();
        // The space's pending faults are given up now, whether or not the bell has told the handler of them.
        let given_up: Vec<_> = self
            .pending
            .lock()
            .extract_if(|_, aside| aside.fault.is_ready())
            .map(|(_, aside)| aside)
            .collect();
        given_up.into_iter().for_each(|fault| self.go_on(fault));
        self.refused.lock().retain(|at, _| !window.contains(at));
    }

    /// Serves faults until `stop` is set.
    fn run(&self) {
        let mut events = [Event::default(); EVENTS];
        while !self.stop.load(Ordering::Acquire) {
            let mut sources =
                [PollFd::new(&*self.userfault, PollFlags::IN), PollFd::new(&*self.bell, PollFlags::IN)];
            match poll(&mut sources, None) {
                Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => panic!("poll of a userfaultfd: {errno}"),
            }
            if sources[1].revents().contains(PollFlags::IN) {
                for number in self.bell.take() {
                    let woken = self.pending.lock().remove(&number);
                    woken.into_iter().for_each(|fault| self.go_on(fault));
                }
            }
            match self.userfault.read(&mut events) {
                Ok(events) => events.iter().for_each(|event| self.serve(*event)),
                Err(errno) => panic!("read of a userfaultfd: {errno}"),
            }
        }
        // Wake the next handler too: one look of this handler may have taken any number of rings.
        self.bell.ring();
    }

    fn serve(&self, event: Event) {
        let space = {
            let spaces = self.spaces.read();
            spaces.range(..=event.address).next_back().map(|(_, space)| Arc::clone(space))
        };
        match space.and_then(|space| space.fault(event)) {
            Some(outcome) => self.settle(outcome, event.address),
            // The space went before the fault was read, or the address belongs to no space.
            None => _ = self.userfault.disown(event.address),
        }
    }

    fn settle(&self, outcome: Outcome, at: usize) {
        match outcome {
            Outcome::Done => {}
            Outcome::Wait(fault) => self.put_aside(PutAside { fault, at }),
            // The thread tries the access again, and the kernel answers it: no rights, no mapping, or SIGBUS.
            Outcome::Refused(error) => {
                if is_bus(&error) {
                    self.refused.lock().insert(at & !(PAGE_SIZE as usize - 1), error);
                }
                self.wake(at);
            }
        }
    }

    /// Returns the reason if accesses to the page at `at` get SIGBUS.
    pub fn refused(&self, at: usize) -> Option<FaultError> {
        self.refused.lock().get(&(at & !(PAGE_SIZE as usize - 1))).copied()
    }

    fn put_aside(&self, fault: PutAside) {
        let number = FaultNumber::new(self.numbers.fetch_add(1, Ordering::Relaxed));
        let ready = {
            let mut pending = self.pending.lock();
            let aside = pending.entry(number).insert_entry(fault).into_mut();
            let is_told = aside.fault.notify(number.sleeper()).is_ok();
            // Without memory for the notice, the handler polls: it looks at the fault again and again.
            if !is_told {
                self.bell.wake(number);
            }
            if aside.fault.is_ready() { pending.remove(&number) } else { None }
        };
        ready.into_iter().for_each(|fault| self.go_on(fault));
    }

    fn go_on(&self, PutAside { fault, at }: PutAside) {
        self.settle(fault.finish(), at);
    }

    fn wake(&self, at: usize) {
        // Ignored: the window may have gone, and its waiting threads with it.
        let _ = self.userfault.wake(at);
    }
}

/// Returns whether the kernel has been told to send SIGBUS for this error.
fn is_bus(error: &FaultError) -> bool {
    matches!(
        error,
        FaultError::Guard { .. }
            | FaultError::Io { .. }
            | FaultError::Lost { .. }
            | FaultError::PastEnd { .. }
            | FaultError::OutOfMemory { .. }
    )
}

/// The handler threads. Dropping stops and joins them, except a thread that itself drops this.
pub(crate) struct Handlers {
    pub served: Arc<Served>,
    threads: Vec<JoinHandle<()>>,
}

impl Handlers {
    pub fn start(served: Served, count: usize) -> std::io::Result<Self> {
        let mut handlers = Self { served: Arc::new(served), threads: Vec::new() };
        // The program's own signal handler must not run on a handler thread: it may touch a region.
        let _blocked = BlockedSignals::all();
        for _ in 0..count {
            let served = Arc::clone(&handlers.served);
            let run = move || {
                // If a handler thread ended, threads would wait for it for ever, and some of them hold locks.
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

impl Drop for Handlers {
    fn drop(&mut self) {
        if self.served.is_inherited() {
            // The threads and the bell are the parent's.
            self.threads.drain(..).for_each(std::mem::forget);
            return;
        }
        self.served.stop.store(true, Ordering::Release);
        self.served.bell.ring();
        for thread in self.threads.drain(..) {
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}
