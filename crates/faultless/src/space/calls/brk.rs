//! brk: moves the end of the heap, which has a fixed start.

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

/// The place of the heap. Both are addresses; whole pages are mapped.
#[derive(Clone, Copy, Debug)]
pub(in crate::space) struct Heap {
    start: VirtAddr,
    end: VirtAddr,
}

/// The reason why the break stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrkError {
    /// The space has no heap, see [`AddressSpace::set_heap`] (ENOMEM).
    #[error("the space has no heap")]
    NoHeap,
    /// The address lies below the heap's start (ENOMEM).
    #[error("{address} lies below the heap, which starts at {start}")]
    BelowStart {
        /// The break asked for.
        address: VirtAddr,
        /// The heap's start.
        start: VirtAddr,
    },
    /// There is no room for the heap up to `address` (ENOMEM). Something is mapped there or in the page behind, or a mapping
    /// that grows down needs its gap there, or the space ends there.
    #[error("no room for a heap up to {address}")]
    NoRoom {
        /// The break asked for.
        address: VirtAddr,
    },
    /// Nothing is mapped any more in the part to unmap (ENOMEM).
    #[error("nothing is mapped between {address} and the break")]
    Hole {
        /// The break asked for.
        address: VirtAddr,
    },
    /// A part of the pages to unmap is sealed (EPERM).
    #[error("the mapping at {address} is sealed")]
    Sealed {
        /// The first address of the sealed mapping.
        address: VirtAddr,
    },
    /// A limit of the space would be exceeded (ENOMEM; EAGAIN for locked memory).
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The space has as many mappings as its limit allows (ENOMEM).
    #[error("the space has its limit of {limit} mappings")]
    TooManyMappings {
        /// The limit of mappings.
        limit: usize,
    },
    /// There is no memory for nodes (ENOMEM).
    #[error("out of memory for the heap")]
    OutOfMemory,
    /// The space has exited (ENOMEM).
    #[error("the space has exited")]
    Exited,
}

impl BrkError {
    /// Returns the error number that Linux would give if its brk gave one.
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

/// Returns the page behind the last one of a heap that ends at `address`.
fn page_end(address: VirtAddr) -> Option<PageNumber> {
    Some(address.checked_add(PAGE_SIZE - 1)?.page())
}

impl<H: Host, D: LockingDesign> AddressSpace<H, D> {
    /// Sets where the heap of [`AddressSpace::brk`] starts. The heap is empty, its break at `start`. Unmaps nothing of an older
    /// heap.
    ///
    /// The loader of a program calls this. A child of fork inherits the heap.
    pub fn set_heap(&self, start: VirtAddr) {
        self.engine().assert_may_sleep("the tree lock");
        self.0.map.lock_by(&**self.engine()).heap = Some(Heap { start, end: start });
    }

    /// Sets the break and returns it (brk). If it cannot be set, returns the break as it was; without a heap, address 0. So
    /// `brk(0)` asks for the break.
    pub fn brk(&self, address: VirtAddr) -> VirtAddr {
        // The returned break tells success from failure, as on Linux.
        let _ = self.set_break(address);
        self.engine().assert_may_sleep("the tree lock");
        self.0.map.lock_by(&**self.engine()).heap.map_or(VirtAddr::default(), |heap| heap.end)
    }

    /// Sets the break. Maps whole pages of zeros up to it, private, readable and writable, or unmaps the pages above.
    ///
    /// When the heap shrinks, other mappings placed inside it go too. When it grows, parts that were unmapped do not come back.
    /// Waits as [`AddressSpace::unmap`]. If mlockall locks new mappings, the new pages are locked, and fetched before this
    /// returns, as far as there is memory; nothing is held then.
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
    /// Sets the break, and returns the range to fetch.
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
            // The range begins at the heap's start, so that changes of one heap go one after the other.
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
                // As Linux checks: by bytes, regardless of the present mappings.
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
                // It joins no mapping that ends where the heap starts, as on Linux.
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

    /// Checks that the pages between the new break and the old one can be unmapped.
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
