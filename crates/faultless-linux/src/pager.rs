//! A machine of this process's own: memory, an engine, and the threads that serve its faults.

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
#[derive(Clone)]
pub struct Pager(Arc<Engine<Linux>>);

impl Pager {
    /// A pager of its own memory. It is this process's: a child of fork(2) can make another.
    ///
    /// # Errors
    /// [`OpenError`]: above all, userfaultfd is not for everybody.
    pub fn new(options: Options) -> Result<Self, OpenError> {
        let linux = Linux::start(&options)?;
        let no_frame =
            faultless_soft::MemoryError::OutOfMemory { frames: options.memory.div_ceil(PAGE_SIZE) };
        Ok(Self(Engine::new(linux, options.limits).map_err(|_| no_frame)?))
    }

    /// The process's own pager, with default [`Options`]; made at the first call, and there until the process ends.
    ///
    /// # Errors
    /// [`OpenError`], each time the same; [`OpenError::Inherited`] in a child, by fork(2), of a process that has called it.
    pub fn shared() -> Result<&'static Self, OpenError> {
        static SHARED: OnceLock<Result<Pager, OpenError>> = OnceLock::new();
        /// The process that makes it.
        static MAKER: AtomicU32 = AtomicU32::new(0);
        if SHARED.get().is_none() {
            let this = std::process::id();
            let maker = MAKER.compare_exchange(0, this, Ordering::Relaxed, Ordering::Relaxed);
            if maker.is_err_and(|maker| maker != this) {
                // A thread of the parent was making it when this process was forked: it would be waited for in vain.
                return Err(OpenError::Inherited);
            }
        }
        let pager = SHARED.get_or_init(|| Self::new(Options::default())).as_ref().map_err(Clone::clone)?;
        pager.check_process()?;
        Ok(pager)
    }

    /// That the calling process is the one that made this pager.
    pub(crate) fn check_process(&self) -> Result<(), OpenError> {
        if self.0.host().served().is_inherited() { Err(OpenError::Inherited) } else { Ok(()) }
    }

    /// The engine: statistics, and spaces made without a region.
    pub fn engine(&self) -> &Arc<Engine<Linux>> {
        &self.0
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        if self.check_process().is_err() {
            // In a child the engine never ends: its threads are not there, and may have had locks.
            std::mem::forget(Arc::clone(&self.0));
        }
    }
}

/// Why a space is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServeError {
    /// Faults of this design keep locks through I/O. A handler serves many threads' faults: it would wait for a lock that
    /// a fault has which it has put aside itself.
    #[error("the design {design} keeps locks while a page is read, and one handler serves many faults")]
    KeepsLocks {
        /// The design.
        design: &'static str,
    },
    /// It is served already.
    #[error("the space is served already")]
    Served,
    /// The calling process is a child of the one that has the pager.
    #[error("the pager is that of this process's parent: a child of fork(2) makes one of its own")]
    Inherited,
}

/// As long as it lives, its space's faults are served. Dropped, it ends the space: whoever still accesses its memory gets
/// SIGSEGV, until the addresses are used for something else.
pub struct Serving<D: LockingDesign = Faultless> {
    space: AddressSpace<Linux, D>,
    /// Has the space end with signals blocked. Last, so that it is dropped last.
    signals: Option<BlockedSignals>,
}

impl<D: LockingDesign> Serving<D> {
    /// Serves a space that was made without a [`Region`](crate::Region). Its end is this one's: a call to
    /// [`AddressSpace::exit`] leaves threads that wait for I/O to the end of that.
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

    /// Whether the calling process is a child, by fork(2), of the one that serves the space.
    pub(crate) fn is_inherited(&self) -> bool {
        self.served().is_inherited()
    }

    /// The space.
    pub fn space(&self) -> &AddressSpace<Linux, D> {
        &self.space
    }

    /// Where the space's `address` is in this process; `None` outside of its window, and in a child of fork(2), which does not
    /// have the window.
    pub fn pointer(&self, address: VirtAddr) -> Option<*mut u8> {
        if self.is_inherited() {
            return None;
        }
        self.space.root().pointer(address)
    }

    /// Whether an access to `address` would find its page and not fault.
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

    /// Serves accesses to the `bytes` from `address` on anew, where they got SIGBUS.
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

    /// Why accesses to the page at `address` get SIGBUS, if they do. The refusal stays until [`Serving::retry`], or until the
    /// page is discarded, unmapped or mapped over. Known to the thread whose access was refused; to others perhaps a moment later.
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
            // In a child the space never ends: whoever had locks of it may not be there.
            return std::mem::forget(self.space.clone());
        }
        self.signals = Some(BlockedSignals::asynchronous());
        self.served().end(&self.space);
    }
}
