//! Random choices that follow from a seed. They are the same on every machine and in every version.

/// Random number generator: SplitMix64.
#[derive(Clone, Debug)]
pub struct Draw(u64);

impl Draw {
    /// Returns a generator that starts with `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a random word.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Returns a number below `end`, which must not be zero.
    pub fn below(&mut self, end: u64) -> u64 {
        // The high half of a product: it needs no division and is almost uniform.
        ((u128::from(self.word()) * u128::from(end)) >> 64) as u64
    }

    /// Returns true in `n` of 100 cases.
    pub fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }

    /// Returns one of `choices`.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Returns a number from 1 to `most`. It starts at 1 and goes on to the next number with a chance of `percent` in
    /// 100.
    pub fn few(&mut self, percent: u64, most: u64) -> u64 {
        let mut n = 1;
        while n < most && self.percent(percent) {
            n += 1;
        }
        n
    }
}

/// Returns a word in which every bit depends on every bit of `word`.
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
