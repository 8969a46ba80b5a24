//! Truncation and writeback invalidate several spaces at once. Range work and other writebacks that run in between may find entries
//! that are already weakened, and processors that still use the old translations.

use super::{FIRST, READ_WRITE, Recorder, Watched, Zeros, at};
use faultless::address::PAGE_SIZE;
use faultless::design::LockingDesign;
use faultless::protection::{Access, Protection};
use faultless::swap::CompressedMemory;
use faultless::sync::Shared;
use faultless::{Advice, Engine, Fault, File, Limits, MapRequest, Placement, RemapRequest};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

every_design! { [crate::under] (
    writeback_invalidates_many_spaces_at_once
    truncation_invalidates_many_spaces_at_once
    munmap_beside_a_truncation_invalidates_too
    munmap_beside_a_hole_invalidates_too
    discarding_beside_a_truncation_invalidates_too
    mremap_beside_a_truncation_invalidates_too
    mprotect_beside_a_writeback_invalidates_too
    a_writeback_between_the_pages_of_another_invalidates_too
    fork_beside_freeing_invalidates_too
    freeing_beside_freeing_invalidates_too
    no_page_is_made_in_a_hole_that_is_being_punched
) }

/// A file of one page, with spaces that show it and have stored into it.
struct Shown<D: LockingDesign> {
    file: Shared<File<Recorder>>,
    spaces: Vec<Watched<D>>,
}

impl<D: LockingDesign> Shown<D> {
    fn new(spaces: usize) -> Self {
        let engine = Engine::new(Recorder::new(), Limits::default()).unwrap();
        let file = File::open_rw(&engine, Arc::new(Zeros(1))).unwrap();
        let request =
            || MapRequest::shared_file(&file, 0, PAGE_SIZE, READ_WRITE).at(Placement::Fixed(at(FIRST)));
        let spaces = (0..spaces).map(|_| {
            let space = Watched::<D>::beside(&engine);
            space.map(request()).unwrap();
            space.fault_and_wait(at(FIRST), Access::Write).unwrap();
            space
        });
        let spaces = spaces.collect();
        Self { spaces, file }
    }

    /// Returns the number of invalidations in `call`.
    fn rounds(&self, call: impl FnOnce()) -> usize {
        let before = self.spaces[0].seen().invalidations;
        call();
        self.spaces[0].seen().invalidations - before
    }

    /// Does `change` in the first space when the invalidation of `call` begins. After `change`, no processor may use
    /// the old translation, although the invalidation of `call` is still running.
    fn beside(&self, call: impl FnOnce(), change: impl FnOnce(&Watched<D>) + Send + 'static) {
        let space = Watched(self.spaces[0].clone());
        let log = space.engine().host().log.clone();
        let (hook_log, table) = (log.clone(), space.root());
        let hook = move || {
            assert!(hook_log.has_old(table, at(FIRST).page()), "the call has weakened the entry");
            change(&space);
            assert!(
                !hook_log.has_old(table, at(FIRST).page()),
                "invariant 3: a processor uses the old translation"
            );
        };
        log.when_invalidated(hook);
        assert!(self.rounds(call) >= 2, "nothing was invalidated");
    }
}

fn writeback_invalidates_many_spaces_at_once<D: LockingDesign>() {
    let shown = Shown::<D>::new(100);
    // The log checks that the bytes are read after the invalidation.
    let rounds = shown.rounds(|| shown.file.sync().unwrap());
    assert!((1..=4).contains(&rounds), "{rounds} rounds for 100 spaces");
}

fn truncation_invalidates_many_spaces_at_once<D: LockingDesign>() {
    let shown = Shown::<D>::new(100);
    // The log checks that the frame is freed after the invalidation.
    let rounds = shown.rounds(|| shown.file.set_length(0).unwrap());
    assert!((1..=4).contains(&rounds), "{rounds} rounds for 100 spaces");
    assert_eq!(shown.spaces[0].engine().frame_usage().used, 1, "the page of zeros is left");
}

fn munmap_beside_a_truncation_invalidates_too<D: LockingDesign>() {
    let shown = Shown::<D>::new(2);
    shown.beside(|| shown.file.set_length(0).unwrap(), |space| space.unmap(at(FIRST), PAGE_SIZE).unwrap());
}

fn munmap_beside_a_hole_invalidates_too<D: LockingDesign>() {
    let shown = Shown::<D>::new(2);
    let punch = || shown.file.handle().punch_hole(0, PAGE_SIZE).unwrap();
    shown.beside(punch, |space| space.unmap(at(FIRST), PAGE_SIZE).unwrap());
}

fn discarding_beside_a_truncation_invalidates_too<D: LockingDesign>() {
    let shown = Shown::<D>::new(2);
    shown.beside(|| shown.file.set_length(0).unwrap(), |space| space.discard(at(FIRST), PAGE_SIZE).unwrap());
}

fn mremap_beside_a_truncation_invalidates_too<D: LockingDesign>() {
    let shown = Shown::<D>::new(2);
    let change = |space: &Watched<D>| {
        space.remap(RemapRequest::to(at(FIRST), PAGE_SIZE, at(4 * FIRST))).unwrap();
    };
    shown.beside(|| shown.file.set_length(0).unwrap(), change);
}

fn mprotect_beside_a_writeback_invalidates_too<D: LockingDesign>() {
    let shown = Shown::<D>::new(2);
    let change = |space: &Watched<D>| space.protect(at(FIRST), PAGE_SIZE, Protection::READ).unwrap();
    shown.beside(|| shown.file.sync().unwrap(), change);
}

/// Two threads write back pages of one file: one page 1, the other pages 0 and 2. Page 1 is under writeback already when the second
/// thread comes by its entry, and the second invalidation has not ended when the first thread writes page 1. The log checks that no
/// processor may store into a page whose bytes are read.
fn a_writeback_between_the_pages_of_another_invalidates_too<D: LockingDesign>() {
    let engine = Engine::new(Recorder::new(), Limits::default()).unwrap();
    let file = File::open_rw(&engine, Arc::new(Zeros(3))).unwrap();
    let space = Watched::<D>::beside(&engine);
    let request = MapRequest::shared_file(&file, 0, 3 * PAGE_SIZE, READ_WRITE);
    space.map(request.at(Placement::Fixed(at(FIRST)))).unwrap();
    space.touch(FIRST + 1..FIRST + 2);
    let ((begin, begun), (end, ended), (hand, handed)) = (channel(), channel(), channel());
    let (log, other, written) = (engine.host().log.clone(), Watched(space.clone()), file.clone());
    engine.host().log.before_exchange(move || {
        let second = std::thread::spawn(move || {
            other.touch(FIRST..FIRST + 1);
            other.touch(FIRST + 2..FIRST + 3);
            log.when_invalidated(move || {
                begin.send(()).unwrap();
                ended.recv().unwrap();
            });
            written.handle().start_sync();
        });
        begun.recv().expect("the second writeback invalidates");
        hand.send(second).unwrap();
    });
    file.handle().start_sync();
    end.send(()).unwrap();
    handed.recv().unwrap().join().unwrap();
    file.sync().unwrap();
}

/// MADV_FREE takes the write right first, and invalidates later. fork finds no right to take. When it returns, no processor stores by an
/// older translation into the pages that the child has too.
fn fork_beside_freeing_invalidates_too<D: LockingDesign>() {
    let space = Watched::<D>::new();
    space.map_tables(FIRST, 1);
    space.touch(FIRST..FIRST + 1);
    let (log, other) = (space.engine().host().log.clone(), Watched(space.clone()));
    let (hook_log, table) = (log.clone(), space.root());
    let is_called = Arc::new(AtomicBool::new(false));
    let called = is_called.clone();
    log.when_invalidated(move || {
        assert!(hook_log.has_old(table, at(FIRST).page()), "the right is gone");
        let _child = other.fork().unwrap();
        assert!(!hook_log.has_old(table, at(FIRST).page()), "invariant 7: a store reaches the child");
        called.store(true, Ordering::Relaxed);
    });
    space.advise(at(FIRST), PAGE_SIZE, Advice::Free).unwrap();
    assert!(is_called.load(Ordering::Relaxed), "MADV_FREE invalidates");
}

/// Reclaim takes a page to swap space, MADV_FREE drops it there, and a second MADV_FREE finds nothing. Neither reclaim nor the first call
/// has invalidated. When the second one returns, no processor stores into the page that is gone.
fn freeing_beside_freeing_invalidates_too<D: LockingDesign>() {
    let space = Watched::<D>::new();
    let device = CompressedMemory::new(64, 64 * PAGE_SIZE as usize).unwrap();
    space.engine().add_swap(Arc::new(device)).unwrap();
    space.map_tables(FIRST, 1);
    space.touch(FIRST..FIRST + 1);
    let log = space.engine().host().log.clone();
    let (first, second) = (Watched(space.clone()), Watched(space.clone()));
    let (outer_log, inner_log, table) = (log.clone(), log.clone(), space.root());
    let is_called = Arc::new(AtomicBool::new(false));
    let called = is_called.clone();
    log.when_invalidated(move || {
        assert!(inner_log.has_old(table, at(FIRST).page()), "reclaim has taken the page");
        outer_log.when_invalidated(move || {
            second.advise(at(FIRST), PAGE_SIZE, Advice::Free).unwrap();
            assert!(!inner_log.has_old(table, at(FIRST).page()), "invariant 3: a store would be lost");
            called.store(true, Ordering::Relaxed);
        });
        first.advise(at(FIRST), PAGE_SIZE, Advice::Free).unwrap();
    });
    space.advise(at(FIRST), PAGE_SIZE, Advice::PageOut).unwrap();
    assert!(is_called.load(Ordering::Relaxed), "MADV_FREE invalidates");
}

/// A page of a file without a store has been taken out, and processors may still use it. A fault there waits for the hole. A page that it
/// made would be beside the old one.
fn no_page_is_made_in_a_hole_that_is_being_punched<D: LockingDesign>() {
    let engine = Engine::new(Recorder::new(), Limits::default()).unwrap();
    let file = File::in_memory(&engine, PAGE_SIZE).unwrap();
    let space = Watched::<D>::beside(&engine);
    let request = MapRequest::shared_file(&file, 0, PAGE_SIZE, READ_WRITE);
    space.map(request.at(Placement::Fixed(at(FIRST)))).unwrap();
    space.touch(FIRST..FIRST + 1);
    let (log, other) = (engine.host().log.clone(), Watched(space.clone()));
    let (hook_log, table) = (log.clone(), space.root());
    let (put, waits) = channel();
    log.when_invalidated(move || {
        assert!(hook_log.has_old(table, at(FIRST).page()), "the page is taken out");
        put.send(other.fault(at(FIRST), Access::Write).unwrap()).unwrap();
    });
    file.handle().punch_hole(0, PAGE_SIZE).unwrap();
    let Fault::Pending(fault) = waits.recv().unwrap() else { panic!("a page was made beside the old one") };
    assert!(matches!(fault.wait(), Ok(Fault::Done)));
}
