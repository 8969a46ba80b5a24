//! The writes of a file that is dropped. Nobody can be told of their errors.

use super::index::{self, Tag};
use super::{File, SEEN, frame_of, no_memory};
use crate::address::PAGE_SIZE;
use crate::engine::Engine;
use crate::frame::Reference;
use crate::host::{Frame, Host};
use crate::stats::Counter;
use crate::store::{Direction, Places, Store, StoreError, Transfer};
use crate::sync::atomic::Ordering;
use crate::sync::try_box_or_back;
use alloc::sync::Arc;

impl<H: Host> File<H> {
    /// Writes all dirty pages when the file is dropped. Errors cannot be reported any more: a failed write is counted,
    /// and its bytes are lost. The store, the engine and the frames live until the writes have ended.
    pub(super) fn write_the_last(&mut self) {
        let Some(store) = &self.store else { return };
        let length = self.length();
        // As in `flush_store`. No transfer is under way: each keeps the file.
        if self.has_long_store.load(Ordering::Relaxed) && self.store_length.load(Ordering::Relaxed) > length {
            let _ = store.set_length(length);
        }
        let mut rest = 0..index::PAGES;
        while let Some(page) = self.index.next_tagged(rest.clone(), Tag::Dirty) {
            rest.start = page + 1;
            let Some(word) = self.index.get(page) else { continue };
            let Some(frame) = frame_of(word.load(Ordering::Relaxed)) else { continue };
            let offset = page * PAGE_SIZE;
            if offset >= length || !self.engine.folio(frame).begin_writeback() {
                continue;
            }
            word.store(SEEN, Ordering::Relaxed);
            self.engine.folio(frame).keep_for_write();
            let engine = self.engine.clone();
            let frames = engine.frames();
            let inside = (length - offset).min(PAGE_SIZE) as usize;
            frames.write(frame, inside, &[0; PAGE_SIZE as usize][inside..]);
            engine.counters().add(Counter::IoWrites, 1);
            engine.cache.transfers.fetch_add(1, Ordering::Relaxed);
            // Counted as a pin, so that a thread that waits for memory sleeps until the write ends.
            engine.cache.pins.fetch_add(1, Ordering::Relaxed);
            let places = Places::from_buf([self.place(frame)]);
            let last = Last { engine, frame, store: store.clone() };
            let completion = match try_box_or_back(move |result| last.end(result)) {
                Ok(completion) => completion,
                Err(end) => {
                    end(Err(no_memory(offset)));
                    continue;
                }
            };
            // SAFETY: the pin that was the cache's reference keeps the frame until the completion. No thread stores into it: the file is
            // dropped, and with it every mapping and every pin for writing, each of which keeps its file.
            let transfer = unsafe { Transfer::of_places(Direction::Write, offset, places, completion) };
            store.submit(transfer);
        }
    }
}

/// A page that is being written for a file that was dropped.
struct Last<H: Host> {
    engine: Arc<Engine<H>>,
    frame: Frame,
    store: Arc<dyn Store>,
}

impl<H: Host> Last<H> {
    fn end(self, result: Result<usize, StoreError>) {
        let Self { engine, frame, store } = self;
        if result.is_err() {
            engine.counters().add(Counter::WritebackErrors, 1);
        }
        engine.cache.uncount_cached(1);
        engine.cache.transfers.fetch_sub(1, Ordering::Relaxed);
        engine.folio(frame).end_writeback(false);
        engine.put(frame, Reference::Pin);
        engine.cache.pins.fetch_sub(1, Ordering::Relaxed);
        engine.tell_memory();
        drop(store);
    }
}
