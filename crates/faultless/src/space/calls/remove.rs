//! madvise(MADV_REMOVE): punches a hole in a file that is mapped shared.

use crate::address::{PAGE_SIZE, PageNumber, PageRange};
use crate::design::LockingDesign;
use crate::host::Host;
use crate::page_cache::File;
use crate::space::Space;
use crate::space::calls::advise::{Advice, AdviseError, Refusal, refuses};
use crate::space::calls::flags::Wrong;
use crate::sync::Shared;
use crate::vma::tree::Ranged;

/// The next mapped part of a range, whether it may not be removed, and the file that it shows, with the first page.
type NextPart<H> = (PageRange, Option<Refusal>, Option<(Shared<File<H>>, u64)>);

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Finds the first mapped part of `rest` from `at` on. `inside` is taken, so that no change there is half done, and
    /// released before the file is used. Not inlined: the stack has no room for this and for the file's work.
    #[inline(never)]
    fn next_removed(&self, at: PageNumber, rest: PageRange, inside: PageRange) -> Option<NextPart<H>> {
        let mut call = self.change_nothing();
        let lock = call.take(inside);
        let vma = self.tree.view_locked(&lock.writer).from(at).next()?;
        let part = vma.range().intersection(rest)?;
        let file = vma.mapping().file_page(part.start()).map(|(file, page)| (file.clone(), page));
        Some((part, refuses(vma.mapping(), Advice::Remove), file))
    }

    /// Punches the pages of `range` out of their files, mapping by mapping as they are found. Nothing is held while a file is
    /// at work. If another thread maps something there meanwhile, that stays as it is.
    pub(in crate::space) fn remove(&self, range: PageRange) -> Result<(), AdviseError> {
        let advice = Advice::Remove;
        let (mut at, mut hole) = (range.start(), None);
        while let Some(rest) = PageRange::new(at, range.end()) {
            let Some(inside) = rest.intersection(self.whole()) else { break };
            let Some((part, refusal, file)) = self.next_removed(at, rest, inside) else { break };
            if let Some(refusal) = refusal {
                let wrong = Wrong::Refused(part.start().address(), refusal);
                return Err(self.advise_error(range, advice, wrong));
            }
            hole = hole.or((part.start() > at).then_some(at));
            at = part.end();
            if let Some((file, first)) = file {
                let punched = file.punch_hole(first * PAGE_SIZE, part.pages() * PAGE_SIZE);
                punched.map_err(AdviseError::File)?;
            }
        }
        match hole.or((at < range.end()).then_some(at)) {
            Some(hole) => Err(self.advise_error(range, advice, Wrong::Hole(hole.address()))),
            None => Ok(()),
        }
    }
}
