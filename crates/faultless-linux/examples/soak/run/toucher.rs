//! The touchers: threads that read and write pages.

use super::page::{Page, Record, Rights, Wrong};
use super::stamp::{Link, WORDS, Words};
use super::watchdog::{Doing, Progress};
use super::{Arena, End, PAGE, Random, Shared, count};
use faultless_linux::{Region, access};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::fence;

/// The number of adjacent pages that are touched more than others.
const HOT: usize = 64;

/// Unpacks a write that has ended.
fn unpack(packed: u64) -> Link {
    Link { page: (packed >> 32) as u32, generation: packed as u32 }
}

/// Returns the error for a word with an impossible value.
pub fn wrong_word(name: &str, page: u32, words: &Words, wrong: &Wrong) -> End {
    let Wrong { word, expected } = wrong;
    End::Wrong(format!(
        "page {page} of the {name}, byte {}: expected {expected}, found {:#018x}",
        word * 8,
        words[*word]
    ))
}

/// Reads a page of a region that no thread protects, so that a signal is an error.
pub fn read_plain(region: &Region, name: &str, page: usize) -> Result<Words, End> {
    let mut bytes = [0; PAGE];
    // SAFETY: the region's own memory, into which there are no references.
    let read = unsafe { access::read(region.as_ptr().wrapping_add(page * PAGE), &mut bytes) };
    read.map_err(|error| {
        let why = region.refusal(page * PAGE).map_or(String::new(), |error| format!(": {error}"));
        End::Wrong(format!("page {page} of the {name}, byte {}: {}{why}", error.done, error.signal))
    })?;
    Ok(words_of(&bytes))
}

pub fn words_of(bytes: &[u8; PAGE]) -> Words {
    std::array::from_fn(|word| {
        let bytes = bytes[word * 8..][..8].try_into();
        u64::from_ne_bytes(bytes.unwrap_or_default())
    })
}

impl Arena {
    /// Makes one access and checks that its result fits the page's rights. Returns `None` if they forbid it.
    fn access<T>(
        &self,
        shared: &Shared,
        page: usize,
        word: usize,
        is_allowed: fn(Rights) -> bool,
        access: impl FnOnce(*mut u64) -> Result<T, access::Signal>,
    ) -> Result<Option<T>, End> {
        let state = &self.pages[page];
        let before = state.guard();
        let done = access(self.region.as_ptr().wrapping_add(page * PAGE + word * 8).cast());
        let after = state.guard();
        let place = || format!("page {page} of the {} region, byte {}", self.name, word * 8);
        let rights = before.rights();
        let settled = before == after && rights != Rights::Changing;
        match done {
            Ok(_) if settled && !is_allowed(rights) => Err(End::Wrong(format!(
                "{}: expected SIGSEGV, found an access that succeeds with rights {rights:?}",
                place()
            ))),
            Ok(value) => Ok(Some(value)),
            Err(signal) if !signal.is_segv() || (settled && is_allowed(rights)) => {
                let why = self.region.refusal(page * PAGE);
                let why = why.map_or(String::new(), |error| format!(": {error}"));
                Err(End::Wrong(format!(
                    "{}: expected no signal with rights {rights:?}, found {signal}{why}",
                    place()
                )))
            }
            Err(_) => {
                count(&shared.counts.signals, 1);
                Ok(None)
            }
        }
    }

    /// Loads a word. Returns `None` if the rights forbid it.
    pub fn load(&self, shared: &Shared, page: usize, word: usize) -> Result<Option<u64>, End> {
        let is_allowed = |rights| matches!(rights, Rights::All | Rights::Read);
        // SAFETY: the region's own memory, into which there are no references.
        self.access(shared, page, word, is_allowed, |at| unsafe { access::load_u64(at) })
    }

    /// Stores a word. Returns `None` if the rights forbid it.
    pub fn store(&self, shared: &Shared, page: usize, word: usize, value: u64) -> Result<Option<()>, End> {
        let is_allowed = |rights| rights == Rights::All;
        // SAFETY: as above.
        self.access(shared, page, word, is_allowed, |at| unsafe { access::store_u64(at, value) })
    }

    /// Reads a page. Returns `None` if it may not be read when this begins.
    fn read(&self, shared: &Shared, page: usize) -> Result<Option<Words>, End> {
        let mut words = [0; WORDS];
        for (word, value) in words.iter_mut().enumerate() {
            *value = loop {
                match self.load(shared, page, word)? {
                    Some(value) => break value,
                    None if word == 0 => return Ok(None),
                    None => wait(shared)?,
                }
            }
        }
        Ok(Some(words))
    }

    /// Reads and checks a page that the caller owns.
    fn check_owned(&self, shared: &Shared, page: usize, record: &mut Record) -> Result<(), End> {
        let state = &self.pages[page];
        let ended = state.ended.load(SeqCst);
        let Some(words) = self.read(shared, page)? else { return Ok(()) };
        fence(SeqCst);
        let begun = state.begun.load(SeqCst);
        let checked = record.check(&self.formula, page as u32, &words, ended..=begun);
        checked.map_err(|wrong| wrong_word(&format!("{} region", self.name), page as u32, &words, &wrong))
    }

    /// Reads and checks a page that another thread owns.
    fn check_as_another(&self, shared: &Shared, page: usize) -> Result<(), End> {
        let before = self.pages[page].before();
        let Some(words) = self.read(shared, page)? else { return Ok(()) };
        fence(SeqCst);
        let bounds = self.pages[page].bounds(before);
        let checked = bounds.check(&self.formula, page as u32, &words);
        checked
            .map(drop)
            .map_err(|wrong| wrong_word(&format!("{} region", self.name), page as u32, &words, &wrong))
    }

    /// Fills a page with its next stamps, if it may be written when this begins.
    fn write(&self, shared: &Shared, page: usize, thread: usize, record: &mut Record) -> Result<(), End> {
        let state: &Page = &self.pages[page];
        let generation = record.generation + 1;
        let links = [unpack(self.last_of[thread].load(SeqCst)), unpack(self.last.load(SeqCst))];
        let ended = state.ended.load(SeqCst);
        let words = self.formula.stamps(page as u32, generation, links);
        state.started.store(generation, SeqCst);
        for (word, value) in words.iter().enumerate() {
            while self.store(shared, page, word, *value)?.is_none() {
                if word == 0 {
                    return Ok(());
                }
                wait(shared)?;
            }
        }
        fence(SeqCst);
        let begun_after = state.begun.load(SeqCst);
        let writer = thread as u32;
        *record = Record { generation, writer, links, lost: None, ended_before: ended, begun_after };
        state.completed.store(u64::from(generation) << 32 | u64::from(ended), SeqCst);
        let done = (page as u64) << 32 | u64::from(generation);
        self.last.store(done, SeqCst);
        self.last_of[thread].store(done, SeqCst);
        Ok(())
    }
}

/// Yields, so that the disturber can give rights back. Fails if a thread has found an error.
fn wait(shared: &Shared) -> Result<(), End> {
    std::thread::yield_now();
    go_on(shared)
}

/// Fails if a thread has found an error.
fn go_on(shared: &Shared) -> Result<(), End> {
    if shared.halted() { Err(End::Halted) } else { Ok(()) }
}

/// Touches pages until the time is up.
pub fn run(shared: &Shared, thread: usize, progress: &Progress) -> Result<(), End> {
    let mut random = Random::new(shared.config.seed, thread as u64);
    while !shared.over() {
        if random.permille(20) {
            read_a_snapshot(shared, &mut random, progress)?;
            continue;
        }
        let number = random.below(2);
        let arena = &shared.arenas[number];
        let hot = random.permille(200);
        let page = random.below(if hot { HOT.min(arena.pages.len()) } else { arena.pages.len() });
        match arena.pages[page].owner.try_lock() {
            None => {
                progress.begin(Doing::LookOn, number, page);
                arena.check_as_another(shared, page)?;
            }
            Some(mut record) => {
                let what = random.below(4);
                if what < 3 {
                    progress.begin(Doing::Read, number, page);
                    arena.check_owned(shared, page, &mut record)?;
                }
                if what > 1 {
                    progress.begin(Doing::Write, number, page);
                    arena.write(shared, page, thread, &mut record)?;
                }
            }
        }
        count(&shared.counts.touched, 1);
    }
    progress.end();
    Ok(())
}

fn read_a_snapshot(shared: &Shared, random: &mut Random, progress: &Progress) -> Result<(), End> {
    let snapshot = {
        let all = shared.snapshots.read();
        if all.is_empty() {
            return Ok(());
        }
        all[random.below(all.len())].clone()
    };
    progress.begin(Doing::ReadSnapshot, snapshot.arena, 0);
    snapshot.compare(shared, random.next() as usize)?;
    count(&shared.counts.touched, 1);
    Ok(())
}

/// Checks all pages once more, when no other thread runs.
pub fn check_all(shared: &Shared, progress: &Progress) -> Result<(), End> {
    for (number, arena) in shared.arenas.iter().enumerate() {
        for (page, state) in arena.pages.iter().enumerate() {
            go_on(shared)?;
            progress.begin(Doing::CheckAll, number, page);
            arena.check_owned(shared, page, &mut state.owner.lock())?;
        }
    }
    for snapshot in shared.snapshots.read().iter() {
        snapshot.compare_all(shared, progress)?;
    }
    progress.end();
    Ok(())
}
