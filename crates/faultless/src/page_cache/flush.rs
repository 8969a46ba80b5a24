//! Flushes of a file's store, which bring its buffers to the device.
//!
//! ```text
//! sync a:  writes end | flush 1 ------|
//! sync b:       writes end | sleeps   | flush 2 ------|
//! sync c:            writes end | sleeps  . . . . . . | returns
//! ```
//! One flush of a file is under way at a time. A sync needs a flush that begins after its writes have ended. So a sync that
//! comes during a flush waits for its end. Then one of those that wait begins the next flush, which serves all of them.
//!
//! A flush that fails makes the pages that it may have lost dirty again, and records its error, before it ends. Each
//! sync reads the number of errors before it looks for dirty pages. If it reads before the error is recorded, it
//! returns the error, since it returns after the flush has ended. If it reads later, it finds the pages dirty, and
//! writes them again.

use super::account::Pin;
use super::index::{self, Tag};
use super::{File, Store};
use crate::errno;
use crate::frame::Reference;
use crate::host::Host;
use crate::stats::Counter;
use crate::store::StoreError;
use crate::sync::atomic::Ordering;
use crate::sync::fence_after_rmw;

/// The numbers of a file's flushes. At most one is under way.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    begun: u64,
    ended: u64,
}

impl Flushes {
    fn is_one_under_way(&self) -> bool {
        self.begun != self.ended && !mutant!("flushes_beside_each_other")
    }
}

impl<H: Host> File<H> {
    /// Makes the store write its own buffers to its device. Returns after a flush has ended that began after this call,
    /// in this thread or in another. The caller holds nothing.
    ///
    /// A failure is recorded like one of writeback. Every page in memory that was ever written becomes dirty again,
    /// since it is not known which of them the device has. A write that was submitted before the failure, and ends
    /// after it, leaves its page dirty too.
    pub(crate) fn flush_store(&self) {
        // A failed write has left the store longer than the file.
        if self.has_long_store.load(Ordering::Relaxed)
            && let Err(error) = self.shrink_store_to_length(&self.take_resizing())
        {
            self.errors.lock().record(error);
        }
        let Some(store) = &self.store else { return };
        if let Some(flush) = Flush::begin(self) {
            flush.run(&**store);
        }
    }

    /// Makes every page dirty that was ever written and is in memory.
    fn make_written_dirty(&self) {
        self.failed_flushes.fetch_add(1, Ordering::AcqRel);
        // Partner: the fence of a write that ends. Either it sees the changed number, or we find its page.
        fence_after_rmw();
        let mut rest = 0..index::PAGES;
        while let Some(page) = self.index.next_tagged(rest.clone(), Tag::Written) {
            match self.find(page, Reference::Pin) {
                Ok(Some(frame)) => {
                    let pin = Pin::new(&self.engine, frame);
                    pin.wait_for_read(None);
                    if self.engine.folio(frame).is_uptodate() {
                        drop(self.lock_dirty(page, pin));
                    }
                }
                Ok(None) => {}
                Err(full) => {
                    self.engine.wait_for_place(full, None);
                    continue;
                }
            }
            rest.start = page + 1;
        }
    }

    /// Returns the key of threads that wait for the end of a flush.
    fn flush_key(&self) -> usize {
        core::ptr::from_ref(&self.errors).addr()
    }
}

/// A flush that is under way. Its drop ends it.
struct Flush<'a, H: Host> {
    file: &'a File<H>,
    /// The answer of the store. A store that panics has not flushed.
    result: Result<(), StoreError>,
}

impl<'a, H: Host> Flush<'a, H> {
    /// Waits until no flush is under way, and begins one. Returns `None` if another thread has meanwhile begun one that
    /// has ended.
    fn begin(file: &'a File<H>) -> Option<Self> {
        let engine = &file.engine;
        // The number of the next flush to begin.
        let wanted = engine.lock(&file.errors).flushes.begun + 1;
        loop {
            let mut errors = engine.lock(&file.errors);
            if errors.flushes.ended >= wanted {
                return None;
            }
            if !errors.flushes.is_one_under_way() {
                errors.flushes.begun += 1;
                return Some(Self { file, result: Err(StoreError::Io { offset: 0, errno: errno::EIO }) });
            }
            drop(errors);
            engine.park_until(Counter::WritebackWait, file.flush_key(), || {
                let flushes = &engine.lock(&file.errors).flushes;
                flushes.ended < wanted && flushes.is_one_under_way()
            });
        }
    }

    fn run(mut self, store: &dyn Store) {
        self.result = store.flush();
    }
}

impl<H: Host> Drop for Flush<'_, H> {
    fn drop(&mut self) {
        let (file, engine) = (self.file, &self.file.engine);
        if self.result.is_err() {
            file.make_written_dirty();
            engine.counters().add(Counter::WritebackErrors, 1);
        }
        let mut errors = engine.lock(&file.errors);
        errors.flushes.ended += 1;
        if let Err(error) = self.result {
            errors.record(error);
        }
        drop(errors);
        engine.wake_all(file.flush_key());
    }
}
