//! Generator of episodes: lists of operations that follow only from a seed.
//!
//! A generator tracks the mappings that it expects, so that most operations meet a mapping. It may be wrong. Only the
//! two sides determine the outcome of an operation.

use super::draw::{Draw, mix};
use super::operation::{
    ADVICE, At, FILES, HEAP, IN_MEMORY, Length, Move, Object, Operation, PAGES, Place, REFUSING,
    REFUSING_PAGES, Rights, STORED, With,
};
use faultless::address::PAGE_SIZE;
use serde::{Deserialize, Serialize};

/// Largest number of operations in an episode.
pub const EPISODE: u64 = 1000;
/// Number of operations between two looks at the whole window.
const LOOK: u64 = 64;
/// Largest length of a file, in pages.
const FILE_PAGES: u64 = 16;

/// Operations that start from an empty window and fresh files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Episode {
    /// The seed that determines the whole episode.
    pub seed: u64,
    /// The initial lengths of the files, in bytes.
    pub files: [u64; FILES],
    /// Whether the map is compared as if all equal neighbours had merged.
    pub merged: bool,
    /// The operations.
    pub operations: Vec<Operation>,
}

/// Returns the seed of the `number`-th episode. The first one is the seed of the run, so that each episode can be run
/// alone.
pub fn seed_of(seed: u64, number: u64) -> u64 {
    match number {
        0 => seed,
        // Short seeds, because people type them.
        _ => mix(mix(seed) ^ number) >> 24,
    }
}

/// Relative frequency of each kind of operation. Each has an arm in [`Generator::operation`].
const WEIGHTS: [(Kind, u64); 28] = [
    (Kind::Map, 150),
    (Kind::Unmap, 55),
    (Kind::Protect, 90),
    (Kind::Remap, 50),
    (Kind::Break, 15),
    (Kind::Advise, 110),
    (Kind::Lock, 20),
    (Kind::Unlock, 15),
    (Kind::LockAll, 1),
    (Kind::UnlockAll, 2),
    (Kind::Sync, 15),
    (Kind::Resident, 12),
    (Kind::Seal, 1),
    (Kind::Load, 60),
    (Kind::LoadByte, 40),
    (Kind::Store, 100),
    (Kind::StoreByte, 80),
    (Kind::Add, 30),
    (Kind::Read, 40),
    (Kind::ReadRemote, 15),
    (Kind::WriteRemote, 15),
    (Kind::ReadFile, 10),
    (Kind::WriteFile, 15),
    (Kind::Truncate, 20),
    (Kind::Punch, 16),
    (Kind::StartSync, 12),
    (Kind::SealFile, 2),
    (Kind::Fork, 7),
];

#[derive(Clone, Copy)]
enum Kind {
    Map,
    Unmap,
    Protect,
    Remap,
    Break,
    Advise,
    Lock,
    Unlock,
    LockAll,
    UnlockAll,
    Sync,
    Resident,
    Seal,
    Load,
    LoadByte,
    Store,
    StoreByte,
    Add,
    Read,
    ReadRemote,
    WriteRemote,
    ReadFile,
    WriteFile,
    Truncate,
    Punch,
    StartSync,
    SealFile,
    Fork,
}

/// Relative frequency of each advice of [`ADVICE`].
const ADVICE_WEIGHTS: [u64; ADVICE.len()] = [4, 2, 2, 5, 40, 6, 6, 4, 3, 4, 3, 10, 10, 4, 5];

/// Mappings that the generator expects.
#[derive(Clone)]
struct Model {
    /// Rights of each page of the window; `None` is a hole.
    pages: Vec<Option<u8>>,
}

struct Generator {
    draw: Draw,
    model: Model,
    /// The parents' models, each with the number of operations that its child has left.
    parents: Vec<(Model, u64)>,
    /// The pages of the window that are used. They are few, so that operations collide.
    first: u64,
    span: u64,
    /// The probability that a mapping is of a file, in percent.
    files: u64,
    /// Whether memory is locked. If so, MREMAP_DONTUNMAP is not used; see docs/check.md.
    locks: bool,
    /// Whether the file that refuses has been sealed.
    is_sealed: bool,
}

impl Episode {
    /// Returns the episode of `seed`, with `length` operations that count.
    pub fn new(seed: u64, length: u64) -> Self {
        let mut draw = Draw::new(mix(seed));
        let span = draw.one_of(&[6, 12, 24, 24, 48, 48, PAGES]);
        // The used pages lie across the border of the two leaf tables.
        let first = (PAGES / 2 - span / 2).saturating_sub(draw.below(span / 2));
        let files = draw.one_of(&[0, 20, 40, 40, 70, 100]);
        let locks = draw.percent(60);
        let mut lengths = [(); FILES].map(|()| draw.below(FILE_PAGES * PAGE_SIZE) + 1);
        lengths[REFUSING] = REFUSING_PAGES * PAGE_SIZE;
        let model = Model { pages: vec![None; PAGES as usize] };
        let mut generator =
            Generator { draw, model, parents: Vec::new(), first, span, files, locks, is_sealed: false };
        let mut operations = Vec::with_capacity((length + length / LOOK + 1) as usize);
        for done in 0..length {
            if done % LOOK == LOOK - 1 {
                operations.push(Operation::Look);
            }
            operations.push(generator.operation());
        }
        operations.push(Operation::Look);
        Self { seed, files: lengths, merged: false, operations }
    }
}

impl Generator {
    fn operation(&mut self) -> Operation {
        match self.parents.last_mut() {
            Some((_, 0)) => {
                if let Some((model, _)) = self.parents.pop() {
                    self.model = model;
                }
                return Operation::Exit;
            }
            Some((_, left)) => *left -= 1,
            None => {}
        }
        match self.kind() {
            Kind::Map => self.map(),
            Kind::Unmap => {
                let (at, length) = self.range();
                self.model.change(at, length, |_| None);
                Operation::Unmap { at, length }
            }
            Kind::Protect => {
                let (down, rights) = (self.draw.percent(4), self.rights());
                let (at, length) = if down { self.reaching_range() } else { self.range() };
                self.model.change(at, length, |old| old.map(|_| rights.0));
                Operation::Protect { at, length, rights, down }
            }
            Kind::Remap => self.remap(),
            Kind::Break => self.set_break(),
            Kind::Advise => self.advise(),
            Kind::Lock | Kind::LockAll if !self.locks => Operation::LoadByte { at: self.byte(1) },
            Kind::Lock => {
                let (at, length) = self.range();
                Operation::Lock { at, length, on_fault: self.draw.percent(40) }
            }
            Kind::Unlock => {
                let (at, length) = self.range();
                Operation::Unlock { at, length }
            }
            Kind::LockAll => {
                Operation::LockAll { flags: self.draw.one_of(&[1, 1, 2, 2, 3, 5, 6, 7, 4, 0, 8]) }
            }
            Kind::UnlockAll => Operation::UnlockAll,
            Kind::Sync => {
                let (at, length) = self.reaching_range();
                Operation::Sync {
                    at,
                    length,
                    flags: self.draw.one_of(&[0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 8]),
                }
            }
            // fork is free to copy or not to copy pages that were never stored to, so a child's residency is not
            // compared.
            Kind::Resident if !self.parents.is_empty() => Operation::Load { at: self.word(1) },
            Kind::Resident => {
                let (at, length) = self.range();
                Operation::Resident { at, length }
            }
            Kind::Seal if !self.parents.is_empty() || self.draw.percent(20) => {
                let (at, length) = self.range();
                Operation::Seal { at, length }
            }
            // A seal cannot be removed. So mostly children have seals.
            Kind::Seal => Operation::Load { at: self.word(1) },
            Kind::Load => Operation::Load { at: self.word(1) },
            Kind::LoadByte => Operation::LoadByte { at: self.byte(1) },
            Kind::Store => Operation::Store { at: self.word(2), value: self.draw.word() },
            Kind::StoreByte => Operation::StoreByte { at: self.byte(2), value: self.draw.word() as u8 },
            Kind::Add => Operation::Add { at: self.word(2), value: self.draw.word() >> 32 },
            Kind::Read => {
                let (page, pages) = (self.page(1), self.draw.few(50, 6));
                Operation::Read { at: At::page(page), pages: pages.min(PAGES - page) }
            }
            Kind::ReadRemote => {
                let (at, length) = self.bytes(1);
                Operation::ReadRemote { at, length }
            }
            Kind::WriteRemote => {
                let (at, length) = self.bytes(2);
                Operation::WriteRemote { at, length, value: self.draw.word() as u8 }
            }
            Kind::ReadFile => {
                let (file, offset, length) = self.part_of_file();
                Operation::ReadFile { file, offset, length }
            }
            Kind::WriteFile => {
                let (file, offset, length) = self.part_of_file();
                Operation::WriteFile { file, offset, length, value: self.draw.word() as u8 }
            }
            Kind::Truncate => self.truncate(),
            Kind::Punch => {
                let (mut file, mut offset, mut length) = self.part_of_file();
                if self.is_sealed && self.draw.percent(60) {
                    file = REFUSING;
                }
                if self.draw.percent(60) {
                    offset -= offset % PAGE_SIZE;
                    length = Length(length.0.next_multiple_of(PAGE_SIZE));
                }
                Operation::Punch { file, offset, length }
            }
            Kind::StartSync => Operation::StartSync {
                file: self.draw.one_of(&[STORED, STORED, STORED, IN_MEMORY, REFUSING]),
            },
            Kind::SealFile => {
                self.is_sealed = true;
                Operation::SealFile
            }
            Kind::Fork if self.parents.len() == 2 => Operation::Load { at: self.word(1) },
            Kind::Fork => {
                let operations = self.draw.few(90, 40);
                self.parents.push((self.model.clone(), operations));
                Operation::Fork
            }
        }
    }

    fn kind(&mut self) -> Kind {
        let mut place = self.draw.below(WEIGHTS.iter().map(|(_, weight)| weight).sum());
        for (kind, weight) in WEIGHTS {
            match place.checked_sub(weight) {
                None => return kind,
                Some(rest) => place = rest,
            }
        }
        Kind::Load
    }

    fn map(&mut self) -> Operation {
        let object = self.object();
        let place = match self.draw.below(100) {
            0..67 => Place::Fixed,
            67..98 => Place::NoReplace,
            _ => Place::Anywhere,
        };
        let (at, length) = self.new_range(place);
        let mut rights = self.rights();
        if matches!(object, Object::File { shared: true, file, .. } if file < STORED) && self.draw.percent(85)
        {
            rights.0 &= !2;
        }
        let with = match self.draw.below(100) {
            0..5 => With::POPULATE,
            5..10 if self.locks => With::LOCKED,
            10..14 => With::NORESERVE,
            14..22 => With::GROWSDOWN,
            22 if self.locks => With::from_bits_truncate(self.draw.word() as u8),
            _ => With::empty(),
        };
        let over = place == Place::Fixed;
        match place {
            Place::Anywhere => {}
            _ => self.model.change(at, length, |old| old.filter(|_| !over).or(Some(rights.0))),
        }
        Operation::Map { at, length, rights, object, place, with }
    }

    fn object(&mut self) -> Object {
        if !self.draw.percent(self.files) {
            return Object::Anonymous { shared: self.draw.percent(12) };
        }
        // The last file has twice the chance, because after its seal it maps only pages that it had before.
        let file = (self.draw.below(FILES as u64 + 1) as usize).min(FILES - 1);
        let first = match self.draw.below(200) {
            // For a writable file, the file system determines the greatest length.
            0..3 if file < STORED => self.draw.one_of(&[1 << 40, (1 << 51) - 8, 1 << 51, (1 << 52) - 1]),
            _ => self.draw.below(FILE_PAGES + 2),
        };
        Object::File { file, first, shared: self.draw.percent(40) }
    }

    fn rights(&mut self) -> Rights {
        // Never PROT_EXEC alone, because its meaning depends on the processor.
        Rights(self.draw.one_of(&[3, 3, 3, 3, 3, 1, 1, 0, 5, 7, 2]))
    }

    /// Returns the range for a new mapping, often beside or over an existing one.
    fn new_range(&mut self, place: Place) -> (At, Length) {
        let (at, length) = self.range();
        // Half of the mappings that must not replace another find room.
        let free = |generator: &Self, page: u64| generator.model.pages.get(page as usize) == Some(&None);
        if place == Place::NoReplace && self.draw.percent(50) {
            for _ in 0..8 {
                let page = self.any_page();
                if free(self, page) {
                    let mut pages = 1;
                    while pages < 6 && free(self, page + pages) && self.draw.percent(60) {
                        pages += 1;
                    }
                    return (At::page(page), Length::pages(pages));
                }
            }
        }
        (at, length)
    }

    /// Returns the range of a call: a few pages. About 3 in 100 calls get an invalid range.
    fn range(&mut self) -> (At, Length) {
        let page = if self.draw.percent(70) { self.page(0) } else { self.any_page() };
        let pages = self.draw.few(65, 12).min(PAGES - page);
        let (mut at, mut length) = (At::page(page), Length::pages(pages));
        match self.draw.below(400) {
            0..4 => at.0 += 1 + self.draw.below(PAGE_SIZE - 1),
            4..8 => length = Length(0),
            8 => {
                length =
                    Length(self.draw.one_of(&[u64::MAX, u64::MAX - 4094, u64::MAX - 4095, 1 << 63, 1 << 58]))
            }
            9..40 => length.0 -= self.draw.below(PAGE_SIZE),
            _ => {}
        }
        (at, length)
    }

    /// Returns a range as [`Self::range`] does, for calls that go on after a hole. A huge length with an end in memory
    /// would cover the whole process and its stack, so it is replaced by one that wraps.
    fn reaching_range(&mut self) -> (At, Length) {
        let (at, mut length) = self.range();
        if length.0 >> 57 != 0 {
            length = Length(u64::MAX - self.draw.below(2) * (PAGE_SIZE - 1));
        }
        (at, length)
    }

    fn advise(&mut self) -> Operation {
        let (at, length) = self.reaching_range();
        let mut place = self.draw.below(ADVICE_WEIGHTS.iter().sum::<u64>() + 1);
        for ((advice, _), weight) in ADVICE.into_iter().zip(ADVICE_WEIGHTS) {
            match place.checked_sub(weight) {
                None => return Operation::Advise { at, length, advice },
                Some(rest) => place = rest,
            }
        }
        Operation::Advise { at, length, advice: self.draw.one_of(&[5, 7, 99, -1]) }
    }

    fn remap(&mut self) -> Operation {
        let (at, mut length) = self.range();
        // A length of zero duplicates a shared mapping.
        if self.draw.percent(8) {
            length = Length(0);
        }
        let old_pages = length.0.min(PAGES * PAGE_SIZE).div_ceil(PAGE_SIZE);
        let mut pages = match self.draw.below(10) {
            0..4 => old_pages,
            4..8 => old_pages + self.draw.few(60, 8),
            _ => old_pages.saturating_sub(self.draw.few(40, 8)),
        };
        let page = at.0 / PAGE_SIZE;
        let to = self.any_page();
        let moves = match self.draw.below(100) {
            0..25 => Move::No,
            25..40 => Move::May,
            _ if self.locks => Move::To(At::page(to)),
            40..65 => Move::To(At::page(to)),
            _ => {
                // The call is refused unless the new length equals the old one.
                pages = if self.draw.percent(90) { old_pages } else { pages };
                Move::Leaving(At::page(to))
            }
        };
        let start = if matches!(moves, Move::No | Move::May) { page } else { to };
        let pages = pages.min(PAGES - start);
        let mut new_length = Length::pages(pages);
        match self.draw.below(200) {
            0 => new_length = Length(self.draw.one_of(&[u64::MAX, u64::MAX - 4095, 1 << 63, 1 << 58])),
            1..20 => new_length.0 -= self.draw.below(PAGE_SIZE).min(new_length.0),
            _ => {}
        }
        let moves = match moves {
            Move::To(mut to) if self.draw.percent(1) => {
                to.0 += 1 + self.draw.below(PAGE_SIZE - 1);
                // The call is refused. If it were not, it would reach out of the window.
                new_length = Length(new_length.0.min(PAGE_SIZE));
                Move::To(to)
            }
            moves => moves,
        };
        let rights = self.model.pages.get(page as usize).copied().flatten();
        if !matches!(moves, Move::No | Move::May) && rights.is_some() {
            if let Move::To(_) = moves {
                self.model.change(at, length, |_| None);
            }
            self.model.change(At::page(to), new_length, |_| rights);
        } else if pages < old_pages {
            self.model.change(At::page(page + pages), Length::pages(old_pages - pages), |_| None);
        } else if rights.is_some() {
            let behind = At::page(page + old_pages);
            self.model.change(behind, Length::pages(pages - old_pages), |old| old.or(rights));
        }
        Operation::Remap { at, length, new_length, moves }
    }

    fn set_break(&mut self) -> Operation {
        let pages = self.draw.below(24);
        let rest = if self.draw.percent(50) { self.draw.below(PAGE_SIZE) } else { 0 };
        let at = match self.draw.below(20) {
            0 => At::page(HEAP - 1),
            _ => At((HEAP + pages) * PAGE_SIZE + rest),
        };
        self.model
            .change(At::page(HEAP), Length(at.0.saturating_sub(HEAP * PAGE_SIZE)), |old| old.or(Some(3)));
        Operation::Break { at }
    }

    /// Returns bytes inside the window, mostly from a page that has these rights.
    fn bytes(&mut self, rights: u8) -> (At, Length) {
        let at = self.byte(rights);
        let length = self.draw.one_of(&[1, 8, 100, PAGE_SIZE, 2 * PAGE_SIZE + 17, 5 * PAGE_SIZE, 0]);
        (at, Length(length.min(PAGES * PAGE_SIZE - at.0)))
    }

    /// Returns a range of a file that can be written.
    fn part_of_file(&mut self) -> (usize, u64, Length) {
        let file = self.draw.one_of(&[STORED, IN_MEMORY, REFUSING]);
        let mut offset = self.draw.below(FILE_PAGES) * PAGE_SIZE + self.offset();
        if file == REFUSING && self.draw.percent(20) {
            // At its end, and beyond it.
            offset += (REFUSING_PAGES - FILE_PAGES + 4) * PAGE_SIZE;
        }
        let length = self.draw.one_of(&[1, 8, 100, 1000, PAGE_SIZE, 2 * PAGE_SIZE + 17, 0]);
        (file, offset, Length(length))
    }

    /// Returns any page that the episode uses.
    fn any_page(&mut self) -> u64 {
        (self.first + self.draw.below(self.span)).min(PAGES - 1)
    }

    /// Returns a page that is mostly mapped with these rights.
    fn page(&mut self, rights: u8) -> u64 {
        for _ in 0..8 {
            let page = self.any_page();
            match self.model.pages[page as usize] {
                Some(has) if has & rights == rights => return page,
                _ => {}
            }
            if self.draw.percent(6) {
                return page;
            }
        }
        self.any_page()
    }

    fn word(&mut self, rights: u8) -> At {
        At(self.page(rights) * PAGE_SIZE + self.offset() / 8 * 8)
    }

    fn byte(&mut self, rights: u8) -> At {
        At(self.page(rights) * PAGE_SIZE + self.offset())
    }

    /// Returns one of few offsets in a page, so that loads find stored values. They include the first and the last
    /// byte.
    fn offset(&mut self) -> u64 {
        match self.draw.below(8) {
            0 => 0,
            1 => PAGE_SIZE - 1,
            2..6 => self.draw.below(16) * 256 + 8,
            _ => self.draw.below(PAGE_SIZE),
        }
    }

    fn truncate(&mut self) -> Operation {
        let pages = self.draw.below(FILE_PAGES + 1);
        let rest = if self.draw.percent(50) { self.draw.below(PAGE_SIZE) } else { 0 };
        Operation::Truncate { file: self.draw.below(FILES as u64) as usize, length: pages * PAGE_SIZE + rest }
    }
}

impl Model {
    fn change(&mut self, at: At, length: Length, to: impl Fn(Option<u8>) -> Option<u8>) {
        let pages = length.0.div_ceil(PAGE_SIZE);
        if !at.0.is_multiple_of(PAGE_SIZE) || pages > PAGES {
            return;
        }
        let start = (at.0 / PAGE_SIZE) as usize;
        self.pages.iter_mut().skip(start).take(pages as usize).for_each(|page| *page = to(*page));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn an_episode_follows_from_its_seed() {
        assert_eq!(Episode::new(5, 300), Episode::new(5, 300));
        assert_ne!(Episode::new(5, 300).operations, Episode::new(6, 300).operations);
        let whole = Episode::new(5, 300).operations;
        let part = Episode::new(5, 100).operations;
        assert_eq!(part[..100], whole[..100], "a shorter run does the same");
        assert_eq!((seed_of(9, 0), seed_of(9, 1)), (9, seed_of(9, 1)));
    }

    #[test]
    fn everything_comes_and_forks_are_few() {
        let mut seen = BTreeMap::new();
        for number in 0..100 {
            let episode = Episode::new(seed_of(1, number), EPISODE);
            assert_eq!(episode.operations.iter().filter(|o| o.counts()).count() as u64, EPISODE);
            for operation in episode.operations {
                *seen.entry(operation.kind()).or_insert(0_u64) += 1;
            }
        }
        assert!(Operation::KINDS.iter().all(|kind| seen.contains_key(kind)), "{seen:?}");
        assert!((100..=1000).contains(&seen["fork"]), "{seen:?}");
    }
}
