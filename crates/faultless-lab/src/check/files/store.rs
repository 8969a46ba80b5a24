//! Stores of bytes in memory. They check that the engine keeps the contract of [`Store`], and fail on request.

use super::super::draw::Draw;
use super::operation::{Part, Setting};
use faultless::address::PAGE_SIZE;
use faultless::errno::EIO;
use faultless::store::{Bytes, Direction, MAX_PAGES, Store, StoreError, Transfer};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Failures that a test has ordered.
#[derive(Clone, Copy, Default)]
struct Failures {
    skip: u64,
    times: u64,
}

/// A running transfer: its direction, offset and length in bytes.
type UnderWay = (Direction, u64, u64);

fn under_way(transfer: &Transfer) -> UnderWay {
    (transfer.direction(), transfer.offset(), transfer.pages() as u64 * PAGE_SIZE)
}

struct State {
    bytes: Vec<u8>,
    /// Transfers that were submitted and have not ended.
    under_way: Vec<UnderWay>,
    failures: [Failures; Part::ALL.len()],
    /// The number of operations of each part that have failed or were refused.
    hits: [u64; Part::ALL.len()],
    /// The first violation of the contract.
    broken: Option<String>,
}

/// A store that transfers before `submit` returns.
pub struct Kept {
    state: Mutex<State>,
    refuses_lengths: bool,
    refuses_holes: bool,
}

impl Kept {
    /// Returns a store with these bytes.
    pub fn new(bytes: Vec<u8>, setting: &Setting) -> Self {
        let state = State {
            bytes,
            under_way: Vec::new(),
            failures: Default::default(),
            hits: Default::default(),
            broken: None,
        };
        let Setting { refuses_lengths, refuses_holes, .. } = *setting;
        Self { state: Mutex::new(state), refuses_lengths, refuses_holes }
    }

    /// Returns the present bytes.
    pub fn bytes(&self) -> Vec<u8> {
        lock(&self.state).bytes.clone()
    }

    /// Returns the number of operations of each part that have failed or were refused so far.
    pub fn hits(&self) -> [u64; Part::ALL.len()] {
        lock(&self.state).hits
    }

    /// Returns the first violation of the contract of [`Store`], if any.
    pub fn broken(&self) -> Option<String> {
        lock(&self.state).broken.clone()
    }

    /// Makes operations of `part` fail: `skip` succeed first, then `times` fail.
    pub fn fail(&self, part: Part, skip: u64, times: u64) {
        lock(&self.state).failures[part as usize] = Failures { skip, times };
    }

    /// Ends all failures.
    pub fn mend(&self) {
        lock(&self.state).failures = Default::default();
    }

    fn begin(&self, transfer: &Transfer) {
        lock(&self.state).under_way.push(under_way(transfer));
    }

    fn carry_out(&self, mut transfer: Transfer) {
        let this = under_way(&transfer);
        let part = if this.0 == Direction::Read { Part::Read } else { Part::Write };
        let mut state = lock(&self.state);
        let result = transfer.move_pages(|offset, page| {
            state.fails(part, offset)?;
            let start = state.bytes.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
            let end = state.bytes.len().min(start + PAGE_SIZE as usize);
            let (inside, length) = (&mut state.bytes[start..end], end - start);
            match page {
                Bytes::Read(page) => page[..length].copy_from_slice(inside),
                Bytes::Write(page) => inside.copy_from_slice(&page[..length]),
            }
            if length == 0 { Err(StoreError::PastEnd { offset }) } else { Ok(length) }
        });
        if let Some(place) = state.under_way.iter().position(|known| *known == this) {
            state.under_way.swap_remove(place);
        }
        drop(state);
        transfer.complete(result);
    }
}

impl State {
    fn fails(&mut self, part: Part, offset: u64) -> Result<(), StoreError> {
        let failures = &mut self.failures[part as usize];
        if failures.skip > 0 && failures.times > 0 {
            failures.skip -= 1;
            return Ok(());
        }
        if failures.times == 0 {
            return Ok(());
        }
        failures.times -= 1;
        self.hits[part as usize] += 1;
        Err(StoreError::Io { offset, errno: EIO })
    }

    fn refuse(&mut self, part: Part, offset: u64) -> Result<(), StoreError> {
        self.hits[part as usize] += 1;
        Err(StoreError::Unsupported { offset })
    }

    /// Records a violation if a running transfer conflicts with `what`.
    fn none_under_way(&mut self, what: &str, is_wrong: impl Fn(u64, u64) -> bool) {
        let wrong = self.under_way.iter().find(|(_, offset, length)| is_wrong(*offset, offset + length));
        if let Some((direction, offset, length)) = wrong {
            let said =
                format!("{what} while a {direction:?} of {length:#x} bytes at {offset:#x} is under way");
            self.broken.get_or_insert(said);
        }
    }
}

impl Store for Kept {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(lock(&self.state).bytes.len() as u64)
    }

    fn submit(&self, transfer: Transfer) {
        self.begin(&transfer);
        self.carry_out(transfer);
    }

    fn max_pages(&self) -> usize {
        MAX_PAGES
    }

    fn set_length(&self, length: u64) -> Result<(), StoreError> {
        let mut state = lock(&self.state);
        let old = state.bytes.len() as u64;
        // A transfer of the last page of the shorter file still has the old length.
        let first = length / PAGE_SIZE * PAGE_SIZE;
        state.none_under_way(&format!("set_length({length:#x}) from {old:#x}"), |_, end| {
            length < old && end > first
        });
        if self.refuses_lengths {
            return state.refuse(Part::SetLength, length);
        }
        state.fails(Part::SetLength, length)?;
        state.bytes.resize(length as usize, 0);
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> Result<(), StoreError> {
        let mut state = lock(&self.state);
        let end = offset + length;
        let what = format!("punch({offset:#x}, {length:#x})");
        state.none_under_way(&what, |from, to| from < end && to > offset);
        if self.refuses_holes {
            return state.refuse(Part::Punch, offset);
        }
        state.fails(Part::Punch, offset)?;
        let all = state.bytes.len() as u64;
        state.bytes[offset.min(all) as usize..end.min(all) as usize].fill(0);
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        lock(&self.state).fails(Part::Flush, 0)
    }
}

/// A store that transfers later, on a thread of its own and in any order.
pub struct Late {
    inner: Arc<Kept>,
    queue: Arc<Queue>,
    worker: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    /// The waiting transfers, and whether no more will come.
    held: Mutex<(Vec<Transfer>, bool)>,
    changed: Condvar,
}

impl Late {
    /// Returns a store over `inner`. The order of transfers depends on `seed` and on the waiting transfers.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn new(inner: Arc<Kept>, seed: u64) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let (kept, waiting) = (inner.clone(), queue.clone());
        let run = move || waiting.run(&kept, Draw::new(seed));
        let worker = thread::Builder::new().name("late store".into()).spawn(run)?;
        Ok(Self { inner, queue, worker: Some(worker) })
    }
}

impl Queue {
    fn run(&self, kept: &Kept, mut draw: Draw) {
        loop {
            let mut held = lock(&self.held);
            while held.0.is_empty() {
                if held.1 {
                    return;
                }
                held = self.changed.wait(held).unwrap_or_else(PoisonError::into_inner);
            }
            drop(held);
            // Other transfers may come meanwhile and run first.
            if draw.percent(50) {
                thread::sleep(Duration::from_micros(draw.below(60)));
            }
            let mut held = lock(&self.held);
            let place = draw.below(held.0.len() as u64) as usize;
            let transfer = held.0.swap_remove(place);
            drop(held);
            kept.carry_out(transfer);
        }
    }
}

impl Store for Late {
    fn length(&self) -> Result<u64, StoreError> {
        self.inner.length()
    }

    fn submit(&self, transfer: Transfer) {
        self.inner.begin(&transfer);
        lock(&self.queue.held).0.push(transfer);
        self.queue.changed.notify_one();
    }

    fn max_pages(&self) -> usize {
        self.inner.max_pages()
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

impl Drop for Late {
    fn drop(&mut self) {
        lock(&self.queue.held).1 = true;
        self.queue.changed.notify_one();
        if let Some(worker) =
            self.worker.take().filter(|worker| worker.thread().id() != thread::current().id())
        {
            // A completion that panicked was already reported by its own thread.
            let _ = worker.join();
        }
    }
}
