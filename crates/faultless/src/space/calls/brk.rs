//! brk: the heap, a place that grows from a fixed start.

use crate::address::{PAGE_SIZE, PageNumber, PageRange, VirtAddr};
use crate::design::{Call, LockingDesign};
use crate::errno;
use crate::host::{Host, OutOfMemory};
use crate::protection::{Protection, Sharing};
use crate::space::calls::grow::guarded;
use crate::space::calls::populate::Goal;
use crate::space::change::publish::{Joins, Origin, Refused, Unpublished};
use crate::space::change::range_work::TreeLock;
use crate::space::limits::TooMany;
use crate::space::{AddressSpace, LimitError, Space};
use crate::vma::tree::Ranged;
use crate::vma::{Backing, Mapping, MappingFlags};

/// Where the heap is; addresses, of which whole pages are mapped.
#[derive(Clone, Copy, Debug)]
pub(in crate::space) struct Heap {
    start: VirtAddr,
    end: VirtAddr,
}

/// Why the break stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrkError {
    /// The space has no heap, see [`AddressSpace::set_heap`] (ENOMEM).
    #[error("the space has no heap")]
    NoHeap,
    /// Below the heap's start (ENOMEM).
    #[error("{address} lies below the heap, which starts at {start}")]
    BelowStart {
        /// What was asked for.
        address: VirtAddr,
        /// The heap's start.
        start: VirtAddr,
    },
    /// Something is mapped there, or in the page behind, or what is mapped there grows down and needs its gap; or the space
    /// ends there (ENOMEM).
    #[error("no room for a heap up to {address}")]
    NoRoom {
        /// What was asked for.
        address: VirtAddr,
    },
    /// Nothing is mapped any more of what was to go (ENOMEM).
    #[error("nothing is mapped between {address} and the break")]
    Hole {
        /// What was asked for.
        address: VirtAddr,
    },
    /// Part of what was to go is sealed (EPERM).
    #[error("the mapping at {address} is sealed")]
    Sealed {
        /// Where it begins.
        address: VirtAddr,
    },
    /// A limit of the space (ENOMEM, EAGAIN).
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The space has its limit of mappings (ENOMEM).
    #[error("the space has its limit of {limit} mappings")]
    TooManyMappings {
        /// The limit.
        limit: usize,
    },
    /// No memory for nodes (ENOMEM).
    #[error("out of memory for the heap")]
    OutOfMemory,
    /// The space has exited (ENOMEM).
    #[error("the space has exited")]
    Exited,
}

impl BrkError {
    /// Linux's number, had its brk one.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Sealed { .. } => errno::EPERM,
            Self::Limit(error) => error.errno(),
            _ => errno::ENOMEM,
        }
    }
}

impl From<TooMany> for BrkError {
    fn from(TooMany { limit }: TooMany) -> Self {
        Self::TooManyMappings { limit }
    }
}

impl From<OutOfMemory> for BrkError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<Unpublished> for BrkError {
    fn from(error: Unpublished) -> Self {
        match error {
            Unpublished::OutOfMemory => Self::OutOfMemory,
            Unpublished::TooMany { limit } => Self::TooManyMappings { limit },
        }
    }
}

impl From<Refused> for BrkError {
    fn from(error: Refused) -> Self {
        match error {
            Refused::Exited => Self::Exited,
            Refused::Limit(error) => error.into(),
            Refused::Unpublished(error) => error.into(),
        }
    }
}

/// The page behind the last one of a heap that ends at `address`.
fn page_end(address: VirtAddr) -> Option<PageNumber> {
    Some(address.checked_add(PAGE_SIZE - 1)?.page())
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Says where the heap of [`AddressSpace::brk`] starts: empty, its break at `start`. Unmaps nothing of an older one.
    /// Whoever loads a program does this; a child of fork inherits it.
    pub fn set_heap(&self, start: VirtAddr) {
        self.engine().assert_may_sleep("the tree lock");
        self.0.map.lock_by(&**self.engine()).heap = Some(Heap { start, end: start });
    }

    /// brk: sets the break, and returns it; where that cannot be, the break as it was, and address 0 where there is no
    /// heap. So `brk(0)` asks for it.
    pub fn brk(&self, address: VirtAddr) -> VirtAddr {
        // The answer says it all, as on Linux.
        let _ = self.set_break(address);
        self.engine().assert_may_sleep("the tree lock");
        self.0.map.lock_by(&**self.engine()).heap.map_or(VirtAddr::default(), |heap| heap.end)
    }

    /// Sets the break: maps whole pages of zeros up to it, private, readable and writable, or unmaps what lies above. What
    /// else has been mapped into the heap goes too when it shrinks, and what has been unmapped does not come back. Waits as
    /// [`AddressSpace::unmap`]. After mlockall for what is to come, what comes is locked, and fetched before this returns, as
    /// far as there is memory; nothing is held then.
    ///
    /// # Errors
    /// [`BrkError`]; the space is as before.
    pub fn set_break(&self, address: VirtAddr) -> Result<(), BrkError> {
        if let Some(locked) = self.0.set_break(address)? {
            let _ = self.populate(locked, Goal::Lock);
        }
        Ok(())
    }
}

impl<H: Host, D: LockingDesign> Space<H, D> {
    /// Returns what is to be fetched.
    fn set_break(&self, address: VirtAddr) -> Result<Option<PageRange>, BrkError> {
        let no_room = BrkError::NoRoom { address };
        let new = page_end(address).ok_or(no_room)?;
        let mut call = self.change(Call::Brk, self.whole());
        loop {
            let seen = call.lock().heap.ok_or(BrkError::NoHeap)?;
            if address < seen.start {
                return Err(BrkError::BelowStart { address, start: seen.start });
            }
            let old = page_end(seen.end).ok_or(no_room)?;
            // From the start on: changes of one heap go one after the other.
            let end = new.max(old).get().max(seen.start.page().get() + 1);
            let claim = PageRange::new(seen.start.page(), PageNumber::new(end));
            let claim = claim.filter(|claim| self.whole().covers(*claim)).ok_or(no_room)?;
            if let Some(goes) = PageRange::new(new, old) {
                call.exclude(goes, |_| true);
            }
            let mut lock = call.take(claim);
            let heap = lock.heap.ok_or(BrkError::NoHeap)?;
            if (heap.start, heap.end) != (seen.start, seen.end) {
                drop(lock);
                call.release();
                continue;
            }
            if address > heap.end {
                // As Linux asks: by bytes, whatever is mapped already.
                let limit = lock.limits.data;
                if address.get() - heap.start.get() > limit {
                    let pages = (address.get() - heap.end.get()).div_ceil(PAGE_SIZE);
                    return Err(LimitError::Data { pages, limit }.into());
                }
            }
            let mut fetched = None;
            if let Some(goes) = PageRange::new(new, old) {
                self.check_shrink(&lock, address, goes)?;
                call.unmap_taken(lock, goes)?;
                lock = call.lock();
            } else if let Some(range) = PageRange::new(old, new) {
                let next = self.tree.view_locked(&lock.writer).from(range.start()).next();
                let behind = next.map(|next| next.range().start().min(guarded(next).start()));
                if behind.is_some_and(|behind| behind.get() < new.get() + 1) {
                    return Err(no_room);
                }
                self.may_map_more(&lock)?;
                // Not with what ends where the heap starts, as on Linux.
                let joins = Joins { below: old > heap.start.page(), ..Joins::BOTH };
                let mut part = self.heap_part(range);
                let published = call.publish_followed(lock, (&mut part, Origin::Fresh), joins)?;
                fetched = Some(range).filter(|_| part.flags.is_fetched());
                lock = published;
            }
            lock.heap = Some(Heap { end: address, ..heap });
            return Ok(fetched);
        }
    }

    /// Whether what lies between the new break and the old one can go.
    fn check_shrink(&self, lock: &TreeLock<'_>, address: VirtAddr, goes: PageRange) -> Result<(), BrkError> {
        let vmas = self.tree.view_locked(&lock.writer).from(goes.start());
        let mut vmas = vmas.take_while(|vma| vma.range().start() < goes.end()).peekable();
        vmas.peek().ok_or(BrkError::Hole { address })?;
        match vmas.find(|vma| vma.flags().contains(MappingFlags::SEALED)) {
            Some(vma) => Err(BrkError::Sealed { address: vma.range().start().address() }),
            None => Ok(()),
        }
    }

    fn heap_part(&self, range: PageRange) -> Mapping<H> {
        Mapping {
            range,
            protection: Protection::READ | Protection::WRITE,
            sharing: Sharing::Private,
            flags: MappingFlags::ACCOUNT,
            backing: Backing::Anonymous,
            serial: self.engine.next_serial(),
            shift: 0,
            anon: None,
        }
    }
}
