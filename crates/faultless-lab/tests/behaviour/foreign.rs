//! Mappings of frames that the engine does not own.

use crate::advice::{NONE, pages};
use crate::*;
use faultless::address::PageNumber;
use faultless::host::{Frame, FrameSource, FrameUse, GroupId, Host, PageTable};
use faultless::protection::{Access, Sharing};
use faultless::vma::MappingFlags;
use faultless::{
    Advice, Fault, ForeignFrames, LockAll, LockMode, MapError, ProtectError, RemapError, RemapFlags,
    RemapRequest, Source, SyncFlags, errno,
};
use faultless_soft::Cpu;

under_every_design! {
    foreign_frames_are_mapped_only_where_tables_can
    a_foreign_mapping_shows_its_frames
    all_rights_come_with_the_first_fault
    a_request_for_foreign_frames_is_refused_with_its_reason
    the_rights_of_foreign_frames_change
    a_child_faults_foreign_frames_in_again
    mremap_moves_foreign_frames
    mremap_makes_no_more_of_foreign_frames
    what_is_dropped_or_cut_off_shows_the_same_frames_again
    foreign_mappings_join_where_their_frames_go_on
    foreign_frames_are_neither_locked_nor_fetched
    advice_for_memory_of_the_engine_is_refused_for_foreign_frames
    foreign_frames_are_neither_pinned_nor_copied_from_outside
    a_mapping_over_another_leaves_the_frames_alone
    no_folio_of_a_foreign_frame_is_asked
}

on_real_memory! {
    foreign_frames_are_mapped_only_where_tables_can
}

/// A device's memory: consecutive frames of the machine, full of zeros. Only the test has them.
struct Device<S: Stand> {
    engine: Arc<Engine<S>>,
    taken: Vec<Frame>,
    first: Frame,
    count: u64,
}

impl<S: Stand> Device<S> {
    fn new(machine: &Machine<S>, count: u64) -> Self {
        let engine = machine.engine.clone();
        let frames = engine.host().frames();
        let mut taken: Vec<Frame> = Vec::new();
        let take = || frames.allocate(GroupId::ROOT, FrameUse::Anonymous);
        let first = loop {
            // Under pressure the first try fails.
            taken.push(take().or_else(take).expect("a frame"));
            taken.sort();
            let is_run = |run: &&[Frame]| run[0].get() + count - 1 == run[run.len() - 1].get();
            if let Some(run) = taken.windows(count as usize).find(is_run) {
                break run[0];
            }
        };
        // SAFETY: only the test has these frames.
        taken.iter().for_each(|frame| unsafe { frames.zero(*frame) });
        Self { engine, taken, first, count }
    }

    fn frame(&self, n: u64) -> Frame {
        Frame::new(self.first.get() + n).unwrap()
    }

    /// Returns all frames except the first `n`.
    fn frames(&self, n: u64) -> ForeignFrames {
        // SAFETY: only the test has these frames, and it drops its spaces before the device.
        unsafe { ForeignFrames::new(self.frame(n), self.count - n) }.unwrap()
    }

    /// Returns a request for a shared mapping of `pages` frames from the `n`-th on, at `page`.
    fn request(&self, page: u64, n: u64, pages: u64) -> MapRequest<S> {
        let request = MapRequest::foreign(self.frames(n), READ_WRITE).at(Placement::Fixed(at(page)));
        MapRequest { length: pages * PAGE_SIZE, ..request }
    }

    /// Reads the first word of the `n`-th frame, as the device does.
    fn read(&self, n: u64) -> u64 {
        let mut word = [0; 8];
        // SAFETY: the frame stays allocated.
        unsafe { self.engine.host().frames().read(self.frame(n), 0, &mut word) };
        u64::from_ne_bytes(word)
    }

    /// Writes the first word of the `n`-th frame, as the device does.
    fn write(&self, n: u64, word: u64) {
        // SAFETY: the frame stays allocated, and may be written.
        unsafe { self.engine.host().frames().write(self.frame(n), 0, &word.to_ne_bytes()) };
    }
}

impl<S: Stand> Drop for Device<S> {
    fn drop(&mut self) {
        for frame in self.taken.drain(..) {
            // SAFETY: all spaces that mapped the frame are gone.
            unsafe { self.engine.host().frames().free(frame) };
        }
    }
}

/// Returns the mappings: first page, end, first foreign frame.
fn shape<S: Stand, D: LockingDesign>(space: &Space<S, D>) -> Vec<(u64, u64, Option<Frame>)> {
    let shown =
        |info: faultless::MappingInfo| (info.range.start().get(), info.range.end().get(), info.foreign);
    space.mappings().into_iter().map(shown).collect()
}

fn foreign_frames_are_mapped_only_where_tables_can<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, device) = (machine.space::<D>(), Device::new(&machine, 1));
    let mapped = space.map(device.request(10, 0, 1));
    if <S as Host>::Table::MAPS_FOREIGN {
        assert_eq!(mapped, Ok(at(10)));
    } else {
        assert_eq!(mapped, Err(MapError::ForeignUnsupported));
        assert_eq!(mapped.unwrap_err().errno(), errno::EOPNOTSUPP);
        assert!(space.mappings().is_empty());
    }
    drop((space, device));
    machine.end()
}

fn a_foreign_mapping_shows_its_frames<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, other) = (machine.space::<D>(), machine.space::<D>());
    let device = Device::new(&machine, 4);
    let frames = machine.frames();
    space.map(device.request(10, 0, 4)).unwrap();
    other.map(device.request(90, 2, 2)).unwrap();
    space.store_u64(at(12), 5).unwrap();
    device.write(3, 7);
    assert_eq!((device.read(2), other.load_u64(at(90)), space.load_u64(at(13))), (5, Ok(5), Ok(7)));
    space.audit().unwrap();
    other.audit().unwrap();
    assert_eq!(machine.frames(), frames, "no frame is the engine's");
    assert_eq!(shape(&space), [(10, 14, Some(device.first))]);
    // As in Linux's smaps and mincore, and in the size of the address space.
    let usage = space.usage()[0];
    let sums = [usage.resident, usage.proportional, usage.anonymous, usage.shared_dirty, usage.referenced];
    assert_eq!(sums, [0; 5]);
    assert_eq!(space.resident(at(10), pages(4)), Ok(vec![false; 4]));
    space.sync(at(10), pages(4), SyncFlags::SYNC).unwrap();
    space.exit();
    assert!(space.load_u64(at(12)).is_err());
    assert_eq!(other.load_u64(at(90)), Ok(5), "the frames stay");
    drop((space, other, device));
    machine.end()
}

fn all_rights_come_with_the_first_fault<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, device) = (machine.space::<D>(), Device::new(&machine, 2));
    space.map(device.request(10, 0, 2)).unwrap();
    assert!(space.try_load_u64(at(10)).is_err(), "nothing is there before the first fault");
    assert!(matches!(space.fault(at(10), Access::Read), Ok(Fault::Done)));
    space.try_store_u64(at(10), 3).expect("the first load has brought the write right");
    assert!(matches!(space.fault(at(11), Access::Write), Ok(Fault::Done)));
    assert_eq!(space.try_load_u64(at(11)).ok(), Some(0));
    // A fault that finds its entry present leaves it unchanged.
    assert!(matches!(space.fault(at(10), Access::Write), Ok(Fault::Done)));
    assert_eq!(device.read(0), 3);
    space.audit().unwrap();
    drop((space, device));
    machine.end()
}

fn a_request_for_foreign_frames_is_refused_with_its_reason<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, device) = (machine.space::<D>(), Device::new(&machine, 2));
    let too_long = space.map(device.request(10, 1, 2)).unwrap_err();
    assert_eq!(too_long, MapError::ForeignLength { pages: 2, frames: 1 });
    let source = Source::Foreign { frames: device.frames(0), sharing: Sharing::Private };
    let private = space.map(MapRequest { source, ..device.request(10, 0, 2) }).unwrap_err();
    assert_eq!(private, MapError::ForeignPrivate);
    let flags = MappingFlags::GROWS_DOWN;
    let growing = space.map(MapRequest { flags, ..device.request(10, 0, 2) }).unwrap_err();
    assert_eq!(growing, MapError::GrowingFile);
    for error in [too_long, private, growing] {
        assert_eq!(error.errno(), errno::EINVAL, "{error}");
    }
    // SAFETY: these frames are never mapped.
    let none =
        unsafe { [ForeignFrames::new(device.first, 0), ForeignFrames::new(device.first, Frame::COUNT)] };
    assert_eq!(none, [None; 2]);
    assert!(space.mappings().is_empty());
    drop((space, device));
    machine.end()
}

fn the_rights_of_foreign_frames_change<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, device) = (machine.space::<D>(), Device::new(&machine, 2));
    space.map(device.request(10, 0, 1)).unwrap();
    let source = Source::Foreign { frames: device.frames(1), sharing: Sharing::Private };
    space.map(MapRequest { source, ..device.request(20, 1, 1).protection(Protection::READ) }).unwrap();
    space.store_u64(at(10), 1).unwrap();
    assert_eq!(space.load_u64(at(20)), Ok(0));
    for (rights, can_load) in [(Protection::READ, true), (NONE, false), (Protection::EXECUTE, false)] {
        space.protect(at(10), PAGE_SIZE, rights).unwrap();
        assert!(matches!(fault_of(space.store_u64(at(10), 2)), FaultError::Protection { .. }));
        assert_eq!(space.load_u64(at(10)).is_ok(), can_load, "{rights}");
        space.audit().unwrap();
    }
    space.protect(at(10), PAGE_SIZE, READ_WRITE).unwrap();
    space.store_u64(at(10), 3).unwrap();
    assert_eq!(device.read(0), 3);
    // A private mapping shows the device's stores, because its pages are never copied.
    device.write(1, 4);
    assert_eq!(space.load_u64(at(20)), Ok(4));
    let refused = space.protect(at(20), PAGE_SIZE, READ_WRITE).unwrap_err();
    assert!(matches!(refused, ProtectError::SharedWrite { address } if address == at(20)));
    assert_eq!(refused.errno(), errno::EACCES);
    assert!(matches!(fault_of(space.store_u64(at(20), 2)), FaultError::Protection { .. }));
    space.audit().unwrap();
    drop((space, device));
    machine.end()
}

fn a_child_faults_foreign_frames_in_again<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, device) = (machine.space::<D>(), Device::new(&machine, 2));
    // Next to anonymous pages, in a leaf table that fork could share.
    space.map(anonymous(8, 2)).unwrap();
    space.map(device.request(10, 0, 2)).unwrap();
    space.store_u64(at(8), 1).unwrap();
    space.store_u64(at(10), 1).unwrap();
    let child = space.fork().unwrap();
    assert!(child.try_load_u64(at(10)).is_err(), "the entry is not copied");
    space.try_store_u64(at(10), 2).expect("the parent keeps the write right");
    child.store_u64(at(11), 3).unwrap();
    assert_eq!((child.load_u64(at(10)), space.load_u64(at(11)), device.read(1)), (Ok(2), Ok(3), 3));
    space.store_u64(at(8), 4).unwrap();
    assert_eq!(child.load_u64(at(8)), Ok(1), "private memory stays private");
    let grandchild = child.fork().unwrap();
    child.unmap(at(10), pages(2)).unwrap();
    assert_eq!(grandchild.load_u64(at(11)), Ok(3));
    [&space, &child, &grandchild].iter().for_each(|space| space.audit().unwrap());
    space.advise(at(10), pages(2), Advice::DontFork).unwrap();
    let without = space.fork().unwrap();
    assert!(matches!(fault_of(without.load_u64(at(10))), FaultError::NoMapping { .. }));
    drop((space, child, grandchild, without, device));
    machine.end()
}

fn mremap_moves_foreign_frames<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, device) = (machine.space::<D>(), Device::new(&machine, 4));
    space.map(device.request(10, 0, 4)).unwrap();
    (0..4).for_each(|n| space.store_u64(at(10 + n), n + 1).unwrap());
    // The two middle pages move to another leaf table.
    space.remap(RemapRequest::to(at(11), pages(2), at(2000))).unwrap();
    let expected = [
        (10, 11, Some(device.frame(0))),
        (13, 14, Some(device.frame(3))),
        (2000, 2002, Some(device.frame(1))),
    ];
    assert_eq!(shape(&space), expected);
    space.try_store_u64(at(2000), 22).expect("the entry goes along, with its rights");
    assert_eq!((device.read(1), space.load_u64(at(2001))), (22, Ok(3)));
    assert!(matches!(fault_of(space.load_u64(at(11))), FaultError::NoMapping { .. }));
    space.audit().unwrap();
    // They move back and merge.
    space.remap(RemapRequest::to(at(2000), pages(2), at(11))).unwrap();
    assert_eq!(shape(&space), [(10, 14, Some(device.frame(0)))]);
    assert_eq!(space.load_u64(at(11)), Ok(22));
    space.remap(RemapRequest::resize(at(10), pages(4), pages(1))).unwrap();
    assert_eq!(shape(&space), [(10, 11, Some(device.frame(0)))]);
    space.audit().unwrap();
    drop((space, device));
    machine.end()
}

/// The caller guarantees only the frames that a mapping shows. So mremap must not map more of them.
fn mremap_makes_no_more_of_foreign_frames<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, device) = (machine.space::<D>(), Device::new(&machine, 2));
    space.map(device.request(10, 0, 2)).unwrap();
    space.store_u64(at(10), 1).unwrap();
    let keeps = RemapFlags::MAY_MOVE | RemapFlags::DONT_UNMAP;
    let moved = |flags: RemapFlags, new: VirtAddr| RemapRequest {
        flags,
        new,
        ..RemapRequest::resize(at(10), pages(2), pages(2))
    };
    let calls = [
        (RemapRequest::resize(at(10), pages(2), pages(3)), errno::EFAULT),
        (RemapRequest { new_length: pages(3), ..RemapRequest::to(at(10), pages(2), at(60)) }, errno::EFAULT),
        (RemapRequest::resize(at(10), 0, pages(2)), errno::EFAULT),
        (moved(keeps, VirtAddr::default()), errno::EINVAL),
        (moved(keeps | RemapFlags::FIXED, at(60)), errno::EINVAL),
    ];
    for (request, number) in calls {
        let error = space.remap(request).unwrap_err();
        assert!(matches!(error, RemapError::Foreign { .. }), "{request:?}: {error}");
        assert_eq!(error.errno(), number, "{request:?}");
        assert_eq!(shape(&space), [(10, 12, Some(device.first))]);
        space.audit().unwrap();
    }
    // In a range of several mappings, those below the foreign one have moved.
    space.map(anonymous(9, 1)).unwrap();
    let request = RemapRequest {
        old: at(9),
        old_length: pages(3),
        new_length: pages(3),
        flags: keeps | RemapFlags::FIXED,
        new: at(60),
    };
    assert!(matches!(space.remap(request), Err(RemapError::Foreign { .. })));
    assert_eq!(space.load_u64(at(10)), Ok(1));
    space.audit().unwrap();
    drop((space, device));
    machine.end()
}

fn what_is_dropped_or_cut_off_shows_the_same_frames_again<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, device) = (machine.space::<D>(), Device::new(&machine, 4));
    space.map(device.request(10, 0, 4)).unwrap();
    (0..4).for_each(|n| space.store_u64(at(10 + n), n + 1).unwrap());
    space.discard(at(10), pages(4)).unwrap();
    assert!(space.try_load_u64(at(10)).is_err(), "MADV_DONTNEED drops the entry");
    (0..4).for_each(|n| assert_eq!(space.load_u64(at(10 + n)), Ok(n + 1)));
    space.audit().unwrap();
    space.unmap(at(11), PAGE_SIZE).unwrap();
    assert!(matches!(fault_of(space.load_u64(at(11))), FaultError::NoMapping { .. }));
    assert_eq!(shape(&space), [(10, 11, Some(device.frame(0))), (12, 14, Some(device.frame(2)))]);
    space.discard(at(12), pages(2)).unwrap();
    assert_eq!((space.load_u64(at(12)), space.load_u64(at(13))), (Ok(3), Ok(4)));
    space.audit().unwrap();
    drop((space, device));
    machine.end()
}

fn foreign_mappings_join_where_their_frames_go_on<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, device) = (machine.space::<D>(), Device::new(&machine, 4));
    space.map(device.request(10, 0, 1)).unwrap();
    space.map(device.request(12, 2, 2)).unwrap();
    space.map(device.request(11, 1, 1)).unwrap();
    assert_eq!(shape(&space), [(10, 14, Some(device.frame(0)))]);
    // A mapping that repeats the frame does not merge.
    space.map(device.request(14, 3, 1)).unwrap();
    assert_eq!(shape(&space), [(10, 14, Some(device.frame(0))), (14, 15, Some(device.frame(3)))]);
    space.protect(at(11), PAGE_SIZE, Protection::READ).unwrap();
    assert_eq!(shape(&space).len(), 4);
    space.protect(at(11), PAGE_SIZE, READ_WRITE).unwrap();
    assert_eq!(shape(&space).len(), 2);
    // Anonymous memory and private mappings do not merge with it either.
    space.map(anonymous(9, 1)).unwrap();
    let source = Source::Foreign { frames: device.frames(0), sharing: Sharing::Private };
    space.map(MapRequest { source, ..device.request(30, 0, 1).protection(Protection::READ) }).unwrap();
    space.map(device.request(31, 1, 1).protection(Protection::READ)).unwrap();
    assert_eq!(shape(&space).len(), 5);
    space.store_u64(at(13), 9).unwrap();
    assert_eq!(space.load_u64(at(14)), Ok(9));
    space.audit().unwrap();
    drop((space, device));
    machine.end()
}

fn foreign_frames_are_neither_locked_nor_fetched<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, device) = (machine.space::<D>(), Device::new(&machine, 2));
    let locked = |space: &Space<S, D>| {
        space.mappings().iter().filter(|info| info.flags.contains(MappingFlags::LOCKED)).count()
    };
    let is_untouched = |space: &Space<S, D>| {
        assert_eq!(locked(space), 0, "counted as locked");
        (0..2).for_each(|n| assert!(space.try_load_u64(at(10 + n)).is_err(), "fetched"));
        space.audit().unwrap();
    };
    space.map(MapRequest { populate: true, ..device.request(10, 0, 2) }).unwrap();
    is_untouched(&space);
    space.lock(at(10), pages(2), LockMode::Now).unwrap();
    is_untouched(&space);
    space.lock_all(LockAll::CURRENT | LockAll::FUTURE).unwrap();
    is_untouched(&space);
    let flags = MappingFlags::LOCKED;
    space.map(MapRequest { flags, ..device.request(10, 0, 2) }).unwrap();
    is_untouched(&space);
    // Pages that are not locked may be dropped. The neighbours of foreign frames are still locked.
    space.map(anonymous(12, 1)).unwrap();
    assert_eq!(locked(&space), 1);
    space.lock(at(10), pages(3), LockMode::Now).unwrap();
    space.discard(at(10), pages(2)).unwrap();
    space.unlock_all().unwrap();
    space.unlock(at(10), pages(2)).unwrap();
    is_untouched(&space);
    drop((space, device));
    machine.end()
}

fn advice_for_memory_of_the_engine_is_refused_for_foreign_frames<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, device) = (machine.space::<D>(), Device::new(&machine, 2));
    space.map(device.request(10, 0, 2)).unwrap();
    space.store_u64(at(10), 1).unwrap();
    let refused = [
        Advice::Free,
        Advice::Remove,
        Advice::PopulateRead,
        Advice::PopulateWrite,
        Advice::DoFork,
        Advice::WipeOnFork,
        Advice::GuardInstall,
        Advice::GuardRemove,
        Advice::Cold,
        Advice::PageOut,
    ];
    for advice in refused {
        let error = space.advise(at(10), pages(2), advice).unwrap_err();
        assert_eq!(error.errno(), errno::EINVAL, "{advice:?}: {error}");
        space.audit().unwrap();
    }
    let taken = [Advice::Normal, Advice::Random, Advice::Sequential, Advice::WillNeed, Advice::KeepOnFork];
    for advice in taken {
        space.advise(at(10), pages(2), advice).unwrap();
    }
    space.try_load_u64(at(10)).expect("the entry has stayed");
    space.audit().unwrap();
    drop((space, device));
    machine.end()
}

fn foreign_frames_are_neither_pinned_nor_copied_from_outside<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, device) = (machine.space::<D>(), Device::new(&machine, 2));
    space.map(anonymous(9, 1)).unwrap();
    space.map(device.request(10, 0, 2)).unwrap();
    let foreign = |page| FaultError::Foreign { address: at(page) };
    let mut bytes = vec![1; 2 * PAGE_SIZE as usize];
    // The first time without a leaf table, without an entry; the second time with one.
    for _ in 0..2 {
        for access in [Access::Read, Access::Write, Access::Execute] {
            assert_eq!(space.pin(at(10), access).err(), Some(foreign(10)), "{access}");
        }
        assert_eq!(space.read_remote(at(10), &mut bytes).unwrap_err().error, foreign(10));
        assert_eq!(space.write_remote(at(11), &[7; 8]).unwrap_err().error, foreign(11));
        assert_eq!(foreign(10).errno(), errno::EFAULT);
        space.store_u64(at(10), 1).unwrap();
        space.audit().unwrap();
    }
    assert_eq!(space.read_remote(at(9), &mut bytes), Ok(PAGE_SIZE as usize), "up to the foreign page");
    assert_eq!(space.write_remote(at(9), &bytes), Ok(PAGE_SIZE as usize));
    assert_eq!((device.read(0), device.read(1)), (1, 0));
    // Linux checks this first, before the rights.
    space.protect(at(10), PAGE_SIZE, NONE).unwrap();
    assert_eq!(space.read_remote(at(10), &mut bytes).unwrap_err().error, foreign(10));
    drop((space, device));
    machine.end()
}

fn a_mapping_over_another_leaves_the_frames_alone<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, device) = (machine.space::<D>(), Device::new(&machine, 2));
    let frames = machine.frames();
    space.map(anonymous(10, 4)).unwrap();
    (10..14).for_each(|page| space.store_u64(at(page), 5).unwrap());
    space.map(device.request(11, 0, 2)).unwrap();
    assert_eq!(
        (space.load_u64(at(10)), space.load_u64(at(11)), space.load_u64(at(13))),
        (Ok(5), Ok(0), Ok(5))
    );
    assert_eq!(machine.frames() - frames, 2, "the anonymous pages have gone");
    space.store_u64(at(11), 8).unwrap();
    space.audit().unwrap();
    space.map(anonymous(11, 2)).unwrap();
    assert_eq!((space.load_u64(at(11)), device.read(0)), (Ok(0), 8));
    space.store_u64(at(11), 9).unwrap();
    assert_eq!(device.read(0), 8);
    space.audit().unwrap();
    drop((space, device));
    machine.end()
}

/// The machine does not have these frames. Its frame source panics if it is asked for their folios or to fetch one.
/// Only the engine serves faults here, and no processor touches the memory.
fn no_folio_of_a_foreign_frame_is_asked<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(8));
    let first = Frame::new(Frame::COUNT - 64).unwrap();
    // SAFETY: no other code has these frames, and no processor uses these spaces.
    let frames = unsafe { ForeignFrames::new(first, 64) }.unwrap();
    let request = || MapRequest::<S>::foreign(frames, READ_WRITE);
    // The last 32 pages of one leaf table, and the first 32 of the next.
    let from = 512 * 4 - 32;
    space.map(anonymous(from - 8, 8)).unwrap();
    space.map(request().at(Placement::Fixed(at(from)))).unwrap();
    space.map(of_file(&file, from + 64, 8, READ_WRITE)).unwrap();
    let touch = |space: &Space<S, D>, pages: std::ops::Range<u64>| {
        for page in pages {
            for access in [Access::Read, Access::Write] {
                space.fault_and_wait(at(page), access).unwrap();
            }
        }
        space.audit().unwrap();
    };
    touch(&space, from - 8..from + 72);
    let whole = pages(80);
    space.protect(at(from - 8), whole, Protection::READ).unwrap();
    space.audit().unwrap();
    space.protect(at(from - 8), whole, READ_WRITE).unwrap();
    touch(&space, from..from + 64);
    let child = space.fork().unwrap();
    touch(&child, from - 8..from + 72);
    let grandchild = child.fork().unwrap();
    touch(&child, from - 8..from + 72);
    space.usage();
    space.resident(at(from - 8), whole).unwrap();
    space.sync(at(from - 8), whole, SyncFlags::SYNC).unwrap();
    space.lock(at(from - 8), whole, LockMode::Now).unwrap();
    space.unlock_all().unwrap();
    assert!(space.pin(at(from), Access::Write).is_err());
    assert!(space.read_remote(at(from), &mut [0; 8]).is_err());
    // Frames of the machine and foreign frames alternate at the same place.
    space.map(request().at(Placement::Fixed(at(from - 8)))).unwrap();
    touch(&space, from - 8..from + 56);
    space.map(anonymous(from - 8, 8)).unwrap();
    touch(&space, from - 8..from + 56);
    space.remap(RemapRequest::to(at(from), pages(64), at(512 * 8))).unwrap();
    space.audit().unwrap();
    touch(&space, 512 * 8..512 * 8 + 56);
    space.discard(at(512 * 8), pages(16)).unwrap();
    space.unmap(at(512 * 8 + 8), pages(16)).unwrap();
    space.audit().unwrap();
    assert_eq!(space.mapping_from(PageNumber::new(512 * 8)).unwrap().foreign, Frame::new(first.get() + 8));
    child.exit();
    drop((space, child, grandchild, file));
    machine.end()
}
