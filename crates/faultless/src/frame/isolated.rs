//! A folio in the hands of reclaim: it is isolated, so that one reclaimer has it, and its mappings end one by one.

use super::{
    ANONYMOUS, CACHED, DIRTY, EXCLUSIVE, FAILED, Folio, IO_PINS, ISOLATED, LAZY, LOCKED, MAPPING, MAPPINGS,
    MAPPINGS_FULL, PIN, PINS, READING, REFERENCES, UPTODATE, WRITEBACK,
};
use crate::host::Slot;
use crate::sync::atomic::Ordering;

/// A folio that [`Folio::try_isolate`] has isolated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// An anonymous page.
    Anonymous,
    /// A page of a file that has the store's bytes.
    File,
    /// A page of a file that has to be written before it can be taken: to the store, or to a slot if the file has no store.
    DirtyFile,
}

impl Folio {
    /// Pins and isolates the folio for a reclaimer, if it is a page that can be taken. Returns `None` if it is free, being read or
    /// written, locked, pinned for I/O, in another reclaimer's hands, or a page that its file has let go. Acquire: the caller sees the
    /// effects of the last owner.
    ///
    /// A file's page is taken by way of its file: see `Engine::file_of`.
    #[inline]
    pub(crate) fn try_isolate(&self) -> Option<Isolation> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            const BUSY: u64 = READING | FAILED | WRITEBACK | ISOLATED | IO_PINS;
            let (busy, needed) =
                if word & ANONYMOUS != 0 { (BUSY, REFERENCES) } else { (BUSY | LOCKED, CACHED) };
            let is_ready = word & (busy | UPTODATE) == UPTODATE;
            if !is_ready || word & needed == 0 || word & PINS == PINS {
                return None;
            }
            let isolation = match word & (ANONYMOUS | DIRTY) {
                0 => Isolation::File,
                DIRTY => Isolation::DirtyFile,
                _ => Isolation::Anonymous,
            };
            match self.word.compare_exchange(
                word,
                (word + PIN) | if mutant!("isolated_late") { 0 } else { ISOLATED },
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(isolation),
                Err(now) => word = now,
            }
        }
    }

    /// Returns whether the page is being read or written, or is in a reclaimer's hands: that ends soon. If not, a page that
    /// [`Folio::try_isolate`] refuses is locked or pinned, or its file has let it go. Threads that have it so may wait for the caller.
    pub(crate) fn is_at_work(&self) -> bool {
        self.word.load(Ordering::Relaxed) & (READING | FAILED | WRITEBACK | ISOLATED) != 0
    }

    /// Returns whether a file's page has the store's bytes, and nobody writes it or has it locked. The caller has the bit of an entry
    /// that maps the page without the write right. Acquire.
    pub(crate) fn is_clean(&self) -> bool {
        self.word.load(Ordering::Acquire) & (DIRTY | WRITEBACK | LOCKED) == 0
    }

    /// Isolates the folio, on which the caller has a pin already. Returns false if it is isolated. AcqRel.
    pub(crate) fn isolate_pinned(&self) -> bool {
        self.word.fetch_or(ISOLATED, Ordering::AcqRel) & ISOLATED == 0
    }

    /// Marks the page as one that may be dropped instead of written, until the next store. The caller has the bit of the only entry
    /// that maps the page, and takes the write right from it. Relaxed: the bit orders it.
    pub(crate) fn set_lazy(&self) {
        self.word.fetch_or(LAZY, Ordering::Relaxed);
    }

    /// Takes [`Folio::set_lazy`] back. The caller still has the bit.
    pub(crate) fn clear_lazy(&self) {
        self.word.fetch_and(!LAZY, Ordering::Relaxed);
    }

    /// Returns whether the page may be dropped instead of written: it is marked so, and one entry has it. The caller has that
    /// entry's bit, or takes the answer for a hint.
    pub(crate) fn may_drop(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        word & (ANONYMOUS | LAZY | MAPPINGS | CACHED) == ANONYMOUS | LAZY | MAPPING
    }

    /// Returns whether one entry alone has the page. `None` if the page has a slot, which entries may name. The caller has the bit of an
    /// entry that maps the page. One load: reclaim may attach a slot between two, and end another entry's mapping.
    pub(crate) fn has_one_owner(&self) -> Option<bool> {
        let word = self.word.load(Ordering::Acquire);
        if word & ANONYMOUS == 0 || word & EXCLUSIVE != 0 {
            return Some(true);
        }
        (word & CACHED == 0).then_some(word & MAPPINGS == MAPPING)
    }

    /// Ends the isolation. The caller has isolated the folio, and drops its pin next. Release, partner: [`Folio::is_isolated`].
    pub(crate) fn end_isolation(&self) {
        self.word.fetch_and(!ISOLATED, Ordering::Release);
    }

    /// Returns the number of entries that map the page, as [`Folio::mappings`] does. Acquire: a slot's count that is read afterwards
    /// has the entries that reclaim has made name the slot.
    pub(crate) fn mappings_before_slot(&self) -> u64 {
        self.word.load(Ordering::Acquire) & MAPPINGS
    }

    /// Returns whether a reclaimer has the folio, so that an old translation of an entry that is gone may still be in use.
    /// Acquire.
    pub(crate) fn is_isolated(&self) -> bool {
        self.word.load(Ordering::Acquire) & ISOLATED != 0
    }

    /// Returns whether the folio is that of `slot`. The caller has a reference. Acquire.
    pub(crate) fn is_of_slot(&self, slot: Slot) -> bool {
        self.is_in_slot() && self.index() == slot.get()
    }

    /// Ends a mapping by an entry that is to name the folio's slot, or that is GONE, and the exclusivity with it. Returns whether the
    /// folio was exclusive. The caller has a pin. Release, as in the drop of any reference.
    pub(crate) fn end_mapping(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            debug_assert!(word & MAPPINGS != 0 && word & PINS != 0, "no mapping to end: {word:#x}");
            let new = (word - MAPPING) & !EXCLUSIVE;
            match self.word.compare_exchange(word, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return word & EXCLUSIVE != 0,
                Err(now) => word = now,
            }
        }
    }

    /// Counts one mapping of an anonymous page by an entry that named the page's slot. The caller has the entry's bit, and a pin.
    /// With `is_exclusive`, no other entry maps the folio or names its slot. Then the entry may get the write right, so
    /// [`Folio::set_lazy`] is taken back. Returns false if the count is full; nothing has changed then.
    #[must_use]
    pub(crate) fn begin_mapping(&self, is_exclusive: bool) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            debug_assert!(word & ANONYMOUS != 0 && (!is_exclusive || word & MAPPINGS == 0), "{word:#x}");
            if word & MAPPINGS >= MAPPINGS_FULL {
                return false;
            }
            let (lazy, exclusive) = match is_exclusive {
                true if mutant!("store_leaves_lazy") => (0, EXCLUSIVE),
                true => (LAZY, EXCLUSIVE),
                false => (0, 0),
            };
            let new = (word + MAPPING) & !(EXCLUSIVE | lazy) | exclusive;
            match self.word.compare_exchange(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
    }
}
