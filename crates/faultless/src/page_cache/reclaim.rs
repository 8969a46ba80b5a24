//! Room in the page cache: reclaim's way from a folio to its file and to the spaces that map it, and the end of a page.

use super::{File, word_of, word_of_evicted};
use crate::engine::Engine;
use crate::host::{Frame, GroupId, Host};
use crate::reclaim::{Class, Kinds, PageKind, Taking};
use crate::sync::atomic::Ordering;
use crate::sync::{Shared, Weak};

impl<H: Host> Engine<H> {
    /// Returns the file of `frame`, whose folio the caller has isolated as that of a file. Returns `None` if the page is detached, or
    /// if the file is being dropped.
    pub(crate) fn file_of(&self, frame: Frame) -> Option<Shared<File<H>>> {
        let _lock = self.lock(&self.cache.files);
        let file = self.folio(frame).cached_home()?.file()?;
        // SAFETY: rule H7. Under the lock, the word has shown that a file has the page, and the home read after that names this file
        // or that of a later page in the frame. Either file had the page at some time while the lock was held, so it takes the lock
        // after this and before its memory is freed. All files with such a home are of this host.
        unsafe { Weak::upgrade_raw(file) }
    }
}

impl<H: Host> File<H> {
    /// Evicts pages if `count` more would be above the limit of cached pages. Returns whether some could not be taken at the moment.
    pub(super) fn make_room_in_cache(&self, count: u64) -> bool {
        let engine = &self.engine;
        match (engine.cache.cached() + count).saturating_sub(engine.limits().cached_pages) {
            0 => false,
            over => engine.take_pages(GroupId::ROOT, over, Kinds::Files).is_delayed,
        }
    }

    /// Takes page `page`, which is that of `taking`, out of the entries that map it, space by space, until `taking` is over. Holds
    /// nothing between two spaces. The caller is in no section.
    pub(crate) fn unmap_everywhere(&self, page: u64, taking: &mut Taking<'_, '_, H>) {
        self.spaces.each(
            &self.engine,
            &(page..page + 1),
            |_| true,
            |id, space| {
                space.give_up_page_of(self.home(), page, &|| self.spaces.addresses(&self.engine, id), taking);
                taking.goes_on()
            },
        );
    }

    /// Evicts the page in `frame`, which the caller has isolated, if it is clean and nobody else has a reference. Frees the frame
    /// then, and returns true: the caller's pin is gone. No processor has an old translation of the page.
    pub(crate) fn evict_isolated(&self, frame: Frame) -> bool {
        let folio = self.engine.folio(frame);
        let Some(word) = self.index.get(folio.index()) else { return false };
        let guard = self.removal.lock();
        if word.load(Ordering::Relaxed) != word_of(frame) || !folio.try_evict_isolated() {
            return false;
        }
        let class = Class { group: folio.group(), kind: PageKind::File };
        word.store(word_of_evicted(class.group, self.engine.evicted(class)), Ordering::Release);
        drop(guard);
        self.engine.cache.uncount_cached(1);
        self.engine.free_frame(frame);
        true
    }
}
