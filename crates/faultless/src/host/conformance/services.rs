//! Checks of sleeping, the clock and the slots.

use super::{Check, Finding, Rig, Unmet, must};
use crate::engine::Engine;
use crate::host::{Clock, Host, Park, Sleeper, Slots};
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

pub(super) fn checks<R: Rig>() -> [Check<R>; 5] {
    [
        ("the clock never goes back", clock),
        ("a thread has one slot and one name", one_name),
        ("threads that exist at the same time have different slots and names", different),
        ("a wake-up before the sleep is not lost", early_wake),
        ("a wake-up wakes its thread and no other", wake),
    ]
}

/// The longest time, in nanoseconds, that a woken thread may take before its wake-up counts as lost.
const PATIENCE: u64 = 5_000_000_000;

fn clock<R: Rig>(rig: &R) -> Finding {
    let engine = rig.engine(64);
    let mut last = engine.host().clock().now_ns();
    for _ in 0..10_000 {
        let now = engine.host().clock().now_ns();
        must!(now >= last, "the clock goes from {last} to {now}");
        last = now;
    }
    Ok(())
}

fn one_name<R: Rig>(rig: &R) -> Finding {
    let engine = rig.engine(64);
    let host = engine.host();
    let slot = || host.slots().pin().0;
    let (first, name) = (slot(), host.park().current());
    for _ in 0..100 {
        // A thread of a kernel may be on another processor by now.
        must!(!<R::Host as Host>::Slots::ARE_THREADS || slot() == first, "a thread's slot changes");
        must!(host.park().current() == name, "a thread's name for sleeping changes");
    }
    Ok(())
}

fn different<R: Rig>(rig: &R) -> Finding {
    const THREADS: usize = 16;
    let engine = rig.engine(64);
    let host = engine.host();
    let slots: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];
    let names: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];
    let (here, gone) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = |number: usize| {
        // In a section, where a kernel keeps its processor.
        let section = engine.enter();
        slots[number].store(u64::from(host.slots().pin().0.get()), Ordering::Relaxed);
        drop(section);
        names[number].store(host.park().current().0, Ordering::Relaxed);
        here.fetch_add(1, Ordering::AcqRel);
        wait_until(&engine, || here.load(Ordering::Acquire) == THREADS);
        gone.fetch_add(1, Ordering::AcqRel);
    };
    if !rig.side_by_side(THREADS, &work) {
        return Err(NO_THREADS);
    }
    let count =
        |of: &[AtomicU64]| of.iter().map(|one| one.load(Ordering::Relaxed)).collect::<BTreeSet<_>>().len();
    must!(count(&names) == THREADS, "{THREADS} threads have {} names", count(&names));
    if <R::Host as Host>::Slots::ARE_THREADS {
        must!(count(&slots) == THREADS, "{THREADS} threads have {} slots", count(&slots));
    }
    Ok(())
}

const NO_THREADS: Unmet = Unmet::Skipped("the rig has no threads");

/// Polls until `is_so` returns true, and gives up after [`PATIENCE`]. Returns whether it did.
fn wait_until<H: Host>(engine: &Arc<Engine<H>>, is_so: impl Fn() -> bool) -> bool {
    let start = engine.host().clock().now_ns();
    let mut look = 0;
    while !is_so() {
        engine.host().park().spin(look);
        look = look.saturating_add(1);
        if engine.host().clock().now_ns().saturating_sub(start) > PATIENCE {
            return false;
        }
    }
    true
}

fn early_wake<R: Rig>(rig: &R) -> Finding {
    let engine = rig.engine(64);
    let park = engine.host().park();
    let name = AtomicU64::new(u64::MAX);
    let (is_woken, has_slept, is_lost) =
        (AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(false));
    let work = |number: usize| match number {
        0 => {
            let me = park.current();
            name.store(me.0, Ordering::Release);
            wait_until(&engine, || is_woken.load(Ordering::Acquire));
            park.park(me);
            has_slept.store(true, Ordering::Release);
        }
        _ => {
            wait_until(&engine, || name.load(Ordering::Acquire) != u64::MAX);
            let sleeper = Sleeper(name.load(Ordering::Acquire));
            park.unpark(sleeper);
            is_woken.store(true, Ordering::Release);
            while !wait_until(&engine, || has_slept.load(Ordering::Acquire)) {
                is_lost.store(true, Ordering::Release);
                park.unpark(sleeper);
            }
        }
    };
    if !rig.side_by_side(2, &work) {
        return Err(NO_THREADS);
    }
    must!(!is_lost.load(Ordering::Acquire), "a wake-up that came before the sleep was lost");
    Ok(())
}

fn wake<R: Rig>(rig: &R) -> Finding {
    const ROUNDS: usize = 50;
    let engine = rig.engine(64);
    let park = engine.host().park();
    let names = [const { AtomicU64::new(u64::MAX) }; 2];
    let turns = [const { AtomicUsize::new(0) }; 2];
    let (heard, is_lost) = (AtomicUsize::new(0), AtomicBool::new(false));
    // Two threads sleep. A third wakes the one and then the other.
    let work = |number: usize| match number {
        0 | 1 => {
            let me = park.current();
            names[number].store(me.0, Ordering::Release);
            for round in 1..=ROUNDS {
                while turns[number].load(Ordering::Acquire) < round {
                    park.park(me);
                }
                heard.fetch_add(1, Ordering::AcqRel);
            }
        }
        _ => {
            wait_until(&engine, || names.iter().all(|name| name.load(Ordering::Acquire) != u64::MAX));
            for round in 0..2 * ROUNDS {
                let number = round % 2;
                turns[number].store(round / 2 + 1, Ordering::Release);
                let sleeper = Sleeper(names[number].load(Ordering::Acquire));
                park.unpark(sleeper);
                while !wait_until(&engine, || heard.load(Ordering::Acquire) > round) {
                    is_lost.store(true, Ordering::Release);
                    park.unpark(sleeper);
                }
            }
        }
    };
    if !rig.side_by_side(3, &work) {
        return Err(NO_THREADS);
    }
    must!(!is_lost.load(Ordering::Acquire), "a sleeping thread was not woken");
    Ok(())
}
