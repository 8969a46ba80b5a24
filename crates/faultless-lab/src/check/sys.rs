//! System calls and accesses of the oracle. With `native::sys` this is the only module of this crate with unsafe code.
//!
//! All calls work in the window, which has nothing of the program in it. A call that would reach further is refused
//! here, unless every kernel refuses it. Such calls are part of the check.
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

/// Length that reaches past the address space of every processor.
const NOWHERE: u64 = 1 << 57;

/// Returns a pointer for a call that changes memory. The range lies in the window, or every kernel refuses it.
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

/// Maps anonymous memory, or a file from byte `offset` on (mmap). A mapping that may go anywhere is unmapped again.
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
    // SAFETY: the new pages lie in the window, or where nothing is mapped. The arguments have the number and types of
    // the system call. libc's function does not fit: an offset may be too large for its type.
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
            // SAFETY: this call has just mapped the range, and no other code knows it.
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

/// mprotect, optionally with PROT_GROWSDOWN.
pub fn protect(at: At, length: Length, rights: Rights, down: bool) -> Result<u64, i32> {
    let rights = i32::from(rights.0) | if down { libc::PROT_GROWSDOWN } else { 0 };
    // SAFETY: in the window, where no Rust object is.
    done(unsafe { libc::mprotect(place(at, length), length.0 as usize, rights) })
}

/// mremap. A mapping that leaves the window is unmapped again.
pub fn remap(at: At, length: Length, new_length: Length, moves: Move) -> Result<u64, i32> {
    let (flags, to) = match moves {
        Move::No => (0, at),
        Move::May => (libc::MREMAP_MAYMOVE, at),
        Move::To(to) => (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, to),
        Move::Leaving(to) => (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP, to),
    };
    // SAFETY: in the window, where no Rust object is, or where nothing is mapped.
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
            // SAFETY: this call has just mapped the range, and no other code knows it.
            done(unsafe { libc::munmap(mapped, new_length.0 as usize) }).map(|_| Outcome::ELSEWHERE)
        }
    }
}

/// The process's own heap at its start, as fields of `struct prctl_mm_map`.
#[derive(Clone, Copy, Debug)]
pub struct Heap(MemoryMap);

/// `struct prctl_mm_map` of linux/prctl.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct MemoryMap {
    /// Start and end of the code, then of the data.
    segments: [u64; 4],
    heap_start: u64,
    heap_end: u64,
    stack_start: u64,
    /// Start and end of the arguments, then of the environment.
    strings: [u64; 4],
    auxv: u64,
    auxv_size: u32,
    executable: u32,
}

impl Heap {
    /// Reads the position of the heap from /proc/self/stat.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of_this_process() -> io::Result<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let behind_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let numbers: Vec<u64> = behind_name.split(' ').map(|word| word.trim().parse().unwrap_or(0)).collect();
        // The numbers are those of proc(5), which starts at 1. The first two fields are cut off.
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

    /// Sets the break of a heap in the window that ends at `end` (brk). Restores the process's own heap afterwards.
    ///
    /// # Errors
    /// This kernel does not allow this process to move its heap.
    pub fn set_break(&self, end: At, to: At) -> io::Result<u64> {
        // SAFETY: this only asks for the break.
        let own = unsafe { libc::syscall(libc::SYS_brk, 0) } as u64;
        self.become_heap(At::page(HEAP).address(), end.address())?;
        assert!(to.0 <= PAGES * PAGE_SIZE, "a heap up to {to}, out of the window");
        // SAFETY: only pages of the window come and go, where no Rust object is.
        let new = unsafe { libc::syscall(libc::SYS_brk, to.address() as usize) } as u64;
        self.become_heap(self.0.heap_start, own)?;
        Ok(new)
    }

    fn become_heap(&self, heap_start: u64, heap_end: u64) -> io::Result<()> {
        let map = MemoryMap { heap_start, heap_end, ..self.0 };
        // SAFETY: the kernel reads this structure, whose size it is given. It maps and unmaps nothing.
        let set = unsafe {
            libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, &raw const map, size_of::<MemoryMap>(), 0)
        };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// mlock, or mlock2 with MLOCK_ONFAULT; both by mlock2. The three functions below use system calls. The reason is that
/// AddressSanitizer replaces some of the C library's mlock functions by functions that do nothing.
pub fn lock(at: At, length: Length, on_fault: bool) -> Result<u64, i32> {
    let flags = if on_fault { libc::MLOCK_ONFAULT } else { 0 };
    // SAFETY: in the window. Only the residency of pages changes.
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

/// sync_file_range of a whole file. It waits for earlier writes and starts to write dirty pages, but does not wait for
/// them.
pub fn start_sync(file: &File) -> Result<u64, i32> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: no memory changes.
    done(unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) })
}

/// mincore.
pub fn resident(at: At, length: Length) -> Result<Vec<bool>, i32> {
    let pages = length.0.min(PAGES * PAGE_SIZE).div_ceil(PAGE_SIZE);
    let mut answers = vec![0_u8; pages as usize];
    // SAFETY: the call writes one byte for each page of a range that is not refused.
    done(unsafe { libc::mincore(place(at, length), length.0 as usize, answers.as_mut_ptr()) })?;
    Ok(answers.into_iter().map(|answer| answer & 1 != 0).collect())
}

/// mseal.
pub fn seal(at: At, length: Length) -> Result<u64, i32> {
    // SAFETY: only the rights of the window become immutable. No memory changes.
    done(unsafe { libc::syscall(libc::SYS_mseal, place(at, length), length.0 as usize, 0_usize) } as i32)
}

/// Returns the arguments of process_vm_readv and process_vm_writev: one piece in the buffer, one in the window.
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
    // SAFETY: the kernel writes only these bytes.
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
    // madvise continues after holes, up to the stack.
    assert!(length.0 < NOWHERE || at.address().checked_add(length.0).is_none(), "madvise of all memory");
    // SAFETY: in the window, where no Rust object is.
    done(unsafe { libc::madvise(place(at, length), length.0 as usize, advice) })
}

/// Returns a pointer for an access to the window or to the page after it.
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

/// Loads bytes. On a signal, returns the number of bytes that were read before it.
pub fn read(at: At, into: &mut [u8]) -> Result<(), (usize, Caught)> {
    assert!(at.0 + into.len() as u64 <= (PAGES + 1) * PAGE_SIZE, "a read at {at}, out of the window");
    // SAFETY: in the window, where no Rust object is.
    let read = unsafe { access::read(pointer(at), into) };
    read.map_err(|interrupted| (interrupted.done, caught(interrupted.signal)))
}

/// The kernel's data about a mapping: `struct procmap_query` of Linux 6.11, with the fields that are used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Mapping {
    size: u64,
    query_flags: u64,
    query_address: u64,
    /// Its first address.
    pub start: u64,
    /// The address after its last byte.
    pub end: u64,
    /// Bits 0 to 3: read, write, execute, shared.
    pub flags: u64,
    page_size: u64,
    /// The first byte of the file that it maps.
    pub offset: u64,
    /// The inode of the file; zero if there is none.
    pub inode: u64,
    device_major: u32,
    device_minor: u32,
    name_size: u32,
    build_id_size: u32,
    name_address: u64,
    build_id_address: u64,
}

const _: () = assert!(size_of::<Mapping>() == 104);

/// Returns the mapping at an address, or the next one (PROCMAP_QUERY).
///
/// # Errors
/// ENOTTY before Linux 6.11, and all other errors of the call.
pub fn mapping_from(maps: &File, address: u64) -> io::Result<Option<Mapping>> {
    const COVERING_OR_NEXT: u64 = 0x10;
    const PROCMAP_QUERY: u64 = 3 << 30 | (size_of::<Mapping>() as u64) << 16 | (b'f' as u64) << 8 | 17;
    let mut mapping = Mapping {
        size: size_of::<Mapping>() as u64,
        query_flags: COVERING_OR_NEXT,
        query_address: address,
        ..Mapping::default()
    };
    // SAFETY: the kernel reads and writes this structure, whose size it is given.
    match unsafe { libc::ioctl(maps.as_raw_fd(), PROCMAP_QUERY as _, &raw mut mapping) } {
        0 => Ok(Some(mapping)),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            error => Err(error),
        },
    }
}
