//! The software machine, with frames that are zeroed when they go out or were zeroed when they came back: what a fault
//! costs with the zeros and without. One type for both, because each locking design's engine is compiled for each host.
#![allow(unsafe_code)]

use faultless::frame::Folio;
use faultless::host::{
    Frame, FrameSource, FrameUsage, FrameUse, GroupId, OutOfMemory, StdHost, StdPark, StdServices,
};
use faultless::sync::Sections;
use faultless_soft::{MemoryError, PhysicalMemory, RadixTable, Stale};
use std::ptr::NonNull;
use std::sync::Arc;

/// When a frame is zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// By the fault that takes it, as a kernel usually does.
    InFault,
    /// When it comes back, so that free frames are zeros (Linux: `init_on_free`).
    Ahead,
}

/// [`faultless_soft::Soft`], but for its frames.
pub struct Machine {
    frames: Frames,
    services: StdServices,
}

impl Machine {
    pub fn new(frames: u64, zeroing: Zeroing) -> Result<Self, MemoryError> {
        Ok(Self {
            frames: Frames { memory: PhysicalMemory::new(frames)?, zeroing },
            services: StdServices::default(),
        })
    }
}

// SAFETY: the fields are given out as they are, and stay; each keeps its own contract.
unsafe impl StdHost for Machine {
    type Table = RadixTable;
    type Frames = Frames;
    type Park = StdPark;

    fn frames(&self) -> &Frames {
        &self.frames
    }

    fn services(&self) -> &StdServices {
        &self.services
    }

    fn new_table(&self, sections: &Arc<Sections>) -> Result<RadixTable, OutOfMemory> {
        RadixTable::new(Arc::clone(sections))
    }

    fn invalidate_all(&self, sections: &Sections, batch: &mut [Stale], wait: impl FnMut(u32)) {
        Stale::wait_for_all(sections, batch, wait);
    }
}

/// [`PhysicalMemory`], zeroed at another time.
pub struct Frames {
    memory: PhysicalMemory,
    zeroing: Zeroing,
}

// SAFETY: the memory's own, but that zeroing may be done earlier.
unsafe impl FrameSource for Frames {
    fn allocate(&self, group: GroupId, purpose: FrameUse) -> Option<Frame> {
        self.memory.allocate(group, purpose)
    }

    unsafe fn free(&self, frame: Frame) {
        // SAFETY: by the same contract: the caller has the frame alone.
        unsafe {
            if self.zeroing == Zeroing::Ahead {
                self.memory.zero(frame);
            }
            self.memory.free(frame);
        }
    }

    fn folio(&self, frame: Frame) -> &Folio {
        self.memory.folio(frame)
    }

    fn prefetch(&self, frame: Frame) {
        self.memory.prefetch(frame);
    }

    /// Ahead, it is zeros: never used, which the operating system has zeroed, or zeroed by `free`. But builds with debug
    /// assertions spoil what is free.
    unsafe fn zero(&self, frame: Frame) {
        if self.zeroing == Zeroing::InFault || cfg!(debug_assertions) {
            // SAFETY: by the same contract.
            unsafe { self.memory.zero(frame) }
        }
    }

    unsafe fn copy(&self, from: Frame, to: Frame) {
        // SAFETY: by the same contract.
        unsafe { self.memory.copy(from, to) }
    }

    unsafe fn memory(&self, frame: Frame) -> NonNull<u8> {
        // SAFETY: by the same contract.
        unsafe { self.memory.memory(frame) }
    }

    unsafe fn read(&self, frame: Frame, offset: usize, bytes: &mut [u8]) -> usize {
        // SAFETY: by the same contract.
        unsafe { self.memory.read(frame, offset, bytes) }
    }

    unsafe fn write(&self, frame: Frame, offset: usize, bytes: &[u8]) -> usize {
        // SAFETY: by the same contract.
        unsafe { self.memory.write(frame, offset, bytes) }
    }

    fn usage(&self) -> FrameUsage {
        self.memory.usage()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_goes_out_again_is_zeros() {
        for zeroing in [Zeroing::InFault, Zeroing::Ahead] {
            let frames = Frames { memory: PhysicalMemory::new(1).unwrap(), zeroing };
            for _ in 0..3 {
                let frame = frames.allocate(GroupId::ROOT, FrameUse::Anonymous).unwrap();
                let mut bytes = [1; 4096];
                // SAFETY: given out just now, and nobody else knows it.
                unsafe {
                    frames.zero(frame);
                    assert_eq!(frames.read(frame, 0, &mut bytes), 4096);
                    frames.write(frame, 0, &[7; 4096]);
                    frames.free(frame);
                }
                assert_eq!(bytes, [0; 4096]);
            }
        }
    }
}
