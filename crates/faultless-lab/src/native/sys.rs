//! The system calls and accesses that Rust cannot check: the only module of this crate with unsafe code.
//!
//! What a scenario maps lies in a window of addresses of its own, where nothing of the program is: no heap, no stack,
//! no library. So an access anywhere in the window, mapped or not, harms nothing that Rust knows; it works, or a signal
//! ends the process. What is outside the window is refused here. Inside it, memory is read and written by atomic
//! operations and by the kernel only.
#![allow(unsafe_code)]

use crate::scenarios::Page;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::protection::{Protection, Sharing};
use faultless::store::{Direction, Store, StoreError, Transfer};
use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};
use rustix::process::Pid;
use std::ffi::{CStr, c_void};
use std::hint::black_box;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where scenarios map: below everything that x86-64 and arm64 (48 bits) place by themselves, above what is linked at
/// a fixed address, and above what AddressSanitizer keeps for itself.
pub const WINDOW: Range<u64> = 0x2000_0000_0000..0x5000_0000_0000;

type Page64 = [u64; PAGE_SIZE as usize / 8];

/// Whether all of a range lies in the window.
fn check(start: VirtAddr, bytes: u64) -> io::Result<*mut c_void> {
    let end = start.get().checked_add(bytes).ok_or(Errno::FAULT)?;
    if start.get() >= WINDOW.start && end <= WINDOW.end {
        Ok(std::ptr::without_provenance_mut(start.get() as usize))
    } else {
        Err(Errno::FAULT.into())
    }
}

/// The word at an address of the window.
fn word(at: VirtAddr) -> io::Result<*mut u64> {
    let place: *mut u64 = check(at, 8)?.cast();
    if place.is_aligned() {
        Ok(std::ptr::with_exposed_provenance_mut(place.addr()))
    } else {
        Err(Errno::FAULT.into())
    }
}

fn rights(protection: Protection) -> ProtFlags {
    let mut flags = ProtFlags::empty();
    flags.set(ProtFlags::READ, protection.intersects(Protection::READ | Protection::WRITE));
    flags.set(ProtFlags::WRITE, protection.contains(Protection::WRITE));
    flags.set(ProtFlags::EXEC, protection.contains(Protection::EXECUTE));
    flags
}

/// mmap at a free place of the window, anonymous and private if there is no file; EEXIST if it is not free.
pub fn map(
    start: VirtAddr,
    bytes: u64,
    protection: Protection,
    file: Option<(BorrowedFd<'_>, Sharing)>,
) -> io::Result<()> {
    let (place, length) = (check(start, bytes)?, bytes as usize);
    // Without a reserve: a scenario maps a terabyte and uses little of it.
    let fixed = MapFlags::FIXED_NOREPLACE | MapFlags::NORESERVE;
    // SAFETY: new pages in the window, where no Rust object is.
    let mapped = unsafe {
        match file {
            None => mm::mmap_anonymous(place, length, rights(protection), MapFlags::PRIVATE | fixed),
            Some((file, Sharing::Private)) => {
                mm::mmap(place, length, rights(protection), MapFlags::PRIVATE | fixed, file, 0)
            }
            Some((file, Sharing::Shared)) => {
                mm::mmap(place, length, rights(protection), MapFlags::SHARED | fixed, file, 0)
            }
        }
    }?;
    // A kernel before 4.17 takes the place as a hint.
    if mapped.addr() as u64 != start.get() {
        // SAFETY: what this call has just mapped, and nobody knows.
        unsafe { mm::munmap(mapped, length) }?;
        return Err(Errno::NOSYS.into());
    }
    // Accesses make their pointers from numbers.
    let _ = mapped.expose_provenance();
    Ok(())
}

/// munmap in the window.
pub fn unmap(start: VirtAddr, bytes: u64) -> io::Result<()> {
    let place = check(start, bytes)?;
    // SAFETY: in the window, where no Rust object is.
    Ok(unsafe { mm::munmap(place, bytes as usize) }?)
}

/// mprotect in the window.
pub fn protect(start: VirtAddr, bytes: u64, protection: Protection) -> io::Result<()> {
    let place = check(start, bytes)?;
    let flags = MprotectFlags::from_bits_retain(rights(protection).bits());
    // SAFETY: in the window, where no Rust object is.
    Ok(unsafe { mm::mprotect(place, bytes as usize, flags) }?)
}

/// madvise in the window.
pub fn advise(start: VirtAddr, bytes: u64, advice: Advice) -> io::Result<()> {
    let place = check(start, bytes)?;
    // SAFETY: in the window, where no Rust object is; whatever the advice drops there is the scenario's own.
    Ok(unsafe { mm::madvise(place, bytes as usize, advice) }?)
}

/// Which pages of a mapping of the window are in memory: mincore.
pub fn resident(start: VirtAddr, bytes: u64) -> io::Result<Vec<bool>> {
    let place = check(start, bytes)?;
    let mut pages = vec![0_u8; bytes.div_ceil(PAGE_SIZE) as usize];
    // SAFETY: one byte a page of the range is written.
    let done = unsafe { libc::mincore(place, bytes as usize, pages.as_mut_ptr().cast()) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(pages.into_iter().map(|byte| byte & 1 != 0).collect())
}

/// A load of an aligned word.
#[inline]
pub fn load(at: VirtAddr) -> io::Result<u64> {
    let word = word(at)?;
    // SAFETY: aligned and in the window: memory that is accessed by atomics alone, or a signal.
    let value = unsafe { AtomicU64::from_ptr(word) }.load(Ordering::Relaxed);
    Ok(black_box(value))
}

/// A store of an aligned word.
#[inline]
pub fn store(at: VirtAddr, value: u64) -> io::Result<()> {
    let word = word(at)?;
    // SAFETY: as in `load`.
    unsafe { AtomicU64::from_ptr(word) }.store(value, Ordering::Relaxed);
    Ok(())
}

/// All of a page.
pub fn read_page(start: VirtAddr, page: &mut Page) -> io::Result<()> {
    let words: *mut Page64 = check(start, PAGE_SIZE)?.cast();
    if start.offset_in_page() != 0 {
        return Err(Errno::FAULT.into());
    }
    let first: *mut u64 = std::ptr::with_exposed_provenance_mut(words.addr());
    for (i, bytes) in page.chunks_exact_mut(8).enumerate() {
        // SAFETY: as in `load`; the page is aligned, and `i` is below its 512 words.
        let value = unsafe { AtomicU64::from_ptr(first.add(i)) }.load(Ordering::Relaxed);
        bytes.copy_from_slice(&value.to_ne_bytes());
    }
    Ok(())
}

/// write(2) of the word at an address: the kernel loads it.
pub fn write_word(to: BorrowedFd<'_>, at: VirtAddr) -> io::Result<usize> {
    let word = word(at)?;
    // SAFETY: the kernel reads eight bytes of the window, or says EFAULT.
    moved(unsafe { libc::write(to.as_raw_fd(), word.cast(), 8) })
}

/// read(2) into the word at an address: the kernel stores it.
pub fn read_word(from: BorrowedFd<'_>, at: VirtAddr) -> io::Result<usize> {
    let word = word(at)?;
    // SAFETY: the kernel writes eight bytes of the window, where no Rust object is, or says EFAULT.
    moved(unsafe { libc::read(from.as_raw_fd(), word.cast(), 8) })
}

fn moved(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Faults of a thread or of a process so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Those that needed no read.
    pub minor: u64,
    /// Those that waited for one.
    pub major: u64,
}

/// The calling thread's faults.
pub fn thread_faults() -> Faults {
    faults(libc::RUSAGE_THREAD)
}

/// The faults of all threads of this process, and of its children of fork that were waited for: the engine counts
/// both too.
pub fn process_faults() -> Faults {
    let (own, children) = (faults(libc::RUSAGE_SELF), faults(libc::RUSAGE_CHILDREN));
    Faults { minor: own.minor + children.minor, major: own.major + children.major }
}

fn faults(who: libc::c_int) -> Faults {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel fills the structure, of which all zeros are a value too.
    let usage = unsafe {
        libc::getrusage(who, usage.as_mut_ptr());
        usage.assume_init()
    };
    Faults { minor: usage.ru_minflt as u64, major: usage.ru_majflt as u64 }
}

/// Puts the calling thread into the class of real-time threads, which run before all others. Its children of fork are
/// ordinary again.
pub fn go_before_others() -> io::Result<()> {
    // SAFETY: zero names the caller; the parameter is read only.
    let done = unsafe {
        let lowest = libc::sched_param { sched_priority: 1 };
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const lowest)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// No huge pages in this process: the engine has none either.
pub fn forbid_huge_pages() -> io::Result<()> {
    // SAFETY: a flag of this process.
    match unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the filter of a perf event.
pub fn set_filter(event: &impl AsRawFd, filter: &CStr) -> io::Result<()> {
    // Number 6 of the ioctls of '$', which takes a pointer; see perf_event_open(2).
    const PERF_EVENT_IOC_SET_FILTER: u32 = (1 << 30) | (size_of::<usize>() as u32) << 16 | 0x2406;
    // SAFETY: the kernel copies the string.
    let done = unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_SET_FILTER as _, filter.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// fork. The child has the calling thread only; it runs `child`, and exits with what that returns, or 101 if it panics.
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the child never returns from here. Memory is a copy of the parent's at one moment, and glibc sets its
    // allocator right. A lock that another thread held stays locked in the child for ever: it may hang on that, no worse.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: ends the child without what the parent has registered for its own exit.
            unsafe { libc::_exit(code) }
        }
        pid => Pid::from_raw(pid).ok_or_else(|| Errno::SRCH.into()),
    }
}

/// A page on its way out of a store: the transfer's memory, until its completion takes it back.
struct OnTheWay(NonNull<Page>);

// SAFETY: the pointer came out of a Box, and only one of these is made from it.
unsafe impl Send for OnTheWay {}

impl OnTheWay {
    fn into_page(self) -> Box<Page> {
        // SAFETY: it came out of a Box, once; the transfer that used it has ended.
        unsafe { Box::from_raw(self.0.as_ptr()) }
    }
}

/// Starts reading the page at `offset` of a store; `done` gets it on any thread, or before this returns.
pub fn submit_read(
    store: &dyn Store,
    offset: u64,
    done: impl FnOnce(Result<usize, StoreError>, &Page) + Send + 'static,
) {
    let memory = NonNull::from(Box::leak(Box::new([0; PAGE_SIZE as usize])));
    let page = OnTheWay(memory);
    let completion = Box::new(move |result| done(result, &page.into_page()));
    // SAFETY: a page that nobody else knows, and that the completion, called once and last, takes back.
    store.submit(unsafe { Transfer::new(Direction::Read, offset, memory.cast(), completion) });
}
