//! A store with injected failures: of the n-th operation, once or from then on.
#![forbid(unsafe_code)]

use super::{Direction, Store, StoreError, Transfer};
use crate::address::PAGE_SIZE;
use crate::sync::Mutex;

/// The operations that fail, counted from 1, from the store's beginning. An operation is the read or the write of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The n-th operation fails, and no other.
    Once(u64),
    /// The n-th operation fails, and all after it.
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

/// The error of a failed operation: a [`StoreError`] without its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectedError {
    /// Stands for [`StoreError::Io`].
    Io {
        /// The operating system's error number.
        errno: i32,
    },
    /// Stands for [`StoreError::NoSpace`].
    NoSpace,
    /// Stands for [`StoreError::PastEnd`].
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

/// A store that fails the n-th operation in one direction; the rest goes through. A page that fails never reaches the store
/// inside. The pages behind it in its transfer do not reach it either; they are not tried and not counted. The pages before it
/// are moved.
pub struct FailingStore<S> {
    /// Immutable.
    inner: S,
    /// Immutable.
    direction: Direction,
    /// Immutable.
    error: InjectedError,
    /// The count of operations and the failure. Protected by its lock.
    state: Mutex<State>,
}

struct State {
    failure: Option<Failure>,
    operations: u64,
}

impl<S: Store> FailingStore<S> {
    /// Makes a store that fails the operations in `direction` that `failure` names, with `error`.
    pub fn new(inner: S, direction: Direction, failure: Failure, error: InjectedError) -> Self {
        let state = Mutex::new(State { failure: Some(failure), operations: 0 });
        Self { inner, direction, error, state }
    }

    /// Returns the number of operations in the direction so far, failed ones among them.
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// Changes the operations that fail from now on; with `None`, none fails. The count goes on: the next operation is number
    /// `operations() + 1`.
    pub fn set(&self, failure: Option<Failure>) {
        self.state.lock().failure = failure;
    }

    /// Counts the operations of a transfer of `pages` pages, up to the first that fails. Returns the index of the failing page
    /// in the transfer.
    fn first_failing(&self, pages: usize) -> Option<usize> {
        let mut state = self.state.lock();
        (0..pages).find(|_| {
            state.operations += 1;
            state.failure.is_some_and(|failure| failure.hits(state.operations))
        })
    }
}

impl<S: Store> Store for FailingStore<S> {
    fn length(&self) -> Result<u64, StoreError> {
        self.inner.length()
    }

    fn submit(&self, mut transfer: Transfer) {
        let is_ours = transfer.direction() == self.direction;
        let failing = if is_ours { self.first_failing(transfer.pages()) } else { None };
        let Some(before) = failing else { return self.inner.submit(transfer) };
        let bytes = before * PAGE_SIZE as usize;
        let error = self.error.at(transfer.offset() + bytes as u64);
        if before == 0 {
            return transfer.complete(Err(error));
        }
        transfer.truncate(before);
        self.inner.submit(transfer.intercept(move |result, completion| {
            completion(if result == Ok(bytes) { Err(error) } else { result });
        }));
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::testing::{self, Numbered, transfer};
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
    fn a_page_in_the_middle_of_a_run_fails_and_those_before_it_are_moved() {
        let store = FailingStore::new(Numbered, Direction::Read, Failure::Once(3), EIO);
        let read = || {
            let (read, ended) = testing::run(Direction::Read, 0, &[9; 4]);
            store.submit(read);
            let ended = ended.recv().unwrap();
            let bytes: Vec<_> = ended.more.iter().map(|page| page[0]).collect();
            (ended.result, bytes, store.operations())
        };
        assert_eq!(read(), (Err(StoreError::Io { offset: 8192, errno: 5 }), vec![1, 9, 9], 3));
        assert_eq!(read(), (Ok(4 * 4096), vec![1, 2, 3], 7));
        store.set(Some(Failure::Once(8)));
        assert_eq!(read(), (Err(StoreError::Io { offset: 0, errno: 5 }), vec![9, 9, 9], 8));
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
