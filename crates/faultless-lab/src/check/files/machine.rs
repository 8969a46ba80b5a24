//! The engine's side of a check of files: a file, its handles, and a space that maps it twice.

use super::model::{Answer, Hits};
use super::operation::{FILE_BYTES, FileOperation, HANDLES, MAPPED_PAGES, Place, Setting, pattern};
use super::store::{Kept, Late};
use super::{FilePlant, FilePlanted};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::LockingDesign;
use faultless::errno::{EIO, ENOMEM};
use faultless::protection::{Protection, Sharing};
use faultless::store::{FileStore, Store};
use faultless::sync::Shared;
use faultless::{
    AddressSpace, Advice, Engine, FaultError, File, FileError, FileHandle, Limits, MapRequest, Placement,
    Source, SyncFlags,
};
use faultless_soft::{Cpu, Soft};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Limit of cached pages: enough for all pages of this file and a few more.
const CACHED: u64 = MAPPED_PAGES + 6;
/// Numbers of frames: of a machine with enough memory, and of one that cannot hold the whole file.
const FRAMES: [u64; 2] = [4 * MAPPED_PAGES, MAPPED_PAGES / 2];
/// Addresses of the mappings of the file: shared and private.
const MAPPED: [u64; 2] = [0x1000_0000, 0x2000_0000];
/// Longest wait for the last writes of a file after it was dropped.
const LAST_WRITES: Duration = Duration::from_secs(60);

const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);

/// Place of the file's bytes.
enum Bytes {
    Memory,
    Kept(Arc<Kept>),
    Late(Arc<Kept>, Arc<Late>),
    Disk(tempfile::NamedTempFile, Arc<FileStore>),
}

impl Bytes {
    fn new(seed: u64, setting: &Setting, contents: &[u8]) -> Result<Self, String> {
        let kept = || Arc::new(Kept::new(contents.to_vec(), setting));
        Ok(match setting.place {
            Place::Memory => Self::Memory,
            Place::Kept => Self::Kept(kept()),
            Place::Late => {
                let kept = kept();
                let late = Late::new(kept.clone(), seed).map_err(|error| error.to_string())?;
                Self::Late(kept, Arc::new(late))
            }
            Place::Disk => {
                let mut file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
                file.write_all(contents).map_err(|error| error.to_string())?;
                let store = Arc::new(FileStore::open_rw(file.path()).map_err(|error| error.to_string())?);
                Self::Disk(file, store)
            }
        })
    }

    fn store(&self) -> Option<Arc<dyn Store>> {
        match self {
            Self::Memory => None,
            Self::Kept(kept) => Some(kept.clone()),
            Self::Late(_, late) => Some(late.clone()),
            Self::Disk(_, store) => Some(store.clone()),
        }
    }

    fn kept(&self) -> Option<&Kept> {
        match self {
            Self::Kept(kept) | Self::Late(kept, _) => Some(kept),
            Self::Memory | Self::Disk(..) => None,
        }
    }
}

/// The file with its handles.
struct Opened {
    file: Shared<File<Soft>>,
    handles: [FileHandle<Soft>; HANDLES],
}

impl Opened {
    fn new(file: Shared<File<Soft>>) -> Self {
        let handles = [(); HANDLES].map(|()| file.handle());
        Self { file, handles }
    }
}

/// The engine under a design, with an episode's file.
pub trait Subject {
    /// Does an operation, as changed by `plant`. Returns the answer, and the events of the store meanwhile.
    fn perform(&mut self, operation: &FileOperation, plant: Option<FilePlant>) -> (Answer, Hits);

    /// Returns the bytes in the store, if there is one.
    ///
    /// # Errors
    /// The bytes cannot be read.
    fn stored(&self) -> Result<Option<Vec<u8>>, String>;

    /// Returns the file's bytes by its handle. From now on, no operation of the store fails.
    ///
    /// # Errors
    /// The bytes cannot be read.
    fn contents(&self) -> Result<Vec<u8>, String>;

    /// Drops everything but the store, and waits for the last writes.
    ///
    /// # Errors
    /// The engine broke a rule, or did not give everything back.
    fn finish(&mut self) -> Result<(), String>;
}

/// The [`Subject`] of one design.
pub struct Machine<D: LockingDesign> {
    // The fields are dropped in this order.
    space: Option<AddressSpace<Soft, D>>,
    opened: Option<Opened>,
    other: Option<FileHandle<Soft>>,
    engine: Arc<Engine<Soft>>,
    bytes: Bytes,
    /// The value of `Kept::hits` at the end of the last operation.
    seen: Hits,
}

impl<D: LockingDesign> Machine<D> {
    /// Makes a file with these contents, opens it and maps it.
    ///
    /// # Errors
    /// There is no memory, or no temporary file can be made.
    pub fn new(seed: u64, setting: &Setting, contents: &[u8]) -> Result<Self, String> {
        let host = Soft::new(FRAMES[usize::from(setting.is_scarce)]).map_err(|error| error.to_string())?;
        let limits = Limits { cached_pages: CACHED, ..Limits::default() };
        let engine = Engine::new(host, limits).map_err(|error| error.to_string())?;
        let bytes = Bytes::new(seed, setting, contents)?;
        let mut machine =
            Self { space: None, opened: None, other: None, engine, bytes, seen: Hits::default() };
        machine.open(contents)?;
        Ok(machine)
    }

    fn open(&mut self, contents: &[u8]) -> Result<(), String> {
        let engine = &self.engine;
        let file = match self.bytes.store() {
            Some(store) => File::open_rw(engine, store).map_err(|error| error.to_string())?,
            None => File::in_memory(engine, contents.len() as u64).map_err(|error| error.to_string())?,
        };
        let opened = Opened::new(file);
        if self.bytes.store().is_none() {
            // This writes as many bytes as fit into memory. The model does not expect the others.
            let _ = opened.handles[0].write_at(0, contents);
        }
        let zeros = Setting {
            place: Place::Kept,
            length: 0,
            is_scarce: false,
            refuses_lengths: false,
            refuses_holes: false,
        };
        let other = Kept::new(vec![0; (CACHED * PAGE_SIZE) as usize], &zeros);
        let other = File::open(engine, Arc::new(other)).map_err(|error| error.to_string())?;
        (self.opened, self.other) = (Some(opened), Some(other.handle()));
        self.space = Some(AddressSpace::new(engine).map_err(|error| error.to_string())?);
        self.map()
    }

    fn space(&self) -> &AddressSpace<Soft, D> {
        self.space.as_ref().expect("a space is there until the machine is finished")
    }

    fn opened(&self) -> &Opened {
        self.opened.as_ref().expect("a file is open until the machine is finished")
    }

    fn map(&self) -> Result<(), String> {
        for (address, sharing) in MAPPED.into_iter().zip([Sharing::Shared, Sharing::Private]) {
            let request = MapRequest {
                source: Source::File { file: self.opened().file.clone(), first: 0, sharing },
                protection: READ_WRITE,
                placement: Placement::Fixed(VirtAddr::new(address)),
                ..MapRequest::anonymous(MAPPED_PAGES * PAGE_SIZE)
            };
            self.space().map(request).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn unmap(&self) -> Result<(), String> {
        MAPPED.into_iter().try_for_each(|address| {
            let unmapped = self.space().unmap(VirtAddr::new(address), MAPPED_PAGES * PAGE_SIZE);
            unmapped.map_err(|error| error.to_string())
        })
    }

    fn load(&self, mapping: usize, offset: u64, length: u64) -> Answer {
        let mut bytes = vec![0; length as usize];
        match self.space().read_bytes(VirtAddr::new(MAPPED[mapping] + offset), &mut bytes) {
            Ok(()) => Answer::Bytes(bytes),
            Err(error) => faulted(&error),
        }
    }

    fn read(&self, offset: u64, length: u64) -> Answer {
        let mut bytes = vec![0; length as usize];
        match self.opened().handles[0].read_at(offset, &mut bytes) {
            Ok(done) => {
                bytes.truncate(done);
                Answer::Bytes(bytes)
            }
            Err(error) => Answer::Error(error.errno()),
        }
    }

    fn advise(&self, mapping: usize, page: u64, pages: u64, advice: Advice) -> Answer {
        let address = VirtAddr::new(MAPPED[mapping] + page * PAGE_SIZE);
        match self.space().advise(address, pages * PAGE_SIZE, advice) {
            Ok(()) => Answer::Done(0),
            Err(error) => Answer::Error(error.errno()),
        }
    }

    fn close(&mut self) -> Result<(), String> {
        if let Some(space) = &self.space {
            space.audit().map_err(|error| format!("the engine's audit: {error}"))?;
        }
        (self.space, self.opened, self.other) = (None, None, None);
        let begun = Instant::now();
        loop {
            self.engine.flush();
            match self.engine.frame_usage().used {
                1 => return Ok(()),
                _ if begun.elapsed() < LAST_WRITES => thread::yield_now(),
                used => return Err(format!("{} frames are in use after the file has gone", used - 1)),
            }
        }
    }

    fn reopen(&mut self, sync: bool) -> Answer {
        if let Some(kept) = self.bytes.kept() {
            kept.mend();
        }
        if matches!(self.bytes, Bytes::Memory) {
            return Answer::Done(0);
        }
        if sync && self.opened().file.sync().is_err() && self.opened().file.sync().is_err() {
            return Answer::Broken("the second sync fails, although the store no longer fails".into());
        }
        match self.close().and_then(|()| self.open(&[])) {
            Ok(()) => Answer::Done(self.opened().file.length()),
            Err(what) => Answer::Broken(what),
        }
    }

    fn try_perform(&mut self, operation: &FileOperation) -> Answer {
        let handle = &self.opened().handles[0];
        match *operation {
            FileOperation::Write { offset, length, value } => {
                result(handle.write_at(offset, &pattern(value, offset, length)).map(|done| done as u64))
            }
            FileOperation::Read { offset, length } => self.read(offset, length),
            FileOperation::SetLength { length } => result(handle.set_length(length).map(|()| 0)),
            FileOperation::Punch { offset, length } => result(handle.punch_hole(offset, length).map(|()| 0)),
            FileOperation::Remove { page, pages } => self.advise(0, page, pages, Advice::Remove),
            FileOperation::Store { offset, length, value } => {
                let bytes = pattern(value, offset, length);
                match self.space().write_bytes(VirtAddr::new(MAPPED[0] + offset), &bytes) {
                    Ok(()) => Answer::Done(length),
                    Err(error) => faulted(&error),
                }
            }
            FileOperation::Load { offset, private } => self.load(usize::from(private), offset, 1),
            FileOperation::Sync { handle } => result(self.opened().handles[handle].sync().map(|()| 0)),
            FileOperation::SyncMapping { page, pages } => {
                let address = VirtAddr::new(MAPPED[0] + page * PAGE_SIZE);
                match self.space().sync(address, pages * PAGE_SIZE, SyncFlags::SYNC) {
                    Ok(()) => Answer::Done(0),
                    Err(error) => Answer::Error(error.errno()),
                }
            }
            FileOperation::StartSync => {
                handle.start_sync();
                Answer::Done(0)
            }
            FileOperation::Discard { page, pages } => match self.advise(0, page, pages, Advice::DontNeed) {
                Answer::Done(_) => self.advise(1, page, pages, Advice::DontNeed),
                failed => failed,
            },
            FileOperation::Remap => match self.unmap().and_then(|()| self.map()) {
                Ok(()) => Answer::Done(0),
                Err(what) => Answer::Broken(what),
            },
            FileOperation::Evict => self.evict(),
            FileOperation::Reopen { sync } => self.reopen(sync),
            FileOperation::Fail { part, skip, times } => {
                if let Some(kept) = self.bytes.kept() {
                    kept.fail(part, skip, times);
                }
                Answer::Done(0)
            }
            FileOperation::Look => {
                let file = Box::new(self.read(0, FILE_BYTES));
                let load = |mapping, page| self.load(mapping, page * PAGE_SIZE, PAGE_SIZE);
                let pages = |mapping| (0..MAPPED_PAGES).map(|page| load(mapping, page)).collect();
                let looked = Answer::Looked(file, pages(0), pages(1));
                match self.space().audit() {
                    Ok(()) => looked,
                    Err(error) => Answer::Broken(format!("the engine's audit: {error}")),
                }
            }
        }
    }

    /// Evicts the pages of this file. Mapped pages stay in the cache, so they are first removed from the space.
    fn evict(&self) -> Answer {
        for mapping in 0..MAPPED.len() {
            if let failed @ Answer::Error(_) = self.advise(mapping, 0, MAPPED_PAGES, Advice::DontNeed) {
                return failed;
            }
        }
        if matches!(self.bytes, Bytes::Memory) {
            return Answer::Done(0);
        }
        let mut bytes = vec![0; (CACHED * PAGE_SIZE) as usize];
        match self.other.as_ref().map(|other| other.read_at(0, &mut bytes)) {
            // Pages whose write fails stay in memory.
            Some(Ok(_)) | Some(Err(FileError::OutOfMemory)) | None => Answer::Done(0),
            Some(Err(error)) => Answer::Broken(format!("the other file cannot be read: {error}")),
        }
    }

    /// Returns the events of the store since the last call.
    fn hits(&mut self) -> Hits {
        let now = self.bytes.kept().map_or_else(Hits::default, |kept| Hits(kept.hits()));
        let before = std::mem::replace(&mut self.seen, now);
        Hits(std::array::from_fn(|part| now.0[part] - before.0[part]))
    }
}

impl<D: LockingDesign> Subject for Machine<D> {
    fn perform(&mut self, operation: &FileOperation, plant: Option<FilePlant>) -> (Answer, Hits) {
        let planted =
            |answer: Option<&Answer>| plant.map_or(FilePlanted::Nothing, |plant| plant(operation, answer));
        let mut answer = match planted(None) {
            FilePlanted::Nothing | FilePlanted::And(_) => self.try_perform(operation),
            FilePlanted::Instead(other) => self.try_perform(&other),
            FilePlanted::Answered(answer) => answer,
        };
        match planted(Some(&answer)) {
            FilePlanted::And(other) => _ = self.try_perform(&other),
            FilePlanted::Answered(other) => answer = other,
            FilePlanted::Nothing | FilePlanted::Instead(_) => {}
        }
        if let Some(broken) = self.bytes.kept().and_then(Kept::broken) {
            answer = Answer::Broken(format!("the store's contract: {broken}"));
        }
        (answer, self.hits())
    }

    fn stored(&self) -> Result<Option<Vec<u8>>, String> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| error.to_string());
        match &self.bytes {
            Bytes::Memory => Ok(None),
            Bytes::Kept(kept) | Bytes::Late(kept, _) => Ok(Some(kept.bytes())),
            Bytes::Disk(file, _) => read(file.path()).map(Some),
        }
    }

    fn contents(&self) -> Result<Vec<u8>, String> {
        if let Some(kept) = self.bytes.kept() {
            kept.mend();
        }
        match self.read(0, FILE_BYTES) {
            Answer::Bytes(bytes) => Ok(bytes),
            other => Err(format!("the file cannot be read: {other:?}")),
        }
    }

    fn finish(&mut self) -> Result<(), String> {
        self.close()
    }
}

fn result(result: Result<u64, FileError>) -> Answer {
    match result {
        Ok(done) => Answer::Done(done),
        Err(error) => Answer::Error(error.errno()),
    }
}

fn faulted(error: &FaultError) -> Answer {
    match error {
        FaultError::PastEnd { .. } => Answer::PastEnd,
        FaultError::Io { error, .. } => Answer::Error(error.errno()),
        FaultError::OutOfMemory { .. } => Answer::Error(ENOMEM),
        other => Answer::Broken(format!("{other} (not even errno {EIO})")),
    }
}
