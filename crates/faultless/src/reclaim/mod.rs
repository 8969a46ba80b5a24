//! Reclaim: takes frames back from spaces.
//!
//! ```text
//!  folio ──home──► record of a leaf table ──mark──► space ──► the entry
//!         in one read section, without a lock or a handle of the space
//! ```
//!
//! | file | |
//! |---|---|
//! | `walk.rs` | the steps for a batch of folios |
//! | `file_pages.rs` | a mapped page of a file |
//! | `shared_table.rs` | a page of a leaf table that several spaces share |
//! | `space_head.rs` | a space, as reclaim sees it: without its locking design |
//! | `ageing.rs` | gathers the pages that faults have made, asks the policy, takes reports |
//! | `policy.rs` | the interface of a policy: the order in which pages are tried |
//! | `small_main.rs` | the default policy |
//! | `generations.rs` | a second policy |
//! | `order.rs` | the policies by name, and the one of an engine |
//! | `queue.rs` | stacks of arrivals and queues, linked through the folios |
//!
//! The count of uses of a page is in its folio: `frame/uses.rs`.

pub(crate) mod ageing;
mod file_pages;
mod generations;
mod order;
pub(crate) mod policy;
pub(crate) mod queue;
mod shared_table;
mod small_main;
mod space_head;
mod walk;

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, feature = "std", not(loom)))]
mod tests;

use crate::engine::Engine;
use crate::frame::Folio;
use crate::host::{Frame, Host, Slots};
use crate::sync::{Mutex, Section, plain};
use ageing::Ageing;
pub(crate) use ageing::BATCH;
use alloc::sync::Arc;
pub(crate) use file_pages::Taking;
use order::Policy;
pub use order::ReclaimOrder;
pub(crate) use policy::Shadow;
use policy::{Demand, Report};
use queue::{Distance, Folios};
pub(crate) use space_head::{Refusal, SpaceHead, Victim, VictimKind};
pub(crate) use walk::{Kinds, Reclaimed};

/// The state of an engine's reclaim.
pub(crate) struct Reclaim {
    ageing: Mutex<Ageing<Policy>>,
    /// The number of threads that reclaim. Atomic.
    reclaimers: plain::AtomicU64,
    /// The number of pages that were evicted. Atomic.
    evictions: plain::AtomicU64,
    /// Whether the last victims are to be taken even if they are young. Atomic; written under the lock of `ageing`.
    takes_young: plain::AtomicBool,
}

impl Reclaim {
    /// Makes the state of a reclaim that tries pages in this order.
    pub fn new(order: ReclaimOrder) -> Self {
        let (reclaimers, evictions, takes_young) = Default::default();
        Self { ageing: Mutex::new(Ageing::new(Policy::new(order))), reclaimers, evictions, takes_young }
    }
}

impl<H: Host> Folios for Engine<H> {
    #[inline]
    fn folio(&self, frame: Frame) -> &Folio {
        Engine::folio(self, frame)
    }
}

impl<H: Host> Engine<H> {
    /// Notes that a fault has installed an anonymous page in `frame`, which is new or a copy, or has mapped a page of a file. Called in
    /// the fault's section, if [`Engine::reclaims`] or [`Engine::reclaims_files`], with the frame's folio, which the fault has at hand. The frame may be free again by now.
    #[inline]
    pub(crate) fn arrived(&self, section: &Section<'_>, frame: Frame, folio: &Folio) {
        debug_assert!(core::ptr::eq(folio, self.folio(frame)), "the folio of another frame");
        section.arrivals().push(folio, frame, Distance::NEW);
    }

    /// Notes an anonymous page as [`Engine::arrived`] does, if the engine reclaims. For a caller in no section.
    pub(crate) fn arrived_outside(&self, frame: Frame) {
        if self.reclaims() {
            let (slot, _guard) = self.host().slots().pin();
            self.sections().arrivals(slot).push(self.folio(frame), frame, Distance::NEW);
        }
    }

    /// Notes that a fault has begun to read a page that was evicted before into `frame`. `shadow` comes from the page's slot. For a
    /// caller in no section.
    pub(crate) fn refaulted(&self, frame: Frame, shadow: Shadow) {
        let evictions = self.reclaim.evictions.load(plain::Ordering::Relaxed);
        let distance = Distance::of(evictions.saturating_sub(shadow.get()));
        let (slot, _guard) = self.host().slots().pin();
        self.sections().arrivals(slot).push(self.folio(frame), frame, distance);
    }

    /// Counts an eviction, and returns the shadow that the page's slot keeps. Called once for each page whose frame is freed
    /// and whose bytes stay in a slot.
    pub(crate) fn evicted(&self) -> Shadow {
        Shadow::new(self.reclaim.evictions.fetch_add(1, plain::Ordering::Relaxed))
    }

    /// Returns the shadow of a page that is evicted now.
    pub(crate) fn shadow_now(&self) -> Shadow {
        Shadow::new(self.reclaim.evictions.load(plain::Ordering::Relaxed))
    }

    /// Fills `batch` with the next frames that reclaim should try. Returns their number, which is 0 only if there are none. The
    /// caller reports the result for each ([`Engine::report`]); until then the frame is in no queue. A frame may be free, or have
    /// another page, by the time the caller looks.
    pub(crate) fn next_victims(&self, batch: &mut [Frame; BATCH]) -> usize {
        let mut ageing = self.lock(&self.reclaim.ageing);
        let (count, demand) = ageing.next_victims(self, self.sections(), batch);
        self.reclaim.takes_young.store(demand == Demand::Any, plain::Ordering::Relaxed);
        count
    }

    /// Returns whether reclaim takes a page even if its accessed bit is set. So it is after [`PASSES`](ageing::PASSES) passes
    /// over all pages of which none could be taken.
    pub(crate) fn takes_young(&self) -> bool {
        self.reclaim.takes_young.load(plain::Ordering::Relaxed)
    }

    /// Takes the result for a frame that [`Engine::next_victims`] has returned. It counts the use of a page that was young. If
    /// the frame is still in use, it goes back into a queue.
    pub(crate) fn report(&self, frame: Frame, report: Report) {
        let mut ageing = self.lock(&self.reclaim.ageing);
        ageing.report(self, frame, report);
        if matches!(report, Report::Taken | Report::Freed) {
            self.reclaim.takes_young.store(false, plain::Ordering::Relaxed);
        }
    }

    /// Takes the results for frames whose pages were taken out of all entries, as [`Engine::report`] does for each. Returns the
    /// number of frames that are free now, with those whose write has ended already, as on a device in memory.
    pub(crate) fn report_taken(&self, frames: &[Frame]) -> u64 {
        if frames.is_empty() {
            return 0;
        }
        let mut freed = 0;
        let mut ageing = self.lock(&self.reclaim.ageing);
        for frame in frames {
            let is_free = self.folio(*frame).is_free();
            freed += u64::from(is_free);
            let report = if is_free { Report::Freed } else { Report::Taken };
            ageing.report(self, *frame, report);
        }
        self.reclaim.takes_young.store(false, plain::Ordering::Relaxed);
        freed
    }

    /// Tries to free `pages` frames of anonymous pages now, as `memory.reclaim` of a control group does. Returns the number of
    /// frames that it has freed, which may be higher: pages are taken in batches. Writes that it has started free more when they
    /// end. A page that was used since reclaim looked at it last stays. Without a swap device, nothing is freed.
    ///
    /// Waits for processors that have old translations, and for nothing else.
    pub fn reclaim(self: &Arc<Self>, pages: u64) -> u64 {
        self.take_pages(pages, Kinds::All).freed
    }

    /// Makes faults put pages into reclaim's queues, as an engine that can swap does. For tests.
    #[cfg(any(test, feature = "audit"))]
    pub fn queue_pages_for_reclaim(&self) {
        self.start_reclaim();
    }

    /// Returns the frames that reclaim would try, in its order, and puts them back. At most 64 of them. For tests.
    #[cfg(any(test, feature = "audit"))]
    pub fn frames_for_reclaim(&self) -> alloc::vec::Vec<Frame> {
        let mut batch = [self.zero_frame(); BATCH];
        let count = self.next_victims(&mut batch);
        batch[..count].iter().for_each(|frame| self.report(*frame, Report::Busy));
        batch[..count].to_vec()
    }
}
