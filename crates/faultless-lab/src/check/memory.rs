//! `faultless check --memory`: an engine with less memory than an episode uses, and a swap device.

use super::engine::limits;
use crate::report::number::count;
use faultless::Engine;
use faultless::address::PAGE_SIZE;
use faultless::host::Host;
use faultless::stats::Counter;
use faultless::store::FileStore;
use faultless::swap::{CompressedMemory, StoreDevice};
use faultless_soft::Soft;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::AddAssign;
use std::sync::Arc;

/// The least memory, in frames. It is far below the pages of most episodes, which would fit into 64 frames.
const LEAST: u64 = 4;
/// The number of frames that a thread gets at once: for the page of a file and for its copy, since a design that starts over needs both.
const GRANTED: u32 = 2;
/// The number of pages that fit into each swap device.
const SLOTS: u64 = 1 << 14;

/// The memory of the engine under check.
///
/// While so much is in use, a thread that needs a frame has to make room first. Pages that cannot be reclaimed, such as locked
/// ones, may take more: Linux has enough memory for them.
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
}

impl Pressure {
    /// Returns a count of zero, with this memory.
    pub fn new(memory: Memory) -> Self {
        Self { memory: memory.to_string(), ..Self::default() }
    }

    /// Returns the result in one sentence.
    pub fn text(&self) -> String {
        let Self { memory, swapped_out, swapped_in } = self;
        match (swapped_out, swapped_in) {
            (0, 0) => format!(
                "With {memory} of memory, nothing was swapped: do more operations, or give less memory."
            ),
            _ => format!(
                "With {memory} of memory, {} pages were swapped out and {} in.",
                count(*swapped_out),
                count(*swapped_in)
            ),
        }
    }
}

/// Adds what an engine has swapped.
impl AddAssign<&Engine<Soft>> for Pressure {
    fn add_assign(&mut self, engine: &Engine<Soft>) {
        let seen = engine.statistics();
        self.swapped_out += seen.get(Counter::SwapOuts);
        self.swapped_in += seen.get(Counter::SwapIns);
    }
}

/// Makes an engine with `frames` frames. With `memory`, it has swap, and makes room as soon as so much is in use.
///
/// # Errors
/// There is not enough memory.
pub(super) fn new_engine(frames: u64, memory: Option<Memory>) -> Result<Arc<Engine<Soft>>, String> {
    // Under pressure, processors keep translations, so that one that is not invalidated is used.
    let host = if memory.is_some() { Soft::with_caches(frames) } else { Soft::new(frames) };
    let engine = Engine::new(host.map_err(|error| error.to_string())?, limits());
    let engine = engine.map_err(|error| error.to_string())?;
    if let Some(memory) = memory {
        let compressed = CompressedMemory::new(SLOTS, (SLOTS * PAGE_SIZE) as usize);
        let compressed = Arc::new(compressed.map_err(|error| error.to_string())?);
        engine.add_swap(compressed).map_err(|error| error.to_string())?;
        engine.add_swap(Arc::new(file()?)).map_err(|error| error.to_string())?;
        engine.host().frames().make_scarce(memory.frames, GRANTED);
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
        assert_eq!(pressure.text(), "With 1024K of memory, 1,234,567 pages were swapped out and 0 in.");
    }
}
