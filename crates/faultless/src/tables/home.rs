//! Home: the table entry that an anonymous folio names as the one that maps it, or the file of a file's folio (docs/home.md).

use super::LeafRecord;
use crate::frame::Folio;
use crate::sync::Section;
use core::ptr;

/// The home of a folio. For a file's folio it is the number of the file. For an anonymous folio it is none, or the entry that
/// maps the folio: the record of the entry's leaf table, and the index there. The entry is only a hint.
/// The record is certain to be memory still (rule H1): see [`follow`].
///
/// ```text
///  0–1 kind   0 none
///             1 an entry                          2–12 index   13–63 address of the record >> 6
///             2 reserved: a family of tables
///             3 a file                            2–63 its number
/// ```
/// The kind is in the same word as the rest: between two looks a frame may become another page's, also a file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Home(u64);

const ENTRY: u64 = 1;
const FILE: u64 = 3;
const KIND: u64 = 3;
const KIND_BITS: u32 = 2;
const INDEX_SHIFT: u32 = KIND_BITS;
const INDEX_BITS: u32 = 11;
const RECORD_SHIFT: u32 = INDEX_SHIFT + INDEX_BITS;
/// The number of low bits of a record's address that are zero.
const ALIGN_SHIFT: u32 = align_of::<LeafRecord>().trailing_zeros();

/// The largest number of entries that a leaf table can have.
pub(crate) const MOST_ENTRIES: u64 = 1 << INDEX_BITS;

// The high bits of a kernel's address are all the same.
const _: () = assert!(usize::BITS == 64 && ALIGN_SHIFT >= 6);

impl Home {
    /// The home that names no entry.
    pub const NONE: Self = Self(0);

    /// Makes the home that names the file with this number, which must be below 2^62.
    pub const fn of_file(file: u64) -> Self {
        Self(file << KIND_BITS | FILE)
    }

    /// Makes the home that names entry `index` of the leaf table with this record.
    #[inline]
    pub fn of_entry(record: &LeafRecord, index: u64) -> Self {
        debug_assert!(index < MOST_ENTRIES);
        let address = ptr::from_ref(record).expose_provenance() as u64;
        Self(address << (RECORD_SHIFT - 6) | index << INDEX_SHIFT | ENTRY)
    }

    /// Makes the home that [`Home::bits`] returned as `bits`.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns the home as a word, to be stored in a folio.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Returns the index of the entry in its leaf table.
    const fn index(self) -> u64 {
        self.0 >> INDEX_SHIFT & (MOST_ENTRIES - 1)
    }

    /// Returns the address of the record. The highest stored bit stands for the bits above it.
    const fn address(self) -> usize {
        ((self.0 as i64 >> RECORD_SHIFT) << 6) as usize
    }
}

/// Returns the record of the leaf table in which `folio` says that it is mapped, and the index of the entry. `None` if the
/// folio is not mapped or not anonymous, or if its home is none. The folio may meanwhile be another page's, and the entry may
/// map another folio: a caller that needs certainty reads the entry.
pub(crate) fn follow<'s>(folio: &Folio, _section: &'s Section<'_>) -> Option<(&'s LeafRecord, u64)> {
    let home = folio.mapped_home()?;
    if home.0 & KIND != ENTRY {
        return None;
    }
    // SAFETY: by its kind, the home has the address of a record. Rule H1: this section has seen a mapping, and then the home.
    // A thread that takes the table out redirects each home that names it, unless the entry is the only mapping; then it
    // drops the mapping; then it retires the table. So the home names a table that is retired after the section began, if at
    // all, and that is freed after the section ends.
    let record = unsafe { &*ptr::with_exposed_provenance::<LeafRecord>(home.address()) };
    Some((record, home.index()))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_home_names_a_record_and_an_index() {
        let record = LeafRecord::new();
        for index in [0, 1, 511, MOST_ENTRIES - 1] {
            let home = Home::of_entry(&record, index);
            assert_eq!((home.address(), home.index()), (ptr::from_ref(&record).addr(), index));
            assert_eq!((home.0 & KIND, Home::from_bits(home.bits())), (ENTRY, home));
        }
    }

    #[test]
    fn a_file_is_no_entry() {
        for file in [0, 1, 2, 3, (1 << 62) - 1] {
            let home = Home::of_file(file);
            assert_eq!((home.0 & KIND, home.0 >> KIND_BITS), (FILE, file));
        }
    }

    #[test]
    fn addresses_of_a_kernel_come_back() {
        for address in [0xffff_8880_0000_0040_u64, 0xff11_2233_4455_6680, 0x00ff_ffff_ffff_ffc0] {
            let home = Home(address << (RECORD_SHIFT - 6) | ENTRY);
            assert_eq!(home.address() as u64, address, "{address:#x}");
        }
    }
}
