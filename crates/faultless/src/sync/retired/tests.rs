//! Things that count their ends, retired beside sections.

use super::*;
use crate::sync::{FenceBarrier, LeftToRetired, QuiescentStates, Section, Shared};
use core::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;

struct Thing(Arc<AtomicUsize>);

impl Drop for Thing {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn slot(index: u32) -> SlotIndex {
    SlotIndex::new(index).unwrap()
}

fn retire(sections: &Sections, of: u32, count: usize, freed: &Arc<AtomicUsize>) {
    let mut things = (0..count).map(|_| Retired::new(Box::new(Thing(Arc::clone(freed))))).collect();
    // SAFETY: all that enter `sections` in these tests do so with this barrier.
    unsafe { sections.retire((slot(of), ()), &FenceBarrier, &mut things) }.unwrap();
}

fn flush(sections: &Sections, wait: impl FnMut(u32)) {
    // SAFETY: as in `retire`.
    unsafe { sections.flush(&FenceBarrier, false, wait) }
}

fn count(freed: &Arc<AtomicUsize>) -> usize {
    freed.load(Ordering::Relaxed)
}

/// Runs `work` while another thread is in a section, of slot 9.
fn beside_a_section(sections: &Sections, work: impl FnOnce()) {
    let (entered, is_entered) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // SAFETY: no other thread has this slot.
            let _section: Section<'_> = unsafe { sections.enter(slot(9), &FenceBarrier) };
            entered.send(()).unwrap();
            may_leave.recv().unwrap();
        });
        is_entered.recv().unwrap();
        work();
        leave.send(()).unwrap();
    });
}

#[test]
fn a_batch_goes_without_a_wait() {
    let (sections, freed) = (Sections::new(), Arc::default());
    retire(&sections, 0, BATCH - 1, &freed);
    assert_eq!(count(&freed), 0, "less than a batch asks for no grace period");
    retire(&sections, 0, 1, &freed);
    assert_eq!(count(&freed), BATCH);
}

#[test]
fn a_section_holds_things_up_and_nobody_who_retires() {
    let (sections, freed) = (Sections::new(), Arc::default());
    // Returns though the section lasts until all this is done.
    beside_a_section(&sections, || {
        (0..20).for_each(|_| retire(&sections, 0, BATCH / 2, &freed));
        assert_eq!(count(&freed), 0, "invariant 3: freed under a section that is older");
    });
    retire(&sections, 0, 1, &freed);
    assert_eq!(count(&freed), 10 * BATCH + 1);
}

#[test]
fn an_access_holds_things_up_too() {
    let (sections, freed) = (Sections::new(), Arc::default());
    {
        // SAFETY: no other thread has this slot.
        let _access = unsafe { sections.enter_access(slot(3), 7) };
        retire(&sections, 0, BATCH, &freed);
        assert_eq!(count(&freed), 0, "invariant 3: freed under an access");
    }
    retire(&sections, 0, BATCH, &freed);
    assert_eq!(count(&freed), 2 * BATCH);
}

#[test]
fn a_later_section_holds_nothing_up() {
    let (sections, freed) = (Sections::new(), Arc::default());
    beside_a_section(&sections, || retire(&sections, 0, BATCH, &freed));
    // SAFETY: no other thread has this slot by now.
    let _section = unsafe { sections.enter(slot(9), &FenceBarrier) };
    retire(&sections, 0, 1, &freed);
    assert_eq!(count(&freed), BATCH, "the first batch, and not the things retired after the section");
}

#[test]
fn what_a_slot_leaves_behind_is_freed_by_others() {
    let (sections, left, freed) = (Sections::new(), Arc::default(), Arc::default());
    retire(&sections, 5, 3, &left);
    for _ in 0..HELP {
        assert_eq!(count(&left), 0);
        retire(&sections, 0, BATCH, &freed);
    }
    assert_eq!(count(&left), 3);
}

#[test]
fn a_flush_frees_all_lists() {
    let (sections, freed) = (Sections::new(), Arc::default());
    (0..8).for_each(|of| retire(&sections, of, 2, &freed));
    flush(&sections, |_| {});
    assert_eq!(count(&freed), 16);
}

#[test]
fn a_flush_waits_for_a_section() {
    let (sections, freed) = (Sections::new(), Arc::default());
    retire(&sections, 0, 1, &freed);
    let (looks, waits) = mpsc::channel();
    std::thread::scope(|scope| {
        beside_a_section(&sections, || {
            scope.spawn(|| {
                flush(&sections, |_| _ = looks.send(()));
                assert_eq!(count(&freed), 1);
            });
            waits.recv().unwrap();
            assert_eq!(count(&freed), 0, "invariant 3: freed under a section that is older");
        });
    });
}

#[test]
fn nothing_is_lost_at_the_end() {
    let (sections, freed) = (Sections::new(), Arc::default());
    (0..3).for_each(|of| retire(&sections, of, BATCH - 1, &freed));
    drop(sections);
    assert_eq!(count(&freed), 3 * (BATCH - 1));
}

/// Checks that things which a drop retires go to the list that is being freed from.
#[test]
fn a_drop_may_retire() {
    struct Nested(Arc<Sections>, Arc<AtomicUsize>);
    impl Drop for Nested {
        fn drop(&mut self) {
            retire(&self.0, 0, BATCH, &self.1);
        }
    }
    let (sections, freed) = (Arc::new(Sections::new()), Arc::default());
    let things =
        (0..BATCH).map(|_| Retired::new(Box::new(Nested(Arc::clone(&sections), Arc::clone(&freed)))));
    // SAFETY: as in `retire`.
    unsafe { sections.retire((slot(0), ()), &FenceBarrier, &mut things.collect()) }.unwrap();
    flush(&sections, |_| {});
    assert_eq!(count(&freed), BATCH * BATCH);
}

#[test]
fn threads_retire_beside_sections() {
    const THREADS: u32 = 4;
    const ROUNDS: usize = 5_000;
    let (sections, freed) = (Sections::new(), Arc::default());
    std::thread::scope(|scope| {
        for of in 0..THREADS {
            let (sections, freed) = (&sections, &freed);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    {
                        // SAFETY: no other thread has this slot.
                        let _section = unsafe { sections.enter(slot(of), &FenceBarrier) };
                    }
                    retire(sections, of, 1, freed);
                    if round % 1000 == 0 {
                        flush(sections, |_| std::thread::yield_now());
                    }
                }
            });
        }
    });
    flush(&sections, |_| {});
    assert_eq!(count(&freed), THREADS as usize * ROUNDS);
}

fn unlist(sections: &Sections, of: u32) {
    // SAFETY: no thread uses the slot now, nor is in a section of it.
    unsafe { sections.unlist(slot(of)) };
}

/// A period looks at slots in use, however many there were.
#[test]
fn slots_that_were_given_up_are_not_looked_at() {
    let (sections, freed) = (Sections::new(), Arc::default());
    (0..2_000).for_each(|of| retire(&sections, of, 1, &freed));
    assert_eq!(sections.listed(), 2_000);
    (1..2_000).for_each(|of| unlist(&sections, of));
    assert_eq!(sections.listed(), 1);
    assert_eq!(sections.listed.find(0, |of| of != 0), None);
    retire(&sections, 700, 1, &freed);
    assert_eq!(sections.listed.find(1, |_| true), Some(700));
    unlist(&sections, 3_000);
    assert_eq!(sections.listed(), 2, "the slot that was given up last was not used again");
}

#[test]
fn what_a_slot_has_retired_that_was_given_up_is_freed_by_others() {
    let (sections, left, freed) = (Sections::new(), Arc::default(), Arc::default());
    [0, 70].into_iter().for_each(|of| _ = sections.counters(slot(of)));
    let empty = sections.charged();
    retire(&sections, 0, 1, &freed);
    let kept = sections.periods.kept.load(plain::Ordering::Relaxed);
    for of in [5, 6, 70] {
        retire(&sections, of, 3, &left);
        unlist(&sections, of);
    }
    // A slot tells of small things late: its end tells of all.
    let told = sections.left.queue.lock().bytes;
    assert!(told > 9 * size_of::<Thing>());
    assert_eq!(sections.periods.kept.load(plain::Ordering::Relaxed), kept + told);
    for _ in 0..HELP {
        assert_eq!(count(&left), 0);
        retire(&sections, 0, BATCH, &freed);
    }
    assert_eq!(count(&left), 9);
    unlist(&sections, 0);
    flush(&sections, |_| {});
    assert_eq!(sections.periods.kept.load(plain::Ordering::Relaxed), 0, "all is freed, and all is told");
    assert_eq!(sections.charged(), empty, "lists of slots that were given up have memory");
}

#[test]
fn the_room_of_a_list_is_counted_while_its_thread_sleeps() {
    let (sections, freed) = (Sections::new(), Arc::default());
    let _ = sections.counters(slot(0));
    let before = sections.charged();
    retire(&sections, 0, BATCH - 1, &freed);
    flush(&sections, |_| {});
    let awake = sections.charged();
    assert!(awake > before, "an empty list keeps its room");
    // SAFETY: no other code uses the slot, and no thread is in a section.
    unsafe { sections.sleep(slot(0)) };
    assert_eq!((sections.listed(), sections.charged()), (0, awake));
}

/// A hurry is noted for a thing whose slot is then given up: the thing keeps the number that the hurry is for.
#[test]
fn a_hurry_outlasts_the_slot() {
    let (sections, ended) = (Arc::new(Sections::new()), Arc::<AtomicUsize>::default());
    let handle =
        Shared::try_new_retirable(&sections, |_| Watched(Arc::clone(&sections), Arc::clone(&ended))).unwrap();
    beside_a_section(&sections, || {
        retire(&sections, 4, 1, &Arc::default());
        unlist(&sections, 4);
        retire_keeper(&sections, 5, Keeper(handle));
        unlist(&sections, 5);
        assert_eq!(count(&ended), 0, "invariant 3: freed under a section that is older");
    });
    go_on(&sections);
    assert_eq!(count(&ended), 1);
}

/// A thread that ends without a word, in a program whose threads tell quiescent states, is not waited for.
#[test]
fn a_slot_that_is_given_up_is_offline() {
    let sections = Sections::new();
    // SAFETY: this thread has the slot.
    drop(unsafe { sections.enter(slot(1), &QuiescentStates) });
    unlist(&sections, 1);
    sections.grace(&QuiescentStates, |_| panic!("slot 1 was given up"));
    // SAFETY: as above.
    drop(unsafe { sections.enter(slot(1), &QuiescentStates) });
    let mut looks = 0;
    sections.grace(&QuiescentStates, |look| {
        looks += 1;
        assert_eq!(look, 0);
        // SAFETY: in no section.
        unsafe { sections.quiescent(slot(1)) };
    });
    assert_eq!(looks, 1, "and is waited for in its next use");
}

/// Counts its drops. It has the size of a leaf table.
struct Table(Arc<AtomicUsize>, #[expect(dead_code, reason = "weight")] [u8; 4096]);

impl Drop for Table {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn retire_table(sections: &Sections, of: u32, freed: &Arc<AtomicUsize>) -> Kept {
    let table = Retired::new(Box::new(Table(Arc::clone(freed), [0; 4096])));
    // SAFETY: as in `retire`.
    unsafe { sections.retire((slot(of), ()), &FenceBarrier, &mut [table].into_iter().collect()) }.unwrap()
}

/// Threads that retire little keep little, however many there are.
#[test]
fn what_all_slots_keep_is_bounded_in_bytes() {
    let (sections, freed) = (Sections::new(), Arc::default());
    let (mut most, mut retired) = (0, 0);
    for of in 0..2_000 {
        for _ in 0..80 {
            assert_eq!(retire_table(&sections, of, &freed), Kept::Little);
            retired += 1;
            most = most.max(retired - count(&freed));
        }
    }
    let bytes = most * size_of::<Table>();
    assert!(bytes <= ASK + TELLS_LATER * UNTOLD, "{} KiB are kept", bytes / 1024);
}

/// Checks that a thread that retires is told before much more than the limit is kept, while an older section holds all frees
/// up.
#[test]
fn who_retires_hears_that_too_much_waits() {
    let (sections, freed) = (Sections::new(), Arc::default());
    beside_a_section(&sections, || {
        let retired = (0..).find(|n| retire_table(&sections, *n as u32 % 200, &freed) == Kept::TooMuch);
        let bytes = retired.unwrap() * size_of::<Table>();
        assert!(bytes <= MOST + TELLS_LATER * UNTOLD, "{} KiB are kept", bytes / 1024);
        assert_eq!(count(&freed), 0, "invariant 3: freed under a section that is older");
    });
    assert_eq!(retire_table(&sections, 0, &freed), Kept::Little);
    flush(&sections, |_| {});
    assert_eq!(sections.periods.kept.load(plain::Ordering::Relaxed), 0, "all is freed, and all is told");
}

/// A thing that has a handle of a value, and the value.
struct Keeper(Shared<Watched>);
struct Watched(Arc<Sections>, Arc<AtomicUsize>);

impl LeftToRetired for Watched {
    fn left_to_retired(&self) {
        self.0.hurry();
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

fn keeper(keeper: Keeper) -> Retired {
    /// # Safety
    /// The keeper is there.
    unsafe fn retired(keeper: NonNull<()>) -> bool {
        // SAFETY: by the contract above.
        unsafe { keeper.cast::<Keeper>().as_ref() }.0.count_as_retired()
    }
    /// # Safety
    /// From a Box, and freed once.
    unsafe fn free(keeper: NonNull<()>) {
        // SAFETY: by the contract above.
        let keeper = unsafe { Box::from_raw(keeper.cast::<Keeper>().as_ptr()) };
        keeper.0.count_as_freed();
    }
    const KIND: RetiredKind =
        RetiredKind { free, bytes: size_of::<Keeper>(), is_charged: false, retired: Some(retired) };
    let pointer = NonNull::from(Box::leak(Box::new(keeper))).cast();
    // SAFETY: a box of that type.
    unsafe { Retired::from_raw(pointer, &KIND) }
}

fn retire_keeper(sections: &Sections, of: u32, thing: Keeper) -> Kept {
    // SAFETY: as in `retire`.
    unsafe { sections.retire((slot(of), ()), &FenceBarrier, &mut [keeper(thing)].into_iter().collect()) }
        .unwrap()
}

fn go_on(sections: &Sections) {
    // SAFETY: as in `retire`.
    unsafe { sections.go_on_if_hurried(&FenceBarrier) };
}

/// Checks that a value ends with the next call, after two threads dropped its last handles at once, one as a handle and one as
/// a retired thing.
#[test]
fn the_last_in_use_is_found_whoever_it_is() {
    let (sections, ended) = (Arc::new(Sections::new()), Arc::<AtomicUsize>::default());
    for round in 1..=2_000 {
        let kept = Watched(Arc::clone(&sections), Arc::clone(&ended));
        let handle = Shared::try_new_retirable(&sections, |_| kept).unwrap();
        let keepers = [Keeper(handle.clone()), Keeper(handle.clone())];
        std::thread::scope(|scope| {
            scope.spawn(|| drop(handle));
            for (of, thing) in keepers.into_iter().enumerate() {
                let sections = &sections;
                scope.spawn(move || retire_keeper(sections, of as u32, thing));
            }
        });
        go_on(&sections);
        assert_eq!(count(&ended), round, "kept by retired things alone, and no hurry is noted");
    }
}

/// A section that is under way when the last goes: the first call after it is enough, and it need not retire anything.
#[test]
fn a_hurry_outlasts_a_section() {
    let (sections, ended) = (Arc::new(Sections::new()), Arc::<AtomicUsize>::default());
    let handle =
        Shared::try_new_retirable(&sections, |_| Watched(Arc::clone(&sections), Arc::clone(&ended))).unwrap();
    beside_a_section(&sections, || {
        retire_keeper(&sections, 5, Keeper(handle));
        go_on(&sections);
        assert_eq!(count(&ended), 0, "invariant 3: freed under a section that is older");
    });
    go_on(&sections);
    assert_eq!(count(&ended), 1);
    assert!(!sections.periods.is_hurried());
}

/// Nothing that is unhooked is lost without a word. (A thing of no bytes: the test itself leaks nothing.)
#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "it was not retired")]
fn a_list_that_is_dropped_with_something_in_it_is_a_leak() {
    let mut list = RetiredList::new();
    list.push(Retired::new(Box::new(())));
    drop(list);
}

#[test]
fn a_leak_can_be_meant() {
    Retired::new(Box::new(())).leak();
    drop(RetiredList::new());
}
