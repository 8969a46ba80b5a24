//! Regions: ordinary loads and stores, served by the engine.

use faultless::address::PAGE_SIZE;
use faultless::design::Faultless;
use faultless::protection::Protection;
use faultless::store::{Direction, FailingStore, Failure, FileStore, GatedStore, InjectedError};
use faultless::{AddressSpace, FaultError, Limits};
use faultless_linux::{Linux, OpenError, Options, Pager, Region, RegionError, ServeError, Serving, access};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

const PAGE: usize = PAGE_SIZE as usize;
const EIO: InjectedError = InjectedError::Io { errno: 5 };

/// Returns a pager. Returns `None`, and prints the reason, if there can be none here.
fn pager() -> Option<Pager> {
    match Pager::new(Options { memory: 64 << 20, ..Options::default() }) {
        Ok(pager) => Some(pager),
        Err(error @ (OpenError::Forbidden | OpenError::Absent | OpenError::TooOld)) => {
            // Not `eprintln!`, whose output the test harness captures.
            let _ = writeln!(std::io::stderr(), "skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Returns a file whose page `n` is full of `n + 1`.
fn numbered(pages: usize) -> std::fs::File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    for page in 0..pages {
        file.write_all(&[page as u8 + 1; PAGE]).expect("a page written");
    }
    file
}

/// Asserts that all frames except the engine's page of zeros have been freed.
fn end(pager: &Pager) {
    pager.engine().flush();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while pager.engine().frame_usage().used != 1 && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(pager.engine().frame_usage().used, 1, "frames are left");
}

#[test]
fn untouched_memory_is_zero_and_keeps_what_is_written() {
    let Some(pager) = pager() else { return };
    let mut region = pager.anonymous(100 * PAGE + 5).unwrap();
    assert_eq!(region.len(), 100 * PAGE + 5);
    assert!(region.iter().step_by(1000).all(|byte| *byte == 0));
    region[7] = 1;
    region[50 * PAGE] = 2;
    region[100 * PAGE + 4] = 3;
    assert_eq!((region[7], region[50 * PAGE], region[100 * PAGE + 4], region[8]), (1, 2, 3, 0));
    drop(region);
    end(&pager);
}

#[test]
fn a_file_is_read_and_written_privately() {
    let Some(pager) = pager() else { return };
    let mut file = numbered(20);
    let mut region = pager.file(file.try_clone().unwrap()).unwrap();
    for page in 0..20 {
        assert_eq!(region[page * PAGE + page], page as u8 + 1);
    }
    region[3 * PAGE] = 200;
    region[19 * PAGE + 1] = 201;
    assert_eq!((region[3 * PAGE], region[3 * PAGE + 1], region[19 * PAGE + 1]), (200, 4, 201));
    let mut bytes = [0; PAGE];
    file.seek(SeekFrom::Start(3 * PAGE_SIZE)).unwrap();
    file.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [4; PAGE], "the file is as it was");
    drop(region);
    end(&pager);
}

#[test]
fn a_snapshot_and_its_region_go_their_own_ways() {
    let Some(pager) = pager() else { return };
    let mut region = pager.anonymous(8 * PAGE).unwrap();
    for page in 0..6 {
        region[page * PAGE] = page as u8 + 1;
    }
    let mut snapshot = region.snapshot().unwrap();
    region[0] = 100; // before the snapshot has read it
    assert_eq!((snapshot[0], region[0]), (1, 100));
    assert_eq!(snapshot[PAGE], 2);
    region[PAGE] = 101; // after
    snapshot[2 * PAGE] = 102; // the snapshot's write comes first
    assert_eq!((snapshot[PAGE], region[PAGE]), (2, 101));
    assert_eq!((snapshot[2 * PAGE], region[2 * PAGE]), (102, 3));
    let again = snapshot.snapshot().unwrap();
    snapshot[3 * PAGE] = 103;
    region[3 * PAGE] = 104;
    assert_eq!((again[3 * PAGE], snapshot[3 * PAGE], region[3 * PAGE]), (4, 103, 104));
    assert_eq!((again[2 * PAGE], again[7 * PAGE], again[0]), (102, 0, 1));
    drop(region);
    assert_eq!((snapshot[4 * PAGE], again[5 * PAGE]), (5, 6), "pages that only the snapshots have now");
    snapshot[4 * PAGE] = 105;
    drop(snapshot);
    assert_eq!((again[4 * PAGE], again[2 * PAGE]), (5, 102));
    drop(again);
    end(&pager);
}

#[test]
fn discarded_parts_are_zero_or_the_files_again() {
    let Some(pager) = pager() else { return };
    let mut region = pager.anonymous(8 * PAGE).unwrap();
    region.fill(9);
    let snapshot = region.snapshot().unwrap();
    region.discard(PAGE..3 * PAGE).unwrap();
    assert_eq!((region[0], region[PAGE], region[3 * PAGE - 1], region[3 * PAGE]), (9, 0, 0, 9));
    assert!(snapshot.iter().all(|byte| *byte == 9), "the snapshot keeps pages that the region has dropped");
    let mut file = pager.file(numbered(4)).unwrap();
    file[0] = 77;
    file.discard(..).unwrap();
    assert_eq!((file[0], file[3 * PAGE]), (1, 4));
    for wrong in [1..PAGE, 0..PAGE + 1, PAGE..9 * PAGE] {
        let error = region.discard(wrong.clone()).unwrap_err();
        assert!(matches!(&error, RegionError::Part { part, .. } if *part == wrong), "{error}");
    }
    region.discard(0..0).unwrap();
    drop((region, file, snapshot));
    end(&pager);
}

#[test]
fn a_file_that_others_changed_is_read_anew_and_never_a_mixture() {
    let Some(pager) = pager() else { return };
    let file = numbered(8);
    let mut region = pager.file(file.try_clone().unwrap()).unwrap();
    region[PAGE] = 100;
    assert_eq!((region[0], region[PAGE], region[PAGE + 1], region[2 * PAGE]), (1, 100, 2, 3));
    let snapshot = region.snapshot().unwrap();
    assert_eq!((snapshot[0], snapshot[2 * PAGE]), (1, 3));
    for page in 0..8 {
        file.write_all_at(&[50 + page as u8; PAGE], page * PAGE_SIZE).unwrap();
    }
    region.discard(..).unwrap();
    assert_eq!((region[0], region[2 * PAGE]), (1, 3), "the cache's pages, until they are refreshed");
    // SAFETY: there is no reference into the region or its snapshot.
    unsafe { region.refresh(..) }.unwrap();
    assert!((0..8).all(|page| region[page * PAGE..][..PAGE].iter().all(|byte| *byte == 50 + page as u8)));
    assert_eq!(
        (snapshot[0], snapshot[PAGE], snapshot[2 * PAGE]),
        (50, 100, 52),
        "the page that was written stays"
    );
    // SAFETY: as above.
    assert!(matches!(unsafe { region.refresh(1..PAGE) }, Err(RegionError::Part { .. })));
    let zeros = pager.anonymous(PAGE).unwrap();
    // SAFETY: as above.
    unsafe { zeros.refresh(..) }.unwrap();
    drop((region, snapshot, zeros));
    end(&pager);
}

#[test]
fn forbidden_and_unmapped_parts_are_signals() {
    let Some(pager) = pager() else { return };
    let mut region = pager.anonymous(8 * PAGE).unwrap();
    region.fill(5);
    let word = |page: usize| region.as_ptr().wrapping_add(page * PAGE).cast::<u64>();
    // SAFETY: the region's own memory, and there are no references into it meanwhile.
    unsafe {
        region.protect(2 * PAGE..4 * PAGE, Protection::READ).unwrap();
        region.protect(4 * PAGE..5 * PAGE, Protection::empty()).unwrap();
        region.unmap(5 * PAGE..6 * PAGE).unwrap();
        assert!(access::load_u64(word(2)).is_ok());
        assert!(access::store_u64(word(2), 1).unwrap_err().is_segv());
        assert!(access::load_u64(word(4)).unwrap_err().is_segv());
        assert!(access::load_u64(word(5)).unwrap_err().is_segv());
        assert!(access::store_u64(word(6), 1).is_ok());
        let snapshot = region.snapshot().unwrap();
        let theirs = |page: usize| snapshot.as_ptr().wrapping_add(page * PAGE).cast::<u64>();
        assert!(access::store_u64(theirs(2), 1).unwrap_err().is_segv());
        assert!(access::load_u64(theirs(4)).unwrap_err().is_segv());
        assert!(access::load_u64(theirs(5)).unwrap_err().is_segv());
        // A part that could not be read can be read again on both sides, with its bytes intact.
        let fives = u64::from_ne_bytes([5; 8]);
        snapshot.protect(4 * PAGE..5 * PAGE, Protection::READ | Protection::WRITE).unwrap();
        assert_eq!(access::load_u64(theirs(4)), Ok(fives));
        region.protect(2 * PAGE..5 * PAGE, Protection::READ | Protection::WRITE).unwrap();
        assert!(access::store_u64(word(2), 2).is_ok() && access::store_u64(word(4), 2).is_ok());
        assert_eq!((access::load_u64(theirs(2)), access::load_u64(theirs(4))), (Ok(fives), Ok(fives)));
        assert_eq!((access::load_u64(word(2)), access::load_u64(word(4))), (Ok(2), Ok(2)));
    }
    drop(region);
    end(&pager);
}

#[test]
fn a_failed_read_is_a_signal_and_never_zeros() {
    let Some(pager) = pager() else { return };
    let store = FileStore::from_file(numbered(4)).unwrap();
    let store = FailingStore::new(store, Direction::Read, Failure::Once(2), EIO);
    let region = pager.store(Arc::new(store)).unwrap();
    assert_eq!(region[0], 1);
    let page = region.as_ptr().wrapping_add(2 * PAGE);
    // SAFETY: the region's own memory.
    let signal = unsafe { access::load_u8(page) }.unwrap_err();
    assert!(signal.is_bus() && signal.address == page.addr(), "{signal}");
    assert!(matches!(region.refusal(2 * PAGE), Some(FaultError::Io { .. })));
    // SAFETY: as above.
    assert!(unsafe { access::store_u8(page, 1) }.unwrap_err().is_bus(), "until it is tried again");
    region.retry(2 * PAGE..3 * PAGE).unwrap();
    assert_eq!(region.refusal(2 * PAGE), None);
    assert_eq!(region[2 * PAGE + 5], 3);
    drop(region);
    end(&pager);
}

#[test]
fn past_the_end_of_a_file_is_a_signal() {
    let Some(pager) = pager() else { return };
    let file = numbered(4);
    let region = pager.file(file.try_clone().unwrap()).unwrap();
    assert_eq!(region[PAGE], 2);
    file.set_len(2 * PAGE_SIZE).unwrap();
    // SAFETY: the region's own memory.
    let signal = unsafe { access::load_u8(region.as_ptr().wrapping_add(3 * PAGE)) }.unwrap_err();
    assert!(signal.is_bus(), "{signal}");
    assert_eq!(region[0], 1);
    drop(region);
    end(&pager);
}

#[test]
fn used_up_memory_is_a_signal() {
    let Some(_) = pager() else { return };
    let pager = Pager::new(Options { memory: 10 * PAGE_SIZE, ..Options::default() }).unwrap();
    let region = pager.anonymous(32 * PAGE).unwrap();
    let mut written = 0;
    // SAFETY: the region's own memory.
    while written < 32 && unsafe { access::store_u8(region.as_ptr().wrapping_add(written * PAGE), 1) }.is_ok()
    {
        written += 1;
    }
    assert_eq!(written, 9, "one frame is the engine's");
    assert!(matches!(region.refusal(9 * PAGE), Some(FaultError::OutOfMemory { .. })));
    assert_eq!((region[0], region[8 * PAGE]), (1, 1));
    drop(region);
    end(&pager);
}

#[test]
fn a_store_that_found_no_memory_has_lost_nothing() {
    let Some(_) = pager() else { return };
    let pager = Pager::new(Options { memory: 10 * PAGE_SIZE, ..Options::default() }).unwrap();
    let mut region = pager.anonymous(8 * PAGE).unwrap();
    region.fill(7);
    let snapshot = region.snapshot().unwrap();
    let at = |page: usize| region.as_ptr().wrapping_add(page * PAGE);
    // SAFETY: the region's own memory.
    unsafe {
        access::store_u8(at(0), 1).unwrap();
        assert!(access::store_u8(at(1), 1).unwrap_err().is_bus(), "the last frame has been taken");
        assert!(matches!(region.refusal(PAGE), Some(FaultError::OutOfMemory { .. })));
        region.retry(PAGE..2 * PAGE).unwrap();
        assert_eq!(access::load_u8(at(1)), Ok(7));
        assert!(access::store_u8(at(1), 1).unwrap_err().is_bus(), "there is still no frame");
        drop(snapshot);
        region.retry(..).unwrap();
        assert_eq!(access::store_u8(at(1), 1), Ok(()));
    }
    assert_eq!((region[0], region[1], region[PAGE], region[PAGE + 1]), (1, 7, 1, 7));
    drop(region);
    end(&pager);
}

/// Returns `byte` if a load from a page that may only be fetched gets it here, in memory that no pager serves. `None` for a signal.
#[cfg(target_arch = "x86_64")]
fn load_of_fetched_only(byte: u8) -> Option<u8> {
    use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
    // SAFETY: a new mapping, which nothing else uses.
    unsafe {
        let place = std::ptr::null_mut();
        let page = rustix::mm::mmap_anonymous(place, PAGE, ProtFlags::WRITE, MapFlags::PRIVATE).unwrap();
        page.cast::<u8>().write(byte);
        rustix::mm::mprotect(page, PAGE, MprotectFlags::EXEC).unwrap();
        let loaded = access::load_u8(page.cast()).ok();
        rustix::mm::munmap(page, PAGE).unwrap();
        loaded
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn what_may_only_be_fetched_is_fetched() {
    let Some(pager) = pager() else { return };
    let mut file = tempfile::tempfile().unwrap();
    let ret = 0xc3;
    file.write_all(&[ret; PAGE]).unwrap();
    let region = pager.file(file).unwrap();
    // SAFETY: no reference into the region; the bytes are a function that returns.
    unsafe {
        region.protect(.., Protection::EXECUTE).unwrap();
        let returns: extern "C" fn() = std::mem::transmute(region.as_ptr());
        returns();
        // As on a mapping that no pager serves: a processor with protection keys forbids the read, and others cannot.
        assert_eq!(access::load_u8(region.as_ptr()).ok(), load_of_fetched_only(ret));
        assert!(access::store_u8(region.as_ptr(), 1).unwrap_err().is_segv());
    }
    drop(region);
    end(&pager);
}

#[test]
fn a_space_is_served_once() {
    let Some(pager) = pager() else { return };
    let space: AddressSpace<Linux, Faultless> = AddressSpace::new(pager.engine()).unwrap();
    let serving = Serving::of(&space).unwrap();
    assert_eq!(Serving::of(&space).err(), Some(ServeError::Served));
    drop((serving, space));
    end(&pager);
}

#[test]
fn many_reads_are_under_way_at_once() {
    let Some(pager) = pager() else { return };
    let gate = Arc::new(GatedStore::new(FileStore::from_file(numbered(16)).unwrap()));
    let region = pager.store(gate.clone()).unwrap();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..8)
            .map(|page| {
                let region = &region;
                scope.spawn(move || region[page * PAGE])
            })
            .collect();
        // All reads have reached the store though none has been answered: the handler waits for none of them.
        gate.wait_for(8);
        // The handler serves other faults meanwhile.
        let mut other = pager.anonymous(PAGE).unwrap();
        other[0] = 1;
        gate.open();
        for (page, reader) in readers.into_iter().enumerate() {
            assert_eq!(reader.join().unwrap(), page as u8 + 1);
        }
    });
    drop(region);
    end(&pager);
}

#[test]
fn the_kernel_reads_and_writes_regions() {
    let Some(pager) = pager() else { return };
    let mut region = pager.anonymous(8 * PAGE).unwrap();
    let mut file = numbered(8);
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_exact(&mut region).unwrap();
    assert!((0..8).all(|page| region[page * PAGE + 9] == page as u8 + 1));
    let copy = pager.file(file).unwrap();
    let mut out = tempfile::tempfile().unwrap();
    out.write_all(&copy).unwrap();
    out.seek(SeekFrom::Start(0)).unwrap();
    let mut bytes = Vec::new();
    out.read_to_end(&mut bytes).unwrap();
    assert!(bytes == region[..], "write(2) from pages that were not there");
    // To the kernel, a page that cannot be read is EFAULT.
    let failing =
        FailingStore::new(FileStore::from_file(numbered(2)).unwrap(), Direction::Read, Failure::From(1), EIO);
    let broken = pager.store(Arc::new(failing)).unwrap();
    let written = rustix::io::write(out.as_fd(), &broken);
    assert_eq!(written, Err(rustix::io::Errno::FAULT));
    drop((region, copy, broken));
    end(&pager);
}

#[test]
fn locked_pages_can_be_discarded() {
    let Some(pager) = pager() else { return };
    let mut region = pager.anonymous(4 * PAGE).unwrap();
    region.fill(1);
    // SAFETY: the region's own pages.
    if let Err(errno) = unsafe { rustix::mm::mlock(region.as_ptr().cast(), 4 * PAGE) } {
        let _ = writeln!(std::io::stderr(), "skipped: mlock: {errno}");
        return;
    }
    region.discard(..).unwrap();
    assert!(region.iter().all(|byte| *byte == 0));
    drop(region);
    end(&pager);
}

#[test]
fn a_child_of_fork_gets_a_signal_and_no_zeros() {
    let Some(pager) = pager() else { return };
    let mut region = pager.anonymous(4 * PAGE).unwrap();
    region[0] = 1;
    let start = region.as_ptr();
    // SAFETY: the child does nothing but one access, to an address where it has nothing mapped, and exits.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above.
        unsafe {
            std::ptr::read_volatile(start);
            libc::_exit(0);
        }
    }
    let mut status = 0;
    // SAFETY: a child of this process, and a number to write.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status:#x}");
    drop(region);
    end(&pager);
}

#[test]
fn wrong_lengths_are_typed_errors() {
    let Some(_) = pager() else { return };
    assert!(matches!(Region::anonymous(0), Err(RegionError::Empty)));
    assert!(matches!(Region::anonymous(usize::MAX), Err(RegionError::NoRoom { .. })));
    let empty = tempfile::tempfile().unwrap();
    assert!(matches!(Region::file(empty), Err(RegionError::File(_))));
    let none = Pager::new(Options { memory: 0, ..Options::default() });
    assert!(matches!(none, Err(OpenError::Memory(_))));
    let tight = Options { limits: Limits { mappings: 0, ..Limits::default() }, ..Options::default() };
    let region = Pager::new(tight).unwrap().anonymous(3 * PAGE).unwrap();
    // SAFETY: nothing is unmapped, since the limit does not allow two mappings; and there are no references.
    assert!(matches!(unsafe { region.unmap(PAGE..2 * PAGE) }, Err(RegionError::Unmap(_))));
}

/// mmap refuses it too. The error comes from this call, and not as a SIGBUS at the first touch.
#[test]
fn a_file_opened_to_write_only_is_refused() {
    let Some(pager) = pager() else { return };
    let named = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(named.path(), [7; PAGE]).expect("a page written");
    let open = |options: &mut std::fs::OpenOptions| options.open(named.path()).expect("an open file");
    let refused = pager.file(open(std::fs::OpenOptions::new().write(true)));
    assert!(matches!(refused, Err(RegionError::Map(faultless::MapError::NotReadable))));
    let region = pager.file(open(std::fs::OpenOptions::new().read(true))).expect("a region");
    assert_eq!(region[PAGE - 1], 7);
    drop(region);
    end(&pager);
}
