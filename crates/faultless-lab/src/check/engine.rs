//! The engine's side: an episode's operations on a space of their own, and on its children.

use super::generate::Episode;
use super::operation::{At, FILES, Object, Operation, PAGES, Place};
use super::step::{Caught, Line, Outcome, Seen, Step, contents, merged, number_of};
use crate::designs::{Design, Visitor};
use faultless::address::{PAGE_SIZE, PageNumber, VirtAddr};
use faultless::design::LockingDesign;
use faultless::protection::{Protection, Sharing};
use faultless::store::{Direction, Store, StoreError, Transfer};
use faultless::sync::Shared;
use faultless::{
    AddressSpace, DiscardError, Engine, FaultError, File, Limits, MapError, MapRequest, MappingInfo,
    Placement, ProtectError, Source, UnmapError,
};
use faultless_soft::{AccessError, Cpu, Soft};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Frames of the machine: more than all pages that parents and children can have, so that memory is never short.
const FRAMES: u64 = 2048;

/// What the engine is made to do instead of an operation, or nothing at all: a planted difference, for tests.
pub type Plant = fn(&Operation) -> Planted;

/// See [`Plant`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// Just what was asked for.
    Nothing,
    /// Something else.
    Instead(Operation),
    /// Nothing is done, and 0 returned.
    Forgotten,
}

/// The engine under some design.
pub trait Subject {
    /// Does an operation; says what it gave, and the map if it has changed.
    fn step(&mut self, operation: &Operation) -> Step;

    /// Ends everything. The engine's own account has to be even.
    ///
    /// # Errors
    /// What is not: a frame that nobody gives back, a broken invariant.
    fn finish(self: Box<Self>) -> Result<(), String>;
}

/// An engine under `design`, ready for an episode.
///
/// # Errors
/// There is no memory for it.
pub fn subject(design: &Design, episode: &Episode, plant: Option<Plant>) -> Result<Box<dyn Subject>, String> {
    struct New<'a>(&'a Episode, Option<Plant>);
    impl Visitor for New<'_> {
        type Output = Result<Box<dyn Subject>, String>;
        fn visit<D: LockingDesign>(self) -> Self::Output {
            Ok(Box::new(Machine::<D>::new(self.0, self.1)?))
        }
    }
    design.visit(New(episode, plant))
}

/// Bytes that have a length: a file's.
#[derive(Clone)]
struct Bytes(Arc<Mutex<Vec<u8>>>);

impl Bytes {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Bytes {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.lock().len() as u64)
    }

    fn submit(&self, mut transfer: Transfer) {
        let (direction, offset) = (transfer.direction(), transfer.offset());
        let mut bytes = self.lock();
        let inside =
            usize::try_from(offset).ok().and_then(|offset| bytes.get_mut(offset..)).unwrap_or_default();
        let length = inside.len().min(PAGE_SIZE as usize);
        let (inside, page) = (&mut inside[..length], &mut transfer.bytes()[..length]);
        match direction {
            Direction::Read => page.copy_from_slice(inside),
            Direction::Write => inside.copy_from_slice(page),
        }
        drop(bytes);
        transfer.complete(if length == 0 { Err(StoreError::PastEnd { offset }) } else { Ok(length) });
    }
}

struct Held {
    bytes: Bytes,
    file: Shared<File<Soft>>,
}

struct Space<D: LockingDesign> {
    space: AddressSpace<Soft, D>,
    /// As it was said last.
    said: Vec<Line>,
}

struct Machine<D: LockingDesign> {
    engine: Arc<Engine<Soft>>,
    files: Vec<Held>,
    /// The one that acts is the last; below it are its parents.
    spaces: Vec<Space<D>>,
    merged: bool,
    plant: Option<Plant>,
}

impl<D: LockingDesign> Machine<D> {
    fn new(episode: &Episode, plant: Option<Plant>) -> Result<Self, String> {
        let host = Soft::new(FRAMES).map_err(|error| error.to_string())?;
        let engine = Engine::new(host, Limits::default()).map_err(|error| error.to_string())?;
        let mut files = Vec::new();
        for file in 0..FILES {
            let bytes = Bytes(Arc::new(Mutex::new(contents(episode.seed, file, episode.files[file]))));
            let file = File::open(&engine, Arc::new(bytes.clone())).map_err(|error| error.to_string())?;
            files.push(Held { bytes, file });
        }
        let space = AddressSpace::new(&engine).map_err(|error| error.to_string())?;
        Ok(Self {
            engine,
            files,
            spaces: vec![Space { space, said: Vec::new() }],
            merged: episode.merged,
            plant,
        })
    }

    fn space(&self) -> &AddressSpace<Soft, D> {
        &self.spaces.last().expect("the first space stays").space
    }

    fn perform(&mut self, operation: &Operation) -> Outcome {
        let space = self.space();
        match *operation {
            Operation::Map { at, length, rights, object, place } => {
                let source = match object {
                    Object::Anonymous => Source::Anonymous,
                    Object::File { file, first, shared } => Source::File {
                        file: self.files[file].file.clone(),
                        first,
                        sharing: if shared { Sharing::Shared } else { Sharing::Private },
                    },
                };
                let placement = match place {
                    Place::Fixed => Placement::Fixed(address(at)),
                    Place::NoReplace => Placement::FixedNoReplace(address(at)),
                    Place::Anywhere => Placement::Anywhere,
                };
                let request = MapRequest::anonymous(length.0).with(Protection::from(rights)).at(placement);
                match space.map(MapRequest { source, ..request }) {
                    Err(error) => Outcome::Error(MapError::errno(&error)),
                    Ok(at) if place == Place::Anywhere => {
                        result(space.unmap(at, length.0).map(|()| 0), UnmapError::errno)
                    }
                    Ok(at) => Outcome::Done(at.get()),
                }
            }
            Operation::Unmap { at, length } => {
                result(space.unmap(address(at), length.0).map(|()| 0), UnmapError::errno)
            }
            Operation::Protect { at, length, rights } => {
                result(space.protect(address(at), length.0, rights.into()).map(|()| 0), ProtectError::errno)
            }
            Operation::Discard { at, length } => {
                result(space.discard(address(at), length.0).map(|()| 0), DiscardError::errno)
            }
            Operation::Load { at } => access(space.load_u64(address(at))),
            Operation::LoadByte { at } => {
                let mut byte = [0];
                faulted(space.read_bytes(address(at), &mut byte).map(|()| u64::from(byte[0])))
            }
            Operation::Store { at, value } => access(space.store_u64(address(at), value).map(|()| 0)),
            Operation::StoreByte { at, value } => {
                faulted(space.write_bytes(address(at), &[value]).map(|()| 0))
            }
            Operation::Add { at, value } => access(space.fetch_add_u64(address(at), value)),
            Operation::Read { at, pages } => self.read(at, pages),
            Operation::Truncate { file, length } => {
                self.files[file].resize(length);
                Outcome::Done(0)
            }
            Operation::Fork => match space.fork() {
                Ok(child) => {
                    let said = self.said().clone();
                    self.spaces.push(Space { space: child, said });
                    Outcome::Done(0)
                }
                Err(error) => Outcome::Broken(error.to_string()),
            },
            Operation::Exit => match self.spaces.len() {
                1 => Outcome::Done(0),
                _ => {
                    let child = self.spaces.pop().expect("there are two");
                    end(child.space).map_or_else(Outcome::Broken, |()| Outcome::Done(0))
                }
            },
            Operation::Look => self.look(),
        }
    }

    fn said(&mut self) -> &mut Vec<Line> {
        &mut self.spaces.last_mut().expect("the first space stays").said
    }

    /// Bytes of whole pages, up to the first signal.
    fn read(&self, at: At, pages: u64) -> Outcome {
        let mut bytes = vec![0; (pages * PAGE_SIZE) as usize];
        for (number, page) in bytes.chunks_mut(PAGE_SIZE as usize).enumerate() {
            let done = number as u64 * PAGE_SIZE;
            if let Err(error) = self.space().read_bytes(address(At(at.0 + done)), page) {
                return match caught(&error) {
                    Ok(signal) => Outcome::Read(number_of(&bytes[..done as usize]), done, Some(signal)),
                    Err(what) => Outcome::Broken(what),
                };
            }
        }
        Outcome::Read(number_of(&bytes), bytes.len() as u64, None)
    }

    fn look(&self) -> Outcome {
        let mut pages = Vec::with_capacity(PAGES as usize);
        let mut bytes = [0; PAGE_SIZE as usize];
        for page in 0..PAGES {
            pages.push(match self.space().read_bytes(address(At::page(page)), &mut bytes) {
                Ok(()) => Seen::Bytes(number_of(&bytes)),
                Err(error) => match caught(&error) {
                    Ok(signal) => Seen::Signal(signal),
                    Err(what) => return Outcome::Broken(what),
                },
            });
        }
        match self.space().audit() {
            Ok(()) => {}
            Err(error) => return Outcome::Broken(format!("the engine's audit: {error}")),
        }
        let mut flags = vec![0; PAGES as usize];
        for info in self.space().mappings() {
            let line = self.line(&info);
            if let Some(pages) = flags.get_mut(line.start as usize..line.end as usize) {
                pages.fill(info.flags.bits());
            }
        }
        Outcome::Looked(pages, flags)
    }

    fn line(&self, info: &MappingInfo) -> Line {
        let window = PageNumber::new(super::operation::WINDOW / PAGE_SIZE).get();
        Line {
            start: info.range.start().get().wrapping_sub(window),
            end: info.range.end().get().wrapping_sub(window),
            rights: info.protection.bits(),
            shared: info.sharing == Sharing::Shared,
            file: info.file.map(|(id, first)| {
                let file = self.files.iter().position(|held| held.file.id() == id);
                (file.unwrap_or(usize::MAX), first)
            }),
        }
    }
}

impl Held {
    /// As ftruncate does it: what is cut off is gone, what is new is zeros.
    fn resize(&self, length: u64) {
        if length >= self.file.length() {
            self.bytes.lock().resize(length as usize, 0);
            self.file.set_length(length);
        } else {
            self.file.set_length(length);
            self.bytes.lock().resize(length as usize, 0);
        }
    }
}

impl<D: LockingDesign> Subject for Machine<D> {
    fn step(&mut self, operation: &Operation) -> Step {
        let outcome = match self.plant.map_or(Planted::Nothing, |plant| plant(operation)) {
            Planted::Nothing => self.perform(operation),
            Planted::Instead(other) => self.perform(&other),
            Planted::Forgotten => Outcome::Done(0),
        };
        let mut map: Vec<Line> = self.space().mappings().iter().map(|info| self.line(info)).collect();
        if self.merged {
            map = merged(map);
        }
        let said = self.said();
        if *said == map {
            return Step(outcome, None);
        }
        said.clone_from(&map);
        Step(outcome, Some(map))
    }

    fn finish(mut self: Box<Self>) -> Result<(), String> {
        while let Some(space) = self.spaces.pop() {
            end(space.space)?;
        }
        self.files.clear();
        self.engine.flush();
        // The page of zeros stays.
        match self.engine.frame_usage().used {
            1 => Ok(()),
            used => Err(format!("{} frames are in use after the last space has gone", used - 1)),
        }
    }
}

/// Audits a space and ends it.
fn end<D: LockingDesign>(space: AddressSpace<Soft, D>) -> Result<(), String> {
    space.audit().map_err(|error| format!("the engine's audit: {error}"))?;
    match space.taken_ranges() {
        0 => space.exit(),
        taken => return Err(format!("{taken} ranges are taken while no call is under way")),
    }
    Ok(())
}

fn address(at: At) -> VirtAddr {
    VirtAddr::new(at.address())
}

fn result<E>(result: Result<u64, E>, errno: impl Fn(&E) -> i32) -> Outcome {
    match result {
        Ok(value) => Outcome::Done(value),
        Err(error) => Outcome::Error(errno(&error)),
    }
}

fn access(result: Result<u64, AccessError>) -> Outcome {
    match result {
        Ok(value) => Outcome::Done(value),
        Err(AccessError::Fault(error)) => faulted(Err(error)),
        Err(error @ AccessError::Unaligned { .. }) => Outcome::Broken(error.to_string()),
    }
}

fn faulted(result: Result<u64, FaultError>) -> Outcome {
    match result {
        Ok(value) => Outcome::Done(value),
        Err(error) => caught(&error).map_or_else(Outcome::Broken, Outcome::Signal),
    }
}

/// The signal that a process would get.
fn caught(error: &FaultError) -> Result<Caught, String> {
    let (number, code, address) = match error {
        FaultError::NoMapping { address } => (Caught::SEGV, 1, address),
        FaultError::Protection { address, .. } => (Caught::SEGV, 2, address),
        FaultError::PastEnd { address, .. } | FaultError::Io { address, .. } => (Caught::BUS, 2, address),
        other => return Err(other.to_string()),
    };
    Ok(Caught { number, code, at: At(address.get().wrapping_sub(super::operation::WINDOW)) })
}
