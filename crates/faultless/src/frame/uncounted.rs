//! Mappings that no entry has, for tests of full counts.

use super::{Folio, MAPPING, Reference};
use crate::sync::atomic::Ordering;

impl Folio {
    /// Counts one more mapping, which no entry has. Returns false if the count is full. For tests.
    ///
    /// # Safety
    /// An entry maps the frame. Each such mapping is taken back by [`Folio::put_uncounted`] before that entry goes.
    pub unsafe fn get_uncounted(&self) -> bool {
        let one_more = |word| (!Reference::Mapping.is_full(word)).then_some(word + MAPPING);
        self.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// Takes back one mapping of [`Folio::get_uncounted`]. For tests.
    ///
    /// # Safety
    /// The mapping was counted by [`Folio::get_uncounted`], and is taken back once.
    pub unsafe fn put_uncounted(&self) {
        let is_last = self.put(Reference::Mapping);
        debug_assert!(!is_last, "an entry maps the frame");
    }
}
