//! The group of a memory limit that pays for a folio's page, and whether the page is counted as a file's there.

use super::Folio;
use crate::host::GroupId;
use crate::sync::plain::Ordering;

/// Set beside the group's number if the page is counted as a file's.
const OF_FILE: u32 = 1 << 31;

impl Folio {
    /// Returns the group that pays for the page. Of a free frame it is the root.
    #[inline]
    pub(crate) fn group(&self) -> GroupId {
        GroupId::new(self.group.load(Ordering::Relaxed) & !OF_FILE)
    }

    /// Returns whether the group counts the page as a file's. A page of a file that has become anonymous in place stays counted so.
    pub(crate) fn is_charged_as_file(&self) -> bool {
        self.group.load(Ordering::Relaxed) & OF_FILE != 0
    }

    /// Sets the group that pays for the page. The caller has the frame alone. Before the frame is freed it sets the root.
    #[inline]
    pub(crate) fn set_group(&self, group: GroupId) {
        self.group.store(group.get(), Ordering::Relaxed);
    }

    /// Sets the group that pays for the page of a file, and counts it as such.
    pub(crate) fn set_group_of_file_page(&self, group: GroupId) {
        self.group.store(group.get() | OF_FILE, Ordering::Relaxed);
    }
}
