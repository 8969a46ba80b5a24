//! Compares the cost of a page: the kernel's own fault, a minimal userfaultfd handler, and a `Region`, in one run.
//!
//! ```text
//!  main ──► measure ── rounds: for each case the contenders, one after the other ──► report (table, JSON)
//!              ├─ case        the cases that are timed
//!              ├─ memory      pages, and touching them in a shuffled order
//!              ├─ native      the kernel alone
//!              ├─ bare        one thread, one ioctl of userfaultfd a fault, nothing else
//!              └─ faultless   the crate
//! ```

#[cfg(target_os = "linux")]
mod bare;
#[cfg(target_os = "linux")]
mod case;
#[cfg(target_os = "linux")]
mod cli;
#[cfg(target_os = "linux")]
mod faultless;
#[cfg(target_os = "linux")]
mod measure;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod native;
#[cfg(target_os = "linux")]
mod report;
#[cfg(target_os = "linux")]
mod trouble;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    cli::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> std::process::ExitCode {
    eprintln!("price: this program needs Linux, since only Linux has userfaultfd");
    std::process::ExitCode::from(2)
}
