//! Pages, and the threads that touch them.

use crate::trouble::Trouble;
use faultless::address::PAGE_SIZE;
use rustix::fd::AsFd;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::ptr::NonNull;
use std::sync::Barrier;
use std::time::{Duration, Instant};

pub const PAGE: usize = PAGE_SIZE as usize;

/// One touch in this number is timed: reading the clock around each would cost too much.
const TIMED: usize = 8;

/// Returns the byte of which page `page` of the file is full.
pub fn byte_of(page: usize) -> u8 {
    (page % 251) as u8 + 1
}

/// The byte that is stored before a snapshot, and the byte that the timed threads store.
pub const BEFORE: u8 = 7;
pub const AFTER: u8 = 8;

/// Memory that the kernel maps. Dropping unmaps it.
pub struct Mapping {
    start: NonNull<u8>,
    pages: usize,
}

impl Mapping {
    /// Maps private anonymous memory in pages of 4 KiB.
    pub fn anonymous(pages: usize, populate: bool) -> Result<Self, Trouble> {
        let mut flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        flags.set(MapFlags::POPULATE, populate);
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: new pages, wherever the kernel finds room.
        let start = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), pages * PAGE, rights, flags) };
        let mapping = Self::new(start, pages)?;
        // SAFETY: the mapping's own pages. A kernel without huge pages returns EINVAL, which is ignored.
        let _ = unsafe {
            rustix::mm::madvise(mapping.start.as_ptr().cast(), pages * PAGE, Advice::LinuxNoHugepage)
        };
        Ok(mapping)
    }

    /// Maps a file's pages privately.
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

    /// Drops the pages and returns their memory to the kernel.
    pub fn discard(&self) -> Result<(), Trouble> {
        // SAFETY: the mapping's own pages, into which there are no references.
        unsafe { rustix::mm::madvise(self.start.as_ptr().cast(), self.bytes(), Advice::LinuxDontNeed) }
            .map_err(|errno| Trouble::system("madvise", errno))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping's own pages, into which there are no references.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes()) };
    }
}

/// The address of pages that threads touch.
#[derive(Clone, Copy)]
pub struct Touched(*mut u8);

// SAFETY: an address; `store` and `load` state why accesses are allowed.
unsafe impl Send for Touched {}
// SAFETY: as above.
unsafe impl Sync for Touched {}

/// The kind of touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load of the page's first byte, which is the file's or zero.
    Read { file: bool },
    /// A store to the page's first byte.
    Write,
}

/// The times of a run of touches.
pub struct Touches {
    pub wall: Duration,
    /// The times of some single touches, in nanoseconds.
    pub singles: Vec<u64>,
}

impl Touched {
    pub fn new(start: *mut u8) -> Self {
        Self(start)
    }

    /// Stores [`BEFORE`] in the first byte of `pages` pages, one after the other.
    pub fn fill(self, pages: usize) {
        (0..pages).for_each(|page| self.store(page, BEFORE));
    }

    fn store(self, page: usize, byte: u8) {
        // SAFETY: the maker of this value keeps the page mapped while it is used, and has no reference into it. One
        // thread at a time uses each page.
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

    /// Touches the pages of `order`, divided among `threads` threads.
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
            return Err(Trouble::Wrong("a page had a wrong first byte".into()));
        }
        let begun = done.iter().map(|(begun, ..)| *begun).min();
        let ended = done.iter().map(|(_, ended, ..)| *ended).max();
        let wall = begun.zip(ended).map_or(Duration::ZERO, |(begun, ended)| ended - begun);
        Ok(Touches { wall, singles: done.into_iter().flat_map(|(.., singles, _)| singles).collect() })
    }
}

/// Returns the numbers below `pages` in a pseudo-random order that `seed` determines.
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
