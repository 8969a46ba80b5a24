//! Home: the table entry or the family of tables that an anonymous folio names, or the file of a file's folio (docs/home.md).

use super::LeafRecord;
use super::family::Family;
use core::ptr::{self, NonNull};

/// The home of a folio. For a file's folio it is the address of the file's counts. For an anonymous folio it is none, an entry, or a
/// family and the index that the folio has in each of the family's leaf tables. An entry is named by the record of its leaf table
/// and the index there. About the place the home is only a hint. The record, the family or the file is certain to be memory still
/// (rules H1 and H7).
///
/// ```text
///  0–1 kind   0 none
///             1 an entry                          2–12 index   13–63 address of the record >> 6
///             2 a family                          2–12 index   13–63 address of the family >> 6
///             3 a file                            2 it has no store   3–63 address of its counts >> 3
/// ```
/// The kind is in the same word as the rest: between two looks a frame may become another page's, also a file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Home(u64);

pub(super) const ENTRY: u64 = 1;
pub(super) const FAMILY: u64 = 2;
const FILE: u64 = 3;
/// In a home that names a file: it has no store.
const NO_STORE: u64 = 1 << 2;
const KIND_BITS: u32 = 2;
const INDEX_SHIFT: u32 = KIND_BITS;
const INDEX_BITS: u32 = 11;
const ADDRESS_SHIFT: u32 = INDEX_SHIFT + INDEX_BITS;
/// The number of low bits of an address in a home that are zero.
const ALIGN_SHIFT: u32 = 6;

/// The largest number of entries that a leaf table can have.
pub(crate) const MOST_ENTRIES: u64 = 1 << INDEX_BITS;

// The high bits of a kernel's address are all the same.
const _: () = assert!(usize::BITS == 64);
const _: () =
    assert!(align_of::<LeafRecord>() >= 1 << ALIGN_SHIFT && align_of::<Family>() >= 1 << ALIGN_SHIFT);

impl Home {
    /// The home that names no entry.
    pub const NONE: Self = Self(0);

    /// Makes the home that names the file whose counts are at `counts`.
    pub fn of_file(counts: NonNull<()>, has_store: bool) -> Self {
        let address = counts.as_ptr().expose_provenance() as u64;
        debug_assert!(address & (FILE | NO_STORE) == 0, "the counts of a file are not aligned");
        Self(address | FILE | if has_store { 0 } else { NO_STORE })
    }

    /// Makes the home that names entry `index` of the leaf table with this record.
    #[inline]
    pub fn of_entry(record: &LeafRecord, index: u64) -> Self {
        Self::of(record, index, ENTRY)
    }

    /// Makes the home that names the family of the leaf table with this record, at `index`; none if there is no family.
    pub fn of_relatives(record: &LeafRecord, index: u64) -> Self {
        record.family().map_or(Self::NONE, |family| Self::of(family, index, FAMILY))
    }

    #[inline]
    fn of<T>(thing: &T, index: u64, kind: u64) -> Self {
        debug_assert!(index < MOST_ENTRIES);
        let address = ptr::from_ref(thing).expose_provenance() as u64;
        Self(address << (ADDRESS_SHIFT - ALIGN_SHIFT) | index << INDEX_SHIFT | kind)
    }

    /// Returns the home as a word, to be stored in a folio.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// Functions for a thread that follows a home.
impl Home {
    /// Makes the home that [`Home::bits`] returned as `bits`.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns the kind.
    pub const fn kind(self) -> u64 {
        const KIND: u64 = (1 << KIND_BITS) - 1;
        self.0 & KIND
    }

    /// Returns the address of the record of the entry that the home names, and the entry's index; `None` if it names none.
    pub const fn entry(self) -> Option<(usize, u64)> {
        if self.kind() == ENTRY { Some((self.address(), self.index())) } else { None }
    }

    /// Returns the address of the counts of a file; `None` if the home names none.
    pub fn file(self) -> Option<NonNull<()>> {
        let address = (self.0 & !(FILE | NO_STORE)) as usize;
        (self.kind() == FILE).then(|| NonNull::new(ptr::with_exposed_provenance_mut(address))).flatten()
    }

    /// Returns whether the home names a file that has no store.
    pub const fn is_without_store(self) -> bool {
        self.0 & (FILE | NO_STORE) == FILE | NO_STORE
    }

    /// Returns the index in the leaf table, or in each table of the family.
    pub const fn index(self) -> u64 {
        self.0 >> INDEX_SHIFT & (MOST_ENTRIES - 1)
    }

    /// Returns the address of the record or the family. The highest stored bit stands for the bits above it.
    pub const fn address(self) -> usize {
        ((self.0 as i64 >> ADDRESS_SHIFT) << ALIGN_SHIFT) as usize
    }
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
            assert_eq!((home.kind(), Home::from_bits(home.bits())), (ENTRY, home));
        }
    }

    #[test]
    fn a_file_is_no_entry() {
        let counts = [0_u64; 2];
        for (place, has_store) in counts.iter().zip([false, true]) {
            let home = Home::of_file(NonNull::from(place).cast(), has_store);
            assert_eq!((home.kind(), home.file()), (FILE, Some(NonNull::from(place).cast())));
            assert_eq!(home.is_without_store(), !has_store);
        }
        let record = LeafRecord::new();
        let entry = Home::of_entry(&record, 5);
        assert!(entry.file().is_none() && Home::NONE.file().is_none() && !entry.is_without_store());
    }

    #[test]
    fn addresses_of_a_kernel_come_back() {
        for address in [0xffff_8880_0000_0040_u64, 0xff11_2233_4455_6680, 0x00ff_ffff_ffff_ffc0] {
            let home = Home(address << (ADDRESS_SHIFT - ALIGN_SHIFT) | ENTRY);
            assert_eq!(home.address() as u64, address, "{address:#x}");
        }
    }
}
