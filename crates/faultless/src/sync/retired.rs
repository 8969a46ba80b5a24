//! What is unhooked, and waits to be freed.

use alloc::boxed::Box;
use core::ptr::NonNull;

/// Something that readers may still reach: unhooked, and to be freed after a grace period.
pub struct Retired {
    pointer: NonNull<()>,
    free: unsafe fn(NonNull<()>),
}

// SAFETY: `Retired::new` takes only what may be sent.
unsafe impl Send for Retired {}

impl Retired {
    /// Takes `thing`, which no new reader can find any more.
    pub fn new<T: Send + 'static>(thing: Box<T>) -> Self {
        /// # Safety
        /// `pointer` came from `Box::<T>::into_raw` and is passed once.
        unsafe fn free<T>(pointer: NonNull<()>) {
            // SAFETY: by the contract above.
            drop(unsafe { Box::from_raw(pointer.cast::<T>().as_ptr()) });
        }
        // A Box is never null.
        let pointer = NonNull::from(Box::leak(thing)).cast();
        Self { pointer, free: free::<T> }
    }

    /// Frees it.
    ///
    /// # Safety
    /// A grace period has passed since it was unhooked.
    pub unsafe fn free(self) {
        // SAFETY: made by `new`, and consumed here.
        unsafe { (self.free)(self.pointer) }
    }
}

const _: () = assert!(size_of::<Retired>() == 16);
