//! The resources of this process, as /proc reports them.

use std::fs;
use std::time::{Duration, Instant};

/// The bytes that may stay allocated: libraries and the runtime allocate some once.
const ALLOCATED_BYTES: u64 = 256 << 10;
/// The bytes that the allocator may keep resident, with the stacks of threads that have ended.
const KEPT_BYTES: u64 = 32 << 20;

/// Returns the number of mappings that the C library may keep: two for each of its arenas (eight for each processor),
/// and two for each stack of 2 MiB, up to 40 MiB. Windows are counted apart, and none may be left.
fn kept_maps() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from) * 16 + 2 * 20 + 8
}

/// Returns unused memory of the allocator to the kernel, if the C library can do that.
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: changes no memory that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn allocated() -> u64 {
    #[cfg(target_env = "gnu")]
    // SAFETY: only reads.
    let bytes = unsafe { libc::mallinfo2() }.uordblks as u64;
    #[cfg(not(target_env = "gnu"))]
    let bytes = 0;
    bytes
}

#[derive(Clone, Copy, Debug)]
pub struct Process {
    /// Resident bytes.
    pub resident: u64,
    /// Allocated bytes; zero if the C library does not report them.
    pub allocated: u64,
    /// The number of open file descriptors.
    pub files: usize,
    /// The number of mappings.
    pub maps: usize,
    /// The number of those that are windows: nothing else is kept from children of fork(2). Counted at the end only.
    pub windows: usize,
}

/// Returns the number of mappings that have the flag "dc".
fn windows() -> usize {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let flags = maps.lines().filter_map(|line| line.strip_prefix("VmFlags:"));
    flags.filter(|flags| flags.split_whitespace().any(|flag| flag == "dc")).count()
}

impl Process {
    pub fn now() -> Self {
        let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
        // Without the descriptor that reads the directory.
        let files = fs::read_dir("/proc/self/fd").map_or(0, |files| files.count().saturating_sub(1));
        let maps = fs::read("/proc/self/maps").unwrap_or_default();
        let maps = maps.iter().filter(|byte| **byte == b'\n').count();
        Self { allocated: allocated(), resident: pages * super::PAGE as u64, files, maps, windows: 0 }
    }

    /// Returns the resources once threads that are ending have ended; waits at most 5 s.
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

    /// Returns a description of the first resource of which `after` has more than it may.
    pub fn leak(&self, after: &Self) -> Option<String> {
        if after.files > self.files {
            Some(format!("{} open files before, {} after", self.files, after.files))
        } else if after.windows > 0 {
            Some(format!("{} windows are left after all regions have ended", after.windows))
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

    /// Raises each field to the larger of both values.
    pub fn raise(&mut self, other: &Self) {
        self.resident = self.resident.max(other.resident);
        self.files = self.files.max(other.files);
        self.maps = self.maps.max(other.maps);
    }
}
