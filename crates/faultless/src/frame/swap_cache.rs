//! The steps by which an anonymous folio comes to a swap slot and leaves it. The folio's part of the swap cache: `swap/steps.rs`
//! has the slot's part.

use super::{ANONYMOUS, CACHED, Folio, ISOLATED, PIN, PINS, READING, REFERENCES, UPTODATE, WRITEBACK};
use crate::sync::atomic::Ordering;
use crate::tables::Home;

/// The references of an attached folio that is taken: exactly these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alone {
    /// The swap cache's reference.
    InCache,
    /// The swap cache's reference, and a short pin of the caller.
    InCacheAndPinned,
}

impl Alone {
    const fn references(self) -> u64 {
        match self {
            Self::InCache => CACHED,
            Self::InCacheAndPinned => CACHED | PIN,
        }
    }
}

/// The word of a folio that [`Folio::freeze`] has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct Frozen(u64);

impl Folio {
    // ---- attaching

    /// Makes the folio that of the slot with this number. The caller has a pin, and no other thread attaches the folio at the same
    /// time. Returns false, and does nothing, if the folio is not anonymous, has a slot, or is being written. AcqRel: a thread that
    /// sees CACHED sees the number and the slot.
    pub(crate) fn attach(&self, slot: u64) -> bool {
        let may = |word: u64| word & (ANONYMOUS | CACHED | WRITEBACK) == ANONYMOUS;
        let mut word = self.word.load(Ordering::Relaxed);
        if !may(word) {
            return false;
        }
        self.set_index(slot, Ordering::Relaxed);
        while may(word) {
            match self.word.compare_exchange(word, word | CACHED, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Returns whether the folio has a slot. Acquire: if so, the caller sees the slot's number. A hint, unless the caller has a
    /// reference.
    pub(crate) fn is_in_slot(&self) -> bool {
        self.word.load(Ordering::Acquire) & (ANONYMOUS | CACHED) == ANONYMOUS | CACHED
    }

    /// Removes the swap cache's reference. The caller has another one. Returns whether this call removed it: the caller then takes the
    /// folio out of the slot. AcqRel.
    pub(crate) fn take_cached(&self) -> bool {
        let mut word = self.word.load(Ordering::Acquire);
        while word & (ANONYMOUS | CACHED) == ANONYMOUS | CACHED {
            debug_assert!(word & REFERENCES != CACHED, "a folio taken out by a thread without a reference");
            match self.word.compare_exchange(word, word & !CACHED, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    // ---- taking the frame

    /// Takes the folio, if its references are exactly those of `alone`, and no write of it is under way. Then the caller has the frame
    /// alone: no thread adds a reference. Acquire, as in the last put.
    ///
    /// A caller without a pin may have met the frame's next life. It asks afterwards whether the folio is the one that it meant, and
    /// calls [`Folio::unfreeze`] if not.
    #[inline]
    pub(crate) fn freeze(&self, alone: Alone) -> Option<Frozen> {
        // The mutant takes a folio that others have pinned.
        let counted = if mutant!("freeze_ignores_pins") { REFERENCES & !PINS } else { REFERENCES };
        let mut word = self.word.load(Ordering::Relaxed);
        while word & counted == alone.references() & counted && word & (WRITEBACK | ANONYMOUS) == ANONYMOUS {
            let order = if mutant!("freeze_relaxed") { Ordering::Relaxed } else { Ordering::Acquire };
            match self.word.compare_exchange(word, 0, order, Ordering::Relaxed) {
                Ok(_) => return Some(Frozen(word)),
                Err(now) => word = now,
            }
        }
        None
    }

    /// Gives back the references that [`Folio::freeze`] took. Release.
    ///
    /// Meanwhile other threads may have found nothing to do for the folio, since they could not freeze it. So the caller looks again
    /// whether an entry names the slot.
    pub(crate) fn unfreeze(&self, frozen: Frozen) {
        debug_assert_eq!(self.word.load(Ordering::Relaxed) & REFERENCES, 0, "a frozen folio was referenced");
        self.word.store(frozen.0, Ordering::Release);
    }

    // ---- swap-in

    /// Begins a life as the folio of the slot with this number, being read, with `pins` pins: one for the read, the rest for the
    /// caller. No entry maps it, so it has no home. It has no use yet: the access sets the entry's accessed bit. The caller has the
    /// frame alone, and publishes it in the slot (Release).
    pub(crate) fn begin_swapped_in(&self, slot: u64, pins: u64) {
        self.home.store(Home::NONE.bits(), Ordering::Release);
        self.set_index(slot, Ordering::Relaxed);
        self.word.store(ANONYMOUS | CACHED | READING | (pins * PIN), Ordering::Release);
    }

    // ---- swap-out

    /// Begins a write to the slot, if the swap cache and the caller's pin have the only references, and ends the isolation. AcqRel.
    ///
    /// From now on no entry gets the write right: its fault takes the folio out of the slot first, sees WRITEBACK in the same word, and
    /// waits or copies. [`Folio::end_writeback`] ends the write.
    pub(crate) fn begin_swap_write(&self) -> bool {
        let state = |word: u64| word & (ANONYMOUS | WRITEBACK | UPTODATE);
        let mut word = self.word.load(Ordering::Relaxed);
        while word & REFERENCES == CACHED | PIN && state(word) == ANONYMOUS | UPTODATE {
            let new = (word | WRITEBACK) & !ISOLATED;
            match self.word.compare_exchange(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Begins a life as a page that was attached and unmapped, with one pin. For tests.
    #[cfg(test)]
    pub(crate) fn begin_unmapped(&self) {
        self.word.store(ANONYMOUS | UPTODATE | PIN, Ordering::Release);
    }
}
