//! Pages stamped in a dependent order. A fork must copy them as they were at one instant. The stamps in the child
//! show whether it did.
//!
//! ```text
//!   stamper 0   page 0 ─► page 1 ─► page 2 ─► …      generation g, then g + 1
//!                 │          │          │
//!   stamper 1   page 0 ─► page 1 ─► page 2 ─► …      page i only after it has seen g on stamper 0's page i
//!                 └──► … ──► stamper 0, which begins page i of g + 1 only after the last one's page i has g
//! ```
//! The first word of a page is stamped before the last one, so that a half-copied page is detected too.

use super::actors::{Round, wake_precisely};
use crate::machine::Memory;
use crate::trouble::Trouble;
use faultless::address::{PAGE_SIZE, VirtAddr};
use std::time::Duration;

/// The number of pages between two pauses of a stamper. The pauses leave a processor to the measured threads. They
/// are the same for every design.
const BURST: u64 = 64;
/// The duration of a pause.
const PAUSE: Duration = Duration::from_millis(1);
/// The first and the last word of a page.
const WORDS: [u64; 2] = [0, PAGE_SIZE - 8];

/// The mappings with the stamps: one for each stamper.
pub struct Chain {
    regions: Vec<VirtAddr>,
    pages: u64,
}

/// All stamps: two words a page for each stamper.
pub type Snapshot = Vec<Vec<u64>>;

impl Chain {
    /// Maps `pages` pages for each of `stampers` threads and stamps them with generation 1.
    ///
    /// # Errors
    /// [`Trouble`] if a page cannot be mapped or written.
    pub fn new(memory: &impl Memory, stampers: usize, pages: u64) -> Result<Self, Trouble> {
        let map = |_| memory.map_anonymous(pages * PAGE_SIZE);
        let regions = (0..stampers).map(map).collect::<Result<Vec<_>, _>>()?;
        let chain = Self { regions, pages };
        for stamper in 0..stampers {
            for page in 0..pages {
                chain.stamp(memory, stamper, page, 1)?;
            }
        }
        Ok(chain)
    }

    fn address(&self, stamper: usize, page: u64, word: u64) -> VirtAddr {
        VirtAddr::new(self.regions[stamper].get() + page * PAGE_SIZE + word)
    }

    fn stamp<M: Memory + ?Sized>(
        &self,
        memory: &M,
        stamper: usize,
        page: u64,
        generation: u64,
    ) -> Result<(), Trouble> {
        for word in WORDS {
            memory.store(self.address(stamper, page, word), generation)?;
        }
        Ok(())
    }

    /// Stamps generation after generation until the round is over. Returns the number of pages stamped.
    ///
    /// # Errors
    /// [`Trouble::Wrong`] if a stamp differs from the one that this thread wrote last.
    pub fn run(&self, memory: &impl Memory, me: usize, round: &Round<'_>) -> Result<u64, Trouble> {
        wake_precisely();
        let last = self.regions.len() - 1;
        let mut stamped = 0;
        for generation in 2.. {
            // The stamper whose page must be stamped first, and the generation that it must have.
            let (before, needed) = if me == 0 { (last, generation - 1) } else { (me - 1, generation) };
            for page in 0..self.pages {
                let theirs = self.address(before, page, WORDS[1]);
                let mut look = 0;
                while memory.load(theirs)? < needed {
                    if round.is_over() {
                        return Ok(stamped);
                    }
                    pause(look);
                    look += 1;
                }
                for word in WORDS {
                    let address = self.address(me, page, word);
                    let old = memory.load(address)?;
                    if old != generation - 1 {
                        return Err(Trouble::Wrong(format!(
                            "wrong byte: stamper {me} wrote {} at {address}, its page {page}, and reads {old}",
                            generation - 1
                        )));
                    }
                }
                self.stamp(memory, me, page, generation)?;
                stamped += 1;
                if (page + 1).is_multiple_of(BURST) || page + 1 == self.pages {
                    std::thread::sleep(PAUSE);
                    if round.is_over() {
                        return Ok(stamped);
                    }
                }
            }
        }
        Ok(stamped)
    }

    /// Reads all stamps of an address space in which no thread stamps.
    ///
    /// # Errors
    /// [`Trouble`] if a stamp cannot be read.
    pub fn snapshot<M: Memory + ?Sized>(&self, memory: &M) -> Result<Snapshot, Trouble> {
        let region = |stamper| {
            let words = (0..self.pages).flat_map(|page| WORDS.map(|word| self.address(stamper, page, word)));
            words.map(|address| memory.load(address)).collect()
        };
        (0..self.regions.len()).map(region).collect()
    }

    /// Overwrites both stamps of a page of a child, selected by `n`, the number of the child. No other process may
    /// see it.
    ///
    /// # Errors
    /// [`Trouble`] if the page cannot be written.
    pub fn spoil<M: Memory + ?Sized>(&self, child: &M, n: u64) -> Result<(), Trouble> {
        let stamper = (n / self.pages) as usize % self.regions.len();
        self.stamp(child, stamper, n % self.pages, u64::MAX)
    }
}

fn pause(look: u32) {
    match look {
        0..32 => std::hint::spin_loop(),
        32..40 => std::thread::yield_now(),
        _ => std::thread::sleep(Duration::from_micros(20)),
    }
}

/// Checks that all stamps can have been present at one instant.
///
/// # Errors
/// A description of the first two stamps that contradict each other.
pub fn check_order(snapshot: &Snapshot) -> Result<(), String> {
    let place = |stamper: usize, at: usize| {
        format!("{} of stamper {stamper}'s page {}", ["first word", "last word"][at % 2], at / 2)
    };
    // Word `before` is stamped first. Fails if word `after` has a later generation than `before` plus `lag`.
    let pair = |before: (usize, usize), after: (usize, usize), lag: u64| {
        let (earlier, later) = (snapshot[before.0][before.1], snapshot[after.0][after.1]);
        if later <= earlier + lag {
            return Ok(());
        }
        let (before, after) = (place(before.0, before.1), place(after.0, after.1));
        Err(format!("generation {later} on the {after}, but {earlier} on the {before}, stamped earlier"))
    };
    let last = snapshot.len().saturating_sub(1);
    for (stamper, words) in snapshot.iter().enumerate() {
        for at in 1..words.len() {
            pair((stamper, at - 1), (stamper, at), 0)?;
        }
        if let Some(end) = words.len().checked_sub(1) {
            pair((stamper, end), (stamper, 0), 1)?;
        }
        for page in (0..words.len()).step_by(2) {
            let (before, lag) = if stamper == 0 { (last, 1) } else { (stamper - 1, 0) };
            pair((before, page + 1), (stamper, page), lag)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the stamps of two stampers with three pages each, after every single stamp of two generations.
    fn histories() -> Vec<Snapshot> {
        let mut now: Snapshot = vec![vec![1; 6], vec![1; 6]];
        let mut all = vec![now.clone()];
        for generation in 2..4 {
            for page in 0..3 {
                for stamper in 0..2 {
                    for word in 0..2 {
                        now[stamper][page * 2 + word] = generation;
                        all.push(now.clone());
                    }
                }
            }
        }
        all
    }

    #[test]
    fn every_instant_is_in_order() {
        histories().iter().for_each(|instant| check_order(instant).unwrap());
        // The second stamper may be up to a generation behind.
        check_order(&vec![vec![2; 6], vec![1; 6]]).unwrap();
        check_order(&vec![vec![1; 6]]).unwrap();
    }

    #[test]
    fn a_torn_snapshot_is_found() {
        // One word has a value from long before or long after all others.
        let all = histories();
        let (start, end) = (&all[0], all.last().unwrap());
        for (stamper, at) in (0..2).flat_map(|stamper| (0..6).map(move |at| (stamper, at))) {
            for (base, odd) in [(start, 3), (end, 1)] {
                let mut torn = base.clone();
                torn[stamper][at] = odd;
                assert!(check_order(&torn).is_err(), "stamper {stamper} word {at}: {torn:?}");
            }
        }
        // A copy made page by page during stamping: the early pages are old, the later ones new.
        let torn = vec![vec![1, 1, 2, 2, 2, 2], vec![1; 6]];
        let text = check_order(&torn).unwrap_err();
        assert!(
            text.starts_with("generation 2 on the first word of stamper 0's page 1, but 1 on the last word"),
            "{text}"
        );
        // The second stamper's pages were copied later than the first one's.
        assert!(check_order(&vec![vec![1; 6], vec![2, 2, 1, 1, 1, 1]]).is_err());
        // A page was half copied.
        assert!(check_order(&vec![vec![1, 2, 1, 1, 1, 1], vec![1; 6]]).is_err());
    }
}
