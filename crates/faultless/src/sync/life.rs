//! Allocation that can fail, and the mark by which loom sees a use after free.

use alloc::boxed::Box;
use core::alloc::Layout;
use core::mem::MaybeUninit;

/// The error of an allocator that has no memory left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of memory for tables and tree nodes")]
pub struct OutOfMemory;

/// Makes a box as `Box::new` does, but reports failure instead of aborting.
///
/// # Errors
/// [`OutOfMemory`]; `value` is dropped.
pub fn try_box<T>(value: T) -> Result<Box<T>, OutOfMemory> {
    try_box_or_back(value).map_err(|_| OutOfMemory)
}

/// Makes a box as [`try_box`] does, but returns the value on failure.
pub(crate) fn try_box_or_back<T>(value: T) -> Result<Box<T>, T> {
    match try_box_uninit() {
        Ok(place) => Ok(Box::write(place, value)),
        Err(OutOfMemory) => Err(value),
    }
}

/// Makes a box as [`try_box`] does, for a value that is written in place.
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

/// Makes a box of the value that `new` returns. Outside of models, the memory comes from the allocator as zeros, and `new` is
/// not called: the stack has no room for large values.
///
/// # Safety
/// Outside of models, memory of zeros equals the value that `new` returns.
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

/// A mark in everything that readers reach without a lock: tree nodes, VMAs, tables, frames. It is empty in a real build. Under
/// loom, a free is a write of a cell and a use is a read of it, so that a missing order between them is found. Freed memory
/// stays allocated then, so that the error is found and does not crash.
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
    /// Makes the mark of a living thing.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {}
    }

    /// Makes the mark of a living thing.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self { freed: loom::cell::UnsafeCell::new(false) }
    }

    /// Notes that the thing is read now.
    #[inline]
    pub fn touch(&self) {
        #[cfg(loom)]
        self.freed.with(|p| {
            // SAFETY: loom reports a write beside this read.
            assert!(!unsafe { *p }, "invariant 3: use after free");
        });
    }

    /// Notes that the thing is written now, by a thread that has it alone.
    #[inline]
    pub fn own(&self) {
        #[cfg(loom)]
        self.freed.with_mut(|p| {
            // SAFETY: loom reports any access beside this one.
            assert!(!unsafe { *p }, "invariant 3: use after free");
        });
    }

    /// Notes that the thing is freed now.
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

    /// Notes that the thing, freed before, is given out again.
    #[inline]
    pub fn renew(&self) {
        #[cfg(loom)]
        self.freed.with_mut(|p| {
            // SAFETY: loom reports any access beside this one.
            unsafe { *p = false }
        });
    }
}
