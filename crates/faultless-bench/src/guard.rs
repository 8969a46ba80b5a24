//! Our read sections with each of their barriers, as the bench uses them. The only place that names either.
#![allow(unsafe_code)]

use faultless::address::PageRange;
use faultless::host::{FenceBarrier, Slots, StdBarrier, StdSlots};
use faultless::sync::{Barrier, RetiredList, Section, Sections};
use faultless::vma::tree::{Ranged, Tree, Unchanged, Writers};

/// A barrier with its name, made if this kernel has it.
pub trait Named: Barrier + Sized + 'static {
    const NAME: &'static str;

    /// # Errors
    /// Why there is none here.
    fn new() -> Result<Self, String>;
}

impl Named for FenceBarrier {
    const NAME: &'static str = "fence";

    fn new() -> Result<Self, String> {
        Ok(Self)
    }
}

/// The one that asks the kernel for membarrier(2).
pub type Membarrier = StdBarrier;

impl Named for Membarrier {
    const NAME: &'static str = "membarrier";

    fn new() -> Result<Self, String> {
        let barrier = Self::new();
        match barrier.name() {
            Self::NAME => Ok(barrier),
            other => Err(format!("this kernel has no membarrier for us: {other}")),
        }
    }
}

/// Sections of one structure, and their barrier.
pub struct Guard<B> {
    sections: Sections,
    barrier: B,
}

impl<B: Named> Guard<B> {
    /// # Errors
    /// Why this barrier is not to be had.
    pub fn new() -> Result<Self, String> {
        Ok(Self { sections: Sections::new(), barrier: <B as Named>::new()? })
    }

    /// Enters a section of this thread, which is in none.
    #[inline]
    pub fn enter(&self) -> Section<'_> {
        // SAFETY: `StdSlots` gives no two threads the same slot.
        unsafe { self.sections.enter(StdSlots.current(), &self.barrier) }
    }

    /// Takes what was unhooked, and frees what is due, as the engine does; `things` keeps its room. The caller is in no section.
    pub fn retire(&self, things: &mut RetiredList) {
        // SAFETY: readers of what the bench retires enter by this guard.
        let retired = unsafe { self.sections.retire(StdSlots.pin(), &self.barrier, things) };
        assert!(retired.is_ok(), "there is memory");
    }
    /// As [`Tree::replace_beside`]; `section` is of this guard. Each thread of a case changes items of its own.
    pub fn replace_beside<T: Ranged + Send + Sync>(
        &self,
        tree: &Tree<T>,
        writers: &Writers,
        section: &Section<'_>,
        range: PageRange,
        new: &mut Vec<Box<T>>,
        retired: &mut RetiredList,
    ) -> Result<(), Unchanged> {
        // SAFETY: as said above; the cases see to it, and their readers enter by this guard.
        unsafe { tree.replace_beside(writers, section, range, new, retired) }.map(|_| ())
    }
}
