//! Background work under memory pressure, by a thread that a host gives. That thread, the worker, keeps a reserve of free frames,
//! keeps groups below their high limits, and writes dirty pages of files. So a thread that needs a frame finds one. It reclaims
//! only if the worker does not keep up.
//!
//! ```text
//! caller:  [few frames are free] ──► fence ──► WORKS: CALLED          SLEEPS: CALLED, and wake the worker
//! worker:  CALLED: WORKS ──► fence ──► look, and work ──► WORKS: SLEEPS, and sleep     CALLED meanwhile: again
//! ```
//! The two fences order the cause of a call and the state. Either the worker sees the cause, or the caller sees that the worker
//! has begun a round, and calls again.
//!
//! No thread waits for the worker. If it is late, or there is none, each thread reclaims for itself.
//!
//! | file | |
//! |---|---|
//! | `mod.rs` | the worker's states, its life and its rounds |
//! | `reserve.rs` | the work of a round: free frames, groups. That for dirty pages is in `page_cache/dirty.rs` |
//! | `thread.rs` | a thread of the standard library as the worker |

#[cfg(all(test, loom))]
mod models;
mod reserve;
#[cfg(all(feature = "std", not(loom)))]
mod thread;

#[cfg(all(feature = "std", not(loom)))]
pub use thread::BackgroundThread;

use crate::engine::Engine;
use crate::host::{FrameSource, Host, Park, Sleeper};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{full_fence, plain};
use alloc::sync::Arc;

/// There is no worker.
const ABSENT: u32 = 0;
/// The worker looks for work, and does it.
const WORKS: u32 = 1;
/// The worker is to look for work, again or for the first time.
const CALLED: u32 = 2;
/// The worker has found no work. It sleeps, or is about to.
const SLEEPS: u32 = 3;

/// The error of a thread that cannot become the background worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackgroundError {
    /// The engine has a worker already. It goes on, and the caller is no worker.
    #[error("the engine has a background worker already: end that one first")]
    Running,
    /// The operating system made no thread. The engine has no worker.
    #[error("there is no memory for a thread, or the process has as many threads as it may have")]
    NoThread,
}

/// The state of an engine's background worker.
#[derive(Default)]
pub(crate) struct Background {
    /// One of the constants above. Atomic.
    state: AtomicU32,
    /// The name of the worker's thread. Atomic; written by the worker before it first sleeps.
    sleeper: plain::AtomicU64,
    /// Whether the last step of reclaim could take no page. Used by the worker alone.
    is_hopeless: plain::AtomicBool,
    /// Whether the worker is writing pages of files: a store may hold it up. Atomic; written by the worker.
    is_writing: plain::AtomicBool,
}

impl Background {
    /// Makes the worker look for work once more after this call, if there is a worker. The caller has made the cause of the call
    /// visible before. Waits for nothing.
    pub fn call(&self, park: &impl Park) {
        // Partner: the fence of `begin_round`. It comes before the look for a worker: one that begins meanwhile either is seen, or looks
        // for work after the cause of this call.
        if !mutant!("calls_unfenced") {
            full_fence();
        }
        let mut state = self.state.load(Ordering::Relaxed);
        while matches!(state, WORKS | SLEEPS) {
            if state == WORKS && mutant!("busy_worker_not_called") {
                return;
            }
            match self.state.compare_exchange(state, CALLED, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(SLEEPS) => return park.unpark(Sleeper(self.sleeper.load(plain::Ordering::Relaxed))),
                Ok(_) => return,
                Err(now) => state = now,
            }
        }
    }

    /// Returns whether there is a worker.
    pub fn has_worker(&self) -> bool {
        self.state.load(Ordering::Relaxed) != ABSENT
    }

    /// Returns whether there is a worker, and it is not writing pages of files, where a store may hold it up.
    pub fn takes_over(&self) -> bool {
        self.has_worker() && !self.is_writing.load(plain::Ordering::Relaxed)
    }

    /// Reserves the place of the worker for the caller, if there is none.
    fn claim(&self) -> Result<(), BackgroundError> {
        let claimed = self.state.compare_exchange(ABSENT, CALLED, Ordering::AcqRel, Ordering::Relaxed);
        claimed.map(drop).map_err(|_| BackgroundError::Running)
    }

    /// Notes the thread of the worker.
    fn is_done_by(&self, sleeper: Sleeper) {
        self.sleeper.store(sleeper.0, plain::Ordering::Relaxed);
    }

    /// Begins to look for work.
    fn begin_round(&self) {
        let _ = self.state.swap(WORKS, Ordering::AcqRel);
        // Partner: the fence of `call`. A call that did not find WORKS has its cause seen by the looks that follow.
        if !mutant!("looks_unfenced") {
            full_fence();
        }
    }

    /// Ends a round. Returns whether the worker may sleep: nobody has called since the round began.
    fn rest(&self) -> bool {
        // Release, partner: `call`, which reads the worker's name.
        self.state.compare_exchange(WORKS, SLEEPS, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Returns whether nobody has called since the worker went to sleep.
    fn sleeps(&self) -> bool {
        self.state.load(Ordering::Acquire) == SLEEPS
    }

    fn is_hopeless(&self) -> bool {
        self.is_hopeless.load(plain::Ordering::Relaxed)
    }

    fn set_hopeless(&self, is_hopeless: bool) {
        self.is_hopeless.store(is_hopeless, plain::Ordering::Relaxed);
    }

    /// Notes that there is no worker any more.
    fn resign(&self) {
        self.is_writing.store(false, plain::Ordering::Relaxed);
        // An exchange, as each change of the state: no call comes between, and is lost.
        let _ = self.state.swap(ABSENT, Ordering::AcqRel);
    }
}

impl<H: Host> Engine<H> {
    /// Makes the calling thread the engine's background worker until `ends` returns true.
    ///
    /// A host calls this once, on a thread of its own. With the standard library, `Engine::spawn_background` makes that thread. An
    /// engine without a worker works too: then each thread reclaims for itself.
    ///
    /// The worker does three things, and otherwise sleeps by the host's [`Park`]:
    ///
    /// * If fewer frames are free than the low mark of [`Limits::reserve`](crate::Limits::reserve), it reclaims up to the high mark.
    /// * If a [`MemoryLimit`](crate::MemoryLimit) comes within a sixteenth of its high limit, it reclaims there, down to an eighth
    ///   below that limit.
    /// * If there are more dirty pages than the background share of [`Limits::dirty`](crate::Limits::dirty), or if reclaim has met
    ///   dirty pages, it writes them.
    ///
    /// The worker calls `ends` after each wake-up, and between the steps of its work. To end the worker, make `ends` return true, and
    /// then call [`Engine::wake_background`]. The worker keeps the engine alive until it ends. That of `Engine::spawn_background`
    /// does not.
    ///
    /// The caller holds nothing, since the call sleeps. No other thread waits for the worker. A store or a swap device that is slow
    /// to accept a transfer delays the worker alone.
    ///
    /// # Errors
    /// [`BackgroundError::Running`] if the engine has a worker. Nothing is changed.
    pub fn run_background(self: &Arc<Self>, ends: impl Fn() -> bool) -> Result<(), BackgroundError> {
        self.background.claim()?;
        self.begin_worker();
        let _worker = Worker(self);
        let me = self.host().park().current();
        while !ends() {
            if self.background_round(&ends) {
                self.park_while(me, || self.background.sleeps());
            }
        }
        Ok(())
    }

    /// Wakes the background worker: it looks for work, and asks whether it is to end.
    ///
    /// Call it after the condition of [`Engine::run_background`] has become true. The engine itself wakes the worker if there is
    /// work. Does nothing if there is no worker. Waits for nothing.
    pub fn wake_background(&self) {
        self.background.call(self.host().park());
    }

    /// Returns whether the calling thread is the worker.
    pub(crate) fn is_worker(&self) -> bool {
        let background = &self.background;
        let sleeper = background.sleeper.load(plain::Ordering::Relaxed);
        background.has_worker()
            && sleeper == self.host().park().current().0
            && !mutant!("worker_calls_itself")
    }

    /// Makes the calling thread the worker. It has the place: see [`Background::claim`].
    fn begin_worker(&self) {
        self.background.is_done_by(self.host().park().current());
        let (low, _) = self.marks();
        self.host().frames().watch(self.sections(), low);
    }

    fn end_worker(&self) {
        self.host().frames().watch(self.sections(), 0);
        self.background.resign();
    }

    /// Does the work that there is now. Returns whether the worker may sleep.
    fn background_round(self: &Arc<Self>, ends: &impl Fn() -> bool) -> bool {
        self.background.begin_round();
        // The end may have been asked for before the round began.
        if !ends() {
            self.keep_reserve(ends);
            self.relieve_groups(ends);
            self.background.is_writing.store(true, plain::Ordering::Relaxed);
            self.write_dirty_pages(ends);
            self.background.is_writing.store(false, plain::Ordering::Relaxed);
        }
        !ends() && self.background.rest()
    }
}

/// The time in which the calling thread is the worker. Dropping this ends it.
struct Worker<'a, H: Host>(&'a Engine<H>);

impl<H: Host> Drop for Worker<'_, H> {
    fn drop(&mut self) {
        self.0.end_worker();
    }
}
