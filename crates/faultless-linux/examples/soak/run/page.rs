//! The known state of a page while other threads discard, protect and snapshot it.
//!
//! If a discard comes in the middle of a write, the words that were written before it become base. If it comes in the
//! middle of a read, the reader sees base from some word on. Base stays base until the next write. So the owner of a
//! page always reads `base… stamps… base…`, and without a discard meanwhile less than that.

use super::stamp::{Formula, Link, Seen, WORDS, Words};
use parking_lot::Mutex;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// The state of a page, apart from its bytes.
#[repr(align(64))]
#[derive(Default)]
pub struct Page {
    /// Held by the page's owner, the only thread that may write.
    pub owner: Mutex<Record>,
    /// The generation of the write that has begun last. Atomic; written by the owner.
    pub started: AtomicU32,
    /// Upper half: the generation of the write that has ended last. Lower half: the number of discards that had ended
    /// before it began. Atomic; written by the owner.
    pub completed: AtomicU64,
    /// The number of discards that have begun. Atomic; the disturber writes this and the next three.
    pub begun: AtomicU32,
    /// The number of discards that have ended.
    pub ended: AtomicU32,
    /// Generations up to this one are gone: they were written before a discard that has ended.
    pub gone: AtomicU32,
    /// A [`Rights`] in the two lowest bits; above them, the number of its changes.
    guard: AtomicU32,
}

/// The owner's knowledge of the page.
#[derive(Default)]
pub struct Record {
    /// The generation that was written last; zero if none was.
    pub generation: u32,
    /// The thread that wrote it.
    pub writer: u32,
    /// The earlier writes that its stamps name.
    pub links: [Link; 2],
    /// The number of words from the start that are base, once that is known.
    pub lost: Option<usize>,
    /// Discards up to this number have no effect on the last write, except through `lost`.
    pub ended_before: u32,
    /// Discards after this number began after the write had ended.
    pub begun_after: u32,
}

/// The accesses that a page allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    All,
    /// The old or the new rights: a change is under way.
    Changing,
    Read,
    None,
}

/// A page's rights, and the number of their changes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Guard(u32);

impl Guard {
    pub fn rights(self) -> Rights {
        [Rights::All, Rights::Changing, Rights::Read, Rights::None][(self.0 & 3) as usize]
    }
}

impl Page {
    pub fn guard(&self) -> Guard {
        Guard(self.guard.load(SeqCst))
    }

    /// Sets the rights. Called by the disturber only.
    pub fn set_rights(&self, rights: Rights) {
        let changes = (self.guard.load(SeqCst) >> 2).wrapping_add(1);
        self.guard.store(changes << 2 | rights as u32, SeqCst);
    }
}

/// The state of a page before a snapshot, or before a thread other than the owner reads the page.
#[derive(Clone, Copy)]
pub struct Before {
    completed: u32,
    ended_before: u32,
    gone: u32,
}

/// The values that words may have, for a thread other than the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub lowest: u32,
    pub highest: u32,
    pub base: bool,
}

impl Page {
    pub fn before(&self) -> Before {
        let gone = self.gone.load(SeqCst);
        let completed = self.completed.load(SeqCst);
        Before { completed: (completed >> 32) as u32, ended_before: completed as u32, gone }
    }

    /// Returns the bounds. Called after the read or the snapshot that began after `before`.
    pub fn bounds(&self, before: Before) -> Bounds {
        Bounds {
            lowest: before.completed.max(before.gone + 1),
            highest: self.started.load(SeqCst),
            base: before.completed == 0 || self.begun.load(SeqCst) > before.ended_before,
        }
    }
}

/// A word with an impossible value.
#[derive(Debug, PartialEq, Eq)]
pub struct Wrong {
    pub word: usize,
    pub expected: String,
}

impl Bounds {
    fn admit(&self, seen: Seen) -> bool {
        match seen {
            Seen::Base => self.base,
            Seen::Stamp(generation) => (self.lowest..=self.highest).contains(&generation),
        }
    }

    fn expected(&self) -> String {
        let Self { lowest, highest, base } = self;
        let base = if *base { ", or the base" } else { "" };
        if lowest > highest { "the base".into() } else { format!("stamps {lowest} to {highest}{base}") }
    }

    /// Checks words that were read one after the other while the page may be written.
    pub fn check(&self, formula: &Formula, page: u32, words: &Words) -> Result<[Seen; WORDS], Wrong> {
        let wrong = |word| Wrong { word, expected: self.expected() };
        let seen = formula.read(page, words).map_err(wrong)?;
        match seen.iter().position(|seen| !self.admit(*seen)) {
            Some(word) => Err(wrong(word)),
            None => Ok(seen),
        }
    }

    /// Checks words of one instant. They have two generations at most, the later one first, since words are written in
    /// order.
    pub fn check_instant(&self, formula: &Formula, page: u32, words: &Words) -> Result<(), Wrong> {
        let seen = self.check(formula, page, words)?;
        let stamps = seen.iter().enumerate().filter_map(|(word, seen)| match seen {
            Seen::Stamp(generation) => Some((word, *generation)),
            Seen::Base => None,
        });
        let mut runs = Vec::new();
        for (word, generation) in stamps {
            match runs.last() {
                Some(last) if *last == generation => {}
                Some(last) if *last < generation || runs.len() == 2 => {
                    let expected =
                        format!("a stamp of generation {last} or earlier, as in the words before it");
                    return Err(Wrong { word, expected });
                }
                _ => runs.push(generation),
            }
        }
        Ok(())
    }
}

impl Record {
    /// Checks the words that the owner has read. Discards with numbers after the first and up to the last may have come
    /// meanwhile.
    pub fn check(
        &mut self,
        formula: &Formula,
        page: u32,
        words: &Words,
        discards: RangeInclusive<u32>,
    ) -> Result<(), Wrong> {
        let (ended, begun) = discards.into_inner();
        let stamps = formula.stamps(page, self.generation, self.links);
        let base = formula.base(page);
        let is_base = |word: usize| words[word] == base[word];
        let is_stamp = |word: usize| self.generation != 0 && words[word] == stamps[word];
        let count_base = |from: usize| (from..WORDS).take_while(|word| is_base(*word)).count();
        let lost = count_base(0);
        let kept = (lost..WORDS).take_while(|word| is_stamp(*word)).count();
        let stamp = format!("stamp {} of thread {}", self.generation, self.writer);
        let wrong = |word, expected: &str| Err(Wrong { word, expected: expected.into() });
        if self.generation == 0 || ended > self.begun_after {
            if lost != WORDS {
                return wrong(lost, "the base");
            }
            (self.lost, self.ended_before, self.begun_after) = (Some(WORDS), ended, begun);
        } else if begun == self.ended_before {
            let expected = self.lost.unwrap_or(0);
            if lost < expected {
                return wrong(lost, "the base");
            }
            if lost > expected || lost + kept != WORDS {
                return wrong(if lost > expected { expected } else { lost + kept }, &stamp);
            }
        } else {
            let rest = count_base(lost + kept);
            if lost + kept + rest != WORDS {
                return wrong(lost + kept + rest, &format!("{stamp}, and the base from some word on"));
            }
            if self.lost.is_some_and(|known| lost != WORDS && lost != known) {
                return wrong(
                    lost,
                    &format!("{stamp} at the same words as before, or the base at all words"),
                );
            }
            if ended == begun {
                if rest != 0 {
                    return wrong(lost + kept, &stamp);
                }
                (self.lost, self.ended_before, self.begun_after) = (Some(lost), ended, ended);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMULA: Formula = Formula { seed: 1, file: true };

    /// Returns `base… stamps… base…` of page 3.
    fn words(generation: u32, stamped: std::ops::Range<usize>) -> Words {
        let mut words = FORMULA.base(3);
        let stamps = FORMULA.stamps(3, generation, Default::default());
        words[stamped.clone()].copy_from_slice(&stamps[stamped]);
        words
    }

    /// Returns the record of generation 5, written after one discard had ended and before the third began.
    fn record() -> Record {
        Record { generation: 5, ended_before: 1, begun_after: 2, ..Record::default() }
    }

    #[test]
    fn without_a_discard_a_page_is_what_was_written() {
        let check = |words: &Words| record().check(&FORMULA, 3, words, 1..=1);
        assert_eq!(check(&words(5, 0..WORDS)), Ok(()));
        for wrong in [words(4, 0..WORDS), words(5, 1..WORDS), words(5, 0..WORDS - 1), words(5, 0..0)] {
            assert!(check(&wrong).is_err());
        }
    }

    #[test]
    fn after_a_discard_a_page_is_base() {
        let check = |words: &Words| record().check(&FORMULA, 3, words, 3..=3);
        assert_eq!(check(&words(5, 0..0)), Ok(()));
        assert_eq!(check(&words(5, 0..WORDS)).unwrap_err().word, 0);
        assert_eq!(check(&words(5, 400..401)).unwrap_err().word, 400);
        let untouched = Record::default().check(&FORMULA, 3, &words(1, 0..WORDS), 0..=0);
        assert_eq!(untouched.unwrap_err().expected, "the base");
    }

    #[test]
    fn a_discard_meanwhile_takes_a_start_or_an_end() {
        let check = |words: &Words, discards| record().check(&FORMULA, 3, words, discards);
        for fine in [0..WORDS, 0..0, 100..WORDS] {
            assert_eq!(check(&words(5, fine.clone()), 2..=2), Ok(()), "{fine:?}");
            assert_eq!(check(&words(5, fine), 2..=3), Ok(()));
        }
        assert_eq!(check(&words(5, 100..200), 2..=3), Ok(()), "one in the read");
        assert!(check(&words(5, 100..200), 2..=2).is_err(), "none in the read");
        let mut holes = words(5, 0..WORDS);
        holes[100..200].copy_from_slice(&FORMULA.base(3)[100..200]);
        assert!(check(&holes, 2..=3).is_err());
    }

    #[test]
    fn what_a_discard_has_left_stays() {
        let mut record = record();
        record.check(&FORMULA, 3, &words(5, 100..WORDS), 2..=2).unwrap();
        record.check(&FORMULA, 3, &words(5, 100..WORDS), 2..=2).unwrap();
        assert!(record.check(&FORMULA, 3, &words(5, 99..WORDS), 2..=2).is_err());
        assert!(record.check(&FORMULA, 3, &words(5, 101..WORDS), 2..=2).is_err());
        record.check(&FORMULA, 3, &words(5, 100..200), 2..=3).unwrap();
        assert!(record.check(&FORMULA, 3, &words(5, 101..200), 2..=3).is_err());
        record.check(&FORMULA, 3, &words(5, 0..0), 3..=3).unwrap();
    }

    #[test]
    fn bounds_hold_for_those_who_look_on() {
        let page = Page::default();
        assert_eq!(page.bounds(page.before()), Bounds { lowest: 1, highest: 0, base: true });
        page.started.store(5, SeqCst);
        page.completed.store(5 << 32 | 2, SeqCst);
        page.begun.store(2, SeqCst);
        page.ended.store(2, SeqCst);
        let bounds = page.bounds(page.before());
        assert_eq!(bounds, Bounds { lowest: 5, highest: 5, base: false });
        assert!(bounds.check(&FORMULA, 3, &words(5, 0..WORDS)).is_ok());
        assert_eq!(bounds.check(&FORMULA, 3, &words(5, 1..WORDS)).unwrap_err().word, 0);
        let before = page.before();
        page.begun.store(3, SeqCst);
        page.started.store(6, SeqCst);
        assert_eq!(page.bounds(before), Bounds { lowest: 5, highest: 6, base: true });
        page.gone.store(5, SeqCst);
        assert_eq!(page.bounds(page.before()).lowest, 6);
    }

    #[test]
    fn an_instant_is_a_new_stamp_before_an_old_one() {
        let bounds = Bounds { lowest: 4, highest: 6, base: true };
        let two = |first: u32, second: u32| {
            let mut both = words(first, 0..WORDS);
            both[300..].copy_from_slice(&words(second, 300..WORDS)[300..]);
            both
        };
        assert_eq!(bounds.check_instant(&FORMULA, 3, &two(5, 4)), Ok(()));
        assert_eq!(bounds.check_instant(&FORMULA, 3, &two(4, 5)).unwrap_err().word, 300);
        let mut three = two(6, 4);
        three[100..300].copy_from_slice(&words(5, 0..WORDS)[100..300]);
        assert_eq!(bounds.check_instant(&FORMULA, 3, &three).unwrap_err().word, 300);
        assert!(bounds.check(&FORMULA, 3, &three).is_ok(), "read while it was written twice");
    }

    #[test]
    fn rights_change() {
        let page = Page::default();
        let first = page.guard();
        assert_eq!(first.rights(), Rights::All);
        for rights in [Rights::Changing, Rights::Read, Rights::None, Rights::All] {
            page.set_rights(rights);
            assert_eq!(page.guard().rights(), rights);
        }
        assert!(page.guard() != first, "the same rights, but they were others in between");
    }
}
