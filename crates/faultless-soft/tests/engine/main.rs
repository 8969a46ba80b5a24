//! The engine on the software machine. The tests are one program, since each program compiles the engine anew.
#![cfg(not(loom))]

mod background;
mod background_end;
mod devices;
mod dirty;
mod eviction;
mod file_refaults;
mod first_touch;
mod hammer;
mod homes;
mod hopeless_groups;
mod isolation;
mod limit;
mod limit_files;
mod liveness;
mod lost_homes;
mod mapped;
mod move_pages;
mod processors;
mod progress;
mod put_back;
mod reap;
mod reclaim_files;
mod reclaim_order;
mod reclaim_queues;
mod remap_limits;
mod retry_pinned;
mod scarce;
mod shared_memory_advice;
mod shared_memory_cuts;
mod shared_memory_in_swap;
mod shared_memory_pressure;
mod stuck;
mod swap;
mod swap_ahead;
mod swap_devices;
mod swap_shared_tables;
mod swapoff;
mod unshare;
mod values;
mod victim;
mod victim_files;
mod waits;
#[path = "../zeros/mod.rs"]
mod zeros;

/// Waits for other threads to make `is_so` true. Gives up when that takes far longer than it can.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < std::time::Duration::from_secs(60), "never: {what}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
