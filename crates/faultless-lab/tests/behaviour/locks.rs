//! mlock, population by mmap, mincore, mseal, and their effect on listings: each rule as in Linux 6.18, with its
//! errors.

use crate::advice::{NONE, flags, pages, resident, shared};
use crate::*;
use faultless::errno;
use faultless::protection::Access;
use faultless::vma::MappingFlags;
use faultless::{
    Advice, AdviseError, DiscardError, Fault, LimitError, LockAll, LockError, LockMode, MapError,
    ProtectError, RemapError, RemapRequest, ResidentError, SealError, SpaceLimits, UnmapError,
};
use faultless_soft::Cpu;
use std::sync::atomic::{AtomicBool, Ordering};

under_every_design! {
    locked_memory_that_becomes_writable_is_had_for_writing
    locks_split_merge_and_fetch
    locks_stop_where_they_cannot_go_on
    locks_are_limited
    lock_all_is_for_now_and_later
    map_fetches_what_it_can
    what_is_mapped_over_is_not_populated
    what_is_unlocked_is_not_fetched
    resident_looks_and_touches_nothing
    seals_refuse
    sealed_memory_keeps_what_nobody_could_write
    usage_tells_whose_pages_are
    listings_wait_for_nobody
    what_runs_out_is_said
}

// All tests but two. `usage_tells_whose_pages_are` needs the processor's dirty and accessed bits, which userfaultfd
// does not have.
on_real_memory! {
    locks_split_merge_and_fetch
    locks_stop_where_they_cannot_go_on
    locks_are_limited
    lock_all_is_for_now_and_later
    map_fetches_what_it_can
    what_is_mapped_over_is_not_populated
    what_is_unlocked_is_not_fetched
    resident_looks_and_touches_nothing
    seals_refuse
    sealed_memory_keeps_what_nobody_could_write
    listings_wait_for_nobody
    what_runs_out_is_said
}

fn locks_split_merge_and_fetch<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(2));
    let (none, locked, on_fault) = (MappingFlags::empty(), MappingFlags::LOCKED, MappingFlags::LOCKS);
    space.map(anonymous(10, 4)).unwrap();
    assert_eq!(space.lock(at(10), 0, LockMode::Now), Ok(()));
    assert_eq!(space.lock(at(99), 0, LockMode::Now), Ok(()));
    assert_eq!(flags(&space), [(10, 14, none)]);
    // Any address is allowed. The range is rounded to the pages that it touches.
    space.lock(VirtAddr::new(at(11).get() - 1), 2, LockMode::Now).unwrap();
    assert_eq!(flags(&space), [(10, 12, locked), (12, 14, none)]);
    assert_eq!((resident(&space, 10, 4), machine.frames()), ("1100".into(), 2));
    space.lock(at(11), pages(2), LockMode::OnFault).unwrap();
    assert_eq!(flags(&space), [(10, 11, locked), (11, 13, on_fault), (13, 14, none)]);
    assert_eq!(resident(&space, 10, 4), "1100");
    space.lock(at(10), pages(4), LockMode::Now).unwrap();
    assert_eq!((flags(&space), machine.frames()), (vec![(10, 14, locked)], 4));
    space.unlock(at(10), pages(4)).unwrap();
    assert_eq!(flags(&space), [(10, 14, none)]);
    // For a writable private mapping, the locked page is a private copy. For a read-only one, it is the file's page.
    space.map(of_file(&file, 20, 2, READ_WRITE)).unwrap();
    space.map(of_file(&file, 30, 2, Protection::READ)).unwrap();
    space.lock(at(20), pages(2), LockMode::Now).unwrap();
    assert_eq!(machine.frames(), 4 + 2 + 2);
    space.lock(at(30), pages(2), LockMode::Now).unwrap();
    assert_eq!(machine.frames(), 4 + 2 + 2);
    // A mapping that can only be executed or written is fetched too.
    space.map(anonymous(40, 1).protection(Protection::EXECUTE)).unwrap();
    space.map(anonymous(41, 1).protection(Protection::WRITE)).unwrap();
    space.lock(at(40), pages(2), LockMode::Now).unwrap();
    assert_eq!(resident(&space, 40, 2), "11");
    space.audit().unwrap();
    drop((space, file));
    machine.end()
}

fn locks_stop_where_they_cannot_go_on<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(4));
    let (none, locked) = (MappingFlags::empty(), MappingFlags::LOCKED);
    // At a hole: the mappings below are locked, and nothing is fetched.
    space.map(anonymous(10, 2)).unwrap();
    space.map(anonymous(14, 2)).unwrap();
    let error = space.lock(at(10), pages(6), LockMode::Now).unwrap_err();
    assert!(matches!(error, LockError::Hole { address, .. } if address == at(12)));
    assert_eq!((flags(&space), error.errno()), (vec![(10, 12, locked), (14, 16, none)], errno::ENOMEM));
    assert_eq!(resident(&space, 10, 2), "00");
    let error = space.unlock(at(11), pages(6)).unwrap_err();
    assert!(matches!(error, LockError::Hole { address, .. } if address == at(12)));
    assert_eq!(flags(&space)[..2], [(10, 11, locked), (11, 12, none)]);
    assert!(matches!(space.lock(at(13), pages(2), LockMode::Now), Err(LockError::Hole { .. })));
    // Without rights: everything is locked, and the pages below are fetched.
    space.map(anonymous(20, 3)).unwrap();
    space.protect(at(21), PAGE_SIZE, NONE).unwrap();
    let error = space.lock(at(20), pages(3), LockMode::Now).unwrap_err();
    assert!(matches!(error, LockError::NotAllowed { address } if address == at(21)));
    assert_eq!((resident(&space, 20, 3), error.errno()), ("100".into(), errno::ENOMEM));
    assert!(flags(&space).iter().filter(|f| f.0 >= 20).all(|f| f.2 == locked));
    // Past the end of the file, and at a guard.
    space.map(of_file(&file, 30, 6, READ_WRITE)).unwrap();
    let error = space.lock(at(30), pages(6), LockMode::Now).unwrap_err();
    assert!(matches!(error, LockError::Fault(FaultError::PastEnd { .. })));
    assert_eq!((resident(&space, 30, 6), error.errno()), ("111100".into(), errno::ENOMEM));
    space.map(anonymous(40, 4)).unwrap();
    space.advise(at(41), 1, Advice::GuardInstall).unwrap();
    let error = space.lock(at(40), pages(4), LockMode::Now).unwrap_err();
    assert!(matches!(error, LockError::Fault(FaultError::Guard { .. })));
    assert_eq!((resident(&space, 40, 4), error.errno()), ("1000".into(), errno::ENOMEM));
    assert_eq!(flags(&space).last(), Some(&(40, 44, locked)));
    space.advise(at(41), 1, Advice::GuardRemove).unwrap();
    let length = u64::MAX - 0x1fff;
    assert_eq!(space.lock(at(40), length, LockMode::Now).unwrap_err().errno(), errno::EINVAL);
    assert_eq!(space.unlock(at(40), length).unwrap_err().errno(), errno::EINVAL);
    // Rounded up to whole pages, this length is zero.
    space.lock(at(40), u64::MAX, LockMode::Now).unwrap();
    space.unlock(at(40), u64::MAX).unwrap();
    drop((space, file));
    machine.end()
}

fn locks_are_limited<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.set_limits(SpaceLimits { locked: pages(8) + 1, ..SpaceLimits::default() });
    space.map(anonymous(10, 20)).unwrap();
    space.lock(at(10), pages(8), LockMode::Now).unwrap();
    space.lock(at(10), pages(8), LockMode::Now).unwrap();
    for (page, n) in [(18, 1), (14, 5), (25, 10)] {
        let error = space.lock(at(page), pages(n), LockMode::Now).unwrap_err();
        assert!(matches!(error, LockError::Limit { limit } if limit == pages(8) + 1), "{page} {n}");
        assert_eq!(error.errno(), errno::ENOMEM);
    }
    let locked = |page| MapRequest { flags: MappingFlags::LOCKED, ..anonymous(page, 1) };
    // As on Linux, the pages to be replaced still count.
    for page in [40, 10] {
        let error = space.map(locked(page)).unwrap_err();
        assert!(
            matches!(error, MapError::Limit(LimitError::Locked { .. })) && error.errno() == errno::EAGAIN
        );
    }
    let error = space.lock_all(LockAll::CURRENT).unwrap_err();
    assert!(matches!(error, LockError::Limit { .. }));
    space.lock_all(LockAll::FUTURE).unwrap();
    assert!(matches!(space.map(anonymous(40, 1)), Err(MapError::Limit(LimitError::Locked { .. }))));
    space.unlock_all().unwrap();
    space.map(anonymous(40, 1)).unwrap();
    space.map(locked(41)).unwrap();
    space.map(locked(41)).unwrap();
    // The same limit applies to mappings that grow.
    space.unlock(at(10), pages(20)).unwrap();
    space.lock(at(41), pages(1), LockMode::Now).unwrap();
    let longer = space.remap(RemapRequest::resize(at(41), pages(1), pages(10))).unwrap_err();
    assert!(matches!(longer, RemapError::Limit(LimitError::Locked { .. })), "{longer}");
    space.set_limits(SpaceLimits { locked: 0, ..SpaceLimits::default() });
    for error in [
        space.lock(at(10), 1, LockMode::Now).unwrap_err(),
        space.lock(at(10), 0, LockMode::Now).unwrap_err(),
        space.lock_all(LockAll::CURRENT).unwrap_err(),
    ] {
        assert_eq!((error, error.errno()), (LockError::NotPermitted, errno::EPERM));
    }
    assert_eq!(space.lock_all(LockAll::ON_FAULT), Err(LockError::Nothing));
    assert_eq!(space.map(locked(42)), Err(MapError::LockNotPermitted));
    space.unlock(at(41), 1).unwrap();
    let child = space.fork().unwrap();
    assert_eq!(child.lock(at(10), 1, LockMode::Now), Err(LockError::NotPermitted));
    drop((space, child));
    machine.end()
}

fn lock_all_is_for_now_and_later<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(2));
    let (none, locked, on_fault) = (MappingFlags::empty(), MappingFlags::LOCKED, MappingFlags::LOCKS);
    for wrong in [LockAll::empty(), LockAll::ON_FAULT] {
        assert_eq!(space.lock_all(wrong).unwrap_err().errno(), errno::EINVAL);
    }
    space.lock_all(LockAll::CURRENT).unwrap();
    space.map(anonymous(10, 2)).unwrap();
    space.map(anonymous(12, 2).protection(NONE)).unwrap();
    space.map(of_file(&file, 14, 4, READ_WRITE)).unwrap();
    space.map(anonymous(20, 3)).unwrap();
    space.advise(at(21), 1, Advice::GuardInstall).unwrap();
    // An error in one mapping ends the fetch of that mapping only.
    space.lock_all(LockAll::CURRENT).unwrap();
    assert_eq!((resident(&space, 10, 8), resident(&space, 20, 3)), ("11001100".into(), "100".into()));
    assert!(flags(&space).iter().all(|f| f.2 == locked));
    space.map(anonymous(30, 1)).unwrap();
    assert_eq!(flags(&space).last(), Some(&(30, 31, none)));
    space.unlock_all().unwrap();
    assert!(flags(&space).iter().all(|f| f.2 == none));

    space.lock_all(LockAll::FUTURE).unwrap();
    space.map(anonymous(40, 2)).unwrap();
    assert_eq!((flags(&space).last(), resident(&space, 40, 2)), (Some(&(40, 42, locked)), "11".into()));
    space.lock_all(LockAll::CURRENT).unwrap();
    space.map(anonymous(50, 2)).unwrap();
    assert_eq!(flags(&space).last(), Some(&(50, 52, none)), "the later call cancelled MCL_FUTURE");
    space.lock_all(LockAll::FUTURE | LockAll::ON_FAULT).unwrap();
    space.map(MapRequest { populate: true, ..anonymous(60, 2) }).unwrap();
    space.map(MapRequest { flags: locked, ..anonymous(62, 2) }).unwrap();
    assert_eq!((flags(&space).last(), resident(&space, 60, 4)), (Some(&(60, 64, on_fault)), "0000".into()));
    drop((space, file));
    machine.end()
}

fn map_fetches_what_it_can<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(4));
    let populated = |request| MapRequest { populate: true, ..request };
    space.map(anonymous(14, 1)).unwrap();
    space.map(populated(anonymous(10, 4))).unwrap();
    assert_eq!(
        (space.mappings().len(), machine.frames()),
        (1, 4),
        "merged, and only the new pages are fetched"
    );
    for (page, rights, expected) in [
        (20, Protection::READ, "1111"),
        (30, NONE, "0000"),
        (40, Protection::EXECUTE, "1111"),
        (50, Protection::WRITE, "1111"),
    ] {
        space.map(populated(anonymous(page, 4).protection(rights))).unwrap();
        assert_eq!(resident(&space, page, 4), expected, "{rights}");
    }
    // A page past the end of the file is no error of mmap.
    space.map(populated(of_file(&file, 60, 6, READ_WRITE))).unwrap();
    assert_eq!(resident(&space, 60, 6), "111100");
    space.map(MapRequest { flags: MappingFlags::LOCKED, ..of_file(&file, 70, 6, Protection::READ) }).unwrap();
    assert_eq!(
        (resident(&space, 70, 6), flags(&space).last()),
        ("111100".into(), Some(&(70, 76, MappingFlags::LOCKED)))
    );
    space.map(MapRequest { flags: MappingFlags::LOCKED, ..anonymous(80, 2).protection(NONE) }).unwrap();
    // Over another mapping, at a fixed address, and at any address.
    space.map(populated(anonymous(10, 2))).unwrap();
    assert_eq!(resident(&space, 10, 2), "11");
    let anywhere = space.map(populated(MapRequest::anonymous(3 * PAGE_SIZE))).unwrap();
    assert_eq!(resident(&space, anywhere.page().get(), 3), "111");
    space.audit().unwrap();
    drop((space, file));
    machine.end()
}

/// Another mapping replaces the range of a populating map while that waits for its first read (sources: Lespinasse
/// 2012).
fn what_is_mapped_over_is_not_populated<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, (file, gate)) = (machine.space::<D>(), machine.gated_file(4));
    std::thread::scope(|scope| {
        let map = scope.spawn(|| {
            space.map(MapRequest { populate: true, ..of_file(&file, 10, 4, READ_WRITE) }).unwrap();
        });
        gate.wait_for(1);
        // A design that holds a lock through the read lets this call through only afterwards.
        let over = scope.spawn(|| {
            space.map(anonymous(10, 1)).unwrap();
            space.map(anonymous(12, 2)).unwrap();
        });
        if D::NAME.starts_with("faultless") {
            over.join().unwrap();
        }
        gate.open();
        map.join().unwrap();
    });
    assert_eq!(resident(&space, 10, 4), "0100");
    assert_eq!(space.load_u64(at(10)).unwrap(), 0);
    space.audit().unwrap();
    drop((space, file, gate));
    machine.end()
}

fn what_is_unlocked_is_not_fetched<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, (file, gate)) = (machine.space::<D>(), machine.gated_file(1));
    space.map(of_file(&file, 10, 1, Protection::READ)).unwrap();
    space.map(anonymous(11, 4)).unwrap();
    std::thread::scope(|scope| {
        let lock = scope.spawn(|| space.lock(at(10), pages(5), LockMode::Now).unwrap());
        gate.wait_for(1);
        let unlock = scope.spawn(|| space.unlock(at(10), pages(5)).unwrap());
        let waits_for_nobody = D::NAME.starts_with("faultless");
        if waits_for_nobody {
            unlock.join().unwrap();
        }
        gate.open();
        lock.join().unwrap();
        if waits_for_nobody {
            assert_eq!(resident(&space, 11, 4), "0000");
        }
    });
    assert!(flags(&space).iter().all(|f| f.2.is_empty()));
    drop((space, file, gate));
    machine.end()
}

fn resident_looks_and_touches_nothing<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file, other) = (machine.space::<D>(), machine.file(4), machine.space::<D>());
    space.map(anonymous(10, 4)).unwrap();
    space.store_u64(at(11), 1).unwrap();
    let frames = machine.frames();
    assert_eq!(resident(&space, 10, 4), "0100");
    space.protect(at(10), pages(4), NONE).unwrap();
    assert_eq!(resident(&space, 10, 4), "0100", "in memory, although no access is allowed");
    space.map(of_file(&file, 20, 6, READ_WRITE)).unwrap();
    assert_eq!(resident(&space, 20, 6), "000000");
    assert_eq!(machine.frames(), frames);
    other.map(of_file(&file, 20, 6, READ_WRITE)).unwrap();
    other.load_u64(at(22)).unwrap();
    assert_eq!(resident(&space, 20, 6), "001000", "in memory because of another space");
    assert_eq!(space.resident(at(10), 0), Ok(vec![]));
    assert_eq!(space.resident(at(99), 0), Ok(vec![]));
    for (address, length, number) in [
        (VirtAddr::new(1), 0, errno::EINVAL),
        (VirtAddr::new(at(10).get() + 1), PAGE_SIZE, errno::EINVAL),
        (at(10), u64::MAX, errno::ENOMEM),
        (at(13), pages(2), errno::ENOMEM),
        (at(10), 1 << 62, errno::ENOMEM),
    ] {
        assert_eq!(space.resident(address, length).unwrap_err().errno(), number, "{address} {length}");
    }
    let error = space.resident(at(12), pages(4)).unwrap_err();
    assert!(matches!(error, ResidentError::Hole { address, .. } if address == at(14)));
    // A length of zero succeeds in the space and directly behind it, but not further away.
    for page in [0, 10, 99, S::PAGES] {
        assert_eq!(space.resident(at(page), 0), Ok(vec![]));
    }
    for page in [S::PAGES + 1, u64::MAX >> 12] {
        assert_eq!(space.resident(at(page), 0).unwrap_err().errno(), errno::ENOMEM);
    }
    assert_eq!(space.resident(VirtAddr::new(1), 0).unwrap_err().errno(), errno::EINVAL);
    drop((space, other, file));
    machine.end()
}

fn seals_refuse<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let (none, sealed) = (MappingFlags::empty(), MappingFlags::SEALED);
    space.map(anonymous(10, 6)).unwrap();
    (10..16).for_each(|page| space.store_u64(at(page), page).unwrap());
    space.map(anonymous(20, 1)).unwrap();
    assert_eq!((space.seal(at(10), 0), space.seal(at(99), 0)), (Ok(()), Ok(())));
    assert_eq!(space.seal(VirtAddr::new(1), 1).unwrap_err().errno(), errno::EINVAL);
    assert_eq!(space.seal(at(10), u64::MAX).unwrap_err().errno(), errno::EINVAL);
    let error = space.seal(at(10), pages(11)).unwrap_err();
    assert!(matches!(error, SealError::Hole { address, .. } if address == at(16)));
    assert_eq!((flags(&space), error.errno()), (vec![(10, 16, none), (20, 21, none)], errno::ENOMEM));
    space.seal(at(12), pages(2)).unwrap();
    space.seal(at(12), pages(2)).unwrap();
    let shape = vec![(10, 12, none), (12, 14, sealed), (14, 16, none), (20, 21, none)];
    assert_eq!(flags(&space), shape);

    let error = space.unmap(at(10), pages(20)).unwrap_err();
    assert!(matches!(error, UnmapError::Sealed { address, .. } if address == at(12)));
    assert_eq!(error.errno(), errno::EPERM);
    let error = space.map(anonymous(10, 6)).unwrap_err();
    assert!(matches!(error, MapError::Sealed { address, .. } if address == at(12)));
    assert_eq!(error.errno(), errno::EPERM);
    assert_eq!(flags(&space), shape, "nothing was done");
    assert_eq!(space.load_u64(at(10)).unwrap(), 10);
    for rights in [READ_WRITE, NONE] {
        let error = space.protect(at(12), PAGE_SIZE, rights).unwrap_err();
        assert_eq!(error.errno(), errno::EPERM);
    }
    let error = space.protect(at(10), pages(6), Protection::READ).unwrap_err();
    assert!(matches!(error, ProtectError::Sealed { address } if address == at(12)));
    let rights: Vec<_> = space.mappings().iter().map(|m| m.protection.to_string()).collect();
    assert_eq!(rights, ["r--", "rw-", "rw-", "rw-"], "the mapping below has changed");

    // Advice that destroys only overwritable data is allowed. So is locking.
    for advice in [
        Advice::DontNeed,
        Advice::Free,
        Advice::DontFork,
        Advice::DoFork,
        Advice::WipeOnFork,
        Advice::KeepOnFork,
        Advice::GuardInstall,
        Advice::GuardRemove,
        Advice::Random,
        Advice::PopulateWrite,
    ] {
        assert_eq!(space.advise(at(12), 1, advice), Ok(()), "{advice:?}");
    }
    space.lock(at(12), 1, LockMode::Now).unwrap();
    space.unlock(at(12), 1).unwrap();
    let child = space.fork().unwrap();
    assert!(matches!(child.unmap(at(12), 1), Err(UnmapError::Sealed { .. })));
    child.exit();
    assert!(child.mappings().is_empty(), "the end of the space breaks seals");
    drop((space, child));
    machine.end()
}

fn sealed_memory_keeps_what_nobody_could_write<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(2));
    for (page, rights) in [(10, Protection::READ), (20, NONE), (30, Protection::READ)] {
        space.map(anonymous(page, 2)).unwrap();
        space.store_u64(at(page), page).unwrap();
        space.protect(at(page), pages(2), rights).unwrap();
    }
    space.lock(at(30), pages(2), LockMode::OnFault).unwrap();
    for page in [10, 20, 30] {
        space.seal(at(page), pages(2)).unwrap();
        for advice in
            [Advice::DontNeed, Advice::Free, Advice::DontFork, Advice::WipeOnFork, Advice::GuardInstall]
        {
            let error = space.advise(at(page), 1, advice).unwrap_err();
            assert_eq!(error.errno(), errno::EPERM, "{advice:?}: {error:?}");
        }
        for advice in
            [Advice::DoFork, Advice::KeepOnFork, Advice::GuardRemove, Advice::Random, Advice::WillNeed]
        {
            assert_eq!(space.advise(at(page), 1, advice), Ok(()), "{advice:?}");
        }
        assert!(matches!(space.discard(at(page), 1), Err(DiscardError::Sealed { .. })));
    }
    assert_eq!(space.load_u64(at(10)).unwrap(), 10);
    // The contents of a file are not lost by advice.
    space.map(of_file(&file, 40, 2, Protection::READ)).unwrap();
    space.map(shared(&file, 50, 2)).unwrap();
    for page in [40, 50] {
        space.seal(at(page), pages(2)).unwrap();
        for advice in [Advice::DontNeed, Advice::GuardInstall, Advice::GuardRemove, Advice::DontFork] {
            assert_eq!(space.advise(at(page), 1, advice), Ok(()), "{advice:?}");
        }
    }
    drop((space, file));
    machine.end()
}

fn usage_tells_whose_pages_are<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(2));
    space.map(anonymous(10, 4)).unwrap();
    space.load_u64(at(12)).unwrap();
    (10..12).for_each(|page| space.store_u64(at(page), 1).unwrap());
    space.map(of_file(&file, 600, 3, READ_WRITE)).unwrap();
    space.load_u64(at(600)).unwrap();
    space.store_u64(at(601), 1).unwrap();
    space.lock(at(602), 1, LockMode::OnFault).unwrap();
    let usage = space.usage();
    let page = PAGE_SIZE;
    assert_eq!(usage.iter().map(|u| u.mapping).collect::<Vec<_>>(), space.mappings());
    let anon = usage[0];
    assert_eq!((anon.resident, anon.private_dirty, anon.anonymous), (2 * page, 2 * page, 2 * page));
    assert_eq!((anon.proportional, anon.referenced, anon.locked, anon.swap), (2 * page, 2 * page, 0, 0));
    let of_file = usage[1];
    assert_eq!((of_file.resident, of_file.private_clean, of_file.private_dirty), (2 * page, page, page));
    assert_eq!((of_file.anonymous, usage[2].resident), (page, 0));
    let child = space.fork().unwrap();
    child.load_u64(at(600)).unwrap();
    space.lock(at(10), pages(2), LockMode::OnFault).unwrap();
    let usage = space.usage();
    assert_eq!((usage[0].shared_dirty, usage[0].proportional, usage[0].locked), (2 * page, page, page));
    let of_file = usage[2];
    assert_eq!((of_file.shared_clean, of_file.shared_dirty, of_file.private_clean), (page, page, 0));
    drop((space, child, file));
    machine.end()
}

fn listings_wait_for_nobody<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, (file, gate)) = (machine.space::<D>(), machine.gated_file(1));
    space.map(of_file(&file, 10, 1, Protection::READ)).unwrap();
    space.map(anonymous(20, 2)).unwrap();
    let Fault::Pending(fault) = space.fault(at(10), Access::Read).unwrap() else { panic!("a cold page") };
    gate.wait_for(1);
    assert_eq!(space.mappings().len(), 2);
    assert_eq!(space.usage().len(), 2);
    assert_eq!(resident(&space, 10, 1), "0");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stopped = Stopped(&stop);
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert!(space.usage().len() >= 2);
                    let _ = space.resident(at(20), pages(2));
                }
            });
        }
        if D::NAME.starts_with("faultless") {
            for _ in 0..100 {
                space.map(anonymous(20, 2)).unwrap();
                space.store_u64(at(21), 1).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    gate.open();
    drop(fault);
    drop((space, file, gate));
    machine.end()
}

fn what_runs_out_is_said<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::with(S::IDLE_FRAMES + 4, Limits { mappings: 2, ..Limits::default() })?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 8)).unwrap();
    // The limit of mappings: nothing below is done. A guard splits no mapping.
    let error = space.advise(at(12), 1, Advice::Random).unwrap_err();
    assert_eq!(error.errno(), errno::EAGAIN, "{error:?}");
    for error in [
        space.lock(at(12), 1, LockMode::Now).unwrap_err(),
        space.lock(at(12), 1, LockMode::OnFault).unwrap_err(),
    ] {
        assert!(
            matches!(error, LockError::TooManyMappings { limit: 2, .. }) && error.errno() == errno::ENOMEM
        );
    }
    let error = space.seal(at(12), 1).unwrap_err();
    assert!(matches!(error, SealError::TooManyMappings { .. }) && error.errno() == errno::ENOMEM);
    assert_eq!(flags(&space), [(10, 18, MappingFlags::empty())]);
    space.advise(at(17), 1, Advice::GuardInstall).unwrap();
    space.advise(at(17), 1, Advice::GuardRemove).unwrap();
    // Missing frames: pages that were already fetched stay.
    let error = space.advise(at(10), pages(8), Advice::PopulateWrite).unwrap_err();
    assert!(matches!(error, AdviseError::Fault(FaultError::OutOfMemory { .. })));
    assert_eq!((resident(&space, 10, 8), error.errno()), ("11110000".into(), errno::ENOMEM));
    let error = space.lock(at(10), pages(8), LockMode::Now).unwrap_err();
    assert!(matches!(error, LockError::Fault(FaultError::OutOfMemory { .. })));
    assert_eq!((flags(&space), error.errno()), (vec![(10, 18, MappingFlags::LOCKED)], errno::EAGAIN));
    space.audit().unwrap();
    assert_eq!(space.taken_ranges(), 0);
    drop(space);
    machine.end()
}

fn locked_memory_that_becomes_writable_is_had_for_writing<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(4));
    space.map(of_file(&file, 10, 4, Protection::READ)).unwrap();
    space.lock(at(10), pages(2), LockMode::Now).unwrap();
    space.lock(at(12), pages(1), LockMode::OnFault).unwrap();
    space.protect(at(10), pages(4), READ_WRITE).unwrap();
    let own: Vec<_> = space.usage().iter().map(|part| part.anonymous).collect();
    // A page that is locked on its first touch, or not locked, has no private copy yet.
    assert_eq!(own, [pages(2), 0, 0]);
    drop((space, file));
    machine.end()
}
