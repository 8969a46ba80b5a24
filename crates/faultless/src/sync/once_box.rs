//! A box that is filled once and read without a lock.

use super::plain::{AtomicPtr, Ordering};
use alloc::boxed::Box;
use core::marker::PhantomData;
use core::ptr;

/// A place for a box, which is empty at first. Memory of zeros is an empty place.
///
/// Models do not see its steps: what is in the box is immutable, or atomic itself.
pub(crate) struct OnceBox<T> {
    place: AtomicPtr<T>,
    /// The box belongs to the place.
    owns: PhantomData<Box<T>>,
}

impl<T> Default for OnceBox<T> {
    fn default() -> Self {
        Self { place: AtomicPtr::new(ptr::null_mut()), owns: PhantomData }
    }
}

impl<T> OnceBox<T> {
    /// Returns the value, if there is one. Acquire.
    #[inline]
    pub fn get(&self) -> Option<&T> {
        // SAFETY: null, or from the box of `set`, which stays as long as this.
        unsafe { self.place.load(Ordering::Acquire).as_ref() }
    }

    /// Returns whether there is a value. One load.
    #[inline]
    pub fn is_set(&self) -> bool {
        !self.place.load(Ordering::Relaxed).is_null()
    }

    /// Puts `value` there, if the place is empty. Returns the value that is there then, and whether it is the given one; the given
    /// one is dropped if not. Release.
    pub fn set(&self, value: Box<T>) -> (&T, bool) {
        let made = Box::into_raw(value);
        let old = self.place.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire);
        if old.is_err() {
            // SAFETY: from the box above, and not in the place.
            drop(unsafe { Box::from_raw(made) });
        }
        let there = old.err().unwrap_or(made);
        // SAFETY: from the box of a call of `set`, and it stays as long as this.
        (unsafe { &*there }, old.is_ok())
    }
}

impl<T> Drop for OnceBox<T> {
    fn drop(&mut self) {
        let made = *self.place.get_mut();
        if !made.is_null() {
            // SAFETY: from a box, and `&mut self` has it alone.
            drop(unsafe { Box::from_raw(made) });
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_stays() {
        let place = OnceBox::default();
        assert!(place.get().is_none() && !place.is_set());
        assert_eq!(place.set(Box::new(1)), (&1, true));
        assert_eq!(place.set(Box::new(2)), (&1, false));
        assert_eq!((place.get(), place.is_set()), (Some(&1), true));
    }
}
