//! Closing of files: the store is dropped soon after the last handle and the last mapping, in any order of these, and
//! without hundreds of other calls.

use crate::*;
use faultless::store::{Store, StoreError, Transfer};
use faultless_soft::Cpu;

under_every_design! {
    the_last_mapping_closes_its_file
    the_last_handle_closes_its_file_with_the_next_call
    a_file_that_somebody_has_stays_open
    files_opened_and_closed_one_after_the_other
}

on_real_memory! {
    the_last_mapping_closes_its_file
    the_last_handle_closes_its_file_with_the_next_call
}

/// A store that shares a count, so that a test can see when it is dropped.
struct Watched(FileStore, #[expect(dead_code, reason = "dropped with the store")] Arc<()>);

impl Store for Watched {
    fn length(&self) -> Result<u64, StoreError> {
        self.0.length()
    }

    fn submit(&self, transfer: Transfer) {
        self.0.submit(transfer);
    }
}

/// Returns a file, and a count that is shared while its store exists.
fn watched<S: Stand>(machine: &Machine<S>) -> (Shared<File<S>>, Arc<()>) {
    let open = Arc::new(());
    let store = Watched(numbered(4), Arc::clone(&open));
    (File::open(&machine.engine, Arc::new(store)).expect("a length"), open)
}

fn is_open(open: &Arc<()>) -> bool {
    Arc::strong_count(open) > 1
}

fn the_last_mapping_closes_its_file<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let (file, open) = watched(&machine);
    space.map(of_file(&file, 10, 4, READ_WRITE)).unwrap();
    drop(file);
    assert_eq!(space.load_u64(at(11)).unwrap(), word(2));
    space.store_u64(at(12), 5).unwrap();
    space.protect(at(12), PAGE_SIZE, Protection::READ).unwrap();
    space.unmap(at(10), 2 * PAGE_SIZE).unwrap();
    assert!(is_open(&open), "closed while it is mapped");
    space.unmap(at(12), 2 * PAGE_SIZE).unwrap();
    assert!(!is_open(&open), "open after its last mapping");
    drop(space);
    machine.end()
}

fn the_last_handle_closes_its_file_with_the_next_call<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let (file, open) = watched(&machine);
    space.map(of_file(&file, 10, 4, READ_WRITE)).unwrap();
    assert_eq!(space.load_u64(at(11)).unwrap(), word(2));
    space.unmap(at(10), 4 * PAGE_SIZE).unwrap();
    assert!(is_open(&open), "closed while there is a handle");
    drop(file);
    // The next call belongs to another thread, in another space.
    let other = machine.space::<D>();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            other.map(anonymous(1, 1)).unwrap();
            other.unmap(at(1), PAGE_SIZE).unwrap();
        });
    });
    assert!(!is_open(&open), "open after its last handle");
    drop((space, other));
    machine.end()
}

fn a_file_that_somebody_has_stays_open<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let (space, other) = (machine.space::<D>(), machine.space::<D>());
    let (file, open) = watched(&machine);
    space.map(of_file(&file, 10, 4, READ_WRITE)).unwrap();
    other.map(of_file(&file, 20, 4, READ_WRITE)).unwrap();
    space.unmap(at(10), 4 * PAGE_SIZE).unwrap();
    drop(file);
    machine.engine.flush();
    assert!(is_open(&open), "closed while another space maps it");
    assert_eq!(other.load_u64(at(23)).unwrap(), word(4));
    let child = other.fork().unwrap();
    other.exit();
    assert!(is_open(&open), "closed while a child maps it");
    assert_eq!(child.load_u64(at(22)).unwrap(), word(3));
    drop(child);
    assert!(!is_open(&open), "open after its last space");
    drop((space, other));
    machine.end()
}

/// If nothing else runs, at most one of the dropped files is still open.
fn files_opened_and_closed_one_after_the_other<S: Stand, D: LockingDesign>() -> Ran<S> {
    let machine = Machine::<S>::new()?;
    let space = machine.space::<D>();
    let mut gone = Vec::new();
    for _ in 0..8 {
        let (file, open) = watched(&machine);
        space.map(of_file(&file, 10, 4, Protection::READ)).unwrap();
        space.unmap(at(10), 4 * PAGE_SIZE).unwrap();
        gone.push(open);
        let still = gone.iter().filter(|open| is_open(open)).count();
        assert!(still <= 2, "{still} files are open, and only one has a handle");
    }
    drop(space);
    machine.end()
}
