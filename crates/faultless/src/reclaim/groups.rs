//! The queues of all groups of an engine: gathers the arrivals of all threads, and chooses the group that gives frames up.
//!
//! Each group has queues for its anonymous pages, with those of files without a store, and others for its pages of files. A *class* is
//! the pages of one group and one kind. A frame that is freed stays in its queue, and may be of another class in its next life. The
//! thread that takes such a stray frame off a queue puts it into the right one. If the queues of a group are empty, the queues of the
//! others are sorted, since they may have strays.

use super::ageing::{Ageing, BATCH, MANY_LOOKS, Offered};
use super::policy::{Demand, ReclaimPolicy, Report};
use super::queue::{Claimed, Distance, Folios, Gathered, Part, Queue};
use crate::frame::Folio;
use crate::host::{Frame, GroupId};
use crate::sync::Sections;
use alloc::vec::Vec;
use core::mem;
use core::ops::DerefMut;

/// The number of frames that are sorted in one call.
const SORTED: u64 = 4 * MANY_LOOKS;

/// The number of calls for one group after which a search for strays may be made though the group's queues are not empty. After a search
/// that finds none, twice as many calls come before the next one.
const CALLS: u32 = 64;
/// The greatest number of calls between two such searches. A group that needs its strays makes more before it runs out of memory.
const MOST_CALLS: u32 = CALLS << 3;

/// The greatest number of looks between two times that arrivals are gathered.
const MOST_LOOKS: u64 = 1024;

/// The number of arrivals that are put into the queues at a time.
const TOGETHER: usize = 32;

/// The part of the pages in the queues that bounds the arrivals of a slot whose first use is forgotten: one of so many.
const FORGOTTEN_PART: u64 = 8;

/// Returns the greatest number of arrivals of a slot whose first use is forgotten, if there are `length` pages in the queues. In models,
/// which have few, it is larger than that.
const fn most_forgotten(length: u64) -> u64 {
    if cfg!(loom) { 2 * length } else { length / FORGOTTEN_PART }
}

/// The kind of a page. It decides whether the page needs a slot, and so in which queues it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PageKind {
    /// An anonymous page, or a page of a file without a store.
    #[default]
    Anonymous,
    /// A page of a file that has a store.
    File,
}

impl PageKind {
    const ALL: [Self; 2] = [Self::Anonymous, Self::File];

    fn of(folio: &Folio) -> Self {
        if folio.is_of_swap() { Self::Anonymous } else { Self::File }
    }

    /// Returns the other kind.
    pub const fn other(self) -> Self {
        match self {
            Self::Anonymous => Self::File,
            Self::File => Self::Anonymous,
        }
    }
}

/// The pages of one group and one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Class {
    /// The group that pays for them.
    pub group: GroupId,
    pub kind: PageKind,
}

impl Class {
    fn of(folio: &Folio) -> Self {
        Self { group: folio.group(), kind: PageKind::of(folio) }
    }
}

/// The kinds of pages that reclaim is to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kinds {
    All,
    Files,
}

/// The pages from which reclaim is to take some.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// The group whose pages, and those of the groups below it, are taken.
    pub of: GroupId,
    pub kinds: Kinds,
    /// The kind that is taken first, if there are pages of it. `None`: the queues decide.
    pub first: Option<PageKind>,
    /// Whether arrivals are gathered before.
    pub gathers: bool,
}

impl Wanted {
    /// Returns all pages of `group` and the groups below it.
    pub const fn all_of(group: GroupId) -> Self {
        Self { of: group, kinds: Kinds::All, first: None, gathers: false }
    }
}

/// The queues of one group.
#[derive(Debug, Default)]
pub(crate) struct Lists<P> {
    kinds: [Ageing<P>; 2],
    /// The number of calls for the group since the last search for strays.
    calls: u32,
    /// The number of calls between two searches.
    pause: u32,
}

impl<P: ReclaimPolicy> Lists<P> {
    /// Makes queues of the same kind as `policy`, which are empty.
    fn like(policy: &P) -> Self {
        Self { kinds: PageKind::ALL.map(|_| Ageing::new(policy.of_same_kind())), calls: 0, pause: CALLS }
    }

    fn of(&self, kind: PageKind) -> &Ageing<P> {
        &self.kinds[kind as usize]
    }

    /// Returns the number of frames of pages of `kinds`.
    fn length(&self, kinds: Kinds) -> u64 {
        let files = self.of(PageKind::File).length();
        if kinds == Kinds::Files { files } else { files + self.of(PageKind::Anonymous).length() }
    }

    /// Returns the kind from which the next frames come. `place` is a place among all frames of the group.
    fn choose(&self, wanted: Wanted, place: u64) -> PageKind {
        let has = |kind| self.of(kind).length() != 0;
        match wanted.first {
            _ if wanted.kinds == Kinds::Files || !has(PageKind::Anonymous) => PageKind::File,
            _ if !has(PageKind::File) => PageKind::Anonymous,
            Some(kind) => kind,
            // Many pages of files were used once, as in a scan. A scan must not push out anonymous pages.
            None if self.of(PageKind::File).policy.has_many_used_once() => PageKind::File,
            None if place < self.of(PageKind::File).length() => PageKind::File,
            None => PageKind::Anonymous,
        }
    }
}

/// The queues. The engine keeps them under a lock that no fault takes.
#[derive(Debug, Default)]
pub(crate) struct Queues<P> {
    root: Lists<P>,
    /// Those of the other groups, by number.
    others: Vec<Lists<P>>,
    /// The number of looks since arrivals were gathered last.
    looks_since_gathering: u64,
    /// Whether a class has given its last frame since then.
    has_run_dry: bool,
    /// The place, in all frames of the groups that are asked, from which the next batch comes. So each group gives frames in
    /// proportion to those that it has.
    turn: u64,
    /// The number of the class whose queues are sorted next.
    sorted_next: usize,
    /// The number of frames in these queues that were sorted already, and have stayed.
    sorted_there: u64,
    /// The number of frames that are to be sorted before a search for strays has seen all.
    unsorted: Option<u64>,
}

/// Arrivals are to be gathered: see [`gather`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gathering {
    /// The greatest number of arrivals of a slot whose first use is forgotten.
    most_forgotten: u64,
}

/// The frames that reclaim shall try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Victims {
    /// The class from whose queues they come.
    pub class: Class,
    /// The number of frames.
    pub count: usize,
    /// The number of frames in the queues before.
    pub length: u64,
    /// Whether reclaim takes a page even if its accessed bit is set. It does after [`PASSES`](super::ageing::PASSES) passes over all pages
    /// of the class of which none could be taken.
    pub takes_young: bool,
    /// Whether there may be others in queues that are not sorted yet.
    pub is_delayed: bool,
}

impl<P: ReclaimPolicy> Queues<P> {
    /// Makes the queues of the root, which are empty.
    pub fn new(policy: &P) -> Self {
        Self { root: Lists::like(policy), ..Self::default() }
    }

    /// Returns the number of groups for which there is room.
    pub fn room(&self) -> usize {
        self.others.capacity()
    }

    /// Makes the queues of `group`, with the memory of `spare` if there is no room. Returns the memory that is not needed.
    pub fn add(&mut self, group: GroupId, mut spare: Vec<Lists<P>>) -> Vec<Lists<P>> {
        if spare.capacity() > self.others.capacity() {
            spare.append(&mut self.others);
            mem::swap(&mut spare, &mut self.others);
        }
        while self.others.len() < (group.get() as usize).min(self.others.capacity()) {
            let lists = Lists::like(&self.root.kinds[0].policy);
            self.others.push(lists);
        }
        spare
    }

    fn lists(&mut self, group: GroupId) -> &mut Lists<P> {
        match (group.get() as usize).checked_sub(1) {
            Some(place) if place < self.others.len() => &mut self.others[place],
            _ => &mut self.root,
        }
    }

    fn of(&mut self, class: Class) -> &mut Ageing<P> {
        &mut self.lists(class.group).kinds[class.kind as usize]
    }

    /// Returns the queues of each group, with the group.
    fn each(&self) -> impl Iterator<Item = (GroupId, &Lists<P>)> {
        core::iter::once(&self.root).chain(&self.others).zip(0..).map(|(one, id)| (GroupId::new(id), one))
    }

    /// Returns the number of frames in all queues.
    pub fn length(&self) -> u64 {
        self.each().map(|(_, one)| one.length(Kinds::All)).sum()
    }

    /// Fills `batch` with the next frames of `wanted`, all of one class. `has_gathered`: the caller has just gathered arrivals.
    ///
    /// # Errors
    /// Arrivals are to be gathered before ([`gather`]).
    pub fn next_victims(
        &mut self,
        folios: &impl Folios,
        sections: &Sections,
        wanted: Wanted,
        has_gathered: bool,
        batch: &mut [Frame],
    ) -> Result<Victims, Gathering> {
        if !has_gathered && (wanted.gathers || self.is_gathering_due()) {
            return Err(self.begin_gathering());
        }
        while let Some(class) = self.choose(sections, wanted) {
            let victims = self.offer(folios, class, batch);
            if victims.count == 0 {
                continue;
            }
            if victims.count < batch.len() && self.of(class).length() == 0 {
                // The next call is to find more.
                self.has_run_dry = true;
            }
            let is_delayed = self.search_if_few(folios, sections, wanted.of, victims.takes_young);
            return Ok(Victims { is_delayed, ..victims });
        }
        if !has_gathered {
            return Err(self.begin_gathering());
        }
        let is_part = wanted.of != GroupId::ROOT || wanted.kinds != Kinds::All;
        let is_delayed = is_part && (self.sort(folios) || self.unsorted.is_some());
        let class = Class { group: wanted.of, kind: PageKind::File };
        Ok(Victims { class, count: 0, length: 0, takes_young: false, is_delayed })
    }

    /// Returns whether arrivals are to be gathered. That looks at each slot, so it is not done for each batch.
    fn is_gathering_due(&self) -> bool {
        self.has_run_dry || self.looks_since_gathering >= (self.length() / 32).clamp(BATCH as u64, MOST_LOOKS)
    }

    /// Notes that the caller is about to gather.
    fn begin_gathering(&mut self) -> Gathering {
        self.has_run_dry = false;
        let looks = mem::take(&mut self.looks_since_gathering);
        // After many looks, or if many have arrived, most came long ago. Then their bits tell more than the first use.
        let most = most_forgotten(self.length());
        Gathering { most_forgotten: if looks <= most && !mutant!("first_use_stays") { most } else { 0 } }
    }

    /// Searches for strays of `group` and those below, if less than half of the pages for which they pay are in queues of their own:
    /// the group would give up these few again and again. `is_stuck`: several passes over its queues have found no page that can be
    /// taken. Then it is enough that not all pages are there. Returns whether the search is to go on.
    ///
    /// A search begins once in [`CALLS`] calls for the group, or in more.
    fn search_if_few(
        &mut self,
        folios: &impl Folios,
        sections: &Sections,
        group: GroupId,
        is_stuck: bool,
    ) -> bool {
        let is_stuck = is_stuck && !mutant!("strays_of_stuck_group_stay");
        // A search of a group whose queues are empty begins anew.
        let goes_on = self.unsorted.take().filter(|_| is_stuck);
        let Some(counts) = sections.groups().get(group) else { return false };
        let lists = self.lists(group);
        lists.calls += 1;
        if goes_on.is_none() && lists.calls < lists.pause {
            return false;
        }
        lists.calls = 0;
        let within = self.each().filter(|(other, _)| sections.groups().is_within(*other, group));
        let queued: u64 = within.map(|(_, one)| one.length(Kinds::All)).sum();
        if queued * 2 >= counts.usage() && !(is_stuck && queued < counts.usage()) {
            return false;
        }
        self.unsorted = goes_on;
        let has_found = self.sort(folios);
        let lists = self.lists(group);
        lists.pause = if has_found { CALLS } else { (lists.pause * 2).min(MOST_CALLS) };
        if !is_stuck {
            self.unsorted = None;
        }
        self.unsorted.is_some()
    }

    /// Fills `batch` with the next frames of `class` alone.
    fn offer(&mut self, folios: &impl Folios, class: Class, batch: &mut [Frame]) -> Victims {
        let (mut strays, length) = (Queue::default(), self.of(class).length());
        let is_of_class = |folio: &Folio| Class::of(folio) == class;
        let Offered { count, looks, demand } = self.of(class).offer(folios, is_of_class, batch, &mut strays);
        self.put_strays(folios, strays);
        self.looks_since_gathering += looks;
        Victims { class, count, length, takes_young: demand == Demand::Any, is_delayed: false }
    }

    /// Returns the class that is to give the next frames. `None` if its queues, and those of the groups below, are empty.
    fn choose(&mut self, sections: &Sections, wanted: Wanted) -> Option<Class> {
        let groups = sections.groups();
        let asked = |this: &Self, f: &mut dyn FnMut(&Lists<P>, u64) -> Option<PageKind>| {
            let lengths = this.each().map(|(group, one)| (group, one, one.length(wanted.kinds)));
            let lengths = lengths.filter(|(_, _, length)| *length > 0);
            for (group, one, length) in lengths.filter(|(group, ..)| groups.is_within(*group, wanted.of)) {
                if let Some(kind) = f(one, length) {
                    return Some(Class { group, kind });
                }
            }
            None
        };
        let mut sum = 0;
        asked(self, &mut |_, length| {
            sum += length;
            None
        });
        self.turn = self.turn.wrapping_add(BATCH as u64).checked_rem(sum)?;
        let mut before = self.turn;
        asked(self, &mut |one, length| {
            let kind = (before < length).then(|| one.choose(wanted, before));
            before = before.saturating_sub(length);
            kind
        })
    }

    /// Moves frames that are in the queue of another class into the right one. Looks at [`SORTED`] frames at most, and goes on behind
    /// them at the next call. Returns whether some were moved. If not, `unsorted` is the number of frames that are still to be looked at.
    fn sort(&mut self, folios: &impl Folios) -> bool {
        let all = self.unsorted.unwrap_or_else(|| self.length());
        let (mut left, mut strays) = (all.min(SORTED), Queue::default());
        let classes = PageKind::ALL.len() * (self.others.len() + 1);
        // The class with which it begins may come once more at the end: with the part that was sorted before.
        for _ in 0..=classes {
            let number = self.sorted_next % classes;
            let group = GroupId::new((number / PageKind::ALL.len()) as u32);
            let class = Class { group, kind: PageKind::ALL[number % PageKind::ALL.len()] };
            let done = self.sorted_there;
            let before = self.of(class).length();
            let count = before.saturating_sub(done).min(left);
            let keeps = |frame| Class::of(folios.folio(frame)) == class;
            self.of(class).policy.sort(folios, Part { done, count }, keeps, &mut strays);
            left -= count;
            // Without those that were dropped or are strays.
            let length = self.of(class).length();
            self.sorted_there = done + count - (before - length);
            if self.sorted_there >= length {
                self.sorted_there = 0;
                self.sorted_next = if mutant!("sorts_one_class") { number } else { number + 1 };
            }
            if left == 0 {
                break;
            }
        }
        let has_found = strays.length() != 0;
        self.put_strays(folios, strays);
        let rest = all.saturating_sub(SORTED);
        self.unsorted = (rest != 0 && !has_found).then_some(rest);
        has_found
    }

    fn put_strays(&mut self, folios: &impl Folios, mut strays: Queue) {
        while let Some(stray) = strays.take(folios, 0) {
            // Otherwise it is free, and the thread that begins a page in it puts it into a stack.
            if stray.uses.is_some()
                && let Some((frame, _)) = Claimed::claim(folios, stray.frame)
            {
                self.arrive(folios, frame, Distance::NEW);
            }
        }
    }

    fn arrive(&mut self, folios: &impl Folios, frame: Claimed, distance: Distance) {
        let class = Class::of(folios.folio(frame.frame()));
        self.of(class).policy.arrived(folios, frame, distance);
    }

    /// Takes the results of reclaim's tries of `count` frames that `class` has offered: all are free.
    pub fn freed(&mut self, class: Class, count: u64) {
        self.of(class).freed(count);
    }

    /// Takes the result of reclaim's try of `frame`, which `class` has offered.
    pub fn report(&mut self, folios: &impl Folios, class: Class, frame: Frame, report: Report) {
        self.of(class).tried(matches!(report, Report::Taken | Report::Freed));
        if report == Report::Young {
            folios.folio(frame).add_use();
        }
        // If a page has begun in the frame since it was offered, a fault may have claimed it.
        if report != Report::Freed
            && let Some((frame, origin)) = Claimed::claim(folios, frame)
        {
            self.of(class).policy.reported(folios, frame, origin, report);
        }
    }
}

/// Puts the arrivals of all slots into the queues, also of slots whose threads have ended. `lock` returns the queues under their lock, which
/// is held for [`TOGETHER`] arrivals at a time. Meanwhile the others are in no queue, as frames that were offered.
///
/// The access of the fault that brought a page is no sign that the page will be used again. So the first use is forgotten, in no lock,
/// unless most pages have arrived long ago.
pub(crate) fn gather<P: ReclaimPolicy, Q: DerefMut<Target = Queues<P>>>(
    folios: &impl Folios,
    sections: &Sections,
    Gathering { most_forgotten }: Gathering,
    lock: impl Fn() -> Q,
) {
    sections.each_arrivals(|arrivals| {
        let mut gathered = Gathered::from(arrivals, folios);
        let forgets = gathered.count() <= most_forgotten;
        while gathered.count() != 0 {
            if forgets {
                gathered.oldest(folios).take(TOGETHER).for_each(|frame| folios.forget_first_use(frame));
            }
            let mut queues = lock();
            for _ in 0..TOGETHER {
                let Some((frame, distance)) = gathered.next(folios) else { break };
                queues.arrive(folios, frame, distance);
            }
        }
    });
}
