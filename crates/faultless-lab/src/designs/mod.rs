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
    /// The treatment of leaf tables by its fork. `--fork` overrides it.
    pub fork: LeafTables,
    /// The lock of page work.
    locks: Locks,
    /// The rule for its I/O.
    io: Io,
}

/// The lock of page work. Designs with the same lock share their code, and differ by a fault's way to go on after I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Locks {
    /// mmap_lock.
    MmapLock,
    /// A sequence count, or else mmap_lock.
    Speculative,
    /// The lock of the VMA, or else mmap_lock.
    VmaLock,
    /// A lock of the page's range.
    RangeLock,
    /// The lock of the leaf table.
    TableLock,
    /// The bit of the entry.
    EntryBit,
}

/// The use of the lock during a fault's I/O, and after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Io {
    /// It holds the lock. A design that holds it for files alone is no other: no scenario has pages in swap space.
    Hold,
    /// It holds the lock, and fork passes over shared mappings. Without files, no scenario has any.
    HoldCowFork,
    /// It drops the lock and starts over under mmap_lock.
    RetryUnderMmapLock,
    /// It drops the lock, keeps its pin, and starts over under mmap_lock.
    RetryPinned,
    /// It drops the lock and starts over under the same lock. A folio that is up to date and locked makes a difference
    /// between two such designs, but only a file system keeps one locked, and no scenario has one.
    Retry,
    /// It drops the lock, takes it again and resumes.
    Resume,
}

/// The treatment of leaf tables of private memory by fork.
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

impl Design {
    /// Returns whether two designs run the same code in a scenario: they are twins there. `does_io` is whether the
    /// scenario's faults wait for I/O. A difference between twins is noise.
    pub fn is_twin_of(&self, other: &Self, does_io: bool) -> bool {
        self.locks == other.locks && (!does_io || self.io == other.io)
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
    ($($design:ty: $locks:ident, $io:ident, $fork:ident, $about:literal, $source:literal;)*) => {
        /// All designs, in the order of reports: rivals by age, then ours.
        pub const ALL: &[Design] = &[$(
            Design {
                name: <$design as LockingDesign>::NAME,
                about: $about,
                source: $source,
                fork: LeafTables::$fork,
                locks: Locks::$locks,
                io: Io::$io,
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
    MmapLockHold: MmapLock, Hold, Copy, "one lock for the space, held through the I/O of a fault", "Linux before 2.6.37";
    MmapLock: MmapLock, RetryUnderMmapLock, Copy, "one lock for the space, dropped for the first I/O of a fault; the fault retries under it", "Linux 2.6.37 to 6.3";
    Speculative: Speculative, RetryUnderMmapLock, Copy, "no lock; the fault compares a sequence count before it installs the page; otherwise as mmap-lock", "Lespinasse, linux-mm, April 2021";
    VmaLock: VmaLock, RetryUnderMmapLock, Copy, "a lock in each VMA, dropped for I/O; the fault retries under mmap_lock", "Linux 6.4 on (6.18)";
    VmaLockPin: VmaLock, RetryPinned, Copy, "as vma-lock, but the fault keeps its reference to the page", "this project: the smallest change of Linux";
    VmaLockRetry: VmaLock, Retry, Copy, "as vma-lock, but the fault retries under the VMA lock", "Song and Liyang, linux-mm, November 2025";
    VmaLockRetryUptodate: VmaLock, Retry, Copy, "as vma-lock-retry, but keeps the lock if the page is in memory and locked", "Song, linux-mm, November 2025";
    VmaLockHold: VmaLock, Hold, Copy, "a lock in each VMA, held through I/O", "Wilcox, linux-mm, November 2025";
    VmaLockHoldCowFork: VmaLock, HoldCowFork, Copy, "as vma-lock-hold, but fork locks private VMAs only", "Song and Baghdasaryan, linux-mm, May 2026";
    VmaLockHoldFile: VmaLock, Hold, Copy, "as vma-lock-hold for files; as vma-lock-retry for anonymous pages in swap space", "Wilcox, LSFMM, May 2026";
    VmaLockResume: VmaLock, Resume, Copy, "a lock in each VMA, dropped for I/O and taken again; the fault resumes", "Song, linux-mm, November 2025";
    RangeLock: RangeLock, Retry, Copy, "a lock of page ranges: a fault takes its page, a change takes its range", "Bueso, linux-mm, 2017 and 2018; Lespinasse, LWN, May 2022";
    TableLock: TableLock, Retry, Copy, "a lock for each leaf table", "CortenMM, SOSP 2025; after RadixVM, EuroSys 2013";
    FaultlessRetry: EntryBit, Retry, Share, "a bit in the page's entry, nothing held during I/O; the fault starts over", "this project, for comparison";
    Faultless: EntryBit, Resume, Share, "a bit in the page's entry, nothing held during I/O; the fault resumes", "this project, docs/protocol.md";
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

    #[test]
    fn twins_are_symmetric_and_differ_only_by_their_io() {
        let twins = |name: &str, does_io| {
            let design = find(name).unwrap();
            let twins = ALL.iter().filter(|other| other.name != name && design.is_twin_of(other, does_io));
            assert!(twins.clone().all(|other| other.is_twin_of(design, does_io)));
            twins.map(|twin| twin.name).collect::<Vec<_>>()
        };
        assert_eq!(twins("mmap-lock", false), ["mmap-lock-hold"]);
        assert_eq!(twins(OURS, false), ["faultless-retry"]);
        assert_eq!(twins("vma-lock", false).len(), 7);
        assert!(twins("vma-lock", false).iter().all(|name| name.starts_with("vma-lock-")));
        assert_eq!(twins("vma-lock-retry", true), ["vma-lock-retry-uptodate"]);
        assert_eq!(twins("vma-lock-hold", true), ["vma-lock-hold-file"]);
        for alone in ["speculative", "range-lock", "table-lock"] {
            assert!(twins(alone, false).is_empty());
        }
        for alone in ["mmap-lock", "vma-lock", "vma-lock-pin", "vma-lock-hold-cow-fork", OURS] {
            assert!(twins(alone, true).is_empty(), "{alone}");
        }
    }
}
