//! What is done on both sides: a value for each operation, printed as the C call it is.
//!
//! Addresses are bytes from the start of the window, so that a list of operations says nothing of where that is.

use faultless::address::PAGE_SIZE;
use faultless::protection::Protection;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display, Formatter};

/// Pages of the window in which everything is mapped.
pub const PAGES: u64 = 128;
/// Where the window is: half of it on each side of a multiple of 2 MiB, so that it has two leaf tables; below all that a
/// program or AddressSanitizer has, above what is linked at fixed addresses.
pub const WINDOW: u64 = 0x2000_0020_0000 - PAGES / 2 * PAGE_SIZE;
/// How many files each side has.
pub const FILES: usize = 2;

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
    /// Zeros, private.
    Anonymous,
    /// A file, from its page `first` on.
    File {
        /// Which.
        file: usize,
        /// Its page.
        first: u64,
        /// MAP_SHARED, by a handle that may only read.
        shared: bool,
    },
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
    },
    /// madvise(MADV_DONTNEED).
    Discard {
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
    /// ftruncate: shorter, or longer with zeros.
    Truncate {
        /// Which file.
        file: usize,
        /// Its new length in bytes.
        length: u64,
    },
    /// fork. What follows, up to the exit that belongs to it or the end, is done by the child.
    Fork,
    /// The child leaves, and its parent goes on. Without a child it is nothing.
    Exit,
    /// Loads all bytes of the window, and looks at the map's flags too. Not counted as an operation.
    Look,
}

impl Operation {
    /// Every kind, in the order of reports.
    pub const KINDS: [&str; 14] = [
        "mmap",
        "munmap",
        "mprotect",
        "madvise DONTNEED",
        "load",
        "load byte",
        "store",
        "store byte",
        "add",
        "read pages",
        "ftruncate",
        "fork",
        "exit",
        "look",
    ];

    /// Its name in reports: one of [`KINDS`](Self::KINDS).
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Map { .. } => "mmap",
            Self::Unmap { .. } => "munmap",
            Self::Protect { .. } => "mprotect",
            Self::Discard { .. } => "madvise DONTNEED",
            Self::Load { .. } => "load",
            Self::LoadByte { .. } => "load byte",
            Self::Store { .. } => "store",
            Self::StoreByte { .. } => "store byte",
            Self::Add { .. } => "add",
            Self::Read { .. } => "read pages",
            Self::Truncate { .. } => "ftruncate",
            Self::Fork => "fork",
            Self::Exit => "exit",
            Self::Look => "look",
        }
    }

    /// The file that it names, if it does.
    pub fn file(&self) -> Option<usize> {
        match self {
            Self::Map { object: Object::File { file, .. }, .. } | Self::Truncate { file, .. } => Some(*file),
            _ => None,
        }
    }

    /// Whether what it gives depends on its own thread's window and files alone, and so is the same whatever other threads
    /// do in theirs. Threads leave the others out.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Map { .. }
            | Self::Unmap { .. }
            | Self::Protect { .. }
            | Self::Discard { .. }
            | Self::Load { .. }
            | Self::LoadByte { .. }
            | Self::Store { .. }
            | Self::StoreByte { .. }
            | Self::Add { .. }
            | Self::Read { .. }
            | Self::Truncate { .. }
            | Self::Fork
            | Self::Exit
            | Self::Look => true,
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

/// Bytes as pages and a rest: `p3`, `p3+0x10`.
fn pages_of(f: &mut Formatter<'_>, bytes: u64) -> fmt::Result {
    match (bytes / PAGE_SIZE, bytes % PAGE_SIZE) {
        _ if bytes as i64 <= 0 && bytes != 0 => write!(f, "{:#x}", bytes),
        (0, 0) => f.write_str("0"),
        (0, rest) => write!(f, "{rest:#x}"),
        (pages, 0) => write!(f, "{pages}*P"),
        (pages, rest) => write!(f, "{pages}*P+{rest:#x}"),
    }
}

impl Display for At {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (self.0 / PAGE_SIZE, self.0 % PAGE_SIZE) {
            (page, 0) => write!(f, "p{page}"),
            (page, rest) => write!(f, "p{page}+{rest:#x}"),
        }
    }
}

impl Display for Length {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        pages_of(f, self.0)
    }
}

impl Display for Rights {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let names = [(1, "PROT_READ"), (2, "PROT_WRITE"), (4, "PROT_EXEC")];
        let mut names = names.iter().filter(|(bit, _)| self.0 & bit != 0).map(|(_, name)| name);
        match names.next() {
            None => f.write_str("PROT_NONE"),
            Some(first) => {
                f.write_str(first)?;
                names.try_for_each(|name| write!(f, "|{name}"))
            }
        }
    }
}

impl Display for Operation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map { at, length, rights, object, place } => {
                let place_name = match place {
                    Place::Fixed => "|MAP_FIXED",
                    Place::NoReplace => "|MAP_FIXED_NOREPLACE",
                    Place::Anywhere => "",
                };
                match place {
                    Place::Anywhere => write!(f, "munmap(mmap(NULL, {length}, {rights}, ")?,
                    _ => write!(f, "mmap({at}, {length}, {rights}, ")?,
                }
                match object {
                    Object::Anonymous => write!(f, "MAP_PRIVATE|MAP_ANONYMOUS{place_name}, -1, 0)")?,
                    Object::File { file, first, shared } => {
                        let sharing = if *shared { "MAP_SHARED" } else { "MAP_PRIVATE" };
                        write!(f, "{sharing}{place_name}, file{file}, ")?;
                        pages_of(f, first.wrapping_mul(PAGE_SIZE))?;
                        f.write_str(")")?;
                    }
                }
                match place {
                    Place::Anywhere => write!(f, ", {length})"),
                    _ => Ok(()),
                }
            }
            Self::Unmap { at, length } => write!(f, "munmap({at}, {length})"),
            Self::Protect { at, length, rights } => write!(f, "mprotect({at}, {length}, {rights})"),
            Self::Discard { at, length } => write!(f, "madvise({at}, {length}, MADV_DONTNEED)"),
            Self::Load { at } => write!(f, "load *(u64 *){at}"),
            Self::LoadByte { at } => write!(f, "load *(u8 *){at}"),
            Self::Store { at, value } => write!(f, "*(u64 *){at} = {value:#x}"),
            Self::StoreByte { at, value } => write!(f, "*(u8 *){at} = {value:#x}"),
            Self::Add { at, value } => write!(f, "atomic_fetch_add((u64 *){at}, {value:#x})"),
            Self::Read { at, pages } => write!(f, "read all bytes of {at}, {pages}*P"),
            Self::Truncate { file, length } => {
                write!(f, "ftruncate(file{file}, ")?;
                pages_of(f, *length)?;
                f.write_str(")")
            }
            Self::Fork => f.write_str("fork()              // the child:"),
            Self::Exit => f.write_str("_exit(0)            // back in its parent"),
            Self::Look => f.write_str("read all of the window and its flags"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_read_like_c() {
        let object = Object::File { file: 1, first: 2, shared: true };
        let (at, length, rights) = (At::page(3), Length(5 * PAGE_SIZE + 1), Rights(3));
        let map = Operation::Map { at, length, rights, object, place: Place::Fixed };
        assert_eq!(
            map.to_string(),
            "mmap(p3, 5*P+0x1, PROT_READ|PROT_WRITE, MAP_SHARED|MAP_FIXED, file1, 2*P)"
        );
        let store = Operation::StoreByte { at: At(0x1005), value: 7 };
        assert_eq!(store.to_string(), "*(u8 *)p1+0x5 = 0x7");
        assert_eq!(
            Operation::Unmap { at, length: Length(u64::MAX) }.to_string(),
            "munmap(p3, 0xffffffffffffffff)"
        );
    }

    #[test]
    fn each_fork_has_its_exit() {
        use Operation::{Exit, Fork, Look};
        let list = [Fork, Look, Fork, Exit, Exit, Fork, Look];
        assert_eq!([exit_of(&list, 0), exit_of(&list, 2), exit_of(&list, 5)], [4, 3, 7]);
    }
}
