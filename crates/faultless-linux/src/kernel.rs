//! The system calls that Rust cannot check: userfaultfd, and the windows of addresses that it serves. This module and
//! [`crate::access`] are the only ones of this crate with unsafe code of their own.
//!
//! A window is memory in which no Rust object lives: a [`crate::Region`] gives out plain bytes of it.

mod owner;

use crate::OpenError;
use faultless::address::{PAGE_SIZE, PageNumber, PageRange};
use faultless::protection::Protection;
use linux_raw_sys::general as abi;
use linux_raw_sys::ioctl;
use owner::Owner;
use parking_lot::Mutex;
use rustix::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, opcode};
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, UserfaultfdFlags};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

const PAGE: usize = PAGE_SIZE as usize;

/// The features that the kernel must have: it tells whether write protection stopped a fault (Linux 5.7), and sends
/// SIGBUS to a thread that touches a poisoned page (Linux 6.6).
const FEATURES: u32 = abi::UFFD_FEATURE_PAGEFAULT_FLAG_WP | abi::UFFD_FEATURE_POISON;

/// `_IO(0xaa, 0)` on /dev/userfaultfd.
const USERFAULTFD_IOC_NEW: Opcode = opcode::none(0xaa, 0);
const UFFDIO_POISON: Opcode = opcode::read_write::<abi::uffdio_poison>(0xaa, abi::_UFFDIO_POISON as u8);

/// Modes of the calls. The bindings leave them out.
const REGISTER_MISSING: u64 = 1;
const REGISTER_WP: u64 = 2;
const COPY_WP: u64 = 2;
const WRITEPROTECT_WP: u64 = 1;
const POISON_DONTWAKE: u64 = 1;

/// `USER_MODE_ONLY` is not set, so faults of the kernel are served too, as of read(2) into an absent page.
const FLAGS: UserfaultfdFlags = UserfaultfdFlags::CLOEXEC.union(UserfaultfdFlags::NONBLOCK);

/// A page of zeros to copy from.
#[repr(align(4096))]
struct Zeros([u8; PAGE]);
static ZEROS: Zeros = Zeros([0; PAGE]);

/// A userfaultfd of this process. A registered window holds it, since memory whose userfaultfd is closed reads as
/// zeros; so it is closed when its last user is dropped.
pub(crate) struct Userfault {
    fd: OwnedFd,
    /// /proc/self/mem: this process's memory, regardless of its protection.
    memory: OwnedFd,
    /// The process whose memory both descriptors refer to, also when they are used in its children.
    owner: Owner,
    /// The windows that are registered now: first addresses, and lengths in bytes. Protected by its lock.
    windows: Mutex<BTreeMap<usize, usize>>,
}

/// A page fault, as the kernel reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// The address of the access, or of its page.
    pub address: usize,
    /// Whether the access was a store.
    pub write: bool,
    /// True if the kernel has no page there. Otherwise it has one that is write-protected.
    pub missing: bool,
}

impl Userfault {
    /// Opens a userfaultfd that also serves accesses by the kernel.
    pub fn open() -> Result<Self, OpenError> {
        let page = rustix::param::page_size();
        if page != PAGE {
            return Err(OpenError::PageSize { bytes: page });
        }
        Self::with(new_fd()?)
    }

    fn with(fd: OwnedFd) -> Result<Self, OpenError> {
        let mut api = abi::uffdio_api { api: abi::UFFD_API.into(), features: FEATURES.into(), ioctls: 0 };
        // SAFETY: UFFDIO_API takes an argument of this type.
        let agreed = unsafe {
            rustix::ioctl::ioctl(&fd, Updater::<{ ioctl::UFFDIO_API as Opcode }, _>::new(&mut api))
        };
        agreed.map_err(|errno| match errno {
            Errno::INVAL => OpenError::TooOld,
            errno => OpenError::System { call: "UFFDIO_API", errno: errno.raw_os_error() },
        })?;
        let memory = rustix::fs::open("/proc/self/mem", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let memory = memory.map_err(|errno| OpenError::System {
            call: "open of /proc/self/mem",
            errno: errno.raw_os_error(),
        })?;
        let owner =
            Owner::new().map_err(|errno| OpenError::System { call: "mmap", errno: errno.raw_os_error() })?;
        let userfault = Self { fd, memory, owner, windows: Mutex::default() };
        userfault.can_read_protected()?;
        Ok(userfault)
    }

    /// Checks that a page can be read that its process may not read. A snapshot needs that.
    fn can_read_protected(&self) -> Result<(), OpenError> {
        let (none, flags) = (ProtFlags::empty(), MapFlags::PRIVATE);
        // SAFETY: a new page, wherever the kernel finds room.
        let page = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), PAGE, none, flags) };
        let page = page.map_err(|errno| OpenError::System { call: "mmap", errno: errno.raw_os_error() })?;
        let read = self.peek(page.expose_provenance(), &mut [0; 8]);
        // SAFETY: the page was just mapped, and no other code has its address.
        let unmapped = unsafe { rustix::mm::munmap(page, PAGE) };
        debug_assert!(unmapped.is_ok());
        read.map_err(|_| OpenError::NoForce)
    }

    /// Returns whether the calling process is a child, by fork(2), of the process that opened this. In a child the
    /// descriptors would change the parent's memory, so all calls of this type fail there with ESRCH.
    #[inline]
    pub fn is_inherited(&self) -> bool {
        !self.owner.is_this_process()
    }

    fn check_owner(&self) -> Result<(), Errno> {
        if self.is_inherited() { Err(Errno::SRCH) } else { Ok(()) }
    }

    /// Reads the faults that have happened, possibly none. Does not block.
    pub fn read<'e>(&self, events: &'e mut [Event; EVENTS]) -> Result<&'e [Event], Errno> {
        let mut buffer = [0_u8; EVENTS * MESSAGE];
        let bytes = match rustix::io::read(&self.fd, &mut buffer) {
            Ok(bytes) => bytes,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(errno) => return Err(errno),
        };
        let mut count = 0;
        for message in buffer[..bytes].chunks_exact(MESSAGE) {
            // SAFETY: a whole message of plain numbers; its alignment does not matter.
            let message = unsafe { message.as_ptr().cast::<abi::uffd_msg>().read_unaligned() };
            if u32::from(message.event) != abi::UFFD_EVENT_PAGEFAULT {
                continue; // no other was asked for
            }
            // SAFETY: the event says that the union holds this member.
            let fault = unsafe { message.arg.pagefault };
            let has = |flags: u32| fault.flags & u64::from(flags) != 0;
            events[count] = Event {
                address: fault.address as usize,
                write: has(abi::UFFD_PAGEFAULT_FLAG_WRITE | abi::UFFD_PAGEFAULT_FLAG_WP),
                missing: !has(abi::UFFD_PAGEFAULT_FLAG_WP),
            };
            count += 1;
        }
        Ok(&events[..count])
    }

    /// Fills the absent page at `to` with a copy of the page at `from`, write-protected or not, and wakes the threads
    /// that wait for it. `from` must not be in a window: if that page were absent, the caller would wait for a handler,
    /// and may be one.
    pub fn copy(&self, to: usize, from: usize, protected: bool) -> Result<(), Errno> {
        self.check_owner()?;
        let mode = if protected { COPY_WP } else { 0 };
        loop {
            let mut copy =
                abi::uffdio_copy { dst: to as u64, src: from as u64, len: PAGE_SIZE, mode, copy: 0 };
            // SAFETY: the kernel reads a page at `from`, or returns EFAULT. It writes a page of a window, where no Rust
            // object lives.
            let done = unsafe {
                let copy = Updater::<{ ioctl::UFFDIO_COPY as Opcode }, _>::new(&mut copy);
                rustix::ioctl::ioctl(&self.fd, copy)
            };
            match done {
                Err(Errno::AGAIN | Errno::INTR) => {}
                done => return done,
            }
        }
    }

    /// Fills the absent page at `to` with zeros, as [`Userfault::copy`] does.
    pub fn copy_zeros(&self, to: usize, protected: bool) -> Result<(), Errno> {
        self.copy(to, ZEROS.0.as_ptr().expose_provenance(), protected)
    }

    /// Maps the kernel's zero page at the absent page `to`, and wakes the threads that wait for it. A store there gets
    /// a page of its own from the kernel, without a fault that userfaultfd reports.
    pub fn zero(&self, to: usize) -> Result<(), Errno> {
        self.check_owner()?;
        loop {
            let mut zero = abi::uffdio_zeropage { range: range(to, PAGE), mode: 0, zeropage: 0 };
            // SAFETY: fills a page of a window, where no Rust object lives.
            let done = unsafe {
                let zero = Updater::<{ ioctl::UFFDIO_ZEROPAGE as Opcode }, _>::new(&mut zero);
                rustix::ioctl::ioctl(&self.fd, zero)
            };
            match done {
                Err(Errno::AGAIN | Errno::INTR) => {}
                done => return done,
            }
        }
    }

    /// Write-protects the present pages, or ends their protection. Ending it wakes the threads that wait for them.
    pub fn write_protect(&self, at: usize, bytes: usize, protected: bool) -> Result<(), Errno> {
        self.check_owner()?;
        let mode = if protected { WRITEPROTECT_WP } else { 0 };
        loop {
            let mut protect = abi::uffdio_writeprotect { range: range(at, bytes), mode };
            // SAFETY: changes whether stores to a window fault, and nothing else.
            let done = unsafe {
                let protect = Updater::<{ ioctl::UFFDIO_WRITEPROTECT as Opcode }, _>::new(&mut protect);
                rustix::ioctl::ioctl(&self.fd, protect)
            };
            match done {
                Err(Errno::AGAIN | Errno::INTR) => {}
                done => return done,
            }
        }
    }

    /// Makes each later access to the absent page at `at` get SIGBUS. It wakes no thread: the caller does that.
    pub fn poison(&self, at: usize) -> Result<(), Errno> {
        self.check_owner()?;
        loop {
            let mut poison = abi::uffdio_poison { range: range(at, PAGE), mode: POISON_DONTWAKE, updated: 0 };
            // SAFETY: a page of a window; accesses to it get a signal from now on.
            let done =
                unsafe { rustix::ioctl::ioctl(&self.fd, Updater::<UFFDIO_POISON, _>::new(&mut poison)) };
            match done {
                Err(Errno::AGAIN | Errno::INTR) => {}
                done => return done,
            }
        }
    }

    /// Wakes the threads that wait for the page at `at`, so that they try their accesses again.
    pub fn wake(&self, at: usize) -> Result<(), Errno> {
        self.check_owner()?;
        let mut pages = range(at & !(PAGE - 1), PAGE);
        // SAFETY: wakes threads and does nothing else.
        unsafe {
            let wake = Updater::<{ ioctl::UFFDIO_WAKE as Opcode }, _>::new(&mut pages);
            rustix::ioctl::ioctl(&self.fd, wake)
        }
    }

    /// Handles a fault for which there is no space, and wakes the threads that wait for its page.
    ///
    /// If `at` is in a window, its space is coming or going, and the access is tried again. Otherwise another process
    /// has registered the page, such as a child that has this descriptor. The page is then unregistered, so that the
    /// kernel serves it.
    pub fn disown(&self, at: usize) -> Result<(), Errno> {
        self.check_owner()?;
        let page = at & !(PAGE - 1);
        let windows = self.windows.lock();
        let below = windows.range(..=page).next_back();
        if below.is_some_and(|(start, bytes)| page - start < *bytes) {
            drop(windows);
            return self.wake(page);
        }
        let mut pages = range(page, PAGE);
        // SAFETY: the kernel itself serves the page's faults from now on, as in any memory. The lock prevents a new
        // window there meanwhile.
        let done = unsafe {
            let unregister = Updater::<{ ioctl::UFFDIO_UNREGISTER as Opcode }, _>::new(&mut pages);
            rustix::ioctl::ioctl(&self.fd, unregister)
        };
        drop(windows);
        done.or_else(|_| self.wake(page))
    }

    /// Copies bytes out of this process's memory, regardless of its protection. Returns EIO for an absent page. Never
    /// waits for a fault to be served: /proc/PID/mem returns an error for a page that userfaultfd would have to supply.
    pub fn peek(&self, from: usize, bytes: &mut [u8]) -> Result<(), Errno> {
        self.check_owner()?;
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pread(&self.memory, &mut bytes[done..], (from + done) as u64) {
                Ok(0) => return Err(Errno::FAULT),
                Ok(more) => done += more,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Copies bytes into a window, regardless of its protection.
    pub fn poke(&self, to: usize, bytes: &[u8]) -> Result<(), Errno> {
        self.check_owner()?;
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pwrite(&self.memory, &bytes[done..], (to + done) as u64) {
                Ok(0) => return Err(Errno::FAULT),
                Ok(more) => done += more,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Blocks a set of signals in the calling thread as long as it lives. A thread that it starts meanwhile keeps them
/// blocked for ever.
pub(crate) struct BlockedSignals {
    before: libc::sigset_t,
}

impl BlockedSignals {
    /// Blocks all signals, for a thread that serves faults.
    pub fn all() -> Self {
        Self::but(&[])
    }

    /// Blocks asynchronous signals, for a call of the engine. The program's signal handler may touch a page that can be
    /// served only after the call. Signals that an instruction itself raises are not blocked: a blocked one kills the
    /// process.
    pub fn asynchronous() -> Self {
        use libc::{SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP};
        Self::but(&[SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS])
    }

    fn but(these: &[i32]) -> Self {
        // SAFETY: the signal sets are plain bits and are filled before use; the mask is this thread's.
        unsafe {
            let (mut blocked, mut before) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&mut blocked);
            for signal in these {
                libc::sigdelset(&mut blocked, *signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &blocked, &mut before);
            Self { before }
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: restores the mask that this thread had.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut());
        }
    }
}

/// The number of events that are read at once.
pub(crate) const EVENTS: usize = 64;
const MESSAGE: usize = size_of::<abi::uffd_msg>();

fn range(start: usize, bytes: usize) -> abi::uffdio_range {
    abi::uffdio_range { start: start as u64, len: bytes as u64 }
}

/// Opens a userfaultfd by the system call, or by /dev/userfaultfd if this user may only use that.
fn new_fd() -> Result<OwnedFd, OpenError> {
    // SAFETY: a new descriptor, which does nothing until memory is registered.
    match unsafe { rustix::mm::userfaultfd(FLAGS) } {
        Ok(fd) => Ok(fd),
        Err(Errno::NOSYS) => Err(OpenError::Absent),
        Err(Errno::PERM | Errno::ACCESS) => by_device(),
        Err(errno) => Err(OpenError::System { call: "userfaultfd", errno: errno.raw_os_error() }),
    }
}

fn by_device() -> Result<OwnedFd, OpenError> {
    let device = rustix::fs::open("/dev/userfaultfd", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let device = device.map_err(|errno| match errno {
        Errno::NOENT | Errno::ACCESS | Errno::PERM => OpenError::Forbidden,
        errno => OpenError::System { call: "open of /dev/userfaultfd", errno: errno.raw_os_error() },
    })?;
    // SAFETY: USERFAULTFD_IOC_NEW takes flags by value and returns a new descriptor.
    let fd = unsafe { libc::ioctl(raw(&device), USERFAULTFD_IOC_NEW as libc::Ioctl, FLAGS.bits()) };
    if fd < 0 {
        return Err(OpenError::Forbidden);
    }
    // SAFETY: the descriptor was just made, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: &OwnedFd) -> i32 {
    use rustix::fd::AsRawFd;
    fd.as_raw_fd()
}

/// Addresses of this process that are served through userfaultfd. They are reserved, and inaccessible at first.
/// Dropping unmaps them.
pub(crate) struct Window {
    start: NonNull<u8>,
    bytes: usize,
    userfault: Arc<Userfault>,
}

// SAFETY: these are only addresses. The code that gives them out decides who may use the memory.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// Reserves `pages` pages and registers them.
    pub fn reserve(userfault: &Arc<Userfault>, pages: u64) -> Result<Self, Errno> {
        userfault.check_owner()?;
        let bytes = usize::try_from(pages).ok().and_then(|pages| pages.checked_mul(PAGE));
        let bytes = bytes.filter(|bytes| *bytes > 0 && *bytes <= isize::MAX as usize).ok_or(Errno::NOMEM)?;
        let (none, flags) = (ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: new pages, wherever the kernel finds room.
        let start = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, none, flags) }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let window = Self { start, bytes, userfault: Arc::clone(userfault) };
        let mut register = abi::uffdio_register {
            range: range(window.start(), bytes),
            mode: REGISTER_MISSING | REGISTER_WP,
            ioctls: 0,
        };
        // A child of fork(2) has no handler, so an access there must get a signal, and not read zeros.
        // SAFETY: the window's own pages.
        unsafe { rustix::mm::madvise(window.start.as_ptr().cast(), bytes, Advice::LinuxDontFork) }?;
        // Noted before it is registered, so that `disown` takes none of its faults for another process's.
        userfault.windows.lock().insert(window.start(), bytes);
        // SAFETY: the window's own pages, which hold nothing yet.
        unsafe {
            let register = Updater::<{ ioctl::UFFDIO_REGISTER as Opcode }, _>::new(&mut register);
            rustix::ioctl::ioctl(&window.userfault.fd, register)
        }?;
        Ok(window)
    }

    /// Returns the first address.
    pub fn start(&self) -> usize {
        self.start.as_ptr().expose_provenance()
    }

    /// Returns the first address, as a pointer for accesses.
    pub fn pointer(&self) -> NonNull<u8> {
        self.start
    }

    /// Returns the length in pages.
    pub fn pages(&self) -> u64 {
        (self.bytes / PAGE) as u64
    }

    /// Returns the address of `page`.
    pub fn address(&self, page: PageNumber) -> usize {
        debug_assert!(page.get() < self.pages());
        self.start() + page.get() as usize * PAGE
    }

    /// Returns the part of `range` that lies in the window, as a pointer and a length in bytes for the kernel's calls.
    fn part(&self, range: PageRange) -> Option<(*mut c_void, usize)> {
        let (first, end) = (range.start().get(), range.end().get().min(self.pages()));
        let pages = end.checked_sub(first).filter(|pages| *pages > 0)? as usize;
        // Inside the window, as the check above ensures.
        let start = self.start.as_ptr().wrapping_add(first as usize * PAGE);
        Some((start.cast(), pages * PAGE))
    }

    /// Sets the rights of accesses to `range`.
    pub fn protect(&self, range: PageRange, rights: Option<Protection>) -> Result<(), Errno> {
        self.userfault.check_owner()?;
        let Some((start, bytes)) = self.part(range) else { return Ok(()) };
        let rights = rights.unwrap_or(Protection::empty());
        let mut flags = MprotectFlags::empty();
        flags.set(MprotectFlags::READ, rights.intersects(Protection::READ | Protection::WRITE));
        flags.set(MprotectFlags::WRITE, rights.contains(Protection::WRITE));
        flags.set(MprotectFlags::EXEC, rights.contains(Protection::EXECUTE));
        // SAFETY: the window's own pages; holders of references into them follow the contract of `Region`.
        unsafe { rustix::mm::mprotect(start, bytes, flags) }
    }

    /// Drops the pages of `range`, and their poison: the next access to each page faults.
    pub fn drop_pages(&self, range: PageRange) -> Result<(), Errno> {
        self.userfault.check_owner()?;
        let Some((start, bytes)) = self.part(range) else { return Ok(()) };
        // Also drops pages that the program has locked in memory, which MADV_DONTNEED refuses (Linux 5.18).
        // SAFETY: the window's own pages; their bytes are kept elsewhere or no longer needed.
        let done = unsafe { libc::madvise(start, bytes, abi::MADV_DONTNEED_LOCKED as i32) };
        let errno = (done != 0).then(std::io::Error::last_os_error);
        match errno.map(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)) {
            // The program has unmapped some of it. All pages that are mapped have been dropped.
            None | Some(Errno::NOMEM) => Ok(()),
            Some(errno) => Err(errno),
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if self.userfault.is_inherited() {
            // A child never had the window. A mapping that is there now is the child's own.
            return;
        }
        // Before the unmapping: another window may be reserved at these addresses at once, and is then inserted again.
        self.userfault.windows.lock().remove(&self.start());
        // SAFETY: the window's own pages; all code that had access to them has given it up.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_gives_what_the_call_gives() {
        match by_device().and_then(Userfault::with) {
            Ok(userfault) => {
                let window = Window::reserve(&Arc::new(userfault), 4).unwrap();
                assert_eq!(window.pages(), 4);
            }
            Err(reason) => {
                let _ =
                    std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: {reason}\n"));
            }
        }
    }

    /// A child of fork(2) could register memory of its own in this way, at an address of the parent's.
    #[test]
    fn memory_that_a_stranger_registered_is_given_back_to_the_kernel() {
        let userfault = match Userfault::open() {
            Ok(userfault) => Arc::new(userfault),
            Err(reason) => {
                let _ =
                    std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: {reason}\n"));
                return;
            }
        };
        // Registered as a window is, but not noted as one.
        let window = Window::reserve(&userfault, 4).unwrap();
        window
            .protect(PageRange::with_pages(PageNumber::new(0), 4).unwrap(), Some(Protection::READ))
            .unwrap();
        let known = userfault.windows.lock().remove(&window.start()).unwrap();
        let start = window.start();
        std::thread::scope(|scope| {
            // SAFETY: a byte of the window, which no thread writes.
            let reader = scope.spawn(move || unsafe {
                std::ptr::with_exposed_provenance::<u8>(start + 2 * PAGE).read_volatile()
            });
            let mut events = [Event::default(); EVENTS];
            while !reader.is_finished() {
                for event in userfault.read(&mut events).unwrap() {
                    userfault.disown(event.address).unwrap();
                }
                std::thread::yield_now();
            }
            assert_eq!(reader.join().unwrap(), 0);
        });
        // A page of a window is not given back to the kernel: a store of its space's would be lost.
        userfault.windows.lock().insert(start, known);
        userfault.disown(start + PAGE).unwrap();
        assert_eq!(userfault.copy_zeros(start + PAGE, false), Ok(()), "it is still registered");
        assert_eq!(userfault.copy_zeros(start + 2 * PAGE, false), Err(Errno::NOENT));
    }

    #[test]
    fn impossible_windows_are_refused() {
        let userfault = match Userfault::open() {
            Ok(userfault) => Arc::new(userfault),
            Err(reason) => {
                let _ =
                    std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: {reason}\n"));
                return;
            }
        };
        for pages in [0, u64::MAX, 1 << 50] {
            assert!(Window::reserve(&userfault, pages).is_err(), "{pages} pages");
        }
    }
}
