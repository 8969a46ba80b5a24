//! Reference counts at their limits: none overflows, and a reference that cannot be counted is refused or waits.
#![cfg(not(loom))]

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::host::{FrameSource, Host};
use faultless::protection::{Access, Protection};
use faultless::stats::Counter;
use faultless::store::{Bytes, GatedStore, Store, StoreError, Transfer};
use faultless::{
    AddressSpace, Engine, Fault, FaultError, File, ForkError, Limits, MapRequest, PendingFault, Placement,
};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;

type Space = AddressSpace<Soft, Faultless>;

/// A store of one page, full of fives.
struct Fives;

impl Store for Fives {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(PAGE_SIZE)
    }

    fn submit(&self, mut transfer: Transfer) {
        let Bytes::Read(bytes) = transfer.bytes() else { panic!("nothing is written") };
        bytes.fill(5);
        transfer.complete(Ok(PAGE_SIZE as usize));
    }
}

/// Returns the address of page `page` of the leaf table that covers the tests' mappings.
fn at(page: u64) -> VirtAddr {
    VirtAddr::new((512 + page) * PAGE_SIZE)
}

fn machine() -> Arc<Engine<Soft>> {
    let limits = Limits { shared_entries: 2, ..Limits::default() };
    Engine::new(Soft::new(4096).expect("memory"), limits).expect("a frame")
}

fn shared_tables(engine: &Engine<Soft>) -> u64 {
    engine.statistics().get(Counter::TablesShared)
}

/// Each copy of a shared table counts its pages again. The count of one page must not overflow into the pins.
#[test]
fn fork_says_no_when_a_page_is_mapped_as_often_as_can_be_counted() {
    const PAGES: u64 = 4;
    let engine = machine();
    let parent = Space::new(&engine).unwrap();
    parent.map(MapRequest::anonymous(PAGES * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    (0..PAGES).for_each(|page| parent.store_u64(at(page), page).unwrap());
    let frame = parent.pin(at(0), Access::Read).unwrap().frame();
    let folio = engine.host().frames().folio(frame);
    // Take all other references that can be counted.
    let mut taken = 0;
    // SAFETY: the parent maps it; all references are put back below.
    while unsafe { folio.get_uncounted() } {
        taken += 1;
    }
    let full = folio.mappings();
    let mut children = Vec::new();
    let refused = loop {
        match parent.fork() {
            Ok(child) => {
                // The store gives it a table of its own, which counts every page once more.
                child.store_u64(at(PAGES - 1), 7).unwrap();
                children.push(child);
            }
            Err(error) => break error,
        }
        assert!(
            children.len() < 100,
            "fork shares tables with a page whose count is full: {}",
            folio.mappings()
        );
    };
    assert_eq!(refused, ForkError::OutOfMemory);
    assert!(folio.mappings() <= full + 2, "{} mappings, full at {full}", folio.mappings());
    for space in children.iter().chain([&parent]) {
        (0..PAGES - 1).for_each(|page| assert_eq!(space.load_u64(at(page)), Ok(page)));
        space.audit().unwrap();
    }
    assert_eq!(parent.load_u64(at(PAGES - 1)), Ok(PAGES - 1));
    // With room in the count again, the refused call succeeds.
    // SAFETY: as many references were taken above.
    (0..taken).for_each(|_| unsafe { folio.put_uncounted() });
    let shared = shared_tables(&engine);
    let child = parent.fork().unwrap();
    assert_eq!(shared_tables(&engine), shared + 1);
    child.store_u64(at(0), 9).unwrap();
    assert_eq!((parent.load_u64(at(0)), child.load_u64(at(0))), (Ok(0), Ok(9)));
    drop((parent, child, children));
    engine.flush();
    assert_eq!(engine.frame_usage().used, 1, "frames other than the page of zeros are left");
}

/// A copy of such a table would count the page once for each entry.
#[test]
fn a_table_that_may_have_a_page_many_times_is_not_shared() {
    let engine = machine();
    let file = File::open(&engine, Arc::new(Fives)).unwrap();
    for (mappings, shares) in [(8, 1), (9, 0), (500, 0)] {
        let parent = Space::new(&engine).unwrap();
        parent.map(MapRequest::anonymous(2 * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
        (0..2).for_each(|page| parent.store_u64(at(page), page).unwrap());
        for page in 2..2 + mappings {
            let place = Placement::Fixed(at(page));
            parent.map(MapRequest::file(&file, 0, PAGE_SIZE, Protection::READ).at(place)).unwrap();
            parent.load_u64(at(page)).unwrap();
        }
        let shared = shared_tables(&engine);
        let child = parent.fork().unwrap();
        assert_eq!(shared_tables(&engine), shared + shares, "{mappings} mappings of one page");
        child.store_u64(at(0), 7).unwrap();
        assert_eq!((parent.load_u64(at(0)), child.load_u64(at(0))), (Ok(0), Ok(7)));
        let fives = u64::from_ne_bytes([5; 8]);
        assert_eq!((parent.load_u64(at(2)), child.load_u64(at(1 + mappings))), (Ok(fives), Ok(fives)));
        parent.audit().unwrap();
        child.audit().unwrap();
    }
}

/// A remote read needs no place among the I/O pins. A remote write waits for one.
#[test]
fn remote_memory_is_had_though_a_page_is_pinned_as_often_as_can_be_counted() {
    let engine = machine();
    let space = Space::new(&engine).unwrap();
    space.map(MapRequest::anonymous(2 * PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    (0..2).for_each(|page| space.store_u64(at(page), 7).unwrap());
    let mut pins = Vec::new();
    let refused = loop {
        match space.pin(at(1), Access::Write) {
            Ok(pin) => pins.push(pin),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, FaultError::TooManyPins { address: at(1) });
    let both = 2 * PAGE_SIZE as usize;
    let mut bytes = vec![0; both];
    assert_eq!(space.read_remote(at(0), &mut bytes), Ok(both));
    assert_eq!((bytes[0], bytes[PAGE_SIZE as usize]), (7, 7));
    let (started, is_started) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let write = scope.spawn(|| {
            started.send(()).unwrap();
            space.write_remote(at(0), &vec![9; both])
        });
        is_started.recv().unwrap();
        drop(pins);
        assert_eq!(write.join().unwrap(), Ok(both));
    });
    assert_eq!(space.load_u64(at(1)), Ok(u64::from_ne_bytes([9; 8])));
}

/// The end of the space ends the wait.
#[test]
fn a_wait_for_a_place_among_the_pins_ends_with_the_space() {
    let engine = machine();
    let space = Space::new(&engine).unwrap();
    space.map(MapRequest::anonymous(PAGE_SIZE).at(Placement::Fixed(at(0)))).unwrap();
    let pins: Vec<_> = std::iter::from_fn(|| space.pin(at(0), Access::Write).ok()).collect();
    let (started, is_started) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let write = scope.spawn(|| {
            started.send(()).unwrap();
            space.write_remote(at(0), &[9; 8])
        });
        is_started.recv().unwrap();
        space.exit();
        assert_eq!(write.join().unwrap().unwrap_err().errno(), faultless::errno::EFAULT);
    });
    drop(pins);
}

/// More threads may wait for one page than can be counted. The rest wait for a place.
#[test]
fn any_number_of_faults_waits_for_one_page() {
    const FAULTS: usize = 70_000;
    let engine = machine();
    let gate = Arc::new(GatedStore::new(Fives));
    let file = File::open(&engine, gate.clone()).unwrap();
    let space = Space::new(&engine).unwrap();
    space.map(MapRequest::file(&file, 0, PAGE_SIZE, Protection::READ).at(Placement::Fixed(at(0)))).unwrap();
    let fault = || match space.fault(at(0), Access::Read) {
        Ok(Fault::Pending(pending)) => pending,
        Ok(Fault::Done) => panic!("the page is not read"),
        Err(error) => panic!("{error}"),
    };
    let faults: Vec<_> = (0..FAULTS).map(|_| fault()).collect();
    gate.wait_for(1);
    assert!(!faults[0].is_ready() && !faults[FAULTS - 1].is_ready());
    let finish = |mut fault| {
        while let Fault::Pending(pending) = fault {
            fault = PendingFault::wait(pending).unwrap();
        }
    };
    let mut placed = faults;
    let others = placed.split_off(FAULTS - 2);
    std::thread::scope(|scope| {
        // These have no place, and wait until others go.
        for fault in others {
            scope.spawn(move || finish(Fault::Pending(fault)));
        }
        gate.open();
        placed.into_iter().map(Fault::Pending).for_each(finish);
    });
    assert_eq!(space.load_u64(at(0)), Ok(u64::from_ne_bytes([5; 8])));
    assert_eq!(engine.statistics().get(Counter::IoReads), 1);
}

/// An engine frees the slots of threads that have ended, however many there were. Their counts stay, and the objects
/// that they have retired are freed.
#[test]
fn an_engine_looks_at_no_slot_of_a_thread_that_has_ended() {
    const THREADS: u64 = 150;
    let engine = machine();
    let space = Space::new(&engine).unwrap();
    let slots = || engine.sections().listed();
    let before = (slots(), engine.statistics().get(Counter::Faults));
    let all_here = std::sync::Barrier::new(THREADS as usize);
    let work = |page: u64| {
        space.map(MapRequest::anonymous(PAGE_SIZE).at(Placement::Fixed(at(2 * page)))).unwrap();
        space.store_u64(at(2 * page), page).unwrap();
        space.unmap(at(2 * page), PAGE_SIZE).unwrap();
        all_here.wait();
    };
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..THREADS).map(|page| scope.spawn(move || work(page))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert_eq!((slots(), engine.statistics().get(Counter::Faults)), (before.0, before.1 + THREADS));
    let used = engine.metadata_bytes();
    engine.flush();
    assert!(engine.metadata_bytes() < used, "objects that ended threads have retired are not freed");
}
