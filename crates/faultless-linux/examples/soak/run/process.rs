//! What this process has, as /proc tells it.

use std::fs;
use std::time::{Duration, Instant};

/// What may stay allocated: what libraries and the runtime make once.
const ALLOCATED_BYTES: u64 = 256 << 10;
/// What the allocator may keep in memory, with the stacks of threads that are gone.
const KEPT_BYTES: u64 = 32 << 20;

/// Mappings that the C library keeps: two for each of its arenas, of which there are eight a processor, and two for each
/// stack of 2 MiB, up to 40 MiB. Windows are counted apart, to the last.
fn kept_maps() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from) * 16 + 2 * 20 + 8
}

/// What the allocator has and nobody uses, as far as the C library can do that.
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: changes nothing that anybody has.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn allocated() -> u64 {
    #[cfg(target_env = "gnu")]
    // SAFETY: only looks.
    let bytes = unsafe { libc::mallinfo2() }.uordblks as u64;
    #[cfg(not(target_env = "gnu"))]
    let bytes = 0;
    bytes
}

#[derive(Clone, Copy, Debug)]
pub struct Process {
    /// Bytes in memory.
    pub resident: u64,
    /// Bytes allocated; zero where the C library does not say.
    pub allocated: u64,
    /// Open file descriptors.
    pub files: usize,
    /// Mappings.
    pub maps: usize,
    /// Of them, those that are windows: nothing else is kept from children of fork(2). Counted at the end only.
    pub windows: usize,
}

/// Mappings that have the flag "dc".
fn windows() -> usize {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let flags = maps.lines().filter_map(|line| line.strip_prefix("VmFlags:"));
    flags.filter(|flags| flags.split_whitespace().any(|flag| flag == "dc")).count()
}

impl Process {
    pub fn now() -> Self {
        let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
        // Less the one that reads the folder.
        let files = fs::read_dir("/proc/self/fd").map_or(0, |files| files.count().saturating_sub(1));
        let maps = fs::read("/proc/self/maps").unwrap_or_default();
        let maps = maps.iter().filter(|byte| **byte == b'\n').count();
        Self { allocated: allocated(), resident: pages * super::PAGE as u64, files, maps, windows: 0 }
    }

    /// As it is when threads that end meanwhile are gone.
    pub fn settled(before: &Self) -> Self {
        give_back();
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let now = Self { windows: windows(), ..Self::now() };
            if before.leak(&now).is_none() || Instant::now() > deadline {
                return now;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What `after` has more than it may.
    pub fn leak(&self, after: &Self) -> Option<String> {
        if after.files > self.files {
            Some(format!("{} open files before, {} after", self.files, after.files))
        } else if after.windows > 0 {
            Some(format!("{} windows, though all regions are gone", after.windows))
        } else if after.maps > self.maps + kept_maps() {
            Some(format!("{} mappings before, {} after", self.maps, after.maps))
        } else if after.allocated > self.allocated + ALLOCATED_BYTES {
            Some(format!("{} bytes allocated before, {} after", self.allocated, after.allocated))
        } else if after.resident > self.resident + KEPT_BYTES {
            let kib = (after.resident - self.resident) >> 10;
            Some(format!("{kib} KiB more in memory than before"))
        } else {
            None
        }
    }

    /// The larger of both, each.
    pub fn raise(&mut self, other: &Self) {
        self.resident = self.resident.max(other.resident);
        self.files = self.files.max(other.files);
        self.maps = self.maps.max(other.maps);
    }
}
