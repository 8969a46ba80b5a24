//! A slow device. A transfer of any number of pages completes no earlier than its latency after it has started.
#![forbid(unsafe_code)]

use super::threads::{join, survive};
use super::{Completion, Store, StoreError, Transfer};
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Takes the lock, poisoned or not. No completion runs under one, so nothing is left half-done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The deadline of a latency that the clock cannot express: longer than any run.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// Starts each transfer in the store inside at once and holds its completion back until `latency` has passed.
///
/// One timer thread, "faultless-timer", holds the completions and calls them. No thread sleeps for a single transfer. There is
/// no limit on the transfers in flight unless [`with_queue_depth`](Self::with_queue_depth) sets one.
///
/// Dropping the store starts the transfers that wait for their turn, calls the completions that are held, and waits for the
/// timer thread. A transfer that the store inside still works on completes as soon as that is done with it. Only a completion
/// that drops the store waits for nothing.
pub struct DelayedStore<S: Store> {
    /// The store inside. Immutable. The timer thread has the other reference, and has dropped it when it is joined. The store
    /// inside is dropped with this reference, and completes the transfers that it holds.
    inner: Arc<S>,
    /// Immutable.
    timer: Arc<Timer>,
    /// The timer thread. Immutable; taken to be joined.
    thread: Option<JoinHandle<()>>,
}

struct Timer {
    state: Mutex<State>,
    /// A condition that is signalled when the earliest deadline has changed, or the store is closed.
    changed: Condvar,
}

struct State {
    latency: Duration,
    jitter: Option<Jitter>,
    depth: usize,
    /// The number of transfers that have started and not completed.
    in_flight: usize,
    /// The transfers that have not started, since the queue is full.
    waiting: VecDeque<Transfer>,
    /// The completions that are held, of transfers that the store inside has done: by deadline, then in the order in which they
    /// were done.
    held: BTreeMap<(Instant, u64), Held>,
    next_held: u64,
    closed: bool,
}

struct Held {
    result: Result<usize, StoreError>,
    completion: Completion,
}

/// A transfer whose turn has come.
struct Started {
    transfer: Transfer,
    deadline: Instant,
}

impl<S: Store> DelayedStore<S> {
    /// Makes a store of `inner` in which every transfer takes at least `latency`.
    ///
    /// # Panics
    /// Panics if the operating system starts no thread, as [`std::thread::spawn`] does.
    pub fn new(inner: S, latency: Duration) -> Self {
        let inner = Arc::new(inner);
        let state = State {
            latency,
            jitter: None,
            depth: usize::MAX,
            in_flight: 0,
            waiting: VecDeque::new(),
            held: BTreeMap::new(),
            next_held: 0,
            closed: false,
        };
        let timer = Arc::new(Timer { state: Mutex::new(state), changed: Condvar::new() });
        let run = {
            let (timer, inner) = (Arc::clone(&timer), Arc::clone(&inner));
            move || timer.run(&*inner)
        };
        let thread = thread::Builder::new().name("faultless-timer".into()).spawn(run);
        let thread = Some(thread.expect("the operating system starts a timer thread"));
        Self { inner, timer, thread }
    }

    /// Adds up to `max` to each latency, evenly spread. The same `seed` gives the same sequence, which is drawn in the order in
    /// which transfers start.
    #[must_use]
    pub fn with_jitter(self, max: Duration, seed: u64) -> Self {
        lock(&self.timer.state).jitter = Some(Jitter { max, state: seed });
        self
    }

    /// Starts at most `depth` transfers at a time. The others wait for their turn, first come first served. Their latency
    /// counts from their start.
    #[must_use]
    pub fn with_queue_depth(self, depth: NonZeroUsize) -> Self {
        lock(&self.timer.state).depth = depth.get();
        self
    }
}

impl<S: Store> Store for DelayedStore<S> {
    fn length(&self) -> Result<u64, StoreError> {
        self.inner.length()
    }

    fn submit(&self, transfer: Transfer) {
        let started = {
            let mut state = lock(&self.timer.state);
            if state.in_flight >= state.depth || !state.waiting.is_empty() {
                state.waiting.push_back(transfer);
                return;
            }
            state.start(transfer)
        };
        self.timer.begin(&*self.inner, started);
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

impl<S: Store> Drop for DelayedStore<S> {
    fn drop(&mut self) {
        let waiting = {
            let mut state = lock(&self.timer.state);
            state.closed = true;
            core::mem::take(&mut state.waiting)
        };
        self.timer.changed.notify_one();
        waiting.into_iter().for_each(|transfer| self.inner.submit(transfer));
        self.thread.take().into_iter().for_each(join);
    }
}

impl State {
    fn start(&mut self, transfer: Transfer) -> Started {
        self.in_flight += 1;
        let extra = self.jitter.as_mut().map_or(Duration::ZERO, Jitter::draw);
        let now = Instant::now();
        let deadline = now.checked_add(self.latency.saturating_add(extra)).unwrap_or(now + FOREVER);
        Started { transfer, deadline }
    }
}

impl Timer {
    /// Hands the transfer to the store inside. The completion refers to the timer only: it must not keep alive the store that
    /// keeps it.
    fn begin<S: Store>(self: &Arc<Self>, inner: &S, started: Started) {
        let Started { transfer, deadline } = started;
        let timer = Arc::clone(self);
        inner.submit(transfer.intercept(move |result, completion| {
            timer.hold(deadline, Held { result, completion });
        }));
    }

    fn hold(&self, deadline: Instant, held: Held) {
        let mut state = lock(&self.state);
        if state.closed {
            drop(state);
            return (held.completion)(held.result);
        }
        let key = (deadline, state.next_held);
        state.next_held += 1;
        state.held.insert(key, held);
        let earliest = state.held.first_key_value().is_some_and(|(&first, _)| first == key);
        drop(state);
        if earliest {
            self.changed.notify_one();
        }
    }

    /// Runs the timer thread.
    fn run<S: Store>(self: &Arc<Self>, inner: &S) {
        while let Some(held) = self.next_due() {
            survive(|| (held.completion)(held.result));
            // The place of the transfer in the queue is free only now.
            let next = {
                let mut state = lock(&self.state);
                state.in_flight -= 1;
                state.waiting.pop_front().map(|transfer| state.start(transfer))
            };
            if let Some(started) = next {
                survive(|| self.begin(inner, started));
            }
        }
    }

    /// Sleeps until a deadline has passed, and returns the held completion. Returns `None` when the store is closed and holds
    /// none.
    fn next_due(&self) -> Option<Held> {
        let mut state = lock(&self.state);
        loop {
            let earliest = state.held.first_key_value().map(|(&(deadline, _), _)| deadline);
            state = match earliest {
                _ if state.closed => return state.held.pop_first().map(|(_, held)| held),
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return state.held.pop_first().map(|(_, held)| held);
                    }
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// A source of evenly spread durations, by splitmix64.
struct Jitter {
    max: Duration,
    state: u64,
}

impl Jitter {
    fn draw(&mut self) -> Duration {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        let max = u64::try_from(self.max.as_nanos()).unwrap_or(u64::MAX);
        // The high half of the product is even over 0..=max, without a division.
        Duration::from_nanos(((u128::from(bits) * (u128::from(max) + 1)) >> 64) as u64)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::testing::{Ended, Numbered, transfer};
    use super::*;
    use crate::store::{Direction, GatedStore};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, channel};

    const LATENCY: Duration = Duration::from_millis(5);
    /// A latency that no test outlives.
    const HOUR: Duration = Duration::from_secs(3600);

    fn submit<S: Store>(store: &S, page: u64) -> Receiver<Ended> {
        let (transfer, ended) = transfer(Direction::Read, page * 4096, 0);
        store.submit(transfer);
        ended
    }

    fn depth(n: usize) -> NonZeroUsize {
        NonZeroUsize::new(n).unwrap()
    }

    #[test]
    fn nothing_completes_early() {
        let store = DelayedStore::new(Numbered, LATENCY).with_jitter(LATENCY, 7);
        let start = Instant::now();
        let reads: Vec<_> = (0..20).map(|page| submit(&store, page)).collect();
        for (page, read) in reads.iter().enumerate() {
            let ended = read.recv().unwrap();
            assert!(start.elapsed() >= LATENCY);
            assert_eq!((ended.result, ended.page[0]), (Ok(4096), page as u8));
        }
    }

    #[test]
    fn the_inner_transfer_starts_at_once() {
        let gate = Arc::new(GatedStore::new(Numbered));
        let store = DelayedStore::new(Arc::clone(&gate), HOUR);
        let reads: Vec<_> = (0..1000).map(|page| submit(&store, page)).collect();
        assert_eq!(gate.waiting(), 1000);
        gate.open();
        drop(store);
        assert!(reads.iter().all(|read| read.try_recv().is_ok()));
    }

    #[test]
    fn completions_come_by_deadline() {
        let store = DelayedStore::new(Numbered, LATENCY);
        let (sender, order) = channel();
        for page in 0..10_u64 {
            let sender = sender.clone();
            let (read, _) = transfer(Direction::Read, page * 4096, 0);
            store.submit(read.intercept(move |result, completion| {
                sender.send(page).unwrap();
                completion(result);
            }));
        }
        assert_eq!(order.iter().take(10).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn the_depth_bounds_what_is_in_flight() {
        let store = DelayedStore::new(Numbered, Duration::from_millis(1)).with_queue_depth(depth(3));
        let gate = Arc::new(GatedStore::new(store));
        let queued: Vec<_> = (0..30).map(|page| submit(&gate, page)).collect();
        let start = Instant::now();
        gate.open();
        queued.iter().for_each(|read| assert_eq!(read.recv().unwrap().result, Ok(4096)));
        // Ten rounds of three, each a latency after the one before it.
        assert!(start.elapsed() >= Duration::from_millis(10));
    }

    /// Counts the transfers that it was given and that have not completed, as far as the test sees completions.
    struct Counting {
        now: Arc<AtomicUsize>,
        most: Arc<AtomicUsize>,
    }

    impl Store for Counting {
        fn length(&self) -> Result<u64, StoreError> {
            Numbered.length()
        }

        fn submit(&self, transfer: Transfer) {
            let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            Numbered.submit(transfer);
        }
    }

    #[test]
    fn the_depth_is_never_exceeded_and_turns_are_in_order() {
        let (now, most) = (Arc::default(), Arc::default());
        let inner = Counting { now: Arc::clone(&now), most: Arc::clone(&most) };
        let store = DelayedStore::new(inner, Duration::from_millis(1)).with_queue_depth(depth(2));
        let (sender, order) = channel();
        for page in 0..20_u64 {
            let (sender, now) = (sender.clone(), Arc::clone(&now));
            let (read, _) = transfer(Direction::Read, page * 4096, 0);
            store.submit(read.intercept(move |result, completion| {
                now.fetch_sub(1, Ordering::SeqCst);
                sender.send(page).unwrap();
                completion(result);
            }));
        }
        assert_eq!(order.iter().take(20).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
        assert!(most.load(Ordering::SeqCst) <= 2);
    }

    #[test]
    fn dropping_completes_what_is_held_waiting_and_inside() {
        let gate = GatedStore::new(Numbered);
        gate.pass(2);
        let store = DelayedStore::new(gate, HOUR).with_queue_depth(depth(4));
        // Two held by the timer, two at the gate inside, two waiting for their turn.
        let reads: Vec<_> = (0..6).map(|page| submit(&store, page)).collect();
        assert!(reads.iter().all(|read| read.try_recv().is_err()));
        drop(store);
        for (page, read) in reads.iter().enumerate() {
            let ended = read.try_recv().unwrap();
            assert_eq!((ended.result, ended.page[0]), (Ok(4096), page as u8));
        }
    }

    #[test]
    fn a_completion_may_panic_or_drop_the_store() {
        let store = Arc::new(DelayedStore::new(Numbered, Duration::ZERO));
        let (read, _) = transfer(Direction::Read, 0, 0);
        store.submit(read.intercept(|result, completion| {
            completion(result);
            panic!("planted by the test")
        }));
        assert!(submit(&store, 1).recv().is_ok());

        let last = Arc::clone(&store);
        let (go, gate) = channel::<()>();
        let (read, ended) = transfer(Direction::Read, 0, 0);
        store.submit(read.intercept(move |result, completion| {
            gate.recv().unwrap();
            drop(last);
            completion(result);
        }));
        drop(store);
        go.send(()).unwrap();
        assert!(ended.recv().is_ok());
    }

    #[test]
    fn jitter_is_the_seeds_and_stays_below_its_maximum() {
        let draw = |seed| {
            let mut jitter = Jitter { max: LATENCY, state: seed };
            (0..100).map(|_| jitter.draw()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(1).iter().all(|&extra| extra <= LATENCY));
        assert!(draw(1).iter().any(|&extra| extra > LATENCY / 2));
        assert_eq!(Jitter { max: Duration::ZERO, state: 1 }.draw(), Duration::ZERO);
    }

    #[test]
    fn an_endless_latency_is_no_overflow() {
        let store = DelayedStore::new(Numbered, Duration::MAX).with_jitter(Duration::MAX, 1);
        let read = submit(&store, 0);
        drop(store);
        assert!(read.try_recv().is_ok());
    }
}
