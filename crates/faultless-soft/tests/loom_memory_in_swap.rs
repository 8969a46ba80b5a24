//! Models of pages of files without a store in swap (docs/pressure.md). As `loom_swap.rs`.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p faultless-soft --profile checked --test loom_memory_in_swap`
#![cfg(loom)]

#[expect(dead_code, reason = "other models use it")]
mod models;
#[expect(dead_code, reason = "other models use it")]
#[expect(dead_code, reason = "other models use it")]
mod swapping;

use faultless::address::PAGE_SIZE;
use faultless::stats::Counter;
use faultless::swap::SwapDevice;
use faultless::sync::Shared;
use faultless::{Engine, File, MapRequest, Placement};
use faultless_soft::{Cpu, Soft};
use models::{READ_WRITE, Space, at, beside, model, spawn};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use swapping::Processors::{self, Caching, Walking};
use swapping::{COPIES, Device, audit, engine, on_processor, reclaim, reclaiming, word, words};

type Machine<'a> = (&'a Arc<Engine<Soft>>, &'a Shared<File<Soft>>, &'a Space, &'a Arc<Device>);

/// Runs a model in a space that maps a file of one page, without a store, at page 0. Its first word is 1. Reclaim takes it at its next
/// look. Asserts that all is free at the end of each run, and that reclaim takes the page in some runs.
fn with_a_page(
    bound: usize,
    processors: Processors,
    device: fn() -> Arc<Device>,
    body: impl Fn(Machine<'_>) + Sync + Send + 'static,
) {
    let taken = Arc::new(AtomicU64::new(0));
    let count = taken.clone();
    model(bound, move || {
        let device = device();
        let engine = engine(processors, &device, COPIES);
        let file = File::in_memory(&engine, PAGE_SIZE).expect("memory for a file");
        let space = Space::new(&engine).unwrap();
        let request = MapRequest::shared_file(&file, 0, PAGE_SIZE, READ_WRITE);
        space.map(request.at(Placement::Fixed(at(0)))).expect("a mapping");
        space.store_u64(at(0), 1).unwrap();
        // Processor 2 has a translation of the page.
        on_processor(2, || assert_eq!(space.load_u64(at(0)), Ok(1)));
        // The first look clears the accessed bit.
        reclaim(&engine);
        assert_eq!(engine.statistics().get(Counter::Reclaimed), 0, "a page in use was taken");
        body((&engine, &file, &space, &device));
        if engine.statistics().get(Counter::Reclaimed) != 0 {
            count.fetch_add(1, Ordering::Relaxed);
        }
        device.end_writes();
        audit(&space);
        drop(space);
        // A model does not drop the fields of an object that it frees.
        file.set_length(0).unwrap();
        engine.flush();
        assert_eq!(engine.frame_usage().used, 1, "invariant 11: frames are left");
        assert_eq!(engine.swap_usage().slots, 0, "invariant 11: slots are left");
    });
    let taken = taken.load(Ordering::Relaxed);
    println!("reclaim takes the page in {taken} of them");
    assert_ne!(taken, 0, "reclaim takes the page in no run, so the model checks nothing");
}

fn read(file: &Shared<File<Soft>>) -> u64 {
    let mut bytes = [0; 8];
    assert_eq!(file.handle().read_at(0, &mut bytes), Ok(8));
    u64::from_ne_bytes(bytes)
}

/// A processor stores by an old translation, or by a new one, while reclaim moves the page to a slot.
#[test]
fn a_store_against_reclaim_of_shared_memory() {
    with_a_page(2, Caching, Device::new, |(engine, file, space, _)| {
        let reclaimer = reclaiming(engine, 1);
        space.store_u64(word(1), 2).unwrap();
        reclaimer.join().unwrap();
        assert_eq!(words(space), (1, 2), "a store was lost");
        assert_eq!(read(file), 1);
    });
}

/// The page is in its slot, or on its way there. Two accesses bring it back: one read at most.
#[test]
fn two_accesses_bring_a_page_of_shared_memory_back() {
    with_a_page(1, Walking, Device::new, |(engine, file, space, device)| {
        reclaim(engine);
        let load = beside(space, |space| assert_eq!(space.load_u64(at(0)), Ok(1)));
        assert_eq!(read(file), 1);
        load.join().unwrap();
        assert_eq!(device.reads.load(Ordering::Relaxed), 1, "read twice");
        assert_eq!(engine.swap_usage().slots, 0, "a page in memory has a slot");
    });
}

/// A store while the page is written to the device: it waits, and is not lost.
#[test]
fn a_store_against_the_write_of_shared_memory() {
    with_a_page(1, Walking, Device::gated, |(engine, _, space, device)| {
        reclaim(engine);
        let device = device.clone();
        let writer = spawn(1, move || _ = device.end_writes());
        space.store_u64(word(1), 2).unwrap();
        writer.join().unwrap();
        assert_eq!(words(space), (1, 2), "a store was lost");
    });
}

/// A handle writes while reclaim moves the page to a slot.
#[test]
fn a_write_by_handle_against_reclaim_of_shared_memory() {
    with_a_page(2, Walking, Device::new, |(engine, file, space, _)| {
        let reclaimer = reclaiming(engine, 1);
        assert_eq!(file.handle().write_at(8, &2_u64.to_ne_bytes()), Ok(8));
        reclaimer.join().unwrap();
        reclaim(engine);
        assert_eq!(words(space), (1, 2), "a store was lost");
    });
}

/// The file is cut while reclaim moves the page to a slot. When it grows again, the page is zeros.
#[test]
fn a_cut_against_reclaim_of_shared_memory() {
    with_a_page(2, Caching, Device::new, |(engine, file, space, _)| {
        let reclaimer = reclaiming(engine, 1);
        file.set_length(0).unwrap();
        assert!(
            on_processor(2, || space.try_load_u64(at(0))).is_err(),
            "invariant 3: a page that was cut off"
        );
        reclaimer.join().unwrap();
        file.set_length(PAGE_SIZE).unwrap();
        assert_eq!((space.load_u64(at(0)), read(file)), (Ok(0), 0), "the bytes of a page that was cut off");
    });
}

/// The file is cut while an access brings the page back.
#[test]
fn a_cut_against_an_access_to_shared_memory() {
    with_a_page(2, Walking, Device::new, |(engine, file, space, _)| {
        reclaim(engine);
        let load = beside(space, |space| assert!(matches!(space.load_u64(at(0)), Ok(1) | Err(_))));
        file.set_length(0).unwrap();
        load.join().unwrap();
        assert_eq!(engine.swap_usage().slots, 0, "a slot of a page that was cut off");
        file.set_length(PAGE_SIZE).unwrap();
        assert_eq!(space.load_u64(at(0)), Ok(0), "the bytes of a page that was cut off");
    });
}

/// The page comes back for an access while reclaim takes it again.
#[test]
fn an_access_against_reclaim_of_a_page_that_comes_back() {
    with_a_page(2, Walking, Device::new, |(engine, file, space, _)| {
        reclaim(engine);
        let reclaimer = reclaiming(engine, 1);
        assert_eq!(space.load_u64(at(0)), Ok(1), "a page was lost");
        reclaimer.join().unwrap();
        space.store_u64(word(1), 2).unwrap();
        reclaim(engine);
        assert_eq!((words(space), read(file)), ((1, 2), 1), "a store was lost");
    });
}

/// A hole is punched while reclaim moves the page to a slot. When that has returned, no processor reads the old bytes.
#[test]
fn a_hole_against_reclaim_of_shared_memory() {
    with_a_page(1, Caching, Device::new, |(engine, file, space, _)| {
        let reclaimer = reclaiming(engine, 1);
        file.punch_hole(0, PAGE_SIZE).unwrap();
        assert_eq!(on_processor(2, || space.load_u64(at(0))), Ok(0), "invariant 3: the old bytes");
        space.store_u64(word(1), 2).unwrap();
        reclaimer.join().unwrap();
        assert_eq!((words(space), read(file)), ((0, 2), 0), "a store was lost");
    });
}

/// munmap against reclaim: when it has returned, no processor stores into the page.
#[test]
fn unmap_against_reclaim_of_shared_memory() {
    with_a_page(2, Caching, Device::new, |(engine, file, space, _)| {
        let reclaimer = reclaiming(engine, 1);
        space.unmap(at(0), PAGE_SIZE).unwrap();
        let stored = on_processor(2, || space.try_load_u64(at(0)));
        assert!(stored.is_err(), "invariant 3: an access after munmap");
        reclaimer.join().unwrap();
        assert_eq!(read(file), 1, "a page was lost");
    });
}

/// The device is removed while an access brings the page back.
#[test]
fn swapoff_against_an_access_to_shared_memory() {
    with_a_page(1, Walking, Device::new, |(engine, file, space, device)| {
        reclaim(engine);
        let load = beside(space, |space| assert_eq!(space.load_u64(at(0)), Ok(1)));
        let device: Arc<dyn SwapDevice> = Arc::<Device>::clone(device);
        let removed = engine.remove_swap(&device).unwrap();
        assert!(removed.moved <= 1 && removed.lost == 0, "{removed:?}");
        load.join().unwrap();
        space.store_u64(word(1), 2).unwrap();
        assert_eq!((words(space), read(file)), ((1, 2), 1), "a store was lost");
    });
}

/// The file is cut while the write of its page begins, and an access waits for the end of that write.
#[test]
fn a_cut_beside_an_access_against_the_write_of_shared_memory() {
    with_a_page(1, Walking, Device::new, |(engine, file, space, _)| {
        let load = beside(space, |space| assert!(matches!(space.load_u64(at(0)), Ok(1) | Err(_))));
        let cut = file.clone();
        let cut = spawn(3, move || cut.set_length(0).unwrap());
        reclaim(engine);
        load.join().unwrap();
        cut.join().unwrap();
    });
}
