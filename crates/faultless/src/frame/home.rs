//! Whose page it is: of a file, or mapped by which entry (docs/home.md).

use super::{ANONYMOUS, EXCLUSIVE, Folio, MAPPING, MAPPINGS, UPTODATE};
use crate::sync::atomic::Ordering;
use crate::tables::Home;

impl Folio {
    /// Begins a life as an anonymous page with one mapping, by the entry that `home` names. The caller has the frame alone.
    /// Release, partner: [`Folio::mapped_home`]: whoever sees the mapping sees this home, or a later one.
    #[inline]
    pub(crate) fn begin_anonymous(&self, home: Home) {
        self.home.store(home.bits(), Ordering::Relaxed);
        self.word.store(MAPPING | EXCLUSIVE | UPTODATE | ANONYMOUS, Ordering::Release);
    }

    /// Begins the life of the page of zeros, which is nobody's and whose mappings are not counted.
    pub(crate) fn begin_zeros(&self) {
        self.word.store(MAPPING | EXCLUSIVE | UPTODATE, Ordering::Relaxed);
    }

    /// Whether it is an anonymous page, and so of no file; also of a free frame that was one last.
    pub fn is_anonymous(&self) -> bool {
        self.word.load(Ordering::Relaxed) & ANONYMOUS != 0
    }

    /// Whether it is a page of the file with the number `file`.
    pub(crate) fn is_page_of(&self, file: u64) -> bool {
        self.home.load(Ordering::Relaxed) == Home::of_file(file).bits()
    }

    /// The home of an anonymous folio that is mapped, read in this order: the word, then home. Acquire; partner of the first:
    /// [`Folio::begin_anonymous`], and the Release of whoever drops a mapping after a change of home.
    pub(crate) fn mapped_home(&self) -> Option<Home> {
        let word = self.word.load(Ordering::Acquire);
        (word & ANONYMOUS != 0 && word & MAPPINGS != 0)
            .then(|| Home::from_bits(self.home.load(Ordering::Acquire)))
    }

    /// `home` from now on. The caller has the entry that home named until now, or the only mapping (rule H2). Release: what
    /// `home` names is seen.
    pub(crate) fn set_home(&self, home: Home) {
        debug_assert!(self.is_anonymous(), "a home of a folio that is not anonymous");
        self.home.store(home.bits(), Ordering::Release);
    }

    /// The entry that `entry` names lets the folio go, of which it has a mapping still (rule H1). If others map the folio and home
    /// names that entry, home becomes none. If ours is the only mapping, home may stay: whoever follows it has seen the mapping
    /// in a section that began before the mapping goes, and the table is retired after that.
    #[inline]
    pub(crate) fn leave_home(&self, entry: impl FnOnce() -> Home) {
        const OTHERS: u64 = MAPPINGS & !MAPPING;
        let word = self.word.load(Ordering::Relaxed);
        if word & ANONYMOUS != 0 && word & OTHERS != 0 && !cfg!(mutant = "home_stays") {
            self.leave_shared_home(entry());
        }
    }

    #[cold]
    #[inline(never)]
    fn leave_shared_home(&self, entry: Home) {
        // Relaxed, partner: the Release of the drop of the mapping, which comes after.
        if self.home.load(Ordering::Relaxed) == entry.bits() {
            self.home.store(Home::NONE.bits(), Ordering::Relaxed);
        }
    }

    /// The page has gone from the entry that `from` names to the one that `to` names, which the caller has both. Home goes along,
    /// if it named the first, or if this is the only mapping.
    pub(crate) fn move_home(&self, from: Home, to: Home) {
        // Acquire: where others have dropped theirs, what they wrote to home comes before.
        let word = self.word.load(Ordering::Acquire);
        if word & ANONYMOUS != 0
            && (word & MAPPINGS == MAPPING || self.home.load(Ordering::Relaxed) == from.bits())
        {
            self.set_home(to);
        }
    }

    /// For models: the page came by the record with this number, which `audit` compares.
    #[cfg(loom)]
    pub(crate) fn note_record(&self, record: u64) {
        self.record.store(record, Ordering::Relaxed);
    }

    /// For models: that number.
    #[cfg(loom)]
    pub(crate) fn noted_record(&self) -> u64 {
        self.record.load(Ordering::Relaxed)
    }
}
