//! A machine of this process's own: memory, an engine, and the threads that serve its faults.

use crate::handler::{Handlers, Served};
use crate::host::Linux;
use crate::kernel::Userfault;
use crate::wake::{Bell, WakingPark};
use crate::{OpenError, table};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::{Faultless, LockingDesign};
use faultless::{AddressSpace, Engine, FaultError, Limits};
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};

/// What a pager may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Memory, in bytes; rounded up to whole pages. The operating system backs it when it is first used. A page that is
    /// mapped counts, whoever has its bytes.
    pub memory: u64,
    /// Threads that serve faults.
    pub handlers: NonZeroUsize,
    /// Limits of the engine.
    pub limits: Limits,
    /// Bytes of the window that a space gets which is made without a region.
    pub window: u64,
}

impl Default for Options {
    /// 1 GiB, served by one thread.
    fn default() -> Self {
        Self { memory: 1 << 30, handlers: NonZeroUsize::MIN, limits: Limits::default(), window: 1 << 30 }
    }
}

/// Serves the page faults of [`Region`](crate::Region)s. A handle: clones are the same pager, which ends with its last
/// handle and its last region.
pub struct Pager<D: LockingDesign = Faultless>(Arc<Inner<D>>);

struct Inner<D: LockingDesign> {
    engine: Arc<Engine<Linux>>,
    handlers: Handlers<D>,
}

impl<D: LockingDesign> Clone for Pager<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl Pager {
    /// A pager of its own memory.
    ///
    /// # Errors
    /// [`OpenError`]: above all, userfaultfd is not for everybody.
    pub fn new(options: Options) -> Result<Self, OpenError> {
        Self::with_design(options)
    }

    /// The process's own pager, with default [`Options`]; made at the first call, and there until the process ends.
    ///
    /// # Errors
    /// [`OpenError`], each time the same.
    pub fn shared() -> Result<&'static Self, OpenError> {
        static SHARED: OnceLock<Result<Pager, OpenError>> = OnceLock::new();
        SHARED.get_or_init(|| Self::new(Options::default())).as_ref().map_err(Clone::clone)
    }
}

impl<D: LockingDesign> Pager<D> {
    /// A pager under another locking design.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn with_design(options: Options) -> Result<Self, OpenError> {
        let userfault = Arc::new(Userfault::open()?);
        let bell = Bell::new()
            .map_err(|errno| OpenError::System { call: "eventfd", errno: errno.raw_os_error() })?;
        let bell = Arc::new(bell);
        let (frames, window) = (options.memory.div_ceil(PAGE_SIZE), options.window.div_ceil(PAGE_SIZE));
        let linux = Linux::new(frames, window, Arc::clone(&userfault), WakingPark::new(&bell))?;
        let no_frame = faultless_soft::MemoryError::OutOfMemory { frames };
        let engine = Engine::new(linux, options.limits).map_err(|_| no_frame)?;
        let handlers = Handlers::start(Served::new(userfault, bell), options.handlers.get())
            .map_err(|error| OpenError::Thread { errno: error.raw_os_error().unwrap_or(0) })?;
        Ok(Self(Arc::new(Inner { engine, handlers })))
    }

    /// The engine: statistics, and spaces made without a region.
    pub fn engine(&self) -> &Arc<Engine<Linux>> {
        &self.0.engine
    }

    /// Serves the faults of a space of this pager's engine until the guard goes, which is the space's end: it exits. For
    /// embedders who make spaces themselves; a [`Region`](crate::Region) has done this.
    pub fn serve(&self, space: &AddressSpace<Linux, D>) -> Serving<D> {
        self.0.handlers.served.add(space);
        Serving { pager: self.clone(), space: space.clone() }
    }
}

/// As long as it lives, its space's faults are served. Dropped, it ends the space: whoever still accesses its memory gets
/// SIGSEGV.
pub struct Serving<D: LockingDesign = Faultless> {
    pager: Pager<D>,
    space: AddressSpace<Linux, D>,
}

impl<D: LockingDesign> Serving<D> {
    /// The pager.
    pub fn pager(&self) -> &Pager<D> {
        &self.pager
    }

    /// The space.
    pub fn space(&self) -> &AddressSpace<Linux, D> {
        &self.space
    }

    /// Where the space's `address` is in this process; `None` outside of its window.
    pub fn pointer(&self, address: VirtAddr) -> Option<*mut u8> {
        table::table(&self.space).pointer(address)
    }

    /// Why accesses to the page at `address` get SIGBUS, if they do. The refusal stays until the page is discarded,
    /// unmapped or mapped over.
    pub fn refusal(&self, address: VirtAddr) -> Option<FaultError> {
        let at = self.pointer(address)?.addr();
        self.pager.0.handlers.served.refused(at)
    }
}

impl<D: LockingDesign> Drop for Serving<D> {
    fn drop(&mut self) {
        self.pager.0.handlers.served.remove(&self.space);
    }
}
