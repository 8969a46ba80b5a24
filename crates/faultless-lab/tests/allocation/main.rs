//! Memory runs out at any point: every call, with its n-th allocation failing, once or from then on; and so with the
//! machine's frames. The call succeeds or says that there is no memory; the space is as before, or as the call documents;
//! the same call gives afterwards what it gives on a fresh space; and when all is gone nothing is left, neither frames nor
//! tables nor a byte of the allocator's. Under every locking design.
//!
//! Leaf tables, tree nodes, VMAs and records come from the same allocator as all else, so they fail here too. An allocation
//! that cannot fail politely aborts the test, with these exceptions, which come before the failures begin or are passed
//! over:
//!
//! * a thread's first entry into a section, when no thread had a number so high before: the slots' chunk (`sync/section.rs`);
//! * what makes a machine: `Engine::new`, `Soft::new`;
//! * `mappings()` and `usage()`, which collect; `mapping_from` and `usage_of` need no memory;
//! * `Transfer::intercept`, and the stores made with it or for tests (`DelayedStore`, `GatedStore`);
//! * what a rival's mmap_lock allocates when a space is made ([`calls::lock_of_a_space`]): laboratory code.

mod calls;
mod failing;
mod forks;
mod sweep;
mod world;

macro_rules! under_every_design {
    ($($name:ident)*) => {
        $crate::designs! { ($($name)*)
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
            vma_lock_resume: ::faultless_lab::designs::VmaLockResume,
            vma_lock_retry: ::faultless_lab::designs::VmaLockRetry,
            vma_lock_retry_uptodate: ::faultless_lab::designs::VmaLockRetryUptodate,
        }
    };
}
macro_rules! designs {
    ($names:tt $($module:ident: $design:ty,)*) => {
        $(mod $module { $crate::tests_of!($design, $names); })*
    };
}
macro_rules! tests_of {
    ($design:ty, ($($name:ident)*)) => {
        $(#[test] fn $name() { super::$name::<$design>(); })*
    };
}
pub(crate) use designs;
pub(crate) use tests_of;
pub(crate) use under_every_design;
