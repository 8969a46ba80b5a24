//! Frames for a group, and back.

use super::group::Event;
use crate::engine::Engine;
use crate::host::{Frame, FrameSource, FrameUse, GroupId, Host, Slots};
use crate::sync::Section;

impl<H: Host> Engine<H> {
    /// Allocates a frame for a space of `group`, which pays for it. Returns `None` if there is no frame, or if the group or one above
    /// it is at max. For a caller in no section; page work has a form of its own (`page_work.rs`).
    pub(crate) fn take_frame(&self, group: GroupId, purpose: FrameUse) -> Option<Frame> {
        if group == GroupId::ROOT {
            return self.frames().allocate(group, purpose);
        }
        let section = self.enter();
        if !section.stock().take(group) && !self.charge_more(&section, group) {
            return None;
        }
        let frame = self.frames().allocate(group, purpose);
        match frame {
            Some(frame) => self.folio(frame).set_group(group),
            None => self.uncharge_page(group),
        }
        frame
    }

    /// Charges a page to `group`, and some more for the next faults of this thread. Returns false if it is at max.
    #[cold]
    #[inline(never)]
    pub(crate) fn charge_more(&self, section: &Section<'_>, group: GroupId) -> bool {
        let (groups, stock) = (self.sections().groups(), section.stock());
        match stock.charge(groups, group) {
            Ok(charged) => {
                if charged.is_high {
                    groups.note(group, Event::High, 1);
                    stock.owe();
                }
                true
            }
            Err(full) => {
                groups.note(full, Event::Max, 1);
                stock.refuse();
                false
            }
        }
    }

    /// Frees a frame to which no reference is left. The group that has paid for it does so no longer.
    #[inline]
    pub(crate) fn free_frame(&self, frame: Frame) {
        let folio = self.folio(frame);
        let group = folio.group();
        if group == GroupId::ROOT {
            return self.frames().free(frame);
        }
        folio.set_group(GroupId::ROOT);
        self.frames().free(frame);
        self.uncharge_page(group);
    }

    /// Takes back the charge of a page, which this thread may keep for its next fault.
    #[inline(never)]
    pub(crate) fn uncharge_page(&self, group: GroupId) {
        let back = {
            let (slot, _guard) = self.host().slots().pin();
            self.sections().stock(slot).put(self.host().barrier(), group)
        };
        self.sections().groups().uncharge(group, back);
    }
}
