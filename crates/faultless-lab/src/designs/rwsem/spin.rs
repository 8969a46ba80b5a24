//! The owner word, and writers that spin on it.

use super::{HANDOFF, HELD, READER, Rwsem, WRITER};
use std::hint::spin_loop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest time that a writer spins: about the time slice of Linux's scheduler.
pub const SLICE: Duration = Duration::from_millis(3);

/// Number of turns between two looks at the clock.
const TURNS: u32 = 16;

/// Mark of the owner: readers hold the lock, or held it last.
const BY_READERS: u64 = 1 << 0;
/// Mark of the owner: writers do not spin, because one has spun on readers for too long.
const NO_SPINNING: u64 = 1 << 1;
/// Mark of the owner: the writer sleeps.
const SLEEPS: u64 = 1 << 2;

/// The writer, or the last reader, as the address of a value of its thread, and the marks above. It is a hint for
/// spinners, and excludes nobody. Atomic; whoever takes the lock writes it.
#[derive(Debug, Default)]
pub(super) struct Owner(AtomicU64);

thread_local! {
    /// Its address names the thread. It is aligned, so that the marks are free.
    static NAME: u64 = const { 0 };
}

fn this_thread() -> u64 {
    NAME.with(|name| std::ptr::from_ref(name).addr() as u64)
}

/// The result of a spinner's look at the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// No owner: the lock is free, or changes hands.
    Nobody,
    /// A writer, another one than before.
    Writer,
    /// Readers.
    Readers,
    /// Spinning makes no sense.
    Stop,
}

impl Owner {
    #[inline]
    pub fn set_writer(&self) {
        self.0.store(this_thread(), Ordering::Relaxed);
    }

    #[inline]
    pub fn set_readers(&self) {
        let kept = self.0.load(Ordering::Relaxed) & NO_SPINNING;
        self.0.store(this_thread() | BY_READERS | kept, Ordering::Relaxed);
    }

    #[inline]
    pub fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    pub fn is_readers(&self) -> bool {
        self.0.load(Ordering::Relaxed) & BY_READERS != 0
    }

    pub fn set_sleeping(&self, sleeps: bool) {
        self.0.store(if sleeps { this_thread() | SLEEPS } else { this_thread() }, Ordering::Relaxed);
    }

    /// Lets writers spin again. Called when the last reader has gone.
    pub fn allow_spinning(&self) {
        if self.may_not_spin() {
            self.0.fetch_and(!NO_SPINNING, Ordering::Relaxed);
        }
    }

    pub fn may_not_spin(&self) -> bool {
        self.0.load(Ordering::Relaxed) & NO_SPINNING != 0
    }

    /// Forbids spinning until the last reader has gone, if readers hold the lock.
    fn forbid_spinning(&self) {
        let forbid = |owner| (owner & BY_READERS != 0).then_some(owner | NO_SPINNING);
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, forbid);
    }
}

fn state_of(owner: u64) -> State {
    match owner {
        0 => State::Nobody,
        _ if owner & (NO_SPINNING | SLEEPS) != 0 => State::Stop,
        _ if owner & BY_READERS != 0 => State::Readers,
        _ => State::Writer,
    }
}

/// A limit in time that looks at the clock every few turns only.
struct Limit {
    end: Instant,
    turn: u32,
}

impl Limit {
    fn new(length: Duration) -> Self {
        Self { end: Instant::now() + length, turn: 0 }
    }

    /// Counts a turn, and returns whether the time is over.
    fn is_over(&mut self) -> bool {
        self.turn = self.turn.wrapping_add(1);
        self.turn.is_multiple_of(TURNS) && Instant::now() > self.end
    }
}

impl Rwsem {
    /// Spins as a writer that is in no queue. Returns whether it has taken the lock.
    pub(super) fn spin(&self) -> bool {
        let owner_runs = self.rules.owner_runs;
        if owner_runs.is_zero() || state_of(self.owner.0.load(Ordering::Relaxed)) == State::Stop {
            return false;
        }
        if !self.take_place(owner_runs) {
            return false;
        }
        let is_taken = self.spin_in_place();
        self.spinning.store(false, Ordering::Release);
        is_taken
    }

    /// Waits until no other writer spins.
    fn take_place(&self, longest: Duration) -> bool {
        let mut limit = Limit::new(longest);
        while self.spinning.swap(true, Ordering::Acquire) {
            while self.spinning.load(Ordering::Relaxed) {
                if limit.is_over() {
                    return false;
                }
                spin_loop();
            }
        }
        true
    }

    fn spin_in_place(&self) -> bool {
        let mut slice = Limit::new(SLICE);
        let mut phase: Option<(State, Limit)> = None;
        loop {
            let state = self.spin_on_owner();
            if state == State::Stop {
                return false;
            }
            if self.try_write_unqueued() {
                return true;
            }
            match (state, &mut phase) {
                (State::Writer, phase) => *phase = None,
                (_, Some((same, limit))) if *same == state => {
                    if limit.is_over() {
                        self.owner.forbid_spinning();
                        return false;
                    }
                }
                // Each phase of readers has a limit of its own.
                (State::Readers, phase) => *phase = Some((state, Limit::new(self.readers_limit()))),
                // The lock changes hands. The thread that is to have it may not run.
                (_, phase) => *phase = Some((state, Limit::new(self.rules.owner_runs))),
            }
            if slice.is_over() {
                return false;
            }
            spin_loop();
        }
    }

    /// Returns how long a writer spins on the present readers: 10 µs, and half a microsecond for each, of at most 30.
    fn readers_limit(&self) -> Duration {
        let readers = (self.count.load(Ordering::Relaxed) / READER).min(30);
        Duration::from_nanos(10_000 + 500 * readers)
    }

    /// Spins while the same writer owns the lock and seems to run. Returns what is the case then.
    pub(super) fn spin_on_owner(&self) -> State {
        let owner = self.owner.0.load(Ordering::Relaxed);
        let state = state_of(owner);
        if state != State::Writer {
            return state;
        }
        let mut limit = Limit::new(self.rules.owner_runs);
        loop {
            let now = self.owner.0.load(Ordering::Relaxed);
            if now != owner {
                return state_of(now);
            }
            if limit.is_over() {
                return State::Stop;
            }
            spin_loop();
        }
    }

    /// Takes the lock for writing, if nobody holds it and there is no hand-off. It may pass the queue.
    pub(super) fn try_write_unqueued(&self) -> bool {
        let take = |count| (count & (HELD | HANDOFF) == 0).then_some(count | WRITER);
        let is_taken = self.count.fetch_update(Ordering::Acquire, Ordering::Relaxed, take).is_ok();
        if is_taken {
            self.owner.set_writer();
        }
        is_taken
    }
}
