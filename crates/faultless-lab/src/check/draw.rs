//! Random choices that follow from a seed, the same everywhere and for ever.

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Draw(u64);

impl Draw {
    /// All that follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any word.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        // The high half of a product: no division, and all but even.
        ((u128::from(self.word()) * u128::from(end)) >> 64) as u64
    }

    /// Yes, in `n` of a hundred.
    pub fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }

    /// One of them.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// 1 most often, each further one `percent` as often as the one before; at most `most`.
    pub fn few(&mut self, percent: u64, most: u64) -> u64 {
        let mut n = 1;
        while n < most && self.percent(percent) {
            n += 1;
        }
        n
    }
}

/// A word of which every bit depends on every bit of `word`.
pub fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_choices() {
        let (mut a, mut b) = (Draw::new(7), Draw::new(7));
        assert!((0..100).all(|_| a.word() == b.word()));
        assert_eq!(Draw::new(0).word(), 0xe220_a839_7b1d_cdaf, "seeds in old reports stay good");
    }

    #[test]
    fn choices_keep_to_their_bounds() {
        let mut draw = Draw::new(1);
        let mut seen = [0; 5];
        for _ in 0..10_000 {
            seen[draw.below(5) as usize] += 1;
            assert!((1..=4).contains(&draw.few(90, 4)));
        }
        assert!(seen.iter().all(|&times| times > 1_700), "{seen:?}");
        assert!(!draw.percent(0) && draw.percent(100));
    }
}
