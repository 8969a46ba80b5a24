//! The short lock of a program without `std`, which the program chooses once, by [`short_lock!`](crate::short_lock).

use super::plain::{AtomicUsize, Ordering};
#[cfg(not(feature = "std"))]
pub(super) use mutex::Guard;
#[cfg(any(not(feature = "std"), all(test, not(loom))))]
pub(super) use mutex::Mutex;

/// A lock that is held for a few instructions, as a kernel has it: a spin lock that turns preemption or interrupts off, a fair
/// one, one that is counted. [`short_lock!`](crate::short_lock) makes it the lock of a program without `std`.
///
/// Each lock is one word, which is zero at first. If an implementation has to remember state from `lock` to `unlock`, such as
/// whether interrupts were on, it returns the state as a number, and the guard keeps it.
///
/// # Safety
/// From the return of [`ShortLock::lock`], or of [`ShortLock::try_lock`] with a state, until [`ShortLock::unlock`] no other
/// call gets the same word. Everything done before `unlock` is seen by the thread that gets the word next (Release, Acquire).
/// None of these methods panics.
pub unsafe trait ShortLock {
    /// Waits until the word is free, and takes it. Returns the state for [`ShortLock::unlock`].
    fn lock(word: &AtomicUsize) -> usize;

    /// Takes the word if it is free, and returns the state for [`ShortLock::unlock`]. Does not wait.
    fn try_lock(word: &AtomicUsize) -> Option<usize>;

    /// Releases the word.
    ///
    /// # Safety
    /// The caller has the word, and `state` came with it. Locks may be released in another order than they were taken in.
    unsafe fn unlock(word: &AtomicUsize, state: usize);
}

/// A [`ShortLock`] that spins, and does nothing else. The program is not preempted while it holds one.
#[derive(Clone, Copy, Debug)]
pub struct SpinLock;

// SAFETY: the word is one from a successful compare-and-swap (Acquire) to the store of zero (Release).
unsafe impl ShortLock for SpinLock {
    #[inline]
    fn lock(word: &AtomicUsize) -> usize {
        loop {
            if let Some(state) = Self::try_lock(word) {
                return state;
            }
            // It only reads while it waits: a failed exchange would take the line from the holder.
            while word.load(Ordering::Relaxed) != 0 {
                core::hint::spin_loop();
            }
        }
    }

    #[inline]
    fn try_lock(word: &AtomicUsize) -> Option<usize> {
        word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).ok()
    }

    #[inline]
    unsafe fn unlock(word: &AtomicUsize, _: usize) {
        word.store(0, Ordering::Release);
    }
}

/// Makes a type the [`ShortLock`](crate::sync::ShortLock) of a program without `std`. Write it once in the program, outside of
/// functions; without it the program does not link. With `std` the locks are the operating system's, and the choice does nothing.
///
/// ```
/// faultless::short_lock!(faultless::sync::SpinLock);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! short_lock {
    ($lock:ty) => {
        const _: () = {
            use $crate::sync::{ShortLock, plain::AtomicUsize};

            #[unsafe(no_mangle)]
            extern "Rust" fn faultless_short_lock(word: &AtomicUsize) -> usize {
                <$lock as ShortLock>::lock(word)
            }

            #[unsafe(no_mangle)]
            extern "Rust" fn faultless_short_try_lock(word: &AtomicUsize) -> Option<usize> {
                <$lock as ShortLock>::try_lock(word)
            }

            #[unsafe(no_mangle)]
            unsafe extern "Rust" fn faultless_short_unlock(word: &AtomicUsize, state: usize) {
                // SAFETY: by the same contract.
                unsafe { <$lock as ShortLock>::unlock(word, state) }
            }
        };
    };
}

#[cfg(any(not(feature = "std"), all(test, not(loom))))]
mod mutex {
    use super::AtomicUsize;
    use core::cell::UnsafeCell;
    use core::fmt;
    use core::marker::PhantomData;
    use core::ops::{Deref, DerefMut};

    unsafe extern "Rust" {
        safe fn faultless_short_lock(word: &AtomicUsize) -> usize;
        safe fn faultless_short_try_lock(word: &AtomicUsize) -> Option<usize>;
        fn faultless_short_unlock(word: &AtomicUsize, state: usize);
    }

    /// A value under the program's short lock.
    #[derive(Default)]
    pub struct Mutex<T> {
        word: AtomicUsize,
        /// Protected by `word`.
        value: UnsafeCell<T>,
    }

    // SAFETY: one thread at a time reaches the value, by `ShortLock`.
    unsafe impl<T: Send> Sync for Mutex<T> {}

    /// A guard: its thread has the word.
    pub struct Guard<'a, T> {
        mutex: &'a Mutex<T>,
        state: usize,
        /// Makes the guard stay on its thread: the processor that has turned interrupts off turns them on again.
        not_send: PhantomData<*const ()>,
    }

    // SAFETY: a shared guard gives shared references to the value only.
    unsafe impl<T: Sync> Sync for Guard<'_, T> {}

    impl<T> Mutex<T> {
        pub const fn new(value: T) -> Self {
            Self { word: AtomicUsize::new(0), value: UnsafeCell::new(value) }
        }

        #[inline]
        pub fn lock(&self) -> Guard<'_, T> {
            Guard { mutex: self, state: faultless_short_lock(&self.word), not_send: PhantomData }
        }

        #[inline]
        pub fn try_lock(&self) -> Option<Guard<'_, T>> {
            let state = faultless_short_try_lock(&self.word)?;
            Some(Guard { mutex: self, state, not_send: PhantomData })
        }
    }

    impl<T> Deref for Guard<'_, T> {
        type Target = T;

        #[inline]
        fn deref(&self) -> &T {
            // SAFETY: the guard's thread has the word.
            unsafe { &*self.mutex.value.get() }
        }
    }

    impl<T> DerefMut for Guard<'_, T> {
        #[inline]
        fn deref_mut(&mut self) -> &mut T {
            // SAFETY: as above, and the guard is borrowed exclusively.
            unsafe { &mut *self.mutex.value.get() }
        }
    }

    impl<T> Drop for Guard<'_, T> {
        #[inline]
        fn drop(&mut self) {
            // SAFETY: this guard has the word, with this state.
            unsafe { faultless_short_unlock(&self.mutex.word, self.state) }
        }
    }

    impl<T> fmt::Debug for Mutex<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Mutex").finish_non_exhaustive()
        }
    }

    impl<T> fmt::Debug for Guard<'_, T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Guard").finish_non_exhaustive()
        }
    }
}

#[cfg(all(test, feature = "std", not(loom)))]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        /// The depth of turning interrupts off. The state of a lock is the depth before it.
        static DEPTH: Cell<usize> = const { Cell::new(0) };
    }

    struct InterruptsOff;

    // SAFETY: as the lock inside.
    unsafe impl ShortLock for InterruptsOff {
        fn lock(word: &AtomicUsize) -> usize {
            SpinLock::lock(word);
            DEPTH.replace(DEPTH.get() + 1)
        }

        fn try_lock(word: &AtomicUsize) -> Option<usize> {
            SpinLock::try_lock(word).map(|_| DEPTH.replace(DEPTH.get() + 1))
        }

        unsafe fn unlock(word: &AtomicUsize, state: usize) {
            // SAFETY: by the same contract.
            unsafe { SpinLock::unlock(word, state) };
            assert_eq!(DEPTH.replace(state), state + 1, "the state of another lock");
        }
    }

    crate::short_lock!(InterruptsOff);

    #[test]
    fn the_lock_that_was_chosen_gets_its_state_back() {
        let (outer, inner) = (Mutex::new(1), Mutex::new(2));
        let outer_guard = outer.lock();
        let mut inner_guard = inner.lock();
        assert_eq!(DEPTH.get(), 2);
        assert!(outer.try_lock().is_none() && inner.try_lock().is_none());
        *inner_guard += *outer_guard;
        drop(inner_guard);
        assert_eq!(DEPTH.get(), 1);
        drop(outer_guard);
        assert_eq!(DEPTH.get(), 0);
        assert_eq!(inner.try_lock().map(|guard| *guard), Some(3));
        assert_eq!(DEPTH.get(), 0);
    }

    #[test]
    fn one_thread_at_a_time_has_the_word() {
        const ROUNDS: u64 = if cfg!(miri) { 20 } else { 20_000 };
        let count = Mutex::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..ROUNDS).for_each(|_| *count.lock() += 1));
            }
        });
        assert_eq!(*count.lock(), 4 * ROUNDS);
    }
}
