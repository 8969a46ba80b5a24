//! Writes by handle of more than one page, beside truncation and holes.
//!
//! Such a write accesses its caller's memory between its pages, so it can hold no lock from its first page to its last.
//! A concurrent cut or hole may remove bytes that the write has already written. The pages before them would then be
//! zeros, and the pages after them written, so neither would have come first. Therefore a write notes the bytes that it
//! has written, and a removal marks the writes of which it removes bytes. A marked write ends: its bytes came before
//! the removal.
//!
//! A removal marks writes when it begins. From then until it ends, such a write waits before it reaches the removed
//! part. A write notes a page's bytes while it holds the folio's lock or the right to resize, and writes them before it
//! releases that.

use super::File;
use crate::host::{Host, OutOfMemory};
use crate::sync::Mutex;
use core::ops::Range;
use smallvec::SmallVec;

/// The writes under way, and the bytes that are being removed. Only one thread at a time removes: it has the right to
/// resize.
#[derive(Default)]
pub(super) struct Writers(Mutex<State>);

/// Protected by its lock.
#[derive(Default)]
struct State {
    noted: SmallVec<[Noted; 2]>,
    removing: Option<Range<u64>>,
}

/// A write under way.
struct Noted {
    /// A number that no other write under way has.
    number: u64,
    /// The bytes that it has written.
    written: Range<u64>,
    /// Whether some of `written` were removed.
    is_cut: bool,
}

/// A write that stays noted as long as this lives.
pub(super) struct Writing<'a, H: Host> {
    file: &'a File<H>,
    number: u64,
}

/// The next step of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Write,
    /// Wait until no thread has the right to resize, then ask again.
    Wait,
    /// End: some of the written bytes were removed.
    End,
}

/// A removal of bytes, from its beginning to its end.
pub(super) struct Removing<'a, H: Host>(&'a File<H>);

/// Returns whether the two ranges have a byte in common.
fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start.max(b.start) < a.end.min(b.end)
}

impl<H: Host> File<H> {
    /// Notes a write that begins at byte `start`.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub(super) fn begin_writing(&self, start: u64) -> Result<Writing<'_, H>, OutOfMemory> {
        let noted = &mut self.engine.lock(&self.writers.0).noted;
        noted.try_reserve(1).map_err(|_| OutOfMemory)?;
        // The list stays in ascending order.
        let number = noted.last().map_or(0, |last| last.number + 1);
        noted.push(Noted { number, written: start..start, is_cut: false });
        Ok(Writing { file: self, number })
    }

    /// Begins to remove `bytes`. The caller has the right to resize.
    pub(super) fn begin_removing(&self, bytes: Range<u64>) -> Removing<'_, H> {
        let mut state = self.engine.lock(&self.writers.0);
        for noted in &mut state.noted {
            noted.is_cut |= overlap(&noted.written, &bytes);
        }
        state.removing = Some(bytes);
        Removing(self)
    }
}

impl<H: Host> Writing<'_, H> {
    /// Notes that the write reaches byte `end`, if it may.
    pub(super) fn go_on_to(&self, end: u64) -> Next {
        if mutant!("writes_ignore_removals") {
            return Next::Write;
        }
        let mut state = self.file.engine.lock(&self.file.writers.0);
        let State { noted, removing } = &mut *state;
        let Some(mine) = noted.iter_mut().find(|noted| noted.number == self.number) else { return Next::End };
        if mine.is_cut {
            return Next::End;
        }
        let is_going = removing.as_ref().is_some_and(|bytes| overlap(bytes, &(mine.written.end..end)));
        if is_going && !mutant!("writes_into_a_removal") {
            return Next::Wait;
        }
        mine.written.end = end;
        Next::Write
    }
}

impl<H: Host> Drop for Writing<'_, H> {
    fn drop(&mut self) {
        let noted = &mut self.file.engine.lock(&self.file.writers.0).noted;
        noted.retain(|noted| noted.number != self.number);
        noted.shrink_to_fit();
    }
}

impl<H: Host> Drop for Removing<'_, H> {
    fn drop(&mut self) {
        self.0.engine.lock(&self.0.writers.0).removing = None;
    }
}
