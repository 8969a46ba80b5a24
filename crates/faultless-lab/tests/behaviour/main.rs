//! What an address space does, under every locking design: the same source, one instance a design.

mod calls;
mod faults;
mod invariants;
mod threads;

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::LockingDesign;
use faultless::protection::Protection;
use faultless::store::{FileStore, GatedStore};
use faultless::{AddressSpace, Engine, FaultError, File, Limits, MapRequest, Placement};
use faultless_soft::{AccessError, Soft};
use std::io::Write;
use std::sync::Arc;

/// Makes a `#[test]` of each function for each design.
macro_rules! under_every_design {
    (@ $($module:ident: $design:ty),*; $names:tt) => {
        $(mod $module { $crate::tests_of!($design, $names); })*
    };
    ($($name:ident)*) => {
        $crate::under_every_design!(@
            faultless_design: ::faultless::design::Faultless,
            faultless_retry: ::faultless_lab::designs::FaultlessRetry,
            mmap_lock: ::faultless_lab::designs::MmapLock,
            mmap_lock_hold: ::faultless_lab::designs::MmapLockHold,
            vma_lock: ::faultless_lab::designs::VmaLock,
            vma_lock_hold: ::faultless_lab::designs::VmaLockHold,
            vma_lock_hold_cow_fork: ::faultless_lab::designs::VmaLockHoldCowFork,
            vma_lock_resume: ::faultless_lab::designs::VmaLockResume,
            vma_lock_retry: ::faultless_lab::designs::VmaLockRetry,
            vma_lock_retry_uptodate: ::faultless_lab::designs::VmaLockRetryUptodate;
            ($($name)*)
        );
    };
}
macro_rules! tests_of {
    ($design:ty, ($($name:ident)*)) => {
        $(#[test] fn $name() { super::$name::<$design>(); })*
    };
}
pub(crate) use tests_of;
pub(crate) use under_every_design;

pub(crate) const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);

/// A machine, and the check that nothing is left of what was in it (invariant 11).
pub(crate) struct Machine {
    pub engine: Arc<Engine<Soft>>,
}

impl Machine {
    pub fn new() -> Self {
        Self::with(4096, Limits::default())
    }

    pub fn with(frames: u64, limits: Limits) -> Self {
        let soft = Soft::new(frames).expect("frames");
        Self { engine: Engine::new(soft, limits).expect("an engine") }
    }

    pub fn space<D: LockingDesign>(&self) -> AddressSpace<Soft, D> {
        AddressSpace::new(&self.engine).expect("a space")
    }

    /// A file of `pages` pages, page `n` full of byte `n + 1`, and the gate that its reads pass.
    pub fn gated_file(&self, pages: u64) -> (Arc<File<Soft>>, Arc<GatedStore<FileStore>>) {
        let gate = Arc::new(GatedStore::new(numbered(pages)));
        (File::open(&self.engine, gate.clone()).expect("a length"), gate)
    }

    /// The same with the gate open.
    pub fn file(&self, pages: u64) -> Arc<File<Soft>> {
        File::open(&self.engine, Arc::new(numbered(pages))).expect("a length")
    }

    /// Everything that could be used has been dropped by now: one frame is left, the page of zeros.
    pub fn end(self) {
        self.engine.flush();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while self.engine.frame_usage().used != 1 && std::time::Instant::now() < deadline {
            std::thread::yield_now(); // a read under way holds its frame until it completes
        }
        assert_eq!(self.engine.frame_usage().used, 1, "invariant 11: frames are left");
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

pub(crate) fn anonymous(page: u64, pages: u64) -> MapRequest<Soft> {
    MapRequest::anonymous(pages * PAGE_SIZE).at(Placement::Fixed(at(page)))
}

pub(crate) fn of_file(file: &Arc<File<Soft>>, page: u64, pages: u64, rights: Protection) -> MapRequest<Soft> {
    MapRequest::file(file, 0, pages * PAGE_SIZE, rights).at(Placement::Fixed(at(page)))
}

/// Eight bytes of `byte`.
pub(crate) fn word(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

pub(crate) fn fault_of<T: std::fmt::Debug>(result: Result<T, AccessError>) -> FaultError {
    match result {
        Err(AccessError::Fault(error)) => error,
        other => panic!("a fault was expected, not {other:?}"),
    }
}
