//! The engine's files in a check against Linux.

use super::super::generate::Episode;
use super::super::operation::{IN_MEMORY, REFUSING, STORED};
use super::super::step::contents;
use faultless::address::PAGE_SIZE;
use faultless::errno::EPERM;
use faultless::store::{self, DelayedStore, Direction, MAX_PAGES, Store, StoreError, Transfer};
use faultless::sync::Shared;
use faultless::{Engine, File, FileError, FileHandle};
use faultless_soft::Soft;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Shortest duration of a write that must be running while the next operations are done. The longest is twice as long.
const LATE: Duration = Duration::from_micros(30);

/// Store in memory: the bytes of a file, and its length.
#[derive(Clone)]
struct Bytes {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// Whether each change of the length is refused.
    is_fixed: bool,
    /// Whether each hole is refused.
    is_sealed: Arc<AtomicBool>,
}

impl Bytes {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns at most `length` bytes from byte `offset` on.
fn part(bytes: &mut [u8], offset: u64, length: u64) -> &mut [u8] {
    let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get_mut(offset..)).unwrap_or_default();
    let length = rest.len().min(usize::try_from(length).unwrap_or(usize::MAX));
    &mut rest[..length]
}

impl Store for Bytes {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.lock().len() as u64)
    }

    fn submit(&self, mut transfer: Transfer) {
        let mut bytes = self.lock();
        let result = transfer.move_pages(|offset, page| {
            let inside = part(&mut bytes, offset, PAGE_SIZE);
            let length = inside.len();
            match page {
                store::Bytes::Read(page) => page[..length].copy_from_slice(inside),
                store::Bytes::Write(page) => inside.copy_from_slice(&page[..length]),
            }
            if length == 0 { Err(StoreError::PastEnd { offset }) } else { Ok(length) }
        });
        drop(bytes);
        transfer.complete(result);
    }

    fn max_pages(&self) -> usize {
        MAX_PAGES
    }

    fn set_length(&self, length: u64) -> Result<(), StoreError> {
        if self.is_fixed {
            return Err(StoreError::Io { offset: length, errno: EPERM });
        }
        self.lock().resize(length as usize, 0);
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> Result<(), StoreError> {
        if self.is_sealed.load(Ordering::Relaxed) {
            return Err(StoreError::Io { offset, errno: EPERM });
        }
        part(&mut self.lock(), offset, length).fill(0);
        Ok(())
    }
}

/// Store whose writes end later, so that they are running while the next operations are done.
struct LateWrites {
    bytes: Bytes,
    late: DelayedStore<Bytes>,
}

impl Store for LateWrites {
    fn length(&self) -> Result<u64, StoreError> {
        self.bytes.length()
    }

    fn submit(&self, transfer: Transfer) {
        match transfer.direction() {
            Direction::Read => self.bytes.submit(transfer),
            Direction::Write => self.late.submit(transfer),
        }
    }

    fn max_pages(&self) -> usize {
        self.bytes.max_pages()
    }

    fn set_length(&self, length: u64) -> Result<(), StoreError> {
        self.bytes.set_length(length)
    }

    fn punch(&self, offset: u64, length: u64) -> Result<(), StoreError> {
        self.bytes.punch(offset, length)
    }
}

/// A file with its handle, and its store unless it is in memory.
pub(super) struct Held {
    bytes: Bytes,
    pub file: Shared<File<Soft>>,
    pub handle: FileHandle<Soft>,
}

impl Held {
    /// Creates the file `number`, as it is at the start of `episode`. With a `delay`, each transfer takes at least
    /// `delay` and at most twice as long.
    pub fn new(
        engine: &Arc<Engine<Soft>>,
        episode: &Episode,
        number: usize,
        delay: Option<Duration>,
    ) -> Result<Self, String> {
        let contents = contents(episode.seed, number, episode.files[number]);
        let bytes = Bytes {
            bytes: Arc::new(Mutex::new(contents.clone())),
            is_fixed: number == REFUSING,
            is_sealed: Arc::default(),
        };
        let store: Arc<dyn Store> = match delay {
            Some(delay) => Arc::new(DelayedStore::new(bytes.clone(), delay).with_jitter(delay, episode.seed)),
            None if number == STORED => {
                let late = DelayedStore::new(bytes.clone(), LATE).with_jitter(LATE, episode.seed);
                Arc::new(LateWrites { bytes: bytes.clone(), late })
            }
            None => Arc::new(bytes.clone()),
        };
        let file = match number {
            STORED | REFUSING => File::open_rw(engine, store).map_err(|error| error.to_string())?,
            IN_MEMORY => File::in_memory(engine, 0).map_err(|error| error.to_string())?,
            _ => File::open(engine, store).map_err(|error| error.to_string())?,
        };
        let handle = file.handle();
        if number == IN_MEMORY {
            handle.write_at(0, &contents).map_err(|error| error.to_string())?;
        }
        Ok(Self { bytes, file, handle })
    }

    /// Makes the store refuse all holes from now on.
    pub fn seal(&self) {
        self.bytes.is_sealed.store(true, Ordering::Relaxed);
    }

    /// Returns whether the store refuses holes.
    pub fn is_sealed(&self) -> bool {
        self.bytes.is_sealed.load(Ordering::Relaxed)
    }

    /// Sets the length (ftruncate). A longer file gets zeros.
    pub fn resize(&self, length: u64) -> Result<(), FileError> {
        if self.file.is_writable() {
            return self.handle.set_length(length);
        }
        // The change comes from outside the engine, as by another program.
        self.bytes.lock().resize(length as usize, 0);
        self.file.set_length(length)
    }
}
