//! Models of retired things, and of the handles that they have.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless --lib --profile checked models`

use super::*;
use crate::sync::atomic::AtomicPtr;
use crate::sync::{FenceBarrier, LeftToRetired, Life, Section, Shared};
use core::ptr::NonNull;
use loom::thread;
use std::sync::Arc;

fn model(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(f);
}

fn slot(index: u32) -> SlotIndex {
    SlotIndex::new(index).unwrap()
}

fn enter(sections: &Sections, of: u32) -> Section<'_> {
    // SAFETY: each thread of a model has a slot of its own, and all have this barrier.
    unsafe { sections.enter(slot(of), &FenceBarrier) }
}

fn retire(sections: &Sections, of: u32, thing: Retired) -> Kept {
    // SAFETY: as in `enter`.
    unsafe { sections.retire((slot(of), ()), &FenceBarrier, &mut [thing].into_iter().collect()) }.unwrap()
}

fn go_on(sections: &Sections) {
    // SAFETY: as in `enter`.
    unsafe { sections.go_on_if_hurried(&FenceBarrier) };
}

fn flush(sections: &Sections) {
    // SAFETY: as in `enter`.
    unsafe { sections.flush(&FenceBarrier, false, |_| thread::yield_now()) };
}

/// Asserts that all things are freed, and that the total count of bytes equals the sum that the lists have reported.
fn assert_empty(sections: &Sections) {
    let mut told = 0;
    sections.each_list(|list| {
        let queue = list.queue.lock();
        assert_eq!((queue.things.len(), queue.bytes), (0, 0), "kept");
        told += queue.told;
    });
    assert_eq!(sections.periods.kept.load(plain::Ordering::Relaxed), told, "not all is told");
}

/// A count of ends. It is an atomic of `core`, so that it adds no steps to a model.
type Ends = Arc<plain::AtomicUsize>;

fn count(ends: &Ends) -> usize {
    ends.load(plain::Ordering::Relaxed)
}

/// A stand-in for a file, which should be dropped soon after its last handle in use.
struct Watched(Arc<Sections>, Ends, Life);

impl LeftToRetired for Watched {
    const IS_MODELLED: bool = true;

    fn left_to_retired(&self) {
        self.0.hurry();
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.2.end();
        self.1.fetch_add(1, plain::Ordering::Relaxed);
    }
}

/// A stand-in for a mapping of the file.
struct Keeper(Shared<Watched>, Life);

impl Keeper {
    fn new(value: &Shared<Watched>) -> Box<Self> {
        Box::new(Self(value.clone(), Life::new()))
    }

    /// # Safety
    /// The keeper is there.
    unsafe fn retired(keeper: NonNull<()>) -> bool {
        // SAFETY: by the contract above.
        unsafe { keeper.cast::<Self>().as_ref() }.0.count_as_retired()
    }

    /// # Safety
    /// From a Box, and freed once.
    unsafe fn free(keeper: NonNull<()>) {
        // The box stays allocated, so that a use of it is found and does not crash.
        // SAFETY: by the contract above.
        let Self(value, life) = unsafe { keeper.cast::<Self>().read() };
        life.end();
        value.count_as_freed();
    }

    /// # Safety
    /// From [`Keeper::new`], and no thread finds it any more.
    unsafe fn into_retired(keeper: *mut Self) -> Retired {
        const KIND: RetiredKind = RetiredKind {
            free: Keeper::free,
            bytes: size_of::<Keeper>(),
            is_charged: false,
            retired: Some(Keeper::retired),
        };
        let pointer = NonNull::new(keeper).unwrap().cast();
        // SAFETY: a box of that type.
        unsafe { Retired::from_raw(pointer, &KIND) }
    }
}

fn watched(sections: &Arc<Sections>, ends: &Ends) -> Shared<Watched> {
    let value = Watched(sections.clone(), ends.clone(), Life::new());
    Shared::try_new_retirable(sections, |_| value).unwrap()
}

/// A handle is dropped while the last mappings are retired, under an older section. The thread that comes last finds
/// that only retired things keep the value. The value is dropped by the first call after the section, and not before.
fn the_last_in_use_is_found(mappings: u32) {
    model(3, move || {
        let (sections, ends) = (Arc::new(Sections::new()), Ends::default());
        let handle = watched(&sections, &ends);
        let section = enter(&sections, 0);
        let threads: Vec<_> = (1..=mappings)
            .map(|of| {
                let (sections, keeper) = (sections.clone(), Box::into_raw(Keeper::new(&handle)));
                // SAFETY: no other code has it.
                thread::spawn(move || _ = retire(&sections, of, unsafe { Keeper::into_retired(keeper) }))
            })
            .collect();
        drop(handle);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        go_on(&sections);
        assert_eq!(count(&ends), 0, "invariant 3: freed under a section that is older");
        drop(section);
        go_on(&sections);
        assert_eq!(count(&ends), 1, "kept by retired things alone, and no hurry is noted");
    });
}

#[test]
fn a_handle_that_goes_while_the_last_mapping_is_retired() {
    the_last_in_use_is_found(1);
}

#[test]
fn a_handle_that_goes_while_the_last_two_mappings_are_retired() {
    the_last_in_use_is_found(2);
}

/// Checks the same as `the_last_in_use_is_found`. The section belongs to a thread that looks the mapping up and uses
/// the value. A thread that has not retired anything makes a call meanwhile.
#[test]
fn a_reader_beside_the_last_of_all() {
    model(2, || {
        let (sections, ends) = (Arc::new(Sections::new()), Ends::default());
        let handle = watched(&sections, &ends);
        // The value's memory stays, so that a late use is found and does not crash.
        core::mem::forget(Shared::downgrade(&handle));
        let place = Arc::new(AtomicPtr::new(Box::into_raw(Keeper::new(&handle))));
        let reader = {
            let (sections, place) = (sections.clone(), place.clone());
            thread::spawn(move || {
                let section = enter(&sections, 1);
                let keeper = place.load(Ordering::Acquire);
                if !keeper.is_null() {
                    // SAFETY: checked by this model: it is freed after the section has ended.
                    let keeper = unsafe { &*keeper };
                    keeper.1.touch();
                    keeper.0.2.touch();
                }
                drop(section);
            })
        };
        let unmap = {
            let sections = sections.clone();
            thread::spawn(move || {
                let keeper = place.swap(core::ptr::null_mut(), Ordering::AcqRel);
                // SAFETY: no thread finds it any more.
                retire(&sections, 2, unsafe { Keeper::into_retired(keeper) });
            })
        };
        drop(handle);
        go_on(&sections);
        reader.join().unwrap();
        unmap.join().unwrap();
        go_on(&sections);
        assert_eq!(count(&ends), 1, "kept by retired things alone, and no hurry is noted");
    });
}

/// A thing without a handle, with the number of bytes that its kind states.
struct Thing(Ends, Life);

impl Thing {
    fn new(ends: &Ends) -> Box<Self> {
        Box::new(Self(ends.clone(), Life::new()))
    }

    /// # Safety
    /// From a Box, and passed once.
    unsafe fn free(thing: NonNull<()>) {
        // The box stays allocated, as that of a keeper does.
        // SAFETY: by the contract above.
        let Self(ends, life) = unsafe { thing.cast::<Self>().read() };
        life.end();
        ends.fetch_add(1, plain::Ordering::Relaxed);
    }

    /// # Safety
    /// From [`Thing::new`], and no thread finds it any more.
    unsafe fn retired(thing: *mut Self, is_heavy: bool) -> Retired {
        const fn kind(bytes: usize) -> RetiredKind {
            RetiredKind { free: Thing::free, bytes, is_charged: false, retired: None }
        }
        const LIGHT: RetiredKind = kind(1);
        const HEAVY: RetiredKind = kind(MOST / 2);
        let pointer = NonNull::new(thing).unwrap().cast();
        // SAFETY: a box of that type.
        unsafe { Retired::from_raw(pointer, if is_heavy { &HEAVY } else { &LIGHT }) }
    }
}

fn heavy(ends: &Ends) -> Retired {
    // SAFETY: just made.
    unsafe { Thing::retired(Box::into_raw(Thing::new(ends)), true) }
}

fn light(ends: &Ends) -> Retired {
    // SAFETY: just made.
    unsafe { Thing::retired(Box::into_raw(Thing::new(ends)), false) }
}

/// Several slots retire more than may be kept, under a section that delays all of it. The thread that brings the sum
/// over the bound is told so. The first call of any thread after the section frees the things of all slots.
#[test]
fn what_all_slots_keep_is_asked_for_together() {
    model(3, || {
        let (sections, ends) = (Arc::new(Sections::new()), Ends::default());
        let section = enter(&sections, 0);
        let threads = [1, 2].map(|of| {
            let (sections, ends) = (sections.clone(), ends.clone());
            thread::spawn(move || retire(&sections, of, heavy(&ends)))
        });
        let heard = threads.map(|thread| thread.join().unwrap());
        assert!(heard.contains(&Kept::TooMuch), "more than may be kept, but no thread was told");
        assert_eq!(count(&ends), 0, "invariant 3: freed under a section that is older");
        drop(section);
        let kept = retire(&sections, 3, light(&ends));
        assert_eq!(count(&ends), 3, "things that other slots have retired are kept");
        assert_eq!(kept, Kept::Little);
        assert_empty(&sections);
    });
}

/// A helper frees the due things of all lists, beside an owner that retires and frees its own things. Each thing is
/// freed once, and all of them by the next call.
#[test]
fn a_helper_beside_the_owner() {
    model(3, || {
        let (sections, ends) = (Arc::new(Sections::new()), Ends::default());
        let section = enter(&sections, 0);
        retire(&sections, 1, heavy(&ends));
        retire(&sections, 1, light(&ends));
        drop(section);
        let owner = {
            let (sections, ends) = (sections.clone(), ends.clone());
            thread::spawn(move || _ = retire(&sections, 1, light(&ends)))
        };
        retire(&sections, 2, light(&ends));
        owner.join().unwrap();
        assert!((2..=4).contains(&count(&ends)), "things that were due before are freed");
        flush(&sections);
        assert_eq!(count(&ends), 4, "a thing was lost, or freed twice");
        assert_empty(&sections);
    });
}

/// A period that another thread begins meanwhile is not taken for one that comes after a thing was unhooked.
#[test]
fn a_period_that_begins_beside_a_retirement() {
    model(2, || {
        let (sections, ends) = (Arc::new(Sections::new()), Ends::default());
        let place = Arc::new(AtomicPtr::new(Box::into_raw(Thing::new(&ends))));
        let reader = {
            let (sections, place) = (sections.clone(), place.clone());
            thread::spawn(move || {
                let section = enter(&sections, 1);
                let thing = place.load(Ordering::Acquire);
                if !thing.is_null() {
                    // SAFETY: checked by this model: it is freed after the section has ended.
                    unsafe { &*thing }.1.touch();
                }
                drop(section);
            })
        };
        let driver = {
            let (sections, ends) = (sections.clone(), ends.clone());
            thread::spawn(move || _ = retire(&sections, 2, light(&ends)))
        };
        let thing = place.swap(core::ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: no thread finds it any more.
        retire(&sections, 0, unsafe { Thing::retired(thing, false) });
        reader.join().unwrap();
        driver.join().unwrap();
        flush(&sections);
        assert_eq!(count(&ends), 2, "a thing was lost, or freed twice");
    });
}

/// Looks a thing up and uses it, in a section of slot `of`.
fn look(sections: &Sections, of: u32, place: &AtomicPtr<Thing>) {
    let section = enter(sections, of);
    let thing = place.load(Ordering::Acquire);
    if !thing.is_null() {
        // SAFETY: checked by the models: it is freed after the section has ended.
        unsafe { &*thing }.1.touch();
    }
    drop(section);
}

/// A processor finds a page by a translation, in an access, and uses it. Another thread takes the translation away, invalidates, and frees
/// the page.
#[test]
fn an_access_beside_an_invalidation() {
    const PAGE: u64 = 7;
    // SAFETY: each thread of the model has a slot of its own.
    let access = |sections: &Sections, f: &dyn Fn()| unsafe {
        let access = sections.enter_access(slot(1), PAGE);
        f();
        drop(access);
    };
    model(3, move || {
        let (sections, ends) = (Arc::new(Sections::new()), Ends::default());
        let place = Arc::new(AtomicPtr::new(Box::into_raw(Thing::new(&ends))));
        // A scan may miss a slot that comes into use meanwhile.
        access(&sections, &|| ());
        let processor = {
            let (sections, place) = (sections.clone(), place.clone());
            thread::spawn(move || {
                access(&sections, &|| {
                    let page = NonNull::new(place.load(Ordering::Relaxed));
                    // SAFETY: checked by the model: it is freed after the access has ended.
                    page.into_iter().for_each(|page| unsafe { page.as_ref() }.1.touch());
                });
            })
        };
        let page = place.load(Ordering::Relaxed);
        place.store(core::ptr::null_mut(), Ordering::Relaxed);
        sections.grace_of(|subject| subject == PAGE, |_| thread::yield_now());
        // SAFETY: no access has found it that is still under way.
        unsafe { Thing::free(NonNull::new(page).unwrap().cast()) };
        processor.join().unwrap();
    });
}

/// A slot leaves the scans by `leave`, and is used again in `again`, beside a grace period. The period waits for a
/// thread in a section of the slot, and the work in such a section is over when its bytes are freed.
fn a_slot_leaves(
    leave: fn(&Sections),
    again: fn(Box<dyn FnOnce() + Send>),
    free: impl Fn(&Sections, *mut Thing) + Copy + Send + Sync + 'static,
) {
    model(3, move || {
        let (sections, ends) = (Arc::new(Sections::new()), Ends::default());
        let place = Arc::new(AtomicPtr::new(Box::into_raw(Thing::new(&ends))));
        let owner = {
            let (sections, place) = (sections.clone(), place.clone());
            thread::spawn(move || {
                look(&sections, 1, &place);
                leave(&sections);
                again(Box::new(move || look(&sections, 1, &place)));
            })
        };
        let thing = place.swap(core::ptr::null_mut(), Ordering::AcqRel);
        free(&sections, thing);
        owner.join().unwrap();
        flush(&sections);
        assert_eq!(count(&ends), 1, "a thing was lost, or freed twice");
    });
}

/// Another thread gives the slot up, after the slot's own thread has ended.
fn a_slot_is_given_on(free: impl Fn(&Sections, *mut Thing) + Copy + Send + Sync + 'static) {
    // SAFETY: the thread has had the slot, and passes it to the next.
    let leave = |sections: &Sections| unsafe { sections.unlist(slot(1)) };
    a_slot_leaves(leave, |work| thread::spawn(work).join().unwrap(), free);
}

/// The slot's thread sleeps, and uses the slot again.
fn a_slot_sleeps(free: impl Fn(&Sections, *mut Thing) + Copy + Send + Sync + 'static) {
    // SAFETY: the slot is the thread's, which is in no section.
    a_slot_leaves(|sections| unsafe { sections.sleep(slot(1)) }, |work| work(), free);
}

fn free_after_grace(sections: &Sections, thing: *mut Thing) {
    sections.grace(&FenceBarrier, |_| thread::yield_now());
    // SAFETY: no thread finds it any more, and threads that have found it have left their sections.
    unsafe { Thing::free(NonNull::new(thing).unwrap().cast()) };
}

fn retire_it(sections: &Sections, thing: *mut Thing) {
    // SAFETY: no thread finds it any more.
    retire(sections, 0, unsafe { Thing::retired(thing, false) });
}

#[test]
fn a_slot_that_is_given_on_beside_a_grace_period() {
    a_slot_is_given_on(free_after_grace);
}

#[test]
fn a_slot_that_is_given_on_beside_a_retirement() {
    a_slot_is_given_on(retire_it);
}

#[test]
fn a_slot_that_sleeps_beside_a_grace_period() {
    a_slot_sleeps(free_after_grace);
}

#[test]
fn a_slot_that_sleeps_beside_a_retirement() {
    a_slot_sleeps(retire_it);
}

/// A slot with retired things is given up, while another thread frees the due things of all lists: each is freed once.
#[test]
fn a_helper_beside_a_slot_that_is_given_up() {
    model(3, || {
        let (sections, ends) = (Arc::new(Sections::new()), Ends::default());
        let section = enter(&sections, 0);
        retire(&sections, 1, heavy(&ends));
        retire(&sections, 1, light(&ends));
        drop(section);
        let owner = {
            let sections = sections.clone();
            // SAFETY: the slot is this thread's now.
            thread::spawn(move || unsafe { sections.unlist(slot(1)) })
        };
        retire(&sections, 2, heavy(&ends));
        owner.join().unwrap();
        flush(&sections);
        assert_eq!(count(&ends), 3, "a thing was lost, or freed twice");
        assert_empty(&sections);
    });
}
