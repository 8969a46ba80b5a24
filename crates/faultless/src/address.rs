//! Addresses, page numbers and page ranges: newtypes with checked arithmetic.

use core::fmt;

/// The number of bytes in a page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// The logarithm of [`PAGE_SIZE`] to base two.
pub const PAGE_SHIFT: u32 = 12;

/// A virtual address, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VirtAddr(u64);

impl VirtAddr {
    /// Makes the address `value`, in bytes.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// Returns the address as a number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the page that the address lies in.
    pub const fn page(self) -> PageNumber {
        PageNumber(self.0 >> PAGE_SHIFT)
    }

    /// Returns the distance in bytes from the start of the page: `0..PAGE_SIZE`.
    pub const fn offset_in_page(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }

    /// Returns the address `bytes` further up, or `None` past the end of the number range.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl fmt::Debug for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The number of a page of the address space: its address divided by [`PAGE_SIZE`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PageNumber(u64);

impl PageNumber {
    /// Makes page number `value`. Page numbers must stay below 2^52, so that every page has an address.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// Returns the number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the address of the page's first byte.
    pub const fn address(self) -> VirtAddr {
        VirtAddr(self.0 << PAGE_SHIFT)
    }

    /// Returns the page `pages` further up, or `None` where that page would have no address.
    pub fn checked_add(self, pages: u64) -> Option<Self> {
        self.0.checked_add(pages).filter(|&n| n <= u64::MAX >> PAGE_SHIFT).map(Self)
    }

    /// Returns the page `pages` further down, or `None` below zero.
    pub fn checked_sub(self, pages: u64) -> Option<Self> {
        self.0.checked_sub(pages).map(Self)
    }

    /// Returns the greatest multiple of `pages` that is not above this page. `pages` must be a power of two.
    pub const fn align_down(self, pages: u64) -> Self {
        Self(self.0 & !(pages - 1))
    }
}

impl fmt::Debug for PageNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {:#x}", self.0)
    }
}

/// A run of pages. It is never empty: `start < end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRange {
    start: PageNumber,
    end: PageNumber,
}

impl PageRange {
    /// Makes the range of the pages from `start` up to, not including, `end`; `None` if it would be empty.
    pub fn new(start: PageNumber, end: PageNumber) -> Option<Self> {
        (start < end).then_some(Self { start, end })
    }

    /// Makes the range of one page.
    pub fn single(page: PageNumber) -> Self {
        Self { start: page, end: PageNumber(page.0 + 1) }
    }

    /// Makes the range of `pages` pages from `start` on.
    ///
    /// # Errors
    /// [`RangeError::ZeroLength`] for no pages, [`RangeError::Overflow`] where the end has no address.
    pub fn with_pages(start: PageNumber, pages: u64) -> Result<Self, RangeError> {
        if pages == 0 {
            return Err(RangeError::ZeroLength { address: start.address() });
        }
        match start.checked_add(pages) {
            Some(end) => Ok(Self { start, end }),
            None => Err(RangeError::Overflow {
                address: start.address(),
                length: pages.saturating_mul(PAGE_SIZE),
            }),
        }
    }

    /// Makes the range of the pages that `length` bytes at `address` touch, as munmap and mprotect count them. The
    /// address must lie on a page boundary; the length is rounded up to whole pages.
    ///
    /// # Errors
    /// [`RangeError`], with the values that were wrong.
    pub fn from_bytes(address: VirtAddr, length: u64) -> Result<Self, RangeError> {
        if address.offset_in_page() != 0 {
            return Err(RangeError::Unaligned { address });
        }
        let overflow = RangeError::Overflow { address, length };
        let rounded = length.checked_add(PAGE_SIZE - 1).ok_or(overflow)?;
        address.get().checked_add(rounded & !(PAGE_SIZE - 1)).ok_or(overflow)?;
        Self::with_pages(address.page(), rounded >> PAGE_SHIFT)
    }

    /// Returns the first page.
    pub const fn start(self) -> PageNumber {
        self.start
    }

    /// Returns the page behind the last one.
    pub const fn end(self) -> PageNumber {
        self.end
    }

    /// Returns the number of pages, which is at least one.
    pub const fn pages(self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Returns the number of bytes.
    pub const fn bytes(self) -> u64 {
        self.pages() << PAGE_SHIFT
    }

    /// Returns whether `page` lies in the range.
    pub fn contains(self, page: PageNumber) -> bool {
        self.start <= page && page < self.end
    }

    /// Returns whether all of `other` lies inside the range.
    pub fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Returns whether the two ranges have a page in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Returns the pages that the two ranges have in common, if any.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// Returns the smallest range that covers both ranges.
    pub fn hull(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// Iterates over all pages, upwards.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = PageNumber> + ExactSizeIterator {
        // A range of u64 has no exact size; page counts fit usize wherever tables for them do.
        (0..self.pages() as usize).map(move |i| PageNumber(self.start.0 + i as u64))
    }
}

impl fmt::Debug for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.address().get(), self.end.address().get())
    }
}

impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The reason why an address and a length do not make a range of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The address is not on a page boundary (EINVAL).
    #[error("address {address} is not a multiple of the page size {PAGE_SIZE}")]
    Unaligned {
        /// The address given.
        address: VirtAddr,
    },
    /// The length is zero (EINVAL).
    #[error("the range at {address} has length zero")]
    ZeroLength {
        /// The address given.
        address: VirtAddr,
    },
    /// The end lies beyond the last address (ENOMEM, as in Linux).
    #[error("{length} bytes at {address} reach past the last address")]
    Overflow {
        /// The address given.
        address: VirtAddr,
        /// The length given, in bytes.
        length: u64,
    },
    /// The part does not lie in the mapping (EINVAL).
    #[error("byte {end} is not a place in the mapping at {address}")]
    Outside {
        /// The first address of the mapping.
        address: VirtAddr,
        /// The end of the part, in bytes from `address`.
        end: u64,
    },
}

impl RangeError {
    /// Returns Linux's error number: ENOMEM for [`RangeError::Overflow`], else EINVAL.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Unaligned { .. } | Self::ZeroLength { .. } | Self::Outside { .. } => crate::errno::EINVAL,
            Self::Overflow { .. } => crate::errno::ENOMEM,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_up_to_pages() {
        let range = PageRange::from_bytes(VirtAddr::new(0x1000), 1).unwrap();
        assert_eq!((range.start().get(), range.pages()), (1, 1));
        let range = PageRange::from_bytes(VirtAddr::new(0x1000), 0x1001).unwrap();
        assert_eq!(range.pages(), 2);
    }

    #[test]
    fn wrong_ranges_are_typed_errors() {
        let at = VirtAddr::new;
        assert_eq!(PageRange::from_bytes(at(0x1001), 1), Err(RangeError::Unaligned { address: at(0x1001) }));
        assert_eq!(PageRange::from_bytes(at(0x1000), 0), Err(RangeError::ZeroLength { address: at(0x1000) }));
        for length in [u64::MAX, u64::MAX - 0x1fff, u64::MAX - 0x1000] {
            assert_eq!(
                PageRange::from_bytes(at(0x3000), length),
                Err(RangeError::Overflow { address: at(0x3000), length })
            );
        }
    }

    #[test]
    fn set_operations() {
        let r = |a, b| PageRange::new(PageNumber::new(a), PageNumber::new(b)).unwrap();
        assert!(r(1, 5).covers(r(2, 5)) && !r(1, 5).covers(r(2, 6)));
        assert!(r(1, 3).overlaps(r(2, 4)) && !r(1, 3).overlaps(r(3, 4)));
        assert_eq!(r(1, 4).intersection(r(2, 9)), Some(r(2, 4)));
        assert_eq!(r(1, 2).intersection(r(2, 9)), None);
        assert_eq!(r(1, 2).hull(r(7, 9)), r(1, 9));
        assert_eq!(r(3, 6).iter().next_back(), Some(PageNumber::new(5)));
    }
}
