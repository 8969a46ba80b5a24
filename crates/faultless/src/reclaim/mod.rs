//! Reclaim: takes frames back from spaces and from the page cache.
//!
//! ```text
//!  anonymous:  folio ──home──► record of a leaf table ──mark──► space ──► the entry
//!                     in one read section, without a lock or a handle of the space
//!  of a file:  folio ──home──► file ──► spaces that map it ──► the entries          (`file_pages.rs`)
//! ```
//!
//! | file | |
//! |---|---|
//! | `walk.rs` | the steps for a batch of folios |
//! | `run.rs` | neighbouring pages of one table, which are taken together |
//! | `file_pages.rs` | a page of a file |
//! | `around.rs` | a look at the entries around one whose page is in use |
//! | `shared_table.rs` | a page of a leaf table that several spaces share |
//! | `space_head.rs` | a space, as reclaim sees it: without its locking design |
//! | `groups.rs` | the queues of all groups: gathers the pages that have arrived, chooses a group and a kind of pages |
//! | `ageing.rs` | the queues of one class of pages, those of one group and kind: asks the policy, takes reports |
//! | `policy.rs` | the interface of a policy: the order in which pages are tried |
//! | `small_main.rs` | the default policy |
//! | `generations.rs` | a second policy |
//! | `order.rs` | the policies by name, and the one of an engine |
//! | `queue.rs` | stacks of arrivals and queues, linked through the folios |
//!
//! The count of uses of a page is in its folio: `frame/uses.rs`.

pub(crate) mod ageing;
mod around;
mod file_pages;
mod generations;
pub(crate) mod groups;
mod homes;
mod order;
pub(crate) mod policy;
pub(crate) mod queue;
mod run;
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
use crate::host::{Frame, GroupId, Host, OutOfMemory, Slots};
use crate::limit::{Event, Group};
use crate::sync::{Mutex, MutexGuard, Section, plain};
use crate::tables::{Places, places};
pub(crate) use ageing::BATCH;
use alloc::sync::Arc;
use alloc::vec::Vec;
pub(crate) use file_pages::Taking;
pub(crate) use groups::{Class, Kinds, PageKind};
use groups::{Lists, Queues, Victims, Wanted, gather};
use homes::Homeless;
use order::Policy;
pub use order::ReclaimOrder;
use policy::Report;
pub(crate) use policy::Shadow;
pub(crate) use queue::Distance;
use queue::Folios;
use space_head::Found;
pub(crate) use space_head::{Reach, Refusal, SpaceHead, Victim, VictimKind};
pub(crate) use walk::Reclaimed;

/// The number of tries to take the lock of the queues before a thread sleeps. The pause after each is twice that before: together some
/// microseconds.
const TRIES_OF_LOCK: u32 = 8;

/// The state of an engine's reclaim.
pub(crate) struct Reclaim {
    queues: Mutex<Queues<Policy>>,
    /// Whether reclaim looks at the entries around a page that is in use. Immutable.
    looks_around: bool,
    /// The number of threads that reclaim. Atomic.
    reclaimers: plain::AtomicU64,
    /// The number of calls that have reclaimed, and have ended. Atomic.
    ended: plain::AtomicU64,
    /// The numbers of pages of the root that were evicted, for each kind. Each other group has counts of its own. Atomic.
    evictions: [plain::AtomicU64; 2],
    /// Pages that have lost their home.
    homeless: Homeless,
}

impl Reclaim {
    /// Makes the state of a reclaim that tries pages in this order.
    pub fn new(order: ReclaimOrder) -> Self {
        let (reclaimers, ended, evictions, homeless) = Default::default();
        let looks_around = order == ReclaimOrder::Generations && !mutant!("looks_at_one_entry");
        Self {
            queues: Mutex::new(Queues::new(&Policy::new(order))),
            looks_around,
            reclaimers,
            ended,
            evictions,
            homeless,
        }
    }
}

impl<H: Host> Folios for Engine<H> {
    #[inline]
    fn folio(&self, frame: Frame) -> &Folio {
        Engine::folio(self, frame)
    }

    fn swaps(&self) -> bool {
        Engine::swaps(self)
    }

    fn forget_first_use(&self, frame: Frame) {
        // Rule H1: the mutant reads home before the section in which it follows it.
        let early = mutant!("home_read_outside").then(|| self.folio(frame).mapped_home());
        let section = self.enter();
        let places = match early {
            Some(home) => home.and_then(|home| Places::of(home, &section)),
            None => places(self.folio(frame), &section),
        };
        if let Some(places) = places
            && let Some(space) = places.entry.and_then(|record| Found::<H>::by_record(record, &section))
        {
            space.forget_use(places.index, frame);
        }
    }
}

impl<H: Host> Engine<H> {
    /// Notes that a fault has installed an anonymous page in `frame`, which is new or a copy. Called in the fault's section, if
    /// [`Engine::reclaims`], with the frame's folio, which the fault has at hand. The frame may be free again by now.
    #[inline]
    pub(crate) fn arrived(&self, section: &Section<'_>, frame: Frame, folio: &Folio) {
        debug_assert!(core::ptr::eq(folio, self.folio(frame)), "the folio of another frame");
        section.arrivals().push(folio, frame, Distance::NEW);
    }

    /// Notes an anonymous page, or one of a file without a store, as [`Engine::arrived`] does, if the engine reclaims. For a caller in a
    /// section or not.
    pub(crate) fn arrived_outside(&self, frame: Frame) {
        if self.reclaims() {
            let (slot, _guard) = self.host().slots().pin();
            self.sections().arrivals(slot).push(self.folio(frame), frame, Distance::NEW);
        }
    }

    /// Notes that a page of a file is in memory, in `frame`, at this distance from its eviction. For a caller in no section.
    pub(crate) fn arrived_in_cache(&self, frame: Frame, distance: Distance) {
        if distance != Distance::NEW {
            self.sections().groups().note(self.folio(frame).group(), Event::Refault, 1);
        }
        if self.reclaims_files() {
            let (slot, _guard) = self.host().slots().pin();
            self.sections().arrivals(slot).push(self.folio(frame), frame, distance);
        }
    }

    /// Returns the distance of a page of a file that comes back, for which `group` pays. `evicted` is the group that paid before, and the
    /// shadow. To another group the page is new, since the clocks of two groups cannot be compared.
    pub(crate) fn distance_of(&self, group: GroupId, evicted: Option<(GroupId, Shadow)>) -> Distance {
        match evicted {
            Some((of, shadow)) if of == group && !mutant!("file_refault_is_new") => {
                let class = Class { group, kind: PageKind::File };
                let evictions = self.evictions(class).load(plain::Ordering::Relaxed);
                Distance::of(evictions.saturating_sub(shadow.get()))
            }
            _ => Distance::NEW,
        }
    }

    /// Returns the count of evictions of `class`.
    fn evictions(&self, class: Class) -> &plain::AtomicU64 {
        let of_root = &self.reclaim.evictions;
        &self.sections().groups().get(class.group).map_or(of_root, Group::evictions)[class.kind as usize]
    }

    /// Notes that a fault has begun to read a page that was evicted before into `frame`. `shadow` comes from the page's slot. For a
    /// caller in no section.
    pub(crate) fn refaulted(&self, frame: Frame, shadow: Shadow) {
        let group = self.folio(frame).group();
        let class = Class { group, kind: PageKind::Anonymous };
        let evictions = self.evictions(class).load(plain::Ordering::Relaxed);
        let distance = Distance::of(evictions.saturating_sub(shadow.get()));
        self.sections().groups().note(group, Event::Refault, 1);
        let (slot, _guard) = self.host().slots().pin();
        self.sections().arrivals(slot).push(self.folio(frame), frame, distance);
    }

    /// Counts an eviction of a page of `class`, and returns the shadow that the page's slot keeps, or the word of its file's index.
    /// Called once for each page that is evicted.
    pub(crate) fn evicted(&self, class: Class) -> Shadow {
        Shadow::new(self.evictions(class).fetch_add(1, plain::Ordering::Relaxed))
    }

    /// Notes that the read of a page of a file without a store has begun, into `frame`, from `slot`: as [`Engine::refaulted`] if the same
    /// group has paid for the page before, else as a new page. For a caller in no section.
    pub(crate) fn refaulted_of_file(&self, frame: Frame, (payer, shadow): (GroupId, Shadow)) {
        if self.folio(frame).group() == payer {
            self.refaulted(frame, shadow)
        } else {
            self.arrived_outside(frame)
        }
    }

    /// Returns the shadow of an anonymous page of the root that is evicted now.
    pub(crate) fn shadow_now(&self) -> Shadow {
        let class = Class { group: GroupId::ROOT, kind: PageKind::Anonymous };
        Shadow::new(self.evictions(class).load(plain::Ordering::Relaxed))
    }

    /// Takes the lock of the queues. Threads of one group run out of frames at the same time, and one has the lock for less time than
    /// another needs to fall asleep and to wake. So it tries for a while before it sleeps.
    fn lock_queues(&self) -> MutexGuard<'_, Queues<Policy>> {
        self.assert_may_sleep("a lock");
        if cfg!(all(feature = "std", not(loom))) {
            for tries in 0..TRIES_OF_LOCK {
                if let Some(queues) = self.reclaim.queues.try_lock() {
                    return queues;
                }
                // Each try takes the line of the lock from its holder.
                (0..1 << tries).for_each(|_| core::hint::spin_loop());
            }
        }
        self.lock(&self.reclaim.queues)
    }

    /// Fills `batch` with the next frames of `wanted` that reclaim should try. The caller reports the result for each
    /// ([`Engine::report`]); until then the frame is in no queue. A frame may be free, or have another page, by the time the caller
    /// looks.
    fn next_victims(&self, wanted: Wanted, batch: &mut [Frame]) -> Victims {
        let mut has_gathered = false;
        loop {
            let victims = self.lock_queues().next_victims(self, self.sections(), wanted, has_gathered, batch);
            match victims {
                Ok(victims) => return victims,
                Err(gathering) => gather(self, self.sections(), gathering, || self.lock_queues()),
            }
            has_gathered = true;
        }
    }

    /// Takes the result for a frame of `class` that [`Engine::next_victims`] has returned. It counts the use of a page that was
    /// young. If the frame is still in use, it goes back into a queue.
    fn report(&self, class: Class, frame: Frame, report: Report) {
        self.lock_queues().report(self, class, frame, report);
    }

    /// Returns whether a thread reclaims.
    pub(crate) fn has_reclaimers(&self) -> bool {
        self.reclaim.reclaimers.load(plain::Ordering::Relaxed) != 0
    }

    /// Makes the queues of a new group.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub(crate) fn add_queues(&self, group: GroupId) -> Result<(), OutOfMemory> {
        let mut spare: Vec<Lists<Policy>> = Vec::new();
        let room = self.lock_queues().room();
        let needed = group.get() as usize;
        if room < needed {
            // No memory is asked for under the lock. Another thread may make more room meanwhile.
            spare.try_reserve_exact(needed.next_power_of_two()).map_err(|_| OutOfMemory)?;
        }
        let old = self.lock_queues().add(group, spare);
        drop(old);
        Ok(())
    }

    /// Takes the results for frames whose pages were taken out of all entries, as [`Engine::report`] does for each. Returns the number of
    /// frames that are free now, with those whose write has ended already, as on a device in memory; and the number of the others, but
    /// for those that could not be written or that another thread keeps: those are no progress.
    fn report_taken(&self, class: Class, frames: &[Frame]) -> (u64, u64) {
        let (mut freed, mut others) = (0, 0);
        if frames.is_empty() {
            return (freed, others);
        }
        let mut queues = self.lock_queues();
        for frame in frames {
            let folio = self.folio(*frame);
            if folio.is_free() {
                freed += 1;
            } else {
                // Another thread may have taken the page or the frame since: that is progress.
                let is_left = self.is_left_in_slot(folio);
                others += u64::from(!is_left);
                queues.report(self, class, *frame, if is_left { Report::Busy } else { Report::Taken });
            }
        }
        queues.freed(class, freed);
        (freed, others)
    }

    /// Tries to free `pages` frames now, as `memory.reclaim` of a control group does. Returns the number of frames that it has freed.
    ///
    /// Call it to make room before memory is short. The number may be higher than `pages`, since pages are taken in batches. Writes that
    /// it has started free more frames when they end. A page that was used since reclaim last looked at it stays, unless no other page
    /// can be taken. Without a swap device, only pages of files that have a store, and pages after MADV_FREE, are freed. All groups give
    /// pages.
    ///
    /// The caller holds nothing that a fault needs. Waits for processors that have old translations, and for no I/O.
    pub fn reclaim(self: &Arc<Self>, pages: u64) -> u64 {
        self.take_pages(GroupId::ROOT, pages, Kinds::All).freed
    }

    /// Makes faults put pages into reclaim's queues, as an engine that can swap does. For tests.
    #[cfg(any(test, feature = "audit"))]
    pub fn queue_pages_for_reclaim(&self) {
        self.start_reclaim();
    }

    /// Returns the frames that reclaim would try, in its order, and puts them back. At most 64 of them. For tests.
    #[cfg(any(test, feature = "audit"))]
    pub fn frames_for_reclaim(&self) -> Vec<Frame> {
        let mut batch = [self.zero_frame(); ageing::BATCH];
        let wanted = Wanted { gathers: true, ..Wanted::all_of(GroupId::ROOT) };
        let Victims { class, count, .. } = self.next_victims(wanted, &mut batch);
        batch[..count].iter().for_each(|frame| self.report(class, *frame, Report::Busy));
        batch[..count].to_vec()
    }
}
