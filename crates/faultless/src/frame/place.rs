//! The word of a folio that says where its page belongs: its number, the group that pays for it, and why its read failed.
//!
//! ```text
//!  0–39 the number: the page of the file, or the swap slot      40–47 the code of the error      48–63 the group: see group.rs
//! ```

use super::Folio;
use crate::host::Slot;
use crate::sync::atomic::Ordering;

/// The largest number.
pub(crate) const NUMBER: u64 = (1 << ERROR_SHIFT) - 1;
const ERROR_SHIFT: u32 = 40;
const ERROR: u64 = 0xff << ERROR_SHIFT;
const GROUP_SHIFT: u32 = 48;
const _: () = assert!(Slot::COUNT - 1 <= NUMBER);

impl Folio {
    /// Returns the page's number in its file, or the number of an anonymous folio's slot.
    #[inline]
    pub(crate) fn index(&self) -> u64 {
        self.place.load(Ordering::Relaxed) & NUMBER
    }

    /// Sets the number, with this ordering. The caller is the only thread that changes the word.
    #[inline]
    pub(super) fn set_index(&self, index: u64, ordering: Ordering) {
        debug_assert!(index <= NUMBER, "the number {index} of a page or a slot is too large");
        let rest = self.place.load(Ordering::Relaxed) & !NUMBER;
        self.place.store(rest | index, ordering);
    }

    /// Returns the code of the error with which the read failed.
    pub(super) fn error_code(&self) -> u8 {
        (self.place.load(Ordering::Relaxed) >> ERROR_SHIFT) as u8
    }

    /// Sets the code of the error. The caller ends the read, so it is the only thread that changes the word.
    pub(super) fn set_error_code(&self, code: u8) {
        let rest = self.place.load(Ordering::Relaxed) & !ERROR;
        self.place.store(rest | u64::from(code) << ERROR_SHIFT, Ordering::Relaxed);
    }

    /// Returns the bits of the group.
    #[inline]
    pub(super) fn group_bits(&self) -> u16 {
        (self.place.load(Ordering::Relaxed) >> GROUP_SHIFT) as u16
    }

    /// Sets the bits of the group, and forgets the number and the error. The caller has the frame alone.
    #[inline]
    pub(super) fn begin_with_group(&self, group: u16) {
        self.place.store(u64::from(group) << GROUP_SHIFT, Ordering::Relaxed);
    }
}
