//! Snapshots, and the checks of their pages.

use super::page::{Before, Bounds, Wrong};
use super::stamp::{Link, Seen, WORDS, Words};
use super::toucher::{read_plain, wrong_word};
use super::watchdog::{Doing, Progress};
use super::{Arena, End, PAGE, Random, Shared, count};
use faultless_linux::{Region, access};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

/// The number of pages that are checked at random.
const BY_CHANCE: usize = 64;
/// The number of pages that are checked by following links.
const BY_LINKS: usize = 160;

/// A snapshot, and the known words of some of its pages.
pub struct Snapshot {
    pub region: Region,
    /// The index of its region.
    pub arena: usize,
    /// Locked by a thread that reads the page, or by the disturber, which alone writes it.
    pages: Vec<(u32, RwLock<Box<Words>>)>,
}

/// The pages of a new snapshot that were read so far.
struct Look<'s> {
    shared: &'s Shared,
    arena: &'s Arena,
    region: &'s Region,
    bounds: &'s [Bounds],
    found: BTreeMap<u32, Box<Words>>,
}

impl Look<'_> {
    fn read(&self, page: u32) -> Result<Words, End> {
        let words = read_plain(self.region, &format!("{} snapshot", self.arena.name), page as usize)?;
        let checked = self.bounds[page as usize].check_instant(&self.arena.formula, page, &words);
        checked.map_err(|wrong| self.wrong(page, &words, &wrong))?;
        count(&self.shared.counts.compared, 1);
        Ok(words)
    }

    fn wrong(&self, page: u32, words: &Words, wrong: &Wrong) -> End {
        wrong_word(&format!("{} snapshot", self.arena.name), page, words, wrong)
    }

    fn look(&mut self, page: u32) -> Result<(), End> {
        if !self.found.contains_key(&page) {
            let words = self.read(page)?;
            self.found.insert(page, Box::new(words));
        }
        Ok(())
    }

    /// Checks a link. The write `from` began after `to` had ended, so the snapshot must show `to` or a later state.
    fn check_link(&mut self, from: Link, to: Link) -> Result<(), End> {
        let started = |state: &super::page::Page| state.started.load(SeqCst);
        let state = self.arena.pages.get(to.page as usize);
        let Some(state) = state.filter(|state| to.generation <= started(state)) else {
            return Err(End::Wrong(format!(
                "page {} of the {} snapshot, bytes 8 to 40: expected the place of an earlier write, found page {} \
                 stamp {}",
                from.page, self.arena.name, to.page, to.generation
            )));
        };
        self.look(to.page)?;
        let completed = state.completed.load(SeqCst);
        // For the page's last write it is known which discards had ended before it.
        let ended_before = if (completed >> 32) as u32 == to.generation { completed as u32 } else { 0 };
        let base = state.begun.load(SeqCst) > ended_before;
        let words = &self.found[&to.page];
        let seen = self.arena.formula.read(to.page, words).unwrap_or([Seen::Base; WORDS]);
        let missing = seen.iter().position(|seen| match seen {
            Seen::Base => !base,
            Seen::Stamp(generation) => *generation < to.generation,
        });
        count(&self.shared.counts.links, 1);
        match missing {
            None => Ok(()),
            Some(word) => {
                let expected = format!(
                    "stamp {} or later, since page {} has stamp {}, which was written afterwards",
                    to.generation, from.page, from.generation
                );
                Err(self.wrong(to.page, words, &Wrong { word, expected }))
            }
        }
    }

    /// Follows links back from the newest writes.
    fn follow(&mut self, newest: Vec<Link>, progress: &Progress, arena: usize) -> Result<(), End> {
        let mut next = std::collections::VecDeque::from(newest);
        let mut followed = 0;
        while let Some(link) = next.pop_front() {
            if link.generation == 0 || followed == BY_LINKS {
                continue;
            }
            progress.begin(Doing::CheckSnapshot, arena, link.page as usize);
            followed += 1;
            self.look(link.page)?;
            let Some((generation, targets)) = self.arena.formula.links(link.page, &self.found[&link.page])
            else {
                continue;
            };
            for target in targets.into_iter().filter(|target| target.generation != 0) {
                self.check_link(Link { page: link.page, generation }, target)?;
                next.push_back(target);
            }
        }
        Ok(())
    }
}

fn unpack(packed: u64) -> Link {
    Link { page: (packed >> 32) as u32, generation: packed as u32 }
}

impl Snapshot {
    /// Takes a snapshot and checks some of its pages, or all. Called by the disturber, which meanwhile discards and
    /// protects nothing.
    pub fn take(
        shared: &Shared,
        number: usize,
        whole: bool,
        random: &mut Random,
        progress: &Progress,
    ) -> Result<Self, End> {
        let arena = &shared.arenas[number];
        progress.begin(Doing::Snapshot, number, 0);
        let before: Vec<Before> = arena.pages.iter().map(super::page::Page::before).collect();
        let start = Instant::now();
        let region = arena.region.snapshot();
        let region = region.map_err(|error| End::Wrong(format!("the {} snapshot: {error}", arena.name)))?;
        let bounds: Vec<Bounds> =
            arena.pages.iter().zip(before).map(|(page, before)| page.bounds(before)).collect();
        let last = arena.last_of.iter().chain([&arena.last]);
        let newest: Vec<Link> = last.map(|last| unpack(last.load(SeqCst))).collect();
        shared.counts.count_snapshot(start.elapsed());
        let mut look = Look { shared, arena, region: &region, bounds: &bounds, found: BTreeMap::new() };
        look.follow(newest, progress, number)?;
        for _ in 0..BY_CHANCE {
            progress.begin(Doing::CheckSnapshot, number, 0);
            look.look(random.below(arena.pages.len()) as u32)?;
        }
        if whole {
            for page in 0..arena.pages.len() {
                if shared.over() {
                    break;
                }
                progress.begin(Doing::CheckSnapshot, number, page);
                look.read(page as u32)?;
            }
        }
        let pages = look.found.into_iter().map(|(page, words)| (page, RwLock::new(words))).collect();
        Ok(Self { region, arena: number, pages })
    }

    fn name(&self, shared: &Shared) -> String {
        format!("{} snapshot", shared.arenas[self.arena].name)
    }

    fn compare_page(&self, shared: &Shared, page: u32, expected: &Words) -> Result<(), End> {
        let words = read_plain(&self.region, &self.name(shared), page as usize)?;
        count(&shared.counts.compared, 1);
        match (0..WORDS).find(|word| words[*word] != expected[*word]) {
            None => Ok(()),
            Some(word) => Err(End::Wrong(format!(
                "page {page} of the {}, byte {}: expected {:#018x}, as in an earlier read, found {:#018x}",
                self.name(shared),
                word * 8,
                expected[word],
                words[word]
            ))),
        }
    }

    /// Checks that one of its known pages has not changed.
    pub fn compare(&self, shared: &Shared, which: usize) -> Result<(), End> {
        let (page, words) = &self.pages[which % self.pages.len()];
        match words.try_read() {
            Some(expected) => self.compare_page(shared, *page, &expected),
            None => Ok(()),
        }
    }

    /// Checks that all its known pages have not changed.
    pub fn compare_all(&self, shared: &Shared, progress: &Progress) -> Result<(), End> {
        for (page, words) in &self.pages {
            progress.begin(Doing::CheckSnapshot, self.arena, *page as usize);
            self.compare_page(shared, *page, &words.read())?;
        }
        Ok(())
    }

    /// Writes to some of its pages. Called by the disturber.
    pub fn write(&self, shared: &Shared, random: &mut Random, progress: &Progress) -> Result<(), End> {
        for _ in 0..8 {
            let (page, words) = &self.pages[random.below(self.pages.len())];
            progress.begin(Doing::WriteSnapshot, self.arena, *page as usize);
            let mut words = words.write();
            // Neither base nor stamp, so that another page or region that shows it is found wrong.
            let salt = random.next();
            words.iter_mut().enumerate().for_each(|(word, value)| *value = salt >> 33 ^ word as u64);
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let at = self.region.as_ptr().wrapping_add(*page as usize * PAGE);
            // SAFETY: the region's own memory, into which there are no references.
            let written = unsafe { access::write(at, &bytes) };
            written.map_err(|error| {
                let why = self.region.refusal(*page as usize * PAGE);
                let why = why.map_or(String::new(), |error| format!(": {error}"));
                let (name, signal) = (self.name(shared), error.signal);
                End::Wrong(format!("page {page} of the {name}, byte {}: {signal}{why}", error.done))
            })?;
        }
        Ok(())
    }

    /// Takes a snapshot of this snapshot. Called by the disturber.
    pub fn again(&self, shared: &Shared, progress: &Progress) -> Result<Self, End> {
        progress.begin(Doing::SnapshotAgain, self.arena, 0);
        let start = Instant::now();
        let region = self.region.snapshot();
        let region = region
            .map_err(|error| End::Wrong(format!("a snapshot of the {}: {error}", self.name(shared))))?;
        shared.counts.count_snapshot(start.elapsed());
        let pages = self.pages.iter().map(|(page, words)| (*page, RwLock::new(words.read().clone())));
        Ok(Self { region, arena: self.arena, pages: pages.collect() })
    }
}
