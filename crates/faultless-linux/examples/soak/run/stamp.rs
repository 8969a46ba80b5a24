//! The legal words of a page: its base, or a stamp. All functions here are arithmetic only.
//!
//! ```text
//!  bit 63            32 31                 0
//!  base of zeros      0 │ 0                     untouched or discarded anonymous memory
//!  base of a file   1 … │ …                     a hash of seed, page and word
//!  stamp     generation │ hash                  of seed, page, generation and word
//!  words 1 to 4   as above, the hash combined with links: page and generation of two earlier writes
//! ```

/// Words of a page.
pub const WORDS: usize = 512;
pub type Words = [u64; WORDS];

/// The words that name earlier writes; two words for each write.
const LINKS: std::ops::Range<usize> = 1..5;

/// A write that ended before another one began. Generation zero: there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub page: u32,
    pub generation: u32,
}

/// The stamps and the base of one region.
#[derive(Clone, Copy, Debug)]
pub struct Formula {
    /// Different for each region.
    pub seed: u64,
    /// True if the base is a file's bytes, false if it is zeros.
    pub file: bool,
}

/// The kind of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Base,
    /// A stamp of this generation, which is not zero.
    Stamp(u32),
}

/// Returns `value` with its bits spread (splitmix64).
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The hashes of one page's words in one generation.
#[derive(Clone, Copy)]
struct Key(u64);

impl Key {
    fn hash(self, word: usize) -> u64 {
        mix(self.0.wrapping_add((word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    fn low(self, word: usize) -> u32 {
        self.hash(word) as u32
    }
}

impl Formula {
    fn key(&self, page: u32, generation: u32) -> Key {
        Key(mix(self.seed ^ (u64::from(page) << 32 | u64::from(generation))))
    }

    fn base_of(&self, key: Key, word: usize) -> u64 {
        if self.file { key.hash(word) | 1 << 63 } else { 0 }
    }

    /// Returns the words of a page that was never written.
    pub fn base(&self, page: u32) -> Words {
        let key = self.key(page, 0);
        std::array::from_fn(|word| self.base_of(key, word))
    }

    /// Returns a page full of the stamps of a generation.
    pub fn stamps(&self, page: u32, generation: u32, links: [Link; 2]) -> Words {
        let key = self.key(page, generation);
        let [a, b] = links;
        let targets = [a.page, a.generation, b.page, b.generation];
        std::array::from_fn(|word| {
            let target = if LINKS.contains(&word) { targets[word - LINKS.start] } else { 0 };
            u64::from(generation) << 32 | u64::from(key.low(word) ^ target)
        })
    }

    /// Returns the kind of each word of a page, or `Err` with the first word that cannot be this page's. Hashes are
    /// computed only when the generation changes, since a page has few.
    pub fn read(&self, page: u32, words: &Words) -> Result<[Seen; WORDS], usize> {
        let base = self.key(page, 0);
        let (mut generation, mut key) = (0, base);
        let mut seen = [Seen::Base; WORDS];
        for (word, &found) in words.iter().enumerate() {
            if found == self.base_of(base, word) {
                continue;
            }
            let stamp = (found >> 32) as u32;
            if stamp == 0 || stamp >> 31 != 0 {
                return Err(word);
            }
            if stamp != generation {
                (generation, key) = (stamp, self.key(page, stamp));
            }
            if !LINKS.contains(&word) && found as u32 != key.low(word) {
                return Err(word);
            }
            seen[word] = Seen::Stamp(stamp);
        }
        Ok(seen)
    }

    /// Returns the generation of a page's stamps and the writes that they name. Returns `None` if the words are not all
    /// of one generation.
    pub fn links(&self, page: u32, words: &Words) -> Option<(u32, [Link; 2])> {
        let generation = (words[LINKS.start] >> 32) as u32;
        let whole = words[LINKS].iter().all(|word| (word >> 32) as u32 == generation);
        if !whole || generation == 0 || generation >> 31 != 0 {
            return None;
        }
        let key = self.key(page, generation);
        let target = |n: usize| words[LINKS.start + n] as u32 ^ key.low(LINKS.start + n);
        let link = |n| Link { page: target(n), generation: target(n + 1) };
        Some((generation, [link(0), link(2)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKED: [Link; 2] = [Link { page: 7, generation: 3 }, Link { page: 90, generation: 1 }];

    #[test]
    fn words_are_read_as_what_they_are() {
        for file in [false, true] {
            let formula = Formula { seed: 5, file };
            assert_eq!(formula.read(9, &formula.base(9)), Ok([Seen::Base; WORDS]));
            let stamps = formula.stamps(9, 4, LINKED);
            assert_eq!(formula.read(9, &stamps), Ok([Seen::Stamp(4); WORDS]));
            assert_eq!(formula.links(9, &stamps), Some((4, LINKED)));
            assert_eq!(formula.links(9, &formula.base(9)), None);
            let mut torn = formula.base(9);
            torn[..100].copy_from_slice(&stamps[..100]);
            let seen = formula.read(9, &torn).unwrap();
            assert!(seen[..100].iter().all(|seen| *seen == Seen::Stamp(4)));
            assert!(seen[100..].iter().all(|seen| *seen == Seen::Base));
        }
    }

    #[test]
    fn another_page_or_a_wrong_bit_is_found() {
        let formula = Formula { seed: 5, file: true };
        assert_eq!(formula.read(8, &formula.base(9)), Err(0));
        assert_eq!(formula.read(9, &[0; WORDS]), Err(0), "zeros are not the file");
        assert_eq!(formula.read(8, &formula.stamps(9, 4, LINKED)), Err(0));
        assert_eq!(Formula { seed: 6, file: true }.read(9, &formula.stamps(9, 4, LINKED)), Err(0));
        for (word, bit) in [(0, 0), (200, 31), (200, 32), (511, 63)] {
            let mut words = formula.stamps(9, 4, LINKED);
            words[word] ^= 1 << bit;
            assert_eq!(formula.read(9, &words), Err(word), "bit {bit}");
        }
    }
}
