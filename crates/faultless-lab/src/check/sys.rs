//! The system calls of the oracle, and its accesses: with `native::sys` the only unsafe code of this crate.
//!
//! Everything happens in the window, where nothing of the program is. A call that would reach further is refused here,
//! unless the kernel is sure to refuse it: such calls are part of the check.
#![allow(unsafe_code)]

use super::operation::{At, HEAP, Length, Move, PAGES, Place, Rights, WINDOW, With};
use super::step::{Caught, Outcome};
use faultless::address::PAGE_SIZE;
use faultless_linux::access::{self, Signal};
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::without_provenance_mut;

/// No processor has addresses of so many bytes.
const NOWHERE: u64 = 1 << 57;

/// The place of a call that changes memory: in the window, or refused by every kernel.
fn place(at: At, length: Length) -> *mut c_void {
    let inside = at.0.checked_add(length.0).is_some_and(|end| end.div_ceil(PAGE_SIZE) <= PAGES);
    let refused = !at.0.is_multiple_of(PAGE_SIZE) || length.0 == 0 || length.0 >= NOWHERE;
    assert!(inside || refused, "{length} at {at} reach out of the window");
    without_provenance_mut(at.address() as usize)
}

fn done(result: i32) -> Result<u64, i32> {
    if result == 0 { Ok(0) } else { Err(errno()) }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(-1)
}

/// mmap, of zeros or of a file from byte `offset` on. What goes anywhere is unmapped again.
pub fn map(
    (at, length): (At, Length),
    rights: Rights,
    (shared, file): (bool, Option<(BorrowedFd<'_>, u64)>),
    how: Place,
    with: With,
) -> Result<u64, i32> {
    let mut flags = match how {
        Place::Fixed => libc::MAP_FIXED,
        Place::NoReplace => libc::MAP_FIXED_NOREPLACE,
        Place::Anywhere => 0,
    };
    flags |= if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    flags |= with.iter().fold(0, |flags, flag| {
        flags
            | match flag {
                With::POPULATE => libc::MAP_POPULATE,
                With::LOCKED => libc::MAP_LOCKED,
                With::NORESERVE => libc::MAP_NORESERVE,
                _ => libc::MAP_GROWSDOWN,
            }
    });
    let wanted = if how == Place::Anywhere { std::ptr::null_mut() } else { place(at, length) };
    let (descriptor, offset) = match file {
        None => {
            flags |= libc::MAP_ANONYMOUS;
            (-1, 0)
        }
        Some((file, offset)) => (file.as_raw_fd(), offset),
    };
    // SAFETY: new pages in the window, or where nothing is; the system call's own number of arguments and their types,
    // which libc's function cannot have: an offset may be too large for its type.
    let mapped = unsafe {
        libc::syscall(
            libc::SYS_mmap,
            wanted,
            length.0 as usize,
            i32::from(rights.0),
            flags,
            descriptor,
            offset as usize,
        )
    };
    match mapped {
        -1 => Err(errno()),
        mapped if how == Place::Anywhere => {
            // SAFETY: what this call has just mapped, and nobody knows.
            done(unsafe { libc::munmap(without_provenance_mut(mapped as usize), length.0 as usize) })
        }
        mapped => Ok(mapped as u64),
    }
}

/// munmap.
pub fn unmap(at: At, length: Length) -> Result<u64, i32> {
    // SAFETY: in the window, where no Rust object is.
    done(unsafe { libc::munmap(place(at, length), length.0 as usize) })
}

/// mprotect, with PROT_GROWSDOWN perhaps.
pub fn protect(at: At, length: Length, rights: Rights, down: bool) -> Result<u64, i32> {
    let rights = i32::from(rights.0) | if down { libc::PROT_GROWSDOWN } else { 0 };
    // SAFETY: in the window, where no Rust object is.
    done(unsafe { libc::mprotect(place(at, length), length.0 as usize, rights) })
}

/// mremap. What goes out of the window is unmapped again.
pub fn remap(at: At, length: Length, new_length: Length, moves: Move) -> Result<u64, i32> {
    let (flags, to) = match moves {
        Move::No => (0, at),
        Move::May => (libc::MREMAP_MAYMOVE, at),
        Move::To(to) => (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, to),
        Move::Leaving(to) => (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP, to),
    };
    // SAFETY: in the window, where no Rust object is; or where nothing is.
    let mapped = unsafe {
        libc::mremap(
            place(at, length),
            length.0 as usize,
            new_length.0 as usize,
            flags,
            place(to, new_length),
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(errno());
    }
    match mapped.addr() as u64 {
        inside if (WINDOW..WINDOW + PAGES * PAGE_SIZE).contains(&inside) => Ok(inside),
        _ => {
            // SAFETY: what this call has just mapped, and nobody knows.
            done(unsafe { libc::munmap(mapped, new_length.0 as usize) }).map(|_| Outcome::ELSEWHERE)
        }
    }
}

/// Where this process's heap was when it began: `struct prctl_mm_map`, as far as it changes.
#[derive(Clone, Copy, Debug)]
pub struct Heap(MemoryMap);

/// `struct prctl_mm_map` of linux/prctl.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct MemoryMap {
    /// The code, the data: start and end of each.
    segments: [u64; 4],
    heap_start: u64,
    heap_end: u64,
    stack_start: u64,
    /// The arguments, the environment: start and end of each.
    strings: [u64; 4],
    auxv: u64,
    auxv_size: u32,
    executable: u32,
}

impl Heap {
    /// As /proc/self/stat has it.
    ///
    /// # Errors
    /// It cannot be read, or this kernel lets nobody set it.
    pub fn of_this_process() -> io::Result<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let behind_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let numbers: Vec<u64> = behind_name.split(' ').map(|word| word.trim().parse().unwrap_or(0)).collect();
        // Fields as proc(5) counts them, from 1; the first two are cut off.
        let field = |number: usize| numbers.get(number - 3).copied().unwrap_or(0);
        let heap_start = field(47);
        let map = MemoryMap {
            segments: [field(26), field(27), field(45), field(46)],
            heap_start,
            heap_end: heap_start,
            stack_start: field(28),
            strings: [field(48), field(49), field(50), field(51)],
            auxv: 0,
            auxv_size: 0,
            executable: u32::MAX,
        };
        Ok(Self(map))
    }

    /// brk, of a heap in the window that ends at `end`; the process has its own one back afterwards.
    ///
    /// # Errors
    /// This kernel lets nobody set where the heap is.
    pub fn set_break(&self, end: At, to: At) -> io::Result<u64> {
        // SAFETY: asks where the break is.
        let own = unsafe { libc::syscall(libc::SYS_brk, 0) } as u64;
        self.become_heap(At::page(HEAP).address(), end.address())?;
        assert!(to.0 <= PAGES * PAGE_SIZE, "a heap up to {to}, out of the window");
        // SAFETY: pages of the window come and go, where no Rust object is.
        let new = unsafe { libc::syscall(libc::SYS_brk, to.address() as usize) } as u64;
        self.become_heap(self.0.heap_start, own)?;
        Ok(new)
    }

    fn become_heap(&self, heap_start: u64, heap_end: u64) -> io::Result<()> {
        let map = MemoryMap { heap_start, heap_end, ..self.0 };
        // SAFETY: the kernel reads this structure, whose size it knows. It maps and unmaps nothing.
        let set = unsafe {
            libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, &raw const map, size_of::<MemoryMap>(), 0)
        };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// mlock, or mlock2 with MLOCK_ONFAULT. As its siblings below without the C library's function: AddressSanitizer has functions
/// of its own for some, which do nothing.
pub fn lock(at: At, length: Length, on_fault: bool) -> Result<u64, i32> {
    let flags = if on_fault { libc::MLOCK_ONFAULT } else { 0 };
    // SAFETY: in the window; nothing changes but what stays in memory.
    done(unsafe { libc::mlock2(place(at, length), length.0 as usize, flags) })
}

/// munlock.
pub fn unlock(at: At, length: Length) -> Result<u64, i32> {
    // SAFETY: as `lock`.
    done(unsafe { libc::syscall(libc::SYS_munlock, place(at, length), length.0 as usize) } as i32)
}

/// mlockall.
pub fn lock_all(flags: u8) -> Result<u64, i32> {
    // SAFETY: as `lock`.
    done(unsafe { libc::syscall(libc::SYS_mlockall, libc::c_int::from(flags)) } as i32)
}

/// munlockall.
pub fn unlock_all() -> Result<u64, i32> {
    // SAFETY: as `lock`.
    done(unsafe { libc::syscall(libc::SYS_munlockall) } as i32)
}

/// msync.
pub fn sync(at: At, length: Length, flags: u8) -> Result<u64, i32> {
    // SAFETY: no memory changes.
    done(unsafe { libc::msync(place(at, length), length.0 as usize, flags.into()) })
}

/// sync_file_range of all of a file: waits for writes of before, starts to write what is dirty, and does not wait for that.
pub fn start_sync(file: &File) -> Result<u64, i32> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: no memory changes.
    done(unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) })
}

/// mincore.
pub fn resident(at: At, length: Length) -> Result<Vec<bool>, i32> {
    let pages = length.0.min(PAGES * PAGE_SIZE).div_ceil(PAGE_SIZE);
    let mut answers = vec![0_u8; pages as usize];
    // SAFETY: a byte for each page of a range that is not refused.
    done(unsafe { libc::mincore(place(at, length), length.0 as usize, answers.as_mut_ptr()) })?;
    Ok(answers.into_iter().map(|answer| answer & 1 != 0).collect())
}

/// mseal.
pub fn seal(at: At, length: Length) -> Result<u64, i32> {
    // SAFETY: the rights of the window become fast, no memory changes.
    done(unsafe { libc::syscall(libc::SYS_mseal, place(at, length), length.0 as usize, 0_usize) } as i32)
}

/// What process_vm_readv and process_vm_writev are told: one piece here, one there.
fn pieces(bytes: &mut [u8], at: At) -> [libc::iovec; 2] {
    let iov_len = bytes.len();
    [
        libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len },
        libc::iovec { iov_base: without_provenance_mut(at.address() as usize), iov_len },
    ]
}

/// process_vm_readv of this process.
pub fn read_remote(at: At, bytes: &mut [u8]) -> Result<usize, i32> {
    let [here, there] = pieces(bytes, at);
    // SAFETY: the kernel writes these bytes.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &here, 1, &there, 1, 0) };
    usize::try_from(read).map_err(|_| errno())
}

/// process_vm_writev of this process.
pub fn write_remote(at: At, bytes: &mut [u8]) -> Result<u64, i32> {
    assert!(at.0 + bytes.len() as u64 <= PAGES * PAGE_SIZE, "a write at {at}, out of the window");
    let [here, there] = pieces(bytes, at);
    // SAFETY: in the window, where no Rust object is.
    let written = unsafe { libc::process_vm_writev(libc::getpid(), &here, 1, &there, 1, 0) };
    u64::try_from(written).map_err(|_| errno())
}

/// madvise.
pub fn advise(at: At, length: Length, advice: i32) -> Result<u64, i32> {
    // It goes on behind holes: up to the stack.
    assert!(length.0 < NOWHERE || at.address().checked_add(length.0).is_none(), "madvise of all memory");
    // SAFETY: in the window, where no Rust object is.
    done(unsafe { libc::madvise(place(at, length), length.0 as usize, advice) })
}

/// Where an access goes: the window and the page behind it.
fn pointer<T>(at: At) -> *mut T {
    assert!(at.0 + 8 <= (PAGES + 1) * PAGE_SIZE, "an access at {at}, out of the window");
    without_provenance_mut(at.address() as usize)
}

fn caught(signal: Signal) -> Caught {
    let at = At((signal.address as u64).wrapping_sub(WINDOW));
    Caught { number: signal.number, code: signal.code, at }
}

/// Loads an aligned word.
pub fn load(at: At) -> Result<u64, Caught> {
    // SAFETY: in the window, where no Rust object is.
    unsafe { access::load_u64(pointer(at)) }.map_err(caught)
}

/// Loads a byte.
pub fn load_byte(at: At) -> Result<u64, Caught> {
    // SAFETY: in the window, where no Rust object is.
    unsafe { access::load_u8(pointer(at)) }.map(u64::from).map_err(caught)
}

/// Stores an aligned word.
pub fn store(at: At, value: u64) -> Result<u64, Caught> {
    // SAFETY: in the window, where no Rust object is.
    unsafe { access::store_u64(pointer(at), value) }.map(|()| 0).map_err(caught)
}

/// Stores a byte.
pub fn store_byte(at: At, value: u8) -> Result<u64, Caught> {
    // SAFETY: in the window, where no Rust object is.
    unsafe { access::store_u8(pointer(at), value) }.map(|()| 0).map_err(caught)
}

/// Adds to an aligned word.
pub fn add(at: At, value: u64) -> Result<u64, Caught> {
    // SAFETY: in the window, where no Rust object is.
    unsafe { access::fetch_add_u64(pointer(at), value) }.map_err(caught)
}

/// Loads bytes; how many there were before the signal.
pub fn read(at: At, into: &mut [u8]) -> Result<(), (usize, Caught)> {
    assert!(at.0 + into.len() as u64 <= (PAGES + 1) * PAGE_SIZE, "a read at {at}, out of the window");
    // SAFETY: in the window, where no Rust object is.
    let read = unsafe { access::read(pointer(at), into) };
    read.map_err(|interrupted| (interrupted.done, caught(interrupted.signal)))
}

/// What the kernel knows of a mapping: `struct procmap_query` of Linux 6.11, as far as it is asked.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Mapping {
    size: u64,
    query_flags: u64,
    query_address: u64,
    /// Its first address.
    pub start: u64,
    /// The address behind its last.
    pub end: u64,
    /// Read, write, execute, shared: bits 0 to 3.
    pub flags: u64,
    page_size: u64,
    /// The byte of the file that it begins with.
    pub offset: u64,
    /// The file's number; zero if there is none.
    pub inode: u64,
    device_major: u32,
    device_minor: u32,
    name_size: u32,
    build_id_size: u32,
    name_address: u64,
    build_id_address: u64,
}

const _: () = assert!(size_of::<Mapping>() == 104);

/// The mapping at an address, or the next one: PROCMAP_QUERY.
///
/// # Errors
/// ENOTTY before Linux 6.11.
pub fn mapping_from(maps: &File, address: u64) -> io::Result<Option<Mapping>> {
    const COVERING_OR_NEXT: u64 = 0x10;
    const PROCMAP_QUERY: u64 = 3 << 30 | (size_of::<Mapping>() as u64) << 16 | (b'f' as u64) << 8 | 17;
    let mut mapping = Mapping {
        size: size_of::<Mapping>() as u64,
        query_flags: COVERING_OR_NEXT,
        query_address: address,
        ..Mapping::default()
    };
    // SAFETY: the kernel reads and writes this structure, whose size it knows.
    match unsafe { libc::ioctl(maps.as_raw_fd(), PROCMAP_QUERY as _, &raw mut mapping) } {
        0 => Ok(Some(mapping)),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            error => Err(error),
        },
    }
}
