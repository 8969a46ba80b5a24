//! Bytes that may differ under memory pressure.
//!
//! * Bytes behind the end of a file. A file system may zero them whenever it writes the page. If memory is short, the engine writes
//!   pages at other times than Linux.
//! * Pages of MADV_FREE. The engine drops them when memory is short, and Linux's memory is not.

use super::super::differences::{BEHIND_END, FREED, Known};
use super::super::operation::Operation;
use super::super::step::{Outcome, Seen, Step};
use super::Machine;
use faultless::address::PAGE_SIZE;
use faultless::design::LockingDesign;

impl<D: LockingDesign> Machine<D> {
    /// Returns the known difference that explains the steps of `operation` under pressure, as far as can be told.
    pub fn allowed(&self, operation: &Operation, mine: &Step, theirs: &Step) -> Option<&'static Known> {
        match () {
            () if !self.swaps || !self.differs_in_bytes(operation, mine, theirs, |_| true) => None,
            () if self.differs_in_bytes(operation, mine, theirs, |page| self.shows_end(page)) => {
                Some(&BEHIND_END)
            }
            () => self.has_freed.then_some(&FREED),
        }
    }

    /// Returns whether the steps of `operation` can differ only in bytes of pages for which `may` returns true.
    fn differs_in_bytes(
        &self,
        operation: &Operation,
        mine: &Step,
        theirs: &Step,
        may: impl Fn(u64) -> bool,
    ) -> bool {
        let pages = |at: u64, length: u64| at / PAGE_SIZE..(at + length).div_ceil(PAGE_SIZE);
        let read = match (operation, &mine.0, &theirs.0) {
            (Operation::Look, Outcome::Looked(mine, my_flags), Outcome::Looked(theirs, their_flags)) => {
                let mut pages = (0..).zip(mine.iter().zip(theirs));
                return my_flags == their_flags
                    && pages.all(|(page, seen)| match seen {
                        (Seen::Bytes(mine), Seen::Bytes(theirs)) => mine == theirs || may(page),
                        (mine, theirs) => mine == theirs,
                    });
            }
            (Operation::Load { at } | Operation::Add { at, .. }, Outcome::Done(_), Outcome::Done(_)) => {
                pages(at.0, 8)
            }
            (Operation::LoadByte { at }, Outcome::Done(_), Outcome::Done(_)) => pages(at.0, 1),
            (Operation::Read { at, .. } | Operation::ReadRemote { at, .. }, mine, theirs) => {
                let (Outcome::Read(_, length, signal), Outcome::Read(_, theirs, their_signal)) =
                    (mine, theirs)
                else {
                    return false;
                };
                if (length, signal) != (theirs, their_signal) {
                    return false;
                }
                pages(at.0, *length)
            }
            _ => return false,
        };
        mine.1 == theirs.1 && read.into_iter().any(may)
    }

    /// Returns whether page `page` of the window shows the last, partial page of a file that can be written.
    fn shows_end(&self, page: u64) -> bool {
        self.space().mappings().iter().any(|info| {
            let line = self.line(info);
            let Some((file, first)) = line.file.filter(|_| (line.start..line.end).contains(&page)) else {
                return false;
            };
            let Some(held) = self.files.get(file) else { return false };
            let length = held.file.length();
            held.file.is_writable()
                && !length.is_multiple_of(PAGE_SIZE)
                && length / PAGE_SIZE == first + (page - line.start)
        })
    }
}
