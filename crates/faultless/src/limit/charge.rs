//! Frames for a group, and back.

use super::group::Event;
use super::stock::Debts;
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
            Some(frame) if purpose == FrameUse::File => {
                self.begin_charge_of_file_page(&section, group, frame)
            }
            Some(frame) => self.folio(frame).set_group(group),
            None => {
                drop(section);
                self.uncharge_page(group, false);
            }
        }
        frame
    }

    /// Notes that `group` pays for `frame`, and counts it as a page of a file. In the section in which it was charged.
    pub(crate) fn begin_charge_of_file_page(&self, section: &Section<'_>, group: GroupId, frame: Frame) {
        if group != GroupId::ROOT {
            self.folio(frame).set_group_of_file_page(group);
            section.stock().count_file(self.sections().groups(), group);
        }
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
                    stock.owe(Debts::HIGH);
                }
                if charged.is_near && !mutant!("near_high_not_noted") {
                    stock.owe(Debts::CALL);
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

    /// Counts a fault that this thread was served in a space of `group`. The caller is in no section.
    pub(crate) fn count_fault_of(&self, group: GroupId) {
        if group != GroupId::ROOT {
            let (slot, _guard) = self.host().slots().pin();
            let (barrier, groups) = (self.host().barrier(), self.sections().groups());
            self.sections().stock(slot).count_fault_outside(barrier, groups, group);
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
        let is_file = folio.is_charged_as_file();
        folio.set_group(GroupId::ROOT);
        self.frames().free(frame);
        self.uncharge_page(group, is_file);
    }

    /// Frees frames to which no reference is left, as [`Engine::free_frame`] frees one.
    pub(crate) fn free_frames(&self, frames: &[Frame]) {
        let charge = |frame: &Frame| {
            let folio = self.folio(*frame);
            (folio.group(), folio.is_charged_as_file())
        };
        for run in frames.chunk_by(|one, next| charge(one) == charge(next)) {
            let Some((payer, is_file)) = run.first().map(charge).filter(|(group, _)| *group != GroupId::ROOT)
            else {
                self.frames().free_all(run);
                continue;
            };
            run.iter().for_each(|frame| self.folio(*frame).set_group(GroupId::ROOT));
            self.frames().free_all(run);
            let groups = self.sections().groups();
            if is_file {
                groups.count_files(payer, -(run.len() as i64));
            }
            groups.uncharge(payer, run.len() as u64);
        }
    }

    /// Takes the charge of a page off `group`. This thread may keep it for its next fault. `is_file`: it was counted as a file's.
    #[inline(never)]
    pub(crate) fn uncharge_page(&self, group: GroupId, is_file: bool) {
        let back = {
            let (slot, _guard) = self.host().slots().pin();
            self.sections().stock(slot).put(self.host().barrier(), group, is_file)
        };
        let groups = self.sections().groups();
        // Before the charge: a group's record is free when it pays for nothing.
        groups.count_files(group, back.files);
        groups.uncharge(group, back.pages);
    }
}
