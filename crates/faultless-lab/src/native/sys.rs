//! System calls and accesses that Rust cannot check. This is the only module of this crate with unsafe code.
//!
//! Scenarios map in an address window of their own, which has no heap, no stack and no library. So an access in the
//! window, mapped or not, harms no Rust object: it succeeds, or a signal ends the process. The functions refuse
//! addresses outside the window. Inside it, memory is read and written only by atomic operations and by the kernel.
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

/// Address window in which scenarios map. It is below all addresses that x86-64 and arm64 (48 bits) choose by
/// themselves. It is above code that is linked at a fixed address, and above the range that AddressSanitizer uses.
pub const WINDOW: Range<u64> = 0x2000_0000_0000..0x5000_0000_0000;

type Page64 = [u64; PAGE_SIZE as usize / 8];

/// Returns a pointer to `start`. Fails if a part of the range lies outside the window.
fn check(start: VirtAddr, bytes: u64) -> io::Result<*mut c_void> {
    let end = start.get().checked_add(bytes).ok_or(Errno::FAULT)?;
    if start.get() >= WINDOW.start && end <= WINDOW.end {
        Ok(std::ptr::without_provenance_mut(start.get() as usize))
    } else {
        Err(Errno::FAULT.into())
    }
}

/// Returns a pointer to the aligned word at an address of the window.
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

/// Maps a free range of the window (mmap). Without a file, the mapping is anonymous and private. Fails with EEXIST if
/// the range is not free.
pub fn map(
    start: VirtAddr,
    bytes: u64,
    protection: Protection,
    file: Option<(BorrowedFd<'_>, Sharing)>,
) -> io::Result<()> {
    let (place, length) = (check(start, bytes)?, bytes as usize);
    // No memory is reserved: a scenario maps a terabyte and uses little of it.
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
    // A kernel before 4.17 takes the address as a hint.
    if mapped.addr() as u64 != start.get() {
        // SAFETY: this call has just mapped the range, and no other code knows it.
        unsafe { mm::munmap(mapped, length) }?;
        return Err(Errno::NOSYS.into());
    }
    // Accesses make their pointers from numbers.
    let _ = mapped.expose_provenance();
    Ok(())
}

/// Unmaps a range of the window (munmap).
pub fn unmap(start: VirtAddr, bytes: u64) -> io::Result<()> {
    let place = check(start, bytes)?;
    // SAFETY: in the window, where no Rust object is.
    Ok(unsafe { mm::munmap(place, bytes as usize) }?)
}

/// Changes the rights of a range of the window (mprotect).
pub fn protect(start: VirtAddr, bytes: u64, protection: Protection) -> io::Result<()> {
    let place = check(start, bytes)?;
    let flags = MprotectFlags::from_bits_retain(rights(protection).bits());
    // SAFETY: in the window, where no Rust object is.
    Ok(unsafe { mm::mprotect(place, bytes as usize, flags) }?)
}

/// Gives advice for a range of the window (madvise).
pub fn advise(start: VirtAddr, bytes: u64, advice: Advice) -> io::Result<()> {
    let place = check(start, bytes)?;
    // SAFETY: in the window, where no Rust object is. The advice can drop only data of the scenario.
    Ok(unsafe { mm::madvise(place, bytes as usize, advice) }?)
}

/// Returns which pages of a mapping in the window are in memory (mincore).
pub fn resident(start: VirtAddr, bytes: u64) -> io::Result<Vec<bool>> {
    let place = check(start, bytes)?;
    let mut pages = vec![0_u8; bytes.div_ceil(PAGE_SIZE) as usize];
    // SAFETY: the call writes one byte for each page of the range.
    let done = unsafe { libc::mincore(place, bytes as usize, pages.as_mut_ptr().cast()) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(pages.into_iter().map(|byte| byte & 1 != 0).collect())
}

/// Loads an aligned word.
#[inline]
pub fn load(at: VirtAddr) -> io::Result<u64> {
    let word = word(at)?;
    // SAFETY: aligned and in the window. All accesses to this memory are atomic, or a signal ends the process.
    let value = unsafe { AtomicU64::from_ptr(word) }.load(Ordering::Relaxed);
    Ok(black_box(value))
}

/// Stores an aligned word.
#[inline]
pub fn store(at: VirtAddr, value: u64) -> io::Result<()> {
    let word = word(at)?;
    // SAFETY: as in `load`.
    unsafe { AtomicU64::from_ptr(word) }.store(value, Ordering::Relaxed);
    Ok(())
}

/// Loads a whole page.
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

/// Writes the word at an address to a descriptor (write(2)). The kernel loads it.
pub fn write_word(to: BorrowedFd<'_>, at: VirtAddr) -> io::Result<usize> {
    let word = word(at)?;
    // SAFETY: the kernel reads eight bytes of the window, or returns EFAULT.
    moved(unsafe { libc::write(to.as_raw_fd(), word.cast(), 8) })
}

/// Reads from a descriptor into the word at an address (read(2)). The kernel stores it.
pub fn read_word(from: BorrowedFd<'_>, at: VirtAddr) -> io::Result<usize> {
    let word = word(at)?;
    // SAFETY: the kernel writes eight bytes of the window, where no Rust object is, or returns EFAULT.
    moved(unsafe { libc::read(from.as_raw_fd(), word.cast(), 8) })
}

fn moved(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Numbers of faults of a thread or of a process so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Faults that needed no read.
    pub minor: u64,
    /// Faults that waited for a read.
    pub major: u64,
}

/// Returns the faults of the calling thread.
pub fn thread_faults() -> Faults {
    faults(libc::RUSAGE_THREAD)
}

/// Returns the faults of this process and of its children that were waited for. The engine counts both too.
pub fn process_faults() -> Faults {
    let (own, children) = (faults(libc::RUSAGE_SELF), faults(libc::RUSAGE_CHILDREN));
    Faults { minor: own.minor + children.minor, major: own.major + children.major }
}

fn faults(who: libc::c_int) -> Faults {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel fills the structure. All zeros are a valid value of it too.
    let usage = unsafe {
        libc::getrusage(who, usage.as_mut_ptr());
        usage.assume_init()
    };
    Faults { minor: usage.ru_minflt as u64, major: usage.ru_majflt as u64 }
}

/// Gives the calling thread real-time priority, so that it runs before all ordinary threads. Its children of fork are
/// ordinary again.
pub fn go_before_others() -> io::Result<()> {
    // SAFETY: zero names the calling thread. The kernel only reads the parameter.
    let done = unsafe {
        let lowest = libc::sched_param { sched_priority: 1 };
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const lowest)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Forbids huge pages in this process, because the engine has none either.
pub fn forbid_huge_pages() -> io::Result<()> {
    // SAFETY: the call changes only a flag of this process.
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

/// Forks. The child has only the calling thread. It runs `child`, and exits with its result, or with 101 if it panics.
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the child never returns from here. Its memory is a copy of the parent's at one moment, and glibc repairs
    // its allocator. A lock that another thread held stays locked in the child. The child may hang on it, but nothing
    // worse can happen.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: this ends the child without the exit handlers that the parent has registered.
            unsafe { libc::_exit(code) }
        }
        pid => Pid::from_raw(pid).ok_or_else(|| Errno::SRCH.into()),
    }
}

/// Page that a store is filling. The transfer uses its memory until the completion takes it back.
struct OnTheWay(NonNull<Page>);

// SAFETY: the pointer comes from a Box, and only one `OnTheWay` is made from it.
unsafe impl Send for OnTheWay {}

impl OnTheWay {
    fn into_page(self) -> Box<Page> {
        // SAFETY: the pointer comes from a Box, this is called once, and the transfer that used the page has ended.
        unsafe { Box::from_raw(self.0.as_ptr()) }
    }
}

/// Starts reading the page at `offset` of a store. `done` receives it, on any thread, perhaps before this returns.
pub fn submit_read(
    store: &dyn Store,
    offset: u64,
    done: impl FnOnce(Result<usize, StoreError>, &Page) + Send + 'static,
) {
    let memory = NonNull::from(Box::leak(Box::new([0; PAGE_SIZE as usize])));
    let page = OnTheWay(memory);
    let completion = Box::new(move |result| done(result, &page.into_page()));
    // SAFETY: no other code knows the page. The completion is called once, as the last user, and takes it back.
    store.submit(unsafe { Transfer::new(Direction::Read, offset, memory.cast(), completion) });
}
