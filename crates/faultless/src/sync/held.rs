//! Counts, in debug builds, the locks and claims that a thread holds. A thread that touches memory which a caller gave
//! must hold none: on a host with real memory the access can fault, and the fault path takes the same locks. A thread that
//! waits for other processors must hold no short lock: another processor may spin on it with interrupts off, and would never
//! answer.

use core::marker::PhantomData;

#[cfg(all(debug_assertions, feature = "std", not(loom)))]
std::thread_local! {
    /// The number of locks and claims that this thread holds. It has no destructor, so that signal handlers and ending threads
    /// may read it.
    static COUNT: core::cell::Cell<usize> = const { core::cell::Cell::new(0) };
    /// The number of those that are short locks ([`Mutex`](super::Mutex)).
    static SHORT: core::cell::Cell<usize> = const { core::cell::Cell::new(0) };
}

/// One lock, claim or locked folio that the calling thread holds. Put it beside the guard that it counts. It stays on its
/// thread. A host does the same with each lock of its own that its [`PageTable`](crate::host::PageTable) or
/// [`FrameSource`](crate::host::FrameSource) takes.
///
/// Debug builds with `std` count; in all others the type is empty and does nothing.
#[derive(Debug)]
pub struct Held {
    /// The number that this adds to `SHORT`.
    #[cfg(all(debug_assertions, feature = "std", not(loom)))]
    short: usize,
    /// Makes the type not `Send`, since the count is the thread's.
    thread: PhantomData<*const ()>,
}

impl Held {
    /// Counts one more lock or claim until the value is dropped.
    #[inline]
    #[must_use]
    pub fn new() -> Self {
        Self::counted(0)
    }

    /// Counts one more short lock until the value is dropped.
    #[inline]
    #[must_use]
    pub(super) fn short_lock() -> Self {
        Self::counted(1)
    }

    #[inline]
    fn counted(_short: usize) -> Self {
        #[cfg(all(debug_assertions, feature = "std", not(loom)))]
        {
            COUNT.with(|count| count.set(count.get() + 1));
            SHORT.with(|count| count.set(count.get() + _short));
        }
        Self {
            #[cfg(all(debug_assertions, feature = "std", not(loom)))]
            short: _short,
            thread: PhantomData,
        }
    }

    /// Checks, in debug builds, that the calling thread holds no short lock. Called right before it waits for other processors,
    /// for an invalidation or a grace period, which `doing` names. Ranges and the locks of a design may be held. Invariant 17.
    ///
    /// # Panics
    /// Panics in debug builds with `std`, if the thread holds a short lock: another processor may spin on it and never answer.
    #[inline]
    #[track_caller]
    pub fn assert_no_short_lock(doing: &str) {
        #[cfg(all(debug_assertions, feature = "std", not(loom)))]
        SHORT.with(|count| {
            let held = count.get();
            assert!(
                held == 0,
                "invariant 17: a thread that holds {held} short locks would wait for other processors: {doing}"
            );
        });
        let _ = doing;
    }

    /// Checks, in debug builds, that the calling thread holds nothing that is counted. Called right before it touches memory
    /// that a caller gave; `doing` names that for the message. Invariant 13.
    ///
    /// # Panics
    /// Panics in debug builds with `std`, if the thread holds anything counted: a fault on that memory could wait for it for
    /// ever.
    #[inline]
    #[track_caller]
    pub fn assert_none(doing: &str) {
        #[cfg(all(debug_assertions, feature = "std", not(loom)))]
        COUNT.with(|count| {
            let held = count.get();
            assert!(
                held == 0,
                "invariant 13: a thread that holds {held} locks or claims would touch {doing}"
            );
        });
        let _ = doing;
    }
}

impl Default for Held {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Held {
    #[inline]
    fn drop(&mut self) {
        #[cfg(all(debug_assertions, feature = "std", not(loom)))]
        {
            COUNT.with(|count| count.set(count.get() - 1));
            SHORT.with(|count| count.set(count.get() - self.short));
        }
    }
}

#[cfg(all(test, debug_assertions, feature = "std", not(loom)))]
mod tests {
    use super::Held;
    use crate::address::{PageNumber, PageRange};
    use crate::host::StdPark;
    use crate::sync::{Mutex, Ranges};
    use std::panic::catch_unwind;

    fn is_allowed() -> bool {
        catch_unwind(|| Held::assert_none("a caller's memory")).is_ok()
    }

    #[test]
    fn nobody_waits_for_processors_with_a_short_lock() {
        let may_wait = || catch_unwind(|| Held::assert_no_short_lock("a test")).is_ok();
        let (ranges, park) = (Ranges::try_new(()).expect("memory"), StdPark::default());
        let (taken, lock) = ranges.take(PageRange::single(PageNumber::new(3)), &park);
        assert!(!may_wait());
        drop(lock);
        assert!(may_wait(), "a range may be taken");
        drop(taken);
        let _claim = Held::new();
        assert!(may_wait());
    }

    #[test]
    fn a_short_lock_and_a_range_are_counted_until_they_are_let_go() {
        assert!(is_allowed());
        let mutex = Mutex::new(1);
        let guard = mutex.lock();
        assert!(!is_allowed());
        drop(guard);
        assert!(is_allowed());

        let (ranges, park) = (Ranges::try_new(()).expect("memory"), StdPark::default());
        let range = PageRange::single(PageNumber::new(3));
        let (taken, lock) = ranges.take(range, &park);
        drop(lock);
        assert!(!is_allowed(), "the range is taken still");
        drop(taken);
        assert!(is_allowed());
        let (taken, mut lock) = ranges.take(range, &park);
        taken.finish(&mut lock);
        drop(lock);
        assert!(is_allowed(), "finished under the lock");
    }
}
