//! Limits of memory for groups of spaces, as Linux's memory cgroups.
//!
//! ```text
//!  fault ──► stock of the thread's slot ──(empty)──► charge a batch ──► group ──► group above ──► … the root, without a limit
//!            plain loads and stores                  one counter of each
//! ```
//! A space is in one group or in none. The group of the space that first touches an anonymous page pays for it. The group of the
//! space whose fault, populate call or advice brings a page of a file in pays for that page. A call by a handle of the file charges
//! no group. Page tables are charged to no group.
//!
//! | state of the group | the thread that needs a page |
//! |---|---|
//! | up to high | takes it |
//! | near high | takes it; at its next fault, calls the background worker, if there is one |
//! | over high | takes it; at its next fault, holding nothing, reclaims some pages of the group, or sleeps if none can be taken |
//! | at max | lets everything go, reclaims pages of the group, and starts its fault over |
//! | at max, and no page can be reclaimed | fails, or ends a space of the group if the engine has a policy for that |
//!
//! | file | |
//! |---|---|
//! | `group.rs`, `groups.rs` | the counts of a group; the table and the tree of groups |
//! | `stock.rs` | the pages that a slot has charged already |
//! | `charge.rs` | frames for a group, and back |
//! | `room.rs` | making room in a group |
//! | `victim.rs` | the space that is ended if no room can be made |

mod charge;
mod group;
mod groups;
#[cfg(all(test, loom))]
mod models;
mod room;
mod stock;
#[cfg(all(test, not(loom)))]
mod tests;
mod victim;

pub(crate) use group::{Event, Group};
pub(crate) use groups::{Groups, MOST_GROUPS};
pub(crate) use room::Shortage;
pub(crate) use stock::{Debts, Stock};
pub(crate) use victim::Victims;
pub use victim::{Candidate, Largest, VictimBias, VictimPolicy, VictimPolicyError};

use crate::engine::Engine;
use crate::host::{GroupId, Host, OutOfMemory};
use crate::sync::Shared;
use alloc::sync::Arc;
use groups::MOST_DEEP;

/// The limits of a group of spaces, in pages. Each is [`LimitConfig::MINIMUM`] or more, or [`LimitConfig::NONE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitConfig {
    /// The number of pages above which a thread that takes one more reclaims pages of the group, or is slowed down. At most `max`.
    /// [`LimitConfig::NONE`] for no such number.
    pub high: u64,
    /// The number of pages above which the group gets no more. It may have more only if [`MemoryLimit::set`] has lowered the number.
    /// [`LimitConfig::NONE`] for no limit.
    pub max: u64,
}

impl LimitConfig {
    /// No limit.
    pub const NONE: u64 = u64::MAX;

    /// The smallest limit: 4 pages. A fault may need two frames at a time, for the page that it reads and for its copy. The other two
    /// are for another thread that has such frames and is preempted.
    pub const MINIMUM: u64 = 4;

    /// Returns limits with `max` alone.
    pub const fn max(max: u64) -> Self {
        Self { high: Self::NONE, max }
    }

    /// Checks the limits of a group below one with max `parent`.
    fn check(self, parent: Option<u64>) -> Result<(), MemoryLimitError> {
        let Self { high, max } = self;
        if high == 0 || max == 0 {
            return Err(MemoryLimitError::Zero);
        }
        if let pages @ ..Self::MINIMUM = high.min(max) {
            return Err(MemoryLimitError::BelowMinimum { pages });
        }
        if high > max && high != Self::NONE {
            return Err(MemoryLimitError::HighAboveMax { high, max });
        }
        match parent {
            Some(parent) if max > parent && max != Self::NONE => {
                Err(MemoryLimitError::AboveParent { max, parent })
            }
            _ => Ok(()),
        }
    }
}

/// The error of a call on a [`MemoryLimit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryLimitError {
    /// A limit is 0 pages.
    #[error("a limit of 0 pages: no fault could be served; the least is {} pages", LimitConfig::MINIMUM)]
    Zero,
    /// A limit is below [`LimitConfig::MINIMUM`].
    #[error("a limit of {pages} pages: the least is {} pages", LimitConfig::MINIMUM)]
    BelowMinimum {
        /// The limit in pages.
        pages: u64,
    },
    /// `high` is above `max`.
    #[error("high is {high} pages and max is {max}: high has to be {max} at most")]
    HighAboveMax {
        /// `high` in pages.
        high: u64,
        /// `max` in pages.
        max: u64,
    },
    /// A group's `max` is above that of the group above it.
    #[error("max is {max} pages and that of the group above is {parent}: it has to be {parent} at most")]
    AboveParent {
        /// `max` of the group in pages.
        max: u64,
        /// `max` of the group above in pages.
        parent: u64,
    },
    /// The group would have too many groups above it.
    #[error("a group {MOST_DEEP} levels below the root: there can be no group below it")]
    TooDeep,
    /// There are as many groups as there can be.
    #[error("there are {MOST_GROUPS} groups, the most that an engine can have")]
    TooMany,
    /// The limit and the space are of different engines.
    #[error("the memory limit is of another engine: make it with the engine of the space")]
    OtherEngine,
    /// There is no memory for the call.
    #[error("there is no memory for a group, or for a space in it")]
    OutOfMemory,
}

impl From<OutOfMemory> for MemoryLimitError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl MemoryLimitError {
    /// Returns Linux's error number.
    pub fn errno(self) -> i32 {
        match self {
            Self::OutOfMemory => crate::errno::ENOMEM,
            _ => crate::errno::EINVAL,
        }
    }
}

/// The pages that a group has now, and the events that it has had: see [`MemoryLimit::usage`]. Each number includes the groups below.
/// It is a snapshot if other threads are in calls. The names are those of Linux's `memory.stat` and `memory.events`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryUsage {
    /// The pages charged to the group that are in memory, anonymous ones and those of files.
    pub resident: u64,
    /// The anonymous pages among them.
    pub anonymous: u64,
    /// The pages of files among them, those of files without a store included.
    pub file: u64,
    /// The pages of files among them that a store has made dirty and whose write has not begun (`file_dirty`). A page may be among them
    /// that is clean in fact, until writeback looks at it.
    pub dirty: u64,
    /// The pages of files among them that are being written (`file_writeback`).
    pub writeback: u64,
    /// The pages that threads have charged in advance, for their next faults. They count against the limits, and have no frames yet.
    pub stock: u64,
    /// The slots of swap space that have pages of the group.
    pub swap: u64,
    /// The number of charges after which the group, or a group above it, was over high.
    pub high: u64,
    /// The number of charges that were refused, since they would have exceeded max.
    pub max: u64,
    /// The number of times that a fault or a call found no room in the group, and none of its pages could be reclaimed (`oom`). The
    /// fault or call has failed, or a space was ended ([`Engine::end_victims`]).
    pub out_of_memory: u64,
    /// The number of faults that were served in spaces of the group (`pgfault`), with the pages that populate calls have mapped.
    pub faults: u64,
    /// The number of faults that had to wait for a read.
    pub major_faults: u64,
    /// The number of spaces of the group that were ended for lack of memory (`oom_kill`).
    pub victims: u64,
    /// The number of pages that reclaim had evicted and that were read back: from swap space, or from a file for the group that paid for
    /// the page before.
    pub refaults: u64,
    /// The number of pages that reclaim looked at, without those of [`Advice::PageOut`](crate::Advice::PageOut).
    pub scanned: u64,
    /// The number of pages that reclaim took out of all entries, with pages of files that no entry mapped.
    pub reclaimed: u64,
}

/// A group of spaces that pay for their pages together, up to a limit (a memory cgroup). This is a handle: clones are the same group.
///
/// [`AddressSpace::new_in`](crate::AddressSpace::new_in) makes a space in the group. Its children by fork are in the group too.
///
/// A group ends when its last handle, its last space and its last group below are gone. The pages that it still pays for are then
/// charged to the group above alone. Examples are pages of files in the page cache, and pages of a transfer under way.
///
/// ```
/// # use faultless::address::PAGE_SIZE;
/// use faultless::{AddressSpace, Engine, LimitConfig, Limits, MapRequest, MemoryLimit};
/// # use faultless_soft::{Cpu, Soft};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let engine = Engine::new(Soft::new(1024)?, Limits::default())?;
/// let limit = MemoryLimit::new(&engine, LimitConfig::max(64))?;
/// let space: AddressSpace<Soft> = AddressSpace::new_in(&engine, &limit)?;
/// let memory = space.map_owned(MapRequest::anonymous(100 * PAGE_SIZE))?;
/// space.store_u64(memory.address(), 42)?;
/// assert_eq!((limit.usage().anonymous, limit.usage().file), (1, 0));
/// # Ok(())
/// # }
/// ```
pub struct MemoryLimit<H: Host>(Shared<Handle<H>>);

/// The part of a group that all its handles share.
struct Handle<H: Host> {
    engine: Arc<Engine<H>>,
    group: GroupId,
    /// Keeps the group above.
    _parent: Option<MemoryLimit<H>>,
}

impl<H: Host> Clone for MemoryLimit<H> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<H: Host> MemoryLimit<H> {
    /// Makes a group that has no group with limits above it.
    ///
    /// Make the first group before the first page is mapped. Reclaim does not find older anonymous pages, unless the engine had a swap
    /// device when they were mapped.
    ///
    /// # Errors
    /// [`MemoryLimitError`]: no group was made.
    pub fn new(engine: &Arc<Engine<H>>, config: LimitConfig) -> Result<Self, MemoryLimitError> {
        Self::make(engine, config, None)
    }

    /// Makes a group below this one. Each page of the new group counts in this one too. There may be 32 levels of groups.
    ///
    /// # Errors
    /// [`MemoryLimitError`]: no group was made.
    pub fn child(&self, config: LimitConfig) -> Result<Self, MemoryLimitError> {
        if self.groups().depth(self.0.group) >= MOST_DEEP {
            return Err(MemoryLimitError::TooDeep);
        }
        Self::make(&self.0.engine, config, Some(self.clone()))
    }

    fn make(
        engine: &Arc<Engine<H>>,
        config: LimitConfig,
        parent: Option<Self>,
    ) -> Result<Self, MemoryLimitError> {
        // Before anything is made. `begin` compares with the group above again, under the lock of the limits.
        config.check(parent.as_ref().map(|parent| parent.config().max))?;
        drop(engine.prepare()?);
        let groups = engine.sections().groups();
        if groups.has_ended() {
            // Stocks of groups that have ended keep their records.
            engine.take_stocks_of_ended();
        }
        let group = groups.take()?.ok_or(MemoryLimitError::TooMany)?;
        let above = parent.as_ref().map_or(GroupId::ROOT, |parent| parent.0.group);
        groups.begin(group, above, config)?;
        // From here on, the end of the handle ends the group.
        let handle = Handle { engine: engine.clone(), group, _parent: parent };
        let limit = Self(Shared::try_new_charged(engine.sections(), handle)?);
        engine.add_queues(group)?;
        engine.start_reclaim();
        Ok(limit)
    }

    fn groups(&self) -> &Groups {
        self.0.engine.sections().groups()
    }

    /// Returns the group's number, by which a host names it in [`FrameSource::allocate`](crate::host::FrameSource::allocate).
    pub fn group(&self) -> GroupId {
        self.0.group
    }

    /// Returns whether the group is of `engine`.
    pub(crate) fn is_of(&self, engine: &Arc<Engine<H>>) -> bool {
        Arc::ptr_eq(&self.0.engine, engine)
    }

    /// Returns the limits, in pages.
    pub fn config(&self) -> LimitConfig {
        self.groups().get(self.0.group).map_or(LimitConfig::max(LimitConfig::NONE), |group| LimitConfig {
            high: group.high(),
            max: group.max(),
        })
    }

    /// Changes the limits, at any time.
    ///
    /// If the group has more pages than the new `max`, the call reclaims until it has not, or until no page can be taken. The pages that
    /// could not be taken stay, and faults reclaim as they do at max. Waits for processors that have old translations, and for no I/O.
    /// The caller holds nothing that a fault needs.
    ///
    /// # Errors
    /// [`MemoryLimitError`]: the limits are as before. `AboveParent` is also returned if a group below has a larger `max`.
    pub fn set(&self, config: LimitConfig) -> Result<(), MemoryLimitError> {
        self.groups().set(self.0.group, config)?;
        self.0.engine.reclaim_down_to_max(self.0.group);
        Ok(())
    }

    /// Returns the pages that the group has now, and the events that it has had. The call looks at the slot of each thread and at each dirty
    /// page of the engine's files, so do not make it for every fault. Takes a short lock for each file, and waits for no I/O. The caller
    /// is in no section.
    pub fn usage(&self) -> MemoryUsage {
        let groups = self.groups();
        let Some(group) = groups.get(self.0.group) else { return MemoryUsage::default() };
        let charged = group.usage();
        let (mut stock, mut files) = (0, group.files());
        let mut faults = group.count(Event::Fault);
        for one in self.0.engine.sections().stocks() {
            let (of, pages) = one.seen();
            if groups.is_within(of, self.0.group) {
                stock += pages;
                files += one.seen_files();
                faults += one.seen_faults();
            }
        }
        let resident = charged.saturating_sub(stock);
        let file = u64::try_from(files).unwrap_or(0).min(resident);
        let (dirty, writeback) = self.0.engine.dirty_pages_of(|of| groups.is_within(of, self.0.group));
        MemoryUsage {
            resident,
            anonymous: resident - file,
            file,
            dirty,
            writeback,
            stock,
            swap: group.swap(),
            high: group.count(Event::High),
            max: group.count(Event::Max),
            out_of_memory: group.count(Event::OutOfMemory),
            faults,
            major_faults: group.count(Event::MajorFault),
            victims: group.count(Event::Victim),
            refaults: group.count(Event::Refault),
            scanned: group.count(Event::Scanned),
            reclaimed: group.count(Event::Reclaimed),
        }
    }
}

impl<H: Host> Drop for Handle<H> {
    fn drop(&mut self) {
        self.engine.sections().groups().end(self.group);
    }
}
