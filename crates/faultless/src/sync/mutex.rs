//! The short lock: that of the operating system, the one that a program without an operating system has chosen
//! ([`ShortLock`](super::ShortLock)), or that of a model.
//!
//! `--cfg tsan` is for ThreadSanitizer with a standard library that is built without it: a thread that waits for a lock tries again
//! instead of sleeping. The sanitizer sees only the attempts, which are compiled here, and would miss the order that a wait inside of
//! the standard library gives.

use super::held::Held;
#[cfg(not(feature = "std"))]
use super::short_lock;
use core::ops::{Deref, DerefMut};

#[cfg(loom)]
use loom::sync as imp;
#[cfg(all(feature = "std", not(loom)))]
use std::sync as imp;

/// A lock that is held for a few instructions. No thread takes it while announced (see [`crate::Engine::lock`]).
///
/// No thread waits for an invalidation or a grace period while it holds one (invariant 17).
///
/// Without `std` it is the lock that the program has chosen: [`ShortLock`](super::ShortLock). A kernel must not be preempted while
/// it holds one, see ARCHITECTURE.md.
#[derive(Debug, Default)]
pub struct Mutex<T> {
    #[cfg(feature = "std")]
    inner: imp::Mutex<T>,
    #[cfg(not(feature = "std"))]
    inner: short_lock::Mutex<T>,
}

/// A guard of a [`Mutex`], which [`Mutex::lock`] returns. It is counted as [`Held`].
#[derive(Debug)]
pub struct MutexGuard<'a, T> {
    #[cfg(feature = "std")]
    inner: imp::MutexGuard<'a, T>,
    #[cfg(not(feature = "std"))]
    inner: short_lock::Guard<'a, T>,
    #[cfg_attr(
        any(not(feature = "std"), tsan),
        expect(dead_code, reason = "it counts while the guard lives")
    )]
    held: Held,
    #[cfg(tsan)]
    lock: &'a Mutex<T>,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T> Mutex<T> {
    /// Makes a lock around `value`.
    #[cfg(not(loom))]
    pub const fn new(value: T) -> Self {
        Self {
            #[cfg(feature = "std")]
            inner: imp::Mutex::new(value),
            #[cfg(not(feature = "std"))]
            inner: short_lock::Mutex::new(value),
        }
    }

    /// Makes a lock around `value`.
    #[cfg(loom)]
    pub fn new(value: T) -> Self {
        Self { inner: imp::Mutex::new(value) }
    }

    /// Tries to take the lock. Returns `None` if another thread holds it. In models it waits instead.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        #[cfg(loom)]
        return Some(self.lock());
        #[cfg(all(feature = "std", not(loom)))]
        let inner = match self.inner.try_lock() {
            Ok(guard) => guard,
            Err(imp::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(imp::TryLockError::WouldBlock) => return None,
        };
        #[cfg(not(feature = "std"))]
        let inner = self.inner.try_lock()?;
        #[cfg(not(loom))]
        return Some(MutexGuard {
            inner,
            held: Held::short_lock(),
            #[cfg(tsan)]
            lock: self,
        });
    }

    /// Waits for the lock. A lock whose holder panicked is taken like any other.
    ///
    /// A panic here would be of no use. Locks are taken in destructors and in completions of I/O, where a panic aborts or is
    /// lost. The range that a panicking thread had reserved, or the record that it had closed, lies outside the lock. The data
    /// under these locks is a count, a queue, or a tree that readers see at each moment, and is usable after each step.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        #[cfg(tsan)]
        return loop {
            match self.try_lock() {
                Some(guard) => break guard,
                None => std::thread::yield_now(),
            }
        };
        #[cfg(all(feature = "std", not(tsan)))]
        let inner = self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        #[cfg(not(feature = "std"))]
        let inner = self.inner.lock();
        #[cfg(not(tsan))]
        return MutexGuard { inner, held: Held::short_lock() };
    }
}

/// A condition variable for [`Mutex`].
#[cfg(feature = "std")]
#[derive(Debug, Default)]
pub struct Condvar(imp::Condvar);

#[cfg(feature = "std")]
impl Condvar {
    /// Makes a condition for which no thread waits.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self(imp::Condvar::new())
    }

    /// Makes a condition for which no thread waits.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self::default()
    }

    /// Releases the lock, sleeps, and takes the lock again. May wake without cause.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        #[cfg(tsan)]
        return {
            let lock = guard.lock;
            drop(guard);
            std::thread::sleep(core::time::Duration::from_micros(50));
            lock.lock()
        };
        #[cfg(not(tsan))]
        return {
            let MutexGuard { inner, held } = guard;
            let inner = self.0.wait(inner).unwrap_or_else(|poisoned| poisoned.into_inner());
            MutexGuard { inner, held }
        };
    }

    /// Wakes all waiting threads.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Wakes one waiting thread.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }
}
