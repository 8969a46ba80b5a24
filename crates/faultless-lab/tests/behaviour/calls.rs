//! map, unmap, protect and discard on parts of mappings, and their errors.

use crate::*;
use faultless::address::RangeError;
use faultless::protection::{Access, Sharing};
use faultless::vma::MappingFlags;
use faultless::{
    DiscardError, LockAll, LockError, MapError, ProtectError, RemapError, RemapFlags, RemapRequest,
    ResidentError, Source, SyncError, SyncFlags, UnmapError, errno,
};
use faultless_soft::Cpu;

under_every_design! {
    map_goes_top_down
    a_hint_is_taken_where_it_is_free
    fixed_replaces_and_no_replace_does_not
    unmap_of_the_middle_splits
    neighbours_merge_unless_both_have_pages
    protect_on_parts
    discard_keeps_the_mapping
    wrong_ranges_are_typed_errors
    the_first_of_several_errors_is_linuxs
    a_mapping_of_a_file_ends_where_a_length_can
    unknown_flags_are_refused_or_not_looked_at
    a_pin_makes_nothing_longer_and_fetches_nothing_that_is_refused
    an_exited_space_maps_nothing
}

// All tests of this file. The engine does each call, and loads and stores show its effect.
on_real_memory! {
    map_goes_top_down
    a_hint_is_taken_where_it_is_free
    fixed_replaces_and_no_replace_does_not
    unmap_of_the_middle_splits
    neighbours_merge_unless_both_have_pages
    protect_on_parts
    discard_keeps_the_mapping
    wrong_ranges_are_typed_errors
    the_first_of_several_errors_is_linuxs
    a_mapping_of_a_file_ends_where_a_length_can
    unknown_flags_are_refused_or_not_looked_at
    a_pin_makes_nothing_longer_and_fetches_nothing_that_is_refused
    an_exited_space_maps_nothing
}

fn shape<S: Stand, D: LockingDesign>(space: &Space<S, D>) -> Vec<(u64, u64, String)> {
    let line =
        |m: &faultless::MappingInfo| (m.range.start().get(), m.range.end().get(), m.protection.to_string());
    space.mappings().iter().map(line).collect()
}

fn map_goes_top_down<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let first = space.map(MapRequest::anonymous(3 * PAGE_SIZE)).unwrap();
    let second = space.map(MapRequest::anonymous(1)).unwrap();
    assert_eq!(first.get() - second.get(), PAGE_SIZE, "each mapping is below the one before");
    space.unmap(first, PAGE_SIZE).unwrap();
    let third = space.map(MapRequest::anonymous(PAGE_SIZE)).unwrap();
    assert_eq!(third, first, "it takes the highest hole that fits");
    drop(space);
    machine.end()
}

fn a_hint_is_taken_where_it_is_free<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let hint = |address: u64, pages: u64| {
        let request = MapRequest::anonymous(pages * PAGE_SIZE).at(Placement::Hint(VirtAddr::new(address)));
        space.map(request).unwrap().page().get()
    };
    let page = |page: u64| page * PAGE_SIZE;
    let highest = S::PAGES - 1;
    assert_eq!(hint(page(10), 1), 10);
    assert_eq!(hint(page(10), 1), highest, "taken");
    assert_eq!(hint(page(20) + 1, 1), 20, "rounded down");
    assert_eq!(hint(page(31) - 1, 1), 30);
    assert_eq!(hint(page(9), 2), highest - 2, "the end is taken");
    assert_eq!(hint(page(8), 2), 8);
    assert_eq!(hint(0, 1), highest - 3);
    assert_eq!(hint(100, 1), highest - 4, "the first page is not given away");
    assert_eq!(hint(page(1), 1), 1);
    assert_eq!(hint(page(highest), 2), highest - 6, "past the end");
    assert_eq!(hint(u64::MAX, 1), highest - 7);
    // A mapping that grows down keeps a gap below it.
    space.map(MapRequest { flags: MappingFlags::GROWS_DOWN, ..anonymous(1000, 1) }).unwrap();
    assert_eq!(hint(page(743), 1), 743);
    assert_eq!(hint(page(744), 1), highest - 8);
    assert_eq!(hint(page(1001), 1), 1001);
    // A stack itself may be placed directly above another mapping.
    let down = MapRequest { flags: MappingFlags::GROWS_DOWN, ..anonymous(1002, 1) };
    assert_eq!(space.map(down.at(Placement::Hint(at(1002)))).unwrap(), at(1002));
    let too_long = MapRequest::anonymous((S::PAGES + 1) * PAGE_SIZE).at(Placement::Hint(at(5)));
    assert_eq!(space.map(too_long).unwrap_err().errno(), 12);
    drop(space);
    machine.end()
}

fn fixed_replaces_and_no_replace_does_not<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 4)).unwrap();
    space.store_u64(at(11), 7).unwrap();
    let error = space.map(anonymous(11, 9).at(Placement::FixedNoReplace(at(11)))).unwrap_err();
    assert!(matches!(error, MapError::Exists { existing, .. } if existing.start().get() == 10));
    assert_eq!(space.load_u64(at(11)).unwrap(), 7);
    space.map(anonymous(11, 1)).unwrap();
    assert_eq!(space.load_u64(at(11)).unwrap(), 0, "the old page went");
    space.map(anonymous(20, 1).at(Placement::FixedNoReplace(at(20)))).unwrap();
    drop(space);
    machine.end()
}

fn unmap_of_the_middle_splits<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 5)).unwrap();
    for page in 10..15 {
        space.store_u64(at(page), page).unwrap();
    }
    //   10 11 12 13 14
    //         xx
    space.unmap(at(12), PAGE_SIZE).unwrap();
    assert_eq!(shape(&space), [(10, 12, "rw-".into()), (13, 15, "rw-".into())]);
    assert!(matches!(fault_of(space.load_u64(at(12))), FaultError::NoMapping { .. }));
    for page in [10, 11, 13, 14] {
        assert_eq!(space.load_u64(at(page)).unwrap(), page);
    }
    space.unmap(at(100), PAGE_SIZE).unwrap();
    space.unmap(at(0), 64 * PAGE_SIZE).unwrap();
    assert!(space.mappings().is_empty());
    assert_eq!(machine.frames(), 0);
    drop(space);
    machine.end()
}

fn neighbours_merge_unless_both_have_pages<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 1)).unwrap();
    space.map(anonymous(12, 1)).unwrap();
    space.store_u64(at(10), 1).unwrap();
    space.map(anonymous(11, 1)).unwrap();
    assert_eq!(shape(&space), [(10, 13, "rw-".into())], "at most one neighbour had pages");

    space.map(anonymous(20, 1)).unwrap();
    space.map(anonymous(22, 1)).unwrap();
    space.store_u64(at(20), 1).unwrap();
    space.store_u64(at(22), 1).unwrap();
    space.map(anonymous(21, 1)).unwrap();
    assert_eq!(space.mappings().len(), 3, "both neighbours had pages of their own, so they stay apart");

    // Split by protection, then merged again.
    space.protect(at(11), PAGE_SIZE, Protection::READ).unwrap();
    assert_eq!(space.mappings().len(), 5);
    space.protect(at(11), PAGE_SIZE, READ_WRITE).unwrap();
    assert_eq!(shape(&space)[0], (10, 13, "rw-".into()));
    space.audit().unwrap();
    drop(space);
    machine.end()
}

fn protect_on_parts<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 4)).unwrap();
    for page in 10..14 {
        space.store_u64(at(page), page).unwrap();
    }
    space.protect(at(11), 2 * PAGE_SIZE, Protection::READ).unwrap();
    assert_eq!(space.load_u64(at(11)).unwrap(), 11);
    let error = fault_of(space.store_u64(at(12), 0));
    assert!(matches!(error, FaultError::Protection { access: Access::Write, .. }), "{error:?}");
    space.protect(at(11), PAGE_SIZE, Protection::empty()).unwrap();
    assert!(matches!(fault_of(space.load_u64(at(11))), FaultError::Protection { .. }));
    space.protect(at(10), 4 * PAGE_SIZE, READ_WRITE).unwrap();
    assert_eq!(space.load_u64(at(11)).unwrap(), 11, "the page stayed while nothing was allowed");
    space.store_u64(at(12), 5).unwrap();

    // Over a hole: ENOMEM, and the part before the hole has changed.
    space.unmap(at(12), PAGE_SIZE).unwrap();
    let error = space.protect(at(10), 4 * PAGE_SIZE, Protection::READ).unwrap_err();
    assert!(matches!(error, ProtectError::Hole { address, .. } if address == at(12)));
    assert_eq!(shape(&space), [(10, 12, "r--".into()), (13, 14, "rw-".into())]);
    space.audit().unwrap();
    drop(space);
    machine.end()
}

fn discard_keeps_the_mapping<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let file = machine.file(1);
    space.map(anonymous(10, 2)).unwrap();
    space.map(of_file(&file, 13, 1, READ_WRITE)).unwrap();
    space.store_u64(at(10), 1).unwrap();
    space.store_u64(at(13), 1).unwrap();
    // Over a hole: ENOMEM, and the part behind the hole is dropped too.
    let error = space.discard(at(10), 4 * PAGE_SIZE).unwrap_err();
    assert!(matches!(error, DiscardError::Hole { address, .. } if address == at(12)));
    assert_eq!(space.load_u64(at(10)).unwrap(), 0);
    assert_eq!(space.load_u64(at(13)).unwrap(), word(1), "the file's page again");
    drop((space, file));
    machine.end()
}

fn wrong_ranges_are_typed_errors<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let unaligned = VirtAddr::new(4097);
    assert!(matches!(space.unmap(unaligned, 1), Err(UnmapError::Range(RangeError::Unaligned { .. }))));
    assert!(matches!(space.unmap(at(1), 0), Err(UnmapError::Range(RangeError::ZeroLength { .. }))));
    assert!(matches!(space.unmap(at(1), u64::MAX), Err(UnmapError::Range(RangeError::Overflow { .. }))));
    assert!(matches!(
        space.map(MapRequest::anonymous(0)),
        Err(MapError::Range(RangeError::ZeroLength { .. }))
    ));
    assert!(matches!(space.map(anonymous(u64::MAX >> 13, 1)), Err(MapError::OutOfBounds { .. })));
    let too_long = MapRequest::anonymous(S::PAGES * PAGE_SIZE + 1);
    assert!(matches!(space.map(too_long), Err(MapError::OutOfBounds { .. })));
    assert!(matches!(space.map(MapRequest::anonymous(1 << 60)), Err(MapError::OutOfBounds { .. })));
    assert!(matches!(space.map(MapRequest::anonymous(S::PAGES * PAGE_SIZE)), Err(MapError::NoSpace { .. })));
    assert!(space.protect(unaligned, 1, READ_WRITE).is_err());
    assert!(space.discard(unaligned, 1).is_err());
    let file = machine.file(1);
    let source = Source::File { file: file.clone(), first: 0, sharing: Sharing::Shared };
    let request = MapRequest { source, ..MapRequest::anonymous(1) };
    assert!(matches!(space.map(request), Err(MapError::SharedWrite)));
    let source = Source::File { file: file.clone(), first: u64::MAX, sharing: Sharing::Private };
    let request = MapRequest { source, ..MapRequest::anonymous(1) };
    assert!(matches!(space.map(request), Err(MapError::FileOffset { .. })));
    assert!(matches!(fault_of(space.load_u64(S::LAST_WORD)), FaultError::NoMapping { .. }));
    assert!(space.mappings().is_empty());
    drop((space, file));
    machine.end()
}

/// If a call has several errors, Linux 6.18 was observed to return these.
fn the_first_of_several_errors_is_linuxs<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(1));
    space.map(anonymous(10, 1)).unwrap();
    let unaligned = VirtAddr::new(10 * PAGE_SIZE + 1);
    let map = |at, length, first| {
        let source = Source::File { file: file.clone(), first, sharing: Sharing::Shared };
        let request =
            MapRequest { source, ..MapRequest::anonymous(length).at(Placement::FixedNoReplace(at)) };
        space.map(request).unwrap_err()
    };
    // The order: length, end, address, existing mappings, offset in the file, rights.
    assert_eq!(map(unaligned, 0, u64::MAX).errno(), errno::EINVAL);
    for length in [u64::MAX, u64::MAX - 4095, 1 << 63, S::PAGES * PAGE_SIZE] {
        assert_eq!(map(unaligned, length, u64::MAX).errno(), errno::ENOMEM);
    }
    assert!(matches!(map(unaligned, 1, u64::MAX), MapError::Range(RangeError::Unaligned { .. })));
    assert!(matches!(map(at(10), 1, u64::MAX), MapError::Exists { .. }));
    assert!(matches!(map(at(20), 1, u64::MAX), MapError::FileOffset { .. }));
    assert_eq!(map(at(20), 1, 0), MapError::SharedWrite);

    let protect = |at, length| space.protect(at, length, READ_WRITE).map_err(|error| error.errno());
    assert_eq!(protect(unaligned, 0), Err(errno::EINVAL));
    assert_eq!(protect(at(10), 0), Ok(()));
    assert_eq!(protect(at(10), u64::MAX), Err(errno::ENOMEM));
    assert_eq!(protect(at(S::PAGES), 1), Err(errno::ENOMEM));
    for length in [0, S::PAGES * PAGE_SIZE, u64::MAX] {
        assert_eq!(space.unmap(at(10), length).map_err(|error| error.errno()), Err(errno::EINVAL));
    }
    drop((space, file));
    machine.end()
}

/// A mapping of a file may reach up to byte 2^63 - 4096, as on Linux. mremap can make it longer.
fn a_mapping_of_a_file_ends_where_a_length_can<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(1));
    let map = |first, pages| {
        let request = MapRequest::file(&file, first, pages * PAGE_SIZE, Protection::READ);
        space.map(request.at(Placement::Fixed(at(10))))
    };
    let end = (1 << 51) - 1;
    for (first, pages) in [(end - 1, 2), (end, 1), (end + 1, 1), ((1 << 52) - 1, 1)] {
        let error = map(first, pages).unwrap_err();
        assert!(matches!(error, MapError::FileOffset { .. }), "{error:?}");
        assert_eq!(error.errno(), errno::EOVERFLOW);
    }
    map(end - 2, 2).unwrap();
    space.remap(RemapRequest::resize(at(10), 2 * PAGE_SIZE, 5 * PAGE_SIZE)).unwrap();
    for page in 10..15 {
        assert!(matches!(fault_of(space.load_u64(at(page))), FaultError::PastEnd { .. }));
    }
    drop((space, file));
    machine.end()
}

fn unknown_flags_are_refused_or_not_looked_at<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 2)).unwrap();
    let synced = space.sync(at(10), 1, SyncFlags::from_bits_retain(8)).unwrap_err();
    assert_eq!((synced, synced.errno()), (SyncError::MappingFlags, 22));
    let flags = RemapFlags::from_bits_retain(8) | RemapFlags::MAY_MOVE;
    let remapped = space.remap(RemapRequest { flags, ..RemapRequest::resize(at(10), 1, 1) }).unwrap_err();
    assert!(matches!(remapped, RemapError::MappingFlags { .. }) && remapped.errno() == 22);
    for unknown in [LockAll::CURRENT | LockAll::from_bits_retain(8), LockAll::ON_FAULT, LockAll::empty()] {
        let locked = space.lock_all(unknown).unwrap_err();
        assert_eq!((locked, locked.errno()), (LockError::Nothing, 22));
    }
    // For mmap: flags that belong to the engine have no effect, and do not keep neighbours apart.
    let unknown = MappingFlags::from_bits_retain(1 << 13) | MappingFlags::MOVING | MappingFlags::READ_ONLY;
    space.map(MapRequest { flags: unknown, ..anonymous(12, 1) }).unwrap();
    space.store_u64(at(12), 1).unwrap();
    assert_eq!(shape(&space), [(10, 13, "rw-".into())]);
    // No memory is reserved for any mapping. But the flag is kept, as in Linux's map.
    space.map(MapRequest { flags: MappingFlags::NO_RESERVE, ..anonymous(13, 1) }).unwrap();
    let kept: Vec<_> = space.mappings().iter().map(|m| m.flags).collect();
    assert_eq!(kept, [MappingFlags::empty(), MappingFlags::NO_RESERVE]);
    let resident = space.resident(at(13), 2 * PAGE_SIZE).unwrap_err();
    assert!(matches!(resident, ResidentError::Hole { address, .. } if address == at(14)));
    assert_eq!(resident.errno(), 12);
    drop(space);
    machine.end()
}

fn an_exited_space_maps_nothing<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 4)).unwrap();
    space.store_u64(at(10), 1).unwrap();
    space.exit();
    assert_eq!(machine.frames(), 0, "its memory is free at once");
    assert!(matches!(fault_of(space.load_u64(at(10))), FaultError::Exited { .. }));
    assert_eq!(space.map(anonymous(10, 1)), Err(MapError::Exited));
    assert!(matches!(space.fork(), Err(faultless::ForkError::Exited)));
    drop(space);
    machine.end()
}

fn a_pin_makes_nothing_longer_and_fetches_nothing_that_is_refused<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(MapRequest { flags: MappingFlags::GROWS_DOWN, ..anonymous(310, 1) }).unwrap();
    assert_eq!(space.write_remote(at(305), &[1; 8]).unwrap_err().errno(), 14);
    assert!(matches!(space.pin(at(305), Access::Write), Err(FaultError::NoMapping { .. })));
    assert_eq!(shape(&space), [(310, 311, "rw-".into())]);
    space.map(anonymous(20, 1).protection(Protection::WRITE)).unwrap();
    assert_eq!(space.read_remote(at(20), &mut [0; 8]).unwrap_err().errno(), 14);
    assert_eq!(space.resident(at(20), PAGE_SIZE).unwrap(), [false]);
    drop(space);
    machine.end()
}
