//! The engine's side of a check. It runs an episode's operations on an own space, or in a window of a shared one, and
//! on its children.

mod allowed;
mod files;
mod perform;

use super::differences::Known;
use super::generate::Episode;
use super::group::{self, Group};
use super::memory::{Home, Memory, Pressure};
use super::operation::{At, FILES, HEAP, Operation, PAGES};
use super::step::{Line, Outcome, Step, merged};
use crate::designs::{Design, Visitor};
use faultless::address::VirtAddr;
use faultless::design::LockingDesign;
use faultless::protection::Sharing;
use faultless::{AddressSpace, Engine, Limits, MappingInfo};
use faultless_soft::Soft;
use files::Held;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Frames of the machine: more than all pages of parents and children together, so that memory is never
/// short unless it is limited.
const FRAMES: u64 = 2048;

/// MADV_FREE.
const FREE: i32 = 8;

/// Shortest duration of a read in checks with threads, so that threads meet during it. The longest is twice as long.
const SLOW: Duration = Duration::from_micros(20);

/// Longest wait for the last writes after all files are closed.
const LAST_WRITES: Duration = Duration::from_secs(10);

/// Returns limits under which fork shares page tables although episodes have few pages.
pub(super) fn limits() -> Limits {
    Limits { shared_entries: 4, ..Limits::default() }
}

/// Planted difference, for tests: it makes the engine do something other than the operation.
pub type Plant = fn(&Operation) -> Planted;

/// Effect of a [`Plant`] on one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// The engine does the operation unchanged.
    Nothing,
    /// The engine does another operation instead.
    Instead(Operation),
    /// The engine does the operation and then this one, without reporting this one.
    And(Operation),
    /// The engine does nothing and returns 0.
    Forgotten,
}

/// The engine under a design, with an episode's state.
pub trait Subject {
    /// Does an operation. Returns its outcome, and the map if it has changed.
    fn step(&mut self, operation: &Operation) -> Step;

    /// Returns the known difference that explains the steps if memory is short, as far as can be told.
    fn allowed(&self, operation: &Operation, mine: &Step, linux: &Step) -> Option<&'static Known>;

    /// Adds the numbers of pages that were swapped to `pressure`.
    fn tell_swapped(&self, pressure: &mut Pressure);

    /// Ends everything and checks the engine's own accounts.
    ///
    /// # Errors
    /// The first fault found: a frame that was not given back, or a broken invariant.
    fn finish(self: Box<Self>) -> Result<(), String>;
}

/// Returns an engine under `design`, ready for an episode.
///
/// # Errors
/// There is not enough memory.
pub fn subject(
    design: &Design,
    episode: &Episode,
    plant: Option<Plant>,
    memory: Option<Memory>,
) -> Result<Box<dyn Subject>, String> {
    struct New<'a>(&'a Episode, Option<Plant>, Option<Memory>);
    impl Visitor for New<'_> {
        type Output = Result<Box<dyn Subject>, String>;
        fn visit<D: LockingDesign>(self) -> Self::Output {
            Ok(Box::new(Machine::<D>::new(self.0, self.1, self.2)?))
        }
    }
    design.visit(New(episode, plant, memory))
}

struct Space<D: LockingDesign> {
    space: AddressSpace<Soft, D>,
    /// The map as it was reported last.
    said: Vec<Line>,
    /// The number of locked pages.
    locked: u64,
}

/// Engine with the files and spaces of an episode.
pub struct Machine<D: LockingDesign> {
    engine: Arc<Engine<Soft>>,
    files: Vec<Held>,
    /// The space in use is the last one. Its parents are before it.
    spaces: Vec<Space<D>>,
    merged: bool,
    plant: Option<Plant>,
    /// The group of the spaces, if they are in one.
    group: Option<Group>,
    /// The number of locked pages that the group has room for.
    locked: u64,
    /// Whether MCL_FUTURE was ever set.
    locks_future: bool,
    /// Whether the engine swaps.
    swaps: bool,
    /// Whether MADV_FREE was done.
    has_freed: bool,
    /// The distance of its window above `WINDOW`, in bytes.
    offset: u64,
    /// Whether other threads use the first space, outside of the window.
    is_shared: bool,
}

impl<D: LockingDesign> Machine<D> {
    /// Returns a machine with a space of its own.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn new(episode: &Episode, plant: Option<Plant>, memory: Option<Memory>) -> Result<Self, String> {
        let home = Home::new(FRAMES, memory, episode.seed)?;
        home.space.set_heap(VirtAddr::new(At::page(HEAP).address()));
        Self::in_space(home, episode, plant, None)
    }

    /// Returns a machine whose window is `offset` bytes above `WINDOW`, in a space that other threads use too.
    ///
    /// # Errors
    /// There is not enough memory.
    pub(super) fn beside_others(
        home: Home<D>,
        offset: u64,
        episode: &Episode,
        plant: Option<Plant>,
    ) -> Result<Self, String> {
        Ok(Self { offset, is_shared: true, ..Self::in_space(home, episode, plant, Some(SLOW))? })
    }

    fn in_space(
        Home { space, group }: Home<D>,
        episode: &Episode,
        plant: Option<Plant>,
        delay: Option<Duration>,
    ) -> Result<Self, String> {
        let engine = space.engine().clone();
        let file = |number| Held::new(&engine, episode, number, delay);
        let files = (0..FILES).map(file).collect::<Result<_, _>>()?;
        let spaces = vec![Space { space, said: Vec::new(), locked: 0 }];
        let (merged, swaps) = (episode.merged, !engine.swap_usage().devices.is_empty());
        Ok(Self {
            engine,
            files,
            spaces,
            merged,
            plant,
            group,
            locked: 0,
            locks_future: false,
            swaps,
            has_freed: false,
            offset: 0,
            is_shared: false,
        })
    }

    /// Gives the group room for the pages that are locked, and for `more`.
    fn make_room_for_locked(&mut self, more: u64) {
        let Some(group) = &self.group else { return };
        let new = self.spaces.iter().map(|held| held.locked).sum::<u64>() + more;
        let old = std::mem::replace(&mut self.locked, new);
        if old != new {
            group.set_locked(old, new).expect("limits above the smallest ones");
        }
    }

    /// Returns the present children of fork, the oldest first.
    pub fn children(&self) -> Vec<AddressSpace<Soft, D>> {
        self.spaces[1..].iter().map(|held| held.space.clone()).collect()
    }

    fn address(&self, at: At) -> VirtAddr {
        VirtAddr::new(at.address() + self.offset)
    }

    fn space(&self) -> &AddressSpace<Soft, D> {
        &self.spaces.last().expect("the first space stays").space
    }

    fn said(&mut self) -> &mut Vec<Line> {
        &mut self.spaces.last_mut().expect("the first space stays").said
    }

    fn line(&self, info: &MappingInfo) -> Line {
        let window = self.address(At(0)).page().get();
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
        self.has_freed |= matches!(operation, Operation::Advise { advice: FREE, .. });
        if group::may_lock(operation, self.locks_future || self.locked != 0) {
            self.make_room_for_locked(PAGES);
        }
        self.locks_future |= group::locks_future(operation);
        let outcome = match self.plant.map_or(Planted::Nothing, |plant| plant(operation)) {
            Planted::Nothing => self.perform(operation),
            Planted::Instead(other) => self.perform(&other),
            Planted::And(other) => {
                let outcome = self.perform(operation);
                self.perform(&other);
                outcome
            }
            Planted::Forgotten => Outcome::Done(0),
        };
        let outcome = outcome.seen_from(self.offset);
        let mut mappings = self.space().mappings();
        if self.is_shared {
            mappings.retain(|info| self.line(info).start < PAGES);
        }
        let mut map: Vec<Line> = mappings.iter().map(|info| self.line(info)).collect();
        self.spaces.last_mut().expect("the first space stays").locked = group::locked(&mappings);
        self.make_room_for_locked(0);
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

    fn allowed(&self, operation: &Operation, mine: &Step, linux: &Step) -> Option<&'static Known> {
        Self::allowed(self, operation, mine, linux)
    }

    fn tell_swapped(&self, pressure: &mut Pressure) {
        pressure.add(&self.engine, self.group.as_ref());
    }

    fn finish(mut self: Box<Self>) -> Result<(), String> {
        while let Some(space) = self.spaces.pop() {
            end(space.space)?;
        }
        self.files.clear();
        let begun = Instant::now();
        loop {
            // The last writes may still be running.
            match balance(&self.engine, self.group.as_ref()) {
                Err(_) if begun.elapsed() < LAST_WRITES => thread::yield_now(),
                balanced => return balanced,
            }
        }
    }
}

/// Checks that all frames are free except the page of zeros, that all slots are free, and that the group pays for nothing. The
/// caller has dropped all spaces and files.
///
/// # Errors
/// The number of frames or slots that are still in use, or the pages of the group.
pub(super) fn balance(engine: &Engine<Soft>, group: Option<&Group>) -> Result<(), String> {
    engine.flush();
    match (engine.frame_usage().used, engine.swap_usage().slots) {
        (1, 0) => group.map_or(Ok(()), Group::balance),
        (used, slots) => {
            Err(format!("{} frames and {slots} slots are in use after the last space has gone", used - 1))
        }
    }
}

/// Audits a space and ends it. The caller makes no other call on it meanwhile.
///
/// # Errors
/// The first violation that the audit found.
pub fn end<D: LockingDesign>(space: AddressSpace<Soft, D>) -> Result<(), String> {
    space.audit().map_err(|error| format!("the engine's audit: {error}"))?;
    match space.taken_ranges() {
        0 => space.exit(),
        taken => return Err(format!("{taken} ranges are taken while no call is under way")),
    }
    Ok(())
}
