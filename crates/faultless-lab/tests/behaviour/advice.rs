//! madvise, guard pages, mlock, populating, mincore, mseal, another space's memory, and what is listed of all this: each
//! rule as Linux 6.18 has it, and its errors.

use crate::*;
use faultless::address::RangeError;
use faultless::errno;
use faultless::protection::{Access, Sharing};
use faultless::vma::Flags;
use faultless::{
    Advice, AdviseError, DiscardError, Fault, LockAll, LockError, LockMode, MapError, ProtectError,
    ResidentError, SealError, Source, UnmapError,
};
use faultless_soft::Cpu;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

under_every_design! {
    reading_advice_splits_and_merges
    advice_checks_its_arguments
    advice_is_for_its_kind
    an_error_ends_advice_where_it_is
    populate_brings_pages_or_says_why_not
    willneed_begins_reads_and_waits_for_none
    guards_refuse_and_stay
    guards_go_with_the_mapping
    guards_are_forked
    guards_count_as_pages_when_mappings_merge
    guards_hold_under_a_crowd_of_faults
    fork_honours_advice_and_drops_locks
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
    remote_memory_goes_by_rights
    usage_tells_whose_pages_are
    listings_wait_for_nobody
}

// All but those that count a first load's frames as the software machine does, which here takes one:
// `usage_tells_whose_pages_are`.
on_real_memory! {
    reading_advice_splits_and_merges
    advice_checks_its_arguments
    advice_is_for_its_kind
    an_error_ends_advice_where_it_is
    populate_brings_pages_or_says_why_not
    willneed_begins_reads_and_waits_for_none
    guards_refuse_and_stay
    guards_go_with_the_mapping
    guards_are_forked
    guards_count_as_pages_when_mappings_merge
    guards_hold_under_a_crowd_of_faults
    fork_honours_advice_and_drops_locks
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
    remote_memory_goes_by_rights
    listings_wait_for_nobody
}

const NONE: Protection = Protection::empty();

fn pages(n: u64) -> u64 {
    n * PAGE_SIZE
}

/// First page, page behind the last one, flags.
fn flags<S: Stand, D: LockingDesign>(space: &Space<S, D>) -> Vec<(u64, u64, Flags)> {
    let line = |m: &faultless::MappingInfo| (m.range.start().get(), m.range.end().get(), m.flags);
    space.mappings().iter().map(line).collect()
}

/// Which of the pages are in memory: `1` and `0`.
fn resident<S: Stand, D: LockingDesign>(space: &Space<S, D>, page: u64, n: u64) -> String {
    // Where an access can be done before its entry is.
    let _ = space.audit();
    space.resident(at(page), pages(n)).unwrap().iter().map(|r| if *r { '1' } else { '0' }).collect()
}

fn shared<S: Stand>(file: &Arc<File<S>>, page: u64, n: u64) -> MapRequest<S> {
    let source = Source::File { file: file.clone(), first: 0, sharing: Sharing::Shared };
    MapRequest { source, ..anonymous(page, n) }.with(Protection::READ)
}

fn is_guard<S: Stand, D: LockingDesign>(space: &Space<S, D>, page: u64) -> bool {
    matches!(fault_of(space.load_u64(at(page))), FaultError::Guard { address } if address == at(page))
}

fn reading_advice_splits_and_merges<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let (none, random, sequential) = (Flags::empty(), Flags::RANDOM, Flags::SEQUENTIAL);
    space.map(anonymous(10, 4)).unwrap();
    space.advise(at(11), pages(2), Advice::Random).unwrap();
    assert_eq!(flags(&space), [(10, 11, none), (11, 13, random), (13, 14, none)]);
    space.advise(at(12), 1, Advice::Sequential).unwrap();
    assert_eq!(flags(&space), [(10, 11, none), (11, 12, random), (12, 13, sequential), (13, 14, none)]);
    space.advise(at(10), pages(4), Advice::Random).unwrap();
    assert_eq!(flags(&space), [(10, 14, random)]);
    space.advise(at(10), pages(4), Advice::Normal).unwrap();
    space.advise(at(11), pages(1), Advice::DontFork).unwrap();
    space.advise(at(11), pages(2), Advice::WipeOnFork).unwrap();
    let (dont, wipe) = (Flags::DONT_FORK, Flags::WIPE_ON_FORK);
    assert_eq!(flags(&space), [(10, 11, none), (11, 12, dont | wipe), (12, 13, wipe), (13, 14, none)]);
    space.advise(at(10), pages(4), Advice::DoFork).unwrap();
    space.advise(at(10), pages(4), Advice::KeepOnFork).unwrap();
    assert_eq!(flags(&space), [(10, 14, none)]);
    assert_eq!(space.taken_ranges(), 0);
    drop(space);
    machine.end()
}

fn advice_checks_its_arguments<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 2)).unwrap();
    space.map(anonymous(13, 2)).unwrap();
    for number in -1..=110 {
        match Advice::try_from(number) {
            Err(error) => assert_eq!(error.errno(), errno::EINVAL),
            Ok(advice) => {
                assert_eq!(space.advise(at(10), 0, advice), Ok(()), "{advice:?}");
                assert_eq!(space.advise(at(50), 0, advice), Ok(()), "{advice:?}");
                let unaligned = VirtAddr::new(at(10).get() + 1);
                let error = space.advise(unaligned, 0, advice).unwrap_err();
                assert!(matches!(error, AdviseError::Range(RangeError::Unaligned { .. })), "{error:?}");
                let error = space.advise(at(10), u64::MAX, advice).unwrap_err();
                assert!(matches!(error, AdviseError::Range(RangeError::Overflow { .. })), "{error:?}");
                assert_eq!(error.errno(), errno::EINVAL);
                let error = space.advise(at(1 << 40), 1, advice).unwrap_err();
                assert_eq!(error.errno(), errno::ENOMEM, "{advice:?}");
            }
        }
    }
    // What lies around a hole is done all the same.
    let error = space.advise(at(10), pages(6), Advice::Random).unwrap_err();
    assert!(matches!(error, AdviseError::Hole { address, .. } if address == at(12)), "{error:?}");
    assert_eq!(flags(&space), [(10, 12, Flags::RANDOM), (13, 15, Flags::RANDOM)]);
    let error = space.advise(at(10), pages(6), Advice::Free).unwrap_err();
    assert_eq!(error.errno(), errno::ENOMEM);
    drop(space);
    machine.end()
}

fn advice_is_for_its_kind<S: Stand, D: LockingDesign>() -> Ran<S> {
    use Advice::*;
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(2));
    // The columns of a table of what Linux says: private anonymous memory; that, locked; a private file; a shared file.
    space.map(anonymous(10, 2)).unwrap();
    space.map(anonymous(20, 2)).unwrap();
    space.lock(at(20), pages(2), LockMode::OnFault).unwrap();
    space.map(of_file(&file, 30, 2, READ_WRITE)).unwrap();
    space.map(shared(&file, 40, 2)).unwrap();
    let (ok, inval, acces, later) = (0, errno::EINVAL, errno::EACCES, errno::EOPNOTSUPP);
    for (advice, expected) in [
        (Normal, [ok; 4]),
        (WillNeed, [ok; 4]),
        (DontNeed, [ok, inval, ok, ok]),
        (Free, [ok, inval, inval, inval]),
        (Remove, [inval, inval, acces, later]),
        (DontFork, [ok; 4]),
        (DoFork, [ok; 4]),
        (WipeOnFork, [ok, ok, inval, inval]),
        (KeepOnFork, [ok; 4]),
        (PopulateRead, [ok; 4]),
        (PopulateWrite, [ok, ok, ok, inval]),
        (GuardInstall, [ok, inval, ok, ok]),
        (GuardRemove, [ok; 4]),
        (Cold, [later, inval, later, later]),
        (PageOut, [later, inval, later, later]),
    ] {
        let said = [10, 20, 30, 40]
            .map(|page| space.advise(at(page), pages(2), advice).map_or_else(|e| e.errno(), |()| 0));
        assert_eq!(said, expected, "{advice:?}");
    }
    assert!(space.mappings().iter().all(|m| m.flags.difference(Flags::LOCKS).is_empty()));
    drop((space, file));
    machine.end()
}

fn an_error_ends_advice_where_it_is<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(1));
    //   10 private   11 -   12 private   13 shared   14 private
    for page in [10, 12, 14] {
        space.map(anonymous(page, 1)).unwrap();
    }
    space.map(shared(&file, 13, 1)).unwrap();
    let error = space.advise(at(10), pages(5), Advice::WipeOnFork).unwrap_err();
    assert!(
        matches!(error, AdviseError::Kind { address, .. } if address == at(13)),
        "not the hole: {error:?}"
    );
    let wiped: Vec<_> = flags(&space).iter().filter(|f| f.2 == Flags::WIPE_ON_FORK).map(|f| f.0).collect();
    assert_eq!(wiped, [10, 12]);

    space.map(anonymous(20, 6)).unwrap();
    (20..26).for_each(|page| space.store_u64(at(page), page).unwrap());
    space.lock(at(22), pages(1), LockMode::Now).unwrap();
    let error = space.discard(at(20), pages(6)).unwrap_err();
    assert!(matches!(error, DiscardError::Locked { address } if address == at(22)));
    assert_eq!(resident(&space, 20, 6), "001111");
    let error = space.advise(at(20), pages(6), Advice::DontNeed).unwrap_err();
    assert!(matches!(error, AdviseError::Locked { .. }));
    let error = space.advise(at(20), pages(6), Advice::GuardInstall).unwrap_err();
    assert!(matches!(error, AdviseError::Locked { address, .. } if address == at(22)));
    assert!(is_guard(&space, 20) && is_guard(&space, 21));
    assert_eq!(space.load_u64(at(23)).unwrap(), 23);
    drop((space, file));
    machine.end()
}

fn populate_brings_pages_or_says_why_not<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(4));
    space.map(anonymous(10, 5)).unwrap();
    let frames = machine.frames();
    space.advise(at(10), pages(5), Advice::PopulateRead).unwrap();
    assert_eq!(machine.frames() - frames, 5 * S::FRAMES_OF_A_LOAD);
    assert_eq!(resident(&space, 10, 5), "11111");
    space.advise(at(10), pages(5), Advice::PopulateWrite).unwrap();
    assert_eq!(machine.frames() - frames, 5);

    // Rights, a hole, a guard: each ends it, with what lies below done.
    space.map(anonymous(20, 5)).unwrap();
    space.protect(at(22), PAGE_SIZE, Protection::READ).unwrap();
    let error = space.advise(at(20), pages(5), Advice::PopulateWrite).unwrap_err();
    assert!(matches!(error, AdviseError::NotAllowed { address, access: Access::Write } if address == at(22)));
    assert_eq!((resident(&space, 20, 5), error.errno()), ("11000".into(), errno::EINVAL));
    for (rights, advice) in [
        (NONE, Advice::PopulateRead),
        (Protection::WRITE, Advice::PopulateRead),
        (Protection::EXECUTE, Advice::PopulateRead),
        (Protection::EXECUTE, Advice::PopulateWrite),
    ] {
        space.protect(at(24), PAGE_SIZE, rights).unwrap();
        let error = space.advise(at(24), 1, advice).unwrap_err();
        assert_eq!(error.errno(), errno::EINVAL, "{rights} {advice:?}");
    }
    space.protect(at(24), PAGE_SIZE, Protection::WRITE).unwrap();
    space.advise(at(24), 1, Advice::PopulateWrite).unwrap();

    space.map(anonymous(30, 5)).unwrap();
    space.unmap(at(32), PAGE_SIZE).unwrap();
    let error = space.advise(at(30), pages(5), Advice::PopulateWrite).unwrap_err();
    assert!(matches!(error, AdviseError::Hole { address, .. } if address == at(32)));
    assert_eq!((resident(&space, 30, 2), resident(&space, 33, 2)), ("11".into(), "00".into()));
    let error = space.advise(at(100), pages(5), Advice::PopulateRead).unwrap_err();
    assert_eq!(error.errno(), errno::ENOMEM);

    space.map(anonymous(40, 5)).unwrap();
    space.advise(at(42), 1, Advice::GuardInstall).unwrap();
    let error = space.advise(at(40), pages(5), Advice::PopulateRead).unwrap_err();
    assert!(matches!(error, AdviseError::Fault(FaultError::Guard { address }) if address == at(42)));
    assert_eq!((resident(&space, 40, 5), error.errno()), ("11000".into(), errno::EFAULT));

    // Past the end of the file.
    for (page, advice) in [(50, Advice::PopulateRead), (60, Advice::PopulateWrite)] {
        space.map(of_file(&file, page, 6, READ_WRITE)).unwrap();
        let error = space.advise(at(page), pages(6), advice).unwrap_err();
        assert!(matches!(error, AdviseError::Fault(FaultError::PastEnd { page: 4, .. })), "{error:?}");
        assert_eq!((resident(&space, page, 6), error.errno()), ("111100".into(), errno::EFAULT));
        assert_eq!(space.load_u64(at(page + 3)).unwrap(), word(4));
    }
    space.audit().unwrap();
    drop((space, file));
    machine.end()
}

fn willneed_begins_reads_and_waits_for_none<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, (file, gate)) = (machine.space::<D>(), machine.gated_file(3));
    space.map(of_file(&file, 10, 5, Protection::READ)).unwrap();
    space.map(anonymous(15, 2)).unwrap();
    space.advise(at(10), pages(7), Advice::WillNeed).unwrap();
    gate.wait_for(3);
    assert_eq!(resident(&space, 10, 7), "0000000", "being read");
    let error = space.advise(at(10), pages(8), Advice::WillNeed).unwrap_err();
    assert!(matches!(error, AdviseError::Hole { address, .. } if address == at(17)));
    gate.open();
    let deadline = Instant::now() + Duration::from_secs(10);
    while resident(&space, 10, 7) != "1110000" {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    assert!(matches!(space.fault(at(12), Access::Read), Ok(Fault::Done)));
    drop((space, file, gate));
    machine.end()
}

fn guards_refuse_and_stay<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(2));
    space.map(anonymous(10, 6)).unwrap();
    (10..16).for_each(|page| space.store_u64(at(page), page).unwrap());
    space.advise(at(11), pages(2), Advice::GuardInstall).unwrap();
    assert_eq!(machine.frames(), 4, "their pages went");
    assert_eq!((space.mappings().len(), resident(&space, 10, 6)), (1, "100111".into()));
    assert!(is_guard(&space, 11));
    assert!(matches!(fault_of(space.store_u64(at(12), 1)), FaultError::Guard { .. }));
    assert_eq!((space.load_u64(at(10)).unwrap(), space.load_u64(at(13)).unwrap()), (10, 13));
    space.advise(at(11), pages(2), Advice::GuardInstall).unwrap();
    space.discard(at(10), pages(6)).unwrap();
    space.advise(at(10), pages(6), Advice::Free).unwrap();
    assert!(is_guard(&space, 11) && is_guard(&space, 12));
    assert_eq!(machine.frames(), 0);
    // What the mapping forbids comes first.
    space.protect(at(10), pages(6), Protection::READ).unwrap();
    assert!(matches!(fault_of(space.store_u64(at(11), 1)), FaultError::Protection { .. }));
    assert!(is_guard(&space, 11));
    space.protect(at(10), pages(6), READ_WRITE).unwrap();
    assert!(is_guard(&space, 11));
    assert!(matches!(space.pin(at(11), Access::Read), Err(FaultError::Guard { .. })));
    space.audit().unwrap();
    space.advise(at(10), pages(6), Advice::GuardRemove).unwrap();
    assert_eq!(space.load_u64(at(11)).unwrap(), 0, "as never touched");
    space.store_u64(at(12), 5).unwrap();
    space.advise(at(10), pages(6), Advice::GuardRemove).unwrap();
    assert_eq!(space.load_u64(at(12)).unwrap(), 5, "only guards are removed");

    // Over a hole, of files, of what allows nothing, past the end.
    space.map(anonymous(20, 2)).unwrap();
    space.map(anonymous(23, 2).with(NONE)).unwrap();
    let error = space.advise(at(20), pages(5), Advice::GuardInstall).unwrap_err();
    assert!(matches!(error, AdviseError::Hole { address, .. } if address == at(22)));
    assert!(is_guard(&space, 20));
    space.protect(at(24), PAGE_SIZE, READ_WRITE).unwrap();
    assert!(is_guard(&space, 24));
    space.map(anonymous(22, 1)).unwrap();
    assert_eq!(space.load_u64(at(22)).unwrap(), 0, "no guard where nothing was mapped");
    space.map(of_file(&file, 30, 4, READ_WRITE)).unwrap();
    space.map(shared(&file, 40, 2)).unwrap();
    assert_eq!(space.load_u64(at(41)).unwrap(), word(2));
    for page in [31, 33, 41] {
        space.advise(at(page), 1, Advice::GuardInstall).unwrap();
        assert!(is_guard(&space, page));
    }
    assert_eq!(resident(&space, 40, 2), "01", "the file has it in memory all the same");
    file.set_length(0);
    file.set_length(pages(2));
    assert!(is_guard(&space, 31) && is_guard(&space, 41));
    space.advise(at(41), 1, Advice::GuardRemove).unwrap();
    assert_eq!(space.load_u64(at(41)).unwrap(), word(2));
    space.audit().unwrap();
    drop((space, file));
    machine.end()
}

fn guards_go_with_the_mapping<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 4)).unwrap();
    space.advise(at(10), pages(4), Advice::GuardInstall).unwrap();
    space.map(anonymous(10, 1)).unwrap();
    assert_eq!(space.load_u64(at(10)).unwrap(), 0);
    space.unmap(at(11), pages(2)).unwrap();
    space.audit().unwrap();
    space.map(anonymous(11, 2)).unwrap();
    assert_eq!((space.load_u64(at(11)).unwrap(), is_guard(&space, 13)), (0, true));
    space.exit();
    space.audit().unwrap();
    drop(space);
    machine.end()
}

fn guards_are_forked<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(2));
    space.map(anonymous(10, 3)).unwrap();
    space.map(shared(&file, 20, 2)).unwrap();
    space.map(of_file(&file, 30, 2, Protection::READ)).unwrap();
    space.map(anonymous(40, 2)).unwrap();
    space.advise(at(40), 1, Advice::WipeOnFork).unwrap();
    space.store_u64(at(10), 1).unwrap();
    for page in [11, 20, 31, 40] {
        space.advise(at(page), 1, Advice::GuardInstall).unwrap();
        assert!(is_guard(&space, page));
    }
    let child = space.fork().unwrap();
    let grandchild = child.fork().unwrap();
    for child in [&child, &grandchild] {
        assert_eq!(child.load_u64(at(10)).unwrap(), 1);
        assert!([11, 20, 31].iter().all(|page| is_guard(child, *page)));
        assert_eq!(child.load_u64(at(40)).unwrap(), 0, "wiped");
        assert_eq!(child.load_u64(at(21)).unwrap(), word(2));
    }
    child.advise(at(10), pages(3), Advice::GuardRemove).unwrap();
    child.store_u64(at(11), 4).unwrap();
    assert!(is_guard(&space, 11) && is_guard(&grandchild, 11));
    child.audit().unwrap();
    drop((space, child, grandchild, file));
    machine.end()
}

/// As on Linux: a mapping that has or had a guard counts as one with anonymous pages.
fn guards_count_as_pages_when_mappings_merge<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    for (page, advice, mappings) in [(10, Advice::GuardInstall, 2), (20, Advice::GuardRemove, 1)] {
        let before = space.mappings().len();
        space.map(anonymous(page, 2)).unwrap();
        space.map(anonymous(page + 3, 2)).unwrap();
        space.advise(at(page), 1, advice).unwrap();
        space.store_u64(at(page + 3), 1).unwrap();
        space.map(anonymous(page + 2, 1)).unwrap();
        assert_eq!(space.mappings().len() - before, mappings, "{advice:?}");
    }
    drop(space);
    machine.end()
}

fn guards_hold_under_a_crowd_of_faults<S: Stand, D: LockingDesign>() -> Ran<S> {
    const PAGES: u64 = 8;
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, PAGES)).unwrap();
    let (stop, refused) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (space, stop, refused) = (&space, &stop, &refused);
            scope.spawn(move || {
                let mut page = thread;
                while !stop.load(Ordering::Relaxed) {
                    page = (page + 1) % PAGES;
                    match space.store_u64(at(10 + page), 1) {
                        Ok(()) => {}
                        Err(AccessError::Fault(FaultError::Guard { .. })) => {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => panic!("{error:?}"),
                    }
                }
            });
        }
        let end = Instant::now() + Duration::from_millis(100);
        while Instant::now() < end || refused.load(Ordering::Relaxed) == 0 {
            space.advise(at(12), pages(4), Advice::GuardInstall).unwrap();
            assert_eq!(resident(&space, 12, 4), "0000", "a page came where guards are");
            space.discard(at(10), pages(PAGES)).unwrap();
            assert!((12..16).all(|page| is_guard(&space, page)));
            space.advise(at(12), pages(4), Advice::GuardRemove).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    space.audit().unwrap();
    drop(space);
    machine.end()
}

fn fork_honours_advice_and_drops_locks<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.map(anonymous(10, 6)).unwrap();
    (10..16).for_each(|page| space.store_u64(at(page), page).unwrap());
    space.advise(at(10), 1, Advice::DontFork).unwrap();
    space.advise(at(12), 1, Advice::WipeOnFork).unwrap();
    space.advise(at(14), 1, Advice::Random).unwrap();
    space.lock(at(13), 1, LockMode::Now).unwrap();
    space.lock_all(LockAll::FUTURE).unwrap();
    let child = space.fork().unwrap();
    let none = Flags::empty();
    assert_eq!(
        flags(&child),
        [
            (11, 12, none),
            (12, 13, Flags::WIPE_ON_FORK),
            (13, 14, none),
            (14, 15, Flags::RANDOM),
            (15, 16, none)
        ]
    );
    assert!(matches!(fault_of(child.load_u64(at(10))), FaultError::NoMapping { .. }));
    assert_eq!([11, 12, 13, 14].map(|page| child.load_u64(at(page)).unwrap()), [11, 0, 13, 14]);
    assert_eq!(space.load_u64(at(12)).unwrap(), 12);
    child.map(anonymous(30, 1)).unwrap();
    assert_eq!(flags(&child).last(), Some(&(30, 31, none)), "what is to come is not locked either");
    child.audit().unwrap();
    space.audit().unwrap();
    drop((space, child));
    machine.end()
}

fn locks_split_merge_and_fetch<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(2));
    let (none, locked, on_fault) = (Flags::empty(), Flags::LOCKED, Flags::LOCKS);
    space.map(anonymous(10, 4)).unwrap();
    assert_eq!(space.lock(at(10), 0, LockMode::Now), Ok(()));
    assert_eq!(space.lock(at(99), 0, LockMode::Now), Ok(()));
    assert_eq!(flags(&space), [(10, 14, none)]);
    // Any address; rounded to the pages touched.
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
    // A private page that can be written is the mapping's own; one that cannot is the file's.
    space.map(of_file(&file, 20, 2, READ_WRITE)).unwrap();
    space.map(of_file(&file, 30, 2, Protection::READ)).unwrap();
    space.lock(at(20), pages(2), LockMode::Now).unwrap();
    assert_eq!(machine.frames(), 4 + 2 + 2);
    space.lock(at(30), pages(2), LockMode::Now).unwrap();
    assert_eq!(machine.frames(), 4 + 2 + 2);
    // What can only be executed or written is fetched too.
    space.map(anonymous(40, 1).with(Protection::EXECUTE)).unwrap();
    space.map(anonymous(41, 1).with(Protection::WRITE)).unwrap();
    space.lock(at(40), pages(2), LockMode::Now).unwrap();
    assert_eq!(resident(&space, 40, 2), "11");
    space.audit().unwrap();
    drop((space, file));
    machine.end()
}

fn locks_stop_where_they_cannot_go_on<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(4));
    let (none, locked) = (Flags::empty(), Flags::LOCKED);
    // A hole: what lies below is locked, nothing is fetched.
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
    // No rights: all is locked, and fetched up to there.
    space.map(anonymous(20, 3)).unwrap();
    space.protect(at(21), PAGE_SIZE, NONE).unwrap();
    let error = space.lock(at(20), pages(3), LockMode::Now).unwrap_err();
    assert!(matches!(error, LockError::NotAllowed { address } if address == at(21)));
    assert_eq!((resident(&space, 20, 3), error.errno()), ("100".into(), errno::ENOMEM));
    assert!(flags(&space).iter().filter(|f| f.0 >= 20).all(|f| f.2 == locked));
    // Past the end of the file; at a guard.
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
    for length in [u64::MAX, u64::MAX - 0x1fff] {
        assert_eq!(space.lock(at(40), length, LockMode::Now).unwrap_err().errno(), errno::EINVAL);
        assert_eq!(space.unlock(at(40), length).unwrap_err().errno(), errno::EINVAL);
    }
    drop((space, file));
    machine.end()
}

fn locks_are_limited<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    space.set_lock_limit(Some(pages(8) + 1));
    space.map(anonymous(10, 20)).unwrap();
    space.lock(at(10), pages(8), LockMode::Now).unwrap();
    space.lock(at(10), pages(8), LockMode::Now).unwrap();
    for (page, n) in [(18, 1), (14, 5), (25, 10)] {
        let error = space.lock(at(page), pages(n), LockMode::Now).unwrap_err();
        assert!(matches!(error, LockError::Limit { limit } if limit == pages(8) + 1), "{page} {n}");
        assert_eq!(error.errno(), errno::ENOMEM);
    }
    let locked = |page| MapRequest { flags: Flags::LOCKED, ..anonymous(page, 1) };
    // What would be replaced counts, as on Linux.
    for page in [40, 10] {
        let error = space.map(locked(page)).unwrap_err();
        assert!(matches!(error, MapError::LockLimit { .. }) && error.errno() == errno::EAGAIN);
    }
    let error = space.lock_all(LockAll::CURRENT).unwrap_err();
    assert!(matches!(error, LockError::Limit { .. }));
    space.lock_all(LockAll::FUTURE).unwrap();
    assert!(matches!(space.map(anonymous(40, 1)), Err(MapError::LockLimit { .. })));
    space.unlock_all().unwrap();
    space.map(anonymous(40, 1)).unwrap();
    space.map(locked(41)).unwrap();
    space.map(locked(41)).unwrap();
    space.set_lock_limit(Some(0));
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
    let (none, locked, on_fault) = (Flags::empty(), Flags::LOCKED, Flags::LOCKS);
    for wrong in [LockAll::empty(), LockAll::ON_FAULT] {
        assert_eq!(space.lock_all(wrong).unwrap_err().errno(), errno::EINVAL);
    }
    space.lock_all(LockAll::CURRENT).unwrap();
    space.map(anonymous(10, 2)).unwrap();
    space.map(anonymous(12, 2).with(NONE)).unwrap();
    space.map(of_file(&file, 14, 4, READ_WRITE)).unwrap();
    space.map(anonymous(20, 3)).unwrap();
    space.advise(at(21), 1, Advice::GuardInstall).unwrap();
    // An error of a mapping ends what is fetched of that mapping only.
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
    assert_eq!(flags(&space).last(), Some(&(50, 52, none)), "that took it back");
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
    assert_eq!((space.mappings().len(), machine.frames()), (1, 4), "merged, and only what is new");
    for (page, rights, expected) in [
        (20, Protection::READ, "1111"),
        (30, NONE, "0000"),
        (40, Protection::EXECUTE, "1111"),
        (50, Protection::WRITE, "1111"),
    ] {
        space.map(populated(anonymous(page, 4).with(rights))).unwrap();
        assert_eq!(resident(&space, page, 4), expected, "{rights}");
    }
    // Past the end is no error of mmap.
    space.map(populated(of_file(&file, 60, 6, READ_WRITE))).unwrap();
    assert_eq!(resident(&space, 60, 6), "111100");
    space.map(MapRequest { flags: Flags::LOCKED, ..of_file(&file, 70, 6, Protection::READ) }).unwrap();
    assert_eq!(
        (resident(&space, 70, 6), flags(&space).last()),
        ("111100".into(), Some(&(70, 76, Flags::LOCKED)))
    );
    space.map(MapRequest { flags: Flags::LOCKED, ..anonymous(80, 2).with(NONE) }).unwrap();
    // Over something, by address, anywhere.
    space.map(populated(anonymous(10, 2))).unwrap();
    assert_eq!(resident(&space, 10, 2), "11");
    let anywhere = space.map(populated(MapRequest::anonymous(3 * PAGE_SIZE))).unwrap();
    assert_eq!(resident(&space, anywhere.page().get(), 3), "111");
    space.audit().unwrap();
    drop((space, file));
    machine.end()
}

/// The range of a populating map is mapped over while it waits for its first read (sources: Lespinasse 2012).
fn what_is_mapped_over_is_not_populated<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, (file, gate)) = (machine.space::<D>(), machine.gated_file(4));
    std::thread::scope(|scope| {
        let map = scope.spawn(|| {
            space.map(MapRequest { populate: true, ..of_file(&file, 10, 4, READ_WRITE) }).unwrap();
        });
        gate.wait_for(1);
        // A design that holds a lock through the read lets this through after it only.
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
    assert_eq!(resident(&space, 10, 4), "0100", "there, though nothing is allowed");
    space.map(of_file(&file, 20, 6, READ_WRITE)).unwrap();
    assert_eq!(resident(&space, 20, 6), "000000");
    assert_eq!(machine.frames(), frames);
    other.map(of_file(&file, 20, 6, READ_WRITE)).unwrap();
    other.load_u64(at(22)).unwrap();
    assert_eq!(resident(&space, 20, 6), "001000", "in memory for somebody else");
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
    drop((space, other, file));
    machine.end()
}

fn seals_refuse<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let (none, sealed) = (Flags::empty(), Flags::SEALED);
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
    assert_eq!(rights, ["r--", "rw-", "rw-", "rw-"], "what lies below has changed");

    // What loses nothing that could not be overwritten is allowed; so is locking.
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
    // A file keeps its own contents.
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

fn remote_memory_goes_by_rights<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(4));
    //   10 rw   11 rw   12 r   13 rw   14 w   15 none   16 -   17 x
    space.map(anonymous(10, 4)).unwrap();
    space.protect(at(12), PAGE_SIZE, Protection::READ).unwrap();
    for (page, rights) in [(14, Protection::WRITE), (15, NONE), (17, Protection::EXECUTE)] {
        space.map(anonymous(page, 1).with(rights)).unwrap();
    }
    space.map(of_file(&file, 20, 6, READ_WRITE)).unwrap();
    let mut bytes = vec![1; 8 * PAGE_SIZE as usize];
    let inside = |page: u64, offset: u64| VirtAddr::new(at(page).get() + offset);
    let mut read = |address: VirtAddr, n: u64| space.read_remote(address, &mut bytes[..n as usize]);
    assert_eq!(read(at(10), pages(4)), Ok(pages(4) as usize));
    assert_eq!(read(inside(13, 100), pages(3)), Ok(PAGE_SIZE as usize - 100), "up to what is not readable");
    for page in [14, 15, 16, 17] {
        assert_eq!(read(at(page), 8).unwrap_err().errno(), errno::EFAULT, "page {page}");
    }
    assert_eq!((read(at(10), 0), read(at(16), 0)), (Ok(0), Ok(0)));
    assert_eq!(read(inside(20, 100), pages(6)), Ok(pages(4) as usize - 100), "up to the end of the file");
    assert!(read(VirtAddr::new(u64::MAX - 4), 8).is_err());

    let bytes = vec![7; 8 * PAGE_SIZE as usize];
    let write = |address: VirtAddr, n: u64| space.write_remote(address, &bytes[..n as usize]);
    assert_eq!(write(inside(11, 96), pages(2)), Ok(PAGE_SIZE as usize - 96));
    assert_eq!(space.load_u64(inside(11, 96)).unwrap(), word(7));
    assert_eq!(write(at(12), 8).unwrap_err().errno(), errno::EFAULT);
    assert_eq!(write(at(14), 8), Ok(8));
    assert_eq!(write(at(20), pages(6)), Ok(pages(4) as usize));
    assert_eq!(space.load_u64(at(23)).unwrap(), word(7));
    assert_eq!(write(at(24), 8).unwrap_err().errno(), errno::EFAULT);
    // A private page of the file stays the space's own.
    let other = machine.space::<D>();
    other.map(of_file(&file, 20, 6, READ_WRITE)).unwrap();
    assert_eq!(other.load_u64(at(23)).unwrap(), word(4));
    // A child's memory is not the parent's.
    let child = space.fork().unwrap();
    child.write_remote(at(11), &[9; 8]).unwrap();
    let mut seen = [0; 8];
    space.read_remote(inside(11, 96), &mut seen).unwrap();
    assert_eq!(seen, [7; 8]);
    child.read_remote(at(11), &mut seen).unwrap();
    assert_eq!(seen, [9; 8]);
    space.advise(at(13), 1, Advice::GuardInstall).unwrap();
    assert!(matches!(space.read_remote(at(13), &mut seen).unwrap_err().error, FaultError::Guard { .. }));
    space.audit().unwrap();
    drop((space, child, other, file));
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
