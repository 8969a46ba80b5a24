//! Loads and stores of real memory that return a signal as an error, instead of dying of it.
//!
//! An access gets SIGSEGV or SIGBUS if its page is not mapped, forbidden, past the end of its file, or cannot be read.
//! Here each access is one instruction whose address is known:
//!
//! ```text
//! load_u64 ──► instructions::load_u64:  mov rax, [rdi] ──────────► value, and no signal
//!                                            │ SIGSEGV, SIGBUS        ▲
//!                                            ▼                        │
//!              signals::caught:  was it at such an instruction?       │
//!                ├─ yes: the signal into the result's registers, on to a `ret`
//!                └─ no: on to the handler that was there before, or the process dies as it would have
//! ```
//!
//! The first access installs the handler, and it stays. Code that installs its own handler of SIGSEGV or SIGBUS after
//! that must pass on signals that are not its own, or accesses kill the process. They also kill it in a thread that has
//! blocked the two signals: the kernel delivers no blocked fault.
//!
//! A signal handler may make accesses, unless it would be the first access of the process.
//!
//! The module exists for x86-64 and arm64 only.
//!
//! # Safety
//!
//! For all accesses, no Rust object may own a byte of the access at `at`. The place need not be mapped, or readable, or
//! remain so; ideally it lies in a mapping made for such accesses. Other threads, processes and the kernel may access
//! the same bytes at the same time, if the accesses by Rust code are atomic or made by this module. Pointers need no
//! provenance: the compiler does not see the access.
#![cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_pointer_width = "64"))]
#![allow(unsafe_code)]

mod instructions;
mod signals;

use faultless::sync::Held;
use instructions::Outcome;
use linux_raw_sys::general as linux;
use std::fmt::{self, Display, Formatter};

/// The signal that an access received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Signal {
    /// The signal's number: SIGSEGV or SIGBUS.
    pub number: i32,
    /// The reason, `si_code`: a number of the signal's own (`SEGV_MAPERR`, `BUS_ADRERR`), or `SI_KERNEL`.
    pub code: i32,
    /// The address, `si_addr`. Zero on x86-64 if the processor could not translate the address (`SI_KERNEL`).
    pub address: usize,
}

/// The error of a range of bytes of which only the first were accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted after {done} bytes")]
pub struct Interrupted {
    /// The number of bytes that were accessed.
    pub done: usize,
    /// The signal that the next byte received.
    #[source]
    pub signal: Signal,
}

/// Loads an aligned word, with Acquire.
///
/// # Errors
/// The signal that the access received. For a word that is not aligned: SIGBUS with `BUS_ADRALN`.
///
/// # Safety
/// See the [module](self#safety).
#[inline]
pub unsafe fn load_u64(at: *const u64) -> Result<u64, Signal> {
    aligned(at)?;
    signals::install();
    Held::assert_none("memory, by an access that may fault");
    // SAFETY: the caller's guarantee; signals are caught.
    unsafe { instructions::load_u64(at) }.result()
}

/// Stores an aligned word, with Release.
///
/// # Errors
/// As [`load_u64`].
///
/// # Safety
/// See the [module](self#safety).
#[inline]
pub unsafe fn store_u64(at: *mut u64, value: u64) -> Result<(), Signal> {
    aligned(at)?;
    signals::install();
    Held::assert_none("memory, by an access that may fault");
    // SAFETY: the caller's guarantee; signals are caught.
    unsafe { instructions::store_u64(at, value) }.result().map(drop)
}

/// Adds to an aligned word, wrapping, with Acquire and Release. Returns its old value.
///
/// # Errors
/// As [`load_u64`].
///
/// # Safety
/// See the [module](self#safety).
#[inline]
pub unsafe fn fetch_add_u64(at: *mut u64, value: u64) -> Result<u64, Signal> {
    aligned(at)?;
    signals::install();
    Held::assert_none("memory, by an access that may fault");
    // SAFETY: the caller's guarantee; signals are caught.
    unsafe { instructions::fetch_add_u64(at, value) }.result()
}

/// Loads a byte, with Acquire.
///
/// # Errors
/// The signal that the access received.
///
/// # Safety
/// See the [module](self#safety).
#[inline]
pub unsafe fn load_u8(at: *const u8) -> Result<u8, Signal> {
    signals::install();
    Held::assert_none("memory, by an access that may fault");
    // SAFETY: the caller's guarantee; signals are caught.
    unsafe { instructions::load_u8(at) }.result().map(|value| value as u8)
}

/// Stores a byte, with Release.
///
/// # Errors
/// The signal that the access received.
///
/// # Safety
/// See the [module](self#safety).
#[inline]
pub unsafe fn store_u8(at: *mut u8, value: u8) -> Result<(), Signal> {
    signals::install();
    Held::assert_none("memory, by an access that may fault");
    // SAFETY: the caller's guarantee; signals are caught.
    unsafe { instructions::store_u8(at, value) }.result().map(drop)
}

/// Loads bytes, first to last. An aligned word is loaded by one instruction.
///
/// # Errors
/// The signal that a byte received. The bytes before it are in `into`; the rest of `into` is unchanged.
///
/// # Safety
/// See the [module](self#safety). The bytes of `into` are an object, so `at` must not reach them.
pub unsafe fn read(at: *const u8, into: &mut [u8]) -> Result<(), Interrupted> {
    let mut done = 0;
    while done < into.len() {
        let (place, rest) = (at.wrapping_add(done), &mut into[done..]);
        let step = match rest.first_chunk_mut() {
            // SAFETY: eight bytes, under the caller's guarantee.
            Some(word) if is_word(place) => unsafe { load_u64(place.cast()) }.map(|value| {
                *word = value.to_ne_bytes();
                word.len()
            }),
            // SAFETY: a byte, under the caller's guarantee.
            _ => unsafe { load_u8(place) }.map(|value| {
                rest[0] = value;
                1
            }),
        };
        done += step.map_err(|signal| Interrupted { done, signal })?;
    }
    Ok(())
}

/// Stores bytes, first to last. An aligned word is stored by one instruction.
///
/// # Errors
/// The signal that a byte received. The bytes before it are stored; it and the later ones are not.
///
/// # Safety
/// See the [module](self#safety). The bytes of `from` are an object, so `at` must not reach them.
pub unsafe fn write(at: *mut u8, from: &[u8]) -> Result<(), Interrupted> {
    let mut done = 0;
    while done < from.len() {
        let (place, rest) = (at.wrapping_add(done), &from[done..]);
        let step = match rest.first_chunk() {
            Some(word) if is_word(place) => {
                // SAFETY: eight bytes, under the caller's guarantee.
                unsafe { store_u64(place.cast(), u64::from_ne_bytes(*word)) }.map(|()| word.len())
            }
            // SAFETY: a byte, under the caller's guarantee.
            _ => unsafe { store_u8(place, rest[0]) }.map(|()| 1),
        };
        done += step.map_err(|signal| Interrupted { done, signal })?;
    }
    Ok(())
}

fn is_word(place: *const u8) -> bool {
    place.cast::<u64>().is_aligned()
}

/// Returns the error that arm64 raises for a word that is not aligned. x86-64 would split the access and raise none.
fn aligned(at: *const u64) -> Result<(), Signal> {
    let (number, code) = (linux::SIGBUS as i32, linux::BUS_ADRALN as i32);
    if at.is_aligned() { Ok(()) } else { Err(Signal { number, code, address: at.addr() }) }
}

impl Signal {
    /// Returns whether nothing is mapped at the address, or not for this access.
    pub fn is_segv(self) -> bool {
        self.number == linux::SIGSEGV as i32
    }

    /// Returns whether the mapping failed: past the end of the file, no memory, or a read error.
    pub fn is_bus(self) -> bool {
        self.number == linux::SIGBUS as i32
    }

    /// Returns the code's name, if it has one.
    fn reason(self) -> Option<&'static str> {
        Some(match (self.number as u32, self.code as u32) {
            (linux::SIGSEGV, linux::SEGV_MAPERR) => "SEGV_MAPERR",
            (linux::SIGSEGV, linux::SEGV_ACCERR) => "SEGV_ACCERR",
            (linux::SIGSEGV, linux::SEGV_PKUERR) => "SEGV_PKUERR",
            (linux::SIGBUS, linux::BUS_ADRALN) => "BUS_ADRALN",
            (linux::SIGBUS, linux::BUS_ADRERR) => "BUS_ADRERR",
            (linux::SIGBUS, linux::BUS_OBJERR) => "BUS_OBJERR",
            (linux::SIGBUS, linux::BUS_MCEERR_AR) => "BUS_MCEERR_AR",
            (_, linux::SI_KERNEL) => "SI_KERNEL",
            _ => return None,
        })
    }
}

impl Display for Signal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.number as u32 {
            linux::SIGSEGV => write!(f, "SIGSEGV")?,
            linux::SIGBUS => write!(f, "SIGBUS")?,
            number => write!(f, "signal {number}")?,
        }
        match self.reason() {
            Some(name) => write!(f, " ({name})")?,
            None => write!(f, " (code {})", self.code)?,
        }
        write!(f, " at {:#x}", self.address)
    }
}

impl Outcome {
    /// Returns the value that an instruction returns for an access that received `signal`.
    fn of(signal: Signal) -> Self {
        let (number, code) = (signal.number as u32, signal.code as u32);
        Self { value: signal.address as u64, signal: u64::from(number) << 32 | u64::from(code) }
    }

    #[inline]
    fn result(self) -> Result<u64, Signal> {
        match self.signal {
            0 => Ok(self.value),
            packed => Err(Signal {
                number: (packed >> 32) as i32,
                code: packed as u32 as i32,
                address: self.value as usize,
            }),
        }
    }
}
