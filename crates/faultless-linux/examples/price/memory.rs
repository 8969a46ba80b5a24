//! Pages, and threads that touch them.

use crate::trouble::Trouble;
use faultless::address::PAGE_SIZE;
use rustix::fd::AsFd;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::ptr::NonNull;
use std::sync::Barrier;
use std::time::{Duration, Instant};

pub const PAGE: usize = PAGE_SIZE as usize;

/// One touch in so many is timed by itself: the clock would cost too much around each.
const TIMED: usize = 8;

/// What page `page` of the file is full of.
pub fn byte_of(page: usize) -> u8 {
    (page % 251) as u8 + 1
}

/// What is stored before a snapshot, and by threads.
pub const BEFORE: u8 = 7;
pub const AFTER: u8 = 8;

/// Memory that the kernel maps. Unmapped when dropped.
pub struct Mapping {
    start: NonNull<u8>,
    pages: usize,
}

impl Mapping {
    /// Anonymous and private, in pages of 4 KiB.
    pub fn anonymous(pages: usize, populate: bool) -> Result<Self, Trouble> {
        let mut flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        flags.set(MapFlags::POPULATE, populate);
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: new pages, wherever the kernel finds room.
        let start = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), pages * PAGE, rights, flags) };
        let mapping = Self::new(start, pages)?;
        // SAFETY: the mapping's own pages. A kernel without huge pages says EINVAL, and has none.
        let _ = unsafe {
            rustix::mm::madvise(mapping.start.as_ptr().cast(), pages * PAGE, Advice::LinuxNoHugepage)
        };
        Ok(mapping)
    }

    /// A file's pages, private.
    pub fn file(pages: usize, file: impl AsFd) -> Result<Self, Trouble> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        let none = std::ptr::null_mut();
        // SAFETY: new pages, wherever the kernel finds room; the file is this process's own, and keeps its length.
        let start = unsafe { rustix::mm::mmap(none, pages * PAGE, rights, MapFlags::PRIVATE, file, 0) };
        Self::new(start, pages)
    }

    fn new(start: rustix::io::Result<*mut std::ffi::c_void>, pages: usize) -> Result<Self, Trouble> {
        let start = start.map_err(|errno| Trouble::system("mmap", errno))?;
        let start = NonNull::new(start.cast()).ok_or(Trouble::Cannot("mmap gave the address zero".into()))?;
        Ok(Self { start, pages })
    }

    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub fn bytes(&self) -> usize {
        self.pages * PAGE
    }

    pub fn touched(&self) -> Touched {
        Touched::new(self.start())
    }

    /// Gives the pages back.
    pub fn discard(&self) -> Result<(), Trouble> {
        // SAFETY: the mapping's own pages, into which no reference lives.
        unsafe { rustix::mm::madvise(self.start.as_ptr().cast(), self.bytes(), Advice::LinuxDontNeed) }
            .map_err(|errno| Trouble::system("madvise", errno))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping's own pages, into which no reference lives.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes()) };
    }
}

/// Where pages are that threads touch.
#[derive(Clone, Copy)]
pub struct Touched(*mut u8);

// SAFETY: an address; `touch` says why accesses are right.
unsafe impl Send for Touched {}
// SAFETY: as above.
unsafe impl Sync for Touched {}

/// How a page is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load of its first byte, which is the file's or zero.
    Read { file: bool },
    /// A store of its first byte.
    Write,
}

/// What threads met.
pub struct Touches {
    pub wall: Duration,
    /// Of some single touches, in nanoseconds.
    pub singles: Vec<u64>,
}

impl Touched {
    pub fn new(start: *mut u8) -> Self {
        Self(start)
    }

    /// Stores [`BEFORE`] in the first byte of so many pages, one after the other.
    pub fn fill(self, pages: usize) {
        (0..pages).for_each(|page| self.store(page, BEFORE));
    }

    fn store(self, page: usize, byte: u8) {
        // SAFETY: whoever made this has the page mapped for as long as it is used, and no reference into it; each page is
        // one thread's at a time.
        unsafe { self.0.add(page * PAGE).write_volatile(byte) }
    }

    pub fn load(self, page: usize) -> u8 {
        // SAFETY: as above.
        unsafe { self.0.add(page * PAGE).read_volatile() }
    }

    fn once(self, page: usize, access: Access) -> bool {
        match access {
            Access::Write => self.store(page, AFTER),
            Access::Read { file } => return self.load(page) == if file { byte_of(page) } else { 0 },
        }
        true
    }

    /// Touches the pages of `order`, shared out over so many threads.
    pub fn touch(self, order: &[usize], access: Access, threads: usize) -> Result<Touches, Trouble> {
        let start = Barrier::new(threads);
        let part = order.len().div_ceil(threads);
        let run = |pages: &[usize]| {
            let mut singles = Vec::with_capacity(pages.len() / TIMED + 1);
            start.wait();
            let begun = Instant::now();
            let mut right = true;
            for some in pages.chunks(TIMED) {
                let [first, rest @ ..] = some else { continue };
                let single = Instant::now();
                right &= self.once(*first, access);
                singles.push(single.elapsed().as_nanos() as u64);
                for page in rest {
                    right &= self.once(*page, access);
                }
            }
            (begun, Instant::now(), singles, right)
        };
        let done: Vec<_> = std::thread::scope(|scope| {
            let mut parts = order.chunks(part);
            let own = parts.next().unwrap_or_default();
            let others: Vec<_> = parts.map(|pages| scope.spawn(|| run(pages))).collect();
            let own = run(own);
            let others = others.into_iter().map(|thread| thread.join().expect("threads do not panic"));
            std::iter::once(own).chain(others).collect()
        });
        if done.iter().any(|(.., right)| !right) {
            return Err(Trouble::Wrong("a page had bytes that are not its own".into()));
        }
        let begun = done.iter().map(|(begun, ..)| *begun).min();
        let ended = done.iter().map(|(_, ended, ..)| *ended).max();
        let wall = begun.zip(ended).map_or(Duration::ZERO, |(begun, ended)| ended - begun);
        Ok(Touches { wall, singles: done.into_iter().flat_map(|(.., singles, _)| singles).collect() })
    }
}

/// Numbers below `pages` in an order of no pattern, by `seed`.
pub fn shuffled(pages: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..pages).collect();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for last in (1..pages).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(last, (state % (last as u64 + 1)) as usize);
    }
    order
}
