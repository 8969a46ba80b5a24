//! Errors of opening a pager, and of making or changing a region.

use faultless::store::OpenError as StoreOpenError;
use faultless::{DiscardError, FileError, ForkError, MapError, ProtectError, UnmapError};
use faultless_soft::MemoryError;
use std::ops::Range;

/// Errors of opening a pager: the reasons for which page faults cannot be served in this process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// This user may not use userfaultfd (EPERM).
    #[error(
        "userfaultfd is forbidden here: set the sysctl vm.unprivileged_userfaultfd to 1, give this program \
         CAP_SYS_PTRACE, or let this user open /dev/userfaultfd"
    )]
    Forbidden,
    /// The kernel was built without userfaultfd, or a filter hides it (ENOSYS).
    #[error(
        "there is no userfaultfd here: the kernel was built without CONFIG_USERFAULTFD, or a filter hides it"
    )]
    Absent,
    /// The kernel's userfaultfd is too old.
    #[error("userfaultfd lacks write protection or poisoning here: both need Linux 6.6 or newer")]
    TooOld,
    /// The page size is not 4 KiB.
    #[error("pages have {bytes} bytes here; only pages of 4096 bytes are supported")]
    PageSize {
        /// The page size in bytes.
        bytes: usize,
    },
    /// The parent of this process made the pager.
    #[error(
        "the pager belongs to this process's parent: a child of fork(2) has none of its regions; make another with \
         Pager::new, or call exec"
    )]
    Inherited,
    /// /proc/self/mem does not show protected pages.
    #[error(
        "/proc/self/mem does not show pages that may not be read: start the kernel with \
         proc_mem.force_override=always, or mount /proc"
    )]
    NoForce,
    /// A system call failed unexpectedly.
    #[error("{call} failed (errno {errno})")]
    System {
        /// The name of the call.
        call: &'static str,
        /// The operating system's error number.
        errno: i32,
    },
    /// There is no memory for frames.
    #[error("no memory to serve faults from: {0}")]
    Memory(#[from] MemoryError),
    /// A handler thread cannot be started.
    #[error(
        "cannot start the thread that serves faults (errno {errno}); raise the limit on threads (`ulimit -u`)"
    )]
    Thread {
        /// The operating system's error number.
        errno: i32,
    },
}

/// Errors of making a region or changing a part of it.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The pager cannot be opened; see [`OpenError`].
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The region would have no bytes.
    #[error("a region of zero bytes cannot be made: give it at least one byte")]
    Empty,
    /// There are no addresses, or no memory for tables, for the region (ENOMEM).
    #[error("no room for a region of {length} bytes")]
    NoRoom {
        /// The requested length in bytes.
        length: usize,
    },
    /// The part is not inside the region, or does not begin and end at a page.
    #[error("bytes {}..{} are not whole pages of a region of {length} bytes: a part begins and ends at multiples of 4096, or at the region's end", part.start, part.end)]
    Part {
        /// The requested part, in bytes.
        part: Range<usize>,
        /// The region's length in bytes.
        length: usize,
    },
    /// The file cannot be opened as a store.
    #[error(transparent)]
    File(#[from] StoreOpenError),
    /// The file's length cannot be read.
    #[error("cannot read the file's length: {0}")]
    Length(#[from] faultless::store::StoreError),
    /// The engine refused to map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The engine refused to unmap.
    #[error(transparent)]
    Unmap(#[from] UnmapError),
    /// The engine refused to change the rights.
    #[error(transparent)]
    Protect(#[from] ProtectError),
    /// The engine refused to discard.
    #[error(transparent)]
    Discard(#[from] DiscardError),
    /// The engine could not refresh the file.
    #[error(transparent)]
    Refresh(#[from] FileError),
    /// The engine could not take the snapshot.
    #[error(transparent)]
    Snapshot(#[from] ForkError),
}
