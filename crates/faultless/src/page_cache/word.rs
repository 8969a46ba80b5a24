//! A word of a file's index: the frame that has the page, the time when the page was evicted, or the slot that has it.
//!
//! | the word says | in a file | the page |
//! |---|---|---|
//! | nothing | any | was never in memory, or was cut off |
//! | EVICTED | with a store | is in the store |
//! | IN_SLOT | without a store | is in the slot, or in the folio attached to it. The word is one use of the slot |
//! | a frame | any | is in memory. The folio's CACHED is the word's reference |
//!
//! A word that names nothing or an eviction becomes one of a frame by compare-and-swap, in any thread that reads or makes the page. All
//! other changes are made under the file's removal lock.

use crate::host::{Frame, GENERATIONS, GroupId, Slot};
use crate::limit::MOST_GROUPS;
use crate::reclaim::Shadow;

/// A bit in a word of the index: the page has been in memory before.
pub(super) const SEEN: u64 = 1;

/// A bit in a word that names no frame: the page was evicted. The bits below tell when:
///
/// ```text
///  0 SEEN    1–46 the shadow    47–61 the group that paid for the page    63 EVICTED
/// ```
/// A number with this bit is that of no frame.
const EVICTED: u64 = 1 << 63;
/// A bit in a word that names no frame: the page is in a slot. The bits below tell which:
///
/// ```text
///  0 SEEN    1–40 the slot    41–52 its generation    62 IN_SLOT
/// ```
/// A number with this bit is that of no frame.
const IN_SLOT: u64 = 1 << 62;
const SHADOW_SHIFT: u32 = 1;
const GROUP_SHIFT: u32 = 47;
const SHADOW: u64 = (1 << (GROUP_SHIFT - SHADOW_SHIFT)) - 1;
const SLOT_SHIFT: u32 = 1;
const GENERATION_SHIFT: u32 = 41;
const _: () = assert!(MOST_GROUPS < 1 << (62 - GROUP_SHIFT) && IN_SLOT >> 1 > Frame::COUNT);
const _: () = assert!(
    Slot::COUNT <= 1 << (GENERATION_SHIFT - SLOT_SHIFT)
        && (GENERATIONS as u64) << GENERATION_SHIFT <= IN_SLOT
);

/// Returns whether the word names no page in memory and no slot: the page is in the store, or is zeros.
pub(super) fn is_absent(word: u64) -> bool {
    word <= SEEN || word & EVICTED != 0
}

/// Returns the word of a page that was evicted while `group` paid for it.
pub(super) fn word_of_evicted(group: GroupId, shadow: Shadow) -> u64 {
    EVICTED | u64::from(group.get()) << GROUP_SHIFT | (shadow.get() & SHADOW) << SHADOW_SHIFT | SEEN
}

/// Returns the group and the shadow of a page that was evicted, by its word.
pub(super) fn eviction_of(word: u64) -> Option<(GroupId, Shadow)> {
    let group = GroupId::new(((word & !EVICTED) >> GROUP_SHIFT) as u32);
    (word & EVICTED != 0).then(|| (group, Shadow::new(word >> SHADOW_SHIFT & SHADOW)))
}

/// Returns the word of a page that is in `slot`, in the slot's life of this `generation`.
pub(super) fn word_of_slot(slot: Slot, generation: u16) -> u64 {
    let generation = u64::from(generation % GENERATIONS) << GENERATION_SHIFT;
    IN_SLOT | generation | slot.get() << SLOT_SHIFT | SEEN
}

/// Returns the slot that has the page, and its generation, by the word.
pub(super) fn slot_of(word: u64) -> Option<(Slot, u16)> {
    let generation = (word >> GENERATION_SHIFT) as u16 % GENERATIONS;
    let slot = Slot::new(word >> SLOT_SHIFT & (Slot::COUNT - 1))?;
    (word & IN_SLOT != 0).then_some((slot, generation))
}

/// Returns the word of a page that `frame` has.
pub(super) fn word_of(frame: Frame) -> u64 {
    (frame.get() + 1) << 1 | SEEN
}

/// Returns the frame that has the page, by its word.
pub(super) fn frame_of(word: u64) -> Option<Frame> {
    (word >> 1).checked_sub(1).and_then(Frame::new)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_of_one_kind() {
        let (slot, generation) = (Slot::new(Slot::COUNT - 1).unwrap(), GENERATIONS - 1);
        let in_slot = word_of_slot(slot, generation);
        assert_eq!((slot_of(in_slot), frame_of(in_slot)), (Some((slot, generation)), None));
        assert!(eviction_of(in_slot).is_none() && !is_absent(in_slot));
        let frame = Frame::new(Frame::COUNT - 1).unwrap();
        assert_eq!((frame_of(word_of(frame)), slot_of(word_of(frame))), (Some(frame), None));
        let group = GroupId::new(MOST_GROUPS as u32);
        let evicted = word_of_evicted(group, Shadow::new(SHADOW));
        assert_eq!((frame_of(evicted), slot_of(evicted), is_absent(evicted)), (None, None, true));
        assert_eq!(eviction_of(evicted).map(|(group, shadow)| (group, shadow.get())), Some((group, SHADOW)));
        assert!(is_absent(0) && is_absent(SEEN) && slot_of(SEEN).is_none() && !is_absent(word_of(frame)));
    }
}
