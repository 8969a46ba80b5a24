//! Writable shared memory: files with dirty pages and writeback, msync, shared memory without a file.

use crate::*;
use faultless::protection::{Access, Sharing};
use faultless::stats::Counter;
use faultless::store::{Direction, FailingStore, Failure, InjectedError, Store, StoreError};
use faultless::sync::Shared;
use faultless::vma::MappingFlags;
use faultless::{FileError, MapError, ProtectError, Source, SyncError, SyncFlags};
use faultless_soft::Cpu;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

under_every_design! {
    a_file_opened_to_be_read_has_no_writable_shared_mapping
    stores_are_seen_by_all_and_reach_the_file
    a_clean_page_faults_at_the_next_store
    msync_checks_its_arguments
    shared_anonymous_memory_is_the_childrens_too
    invariant_9_a_failed_write_stays_dirty_and_is_told_once_to_each_handle
    invariant_9_eviction_drops_nothing_dirty
    invariant_9_a_file_that_goes_is_written
    a_store_waits_for_the_write_of_its_page
    a_page_under_io_stays_dirty
    usage_counts_a_page_of_a_file_as_dirty_until_it_is_written_back
    a_crowd_of_stores_syncs_and_truncations
}

// Real memory cannot show one page in two places.
on_real_memory! {
    writable_shared_mappings_are_refused
}

/// A file on disk with the engine's file for it.
pub(crate) struct Real<S: Stand, T> {
    pub file: Shared<File<S>>,
    pub store: Arc<T>,
    pub on_disk: tempfile::NamedTempFile,
}

impl<S: Stand, T: Store> Real<S, T> {
    /// Makes a file whose page `n` is full of byte `n + 1`. `wrap` makes the store between it and the engine.
    pub fn with(machine: &Machine<S>, pages: u64, wrap: impl FnOnce(FileStore) -> T) -> Self {
        let mut on_disk = tempfile::NamedTempFile::new().expect("a temporary file");
        for page in 0..pages {
            on_disk.write_all(&[page as u8 + 1; PAGE_SIZE as usize]).expect("a page written");
        }
        let store = Arc::new(wrap(FileStore::open_rw(on_disk.path()).expect("a store")));
        let file = File::open_rw(&machine.engine, store.clone()).expect("a length");
        Self { file, store, on_disk }
    }

    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.on_disk.path()).expect("the file's bytes")
    }

    /// Returns the first word of a page, on disk.
    pub fn word(&self, page: u64) -> u64 {
        let at = (page * PAGE_SIZE) as usize;
        u64::from_ne_bytes(self.bytes()[at..at + 8].try_into().expect("eight bytes"))
    }
}

impl<S: Stand> Real<S, FileStore> {
    pub fn new(machine: &Machine<S>, pages: u64) -> Self {
        Self::with(machine, pages, |store| store)
    }
}

pub(crate) fn shared<S: Stand>(
    file: &Shared<File<S>>,
    page: u64,
    pages: u64,
    rights: Protection,
) -> MapRequest<S> {
    MapRequest::shared_file(file, 0, pages * PAGE_SIZE, rights).at(Placement::Fixed(at(page)))
}

pub(crate) fn byte(page: u64, offset: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE + offset)
}

pub(crate) const SYNC: SyncFlags = SyncFlags::SYNC;

fn a_file_opened_to_be_read_has_no_writable_shared_mapping<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let read_only = machine.file(4);
    for rights in [READ_WRITE, Protection::WRITE] {
        let refused = space.map(shared(&read_only, 10, 1, rights)).unwrap_err();
        assert_eq!((refused, refused.errno()), (MapError::SharedWrite, 13));
    }
    space.map(shared(&read_only, 10, 4, Protection::READ)).unwrap();
    let refused = space.protect(at(11), PAGE_SIZE, READ_WRITE).unwrap_err();
    assert!(matches!(refused, ProtectError::SharedWrite { address } if address == at(11)));
    assert_eq!(refused.errno(), 13);
    let handle = read_only.handle();
    assert_eq!(handle.write_at(0, &[1]), Err(FileError::NotWritable));
    assert_eq!(handle.set_length(0), Err(FileError::NotWritable));
    assert_eq!(handle.punch_hole(0, 1), Err(FileError::NotWritable));

    let real = Real::new(&machine, 4);
    space.map(shared(&real.file, 10, 4, Protection::READ)).unwrap();
    assert!(matches!(fault_of(space.store_u64(at(11), 5)), FaultError::Protection { .. }));
    space.protect(at(11), PAGE_SIZE, READ_WRITE).unwrap();
    space.store_u64(at(11), 5).unwrap();
    space.protect(at(11), PAGE_SIZE, Protection::READ).unwrap();
    real.file.sync().unwrap();
    assert_eq!(real.word(1), 5, "a store is kept when the write right is removed");
    drop((space, read_only, handle, real));
    machine.end()
}

fn stores_are_seen_by_all_and_reach_the_file<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 4);
    let (one, other) = (machine.space::<D>(), machine.space::<D>());
    one.map(shared(&real.file, 10, 4, READ_WRITE)).unwrap();
    other.map(shared(&real.file, 20, 4, READ_WRITE)).unwrap();
    other.map(of_file(&real.file, 30, 4, READ_WRITE)).unwrap();
    assert_eq!(other.load_u64(at(21)).unwrap(), word(2));
    one.store_u64(at(11), 77).unwrap();
    assert_eq!(other.load_u64(at(21)).unwrap(), 77);
    assert_eq!(other.load_u64(at(31)).unwrap(), 77, "a private mapping shows the file until it is stored to");
    other.store_u64(at(31), 1).unwrap();
    other.store_u64(at(21), 78).unwrap();
    assert_eq!((one.load_u64(at(11)).unwrap(), other.load_u64(at(31)).unwrap()), (78, 1));
    let child = one.fork().unwrap();
    child.store_u64(at(12), 79).unwrap();
    assert_eq!(one.load_u64(at(12)).unwrap(), 79, "a child stores into the same page");
    // Under pressure a page may be written to make room.
    assert!(stand::pressure::is_on() || real.word(1) == word(2), "nothing is written yet");
    one.sync(at(10), 4 * PAGE_SIZE, SYNC).unwrap();
    assert_eq!((real.word(1), real.word(2), real.word(3)), (78, 79, word(4)));
    for space in [&one, &other, &child] {
        space.audit().unwrap();
    }
    drop((one, other, child, real));
    machine.end()
}

fn a_clean_page_faults_at_the_next_store<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 1);
    let space = machine.space::<D>();
    space.map(shared(&real.file, 10, 1, READ_WRITE)).unwrap();
    space.load_u64(at(10)).unwrap();
    assert!(space.try_store_u64(at(10), 1).is_err(), "a read maps without the write right");
    space.store_u64(at(10), 1).unwrap();
    assert!(space.try_store_u64(at(10), 2).is_ok());
    let writes = || machine.engine.statistics().get(Counter::IoWrites);
    for round in 0..3 {
        space.sync(at(10), 1, SYNC).unwrap();
        assert_eq!((real.word(0), writes()), (2 + round, round + 1));
        space.sync(at(10), 1, SYNC).unwrap();
        assert_eq!(writes(), round + 1, "a clean page is not written");
        assert!(space.try_store_u64(at(10), 9).is_err(), "writeback takes the write right");
        space.store_u64(at(10), 3 + round).unwrap();
    }
    // Unmapped while it is dirty; it is still written.
    space.unmap(at(10), PAGE_SIZE).unwrap();
    real.file.sync().unwrap();
    assert_eq!(real.word(0), 5);
    drop((space, real));
    machine.end()
}

fn msync_checks_its_arguments<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 8);
    let space = machine.space::<D>();
    space.map(shared(&real.file, 10, 8, READ_WRITE)).unwrap();
    let errno = |result: Result<(), SyncError>| result.map_or_else(|error| error.errno(), |()| 0);
    let call = |address, length, flags| errno(space.sync(address, length, flags));
    let (none, both) = (SyncFlags::empty(), SyncFlags::SYNC | SyncFlags::ASYNC);
    assert_eq!(call(at(10), PAGE_SIZE, both), 22);
    assert_eq!(call(byte(10, 1), PAGE_SIZE, SYNC), 22);
    assert_eq!(call(byte(10, 1), 0, SYNC), 22);
    assert_eq!(call(at(10), 0, SYNC), 0);
    assert_eq!(call(at(10), u64::MAX, SYNC), 0, "the length is rounded up to zero");
    assert_eq!(call(at(10), PAGE_SIZE, none), 0);
    assert_eq!(call(at(100), 0, SYNC), 0);
    assert_eq!(call(at(100), PAGE_SIZE, none), 12);
    assert_eq!(call(at(10), u64::MAX - 2 * PAGE_SIZE, SYNC), 12);
    // With a hole in the range, the mapped pages are written nevertheless.
    space.unmap(at(14), PAGE_SIZE).unwrap();
    space.store_u64(at(10), 1).unwrap();
    space.store_u64(at(17), 2).unwrap();
    assert!(
        matches!(space.sync(at(10), 8 * PAGE_SIZE, SYNC), Err(SyncError::Hole { address }) if address == at(14))
    );
    assert_eq!((real.word(0), real.word(7)), (1, 2));
    assert_eq!(call(at(10), 8 * PAGE_SIZE, SyncFlags::ASYNC), 12);
    assert_eq!(call(at(10), 8 * PAGE_SIZE, SyncFlags::INVALIDATE), 12);
    // Locked mappings.
    let locked = MapRequest { flags: MappingFlags::LOCKED, ..anonymous(30, 1) };
    space.map(locked).unwrap();
    assert_eq!(call(at(30), PAGE_SIZE, SyncFlags::INVALIDATE), 16);
    assert_eq!(call(at(30), PAGE_SIZE, SYNC), 0, "nothing to write");
    // ASYNC writes nothing. The handle of its file can start the write.
    space.store_u64(at(10), 3).unwrap();
    assert_eq!((call(at(10), PAGE_SIZE, SyncFlags::ASYNC), real.word(0)), (0, 1));
    real.file.handle().start_sync();
    wait_until("the write was not started", || real.word(0) == 3);
    drop((space, real));
    machine.end()
}

fn shared_anonymous_memory_is_the_childrens_too<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let parent = machine.space::<D>();
    let request = MapRequest::shared_anonymous(4 * PAGE_SIZE).at(Placement::Fixed(at(10)));
    parent.map(request).unwrap();
    assert_eq!(parent.load_u64(at(12)).unwrap(), 0);
    parent.store_u64(at(10), 1).unwrap();
    let child = parent.fork().unwrap();
    child.store_u64(at(10), 2).unwrap();
    child.store_u64(at(11), 3).unwrap();
    assert_eq!((parent.load_u64(at(10)).unwrap(), parent.load_u64(at(11)).unwrap()), (2, 3));
    parent.discard(at(10), PAGE_SIZE).unwrap();
    assert_eq!(parent.load_u64(at(10)).unwrap(), 2, "the memory belongs to both spaces");
    parent.sync(at(10), PAGE_SIZE, SYNC).unwrap();
    drop(parent);
    machine.engine.flush();
    assert_eq!(child.load_u64(at(11)).unwrap(), 3, "it lives as long as the last mapping");
    assert!(stand::pressure::is_on() || machine.frames() == 3, "{} frames", machine.frames());
    child.unmap(at(10), 4 * PAGE_SIZE).unwrap();
    machine.engine.flush();
    wait_until("frames of a mapping are left", || machine.frames() == 0);
    // Each mapping is memory of its own, so that two never merge.
    for page in [10, 11] {
        child.map(MapRequest::shared_anonymous(PAGE_SIZE).at(Placement::Fixed(at(page)))).unwrap();
    }
    assert_eq!(child.mappings().len(), 2);
    // Without memory, a store gets a typed error, and no page is lost.
    child.store_u64(at(10), 6).unwrap();
    machine.engine.host().fail_frames_from(Some(1));
    assert!(matches!(fault_of(child.store_u64(at(11), 1)), FaultError::OutOfMemory { .. }));
    machine.engine.host().fail_frames_from(None);
    assert_eq!((child.load_u64(at(10)).unwrap(), child.load_u64(at(11)).unwrap()), (6, 0));
    child.audit().unwrap();
    drop(child);
    machine.end()
}

fn invariant_9_a_failed_write_stays_dirty_and_is_told_once_to_each_handle<S: Stand, D: LockingDesign>()
-> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::with(&machine, 2, |store| {
        FailingStore::new(store, Direction::Write, Failure::Once(1), InjectedError::Io { errno: 5 })
    });
    let space = machine.space::<D>();
    space.map(shared(&real.file, 10, 2, READ_WRITE)).unwrap();
    let (one, other) = (real.file.handle(), real.file.handle());
    let told = |result| matches!(result, Err(FileError::Store(StoreError::Io { errno: 5, .. })));
    space.store_u64(at(11), 7).unwrap();
    assert!(told(one.sync()), "invariant 9: a failed write is reported");
    assert_eq!(real.word(1), word(2));
    assert!(told(other.sync()), "invariant 9: it is reported to each handle");
    assert_eq!(real.word(1), 7, "invariant 9: a page whose write failed is written by the next sync");
    let error = space.sync(at(10), 1, SYNC).unwrap_err();
    assert_eq!(error.errno(), 5, "it is reported to the mappings too, for any page");
    assert_eq!(
        (one.sync(), other.sync(), real.file.sync()),
        (Ok(()), Ok(()), Ok(())),
        "each handle reports it once"
    );
    assert_eq!(space.sync(at(10), 2 * PAGE_SIZE, SYNC), Ok(()));
    // An error that was not reported yet is reported to a handle that is opened later. A reported error is not.
    assert_eq!(real.file.handle().sync(), Ok(()));
    real.store.set(Some(Failure::Once(real.store.operations() + 1)));
    space.store_u64(at(10), 8).unwrap();
    real.file.handle().start_sync();
    assert!(told(real.file.handle().sync()), "it was not reported yet");
    assert_eq!(real.file.handle().sync(), Ok(()), "it was reported already");
    assert!(told(one.sync()) && told(other.sync()), "handles that were open before still report it");
    assert_eq!((one.sync(), real.word(0)), (Ok(()), 8));
    assert!(machine.engine.statistics().get(Counter::WritebackErrors) > 0);
    space.audit().unwrap();
    drop((space, real, one, other));
    machine.end()
}

fn invariant_9_eviction_drops_nothing_dirty<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::with(256, Limits { cached_pages: 8, ..Limits::default() })?;
    let real = Real::new(&machine, 64);
    let handle = real.file.handle();
    let space = machine.space::<D>();
    for round in 0..3 {
        for page in 0..64 {
            if page % 2 == 0 {
                handle.write_at(page * PAGE_SIZE, &(round * 100 + page).to_ne_bytes()).unwrap();
            } else {
                let request = MapRequest::shared_file(&real.file, page, PAGE_SIZE, READ_WRITE);
                space.map(request.at(Placement::Fixed(at(10)))).unwrap();
                space.store_u64(at(10), round * 100 + page).unwrap();
            }
            assert!(machine.engine.cached_pages() <= 8);
        }
        for page in 0..64 {
            let mut bytes = [0; 8];
            handle.read_at(page * PAGE_SIZE, &mut bytes).unwrap();
            assert_eq!(
                u64::from_ne_bytes(bytes),
                round * 100 + page,
                "invariant 9: a dirty page was dropped"
            );
        }
    }
    handle.sync().unwrap();
    for page in 0..64 {
        assert_eq!(real.word(page), 200 + page);
    }
    drop((space, real, handle));
    machine.end()
}

fn invariant_9_a_file_that_goes_is_written<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 4);
    let space = machine.space::<D>();
    space.map(shared(&real.file, 10, 4, READ_WRITE)).unwrap();
    space.store_u64(at(11), 5).unwrap();
    space.store_u64(at(13), 6).unwrap();
    let Real { file, store, on_disk } = real;
    drop((space, file, store));
    // Its last page is free as soon as it is written.
    machine.end()?;
    let bytes = std::fs::read(on_disk.path()).unwrap();
    let at = |page: usize| u64::from_ne_bytes(bytes[page * 4096..page * 4096 + 8].try_into().unwrap());
    assert_eq!(
        (at(0), at(1), at(2), at(3)),
        (word(1), 5, word(3), 6),
        "invariant 9: dirty pages went with the file"
    );
    Ok(())
}

fn a_store_waits_for_the_write_of_its_page<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::with(&machine, 2, GatedStore::new);
    let space = machine.space::<D>();
    space.map(shared(&real.file, 10, 2, READ_WRITE)).unwrap();
    std::thread::scope(|scope| {
        let store = scope.spawn(|| space.store_u64(at(10), 1).unwrap());
        real.store.wait_for(1);
        real.store.pass(1);
        store.join().unwrap();
        let sync = scope.spawn(|| space.sync(at(10), PAGE_SIZE, SYNC).unwrap());
        real.store.wait_for(1);
        // The write is running. Loads succeed, and stores wait. In the default design, a waiting store holds nothing.
        assert_eq!(space.load_u64(at(10)).unwrap(), 1);
        assert!(space.try_store_u64(at(10), 2).is_err());
        let store = scope.spawn(|| space.store_u64(at(10), 2).unwrap());
        std::thread::sleep(Duration::from_millis(5));
        assert!(!store.is_finished(), "a store into a page that is being written");
        assert!(!sync.is_finished());
        real.store.open();
        store.join().unwrap();
        sync.join().unwrap();
    });
    assert_eq!(real.word(0), 1);
    real.file.sync().unwrap();
    assert_eq!(real.word(0), 2);
    // The last drop also covers a fault that is given up while it waits.
    drop((space, real));
    machine.end()
}

fn a_page_under_io_stays_dirty<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 1);
    let space = machine.space::<D>();
    space.map(shared(&real.file, 10, 1, READ_WRITE)).unwrap();
    let pinned = space.pin(at(10), Access::Write).unwrap();
    assert_eq!(pinned.write(0, &1_u64.to_ne_bytes()), 8);
    real.file.sync().unwrap();
    assert_eq!(real.word(0), 1);
    assert_eq!(pinned.write(0, &2_u64.to_ne_bytes()), 8);
    drop(pinned);
    real.file.sync().unwrap();
    assert_eq!(real.word(0), 2, "invariant 9: written by a device after the page had been written back");
    drop((space, real));
    machine.end()
}

/// As in Linux's smaps, a page is dirty in each of its mappings if the entry there or the page itself is dirty.
fn usage_counts_a_page_of_a_file_as_dirty_until_it_is_written_back<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, real) = (machine.space::<D>(), Real::new(&machine, 2));
    space.map(shared(&real.file, 10, 2, READ_WRITE)).unwrap();
    /// Returns the pages: shared clean, shared dirty, private clean, private dirty.
    fn dirty<S: Stand, D: LockingDesign>(space: &Space<S, D>) -> [u64; 4] {
        let usage = space.usage()[0];
        [usage.shared_clean, usage.shared_dirty, usage.private_clean, usage.private_dirty]
            .map(|n| n / PAGE_SIZE)
    }
    assert_eq!((space.load_u64(at(10)), space.load_u64(at(11))), (Ok(word(1)), Ok(word(2))));
    assert_eq!(dirty(&space), [0, 0, 2, 0]);
    space.store_u64(at(10), 1).unwrap();
    assert_eq!(dirty(&space), [0, 0, 1, 1]);
    space.sync(at(10), 2 * PAGE_SIZE, SYNC).unwrap();
    assert_eq!(dirty(&space), [0, 0, 2, 0], "msync has written it");
    space.store_u64(at(11), 1).unwrap();
    assert_eq!(dirty(&space), [0, 0, 1, 1]);
    real.file.sync().unwrap();
    assert_eq!(dirty(&space), [0, 0, 2, 0], "fsync has written it");
    // A write by a handle makes no entry dirty.
    real.file.handle().write_at(0, &[7; 8]).unwrap();
    assert_eq!(dirty(&space), [0, 0, 1, 1], "write(2) has made it dirty");
    real.file.sync().unwrap();
    // A store through one mapping makes the page dirty in all mappings, private ones too.
    let other = machine.space::<D>();
    other.map(of_file(&real.file, 10, 2, READ_WRITE)).unwrap();
    assert_eq!(other.load_u64(at(10)), Ok(word(7)));
    assert_eq!((dirty(&space), dirty(&other)), ([1, 0, 1, 0], [1, 0, 0, 0]));
    space.store_u64(at(10), 2).unwrap();
    assert_eq!((dirty(&space), dirty(&other)), ([0, 1, 1, 0], [0, 1, 0, 0]));
    real.file.sync().unwrap();
    assert_eq!((dirty(&space), dirty(&other)), ([1, 0, 1, 0], [1, 0, 0, 0]));
    // A private copy has no other store, so it stays dirty after writeback.
    other.store_u64(at(10), 3).unwrap();
    real.file.sync().unwrap();
    assert_eq!((dirty(&space), dirty(&other)), ([0, 0, 2, 0], [0, 0, 0, 1]));
    drop((space, other, real));
    machine.end()
}

/// Two spaces store to shared mappings while other threads sync, truncate, extend and punch the file. At the end, every
/// page below the truncations holds the last store.
fn a_crowd_of_stores_syncs_and_truncations<S: Stand, D: LockingDesign>() -> Ran<S> {
    const PAGES: u64 = 16;
    /// The pages from here on are truncated at times.
    const STAYS: u64 = 8;
    let machine = Machine::<S>::with(256, Limits { cached_pages: 24, ..Limits::default() })?;
    let real = Real::new(&machine, PAGES);
    let (one, other) = (machine.space::<D>(), machine.space::<D>());
    let stop = AtomicBool::new(false);
    let last: [AtomicU64; 3] = std::array::from_fn(|_| AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _stopped = Stopped(&stop);
        for (thread, space) in [&one, &other, &one].into_iter().enumerate() {
            let (stop, last, real) = (&stop, &last, &real);
            scope.spawn(move || {
                let base = 100 * (1 + thread as u64);
                let map = |page| space.map(shared(&real.file, page, PAGES, READ_WRITE)).unwrap();
                map(base);
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    for page in 0..PAGES {
                        // Each thread has its own word in each page.
                        let address = byte(base + page, 64 * thread as u64);
                        match space.store_u64(address, round) {
                            Ok(()) => {}
                            Err(faultless_soft::AccessError::Fault(FaultError::PastEnd { .. }))
                                if page >= STAYS => {}
                            Err(error) => panic!("{error}"),
                        }
                        if page < STAYS {
                            let seen = space.load_u64(address).unwrap();
                            assert_eq!(seen, round, "invariant 9: a store was lost");
                        }
                    }
                    if round % 16 == 0 {
                        map(base);
                    }
                }
                last[thread].store(round, Ordering::Relaxed);
            });
        }
        scope.spawn(|| {
            let handle = real.file.handle();
            while !stop.load(Ordering::Relaxed) {
                real.file.sync().unwrap();
                match one.sync(at(100), PAGES * PAGE_SIZE, SYNC) {
                    Ok(()) | Err(SyncError::Hole { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
                handle.write_at(512, &[1; 8]).unwrap();
                handle.sync().unwrap();
            }
        });
        let handle = real.file.handle();
        let end = Instant::now() + Duration::from_millis(300);
        let mut step = 0;
        while Instant::now() < end {
            step += 1;
            handle.set_length((STAYS + step % 5) * PAGE_SIZE + step % 3 * 8).unwrap();
            handle.set_length(PAGES * PAGE_SIZE).unwrap();
            handle.punch_hole((STAYS + step % 8) * PAGE_SIZE, PAGE_SIZE).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    real.file.sync().unwrap();
    let bytes = real.bytes();
    assert_eq!(bytes.len() as u64, PAGES * PAGE_SIZE);
    for (thread, last) in last.iter().enumerate() {
        for page in 0..STAYS as usize {
            let at = page * PAGE_SIZE as usize + 64 * thread;
            let stored = u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
            assert_eq!(stored, last.load(Ordering::Relaxed), "invariant 9: page {page} lost a store");
        }
    }
    one.audit().unwrap();
    other.audit().unwrap();
    drop((one, other, real));
    machine.end()
}

#[cfg(target_os = "linux")]
fn writable_shared_mappings_are_refused<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let real = Real::new(&machine, 1);
    let refused = space.map(shared(&real.file, 10, 1, READ_WRITE)).unwrap_err();
    assert_eq!((refused, refused.errno()), (MapError::SharedWriteUnsupported, 95));
    let refused = space.map(MapRequest::shared_anonymous(PAGE_SIZE)).unwrap_err();
    assert_eq!(refused, MapError::SharedWriteUnsupported);
    let source = Source::File { file: real.file.clone(), first: 0, sharing: Sharing::Shared };
    let request = MapRequest { source, ..anonymous(10, 1).protection(Protection::READ) };
    space.map(request).unwrap();
    assert!(matches!(space.protect(at(10), 1, READ_WRITE), Err(ProtectError::SharedWrite { .. })));
    assert_eq!(space.load_u64(at(10)).unwrap(), word(1));
    drop((space, real));
    machine.end()
}
