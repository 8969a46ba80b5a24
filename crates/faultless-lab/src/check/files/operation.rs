//! The operations on one file, and an episode of them, which follows only from a seed.

use super::super::draw::{Draw, mix};
use faultless::address::PAGE_SIZE;
use std::fmt::{self, Display, Formatter};

/// Largest length of the file, in pages.
pub const FILE_PAGES: u64 = 16;
/// Length of each mapping, in pages. Some pages lie past the end of the file.
pub const MAPPED_PAGES: u64 = FILE_PAGES + 2;
/// Largest length of the file, in bytes.
pub const FILE_BYTES: u64 = FILE_PAGES * PAGE_SIZE;
/// Number of handles of the file.
pub const HANDLES: usize = 2;
/// Number of operations between two looks at everything.
const LOOK: u64 = 16;

/// Place of the file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a file without a store ([`File::in_memory`](faultless::File::in_memory)).
    Memory,
    /// In a store that transfers before `submit` returns. It can be made to fail.
    Kept,
    /// In a store that transfers later, on another thread and in any order.
    Late,
    /// In a temporary file of this machine, by [`FileStore`](faultless::store::FileStore).
    Disk,
}

impl Place {
    /// All places.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Kept, Self::Late, Self::Disk];
}

/// The file and store of an episode, drawn from its seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The place of the bytes.
    pub place: Place,
    /// The initial length of the file, in bytes.
    pub length: u64,
    /// Whether the machine has too few frames for the whole file. Only for a file in memory.
    pub is_scarce: bool,
    /// Whether the store refuses each change of its length.
    pub refuses_lengths: bool,
    /// Whether the store refuses each hole.
    pub refuses_holes: bool,
}

/// An operation of the store that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The read of a page.
    Read,
    /// The write of a page.
    Write,
    /// `Store::flush`.
    Flush,
    /// `Store::set_length`.
    SetLength,
    /// `Store::punch`.
    Punch,
}

impl Part {
    /// All parts, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Flush, Self::SetLength, Self::Punch];
}

/// Operation of a check of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileOperation {
    /// `FileHandle::write_at`.
    Write {
        /// The first byte.
        offset: u64,
        /// The number of bytes.
        length: u64,
        /// The value for `pattern`, which gives the bytes.
        value: u8,
    },
    /// `FileHandle::read_at`.
    Read {
        /// The first byte.
        offset: u64,
        /// The number of bytes.
        length: u64,
    },
    /// `FileHandle::set_length`.
    SetLength {
        /// The new length in bytes.
        length: u64,
    },
    /// `FileHandle::punch_hole`.
    Punch {
        /// The first byte.
        offset: u64,
        /// The number of bytes.
        length: u64,
    },
    /// MADV_REMOVE of the shared mapping.
    Remove {
        /// The first page.
        page: u64,
        /// The number of pages.
        pages: u64,
    },
    /// Stores bytes through the shared mapping.
    Store {
        /// The first byte.
        offset: u64,
        /// The number of bytes, inside one page.
        length: u64,
        /// The value for `pattern`, which gives the bytes.
        value: u8,
    },
    /// Loads a byte through a mapping.
    Load {
        /// The byte.
        offset: u64,
        /// Whether the load uses the private mapping, which is never stored to.
        private: bool,
    },
    /// `FileHandle::sync`.
    Sync {
        /// The index of the handle.
        handle: usize,
    },
    /// msync with MS_SYNC of the shared mapping.
    SyncMapping {
        /// The first page.
        page: u64,
        /// The number of pages.
        pages: u64,
    },
    /// `FileHandle::start_sync`.
    StartSync,
    /// MADV_DONTNEED of both mappings.
    Discard {
        /// The first page.
        page: u64,
        /// The number of pages.
        pages: u64,
    },
    /// Unmaps both mappings and maps them again.
    Remap,
    /// Reads another file until the cache has no room for pages of this one.
    Evict,
    /// Drops the file and opens it again over the same store.
    Reopen {
        /// Whether the file is synced first. If not, its dirty pages are written when it is dropped.
        sync: bool,
    },
    /// Makes the store's operations of this part fail: `skip` succeed first, then `times` fail.
    Fail {
        /// The part that fails.
        part: Part,
        /// The number of operations that succeed first.
        skip: u64,
        /// The number of operations that fail.
        times: u64,
    },
    /// Reads the whole file, by its handle and by both mappings.
    Look,
}

/// The names of all kinds of operations, in the order of reports.
pub const KINDS: [&str; 17] = [
    "write_at",
    "read_at",
    "set_length",
    "punch_hole",
    "madvise REMOVE",
    "store",
    "load",
    "load private",
    "sync",
    "msync SYNC",
    "start_sync",
    "madvise DONTNEED",
    "map again",
    "evict",
    "reopen",
    "fail",
    "look",
];

impl FileOperation {
    /// Returns the name of its kind: one of [`KINDS`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Write { .. } => "write_at",
            Self::Read { .. } => "read_at",
            Self::SetLength { .. } => "set_length",
            Self::Punch { .. } => "punch_hole",
            Self::Remove { .. } => "madvise REMOVE",
            Self::Store { .. } => "store",
            Self::Load { private: false, .. } => "load",
            Self::Load { private: true, .. } => "load private",
            Self::Sync { .. } => "sync",
            Self::SyncMapping { .. } => "msync SYNC",
            Self::StartSync => "start_sync",
            Self::Discard { .. } => "madvise DONTNEED",
            Self::Remap => "map again",
            Self::Evict => "evict",
            Self::Reopen { .. } => "reopen",
            Self::Fail { .. } => "fail",
            Self::Look => "look",
        }
    }

    /// Returns whether the operation counts towards the requested number.
    pub fn counts(&self) -> bool {
        !matches!(self, Self::Look)
    }
}

impl Display for FileOperation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { offset, length, value } => {
                write!(f, "write_at({offset:#x}, {length:#x} bytes, pattern {value:#x})")
            }
            Self::Read { offset, length } => write!(f, "read_at({offset:#x}, {length:#x} bytes)"),
            Self::SetLength { length } => write!(f, "set_length({length:#x})"),
            Self::Punch { offset, length } => write!(f, "punch_hole({offset:#x}, {length:#x})"),
            Self::Remove { page, pages } => write!(f, "madvise(page {page}, {pages} pages, MADV_REMOVE)"),
            Self::Store { offset, length, value } => {
                write!(f, "store at {offset:#x}, {length:#x} bytes, pattern {value:#x}")
            }
            Self::Load { offset, private: false } => write!(f, "load at {offset:#x}"),
            Self::Load { offset, private: true } => write!(f, "load at {offset:#x}, privately mapped"),
            Self::Sync { handle } => write!(f, "sync() by handle {handle}"),
            Self::SyncMapping { page, pages } => write!(f, "msync(page {page}, {pages} pages, MS_SYNC)"),
            Self::StartSync => f.write_str("start_sync()"),
            Self::Discard { page, pages } => write!(f, "madvise(page {page}, {pages} pages, MADV_DONTNEED)"),
            Self::Remap => f.write_str("unmap, and map again"),
            Self::Evict => f.write_str("read another file until the cache is full"),
            Self::Reopen { sync: true } => f.write_str("sync, drop the file, open it again"),
            Self::Reopen { sync: false } => f.write_str("drop the file, open it again"),
            Self::Fail { part, skip, times } => {
                write!(f, "the store: {part:?} fails {times} times, after {skip} that succeed")
            }
            Self::Look => f.write_str("read all of the file"),
        }
    }
}

/// Returns `length` bytes for the place `offset` in the file. None is zero, and neighbours differ.
pub fn pattern(value: u8, offset: u64, length: u64) -> Vec<u8> {
    let byte = |at: u64| (mix(at ^ u64::from(value) << 32) % 255) as u8 + 1;
    (offset..offset + length).map(byte).collect()
}

/// Operations that start from a new file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEpisode {
    /// The seed that determines the whole episode.
    pub seed: u64,
    /// Its file and store.
    pub setting: Setting,
    /// The operations.
    pub operations: Vec<FileOperation>,
}

impl FileEpisode {
    /// Returns the episode of `seed` with `length` operations that count. If `place` is `None`, the place is drawn.
    pub fn new(seed: u64, length: u64, place: Option<Place>) -> Self {
        let mut draw = Draw::new(mix(seed ^ 0x66_7378));
        let drawn = draw.one_of(&Place::ALL);
        let place = place.unwrap_or(drawn);
        let has_store_of_ours = matches!(place, Place::Kept | Place::Late);
        let setting = Setting {
            place,
            // `FileStore` cannot open an empty file.
            length: 1 + draw.below(FILE_BYTES),
            is_scarce: place == Place::Memory && draw.percent(30),
            refuses_lengths: has_store_of_ours && draw.percent(20),
            refuses_holes: has_store_of_ours && draw.percent(25),
        };
        let mut generator = Generator { fails: place == Place::Kept && draw.percent(70), draw };
        let mut operations = Vec::new();
        for done in 0..length {
            if done % LOOK == LOOK - 1 {
                operations.push(FileOperation::Look);
            }
            operations.push(generator.operation());
        }
        operations.push(FileOperation::Look);
        Self { seed, setting, operations }
    }
}

struct Generator {
    draw: Draw,
    /// Whether the store's operations sometimes fail.
    fails: bool,
}

impl Generator {
    fn operation(&mut self) -> FileOperation {
        let offset = self.offset();
        let value = self.draw.word() as u8;
        match self.draw.below(100) {
            0..19 => FileOperation::Write { offset, length: self.length(offset, 5), value },
            19..30 => FileOperation::Read { offset, length: self.length(offset, 5) },
            30..40 => FileOperation::SetLength { length: self.file_length() },
            40..45 => self.punch(offset),
            45..47 => {
                let (page, pages) = self.pages();
                FileOperation::Remove { page, pages }
            }
            47..61 => {
                let room = PAGE_SIZE - offset % PAGE_SIZE;
                FileOperation::Store { offset, length: self.length(offset, 1).clamp(1, room), value }
            }
            61..68 => FileOperation::Load { offset, private: false },
            68..72 => FileOperation::Load { offset, private: true },
            72..76 => FileOperation::Sync { handle: self.draw.below(HANDLES as u64) as usize },
            76..79 => {
                let (page, pages) = self.pages();
                FileOperation::SyncMapping { page, pages }
            }
            79..88 => FileOperation::StartSync,
            88..91 => {
                let (page, pages) = self.pages();
                FileOperation::Discard { page, pages }
            }
            91 => FileOperation::Remap,
            92..94 => FileOperation::Evict,
            94 => FileOperation::Reopen { sync: self.draw.percent(50) },
            _ if self.fails => FileOperation::Fail {
                part: self.draw.one_of(&Part::ALL),
                skip: self.draw.below(4),
                times: self.draw.few(40, 4),
            },
            _ => FileOperation::Write { offset, length: self.length(offset, 5), value },
        }
    }

    /// Returns an offset within the largest file, often at the start or end of a page.
    fn offset(&mut self) -> u64 {
        let page = self.draw.below(FILE_PAGES) * PAGE_SIZE;
        match self.draw.below(8) {
            0..2 => page,
            2 => page + PAGE_SIZE - 1,
            _ => page + self.draw.below(PAGE_SIZE),
        }
    }

    /// Returns a number of bytes from `offset` on, within the largest file.
    fn length(&mut self, offset: u64, pages: u64) -> u64 {
        let length = match self.draw.below(8) {
            0 => 1,
            1..3 => self.draw.few(60, pages) * PAGE_SIZE,
            3 => self.draw.few(60, pages) * PAGE_SIZE - offset % PAGE_SIZE,
            _ => self.draw.below(pages * PAGE_SIZE),
        };
        length.min(FILE_BYTES - offset)
    }

    fn file_length(&mut self) -> u64 {
        match self.draw.below(8) {
            0 => 0,
            1..4 => self.draw.below(FILE_PAGES + 1) * PAGE_SIZE,
            _ => self.draw.below(FILE_BYTES + 1),
        }
    }

    fn punch(&mut self, offset: u64) -> FileOperation {
        let length = 1 + self.length(offset, 5);
        match self.draw.percent(60) {
            true => {
                let offset = offset - offset % PAGE_SIZE;
                FileOperation::Punch { offset, length: length.next_multiple_of(PAGE_SIZE) }
            }
            false => FileOperation::Punch { offset, length },
        }
    }

    /// Returns a range of pages of the mappings.
    fn pages(&mut self) -> (u64, u64) {
        if self.draw.percent(25) {
            return (0, MAPPED_PAGES);
        }
        let page = self.draw.below(MAPPED_PAGES);
        (page, self.draw.few(70, 8).min(MAPPED_PAGES - page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn an_episode_follows_from_its_seed() {
        assert_eq!(FileEpisode::new(5, 300, None), FileEpisode::new(5, 300, None));
        let (whole, part) = (FileEpisode::new(5, 300, None), FileEpisode::new(5, 100, None));
        assert_eq!(part.operations[..90], whole.operations[..90], "a shorter run does the same");
    }

    #[test]
    fn each_kind_comes_and_stays_inside_the_file() {
        let mut seen = BTreeSet::new();
        for seed in 0..40 {
            for operation in FileEpisode::new(seed, 500, None).operations {
                seen.insert(operation.kind());
                match operation {
                    FileOperation::Write { offset, length, .. }
                    | FileOperation::Store { offset, length, .. } => {
                        assert!(offset + length <= FILE_BYTES, "{operation}");
                    }
                    _ => {}
                }
            }
        }
        assert_eq!(seen, KINDS.into_iter().collect(), "in order of the alphabet");
    }
}
