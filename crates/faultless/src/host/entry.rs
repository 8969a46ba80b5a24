//! The entries of page tables, as the engine sees them, and the numbers in them.

use core::fmt;

/// The number of a frame of physical memory; below 2^40.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame(u64);

impl Frame {
    /// The number of valid numbers: each is below it.
    pub const COUNT: u64 = 1 << 40;

    /// Returns the frame with this number, or `None` if `number` is not below [`Frame::COUNT`].
    pub const fn new(number: u64) -> Option<Self> {
        if number < Self::COUNT { Some(Self(number)) } else { None }
    }

    /// Returns the number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {}", self.0)
    }
}

/// The number of a slot of swap space; below 2^40. The slot holds the bytes of a page that has no frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u64);

impl Slot {
    /// The number of valid numbers: each is below it.
    pub const COUNT: u64 = 1 << 40;

    /// Returns the slot with this number, or `None` if `number` is not below [`Slot::COUNT`].
    pub const fn new(number: u64) -> Option<Self> {
        if number < Self::COUNT { Some(Self(number)) } else { None }
    }

    /// Returns the number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}", self.0)
    }
}

/// The number of generations that an entry can tell apart. A slot that is used again has another generation.
pub const GENERATIONS: u16 = 1 << 12;

/// The meaning of a page-table entry, without the bits for its rights. [`Entry::kind`] returns it.
///
/// Match on all kinds, without `_`: then the compiler finds each place that has to learn a new one. [`Entry::holds_page`] is
/// the question "is a page here?". Reclaim makes `Swapped` and `Gone`, and a move of pages makes `Kept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// The entry is empty.
    Empty,
    /// Accesses are refused, though the mapping allows them.
    Guard,
    /// The entry maps a frame, and counts one mapping of it.
    Page(Frame),
    /// The entry maps a frame that the engine does not own: see [`ForeignFrames`](crate::ForeignFrames). The entry counts
    /// nothing, and the frame may have no [`Folio`](crate::frame::Folio).
    Foreign(Frame),
    /// The bytes of the page are in a slot, which has this generation. The entry counts one use of the slot.
    Swapped(Slot, u16),
    /// Reclaim has taken a page that can be obtained again: a page of a file, or a page after MADV_FREE. The entry counts
    /// nothing. The frame may be in other use by now. It tells which frame an old translation leads to.
    Gone(Frame),
    /// The entry maps a frame that no processor uses while the page is moved. The entry counts one mapping of it.
    Kept(Frame),
}

/// A page-table entry. Bits that x86-64 has are in the same place as there; other hosts translate.
///
/// ```text
///  0 MAPPED    it names a frame            6 DIRTY      a processor has stored
///  1 WRITE     stores allowed              9 ANNOUNCED  page work is under way
///  2 READ      loads allowed              10 EXECUTE    fetches allowed (x86-64: the opposite, in bit 63)
///  5 ACCESSED  a processor has used it    12–51 the frame
///  7 GUARD     of an entry of kind 0: accesses are refused
///  8 REFUSED    the process was told that it cannot have it    11 the host's own, which the engine never sees
/// ```
/// `MAPPED` without rights is PROT_NONE over a page that stays (x86-64: not present, by a software bit). In an entry with `MAPPED`,
/// bit 52 (x86-64: a software bit) is `FOREIGN`: the engine does not own the frame. Bits 53–63 of such an entry are free.
///
/// An entry without `MAPPED` has a kind in bits 3–4:
///
/// ```text
///  0 empty, or GUARD
///  1 swapped  12–51 the slot, 52–63 its generation
///  2 gone     12–51 the frame that it mapped
///  3 kept     12–51 the frame that it maps; WRITE too
/// ```
/// Kinds 1 to 3 have the READ and EXECUTE that the page had. 8, 9 and 11 mean the same in all entries. Zero is an empty entry.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry(u64);

impl Entry {
    /// The empty entry.
    pub const EMPTY: Self = Self(0);
    /// The bit of an entry that names a frame.
    pub const MAPPED: u64 = 1 << 0;
    /// The right to store.
    pub const WRITE: u64 = 1 << 1;
    /// The right to load.
    pub const READ: u64 = 1 << 2;
    /// The page was used since this bit was last cleared.
    pub const ACCESSED: u64 = 1 << 5;
    /// The page was stored to since this bit was last cleared.
    pub const DIRTY: u64 = 1 << 6;
    /// Accesses are refused, though the mapping allows them (MADV_GUARD_INSTALL). In entries that name no frame.
    pub const GUARD: u64 = 1 << 7;
    /// The host has told the process that it cannot have the page; see [`super::RefuseAccesses::refuse`].
    pub const REFUSED: u64 = 1 << 8;
    /// Page work is under way on this page.
    pub const ANNOUNCED: u64 = 1 << 9;
    /// The right to fetch instructions.
    pub const EXECUTE: u64 = 1 << 10;
    /// The engine does not own the frame, in an entry with `MAPPED`. In other entries, this bit is part of a number.
    pub const FOREIGN: u64 = 1 << 52;
    /// The bits that a processor sets by itself.
    pub const HARDWARE: u64 = Self::ACCESSED | Self::DIRTY;

    const KIND_SHIFT: u32 = 3;
    const KIND: u64 = 3 << Self::KIND_SHIFT;
    const SWAPPED: u64 = 1;
    const GONE: u64 = 2;
    const KEPT: u64 = 3;
    const RIGHTS: u64 = Self::READ | Self::WRITE | Self::EXECUTE;
    const GENERATION_SHIFT: u32 = 52;
    const FRAME_SHIFT: u32 = 12;
    const FRAME_MASK: u64 = (Frame::COUNT - 1) << Self::FRAME_SHIFT;

    /// Returns the entry with these bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns all bits of the entry.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Returns an entry that maps `frame` with `rights`, a set of [`Entry::READ`], [`Entry::WRITE`], [`Entry::EXECUTE`].
    pub const fn mapping(frame: Frame, rights: u64) -> Self {
        Self(frame.get() << Self::FRAME_SHIFT | rights | Self::MAPPED)
    }

    /// Returns an entry that maps `frame`, which the engine does not own, with `rights`, a set of [`Entry::READ`],
    /// [`Entry::WRITE`], [`Entry::EXECUTE`].
    pub const fn foreign(frame: Frame, rights: u64) -> Self {
        Self::mapping(frame, rights).with(Self::FOREIGN)
    }

    /// Returns an entry for a page whose bytes are in `slot` of this `generation` (below [`GENERATIONS`]; higher bits are left
    /// out). The entry keeps [`Entry::READ`] and [`Entry::EXECUTE`] of `rights`, the rights that the page had.
    pub const fn swapped(slot: Slot, generation: u16, rights: u64) -> Self {
        let generation = ((generation % GENERATIONS) as u64) << Self::GENERATION_SHIFT;
        let rights = rights & (Self::READ | Self::EXECUTE);
        Self(generation | slot.get() << Self::FRAME_SHIFT | rights | Self::SWAPPED << Self::KIND_SHIFT)
    }

    /// Returns an entry for a page that reclaim has taken from `frame` and that can be obtained again. The entry keeps
    /// [`Entry::READ`] and [`Entry::EXECUTE`] of `rights`, the rights that the page had.
    pub const fn gone(frame: Frame, rights: u64) -> Self {
        let rights = rights & (Self::READ | Self::EXECUTE);
        Self(frame.get() << Self::FRAME_SHIFT | rights | Self::GONE << Self::KIND_SHIFT)
    }

    /// Returns an entry that maps `frame`, which no processor uses meanwhile. The entry keeps [`Entry::READ`], [`Entry::WRITE`]
    /// and [`Entry::EXECUTE`] of `rights`, the rights that the page had.
    pub const fn kept(frame: Frame, rights: u64) -> Self {
        Self(frame.get() << Self::FRAME_SHIFT | rights & Self::RIGHTS | Self::KEPT << Self::KIND_SHIFT)
    }

    /// Returns the meaning of the entry.
    #[inline]
    pub const fn kind(self) -> EntryKind {
        if self.has(Self::MAPPED) {
            if self.has(Self::FOREIGN) {
                return EntryKind::Foreign(self.number());
            }
            return EntryKind::Page(self.number());
        }
        match (self.0 & Self::KIND) >> Self::KIND_SHIFT {
            Self::SWAPPED => {
                EntryKind::Swapped(Slot(self.number().0), (self.0 >> Self::GENERATION_SHIFT) as u16)
            }
            Self::GONE => EntryKind::Gone(self.number()),
            Self::KEPT => EntryKind::Kept(self.number()),
            _ if self.has(Self::GUARD) => EntryKind::Guard,
            _ => EntryKind::Empty,
        }
    }

    /// Returns whether a page is there, present or not: the entry is neither empty nor a guard.
    #[inline]
    pub const fn holds_page(self) -> bool {
        self.0 & (Self::MAPPED | Self::KIND) != 0
    }

    /// Returns whether a page is there that no processor can use: it is swapped, gone or kept. A processor may still use a
    /// translation that is older than the entry, for stores too. So a call that changes, copies or drops the entry invalidates.
    #[inline]
    pub const fn is_absent(self) -> bool {
        !self.has(Self::MAPPED) && self.0 & Self::KIND != 0
    }

    /// Returns whether both entries hold the same page in the same way. The rights may differ.
    pub fn has_page_of(self, other: Self) -> bool {
        self.holds_page() && self.kind() == other.kind()
    }

    /// Returns the entry in the form that processors may use: a kept page is mapped again. Other kinds stay as they are.
    #[inline]
    pub const fn restored(self) -> Self {
        if let EntryKind::Kept(_) = self.kind() {
            return Self(self.0 & !Self::KIND | Self::MAPPED);
        }
        self
    }

    /// Returns whether all of `bits` are set.
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// Returns whether the entry is a guard page.
    pub const fn is_guard(self) -> bool {
        self.0 & (Self::MAPPED | Self::KIND | Self::GUARD) == Self::GUARD
    }

    /// Returns the entry that a sweep that drops pages leaves here: an empty one, or the guard.
    pub const fn dropped(self) -> Self {
        if self.is_guard() { Self(Self::GUARD) } else { Self::EMPTY }
    }

    /// Returns the entry with `bits` set.
    pub const fn with(self, bits: u64) -> Self {
        Self(self.0 | bits)
    }

    /// Returns the entry with `bits` cleared.
    pub const fn without(self, bits: u64) -> Self {
        Self(self.0 & !bits)
    }

    /// Returns the frame that processors reach by the entry ([`EntryKind::Page`], [`EntryKind::Foreign`]). `None` does not mean
    /// that the entry is empty: see [`Entry::holds_page`].
    #[inline]
    pub const fn mapped_frame(self) -> Option<Frame> {
        if self.has(Self::MAPPED) { Some(self.number()) } else { None }
    }

    /// Returns the frame of which the entry counts one mapping: that of a page that is mapped or kept, and that the engine
    /// owns.
    #[inline]
    pub const fn counted_frame(self) -> Option<Frame> {
        match self.kind() {
            EntryKind::Page(frame) | EntryKind::Kept(frame) => Some(frame),
            EntryKind::Empty
            | EntryKind::Guard
            | EntryKind::Foreign(_)
            | EntryKind::Swapped(..)
            | EntryKind::Gone(_) => None,
        }
    }

    const fn number(self) -> Frame {
        Frame((self.0 & Self::FRAME_MASK) >> Self::FRAME_SHIFT)
    }

    /// Returns whether page work is under way on the page.
    pub const fn is_announced(self) -> bool {
        self.has(Self::ANNOUNCED)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind() {
            EntryKind::Page(frame) => write!(f, "{frame:?} ")?,
            EntryKind::Empty | EntryKind::Guard => return write!(f, "entry {:#x}", self.0),
            kind @ (EntryKind::Foreign(_)
            | EntryKind::Swapped(..)
            | EntryKind::Gone(_)
            | EntryKind::Kept(_)) => write!(f, "{kind:?} ")?,
        }
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
const _: () = assert!(Entry::FRAME_MASK & Entry::FOREIGN == 0);
const _: () = assert!(Entry::EMPTY.bits() == 0 && matches!(Entry::EMPTY.kind(), EntryKind::Empty));
const _: () = assert!(Entry::KIND & (Entry::RIGHTS | Entry::HARDWARE | Entry::GUARD | Entry::REFUSED) == 0);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use alloc::vec;

    const LAST_FRAME: Frame = Frame(Frame::COUNT - 1);
    const LAST_SLOT: Slot = Slot(Slot::COUNT - 1);

    // In constants too.
    const _: () = assert!(matches!(
        Entry::swapped(LAST_SLOT, GENERATIONS - 1, Entry::READ).kind(),
        EntryKind::Swapped(Slot(0xff_ffff_ffff), 0xfff)
    ));
    const _: () = assert!(matches!(Entry::gone(LAST_FRAME, 0).kind(), EntryKind::Gone(LAST_FRAME)));
    const _: () = assert!(matches!(Entry::kept(LAST_FRAME, 0).kind(), EntryKind::Kept(LAST_FRAME)));

    /// Returns zero, each single bit of a number of 40 bits, and all 40 bits.
    fn numbers() -> impl Iterator<Item = u64> {
        (0..40).map(|bit| 1 << bit).chain([0, Frame::COUNT - 1])
    }

    #[test]
    fn every_kind_comes_back_with_all_its_bits() {
        let rights = [0, Entry::READ, Entry::EXECUTE, Entry::READ | Entry::EXECUTE];
        let marks = [0, Entry::ANNOUNCED, Entry::REFUSED, 1 << 11];
        for (number, rights, marks) in numbers()
            .flat_map(|number| rights.map(|rights| (number, rights)))
            .flat_map(|(number, rights)| marks.map(|marks| (number, rights, marks)))
        {
            let (frame, slot) = (Frame::new(number).unwrap(), Slot::new(number).unwrap());
            let mut entries = vec![
                (Entry::mapping(frame, rights), EntryKind::Page(frame)),
                (Entry::foreign(frame, rights | Entry::WRITE), EntryKind::Foreign(frame)),
                (Entry::gone(frame, rights), EntryKind::Gone(frame)),
                (Entry::kept(frame, rights | Entry::WRITE), EntryKind::Kept(frame)),
            ];
            let generations = (0..12).map(|bit| 1 << bit).chain([0, GENERATIONS - 1]);
            entries.extend(generations.map(|generation| {
                (Entry::swapped(slot, generation, rights), EntryKind::Swapped(slot, generation))
            }));
            for (entry, kind) in entries {
                let marked = entry.with(marks);
                assert_eq!(marked.kind(), kind);
                assert_eq!(marked.bits() & (Entry::READ | Entry::EXECUTE), rights);
                assert!(marked.has(marks) && marked.holds_page() && !marked.is_guard());
                assert_eq!(marked.is_absent(), !marked.has(Entry::MAPPED));
                assert_eq!(marked.dropped(), Entry::EMPTY);
                assert!(marked.has_page_of(entry));
            }
        }
    }

    #[test]
    fn nothing_and_a_guard_hold_no_page() {
        for marks in [0, Entry::ANNOUNCED, Entry::REFUSED, 1 << 11] {
            let (empty, guard) = (Entry::EMPTY.with(marks), Entry::from_bits(Entry::GUARD | marks));
            assert_eq!((empty.kind(), guard.kind()), (EntryKind::Empty, EntryKind::Guard));
            assert!(!empty.holds_page() && !guard.holds_page() && !empty.is_absent() && !guard.is_absent());
        }
    }

    #[test]
    fn a_kept_page_is_mapped_again_with_the_rights_it_had() {
        let frame = Frame::new(7).unwrap();
        let rights = Entry::READ | Entry::WRITE;
        assert_eq!(Entry::kept(frame, rights).restored(), Entry::mapping(frame, rights));
        let gone = Entry::gone(frame, Entry::READ);
        assert_eq!(gone.restored(), gone);
    }

    #[test]
    fn only_a_mapped_or_kept_page_counts_a_mapping() {
        let (frame, slot) = (Frame::new(7).unwrap(), Slot::new(7).unwrap());
        assert_eq!(Entry::mapping(frame, 0).counted_frame(), Some(frame));
        assert_eq!(Entry::kept(frame, 0).counted_frame(), Some(frame));
        assert_eq!(Entry::foreign(frame, 0).counted_frame(), None);
        assert_eq!(Entry::gone(frame, 0).counted_frame(), None);
        assert_eq!(Entry::swapped(slot, 7, 0).counted_frame(), None);
    }
}
