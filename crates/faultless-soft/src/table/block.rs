//! Memory for the tables that spaces will need when they leave what fork has shared: taken by fork, some tables at once, and not
//! touched before one is used, so that a fork pays for no page of it.

use super::LeafTable;
use faultless::host::{OutOfMemory, SpareLink};
use faultless::sync::Sections;
use faultless::sync::atomic::{AtomicPtr, Ordering};
use faultless::sync::plain::{self, AtomicUsize};
use std::alloc::{Layout, alloc, dealloc};
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// Tables of one block.
#[cfg(not(loom))]
const TABLES: usize = 32;
#[cfg(loom)]
const TABLES: usize = 2;

#[repr(C)]
pub(super) struct Block {
    /// Tables that are not freed yet, used or not. Atomic; whoever frees the last one frees the block.
    left: AtomicUsize,
    /// Tables that have been handed out. Written by the one fork that has the block.
    used: AtomicUsize,
    /// The sections that the block is charged to.
    sections: Arc<Sections>,
    spares: [Spare; TABLES],
    tables: [MaybeUninit<LeafTable>; TABLES],
}

/// A table of a block that nobody uses yet; in the block, and so is the table.
#[repr(C)]
pub(super) struct Spare {
    /// The engine's. First, so that a pointer to it is one to the spare.
    link: SpareLink,
    block: NonNull<Block>,
    index: usize,
}

/// The block that a fork takes tables from.
#[derive(Default)]
pub(super) struct Reserve(AtomicPtr<Block>);

impl Block {
    fn try_new(sections: &Arc<Sections>) -> Result<NonNull<Self>, OutOfMemory> {
        const { assert!(size_of::<Self>() != 0) };
        // SAFETY: the layout has a size.
        let block = unsafe { alloc(Layout::new::<Self>()) }.cast::<Self>();
        let found = NonNull::new(block).ok_or(OutOfMemory)?;
        // SAFETY: memory of that layout; each field but the tables, which need not be, is written before it is read.
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
    /// `count` tables of the block are used by nobody, and were not given back before.
    unsafe fn give_back(block: NonNull<Self>, count: usize) {
        // SAFETY: by the contract above the block is there still.
        let left = unsafe { block.as_ref() }.left.fetch_sub(count, plain::Ordering::AcqRel);
        debug_assert!(left >= count, "a table given back twice");
        if left == count {
            // SAFETY: allocated with that layout, and its last table has come back. Of its fields one needs a drop, and the
            // others under loom, which counts nothing of them.
            unsafe {
                let sections = (&raw const (*block.as_ptr()).sections).read();
                dealloc(block.as_ptr().cast(), Layout::new::<Self>());
                sections.uncharge(size_of::<Self>());
            }
        }
    }
}

impl Reserve {
    /// A table for later. Only one thread at a time.
    pub(super) fn take(&self, sections: &Arc<Sections>) -> Result<NonNull<Spare>, OutOfMemory> {
        let found = NonNull::new(self.0.load(Ordering::Relaxed));
        // SAFETY: a block in reserve has tables that have not come back, or it is full and not looked into.
        let found =
            found.filter(|block| unsafe { block.as_ref() }.used.load(plain::Ordering::Relaxed) < TABLES);
        let block = match found {
            Some(block) => block,
            None => Block::try_new(sections)?,
        };
        // SAFETY: it has a table left, by the lines above, so it is there.
        let used = unsafe { block.as_ref() }.used.fetch_add(1, plain::Ordering::Relaxed);
        // One that is used up belongs to its tables.
        let rest = if used + 1 == TABLES { ptr::null_mut() } else { block.as_ptr() };
        self.0.store(rest, Ordering::Relaxed);
        // SAFETY: in the block, and not aliased by a reference that could write.
        Ok(unsafe { NonNull::new_unchecked(&raw mut (*block.as_ptr()).spares[used]) })
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        if let Some(block) = NonNull::new(self.0.load(Ordering::Relaxed)) {
            // SAFETY: in reserve, so that not all have been handed out; those have not.
            unsafe {
                let used = block.as_ref().used.load(plain::Ordering::Relaxed);
                Block::give_back(block, TABLES - used);
            }
        }
    }
}

impl Spare {
    /// The table, empty, the caller's.
    ///
    /// # Safety
    /// The caller has the spare, and has it no more.
    pub(super) unsafe fn into_table(spare: NonNull<Self>) -> NonNull<LeafTable> {
        // SAFETY: by the contract above; its block lives as long as its table.
        let (block, index) = unsafe { (spare.as_ref().block, spare.as_ref().index) };
        // SAFETY: the table at that index is the spare's, memory of its layout that nobody uses. Zeros are a value of it but
        // under loom, where one is written.
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

/// Frees a leaf table, wherever its memory is from.
///
/// # Safety
/// From a Box or from [`Spare::into_table`], used by nobody, and freed once.
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
