//! `faultless check --memory`: an engine with less memory than an episode uses, and a swap device.

use super::engine::limits;
use super::group::{Group, Shortage};
use crate::report::number::count;
use faultless::address::PAGE_SIZE;
use faultless::design::LockingDesign;
use faultless::host::Host;
use faultless::stats::Counter;
use faultless::store::FileStore;
use faultless::swap::{CompressedMemory, StoreDevice};
use faultless::{AddressSpace, Engine};
use faultless_soft::Soft;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The least memory, in frames. It is far below the pages of most episodes, which would fit into 64 frames.
const LEAST: u64 = 4;
/// The number of frames that a thread gets at once: for the page of a file and for its copy, since a design that starts over needs both.
const GRANTED: u32 = 2;
/// The number of pages that fit into each swap device.
const SLOTS: u64 = 1 << 14;

/// The memory of the engine under check.
///
/// While so much is in use, a thread that needs a page has to make room first. The reason is the machine's frames in some episodes,
/// and the limits of a group in others. Pages that cannot be reclaimed, such as locked ones, may take more: Linux has enough memory
/// for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    frames: u64,
}

impl Memory {
    /// Returns a memory of `bytes` bytes, rounded down to whole frames.
    ///
    /// # Errors
    /// The reason why it is refused: it is too little.
    pub fn new(bytes: u64) -> Result<Self, String> {
        let frames = bytes / PAGE_SIZE;
        match frames < LEAST {
            true => Err(format!("at least {}, which is {LEAST} frames", Self { frames: LEAST })),
            false => Ok(Self { frames }),
        }
    }

    /// Returns the memory of a space that so many threads use: two pages more for each, as a fault may need a page and its copy.
    pub(super) fn for_threads(self, threads: u64) -> Self {
        Self { frames: self.frames + 2 * threads }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}K", self.frames * (PAGE_SIZE >> 10))
    }
}

/// The numbers of pages that were swapped, and the memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// The engine's memory, as `--memory` takes it.
    pub memory: String,
    /// The number of pages swapped out.
    pub swapped_out: u64,
    /// The number of pages swapped in.
    pub swapped_in: u64,
    /// The number of charges after which a group was over high.
    #[serde(default)]
    pub over_high: u64,
    /// The number of charges that were refused, since a group was at max.
    #[serde(default)]
    pub at_max: u64,
}

impl Pressure {
    /// Returns a count of zero, with this memory.
    pub fn new(memory: Memory) -> Self {
        Self { memory: memory.to_string(), ..Self::default() }
    }

    /// Returns the result in one sentence.
    pub fn text(&self) -> String {
        let Self { memory, swapped_out, swapped_in, over_high, at_max } = self;
        match (swapped_out, swapped_in) {
            (0, 0) => format!(
                "With {memory} of memory, nothing was swapped: do more operations, or give less memory."
            ),
            _ => format!(
                "With {memory} of memory, {} pages were swapped out and {} in. A limit was exceeded {} times (high) \
                 and reached {} times (max).",
                count(*swapped_out),
                count(*swapped_in),
                count(*over_high),
                count(*at_max)
            ),
        }
    }

    /// Adds the counts of an engine and of its group.
    pub(super) fn add(&mut self, engine: &Engine<Soft>, group: Option<&Group>) {
        let seen = engine.statistics();
        self.swapped_out += seen.get(Counter::SwapOuts);
        self.swapped_in += seen.get(Counter::SwapIns);
        if let Some(group) = group {
            let usage = group.usage();
            self.over_high += usage.high;
            self.at_max += usage.max;
        }
    }
}

/// An address space, and the group that it is in.
pub(super) struct Home<D: LockingDesign> {
    pub space: AddressSpace<Soft, D>,
    /// `None`: it is in no group.
    pub group: Option<Group>,
}

impl<D: LockingDesign> Clone for Home<D> {
    fn clone(&self) -> Self {
        Self { space: self.space.clone(), group: self.group.clone() }
    }
}

impl<D: LockingDesign> Home<D> {
    /// Makes a space on a machine with `frames` frames. With `memory`, its engine has swap, and memory is short for the reason that
    /// follows from `seed`.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn new(frames: u64, memory: Option<Memory>, seed: u64) -> Result<Self, String> {
        let shortage = Shortage::of(seed);
        let engine = new_engine(frames, memory, shortage)?;
        let group = match memory {
            Some(memory) => {
                Group::new(&engine, shortage, memory.frames).map_err(|error| error.to_string())?
            }
            None => None,
        };
        let space = match &group {
            Some(group) => AddressSpace::new_in(&engine, group.limit()).map_err(|error| error.to_string())?,
            None => AddressSpace::new(&engine).map_err(|error| error.to_string())?,
        };
        Ok(Self { space, group })
    }
}

/// Makes an engine with `frames` frames. With `memory`, it has swap. If frames are short, it makes room as soon as so much is in use.
fn new_engine(frames: u64, memory: Option<Memory>, shortage: Shortage) -> Result<Arc<Engine<Soft>>, String> {
    // Under pressure, processors keep translations, so that one that is not invalidated is used.
    let host = if memory.is_some() { Soft::with_caches(frames) } else { Soft::new(frames) };
    let engine = Engine::new(host.map_err(|error| error.to_string())?, limits());
    let engine = engine.map_err(|error| error.to_string())?;
    if let Some(memory) = memory {
        let compressed = CompressedMemory::new(SLOTS, (SLOTS * PAGE_SIZE) as usize);
        let compressed = Arc::new(compressed.map_err(|error| error.to_string())?);
        engine.add_swap(compressed).map_err(|error| error.to_string())?;
        engine.add_swap(Arc::new(file()?)).map_err(|error| error.to_string())?;
        if shortage == Shortage::Frames {
            engine.host().frames().make_scarce(memory.frames, GRANTED);
        }
    }
    Ok(engine)
}

/// Makes a swap device for the pages that compress badly, such as copies of pages of the episode's files.
fn file() -> Result<StoreDevice<FileStore>, String> {
    let file = tempfile::tempfile().map_err(|error| error.to_string())?;
    file.set_len(SLOTS * PAGE_SIZE).map_err(|error| error.to_string())?;
    let store = FileStore::from_file(file).map_err(|error| error.to_string())?;
    StoreDevice::new(store).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_memory_is_told() {
        assert_eq!(Memory::new(16383), Err("at least 16K, which is 4 frames".into()));
        assert_eq!(Memory::new(16384).unwrap().to_string(), "16K");
        assert_eq!(Memory::new(256 << 10).unwrap().to_string(), "256K");
        assert_eq!(Memory::new((256 << 10) + 4095).unwrap().to_string(), "256K");
    }

    #[test]
    fn the_result_tells_what_was_swapped() {
        let mut pressure = Pressure::new(Memory::new(1 << 20).unwrap());
        assert!(pressure.text().contains("nothing was swapped"), "{}", pressure.text());
        pressure.swapped_out = 1_234_567;
        pressure.at_max = 4_321;
        let wanted = "With 1024K of memory, 1,234,567 pages were swapped out and 0 in. A limit was exceeded 0 times (high) \
                      and reached 4,321 times (max).";
        assert_eq!(pressure.text(), wanted);
    }
}
