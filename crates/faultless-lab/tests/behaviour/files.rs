//! Files by their handles, and files in memory: reads, writes, truncation, holes.

use crate::shared::{Real, SYNC, byte, shared};
use crate::*;
use faultless::errno::{EACCES, EBADF, EINVAL, ENOMEM};
use faultless::protection::Sharing;
use faultless::stats::Counter;
use faultless::store::StoreError;
use faultless::vma::MappingFlags;
use faultless::{
    Advice, AdviseError, FileError, FileHandle, FileRights, LockMode, MapError, ProtectError, RemapRequest,
};
use faultless_soft::Cpu;

under_every_design! {
    reads_and_writes_by_handle_go_through_the_cache
    cutting_off_keeps_the_rest_of_a_page
    a_hole_is_zeros_and_private_copies_stay
    memory_files_are_cut_off_like_any
    reading_a_hole_of_a_memory_file_fills_nothing
    removing_punches_holes_in_what_is_shared
    removing_goes_by_the_mapping
    removing_holds_nothing_while_it_waits
    a_handle_does_what_it_was_opened_for
    a_handles_rights_bound_its_mappings
}

// On real memory, a page that is already mapped does not show a write by a handle.
on_real_memory! {
    a_handle_does_what_it_was_opened_for
    a_handles_rights_bound_its_mappings
}

fn reads_and_writes_by_handle_go_through_the_cache<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 2);
    let space = machine.space::<D>();
    space.map(shared(&real.file, 10, 4, READ_WRITE)).unwrap();
    let handle = real.file.handle();
    space.store_u64(at(10), 7).unwrap();
    let mut bytes = [0; 12];
    assert_eq!(handle.read_at(0, &mut bytes), Ok(12));
    assert_eq!((&bytes[..8], &bytes[8..]), (&7_u64.to_ne_bytes()[..], &[1; 4][..]));
    // Across the border of two pages.
    assert_eq!(handle.write_at(PAGE_SIZE - 8, &[9; 16]), Ok(16));
    assert_eq!(
        (space.load_u64(byte(10, PAGE_SIZE - 8)).unwrap(), space.load_u64(at(11)).unwrap()),
        (word(9), word(9))
    );
    assert_eq!(handle.read_at(2 * PAGE_SIZE - 4, &mut bytes), Ok(4), "up to the end");
    assert_eq!(handle.read_at(2 * PAGE_SIZE, &mut bytes), Ok(0));
    assert_eq!(handle.read_at(u64::MAX, &mut bytes), Ok(0));
    // A write behind the end makes the file longer, with zeros between.
    assert!(matches!(fault_of(space.load_u64(at(12))), FaultError::PastEnd { .. }));
    assert_eq!(handle.write_at(3 * PAGE_SIZE + 5, &[4; 2]), Ok(2));
    assert_eq!(real.file.length(), 3 * PAGE_SIZE + 7);
    assert_eq!(space.load_u64(at(12)).unwrap(), 0);
    assert!(matches!(handle.write_at(u64::MAX, &[1]), Err(FileError::TooLong { .. })));
    assert!(matches!(handle.set_length(u64::MAX), Err(FileError::TooLong { .. })));
    handle.sync().unwrap();
    let on_disk = real.bytes();
    assert_eq!(on_disk.len() as u64, 3 * PAGE_SIZE + 7);
    assert_eq!(on_disk[PAGE_SIZE as usize - 8..PAGE_SIZE as usize + 9], [[9; 16].as_slice(), &[2]].concat());
    assert_eq!(on_disk[3 * PAGE_SIZE as usize..], [0, 0, 0, 0, 0, 4, 4]);
    drop((space, real, handle));
    machine.end()
}

fn cutting_off_keeps_the_rest_of_a_page<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 4);
    let handle = real.file.handle();
    let space = machine.space::<D>();
    space.map(shared(&real.file, 10, 4, READ_WRITE)).unwrap();
    space.map(of_file(&real.file, 20, 4, READ_WRITE)).unwrap();
    for page in 0..4 {
        space.store_u64(byte(20 + page, 3000), 50 + page).unwrap();
        space.store_u64(at(10 + page), 70 + page).unwrap();
    }
    handle.set_length(PAGE_SIZE + 104).unwrap();
    assert_eq!(real.bytes().len() as u64, PAGE_SIZE + 104);
    // The partial page stays dirty, and has zeros behind the end. A private copy of it does not change.
    assert_eq!(space.load_u64(at(11)).unwrap(), 71);
    assert_eq!((space.load_u64(byte(11, 96)).unwrap(), space.load_u64(byte(11, 104)).unwrap()), (word(2), 0));
    assert_eq!(space.load_u64(byte(21, 3000)).unwrap(), 51);
    for gone in [12, 13, 22, 23] {
        assert!(matches!(fault_of(space.load_u64(at(gone))), FaultError::PastEnd { .. }));
        assert!(matches!(fault_of(space.store_u64(at(gone), 1)), FaultError::PastEnd { .. }));
    }
    // A store behind the end is not kept.
    space.store_u64(byte(11, 200), 5).unwrap();
    space.sync(at(11), PAGE_SIZE, SYNC).unwrap();
    assert_eq!(space.load_u64(byte(11, 200)).unwrap(), 0, "zeros once it is written");
    space.store_u64(byte(11, 200), 6).unwrap();
    handle.set_length(4 * PAGE_SIZE).unwrap();
    assert_eq!(space.load_u64(byte(11, 200)).unwrap(), 0, "and when the file grows");
    assert_eq!((space.load_u64(at(12)).unwrap(), space.load_u64(at(22)).unwrap()), (0, 0));
    space.store_u64(at(13), 8).unwrap();
    handle.sync().unwrap();
    assert_eq!((real.word(0), real.word(1), real.word(2), real.word(3)), (70, 71, 0, 8));
    space.audit().unwrap();
    drop((space, real, handle));
    machine.end()
}

fn a_hole_is_zeros_and_private_copies_stay<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 4);
    let handle = real.file.handle();
    let space = machine.space::<D>();
    space.map(shared(&real.file, 10, 4, READ_WRITE)).unwrap();
    space.map(of_file(&real.file, 20, 4, READ_WRITE)).unwrap();
    for page in 0..4 {
        space.store_u64(at(10 + page), 70 + page).unwrap();
    }
    space.store_u64(byte(21, 3000), 91).unwrap();
    space.load_u64(at(22)).unwrap();
    //   page   0      1   2   3
    //   hole     [104 . . . . 48)
    handle.punch_hole(104, 3 * PAGE_SIZE + 48 - 104).unwrap();
    let seen = |page, offset| space.load_u64(byte(page, offset)).unwrap();
    assert_eq!([seen(10, 0), seen(10, 96), seen(10, 104)], [70, word(1), 0]);
    assert_eq!([seen(11, 0), seen(12, 0), seen(13, 0), seen(13, 48)], [0, 0, 0, word(4)]);
    assert_eq!([seen(21, 3000), seen(21, 0), seen(22, 0)], [91, 71, 0], "a copy stays, the file's page goes");
    assert_eq!(handle.punch_hole(0, 0), Err(FileError::EmptyHole));
    handle.punch_hole(100 * PAGE_SIZE, PAGE_SIZE).unwrap();
    space.store_u64(at(12), 5).unwrap();
    handle.sync().unwrap();
    let on_disk = real.bytes();
    assert_eq!(on_disk.len() as u64, 4 * PAGE_SIZE, "it stays as long as it was");
    assert_eq!((real.word(1), real.word(2)), (0, 5));
    assert_eq!((on_disk[103], on_disk[104], on_disk[3 * PAGE_SIZE as usize + 47]), (1, 0, 0));
    // A hole over the end clears the last page completely.
    handle.punch_hole(3 * PAGE_SIZE, 100 * PAGE_SIZE).unwrap();
    assert_eq!(seen(13, 48), 0);
    drop((space, real, handle));
    machine.end()
}

fn memory_files_are_cut_off_like_any<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let file = File::in_memory(&machine.engine, 4 * PAGE_SIZE).unwrap();
    let (one, other) = (machine.space::<D>(), machine.space::<D>());
    one.map(shared(&file, 10, 4, READ_WRITE)).unwrap();
    other.map(shared(&file, 20, 4, Protection::READ)).unwrap();
    for page in 0..4 {
        one.store_u64(at(10 + page), page + 1).unwrap();
        assert_eq!(other.load_u64(at(20 + page)).unwrap(), page + 1);
    }
    let handle = file.handle();
    let mut bytes = [0; 8];
    assert_eq!((handle.read_at(PAGE_SIZE, &mut bytes), bytes), (Ok(8), 2_u64.to_ne_bytes()));
    handle.set_length(PAGE_SIZE + 8).unwrap();
    assert!(stand::pressure::is_on() || machine.frames() == 2, "{} frames", machine.frames());
    assert!(matches!(fault_of(other.load_u64(at(22))), FaultError::PastEnd { .. }));
    one.store_u64(byte(11, 200), 5).unwrap();
    file.set_length(4 * PAGE_SIZE).unwrap();
    assert_eq!(other.load_u64(byte(21, 200)).unwrap(), 5, "as in tmpfs");
    assert_eq!((other.load_u64(at(21)).unwrap(), other.load_u64(at(22)).unwrap()), (2, 0));
    handle.punch_hole(PAGE_SIZE, PAGE_SIZE).unwrap();
    assert_eq!((other.load_u64(at(20)).unwrap(), other.load_u64(at(21)).unwrap()), (1, 0));
    assert_eq!(handle.write_at(2 * PAGE_SIZE, &[3; 8]), Ok(8));
    assert_eq!(one.load_u64(at(12)).unwrap(), word(3));
    handle.sync().unwrap();
    assert_eq!(machine.engine.statistics().get(Counter::IoWrites), 0);
    drop((one, other, file, handle));
    machine.end()
}

fn remove<S: Stand, D: LockingDesign>(space: &Space<S, D>, page: u64, pages: u64) -> Result<(), AdviseError> {
    space.advise(at(page), pages * PAGE_SIZE, Advice::Remove)
}

fn removing_punches_holes_in_what_is_shared<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 8);
    let space = machine.space::<D>();
    // The file is mapped twice, the second time from page 2 on. Page 3 has a private copy.
    space.map(shared(&real.file, 10, 8, READ_WRITE)).unwrap();
    space.map(MapRequest::shared_file(&real.file, 2, 4 * PAGE_SIZE, Protection::READ).at(fixed(30))).unwrap();
    space.map(of_file(&real.file, 50, 8, READ_WRITE)).unwrap();
    (10..18).for_each(|page| space.store_u64(at(page), page).unwrap());
    space.store_u64(at(53), 9).unwrap();
    remove(&space, 31, 2).unwrap();
    let seen = |page| space.load_u64(at(page)).unwrap();
    assert_eq!(
        [seen(12), seen(13), seen(14), seen(15)],
        [12, 0, 0, 15],
        "by a mapping that may be read only"
    );
    assert_eq!((seen(31), seen(53), seen(54)), (0, 9, 0), "a private copy stays");
    real.file.sync().unwrap();
    assert_eq!((real.word(3), real.word(4), real.word(5)), (0, 0, 15));
    assert_eq!(real.file.pages(), 8);
    // A mapping without rights; and a range past the end of the file.
    space.protect(at(10), PAGE_SIZE, Protection::empty()).unwrap();
    remove(&space, 10, 1).unwrap();
    assert_eq!(seen(50), 0);
    space.map(MapRequest::shared_file(&real.file, 7, 9 * PAGE_SIZE, READ_WRITE).at(fixed(70))).unwrap();
    remove(&space, 70, 9).unwrap();
    remove(&space, 75, 1).unwrap();
    assert_eq!((seen(70), real.file.pages()), (0, 8));
    // Shared memory without a file gives its frames back.
    space.map(MapRequest::shared_anonymous(4 * PAGE_SIZE).at(fixed(90))).unwrap();
    (90..94).for_each(|page| space.store_u64(at(page), page).unwrap());
    let before = machine.frames();
    remove(&space, 91, 2).unwrap();
    machine.engine.flush();
    assert!(stand::pressure::is_on() || machine.frames() == before - 2, "{} frames", machine.frames());
    assert_eq!([seen(90), seen(91), seen(92), seen(93)], [90, 0, 0, 93]);
    space.audit().unwrap();
    drop((space, real));
    machine.end()
}

fn fixed(page: u64) -> Placement {
    Placement::Fixed(at(page))
}

fn removing_goes_by_the_mapping<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 8);
    let handle = real.file.handle();
    let space = machine.space::<D>();
    let errno = |page, pages| remove(&space, page, pages).map_or_else(|error| error.errno(), |()| 0);
    space.map(anonymous(1, 1)).unwrap();
    space.map(of_file(&real.file, 3, 1, READ_WRITE)).unwrap();
    space.map(shared(&machine.file(1), 5, 1, Protection::READ)).unwrap();
    assert_eq!([errno(1, 1), errno(3, 1), errno(5, 1)], [EINVAL, EACCES, EACCES]);
    assert!(matches!(remove(&space, 5, 1), Err(AdviseError::ReadOnly { address }) if address == at(5)));
    assert_eq!((errno(7, 1), errno(10, 0)), (ENOMEM, 0));
    assert_eq!(space.advise(VirtAddr::new(1), 1, Advice::Remove).unwrap_err().errno(), EINVAL);
    // The mappings below one that refuses are done. A hole does not end the call.
    let map = || space.map(shared(&real.file, 10, 8, Protection::READ)).unwrap();
    let fill = || assert_eq!(handle.write_at(0, &[7; 8 * PAGE_SIZE as usize]), Ok(8 * PAGE_SIZE as usize));
    let shown = |pages: [u64; 3]| pages.map(|page| space.load_u64(at(page)).unwrap());
    map();
    fill();
    space.lock(at(12), PAGE_SIZE, LockMode::Now).unwrap();
    assert!(matches!(remove(&space, 10, 8), Err(AdviseError::Locked { address, .. }) if address == at(12)));
    assert_eq!((errno(12, 1), shown([11, 12, 13])), (EINVAL, [0, word(7), word(7)]));
    map();
    fill();
    space.unmap(at(14), PAGE_SIZE).unwrap();
    assert!(matches!(remove(&space, 10, 8), Err(AdviseError::Hole { address, .. }) if address == at(14)));
    assert_eq!(shown([10, 13, 15]), [0, 0, 0]);
    fill();
    space.map(of_file(&real.file, 14, 1, READ_WRITE)).unwrap();
    assert!(matches!(remove(&space, 10, 8), Err(AdviseError::Private { address }) if address == at(14)));
    assert_eq!(shown([10, 13, 15]), [0, 0, word(7)]);
    // A store that does not support holes.
    let stubborn = File::open_rw(&machine.engine, Arc::new(NoHoles)).unwrap();
    space.map(shared(&stubborn, 100, 1, Protection::READ)).unwrap();
    let error = remove(&space, 100, 1).unwrap_err();
    assert!(matches!(error, AdviseError::File(FileError::Store(StoreError::Unsupported { .. }))));
    assert_eq!(error.errno(), 95);
    drop((space, handle, real, stubborn));
    machine.end()
}

/// A store of one page that supports nothing but its length.
struct NoHoles;

impl faultless::store::Store for NoHoles {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(PAGE_SIZE)
    }

    fn submit(&self, transfer: faultless::store::Transfer) {
        drop(transfer);
    }
}

fn removing_holds_nothing_while_it_waits<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::with(&machine, 2, faultless::store::GatedStore::new);
    let space = machine.space::<D>();
    space.map(shared(&real.file, 10, 2, READ_WRITE)).unwrap();
    std::thread::scope(|scope| {
        let store = scope.spawn(|| space.store_u64(at(10), 1).unwrap());
        real.store.wait_for(1);
        real.store.pass(1);
        store.join().unwrap();
        let sync = scope.spawn(|| real.file.sync().unwrap());
        real.store.wait_for(1);
        let is_locked = || real.file.try_lock_folio(0).is_none();
        wait_until("the write is still being prepared", || !is_locked());
        let remove = scope.spawn(|| remove(&space, 10, 2).unwrap());
        // The removal waits for the write with the page locked.
        wait_until("the removal does not wait", is_locked);
        assert!(!remove.is_finished(), "the page is being written");
        space.map(anonymous(20, 1)).unwrap();
        space.store_u64(at(20), 1).unwrap();
        space.unmap(at(10), 2 * PAGE_SIZE).unwrap();
        space.map(anonymous(10, 2)).unwrap();
        space.store_u64(at(10), 2).unwrap();
        real.store.open();
        sync.join().unwrap();
        remove.join().unwrap();
    });
    assert_eq!(space.load_u64(at(10)).unwrap(), 2, "a page that was mapped meanwhile stays");
    assert_eq!(real.word(0), 0);
    drop((space, real));
    machine.end()
}

fn opened<S: Stand>(file: &Shared<File<S>>, rights: FileRights) -> Arc<FileHandle<S>> {
    Arc::new(file.handle_for(rights))
}

fn a_handle_does_what_it_was_opened_for<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 2);
    let (reader, writer) = (opened(&real.file, FileRights::READ), opened(&real.file, FileRights::WRITE));
    let mut bytes = [0; 4];
    assert_eq!((reader.read_at(0, &mut bytes), bytes), (Ok(4), [1; 4]));
    let refused = [reader.write_at(0, &[9]).map(drop), reader.set_length(0), reader.punch_hole(0, 1)];
    assert!(refused.iter().all(|error| *error == Err(FileError::NotWritable)));
    assert_eq!(FileError::NotWritable.errno(), EBADF);
    assert_eq!(writer.write_at(0, &[9; 4]), Ok(4));
    assert_eq!(writer.read_at(0, &mut bytes), Err(FileError::NotReadable));
    assert_eq!(FileError::NotReadable.errno(), EBADF);
    assert_eq!((reader.read_at(0, &mut bytes), bytes), (Ok(4), [9; 4]));
    assert_eq!((reader.sync(), writer.sync()), (Ok(()), Ok(())));
    let space = machine.space::<D>();
    space.map(shared(&real.file, 10, 1, Protection::READ)).unwrap();
    let seen = space.load_u64(at(10)).unwrap().to_ne_bytes();
    assert_eq!(seen, [9, 9, 9, 9, 1, 1, 1, 1], "the mapping shows the bytes that the handle wrote");
    assert_eq!((real.file.handle().rights(), reader.rights()), (FileRights::all(), FileRights::READ));
    let read_only = machine.file(1);
    assert_eq!(read_only.handle().rights(), FileRights::READ);
    assert_eq!(opened(&read_only, FileRights::all()).write_at(0, &[1]), Err(FileError::NotWritable));
    drop((space, reader, writer, real, read_only));
    machine.end()
}

fn a_handles_rights_bound_its_mappings<S: Stand, D: LockingDesign>() -> Ran<S> {
    const NONE: Protection = Protection::empty();
    const READ: Protection = Protection::READ;
    let machine = Machine::<S>::new()?;
    let real = Real::new(&machine, 4);
    let (reader, writer) = (opened(&real.file, FileRights::READ), opened(&real.file, FileRights::WRITE));
    let space = machine.space::<D>();
    let map = |handle, page, pages, rights, sharing| {
        let request = MapRequest::handle(handle, 0, pages * PAGE_SIZE, rights, sharing);
        space.map(request.at(fixed(page)))
    };
    for sharing in [Sharing::Private, Sharing::Shared] {
        for rights in [NONE, READ, Protection::WRITE] {
            let error = map(&writer, 10, 1, rights, sharing).unwrap_err();
            assert_eq!((error, error.errno()), (MapError::NotReadable, EACCES));
        }
    }
    let error = map(&reader, 10, 1, READ_WRITE, Sharing::Shared).unwrap_err();
    assert_eq!((error, error.errno()), (MapError::SharedWrite, EACCES));
    // A private mapping may have any rights.
    map(&reader, 10, 1, READ, Sharing::Private).unwrap();
    space.protect(at(10), PAGE_SIZE, READ_WRITE).unwrap();
    space.store_u64(at(10), 5).unwrap();
    // A shared mapping can never become writable, even after a move. The mappings below it have changed.
    map(&reader, 11, 4, READ, Sharing::Shared).unwrap();
    space.protect(at(10), PAGE_SIZE, READ).unwrap();
    let error = space.protect(at(10), 2 * PAGE_SIZE, READ_WRITE).unwrap_err();
    assert!(matches!(error, ProtectError::SharedWrite { address } if address == at(11)));
    assert_eq!(error.errno(), EACCES);
    space.store_u64(at(10), 6).unwrap();
    space.protect(at(11), PAGE_SIZE, NONE).unwrap();
    assert!(space.protect(at(11), PAGE_SIZE, READ_WRITE).is_err());
    space.protect(at(11), PAGE_SIZE, READ).unwrap();
    space.remap(RemapRequest::to(at(11), 4 * PAGE_SIZE, at(30))).unwrap();
    let child = space.fork().unwrap();
    assert!(child.protect(at(30), PAGE_SIZE, READ_WRITE).is_err());
    assert_eq!(child.load_u64(at(31)).unwrap(), word(2));
    assert!(matches!(remove(&space, 30, 1), Err(AdviseError::ReadOnly { .. })));
    let flags = || space.mappings().iter().map(|m| m.flags).collect::<Vec<_>>();
    assert_eq!(flags(), [MappingFlags::empty(), MappingFlags::READ_ONLY]);
    // A mapping that was made from the file itself is of another kind, and does not merge.
    let beside = MapRequest::shared_file(&real.file, 4, PAGE_SIZE, READ).at(fixed(34));
    space.map(MapRequest { flags: MappingFlags::READ_ONLY, ..beside }).unwrap();
    assert_eq!(
        flags(),
        [MappingFlags::empty(), MappingFlags::READ_ONLY, MappingFlags::empty()],
        "the caller cannot set the flag"
    );
    drop((space, child, reader, writer, real));
    machine.end()
}

fn reading_a_hole_of_a_memory_file_fills_nothing<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let file = File::in_memory(&machine.engine, 2 * PAGE_SIZE).unwrap();
    let space = machine.space::<D>();
    space.map(shared(&file, 10, 2, READ_WRITE)).unwrap();
    let mut bytes = [1; 8];
    assert_eq!((file.handle().read_at(4, &mut bytes), bytes), (Ok(8), [0; 8]));
    space.advise(at(10), 2 * PAGE_SIZE, Advice::WillNeed).unwrap();
    assert_eq!(space.resident(at(10), 2 * PAGE_SIZE).unwrap(), [false; 2]);
    space.store_u64(at(10), 7).unwrap();
    assert_eq!(file.handle().read_at(0, &mut bytes), Ok(8));
    assert_eq!(
        (bytes, space.resident(at(10), 2 * PAGE_SIZE).unwrap()),
        (7_u64.to_ne_bytes(), vec![true, false])
    );
    drop((space, file));
    machine.end()
}
