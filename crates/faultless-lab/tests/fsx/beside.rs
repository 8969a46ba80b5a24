//! Readers beside a writer: they must see written bytes, or none. Writeback runs all the time.

use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::Protection;
use faultless::store::Store;
use faultless::sync::Shared;
use faultless::{AddressSpace, Engine, File, Limits, MapRequest, Placement};
use faultless_lab::check::files::{Kept, Late, Place, Setting};
use faultless_soft::{Cpu, Soft};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

const PAGES: u64 = 8;
const BYTES: u64 = PAGES * PAGE_SIZE;
const MAPPED: VirtAddr = VirtAddr::new(0x1000_0000);

/// Returns the byte that every write stores at this place. It is not zero.
fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9) >> 8) as u8 | 1
}

fn bytes(offset: u64, length: u64) -> Vec<u8> {
    (offset..offset + length).map(byte).collect()
}

/// Returns the next pseudo-random number below `below`, and updates the state.
fn next(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % below
}

/// A file with a count of its truncations. The count is odd during a truncation.
struct Shown {
    file: Shared<File<Soft>>,
    space: AddressSpace<Soft, Faultless>,
    cuts: AtomicU64,
    is_over: AtomicBool,
    checked: AtomicU64,
}

/// Ends all threads when one of them ends, also by a panic.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Shown {
    fn cut(&self, cut: impl FnOnce()) {
        self.cuts.fetch_add(1, Ordering::SeqCst);
        cut();
        self.cuts.fetch_add(1, Ordering::SeqCst);
    }

    /// Reads bytes and checks them. If no truncation ran meanwhile, they must be the written bytes.
    fn check(&self, what: &str, read: impl FnOnce() -> (u64, Vec<u8>)) {
        let before = self.cuts.load(Ordering::SeqCst);
        let (offset, seen) = read();
        if before.is_multiple_of(2) && self.cuts.load(Ordering::SeqCst) == before && !seen.is_empty() {
            assert_eq!(
                seen,
                bytes(offset, seen.len() as u64),
                "{what} at {offset:#x}: a byte that was never written"
            );
            self.checked.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn read_by_handle(&self) {
        let _ends = Ends(&self.is_over);
        let (handle, mut state) = (self.file.handle(), 1);
        while !self.is_over.load(Ordering::SeqCst) {
            let offset = next(&mut state, BYTES);
            let mut seen = vec![0; 1 + next(&mut state, 2 * PAGE_SIZE) as usize];
            self.check("read_at", || {
                let done = handle.read_at(offset, &mut seen).unwrap();
                seen.truncate(done);
                (offset, seen)
            });
        }
    }

    fn read_by_mapping(&self) {
        let _ends = Ends(&self.is_over);
        let mut state = 2;
        while !self.is_over.load(Ordering::SeqCst) {
            let (count, behind) = (1 + next(&mut state, 64), next(&mut state, 100));
            self.check("a load", || {
                // Near the end of the file, where bytes are written and cut off.
                let length = self.file.length();
                let offset = length.saturating_sub(count + behind);
                let mut seen = vec![0; count.min(length - offset) as usize];
                match self.space.read_bytes(VirtAddr::new(MAPPED.get() + offset), &mut seen) {
                    Ok(()) => (offset, seen),
                    // The file was truncated meanwhile.
                    Err(_) => (offset, Vec::new()),
                }
            });
        }
    }

    fn sync(&self) {
        let _ends = Ends(&self.is_over);
        let handle = self.file.handle();
        while !self.is_over.load(Ordering::SeqCst) {
            handle.start_sync();
            handle.start_sync();
            handle.sync().unwrap();
        }
    }
}

/// Runs a writer that appends and sometimes truncates, with two readers and a thread that syncs.
fn readers_beside_a_writer(place: Place) {
    let host = Soft::new(64).unwrap();
    let engine = Engine::new(host, Limits { cached_pages: 2 * PAGES, ..Limits::default() }).unwrap();
    let setting =
        Setting { place, length: 0, is_scarce: false, refuses_lengths: false, refuses_holes: false };
    let kept = Arc::new(Kept::new(Vec::new(), &setting));
    let store: Option<Arc<dyn Store>> = match place {
        Place::Memory | Place::Disk => None,
        Place::Kept => Some(kept.clone()),
        Place::Late => Some(Arc::new(Late::new(kept.clone(), 1).unwrap())),
    };
    let file = match &store {
        Some(store) => File::open_rw(&engine, store.clone()).unwrap(),
        None => File::in_memory(&engine, 0).unwrap(),
    };
    let space = AddressSpace::new(&engine).unwrap();
    let request = MapRequest::shared_file(&file, 0, BYTES, Protection::READ);
    space.map(request.at(Placement::Fixed(MAPPED))).unwrap();
    let shown = Shown {
        file,
        space,
        cuts: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
        checked: AtomicU64::new(0),
    };
    let length = thread::scope(|scope| {
        scope.spawn(|| shown.read_by_handle());
        scope.spawn(|| shown.read_by_mapping());
        if store.is_some() {
            scope.spawn(|| shown.sync());
        }
        let _ends = Ends(&shown.is_over);
        let (handle, mut state, mut length, mut rounds) = (shown.file.handle(), 3, 0, 0);
        // It runs until the readers have checked enough, too.
        while rounds < 1_500 || shown.checked.load(Ordering::Relaxed) < 500 {
            if shown.is_over.load(Ordering::SeqCst) {
                break;
            }
            rounds += 1;
            let count = 1 + next(&mut state, 2 * PAGE_SIZE);
            if length + count > BYTES {
                length = next(&mut state, length);
                shown.cut(|| handle.set_length(length).unwrap());
                continue;
            }
            assert_eq!(handle.write_at(length, &bytes(length, count)).unwrap() as u64, count);
            length += count;
            assert_eq!(shown.file.length(), length);
        }
        length
    });
    shown.file.handle().sync().unwrap();
    assert_eq!(kept.broken(), None, "the store's contract");
    if store.is_some() {
        assert_eq!(kept.bytes(), bytes(0, length), "the store");
    }
}

#[test]
fn readers_of_a_file_in_memory_see_what_was_written() {
    readers_beside_a_writer(Place::Memory);
}

#[test]
fn readers_of_a_file_see_what_was_written() {
    readers_beside_a_writer(Place::Kept);
}

#[test]
fn readers_of_a_file_whose_store_is_late_see_what_was_written() {
    readers_beside_a_writer(Place::Late);
}
