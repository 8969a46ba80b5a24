//! The disturber: the thread that discards, protects and takes snapshots.

use super::page::{Rights, Wrong};
use super::snapshot::Snapshot;
use super::stamp::{Formula, Link};
use super::toucher::{read_plain, wrong_word};
use super::watchdog::{Doing, Progress};
use super::{End, PAGE, Random, SNAPSHOTS, Shared, brief, count};

use faultless::protection::Protection;
use faultless_linux::{Region, RegionError, access};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

struct Disturber<'s> {
    shared: &'s Shared,
    progress: &'s Progress,
    helper: &'s Progress,
    random: Random,
    /// Another region of the same file, and its written pages.
    second: Option<(Region, BTreeSet<u32>)>,
    /// The generations that the present discard takes.
    taken: Vec<u32>,
}

/// Runs until the time is up.
pub fn run(shared: &Shared, progress: &Progress, helper: &Progress) -> Result<(), End> {
    let random = Random::new(shared.config.seed, 1 << 32);
    let mut disturber = Disturber { shared, progress, helper, random, second: None, taken: Vec::new() };
    while !shared.over() {
        disturber.step()?;
    }
    progress.end();
    Ok(())
}

fn wrong(what: &str, error: &RegionError) -> End {
    End::Wrong(format!("{what}: {error}"))
}

impl Disturber<'_> {
    fn step(&mut self) -> Result<(), End> {
        match self.random.below(100) {
            0..35 => {
                let (number, part) = self.part();
                self.discard(number, part)
            }
            35..60 => self.protect(),
            60..68 => self.snapshot(),
            68..82 => self.with_snapshot(Self::look_again),
            82..85 => {
                self.progress.begin(Doing::DropSnapshot, 0, 0);
                self.drop_a_snapshot();
                Ok(())
            }
            85..90 => brief::run(self.shared, &mut self.random, self.progress, self.helper),
            90..94 => self.second_region(),
            _ => {
                std::thread::sleep(Duration::from_micros(self.random.below(2000) as u64));
                Ok(())
            }
        }
    }

    /// Chooses a part of one of the regions: mostly a short one, often among the pages that are touched most.
    fn part(&mut self) -> (usize, Range<usize>) {
        let number = self.random.below(2);
        let pages = self.shared.arenas[number].pages.len();
        let most = [1, 4, 16, 64, 256, 1024][self.random.below(6)].min(pages);
        let length = 1 + self.random.below(most);
        let last = if self.random.permille(200) { 64.min(pages - length) } else { pages - length };
        let start = self.random.below(last + 1);
        (number, start..start + length)
    }

    fn discard(&mut self, number: usize, part: Range<usize>) -> Result<(), End> {
        let arena = &self.shared.arenas[number];
        self.progress.begin(Doing::Discard, number, part.start);
        self.taken.clear();
        for page in &arena.pages[part.clone()] {
            page.begun.fetch_add(1, SeqCst);
            self.taken.push((page.completed.load(SeqCst) >> 32) as u32);
        }
        // SAFETY: there are no references into the region.
        let discarded = unsafe { arena.region.discard_shared(part.start * PAGE..part.end * PAGE) };
        discarded.map_err(|error| wrong("discard", &error))?;
        for (page, taken) in arena.pages[part].iter().zip(&self.taken) {
            page.gone.store(*taken, SeqCst);
            page.ended.fetch_add(1, SeqCst);
        }
        count(&self.shared.counts.discards, 1);
        Ok(())
    }

    fn set_rights(&mut self, number: usize, part: &Range<usize>, rights: Rights) -> Result<(), End> {
        let arena = &self.shared.arenas[number];
        let doing = if rights == Rights::All { Doing::Unprotect } else { Doing::Protect };
        self.progress.begin(doing, number, part.start);
        let set = |rights| arena.pages[part.clone()].iter().for_each(|page| page.set_rights(rights));
        set(Rights::Changing);
        let protection = match rights {
            Rights::Read => Protection::READ,
            Rights::None => Protection::empty(),
            Rights::All | Rights::Changing => Protection::READ | Protection::WRITE,
        };
        // SAFETY: as above.
        let done = unsafe { arena.region.protect(part.start * PAGE..part.end * PAGE, protection) };
        done.map_err(|error| wrong("protect", &error))?;
        set(rights);
        count(&self.shared.counts.protects, 1);
        Ok(())
    }

    /// Takes rights from a part, does another operation, and gives the rights back.
    fn protect(&mut self) -> Result<(), End> {
        let (number, part) = self.part();
        let rights = if self.random.permille(500) { Rights::Read } else { Rights::None };
        self.set_rights(number, &part, rights)?;
        self.try_rights(number, &part)?;
        match self.random.below(8) {
            0 => {
                let start = part.start + self.random.below(part.len());
                self.discard(number, start..part.end)?;
            }
            1 => {
                let other = if rights == Rights::Read { Rights::None } else { Rights::Read };
                self.set_rights(number, &part, other)?;
                self.try_rights(number, &part)?;
            }
            2 if self.random.permille(200) => self.snapshot_protected(number, &part)?,
            3..6 => std::thread::sleep(Duration::from_micros(self.random.below(300) as u64)),
            _ => {}
        }
        self.set_rights(number, &part, Rights::All)
    }

    /// Checks that the rights are in force: a store is refused, whether or not a thread owns the page.
    fn try_rights(&mut self, number: usize, part: &Range<usize>) -> Result<(), End> {
        let (arena, page) = (&self.shared.arenas[number], part.start + self.random.below(part.len()));
        arena.load(self.shared, page, 0)?;
        arena.store(self.shared, page, 0, u64::MAX)?;
        Ok(())
    }

    /// Checks that a snapshot has the rights of its original until it is given others.
    fn snapshot_protected(&mut self, number: usize, part: &Range<usize>) -> Result<(), End> {
        let arena = &self.shared.arenas[number];
        self.progress.begin(Doing::Snapshot, number, part.start);
        let start = Instant::now();
        let region = arena.region.snapshot().map_err(|error| wrong("snapshot", &error))?;
        self.shared.counts.count_snapshot(start.elapsed());
        let page = part.start + self.random.below(part.len());
        let at: *mut u64 = region.as_ptr().wrapping_add(page * PAGE).cast();
        // SAFETY: the region's own memory, into which there are no references.
        if !unsafe { access::store_u64(at, u64::MAX) }.is_err_and(access::Signal::is_segv) {
            let name = arena.name;
            return Err(End::Wrong(format!(
                "page {page} of the {name} snapshot: expected SIGSEGV, as the original's rights were"
            )));
        }
        count(&self.shared.counts.signals, 1);
        let rights = Protection::READ | Protection::WRITE;
        // SAFETY: as above.
        let done = unsafe { region.protect(part.start * PAGE..part.end * PAGE, rights) };
        done.map_err(|error| wrong("protect", &error))?;
        // No thread could write meanwhile. The snapshot has the original's words, within the bounds.
        let words = read_plain(&region, &format!("{} snapshot", arena.name), page)?;
        let bounds = arena.pages[page].bounds(arena.pages[page].before());
        let checked = bounds.check_instant(&arena.formula, page as u32, &words);
        checked
            .map_err(|found| wrong_word(&format!("{} snapshot", arena.name), page as u32, &words, &found))?;
        count(&self.shared.counts.compared, 1);
        // SAFETY: as above.
        unsafe { access::store_u64(at, 1) }
            .map_err(|signal| End::Wrong(format!("page {page} of the {} snapshot: {signal}", arena.name)))
    }

    fn snapshot(&mut self) -> Result<(), End> {
        if self.shared.snapshots.read().len() >= SNAPSHOTS {
            self.drop_a_snapshot();
        }
        let (number, whole) = (self.random.below(2), self.random.permille(10));
        let snapshot = Snapshot::take(self.shared, number, whole, &mut self.random, self.progress)?;
        self.shared.snapshots.write().push(Arc::new(snapshot));
        Ok(())
    }

    /// Drops a snapshot, even if another thread reads it: then that thread drops it last.
    fn drop_a_snapshot(&mut self) {
        let mut all = self.shared.snapshots.write();
        if !all.is_empty() {
            let which = self.random.below(all.len());
            let snapshot = all.swap_remove(which);
            drop(all);
            drop(snapshot);
        }
    }

    fn with_snapshot(
        &mut self,
        act: impl FnOnce(&mut Self, Arc<Snapshot>) -> Result<(), End>,
    ) -> Result<(), End> {
        let snapshot = {
            let all = self.shared.snapshots.read();
            if all.is_empty() {
                return Ok(());
            }
            Arc::clone(&all[self.random.below(all.len())])
        };
        act(self, snapshot)
    }

    fn look_again(&mut self, snapshot: Arc<Snapshot>) -> Result<(), End> {
        match self.random.below(8) {
            0..4 => snapshot.write(self.shared, &mut self.random, self.progress),
            4 if self.shared.snapshots.read().len() < SNAPSHOTS => {
                let again = snapshot.again(self.shared, self.progress)?;
                self.shared.snapshots.write().push(Arc::new(again));
                Ok(())
            }
            _ => snapshot.compare_all(self.shared, self.progress),
        }
    }

    /// Makes a second region of the file; or checks it, writes to it, and sometimes drops it.
    fn second_region(&mut self) -> Result<(), End> {
        const PAGES: usize = 32;
        self.progress.begin(Doing::SecondRegion, 1, 0);
        let Some((region, mut written)) = self.second.take() else {
            let region = self.shared.pager.store(Arc::clone(&self.shared.store));
            let region = region.map_err(|error| wrong("a second region of the file", &error))?;
            self.second = Some((region, BTreeSet::new()));
            return Ok(());
        };
        let file = &self.shared.arenas[1].formula;
        // Stamps of its own: the other region must not show them.
        let own = Formula { seed: !file.seed, file: true };
        let pages = region.len() / PAGE;
        for _ in 0..PAGES {
            let page = if written.is_empty() || self.random.permille(500) {
                self.random.below(pages) as u32
            } else {
                let nth = self.random.below(written.len());
                written.iter().copied().nth(nth).unwrap_or(0)
            };
            self.progress.begin(Doing::SecondRegion, 1, page as usize);
            let words = read_plain(&region, "second region of the file", page as usize)?;
            let stamps = own.stamps(page, 1, [Link::default(); 2]);
            let expected = if written.contains(&page) { stamps } else { file.base(page) };
            if let Some(word) = (0..words.len()).find(|word| words[*word] != expected[*word]) {
                let found = Wrong { word, expected: format!("{:#018x}", expected[word]) };
                return Err(wrong_word("second region of the file", page, &words, &found));
            }
            if self.random.permille(300) {
                let bytes: Vec<u8> = stamps.iter().flat_map(|word| word.to_ne_bytes()).collect();
                // SAFETY: the region's own memory, into which there are no references.
                let done =
                    unsafe { access::write(region.as_ptr().wrapping_add(page as usize * PAGE), &bytes) };
                done.map_err(|error| {
                    let signal = error.signal;
                    End::Wrong(format!("page {page} of the second region of the file: {signal}"))
                })?;
                written.insert(page);
            }
        }
        self.shared.counts.touched.fetch_add(PAGES as u64, Relaxed);
        if self.random.permille(900) {
            self.second = Some((region, written));
        }
        Ok(())
    }
}
