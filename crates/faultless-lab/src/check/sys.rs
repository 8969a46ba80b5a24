//! The system calls of the oracle, and its accesses: with `native::sys` the only unsafe code of this crate.
//!
//! Everything happens in the window, where nothing of the program is. A call that would reach further is refused here,
//! unless the kernel is sure to refuse it: such calls are part of the check.
#![allow(unsafe_code)]

use super::operation::{At, Length, PAGES, Place, Rights, WINDOW};
use super::step::Caught;
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
    file: Option<(BorrowedFd<'_>, u64, bool)>,
    how: Place,
) -> Result<u64, i32> {
    let mut flags = match how {
        Place::Fixed => libc::MAP_FIXED,
        Place::NoReplace => libc::MAP_FIXED_NOREPLACE,
        Place::Anywhere => 0,
    };
    let wanted = if how == Place::Anywhere { std::ptr::null_mut() } else { place(at, length) };
    let (descriptor, offset) = match file {
        None => {
            flags |= libc::MAP_ANONYMOUS | libc::MAP_PRIVATE;
            (-1, 0)
        }
        Some((file, offset, shared)) => {
            flags |= if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
            (file.as_raw_fd(), offset)
        }
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

/// mprotect.
pub fn protect(at: At, length: Length, rights: Rights) -> Result<u64, i32> {
    // SAFETY: in the window, where no Rust object is.
    done(unsafe { libc::mprotect(place(at, length), length.0 as usize, rights.0.into()) })
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
