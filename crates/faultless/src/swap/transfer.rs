//! The bytes of frames that are on their way to or from a swap device. The unsafe code of swap space is here and in `table.rs` and
//! `once_box.rs`.
//!
//! | function | its callers guarantee |
//! |---|---|
//! | [`Engine::bytes_at_rest`] | the folio is under WRITEBACK, and so no entry has the write right; or its read has ended, and it is not up to date yet |
//! | [`Engine::fill_page`] | the folio is being read, and no transfer of it is under way |
//! | [`Engine::swap_transfer`] | for a write: WRITEBACK, as above. For a read: the folios are being read. Both end after the completion |

use crate::address::PAGE_SIZE;
use crate::engine::Engine;
use crate::host::{Frame, Host};
use crate::store::{Completion, Direction, Place, Places, Transfer};

const PAGE: usize = PAGE_SIZE as usize;
const WORD: usize = size_of::<u64>();

impl<H: Host> Engine<H> {
    /// Returns the bytes of a page that no thread writes: see the module.
    pub(super) fn bytes_at_rest(&self, frame: Frame) -> &[u8] {
        let memory = self.frames().memory(frame);
        // SAFETY: `PAGE_SIZE` initialised bytes. The frame stays as long as its folio is in the state of the table above, and no code
        // writes it. The callers drop the slice before that state ends.
        unsafe { core::slice::from_raw_parts(memory.as_ptr(), PAGE) }
    }

    /// Fills a page with one repeated word: see the module.
    pub(super) fn fill_page(&self, frame: Frame, word: u64) {
        let memory = self.frames().memory(frame).cast::<u64>();
        for index in 0..PAGE / WORD {
            // SAFETY: the frame's own `PAGE_SIZE` bytes, aligned to eight, which no other code uses.
            unsafe { memory.add(index).write(word) }
        }
    }

    /// Makes a transfer of the pages in `places`: see the module.
    pub(super) fn swap_transfer(
        &self,
        direction: Direction,
        place: u64,
        places: Places,
        completion: Completion,
    ) -> Transfer {
        // SAFETY: frames of different folios, each with a pin until the completion. By the table above no other code uses the bytes
        // of a read, and none writes those of a write.
        unsafe { Transfer::of_places(direction, place * PAGE_SIZE, places, completion) }
    }

    /// Returns the place of a frame in memory, for a transfer.
    pub(super) fn place_of(&self, frame: Frame) -> Place {
        Place { memory: self.frames().memory(frame), frame: Some(frame) }
    }
}

/// Returns the word that the page repeats, if it does.
pub(super) fn repeated_word(page: &[u8]) -> Option<u64> {
    let first = page.first_chunk::<WORD>()?;
    // Each word is the one before it: one comparison of bytes, which ends at the first difference.
    (page[WORD..] == page[..page.len() - WORD]).then(|| u64::from_ne_bytes(*first))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_word_is_found() {
        let mut page = [0_u8; PAGE];
        assert_eq!(repeated_word(&page), Some(0));
        page.as_chunks_mut::<WORD>().0.fill(7_u64.to_ne_bytes());
        assert_eq!(repeated_word(&page), Some(7));
        page[PAGE - 1] ^= 1;
        assert_eq!(repeated_word(&page), None);
    }
}
