//! The keys of nodes: numbers of pages from the beginning of the node's span, 32 bits wide if they fit.

/// A number of pages from the beginning of a node's span.
pub trait Key: Copy {
    /// The key of unused places, which is above all others.
    const UNUSED: Self;
    /// The tag of a link to a node with such keys.
    const TAG: usize;

    /// Makes a key; `None` if `pages` is too large for it.
    fn pack(pages: u64) -> Option<Self>;
    /// Returns the number of pages.
    fn pages(self) -> u64;
    /// Returns the number of `keys` that are not above `pages`.
    fn rank<const N: usize>(keys: &[Self; N], pages: u64) -> usize;
    /// Returns whether the key is above `pages`.
    fn is_above(self, pages: u64) -> bool;
}

/// A key of 32 bits, ordered as a signed number: SSE2, which every x86-64 has, compares four of those at once.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Near(i32);

impl Near {
    /// Returns a bit for each of `keys` that is above `limit`.
    #[inline]
    fn above(keys: &[Self; 16], limit: Self) -> u16 {
        // The compiler turns a portable loop into one that counts the bits one by one.
        #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
        {
            use core::arch::x86_64 as sse;
            // SAFETY: SSE2 is there; each load is of four keys in the array.
            unsafe {
                let limit = sse::_mm_set1_epi32(limit.0);
                let four = |i: usize| {
                    let keys = sse::_mm_loadu_si128(keys[i..i + 4].as_ptr().cast());
                    sse::_mm_cmpgt_epi32(keys, limit)
                };
                let (low, high) =
                    (sse::_mm_packs_epi32(four(0), four(4)), sse::_mm_packs_epi32(four(8), four(12)));
                sse::_mm_movemask_epi8(sse::_mm_packs_epi16(low, high)) as u16
            }
        }
        #[cfg(not(all(target_arch = "x86_64", target_feature = "sse2")))]
        keys.iter().enumerate().map(|(i, key)| u16::from(key.0 > limit.0) << i).sum()
    }

    /// Makes a key of `pages`, limited to the greatest one below [`Key::UNUSED`].
    fn clamped(pages: u64) -> Self {
        Self((pages.min(u64::from(u32::MAX) - 1) as u32 ^ 1 << 31) as i32)
    }
}

impl Key for Near {
    const UNUSED: Self = Self(i32::MAX);
    const TAG: usize = 0;

    fn pack(pages: u64) -> Option<Self> {
        (pages < u64::from(u32::MAX)).then(|| Self::clamped(pages))
    }

    fn pages(self) -> u64 {
        u64::from(self.0 as u32 ^ 1 << 31)
    }

    #[inline]
    fn rank<const N: usize>(keys: &[Self; N], pages: u64) -> usize {
        let pages = Self::clamped(pages);
        // Compares all keys without a branch. There is a bit for each key that is above; the lowest bit gives the rank.
        let (sixteens, rest) = keys.as_chunks::<16>();
        let rest = rest.iter().enumerate().map(|(i, key)| u64::from(key.0 > pages.0) << i).sum::<u64>();
        let rest = (rest | 1 << (N % 16)) << (N - N % 16);
        let sixteens = sixteens.iter().enumerate();
        let above =
            sixteens.fold(rest, |above, (i, keys)| above | u64::from(Self::above(keys, pages)) << (16 * i));
        above.trailing_zeros() as usize
    }

    #[inline]
    fn is_above(self, pages: u64) -> bool {
        self.0 > Self::clamped(pages).0
    }
}

/// A key of 64 bits.
#[derive(Clone, Copy)]
pub struct Far(u64);

impl Key for Far {
    const UNUSED: Self = Self(u64::MAX);
    const TAG: usize = 1;

    fn pack(pages: u64) -> Option<Self> {
        Some(Self(pages))
    }

    fn pages(self) -> u64 {
        self.0
    }

    #[inline]
    fn rank<const N: usize>(keys: &[Self; N], pages: u64) -> usize {
        keys.partition_point(|key| key.0 <= pages.min(u64::MAX - 1))
    }

    #[inline]
    fn is_above(self, pages: u64) -> bool {
        self.0 > pages
    }
}
