//! Memory runs out at any point: every call, with its n-th allocation failing, once or from then on; and so with the
//! machine's frames. The call succeeds or says that there is no memory; the space is as before, or as the call documents;
//! the same call gives afterwards what it gives on a fresh space; and when all is gone nothing is left, neither frames nor
//! tables nor a byte of the allocator's. Under every locking design.
//!
//! Leaf tables, tree nodes, VMAs and records come from the same allocator as all else, so they fail here too. An allocation
//! that cannot fail politely aborts the test, with these exceptions, which come before the failures begin or are passed
//! over:
//!
//! * a thread's first call, when no thread had a number so high before: the slots' chunk (`faultless-soft/tests/first_use.rs`);
//! * what makes a machine: `Engine::new`, `Soft::new`;
//! * `mappings()` and `usage()`, which collect; `mapping_from` and `usage_of` need no memory;
//! * `Transfer::intercept`, and the stores made with it or for tests (`DelayedStore`, `GatedStore`);
//! * what a rival's mmap_lock allocates when a space is made ([`calls::lock_of_a_space`]): laboratory code.

#[macro_use]
#[path = "../every_design/mod.rs"]
mod every_design;
mod calls;
mod failing;
mod forks;
mod sweep;
mod world;

macro_rules! under_every_design {
    ($($name:ident)*) => { every_design! { [$crate::designs] ($($name)*) } };
}
macro_rules! designs {
    ($names:tt; $($module:ident: $design:ty),*) => {
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
