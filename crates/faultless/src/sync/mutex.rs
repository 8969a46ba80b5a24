//! The short lock: the operating system's, a spin lock without one, or a model's.

#[cfg(loom)]
use loom::sync as imp;
#[cfg(shuttle)]
use shuttle::sync as imp;
#[cfg(all(feature = "std", not(any(loom, shuttle))))]
use std::sync as imp;

/// A lock for a few instructions. Nobody takes it while announced (see [`crate::Engine::lock`]).
///
/// Without `std` this spins: a kernel must not be preempted while it holds one, see ARCHITECTURE.md.
#[derive(Debug, Default)]
pub struct Mutex<T> {
    #[cfg(feature = "std")]
    inner: imp::Mutex<T>,
    #[cfg(not(feature = "std"))]
    inner: spin::Mutex<T>,
}

/// What [`Mutex::lock`] returns.
#[cfg(feature = "std")]
pub type MutexGuard<'a, T> = imp::MutexGuard<'a, T>;
/// What [`Mutex::lock`] returns.
#[cfg(not(feature = "std"))]
pub type MutexGuard<'a, T> = spin::MutexGuard<'a, T>;

impl<T> Mutex<T> {
    /// A lock around `value`.
    pub fn new(value: T) -> Self {
        Self {
            #[cfg(feature = "std")]
            inner: imp::Mutex::new(value),
            #[cfg(not(feature = "std"))]
            inner: spin::Mutex::new(value),
        }
    }

    /// Takes the lock if nobody has it. Models always wait.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        #[cfg(any(loom, shuttle))]
        return Some(self.lock());
        #[cfg(all(feature = "std", not(any(loom, shuttle))))]
        return match self.inner.try_lock() {
            Ok(guard) => Some(guard),
            Err(imp::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(imp::TryLockError::WouldBlock) => None,
        };
        #[cfg(not(feature = "std"))]
        return self.inner.try_lock();
    }

    /// Waits for the lock. A lock whose holder panicked is taken like any other.
    ///
    /// To panic here would help nobody: locks are taken in destructors and in completions of I/O, where a panic aborts or is
    /// lost, and the range that a panicking thread had taken, or the record it had closed, lies outside the lock. The data
    /// under these locks is a count, a queue, or a tree that readers see at each moment, and is usable after each step.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        #[cfg(feature = "std")]
        return self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        #[cfg(not(feature = "std"))]
        return self.inner.lock();
    }
}

/// A condition variable for [`Mutex`].
#[cfg(feature = "std")]
#[derive(Debug, Default)]
pub struct Condvar(imp::Condvar);

#[cfg(feature = "std")]
impl Condvar {
    /// A condition that nobody waits for.
    pub fn new() -> Self {
        Self(imp::Condvar::new())
    }

    /// Lets the guard go, sleeps, and takes it again. May wake for nothing.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Wakes everybody.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}
