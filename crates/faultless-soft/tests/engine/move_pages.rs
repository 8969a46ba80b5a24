//! Moving pages within a space (userfaultfd's UFFDIO_MOVE): what moves, what is refused, and with which number. The numbers are
//! those of Linux 6.18, as its call returned them.

use faultless::address::{PAGE_SIZE, PageNumber, VirtAddr};
use faultless::design::Faultless;
use faultless::host::{EntryKind, PageTable};
use faultless::protection::{Access, Protection};
use faultless::stats::Counter;
use faultless::store::{FileStore, GatedStore};
use faultless::swap::{CompressedMemory, StoreDevice};
use faultless::{
    AddressSpace, Advice, Engine, File, Limits, LockMode, MapRequest, MoveCause, MoveError, MoveRequest,
    Placement,
};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

type Space = AddressSpace<Soft, Faultless>;

/// The first pages of the source and of the target: in two leaf tables.
const SOURCE: u64 = 16;
const TARGET: u64 = 1024;
const PAGES: u64 = 8;
const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);

const ENOENT: i32 = 2;
const EAGAIN: i32 = 11;
const EFAULT: i32 = 14;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;

fn engine(shared_entries: u64) -> Arc<Engine<Soft>> {
    let limits = Limits { shared_entries, ..Limits::default() };
    Engine::new(Soft::with_caches(64).unwrap(), limits).unwrap()
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

fn map(space: &Space, page: u64, protection: Protection) {
    let request = MapRequest::anonymous(PAGES * PAGE_SIZE).protection(protection);
    space.map(request.at(Placement::Fixed(at(page)))).unwrap();
}

/// Makes a space whose source has pages with their numbers, and whose target is empty.
fn space(engine: &Arc<Engine<Soft>>) -> Space {
    let space = Space::new(engine).unwrap();
    map(&space, SOURCE, READ_WRITE);
    map(&space, TARGET, READ_WRITE);
    (0..PAGES).for_each(|page| space.store_u64(at(SOURCE + page), 100 + page).unwrap());
    space
}

fn request(from: u64, pages: u64, to: u64) -> MoveRequest {
    MoveRequest::new(at(from), pages * PAGE_SIZE, at(to))
}

/// Returns the number of pages moved, and Linux's number of the error.
fn outcome(space: &Space, request: MoveRequest) -> (u64, i32) {
    let result = space.move_pages(request);
    space.audit().unwrap_or_else(|error| panic!("{error}"));
    assert_no_page_is_kept(space);
    assert_eq!(space.taken_ranges(), 0);
    match result {
        Ok(()) => (request.length / PAGE_SIZE, 0),
        Err(error) => (error.moved / PAGE_SIZE, error.errno()),
    }
}

fn kind(space: &Space, page: u64) -> EntryKind {
    // SAFETY: dropped before anything waits.
    let section = unsafe { space.engine().enter_section() };
    // SAFETY: only read.
    let table = unsafe { space.table() };
    let page = PageNumber::new(page);
    table.leaf(&section, page).map_or(EntryKind::Empty, |leaf| table.load(leaf, page).kind())
}

#[track_caller]
fn assert_no_page_is_kept(space: &Space) {
    for page in (0..PAGES).flat_map(|page| [SOURCE + page, TARGET + page]) {
        assert!(!matches!(kind(space, page), EntryKind::Kept(_)), "KEPT is left at page {page}");
    }
}

fn end(engine: &Engine<Soft>) {
    engine.flush();
    assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
}

/// Pages go where they are sent, without a copy and with their frames. The source reads as zeros, and the target can be stored to
/// without a fault.
#[test]
fn pages_move_without_a_copy() {
    let engine = engine(u64::MAX);
    let space = space(&engine);
    let before: Vec<_> = (0..PAGES).map(|page| kind(&space, SOURCE + page)).collect();
    assert_eq!(outcome(&space, request(SOURCE, PAGES, TARGET)), (PAGES, 0));
    let after: Vec<_> = (0..PAGES).map(|page| kind(&space, TARGET + page)).collect();
    assert_eq!(before, after, "other frames");
    let faults = engine.statistics().get(Counter::Faults);
    for page in 0..PAGES {
        assert_eq!(space.load_u64(at(TARGET + page)), Ok(100 + page));
        space.store_u64(at(TARGET + page), 200 + page).unwrap();
    }
    assert_eq!(engine.statistics().get(Counter::Faults), faults);
    for page in 0..PAGES {
        assert_eq!(space.load_u64(at(SOURCE + page)), Ok(0));
        assert!(engine.pages_by_home(frame(&space, TARGET + page)).contains(&PageNumber::new(TARGET + page)));
    }
    // Back again, down and within one table.
    (0..PAGES).for_each(|page| space.discard(at(SOURCE + page), PAGE_SIZE).unwrap());
    assert_eq!(outcome(&space, request(TARGET, PAGES, SOURCE)), (PAGES, 0));
    assert_eq!(space.load_u64(at(SOURCE + 3)), Ok(203));
    drop(space);
    end(&engine);
}

fn frame(space: &Space, page: u64) -> faultless::host::Frame {
    match kind(space, page) {
        EntryKind::Page(frame) => frame,
        kind => panic!("no page: {kind:?}"),
    }
}

/// A hole ends the move, or counts as moved if it is allowed. What moved before stays moved, and the number is EAGAIN then.
#[test]
fn a_hole_ends_the_move_or_is_passed() {
    let engine = engine(u64::MAX);
    let space = space(&engine);
    space.discard(at(SOURCE + 2), PAGE_SIZE).unwrap();
    assert_eq!(outcome(&space, request(SOURCE + 2, 2, TARGET)), (0, ENOENT));
    assert_eq!(outcome(&space, request(SOURCE, 4, TARGET)), (2, EAGAIN));
    let cause = space.move_pages(request(SOURCE + 2, 1, TARGET + 2)).unwrap_err().cause;
    assert_eq!(cause, MoveCause::Empty { address: at(SOURCE + 2) });
    let rest = MoveRequest { allow_holes: true, ..request(SOURCE + 2, 2, TARGET + 2) };
    assert_eq!(outcome(&space, rest), (2, 0));
    let words: Vec<_> = (0..4).map(|page| space.load_u64(at(TARGET + page)).unwrap()).collect();
    assert_eq!(words, [100, 101, 0, 103]);
    // The page of zeros moves too.
    assert_eq!(space.load_u64(at(SOURCE)), Ok(0));
    assert_eq!(outcome(&space, request(SOURCE, 1, TARGET + 7)), (1, 0));
    drop(space);
    end(&engine);
}

/// A target with a page is refused, and the source stays. Also if both are the same, or overlap.
#[test]
fn a_target_with_a_page_is_refused() {
    let engine = engine(u64::MAX);
    let space = space(&engine);
    space.store_u64(at(TARGET + 2), 7).unwrap();
    assert_eq!(outcome(&space, request(SOURCE + 2, 1, TARGET + 2)), (0, EEXIST));
    assert_eq!(outcome(&space, request(SOURCE, 4, TARGET)), (2, EAGAIN));
    assert_eq!((space.load_u64(at(TARGET + 2)), space.load_u64(at(SOURCE + 2))), (Ok(7), Ok(102)));
    space.advise(at(TARGET + 4), PAGE_SIZE, Advice::GuardInstall).unwrap();
    assert_eq!(outcome(&space, request(SOURCE + 4, 1, TARGET + 4)), (0, EEXIST));
    assert_eq!(outcome(&space, request(SOURCE + 4, 1, SOURCE + 4)), (0, EEXIST), "the same place");
    assert_eq!(outcome(&space, request(SOURCE + 4, 3, SOURCE + 5)), (0, EEXIST));
    // Downwards, each page makes room for the next.
    assert_eq!(outcome(&space, request(SOURCE + 4, 3, SOURCE + 1)), (1, EAGAIN));
    assert_eq!(space.load_u64(at(SOURCE + 1)), Ok(104));
    assert_eq!(outcome(&space, request(SOURCE + 5, 3, SOURCE + 4)), (3, 0));
    assert_eq!((space.load_u64(at(SOURCE + 4)), space.load_u64(at(SOURCE + 6))), (Ok(105), Ok(107)));
    drop(space);
    end(&engine);
}

/// Mappings that do not go together are refused, as Linux refuses them.
#[test]
fn mappings_that_differ_are_refused() {
    let engine = engine(u64::MAX);
    let space = space(&engine);
    map(&space, 2048, Protection::READ);
    map(&space, 3072, READ_WRITE | Protection::EXECUTE);
    let file = File::in_memory(&engine, PAGES * PAGE_SIZE).unwrap();
    let shared = MapRequest::shared_file(&file, 0, PAGES * PAGE_SIZE, READ_WRITE);
    space.map(shared.at(Placement::Fixed(at(4096)))).unwrap();
    for wrong in [
        request(SOURCE, 1, 2048),
        request(2048, 1, TARGET),
        request(SOURCE, 1, 3072),
        request(SOURCE, 1, 4096),
        request(4096, 1, TARGET),
        request(SOURCE, PAGES + 1, TARGET),
        request(SOURCE, 0, TARGET),
        MoveRequest { source: VirtAddr::new(at(SOURCE).get() + 1), ..request(SOURCE, 1, TARGET) },
        MoveRequest { target: VirtAddr::new(at(TARGET).get() + 1), ..request(SOURCE, 1, TARGET) },
    ] {
        assert_eq!(outcome(&space, wrong), (0, EINVAL), "{wrong:?}");
    }
    assert_eq!(outcome(&space, request(SOURCE, 1, 9000)), (0, ENOENT));
    assert_eq!(outcome(&space, request(9000, 1, TARGET)), (0, ENOENT));
    space.lock(at(SOURCE), PAGES * PAGE_SIZE, LockMode::Now).unwrap();
    assert_eq!(outcome(&space, request(SOURCE, 1, TARGET)), (0, EINVAL), "only one is locked");
    space.unlock(at(SOURCE), PAGES * PAGE_SIZE).unwrap();
    space.advise(at(SOURCE), PAGE_SIZE, Advice::GuardInstall).unwrap();
    assert_eq!(outcome(&space, request(SOURCE, 1, TARGET)), (0, EFAULT));
    drop((space, file));
    end(&engine);
}

/// A page that a child has too, or that is pinned for I/O, stays. It moves when the child or the pin is gone.
#[test]
fn shared_and_pinned_pages_stay() {
    for shared_entries in [1, u64::MAX] {
        let engine = engine(shared_entries);
        let space = space(&engine);
        let child = space.fork().unwrap();
        assert_eq!(outcome(&space, request(SOURCE, 1, TARGET)), (0, EBUSY));
        assert_eq!(outcome(&child, request(SOURCE, 1, TARGET)), (0, EBUSY));
        space.store_u64(at(SOURCE), 7).unwrap();
        assert_eq!(outcome(&space, request(SOURCE, 2, TARGET)), (1, EAGAIN));
        assert_eq!((child.load_u64(at(SOURCE)), child.load_u64(at(TARGET))), (Ok(100), Ok(0)));
        drop(child);
        let pin = space.pin(at(SOURCE + 1), Access::Write).unwrap();
        assert_eq!(outcome(&space, request(SOURCE + 1, 1, TARGET + 1)), (0, EBUSY));
        drop(pin);
        assert_eq!(outcome(&space, request(SOURCE + 1, 3, TARGET + 1)), (3, 0));
        let words: Vec<_> = (0..4).map(|page| space.load_u64(at(TARGET + page)).unwrap()).collect();
        assert_eq!(words, [7, 101, 102, 103]);
        // The pages can be shared again, at their new places.
        let child = space.fork().unwrap();
        space.store_u64(at(TARGET + 1), 8).unwrap();
        assert_eq!(child.load_u64(at(TARGET + 1)), Ok(101));
        child.audit().unwrap_or_else(|error| panic!("{error}"));
        drop((space, child));
        end(&engine);
    }
}

/// A page in swap space moves with its slot. If a child names the slot too, it stays.
#[test]
fn a_page_in_a_slot_moves_with_it() {
    let engine = engine(u64::MAX);
    engine.add_swap(Arc::new(CompressedMemory::new(64, 64 * PAGE_SIZE as usize).unwrap())).unwrap();
    let space = space(&engine);
    let reclaim = || (0..100).for_each(|_| _ = engine.reclaim_for_tests(64));
    reclaim();
    let before = kind(&space, SOURCE);
    assert!(matches!(before, EntryKind::Swapped(..)));
    let read = engine.statistics().get(Counter::MajorFaults);
    assert_eq!(outcome(&space, request(SOURCE, 4, TARGET)), (4, 0));
    assert_eq!((kind(&space, TARGET), kind(&space, SOURCE)), (before, EntryKind::Empty));
    assert_eq!(engine.statistics().get(Counter::MajorFaults), read, "the page was read");
    let child = space.fork().unwrap();
    assert_eq!(outcome(&space, request(SOURCE + 4, 1, TARGET + 4)), (0, EBUSY));
    assert_eq!(outcome(&child, request(TARGET, 1, TARGET + 4)), (0, EBUSY));
    drop(child);
    // In memory and in a slot.
    assert_eq!(space.load_u64(at(TARGET)), Ok(100));
    assert_eq!(outcome(&space, request(TARGET, 1, TARGET + 7)), (1, 0));
    reclaim();
    for page in [1, 2, 3] {
        assert_eq!(space.load_u64(at(TARGET + page)), Ok(100 + page));
    }
    assert_eq!((space.load_u64(at(TARGET + 7)), space.load_u64(at(SOURCE))), (Ok(100), Ok(0)));
    drop(space);
    end(&engine);
}

/// A space that has exited moves nothing.
#[test]
fn after_exit_nothing_moves() {
    let engine = engine(u64::MAX);
    let space = space(&engine);
    space.exit();
    let error = space.move_pages(request(SOURCE, 1, TARGET)).unwrap_err();
    assert_eq!(error, MoveError { moved: 0, cause: MoveCause::Exited });
    drop(space);
    end(&engine);
}

/// Threads store to pages while another moves them to and fro. No store is lost: the sum of each pair of places is what was added.
#[test]
fn no_store_is_lost_beside_moves() {
    let engine = engine(u64::MAX);
    let space = space(&engine);
    const ROUNDS: u64 = 2_000;
    std::thread::scope(|scope| {
        for page in 0..2 {
            let space = &space;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    // A store to the place without a page makes one, which ends the next move there.
                    let place = if round % 64 == 0 { TARGET } else { SOURCE };
                    space.fetch_add_u64(at(place + page), 1).unwrap();
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..ROUNDS / 4 {
                let _ = space.move_pages(request(SOURCE, 2, TARGET));
                let _ = space.move_pages(request(TARGET, 2, SOURCE));
            }
        });
    });
    for page in 0..2 {
        let sum = space.load_u64(at(SOURCE + page)).unwrap() + space.load_u64(at(TARGET + page)).unwrap();
        assert_eq!(sum, 100 + page + ROUNDS, "a store was lost");
    }
    space.audit().unwrap_or_else(|error| panic!("{error}"));
    assert_no_page_is_kept(&space);
    drop(space);
    end(&engine);
}

/// A move to the same place beside a thread that makes the page and drops it. The move ends, whatever it finds.
#[test]
fn a_move_to_the_same_place_ends() {
    let engine = engine(u64::MAX);
    let space = space(&engine);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                space.store_u64(at(SOURCE), 1).unwrap();
                space.advise(at(SOURCE), PAGE_SIZE, Advice::DontNeed).unwrap();
            }
        });
        for _ in 0..20_000 {
            let result = space.move_pages(request(SOURCE, 1, SOURCE));
            let cause = result.expect_err("there is no page, or its place is taken").cause;
            assert!(matches!(cause, MoveCause::Empty { .. } | MoveCause::Occupied { .. }), "{cause}");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    drop(space);
    end(&engine);
}

/// Pages move one after the other, upwards. So a page that has moved up, into a hole of the source, moves on, however far apart source
/// and target are.
#[test]
fn a_page_that_moves_up_into_the_source_moves_on() {
    for apart in [1, 2, 31, 32, 33, 63] {
        let engine = engine(u64::MAX);
        let space = Space::new(&engine).unwrap();
        space.map(MapRequest::anonymous(128 * PAGE_SIZE).at(Placement::Fixed(at(TARGET)))).unwrap();
        space.store_u64(at(TARGET), 7).unwrap();
        let request = MoveRequest { allow_holes: true, ..request(TARGET, 64, TARGET + apart) };
        assert_eq!(outcome(&space, request), (64, 0));
        let last = (0..).map(|step| step * apart).find(|place| *place >= 64).unwrap();
        assert_eq!(space.load_u64(at(TARGET + last)), Ok(7), "{apart} pages apart");
        drop(space);
        end(&engine);
    }
}

/// While a device writes a page, nobody can tell whether another space has it too. That is EAGAIN, and not EBUSY. When the write has
/// ended, the page moves.
#[test]
fn a_page_that_is_being_written_moves_later() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(64 * PAGE_SIZE).unwrap();
    let device = Arc::new(StoreDevice::new(GatedStore::new(FileStore::from_file(file).unwrap())).unwrap());
    let engine = Engine::new(Soft::with_caches(64).unwrap(), Limits::default()).unwrap();
    engine.add_swap(device.clone()).unwrap();
    let space = space(&engine);
    while kind(&space, SOURCE) == EntryKind::Empty || matches!(kind(&space, SOURCE), EntryKind::Page(_)) {
        space.advise(at(SOURCE), PAGE_SIZE, Advice::PageOut).unwrap();
    }
    assert_eq!(outcome(&space, request(SOURCE, 1, TARGET)), (0, EAGAIN));
    device.store().open();
    let start = std::time::Instant::now();
    while outcome(&space, request(SOURCE, 1, TARGET)) != (1, 0) {
        assert!(start.elapsed() < std::time::Duration::from_secs(60), "the page never moves");
    }
    assert_eq!((space.load_u64(at(TARGET)), space.load_u64(at(SOURCE))), (Ok(100), Ok(0)));
    drop(space);
    end(&engine);
}
