//! The contender "bare": a minimal userfaultfd handler. It has one thread, which polls, reads all pending events, and
//! makes one ioctl for each fault. It keeps no records: it knows that each page is touched once, and by which access.

use crate::case::{Case, Contender, Prepared, Setting};
use crate::memory::{BEFORE, Mapping, PAGE};
use crate::trouble::Trouble;
use linux_raw_sys::general as abi;
use linux_raw_sys::ioctl;
use rustix::event::{EventfdFlags, PollFd, PollFlags, poll};
use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::UserfaultfdFlags;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

/// The number of events that are read at once, as in the crate.
const EVENTS: usize = 64;

const REGISTER_MISSING: u64 = 1;
const REGISTER_WP: u64 = 2;
const WRITEPROTECT_WP: u64 = 1;

#[repr(align(4096))]
struct Page([u8; PAGE]);
static ZEROS: Page = Page([0; PAGE]);

/// The contender "bare"; see the module.
pub struct Bare;

impl Contender for Bare {
    fn name(&self) -> &'static str {
        "bare"
    }

    fn prepare(&mut self, case: Case, _: usize, setting: &Setting) -> Result<Prepared, Trouble> {
        let pages = setting.pages;
        let mapping = Mapping::anonymous(pages, false)?;
        let touched = mapping.touched();
        let start = mapping.start() as usize;
        let userfault = Arc::new(Userfault::open()?);
        Ok(match case {
            Case::FirstWrite => {
                let zeros = ZEROS.0.as_ptr() as usize;
                userfault.register(&mapping, REGISTER_MISSING)?;
                let handler = Handler::start(&userfault, move |userfault, at| userfault.copy(at, zeros))?;
                Prepared::touch(touched, (handler, mapping))
            }
            Case::FirstRead => {
                userfault.register(&mapping, REGISTER_MISSING)?;
                let handler = Handler::start(&userfault, |userfault, at| userfault.zero(at))?;
                Prepared::touch(touched, (handler, mapping))
            }
            Case::FileRead | Case::FileWrite => {
                let (file, mut buffer) = (setting.reopen()?, Box::new(Page([0; PAGE])));
                userfault.register(&mapping, REGISTER_MISSING)?;
                let handler = Handler::start(&userfault, move |userfault, at| {
                    rustix::io::pread(&file, &mut buffer.0, (at - start) as u64)?;
                    userfault.copy(at, buffer.0.as_ptr() as usize)
                })?;
                Prepared::touch(touched, (handler, mapping))
            }
            Case::CachedRead => {
                let mut cache = vec![0; pages * PAGE];
                rustix::io::pread(&setting.file, &mut cache, 0)
                    .map_err(|errno| Trouble::system("pread", errno))?;
                userfault.register(&mapping, REGISTER_MISSING)?;
                let handler = Handler::start(&userfault, move |userfault, at| {
                    userfault.copy(at, cache[at - start..].as_ptr() as usize)
                })?;
                Prepared::touch(touched, (handler, mapping))
            }
            Case::SnapshotWrite => {
                touched.fill(pages);
                let copies = Rc::new(Mapping::anonymous(pages, setting.warm)?);
                userfault.register(&mapping, REGISTER_WP)?;
                userfault.write_protect(start, mapping.bytes(), true).map_err(refused)?;
                let to = copies.touched();
                let copy = copies.start() as usize;
                let handler = Handler::start(&userfault, move |userfault, at| {
                    let to = (copy + (at - start)) as *mut u8;
                    // SAFETY: both are whole pages of mappings that outlive the handler. The first is write-protected,
                    // so no thread writes it; only the handler uses the other.
                    unsafe { std::ptr::copy_nonoverlapping(at as *const u8, to, PAGE) };
                    userfault.write_protect(at, PAGE, false)
                })?;
                let kept = Rc::clone(&copies);
                let check = move || {
                    let right = (0..pages).step_by(97).all(|page| to.load(page) == BEFORE);
                    drop(kept);
                    right.then_some(()).ok_or(Trouble::Wrong("a copy shows a later store".into()))
                };
                Prepared { check: Box::new(check), ..Prepared::touch(touched, (handler, copies, mapping)) }
            }
            Case::Snapshot => {
                touched.fill(pages);
                userfault.register(&mapping, REGISTER_WP)?;
                Prepared::call(move || {
                    userfault.write_protect(start, mapping.bytes(), true).map_err(refused)?;
                    Ok((mapping, userfault))
                })
            }
            Case::Discard => {
                touched.fill(pages);
                userfault.register(&mapping, REGISTER_MISSING)?;
                Prepared::call(move || mapping.discard().map(|()| (mapping, userfault)))
            }
        })
    }
}

fn refused(errno: Errno) -> Trouble {
    Trouble::system("ioctl of a userfaultfd", errno)
}

fn range(start: usize, bytes: usize) -> abi::uffdio_range {
    abi::uffdio_range { start: start as u64, len: bytes as u64 }
}

struct Userfault(OwnedFd);

impl Userfault {
    fn open() -> Result<Self, Trouble> {
        let userfault = Self(new_fd()?);
        let features = abi::UFFD_FEATURE_PAGEFAULT_FLAG_WP.into();
        let mut api = abi::uffdio_api { api: abi::UFFD_API.into(), features, ioctls: 0 };
        // SAFETY: UFFDIO_API takes an argument of this type.
        unsafe { userfault.call(ioctl::UFFDIO_API, &mut api) }
            .map_err(|errno| Trouble::system("UFFDIO_API", errno))?;
        Ok(userfault)
    }

    /// # Safety
    /// `operation` takes an argument of this type, and its effect on memory is allowed.
    unsafe fn call<T>(&self, operation: u32, argument: &mut T) -> Result<(), Errno> {
        loop {
            // SAFETY: the caller's guarantee.
            if unsafe { libc::ioctl(self.0.as_raw_fd(), operation as libc::Ioctl, argument as *mut T) } == 0 {
                return Ok(());
            }
            match Errno::from_io_error(&std::io::Error::last_os_error()) {
                Some(Errno::AGAIN | Errno::INTR) => {}
                errno => return Err(errno.unwrap_or(Errno::IO)),
            }
        }
    }

    fn register(&self, mapping: &Mapping, mode: u64) -> Result<(), Trouble> {
        let range = range(mapping.start() as usize, mapping.bytes());
        let mut register = abi::uffdio_register { range, mode, ioctls: 0 };
        // SAFETY: the mapping's own pages, into which there are no references.
        unsafe { self.call(ioctl::UFFDIO_REGISTER, &mut register) }.map_err(refused)
    }

    fn copy(&self, to: usize, from: usize) -> Result<(), Errno> {
        let len = PAGE as u64;
        let mut copy = abi::uffdio_copy { dst: to as u64, src: from as u64, len, mode: 0, copy: 0 };
        // SAFETY: fills an absent page of a mapping into which there are no references.
        unsafe { self.call(ioctl::UFFDIO_COPY, &mut copy) }
    }

    fn zero(&self, to: usize) -> Result<(), Errno> {
        let mut zero = abi::uffdio_zeropage { range: range(to, PAGE), mode: 0, zeropage: 0 };
        // SAFETY: as above.
        unsafe { self.call(ioctl::UFFDIO_ZEROPAGE, &mut zero) }
    }

    fn write_protect(&self, at: usize, bytes: usize, protected: bool) -> Result<(), Errno> {
        let mode = if protected { WRITEPROTECT_WP } else { 0 };
        let mut protect = abi::uffdio_writeprotect { range: range(at, bytes), mode };
        // SAFETY: changes whether stores fault.
        unsafe { self.call(ioctl::UFFDIO_WRITEPROTECT, &mut protect) }
    }
}

/// Opens a userfaultfd by the system call, or by /dev/userfaultfd if this user may only use that.
fn new_fd() -> Result<OwnedFd, Trouble> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: a new descriptor, which does nothing until memory is registered.
    if let Ok(fd) = unsafe { rustix::mm::userfaultfd(flags) } {
        return Ok(fd);
    }
    let device = rustix::fs::open("/dev/userfaultfd", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Trouble::system("userfaultfd, and open of /dev/userfaultfd", errno))?;
    // SAFETY: USERFAULTFD_IOC_NEW, _IO(0xaa, 0), takes flags by value and returns a new descriptor.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), 0xaa00, flags.bits()) };
    if fd < 0 {
        return Err(Trouble::last("/dev/userfaultfd"));
    }
    // SAFETY: the descriptor was just made, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The handler thread. Dropping stops and joins it.
struct Handler {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Handler {
    /// Starts the thread, which calls `answer` with the address of each page that is touched.
    fn start(
        userfault: &Arc<Userfault>,
        answer: impl FnMut(&Userfault, usize) -> Result<(), Errno> + Send + 'static,
    ) -> Result<Self, Trouble> {
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Trouble::system("eventfd", errno))?;
        let stop = Arc::new(stop);
        let (userfault, told) = (Arc::clone(userfault), Arc::clone(&stop));
        let run = move || {
            if let Err(errno) = serve(&userfault, &told, answer) {
                // The process exits here, since threads would wait for ever.
                eprintln!("price: the bare handler: {errno}");
                std::process::exit(1);
            }
        };
        let thread = std::thread::Builder::new().name("bare-faults".into()).spawn(run)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

fn serve(
    userfault: &Userfault,
    stop: &OwnedFd,
    mut answer: impl FnMut(&Userfault, usize) -> Result<(), Errno>,
) -> Result<(), Errno> {
    const MESSAGE: usize = size_of::<abi::uffd_msg>();
    let mut buffer = [0; EVENTS * MESSAGE];
    loop {
        let mut sources = [PollFd::new(&userfault.0, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        poll(&mut sources, None)?;
        if sources[1].revents().contains(PollFlags::IN) {
            return Ok(());
        }
        let bytes = match rustix::io::read(&userfault.0, &mut buffer) {
            Err(Errno::AGAIN) => 0,
            bytes => bytes?,
        };
        for message in buffer[..bytes].chunks_exact(MESSAGE) {
            // SAFETY: a whole message of plain numbers; its alignment does not matter. Only page-fault events were
            // enabled.
            let address =
                unsafe { message.as_ptr().cast::<abi::uffd_msg>().read_unaligned().arg.pagefault.address };
            answer(userfault, address as usize & !(PAGE - 1))?;
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
