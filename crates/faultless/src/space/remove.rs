//! madvise(MADV_REMOVE): a hole in what is mapped shared.

use super::Space;
use super::advise::{Advice, AdviseError, refuses};
use super::flags::Wrong;
use crate::address::{PAGE_SIZE, PageRange};
use crate::design::LockingDesign;
use crate::host::Host;
use crate::vma::tree::Ranged;

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Punches the pages of `range` out of their files, mapping by mapping as they are found. Nothing is held while a file is at
    /// work; what somebody maps there meanwhile stays as it is.
    pub(super) fn remove(&self, range: PageRange) -> Result<(), AdviseError> {
        let advice = Advice::Remove;
        let (mut at, mut hole) = (range.start(), None);
        while let Some(rest) = PageRange::new(at, range.end()) {
            let Some(inside) = rest.intersection(self.whole()) else { break };
            // Taken, so that nothing there is half done; let go before the file is asked.
            let mut call = self.change_nothing();
            let lock = call.take(inside);
            let next = self.tree.view_locked(&lock.writer).from(at).next().and_then(|vma| {
                let part = vma.range().intersection(rest)?;
                let refusal = refuses(vma.mapping(), advice);
                let file = vma.mapping().file_page(part.start()).map(|(file, page)| (file.clone(), page));
                Some((part, refusal, file))
            });
            drop(lock);
            call.finish();
            let Some((part, refusal, file)) = next else { break };
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
