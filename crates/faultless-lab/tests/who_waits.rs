//! The waits between calls under every design. A store is stalled while a fault reads through it. Each call beside the
//! fault either continues or waits until the store answers.
//!
//! ```text
//!   B, pages 10–11        A, pages 100–103 of a file        C, pages 200–201        fresh, page 300
//!   the first written     page 1 in memory, 3 stalled       the first written       nothing written
//! ```

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::{Faultless, LockingDesign};
use faultless::protection::{Access, Protection, Sharing};
use faultless::stats::Counter;
use faultless::store::{FileStore, GatedStore};
use faultless::swap::{CompressedMemory, StoreDevice};
use faultless::sync::Shared;
use faultless::{
    AddressSpace, Advice, Engine, Fault, FaultError, File, Limits, MapRequest, PendingFault, Placement,
    Source,
};
use faultless_lab::designs::{
    FaultlessRetry, MmapLock, MmapLockHold, RangeLock, Speculative, TableLock, VmaLock, VmaLockHold,
    VmaLockHoldCowFork, VmaLockHoldFile, VmaLockPin, VmaLockResume, VmaLockRetry, VmaLockRetryUptodate,
};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::scope;
use std::time::{Duration, Instant};

type Gate = Arc<GatedStore<FileStore>>;

/// Long enough for a thread that can continue to finish.
const A_WHILE: Duration = Duration::from_millis(150);
/// Longest wait of a test.
const TOO_LONG: Duration = Duration::from_secs(20);

const A: u64 = 100;
const BELOW: u64 = 10;
const ABOVE: u64 = 200;
const FRESH: u64 = 300;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

/// Limits with which fork shares no leaf tables, as on Linux.
fn copying() -> Limits {
    Limits { shared_entries: u64::MAX, ..Limits::default() }
}

/// A space with a mapping of a file whose reads are stalled.
struct Stalled<D: LockingDesign> {
    space: AddressSpace<Soft, D>,
    file: Shared<File<Soft>>,
    gate: Gate,
}

impl<D: LockingDesign> Stalled<D> {
    fn new(sharing: Sharing) -> Self {
        let engine = Engine::new(Soft::new(1024).expect("frames"), copying()).expect("an engine");
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(4 * PAGE_SIZE).expect("four pages");
        let gate = Arc::new(GatedStore::new(FileStore::from_file(file).expect("a store")));
        let file = File::open(&engine, gate.clone()).expect("a length");
        let space = AddressSpace::<Soft, D>::new(&engine).expect("a space");
        for page in [BELOW, ABOVE, FRESH] {
            let request = MapRequest::anonymous(2 * PAGE_SIZE).at(Placement::Fixed(at(page)));
            space.map(request).expect("a mapping");
        }
        space.store_u64(at(BELOW), 1).expect("a store");
        space.store_u64(at(ABOVE), 1).expect("a store");
        let source = Source::File { file: file.clone(), first: 0, sharing };
        let request = MapRequest { source, ..MapRequest::anonymous(4 * PAGE_SIZE) };
        space.map(request.protection(Protection::READ).at(Placement::Fixed(at(A)))).expect("a mapping");
        gate.pass(1);
        space.load_u64(at(A + 1)).expect("a load");
        // The page is in memory, and no longer mapped.
        space.discard(at(A + 1), PAGE_SIZE).expect("discarded");
        Self { space, file, gate }
    }

    /// Returns a fault that waits for its first read.
    fn first(&self) -> PendingFault<Soft, D> {
        pending(self.space.fault(at(A + 3), Access::Read).expect("no error"))
    }

    /// Returns a fault that waits for its second read, because its page was gone after the first one.
    fn second(&self) -> PendingFault<Soft, D> {
        let first = self.first();
        // Truncated and extended again: the page that was read no longer belongs to the file.
        self.file.set_length(3 * PAGE_SIZE).unwrap();
        self.file.set_length(4 * PAGE_SIZE).unwrap();
        self.gate.pass(1);
        pending(first.wait().expect("no error"))
    }

    fn counted(&self, counter: Counter) -> u64 {
        self.space.engine().statistics().get(counter)
    }
}

fn pending<D: LockingDesign>(fault: Fault<Soft, D>) -> PendingFault<Soft, D> {
    match fault {
        Fault::Pending(pending) => pending,
        Fault::Done => panic!("the page was there"),
    }
}

/// Waits for a fault to its end. Call it in a thread of its own, which holds the fault's locks.
fn finish<D: LockingDesign>(mut fault: Fault<Soft, D>) -> Result<(), FaultError> {
    while let Fault::Pending(pending) = fault {
        fault = pending.wait()?;
    }
    Ok(())
}

/// Returns whether `call` ends before `open` is called. `open` is called in any case, so that `call` ends.
fn goes_on(open: impl FnOnce(), call: impl FnOnce() + Send) -> bool {
    scope(|scope| {
        let (ended, end) = channel();
        scope.spawn(move || {
            call();
            let _ = ended.send(());
        });
        let goes_on = end.recv_timeout(A_WHILE).is_ok();
        open();
        goes_on || end.recv_timeout(TOO_LONG).map(|()| false).expect("the call ends after the read")
    })
}

/// The read that is stalled.
#[derive(Clone, Copy, Debug)]
enum Stage {
    First,
    Second,
}

/// The call beside the stalled fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beside {
    MapElsewhere,
    UnmapElsewhere,
    FaultElsewhere,
    FaultInTheSameMapping,
    ProtectIt,
    UnmapIt,
    DiscardIt,
    DiscardElsewhere,
    Fork,
    /// From here on, the call starts after a fork, when the fork waits or has ended.
    MapBesideFork,
    FaultBelowBesideFork,
    FaultAboveBesideFork,
    FirstWriteBesideFork,
    DiscardBelowBesideFork,
    DiscardAboveBesideFork,
}

use Beside::*;

const ALL: [Beside; 15] = [
    MapElsewhere,
    UnmapElsewhere,
    FaultElsewhere,
    FaultInTheSameMapping,
    ProtectIt,
    UnmapIt,
    DiscardIt,
    DiscardElsewhere,
    Fork,
    MapBesideFork,
    FaultBelowBesideFork,
    FaultAboveBesideFork,
    FirstWriteBesideFork,
    DiscardBelowBesideFork,
    DiscardAboveBesideFork,
];

/// The calls beside a fork.
const BESIDE_FORK: [Beside; 6] = [
    MapBesideFork,
    FaultBelowBesideFork,
    FaultAboveBesideFork,
    FirstWriteBesideFork,
    DiscardBelowBesideFork,
    DiscardAboveBesideFork,
];

fn waits<D: LockingDesign>(stage: Stage, sharing: Sharing, beside: Beside) -> bool {
    let stalled = Stalled::<D>::new(sharing);
    let fault = match stage {
        Stage::First => stalled.first(),
        Stage::Second => stalled.second(),
    };
    let space = &stalled.space;
    let map = || {
        space.map(MapRequest::anonymous(PAGE_SIZE)).expect("a mapping");
    };
    let store = |page| space.store_u64(at(page), 2).expect("a store");
    let call = || match beside {
        MapElsewhere | MapBesideFork => map(),
        UnmapElsewhere => space.unmap(at(BELOW), 2 * PAGE_SIZE).expect("unmapped"),
        FaultElsewhere | FaultBelowBesideFork => store(BELOW + 1),
        FaultAboveBesideFork => store(ABOVE + 1),
        FirstWriteBesideFork => store(FRESH),
        FaultInTheSameMapping => drop(space.load_u64(at(A + 1)).expect("a load")),
        ProtectIt => space.protect(at(A), 4 * PAGE_SIZE, Protection::empty()).expect("protected"),
        UnmapIt => space.unmap(at(A), PAGE_SIZE).expect("unmapped"),
        DiscardIt => space.discard(at(A), 4 * PAGE_SIZE).expect("discarded"),
        DiscardElsewhere | DiscardBelowBesideFork => space.discard(at(BELOW), PAGE_SIZE).expect("discarded"),
        DiscardAboveBesideFork => space.discard(at(ABOVE), PAGE_SIZE).expect("discarded"),
        Fork => drop(space.fork().expect("a child")),
    };
    scope(|scope| {
        let fault = scope.spawn(move || finish(Fault::Pending(fault)));
        if BESIDE_FORK.contains(&beside) {
            scope.spawn(|| drop(space.fork().expect("a child")));
            std::thread::sleep(A_WHILE);
        }
        let goes_on = goes_on(|| stalled.gate.open(), call);
        // The page may have been unmapped meanwhile.
        let _ = fault.join().expect("no panic");
        !goes_on
    })
}

/// Returns all calls that wait, in the order of [`ALL`]. They are tried in parallel.
fn edges<D: LockingDesign>(stage: Stage, sharing: Sharing) -> Vec<Beside> {
    scope(|scope| {
        let tries = ALL.map(|beside| (beside, scope.spawn(move || waits::<D>(stage, sharing, beside))));
        let waiting =
            tries.into_iter().filter_map(|(beside, tried)| tried.join().expect("no panic").then_some(beside));
        waiting.collect()
    })
}

/// The calls that wait while a fault holds mmap_lock for reading, under designs with mmap_lock alone.
const BEHIND_MMAP_LOCK: [Beside; 11] = [
    MapElsewhere,
    UnmapElsewhere,
    ProtectIt,
    UnmapIt,
    Fork,
    MapBesideFork,
    // Faults queue fairly behind the waiting fork.
    FaultBelowBesideFork,
    FaultAboveBesideFork,
    FirstWriteBesideFork,
    DiscardBelowBesideFork,
    DiscardAboveBesideFork,
];

/// The calls that wait while a fault holds mmap_lock for reading, and other faults use VMA locks.
const BEHIND_MMAP_LOCK_WITH_VMA_LOCKS: [Beside; 7] =
    [MapElsewhere, UnmapElsewhere, ProtectIt, UnmapIt, Fork, MapBesideFork, FirstWriteBesideFork];

/// The calls that wait while a fault holds mmap_lock for reading, and other faults speculate. They may, because fork
/// does not hold mmap_lock yet.
const BEHIND_MMAP_LOCK_WITH_SPECULATION: [Beside; 9] = [
    MapElsewhere,
    UnmapElsewhere,
    ProtectIt,
    UnmapIt,
    Fork,
    MapBesideFork,
    FirstWriteBesideFork,
    DiscardBelowBesideFork,
    DiscardAboveBesideFork,
];

/// The calls that wait while a fault holds a VMA's lock. fork waits for it with mmap_lock and the lower VMAs locked.
const BEHIND_THE_VMA: [Beside; 7] = [
    ProtectIt,
    UnmapIt,
    Fork,
    MapBesideFork,
    FaultBelowBesideFork,
    FirstWriteBesideFork,
    DiscardBelowBesideFork,
];

macro_rules! who_waits {
    ($($name:ident: $design:ty, $stage:ident, $sharing:ident => $expected:expr;)*) => {
        $(#[test]
        fn $name() {
            let expected: &[Beside] = &$expected;
            assert_eq!(edges::<$design>(Stage::$stage, Sharing::$sharing), expected);
        })*
    };
}

who_waits! {
    mmap_lock_hold: MmapLockHold, First, Private => BEHIND_MMAP_LOCK;
    mmap_lock_hold_again: MmapLockHold, Second, Private => BEHIND_MMAP_LOCK;
    mmap_lock: MmapLock, First, Private => [];
    mmap_lock_again: MmapLock, Second, Private => BEHIND_MMAP_LOCK;
    speculative: Speculative, First, Private => [];
    speculative_again: Speculative, Second, Private => BEHIND_MMAP_LOCK_WITH_SPECULATION;
    vma_lock: VmaLock, First, Private => [];
    vma_lock_again: VmaLock, Second, Private => BEHIND_MMAP_LOCK_WITH_VMA_LOCKS;
    vma_lock_pin: VmaLockPin, First, Private => [];
    vma_lock_pin_again: VmaLockPin, Second, Private => BEHIND_MMAP_LOCK_WITH_VMA_LOCKS;
    vma_lock_retry: VmaLockRetry, First, Private => [];
    vma_lock_retry_again: VmaLockRetry, Second, Private => BEHIND_THE_VMA;
    vma_lock_retry_uptodate: VmaLockRetryUptodate, First, Private => [];
    vma_lock_retry_uptodate_again: VmaLockRetryUptodate, Second, Private => BEHIND_THE_VMA;
    vma_lock_hold: VmaLockHold, First, Private => BEHIND_THE_VMA;
    vma_lock_hold_of_a_shared_file: VmaLockHold, First, Shared => BEHIND_THE_VMA;
    vma_lock_hold_again: VmaLockHold, Second, Private => BEHIND_THE_VMA;
    vma_lock_hold_cow_fork: VmaLockHoldCowFork, First, Private => BEHIND_THE_VMA;
    vma_lock_hold_cow_fork_of_a_shared_file: VmaLockHoldCowFork, First, Shared => [ProtectIt, UnmapIt];
    vma_lock_hold_file: VmaLockHoldFile, First, Private => BEHIND_THE_VMA;
    vma_lock_hold_file_again: VmaLockHoldFile, Second, Private => BEHIND_THE_VMA;
    vma_lock_resume: VmaLockResume, First, Private => [];
    vma_lock_resume_again: VmaLockResume, Second, Private => [];
    range_lock: RangeLock, First, Private => [];
    range_lock_again: RangeLock, Second, Private => [];
    table_lock: TableLock, First, Private => [];
    table_lock_again: TableLock, Second, Private => [];
    faultless_retry: FaultlessRetry, First, Private => [];
    faultless_retry_again: FaultlessRetry, Second, Private => [];
    faultless: Faultless, First, Private => [];
    faultless_again: Faultless, Second, Private => [];
}

/// Returns whether munmap waits for a fault on a folio that is up to date, and that a file system has locked.
fn unmap_waits_for_a_locked_folio<D: LockingDesign>() -> bool {
    let stalled = Stalled::<D>::new(Sharing::Private);
    let locked = stalled.file.try_lock_folio(1).expect("in memory");
    let fault = pending(stalled.space.fault(at(A + 1), Access::Read).expect("no error"));
    assert!(!fault.is_ready(), "the fault waits for the lock");
    let space = &stalled.space;
    scope(|scope| {
        let fault = scope.spawn(move || finish(Fault::Pending(fault)));
        let unmap = || space.unmap(at(A), PAGE_SIZE).expect("unmapped");
        let goes_on = goes_on(|| drop(locked), unmap);
        fault.join().expect("no panic").expect("the page is there");
        !goes_on
    })
}

#[test]
fn a_locked_folio_that_is_up_to_date() {
    assert!(!unmap_waits_for_a_locked_folio::<MmapLock>());
    assert!(!unmap_waits_for_a_locked_folio::<Speculative>());
    assert!(!unmap_waits_for_a_locked_folio::<VmaLock>());
    assert!(!unmap_waits_for_a_locked_folio::<VmaLockPin>());
    assert!(unmap_waits_for_a_locked_folio::<VmaLockHoldFile>());
    assert!(!unmap_waits_for_a_locked_folio::<VmaLockRetry>());
    assert!(unmap_waits_for_a_locked_folio::<VmaLockRetryUptodate>());
    assert!(unmap_waits_for_a_locked_folio::<VmaLockHold>());
    assert!(!unmap_waits_for_a_locked_folio::<VmaLockResume>());
}

/// Returns whether fork waits for a fault whose page is read from swap space.
fn fork_waits_for_swap_space<D: LockingDesign>() -> bool {
    let engine = Engine::new(Soft::with_caches(64).expect("frames"), copying()).expect("an engine");
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(64 * PAGE_SIZE).expect("64 pages");
    let gate = GatedStore::new(FileStore::from_file(file).expect("a store"));
    let device = Arc::new(StoreDevice::new(gate).expect("a device"));
    engine.add_swap(device.clone()).expect("swap space");
    let space = AddressSpace::<Soft, D>::new(&engine).expect("a space");
    space.map(MapRequest::anonymous(PAGE_SIZE).at(Placement::Fixed(at(A)))).expect("a mapping");
    space.store_u64(at(A), 1).expect("a store");
    device.store().pass(1);
    let begun = Instant::now();
    while engine.frame_usage().used > 1 {
        engine.reclaim(1);
        assert!(begun.elapsed() < TOO_LONG, "the page does not go to swap space");
    }
    let fault = pending(space.fault(at(A), Access::Read).expect("no error"));
    scope(|scope| {
        let fault = scope.spawn(move || finish(Fault::Pending(fault)));
        let goes_on = goes_on(|| device.store().open(), || drop(space.fork().expect("a child")));
        fault.join().expect("no panic").expect("the page is there");
        !goes_on
    })
}

#[test]
fn a_read_from_swap_space() {
    assert!(!fork_waits_for_swap_space::<VmaLock>());
    assert!(!fork_waits_for_swap_space::<VmaLockPin>());
    assert!(!fork_waits_for_swap_space::<VmaLockRetry>());
    assert!(fork_waits_for_swap_space::<VmaLockHold>());
    assert!(!fork_waits_for_swap_space::<VmaLockHoldFile>(), "it holds for files alone");
    assert!(!fork_waits_for_swap_space::<VmaLockResume>());
    assert!(!fork_waits_for_swap_space::<Faultless>());
}

/// Waits until fork has copied the page at `at`, so that a store there has to fault.
fn wait_until_copied<D: LockingDesign>(space: &AddressSpace<Soft, D>, at: VirtAddr, value: u64) {
    let begun = Instant::now();
    while space.try_store_u64(at, value).is_ok() {
        assert!(begun.elapsed() < TOO_LONG, "fork has not copied {at}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// As `dup_mmap`: fork locks a VMA and copies it before it locks the next one. It waits for the fault in A. By then it has copied B, and
/// has not come to C.
#[test]
fn fork_copies_a_vma_before_it_locks_the_next() {
    let stalled = Stalled::<VmaLockHold>::new(Sharing::Private);
    let (space, first) = (&stalled.space, stalled.first());
    scope(|scope| {
        let fault = scope.spawn(|| finish(Fault::Pending(first)));
        let fork = scope.spawn(|| space.fork().expect("a child"));
        wait_until_copied(space, at(BELOW), 1);
        assert!(space.try_store_u64(at(ABOVE), 3).is_ok(), "fork has copied C");
        let faults_above =
            goes_on(|| stalled.gate.open(), || space.store_u64(at(ABOVE + 1), 4).expect("a store"));
        assert!(faults_above, "fork has locked C");
        fault.join().expect("no panic").expect("no error");
        let child = fork.join().expect("no panic");
        let of_child = [BELOW, ABOVE, ABOVE + 1].map(|page| child.load_u64(at(page)).expect("a load"));
        assert_eq!(of_child, [1, 3, 4], "invariant 7");
        space.store_u64(at(BELOW), 5).expect("a store");
        assert_eq!(child.load_u64(at(BELOW)), Ok(1), "invariant 7: the child has a later store");
    });
}

/// Fork leaves the pages of B for the end, since the mapping copies at fork. While it waits for the fault in A, reclaim takes one of them
/// to swap space.
#[test]
fn fork_gives_the_child_what_reclaim_takes_meanwhile() {
    let stalled = Stalled::<VmaLockHold>::new(Sharing::Private);
    let (space, first) = (&stalled.space, stalled.first());
    let device = CompressedMemory::new(64, 64 * PAGE_SIZE as usize).expect("a device");
    space.engine().add_swap(Arc::new(device)).expect("swap space");
    space.advise(at(BELOW), 2 * PAGE_SIZE, Advice::CopyAtFork).expect("advice");
    scope(|scope| {
        let fault = scope.spawn(|| finish(Fault::Pending(first)));
        let fork = scope.spawn(|| space.fork().expect("a child"));
        wait_until_copied(space, at(BELOW), 1);
        space.advise(at(BELOW), PAGE_SIZE, Advice::PageOut).expect("advice");
        assert_eq!(space.resident(at(BELOW), PAGE_SIZE), Ok(vec![false]), "the page is not in swap space");
        stalled.gate.open();
        fault.join().expect("no panic").expect("no error");
        let child = fork.join().expect("no panic");
        assert_eq!(child.load_u64(at(BELOW)), Ok(1), "invariant 7: the child has lost a page");
        assert_eq!(space.load_u64(at(BELOW)), Ok(1));
    });
}

/// Returns the counts of a major fault whose page is in memory after its read: mmap_lock taken for reading, and
/// retries.
fn counted_for_a_major_fault<D: LockingDesign>() -> (u64, u64) {
    let stalled = Stalled::<D>::new(Sharing::Private);
    let before = (stalled.counted(Counter::MmapLockRead), stalled.counted(Counter::Retries));
    let fault = stalled.first();
    stalled.gate.open();
    finish(Fault::Pending(fault)).expect("read");
    let after = (stalled.counted(Counter::MmapLockRead), stalled.counted(Counter::Retries));
    (after.0 - before.0, after.1 - before.1)
}

#[test]
fn mmap_lock_and_retries_of_a_major_fault() {
    assert_eq!(counted_for_a_major_fault::<MmapLockHold>(), (1, 0));
    assert_eq!(counted_for_a_major_fault::<MmapLock>(), (2, 1));
    // The first hold of mmap_lock starts the read, because a speculation does not.
    assert_eq!(counted_for_a_major_fault::<Speculative>(), (2, 1));
    assert_eq!(counted_for_a_major_fault::<VmaLock>(), (1, 1));
    assert_eq!(counted_for_a_major_fault::<VmaLockPin>(), (1, 1));
    assert_eq!(counted_for_a_major_fault::<VmaLockHoldFile>(), (0, 0));
    assert_eq!(counted_for_a_major_fault::<VmaLockRetry>(), (0, 1));
    assert_eq!(counted_for_a_major_fault::<VmaLockRetryUptodate>(), (0, 1));
    assert_eq!(counted_for_a_major_fault::<VmaLockHold>(), (0, 0));
    assert_eq!(counted_for_a_major_fault::<VmaLockHoldCowFork>(), (0, 0));
    assert_eq!(counted_for_a_major_fault::<VmaLockResume>(), (0, 0));
    assert_eq!(counted_for_a_major_fault::<RangeLock>(), (0, 1));
    assert_eq!(counted_for_a_major_fault::<TableLock>(), (0, 1));
    assert_eq!(counted_for_a_major_fault::<FaultlessRetry>(), (0, 1));
    assert_eq!(counted_for_a_major_fault::<Faultless>(), (0, 0));
}

#[test]
fn the_first_anonymous_page_of_a_vma_tries_mmap_lock() {
    let stalled = Stalled::<VmaLock>::new(Sharing::Private);
    let counted = || {
        let seen = |counter| stalled.counted(counter);
        (seen(Counter::MmapLockRead), seen(Counter::VmaLockRead), seen(Counter::VmaLockAborts))
    };
    let (mmap, vma, aborts) = counted();
    stalled.space.store_u64(at(FRESH), 1).expect("a store");
    assert_eq!(counted(), (mmap + 1, vma + 1, aborts), "the first page tries mmap_lock");
    stalled.space.store_u64(at(FRESH + 1), 1).expect("a store");
    assert_eq!(counted(), (mmap + 1, vma + 2, aborts), "the second page does not");
    assert!(stalled.space.load_u64(at(FRESH + 2)).is_err());
    assert_eq!(counted(), (mmap + 2, vma + 2, aborts + 1), "a hole is looked for under mmap_lock");
}

/// Some faults cannot be served by speculation, so they take mmap_lock.
#[test]
fn what_is_not_done_by_speculation() {
    let stalled = Stalled::<Speculative>::new(Sharing::Private);
    let counted = || (stalled.counted(Counter::MmapLockRead), stalled.counted(Counter::SpeculationAborts));
    let (mmap, aborts) = counted();
    stalled.space.store_u64(at(ABOVE + 1), 1).expect("a store");
    stalled.space.load_u64(at(A + 1)).expect("a load");
    assert_eq!(counted(), (mmap, aborts), "a page that needs nothing else, and one of a file in memory");
    stalled.space.store_u64(at(FRESH), 1).expect("a store");
    assert_eq!(counted(), (mmap + 1, aborts + 1), "the first anonymous page of a VMA");
    stalled.space.store_u64(at(FRESH + 1), 1).expect("a store");
    assert_eq!(counted(), (mmap + 1, aborts + 1), "the second page of the VMA");
    assert!(stalled.space.load_u64(at(FRESH + 2)).is_err());
    assert_eq!(counted(), (mmap + 2, aborts + 2), "a hole");
    let far = MapRequest::anonymous(PAGE_SIZE).at(Placement::Fixed(at(1 << 20)));
    stalled.space.map(far).expect("a mapping");
    stalled.space.load_u64(at(1 << 20)).expect("a load");
    assert_eq!(counted(), (mmap + 3, aborts + 3), "a page whose leaf table is missing");
}

/// Checks that exit ends while a fault sleeps for its read, and that the fault ends too.
fn exit_ends<D: LockingDesign>(stage: Stage) {
    let stalled = Stalled::<D>::new(Sharing::Private);
    let fault = match stage {
        Stage::First => stalled.first(),
        Stage::Second => stalled.second(),
    };
    scope(|scope| {
        let fault = scope.spawn(move || finish(Fault::Pending(fault)));
        std::thread::sleep(A_WHILE);
        assert!(goes_on(|| stalled.gate.open(), || stalled.space.exit()), "{}: exit waits", D::NAME);
        let ended = fault.join().expect("no panic");
        assert!(matches!(ended, Err(FaultError::Exited { .. })), "{}: {ended:?}", D::NAME);
    });
}

#[test]
fn waits_for_reads_end_with_the_process() {
    for stage in [Stage::First, Stage::Second] {
        exit_ends::<MmapLockHold>(stage);
        exit_ends::<MmapLock>(stage);
        exit_ends::<Speculative>(stage);
        exit_ends::<VmaLock>(stage);
        exit_ends::<VmaLockRetry>(stage);
        exit_ends::<VmaLockRetryUptodate>(stage);
        exit_ends::<VmaLockHold>(stage);
        exit_ends::<VmaLockHoldCowFork>(stage);
        exit_ends::<VmaLockResume>(stage);
        exit_ends::<RangeLock>(stage);
        exit_ends::<TableLock>(stage);
        exit_ends::<FaultlessRetry>(stage);
        exit_ends::<Faultless>(stage);
    }
}

#[test]
fn discarding_inside_a_vma_takes_its_lock() {
    let stalled = Stalled::<VmaLock>::new(Sharing::Private);
    let counted = || (stalled.counted(Counter::MmapLockRead), stalled.counted(Counter::VmaLockRead));
    let (mmap, vma) = counted();
    stalled.space.discard(at(BELOW), PAGE_SIZE).expect("discarded");
    assert_eq!(counted(), (mmap, vma + 1));
    // Beyond the end of the VMA, it takes mmap_lock.
    let _ = stalled.space.discard(at(BELOW), 3 * PAGE_SIZE);
    assert_eq!(counted(), (mmap + 1, vma + 1));
}

#[test]
fn a_fault_given_up_lets_go() {
    let stalled = Stalled::<MmapLock>::new(Sharing::Private);
    drop(stalled.second());
    let map = || {
        stalled.space.map(MapRequest::anonymous(PAGE_SIZE)).expect("a mapping");
    };
    assert!(goes_on(|| stalled.gate.open(), map), "the lock is still held");
}

#[test]
fn waits_are_attributed() {
    let stalled = Stalled::<VmaLockHold>::new(Sharing::Private);
    let fault = stalled.first();
    let space = &stalled.space;
    scope(|scope| {
        scope.spawn(move || finish(Fault::Pending(fault)));
        scope.spawn(|| drop(space.fork().expect("a child")));
        std::thread::sleep(A_WHILE);
        let map = || {
            space.map(MapRequest::anonymous(PAGE_SIZE)).expect("a mapping");
        };
        assert!(!goes_on(|| stalled.gate.open(), map));
    });
    let seen = |counter| stalled.counted(counter);
    // fork waited for the VMA, and the bystander for fork. The cause of both waits was the fault's I/O.
    assert!(seen(Counter::VmaLockWaitIo) > 0 && seen(Counter::MmapLockWaitIo) > 0);
    assert_eq!(seen(Counter::VmaLockWait), seen(Counter::VmaLockWaitIo) + seen(Counter::VmaLockWaitFault));
    let parts = [
        Counter::MmapLockWaitIo,
        Counter::MmapLockWaitFork,
        Counter::MmapLockWaitChange,
        Counter::MmapLockWaitFault,
    ];
    assert_eq!(seen(Counter::MmapLockWait), parts.map(seen).iter().sum::<u64>());
}
