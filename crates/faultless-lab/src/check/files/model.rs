//! The model: a vector of bytes and a length. It checks whether an answer is allowed, and follows the answer.

use super::operation::{FILE_BYTES, FileOperation, HANDLES, MAPPED_PAGES, Part, Place, Setting, pattern};
use faultless::address::PAGE_SIZE;
use faultless::errno::ENOMEM;

/// The result of an operation on the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Success, with a number of bytes.
    Done(u64),
    /// The bytes that were read.
    Bytes(Vec<u8>),
    /// Failure, with this error number.
    Error(i32),
    /// The access met a page past the end of the file (SIGBUS).
    PastEnd,
    /// The whole file: by its handle, and each page by the shared and the private mapping.
    Looked(Box<Answer>, Vec<Answer>, Vec<Answer>),
    /// The engine broke one of its own rules.
    Broken(String),
}

impl Answer {
    /// Returns the name under which a report counts it.
    pub fn class(&self) -> String {
        match self {
            Self::Done(_) | Self::Bytes(_) | Self::Looked(..) => "ok".into(),
            Self::Error(number) => super::super::step::errno_name(*number),
            Self::PastEnd => "BUS_ADRERR".into(),
            Self::Broken(_) => "broken".into(),
        }
    }

    fn in_words(&self) -> String {
        match self {
            Self::Bytes(bytes) => format!("{:#x} bytes", bytes.len()),
            Self::Looked(..) => "all bytes".into(),
            Self::Broken(what) => what.clone(),
            other => format!("{other:?}"),
        }
    }
}

/// The events of the store while an operation ran.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hits(pub [u64; Part::ALL.len()]);

impl Hits {
    fn of(self, part: Part) -> u64 {
        self.0[part as usize]
    }

    fn any(self) -> bool {
        self.0.iter().any(|hits| *hits != 0)
    }
}

/// Index of the mappings in `Model::told`. The indexes before it are the handles.
const MAPPINGS: usize = HANDLES;

/// Expected state of a file.
pub struct Model {
    /// The bytes that the mappings cover. After the end of the file they are zeros, or the bytes that a file in memory
    /// keeps there.
    bytes: Vec<u8>,
    length: u64,
    setting: Setting,
    /// The number of failed writes and flushes so far, and of refused shortenings of the store in a sync.
    failed: u64,
    /// The value of `failed` after the last failure that must be reported. A failed write of truncated bytes need not
    /// be reported.
    to_tell: u64,
    /// For each handle and for the mappings, the value of `failed` at their last report.
    told: [u64; HANDLES + 1],
}

type Checked = Result<(), String>;

fn expect(holds: bool, says: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(says()) }
}

/// Compares bytes with the model. Fails with the first byte that differs.
fn first_difference(what: &str, offset: u64, seen: &[u8], model: &[u8]) -> Checked {
    match seen.iter().zip(model).position(|(seen, model)| seen != model) {
        None => Ok(()),
        Some(place) => Err(format!(
            "{what}: byte {:#x} is {:#04x}, but must be {:#04x}",
            offset + place as u64,
            seen[place],
            model[place]
        )),
    }
}

impl Model {
    /// Returns the model of a file with these bytes.
    pub fn new(contents: &[u8], setting: Setting) -> Self {
        let mut bytes = contents.to_vec();
        bytes.resize((MAPPED_PAGES * PAGE_SIZE) as usize, 0);
        let length = contents.len() as u64;
        Self { bytes, length, setting, failed: 0, to_tell: 0, told: [0; HANDLES + 1] }
    }

    fn is_in_memory(&self) -> bool {
        self.setting.place == Place::Memory
    }

    /// Returns the bytes up to the end of the file.
    pub fn contents(&self) -> &[u8] {
        &self.bytes[..self.length as usize]
    }

    /// Checks that `bytes` are all bytes of the file.
    ///
    /// # Errors
    /// The length, or the first byte that differs.
    pub fn is_all(&self, bytes: &[u8]) -> Checked {
        expect(bytes.len() as u64 == self.length, || {
            format!("the file is {:#x} bytes long, but must be {:#x}", bytes.len(), self.length)
        })?;
        first_difference("the file", 0, bytes, self.contents())
    }

    /// Checks whether this answer is allowed, and updates the model.
    ///
    /// # Errors
    /// The difference, as a text.
    pub fn follow(&mut self, operation: &FileOperation, answer: &Answer, hits: Hits) -> Checked {
        // A failed write may leave the store longer than the file. A sync shortens it.
        let syncs = matches!(operation, FileOperation::Sync { .. } | FileOperation::SyncMapping { .. });
        let shortened = if syncs { hits.of(Part::SetLength) } else { 0 };
        let failed = hits.of(Part::Write) + hits.of(Part::Flush) + shortened;
        self.failed += failed;
        let cuts = matches!(
            operation,
            FileOperation::SetLength { .. } | FileOperation::Punch { .. } | FileOperation::Remove { .. }
        );
        if failed > 0 && !cuts {
            self.to_tell = self.failed;
        }
        if let Answer::Broken(what) = answer {
            return Err(what.clone());
        }
        let no_memory = self.setting.is_scarce && *answer == Answer::Error(ENOMEM);
        let may_fail = hits.any()
            || no_memory
            || self.setting.is_scarce && matches!(operation, FileOperation::Write { .. });
        let unexpected = || Err(format!("the answer {} is not allowed", answer.in_words()));
        match (*operation, answer) {
            (FileOperation::Write { offset, length, value }, Answer::Done(done)) => {
                let is_short = may_fail && 0 < *done && *done < length;
                expect(*done == length || is_short, || {
                    format!("{done:#x} of {length:#x} bytes were written")
                })?;
                self.write(offset, &pattern(value, offset, *done));
            }
            (FileOperation::Read { offset, length }, Answer::Bytes(bytes)) => {
                self.read(offset, length, bytes, hits)?
            }
            (FileOperation::SetLength { length }, Answer::Done(_)) => {
                expect(!self.setting.refuses_lengths, || "a change of the length was not refused".into())?;
                self.set_length(length);
            }
            (FileOperation::Punch { offset, length }, _) => self.punch(offset, length, answer, hits)?,
            (FileOperation::Remove { page, pages }, _) => {
                self.punch(page * PAGE_SIZE, pages * PAGE_SIZE, answer, hits)?;
            }
            (FileOperation::Store { offset, .. } | FileOperation::Load { offset, .. }, Answer::PastEnd) => {
                expect(!self.has_page_of(offset), || "SIGBUS, but the file has the page".into())?;
            }
            (FileOperation::Store { offset, length, value }, Answer::Done(_)) => {
                expect(self.has_page_of(offset), || "no SIGBUS, but the file has no such page".into())?;
                self.store(offset, &pattern(value, offset, length));
            }
            (FileOperation::Load { offset, .. }, Answer::Bytes(bytes)) => {
                expect(self.has_page_of(offset), || "no SIGBUS, but the file has no such page".into())?;
                self.seen("the load", offset, bytes)?;
            }
            (FileOperation::Sync { handle }, _) => self.told_of_writes(handle, answer)?,
            (FileOperation::SyncMapping { .. }, _) => self.told_of_writes(MAPPINGS, answer)?,
            (FileOperation::Look, Answer::Looked(file, shared, private)) => {
                self.looked(file, shared, private, hits)?
            }
            (FileOperation::Reopen { .. }, Answer::Done(length)) => {
                expect(self.is_in_memory() || *length == self.length, || {
                    format!(
                        "opened again, the file is {length:#x} bytes long, but must be {:#x}",
                        self.length
                    )
                })?;
                // A new file reports no failure of the old one.
                self.told = [self.failed; HANDLES + 1];
            }
            (
                FileOperation::StartSync
                | FileOperation::Discard { .. }
                | FileOperation::Remap
                | FileOperation::Evict
                | FileOperation::Fail { .. },
                Answer::Done(_),
            ) => {}
            // A failed operation has changed nothing.
            (
                FileOperation::Write { .. }
                | FileOperation::Read { .. }
                | FileOperation::SetLength { .. }
                | FileOperation::Store { .. }
                | FileOperation::Load { .. },
                Answer::Error(_),
            ) if hits.any() || no_memory => {}
            _ => return unexpected(),
        }
        Ok(())
    }

    fn has_page_of(&self, offset: u64) -> bool {
        offset / PAGE_SIZE < self.length.div_ceil(PAGE_SIZE)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len() as u64;
        self.bytes[offset as usize..end as usize].copy_from_slice(bytes);
        self.length = self.length.max(end);
    }

    fn read(&self, offset: u64, length: u64, bytes: &[u8], hits: Hits) -> Checked {
        let left = self.length.saturating_sub(offset).min(length);
        let read = bytes.len() as u64;
        let is_short = hits.of(Part::Read) > 0 && read > 0;
        expect(read == left || is_short && read < left, || {
            format!("{read:#x} bytes were read, but must be {left:#x}")
        })?;
        first_difference("read", offset, bytes, &self.bytes[offset.min(FILE_BYTES) as usize..])
    }

    fn set_length(&mut self, length: u64) {
        if length <= self.length {
            self.bytes[length as usize..].fill(0);
        }
        self.length = length;
    }

    /// Stores bytes through a mapping. Bytes after the end of a file with a store may become zeros at any time, so they
    /// are not kept.
    fn store(&mut self, offset: u64, bytes: &[u8]) {
        let kept = match self.is_in_memory() {
            true => bytes.len(),
            false => bytes.len().min(self.length.saturating_sub(offset) as usize),
        };
        self.bytes[offset as usize..][..kept].copy_from_slice(&bytes[..kept]);
    }

    /// Checks bytes of one page that a mapping shows.
    fn seen(&self, what: &str, offset: u64, bytes: &[u8]) -> Checked {
        let known = match self.is_in_memory() {
            true => bytes.len(),
            false => bytes.len().min(self.length.saturating_sub(offset) as usize),
        };
        first_difference(what, offset, &bytes[..known], &self.bytes[offset as usize..])
    }

    /// Punches a hole. A failed hole must change nothing; see [`Model::is_unpunched`].
    fn punch(&mut self, offset: u64, length: u64, answer: &Answer, hits: Hits) -> Checked {
        let all = self.bytes.len() as u64;
        let mut end = (offset + length).min(all);
        if !self.is_in_memory() {
            end = end.min(self.length);
        }
        let offset = offset.min(end);
        match answer {
            Answer::Done(_) => {
                let pages = offset.div_ceil(PAGE_SIZE)..end / PAGE_SIZE;
                expect(!self.setting.refuses_holes || pages.is_empty(), || "a hole was not refused".into())?;
                self.bytes[offset as usize..end as usize].fill(0);
                Ok(())
            }
            // `is_unpunched` checks the effect.
            Answer::Error(_) if hits.any() => Ok(()),
            _ => Err(format!("the answer {} is not allowed", answer.in_words())),
        }
    }

    fn told_of_writes(&mut self, who: usize, answer: &Answer) -> Checked {
        let told = std::mem::replace(&mut self.told[who], self.failed);
        match answer {
            Answer::Done(_) => expect(self.to_tell <= told, || {
                "it reports success, but a failed write or flush was not reported".into()
            }),
            Answer::Error(_) => expect(self.failed > told, || {
                "it reports an error, but there was none since the last report".into()
            }),
            _ => Err(format!("the answer {} is not allowed", answer.in_words())),
        }
    }

    fn looked(&self, file: &Answer, shared: &[Answer], private: &[Answer], hits: Hits) -> Checked {
        let may_fail = hits.any() || self.setting.is_scarce;
        match file {
            Answer::Bytes(bytes) => self.read(0, FILE_BYTES, bytes, hits)?,
            Answer::Error(_) if may_fail => {}
            other => return Err(format!("reading the file gave {}", other.in_words())),
        }
        for (what, pages) in [("the shared mapping", shared), ("the private mapping", private)] {
            for (page, seen) in pages.iter().enumerate() {
                let offset = page as u64 * PAGE_SIZE;
                match seen {
                    Answer::Bytes(bytes) if self.has_page_of(offset) => self.seen(what, offset, bytes)?,
                    Answer::PastEnd if !self.has_page_of(offset) => {}
                    Answer::Error(_) if may_fail && self.has_page_of(offset) => {}
                    other => return Err(format!("{what}: page {page} gave {}", other.in_words())),
                }
            }
        }
        Ok(())
    }

    /// Checks that the store has the file's length, and the file's bytes in these pages.
    ///
    /// # Errors
    /// The length, or the first byte that differs.
    pub fn is_stored(&self, stored: &[u8], pages: std::ops::Range<u64>) -> Checked {
        expect(stored.len() as u64 == self.length, || {
            format!("the store is {:#x} bytes long, but must be {:#x}", stored.len(), self.length)
        })?;
        let start = (pages.start * PAGE_SIZE).min(self.length) as usize;
        let end = (pages.end * PAGE_SIZE).min(self.length) as usize;
        first_difference("the store", start as u64, &stored[start..end], &self.bytes[start..end])
    }

    /// Checks that a failed hole has changed nothing. `now` are the file's bytes as read.
    ///
    /// # Errors
    /// The length, or the first byte that differs.
    pub fn is_unpunched(&self, now: &[u8]) -> Checked {
        expect(now.len() as u64 == self.length, || "a hole that failed has changed the length".into())?;
        first_difference("after a hole that failed", 0, now, self.contents())
    }
}
