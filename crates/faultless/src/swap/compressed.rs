//! A swap device that keeps pages in memory, compressed by LZ4.
//!
//! ```text
//! place ──► shard (617 · place mod 1,024) ──► the page's compressed bytes       dead: places that were released and still have bytes
//! ```
//! The table of a shard is as long as its places need from the beginning. So nothing is allocated under a shard's lock.
//!
//! [`SwapDevice::release`] may be called in a read section, where no lock may be taken. So it only marks the place as dead. The bytes of
//! dead places are freed when a place is reserved or bytes are needed.
#![forbid(unsafe_code)]

use super::SwapDevice;
use super::places::Places;
use super::slot::Location;
use crate::address::PAGE_SIZE;
use crate::errno::EIO;
use crate::host::OutOfMemory;
use crate::store::{Bytes, StoreError, Transfer};
use crate::sync::plain::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};
use alloc::boxed::Box;
use alloc::vec::Vec;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

const PAGE: usize = PAGE_SIZE as usize;
/// A page that is larger when it is compressed is refused: it would save too little for the time that it takes.
const LARGEST: usize = PAGE / 4 * 3;
/// So many that two threads seldom meet: a read keeps its shard's lock while it decompresses.
const SHARDS: u64 = 1024;
/// The step from the shard of a place to that of the next. Threads that use neighbouring places then use no common cache line. Odd, so that
/// all shards have places.
const STRIDE: u64 = 617;
/// The number of pages that can be compressed at the same time.
const SCRATCHES: usize = 4;
/// The most places whose bytes one call frees, besides one that needs bytes.
const FEW: u64 = 64;

/// A swap device in memory, whose pages are compressed by LZ4.
///
/// It refuses a page that compresses to more than 3,072 bytes, so that the page goes to the next device. It allocates from the global
/// allocator at each write, as many bytes as the compressed page has. If there are none, it refuses the page. Reads allocate nothing.
/// [`Engine::metadata_bytes`](crate::Engine::metadata_bytes) does not include it; [`CompressedMemory::bytes`] tells the size of the pages.
pub struct CompressedMemory {
    places: Places,
    /// A bit for each place that was released and still has bytes. Atomic.
    dead: Vec<AtomicU64>,
    /// The number of bits in `dead`, which may be ahead of them. Atomic.
    dead_count: AtomicU64,
    /// The word of `dead` at which the next search begins. Atomic.
    next_dead: AtomicUsize,
    shards: Box<[Mutex<Shard>]>,
    scratches: [Mutex<Scratch>; SCRATCHES],
    /// The scratch that the next write tries first. Atomic.
    next_scratch: AtomicUsize,
    /// The number of compressed bytes, with those of dead places. Atomic.
    bytes: AtomicUsize,
    /// The most compressed bytes. Immutable.
    most_bytes: usize,
}

/// The compressed bytes of each place of a shard.
struct Shard(Box<[Option<Box<[u8]>>]>);

impl Shard {
    fn new(places: usize) -> Result<Self, OutOfMemory> {
        let mut pages = Vec::new();
        pages.try_reserve_exact(places).map_err(|_| OutOfMemory)?;
        pages.resize_with(places, || None);
        Ok(Self(pages.into_boxed_slice()))
    }
}

/// Returns the number of a place's shard, and the place's number there.
fn shard_of(place: u64) -> (usize, usize) {
    ((place % SHARDS * STRIDE % SHARDS) as usize, (place / SHARDS) as usize)
}

/// The memory that compressing a page needs.
struct Scratch {
    table: CompressTable,
    output: Box<[u8]>,
}

impl Scratch {
    fn new() -> Result<Self, OutOfMemory> {
        let mut output = Vec::new();
        output.try_reserve_exact(get_maximum_output_size(PAGE)).map_err(|_| OutOfMemory)?;
        output.resize(get_maximum_output_size(PAGE), 0);
        Ok(Self { table: CompressTable::small(), output: output.into_boxed_slice() })
    }
}

impl CompressedMemory {
    /// Makes a device for at most `pages` pages, whose compressed bytes are at most `bytes`. Takes 92 KiB at most, and 17 bytes
    /// for each page, at once: 17 MiB for a million pages.
    ///
    /// # Errors
    /// [`OutOfMemory`]. If the allocator has no room for the 8 KiB table of a compressor, the program is aborted: make a device early.
    pub fn new(pages: u64, bytes: usize) -> Result<Self, OutOfMemory> {
        let pages = pages.min(Location::PLACES);
        let places = Places::new(pages)?;
        let mut dead = Vec::new();
        let words = pages.div_ceil(64) as usize;
        dead.try_reserve_exact(words).map_err(|_| OutOfMemory)?;
        dead.resize_with(words, AtomicU64::default);
        let mut shards = Vec::new();
        shards.try_reserve_exact(SHARDS as usize).map_err(|_| OutOfMemory)?;
        // As long as the longest needs. `Places` had memory for the bits of all places, so the number fits.
        let places_each = pages.div_ceil(SHARDS) as usize;
        for _ in 0..SHARDS {
            shards.push(Mutex::new(Shard::new(places_each)?));
        }
        let scratches = [Scratch::new()?, Scratch::new()?, Scratch::new()?, Scratch::new()?];
        Ok(Self {
            places,
            dead,
            dead_count: AtomicU64::new(0),
            next_dead: AtomicUsize::new(0),
            shards: shards.into_boxed_slice(),
            scratches: scratches.map(Mutex::new),
            next_scratch: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            most_bytes: bytes,
        })
    }

    /// Returns the number of compressed bytes. Those of pages that were given back not long ago are included.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn write(&self, place: u64, page: &[u8]) -> Result<usize, StoreError> {
        let offset = place * PAGE_SIZE;
        if place >= self.places.count() {
            return Err(StoreError::PastEnd { offset });
        }
        let refused = StoreError::NoSpace { offset };
        let compressed = self.compress(page).ok_or(refused)?;
        if !self.take_bytes(compressed.len()) {
            return Err(refused);
        }
        let (shard, index) = shard_of(place);
        let mut shard = self.shards[shard].lock();
        let old = shard.0.get_mut(index).and_then(|page| page.replace(compressed));
        drop(shard);
        self.bytes.fetch_sub(old.map_or(0, |old| old.len()), Ordering::Relaxed);
        Ok(PAGE)
    }

    /// Returns the page's compressed bytes, unless they are too many or there is no memory.
    fn compress(&self, page: &[u8]) -> Option<Box<[u8]>> {
        let mut scratch = self.scratch();
        let Scratch { table, output } = &mut *scratch;
        let length =
            compress_into_with_table(page, output, table).ok().filter(|length| *length <= LARGEST)?;
        let mut compressed = Vec::new();
        compressed.try_reserve_exact(length).ok()?;
        compressed.extend_from_slice(&output[..length]);
        Some(compressed.into_boxed_slice())
    }

    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        let first = self.next_scratch.fetch_add(1, Ordering::Relaxed);
        let at = |step: usize| &self.scratches[first.wrapping_add(step) % SCRATCHES];
        (0..SCRATCHES).find_map(|step| at(step).try_lock()).unwrap_or_else(|| at(0).lock())
    }

    /// Counts `length` more bytes, if there is room for them. Frees those of dead places if there is none.
    fn take_bytes(&self, length: usize) -> bool {
        for is_last in [false, true] {
            let old = self.bytes.fetch_add(length, Ordering::Relaxed);
            if old.saturating_add(length) <= self.most_bytes {
                return true;
            }
            self.bytes.fetch_sub(length, Ordering::Relaxed);
            if !is_last {
                self.free_dead(u64::MAX);
            }
        }
        false
    }

    fn read(&self, place: u64, page: &mut [u8]) -> Result<usize, StoreError> {
        let offset = place * PAGE_SIZE;
        let (shard, index) = shard_of(place);
        let shard = self.shards[shard].lock();
        let compressed = shard.0.get(index).and_then(Option::as_deref);
        let compressed = compressed.ok_or(StoreError::PastEnd { offset })?;
        decompress_into(compressed, page).map_err(|_| StoreError::Io { offset, errno: EIO })
    }

    /// Frees the bytes of at most `most` dead places. The places are free afterwards.
    fn free_dead(&self, most: u64) {
        let mut freed = 0;
        let first = self.next_dead.load(Ordering::Relaxed);
        for step in 0..self.dead.len() {
            if freed >= most || self.dead_count.load(Ordering::Relaxed) == 0 {
                break;
            }
            let index = (first + step) % self.dead.len();
            if self.dead[index].load(Ordering::Relaxed) == 0 {
                continue;
            }
            // Acquire, partner: `release`. The page's transfers have ended.
            let mut bits = self.dead[index].swap(0, Ordering::Acquire);
            self.dead_count.fetch_sub(u64::from(bits.count_ones()), Ordering::Relaxed);
            freed += u64::from(bits.count_ones());
            self.next_dead.store(index, Ordering::Relaxed);
            while bits != 0 {
                let place = index as u64 * 64 + u64::from(bits.trailing_zeros());
                bits &= bits - 1;
                self.free(place);
            }
        }
    }

    fn free(&self, place: u64) {
        let (shard, index) = shard_of(place);
        let mut shard = self.shards[shard].lock();
        let old = shard.0.get_mut(index).and_then(Option::take);
        drop(shard);
        self.bytes.fetch_sub(old.map_or(0, |old| old.len()), Ordering::Relaxed);
        self.places.put(place);
    }
}

impl SwapDevice for CompressedMemory {
    fn capacity(&self) -> u64 {
        self.places.count()
    }

    fn reserve(&self) -> Option<u64> {
        self.free_dead(FEW);
        self.places.take().or_else(|| {
            self.free_dead(FEW);
            self.places.take()
        })
    }

    fn release(&self, place: u64) {
        let Some(word) = self.dead.get((place / 64) as usize).filter(|_| place < self.places.count()) else {
            return;
        };
        // Before the bit, so that the count is never behind.
        self.dead_count.fetch_add(1, Ordering::Relaxed);
        let bit = 1 << (place % 64);
        if word.fetch_or(bit, Ordering::Release) & bit != 0 {
            self.dead_count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn submit(&self, mut transfer: Transfer) {
        let result = transfer.move_pages(|offset, bytes| {
            let place = offset / PAGE_SIZE;
            match bytes {
                Bytes::Read(page) => self.read(place, page),
                Bytes::Write(page) => self.write(place, page),
            }
        });
        transfer.complete(result);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// So a write allocates nothing under the lock of a shard.
    #[test]
    fn the_tables_are_made_with_the_device() {
        for pages in [1, 1023, 1024, 1025, 5000] {
            let memory = CompressedMemory::new(pages, 1 << 20).unwrap();
            let seen: BTreeSet<_> = (0..pages)
                .map(shard_of)
                .inspect(|(shard, index)| {
                    assert!(*index < memory.shards[*shard].lock().0.len(), "{pages} pages")
                })
                .collect();
            assert_eq!(seen.len() as u64, pages, "two pages have one place");
            let behind = memory.write(pages, &[0; PAGE]);
            assert_eq!(behind, Err(StoreError::PastEnd { offset: pages * PAGE_SIZE }));
            assert_eq!(memory.bytes(), 0);
        }
    }

    /// The places of one transfer, which have consecutive numbers.
    #[test]
    fn the_locks_of_near_places_share_no_cache_line() {
        let memory = CompressedMemory::new(4096, 1 << 20).unwrap();
        let lock = |place| core::ptr::from_ref(&memory.shards[shard_of(place).0]).addr();
        for place in 0..1024 {
            for near in 1..crate::store::MAX_PAGES as u64 {
                assert!(lock(place).abs_diff(lock(place + near)) > 2 * 128, "{place} and {near} behind");
            }
        }
    }
}
