//! Known differences from Linux: intended, or not fixed yet. They are counted apart. docs/check.md states the reason
//! for each.

use super::memory::Memory;
use super::operation::Operation;
use super::step::{Line, Outcome, Step, merged};
use faultless::errno;
use faultless::vma::MappingFlags;

/// Known difference.
#[derive(Debug)]
pub struct Known {
    /// Its name in reports and in docs/check.md.
    pub name: &'static str,
    /// Whether the difference is intended. Otherwise it is not fixed yet.
    pub by_intention: bool,
    /// Whether it occurs only if the engine's memory is limited.
    pub under_pressure: bool,
    /// Whether the two sides have different states after it. If so, the episode ends there.
    pub parts_them: bool,
    /// Returns whether an operation with these steps shows this difference: the operation, the engine's step, Linux's
    /// step.
    is_it: fn(&Operation, &Step, &Step) -> bool,
}

/// All known differences.
pub const KNOWN: &[Known] = &[PAGES_IN_SLOTS, BEHIND_END, FREED, SEALED];

/// Linux has enough memory, and keeps the pages.
const PAGES_IN_SLOTS: Known = Known {
    name: "pages in swap space are not in memory",
    by_intention: true,
    under_pressure: true,
    parts_them: false,
    is_it: |operation, Step(engine, my_map), Step(linux, their_map)| match (operation, engine, linux) {
        (Operation::Resident { .. }, Outcome::Done(mine), Outcome::Done(theirs)) => {
            mine & !theirs == 0 && my_map == their_map
        }
        _ => false,
    },
};

/// Found by the engine's side, which knows its files.
pub const BEHIND_END: Known = Known {
    name: "bytes behind the end of a file are zeroed when the page is written",
    by_intention: true,
    under_pressure: true,
    parts_them: true,
    is_it: |_, _, _| false,
};

/// Found by the engine's side, which knows what was given up.
pub const FREED: Known = Known {
    name: "pages that MADV_FREE gives up are dropped when memory is short",
    by_intention: true,
    under_pressure: true,
    parts_them: true,
    is_it: |_, _, _| false,
};

const SEALED: Known = Known {
    name: "a sealed mapping is not changed in part",
    by_intention: true,
    under_pressure: false,
    parts_them: true,
    is_it: |operation, Step(engine, my_map), Step(linux, their_map)| {
        let refused = match operation {
            Operation::Break { .. } => engine == linux,
            Operation::Unmap { .. } | Operation::Map { .. } | Operation::Remap { .. } => {
                (engine, linux) == (&Outcome::Error(errno::EPERM), &Outcome::Error(errno::EPERM))
            }
            _ => false,
        };
        // Linux has split its map. The engine's map is unchanged, or as the part moved before the refusal has left it.
        refused
            && match (my_map, their_map) {
                (None, Some(_)) => true,
                (Some(mine), Some(theirs)) => {
                    mine != theirs && merged(mine.clone()) == merged(theirs.clone())
                }
                _ => false,
            }
    },
};

/// Returns the known difference that these steps show, or `None`.
///
/// `memory` is the engine's limit.
pub fn known(
    operation: &Operation,
    engine: &Step,
    linux: &Step,
    memory: Option<Memory>,
) -> Option<&'static Known> {
    let broken = [engine, linux].iter().any(|step| matches!(step.0, Outcome::Broken(_)));
    let can_be = |known: &&Known| !broken && (memory.is_some() || !known.under_pressure);
    KNOWN.iter().filter(can_be).find(|known| (known.is_it)(operation, engine, linux))
}

/// Difference between the two sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The index of the operation, from 0.
    pub place: usize,
    /// The engine's step. With threads: the step among other threads.
    pub engine: Step,
    /// Linux's step. With threads: the step of the engine alone.
    pub linux: Step,
}

/// Names of the two sides.
#[derive(Clone, Copy, Debug)]
pub struct Sides {
    mine: &'static str,
    theirs: &'static str,
    my_map: &'static str,
    their_map: &'static str,
}

/// Names for a check of the engine against Linux.
pub const AGAINST_LINUX: Sides =
    Sides { mine: "engine", theirs: "Linux", my_map: "map of the engine", their_map: "map of Linux" };
/// Names for a check of a thread among others against the same episode alone.
pub const AGAINST_ALONE: Sides =
    Sides { mine: "together", theirs: "alone", my_map: "map together", their_map: "map alone" };

impl Difference {
    /// Returns a description of the difference, in a few lines.
    pub fn lines(&self, sides: Sides) -> Vec<String> {
        let width = sides.mine.len().max(sides.theirs.len());
        let map_width = sides.my_map.len().max(sides.their_map.len());
        let (Step(mine, my_map), Step(theirs, their_map)) = (&self.engine, &self.linux);
        let mut lines = Vec::new();
        if let (Outcome::Looked(my_pages, my_flags), Outcome::Looked(pages, flags)) = (mine, theirs) {
            for (page, (mine, theirs)) in my_pages.iter().zip(pages).enumerate() {
                if mine != theirs {
                    lines.push(format!("p{page}: {} {mine}, {} {theirs}", sides.mine, sides.theirs));
                }
            }
            for (page, (mine, theirs)) in my_flags.iter().zip(flags).enumerate() {
                if mine != theirs {
                    let [mine, theirs] = [mine, theirs].map(|bits| MappingFlags::from_bits_truncate(*bits));
                    let Sides { mine: me, theirs: they, .. } = sides;
                    lines.push(format!("p{page}: {me} has the flags {mine:?}, {they} {theirs:?}"));
                }
            }
        } else if mine != theirs {
            lines.push(format!("{:width$}  {mine}", sides.mine));
            lines.push(format!("{:width$}  {theirs}", sides.theirs));
        }
        if my_map != their_map {
            let map = |map: &Option<Vec<Line>>| match map {
                None => "as before".to_string(),
                Some(lines) if lines.is_empty() => "empty".to_string(),
                Some(lines) => lines.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            };
            lines.push(format!("{:map_width$}  {}", sides.my_map, map(my_map)));
            lines.push(format!("{:map_width$}  {}", sides.their_map, map(their_map)));
        }
        lines
    }
}
