//! Queues of frames for reclaim: stacks of arrivals, one in each thread's slot, and the queues of a policy.
//!
//! ```text
//!  fault ─ push ─► arrivals of its slot ─┐
//!  fault ─ push ─► arrivals of its slot ─┴─ gather, oldest first ─► a queue ─ take ─► reclaim ─ claim ─► a queue
//!  └────────────────── no lock ────────────────────────────┘     └────── under the lock of `Queues` ──────────┘
//! ```
//! All are linked through one word of the folio, its *link*:
//!
//! | bits | |
//! |---|---|
//! | 0–40 | the number of the next frame, plus one; 0: none |
//! | 41–60 | of an arrival: the distance of its refault, rounded ([`Distance`]); 0: the page is new |
//! | 61 | QUEUED: the frame is in a stack or a queue, or a thread is about to put it there |
//! | 62–63 | of a frame that was taken: the queue that it came from, a number of the policy's |
//!
//! **A frame is in one place.** The thread that sets QUEUED puts the frame into a stack or a queue ([`Claimed`]). Every other
//! thread finds QUEUED set and does nothing.
//!
//! **Queues are lazy.** A frame that is freed stays where it is. [`Queue::take`] drops it later. If the frame is used again
//! before that, it keeps its place.
//!
//! **No page in use is lost.** A fault stores the folio's word, then sets QUEUED. `take` clears QUEUED, then looks at the word.
//! Both steps on the link are read-modify-writes with AcqRel. If the fault's comes first, `take` sees the page in use. If the
//! one in `take` comes first, the fault finds QUEUED cleared and puts the frame into its stack. A plain store to the link of a
//! queued frame would come between the two and break the order, so each change of a link is a read-modify-write.

use crate::frame::Folio;
use crate::host::Frame;
use crate::sync::atomic::{AtomicU64, Ordering};

const NEXT: u64 = (1 << 41) - 1;
const DISTANCE: u32 = 41;
/// Not the highest bit: compilers for x86-64 would set that by a loop, and this one by one instruction.
const QUEUED: u64 = 1 << 61;
const ORIGIN: u32 = 62;
const _: () = assert!(Frame::COUNT <= NEXT);

fn number(frame: Frame) -> u64 {
    frame.get() + 1
}

fn frame_of(link: u64) -> Option<Frame> {
    (link & NEXT).checked_sub(1).and_then(Frame::new)
}

/// The folios of a machine.
pub(crate) trait Folios {
    /// Returns the folio of `frame`.
    fn folio(&self, frame: Frame) -> &Folio;

    /// Returns whether pages of files without a store can be taken: there is swap space.
    fn swaps(&self) -> bool {
        true
    }

    /// Clears the accessed bit of the entry that the home of `frame` names, if that maps the page and one space alone has the table. The
    /// caller is in no section, and has no lock.
    fn forget_first_use(&self, _frame: Frame) {}

    /// Returns the link of `frame`'s folio.
    #[inline]
    fn link(&self, frame: Frame) -> &AtomicU64 {
        self.folio(frame).link()
    }
}

/// The number of pages that were evicted between a page's eviction and its return, as the link of an arrival has it: 14 bits,
/// and the number of bits cut off below them. Zero means that the page is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Distance(u64);

impl Distance {
    const MANTISSA: u32 = 14;

    /// The distance of a page that is new.
    pub const NEW: Self = Self(0);

    /// Returns the distance of a page that comes back after `evictions` evictions, its own included. It is rounded down.
    pub fn of(evictions: u64) -> Self {
        let evictions = evictions.max(1);
        let cut = (u64::BITS - evictions.leading_zeros()).saturating_sub(Self::MANTISSA);
        Self((u64::from(cut) << Self::MANTISSA) | (evictions >> cut))
    }

    /// Returns the number of evictions, or `None` for a page that is new.
    pub fn evictions(self) -> Option<u64> {
        let mantissa = self.0 & ((1 << Self::MANTISSA) - 1);
        (mantissa != 0).then(|| mantissa << (self.0 >> Self::MANTISSA))
    }

    const fn in_link(self) -> u64 {
        self.0 << DISTANCE
    }

    fn of_link(link: u64) -> Self {
        Self((link >> DISTANCE) & ((QUEUED >> DISTANCE) - 1))
    }
}

/// The arrivals of one slot: the frames in which its thread has begun pages, until reclaim gathers them. Atomic.
/// The number of the youngest frame, plus one, with QUEUED, so that the word is that frame's link's value to be. The slot's
/// thread pushes; reclaim takes all.
#[derive(Debug)]
pub(crate) struct Arrivals(AtomicU64);

impl Arrivals {
    const EMPTY: u64 = QUEUED;

    /// Makes an empty stack.
    pub fn new() -> Self {
        Self(AtomicU64::new(Self::EMPTY))
    }

    /// Puts `frame` on this stack, which is of this thread's slot, unless the frame is in a stack or a queue already. The caller
    /// has stored the folio's word. The frame may be free again by now, or in its next life. Waits for nothing: the caller may be
    /// in a section.
    ///
    /// For a frame in no queue, these are two locked instructions on lines that the fault has just written. For a frame that is
    /// in a queue since its last life, it is one.
    #[inline]
    pub fn push(&self, folio: &Folio, frame: Frame, distance: Distance) {
        let link = folio.link();
        let mut youngest = self.0.load(Ordering::Relaxed);
        // The load only saves the exchange, which fails for a queued frame.
        let is_claimed = link.load(Ordering::Relaxed) == 0
            && link
                .compare_exchange(0, youngest | distance.in_link(), Ordering::AcqRel, Ordering::Relaxed)
                .is_ok();
        if !is_claimed {
            // Partner: `take`, see the module. This leaves the place of a queued frame as it is.
            if link.fetch_or(QUEUED, Ordering::AcqRel) & QUEUED != 0 {
                return;
            }
            link.swap(youngest | distance.in_link(), Ordering::AcqRel);
        }
        // Release, partner: the swap in `Gathered::from`, which follows the links.
        // A sum: one instruction less than `|`.
        let new = QUEUED + number(frame);
        while let Err(now) = self.0.compare_exchange(youngest, new, Ordering::Release, Ordering::Relaxed) {
            // Reclaim has emptied the stack.
            youngest = now;
            link.swap(youngest | distance.in_link(), Ordering::AcqRel);
        }
    }
}

/// A frame whose QUEUED bit the caller has, and which is in no stack or queue. The caller puts it into one ([`Queue::push`]).
#[derive(Debug)]
#[must_use = "a claimed frame that is put into no queue is lost"]
pub(crate) struct Claimed(Frame);

impl Claimed {
    /// Claims `frame` if it is in no stack or queue. Returns it with the number of the queue from which it was taken last, or 0.
    pub fn claim(folios: &impl Folios, frame: Frame) -> Option<(Self, u64)> {
        let link = folios.link(frame).fetch_or(QUEUED, Ordering::AcqRel);
        (link & QUEUED == 0).then_some((Self(frame), link >> ORIGIN))
    }

    /// Returns the frame.
    pub fn frame(&self) -> Frame {
        self.0
    }
}

/// The arrivals of one slot, taken off its stack.
#[must_use = "arrivals that are put into no queue are lost"]
pub(crate) struct Gathered {
    /// The number of the oldest frame, plus one; 0: none.
    oldest: u64,
    /// The number of frames.
    count: u64,
}

impl Gathered {
    /// Takes all `arrivals`. [`Gathered::next`] returns them, the oldest first.
    pub fn from(arrivals: &Arrivals, folios: &impl Folios) -> Self {
        // Most slots have none. The load saves the exchange, which would take the line from the slot's thread.
        if arrivals.0.load(Ordering::Relaxed) == Arrivals::EMPTY {
            return Self { oldest: 0, count: 0 };
        }
        // The chain begins with the youngest. Acquire, partner: `Arrivals::push`.
        let youngest = arrivals.0.swap(Arrivals::EMPTY, Ordering::Acquire);
        let (mut frame, mut younger, mut count) = (frame_of(youngest), 0, 0);
        while let Some(arrived) = frame {
            let link = folios.link(arrived);
            let old = link.load(Ordering::Relaxed);
            let new = (old & !NEXT) | younger;
            if mutant!("relinked_by_a_store") {
                link.store(new, Ordering::Release);
            } else {
                link.swap(new, Ordering::AcqRel);
            }
            (frame, younger) = (frame_of(old), number(arrived));
            count += 1;
        }
        Self { oldest: younger, count }
    }

    /// Returns the number of arrivals that [`Gathered::next`] has not returned yet.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the arrivals that are left, the oldest first.
    pub fn oldest(&self, folios: &impl Folios) -> impl Iterator<Item = Frame> {
        // Acquire, as for each link. Only this thread changes the links of these frames, but for QUEUED.
        core::iter::successors(frame_of(self.oldest), |frame| {
            frame_of(folios.link(*frame).load(Ordering::Acquire))
        })
    }

    /// Takes the oldest arrival off, with the distance of its refault.
    pub fn next(&mut self, folios: &impl Folios) -> Option<(Claimed, Distance)> {
        let frame = frame_of(self.oldest)?;
        let link = folios.link(frame).swap(QUEUED, Ordering::AcqRel);
        self.oldest = link & NEXT;
        self.count -= 1;
        Some((Claimed(frame), Distance::of_link(link)))
    }
}

/// A queue of frames, the oldest first. Protected by the lock of [`Queues`](super::groups::Queues).
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// The number of the oldest frame, plus one; 0 if the queue is empty.
    first: u64,
    /// The number of the youngest frame, plus one; 0 if the queue is empty.
    last: u64,
    length: u64,
}

/// A frame that was taken off a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub frame: Frame,
    /// The uses of its page; `None` if the frame is free, or its page is of a file without a store and reclaim does not swap. Such a
    /// frame is dropped: the thread that begins another page in it puts it into a stack.
    pub uses: Option<u64>,
}

impl Queue {
    /// Returns the number of frames, with those that are free by now.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Puts a frame at the young end.
    pub fn push(&mut self, folios: &impl Folios, Claimed(frame): Claimed) {
        let number = number(frame);
        match frame_of(self.last) {
            // The next frame of the last one is none, so this sets it.
            Some(last) => _ = folios.link(last).fetch_or(number, Ordering::AcqRel),
            None => self.first = number,
        }
        self.last = number;
        self.length += 1;
    }

    /// Takes the oldest frame off, and looks whether its page is in use. `origin`, below 4, is this queue's number, which
    /// [`Claimed::claim`] returns if no page begins in the frame before.
    pub fn take(&mut self, folios: &impl Folios, origin: u64) -> Option<Taken> {
        let frame = frame_of(self.first)?;
        let folio = folios.folio(frame);
        let uses = || folio.uses().filter(|_| folios.swaps() || !folio.is_of_file_in_memory());
        let early = if mutant!("popped_after_the_look") { Some(uses()) } else { None };
        // Partner: `Arrivals::push`, see the module.
        let link = folio.link().swap(origin << ORIGIN, Ordering::AcqRel);
        self.first = link & NEXT;
        if self.first == 0 {
            self.last = 0;
        }
        self.length -= 1;
        Some(Taken { frame, uses: early.unwrap_or_else(uses) })
    }

    /// Looks at the `count` oldest frames, if there are as many. Those that `keeps` refuses go to `strays`; the others go to the
    /// young end, in their order. Returns the number of frames at which it has looked.
    pub fn sort(
        &mut self,
        folios: &impl Folios,
        count: u64,
        keeps: &impl Fn(Frame) -> bool,
        strays: &mut Self,
    ) -> u64 {
        let count = count.min(self.length);
        for _ in 0..count {
            let Some(taken) = self.take(folios, 0) else { break };
            // A free frame is dropped, as always. Otherwise a fault may have put the frame into a stack, in its next life.
            if taken.uses.is_some()
                && let Some((frame, _)) = Claimed::claim(folios, taken.frame)
            {
                if keeps(taken.frame) { self.push(folios, frame) } else { strays.push(folios, frame) }
            }
        }
        count
    }
}

/// The frames of a policy's queues at which a call looks: `count` of them, after `done` others that earlier calls have kept. It goes from
/// queue to queue, the oldest first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub done: u64,
    pub count: u64,
}

/// Looks at frames of `queues`, one after the other, as [`ReclaimPolicy::sort`](super::policy::ReclaimPolicy::sort) states.
pub(super) fn sort_all<'a>(
    queues: impl IntoIterator<Item = &'a mut Queue>,
    folios: &impl Folios,
    Part { mut done, mut count }: Part,
    keeps: impl Fn(Frame) -> bool,
    strays: &mut Queue,
) {
    for queue in queues {
        let length = queue.length();
        count -= queue.sort(folios, count.min(length.saturating_sub(done)), &keeps, strays);
        done = done.saturating_sub(length);
    }
}
