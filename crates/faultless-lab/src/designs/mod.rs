//! The table of all locking designs, by name.

pub mod attribution;
mod faultless_retry;
pub mod locks;
mod mmap_lock;
mod mmap_lock_hold;
pub mod mmap_locked;
mod range_lock;
pub mod rwsem;
mod speculative;
mod table_lock;
mod vma_lock;
mod vma_lock_hold;
mod vma_lock_hold_cow_fork;
mod vma_lock_resume;
mod vma_lock_retry;
mod vma_lock_retry_uptodate;
pub mod vma_locked;

pub use faultless_retry::FaultlessRetry;
pub use mmap_lock::MmapLock;
pub use mmap_lock_hold::MmapLockHold;
pub use range_lock::RangeLock;
pub use speculative::Speculative;
pub use table_lock::TableLock;
pub use vma_lock::VmaLock;
pub use vma_lock_hold::VmaLockHold;
pub use vma_lock_hold_cow_fork::VmaLockHoldCowFork;
pub use vma_lock_resume::VmaLockResume;
pub use vma_lock_retry::VmaLockRetry;
pub use vma_lock_retry_uptodate::VmaLockRetryUptodate;

use faultless::design::{Faultless, LockingDesign};

/// Locking design, as users choose it.
#[derive(Clone, Copy, Debug)]
pub struct Design {
    /// Its name in commands and reports.
    pub name: &'static str,
    /// Its behaviour, in one line.
    pub about: &'static str,
    /// The kernel version or the message that it models.
    pub source: &'static str,
}

/// Generic operation that is called with the type of a design.
pub trait Visitor {
    /// Result of the operation.
    type Output;
    /// Runs the operation with the design `D`.
    fn visit<D: LockingDesign>(self) -> Self::Output;
}

macro_rules! designs {
    ($($design:ty: $about:literal, $source:literal;)*) => {
        /// All designs, in the order of reports: rivals by age, then ours.
        pub const ALL: &[Design] = &[$(
            Design { name: <$design as LockingDesign>::NAME, about: $about, source: $source },
        )*];

        impl Design {
            /// Calls `visitor` with this design's type.
            pub fn visit<V: Visitor>(&self, visitor: V) -> V::Output {
                $(if self.name == <$design as LockingDesign>::NAME {
                    return visitor.visit::<$design>();
                })*
                unreachable!("{} is not one of ALL", self.name)
            }
        }
    };
}

designs! {
    MmapLockHold: "one lock for the space, held through the I/O of a fault", "Linux before 2.6.37";
    MmapLock: "one lock for the space, dropped for the first I/O of a fault; the fault retries under it", "Linux 2.6.37 to 6.3";
    Speculative: "no lock; the fault compares a sequence count before it installs the page; otherwise as mmap-lock", "Lespinasse, linux-mm, April 2021";
    VmaLock: "a lock in each VMA, dropped for I/O; the fault retries under mmap_lock", "Linux 6.4 on (6.18)";
    VmaLockRetry: "as vma-lock, but the fault retries under the VMA lock", "Song and Liyang, linux-mm, November 2025";
    VmaLockRetryUptodate: "as vma-lock-retry, but keeps the lock if the page is in memory and locked", "Song, linux-mm, November 2025";
    VmaLockHold: "a lock in each VMA, held through I/O", "Wilcox, linux-mm, November 2025";
    VmaLockHoldCowFork: "as vma-lock-hold, but fork locks private VMAs only", "Song and Baghdasaryan, linux-mm, May 2026";
    VmaLockResume: "a lock in each VMA, dropped for I/O and taken again; the fault resumes", "Song, linux-mm, November 2025";
    RangeLock: "a lock of page ranges: a fault takes its page, a change takes its range", "Bueso, linux-mm, 2017 and 2018; Lespinasse, LWN, May 2022";
    TableLock: "a lock for each leaf table", "CortenMM, SOSP 2025; after RadixVM, EuroSys 2013";
    FaultlessRetry: "a bit in the page's entry, nothing held during I/O; the fault starts over", "this project, for comparison";
    Faultless: "a bit in the page's entry, nothing held during I/O; the fault resumes", "this project, docs/protocol.md";
}

/// The name of our design. A report names its losses first.
pub const OURS: &str = <Faultless as LockingDesign>::NAME;

/// Returns the design named `name`, or `None`.
pub fn find(name: &str) -> Option<&'static Design> {
    ALL.iter().find(|design| design.name == name)
}

/// Returns the names of all designs, separated by commas, for a message.
pub fn names() -> String {
    ALL.iter().map(|design| design.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Name;

    impl Visitor for Name {
        type Output = &'static str;
        fn visit<D: LockingDesign>(self) -> &'static str {
            D::NAME
        }
    }

    #[test]
    fn each_name_leads_to_its_type() {
        for design in ALL {
            assert_eq!(find(design.name).unwrap().visit(Name), design.name);
        }
        assert!(find("no-such-design").is_none());
        assert!(find(OURS).is_some());
    }
}
