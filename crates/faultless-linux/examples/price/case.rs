//! What is timed.

use crate::memory::{Access, Touched};
use crate::trouble::Trouble;
use std::any::Any;
use std::fs::File;

/// A kind of page work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Case {
    /// A store to a page of anonymous memory that was never touched.
    FirstWrite,
    /// A load from one.
    FirstRead,
    /// A load from a file's page, which the kernel has in its cache.
    FileRead,
    /// A load from a file's page, which the handler has in its own memory too, for another mapping.
    CachedRead,
    /// A store to a file's page, privately.
    FileWrite,
    /// A store to a page that a snapshot shares.
    SnapshotWrite,
    /// The snapshot itself, for each page that was written before.
    Snapshot,
    /// Giving pages that were written back, all at once.
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

    /// As on the command line.
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

    /// With how many threads it is measured.
    pub fn threads(self) -> &'static [usize] {
        match self {
            Self::Snapshot | Self::Discard => &[1],
            _ => &[1, 2],
        }
    }

    /// What threads do to each page; `None`: it is one call.
    pub fn access(self) -> Option<Access> {
        match self {
            Self::FirstWrite | Self::FileWrite | Self::SnapshotWrite => Some(Access::Write),
            Self::FirstRead => Some(Access::Read { file: false }),
            Self::FileRead | Self::CachedRead => Some(Access::Read { file: true }),
            Self::Snapshot | Self::Discard => None,
        }
    }
}

/// What a run is about.
pub struct Setting {
    pub pages: usize,
    /// Whether memory that a contender needs beside the pages was used before.
    pub warm: bool,
    /// Whether threads and handlers run wherever the scheduler puts them.
    pub free: bool,
    /// So many pages, page `n` full of `memory::byte_of(n)`.
    pub file: File,
}

impl Setting {
    /// The file once more.
    pub fn reopen(&self) -> Result<File, Trouble> {
        Ok(self.file.try_clone()?)
    }
}

/// Ready to be timed.
pub enum Work {
    /// Threads touch the pages.
    Touch(Touched),
    /// One call; what it returns goes after the clock has stopped.
    Call(Box<dyn FnOnce() -> Result<Box<dyn Any>, Trouble>>),
}

/// Work, what it needs to live, and a look at what came of it.
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

/// Who serves faults.
pub trait Contender {
    fn name(&self) -> &'static str;

    /// Does everything up to what is timed, for so many threads.
    fn prepare(&mut self, case: Case, threads: usize, setting: &Setting) -> Result<Prepared, Trouble>;
}
