//! The home of a folio: the file that the page belongs to, or the entry that maps it (docs/home.md).

use super::{ANONYMOUS, EXCLUSIVE, Folio, MAPPING, MAPPINGS, UPTODATE};
use crate::sync::atomic::Ordering;
use crate::tables::Home;

impl Folio {
    /// Begins a life as an anonymous page with one mapping, by the entry that `home` names. The caller has the frame alone.
    /// Release, partner: [`Folio::mapped_home`]: a thread that sees the mapping sees this home, or a later one.
    #[inline]
    pub(crate) fn begin_anonymous(&self, home: Home) {
        self.home.store(home.bits(), Ordering::Relaxed);
        self.word.store(MAPPING | EXCLUSIVE | UPTODATE | ANONYMOUS, Ordering::Release);
    }

    /// Begins the life of the page of zeros, which has no owner and whose mappings are not counted.
    pub(crate) fn begin_zeros(&self) {
        self.word.store(MAPPING | EXCLUSIVE | UPTODATE, Ordering::Relaxed);
    }

    /// Returns whether the page is anonymous, and so of no file. Also true for a free frame that was anonymous last.
    pub fn is_anonymous(&self) -> bool {
        self.word.load(Ordering::Relaxed) & ANONYMOUS != 0
    }

    /// Returns whether the page belongs to the file with the number `file`.
    pub(crate) fn is_page_of(&self, file: u64) -> bool {
        self.home.load(Ordering::Relaxed) == Home::of_file(file).bits()
    }

    /// Returns the home of an anonymous folio that is mapped. It reads the word first, then the home. Acquire; the first
    /// load's partners are [`Folio::begin_anonymous`], and the Release of each thread that drops a mapping after a change of
    /// home.
    pub(crate) fn mapped_home(&self) -> Option<Home> {
        let word = self.word.load(Ordering::Acquire);
        (word & ANONYMOUS != 0 && word & MAPPINGS != 0)
            .then(|| Home::from_bits(self.home.load(Ordering::Acquire)))
    }

    /// Sets the home to `home`. The caller has the entry that the home named until now, or the only mapping (rule H2).
    /// Release: a thread that reads the home sees the record that it names.
    pub(crate) fn set_home(&self, home: Home) {
        debug_assert!(self.is_anonymous(), "a home of a folio that is not anonymous");
        self.home.store(home.bits(), Ordering::Release);
    }

    /// Leaves the folio's home before the entry that `entry` names drops its mapping of the folio (rule H1). If other entries
    /// map the folio and the home names this entry, the home becomes none. If this is the only mapping, the home may stay: a
    /// thread that follows it has seen the mapping in a section that began before the mapping goes, and the table is retired
    /// after that.
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
        // Relaxed; partner: the Release of the drop of the mapping, which comes after.
        if self.home.load(Ordering::Relaxed) == entry.bits() {
            self.home.store(Home::NONE.bits(), Ordering::Relaxed);
        }
    }

    /// Moves the home when the page moves from the entry that `from` names to the one that `to` names. The caller has both
    /// entries. The home moves if it named the first entry, or if this is the only mapping.
    pub(crate) fn move_home(&self, from: Home, to: Home) {
        // Acquire: if other threads have dropped their mappings, their writes to the home come before.
        let word = self.word.load(Ordering::Acquire);
        if word & ANONYMOUS != 0
            && (word & MAPPINGS == MAPPING || self.home.load(Ordering::Relaxed) == from.bits())
        {
            self.set_home(to);
        }
    }

    /// Notes the number of the record by which the page came, which `audit` compares. For models.
    #[cfg(loom)]
    pub(crate) fn note_record(&self, record: u64) {
        self.record.store(record, Ordering::Relaxed);
    }

    /// Returns the number that [`Folio::note_record`] noted. For models.
    #[cfg(loom)]
    pub(crate) fn noted_record(&self) -> u64 {
        self.record.load(Ordering::Relaxed)
    }
}
