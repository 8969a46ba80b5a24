//! The cases that are timed.

use crate::memory::{Access, Touched};
use crate::trouble::Trouble;
use std::any::Any;
use std::fs::File;

/// A kind of page operation that is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Case {
    /// A store to a page of anonymous memory that was never touched.
    FirstWrite,
    /// A load from a page of anonymous memory that was never touched.
    FirstRead,
    /// A load from a file's page that the kernel has in its cache.
    FileRead,
    /// A load from a file's page that the handler also has in its own memory, for another mapping.
    CachedRead,
    /// A store to a file's page, in a private mapping.
    FileWrite,
    /// A store to a page that a snapshot shares.
    SnapshotWrite,
    /// A snapshot; time for each page that was written before.
    Snapshot,
    /// A discard of written pages, all at once.
    Discard,
}

impl Case {
    pub const ALL: [Self; 8] = [
        Self::FirstWrite,
        Self::FirstRead,
        Self::FileRead,
        Self::CachedRead,
        Self::FileWrite,
        Self::SnapshotWrite,
        Self::Snapshot,
        Self::Discard,
    ];

    /// Returns the name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::FirstWrite => "first-write",
            Self::FirstRead => "first-read",
            Self::FileRead => "file-read",
            Self::CachedRead => "cached-read",
            Self::FileWrite => "file-write",
            Self::SnapshotWrite => "snapshot-write",
            Self::Snapshot => "snapshot",
            Self::Discard => "discard",
        }
    }

    /// Returns the numbers of threads with which the case is measured.
    pub fn threads(self) -> &'static [usize] {
        match self {
            Self::Snapshot | Self::Discard => &[1],
            _ => &[1, 2],
        }
    }

    /// Returns the access that threads make to each page, or `None` if the case is one call.
    pub fn access(self) -> Option<Access> {
        match self {
            Self::FirstWrite | Self::FileWrite | Self::SnapshotWrite => Some(Access::Write),
            Self::FirstRead => Some(Access::Read { file: false }),
            Self::FileRead | Self::CachedRead => Some(Access::Read { file: true }),
            Self::Snapshot | Self::Discard => None,
        }
    }
}

/// The parameters of a run.
pub struct Setting {
    pub pages: usize,
    /// True if the memory that a contender needs beside the pages was used before.
    pub warm: bool,
    /// True if the scheduler places threads and handlers on any processor.
    pub free: bool,
    /// A file of `pages` pages, page `n` full of `memory::byte_of(n)`.
    pub file: File,
}

impl Setting {
    /// Returns another handle of the file.
    pub fn reopen(&self) -> Result<File, Trouble> {
        Ok(self.file.try_clone()?)
    }
}

/// Work that is ready to be timed.
pub enum Work {
    /// Threads touch the pages.
    Touch(Touched),
    /// One call. Its result is dropped after the clock has stopped.
    Call(Box<dyn FnOnce() -> Result<Box<dyn Any>, Trouble>>),
}

/// Work, the values that must live while it runs, and a check of its result.
pub struct Prepared {
    pub work: Work,
    pub check: Box<dyn FnOnce() -> Result<(), Trouble>>,
    pub keep: Box<dyn Any>,
}

impl Prepared {
    pub fn touch(at: Touched, keep: impl Any) -> Self {
        Self { work: Work::Touch(at), check: Box::new(|| Ok(())), keep: Box::new(keep) }
    }

    pub fn call<R: Any>(call: impl FnOnce() -> Result<R, Trouble> + 'static) -> Self {
        let call = Box::new(move || Ok(Box::new(call()?) as Box<dyn Any>));
        Self { work: Work::Call(call), check: Box::new(|| Ok(())), keep: Box::new(()) }
    }
}

/// A contender: an implementation that serves faults.
pub trait Contender {
    fn name(&self) -> &'static str;

    /// Does everything up to the timed work, for `threads` threads.
    fn prepare(&mut self, case: Case, threads: usize, setting: &Setting) -> Result<Prepared, Trouble>;
}
