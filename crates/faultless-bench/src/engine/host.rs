//! The software machine with a choice of the time at which frames are zeroed, to measure a fault with and without
//! zeroing. One type serves both, because each locking design's engine is compiled for each host type.
#![allow(unsafe_code)]

use faultless::frame::Folio;
use faultless::host::{
    Frame, FrameSource, FrameUsage, FrameUse, GroupId, OutOfMemory, StdHost, StdPark, StdServices,
};
use faultless::sync::Sections;
use faultless_soft::{MemoryError, PhysicalMemory, RadixTable, Stale};
use std::ptr::NonNull;
use std::sync::Arc;

/// The time at which a frame is zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// In the fault that takes it, as a kernel usually does.
    InFault,
    /// When it is freed, so that free frames are zeros (Linux: `init_on_free`).
    Ahead,
}

/// [`faultless_soft::Soft`] with other frames.
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

// SAFETY: each field is returned as it is and does not move; each keeps its own contract.
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

/// [`PhysicalMemory`] that can zero frames when they are freed.
pub struct Frames {
    memory: PhysicalMemory,
    zeroing: Zeroing,
}

// SAFETY: the frames are the memory's own; only zeroing may be done earlier.
unsafe impl FrameSource for Frames {
    fn allocate(&self, group: GroupId, purpose: FrameUse) -> Option<Frame> {
        self.memory.allocate(group, purpose)
    }

    unsafe fn free(&self, frame: Frame) {
        // SAFETY: by the same contract, the caller owns the frame alone.
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

    /// Does nothing with `Ahead`: the frame is zeros, since it was never used (the operating system has zeroed it) or
    /// since `free` has zeroed it. Builds with debug assertions overwrite free frames, so there it does zero.
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

    fn watch(&self, sections: &Arc<Sections>, low: u64) {
        self.memory.watch(sections, low);
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
                // SAFETY: the frame was just allocated, and no other code uses it.
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
