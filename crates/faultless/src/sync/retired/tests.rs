//! Things that count their ends, retired beside sections.

use super::*;
use crate::sync::{FenceBarrier, Section};
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
    unsafe { sections.retire(slot(of), &FenceBarrier, &mut things) }.unwrap();
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
    assert_eq!(count(&freed), BATCH, "the first batch, and not what came after the section");
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

/// What a drop retires goes to the list that is being freed from.
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
    unsafe { sections.retire(slot(0), &FenceBarrier, &mut things.collect()) }.unwrap();
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
