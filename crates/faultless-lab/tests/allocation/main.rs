//! Memory runs out at every point of every call: its n-th allocation fails, once or from then on. The same is done with
//! the machine's frames. Under every locking design the tests check these rules:
//!
//! * The call succeeds, or returns an error for missing memory.
//! * After an error the space is as before, or as the call documents.
//! * The same call afterwards gives the same result as on a fresh space.
//! * When everything is dropped, no frame, no table and no byte of the allocator is left.
//!
//! Leaf tables, tree nodes, VMAs and records come from the same allocator as everything else, so they fail here too. An
//! allocation that cannot return an error aborts the test. These are the exceptions, which are made before the failures
//! begin or are skipped:
//!
//! * a thread's first call, if no thread had such a high number before: the slots' chunk
//!   (`faultless-soft/tests/first_use.rs`);
//! * the making of a machine: `Engine::new`, `Soft::new`;
//! * `mappings()` and `usage()`, which collect; `mapping_from` and `usage_of` need no memory;
//! * `Transfer::intercept`, and the stores made with it or for tests (`DelayedStore`, `GatedStore`);
//! * the allocations of a rival's mmap_lock when a space is made ([`calls::lock_of_a_space`]), which are laboratory
//!   code.

#[macro_use]
#[path = "../every_design/mod.rs"]
mod every_design;
mod calls;
mod failing;
mod forks;
mod limits;
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
