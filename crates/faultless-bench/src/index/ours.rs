//! Our tree. All use of it is here.

use super::{Found, Handle, Index, Item};
use crate::guard::{Guard, Named};
use faultless::address::{PageNumber, PageRange};
use faultless::sync::{Life, Mutex};
use faultless::vma::tree::{Ranged, Tree, Writer};

/// With read sections of barrier `B`.
pub struct Ours<B> {
    tree: Tree<Vma>,
    writer: Mutex<Writer>,
    guard: Guard<B>,
}

/// As much of a VMA as matters here.
struct Vma {
    range: PageRange,
    word: u64,
    life: Life,
}

impl Ranged for Vma {
    fn range(&self) -> PageRange {
        self.range
    }

    fn life(&self) -> &Life {
        &self.life
    }
}

impl<B: Named> Index for Ours<B> {
    type Handle<'a> = &'a Self;

    fn name() -> String {
        format!("faultless ({})", B::NAME)
    }

    fn new() -> Result<Self, String> {
        let (tree, writer) = Tree::new();
        Ok(Self { tree, writer: Mutex::new(writer), guard: Guard::new()? })
    }

    fn handle(&self) -> &Self {
        self
    }
}

impl<B: Named> Ours<B> {
    fn replace(&self, range: PageRange, new: Option<Box<Vma>>) {
        let new = new.into_iter().collect();
        let retired = self.tree.replace(&mut self.writer.lock(), range, new);
        match retired {
            Ok(retired) => retired.into_iter().for_each(|retired| self.guard.retire(retired)),
            Err((error, _)) => panic!("{error}"),
        }
    }
}

impl<B: Named> Handle for &Ours<B> {
    #[inline]
    fn find(&mut self, page: u64) -> Option<Found> {
        let section = self.guard.enter();
        let vma = self.tree.view(&section).find(PageNumber::new(page))?;
        Some(Found { end: vma.range.end().get(), word: vma.word })
    }

    fn insert(&mut self, item: Item) {
        let range = range(item.start, item.end);
        self.replace(range, Some(Box::new(Vma { range, word: item.word, life: Life::new() })));
    }

    fn remove(&mut self, start: u64, end: u64) -> bool {
        self.replace(range(start, end), None);
        true
    }
}

fn range(start: u64, end: u64) -> PageRange {
    PageRange::new(PageNumber::new(start), PageNumber::new(end)).expect("ranges have pages")
}
