//! The software machine. Every test runs on it.

use super::Stand;
use super::pressure::{self, Shortage};
use faultless::address::{PAGE_SIZE, VirtAddr};
use faultless::design::LockingDesign;
use faultless::host::Host;
use faultless::swap::CompressedMemory;
use faultless::{AddressSpace, Engine, Limits};
use faultless_soft::Soft;
use std::convert::Infallible;
use std::sync::Arc;

/// The number of pages that fit into swap space.
const SLOTS: u64 = 4096;

impl Stand for Soft {
    type Refused = Infallible;
    type Processor<D: LockingDesign> = AddressSpace<Soft, D>;

    /// The page of zeros.
    const IDLE_FRAMES: u64 = 1;
    const FRAMES_OF_A_LOAD: u64 = 0;
    /// Four levels of 512 entries.
    const PAGES: u64 = 1 << 36;
    /// Far above the last page. An access there is a fault like any other.
    const LAST_WORD: VirtAddr = VirtAddr::new(u64::MAX - 7);

    fn engine(frames: u64, limits: Limits) -> Result<Arc<Engine<Soft>>, Infallible> {
        let soft = Soft::with_caches(frames).expect("frames");
        // With this limit, tests with few pages also use shared tables. A test that gives a limit of its own keeps it.
        let is_given = limits.shared_entries != Limits::default().shared_entries;
        let shared_entries = if is_given { limits.shared_entries } else { 2 };
        let limits = Limits { shared_entries, ..limits };
        let engine = Engine::new(soft, limits).expect("an engine");
        if pressure::is_on() {
            let device = CompressedMemory::new(SLOTS, SLOTS as usize * PAGE_SIZE as usize).expect("a device");
            engine.add_swap(Arc::new(device)).expect("swap");
        }
        if pressure::shortage() == Some(Shortage::Frames) {
            engine.host().frames().make_scarce(Self::IDLE_FRAMES + pressure::FRAMES, pressure::GRANTED);
        }
        Ok(engine)
    }

    fn attach<D: LockingDesign>(space: &AddressSpace<Soft, D>) -> AddressSpace<Soft, D> {
        space.clone()
    }

    fn fail_frames_from(&self, nth: Option<u64>) {
        self.frames().fail_from(nth);
    }
}
