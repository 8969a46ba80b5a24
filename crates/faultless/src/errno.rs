//! Linux's error numbers. The error type of each call maps its errors to them, for embedders that return them, and for the
//! check against Linux.

/// Operation not permitted: the mapping is sealed, or only a privileged caller may pass the limit.
pub const EPERM: i32 = 1;
/// There is no page, or nothing is mapped, at an address of a move of pages.
pub const ENOENT: i32 = 2;
/// No such process: it has exited.
pub const ESRCH: i32 = 3;
/// Input/output error.
pub const EIO: i32 = 5;
/// No such file.
pub const EBADF: i32 = 9;
/// Try again.
pub const EAGAIN: i32 = 11;
/// Out of memory, address space or mappings; or nothing is mapped at the address.
pub const ENOMEM: i32 = 12;
/// Permission denied: the file's rights do not allow it.
pub const EACCES: i32 = 13;
/// Bad address.
pub const EFAULT: i32 = 14;
/// Busy: locked pages were to be invalidated.
pub const EBUSY: i32 = 16;
/// A mapping or an object exists already.
pub const EEXIST: i32 = 17;
/// No such device.
pub const ENODEV: i32 = 19;
/// An argument is wrong.
pub const EINVAL: i32 = 22;
/// A file would become too long.
pub const EFBIG: i32 = 27;
/// No space left.
pub const ENOSPC: i32 = 28;
/// A file offset is too large.
pub const EOVERFLOW: i32 = 75;
/// Not supported.
pub const EOPNOTSUPP: i32 = 95;
