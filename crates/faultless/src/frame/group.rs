//! The group of a memory limit that pays for a folio's page, and whether the page is counted as a file's there.

use super::Folio;
use crate::host::GroupId;
use crate::limit::MOST_GROUPS;

/// Set beside the group's number if the page is counted as a file's.
const OF_FILE: u16 = 1 << 15;
const _: () = assert!(MOST_GROUPS < OF_FILE as usize);

impl Folio {
    /// Returns the group that pays for the page. Of a free frame it is the root.
    #[inline]
    pub(crate) fn group(&self) -> GroupId {
        GroupId::new(u32::from(self.group_bits() & !OF_FILE))
    }

    /// Returns whether the group counts the page as a file's. A page of a file that has become anonymous in place stays counted so.
    pub(crate) fn is_charged_as_file(&self) -> bool {
        self.group_bits() & OF_FILE != 0
    }

    /// Sets the group that pays for the page. The caller has the frame alone. Before the frame is freed it sets the root.
    #[inline]
    pub(crate) fn set_group(&self, group: GroupId) {
        self.begin_with_group(group.get() as u16);
    }

    /// Sets the group that pays for the page of a file, and counts it as such. The caller has the frame alone.
    pub(crate) fn set_group_of_file_page(&self, group: GroupId) {
        self.begin_with_group(group.get() as u16 | OF_FILE);
    }
}
