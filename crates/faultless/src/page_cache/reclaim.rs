//! Room in the page cache: eviction of idle pages, and reclaim of mapped ones, from a folio to its file and to the spaces that
//! map it.

use super::{File, SEEN, word_of};
use crate::engine::Engine;
use crate::frame::Eviction;
use crate::host::{Frame, GroupId, Host};
use crate::reclaim::{Kinds, Taking};
use crate::sync::Shared;
use crate::sync::atomic::Ordering;

impl<H: Host> Engine<H> {
    /// Returns the file of `frame`, whose folio the caller has isolated as that of a file. Returns `None` if the page is detached, or
    /// if the file has no store or is being dropped.
    pub(crate) fn file_of(&self, frame: Frame) -> Option<Shared<File<H>>> {
        self.cache.idle.file_of(self, frame)
    }
}

impl<H: Host> File<H> {
    /// Evicts pages if `count` more would be above the limit of cached pages: first those that are not in use, then mapped ones.
    /// Returns whether some could not be taken at the moment.
    pub(super) fn make_room_in_cache(&self, count: u64) -> bool {
        let engine = &self.engine;
        let over = || (engine.cache.cached() + count).saturating_sub(engine.limits().cached_pages);
        let before = over();
        if before != 0 {
            engine.evict(GroupId::ROOT, before);
        }
        match over() {
            0 => false,
            left => engine.take_pages(GroupId::ROOT, left, Kinds::Files).is_delayed,
        }
    }

    /// Evicts the page in `frame`, which the caller has isolated, if it is not in use.
    pub(super) fn evict(&self, frame: Frame, second_chance: bool) -> Eviction {
        let folio = self.engine.folio(frame);
        let Some(word) = self.index.get(folio.index()) else { return Eviction::InUse };
        let guard = self.removal.lock();
        if word.load(Ordering::Relaxed) != word_of(frame) {
            // The thread that detaches the page has a reference to it.
            return Eviction::InUse;
        }
        let eviction = folio.try_evict(second_chance);
        if eviction == Eviction::Taken {
            word.store(SEEN, Ordering::Release);
            drop(guard);
            self.engine.cache.cached.fetch_sub(1, Ordering::Relaxed);
            self.engine.frames().free(frame);
        }
        eviction
    }

    /// Takes page `page`, which is that of `taking`, out of the entries that map it, space by space, until `taking` is over. Holds
    /// nothing between two spaces. The caller is in no section.
    pub(crate) fn unmap_everywhere(&self, page: u64, taking: &mut Taking<'_, '_, H>) {
        self.spaces.each(
            &self.engine,
            &(page..page + 1),
            |_| true,
            |id, space| {
                space.give_up_page_of(self.id, page, &|| self.spaces.addresses(&self.engine, id), taking);
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
        word.store(SEEN, Ordering::Release);
        drop(guard);
        self.engine.cache.cached.fetch_sub(1, Ordering::Relaxed);
        self.engine.frames().free(frame);
        true
    }
}
