//! Allocation that can fail, and the mark by which loom sees a use after free.

use alloc::boxed::Box;
use core::alloc::Layout;
use core::mem::MaybeUninit;

/// The allocator had nothing left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of memory for tables and tree nodes")]
pub struct OutOfMemory;

/// `Box::new` that reports failure instead of aborting.
///
/// # Errors
/// [`OutOfMemory`]; `value` is dropped.
pub fn try_box<T>(value: T) -> Result<Box<T>, OutOfMemory> {
    try_box_or_back(value).map_err(|_| OutOfMemory)
}

/// As [`try_box`], for a value that is needed all the same: it comes back.
pub(crate) fn try_box_or_back<T>(value: T) -> Result<Box<T>, T> {
    match try_box_uninit() {
        Ok(place) => Ok(Box::write(place, value)),
        Err(OutOfMemory) => Err(value),
    }
}

/// As [`try_box`], for a value that is written where it is to be.
pub(crate) fn try_box_uninit<T>() -> Result<Box<MaybeUninit<T>>, OutOfMemory> {
    let layout = Layout::new::<T>();
    if layout.size() == 0 {
        return Ok(Box::new_uninit());
    }
    // SAFETY: the layout has a size, and the pointer goes into a Box of that very layout unless it is null.
    unsafe {
        let memory = alloc::alloc::alloc(layout).cast::<MaybeUninit<T>>();
        if memory.is_null() { Err(OutOfMemory) } else { Ok(Box::from_raw(memory)) }
    }
}

/// A box of what `new` makes. Outside of models it comes from the allocator as zeros, and `new` is not called: the stack has no
/// room for large values.
///
/// # Safety
/// Outside of models, memory of zeros is what `new` makes.
pub(crate) unsafe fn try_box_zeroed<T>(new: impl FnOnce() -> T) -> Result<Box<T>, OutOfMemory> {
    #[cfg(loom)]
    return try_box(new());
    #[cfg(not(loom))]
    {
        let _ = new;
        let layout = Layout::new::<T>();
        assert!(layout.size() != 0, "a value without a size is not boxed");
        // SAFETY: the layout has a size; zeros are a value, by the contract; and the pointer goes into a Box of that very layout.
        unsafe {
            let memory = alloc::alloc::alloc_zeroed(layout).cast::<T>();
            if memory.is_null() { Err(OutOfMemory) } else { Ok(Box::from_raw(memory)) }
        }
    }
}

/// A mark in everything that readers reach without a lock: tree nodes, VMAs, tables, frames. Empty in a real
/// build. Under loom a free is a write and a use is a read of one cell, so that a missing order between them is
/// found, and what is freed stays allocated, so that it is found and does not crash.
#[derive(Debug)]
pub struct Life {
    #[cfg(loom)]
    freed: loom::cell::UnsafeCell<bool>,
}

#[cfg(loom)]
// SAFETY: loom checks each access to the cell; that is its purpose.
unsafe impl Sync for Life {}
#[cfg(loom)]
// SAFETY: as above.
unsafe impl Send for Life {}

impl Default for Life {
    fn default() -> Self {
        Self::new()
    }
}

impl Life {
    /// The mark of something alive.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {}
    }

    /// The mark of something alive.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self { freed: loom::cell::UnsafeCell::new(false) }
    }

    /// Says that the thing is read now.
    #[inline]
    pub fn touch(&self) {
        #[cfg(loom)]
        self.freed.with(|p| {
            // SAFETY: loom reports a write beside this read.
            assert!(!unsafe { *p }, "invariant 3: use after free");
        });
    }

    /// Says that the thing is written now, by somebody who has it alone.
    #[inline]
    pub fn own(&self) {
        #[cfg(loom)]
        self.freed.with_mut(|p| {
            // SAFETY: loom reports any access beside this one.
            assert!(!unsafe { *p }, "invariant 3: use after free");
        });
    }

    /// Says that the thing is freed now.
    #[inline]
    pub fn end(&self) {
        #[cfg(loom)]
        self.freed.with_mut(|p| {
            // SAFETY: loom reports any access beside this one.
            unsafe {
                assert!(!*p, "invariant 3: freed twice");
                *p = true;
            }
        });
    }

    /// Says that the thing, freed before, is given out again.
    #[inline]
    pub fn renew(&self) {
        #[cfg(loom)]
        self.freed.with_mut(|p| {
            // SAFETY: loom reports any access beside this one.
            unsafe { *p = false }
        });
    }
}
