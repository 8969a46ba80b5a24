//! The engine's files.

use super::super::generate::Episode;
use super::super::operation::{IN_MEMORY, STORED};
use super::super::step::contents;
use faultless::address::PAGE_SIZE;
use faultless::store::{self, DelayedStore, Store, StoreError, Transfer};
use faultless::sync::Shared;
use faultless::{Engine, File, FileError, FileHandle};
use faultless_soft::Soft;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes that have a length: where a file lies.
#[derive(Clone)]
struct Bytes(Arc<Mutex<Vec<u8>>>);

impl Bytes {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part from byte `offset` on, of `length` bytes at most.
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
        let offset = transfer.offset();
        let mut bytes = self.lock();
        let inside = part(&mut bytes, offset, PAGE_SIZE);
        let length = inside.len();
        match transfer.bytes() {
            store::Bytes::Read(page) => page[..length].copy_from_slice(inside),
            store::Bytes::Write(page) => inside.copy_from_slice(&page[..length]),
        }
        drop(bytes);
        transfer.complete(if length == 0 { Err(StoreError::PastEnd { offset }) } else { Ok(length) });
    }

    fn set_length(&self, length: u64) -> Result<(), StoreError> {
        self.lock().resize(length as usize, 0);
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> Result<(), StoreError> {
        part(&mut self.lock(), offset, length).fill(0);
        Ok(())
    }
}

/// A file, and where it lies unless that is memory.
pub(super) struct Held {
    bytes: Bytes,
    pub file: Shared<File<Soft>>,
    pub handle: FileHandle<Soft>,
}

impl Held {
    /// The file of this number, as it is when `episode` begins. With a `delay` each transfer takes that at least, up to
    /// twice that.
    pub fn new(
        engine: &Arc<Engine<Soft>>,
        episode: &Episode,
        number: usize,
        delay: Option<Duration>,
    ) -> Result<Self, String> {
        let contents = contents(episode.seed, number, episode.files[number]);
        let bytes = Bytes(Arc::new(Mutex::new(contents.clone())));
        let store: Arc<dyn Store> = match delay {
            Some(delay) => Arc::new(DelayedStore::new(bytes.clone(), delay).with_jitter(delay, episode.seed)),
            None => Arc::new(bytes.clone()),
        };
        let file = match number {
            STORED => File::open_rw(engine, store).map_err(|error| error.to_string())?,
            IN_MEMORY => File::in_memory(engine, 0).map_err(|error| error.to_string())?,
            _ => File::open(engine, store).map_err(|error| error.to_string())?,
        };
        let handle = file.handle();
        if number == IN_MEMORY {
            handle.write_at(0, &contents).map_err(|error| error.to_string())?;
        }
        Ok(Self { bytes, file, handle })
    }

    /// ftruncate: what is cut off is gone, what is new is zeros.
    pub fn resize(&self, length: u64) -> Result<(), FileError> {
        if self.file.is_writable() {
            return self.handle.set_length(length);
        }
        // Somebody else has cut it off, or made it longer.
        self.bytes.lock().resize(length as usize, 0);
        self.file.set_length(length);
        Ok(())
    }
}
