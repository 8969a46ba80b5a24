//! Search for the shortest sequence that shows a difference. It leaves operations out while the difference remains, and
//! makes the remaining operations simpler.

use super::differences::Difference;
use super::generate::Episode;
use super::operation::{Length, Operation, Rights};
use super::step::Outcome;
use crate::trouble::Trouble;
use faultless::address::PAGE_SIZE;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest duration of a search.
const PATIENCE: Duration = Duration::from_secs(60);

/// Function that runs an episode again and returns its difference, if any.
pub type Differs<'a> = &'a mut dyn FnMut(&Episode) -> Result<Option<Difference>, Trouble>;

struct Shrinking<'a> {
    best: Episode,
    difference: Difference,
    differs: Differs<'a>,
    /// Whether the episode ends with a process that died or hung. `None` until a second run, because a dead process
    /// loses answers.
    is_death: Option<bool>,
    give_up: Box<dyn Fn() -> bool + 'a>,
}

/// Returns the shortest episode found, and its difference. The difference may be another one than before.
///
/// # Errors
/// The errors of `differs`.
pub fn shrink(
    episode: Episode,
    difference: Difference,
    interrupted: &AtomicBool,
    differs: Differs<'_>,
) -> Result<(Episode, Difference), Trouble> {
    let start = Instant::now();
    let give_up = Box::new(move || interrupted.load(Ordering::Relaxed) || start.elapsed() > PATIENCE);
    let mut shrinking = Shrinking { best: episode, difference, differs, is_death: None, give_up };
    // If the whole episode does not differ again, it is reported unchanged.
    let whole = shrinking.best.operations.clone();
    if !shrinking.attempt(whole)? {
        return Ok((shrinking.best, shrinking.difference));
    }
    shrinking.look_everywhere()?;
    loop {
        let before = shrinking.best.clone();
        shrinking.leave_out()?;
        shrinking.simplify()?;
        if shrinking.best == before || (shrinking.give_up)() {
            return Ok((shrinking.best, shrinking.difference));
        }
    }
}

impl Shrinking<'_> {
    /// Runs these operations. If they still differ, keeps them up to the difference and returns true.
    fn attempt(&mut self, operations: Vec<Operation>) -> Result<bool, Trouble> {
        let mut episode = Episode { operations, ..self.best.clone() };
        if (self.give_up)() || episode.operations.is_empty() {
            return Ok(false);
        }
        let Some(difference) = (self.differs)(&episode)? else { return Ok(false) };
        let is_death = matches!(difference.linux.0, Outcome::Broken(_));
        if *self.is_death.get_or_insert(is_death) != is_death {
            return Ok(false);
        }
        episode.operations.truncate(difference.place + 1);
        (self.best, self.difference) = (episode, difference);
        Ok(true)
    }

    /// Adds a look after each operation, which finds the first wrong byte.
    fn look_everywhere(&mut self) -> Result<(), Trouble> {
        let each = self.best.operations.iter().flat_map(|operation| [*operation, Operation::Look]);
        let each = each.collect();
        self.attempt(each).map(drop)
    }

    /// Leaves out half of the operations, then a quarter, and so on down to one at a time.
    fn leave_out(&mut self) -> Result<(), Trouble> {
        let mut size = self.best.operations.len() / 2;
        while size > 0 {
            let mut start = 0;
            while start < self.best.operations.len() {
                let mut rest = self.best.operations.clone();
                let end = (start + size).min(rest.len());
                rest.drain(start..end);
                if !self.attempt(rest)? {
                    start += size;
                }
            }
            size /= 2;
        }
        // A look at the end may show the same as the last operation, or the other way round.
        if self.best.operations.len() > 1 {
            let mut looked = self.best.operations.clone();
            looked.pop();
            if looked.last() != Some(&Operation::Look) {
                looked.push(Operation::Look);
                self.attempt(looked)?;
            }
        }
        Ok(())
    }

    /// Makes each operation as simple as possible.
    fn simplify(&mut self) -> Result<(), Trouble> {
        let mut place = 0;
        while place < self.best.operations.len() {
            for simpler in simpler(&self.best.operations[place]) {
                let mut operations = self.best.operations.clone();
                operations[place] = simpler;
                if self.attempt(operations)? {
                    break;
                }
            }
            place += 1;
        }
        Ok(())
    }
}

/// Returns simpler forms of an operation, the simplest first.
fn simpler(operation: &Operation) -> Vec<Operation> {
    let mut simpler = Vec::new();
    let shorter = |length: Length| {
        let pages = length.0.div_ceil(PAGE_SIZE);
        let fits = pages < 1 << 20;
        let lengths = [1, pages / 2, pages.saturating_sub(1), pages].map(Length::pages);
        lengths.into_iter().filter(move |new| fits && (*new < length || !length.0.is_multiple_of(PAGE_SIZE)))
    };
    let mut other = *operation;
    if let Some(length) = other.length_mut() {
        for length in shorter(*length).filter(|length| length.0 != 0) {
            let mut other = *operation;
            other.length_mut().into_iter().for_each(|old| *old = length);
            simpler.push(other);
        }
    }
    match *operation {
        Operation::Map { at, length, rights, object, place, with } => {
            if !matches!(rights.0, 1 | 3) {
                let rights = Rights(rights.0 & 2 | 1);
                simpler.push(Operation::Map { at, length, rights, object, place, with });
            }
            let without = with.iter().map(|flag| with - flag);
            simpler.extend(without.map(|with| Operation::Map { at, length, rights, object, place, with }));
        }
        Operation::WriteRemote { at, length, value } if value != 1 => {
            simpler.push(Operation::WriteRemote { at, length, value: 1 });
        }
        Operation::WriteFile { file, offset, length, value } if value != 1 => {
            simpler.push(Operation::WriteFile { file, offset, length, value: 1 });
        }
        Operation::Store { at, value } if value != 1 => simpler.push(Operation::Store { at, value: 1 }),
        Operation::StoreByte { at, value } if value != 1 => {
            simpler.push(Operation::StoreByte { at, value: 1 })
        }
        Operation::Add { at, value } if value != 1 => simpler.push(Operation::Add { at, value: 1 }),
        Operation::Read { at, pages } if pages > 1 => simpler.push(Operation::Read { at, pages: 1 }),
        Operation::Truncate { file, length } if length % PAGE_SIZE != 0 => {
            simpler.push(Operation::Truncate { file, length: length / PAGE_SIZE * PAGE_SIZE });
        }
        _ => {}
    }
    simpler.retain(|new| new != operation);
    simpler
}

#[cfg(test)]
mod tests {
    use super::super::operation::At;
    use super::super::step::Step;
    use super::*;

    /// Returns a difference at the first load of p7 after a store to it and a fork in between.
    fn planted(episode: &Episode) -> Option<Difference> {
        let (mut stored, mut forked) = (false, false);
        for (place, operation) in episode.operations.iter().enumerate() {
            match operation {
                Operation::Store { at, .. } if *at == At::page(7) => stored = true,
                Operation::Fork => forked = stored,
                Operation::Load { at } if *at == At::page(7) && forked => {
                    let step = |value| Step(Outcome::Done(value), None);
                    return Some(Difference { place, engine: step(0), linux: step(1) });
                }
                _ => {}
            }
        }
        None
    }

    #[test]
    fn three_operations_are_left_of_a_thousand() {
        let mut episode = Episode::new(3, 1000);
        let at = At::page(7);
        episode.operations.insert(100, Operation::Store { at, value: 77 });
        episode.operations.insert(500, Operation::Fork);
        episode.operations.insert(900, Operation::Load { at });
        let difference = planted(&episode).unwrap();
        let mut tries = 0;
        let (episode, difference) = shrink(episode, difference, &AtomicBool::new(false), &mut |episode| {
            tries += 1;
            Ok(planted(episode))
        })
        .unwrap();
        let store = Operation::Store { at, value: 1 };
        assert_eq!(episode.operations, [store, Operation::Fork, Operation::Load { at }]);
        assert_eq!(difference.place, 2);
        assert!(tries < 500, "{tries}");
    }

    #[test]
    fn what_does_not_come_again_is_told_as_it_was() {
        let episode = Episode::new(3, 10);
        let step = Step(Outcome::Done(0), None);
        let difference = Difference { place: 5, engine: step.clone(), linux: step };
        let shrunk =
            shrink(episode.clone(), difference.clone(), &AtomicBool::new(false), &mut |_| Ok(None)).unwrap();
        assert_eq!(shrunk, (episode, difference));
    }
}
