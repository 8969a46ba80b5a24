//! The operations of a check: one value for each operation, printed as a C call.
//!
//! Addresses are bytes from the start of the window, so a list of operations does not depend on the address of the
//! window.

use super::step::Line;
use faultless::address::PAGE_SIZE;
use faultless::protection::Protection;
use serde::{Deserialize, Serialize};

/// Size of the window in pages. All mappings lie in the window.
pub const PAGES: u64 = 128;
/// Address of the window. One half lies on each side of a multiple of 2 MiB, so that the window has two leaf tables. It
/// is below all addresses that a program or AddressSanitizer uses, and above code that is linked at fixed addresses.
pub const WINDOW: u64 = 0x2000_0020_0000 - PAGES / 2 * PAGE_SIZE;
/// The page of the window at which the heap starts.
pub const HEAP: u64 = PAGES / 2 + 4;
/// Number of files on each side: two read-only ones, a writable one in a folder, a writable one in memory, and one that
/// refuses.
pub const FILES: usize = 5;
/// Index of the writable file in a folder.
pub const STORED: usize = 2;
/// Index of the writable file in memory.
pub const IN_MEMORY: usize = 3;
/// Index of the file that refuses each change of its length. After it is sealed, it refuses each hole too. On Linux it
/// is in memory. In the engine it has a store.
pub const REFUSING: usize = 4;
/// Length of the refusing file in pages. No mapping in the window reaches past its end.
pub const REFUSING_PAGES: u64 = PAGES + 32;

/// Address as a distance from the start of the window, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct At(pub u64);

impl At {
    /// Returns the address of the first byte of a page.
    pub fn page(page: u64) -> Self {
        Self(page * PAGE_SIZE)
    }

    /// Returns the absolute address.
    pub fn address(self) -> u64 {
        WINDOW + self.0
    }
}

/// Length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Length(pub u64);

impl Length {
    /// Returns the length of `pages` whole pages.
    pub fn pages(pages: u64) -> Self {
        Self(pages * PAGE_SIZE)
    }
}

/// Rights of a mapping: the bits of PROT_READ, PROT_WRITE and PROT_EXEC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights(pub u8);

impl From<Rights> for Protection {
    fn from(rights: Rights) -> Self {
        // The engine uses Linux's numbers.
        Self::from_bits_truncate(rights.0)
    }
}

/// Object of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Object {
    /// Anonymous memory.
    Anonymous {
        /// MAP_SHARED.
        shared: bool,
    },
    /// A part of a file.
    File {
        /// The index of the file.
        file: usize,
        /// The first page of the part.
        first: u64,
        /// MAP_SHARED.
        shared: bool,
    },
}

impl Object {
    /// Private anonymous memory.
    pub const ZEROS: Self = Self::Anonymous { shared: false };
}

/// Placement of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// MAP_FIXED.
    Fixed,
    /// MAP_FIXED_NOREPLACE.
    NoReplace,
    /// Any free address. The mapping is removed again at once.
    Anywhere,
}

bitflags::bitflags! {
    /// Further flags of mmap.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
    #[serde(transparent)]
    pub struct With: u8 {
        /// MAP_POPULATE.
        const POPULATE = 1;
        /// MAP_LOCKED.
        const LOCKED = 2;
        /// MAP_NORESERVE.
        const NORESERVE = 4;
        /// MAP_GROWSDOWN.
        const GROWSDOWN = 8;
    }
}

/// Combinations of flags of mremap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Move {
    /// No flag: the mapping does not move.
    No,
    /// MREMAP_MAYMOVE. If the mapping leaves the window, it is unmapped at once.
    May,
    /// MREMAP_MAYMOVE and MREMAP_FIXED.
    To(At),
    /// MREMAP_MAYMOVE, MREMAP_FIXED and MREMAP_DONTUNMAP.
    Leaving(At),
}

/// Operation of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// mmap.
    Map {
        /// The address.
        at: At,
        /// The length.
        length: Length,
        /// The rights.
        rights: Rights,
        /// The mapped object.
        object: Object,
        /// The placement.
        place: Place,
        /// Further flags.
        with: With,
    },
    /// munmap.
    Unmap {
        /// The address.
        at: At,
        /// The length.
        length: Length,
    },
    /// mprotect.
    Protect {
        /// The address.
        at: At,
        /// The length.
        length: Length,
        /// The new rights.
        rights: Rights,
        /// PROT_GROWSDOWN.
        down: bool,
    },
    /// mremap.
    Remap {
        /// The old address.
        at: At,
        /// The old length.
        length: Length,
        /// The new length.
        new_length: Length,
        /// The flags, and the new address if it is given.
        moves: Move,
    },
    /// brk. The heap starts at page `HEAP` of the window.
    Break {
        /// The new break.
        at: At,
    },
    /// madvise.
    Advise {
        /// The address.
        at: At,
        /// The length.
        length: Length,
        /// Linux's number of the advice.
        advice: i32,
    },
    /// mlock, or mlock2 with MLOCK_ONFAULT.
    Lock {
        /// The address.
        at: At,
        /// The length.
        length: Length,
        /// MLOCK_ONFAULT.
        on_fault: bool,
    },
    /// munlock.
    Unlock {
        /// The address.
        at: At,
        /// The length.
        length: Length,
    },
    /// mlockall.
    LockAll {
        /// MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT: 1, 2, 4.
        flags: u8,
    },
    /// munlockall.
    UnlockAll,
    /// msync.
    Sync {
        /// The address.
        at: At,
        /// The length.
        length: Length,
        /// MS_ASYNC, MS_INVALIDATE, MS_SYNC: 1, 2, 4.
        flags: u8,
    },
    /// mincore. The result leaves out pages of files in a folder.
    Resident {
        /// The address.
        at: At,
        /// The length.
        length: Length,
    },
    /// mseal.
    Seal {
        /// The address.
        at: At,
        /// The length.
        length: Length,
    },
    /// Loads an aligned word.
    Load {
        /// The address.
        at: At,
    },
    /// Loads a byte.
    LoadByte {
        /// The address.
        at: At,
    },
    /// Stores an aligned word.
    Store {
        /// The address.
        at: At,
        /// The value.
        value: u64,
    },
    /// Stores a byte.
    StoreByte {
        /// The address.
        at: At,
        /// The value.
        value: u8,
    },
    /// Adds to an aligned word atomically.
    Add {
        /// The address.
        at: At,
        /// The summand.
        value: u64,
    },
    /// Loads all bytes of whole pages, up to the first signal.
    Read {
        /// The address.
        at: At,
        /// The number of pages.
        pages: u64,
    },
    /// process_vm_readv of this process's own memory.
    ReadRemote {
        /// The address.
        at: At,
        /// The length.
        length: Length,
    },
    /// process_vm_writev, with the same byte everywhere.
    WriteRemote {
        /// The address.
        at: At,
        /// The length.
        length: Length,
        /// The byte.
        value: u8,
    },
    /// pread.
    ReadFile {
        /// The index of the file.
        file: usize,
        /// The first byte.
        offset: u64,
        /// The length.
        length: Length,
    },
    /// pwrite, with the same byte everywhere.
    WriteFile {
        /// The index of the file, which must be writable.
        file: usize,
        /// The first byte.
        offset: u64,
        /// The length.
        length: Length,
        /// The byte.
        value: u8,
    },
    /// ftruncate. A longer file gets zeros.
    Truncate {
        /// The index of the file.
        file: usize,
        /// Its new length in bytes.
        length: u64,
    },
    /// fallocate with FALLOC_FL_PUNCH_HOLE.
    Punch {
        /// The index of the file, which must be writable.
        file: usize,
        /// The first byte.
        offset: u64,
        /// The length.
        length: Length,
    },
    /// sync_file_range without waiting. Dirty pages are written while the next operations run.
    StartSync {
        /// The index of the file, which must be writable.
        file: usize,
    },
    /// fcntl with F_ADD_SEALS and F_SEAL_FUTURE_WRITE, on the file that refuses. From then on, holes are refused, and
    /// only existing mappings can write.
    SealFile,
    /// fork. The child does the following operations, up to the matching exit or the end.
    Fork,
    /// The child exits, and its parent continues. Without a child, it does nothing.
    Exit,
    /// Loads all bytes of the window, and reads the flags of the map. Not counted as an operation.
    Look,
}

/// Each advice that is given: its number on Linux, and its name.
pub const ADVICE: [(i32, &str); 15] = [
    (0, "madvise NORMAL"),
    (1, "madvise RANDOM"),
    (2, "madvise SEQUENTIAL"),
    (3, "madvise WILLNEED"),
    (4, "madvise DONTNEED"),
    (8, "madvise FREE"),
    (9, "madvise REMOVE"),
    (10, "madvise DONTFORK"),
    (11, "madvise DOFORK"),
    (18, "madvise WIPEONFORK"),
    (19, "madvise KEEPONFORK"),
    (22, "madvise POPULATE_READ"),
    (23, "madvise POPULATE_WRITE"),
    (102, "madvise GUARD_INSTALL"),
    (103, "madvise GUARD_REMOVE"),
];

/// The kinds of operations other than [`ADVICE`].
const OTHERS: [&str; 40] = [
    "mmap",
    "mmap shared",
    "mmap POPULATE",
    "mmap LOCKED",
    "mmap GROWSDOWN",
    "munmap",
    "mprotect",
    "mprotect GROWSDOWN",
    "mremap",
    "mremap MAYMOVE",
    "mremap FIXED",
    "mremap DONTUNMAP",
    "brk",
    "mlock",
    "mlock2 ONFAULT",
    "munlock",
    "mlockall",
    "munlockall",
    "msync ASYNC",
    "msync SYNC",
    "mincore",
    "mseal",
    "load",
    "load byte",
    "store",
    "store byte",
    "add",
    "read pages",
    "process_vm_readv",
    "process_vm_writev",
    "pread",
    "pwrite",
    "ftruncate",
    "punch hole",
    "sync_file_range",
    "seal file",
    "fork",
    "exit",
    "look",
    "madvise unknown",
];

impl Operation {
    /// All kinds of operations, in the order of reports.
    pub const KINDS: [&str; OTHERS.len() + ADVICE.len()] = {
        let mut kinds = [""; OTHERS.len() + ADVICE.len()];
        let mut place = 0;
        while place < kinds.len() {
            kinds[place] = if place < OTHERS.len() { OTHERS[place] } else { ADVICE[place - OTHERS.len()].1 };
            place += 1;
        }
        kinds
    };

    /// Returns the name of its kind: one of [`KINDS`](Self::KINDS).
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Map { with, .. } if with.contains(With::GROWSDOWN) => "mmap GROWSDOWN",
            Self::Map { with, .. } if with.contains(With::LOCKED) => "mmap LOCKED",
            Self::Map { with, .. } if with.contains(With::POPULATE) => "mmap POPULATE",
            Self::Map { object: Object::Anonymous { shared } | Object::File { shared, .. }, .. } => {
                if *shared { "mmap shared" } else { "mmap" }
            }
            Self::Unmap { .. } => "munmap",
            Self::Protect { down: false, .. } => "mprotect",
            Self::Protect { down: true, .. } => "mprotect GROWSDOWN",
            Self::Remap { moves, .. } => match moves {
                Move::No => "mremap",
                Move::May => "mremap MAYMOVE",
                Move::To(_) => "mremap FIXED",
                Move::Leaving(_) => "mremap DONTUNMAP",
            },
            Self::Break { .. } => "brk",
            Self::Advise { advice, .. } => {
                let known = ADVICE.iter().find(|(number, _)| number == advice);
                known.map_or("madvise unknown", |(_, name)| name)
            }
            Self::Lock { on_fault: false, .. } => "mlock",
            Self::Lock { on_fault: true, .. } => "mlock2 ONFAULT",
            Self::Unlock { .. } => "munlock",
            Self::LockAll { .. } => "mlockall",
            Self::UnlockAll => "munlockall",
            Self::Sync { flags, .. } if flags & 4 != 0 => "msync SYNC",
            Self::Sync { .. } => "msync ASYNC",
            Self::Resident { .. } => "mincore",
            Self::Seal { .. } => "mseal",
            Self::Load { .. } => "load",
            Self::LoadByte { .. } => "load byte",
            Self::Store { .. } => "store",
            Self::StoreByte { .. } => "store byte",
            Self::Add { .. } => "add",
            Self::Read { .. } => "read pages",
            Self::ReadRemote { .. } => "process_vm_readv",
            Self::WriteRemote { .. } => "process_vm_writev",
            Self::ReadFile { .. } => "pread",
            Self::WriteFile { .. } => "pwrite",
            Self::Truncate { .. } => "ftruncate",
            Self::Punch { .. } => "punch hole",
            Self::StartSync { .. } => "sync_file_range",
            Self::SealFile => "seal file",
            Self::Fork => "fork",
            Self::Exit => "exit",
            Self::Look => "look",
        }
    }

    /// Returns the index of its file, if it has one.
    pub fn file(&self) -> Option<usize> {
        match self {
            Self::Map { object: Object::File { file, .. }, .. }
            | Self::ReadFile { file, .. }
            | Self::WriteFile { file, .. }
            | Self::Truncate { file, .. }
            | Self::StartSync { file }
            | Self::Punch { file, .. } => Some(*file),
            Self::SealFile => Some(REFUSING),
            _ => None,
        }
    }

    /// Returns its length, if it has one.
    pub fn length_mut(&mut self) -> Option<&mut Length> {
        match self {
            Self::Map { length, .. }
            | Self::Unmap { length, .. }
            | Self::Protect { length, .. }
            | Self::Remap { length, .. }
            | Self::Advise { length, .. }
            | Self::Lock { length, .. }
            | Self::Unlock { length, .. }
            | Self::Sync { length, .. }
            | Self::Resident { length, .. }
            | Self::Seal { length, .. }
            | Self::ReadRemote { length, .. }
            | Self::WriteRemote { length, .. }
            | Self::ReadFile { length, .. }
            | Self::WriteFile { length, .. }
            | Self::Punch { length, .. } => Some(length),
            _ => None,
        }
    }

    /// Returns whether the result depends only on the own thread's window and files. Then it does not depend on other
    /// threads. A check with threads leaves out all other operations.
    pub fn is_local(&self) -> bool {
        match self {
            // A mapping that grows down can grow when another thread touches it.
            Self::Map { with, .. } => !with.contains(With::GROWSDOWN),
            Self::Unmap { .. }
            | Self::Protect { .. }
            | Self::Remap { .. }
            | Self::Advise { .. }
            | Self::Lock { .. }
            | Self::Unlock { .. }
            | Self::Sync { .. }
            | Self::Seal { .. }
            | Self::Load { .. }
            | Self::LoadByte { .. }
            | Self::Store { .. }
            | Self::StoreByte { .. }
            | Self::Add { .. }
            | Self::Read { .. }
            | Self::ReadRemote { .. }
            | Self::WriteRemote { .. }
            | Self::ReadFile { .. }
            | Self::WriteFile { .. }
            | Self::Truncate { .. }
            | Self::Punch { .. }
            | Self::StartSync { .. }
            | Self::SealFile
            | Self::Fork
            | Self::Exit
            | Self::Look => true,
            // There is one heap for all threads, and mlockall is for all memory. A page that another thread touches is
            // in memory.
            Self::Break { .. } | Self::LockAll { .. } | Self::UnlockAll | Self::Resident { .. } => false,
        }
    }

    /// Returns whether the operation writes the stored file through a mapping in `map`. Linux may then write more of
    /// the file than requested, and zeroes the bytes after its end. So both sides write the whole file.
    pub fn syncs(&self, map: &[Line]) -> bool {
        let Self::Sync { at, length, flags: 4.. } = self else { return false };
        let (start, end) = (at.0 / PAGE_SIZE, at.0.saturating_add(length.0).div_ceil(PAGE_SIZE));
        let is_stored = |line: &Line| line.shared && matches!(line.file, Some((STORED, _)));
        map.iter().any(|line| is_stored(line) && line.start < end && line.end > start)
    }

    /// Returns whether the operation is done at all. Linux makes no shared mapping of the sealed file that could become
    /// writable. The engine asks a store only for holes of whole pages.
    pub fn is_tried(&self, is_sealed: bool) -> bool {
        match self {
            Self::Map { object: Object::File { file: REFUSING, shared: true, .. }, .. } => !is_sealed,
            Self::Punch { file: REFUSING, offset, length } if length.0 != 0 => {
                let is_whole = offset.is_multiple_of(PAGE_SIZE) && length.0.is_multiple_of(PAGE_SIZE);
                !is_sealed || is_whole && *offset < REFUSING_PAGES * PAGE_SIZE
            }
            _ => true,
        }
    }

    /// Returns whether the operation counts towards the requested number.
    pub fn counts(&self) -> bool {
        !matches!(self, Self::Look)
    }
}

/// Returns the index of the exit that matches the fork at index `fork`, or the number of operations if there is none.
pub fn exit_of(operations: &[Operation], fork: usize) -> usize {
    let mut inside = 0;
    for (place, operation) in operations.iter().enumerate().skip(fork + 1) {
        match operation {
            Operation::Fork => inside += 1,
            Operation::Exit if inside == 0 => return place,
            Operation::Exit => inside -= 1,
            _ => {}
        }
    }
    operations.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fork_has_its_exit() {
        use Operation::{Exit, Fork, Look};
        let list = [Fork, Look, Fork, Exit, Exit, Fork, Look];
        assert_eq!([exit_of(&list, 0), exit_of(&list, 2), exit_of(&list, 5)], [4, 3, 7]);
    }
}
