//! The queues of all groups of an engine: gathers the arrivals of all threads, and chooses the group that gives frames up.
//!
//! A frame that is freed stays in its queue, and may be of another group in its next life. The thread that takes such a stray frame
//! off a queue puts it into the right one. If a group has pages and no frame in its queues, the queues of the others are sorted.

use super::ageing::{Ageing, BATCH, MANY_LOOKS, Offered};
use super::policy::{Demand, ReclaimPolicy, Report};
use super::queue::{Claimed, Distance, Folios, Gathered, Queue};
use crate::host::{Frame, GroupId};
use crate::sync::Sections;
use alloc::vec::Vec;
use core::mem;

/// The number of frames that are sorted in one call.
const SORTED: u64 = 4 * MANY_LOOKS;

/// The queues. The engine keeps them under a lock that no fault takes.
#[derive(Debug, Default)]
pub(crate) struct Queues<P> {
    root: Ageing<P>,
    /// Those of the other groups, by number.
    others: Vec<Ageing<P>>,
    /// The number of looks since arrivals were gathered last.
    looks_since_gathering: u64,
    /// The place, in all frames of the groups that are asked, from which the next batch comes. So each group gives frames in
    /// proportion to those that it has.
    turn: u64,
    /// The group whose queues are sorted next.
    sorted_next: usize,
    /// The number of frames that are to be sorted before a search for strays has seen all.
    unsorted: Option<u64>,
}

/// The frames that reclaim shall try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Victims {
    /// The group that pays for them.
    pub group: GroupId,
    /// The number of frames.
    pub count: usize,
    /// Whether reclaim takes a page even if its accessed bit is set. So it is after [`PASSES`](super::ageing::PASSES) passes over
    /// all pages of the group of which none could be taken.
    pub takes_young: bool,
    /// Whether there may be others in queues that are not sorted yet.
    pub is_delayed: bool,
}

impl<P: ReclaimPolicy> Queues<P> {
    /// Makes the queues of the root, which are empty.
    pub fn new(policy: P) -> Self {
        Self { root: Ageing::new(policy), ..Self::default() }
    }

    /// Returns the number of groups for which there is room.
    pub fn room(&self) -> usize {
        self.others.capacity()
    }

    /// Makes the queues of `group`, with the memory of `spare` if there is no room. Returns the memory that is not needed.
    pub fn add(&mut self, group: GroupId, mut spare: Vec<Ageing<P>>) -> Vec<Ageing<P>> {
        if spare.capacity() > self.others.capacity() {
            spare.append(&mut self.others);
            mem::swap(&mut spare, &mut self.others);
        }
        while self.others.len() < (group.get() as usize).min(self.others.capacity()) {
            self.others.push(Ageing::new(self.root.policy.of_same_kind()));
        }
        spare
    }

    fn of(&mut self, group: GroupId) -> &mut Ageing<P> {
        match (group.get() as usize).checked_sub(1) {
            Some(place) if place < self.others.len() => &mut self.others[place],
            _ => &mut self.root,
        }
    }

    /// Returns the queues with the groups whose they are.
    fn each(&self) -> impl Iterator<Item = (GroupId, &Ageing<P>)> {
        core::iter::once(&self.root).chain(&self.others).zip(0..).map(|(one, id)| (GroupId::new(id), one))
    }

    /// Returns the number of frames in all queues.
    pub fn length(&self) -> u64 {
        self.each().map(|(_, one)| one.length()).sum()
    }

    /// Fills `batch` with the next frames of `of` and the groups below it. The frames are of one group.
    pub fn next_victims(
        &mut self,
        folios: &impl Folios,
        sections: &Sections,
        of: GroupId,
        batch: &mut [Frame],
    ) -> Victims {
        // Gathering looks at each slot, so it is not done for each batch.
        let mut is_gathered = self.looks_since_gathering >= (self.length() / 32).max(BATCH as u64);
        if is_gathered {
            self.gather(folios, sections);
        }
        loop {
            while let Some(group) = self.choose(sections, of) {
                let mut victims = self.offer(folios, group, batch);
                if victims.count == 0 {
                    continue;
                }
                if victims.count < batch.len() && !is_gathered && self.of(group).length() == 0 {
                    self.gather(folios, sections);
                    let more = self.offer(folios, group, &mut batch[victims.count..]);
                    victims.count += more.count;
                    victims.takes_young |= more.takes_young;
                }
                self.unsorted = None;
                return victims;
            }
            if is_gathered {
                break;
            }
            self.gather(folios, sections);
            is_gathered = true;
        }
        let is_delayed = of != GroupId::ROOT && self.sort(folios);
        Victims { group: of, count: 0, takes_young: false, is_delayed }
    }

    /// Fills `batch` with the next frames of `group` alone.
    fn offer(&mut self, folios: &impl Folios, group: GroupId, batch: &mut [Frame]) -> Victims {
        let mut strays = Queue::default();
        let Offered { count, looks, demand } = self.of(group).offer(folios, group, batch, &mut strays);
        self.put_strays(folios, strays);
        self.looks_since_gathering += looks;
        Victims { group, count, takes_young: demand == Demand::Any, is_delayed: false }
    }

    /// Returns the group, `of` or one below it, that is to give the next frames. `None` if their queues are empty.
    fn choose(&mut self, sections: &Sections, of: GroupId) -> Option<GroupId> {
        let groups = sections.groups();
        let asked = |this: &Self, f: &mut dyn FnMut(GroupId, u64) -> bool| {
            let lengths =
                this.each().map(|(group, one)| (group, one.length())).filter(|(_, length)| *length > 0);
            for (group, length) in lengths.filter(|(group, _)| groups.is_within(*group, of)) {
                if f(group, length) {
                    return Some(group);
                }
            }
            None
        };
        let mut sum = 0;
        asked(self, &mut |_, length| {
            sum += length;
            false
        });
        self.turn = self.turn.wrapping_add(BATCH as u64).checked_rem(sum)?;
        let mut before = self.turn;
        asked(self, &mut |_, length| {
            let is_here = before < length;
            before = before.saturating_sub(length);
            is_here
        })
    }

    /// Sorts some frames of the queues into those of the groups that pay for them. Returns whether there are more to be sorted, or
    /// some were in the wrong queue.
    fn sort(&mut self, folios: &impl Folios) -> bool {
        let all = self.unsorted.unwrap_or_else(|| self.length());
        let (mut left, mut strays) = (all.min(SORTED), Queue::default());
        for _ in 0..=self.others.len() {
            let group = GroupId::new((self.sorted_next % (self.others.len() + 1)) as u32);
            let length = self.of(group).length();
            let count = length.min(left);
            let keeps = |frame| folios.folio(frame).group() == group;
            self.of(group).policy.sort(folios, count, keeps, &mut strays);
            left -= count;
            if count == length {
                self.sorted_next = (group.get() as usize) + 1;
            }
            if left == 0 {
                break;
            }
        }
        let has_found = strays.length() != 0;
        self.put_strays(folios, strays);
        let rest = all.saturating_sub(SORTED);
        self.unsorted = (rest != 0 && !has_found).then_some(rest);
        has_found || rest != 0
    }

    fn put_strays(&mut self, folios: &impl Folios, mut strays: Queue) {
        while let Some(stray) = strays.take(folios, 0) {
            // Otherwise it is free, and the fault that gives it to an anonymous page puts it into a stack.
            if stray.uses.is_some()
                && let Some((frame, _)) = Claimed::claim(folios, stray.frame)
            {
                self.arrive(folios, frame, Distance::NEW);
            }
        }
    }

    fn arrive(&mut self, folios: &impl Folios, frame: Claimed, distance: Distance) {
        let group = folios.folio(frame.frame()).group();
        self.of(group).policy.arrived(folios, frame, distance);
    }

    /// Takes the result of reclaim's try of `frame`, which `group` has offered.
    pub fn report(&mut self, folios: &impl Folios, group: GroupId, frame: Frame, report: Report) {
        self.of(group).tried(matches!(report, Report::Taken | Report::Freed));
        if report == Report::Young {
            folios.folio(frame).add_use();
        }
        // If a page has begun in the frame since it was offered, a fault may have claimed it.
        if report != Report::Freed
            && let Some((frame, origin)) = Claimed::claim(folios, frame)
        {
            self.of(group).policy.reported(folios, frame, origin, report);
        }
    }

    /// Puts the arrivals of all slots into the policy's queues, also of slots whose threads have ended.
    fn gather(&mut self, folios: &impl Folios, sections: &Sections) {
        self.looks_since_gathering = 0;
        sections.each_arrivals(|arrivals| {
            let mut gathered = Gathered::from(arrivals, folios);
            while let Some((frame, distance)) = gathered.next(folios) {
                self.arrive(folios, frame, distance);
            }
        });
    }
}
