//! The short lock: the operating system's, what a program without one has chosen ([`ShortLock`](super::ShortLock)), or a model's.

use super::held::Held;
#[cfg(not(feature = "std"))]
use super::short_lock;
use core::ops::{Deref, DerefMut};

#[cfg(loom)]
use loom::sync as imp;
#[cfg(all(feature = "std", not(loom)))]
use std::sync as imp;

/// A lock for a few instructions. Nobody takes it while announced (see [`crate::Engine::lock`]).
///
/// Nobody waits for an invalidation or a grace period with one held (invariant 17).
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

/// What [`Mutex::lock`] returns. Counted as [`Held`].
#[derive(Debug)]
pub struct MutexGuard<'a, T> {
    #[cfg(feature = "std")]
    inner: imp::MutexGuard<'a, T>,
    #[cfg(not(feature = "std"))]
    inner: short_lock::Guard<'a, T>,
    #[cfg_attr(not(feature = "std"), expect(dead_code, reason = "it counts while the guard lives"))]
    held: Held,
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
    /// A lock around `value`.
    #[cfg(not(loom))]
    pub const fn new(value: T) -> Self {
        Self {
            #[cfg(feature = "std")]
            inner: imp::Mutex::new(value),
            #[cfg(not(feature = "std"))]
            inner: short_lock::Mutex::new(value),
        }
    }

    /// A lock around `value`.
    #[cfg(loom)]
    pub fn new(value: T) -> Self {
        Self { inner: imp::Mutex::new(value) }
    }

    /// Takes the lock if nobody has it. Models always wait.
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
        return Some(MutexGuard { inner, held: Held::short_lock() });
    }

    /// Waits for the lock. A lock whose holder panicked is taken like any other.
    ///
    /// To panic here would help nobody: locks are taken in destructors and in completions of I/O, where a panic aborts or is
    /// lost, and the range that a panicking thread had taken, or the record it had closed, lies outside the lock. The data
    /// under these locks is a count, a queue, or a tree that readers see at each moment, and is usable after each step.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        #[cfg(feature = "std")]
        let inner = self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        #[cfg(not(feature = "std"))]
        let inner = self.inner.lock();
        MutexGuard { inner, held: Held::short_lock() }
    }
}

/// A condition variable for [`Mutex`].
#[cfg(feature = "std")]
#[derive(Debug, Default)]
pub struct Condvar(imp::Condvar);

#[cfg(feature = "std")]
impl Condvar {
    /// A condition that nobody waits for.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self(imp::Condvar::new())
    }

    /// A condition that nobody waits for.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the guard go, sleeps, and takes it again. May wake for nothing.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let MutexGuard { inner, held } = guard;
        let inner = self.0.wait(inner).unwrap_or_else(|poisoned| poisoned.into_inner());
        MutexGuard { inner, held }
    }

    /// Wakes everybody.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Wakes one who waits.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }
}
