//! The errors of an access, and the signals that Linux sends for them.

use crate::address::VirtAddr;
use crate::errno;
use crate::protection::{Access, Protection};
use crate::store::StoreError;

/// The reason why an access cannot be served. [`FaultError::signal`] gives the signal that a process would get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// Nothing is mapped at the address (SEGV_MAPERR).
    #[error("nothing is mapped at {address}")]
    NoMapping {
        /// The address of the access.
        address: VirtAddr,
    },
    /// The mapping does not allow the access (SEGV_ACCERR).
    #[error("{access} at {address} is not allowed by {protection}")]
    Protection {
        /// The address of the access.
        address: VirtAddr,
        /// The access that was tried.
        access: Access,
        /// The accesses that the mapping allows.
        protection: Protection,
    },
    /// The page is a guard page (SEGV_MAPERR, as on Linux).
    #[error("{address} is a guard page")]
    Guard {
        /// The address of the access.
        address: VirtAddr,
    },
    /// The page lies past the end of the file (BUS_ADRERR).
    #[error("{address} shows page {page} of a file of {length} bytes")]
    PastEnd {
        /// The address of the access.
        address: VirtAddr,
        /// The page of the file, counted from 0.
        page: u64,
        /// The file's length in bytes.
        length: u64,
    },
    /// The page could not be read (BUS_ADRERR).
    #[error("the page at {address} could not be read: {error}")]
    Io {
        /// The address of the access.
        address: VirtAddr,
        /// The error that the store returned.
        error: StoreError,
    },
    /// The host has lost the page's bytes (BUS_ADRERR). On a Linux process, the program itself has dropped memory that a
    /// snapshot needs. The access never reads zeros in their place.
    #[error("the bytes of the page at {address} are lost: the host no longer has them")]
    Lost {
        /// The address of the access.
        address: VirtAddr,
    },
    /// The page is pinned for I/O as often as can be counted, 4,095 times. Only [`AddressSpace::pin`](crate::AddressSpace::pin)
    /// returns this.
    #[error("the page at {address} is pinned for I/O too often")]
    TooManyPins {
        /// The address of the access.
        address: VirtAddr,
    },
    /// The frame at the address is not the engine's, so it is neither pinned nor copied from outside. Only
    /// [`AddressSpace::pin`](crate::AddressSpace::pin), [`AddressSpace::read_remote`](crate::AddressSpace::read_remote) and
    /// [`AddressSpace::write_remote`](crate::AddressSpace::write_remote) return this.
    #[error("the frame at {address} is not the engine's")]
    Foreign {
        /// The address of the access.
        address: VirtAddr,
    },
    /// The space has exited, before the access or while it waited (the process was killed).
    #[error("the space has exited, and with it the access to {address}")]
    Exited {
        /// The address of the access.
        address: VirtAddr,
    },
    /// There is no free frame, and nothing could be evicted.
    #[error("out of memory for the page at {address}")]
    OutOfMemory {
        /// The address of the access.
        address: VirtAddr,
    },
}

/// The signal that Linux sends for an access that cannot be served. It has a number and an `si_code`; `si_addr` is the address
/// of the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGSEGV, SEGV_MAPERR: nothing is mapped at the address.
    NotMapped,
    /// SIGSEGV, SEGV_ACCERR: the mapping does not allow the access.
    NotAllowed,
    /// SIGBUS, BUS_ADRERR: there is no such page, or its bytes cannot be had.
    NoPage,
    /// SIGKILL: there is no memory, or the process is ending already.
    Kill,
}

impl Signal {
    /// Returns Linux's number of the signal.
    pub fn number(self) -> i32 {
        match self {
            Self::NotMapped | Self::NotAllowed => 11,
            Self::NoPage => 7,
            Self::Kill => 9,
        }
    }

    /// Returns Linux's `si_code`. It is zero for SIGKILL, which cannot be handled.
    pub fn code(self) -> i32 {
        match self {
            Self::NotMapped => 1,
            Self::NotAllowed | Self::NoPage => 2,
            Self::Kill => 0,
        }
    }
}

impl FaultError {
    /// Returns the signal that a host sends to the thread that made the access, as Linux does on x86-64.
    pub fn signal(&self) -> Signal {
        match self {
            Self::NoMapping { .. } | Self::Guard { .. } => Signal::NotMapped,
            Self::Protection { .. } => Signal::NotAllowed,
            Self::PastEnd { .. } | Self::Io { .. } | Self::Lost { .. } => Signal::NoPage,
            // No access gives `TooManyPins` or `Foreign`: only a pin does, and its caller gets an error.
            Self::TooManyPins { .. }
            | Self::Foreign { .. }
            | Self::Exited { .. }
            | Self::OutOfMemory { .. } => Signal::Kill,
        }
    }

    /// Returns Linux's error number for a system call that meets this error at a caller's address: EFAULT, or ENOMEM without
    /// memory.
    pub fn errno(&self) -> i32 {
        match self {
            Self::OutOfMemory { .. } => errno::ENOMEM,
            _ => errno::EFAULT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_linux_s_signal_and_number() {
        let address = VirtAddr::new(0x1000);
        let error = StoreError::Io { offset: 0, errno: errno::EIO };
        let (access, protection) = (Access::Write, Protection::READ);
        let table = [
            (FaultError::NoMapping { address }, Signal::NotMapped, (11, 1)),
            (FaultError::Guard { address }, Signal::NotMapped, (11, 1)),
            (FaultError::Protection { address, access, protection }, Signal::NotAllowed, (11, 2)),
            (FaultError::PastEnd { address, page: 3, length: 4096 }, Signal::NoPage, (7, 2)),
            (FaultError::Io { address, error }, Signal::NoPage, (7, 2)),
            (FaultError::Lost { address }, Signal::NoPage, (7, 2)),
            (FaultError::Foreign { address }, Signal::Kill, (9, 0)),
            (FaultError::Exited { address }, Signal::Kill, (9, 0)),
            (FaultError::OutOfMemory { address }, Signal::Kill, (9, 0)),
        ];
        for (error, signal, numbers) in table {
            assert_eq!((error.signal(), (signal.number(), signal.code())), (signal, numbers), "{error}");
            let is_memory = matches!(error, FaultError::OutOfMemory { .. });
            assert_eq!(error.errno(), if is_memory { errno::ENOMEM } else { errno::EFAULT });
        }
    }
}
