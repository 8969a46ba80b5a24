//! List of the designs that tests run under.

/// Calls the macro in brackets with `arguments`, and with a module name and a type for each design.
macro_rules! every_design {
    ([$($then:tt)+] $arguments:tt) => {
        $($then)+! { $arguments;
            faultless_design: ::faultless::design::Faultless,
            faultless_retry: ::faultless_lab::designs::FaultlessRetry,
            mmap_lock: ::faultless_lab::designs::MmapLock,
            mmap_lock_hold: ::faultless_lab::designs::MmapLockHold,
            range_lock: ::faultless_lab::designs::RangeLock,
            speculative: ::faultless_lab::designs::Speculative,
            table_lock: ::faultless_lab::designs::TableLock,
            vma_lock: ::faultless_lab::designs::VmaLock,
            vma_lock_hold: ::faultless_lab::designs::VmaLockHold,
            vma_lock_hold_cow_fork: ::faultless_lab::designs::VmaLockHoldCowFork,
            vma_lock_hold_file: ::faultless_lab::designs::VmaLockHoldFile,
            vma_lock_pin: ::faultless_lab::designs::VmaLockPin,
            vma_lock_resume: ::faultless_lab::designs::VmaLockResume,
            vma_lock_retry: ::faultless_lab::designs::VmaLockRetry,
            vma_lock_retry_uptodate: ::faultless_lab::designs::VmaLockRetryUptodate
        }
    };
}
