//! Tests of physical memory.

use super::*;
use crate::Soft;
use crate::alone::Frames;
use crate::arena::{PAGE, POISON};
use faultless::address::PAGE_SIZE;
use faultless::host::Host;
use faultless::{Engine, Limits};
use std::collections::HashSet;
use std::sync::Barrier;

fn memory(frames: u64) -> Frames<Box<PhysicalMemory>> {
    Frames(Box::new(PhysicalMemory::new(frames).unwrap()))
}

#[test]
fn impossible_sizes_are_typed_errors() {
    assert_eq!(PhysicalMemory::new(0).err(), Some(MemoryError::NoFrames));
    for frames in [MAX_FRAMES + 1, u64::MAX / PAGE_SIZE, u64::MAX] {
        assert_eq!(PhysicalMemory::new(frames).err(), Some(MemoryError::TooManyFrames { frames }));
    }
}

#[test]
fn the_limit_is_reached_and_not_passed() {
    for frames in [1, 3, 63, 64, 65, 3 * (BATCH * CACHES) as u64 + 7] {
        let memory = memory(frames);
        let taken: HashSet<_> = std::iter::from_fn(|| memory.take_frame()).collect();
        assert_eq!(taken.len() as u64, frames);
        assert_eq!(memory.usage(), FrameUsage { used: frames, limit: frames });
        taken.into_iter().for_each(|frame| memory.free(frame));
        assert_eq!(memory.usage(), FrameUsage { used: 0, limit: frames });
        assert_eq!(std::iter::from_fn(|| memory.take_frame()).count() as u64, frames);
    }
}

#[test]
fn no_frame_is_given_out_twice() {
    const THREADS: u64 = 4;
    // Just enough frames, so that other threads' caches are emptied; and many.
    for frames in [THREADS * 50, 3 * (BATCH * CACHES) as u64] {
        take_and_give_back(&memory(frames), THREADS);
    }
}

fn take_and_give_back(memory: &Frames<Box<PhysicalMemory>>, threads: u64) {
    let start = Barrier::new(threads as usize);
    std::thread::scope(|scope| {
        for id in 1..=threads {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                for _ in 0..500 {
                    // Each thread's share is always free, wherever the other frames are.
                    let mine: Vec<_> =
                        (0..50).map(|_| memory.take_frame().expect("within the limit")).collect();
                    mine.iter().for_each(|&frame| memory.store_u64(frame, 8, id));
                    for frame in mine {
                        assert_eq!(memory.load_u64(frame, 8), id, "{frame:?} has two owners");
                        memory.free(frame);
                    }
                }
            });
        }
    });
    assert_eq!(memory.usage().used, 0);
}

#[test]
fn a_frame_freed_by_another_thread_is_found() {
    let memory = memory(1);
    let frame = memory.take_frame().unwrap();
    assert_eq!(memory.take_frame(), None);
    std::thread::scope(|scope| scope.spawn(|| memory.free(frame)).join().unwrap());
    assert_eq!(memory.take_frame(), Some(frame));
}

#[test]
fn failures_come_where_they_are_asked_for() {
    let memory = memory(8);
    let outcome = |n| -> Vec<bool> {
        let frames: Vec<_> = (0..n).map(|_| memory.take_frame()).collect();
        frames.iter().flatten().for_each(|&frame| memory.free(frame));
        frames.iter().map(Option::is_some).collect()
    };
    memory.fail_once(2);
    assert_eq!(outcome(4), [true, false, true, true]);
    memory.fail_from(Some(3));
    assert_eq!(outcome(5), [true, true, false, false, false]);
    memory.fail_from(None);
    assert_eq!(outcome(2), [true, true]);
    memory.fail_once(1);
    assert_eq!(outcome(2), [false, true]);
    assert_eq!(memory.usage().used, 0);
}

#[test]
fn a_thread_gets_on_when_memory_is_scarce() {
    let memory = memory(100);
    memory.make_scarce(3, 2);
    let take = |n: u32| (0..n).map(|_| memory.take_frame()).collect::<Vec<_>>();
    let succeed = |frames: &[Option<Frame>]| frames.iter().map(Option::is_some).collect::<Vec<_>>();
    let frames = take(8);
    assert_eq!(succeed(&frames), [true, true, true, false, true, true, false, true]);
    for frame in frames.into_iter().flatten() {
        memory.free(frame);
    }
    // Below the limit again, and with an injected failure that ends.
    memory.fail_once(1);
    assert_eq!(succeed(&take(6)), [false, true, true, true, true, false]);
}

#[test]
fn one_failure_hits_one_thread() {
    let memory = memory(1000);
    memory.fail_once(77);
    let failed: usize = std::thread::scope(|scope| {
        let count = || (0..100).filter(|_| memory.take_frame().is_none()).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(failed, 1);
}

#[test]
fn zero_and_copy() {
    let memory = memory(4);
    let (a, b) = (memory.take_frame().unwrap(), memory.take_frame().unwrap());
    memory.store_u64(a, 4088, 7);
    memory.copy(a, b);
    assert_eq!(memory.load_u64(b, 4088), 7);
    memory.zero(a);
    let mut bytes = [1; PAGE];
    assert_eq!(memory.read(a, 0, &mut bytes), PAGE);
    assert_eq!(bytes, [0; PAGE]);
    assert!(memory.memory(b).addr().get().is_multiple_of(PAGE));
}

#[test]
#[should_panic(expected = "while it is still referenced")]
#[cfg(debug_assertions)]
fn a_frame_in_use_is_not_freed() {
    let engine = Engine::new(Soft::new(1).unwrap(), Limits::default()).unwrap();
    // It panics before anything changes, so the engine keeps its page of zeros.
    Frames(engine.host().frames()).free(engine.zero_frame());
}

#[test]
#[cfg(debug_assertions)]
fn old_bytes_are_spoiled() {
    let memory = memory(1);
    let frame = memory.take_frame().unwrap();
    assert_eq!(memory.load_u64(frame, 0).to_ne_bytes(), [POISON; 8]);
    memory.store_u64(frame, 0, 1);
    memory.free(frame);
    assert_eq!(memory.load_u64(frame, 0).to_ne_bytes(), [POISON; 8]);
}
