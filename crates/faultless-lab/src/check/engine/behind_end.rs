//! Bytes behind the end of a file, under memory pressure.
//!
//! A file system may zero them whenever it writes the page. If memory is short, the engine writes pages at other times than Linux.

use super::super::operation::Operation;
use super::super::step::{Outcome, Step};
use super::Machine;
use faultless::address::PAGE_SIZE;
use faultless::design::LockingDesign;

impl<D: LockingDesign> Machine<D> {
    /// Returns whether the steps of `operation` differ only in such bytes, as far as can be told.
    pub(super) fn differs_behind_end(&self, operation: &Operation, mine: &Step, theirs: &Step) -> bool {
        let pages = |at: u64, length: u64| at / PAGE_SIZE..(at + length).div_ceil(PAGE_SIZE);
        let read = match (operation, &mine.0, &theirs.0) {
            (_, Outcome::Broken(_), _) | (_, _, Outcome::Broken(_)) => return false,
            (Operation::Look, Outcome::Looked(mine, my_flags), Outcome::Looked(theirs, their_flags)) => {
                let mut pages = (0..).zip(mine.iter().zip(theirs));
                return my_flags == their_flags
                    && pages.all(|(page, (mine, theirs))| mine == theirs || self.shows_end(page));
            }
            (Operation::Load { at } | Operation::Add { at, .. }, ..) => pages(at.0, 8),
            (Operation::LoadByte { at }, ..) => pages(at.0, 1),
            (Operation::Read { at, pages: count }, ..) => pages(at.0, count * PAGE_SIZE),
            (Operation::ReadRemote { at, length }, ..) => pages(at.0, length.0),
            _ => return false,
        };
        mine.1 == theirs.1 && read.into_iter().any(|page| self.shows_end(page))
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
