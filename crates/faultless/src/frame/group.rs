//! The group of a memory limit that pays for a folio's page.

use super::Folio;
use crate::host::GroupId;
use crate::sync::plain::Ordering;

impl Folio {
    /// Returns the group that pays for the page. Of a free frame, and of a page of a file, it is the root.
    #[inline]
    pub(crate) fn group(&self) -> GroupId {
        GroupId::new(self.group.load(Ordering::Relaxed))
    }

    /// Sets the group that pays for the page. The caller has the frame alone. Before the frame is freed it sets the root.
    #[inline]
    pub(crate) fn set_group(&self, group: GroupId) {
        self.group.store(group.get(), Ordering::Relaxed);
    }
}
