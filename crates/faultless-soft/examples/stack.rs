//! Measures the stack that each call uses. Prints a table, and an error if a call uses more than 4 KiB; a kernel's
//! thread has 8 or 16 KiB for everything. The figures include the engine and all that it calls: the software machine, a
//! store that answers at once, and the allocator.
//!
//! `cargo run --release -p faultless-soft --example stack`

use faultless::address::{PAGE_SIZE, PageNumber, VirtAddr};
use faultless::design::Faultless;
use faultless::protection::{Access, Protection, Sharing};
use faultless::store::{Bytes, Store, StoreError, Transfer};
use faultless::swap::{StoreDevice, SwapDevice};
use faultless::vma::MappingFlags;
use faultless::{
    AddressSpace, Advice, Engine, File, LimitConfig, Limits, LockAll, LockMode, MapRequest, MemoryLimit,
    MoveRequest, Placement, RemapFlags, RemapRequest, SpaceLimits, SyncFlags,
};
use faultless_soft::{Cpu, Soft};
use std::error::Error;
use std::hint::black_box;
use std::sync::{Arc, Mutex, PoisonError};

type Failure = Box<dyn Error + Send + Sync>;
type Space = AddressSpace<Soft, Faultless>;

/// The greatest number of bytes that a call may use.
const MOST: usize = 4096;
/// The number of bytes that are painted below a call.
const PAINTED: usize = 64 << 10;
/// The bytes next to the painter's own frame, which its own calls use.
const NEAR: usize = 256;
const PAINT: u64 = 0x5a5a_a5a5_1234_fedc;
const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);
/// The pages of a leaf table.
const LEAF: u64 = 512;

/// Returns the words from `NEAR` to `PAINTED` bytes below `here`.
fn below(here: usize) -> impl Iterator<Item = *mut u64> {
    (here - PAINTED..here - NEAR).step_by(8).map(|address| (address & !7) as *mut u64)
}

#[inline(never)]
fn paint() {
    let here = 0_u64;
    for word in below((&raw const here).addr()) {
        // SAFETY: this program's thread has a larger stack, and nothing is there yet. The frames below this one are
        // those of calls, and this function makes no call that lasts.
        unsafe { word.write_volatile(PAINT) };
    }
}

/// Returns the number of bytes below its own frame to which `call` has written, and the result of `call`.
#[inline(never)]
fn depth<R>(call: impl FnOnce() -> R) -> (usize, R) {
    let here = black_box(0_u64);
    paint();
    let result = call();
    let here = (&raw const here).addr();
    // SAFETY: painted above, by this thread.
    let deepest = below(here).find(|word| unsafe { word.read_volatile() } != PAINT);
    (deepest.map_or(NEAR, |word| here - word.addr()), result)
}

/// The calls by name, each with the most bytes that it used.
#[derive(Default)]
struct Table(Vec<(&'static str, usize)>);

impl Table {
    fn call<R>(&mut self, name: &'static str, call: impl FnOnce() -> R) -> R {
        let (bytes, result) = depth(call);
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, most)) => *most = bytes.max(*most),
            None => self.0.push((name, bytes)),
        }
        result
    }
}

/// A file in memory that answers at once.
struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn pages(pages: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![1; (pages * PAGE_SIZE) as usize])))
    }
}

impl Store for Memory {
    fn length(&self) -> Result<u64, StoreError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).len() as u64)
    }

    fn submit(&self, mut transfer: Transfer) {
        let offset = transfer.offset() as usize;
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let inside = bytes.get_mut(offset..).unwrap_or_default();
        let length = inside.len().min(PAGE_SIZE as usize);
        match transfer.bytes() {
            Bytes::Read(page) => page[..length].copy_from_slice(&inside[..length]),
            Bytes::Write(page) => inside[..length].copy_from_slice(&page[..length]),
        }
        drop(bytes);
        transfer.complete(Ok(length));
    }

    fn set_length(&self, length: u64) -> Result<(), StoreError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).resize(length as usize, 0);
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> Result<(), StoreError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[offset as usize..][..length as usize].fill(0);
        Ok(())
    }
}

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

fn bytes(pages: u64) -> u64 {
    pages * PAGE_SIZE
}

fn fixed(request: MapRequest<Soft>, page: u64) -> MapRequest<Soft> {
    request.at(Placement::Fixed(at(page)))
}

fn anonymous(pages: u64, page: u64) -> MapRequest<Soft> {
    fixed(MapRequest::anonymous(bytes(pages)), page)
}

fn engine(table: &mut Table, cached_pages: u64) -> Result<Arc<Engine<Soft>>, Failure> {
    let (soft, limits) = (Soft::new(1 << 14)?, Limits { cached_pages, ..Limits::default() });
    Ok(table.call("Engine::new", || Engine::new(soft, limits))?)
}

/// Maps many mappings, so that the tree has levels and changes build nodes.
fn crowd(space: &Space) -> Result<(), Failure> {
    for n in 0..3000 {
        space.map(anonymous(1, (1 << 20) + n * 2))?;
    }
    Ok(())
}

/// Calls in a space that is four times as large as memory, with a swap device.
fn pressure(table: &mut Table) -> Result<(), Failure> {
    const FRAMES: u64 = 64;
    let engine = Engine::new(Soft::new(FRAMES)?, Limits::default())?;
    let device: Arc<dyn SwapDevice> = Arc::new(StoreDevice::new(Memory::pages(8 * FRAMES))?);
    table.call("Engine::add_swap", || engine.add_swap(device.clone()))?;
    let space = Space::new(&engine)?;
    space.map(anonymous(4 * FRAMES, 0))?;
    for page in 0..4 * FRAMES {
        table.call("fault: a page is swapped out", || space.fault_and_wait(at(page), Access::Write))?;
        space.store_u64(at(page), page)?;
        space.store_u64(VirtAddr::new(at(page).get() + 8), 1)?;
    }
    for page in 0..4 * FRAMES {
        table.call("fault: a page is swapped in", || space.fault_and_wait(at(page), Access::Read))?;
    }
    table.call("fault: store to a page in a slot", || space.fault_and_wait(at(0), Access::Write))?;
    let child = space.fork()?;
    (0..4 * FRAMES).try_for_each(|page| {
        table.call("fault: swapped out of a shared table", || child.fault_and_wait(at(page), Access::Read))
    })?;
    drop(child);
    for (name, advice) in
        [("advise: Cold", Advice::Cold), ("advise: PageOut", Advice::PageOut), ("advise: Free", Advice::Free)]
    {
        table.call(name, || space.advise(at(0), bytes(4 * FRAMES), advice))?;
    }
    (0..FRAMES).try_for_each(|page| space.store_u64(at(page), page))?;
    space.map(anonymous(16, LEAF * 4))?;
    let request = MoveRequest::new(at(0), bytes(16), at(LEAF * 4));
    table.call("move_pages", || space.move_pages(request))?;
    let child = space.fork()?;
    table.call("unshare", || child.unshare(at(16), bytes(16)))?;
    child.unmap(at(32), bytes(4 * FRAMES))?;
    table.call("isolate_cowed", || child.isolate_cowed(at(0), bytes(32)))?;
    table.call("reap", || child.reap());
    drop((child, space));
    let limit = table.call("MemoryLimit::new", || MemoryLimit::new(&engine, LimitConfig::max(32)))?;
    let group = table.call("MemoryLimit::child", || limit.child(LimitConfig { high: 16, max: 32 }))?;
    let space = table.call("AddressSpace::new_in", || Space::new_in(&engine, &group))?;
    space.map(anonymous(FRAMES, 0))?;
    for page in 0..FRAMES {
        table.call("fault: a group at its limit", || space.fault_and_wait(at(page), Access::Write))?;
        space.store_u64(VirtAddr::new(at(page).get() + 8), page)?;
    }
    table.call("MemoryLimit::set", || group.set(LimitConfig::max(16)))?;
    table.call("MemoryLimit::usage", || limit.usage());
    table.call("Engine::reclaim", || engine.reclaim(8));
    space.exit();
    table.call("Engine::remove_swap", || engine.remove_swap(&device))?;
    Ok(())
}

fn memory(table: &mut Table) -> Result<(), Failure> {
    let engine = engine(table, u64::MAX)?;
    let space = table.call("AddressSpace::new", || Space::new(&engine))?;
    crowd(&space)?;
    table.call("map", || space.map(anonymous(4 * LEAF, 0)))?;
    table.call("map: anywhere", || space.map(MapRequest::anonymous(bytes(2))))?;
    table.call("map: shared", || space.map(MapRequest::shared_anonymous(bytes(2))))?;
    table.call("map: populated", || space.map(MapRequest { populate: true, ..anonymous(8, 5000) }))?;
    let fault = |page, access| space.fault_and_wait(at(page), access);
    table.call("fault: first store, first table", || fault(3, Access::Write))?;
    table.call("fault: first store", || fault(4, Access::Write))?;
    table.call("fault: zeros", || fault(5, Access::Read))?;
    table.call("fault: store to zeros", || fault(5, Access::Write))?;
    table.call("fault: nothing to do", || fault(5, Access::Write))?;
    table.call("fault: no mapping", || fault(1 << 30, Access::Write)).unwrap_err();
    (0..4 * LEAF).try_for_each(|page| fault(page, Access::Write))?;
    table.call("protect: a page", || space.protect(at(9), bytes(1), Protection::READ))?;
    table.call("protect: tables", || space.protect(at(0), bytes(4 * LEAF), Protection::READ))?;
    table.call("protect: tables", || space.protect(at(0), bytes(4 * LEAF), READ_WRITE))?;
    table.call("discard", || space.discard(at(20), bytes(2)))?;
    table.call("discard: tables", || space.discard(at(LEAF), bytes(LEAF)))?;
    let free = [("advise: DontNeed", Advice::DontNeed), ("advise: WillNeed", Advice::WillNeed)];
    let flags = [("advise: DontFork", Advice::DontFork), ("advise: DoFork", Advice::DoFork)];
    let guards =
        [("advise: GuardInstall", Advice::GuardInstall), ("advise: GuardRemove", Advice::GuardRemove)];
    let populate =
        [("advise: PopulateRead", Advice::PopulateRead), ("advise: PopulateWrite", Advice::PopulateWrite)];
    for (name, advice) in [free, flags, guards, populate].concat() {
        table.call(name, || space.advise(at(30), bytes(3), advice))?;
    }
    table.call("lock", || space.lock(at(40), bytes(3), LockMode::Now))?;
    table.call("unlock", || space.unlock(at(40), bytes(3)))?;
    table.call("lock_all", || space.lock_all(LockAll::CURRENT | LockAll::FUTURE | LockAll::ON_FAULT))?;
    table.call("unlock_all", || space.unlock_all())?;
    table.call("pin", || space.pin(at(3), Access::Write).map(drop))?;
    let mut buffer = vec![0; bytes(3) as usize];
    table.call("read_remote", || space.read_remote(at(3), &mut buffer))?;
    table.call("write_remote", || space.write_remote(at(3), &buffer))?;
    table.call("resident", || space.resident(at(0), bytes(9)))?;
    table.call("mappings", || space.mappings());
    table.call("mapping_from", || space.mapping_from(PageNumber::new(0)));
    table.call("usage", || space.usage());
    table.call("set_limits", || space.set_limits(SpaceLimits::default()));
    let sealed = space.map(MapRequest::anonymous(bytes(1)))?;
    table.call("seal", || space.seal(sealed, bytes(1)))?;
    table.call("unmap: a page", || space.unmap(at(50), bytes(1)))?;
    table.call("map: over pages", || space.map(anonymous(4, 60)))?;
    table.call("unmap: tables", || space.unmap(at(3 * LEAF), bytes(LEAF)))?;
    let flags = RemapFlags::MAY_MOVE | RemapFlags::DONT_UNMAP;
    let to = |page, pages, new| RemapRequest::to(at(page), bytes(pages), at(new));
    let remaps = [
        ("remap: shrink", RemapRequest::resize(at(100), bytes(8), bytes(4))),
        ("remap: grow and move", RemapRequest::resize(at(110), bytes(8), bytes(800))),
        ("remap: to", to(130, 8, 9000)),
        ("remap: several mappings", to(61, 30, 10_000)),
        ("remap: tables", to(LEAF * 2, LEAF, 20 * LEAF)),
        ("remap: DONT_UNMAP", RemapRequest { flags, ..to(150, 8, 0) }),
    ];
    for (name, request) in remaps {
        table.call(name, || space.remap(request))?;
    }
    space.set_heap(at(1 << 16));
    table.call("set_break", || space.set_break(at((1 << 16) + 9)))?;
    table.call("set_break", || space.set_break(at((1 << 16) + 3)))?;
    Ok(())
}

fn forks(table: &mut Table) -> Result<(), Failure> {
    let engine = engine(table, u64::MAX)?;
    let space = Space::new(&engine)?;
    crowd(&space)?;
    space.map(anonymous(3 * LEAF, 0))?;
    for page in (0..LEAF).chain([LEAF, LEAF + 1]) {
        space.fault_and_wait(at(page), Access::Write)?;
    }
    let child = table.call("fork", || space.fork())?;
    table.call("fault: copy of a shared table", || child.fault_and_wait(at(3), Access::Write))?;
    table.call("fault: copy of a page", || child.fault_and_wait(at(LEAF), Access::Write))?;
    table.call("fault: reuse of a page", || space.fault_and_wait(at(LEAF), Access::Write))?;
    table.call("exit", || child.exit());
    table.call("drop of a space", || drop(child));
    let child = space.fork()?;
    table.call("unmap: shared tables", || child.unmap(at(0), bytes(LEAF)))?;
    table.call("drop of a space", || drop(child));
    let child = space.fork()?;
    table.call("remap: shared tables", || child.remap(RemapRequest::to(at(0), bytes(9), at(LEAF * 90))))?;
    table.call("protect: shared tables", || child.protect(at(10), bytes(9), Protection::READ))?;
    table.call("discard: shared tables", || child.discard(at(20), bytes(9)))?;
    table.call("drop of a space", || drop(child));
    let stack = MapRequest { flags: MappingFlags::GROWS_DOWN, ..anonymous(2, LEAF * 60) };
    space.map(stack)?;
    table.call("fault: a stack grows", || space.fault_and_wait(at(LEAF * 60 - 3), Access::Write))?;
    table.call("drop of a space", || drop(space));
    table.call("Engine::flush", || engine.flush());
    table.call("Engine::statistics", || engine.statistics());
    table.call("Engine::metadata_bytes", || engine.metadata_bytes());
    Ok(())
}

fn files(table: &mut Table) -> Result<(), Failure> {
    // The cache is small, so that reads evict, and write dirty pages back.
    let engine = engine(table, 48)?;
    let file = table.call("File::open_rw", || File::open_rw(&engine, Memory::pages(64)))?;
    let plain = table.call("File::in_memory", || File::in_memory(&engine, bytes(8)))?;
    let handle = table.call("File::handle", || file.handle());
    let space = Space::new(&engine)?;
    crowd(&space)?;
    let request = || MapRequest::file(&file, 0, bytes(64), READ_WRITE);
    table.call("map: file", || space.map(fixed(request(), 0)))?;
    let shared = || MapRequest::shared_file(&file, 0, bytes(64), READ_WRITE);
    table.call("map: shared file", || space.map(fixed(shared(), 100)))?;
    space.map(fixed(MapRequest::shared_file(&plain, 0, bytes(8), READ_WRITE), 200))?;
    let handles = MapRequest::handle(&Arc::new(file.handle()), 0, bytes(8), READ_WRITE, Sharing::Shared);
    table.call("map: handle", || space.map(fixed(handles, 300)))?;
    let fault = |page, access| space.fault_and_wait(at(page), access);
    table.call("fault: page of a file, read", || fault(3, Access::Read))?;
    table.call("fault: page of a file, there", || fault(103, Access::Read))?;
    table.call("fault: store to a shared file", || fault(103, Access::Write))?;
    table.call("fault: copy of a file's page", || fault(3, Access::Write))?;
    table.call("fault: file in memory", || fault(203, Access::Write))?;
    table.call("sync of a range", || space.sync(at(100), bytes(9), SyncFlags::SYNC))?;
    let mut buffer = vec![7; bytes(20) as usize];
    for first in [0, 20, 40, 0, 20, 40] {
        (first..first + 20).try_for_each(|page| fault(100 + page, Access::Write))?;
        space.discard(at(100), bytes(64))?;
        table.call("write_at", || handle.write_at(bytes(first), &buffer))?;
        table.call("read_at, with room made", || handle.read_at(bytes(first), &mut buffer))?;
    }
    type Call<'a> = &'a dyn Fn(u64) -> Result<(), Failure>;
    let making_room: [(&'static str, Call<'_>); 4] = [
        ("fault: room is made", &|page| Ok(fault(page, Access::Read)?)),
        ("populate: room is made", &|page| Ok(space.advise(at(page), bytes(1), Advice::PopulateRead)?)),
        ("pin: room is made", &|page| space.pin(at(page), Access::Read).map(drop).map_err(From::from)),
        ("read_remote: room is made", &|page| {
            space.read_remote(at(page), &mut [0; 9]).map(drop).map_err(From::from)
        }),
    ];
    // Repeated: the page that must be written before there is room depends on earlier evictions.
    for (name, call) in [making_room; 3].into_iter().flatten() {
        for first in [0, 20, 40] {
            (first..first + 20).try_for_each(|page| fault(100 + page, Access::Write))?;
            space.discard(at(100), bytes(64))?;
        }
        for page in (0..64).rev() {
            table.call(name, || call(page))?;
            space.discard(at(page), bytes(1))?;
        }
    }
    handle.write_at(0, &buffer)?;
    table.call("write behind the end", || handle.write_at(bytes(64), &buffer))?;
    table.call("start_sync", || handle.start_sync());
    table.call("FileHandle::sync", || handle.sync())?;
    handle.write_at(5, &buffer)?;
    table.call("File::sync", || file.sync())?;
    table.call("refresh", || file.refresh(0, bytes(9)))?;
    (100..120).try_for_each(|page| fault(page, Access::Write))?;
    table.call("punch_hole", || handle.punch_hole(bytes(1) + 5, bytes(9)))?;
    table.call("advise: Remove", || space.advise(at(100), bytes(3), Advice::Remove))?;
    (100..120).try_for_each(|page| fault(page, Access::Write))?;
    table.call("FileHandle::set_length", || handle.set_length(bytes(8) + 5))?;
    table.call("FileHandle::set_length", || handle.set_length(bytes(90)))?;
    table.call("fork: files", || space.fork().map(drop))?;
    handle.write_at(0, &buffer)?;
    fault(105, Access::Write)?;
    table.call("unmap: file", || space.unmap(at(100), bytes(64)))?;
    drop(space);
    table.call("drop of a handle", || drop(handle));
    table.call("drop of a file", || drop(file));
    engine.flush();
    Ok(())
}

fn measure() -> Result<Table, Failure> {
    let mut table = Table::default();
    pressure(&mut table)?;
    memory(&mut table)?;
    forks(&mut table)?;
    files(&mut table)?;
    Ok(table)
}

fn main() -> Result<(), Failure> {
    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(measure)?;
    let mut table = thread.join().map_err(|_| "the measuring thread panicked")??;
    table.0.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    println!("{:<34} bytes of stack", "call");
    table.0.iter().for_each(|(name, bytes)| println!("{name:<34} {bytes:>6}"));
    match table.0.iter().find(|(_, bytes)| *bytes > MOST) {
        None => Ok(()),
        Some((name, bytes)) => {
            Err(format!("`{name}` uses {bytes} bytes of stack; the limit is {MOST}").into())
        }
    }
}
