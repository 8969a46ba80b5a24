//! Designs that can serve real memory, and designs that cannot.
#![cfg(target_os = "linux")]

use faultless::AddressSpace;
use faultless_lab::designs::{FaultlessRetry, MmapLock, VmaLockHold};
use faultless_lab::skipped::skipped;
use faultless_linux::{Linux, OpenError, Options, Pager, ServeError, Serving};

#[test]
fn designs_that_keep_locks_through_io_are_refused() {
    let pager = match Pager::new(Options { memory: 1 << 20, ..Options::default() }) {
        Err(error @ (OpenError::Forbidden | OpenError::Absent | OpenError::TooOld)) => {
            skipped(error);
            return;
        }
        pager => pager.expect("a pager"),
    };
    let space: AddressSpace<Linux, MmapLock> = AddressSpace::new(pager.engine()).expect("a space");
    assert_eq!(Serving::of(&space).err(), Some(ServeError::KeepsLocks { design: "mmap-lock" }));
    let space: AddressSpace<Linux, VmaLockHold> = AddressSpace::new(pager.engine()).expect("a space");
    assert_eq!(Serving::of(&space).err(), Some(ServeError::KeepsLocks { design: "vma-lock-hold" }));
    let space: AddressSpace<Linux, FaultlessRetry> = AddressSpace::new(pager.engine()).expect("a space");
    assert!(Serving::of(&space).is_ok());
}
