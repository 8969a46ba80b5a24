//! Exact count of mmap_lock acquisitions, by the kernel's tracepoint.

use super::sys;
use perf_event::events::Tracepoint;
use perf_event::{Builder, Counter};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use std::cell::OnceCell;
use std::ffi::CStr;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

const EVENT: &str = "events/mmap_lock/mmap_lock_acquire_returned/id";
/// Paths at which tracefs is usually mounted.
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Returns the number of the tracepoint that fires after each attempt to take mmap_lock.
///
/// # Errors
/// The reason why the tracepoint is not available.
pub fn find() -> Result<u64, String> {
    let mut denied = None;
    for place in PLACES {
        match std::fs::read_to_string(format!("{place}/{EVENT}")) {
            Ok(id) => return parse(&id),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => denied = Some((place, error)),
            Err(_) => {}
        }
    }
    if let Some((place, error)) = denied {
        return Err(format!("cannot read {place}: {error}; needs root"));
    }
    parse(&from_own_tracefs().map_err(|error| format!("no tracefs at {}: {error}", PLACES[0]))?)
}

fn parse(id: &str) -> Result<u64, String> {
    id.trim().parse().map_err(|_| "the tracepoint of mmap_lock has no number".into())
}

/// Reads the number from a tracefs that is mounted nowhere. That tracefs ends when this returns.
fn from_own_tracefs() -> io::Result<String> {
    let context = rustix::mount::fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let mount =
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::openat(mount.as_fd(), EVENT, flags, rustix::fs::Mode::empty())?;
    let mut id = String::new();
    std::fs::File::from(file).read_to_string(&mut id)?;
    Ok(id)
}

/// Kind of acquisitions that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// For reading.
    Read,
    /// For writing.
    Write,
}

impl Mode {
    fn filter(self) -> &'static CStr {
        match self {
            Self::Read => c"write==0 && success==1",
            Self::Write => c"write==1 && success==1",
        }
    }
}

fn open(id: u64, mode: Mode, with_new_threads: bool) -> io::Result<Counter> {
    let mut builder = Builder::new(Tracepoint::with_id(id));
    builder.observe_self().any_cpu().include_kernel().include_hv();
    if with_new_threads {
        // Children of fork are not counted.
        builder.inherit(true).inherit_thread(true);
    }
    let mut counter = builder.build()?;
    sys::set_filter(&counter, mode.filter())?;
    counter.enable()?;
    Ok(counter)
}

/// Counter of the calling thread and of all threads that it and they start from now on.
pub struct Process {
    /// A lock, because reading needs `&mut`.
    counters: Mutex<[Counter; 2]>,
    id: u64,
}

impl Process {
    /// Starts to count.
    ///
    /// # Errors
    /// The reason why the kernel refuses.
    pub fn new(id: u64) -> Result<Self, String> {
        let open = |mode| open(id, mode, true).map_err(|error| format!("perf_event_open: {error}"));
        Ok(Self { counters: Mutex::new([open(Mode::Read)?, open(Mode::Write)?]), id })
    }

    /// Returns how often mmap_lock was taken for reading, and for writing.
    ///
    /// # Errors
    /// The error of the kernel.
    pub fn read(&self) -> io::Result<[u64; 2]> {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let [reads, writes] = &mut *counters;
        Ok([reads.read()?, writes.read()?])
    }

    /// Returns how often the calling thread has taken mmap_lock for reading since its first call. `None` if it may not
    /// count.
    pub fn of_this_thread(&self) -> Option<u64> {
        thread_local! {
            /// Opened at the thread's first call, closed at its end.
            static COUNTER: OnceCell<Option<Mutex<Counter>>> = const { OnceCell::new() };
        }
        COUNTER.with(|counter| {
            let counter = counter.get_or_init(|| open(self.id, Mode::Read, false).ok().map(Mutex::new));
            counter.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner).read().ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_with_its_newline() {
        assert_eq!(parse("675\n"), Ok(675));
        assert!(parse("").is_err());
    }

    #[test]
    fn mapping_takes_the_lock_for_writing() {
        let counted = find().and_then(Process::new);
        let process = match counted {
            Ok(process) => process,
            Err(reason) => {
                return crate::skipped::skipped(format!("mmap_lock cannot be counted here: {reason}"));
            }
        };
        let before = process.read().unwrap();
        // The new thread starts after the counter.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(process.of_this_thread().is_some());
                // Larger than the blocks that malloc keeps, so that each one is mapped and unmapped.
                for _ in 0..10 {
                    drop(std::hint::black_box(vec![1_u8; 64 << 20]));
                }
            });
        });
        let after = process.read().unwrap();
        assert!(after[1] >= before[1] + 20, "{before:?} {after:?}");
    }
}
