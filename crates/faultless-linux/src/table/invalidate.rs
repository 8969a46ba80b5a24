//! `invalidate` for the entries of one leaf table. The kernel drops pages that are no longer needed, and write-protects
//! those that have lost the write right, one run of pages at a time.

use super::{LOADED, PAGE, Table};
use faultless::address::{PageNumber, PageRange};
use faultless::host::{Entry, PageTable};
use faultless::sync::Section;
use faultless_soft::Leaf;
use rustix::io::Errno;

impl Table {
    /// Announces the entry of a page that is no longer needed but still loaded, so that `invalidate` can drop the page.
    fn claim(&self, leaf: Leaf<'_>, page: PageNumber) -> Claim {
        let raw = self.entries.load(leaf, page);
        if raw.mapped_frame().is_some() || !raw.has(LOADED) || raw.has(Entry::REFUSED) {
            Claim::Nothing
        } else if raw.is_announced() || !self.entries.try_announce(leaf, page, raw) {
            Claim::Wait
        } else {
            Claim::Claimed
        }
    }

    /// Makes the kernel follow the entries of `part`, which one leaf table covers. Stops at an entry that another
    /// thread has announced, and returns its page.
    pub(super) fn follow_entries(&self, section: &Section<'_>, part: PageRange) -> Option<PageNumber> {
        let leaf = self.entries.leaf(section, part.start())?;
        let mut dropped = Run::default();
        let mut wait = None;
        let drop_run = |run: PageRange| {
            // This cannot fail in the window's own pages. If it does, the pages stay, and `install` drops them.
            let done = self.window.drop_pages(run).is_ok();
            for page in run.iter() {
                let there = self.entries.load(leaf, page).without(Entry::ANNOUNCED | LOADED);
                let kept = if there.is_absent() { there } else { there.dropped() };
                let left = if done { kept } else { kept.with(LOADED) };
                let _ = self.entries.install(leaf, page, left);
            }
        };
        for page in part.iter() {
            match self.claim(leaf, page) {
                Claim::Claimed => dropped.add(page, drop_run),
                Claim::Nothing => dropped.end(drop_run),
                Claim::Wait => {
                    wait = Some(page);
                    break;
                }
            }
        }
        dropped.end(drop_run);
        let mut protected = Run::default();
        let protect_run = |run: PageRange| {
            let (at, bytes) = (self.window.address(run.start()), run.pages() as usize * PAGE);
            if self.userfault.write_protect(at, bytes, true).is_err() {
                // The program has mapped something else inside. Protect all pages that are still the window's.
                for page in run.iter() {
                    let protected = self.userfault.write_protect(self.window.address(page), PAGE, true);
                    debug_assert!(protected != Err(Errno::NOMEM), "protecting needs no memory");
                }
            }
        };
        for page in part.iter().take_while(|page| wait != Some(*page)) {
            let raw = self.entries.load(leaf, page);
            if raw.mapped_frame().is_none() && !raw.has(LOADED) {
                // Nothing is there, so one call may take the pages on both sides of it.
                continue;
            }
            if raw.mapped_frame().is_some()
                && raw.has(LOADED)
                && !raw.has(Entry::WRITE)
                && !raw.has(Entry::REFUSED)
            {
                protected.stretch(page);
            } else {
                protected.end(protect_run);
            }
        }
        protected.end(protect_run);
        wait
    }
}

/// The result of [`Table::claim`].
enum Claim {
    Nothing,
    Claimed,
    Wait,
}

/// Adjacent pages that one system call takes.
#[derive(Default)]
struct Run(Option<PageRange>);

impl Run {
    fn add(&mut self, page: PageNumber, end: impl FnOnce(PageRange)) {
        let page = PageRange::single(page);
        match self.0 {
            Some(run) if run.end() == page.start() => self.0 = Some(run.hull(page)),
            _ => {
                self.end(end);
                self.0 = Some(page);
            }
        }
    }

    /// Extends the run up to `page`, over all pages between.
    fn stretch(&mut self, page: PageNumber) {
        let page = PageRange::single(page);
        self.0 = Some(self.0.map_or(page, |run| run.hull(page)));
    }

    fn end(&mut self, end: impl FnOnce(PageRange)) {
        if let Some(run) = self.0.take() {
            end(run);
        }
    }
}
