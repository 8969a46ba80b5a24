use super::super::testing::{Ended, transfer};
use super::*;
use crate::store::testing;
use std::error::Error;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// Prints to the terminal the reason for which a test does nothing. The test harness would hide `eprintln!`.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

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
fn a_run_goes_out_and_comes_back_and_ends_with_the_file() {
    let named = file(3 * PAGE + 5);
    let store = FileStore::open_rw(named.path()).unwrap();
    let all = |direction, offset: usize, fills: &[u8]| {
        let (transfer, ended) = testing::run(direction, offset as u64, fills);
        store.submit(transfer);
        let ended = ended.recv_timeout(Duration::from_secs(30)).unwrap();
        let mut bytes = ended.page.to_vec();
        ended.more.iter().for_each(|page| bytes.extend_from_slice(&page[..]));
        (ended.result, bytes)
    };
    let (result, bytes) = all(Direction::Read, PAGE, &[9; 4]);
    assert_eq!(result, Ok(2 * PAGE + 5));
    assert_eq!([0, PAGE, 2 * PAGE, 2 * PAGE + 4, 2 * PAGE + 5].map(|at| bytes[at]), [2, 3, 4, 4, 9]);
    assert_eq!(all(Direction::Write, PAGE, &[5, 6, 7, 8]).0, Ok(2 * PAGE + 5));
    let bytes = fs::read(named.path()).unwrap();
    assert_eq!(bytes.len(), 3 * PAGE + 5, "it keeps its size");
    assert_eq!([0, PAGE, 2 * PAGE, 3 * PAGE, 3 * PAGE + 4].map(|at| bytes[at]), [1, 5, 6, 7, 7]);
    let behind = StoreError::PastEnd { offset: 8 * PAGE_SIZE };
    assert_eq!(all(Direction::Read, 8 * PAGE, &[0; 2]).0, Err(behind));
    assert_eq!(all(Direction::Write, 8 * PAGE, &[0; 2]).0, Err(behind));
}

#[test]
fn an_error_behind_some_pages_names_the_page() {
    let mut parts = vec![Ok(PAGE + 7), Err(io::Error::from_raw_os_error(28))].into_iter();
    let ended = whole(3 * PAGE, |_| parts.next().unwrap(), 4 * PAGE_SIZE);
    assert_eq!(ended, Err(StoreError::NoSpace { offset: 5 * PAGE_SIZE }));
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
        skipped("this file system has no holes");
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
        skipped("no permission (this user, root perhaps, may read everything)");
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
    // The kernel has the bytes that were just written in its cache.
    let store = FileStore::open(file.path()).unwrap();
    let ended = submit(&store, Direction::Read, 0, 0).try_recv();
    if store.says_cached.load(std::sync::atomic::Ordering::Relaxed) {
        let read = ended.expect("ended before `submit` returned");
        assert_eq!((read.result, *read.page), (Ok(PAGE), [1; PAGE]));
    } else {
        skipped("this file system cannot say whether a read would wait");
    }
    // The pool serves the last page, and pages past the end.
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
