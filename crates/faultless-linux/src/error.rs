//! Why there is no pager, or no region.

use faultless::store::OpenError as StoreOpenError;
use faultless::{DiscardError, FileError, ForkError, MapError, ProtectError, UnmapError};
use faultless_soft::MemoryError;
use std::ops::Range;

/// Why page faults cannot be served here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// This user may not (EPERM).
    #[error(
        "userfaultfd is forbidden here: set the sysctl vm.unprivileged_userfaultfd to 1, give this program \
         CAP_SYS_PTRACE, or let this user open /dev/userfaultfd"
    )]
    Forbidden,
    /// The kernel was built without it, or a filter hides it (ENOSYS).
    #[error(
        "there is no userfaultfd here: the kernel was built without CONFIG_USERFAULTFD, or a filter hides it"
    )]
    Absent,
    /// The kernel has an older one.
    #[error("userfaultfd lacks write protection or poisoning here: both need Linux 6.6 or newer")]
    TooOld,
    /// Pages are not 4 KiB here.
    #[error("pages have {bytes} bytes here; only 4096 are known")]
    PageSize {
        /// A page's bytes.
        bytes: usize,
    },
    /// The pager was made by the process that this one was forked from.
    #[error(
        "the pager is that of this process's parent: a child of fork(2) has none of its regions; make another with \
         Pager::new, or call exec"
    )]
    Inherited,
    /// /proc/self/mem does not show protected pages.
    #[error(
        "/proc/self/mem does not show pages that may not be read: start the kernel with \
         proc_mem.force_override=always, or mount /proc"
    )]
    NoForce,
    /// A call failed that should not.
    #[error("{call} failed (errno {errno})")]
    System {
        /// The call.
        call: &'static str,
        /// The operating system's error number.
        errno: i32,
    },
    /// No frames.
    #[error("no memory to serve faults from: {0}")]
    Memory(#[from] MemoryError),
    /// No handler.
    #[error(
        "cannot start the thread that serves faults (errno {errno}); raise the limit on threads (`ulimit -u`)"
    )]
    Thread {
        /// The operating system's error number.
        errno: i32,
    },
}

/// Why there is no region, or a part of one was not changed.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// See [`OpenError`].
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A region of no bytes.
    #[error("a region of zero bytes")]
    Empty,
    /// No addresses or no tables for it (ENOMEM).
    #[error("no room for a region of {length} bytes")]
    NoRoom {
        /// The length asked for.
        length: usize,
    },
    /// A part that the region has not, or that does not begin and end with a page.
    #[error("bytes {}..{} are no whole pages of a region of {length} bytes: a part begins and ends at multiples of 4096, or at the region's end", part.start, part.end)]
    Part {
        /// What was asked for.
        part: Range<usize>,
        /// How long the region is.
        length: usize,
    },
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] StoreOpenError),
    /// The file's length cannot be had.
    #[error("cannot read the file's length: {0}")]
    Length(#[from] faultless::store::StoreError),
    /// The engine said no.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The engine said no.
    #[error(transparent)]
    Unmap(#[from] UnmapError),
    /// The engine said no.
    #[error(transparent)]
    Protect(#[from] ProtectError),
    /// The engine said no.
    #[error(transparent)]
    Discard(#[from] DiscardError),
    /// The engine said no.
    #[error(transparent)]
    Refresh(#[from] FileError),
    /// No memory for the snapshot.
    #[error(transparent)]
    Snapshot(#[from] ForkError),
}
