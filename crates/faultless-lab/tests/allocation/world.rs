//! A machine with a space that has every kind of mapping, and functions that read its state.
//!
//! ```text
//! page  10 11 12 13   zeros: written, written, read, untouched
//!       20 21 22 23   a private mapping of a file: read, written, untouched, untouched
//!       30 31 32 33   a shared mapping of a file: written, read, untouched, untouched
//!       40 41         shared memory without a file: written, untouched
//!       50 51 52 53   zeros, written, then only to be read; 52 mapped apart
//!       60            zeros, written; the child of a fork has it too
//!       1024..1028    zeros, where two leaf tables could lie: unmapped together with its table
//!       900          a stack, which grows down
//!       950          a heap of two pages
//! ```

use faultless::address::{PAGE_SIZE, PageNumber, VirtAddr};
use faultless::design::LockingDesign;
use faultless::fault::FaultError;
use faultless::protection::{Protection, Sharing};
use faultless::store::{self, Store, StoreError, Transfer};
use faultless::sync::Shared;
use faultless::vma::MappingFlags;
use faultless::{AddressSpace, Engine, File, FileHandle, Limits, MapRequest, Placement};
use faultless_soft::{AccessError, Cpu, Soft};
use std::sync::{Arc, Mutex};

pub const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);

pub type Space<D> = AddressSpace<Soft, D>;

/// Linux's error numbers.
pub const ENOMEM: i32 = 12;
pub const EAGAIN: i32 = 11;
pub const EFAULT: i32 = 14;

pub fn at(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

/// A file in memory that answers at once without allocating.
struct Bytes(Mutex<Vec<u8>>);

impl Store for Bytes {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn submit(&self, mut transfer: Transfer) {
        let mut bytes = self.0.lock().unwrap();
        let result = transfer.move_pages(|offset, page| {
            let inside = bytes.get_mut(offset as usize..).unwrap_or_default();
            let length = inside.len().min(PAGE_SIZE as usize);
            let inside = &mut inside[..length];
            match page {
                store::Bytes::Read(page) => page[..length].copy_from_slice(inside),
                store::Bytes::Write(page) => inside.copy_from_slice(&page[..length]),
            }
            if length == 0 { Err(StoreError::PastEnd { offset }) } else { Ok(length) }
        });
        drop(bytes);
        transfer.complete(result);
    }

    fn max_pages(&self) -> usize {
        store::MAX_PAGES
    }

    fn set_length(&self, length: u64) -> Result<(), StoreError> {
        let mut bytes = self.0.lock().unwrap();
        // The capacity is already there, see `numbered`.
        bytes.resize(length as usize, 0);
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> Result<(), StoreError> {
        let mut bytes = self.0.lock().unwrap();
        let end = bytes.len().min((offset + length) as usize);
        bytes[offset as usize..end].fill(0);
        Ok(())
    }
}

fn numbered(pages: u64) -> Arc<Bytes> {
    let mut bytes = Vec::with_capacity(2 * (pages * PAGE_SIZE) as usize);
    bytes.extend((0..pages * PAGE_SIZE).map(|n| (n / PAGE_SIZE) as u8 + 1));
    Arc::new(Bytes(Mutex::new(bytes)))
}

pub struct World<D: LockingDesign> {
    // The fields are dropped in this order.
    pub space: Space<D>,
    pub child: Space<D>,
    pub handle: FileHandle<Soft>,
    pub read_only: Shared<File<Soft>>,
    pub writable: Shared<File<Soft>>,
    pub engine: Arc<Engine<Soft>>,
}

impl<D: LockingDesign> World<D> {
    pub fn new() -> Self {
        // With one entry, a table is already shared by fork.
        let limits = Limits { shared_entries: 1, ..Limits::default() };
        let engine = Engine::new(Soft::new(128).unwrap(), limits).unwrap();
        let read_only = File::open(&engine, numbered(4)).unwrap();
        let writable = File::open_rw(&engine, numbered(4)).unwrap();
        let handle = writable.handle();
        let space = Space::new(&engine).unwrap();
        let zeros = |page, pages| {
            space.map(MapRequest::anonymous(pages * PAGE_SIZE).at(Placement::Fixed(at(page)))).unwrap();
        };
        let store = |page, value| space.store_u64(at(page), value).unwrap();
        zeros(60, 1);
        store(60, 600);
        let child = space.fork().unwrap();
        zeros(10, 4);
        store(10, 100);
        store(11, 110);
        space.load_u64(at(12)).unwrap();
        let file = MapRequest::file(&read_only, 0, 4 * PAGE_SIZE, READ_WRITE);
        space.map(file.at(Placement::Fixed(at(20)))).unwrap();
        space.load_u64(at(20)).unwrap();
        store(21, 210);
        let shared = MapRequest::shared_file(&writable, 0, 4 * PAGE_SIZE, READ_WRITE);
        space.map(shared.at(Placement::Fixed(at(30)))).unwrap();
        store(30, 300);
        space.load_u64(at(31)).unwrap();
        space.map(MapRequest::shared_anonymous(2 * PAGE_SIZE).at(Placement::Fixed(at(40)))).unwrap();
        store(40, 400);
        zeros(50, 2);
        zeros(53, 1);
        store(50, 500);
        store(53, 530);
        let other = MapRequest::anonymous(PAGE_SIZE).protection(Protection::READ);
        space.map(other.at(Placement::Fixed(at(52)))).unwrap();
        space.protect(at(50), 2 * PAGE_SIZE, Protection::READ).unwrap();
        zeros(1024, 4);
        store(1024, 1024);
        let stack = MapRequest { flags: MappingFlags::GROWS_DOWN, ..MapRequest::anonymous(PAGE_SIZE) };
        space.map(stack.at(Placement::Fixed(at(900)))).unwrap();
        store(900, 900);
        space.set_heap(at(950));
        space.set_break(at(952)).unwrap();
        store(951, 951);
        engine.flush();
        Self { space, child, handle, read_only, writable, engine }
    }

    /// Returns the number of frames in use.
    pub fn frames(&self) -> u64 {
        self.engine.frame_usage().used
    }

    /// Drops everything and checks that nothing is left.
    pub fn end(self, live_before: i64, what: &dyn std::fmt::Display) {
        let engine = self.engine.clone();
        self.space.audit().unwrap_or_else(|error| panic!("{what}: {error}"));
        self.child.audit().unwrap_or_else(|error| panic!("{what}: the child: {error}"));
        assert_eq!(self.space.taken_ranges(), 0, "{what}: invariant 11: a range is taken");
        assert_eq!(self.child.load_u64(at(60)).unwrap(), 600, "{what}: the child's bytes");
        drop(self);
        engine.flush();
        assert_eq!(engine.frame_usage().used, 1, "{what}: invariant 11: frames are left");
        drop(engine);
        assert_eq!(crate::failing::live(), live_before, "{what}: invariant 11: allocations are left");
    }
}

/// Mapping in the listing. Files are numbered by their first occurrence, because an earlier failed call may have
/// changed their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    pub start: PageNumber,
    pub end: PageNumber,
    pub protection: Protection,
    pub sharing: Sharing,
    pub flags: MappingFlags,
    pub file: Option<(usize, u64)>,
}

/// Returns the listing of the maps.
pub fn listing<D: LockingDesign>(space: &Space<D>) -> Vec<Line> {
    let mut files = Vec::new();
    let line = |info: faultless::MappingInfo| {
        let file = info.file.map(|(id, page)| {
            let known = files.iter().position(|other| *other == id);
            let place = known.unwrap_or(files.len());
            if known.is_none() {
                files.push(id);
            }
            (place, page)
        });
        let (start, end) = (info.range.start(), info.range.end());
        Line { start, end, protection: info.protection, sharing: info.sharing, flags: info.flags, file }
    };
    space.mappings().into_iter().map(line).collect()
}

/// Result of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Value(u64),
    Hole,
    Guard,
    PastEnd,
    Forbidden,
    Exited,
}

/// Returns the first word of every page that a call of these tests may affect.
pub fn bytes<D: LockingDesign>(space: &Space<D>) -> Vec<(u64, Seen)> {
    let pages = (9..70).chain(100..110).chain(1022..1030).chain(890..901).chain(950..955);
    let look = |page| match space.load_u64(at(page)) {
        Ok(value) => Seen::Value(value),
        Err(AccessError::Fault(FaultError::NoMapping { .. })) => Seen::Hole,
        Err(AccessError::Fault(FaultError::Guard { .. })) => Seen::Guard,
        Err(AccessError::Fault(FaultError::PastEnd { .. })) => Seen::PastEnd,
        Err(AccessError::Fault(FaultError::Protection { .. })) => Seen::Forbidden,
        Err(AccessError::Fault(FaultError::Exited { .. })) => Seen::Exited,
        Err(error) => panic!("{error}"),
    };
    pages.map(|page| (page, look(page))).collect()
}
