//! What is done on both sides: a value for each operation, printed as the C call it is.
//!
//! Addresses are bytes from the start of the window, so that a list of operations says nothing of where that is.

use super::step::Line;
use faultless::address::PAGE_SIZE;
use faultless::protection::Protection;
use serde::{Deserialize, Serialize};

/// Pages of the window in which everything is mapped.
pub const PAGES: u64 = 128;
/// Where the window is: half of it on each side of a multiple of 2 MiB, so that it has two leaf tables; below all that a
/// program or AddressSanitizer has, above what is linked at fixed addresses.
pub const WINDOW: u64 = 0x2000_0020_0000 - PAGES / 2 * PAGE_SIZE;
/// The page of the window at which the heap starts.
pub const HEAP: u64 = PAGES / 2 + 4;
/// How many files each side has: two that may only be read, one that may be written, one in memory that may, and one that
/// refuses.
pub const FILES: usize = 5;
/// The file that lies in a folder and may be written.
pub const STORED: usize = 2;
/// The file in memory.
pub const IN_MEMORY: usize = 3;
/// The file that refuses each change of its length, and when it is sealed each hole, too. On Linux it is in memory; the engine's
/// has a store.
pub const REFUSING: usize = 4;
/// Its pages: more than any mapping in the window shows, so that no page lies past its end.
pub const REFUSING_PAGES: u64 = PAGES + 32;

/// An address: bytes from the start of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct At(pub u64);

impl At {
    /// The first byte of a page.
    pub fn page(page: u64) -> Self {
        Self(page * PAGE_SIZE)
    }

    /// The address itself.
    pub fn address(self) -> u64 {
        WINDOW + self.0
    }
}

/// A length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Length(pub u64);

impl Length {
    /// Whole pages.
    pub fn pages(pages: u64) -> Self {
        Self(pages * PAGE_SIZE)
    }
}

/// PROT_READ, PROT_WRITE and PROT_EXEC, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights(pub u8);

impl From<Rights> for Protection {
    fn from(rights: Rights) -> Self {
        // The engine has Linux's numbers.
        Self::from_bits_truncate(rights.0)
    }
}

/// What is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Object {
    /// Zeros.
    Anonymous {
        /// MAP_SHARED.
        shared: bool,
    },
    /// A file, from its page `first` on.
    File {
        /// Which.
        file: usize,
        /// Its page.
        first: u64,
        /// MAP_SHARED.
        shared: bool,
    },
}

impl Object {
    /// Zeros that are nobody else's.
    pub const ZEROS: Self = Self::Anonymous { shared: false };
}

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// MAP_FIXED.
    Fixed,
    /// MAP_FIXED_NOREPLACE.
    NoReplace,
    /// Wherever there is room; it is unmapped again at once.
    Anywhere,
}

bitflags::bitflags! {
    /// What else mmap is told.
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

/// Flags of mremap that go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Move {
    /// None: it stays where it is.
    No,
    /// MREMAP_MAYMOVE. What goes out of the window is unmapped again at once.
    May,
    /// MREMAP_MAYMOVE and MREMAP_FIXED.
    To(At),
    /// MREMAP_MAYMOVE, MREMAP_FIXED and MREMAP_DONTUNMAP.
    Leaving(At),
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// mmap.
    Map {
        /// Where.
        at: At,
        /// How much.
        length: Length,
        /// With which rights.
        rights: Rights,
        /// What.
        object: Object,
        /// How firmly it goes there.
        place: Place,
        /// How else.
        with: With,
    },
    /// munmap.
    Unmap {
        /// Where.
        at: At,
        /// How much.
        length: Length,
    },
    /// mprotect.
    Protect {
        /// Where.
        at: At,
        /// How much.
        length: Length,
        /// To which rights.
        rights: Rights,
        /// PROT_GROWSDOWN.
        down: bool,
    },
    /// mremap.
    Remap {
        /// Where it is.
        at: At,
        /// How much.
        length: Length,
        /// How much it becomes.
        new_length: Length,
        /// Whether it may move.
        moves: Move,
    },
    /// brk: the heap starts at page `HEAP` of the window.
    Break {
        /// The new break.
        at: At,
    },
    /// madvise.
    Advise {
        /// Where.
        at: At,
        /// How much.
        length: Length,
        /// Linux's number of the advice.
        advice: i32,
    },
    /// mlock, or mlock2 with MLOCK_ONFAULT.
    Lock {
        /// Where.
        at: At,
        /// How much.
        length: Length,
        /// MLOCK_ONFAULT.
        on_fault: bool,
    },
    /// munlock.
    Unlock {
        /// Where.
        at: At,
        /// How much.
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
        /// Where.
        at: At,
        /// How much.
        length: Length,
        /// MS_ASYNC, MS_INVALIDATE, MS_SYNC: 1, 2, 4.
        flags: u8,
    },
    /// mincore. Of what is in a file of a folder it says nothing.
    Resident {
        /// Where.
        at: At,
        /// How much.
        length: Length,
    },
    /// mseal.
    Seal {
        /// Where.
        at: At,
        /// How much.
        length: Length,
    },
    /// Loads an aligned word.
    Load {
        /// Where.
        at: At,
    },
    /// Loads a byte.
    LoadByte {
        /// Where.
        at: At,
    },
    /// Stores an aligned word.
    Store {
        /// Where.
        at: At,
        /// What.
        value: u64,
    },
    /// Stores a byte.
    StoreByte {
        /// Where.
        at: At,
        /// What.
        value: u8,
    },
    /// Adds to an aligned word, in one step.
    Add {
        /// Where.
        at: At,
        /// What.
        value: u64,
    },
    /// Loads all bytes of whole pages, up to the first signal.
    Read {
        /// Where.
        at: At,
        /// How many pages.
        pages: u64,
    },
    /// process_vm_readv, as another process would.
    ReadRemote {
        /// Where.
        at: At,
        /// How much.
        length: Length,
    },
    /// process_vm_writev: the same byte everywhere.
    WriteRemote {
        /// Where.
        at: At,
        /// How much.
        length: Length,
        /// What.
        value: u8,
    },
    /// pread.
    ReadFile {
        /// Which file.
        file: usize,
        /// From which byte on.
        offset: u64,
        /// How much.
        length: Length,
    },
    /// pwrite: the same byte everywhere.
    WriteFile {
        /// Which file, one that can be written.
        file: usize,
        /// From which byte on.
        offset: u64,
        /// How much.
        length: Length,
        /// What.
        value: u8,
    },
    /// ftruncate: shorter, or longer with zeros.
    Truncate {
        /// Which file.
        file: usize,
        /// Its new length in bytes.
        length: u64,
    },
    /// fallocate with FALLOC_FL_PUNCH_HOLE.
    Punch {
        /// Which file, one that can be written.
        file: usize,
        /// From which byte on.
        offset: u64,
        /// How much.
        length: Length,
    },
    /// sync_file_range without waiting: what is dirty is being written while the next operations are done.
    StartSync {
        /// Which file, one that can be written.
        file: usize,
    },
    /// fcntl with F_ADD_SEALS and F_SEAL_FUTURE_WRITE, of the file that refuses: it has no holes punched into it any more, and
    /// only mappings of before are written.
    SealFile,
    /// fork. What follows, up to the exit that belongs to it or the end, is done by the child.
    Fork,
    /// The child leaves, and its parent goes on. Without a child it is nothing.
    Exit,
    /// Loads all bytes of the window, and looks at the map's flags too. Not counted as an operation.
    Look,
}

/// The advice that is given, by Linux's numbers, with its name.
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

/// [`Operation::KINDS`] besides [`ADVICE`].
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
    /// Every kind, in the order of reports.
    pub const KINDS: [&str; OTHERS.len() + ADVICE.len()] = {
        let mut kinds = [""; OTHERS.len() + ADVICE.len()];
        let mut place = 0;
        while place < kinds.len() {
            kinds[place] = if place < OTHERS.len() { OTHERS[place] } else { ADVICE[place - OTHERS.len()].1 };
            place += 1;
        }
        kinds
    };

    /// Its name in reports: one of [`KINDS`](Self::KINDS).
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

    /// The file that it names, if it does.
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

    /// How much it is about, if it is about a range.
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

    /// Whether what it gives depends on its own thread's window and files alone, and so is the same whatever other threads
    /// do in theirs. Threads leave the others out.
    pub fn is_local(&self) -> bool {
        match self {
            // Others who touch what grows make it grow.
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
            // There is one heap, and one lock of everything; a page that others touch is in memory.
            Self::Break { .. } | Self::LockAll { .. } | Self::UnlockAll | Self::Resident { .. } => false,
        }
    }

    /// Whether it writes to the stored file, of what `map` shows. Linux may write more of the file than it is asked for, and
    /// zeroes what lies behind the end when it does, so both sides write all of it then.
    pub fn syncs(&self, map: &[Line]) -> bool {
        let Self::Sync { at, length, flags: 4.. } = self else { return false };
        let (start, end) = (at.0 / PAGE_SIZE, at.0.saturating_add(length.0).div_ceil(PAGE_SIZE));
        let is_stored = |line: &Line| line.shared && matches!(line.file, Some((STORED, _)));
        map.iter().any(|line| is_stored(line) && line.start < end && line.end > start)
    }

    /// Whether it is tried at all. When the file that refuses is sealed, Linux makes no more shared mappings of it that may be
    /// written later; and the engine asks a store for whole pages of a hole only.
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

    /// Whether it counts as one of the operations that were asked for.
    pub fn counts(&self) -> bool {
        !matches!(self, Self::Look)
    }
}

/// Where the exit is that belongs to the fork at `fork`; the number of operations if there is none.
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
