//! The words that page tables hold, as the engine sees them.

use core::fmt;

/// The number of a frame of physical memory; below 2^40.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame(u64);

impl Frame {
    /// How many numbers there are.
    pub const COUNT: u64 = 1 << 40;

    /// Frame `number`, or `None` where an entry has no room for it.
    pub const fn new(number: u64) -> Option<Self> {
        if number < Self::COUNT { Some(Self(number)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {}", self.0)
    }
}

/// A page-table entry. The bits that x86-64 has are where x86-64 has them; other hosts translate.
///
/// ```text
///  0 MAPPED    it names a frame            6 DIRTY      a processor has stored
///  1 WRITE     stores allowed              9 ANNOUNCED  page work is under way
///  2 READ      loads allowed              10 EXECUTE    fetches allowed (x86-64: the opposite, in bit 63)
///  5 ACCESSED  a processor has used it    12–51 the frame
///  7 GUARD     of an entry that names no frame: accesses are refused
///  8 REFUSED    the process was told that it cannot have it    11 the host's own, which the engine never sees
/// ```
/// `MAPPED` without rights is PROT_NONE over a page that stays (x86-64: not present, by a software bit).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry(u64);

impl Entry {
    /// Nothing there.
    pub const EMPTY: Self = Self(0);
    /// It names a frame.
    pub const MAPPED: u64 = 1 << 0;
    /// Stores allowed.
    pub const WRITE: u64 = 1 << 1;
    /// Loads allowed.
    pub const READ: u64 = 1 << 2;
    /// Used since the bit was last cleared.
    pub const ACCESSED: u64 = 1 << 5;
    /// Stored to since the bit was last cleared.
    pub const DIRTY: u64 = 1 << 6;
    /// Accesses are refused, though the mapping allows them (MADV_GUARD_INSTALL). In entries that name no frame.
    pub const GUARD: u64 = 1 << 7;
    /// The host has told the process that the page cannot be had; see [`super::PageTable::refuse`].
    pub const REFUSED: u64 = 1 << 8;
    /// Page work is under way on this page.
    pub const ANNOUNCED: u64 = 1 << 9;
    /// Instruction fetches allowed.
    pub const EXECUTE: u64 = 1 << 10;
    /// What a processor sets by itself.
    pub const HARDWARE: u64 = Self::ACCESSED | Self::DIRTY;

    const FRAME_SHIFT: u32 = 12;
    const FRAME_MASK: u64 = (Frame::COUNT - 1) << Self::FRAME_SHIFT;

    /// The entry with these bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// All bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// An entry that maps `frame` with `rights` of [`Entry::READ`], [`Entry::WRITE`], [`Entry::EXECUTE`].
    pub const fn mapping(frame: Frame, rights: u64) -> Self {
        Self(frame.get() << Self::FRAME_SHIFT | rights | Self::MAPPED)
    }

    /// Whether all of `bits` are set.
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// Whether it is a guard page.
    pub const fn is_guard(self) -> bool {
        self.0 & (Self::MAPPED | Self::GUARD) == Self::GUARD
    }

    /// What a sweep that drops pages leaves here: nothing, or the guard.
    pub const fn dropped(self) -> Self {
        if self.is_guard() { Self(Self::GUARD) } else { Self::EMPTY }
    }

    /// With `bits` too.
    pub const fn with(self, bits: u64) -> Self {
        Self(self.0 | bits)
    }

    /// Without `bits`.
    pub const fn without(self, bits: u64) -> Self {
        Self(self.0 & !bits)
    }

    /// The frame, if it names one.
    pub const fn frame(self) -> Option<Frame> {
        if self.has(Self::MAPPED) {
            Some(Frame((self.0 & Self::FRAME_MASK) >> Self::FRAME_SHIFT))
        } else {
            None
        }
    }

    /// Whether page work is under way on it.
    pub const fn is_announced(self) -> bool {
        self.has(Self::ANNOUNCED)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(frame) = self.frame() else { return write!(f, "entry {:#x}", self.0) };
        write!(f, "{frame:?} ")?;
        for (bit, letter) in [
            (Self::READ, 'r'),
            (Self::WRITE, 'w'),
            (Self::EXECUTE, 'x'),
            (Self::ACCESSED, 'a'),
            (Self::DIRTY, 'd'),
            (Self::ANNOUNCED, '*'),
        ] {
            write!(f, "{}", if self.has(bit) { letter } else { '-' })?;
        }
        Ok(())
    }
}

const _: () = assert!(size_of::<Entry>() == 8);
const _: () = assert!(Entry::FRAME_MASK == 0x000f_ffff_ffff_f000);
