//! The longest wait of each kind, from the machine's trace.

use faultless::stats::Counter;
use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The longest wait that is not the device's. ThreadSanitizer makes a thread about ten times as slow.
pub const LONGEST: Duration = Duration::from_secs(if cfg!(tsan) { 10 } else { 1 });

/// The waits that end with a device's transfer.
const OF_DEVICES: [Counter; 2] = [Counter::IoWait, Counter::WritebackWait];

/// The longest wait so far, in nanoseconds without the time in the run queue, and the number of its counter.
static WAITS: Mutex<[u64; Counter::ALL.len()]> = Mutex::new([0; Counter::ALL.len()]);

thread_local! {
    /// The time that this thread had spent in the run queue when its operation began.
    static QUEUED: Cell<u64> = const { Cell::new(0) };
}

fn waits() -> MutexGuard<'static, [u64; Counter::ALL.len()]> {
    WAITS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the nanoseconds for which the calling thread was ready to run and had no processor.
fn queued() -> u64 {
    let line = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// Notes that the calling thread begins some operations.
pub fn begin() {
    QUEUED.set(queued());
}

/// Notes a wait. Short ones are of no interest, and cost nothing.
pub fn waited(counter: Counter, from: u64, to: u64) {
    let time = to.saturating_sub(from);
    if time < 50_000_000 {
        return;
    }
    // The thread may have been in the queue before the wait began. Then the wait seems shorter than it was, by as much.
    let time = time.saturating_sub(queued() - QUEUED.get());
    let longest = &mut waits()[counter as usize];
    *longest = time.max(*longest);
}

/// Returns the longest wait that is not the device's.
pub fn longest() -> Option<(Counter, Duration)> {
    let waits = waits();
    let all = Counter::ALL.iter().filter(|counter| !OF_DEVICES.contains(counter));
    let longest = all.max_by_key(|counter| waits[**counter as usize])?;
    Some((*longest, Duration::from_nanos(waits[*longest as usize])))
}

/// Prints the longest wait of each kind that has a long one.
pub fn print() {
    for (counter, time) in Counter::ALL.iter().zip(*waits()) {
        if time != 0 {
            println!("longest wait, {}: {:.3} s", counter.name(), time as f64 / 1e9);
        }
    }
}
