//! A word of a file's index: the frame that has the page, or the time when the page was evicted.

use crate::host::{Frame, GroupId};
use crate::limit::MOST_GROUPS;
use crate::reclaim::Shadow;

/// A bit in a word of the index: the page has been in memory before.
pub(super) const SEEN: u64 = 1;

/// A bit in a word that names no frame: the page was evicted. The bits below tell when:
///
/// ```text
///  0 SEEN    1–46 the shadow    47–62 the group that paid for the page    63 EVICTED
/// ```
/// A number with this bit is that of no frame.
const EVICTED: u64 = 1 << 63;
const SHADOW_SHIFT: u32 = 1;
const GROUP_SHIFT: u32 = 47;
const SHADOW: u64 = (1 << (GROUP_SHIFT - SHADOW_SHIFT)) - 1;
const _: () = assert!(MOST_GROUPS < 1 << (63 - GROUP_SHIFT) && EVICTED >> 1 > Frame::COUNT);

/// Returns the word of a page that was evicted while `group` paid for it.
pub(super) fn word_of_evicted(group: GroupId, shadow: Shadow) -> u64 {
    EVICTED | u64::from(group.get()) << GROUP_SHIFT | (shadow.get() & SHADOW) << SHADOW_SHIFT | SEEN
}

/// Returns the group and the shadow of a page that was evicted, by its word.
pub(super) fn eviction_of(word: u64) -> Option<(GroupId, Shadow)> {
    let group = GroupId::new(((word & !EVICTED) >> GROUP_SHIFT) as u32);
    (word & EVICTED != 0).then(|| (group, Shadow::new(word >> SHADOW_SHIFT & SHADOW)))
}

/// Returns the word of a page that `frame` has.
pub(super) fn word_of(frame: Frame) -> u64 {
    (frame.get() + 1) << 1 | SEEN
}

/// Returns the frame that has the page, by its word.
pub(super) fn frame_of(word: u64) -> Option<Frame> {
    (word >> 1).checked_sub(1).and_then(Frame::new)
}
