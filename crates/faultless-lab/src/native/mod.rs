//! The native machine: the same scenarios on the kernel of this computer, with real calls and real faults.
//!
//! ```text
//!   parent (compare)                               worker: a process of its own, one for each round
//!     FUSE server ◄── reads ── kernel ◄── faults ──  the scenario's threads and children of fork
//!        │ completions of the store                  counters of mmap_lock (a tracepoint)
//!     request ──────── one socket, a line of JSON each way ────────► reply
//! ```
//! A worker has the scenario's memory and threads and nothing else. So fork copies nothing else, and no other work
//! takes mmap_lock. If the kernel does not grant a feature (FUSE, tracepoints, cgroups), the result is
//! [`Trouble::Cannot`](crate::trouble::Trouble::Cannot) with the reason, or a note beside the figures.

mod job;
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
mod wire;

#[cfg(not(target_os = "linux"))]
mod elsewhere;

#[cfg(target_os = "linux")]
mod cgroup;
#[cfg(target_os = "linux")]
mod fuse;
#[cfg(target_os = "linux")]
mod machine;
#[cfg(target_os = "linux")]
mod parent;
#[cfg(target_os = "linux")]
mod sys;
#[cfg(target_os = "linux")]
mod trace;
#[cfg(target_os = "linux")]
mod worker;

#[cfg(not(target_os = "linux"))]
pub use elsewhere::round;
pub use job::{Job, Source, WORKER};
#[cfg(target_os = "linux")]
pub use machine::{Mapped, NativeChild, NativeMachine, NativeProcess};
#[cfg(target_os = "linux")]
pub use parent::{round, round_by};
#[cfg(target_os = "linux")]
pub use sys::go_before_others;
#[cfg(target_os = "linux")]
pub(crate) use sys::{forbid_huge_pages, fork};
pub use wire::{Contents, Request, Served, Variant};
#[cfg(target_os = "linux")]
pub use worker::worker;

/// Returns the name and the number of a signal.
#[cfg(target_os = "linux")]
pub(crate) fn name_of(signal: i32) -> String {
    let name = match signal {
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGILL => "SIGILL",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGTERM => "SIGTERM",
        _ => return format!("signal {signal}"),
    };
    format!("{name} (signal {signal})")
}
