//! The file of a scenario as the kernel sees it: one read-only file of a FUSE file system, with pages from a [`Store`].
//! The kernel caches them as it caches any file's. The store's completion answers a read, so any number of reads can
//! wait at once and no thread sleeps for one.
//!
//! As root, the file system is never in the tree of mounts. It is made detached, and it ends with the last descriptor
//! that refers to it, however the process ends. Other users mount it by fusermount3 and detach it as soon as the file
//! is open.

use super::sys;
use crate::trouble::Trouble;
use faultless::address::PAGE_SIZE;
use faultless::store::{Store, StoreError};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen,
    ReplyXattr, Request, Session, SessionACL,
};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, UNIX_EPOCH};

const DEVICE: &str = "/dev/fuse";
const NAME: &str = "file";
const FILE: INodeNo = INodeNo(2);
/// Extended attribute of the file: the number of its pages that were read so far.
const READS: &str = "user.faultless.reads";
/// Lifetime of cached attributes. Nothing in this file system ever changes.
const FOREVER: Duration = Duration::from_secs(1 << 30);
/// Longest wait for a session to end after the last descriptor of its file is closed.
const PATIENCE: Duration = Duration::from_secs(2);

/// Server that offers a store as a file until it is dropped.
pub struct Server {
    /// Dropped first. The drop completes the reads that the store holds, so that waiting threads go on.
    store: Option<Arc<dyn Store>>,
    /// The first read that failed.
    failed: Arc<Mutex<Option<StoreError>>>,
    /// An open descriptor that keeps the file system alive.
    file: Option<OwnedFd>,
    session: Option<BackgroundSession>,
}

impl Server {
    /// Serves the first `length` bytes of `store`.
    ///
    /// # Errors
    /// [`Trouble::Cannot`] if FUSE is not available.
    pub fn new(store: Arc<dyn Store>, length: u64) -> Result<Self, Trouble> {
        let device = OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|error| {
            let hint = if error.kind() == ErrorKind::NotFound { "; modprobe fuse" } else { "" };
            Trouble::Cannot(format!("no FUSE: cannot open {DEVICE}: {error}{hint}"))
        })?;
        let (failed, server) = (Arc::default(), |(session, file)| (Some(session), Some(file)));
        let files = || Files {
            store: Arc::downgrade(&store),
            failed: Arc::clone(&failed),
            length,
            reads: AtomicU64::new(0),
        };
        let first_line = |error: &io::Error| error.to_string().lines().next().unwrap_or("?").to_owned();
        let (session, file) = match detached(device, files()) {
            Err(refused) if refused.kind() == ErrorKind::PermissionDenied => mounted(files())
                .map(server)
                .map_err(|error| format!("{refused}; nor can fusermount3: {}", first_line(&error))),
            done => done.map(server).map_err(|error| first_line(&error)),
        }
        .map_err(|reason| Trouble::Cannot(format!("no FUSE: cannot mount: {reason}")))?;
        Ok(Self { store: Some(store), failed, file, session })
    }

    /// Returns the path at which a process of the same user can open the file.
    pub fn path(&self) -> PathBuf {
        let descriptor = self.file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        format!("/proc/{}/fd/{descriptor}", std::process::id()).into()
    }

    /// Returns the first read that failed, if any. The thread that waited for it received SIGBUS.
    pub fn failed(&self) -> Option<StoreError> {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.store = None;
        self.file = None;
        let Some(session) = self.session.take() else { return };
        // The session ends when no process has the file open or mapped. A process that keeps it is waited for only
        // until the deadline.
        let deadline = Instant::now() + PATIENCE;
        while !session.guard.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if session.guard.is_finished() {
            // The result of the session does not matter any more.
            let _ = session.join();
        }
    }
}

/// Returns the number of pages of a served file that were read so far.
pub fn reads_of(file: &File) -> io::Result<u64> {
    let mut reads = [0; 8];
    let length = rustix::fs::fgetxattr(file, READS, &mut reads)?;
    if length == reads.len() { Ok(u64::from_ne_bytes(reads)) } else { Err(ErrorKind::InvalidData.into()) }
}

/// Makes a file system that is mounted nowhere. Returns its session and its file.
fn detached(device: File, files: Files) -> io::Result<(BackgroundSession, OwnedFd)> {
    let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    for (key, value) in [
        ("source", "faultless".to_owned()),
        ("fd", device.as_raw_fd().to_string()),
        ("rootmode", "40555".to_owned()),
        ("user_id", user.as_raw().to_string()),
        ("group_id", group.as_raw().to_string()),
        ("max_read", PAGE_SIZE.to_string()),
    ] {
        rustix::mount::fsconfig_set_string(&context, key, value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let session = Session::from_fd(files, device.into(), SessionACL::Owner, Config::default())?.spawn()?;
    let file = rustix::fs::openat(&mount, NAME, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok((session, file))
}

/// Mounts a file system, opens its file and unmounts it at once. Returns its session and its file. Uses fusermount3 if
/// needed.
fn mounted(files: Files) -> io::Result<(BackgroundSession, OwnedFd)> {
    let folder = tempfile::Builder::new().prefix("faultless-").tempdir()?;
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::FSName("faultless".into()),
        MountOption::CUSTOM(format!("max_read={PAGE_SIZE}")),
    ];
    let session = Session::new(files, folder.path(), &config)?.spawn()?;
    let file = File::open(folder.path().join(NAME));
    if rustix::mount::unmount(folder.path(), UnmountFlags::DETACH).is_err() {
        let mut helper = std::process::Command::new("fusermount3");
        // If the mount is still there, the drop of the session unmounts it.
        let _ = helper.args(["-u", "-q", "-z", "--"]).arg(folder.path()).status();
    }
    Ok((session, file?.into()))
}

/// The file system that fuser calls.
struct Files {
    /// Gone while the server is dropped.
    store: Weak<dyn Store>,
    failed: Arc<Mutex<Option<StoreError>>>,
    length: u64,
    /// Atomic.
    reads: AtomicU64,
}

impl Files {
    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, size, perm, nlink) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0, 0o555, 2),
            FILE => (FileType::RegularFile, self.length, 0o444, 1),
            _ => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            rdev: 0,
            blksize: PAGE_SIZE as u32,
            flags: 0,
        })
    }
}

impl Filesystem for Files {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // This allows one read at once for each waiting thread. The kernel only refuses a value that is too large.
        let _ = config.set_max_background(u16::MAX);
        let _ = config.set_congestion_threshold(u16::MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(FILE).filter(|_| parent == INodeNo::ROOT && name == NAME) {
            Some(attributes) => reply.entry(&FOREVER, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&FOREVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // The cache is not kept. Every round opens the file, and begins with no page in the cache.
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn getxattr(&self, _: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let reads = self.reads.load(Ordering::Relaxed).to_ne_bytes();
        match size {
            _ if inode != FILE || name != READS => reply.error(Errno::ENODATA),
            0 => reply.size(reads.len() as u32),
            8.. => reply.data(&reads),
            _ => reply.error(Errno::ERANGE),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let Some(store) = self.store.upgrade() else { return reply.error(Errno::EIO) };
        let (page, failed) = (offset & !(PAGE_SIZE - 1), Arc::clone(&self.failed));
        let start = (offset - page) as usize;
        let left = usize::try_from(self.length.saturating_sub(page)).unwrap_or(usize::MAX);
        // `max_read` limits a read to one page. A shorter answer means the end of the file.
        sys::submit_read(&*store, page, move |result, bytes| match result {
            Ok(filled) => {
                let end = filled.min(left).min(start + size as usize);
                reply.data(bytes.get(start..end).unwrap_or_default());
            }
            Err(error) => {
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                reply.error(Errno::EIO);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faultless::store::{Direction, FailingStore, Failure, FileStore, InjectedError};
    use std::io::Read;
    use std::os::unix::fs::FileExt;

    const LENGTH: usize = 3 * PAGE_SIZE as usize + 5;

    fn stored() -> (Vec<u8>, Arc<dyn Store>) {
        let bytes: Vec<u8> = (0..LENGTH).map(|i| (i / 7) as u8).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let store = FileStore::from_file(file.reopen().unwrap()).unwrap();
        (bytes, Arc::new(store))
    }

    fn granted<T>(result: Result<T, Trouble>) -> Option<T> {
        result.map_err(crate::skipped::skipped).ok()
    }

    fn are_mounted() -> bool {
        std::fs::read_to_string("/proc/self/mounts")
            .unwrap()
            .lines()
            .any(|line| line.starts_with("faultless "))
    }

    #[test]
    fn bytes_come_through_and_are_counted() {
        let (bytes, store) = stored();
        let Some(server) = granted(Server::new(store, LENGTH as u64)) else { return };
        let (mut file, mut seen) = (File::open(server.path()).unwrap(), Vec::new());
        assert_eq!(reads_of(&file).unwrap(), 0);
        file.read_to_end(&mut seen).unwrap();
        assert_eq!((seen == bytes, reads_of(&file).unwrap()), (true, 4));
        assert!(server.failed().is_none() && !are_mounted());
        // The file is still open. The drop waits for it only for a while. Page 1 is no longer cached.
        drop(server);
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        assert!(file.read_at(&mut [0; 8], PAGE_SIZE).is_err());
    }

    #[test]
    fn a_mount_that_is_seen_is_seen_for_a_moment_only() {
        let (bytes, store) = stored();
        let files = Files {
            store: Arc::downgrade(&store),
            failed: Arc::default(),
            length: LENGTH as u64,
            reads: AtomicU64::new(0),
        };
        let mounted = mounted(files).map_err(|error| Trouble::Cannot(error.to_string()));
        let Some((session, file)) = granted(mounted) else { return };
        assert!(!are_mounted());
        let (mut file, mut seen) = (File::from(file), Vec::new());
        file.read_to_end(&mut seen).unwrap();
        assert_eq!(seen, bytes);
        drop(file);
        drop(Server { store: Some(store), failed: Arc::default(), file: None, session: Some(session) });
    }

    #[test]
    fn a_failed_read_is_an_error_and_is_kept() {
        let (_, store) = stored();
        let failing = FailingStore::new(store, Direction::Read, Failure::From(1), InjectedError::PastEnd);
        let Some(server) = granted(Server::new(Arc::new(failing), LENGTH as u64)) else { return };
        let error = File::open(server.path()).unwrap().read_at(&mut [0; 8], 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert!(server.failed().is_some());
    }
}
