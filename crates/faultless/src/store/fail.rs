//! Injected failures: the n-th operation, once or from then on.
#![forbid(unsafe_code)]

use super::{Direction, Store, StoreError, Transfer};
use crate::sync::Mutex;

/// Which operations fail; counted from 1, from the store's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The n-th, and no other.
    Once(u64),
    /// The n-th and all behind it.
    From(u64),
}

impl Failure {
    fn hits(self, operation: u64) -> bool {
        match self {
            Self::Once(n) => operation == n,
            Self::From(n) => operation >= n,
        }
    }
}

/// How an operation fails: a [`StoreError`] without its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectedError {
    /// [`StoreError::Io`].
    Io {
        /// The operating system's error number.
        errno: i32,
    },
    /// [`StoreError::NoSpace`].
    NoSpace,
    /// [`StoreError::PastEnd`].
    PastEnd,
}

impl InjectedError {
    fn at(self, offset: u64) -> StoreError {
        match self {
            Self::Io { errno } => StoreError::Io { offset, errno },
            Self::NoSpace => StoreError::NoSpace { offset },
            Self::PastEnd => StoreError::PastEnd { offset },
        }
    }
}

/// Fails the n-th operation in one direction; the rest goes through. What fails never reaches the store inside.
pub struct FailingStore<S> {
    /// Immutable.
    inner: S,
    /// Immutable.
    direction: Direction,
    /// Immutable.
    error: InjectedError,
    /// Protected by itself.
    state: Mutex<State>,
}

struct State {
    failure: Option<Failure>,
    operations: u64,
}

impl<S: Store> FailingStore<S> {
    /// Fails those transfers in `direction` that `failure` says, with `error`.
    pub fn new(inner: S, direction: Direction, failure: Failure, error: InjectedError) -> Self {
        let state = Mutex::new(State { failure: Some(failure), operations: 0 });
        Self { inner, direction, error, state }
    }

    /// How many operations in the direction there have been, failed ones among them.
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// Changes what fails from now on; `None` for nothing. The count goes on: the next operation is number
    /// `operations() + 1`.
    pub fn set(&self, failure: Option<Failure>) {
        self.state.lock().failure = failure;
    }

    /// Counts the operation and says whether it fails.
    fn fails(&self) -> bool {
        let mut state = self.state.lock();
        state.operations += 1;
        state.failure.is_some_and(|failure| failure.hits(state.operations))
    }
}

impl<S: Store> Store for FailingStore<S> {
    fn length(&self) -> Result<u64, StoreError> {
        self.inner.length()
    }

    fn submit(&self, transfer: Transfer) {
        if transfer.direction() == self.direction && self.fails() {
            let error = self.error.at(transfer.offset());
            transfer.complete(Err(error));
        } else {
            self.inner.submit(transfer);
        }
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

#[cfg(all(test, not(loom), not(shuttle)))]
mod tests {
    use super::super::testing::{Numbered, transfer};
    use super::*;

    const EIO: InjectedError = InjectedError::Io { errno: 5 };

    fn run<S: Store>(store: &S, direction: Direction) -> Result<usize, StoreError> {
        let (transfer, ended) = transfer(direction, 8192, 0);
        store.submit(transfer);
        ended.recv().unwrap().result
    }

    fn failed(store: &FailingStore<Numbered>, direction: Direction) -> Vec<bool> {
        (0..4).map(|_| run(store, direction).is_err()).collect()
    }

    #[test]
    fn one_fails() {
        let store = FailingStore::new(Numbered, Direction::Read, Failure::Once(2), EIO);
        assert_eq!(failed(&store, Direction::Write), [false; 4]);
        assert_eq!(store.operations(), 0);
        assert_eq!(failed(&store, Direction::Read), [false, true, false, false]);
        assert_eq!(store.operations(), 4);
    }

    #[test]
    fn all_fail_from_one_on_until_told_otherwise() {
        let store = FailingStore::new(Numbered, Direction::Write, Failure::From(3), EIO);
        assert_eq!(failed(&store, Direction::Write), [false, false, true, true]);
        store.set(None);
        assert_eq!(failed(&store, Direction::Write), [false; 4]);
        store.set(Some(Failure::Once(store.operations() + 1)));
        assert_eq!(failed(&store, Direction::Write), [true, false, false, false]);
    }

    #[test]
    fn the_error_is_the_one_asked_for() {
        let offset = 8192;
        for (error, expected) in [
            (EIO, StoreError::Io { offset, errno: 5 }),
            (InjectedError::NoSpace, StoreError::NoSpace { offset }),
            (InjectedError::PastEnd, StoreError::PastEnd { offset }),
        ] {
            let store = FailingStore::new(Numbered, Direction::Write, Failure::From(1), error);
            assert_eq!(run(&store, Direction::Write), Err(expected));
        }
    }
}
