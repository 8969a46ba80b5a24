//! A store that is a real file, read and written by a small pool of threads.
#![forbid(unsafe_code)]

use super::threads::Pool;
#[cfg(target_os = "linux")]
use super::threads::survive;
use super::{Bytes, Direction, MAX_PAGES, Store, StoreError, Transfer};
use crate::address::PAGE_SIZE;
use rustix::fs::{FlockOperation, OFlags, fcntl_getfl, flock};
use rustix::io::{Errno, preadv, pwritev};
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

const PAGE: usize = PAGE_SIZE as usize;

const DEFAULT_THREADS: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// The number of an I/O error that has none; the same on every Unix.
const EIO: i32 = 5;

/// The reason why a file cannot serve as a store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no file of that name (ENOENT).
    #[error("cannot open {}: there is no such file; check the path", path.display())]
    Missing {
        /// The path of the file.
        path: PathBuf,
    },
    /// The path names a folder.
    #[error("cannot open {}: it is a folder; name a file inside it", path.display())]
    Folder {
        /// The path of the folder.
        path: PathBuf,
    },
    /// The path names a device, a pipe or a socket.
    #[error("cannot open {}: it is not a regular file; copy its contents into one and name that", path.display())]
    NotRegular {
        /// The path of the device, pipe or socket.
        path: PathBuf,
    },
    /// The file has no bytes, and a store never grows its file.
    #[error("cannot open {}: it is empty; fill it, or give it a size with `truncate -s`", path.display())]
    Empty {
        /// The path of the file.
        path: PathBuf,
    },
    /// The permissions of the file, or of a folder on the way to it, do not allow the access (EACCES, EPERM).
    #[error("no permission to {access} {}; see `ls -l` and `chmod`, or run as its owner", path.display())]
    NoPermission {
        /// The path of the file.
        path: PathBuf,
        /// The requested access: "read", or "read and write".
        access: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The operating system reported another error.
    #[error("cannot open {}: {source}; check the path and the file system it is on", path.display())]
    Io {
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The threads of the pool could not be started.
    #[error("cannot start the I/O threads: {source}; raise the limit on threads (`ulimit -u`)")]
    Threads {
        /// The error of the operating system.
        source: io::Error,
    },
}

/// A store of the pages of a regular file, by positioned reads and writes on a pool of threads named "faultless-io". A run of
/// pages is one system call (`preadv`, `pwritev`).
///
/// On Linux, the thread that asks reads a page at once if the kernel has it in its cache and the file system can tell so
/// (`RWF_NOWAIT`): handing it to another thread costs several times the read.
///
/// Writes keep the size of the file, as behind a shared mapping. A write of the last page ends with the file, and then moves
/// fewer bytes than a page. A write behind the end fails with [`StoreError::PastEnd`]. Other programs may resize the file at
/// any time.
///
/// Dropping the store completes all queued transfers and waits for them. Only a completion that drops the store waits for
/// nothing.
pub struct FileStore {
    /// Immutable.
    file: Arc<File>,
    /// Tells whether the file was opened for writing. Immutable.
    is_writable: bool,
    /// Whether a user has taken the file alone. Atomic; becomes true once.
    is_taken: AtomicBool,
    /// Immutable.
    pool: Pool,
    /// Tells whether the file system can report that a read would wait. Atomic; goes from true to false once.
    #[cfg(target_os = "linux")]
    says_cached: AtomicBool,
}

impl FileStore {
    /// Opens the file at `path` for reading only: writes fail with EBADF, and [`Store::is_writable`] returns false.
    ///
    /// # Errors
    /// [`OpenError`], with the path and a remedy.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_with(path.as_ref(), "read", fs::OpenOptions::new().read(true))
    }

    /// Opens the file at `path` for reading and writing. It is neither created nor truncated.
    ///
    /// # Errors
    /// [`OpenError`], with the path and a remedy.
    pub fn open_rw(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_with(path.as_ref(), "read and write", fs::OpenOptions::new().read(true).write(true))
    }

    fn open_with(path: &Path, access: &'static str, how: &fs::OpenOptions) -> Result<Self, OpenError> {
        let refused = |source: io::Error| refused_to_open(path, access, source);
        // The check by name comes first, since opening a pipe would wait for its other end.
        check(path, &fs::metadata(path).map_err(refused)?)?;
        Self::checked(path, access, how.open(path).map_err(refused)?)
    }

    /// Makes a store of a file that is already open. Its errors name it "(open file)".
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::NoPermission`] if it was opened for writing only. If it was opened for reading only, writes fail
    /// with EBADF, and [`Store::is_writable`] returns false.
    pub fn from_file(file: File) -> Result<Self, OpenError> {
        let path = Path::new("(open file)");
        // If the flags of the file cannot be read, the first read reports the error.
        let mode = fcntl_getfl(&file).map(|flags| flags & OFlags::RWMODE);
        if mode == Ok(OFlags::WRONLY) {
            return Err(refused_to_open(path, "read", ErrorKind::PermissionDenied.into()));
        }
        Self::checked(path, "read", file)
    }

    fn checked(path: &Path, access: &'static str, file: File) -> Result<Self, OpenError> {
        check(path, &file.metadata().map_err(|source| refused_to_open(path, access, source))?)?;
        // If the flags cannot be read, the first write reports the error.
        let is_writable = fcntl_getfl(&file).map(|flags| flags & OFlags::RWMODE) != Ok(OFlags::RDONLY);
        let file = Arc::new(file);
        let pool = start_pool(&file, DEFAULT_THREADS)?;
        Ok(Self {
            file,
            is_writable,
            is_taken: AtomicBool::new(false),
            pool,
            #[cfg(target_os = "linux")]
            says_cached: true.into(),
        })
    }

    /// Uses `threads` threads instead of four. That many transfers can go on at the same time.
    ///
    /// # Errors
    /// [`OpenError::Threads`].
    pub fn with_threads(mut self, threads: NonZeroUsize) -> Result<Self, OpenError> {
        self.pool = start_pool(&self.file, threads)?;
        Ok(self)
    }

    /// Does a read of one page that need not wait, and gives back any other transfer. It gives back a page that ends with the
    /// file. It gives back a run, since no thread waits for it yet, and the thread that reads ahead would copy its bytes.
    #[cfg(target_os = "linux")]
    fn read_cached(&self, mut transfer: Transfer) -> Option<Transfer> {
        use rustix::io::{ReadWriteFlags, preadv2};

        let offset = transfer.offset();
        if transfer.pages() != 1 || !self.says_cached.load(Relaxed) {
            return Some(transfer);
        }
        let Bytes::Read(bytes) = transfer.bytes() else { return Some(transfer) };
        let length = bytes.len();
        match preadv2(&self.file, &mut [IoSliceMut::new(bytes)], offset, ReadWriteFlags::NOWAIT) {
            Ok(moved) if moved == length => {
                survive(|| transfer.complete(Ok(moved)));
                return None;
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => self.says_cached.store(false, Relaxed),
            // The page is not cached, or the file ends, or the read failed: the pool meets the same again.
            Ok(_) | Err(_) => {}
        }
        Some(transfer)
    }
}

impl Store for FileStore {
    fn length(&self) -> Result<u64, StoreError> {
        length_at(&self.file, 0)
    }

    fn submit(&self, transfer: Transfer) {
        #[cfg(target_os = "linux")]
        let Some(transfer) = self.read_cached(transfer) else { return };
        self.pool.submit(transfer);
    }

    fn max_pages(&self) -> usize {
        MAX_PAGES
    }

    fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// Takes the file's lock (flock), which lasts until the file is closed. A file system without such locks cannot tell. Nor can two
    /// stores of one open file, whose handles were duplicated.
    fn take_alone(&self) -> bool {
        let is_first = !self.is_taken.swap(true, Relaxed);
        is_first && flock(&*self.file, FlockOperation::NonBlockingLockExclusive) != Err(Errno::WOULDBLOCK)
    }

    fn set_length(&self, length: u64) -> Result<(), StoreError> {
        self.file.set_len(length).map_err(|error| refused(&error, length))
    }

    fn punch(&self, offset: u64, length: u64) -> Result<(), StoreError> {
        punch(&self.file, offset, length)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(|error| refused(&error, 0))
    }
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStore").field("file", &self.file).finish_non_exhaustive()
    }
}

fn start_pool(file: &Arc<File>, threads: NonZeroUsize) -> Result<Pool, OpenError> {
    let file = Arc::clone(file);
    let work = move |mut transfer: Transfer| {
        let result = match transfer.direction() {
            Direction::Read => read(&file, &mut transfer),
            Direction::Write => write(&file, &mut transfer),
        };
        transfer.complete(result);
    };
    Pool::start("faultless-io", threads, work).map_err(|source| OpenError::Threads { source })
}

fn check(path: &Path, metadata: &Metadata) -> Result<(), OpenError> {
    let path = path.to_owned();
    if metadata.is_dir() {
        Err(OpenError::Folder { path })
    } else if !metadata.is_file() {
        Err(OpenError::NotRegular { path })
    } else if metadata.len() == 0 {
        Err(OpenError::Empty { path })
    } else {
        Ok(())
    }
}

fn refused_to_open(path: &Path, access: &'static str, source: io::Error) -> OpenError {
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::NotFound => OpenError::Missing { path },
        ErrorKind::PermissionDenied => OpenError::NoPermission { path, access, source },
        _ => OpenError::Io { path, source },
    }
}

fn length_at(file: &File, offset: u64) -> Result<u64, StoreError> {
    file.metadata().map(|metadata| metadata.len()).map_err(|error| refused(&error, offset))
}

fn read(file: &File, transfer: &mut Transfer) -> Result<usize, StoreError> {
    let offset = transfer.offset();
    // No file reaches there, and the system call would return EINVAL.
    if i64::try_from(offset).is_err() {
        return Err(StoreError::PastEnd { offset });
    }
    let mut parts: [_; MAX_PAGES] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
    let mut rest = &mut parts[..transfer.pages()];
    for (part, page) in rest.iter_mut().zip(transfer.each_page()) {
        if let Bytes::Read(bytes) = page {
            *part = IoSliceMut::new(bytes);
        }
    }
    let length = rest.iter().map(|part| part.len()).sum();
    let mut read = 0;
    let part = |done| {
        IoSliceMut::advance_slices(&mut rest, done - read);
        read = done;
        Ok(preadv(file, rest, offset + done as u64)?)
    };
    let moved = whole(length, part, offset)?;
    if moved == 0 { Err(StoreError::PastEnd { offset }) } else { Ok(moved) }
}

fn write(file: &File, transfer: &mut Transfer) -> Result<usize, StoreError> {
    let offset = transfer.offset();
    let mut left = usize::try_from(length_at(file, offset)?.saturating_sub(offset)).unwrap_or(usize::MAX);
    if left == 0 {
        return Err(StoreError::PastEnd { offset });
    }
    let mut parts = [IoSlice::new(&[]); MAX_PAGES];
    let mut rest = &mut parts[..transfer.pages()];
    for (part, page) in rest.iter_mut().zip(transfer.each_page()) {
        if let Bytes::Write(bytes) = page {
            *part = IoSlice::new(&bytes[..bytes.len().min(left)]);
            left -= part.len();
        }
    }
    let length = rest.iter().map(|part| part.len()).sum();
    let mut written = 0;
    let part = |done| {
        IoSlice::advance_slices(&mut rest, done - written);
        written = done;
        Ok(pwritev(file, rest, offset + done as u64)?)
    };
    let moved = whole(length, part, offset)?;
    if moved < length {
        Err(StoreError::Io { offset: page_of(offset, moved), errno: EIO })
    } else {
        Ok(moved)
    }
}

/// Returns the offset of the page in which byte `moved` of a transfer at `offset` lies.
fn page_of(offset: u64, moved: usize) -> u64 {
    offset + (moved / PAGE * PAGE) as u64
}

/// Frees the space of the bytes if the file system can do that; otherwise writes zeros.
fn punch(file: &File, offset: u64, length: u64) -> Result<(), StoreError> {
    #[cfg(target_os = "linux")]
    match give_back(file, offset, length) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        punched => return punched.map_err(|error| refused(&error.into(), offset)),
    }
    write_zeros(file, offset, length)
}

#[cfg(target_os = "linux")]
fn give_back(file: &File, offset: u64, length: u64) -> Result<(), Errno> {
    use rustix::fs::{FallocateFlags, fallocate};
    // No file has bytes behind the largest signed offset.
    let length = length.min((i64::MAX as u64).saturating_sub(offset));
    if length == 0 {
        return Ok(());
    }
    rustix::io::retry_on_intr(|| {
        fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)
    })
}

fn write_zeros(file: &File, offset: u64, length: u64) -> Result<(), StoreError> {
    let end = offset.saturating_add(length).min(length_at(file, offset)?);
    let zeros = [0; PAGE];
    let mut at = offset;
    while at < end {
        let part = usize::try_from(end - at).unwrap_or(PAGE).min(PAGE);
        let moved = whole(part, |done| file.write_at(&zeros[done..part], at + done as u64), at)?;
        if moved == 0 {
            return Err(StoreError::Io { offset: at, errno: EIO });
        }
        at += moved as u64;
    }
    Ok(())
}

/// Calls `part`, with the number of bytes moved so far, until `length` bytes have moved or a call moves none. An error has the
/// offset of the page at which it came.
fn whole(
    length: usize,
    mut part: impl FnMut(usize) -> io::Result<usize>,
    offset: u64,
) -> Result<usize, StoreError> {
    let mut done = 0;
    while done < length {
        match part(done) {
            Ok(0) => break,
            Ok(moved) => done += moved,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(refused(&error, page_of(offset, done))),
        }
    }
    Ok(done)
}

fn refused(error: &io::Error, offset: u64) -> StoreError {
    match error.kind() {
        ErrorKind::StorageFull => StoreError::NoSpace { offset },
        _ => StoreError::Io { offset, errno: error.raw_os_error().unwrap_or(EIO) },
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
