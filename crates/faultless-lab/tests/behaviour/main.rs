//! Behaviour of an address space under every locking design. The source is the same, with one instance for each design.
//! Each test runs once with enough memory, and once for each kind of shortage (`stand/pressure.rs`).

#[macro_use]
#[path = "../every_design/mod.rs"]
mod every_design;
mod advice;
mod border;
mod calls;
mod closing;
mod faults;
mod files;
mod foreign;
mod growth;
mod homes;
mod invariants;
mod locks;
mod merging;
mod moves;
mod pins;
mod refresh;
mod remote;
mod reverse_map;
mod shared;
mod stand;
mod tables;
mod threads;
mod unsharing;

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::LockingDesign;
use faultless::protection::Protection;
use faultless::store::{FileStore, GatedStore};
use faultless::sync::Shared;
use faultless::{Engine, FaultError, File, Limits, MapRequest, MemoryLimit, MemoryUsage, Placement};
use faultless_soft::AccessError;
use stand::{Ran, Space, Stand, Stopped, pressure, report};
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Makes `#[test]`s of each function for each design, on the software machine: one with enough memory, and one for each shortage.
macro_rules! under_every_design {
    ($($name:ident)*) => { every_design! { [$crate::tests_and_under_pressure] ($($name)*) } };
}
macro_rules! tests_and_under_pressure {
    ($names:tt; $($module:ident: $design:ty),*) => {
        $(mod $module {
            $crate::tests_of!(::faultless_soft::Soft, $design, $names);
            $crate::under_pressure!(few_frames Frames, $design, $names);
            $crate::under_pressure!(at_max Max, $design, $names);
            $crate::under_pressure!(over_high High, $design, $names);
        })*
    };
}
macro_rules! under_pressure {
    ($module:ident $shortage:ident, $design:ty, ($($name:ident)*)) => {
        mod $module {
            use $crate::stand::pressure::{Shortage, run};
            use ::faultless_soft::Soft;
            $(#[test] fn $name() {
                let test = super::super::$name::<Soft, $design>;
                run::<Soft>(Shortage::$shortage, (module_path!(), stringify!($name)), test);
            })*
        }
    };
}
/// Makes a `#[test]` of each function on real memory too. The designs are those that hold nothing through I/O, because
/// one handler serves many faults.
macro_rules! on_real_memory {
    ($($name:ident)*) => {
        #[cfg(target_os = "linux")]
        mod real_memory {
            use super::*;
            $crate::tests_on! { ($crate::stand::Linux; ($($name)*));
                faultless_design: ::faultless::design::Faultless,
                faultless_retry: ::faultless_lab::designs::FaultlessRetry
            }
        }
    };
}
macro_rules! tests_on {
    (($stand:ty; $names:tt); $($module:ident: $design:ty),*) => {
        $(mod $module { $crate::tests_of!($stand, $design, $names); })*
    };
}
macro_rules! tests_of {
    ($stand:ty, $design:ty, ($($name:ident)*)) => {
        $(#[test] fn $name() { $crate::report::<$stand>(super::$name::<$stand, $design>()); })*
    };
}
pub(crate) use on_real_memory;
pub(crate) use tests_and_under_pressure;
pub(crate) use tests_of;
pub(crate) use tests_on;
pub(crate) use under_every_design;
pub(crate) use under_pressure;

pub(crate) const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);

/// Machine, with a check at its end that nothing is left in it (invariant 11).
pub(crate) struct Machine<S: Stand> {
    pub engine: Arc<Engine<S>>,
    /// The group of its spaces. `None`: they are in no group.
    limit: Option<MemoryLimit<S>>,
}

impl<S: Stand> Machine<S> {
    pub fn new() -> Result<Self, S::Refused> {
        Self::with(4096, Limits::default())
    }

    pub fn with(frames: u64, limits: Limits) -> Result<Self, S::Refused> {
        let engine = S::engine(frames, limits)?;
        Ok(Self { limit: pressure::limit(&engine), engine })
    }

    pub fn space<D: LockingDesign>(&self) -> Space<S, D> {
        match &self.limit {
            Some(limit) => Space::new_in(&self.engine, limit).expect("a space in the group"),
            None => Space::new(&self.engine).expect("a space"),
        }
    }

    /// Makes a file of `pages` pages, page `n` full of byte `n + 1`. Returns it with the gate that its reads pass.
    pub fn gated_file(&self, pages: u64) -> (Shared<File<S>>, Arc<GatedStore<FileStore>>) {
        let gate = Arc::new(GatedStore::new(numbered(pages)));
        (File::open(&self.engine, gate.clone()).expect("a length"), gate)
    }

    /// Makes the same file without a gate.
    pub fn file(&self, pages: u64) -> Shared<File<S>> {
        File::open(&self.engine, Arc::new(numbered(pages))).expect("a length")
    }

    /// Returns the number of frames in use, except those that are always in use.
    pub fn frames(&self) -> u64 {
        let used = self.engine.frame_usage().used;
        used.checked_sub(S::IDLE_FRAMES).expect("invariant 11: a frame was given back twice")
    }

    /// Checks that no frame and no slot is in use, and that the group pays for nothing. The caller has dropped everything else. A test
    /// calls it last.
    pub fn end(self) -> Ran<S> {
        self.engine.flush();
        // A running read holds its frame until it completes.
        wait_until("invariant 11: frames are left", || self.frames() == 0);
        wait_until("invariant 11: slots are left", || self.engine.swap_usage().slots == 0);
        if let Some(limit) = &self.limit {
            let charged = || {
                let MemoryUsage { resident, anonymous, file, dirty, writeback, swap, .. } = limit.usage();
                [resident, anonymous, file, dirty, writeback, swap]
            };
            wait_until("invariant 11: a group pays for pages that are gone", || charged() == [0; 6]);
        }
        Ok(())
    }
}

/// Waits until other threads have made `is_so` true. Panics after 30 s.
pub(crate) fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

fn numbered(pages: u64) -> FileStore {
    let mut file = tempfile::tempfile().expect("a temporary file");
    for page in 0..pages {
        file.write_all(&[page as u8 + 1; PAGE_SIZE as usize]).expect("a page written");
    }
    FileStore::from_file(file).expect("a store")
}

pub(crate) fn at(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

pub(crate) fn anonymous<S: Stand>(page: u64, pages: u64) -> MapRequest<S> {
    MapRequest::anonymous(pages * PAGE_SIZE).at(Placement::Fixed(at(page)))
}

pub(crate) fn of_file<S: Stand>(
    file: &Shared<File<S>>,
    page: u64,
    pages: u64,
    rights: Protection,
) -> MapRequest<S> {
    MapRequest::file(file, 0, pages * PAGE_SIZE, rights).at(Placement::Fixed(at(page)))
}

/// Returns a word of eight bytes `byte`.
pub(crate) fn word(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

pub(crate) fn fault_of<T: std::fmt::Debug>(result: Result<T, AccessError>) -> FaultError {
    match result {
        Err(AccessError::Fault(error)) => error,
        other => panic!("a fault was expected, not {other:?}"),
    }
}
