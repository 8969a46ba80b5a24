//! Frames whose bytes may be in a page of the process.
//!
//! A frame has a buffer in an arena, which no process maps. Once a page can be written, the bytes are in the page, and
//! the frame only knows their place: its *home*. A frame has at most one such page, since a frame that can be written
//! has one mapping. Pages that are mapped for reading are copies of the home, and equal to it.

use crate::kernel::Userfault;
use faultless::address::PAGE_SIZE;
use faultless::frame::Folio;
use faultless::host::{Frame, FrameSource, FrameUsage, FrameUse, GroupId, Sections};
use faultless::sync::Held;
use faultless_soft::{MemoryError, PhysicalMemory};
use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

const PAGE: usize = PAGE_SIZE as usize;

/// The number of homes that are allocated at once.
const CHUNK: usize = 4096;

/// The place of a frame's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Home {
    /// In its buffer.
    #[default]
    Buffer,
    /// The bytes are zeros.
    Zeros,
    /// In the page at this address, which the process writes or has written.
    Page(usize),
    /// The bytes are those of another frame, which does not change until this one is installed.
    CopyOf(Frame),
    /// Nowhere: the program has dropped the page that held them.
    Lost,
}

/// The error for an absent page, as the kernel returns it; see [`Userfault::peek`].
pub(crate) const LOST: Errno = Errno::IO;

type Homes = Box<[Mutex<Home>]>;

/// A frame's home, locked.
pub(crate) struct HomeGuard<'a> {
    home: MutexGuard<'a, Home>,
    _held: Held,
}

impl Deref for HomeGuard<'_> {
    type Target = Home;

    fn deref(&self) -> &Home {
        &self.home
    }
}

impl DerefMut for HomeGuard<'_> {
    fn deref_mut(&mut self) -> &mut Home {
        &mut self.home
    }
}

/// The frames of one machine.
pub struct Frames {
    /// Buffers, folios, and which frames are free.
    memory: PhysicalMemory,
    /// Indexed by frame. A thread that moves a home, or copies from one, holds its lock, perhaps during a system call.
    /// Two faults contend for a home only if they are faults on the same page or on its copies.
    homes: Box<[OnceLock<Homes>]>,
    userfault: Arc<Userfault>,
}

impl Frames {
    pub(crate) fn new(frames: u64, userfault: &Arc<Userfault>) -> Result<Self, MemoryError> {
        let memory = PhysicalMemory::new(frames)?;
        let chunks = (frames as usize).div_ceil(CHUNK);
        let homes = (0..chunks).map(|_| OnceLock::new()).collect();
        Ok(Self { memory, homes, userfault: Arc::clone(userfault) })
    }

    /// Makes each allocation from the `nth` on fail; `None` ends that. For tests.
    pub fn fail_from(&self, nth: Option<u64>) {
        self.memory.fail_from(nth);
    }

    fn place(&self, frame: Frame) -> &Mutex<Home> {
        let number = frame.get() as usize;
        let chunk = self.homes[number / CHUNK].get_or_init(|| (0..CHUNK).map(|_| Mutex::default()).collect());
        &chunk[number % CHUNK]
    }

    /// Locks and returns the frame's home, which does not move while the guard lives.
    pub(crate) fn home(&self, frame: Frame) -> HomeGuard<'_> {
        let home = self.place(frame).lock();
        HomeGuard { home, _held: Held::new() }
    }

    /// Returns the address of the frame's buffer.
    pub(crate) fn buffer(&self, frame: Frame) -> NonNull<u8> {
        // SAFETY: the buffer may be used by this module, and by a thread that holds the lock of the frame's home or
        // owns the frame.
        unsafe { self.memory.memory(frame) }
    }

    /// Fills the absent page at `to` with the bytes of `frame`, whose home is `home`.
    pub(crate) fn copy_out(
        &self,
        frame: Frame,
        home: &Home,
        to: usize,
        protected: bool,
    ) -> Result<(), Errno> {
        match *home {
            Home::Zeros => self.userfault.copy_zeros(to, protected),
            Home::Buffer => {
                let from = self.buffer(frame).as_ptr().expose_provenance();
                self.userfault.copy(to, from, protected)
            }
            // Not UFFDIO_COPY from the page itself: if the program has dropped that page, this thread would wait for a
            // handler.
            Home::Page(from) => {
                let mut bytes = [0; PAGE];
                self.userfault.peek(from, &mut bytes)?;
                self.userfault.copy(to, bytes.as_ptr().expose_provenance(), protected)
            }
            Home::CopyOf(other) => {
                let home = self.home(other);
                self.copy_out(other, &home, to, protected)
            }
            Home::Lost => Err(LOST),
        }
    }

    /// Moves the frame's bytes into its buffer, because the page that has them is about to go or to change hands. If
    /// the program has dropped that page, the home becomes [`Home::Lost`].
    pub(crate) fn bring_home(&self, frame: Frame, home: &mut Home) -> Result<(), Errno> {
        let mut bytes = [0; PAGE];
        match self.bytes(frame, home, 0, &mut bytes) {
            Ok(()) => {
                // SAFETY: the home is elsewhere, so no thread uses the buffer; the caller holds the home's lock.
                unsafe { self.memory.write(frame, 0, &bytes) };
                *home = Home::Buffer;
            }
            Err(Errno::NOMEM) => return Err(Errno::NOMEM),
            Err(_) => *home = Home::Lost,
        }
        Ok(())
    }

    fn bytes(&self, frame: Frame, home: &Home, offset: usize, bytes: &mut [u8]) -> Result<(), Errno> {
        match *home {
            Home::Zeros => bytes.fill(0),
            Home::Buffer => {
                // SAFETY: the caller of `read`, or the entry that is being changed, keeps the frame alive.
                unsafe { self.memory.read(frame, offset, bytes) };
            }
            Home::Page(at) => self.userfault.peek(at + offset, bytes)?,
            Home::CopyOf(other) => {
                let home = self.home(other);
                self.bytes(other, &home, offset, bytes)?;
            }
            Home::Lost => return Err(LOST),
        }
        Ok(())
    }
}

// SAFETY: frames are `PhysicalMemory`'s, each with a buffer of its own.
unsafe impl FrameSource for Frames {
    fn allocate(&self, group: GroupId, purpose: FrameUse) -> Option<Frame> {
        self.memory.allocate(group, purpose)
    }

    unsafe fn free(&self, frame: Frame) {
        *self.home(frame) = Home::Buffer;
        // SAFETY: by the same contract.
        unsafe { self.memory.free(frame) }
    }

    fn folio(&self, frame: Frame) -> &Folio {
        self.memory.folio(frame)
    }

    fn prefetch(&self, frame: Frame) {
        self.memory.prefetch(frame);
    }

    unsafe fn zero(&self, frame: Frame) {
        *self.home(frame) = Home::Zeros;
    }

    unsafe fn copy(&self, from: Frame, to: Frame) {
        *self.home(to) = Home::CopyOf(from);
    }

    unsafe fn memory(&self, frame: Frame) -> NonNull<u8> {
        let mut home = self.home(frame);
        if *home != Home::Buffer {
            // A page of zeros at most: either the caller owns the frame alone, or it is a file's frame, whose home is
            // its buffer.
            let moved = self.bring_home(frame, &mut home);
            debug_assert!(moved.is_ok());
        }
        self.buffer(frame)
    }

    unsafe fn read(&self, frame: Frame, offset: usize, bytes: &mut [u8]) -> usize {
        let count = bytes.len().min(PAGE.saturating_sub(offset));
        let home = self.home(frame);
        match self.bytes(frame, &home, offset, &mut bytes[..count]) {
            Ok(()) => count,
            Err(_) => 0,
        }
    }

    unsafe fn write(&self, frame: Frame, offset: usize, bytes: &[u8]) -> usize {
        let count = bytes.len().min(PAGE.saturating_sub(offset));
        let mut home = self.home(frame);
        if let Home::Page(at) = *home {
            // The page may be write-protected. That is for its process's stores, not for this write. It is protected
            // again afterwards in either case; a store that is allowed then costs a fault.
            let page = at & !(PAGE - 1);
            let written = self.userfault.write_protect(page, PAGE, false).and_then(|()| {
                let written = self.userfault.poke(at + offset, &bytes[..count]);
                self.userfault.write_protect(page, PAGE, true).and(written)
            });
            return if written.is_ok() { count } else { 0 };
        }
        if *home != Home::Buffer && (self.bring_home(frame, &mut home).is_err() || *home == Home::Lost) {
            return 0;
        }
        // SAFETY: by the same contract.
        unsafe { self.memory.write(frame, offset, &bytes[..count]) }
    }

    fn usage(&self) -> FrameUsage {
        self.memory.usage()
    }

    fn watch(&self, sections: &Arc<Sections>, low: u64) {
        self.memory.watch(sections, low);
    }
}
