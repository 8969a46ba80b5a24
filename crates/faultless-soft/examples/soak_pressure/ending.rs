//! The end of a run: nothing is left, and the written file has what was written.

use crate::machine::{Machine, WRITTEN, World};
use crate::model::compare;
use crate::troubled::Troubled;
use crate::{Failure, waits};
use faultless::Engine;
use faultless::address::PAGE_SIZE;
use faultless_soft::Soft;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Checks that nothing is left, and that no wait was too long. `written` has the stamps that the pages of the written file may have,
/// by thread.
pub fn end(world: World, troubled: Troubled, written: &[Vec<Vec<u64>>]) -> Result<(), Failure> {
    let World { machines, seats, counts, .. } = world;
    for seat in &seats {
        seat.process()?.space.audit()?;
    }
    // Threads of the other engine have not written their pages.
    let zeros = vec![vec![0]; WRITTEN as usize];
    for (number, machine) in machines.iter().enumerate() {
        machine.written.sync()?;
        for (thread, stamps) in written.iter().enumerate() {
            let is_here = thread / crate::machine::TOGETHER % 2 == number;
            check_disk(machine, thread, if is_here { stamps } else { &zeros })?;
        }
    }
    drop(seats);
    for machine in machines {
        let Machine { engine, families, file, written, .. } = machine;
        drop((file, written));
        settle(&engine);
        for group in families.iter().flat_map(|family| family.groups()) {
            let usage = group.usage();
            if usage.resident + usage.swap != 0 {
                return Err(format!("charges are left: {usage:?}").into());
            }
        }
        assert_empty(&engine)?;
    }
    let engine = troubled.end(&counts)?;
    settle(&engine);
    assert_empty(&engine)?;
    counts.print();
    waits::print();
    match waits::longest() {
        _ if crate::model::was_wrong() => Err("a byte was wrong".into()),
        Some((counter, time)) if time > waits::LONGEST => {
            Err(format!("{} was {time:?} long", counter.name()).into())
        }
        _ => {
            println!("all bytes were right, and nothing is left");
            Ok(())
        }
    }
}

/// Checks the bytes that a thread has written to the file, past the engine.
fn check_disk(machine: &Machine, thread: usize, stamps: &[Vec<u64>]) -> Result<(), Failure> {
    for (page, stamps) in (thread as u64 * WRITTEN..).zip(stamps) {
        let mut bytes = vec![0xaa; PAGE_SIZE as usize];
        machine.disk.read_exact_at(&mut bytes, page * PAGE_SIZE)?;
        compare(&format!("page {page} of the written file, on disk,"), &bytes, stamps)?;
    }
    Ok(())
}

/// Waits until all frames but the page of zeros are free. Writes may be under way.
fn settle(engine: &Engine<Soft>) {
    for _ in 0..1000 {
        engine.flush();
        if engine.frame_usage().used == 1 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn assert_empty(engine: &Engine<Soft>) -> Result<(), Failure> {
    let (frames, swap) = (engine.frame_usage().used - 1, engine.swap_usage());
    let (slots, places) = (swap.slots, swap.devices.iter().map(|device| device.pages).sum::<u64>());
    if frames + slots + places + engine.cached_pages() != 0 {
        return Err(format!("left: {frames} frames, {slots} slots, {places} places").into());
    }
    Ok(())
}
