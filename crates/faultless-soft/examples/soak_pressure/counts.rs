//! The number of operations of each kind.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! kinds {
    ($($name:ident = $text:literal,)*) => {
        /// A kind of operation, or of result.
        #[derive(Clone, Copy, Debug)]
        pub enum Kind { $($name,)* }

        impl Kind {
            const ALL: [(Self, &'static str); [$(Self::$name),*].len()] = [$((Self::$name, $text),)*];
        }
    };
}

kinds! {
    Shared = "accesses to pages of several threads",
    Own = "accesses to pages of one thread",
    ReadFile = "reads of the file",
    WriteFile = "accesses to the written file",
    Sync = "syncs of the written file",
    Memory = "accesses to shared memory",
    Hole = "holes in shared memory",
    Unmap = "munmap",
    Discard = "MADV_DONTNEED",
    Protect = "mprotect",
    Fork = "fork",
    CopyAtFork = "fork with EAGER_COW",
    UnshareParent = "COW_NOW by a parent",
    UnshareChild = "COW_NOW by a child",
    Isolate = "ISOLATE_COWED",
    Kill = "kills",
    Reclaim = "reclaim",
    PageOut = "MADV_PAGEOUT",
    Cold = "MADV_COLD",
    Remote = "advice about another process",
    Free = "MADV_FREE",
    FreedIsGone = "pages that MADV_FREE let go",
    Lock = "mlock and munlock",
    Pin = "pins",
    PinAcrossFork = "pins across fork",
    Remap = "mremap, there and back",
    RemapAlone = "of these, of memory that no child has",
    Resize = "mremap to another length",
    Move = "moves of pages, there and back",
    Moved = "pages moved",
    MoveStopped = "moves that ended early",
    SetLimit = "changes of a limit",
    Worker = "starts of the background worker",
    SwapOff = "swapoff",
    SwapOffBusy = "swapoff, refused: pages in use",
    SwapOffNoRoom = "swapoff, refused: no room",
    SwapOn = "swapon",
    Injected = "failures of the device that fails",
    FailedAccess = "accesses to its engine",
    IoError = "accesses that met an I/O error",
    WrongBytes = "accesses that met overwritten bytes of the device",
    NoMemory = "accesses that found no memory",
    LostPages = "pages lost by swapoff",
}

/// The counts of one run. Atomic; any thread adds.
pub struct Counts([AtomicU64; Kind::ALL.len()]);

impl Counts {
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; Kind::ALL.len()])
    }

    pub fn note(&self, kind: Kind) {
        self.add(kind, 1);
    }

    pub fn add(&self, kind: Kind, number: u64) {
        self.0[kind as usize].fetch_add(number, Ordering::Relaxed);
    }

    pub fn get(&self, kind: Kind) -> u64 {
        self.0[kind as usize].load(Ordering::Relaxed)
    }

    /// Prints the count of each kind.
    pub fn print(&self) {
        for (kind, text) in Kind::ALL {
            println!("{:>12} {text}", self.get(kind));
        }
    }
}
