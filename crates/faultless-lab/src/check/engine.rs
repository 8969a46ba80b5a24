//! The engine's side: an episode's operations on a space of their own, and on its children.

mod files;
mod perform;

use super::generate::Episode;
use super::operation::{At, FILES, HEAP, Operation};
use super::step::{Line, Outcome, Step, merged};
use crate::designs::{Design, Visitor};
use faultless::address::{PAGE_SIZE, PageNumber, VirtAddr};
use faultless::design::LockingDesign;
use faultless::protection::Sharing;
use faultless::{AddressSpace, Engine, Limits, MappingInfo};
use faultless_soft::Soft;
use files::Held;
use std::sync::Arc;

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
        let files = (0..FILES).map(|number| Held::new(&engine, episode, number)).collect::<Result<_, _>>()?;
        let space = AddressSpace::new(&engine).map_err(|error| error.to_string())?;
        space.set_heap(VirtAddr::new(At::page(HEAP).address()));
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

    fn said(&mut self) -> &mut Vec<Line> {
        &mut self.spaces.last_mut().expect("the first space stays").said
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
