//! The contender "faultless". Only this module of the bench uses our tree, together with `guard`.

use super::{Found, Handle, Index, Item};
use crate::guard::{Guard, Named};
use faultless::address::{PageNumber, PageRange};
use faultless::sync::{Life, RetiredList};
use faultless::vma::tree::{Ranged, Tree, Unchanged, Writers};

/// Our tree, with read sections of barrier `B`.
pub struct Ours<B> {
    tree: Tree<Vma>,
    writers: Writers,
    guard: Guard<B>,
}

/// The parts of a VMA that matter here.
struct Vma {
    range: PageRange,
    word: u64,
    life: Life,
}

// SAFETY: the fields never change.
#[allow(unsafe_code)]
unsafe impl Ranged for Vma {
    fn range(&self) -> PageRange {
        self.range
    }

    fn life(&self) -> &Life {
        &self.life
    }
}

/// A thread's handle, with lists whose capacity it keeps.
pub struct Thread<'a, B> {
    ours: &'a Ours<B>,
    #[expect(clippy::vec_box, reason = "as the tree takes them")]
    new: Vec<Box<Vma>>,
    retired: RetiredList,
}

impl<B: Named> Index for Ours<B> {
    type Handle<'a> = Thread<'a, B>;

    fn name() -> String {
        format!("faultless ({})", B::NAME)
    }

    fn new() -> Result<Self, String> {
        let (tree, writer) = Tree::new();
        Ok(Self { tree, writers: writer.share(), guard: Guard::new()? })
    }

    fn handle(&self) -> Thread<'_, B> {
        Thread { ours: self, new: Vec::new(), retired: RetiredList::new() }
    }
}

impl<B: Named> Thread<'_, B> {
    fn replace(&mut self, range: PageRange) {
        let Ours { tree, writers, guard } = self.ours;
        loop {
            let section = guard.enter();
            let new = &mut self.new;
            match guard.replace_beside(tree, writers, &section, range, new, &mut self.retired) {
                Ok(()) => break,
                Err(Unchanged::Contended) => std::hint::spin_loop(),
                Err(Unchanged::OutOfMemory(error)) => panic!("{error}"),
            }
        }
        if !self.retired.is_empty() {
            guard.retire(&mut self.retired);
        }
    }
}

impl<B: Named> Handle for Thread<'_, B> {
    #[inline]
    fn find(&mut self, page: u64) -> Option<Found> {
        let section = self.ours.guard.enter();
        let vma = self.ours.tree.view(&section).find(PageNumber::new(page))?;
        Some(Found { end: vma.range.end().get(), word: vma.word })
    }

    fn insert(&mut self, item: Item) {
        let range = range(item.start, item.end);
        self.new.push(Box::new(Vma { range, word: item.word, life: Life::new() }));
        self.replace(range);
    }

    fn remove(&mut self, start: u64, end: u64) -> bool {
        self.replace(range(start, end));
        true
    }
}

fn range(start: u64, end: u64) -> PageRange {
    PageRange::new(PageNumber::new(start), PageNumber::new(end)).expect("ranges have pages")
}
