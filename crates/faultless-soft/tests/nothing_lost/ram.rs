//! A store in memory with every kind of failure.

use faultless::address::PAGE_SIZE;
use faultless::store::{Bytes, Direction, Store, StoreError, Transfer};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::P;

pub const EIO: StoreError = StoreError::Io { offset: 0, errno: 5 };

/// Bytes in memory, with every kind of failure.
#[derive(Default)]
pub struct Ram {
    pub bytes: Mutex<Vec<u8>>,
    /// Whether a new length and a hole are refused.
    pub refuses: AtomicBool,
    /// The change of the length that fails: 1 is the next one, 0 is none.
    pub failing_length: AtomicU64,
    /// The number of next reads that fail.
    pub failing_reads: AtomicU64,
    /// The number of next flushes that fail. Each loses the bytes written since the last flush that succeeded.
    pub failing_flushes: AtomicU64,
    pub flushed: Mutex<Vec<u8>>,
    /// Whether transfers are kept until `go_on`.
    pub holds: AtomicBool,
    pub held: Mutex<Vec<Transfer>>,
    /// Writes wait inside `submit` while this is 1 or 2; 2 means that one waits.
    pub gate: Mutex<u32>,
    pub changed: Condvar,
    /// The calls that came while a transfer of the removed part was under way.
    pub wrong: Mutex<Vec<String>>,
}

impl Ram {
    pub fn new(pages: usize, fill: u8) -> Arc<Self> {
        let bytes = vec![fill; pages * P];
        Arc::new(Self { flushed: Mutex::new(bytes.clone()), bytes: Mutex::new(bytes), ..Self::default() })
    }

    pub fn transfer(&self, mut transfer: Transfer) {
        let mut bytes = self.bytes.lock().unwrap();
        let result = transfer.move_pages(|offset, page| {
            let offset = offset as usize;
            let n = bytes.len().saturating_sub(offset).min(P);
            match page {
                Bytes::Read(page) => page[..n].copy_from_slice(&bytes[offset..offset + n]),
                // As pwrite: a write after the end makes the file longer again.
                Bytes::Write(page) => {
                    let end = bytes.len().max(offset + n);
                    bytes.resize(end, 0);
                    bytes[offset..offset + n].copy_from_slice(&page[..n]);
                }
            }
            Ok(n)
        });
        drop(bytes);
        transfer.complete(result);
    }

    pub fn go_on(&self) {
        self.holds.store(false, Ordering::SeqCst);
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        held.into_iter().for_each(|transfer| self.transfer(transfer));
    }

    fn check(&self, what: &str, from: u64, end: u64) {
        for transfer in self.held.lock().unwrap().iter() {
            if transfer.offset() < end && transfer.offset() + transfer.pages() as u64 * PAGE_SIZE > from {
                let line = format!(
                    "{what} while a {:?} of {} is under way",
                    transfer.direction(),
                    transfer.offset()
                );
                self.wrong.lock().unwrap().push(line);
            }
        }
    }

    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }
}

impl Store for Ram {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn submit(&self, transfer: Transfer) {
        if transfer.direction() == Direction::Write {
            let mut gate = self.gate.lock().unwrap();
            while *gate != 0 {
                *gate = 2;
                self.changed.notify_all();
                gate = self.changed.wait(gate).unwrap();
            }
        } else if self
            .failing_reads
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .is_ok()
        {
            return transfer.complete(Err(EIO));
        }
        if self.holds.load(Ordering::SeqCst) {
            return self.held.lock().unwrap().push(transfer);
        }
        self.transfer(transfer);
    }

    fn set_length(&self, length: u64) -> Result<(), StoreError> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(EIO);
        }
        if self.failing_length.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)) == Ok(1)
        {
            return Err(EIO);
        }
        self.check("cut off", length, u64::MAX);
        self.bytes.lock().unwrap().resize(length as usize, 0);
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> Result<(), StoreError> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(StoreError::Unsupported { offset });
        }
        self.check("punched", offset, offset + length);
        let mut bytes = self.bytes.lock().unwrap();
        let end = bytes.len().min((offset + length) as usize);
        bytes[offset as usize..end].fill(0);
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        let mut bytes = self.bytes.lock().unwrap();
        let mut flushed = self.flushed.lock().unwrap();
        if self.failing_flushes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
        {
            bytes.clone_from(&flushed);
            return Err(EIO);
        }
        flushed.clone_from(&bytes);
        Ok(())
    }
}
