//! The reads of a file's pages: their submission and their end.
//!
//! A fault or a call that needs a page reads that page alone. Pages that are read ahead of their use are read in runs
//! ([`ahead`](super::ahead)), and all pages of a run become up to date when the run ends. A thread that needs one of
//! them meanwhile waits for the whole run. If a read fails in the middle of a run, the failed page returns its error.
//! The pages after it are withdrawn, and a thread that waits for one reads it alone.

use super::File;
use crate::address::PAGE_SIZE;
use crate::frame::Reference;
use crate::host::{Frame, Host, OutOfMemory};
use crate::reclaim::Distance;
use crate::store::{Completion, Direction, Outcome, Part, Place, Places, StoreError, Transfer};
use crate::sync::atomic::Ordering;
use crate::sync::try_box;

impl<H: Host> File<H> {
    /// Makes the completion of the read of one page, which was evicted at `distance` from now. It is made before any thread waits for
    /// the read.
    pub(super) fn completion(
        &self,
        page: u64,
        frame: Frame,
        distance: Distance,
    ) -> Result<Completion, OutOfMemory> {
        let this = self.this.upgrade().ok_or(OutOfMemory)?;
        Ok(try_box(move |result| {
            this.end_read(page, (frame, distance), result);
            this.end_transfer();
        })?)
    }

    /// Submits the read of one page.
    pub(super) fn submit(&self, page: u64, frame: Frame, completion: Completion) {
        self.submit_reads(page, Places::from_buf([self.place(frame)]), completion);
    }

    /// Submits the read of pages from `first` on into frames of this file, whose read is under way.
    pub(super) fn submit_reads(&self, first: u64, places: Places, completion: Completion) {
        let Some(store) = &self.store else { return };
        // SAFETY: the read's own pins keep the frames, no two of which are the same, until the completion, and no code
        // accesses the bytes of a folio that is being read.
        let transfer = unsafe { Transfer::of_places(Direction::Read, first * PAGE_SIZE, places, completion) };
        store.submit(transfer);
    }

    pub(super) fn place(&self, frame: Frame) -> Place {
        Place { memory: self.engine.frames().memory(frame), frame: Some(frame) }
    }

    /// Ends the read of the pages from `first` on into `frames`. Called on any thread.
    pub(super) fn end_reads(&self, first: u64, frames: &[Frame], result: Result<usize, StoreError>) {
        let outcome = Outcome::new(first * PAGE_SIZE, frames.len(), result);
        for (index, frame) in frames.iter().enumerate() {
            let page = first + index as u64;
            match outcome.part(index) {
                Part::Moved(bytes) => self.end_read(page, (*frame, Distance::NEW), Ok(bytes)),
                Part::Failed(error) => self.end_read(page, (*frame, Distance::NEW), Err(error)),
                Part::NotTried => self.withdraw(page, *frame),
            }
        }
        self.end_transfer();
    }

    /// Ends the read of `page` into `frame`, but not its transfer. Called on any thread.
    fn end_read(&self, page: u64, (frame, distance): (Frame, Distance), result: Result<usize, StoreError>) {
        let (engine, offset) = (&self.engine, page * PAGE_SIZE);
        engine.assert_may_sleep("the end of a read");
        let folio = engine.folio(frame);
        let inside = self.length().saturating_sub(offset).min(PAGE_SIZE);
        match result {
            Ok(bytes) if bytes > 0 && inside > 0 => {
                self.zero_tail(frame, (bytes as u64).min(inside));
                folio.finish_read();
                engine.arrived_in_cache(frame, distance);
            }
            Ok(_) => {
                self.detach(page, frame);
                folio.fail_read(StoreError::PastEnd { offset });
            }
            Err(error) => {
                self.detach(page, frame);
                folio.fail_read(error);
            }
        }
        engine.wake_all(core::ptr::from_ref(folio).addr());
        engine.unpin(frame, Reference::Pin);
    }

    /// Counts the end of a transfer.
    pub(super) fn end_transfer(&self) {
        self.engine.cache.transfers.fetch_sub(1, Ordering::Relaxed);
        self.engine.tell_memory();
    }

    /// Fills the bytes after the end of the file with zeros.
    fn zero_tail(&self, frame: Frame, from: u64) {
        let from = from.min(PAGE_SIZE) as usize;
        let memory = self.engine.frames().memory(frame);
        // SAFETY: the frame's own PAGE_SIZE bytes; its read has ended, and no thread sees it up to date yet.
        unsafe { memory.as_ptr().add(from).write_bytes(0, PAGE_SIZE as usize - from) }
    }

    /// Ends a read that must not begin. A thread that has found the page meanwhile looks again, since it read `cuts`
    /// before.
    pub(super) fn withdraw(&self, page: u64, frame: Frame) {
        self.detach(page, frame);
        self.cuts.fetch_add(1, Ordering::AcqRel);
        let error = StoreError::PastEnd { offset: page * PAGE_SIZE };
        self.end_read(page, (frame, Distance::NEW), Err(error));
    }
}
