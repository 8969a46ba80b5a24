//! Memory for the leaf tables that spaces need later, when they stop sharing a table with fork's other side. fork takes
//! it, for some tables at once, and does not touch it before a table is used. So a fork pays for no page of it.

use super::LeafTable;
use faultless::host::{OutOfMemory, SpareLink};
use faultless::sync::Sections;
use faultless::sync::atomic::{AtomicPtr, Ordering};
use faultless::sync::plain::{self, AtomicUsize};
use std::alloc::{Layout, alloc, dealloc};
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// The number of tables of a block.
#[cfg(not(loom))]
const TABLES: usize = 32;
#[cfg(loom)]
const TABLES: usize = 2;

#[repr(C)]
pub(super) struct Block {
    /// The number of tables that are not freed yet, used or not. Atomic; the thread that frees the last one frees the
    /// block.
    left: AtomicUsize,
    /// The number of tables that have been handed out. Written by the fork that has the block.
    used: AtomicUsize,
    /// The sections that the block is charged to.
    sections: Arc<Sections>,
    spares: [Spare; TABLES],
    tables: [MaybeUninit<LeafTable>; TABLES],
}

/// A table of a block that is not used yet. The spare and its table are both in the block.
#[repr(C)]
pub(super) struct Spare {
    /// The engine's link. It is the first field, so that a pointer to it is a pointer to the spare.
    link: SpareLink,
    block: NonNull<Block>,
    index: usize,
}

/// The block from which a fork takes tables.
#[derive(Default)]
pub(super) struct Reserve(AtomicPtr<Block>);

impl Block {
    fn try_new(sections: &Arc<Sections>) -> Result<NonNull<Self>, OutOfMemory> {
        const { assert!(size_of::<Self>() != 0) };
        // SAFETY: the layout has a size.
        let block = unsafe { alloc(Layout::new::<Self>()) }.cast::<Self>();
        let found = NonNull::new(block).ok_or(OutOfMemory)?;
        // SAFETY: memory of that layout. Each field except the tables, which may stay uninitialised, is written before
        // it is read.
        unsafe {
            (&raw mut (*block).left).write(AtomicUsize::new(TABLES));
            (&raw mut (*block).used).write(AtomicUsize::new(0));
            (&raw mut (*block).sections).write(Arc::clone(sections));
            for index in 0..TABLES {
                let spare = Spare { link: SpareLink::new(), block: found, index };
                (&raw mut (*block).spares[index]).write(spare);
            }
        }
        sections.charge(size_of::<Self>());
        Ok(found)
    }

    /// # Safety
    /// `count` tables of the block are not used, and were not given back before.
    unsafe fn give_back(block: NonNull<Self>, count: usize) {
        // SAFETY: by the contract above the block still exists.
        let left = unsafe { block.as_ref() }.left.fetch_sub(count, plain::Ordering::AcqRel);
        debug_assert!(left >= count, "a table given back twice");
        if left == count {
            // SAFETY: allocated with that layout, and its last table has come back. Only `sections` needs a drop. Under
            // loom the other fields need one too, but loom does not count them.
            unsafe {
                let sections = (&raw const (*block.as_ptr()).sections).read();
                dealloc(block.as_ptr().cast(), Layout::new::<Self>());
                sections.uncharge(size_of::<Self>());
            }
        }
    }
}

impl Reserve {
    /// Takes a table for later use. Only one thread may call it at a time.
    pub(super) fn take(&self, sections: &Arc<Sections>) -> Result<NonNull<Spare>, OutOfMemory> {
        let found = NonNull::new(self.0.load(Ordering::Relaxed));
        // SAFETY: a block in reserve has a table that was not handed out, so it exists.
        let found =
            found.filter(|block| unsafe { block.as_ref() }.used.load(plain::Ordering::Relaxed) < TABLES);
        let block = match found {
            Some(block) => block,
            None => Block::try_new(sections)?,
        };
        // SAFETY: it has a table left, by the lines above, so it exists.
        let used = unsafe { block.as_ref() }.used.fetch_add(1, plain::Ordering::Relaxed);
        // A block whose tables are all handed out belongs to those tables.
        let rest = if used + 1 == TABLES { ptr::null_mut() } else { block.as_ptr() };
        self.0.store(rest, Ordering::Relaxed);
        // SAFETY: in the block, and not aliased by a reference that could write.
        Ok(unsafe { NonNull::new_unchecked(&raw mut (*block.as_ptr()).spares[used]) })
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        if let Some(block) = NonNull::new(self.0.load(Ordering::Relaxed)) {
            // SAFETY: a block in reserve has tables that were not handed out; exactly those are given back.
            unsafe {
                let used = block.as_ref().used.load(plain::Ordering::Relaxed);
                Block::give_back(block, TABLES - used);
            }
        }
    }
}

impl Spare {
    /// Returns the spare's table, empty. It belongs to the caller.
    ///
    /// # Safety
    /// The caller has the spare, and does not use it again.
    pub(super) unsafe fn into_table(spare: NonNull<Self>) -> NonNull<LeafTable> {
        // SAFETY: by the contract above; the block lives as long as its table.
        let (block, index) = unsafe { (spare.as_ref().block, spare.as_ref().index) };
        // SAFETY: the table at that index is the spare's: memory of its layout that no other code uses. Zeros are a
        // value of it, except under loom, where a value is written.
        unsafe {
            let table = (&raw mut (*block.as_ptr()).tables[index]).cast::<LeafTable>();
            #[cfg(loom)]
            table.write(super::Table::empty());
            #[cfg(not(loom))]
            table.write_bytes(0, 1);
            (*table).block.store(block.as_ptr(), plain::Ordering::Relaxed);
            NonNull::new_unchecked(table)
        }
    }
}

/// Frees a leaf table, from a Box or from a block.
///
/// # Safety
/// The table is from a Box or from [`Spare::into_table`]. No code uses it, and it is freed once.
pub(super) unsafe fn free(table: NonNull<LeafTable>) {
    // SAFETY: by the contract above.
    unsafe {
        match NonNull::new(table.as_ref().block()) {
            None => drop(Box::from_raw(table.as_ptr())),
            Some(block) => {
                ptr::drop_in_place(table.as_ptr());
                Block::give_back(block, 1);
            }
        }
    }
}
