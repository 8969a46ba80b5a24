//! Random reads of a space that is larger than its limit, with a swap device of compressed memory. Beside it the same compressions
//! and decompressions alone.

use super::{Engine, Space, page_at, unusable, wrong};
use crate::bars::{Bar, Of};
use crate::case::{Case, Entrant, Work};
use crate::index::Random;
use crate::lap::Lap;
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::store::{Bytes, Direction, Transfer};
use faultless::swap::{CompressedMemory, SwapDevice};
use faultless::{LimitConfig, Limits, MapRequest, MemoryLimit};
use faultless_lab::trouble::Trouble;
use faultless_soft::{Cpu, Soft};
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hint::black_box;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The pages that the group of the space may have, and the pages of the space.
const LIMIT: u64 = 4096;
const PAGES: u64 = 4 * LIMIT;
/// The accesses that are recorded, after as many that are not.
const RECORDED: u64 = 4 * PAGES;
/// The accesses between two looks at the clock.
const PART: u64 = 64;
const THREADS: [usize; 2] = [1, 2];

const OURS: &str = "faultless";
const ALONE: &str = "LZ4 alone";

pub const SWAP: Case = Case {
    name: "pressure-swap",
    about: "a load from a random page of a space 4 times its limit, swap to memory compressed by LZ4; all pages are in their slots",
    sizes: None,
    slices: 5,
    bars: &[Bar {
        about: "time of an access over that of its compressions and decompressions alone",
        most: 1.3,
        of: Of::Ratio { contender: OURS, to: ALONE },
    }],
    set_up: |_| entrants(),
};

fn entrants() -> Result<Vec<Entrant>, Trouble> {
    let device = Arc::new(Recorder::new()?);
    let ours = Reading::new(&device)?;
    let alone = Arc::new(Replay(ours.record(&device)?));
    let ours = Entrant::with_threads(OURS, &THREADS, Ok(Arc::new(ours)));
    Ok(ours.chain(Entrant::with_threads(ALONE, &THREADS, Ok(alone))).collect())
}

/// The space, and the group that keeps it small.
struct Reading {
    space: Space,
    at: VirtAddr,
    engine: Arc<Engine>,
    _limit: MemoryLimit<Soft>,
}

impl Reading {
    fn new(device: &Arc<Recorder>) -> Result<Self, Trouble> {
        // More frames than the limit: the machine itself is under no pressure.
        let soft = Soft::new(2 * LIMIT).map_err(unusable)?;
        let engine = Engine::new(soft, Limits::default()).map_err(unusable)?;
        engine.add_swap(Arc::clone(device) as Arc<dyn SwapDevice>).map_err(unusable)?;
        let limit = MemoryLimit::new(&engine, LimitConfig::max(LIMIT)).map_err(unusable)?;
        let space = Space::new_in(&engine, &limit).map_err(unusable)?;
        let at = space.map(MapRequest::anonymous(PAGES * PAGE_SIZE)).map_err(wrong)?;
        let this = Self { space, at, engine, _limit: limit };
        let mut random = Random::new(1);
        for page in 0..PAGES {
            this.space.write_bytes(page_at(at, page), &contents(page, &mut random)).map_err(wrong)?;
        }
        Ok(this)
    }

    #[inline]
    fn read(&self, random: &mut Random) -> Result<(), Trouble> {
        let page = random.below(PAGES);
        let word = self.space.load_u64(page_at(self.at, page)).map_err(wrong)?;
        if word == page { Ok(()) } else { Err(Trouble::Wrong(format!("page {page} has the word {word}"))) }
    }

    /// Makes random reads, and returns the transfers of the second half of them.
    fn record(&self, device: &Recorder) -> Result<Record, Trouble> {
        let mut random = Random::new(2);
        // Until all pages are in their slots, and the queues are as in the long run.
        (0..RECORDED).try_for_each(|_| self.read(&mut random))?;
        device.record.lock().transfers.clear();
        for _ in 0..RECORDED / PART {
            (0..PART).try_for_each(|_| self.read(&mut random))?;
            let record = &mut *device.record.lock();
            record.parts.push(record.transfers.len());
        }
        device.is_recording.store(false, Ordering::Relaxed);
        Ok(mem::take(&mut *device.record.lock()))
    }
}

impl Work for Reading {
    fn lap(&self, _me: usize, lap: &mut Lap) -> Result<(), Trouble> {
        let mut random = Random::new(lap.seed());
        lap.repeat(PART, 1, || self.read(&mut random))
    }

    fn note(&self) -> Option<String> {
        let usage = self.engine.swap_usage();
        Some(format!("{} pages in slots, of {PAGES}", usage.slots))
    }
}

/// Returns the bytes of a page, which compress to about a half: each second word is one of a few. The first word is the page's number.
fn contents(page: u64, random: &mut Random) -> Vec<u8> {
    let word = |index: u64| match (index, random.below(2)) {
        (0, _) => page,
        (_, 0) => 0x6665_6c74_6c75_6166 + random.below(32),
        _ => random.below(1 << 31),
    };
    (0..PAGE_SIZE / 8).map(word).flat_map(u64::to_le_bytes).collect()
}

/// Compressed memory that can record its transfers.
struct Recorder {
    device: CompressedMemory,
    is_recording: AtomicBool,
    record: Mutex<Record>,
}

type Owned = Box<[u8]>;

/// The transfers of a run of accesses.
#[derive(Default)]
struct Record {
    transfers: Vec<(Direction, u64)>,
    /// The number of transfers at the end of each part.
    parts: Vec<usize>,
    /// The bytes of each place, as they were written last: the page, and its compressed bytes.
    pages: HashMap<u64, (Owned, Owned)>,
}

impl Recorder {
    fn new() -> Result<Self, Trouble> {
        let device = CompressedMemory::new(2 * PAGES, usize::MAX).map_err(unusable)?;
        Ok(Self { device, is_recording: AtomicBool::new(true), record: Mutex::default() })
    }
}

impl SwapDevice for Recorder {
    fn capacity(&self) -> u64 {
        self.device.capacity()
    }

    fn reserve(&self) -> Option<u64> {
        self.device.reserve()
    }

    fn release(&self, place: u64) {
        self.device.release(place);
    }

    fn submit(&self, mut transfer: Transfer) {
        if self.is_recording.load(Ordering::Relaxed) {
            let record = &mut *self.record.lock();
            let place = transfer.offset() / PAGE_SIZE;
            record.transfers.push((transfer.direction(), place));
            if let Bytes::Write(page) = transfer.bytes() {
                let (mut table, mut output) = (CompressTable::small(), output());
                // It has the room that LZ4 asks for.
                let length = compress_into_with_table(page, &mut output, &mut table).unwrap_or(0);
                record.pages.insert(place, (page.into(), output[..length].into()));
            }
        }
        self.device.submit(transfer);
    }
}

fn output() -> Vec<u8> {
    vec![0; get_maximum_output_size(PAGE_SIZE as usize)]
}

/// Replays the recorded transfers by calls of LZ4 alone. Two threads together use as much memory as the space's limit.
struct Replay(Record);

impl Work for Replay {
    fn lap(&self, me: usize, lap: &mut Lap) -> Result<(), Trouble> {
        let Record { transfers, parts, pages } = &self.0;
        let mut frames = vec![[0_u8; PAGE_SIZE as usize]; (LIMIT / 2) as usize];
        let (mut table, mut output) = (CompressTable::small(), output());
        let mut part = Random::new(lap.seed()).below(parts.len() as u64 - 1) as usize + me;
        let mut frame = 0;
        lap.repeat(1, PART, || {
            part = (part + 1) % (parts.len() - 1);
            for (direction, place) in &transfers[parts[part]..parts[part + 1]] {
                let (page, compressed) = pages.get(place).ok_or_else(gone)?;
                frame = (frame + 1) % frames.len();
                match direction {
                    Direction::Read => _ = decompress_into(compressed, &mut frames[frame]).map_err(wrong)?,
                    Direction::Write => {
                        compress_into_with_table(page, &mut output, &mut table).map_err(wrong)?;
                    }
                }
                black_box(&frames[frame]);
            }
            Ok(())
        })
    }

    fn note(&self) -> Option<String> {
        let Record { transfers, parts, pages } = &self.0;
        let reads = transfers.iter().filter(|(direction, _)| *direction == Direction::Read).count();
        let each = |count: usize| count as f64 / (parts.len() as u64 * PART) as f64;
        let bytes: usize = pages.values().map(|(_, compressed)| compressed.len()).sum();
        Some(format!(
            "{:.3} decompressions and {:.3} compressions for an access; a page compresses to {} bytes",
            each(reads),
            each(transfers.len() - reads),
            bytes / pages.len().max(1)
        ))
    }
}

#[cold]
fn gone() -> Trouble {
    Trouble::Wrong("a place is read that was never written".into())
}
