//! Pages stamped in a dependent order: what a child of a fork shows of them must have been there at one instant.
//!
//! ```text
//!   stamper 0   page 0 ─► page 1 ─► page 2 ─► …      generation g, then g + 1
//!                 │          │          │
//!   stamper 1   page 0 ─► page 1 ─► page 2 ─► …      page i only after it has seen g on stamper 0's page i
//!                 └──► … ──► stamper 0, which begins page i of g + 1 only after the last one's page i has g
//! ```
//! On each page the first word is stamped, then the last, so that a page copied half is seen too.

use super::actors::{Round, wake_precisely};
use crate::machine::Memory;
use crate::trouble::Trouble;
use faultless::address::{PAGE_SIZE, VirtAddr};
use std::time::Duration;

/// A stamper pauses after so many pages, so that those who are measured find a processor. The same for every design.
const BURST: u64 = 64;
/// And so long.
const PAUSE: Duration = Duration::from_millis(1);
/// The first and the last word of a page.
const WORDS: [u64; 2] = [0, PAGE_SIZE - 8];

/// Where the stamps are: a mapping for each stamper.
pub struct Chain {
    regions: Vec<VirtAddr>,
    pages: u64,
}

/// All stamps: for each stamper two words a page.
pub type Snapshot = Vec<Vec<u64>>;

impl Chain {
    /// Maps `pages` for each of `stampers` and stamps them with generation 1.
    ///
    /// # Errors
    /// [`Trouble`] if that cannot be.
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

    /// Stamps generation after generation until the round is over. Returns how many pages it stamped.
    ///
    /// # Errors
    /// [`Trouble::Wrong`] if a stamp is not what this thread has written last.
    pub fn run(&self, memory: &impl Memory, me: usize, round: &Round<'_>) -> Result<u64, Trouble> {
        wake_precisely();
        let last = self.regions.len() - 1;
        let mut stamped = 0;
        for generation in 2.. {
            // Whose page has to be stamped before ours, and with what.
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

    /// Reads all stamps of a space in which nobody stamps.
    ///
    /// # Errors
    /// [`Trouble`] if one cannot be read.
    pub fn snapshot<M: Memory + ?Sized>(&self, memory: &M) -> Result<Snapshot, Trouble> {
        let region = |stamper| {
            let words = (0..self.pages).flat_map(|page| WORDS.map(|word| self.address(stamper, page, word)));
            words.map(|address| memory.load(address)).collect()
        };
        (0..self.regions.len()).map(region).collect()
    }

    /// Spoils a page of a child, number `n` of all: nobody else may see it.
    ///
    /// # Errors
    /// [`Trouble`] if it cannot be written.
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

/// Whether the stamps can have been there all at one instant.
///
/// # Errors
/// Which two cannot.
pub fn check_order(snapshot: &Snapshot) -> Result<(), String> {
    let place = |stamper: usize, at: usize| {
        format!("{} of stamper {stamper}'s page {}", ["first word", "last word"][at % 2], at / 2)
    };
    // Where each stamp comes before or with the next one, which is of the same generation or, with a lag, one before.
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

    /// Two stampers of three pages, after each of the stamps of two generations.
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
        // The second stamper may lag behind by up to a generation.
        check_order(&vec![vec![2; 6], vec![1; 6]]).unwrap();
        check_order(&vec![vec![1; 6]]).unwrap();
    }

    #[test]
    fn a_torn_snapshot_is_found() {
        // One word as it was long before, or long after, all the others.
        let all = histories();
        let (start, end) = (&all[0], all.last().unwrap());
        for (stamper, at) in (0..2).flat_map(|stamper| (0..6).map(move |at| (stamper, at))) {
            for (base, odd) in [(start, 3), (end, 1)] {
                let mut torn = base.clone();
                torn[stamper][at] = odd;
                assert!(check_order(&torn).is_err(), "stamper {stamper} word {at}: {torn:?}");
            }
        }
        // Copied page by page while stamping went on: early pages old, later ones new.
        let torn = vec![vec![1, 1, 2, 2, 2, 2], vec![1; 6]];
        let text = check_order(&torn).unwrap_err();
        assert!(
            text.starts_with("generation 2 on the first word of stamper 0's page 1, but 1 on the last word"),
            "{text}"
        );
        // The second stamper's pages copied later than the first one's.
        assert!(check_order(&vec![vec![1; 6], vec![2, 2, 1, 1, 1, 1]]).is_err());
        // A page copied half.
        assert!(check_order(&vec![vec![1, 2, 1, 1, 1, 1], vec![1; 6]]).is_err());
    }
}
