//! The home of a folio: the file that the page belongs to, or the entry that maps it (docs/home.md).

use super::{ANONYMOUS, CACHED, EXCLUSIVE, Folio, MAPPING, MAPPINGS, UPTODATE};
use crate::sync::atomic::Ordering;
use crate::tables::Home;

impl Folio {
    /// Begins a life as an anonymous page with one mapping, by the entry that `home` names. The caller has the frame alone.
    ///
    /// Release, twice; the partners are in [`Folio::mapped_home`]. A thread that sees the mapping sees this home, or a later one.
    /// A thread that has seen the mapping of an earlier life, and reads this home, sees the record that it names.
    #[inline]
    pub(crate) fn begin_anonymous(&self, home: Home) {
        let of_home = if mutant!("first_home_relaxed") { Ordering::Relaxed } else { Ordering::Release };
        let of_word = if mutant!("first_word_relaxed") { Ordering::Relaxed } else { Ordering::Release };
        self.home.store(home.bits(), of_home);
        self.word.store(MAPPING | EXCLUSIVE | UPTODATE | ANONYMOUS, of_word);
    }

    /// Begins the life of the page of zeros, which has no owner and whose mappings are not counted.
    pub(crate) fn begin_zeros(&self) {
        self.word.store(MAPPING | EXCLUSIVE | UPTODATE, Ordering::Relaxed);
    }

    /// Returns whether the page is anonymous, and so of no file. Also true for a free frame that was anonymous last.
    pub fn is_anonymous(&self) -> bool {
        self.word.load(Ordering::Relaxed) & ANONYMOUS != 0
    }

    /// Returns whether the page belongs to the file that `file` names. The file lives: its memory is not another file's.
    pub(crate) fn is_page_of(&self, file: Home) -> bool {
        self.home.load(Ordering::Relaxed) == file.bits()
    }

    /// Returns the home of a file's folio that the page cache has. It reads the word first, then the home. Acquire, twice. The
    /// partners are the stores of `Folio::begin_cached`.
    pub(crate) fn cached_home(&self) -> Option<Home> {
        let word = self.word.load(Ordering::Acquire);
        (word & (ANONYMOUS | CACHED) == CACHED).then(|| Home::from_bits(self.home.load(Ordering::Acquire)))
    }

    /// Returns whether the page is of a file without a store, if it is of a file.
    pub(crate) fn is_without_store(&self) -> bool {
        Home::from_bits(self.home.load(Ordering::Relaxed)).is_without_store()
    }

    /// Returns the home of an anonymous folio that is mapped. It reads the word first, then the home. Acquire, twice. The first
    /// load's partners are [`Folio::begin_anonymous`], and the Release of each thread that drops a mapping after a change of
    /// home. The second load's partners are all stores of a home that names a record or a family.
    pub(crate) fn mapped_home(&self) -> Option<Home> {
        let word = self.word.load(Ordering::Acquire);
        let of_home = if mutant!("home_followed_relaxed") { Ordering::Relaxed } else { Ordering::Acquire };
        let is_mapped = word & MAPPINGS != 0 || mutant!("home_without_mapping");
        (word & ANONYMOUS != 0 && is_mapped).then(|| Home::from_bits(self.home.load(of_home)))
    }

    /// Sets the home to `home`. The caller has the only mapping (rule H2).
    /// Release: a thread that reads the home sees the record that it names.
    pub(crate) fn set_home(&self, home: Home) {
        debug_assert!(self.is_anonymous(), "a home of a folio that is not anonymous");
        self.home.store(home.bits(), Ordering::Release);
    }

    /// Leaves the folio's home before an entry drops its mapping of the folio (rule H1). `entry` returns the home that names this
    /// entry, and the one that names the family of its table. If other entries map the folio or may name its slot, and the home
    /// names this entry, the home becomes the family. If this is the only entry that has the page, the home may stay: a thread that
    /// follows it has seen the mapping in a section that began before the mapping goes, and the table is retired after that.
    ///
    /// An entry that names the slot counts no mapping, and may map the folio at any time, without a change of the home.
    #[inline]
    pub(crate) fn leave_home(&self, entry: impl FnOnce() -> (Home, Home)) {
        // CACHED of an anonymous folio: it has a slot.
        const OTHERS: u64 = MAPPINGS & !MAPPING | CACHED;
        let word = self.word.load(Ordering::Relaxed);
        let others = if mutant!("home_stays_for_a_slot") { OTHERS & !CACHED } else { OTHERS };
        if word & ANONYMOUS != 0 && word & others != 0 && !mutant!("home_stays") {
            let (entry, family) = entry();
            self.leave_shared_home(entry, family);
        }
    }

    /// Leaves the folio's home as [`Folio::leave_home`] does, before an entry loses the page whose mapping is dropped only when the
    /// entry has been let go: after the invalidation. Its table may be gone by then. So the home names the entry no longer, even if
    /// this is the only mapping.
    pub(crate) fn leave_home_early(&self, entry: impl FnOnce() -> (Home, Home)) {
        if mutant!("late_drop_keeps_home") {
            self.leave_home(entry);
        } else if self.is_anonymous() {
            let (entry, family) = entry();
            self.leave_shared_home(entry, family);
        }
    }

    #[cold]
    #[inline(never)]
    fn leave_shared_home(&self, entry: Home, family: Home) {
        // An exchange: if another entry of the folio moves at the same time, the home stays none. Release, partner: the exchange
        // in `move_home`. For threads that follow the home, the Release of the drop of the mapping comes after.
        let (old, new) = (entry.bits(), family.bits());
        if !mutant!("home_stored_past_a_move") {
            let _ = self.home.compare_exchange(old, new, Ordering::Release, Ordering::Relaxed);
        } else if self.home.load(Ordering::Relaxed) == old {
            self.home.store(new, Ordering::Relaxed);
        }
    }

    /// Changes the home when the page moves to the entry that `to` names, in the same space. The caller has both entries. If
    /// this is the only mapping, the home becomes the new entry. If there are others, a search by table and family would miss one
    /// side of the move, so the home becomes none, and no family can end that a home names (rule H1). The page gets a home when
    /// it is one entry's alone again, and that is written.
    pub(crate) fn move_home(&self, to: Home) {
        // Acquire: if other threads have dropped their mappings, their writes to the home come before.
        let word = self.word.load(Ordering::Acquire);
        if word & ANONYMOUS != 0 && word & MAPPINGS == MAPPING {
            if !mutant!("remap_leaves_home") {
                self.set_home(to);
            }
        } else if word & ANONYMOUS != 0 && !mutant!("moved_home_stays") {
            self.forget_home();
        }
    }

    /// Makes the home none, since the page is moved or is the page of an entry that was moved, and other entries have it too: a
    /// search by table and family would miss one side of the move.
    pub(crate) fn forget_home(&self) {
        // Another entry of the folio may exchange the home at the same time.
        let _ = self.home.swap(Home::NONE.bits(), Ordering::AcqRel);
    }

    /// Returns whether the page is anonymous, has one mapping, and no home: others that had it have gone since [`Folio::forget_home`].
    /// A hint.
    #[inline]
    pub(crate) fn lacks_home(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        word & ANONYMOUS != 0
            && word & MAPPINGS == MAPPING
            && self.home.load(Ordering::Relaxed) == Home::NONE.bits()
    }

    /// Gives an anonymous page that has none the home `to`. The caller has the entry that `to` names, and it maps the page. So rule H1
    /// holds even if the page has other mappings by now: the entry leaves the home before it drops its mapping. Returns false if the page
    /// is not anonymous or has a home. Then nothing is changed.
    pub(crate) fn give_home(&self, to: Home) -> bool {
        // An exchange: a fault by a slot may forget the home at the same time. Release: a thread that reads the home sees the record.
        let none = Home::NONE.bits();
        self.is_anonymous()
            && self.home.compare_exchange(none, to.bits(), Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// Notes the number of the record by which the page came, which `audit` compares. For models.
    #[cfg(loom)]
    pub(crate) fn note_record(&self, record: u64) {
        self.record.store(record, Ordering::Relaxed);
    }

    /// Returns the number that [`Folio::note_record`] noted. For models.
    #[cfg(all(loom, any(test, feature = "audit")))]
    pub(crate) fn noted_record(&self) -> u64 {
        self.record.load(Ordering::Relaxed)
    }
}
