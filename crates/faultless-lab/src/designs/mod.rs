//! The table of all locking designs, by name.

mod faultless_retry;
pub mod locks;
mod mmap_lock;
mod mmap_lock_hold;
pub mod mmap_locked;
mod range_lock;
mod speculative;
mod table_lock;
mod vma_lock;
mod vma_lock_hold;
mod vma_lock_hold_cow_fork;
mod vma_lock_hold_file;
mod vma_lock_pin;
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
pub use vma_lock_hold_file::VmaLockHoldFile;
pub use vma_lock_pin::VmaLockPin;
pub use vma_lock_resume::VmaLockResume;
pub use vma_lock_retry::VmaLockRetry;
pub use vma_lock_retry_uptodate::VmaLockRetryUptodate;

use clap::ValueEnum;
use faultless::design::{Faultless, LockingDesign};
use serde::{Deserialize, Serialize};

/// Locking design, as users choose it.
#[derive(Clone, Copy, Debug)]
pub struct Design {
    /// Its name in commands and reports.
    pub name: &'static str,
    /// Its behaviour, in one line.
    pub about: &'static str,
    /// The kernel version or the message that it models.
    pub source: &'static str,
    /// What its fork does with leaf tables, unless the user says otherwise.
    pub fork: LeafTables,
}

/// What fork does with the leaf tables of private memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LeafTables {
    /// The child gets tables of its own, with copies of the entries, as in Linux.
    Copy,
    /// The child shares tables with many entries until one of them changes such a table.
    Share,
}

impl LeafTables {
    /// Returns the name, as a user gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Share => "share",
        }
    }
}

/// Generic operation that is called with the type of a design.
pub trait Visitor {
    /// Result of the operation.
    type Output;
    /// Runs the operation with the design `D`.
    fn visit<D: LockingDesign>(self) -> Self::Output;
}

macro_rules! designs {
    ($($design:ty: $about:literal, $source:literal, $fork:ident;)*) => {
        /// All designs, in the order of reports: rivals by age, then ours.
        pub const ALL: &[Design] = &[$(
            Design {
                name: <$design as LockingDesign>::NAME,
                about: $about,
                source: $source,
                fork: LeafTables::$fork,
            },
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
    MmapLockHold: "one lock for the space, held through the I/O of a fault", "Linux before 2.6.37", Copy;
    MmapLock: "one lock for the space, dropped for the first I/O of a fault; the fault retries under it", "Linux 2.6.37 to 6.3", Copy;
    Speculative: "no lock; the fault compares a sequence count before it installs the page; otherwise as mmap-lock", "Lespinasse, linux-mm, April 2021", Copy;
    VmaLock: "a lock in each VMA, dropped for I/O; the fault retries under mmap_lock", "Linux 6.4 on (6.18)", Copy;
    VmaLockPin: "as vma-lock, but the fault keeps its reference to the page", "this project: the smallest change of Linux", Copy;
    VmaLockRetry: "as vma-lock, but the fault retries under the VMA lock", "Song and Liyang, linux-mm, November 2025", Copy;
    VmaLockRetryUptodate: "as vma-lock-retry, but keeps the lock if the page is in memory and locked", "Song, linux-mm, November 2025", Copy;
    VmaLockHold: "a lock in each VMA, held through I/O", "Wilcox, linux-mm, November 2025", Copy;
    VmaLockHoldCowFork: "as vma-lock-hold, but fork locks private VMAs only", "Song and Baghdasaryan, linux-mm, May 2026", Copy;
    VmaLockHoldFile: "as vma-lock-hold for files; as vma-lock-retry for anonymous pages in swap space", "Wilcox, LSFMM, May 2026", Copy;
    VmaLockResume: "a lock in each VMA, dropped for I/O and taken again; the fault resumes", "Song, linux-mm, November 2025", Copy;
    RangeLock: "a lock of page ranges: a fault takes its page, a change takes its range", "Bueso, linux-mm, 2017 and 2018; Lespinasse, LWN, May 2022", Copy;
    TableLock: "a lock for each leaf table", "CortenMM, SOSP 2025; after RadixVM, EuroSys 2013", Copy;
    FaultlessRetry: "a bit in the page's entry, nothing held during I/O; the fault starts over", "this project, for comparison", Share;
    Faultless: "a bit in the page's entry, nothing held during I/O; the fault resumes", "this project, docs/protocol.md", Share;
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
