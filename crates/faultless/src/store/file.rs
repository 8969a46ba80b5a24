//! A real file, read and written by a small pool of threads.
#![forbid(unsafe_code)]

use super::threads::Pool;
#[cfg(target_os = "linux")]
use super::threads::survive;
use super::{Bytes, Store, StoreError, Transfer};
use crate::address::PAGE_SIZE;
use rustix::fs::{OFlags, fcntl_getfl};
#[cfg(target_os = "linux")]
use rustix::io::Errno;
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const PAGE: usize = PAGE_SIZE as usize;

const DEFAULT_THREADS: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// What an I/O error without a number becomes; the same on every Unix.
const EIO: i32 = 5;

/// Why a file cannot serve as a store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing has that name (ENOENT).
    #[error("cannot open {}: there is no such file; check the path", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It is a folder.
    #[error("cannot open {}: it is a folder; name a file inside it", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// It is a device, a pipe or a socket.
    #[error("cannot open {}: it is no regular file; copy what it holds into one and name that", path.display())]
    NotRegular {
        /// The device, pipe or socket.
        path: PathBuf,
    },
    /// It has no bytes, and a store never grows its file.
    #[error("cannot open {}: it is empty; fill it, or give it a size with `truncate -s`", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file, or a folder on the way to it, does not let this user in (EACCES, EPERM).
    #[error("no permission to {access} {}; see `ls -l` and `chmod`, or run as its owner", path.display())]
    NoPermission {
        /// The file.
        path: PathBuf,
        /// What was wanted: "read", or "read and write".
        access: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// Anything else that the operating system said.
    #[error("cannot open {}: {source}; check the path and the file system it is on", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The threads of the pool could not be started.
    #[error("cannot start the I/O threads: {source}; raise the limit on threads (`ulimit -u`)")]
    Threads {
        /// What the operating system said.
        source: io::Error,
    },
}

/// Pages of a regular file, by positioned reads and writes on a pool of threads named "faultless-io".
///
/// On Linux, a page that the kernel has in its cache is read at once by the thread that asks, if the file system can say
/// so (`RWF_NOWAIT`): handing it to another thread costs several times the read.
///
/// Writes keep its size, as behind a shared mapping: a write of the last page ends with the file, and moves fewer bytes
/// than a page then; a write behind the end is [`StoreError::PastEnd`]. Somebody else may resize the file at any
/// time.
///
/// Dropping it completes what is queued and waits for it; only a completion that drops it waits for nothing.
pub struct FileStore {
    /// Immutable.
    file: Arc<File>,
    /// Immutable.
    pool: Pool,
    /// Whether the file system can say that a read would wait. Atomic; goes from true to false once.
    #[cfg(target_os = "linux")]
    says_cached: std::sync::atomic::AtomicBool,
}

impl FileStore {
    /// The file at `path`, to be read only: writes fail with EBADF.
    ///
    /// # Errors
    /// [`OpenError`], with the path and what to do.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_with(path.as_ref(), "read", fs::OpenOptions::new().read(true))
    }

    /// The file at `path`, to be read and written. It is neither created nor truncated.
    ///
    /// # Errors
    /// [`OpenError`], with the path and what to do.
    pub fn open_rw(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_with(path.as_ref(), "read and write", fs::OpenOptions::new().read(true).write(true))
    }

    fn open_with(path: &Path, access: &'static str, how: &fs::OpenOptions) -> Result<Self, OpenError> {
        let refused = |source: io::Error| refused_to_open(path, access, source);
        // First by name: opening a pipe would wait for its other end.
        check(path, &fs::metadata(path).map_err(refused)?)?;
        Self::checked(path, access, how.open(path).map_err(refused)?)
    }

    /// A file that is open already. Its errors name it "(open file)".
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::NoPermission`] if it was opened to write only. Whether it may be written shows only when
    /// that is tried.
    pub fn from_file(file: File) -> Result<Self, OpenError> {
        let path = Path::new("(open file)");
        // Of a file whose flags cannot be had the first read tells.
        let mode = fcntl_getfl(&file).map(|flags| flags & OFlags::RWMODE);
        if mode == Ok(OFlags::WRONLY) {
            return Err(refused_to_open(path, "read", ErrorKind::PermissionDenied.into()));
        }
        Self::checked(path, "read", file)
    }

    fn checked(path: &Path, access: &'static str, file: File) -> Result<Self, OpenError> {
        check(path, &file.metadata().map_err(|source| refused_to_open(path, access, source))?)?;
        let file = Arc::new(file);
        let pool = start_pool(&file, DEFAULT_THREADS)?;
        Ok(Self {
            file,
            pool,
            #[cfg(target_os = "linux")]
            says_cached: true.into(),
        })
    }

    /// With that many threads instead of four: so many transfers go on at the same time.
    ///
    /// # Errors
    /// [`OpenError::Threads`].
    pub fn with_threads(mut self, threads: NonZeroUsize) -> Result<Self, OpenError> {
        self.pool = start_pool(&self.file, threads)?;
        Ok(self)
    }

    /// Does a read that need not wait; gives back any other. A page that ends with the file is one of the others.
    #[cfg(target_os = "linux")]
    fn read_cached(&self, mut transfer: Transfer) -> Option<Transfer> {
        use rustix::io::{IoSliceMut, ReadWriteFlags, preadv2};
        use std::sync::atomic::Ordering::Relaxed;

        let offset = transfer.offset();
        let bytes = match transfer.bytes() {
            Bytes::Read(bytes) if self.says_cached.load(Relaxed) => bytes,
            _ => return Some(transfer),
        };
        let length = bytes.len();
        match preadv2(&self.file, &mut [IoSliceMut::new(bytes)], offset, ReadWriteFlags::NOWAIT) {
            Ok(moved) if moved == length => {
                survive(|| transfer.complete(Ok(moved)));
                return None;
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => self.says_cached.store(false, Relaxed),
            // Not cached, or the end of the file, or an error: the pool meets it again.
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
        let offset = transfer.offset();
        let result = match transfer.bytes() {
            Bytes::Read(bytes) => read(&file, offset, bytes),
            Bytes::Write(bytes) => write(&file, offset, bytes),
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

fn read(file: &File, offset: u64, bytes: &mut [u8]) -> Result<usize, StoreError> {
    // No file reaches there, and the system call would say EINVAL.
    if i64::try_from(offset).is_err() {
        return Err(StoreError::PastEnd { offset });
    }
    let moved = whole(bytes.len(), |done| file.read_at(&mut bytes[done..], offset + done as u64), offset)?;
    if moved == 0 { Err(StoreError::PastEnd { offset }) } else { Ok(moved) }
}

fn write(file: &File, offset: u64, bytes: &[u8]) -> Result<usize, StoreError> {
    let left = length_at(file, offset)?.saturating_sub(offset);
    if left == 0 {
        return Err(StoreError::PastEnd { offset });
    }
    let bytes = &bytes[..bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
    let moved = whole(bytes.len(), |done| file.write_at(&bytes[done..], offset + done as u64), offset)?;
    if moved < bytes.len() { Err(StoreError::Io { offset, errno: EIO }) } else { Ok(moved) }
}

/// Gives the place back where the file system can do that; elsewhere zeros are written.
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
    // Behind what an offset with a sign can say there is nothing.
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

/// Calls `part`, with what is done so far, until `length` bytes have moved or none does.
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
            Err(error) => return Err(refused(&error, offset)),
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

#[cfg(all(test, not(loom), not(shuttle)))]
mod tests {
    use super::super::testing::{Ended, transfer};
    use super::*;
    use crate::store::Direction;
    use std::error::Error;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::mpsc::Receiver;
    use std::time::Duration;

    /// Before, the first read failed.
    #[test]
    fn an_open_file_that_may_only_be_written_is_refused() {
        let named = file(PAGE);
        let open = |options: &mut fs::OpenOptions| FileStore::from_file(options.open(named.path()).unwrap());
        let refused = open(fs::OpenOptions::new().write(true)).unwrap_err();
        assert!(matches!(refused, OpenError::NoPermission { access: "read", .. }), "{refused}");
        open(fs::OpenOptions::new().read(true)).unwrap();
        open(fs::OpenOptions::new().read(true).write(true)).unwrap();
    }

    fn file(length: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..length).map(|i| (i / PAGE + 1) as u8).collect();
        file.write_all(&bytes).unwrap();
        file
    }

    fn submit(store: &FileStore, direction: Direction, offset: usize, fill: u8) -> Receiver<Ended> {
        let (transfer, ended) = transfer(direction, offset as u64, fill);
        store.submit(transfer);
        ended
    }

    fn run(store: &FileStore, direction: Direction, offset: usize, fill: u8) -> Ended {
        submit(store, direction, offset, fill).recv_timeout(Duration::from_secs(30)).unwrap()
    }

    #[test]
    fn bytes_go_out_and_come_back() {
        let file = file(3 * PAGE);
        let store = FileStore::open_rw(file.path()).unwrap();
        assert_eq!(store.length(), Ok(3 * PAGE_SIZE));
        let read = run(&store, Direction::Read, PAGE, 0);
        assert_eq!((read.result, *read.page), (Ok(PAGE), [2; PAGE]));
        assert_eq!(run(&store, Direction::Write, PAGE, 9).result, Ok(PAGE));
        assert_eq!(*run(&store, Direction::Read, PAGE, 0).page, [9; PAGE]);
        let bytes = fs::read(file.path()).unwrap();
        assert_eq!((bytes.len(), bytes[PAGE - 1], bytes[PAGE], bytes[2 * PAGE]), (3 * PAGE, 1, 9, 3));
    }

    #[test]
    fn the_last_page_is_short_both_ways() {
        let file = file(PAGE + 5);
        let store = FileStore::from_file(file.reopen().unwrap()).unwrap();
        let read = run(&store, Direction::Read, PAGE, 7);
        assert_eq!((read.result, read.page[4], read.page[5]), (Ok(5), 2, 7));
        drop(store);
        let store = FileStore::open_rw(file.path()).unwrap();
        assert_eq!(run(&store, Direction::Write, PAGE, 8).result, Ok(5));
        assert_eq!(fs::read(file.path()).unwrap()[PAGE..], [8; 5]);
    }

    #[test]
    fn it_can_be_resized_and_have_holes() {
        let file = file(3 * PAGE);
        let store = FileStore::open_rw(file.path()).unwrap();
        assert_eq!(store.punch(PAGE_SIZE, PAGE_SIZE), Ok(()));
        assert_eq!(store.set_length(4 * PAGE_SIZE), Ok(()));
        assert_eq!(store.flush(), Ok(()));
        let bytes = fs::read(file.path()).unwrap();
        let firsts: Vec<u8> = bytes.chunks(PAGE).map(|page| page[PAGE - 1]).collect();
        assert_eq!(firsts, [1, 0, 3, 0]);
        assert_eq!(store.set_length(5), Ok(()));
        assert_eq!(store.punch(0, PAGE_SIZE), Ok(()));
        assert_eq!(fs::read(file.path()).unwrap(), [0; 5]);
        let read_only = FileStore::open(file.path()).unwrap();
        assert!(matches!(read_only.set_length(1), Err(StoreError::Io { .. })));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_hole_gives_its_place_back_and_zeros_do_without() {
        use std::os::unix::fs::MetadataExt;
        let file = file(16 * PAGE + 5);
        let blocks = || {
            file.as_file().sync_all().unwrap();
            file.as_file().metadata().unwrap().blocks()
        };
        let before = blocks();
        let store = FileStore::open_rw(file.path()).unwrap();
        // Where a file system has no holes there is nothing to be seen here.
        if give_back(file.as_file(), 0, PAGE_SIZE) == Err(Errno::OPNOTSUPP) {
            eprintln!("skipped: this file system has no holes");
        } else {
            assert_eq!(store.punch(PAGE_SIZE, 8 * PAGE_SIZE), Ok(()));
            assert!(blocks() + 9 * PAGE_SIZE / 512 <= before, "{} of {before} blocks", blocks());
        }
        assert_eq!(store.punch(15 * PAGE_SIZE, 8 * PAGE_SIZE), Ok(()));
        assert_eq!(store.punch(u64::MAX - (PAGE_SIZE - 1), PAGE_SIZE), Ok(()));
        assert_eq!(write_zeros(file.as_file(), 10 * PAGE_SIZE, 2 * PAGE_SIZE), Ok(()));
        assert_eq!(write_zeros(file.as_file(), 16 * PAGE_SIZE, 2 * PAGE_SIZE), Ok(()));
        let bytes = fs::read(file.path()).unwrap();
        assert_eq!(bytes.len(), 16 * PAGE + 5, "as long as it was");
        let firsts: Vec<u8> = bytes.chunks(PAGE).map(|page| page[0]).collect();
        assert_eq!(firsts[9..], [10, 0, 0, 13, 14, 15, 0, 0]);
        let read_only = FileStore::open(file.path()).unwrap();
        assert_eq!(read_only.punch(0, PAGE_SIZE), Err(StoreError::Io { offset: 0, errno: 9 }));
    }

    #[test]
    fn a_shrunk_file_ends_before_the_page() {
        let file = file(2 * PAGE);
        let store = FileStore::open_rw(file.path()).unwrap();
        file.as_file().set_len(PAGE_SIZE).unwrap();
        let gone = Err(StoreError::PastEnd { offset: PAGE_SIZE });
        assert_eq!(run(&store, Direction::Read, PAGE, 0).result, gone);
        assert_eq!(run(&store, Direction::Write, PAGE, 0).result, gone);
        assert_eq!(store.length(), Ok(PAGE_SIZE));
        let offset = u64::MAX - (PAGE_SIZE - 1);
        let gone = Err(StoreError::PastEnd { offset });
        assert_eq!(run(&store, Direction::Read, offset as usize, 0).result, gone);
        assert_eq!(run(&store, Direction::Write, offset as usize, 0).result, gone);
    }

    #[test]
    fn errors_of_the_system_keep_their_number() {
        let file = file(PAGE);
        let store = FileStore::open(file.path()).unwrap();
        let ebadf = StoreError::Io { offset: 0, errno: 9 };
        assert_eq!(run(&store, Direction::Write, 0, 1).result, Err(ebadf));
        let of = |error| refused(&error, 4096);
        assert_eq!(of(io::Error::from_raw_os_error(28)), StoreError::NoSpace { offset: 4096 });
        assert_eq!(of(io::Error::other("?")), StoreError::Io { offset: 4096, errno: 5 });
    }

    #[test]
    fn short_and_interrupted_parts_are_put_together() {
        let mut parts = vec![Ok(2), Err(ErrorKind::Interrupted.into()), Ok(3)].into_iter();
        let mut seen = Vec::new();
        let part = |done| {
            seen.push(done);
            parts.next().unwrap()
        };
        assert_eq!(whole(5, part, 0), Ok(5));
        assert_eq!(seen, [0, 2, 2]);
    }

    #[test]
    fn what_cannot_be_opened_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let error = |path: &Path| FileStore::open(path).unwrap_err();

        let missing = error(&path);
        assert!(matches!(missing, OpenError::Missing { .. }));
        let text = missing.to_string();
        assert!(text.contains(path.to_str().unwrap()) && !text.contains('\n'), "{text}");

        assert!(matches!(error(folder.path()), OpenError::Folder { .. }));
        assert!(matches!(error(Path::new("/dev/null")), OpenError::NotRegular { .. }));
        fs::write(&path, "").unwrap();
        assert!(matches!(error(&path), OpenError::Empty { .. }));
        let empty = FileStore::from_file(File::open(&path).unwrap()).unwrap_err();
        assert!(matches!(empty, OpenError::Empty { .. }));

        let through_a_file = error(&path.join("x"));
        assert!(matches!(through_a_file, OpenError::Io { .. }) && through_a_file.source().is_some());

        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        if File::open(&path).is_ok() {
            eprintln!("skipped: no permission (this user, root perhaps, may read everything)");
        } else {
            assert!(matches!(error(&path), OpenError::NoPermission { access: "read", .. }));
        }
        let denied = refused_to_open(&path, "read", io::Error::from_raw_os_error(13));
        assert!(denied.to_string().starts_with("no permission to read /"), "{denied}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_the_kernel_has_is_read_at_once() {
        let file = file(PAGE + 5);
        // The kernel has what was just written.
        let store = FileStore::open(file.path()).unwrap();
        let ended = submit(&store, Direction::Read, 0, 0).try_recv();
        if store.says_cached.load(std::sync::atomic::Ordering::Relaxed) {
            let read = ended.expect("ended before `submit` returned");
            assert_eq!((read.result, *read.page), (Ok(PAGE), [1; PAGE]));
        } else {
            eprintln!("skipped: this file system cannot say whether a read would wait");
        }
        // The last page, and what has none, are the pool's.
        let read = run(&store, Direction::Read, PAGE, 7);
        assert_eq!((read.result, read.page[4], read.page[5]), (Ok(5), 2, 7));
        let gone = Err(StoreError::PastEnd { offset: 2 * PAGE_SIZE });
        assert_eq!(run(&store, Direction::Read, 2 * PAGE, 0).result, gone);
        // A panic of a completion stays where it would in the pool.
        store.submit(transfer(Direction::Read, 0, 0).0.intercept(|result, completion| {
            completion(result);
            panic!("planted by the test")
        }));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn where_nobody_can_say_the_pool_reads() {
        let file = file(PAGE);
        let store = FileStore::open(file.path()).unwrap();
        store.says_cached.store(false, std::sync::atomic::Ordering::Relaxed);
        let read = run(&store, Direction::Read, 0, 0);
        assert_eq!((read.result, *read.page), (Ok(PAGE), [1; PAGE]));
    }

    #[test]
    fn a_panic_in_a_completion_leaves_the_pool_alive() {
        let file = file(PAGE);
        let one = NonZeroUsize::MIN;
        let store = FileStore::open(file.path()).unwrap().with_threads(one).unwrap();
        store.submit(transfer(Direction::Read, 0, 0).0.intercept(|result, completion| {
            completion(result);
            panic!("planted by the test")
        }));
        assert_eq!(run(&store, Direction::Read, 0, 0).result, Ok(PAGE));
    }

    #[test]
    fn dropping_completes_what_is_queued() {
        let file = file(PAGE);
        let store = FileStore::open(file.path()).unwrap();
        let reads: Vec<_> = (0..100).map(|_| submit(&store, Direction::Read, 0, 0)).collect();
        drop(store);
        for read in reads {
            assert_eq!(read.try_recv().unwrap().result, Ok(PAGE));
        }
    }

    #[test]
    fn a_completion_may_drop_the_store() {
        let file = file(PAGE);
        let store = Arc::new(FileStore::open_rw(file.path()).unwrap());
        let last = Arc::clone(&store);
        // Not a read, which may be done before `submit` returns.
        let (write, ended) = transfer(Direction::Write, 0, 0);
        let (go, gate) = std::sync::mpsc::channel::<()>();
        store.submit(write.intercept(move |result, completion| {
            gate.recv().unwrap();
            drop(last);
            completion(result);
        }));
        drop(store);
        go.send(()).unwrap();
        assert_eq!(ended.recv().unwrap().result, Ok(PAGE));
    }
}
