//! An episode: operations that follow from a seed, and from nothing else.
//!
//! A generator knows what it thinks is mapped, so that most operations meet something. It may be wrong: what an
//! operation gives, the two sides say.

use super::draw::{Draw, mix};
use super::operation::{At, FILES, Length, Object, Operation, PAGES, Place, Rights};
use faultless::address::PAGE_SIZE;
use serde::{Deserialize, Serialize};

/// An episode has at most so many operations.
pub const EPISODE: u64 = 1000;
/// After so many operations the whole window is looked at.
const LOOK: u64 = 64;
/// A file has at most so many pages.
const FILE_PAGES: u64 = 16;

/// Operations from an empty window and fresh files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Episode {
    /// What all of it follows from.
    pub seed: u64,
    /// How long the files are at first, in bytes.
    pub files: [u64; FILES],
    /// Whether the map is told as if all that looks alike had merged.
    pub merged: bool,
    /// What is done.
    pub operations: Vec<Operation>,
}

/// The seed of the `number`-th episode: the first one's is the run's own, so that each can be run alone.
pub fn seed_of(seed: u64, number: u64) -> u64 {
    match number {
        0 => seed,
        // Short ones: people type them.
        _ => mix(mix(seed) ^ number) >> 24,
    }
}

/// How often each kind of operation comes: out of the sum of all. Each has an arm in [`Generator::operation`].
const WEIGHTS: [(Kind, u64); 12] = [
    (Kind::Map, 170),
    (Kind::Unmap, 70),
    (Kind::Protect, 130),
    (Kind::Discard, 60),
    (Kind::Load, 70),
    (Kind::LoadByte, 60),
    (Kind::Store, 120),
    (Kind::StoreByte, 100),
    (Kind::Add, 40),
    (Kind::Read, 50),
    (Kind::Truncate, 25),
    (Kind::Fork, 7),
];

#[derive(Clone, Copy)]
enum Kind {
    Map,
    Unmap,
    Protect,
    Discard,
    Load,
    LoadByte,
    Store,
    StoreByte,
    Add,
    Read,
    Truncate,
    Fork,
}

/// What the generator takes to be mapped.
#[derive(Clone)]
struct Model {
    /// Rights of each page of the window; `None`: a hole.
    pages: Vec<Option<u8>>,
}

struct Generator {
    draw: Draw,
    model: Model,
    /// Parents' models, and how many operations their children have left.
    parents: Vec<(Model, u64)>,
    /// Which pages of the window are used: few, so that operations collide.
    first: u64,
    span: u64,
    /// How likely a mapping is of a file, in percent.
    files: u64,
}

impl Episode {
    /// The episode of `seed`, with `length` operations that count.
    pub fn new(seed: u64, length: u64) -> Self {
        let mut draw = Draw::new(mix(seed));
        let span = draw.one_of(&[6, 12, 24, 24, 48, 48, PAGES]);
        // Over the border of the two leaf tables.
        let first = (PAGES / 2 - span / 2).saturating_sub(draw.below(span / 2));
        let files = draw.one_of(&[0, 20, 40, 40, 70, 100]);
        let lengths = [(); FILES].map(|()| draw.below(FILE_PAGES * PAGE_SIZE) + 1);
        let model = Model { pages: vec![None; PAGES as usize] };
        let mut generator = Generator { draw, model, parents: Vec::new(), first, span, files };
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
                let ((at, length), rights) = (self.range(), self.rights());
                self.model.change(at, length, |old| old.map(|_| rights.0));
                Operation::Protect { at, length, rights }
            }
            Kind::Discard => {
                let (at, mut length) = self.range();
                // A range that has an end would be the whole process, its stack too.
                if length.0 >> 57 != 0 {
                    length = Length(u64::MAX - self.draw.below(2) * (PAGE_SIZE - 1));
                }
                Operation::Discard { at, length }
            }
            Kind::Load => Operation::Load { at: self.word(1) },
            Kind::LoadByte => Operation::LoadByte { at: self.byte(1) },
            Kind::Store => Operation::Store { at: self.word(2), value: self.draw.word() },
            Kind::StoreByte => Operation::StoreByte { at: self.byte(2), value: self.draw.word() as u8 },
            Kind::Add => Operation::Add { at: self.word(2), value: self.draw.word() >> 32 },
            Kind::Read => {
                let (page, pages) = (self.page(1), self.draw.few(50, 6));
                Operation::Read { at: At::page(page), pages: pages.min(PAGES - page) }
            }
            Kind::Truncate => self.truncate(),
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
        if matches!(object, Object::File { shared: true, .. }) && self.draw.percent(85) {
            rights.0 &= !2;
        }
        let over = place == Place::Fixed;
        match place {
            Place::Anywhere => {}
            _ => self.model.change(at, length, |old| old.filter(|_| !over).or(Some(rights.0))),
        }
        Operation::Map { at, length, rights, object, place }
    }

    fn object(&mut self) -> Object {
        if !self.draw.percent(self.files) {
            return Object::Anonymous;
        }
        let first = match self.draw.below(200) {
            0 => self.draw.one_of(&[1 << 40, (1 << 51) - 8, 1 << 51, (1 << 52) - 1]),
            _ => self.draw.below(FILE_PAGES + 2),
        };
        Object::File { file: self.draw.below(FILES as u64) as usize, first, shared: self.draw.percent(40) }
    }

    fn rights(&mut self) -> Rights {
        // Not PROT_EXEC alone: what that means depends on the processor.
        Rights(self.draw.one_of(&[3, 3, 3, 3, 3, 1, 1, 0, 5, 7, 2]))
    }

    /// Where something new goes: often beside or over what is there.
    fn new_range(&mut self, place: Place) -> (At, Length) {
        let (at, length) = self.range();
        // Half of those that must not replace anything find room.
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

    /// What a call is about: few pages, and in a few of a hundred calls something that is no range.
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

    /// Any page that the episode uses.
    fn any_page(&mut self) -> u64 {
        (self.first + self.draw.below(self.span)).min(PAGES - 1)
    }

    /// A page that is mapped with these rights, most often.
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

    /// Few places of a page, so that loads find what was stored; its ends among them.
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
