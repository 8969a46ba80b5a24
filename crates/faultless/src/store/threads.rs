//! The parts that stores with threads of their own share. The locks are those of `std`: these threads do real I/O and keep real
//! time, and no model runs them.
#![forbid(unsafe_code)]

use super::{StoreError, Transfer};
use crate::errno;
use crate::sync::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// Runs `work`, which calls completions. The panic hook has reported a panic in one; the thread lives on for other transfers.
pub(super) fn survive(work: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(work));
}

/// Waits until the thread has ended. Does not wait if it is the calling thread, whose completion may be the one that drops its
/// store.
pub(super) fn join(thread: JoinHandle<()>) {
    if thread.thread().id() != thread::current().id() {
        // Its panics were caught.
        let _ = thread.join();
    }
}

/// A pool of threads that take transfers from one queue. When it is dropped, it does the queued transfers and waits for them.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    transfers: VecDeque<Transfer>,
    closed: bool,
}

impl Pool {
    /// Starts `threads` threads of that name, which call `work` with each transfer.
    ///
    /// # Errors
    /// No thread could be started; those already started end.
    pub(super) fn start(
        name: &str,
        threads: NonZeroUsize,
        work: impl Fn(Transfer) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new() });
        let work = Arc::new(work);
        let mut pool = Self { shared, threads: Vec::new() };
        for _ in 0..threads.get() {
            let (shared, work) = (Arc::clone(&pool.shared), Arc::clone(&work));
            let run = move || {
                while let Some(transfer) = shared.next() {
                    survive(|| work(transfer));
                }
            };
            pool.threads.push(thread::Builder::new().name(name.into()).spawn(run)?);
        }
        Ok(pool)
    }

    /// Queues a transfer. Completes it with an error if there is no memory for that.
    pub(super) fn submit(&self, transfer: Transfer) {
        let mut queue = self.shared.queue.lock();
        if queue.transfers.try_reserve(1).is_err() {
            drop(queue);
            let error = StoreError::Io { offset: transfer.offset(), errno: errno::ENOMEM };
            return transfer.complete(Err(error));
        }
        queue.transfers.push_back(transfer);
        drop(queue);
        self.shared.changed.notify_one();
    }
}

impl Shared {
    /// Returns the next transfer, or `None` when there will be none.
    fn next(&self) -> Option<Transfer> {
        let mut queue = self.queue.lock();
        loop {
            match queue.transfers.pop_front() {
                None if !queue.closed => {
                    queue = self.changed.wait(queue);
                }
                next => return next,
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.changed.notify_all();
        self.threads.drain(..).for_each(join);
    }
}
