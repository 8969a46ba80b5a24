//! A store that holds its transfers until it is told to go on.
#![forbid(unsafe_code)]

use super::{Store, StoreError, Transfer};
use crate::sync::{Condvar, Mutex};
use std::collections::VecDeque;

/// Holds every transfer at the gate until it is let through, for tests that stall a store and check which threads wait.
///
/// ```text
/// submit -> [ c b a ] gate | -> the store inside      pass(2): a and b go; open(): all go, now and later
/// ```
/// When it is dropped, it lets through all transfers that it holds.
pub struct GatedStore<S: Store> {
    /// Immutable.
    inner: S,
    /// The transfers at the gate and the passes. Protected by its lock.
    state: Mutex<State>,
    /// A condition that is signalled when a transfer has come to the gate.
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    held: VecDeque<Transfer>,
    /// The number of further transfers to let through; zero while any transfer is held.
    passes: usize,
    open: bool,
}

impl<S: Store> GatedStore<S> {
    /// Makes a closed gate before `inner`.
    pub fn new(inner: S) -> Self {
        Self { inner, state: Mutex::default(), arrived: Condvar::new() }
    }

    /// Lets all transfers pass, now and later.
    pub fn open(&self) {
        let held = {
            let mut state = self.state.lock();
            state.open = true;
            core::mem::take(&mut state.held)
        };
        held.into_iter().for_each(|transfer| self.inner.submit(transfer));
    }

    /// Lets the first `n` transfers pass. If fewer wait, the next ones to come make up the number.
    pub fn pass(&self, n: usize) {
        let passing: Vec<_> = {
            let mut state = self.state.lock();
            let now = n.min(state.held.len());
            state.passes = state.passes.saturating_add(n - now);
            state.held.drain(..now).collect()
        };
        passing.into_iter().for_each(|transfer| self.inner.submit(transfer));
    }

    /// Returns the number of transfers that wait at the gate.
    pub fn waiting(&self) -> usize {
        self.state.lock().held.len()
    }

    /// Blocks until at least `n` transfers wait at the gate.
    pub fn wait_for(&self, n: usize) {
        let mut state = self.state.lock();
        while state.held.len() < n {
            state = self.arrived.wait(state);
        }
    }
}

impl<S: Store> Store for GatedStore<S> {
    fn length(&self) -> Result<u64, StoreError> {
        self.inner.length()
    }

    fn submit(&self, transfer: Transfer) {
        {
            let mut state = self.state.lock();
            if !state.open && state.passes == 0 {
                state.held.push_back(transfer);
                self.arrived.notify_all();
                return;
            }
            state.passes = state.passes.saturating_sub(1);
        }
        self.inner.submit(transfer);
    }

    fn max_pages(&self) -> usize {
        self.inner.max_pages()
    }

    fn is_writable(&self) -> bool {
        self.inner.is_writable()
    }

    fn take_alone(&self) -> bool {
        self.inner.take_alone()
    }

    fn set_length(&self, length: u64) -> Result<(), StoreError> {
        self.inner.set_length(length)
    }

    fn punch(&self, offset: u64, length: u64) -> Result<(), StoreError> {
        self.inner.punch(offset, length)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.inner.flush()
    }
}

impl<S: Store> Drop for GatedStore<S> {
    fn drop(&mut self) {
        self.open();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::testing::{Ended, Numbered, transfer};
    use super::*;
    use crate::store::Direction;
    use std::sync::Arc;
    use std::sync::mpsc::Receiver;

    fn submit<S: Store>(store: &S, pages: core::ops::Range<u64>) -> Vec<Receiver<Ended>> {
        pages
            .map(|page| {
                let (transfer, ended) = transfer(Direction::Read, page * 4096, 0);
                store.submit(transfer);
                ended
            })
            .collect()
    }

    fn ended(reads: &[Receiver<Ended>]) -> Vec<bool> {
        reads.iter().map(|read| read.try_recv().is_ok_and(|ended| ended.result.is_ok())).collect()
    }

    #[test]
    fn the_first_pass_and_the_rest_wait() {
        let store = GatedStore::new(Numbered);
        let reads = submit(&store, 0..3);
        assert_eq!((store.waiting(), ended(&reads)), (3, vec![false; 3]));
        store.pass(2);
        assert_eq!((store.waiting(), ended(&reads)), (1, vec![true, true, false]));
        store.pass(2);
        assert_eq!(ended(&reads), [false, false, true]);
        let later = submit(&store, 0..2);
        assert_eq!((store.waiting(), ended(&later)), (1, vec![true, false]));
    }

    #[test]
    fn open_is_for_ever() {
        let store = GatedStore::new(Numbered);
        let reads = submit(&store, 0..2);
        store.open();
        assert_eq!(ended(&reads), [true; 2]);
        assert_eq!((ended(&submit(&store, 0..2)), store.waiting()), (vec![true; 2], 0));
    }

    #[test]
    fn others_can_be_waited_for() {
        let store = Arc::new(GatedStore::new(Numbered));
        let there = Arc::clone(&store);
        let thread = std::thread::spawn(move || submit(&there, 0..3));
        store.wait_for(3);
        assert_eq!(store.waiting(), 3);
        store.open();
        assert_eq!(ended(&thread.join().unwrap()), [true; 3]);
    }

    #[test]
    fn dropping_lets_through_what_waits() {
        let store = GatedStore::new(Numbered);
        let reads = submit(&store, 0..3);
        drop(store);
        assert_eq!(ended(&reads), [true; 3]);
    }
}
