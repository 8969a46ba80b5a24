//! madvise, guard pages, population, and the effect of advice on fork: each rule as in Linux 6.18, with its errors.

use crate::*;
use faultless::address::RangeError;
use faultless::errno;
use faultless::protection::{Access, Sharing};
use faultless::sync::Shared;
use faultless::vma::MappingFlags;
use faultless::{Advice, AdviseError, DiscardError, Fault, LockAll, LockMode, Source};
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
    a_guard_is_found_by_a_fault_that_waited
    guards_go_with_the_mapping
    guards_are_forked
    guards_count_as_pages_when_mappings_merge
    guards_hold_under_a_crowd_of_faults
    fork_honours_advice_and_drops_locks
}

// All tests of this file. A guard belongs to the engine: an access to it raises SIGBUS, while Linux's own guards raise
// SIGSEGV.
on_real_memory! {
    reading_advice_splits_and_merges
    advice_checks_its_arguments
    advice_is_for_its_kind
    an_error_ends_advice_where_it_is
    populate_brings_pages_or_says_why_not
    willneed_begins_reads_and_waits_for_none
    guards_refuse_and_stay
    a_guard_is_found_by_a_fault_that_waited
    guards_go_with_the_mapping
    guards_are_forked
    guards_count_as_pages_when_mappings_merge
    guards_hold_under_a_crowd_of_faults
    fork_honours_advice_and_drops_locks
}

pub(crate) const NONE: Protection = Protection::empty();

pub(crate) fn pages(n: u64) -> u64 {
    n * PAGE_SIZE
}

/// Returns each mapping: first page, page after the last one, flags.
pub(crate) fn flags<S: Stand, D: LockingDesign>(space: &Space<S, D>) -> Vec<(u64, u64, MappingFlags)> {
    let line = |m: &faultless::MappingInfo| (m.range.start().get(), m.range.end().get(), m.flags);
    space.mappings().iter().map(line).collect()
}

/// Returns the residency of each page: `1` or `0`.
pub(crate) fn resident<S: Stand, D: LockingDesign>(space: &Space<S, D>, page: u64, n: u64) -> String {
    // On a host where an access can finish before its entry is recorded, the audit waits for the entries.
    let _ = space.audit();
    space.resident(at(page), pages(n)).unwrap().iter().map(|r| if *r { '1' } else { '0' }).collect()
}

pub(crate) fn shared<S: Stand>(file: &Shared<File<S>>, page: u64, n: u64) -> MapRequest<S> {
    let source = Source::File { file: file.clone(), first: 0, sharing: Sharing::Shared };
    MapRequest { source, ..anonymous(page, n) }.protection(Protection::READ)
}

pub(crate) fn is_guard<S: Stand, D: LockingDesign>(space: &Space<S, D>, page: u64) -> bool {
    matches!(fault_of(space.load_u64(at(page))), FaultError::Guard { address } if address == at(page))
}

fn reading_advice_splits_and_merges<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let (none, random, sequential) = (MappingFlags::empty(), MappingFlags::RANDOM, MappingFlags::SEQUENTIAL);
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
    let (dont, wipe) = (MappingFlags::DONT_FORK, MappingFlags::WIPE_ON_FORK);
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
    // The parts around a hole are done in spite of the error.
    let error = space.advise(at(10), pages(6), Advice::Random).unwrap_err();
    assert!(matches!(error, AdviseError::Hole { address, .. } if address == at(12)), "{error:?}");
    assert_eq!(flags(&space), [(10, 12, MappingFlags::RANDOM), (13, 15, MappingFlags::RANDOM)]);
    let error = space.advise(at(10), pages(6), Advice::Free).unwrap_err();
    assert_eq!(error.errno(), errno::ENOMEM);
    drop(space);
    machine.end()
}

fn advice_is_for_its_kind<S: Stand, D: LockingDesign>() -> Ran<S> {
    use Advice::*;
    let machine = Machine::<S>::new()?;
    let (space, file) = (machine.space::<D>(), machine.file(2));
    // The columns, with Linux's results: private anonymous memory; the same, locked; a private file; a shared file that
    // was opened for reading.
    space.map(anonymous(10, 2)).unwrap();
    space.map(anonymous(20, 2)).unwrap();
    space.lock(at(20), pages(2), LockMode::OnFault).unwrap();
    space.map(of_file(&file, 30, 2, READ_WRITE)).unwrap();
    space.map(shared(&file, 40, 2)).unwrap();
    let (ok, inval, acces) = (0, errno::EINVAL, errno::EACCES);
    for (advice, expected) in [
        (Normal, [ok; 4]),
        (WillNeed, [ok; 4]),
        (DontNeed, [ok, inval, ok, ok]),
        (Free, [ok, inval, inval, inval]),
        (Remove, [inval, inval, acces, acces]),
        (DontFork, [ok; 4]),
        (DoFork, [ok; 4]),
        (WipeOnFork, [ok, ok, inval, inval]),
        (KeepOnFork, [ok; 4]),
        (PopulateRead, [ok; 4]),
        (PopulateWrite, [ok, ok, ok, inval]),
        (GuardInstall, [ok, inval, ok, ok]),
        (GuardRemove, [ok; 4]),
        (Cold, [ok, inval, ok, ok]),
        (PageOut, [ok, inval, ok, ok]),
    ] {
        let said = [10, 20, 30, 40]
            .map(|page| space.advise(at(page), pages(2), advice).map_or_else(|e| e.errno(), |()| 0));
        assert_eq!(said, expected, "{advice:?}");
    }
    assert!(space.mappings().iter().all(|m| m.flags.difference(MappingFlags::LOCKS).is_empty()));
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
    let wiped: Vec<_> =
        flags(&space).iter().filter(|f| f.2 == MappingFlags::WIPE_ON_FORK).map(|f| f.0).collect();
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

    // Missing rights, a hole and a guard each end the call. The pages below are done.
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
    assert_eq!(gate.waiting(), 1, "one transfer of three pages");
    assert_eq!(resident(&space, 10, 7), "0000000", "the pages are being read");
    let error = space.advise(at(10), pages(8), Advice::WillNeed).unwrap_err();
    assert!(matches!(error, AdviseError::Hole { address, .. } if address == at(17)));
    gate.open();
    wait_until("the pages are not read", || resident(&space, 10, 7) == "1110000");
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
    // The mapping's rights are checked before the guard.
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

    // Guards over a hole, in files, without rights, and past the end of the file.
    space.map(anonymous(20, 2)).unwrap();
    space.map(anonymous(23, 2).protection(NONE)).unwrap();
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
    assert_eq!(resident(&space, 40, 2), "01", "the file still has it in memory");
    file.set_length(0).unwrap();
    file.set_length(pages(2)).unwrap();
    assert!(is_guard(&space, 31) && is_guard(&space, 41));
    space.advise(at(41), 1, Advice::GuardRemove).unwrap();
    assert_eq!(space.load_u64(at(41)).unwrap(), word(2));
    space.audit().unwrap();
    drop((space, file));
    machine.end()
}

/// As on Linux, a fault that waited for its read finds the guard.
fn a_guard_is_found_by_a_fault_that_waited<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, (file, gate)) = (machine.space::<D>(), machine.gated_file(1));
    space.map(of_file(&file, 10, 1, Protection::READ)).unwrap();
    let Fault::Pending(mut fault) = space.fault(at(10), Access::Read).unwrap() else { panic!("a cold page") };
    gate.wait_for(1);
    space.advise(at(10), 1, Advice::GuardInstall).unwrap();
    gate.open();
    let error = loop {
        match fault.wait() {
            Ok(Fault::Pending(again)) => fault = again,
            Ok(Fault::Done) => panic!("the page was mapped over a guard"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, FaultError::Guard { .. }), "{error:?}");
    assert!(is_guard(&space, 10));
    drop((space, file, gate));
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

/// As on Linux, a mapping that has or had a guard is treated as one with anonymous pages.
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
        let _stopped = Stopped(&stop);
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
            assert_eq!(resident(&space, 12, 4), "0000", "a page was mapped over a guard");
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
    let none = MappingFlags::empty();
    assert_eq!(
        flags(&child),
        [
            (11, 12, none),
            (12, 13, MappingFlags::WIPE_ON_FORK),
            (13, 14, none),
            (14, 15, MappingFlags::RANDOM),
            (15, 16, none)
        ]
    );
    assert!(matches!(fault_of(child.load_u64(at(10))), FaultError::NoMapping { .. }));
    assert_eq!([11, 12, 13, 14].map(|page| child.load_u64(at(page)).unwrap()), [11, 0, 13, 14]);
    assert_eq!(space.load_u64(at(12)).unwrap(), 12);
    child.map(anonymous(30, 1)).unwrap();
    assert_eq!(
        flags(&child).last(),
        Some(&(30, 31, none)),
        "future mappings of the child are not locked either"
    );
    child.audit().unwrap();
    space.audit().unwrap();
    drop((space, child));
    machine.end()
}
