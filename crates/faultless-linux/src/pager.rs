//! A machine of this process: memory, an engine, and the threads that serve its faults.

use crate::handler::Served;
use crate::host::Linux;
use crate::kernel::BlockedSignals;
use crate::{OpenError, table};
use faultless::address::{PAGE_SIZE, PageRange, VirtAddr};
use faultless::design::{Faultless, LockingDesign};
use faultless::protection::Access;
use faultless::{AddressSpace, Engine, FaultError, Limits};
use std::any::TypeId;
use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

/// The resources of a pager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Memory in bytes, rounded up to whole pages. The operating system backs it at its first use. A mapped page
    /// counts, whether its bytes are in a frame's buffer or in the process.
    pub memory: u64,
    /// The number of threads that serve faults.
    pub handlers: NonZeroUsize,
    /// The limits of the engine.
    pub limits: Limits,
    /// The size in bytes of the window of a space that is made without a region.
    pub window: u64,
}

impl Default for Options {
    /// Returns 1 GiB of memory and one handler thread.
    fn default() -> Self {
        Self { memory: 1 << 30, handlers: NonZeroUsize::MIN, limits: Limits::default(), window: 1 << 30 }
    }
}

/// Serves the page faults of [`Region`](crate::Region)s. It is a handle: clones refer to the same pager, which ends
/// when its last handle and its last region are dropped.
#[derive(Clone)]
pub struct Pager(Arc<Engine<Linux>>);

impl Pager {
    /// Makes a pager with its own memory. It belongs to this process: a child of fork(2) must make another.
    ///
    /// # Errors
    /// [`OpenError`]. The most frequent is [`OpenError::Forbidden`]: many systems do not let every user use
    /// userfaultfd.
    pub fn new(options: Options) -> Result<Self, OpenError> {
        let linux = Linux::start(&options)?;
        let no_frame =
            faultless_soft::MemoryError::OutOfMemory { frames: options.memory.div_ceil(PAGE_SIZE) };
        Ok(Self(Engine::new(linux, options.limits).map_err(|_| no_frame)?))
    }

    /// Returns the process's shared pager, with default [`Options`]. The first call makes it, and it lives until the
    /// process ends.
    ///
    /// # Errors
    /// [`OpenError`]; each call returns the same one. [`OpenError::Inherited`] in a child, by fork(2), of a process
    /// that has called it.
    pub fn shared() -> Result<&'static Self, OpenError> {
        static SHARED: OnceLock<Result<Pager, OpenError>> = OnceLock::new();
        /// The identifier of the process that makes it.
        static MAKER: AtomicU32 = AtomicU32::new(0);
        if SHARED.get().is_none() {
            let this = std::process::id();
            let maker = MAKER.compare_exchange(0, this, Ordering::Relaxed, Ordering::Relaxed);
            if maker.is_err_and(|maker| maker != this) {
                // A thread of the parent was making the pager at the time of the fork. Waiting for it would never end.
                return Err(OpenError::Inherited);
            }
        }
        let pager = SHARED.get_or_init(|| Self::new(Options::default())).as_ref().map_err(Clone::clone)?;
        pager.check_process()?;
        Ok(pager)
    }

    /// Checks that the calling process made this pager.
    pub(crate) fn check_process(&self) -> Result<(), OpenError> {
        if self.0.host().served().is_inherited() { Err(OpenError::Inherited) } else { Ok(()) }
    }

    /// Returns the engine, for statistics and for spaces that are made without a region.
    pub fn engine(&self) -> &Arc<Engine<Linux>> {
        &self.0
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        if self.check_process().is_err() {
            // In a child the engine is never dropped: its threads do not exist there, and may have held locks.
            std::mem::forget(Arc::clone(&self.0));
        }
    }
}

/// Errors of [`Serving::of`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServeError {
    /// Faults of this design keep locks while they wait for I/O. A handler serves the faults of many threads, so it
    /// would wait for a lock that belongs to a fault which it has itself put aside.
    #[error("the design {design} keeps locks while a page is read, and one handler serves many faults")]
    KeepsLocks {
        /// The design's name.
        design: &'static str,
    },
    /// The space is served already.
    #[error("the space is served already")]
    Served,
    /// The calling process is a child of the process that made the pager.
    #[error("the pager belongs to this process's parent: a child of fork(2) makes one of its own")]
    Inherited,
}

/// Serves the faults of a space as long as it lives. Dropping it ends the space: later accesses to its memory get
/// SIGSEGV, until the addresses are mapped for another purpose.
pub struct Serving<D: LockingDesign = Faultless> {
    space: AddressSpace<Linux, D>,
    /// Blocks signals while the space ends. It is the last field, so that it is dropped last.
    signals: Option<BlockedSignals>,
}

impl<D: LockingDesign> Serving<D> {
    /// Begins to serve a space that was made without a [`Region`](crate::Region).
    ///
    /// To end the space, drop this value. [`AddressSpace::exit`] alone leaves threads that wait for I/O waiting until
    /// that I/O has ended.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn of(space: &AddressSpace<Linux, D>) -> Result<Self, ServeError> {
        if TypeId::of::<D::Kept>() != TypeId::of::<Infallible>() {
            return Err(ServeError::KeepsLocks { design: D::NAME });
        }
        if space.engine().host().served().is_inherited() {
            return Err(ServeError::Inherited);
        }
        let _signals = BlockedSignals::asynchronous();
        if !space.engine().host().served().add(space) {
            return Err(ServeError::Served);
        }
        Ok(Self { space: space.clone(), signals: None })
    }

    fn served(&self) -> &Served {
        self.space.engine().host().served()
    }

    /// Returns whether the calling process is a child, by fork(2), of the process that serves the space.
    pub(crate) fn is_inherited(&self) -> bool {
        self.served().is_inherited()
    }

    /// Returns the space.
    pub fn space(&self) -> &AddressSpace<Linux, D> {
        &self.space
    }

    /// Returns the address in this process of the space's `address`. Returns `None` outside of its window, and in a
    /// child of fork(2), which does not have the window.
    pub fn pointer(&self, address: VirtAddr) -> Option<*mut u8> {
        if self.is_inherited() {
            return None;
        }
        self.space.root().pointer(address)
    }

    /// Returns whether an access to `address` would find its page and not fault.
    pub fn is_there(&self, address: VirtAddr, access: Access) -> bool {
        if self.pointer(address).is_none() {
            return false;
        }
        let _signals = BlockedSignals::asynchronous();
        // SAFETY: dropped here; the table's methods call no engine.
        let section = unsafe { self.space.engine().enter_section() };
        let table = table::table(&self.space);
        table.is_there(&section, address.page(), access)
    }

    /// Serves accesses to the `bytes` bytes from `address` again that got SIGBUS.
    pub fn retry(&self, address: VirtAddr, bytes: u64) {
        if self.is_inherited() {
            return;
        }
        if let Ok(range) = PageRange::from_bytes(address, bytes) {
            let _signals = BlockedSignals::asynchronous();
            // SAFETY: dropped here; the table's methods call no engine.
            let section = unsafe { self.space.engine().enter_section() };
            table::table(&self.space).forgive(&section, range);
        }
    }

    /// Returns the reason if accesses to the page at `address` get SIGBUS.
    ///
    /// The refusal lasts until [`Serving::retry`], or until the page is discarded, unmapped or mapped over. The thread
    /// whose access was refused sees it at once; other threads may see it a moment later.
    pub fn refusal(&self, address: VirtAddr) -> Option<FaultError> {
        let at = self.pointer(address)?.addr();
        let (table, page) = (table::table(&self.space), address.page());
        let _signals = BlockedSignals::asynchronous();
        // SAFETY: dropped here; the table's methods call no engine.
        let section = unsafe { self.space.engine().enter_section() };
        let (is_refused, is_lost) = (table.is_refused(&section, page), table.is_lost(&section, page));
        drop(section);
        match (is_refused, is_lost) {
            (false, _) => None,
            (true, false) => self.served().refused(at),
            (true, true) => Some(FaultError::Lost { address }),
        }
    }
}

impl<D: LockingDesign> Drop for Serving<D> {
    fn drop(&mut self) {
        if self.is_inherited() {
            // In a child the space is never dropped: the threads that held its locks may not exist there.
            return std::mem::forget(self.space.clone());
        }
        self.signals = Some(BlockedSignals::asynchronous());
        self.served().end(&self.space);
    }
}
