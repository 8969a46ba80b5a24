//! Shared by the models: running a model, and the check at its end that all resources were freed.

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::{Faultless, LockingDesign};
use faultless::host::StdSlots;
use faultless::protection::Protection;
use faultless::sync::Shared;
use faultless::{AddressSpace, Engine, File, MapRequest, Placement};
use faultless_soft::Soft;
use loom::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub type Space = AddressSpace<Soft, Faultless>;

pub const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);

/// Runs a model with its usual preemption bound, or the one that LOOM_MAX_PREEMPTIONS names.
pub fn model(bound: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(bound));
    builder.max_branches = 50_000;
    let runs = Arc::new(AtomicU64::new(0));
    let count = runs.clone();
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        StdSlots::set_current(0);
        f();
    });
    println!("{} interleavings", runs.load(Ordering::Relaxed));
}

/// Starts a thread of the model, with a slot of its own.
pub fn spawn<R: 'static>(slot: u32, f: impl FnOnce() -> R + 'static) -> thread::JoinHandle<R> {
    thread::spawn(move || {
        StdSlots::set_current(slot);
        f()
    })
}

pub fn at(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

pub fn map<D: LockingDesign>(space: &AddressSpace<Soft, D>, page: u64, pages: u64) {
    let request = MapRequest::anonymous(pages * PAGE_SIZE).at(Placement::Fixed(at(page)));
    space.map(request).expect("a mapping");
}

/// Asserts that all resources are freed with the last space (invariant 11).
pub fn end<D: LockingDesign>(engine: &Engine<Soft>, space: AddressSpace<Soft, D>) {
    space.audit().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(space.taken_ranges(), 0, "invariant 11: a range is taken, but no call is under way");
    drop(space);
    engine.flush();
    assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left when the last space is gone");
}

/// Drops a file's pages before the frames are counted, since a model does not drop the fields of an object that it
/// frees.
pub fn close(file: Shared<File<Soft>>) {
    file.set_length(0).unwrap();
}

/// Runs `body` as a model in one space of an engine that `engine` makes, and asserts that all resources are freed with
/// the space.
pub fn in_a_space(
    bound: usize,
    engine: fn() -> Arc<Engine<Soft>>,
    body: impl Fn(&Arc<Engine<Soft>>, &Space) + Sync + Send + 'static,
) {
    model(bound, move || {
        let engine = engine();
        let space = Space::new(&engine).unwrap();
        body(&engine, &space);
        end(&engine, space);
    });
}

/// Runs `act` in the space on a second thread.
pub fn beside<D: LockingDesign, R: 'static>(
    space: &AddressSpace<Soft, D>,
    act: impl FnOnce(&AddressSpace<Soft, D>) -> R + 'static,
) -> thread::JoinHandle<R> {
    let space = space.clone();
    spawn(1, move || act(&space))
}
