//! A thread of the standard library as the background worker.

use super::BackgroundError;
use crate::engine::Engine;
use crate::host::{Park, StdHost, StdPark};
use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

/// The owner of a thread that does an engine's background work, from [`Engine::spawn_background`].
///
/// Dropping this ends the thread, and waits for its end. A store or a swap device that does not return from `submit` delays the end.
/// The thread keeps the engine alive only while it works. If all handles of the engine are dropped first, the thread ends by itself.
///
/// ```
/// # use faultless::{Engine, Limits};
/// # use faultless_soft::Soft;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let engine = Engine::new(Soft::new(1024)?, Limits::default())?;
/// let worker = engine.spawn_background()?;
/// // … spaces, faults …
/// drop(worker);
/// # Ok(())
/// # }
/// ```
pub struct BackgroundThread<H: StdHost> {
    engine: Weak<Engine<H>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<H: StdHost<Park = StdPark>> Engine<H> {
    /// Makes a thread that is the engine's background worker until the returned value is dropped.
    ///
    /// Call it once, after the engine was made. [`Engine::run_background`] describes the work. The thread does not keep the engine.
    ///
    /// # Errors
    /// [`BackgroundError`]: no thread was made, and nothing is changed.
    pub fn spawn_background(self: &Arc<Self>) -> Result<BackgroundThread<H>, BackgroundError> {
        self.background.claim()?;
        let (engine, ends) = (Arc::downgrade(self), Arc::new(AtomicBool::new(false)));
        let (its_engine, its_end) = (engine.clone(), ends.clone());
        let thread = Builder::new().name("faultless-behind".into()).spawn(move || run(&its_engine, &its_end));
        match thread {
            Ok(thread) => Ok(BackgroundThread { engine, ends, thread: Some(thread) }),
            Err(_) => {
                self.background.resign();
                Err(BackgroundError::NoThread)
            }
        }
    }
}

/// Works until `ends`, or until the engine is gone.
fn run<H: StdHost<Park = StdPark>>(engine: &Weak<Engine<H>>, ends: &AtomicBool) {
    let (park, is_over) = (StdPark::default(), || ends.load(Ordering::Acquire));
    let _end = End(engine);
    let _kept = if mutant!("worker_keeps_the_engine") { engine.upgrade() } else { None };
    engine.upgrade().inspect(|engine| engine.begin_worker());
    while let Some(engine) = engine.upgrade() {
        if is_over() {
            break;
        }
        if engine.background_round(&is_over) {
            engine.note_sleep();
            drop(engine);
            // A call since the round, or the end of the engine, has woken this thread already.
            park.park(park.current());
        }
    }
}

/// Ends the worker, if the engine is still there.
struct End<'a, H: StdHost>(&'a Weak<Engine<H>>);

impl<H: StdHost> Drop for End<'_, H> {
    fn drop(&mut self) {
        self.0.upgrade().inspect(|engine| engine.end_worker());
    }
}

impl<H: StdHost> Drop for BackgroundThread<H> {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        // The end of the engine wakes the thread too.
        if let Some(engine) = self.engine.upgrade() {
            engine.wake_background();
        }
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic of the thread was reported when it happened: it came from a store or a device.
            let _ = thread.join();
        }
    }
}
