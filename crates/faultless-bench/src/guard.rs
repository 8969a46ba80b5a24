//! Our read sections with each of their barriers. Only this module of the bench names either.
#![allow(unsafe_code)]

use faultless::address::PageRange;
use faultless::host::{FenceBarrier, Slots, StdBarrier, StdSlots};
use faultless::sync::{Barrier, RetiredList, Section, Sections};
use faultless::vma::tree::{Ranged, Tree, Unchanged, Writers};

/// A barrier with a name, which exists only if this kernel has it.
pub trait Named: Barrier + Sized + 'static {
    const NAME: &'static str;

    /// # Errors
    /// The reason for which it is not available here.
    fn new() -> Result<Self, String>;
}

impl Named for FenceBarrier {
    const NAME: &'static str = "fence";

    fn new() -> Result<Self, String> {
        Ok(Self)
    }
}

/// The barrier that calls membarrier(2).
pub type Membarrier = StdBarrier;

impl Named for Membarrier {
    const NAME: &'static str = "membarrier";

    fn new() -> Result<Self, String> {
        let barrier = Self::new();
        match barrier.name() {
            Self::NAME => Ok(barrier),
            other => Err(format!("this kernel has no usable membarrier, only {other}")),
        }
    }
}

/// The sections of one structure, and their barrier.
pub struct Guard<B> {
    sections: Sections,
    barrier: B,
}

impl<B: Named> Guard<B> {
    /// # Errors
    /// The reason for which this barrier is not available.
    pub fn new() -> Result<Self, String> {
        Ok(Self { sections: Sections::new(), barrier: <B as Named>::new()? })
    }

    /// Enters a section of the calling thread, which must be in none.
    #[inline]
    pub fn enter(&self) -> Section<'_> {
        // SAFETY: `StdSlots` gives no two threads the same slot.
        unsafe { self.sections.enter(StdSlots.current(), &self.barrier) }
    }

    /// Retires `things`, and frees due things, as the engine does. The list keeps its capacity. The caller is in no
    /// section.
    pub fn retire(&self, things: &mut RetiredList) {
        // SAFETY: readers of the things that the bench retires enter by this guard.
        let retired = unsafe { self.sections.retire(StdSlots.pin(), &self.barrier, things) };
        assert!(retired.is_ok(), "there is memory");
    }
    /// Calls [`Tree::replace_beside`]. `section` must be of this guard. Each thread of a case changes only its own
    /// items.
    pub fn replace_beside<T: Ranged + Send + Sync>(
        &self,
        tree: &Tree<T>,
        writers: &Writers,
        section: &Section<'_>,
        range: PageRange,
        new: &mut Vec<Box<T>>,
        retired: &mut RetiredList,
    ) -> Result<(), Unchanged> {
        // SAFETY: the cases guarantee the conditions above, and their readers enter by this guard.
        unsafe { tree.replace_beside(writers, section, range, new, retired) }.map(|_| ())
    }
}
