//! What differs from Linux by intention: counted apart, each with its reason here and in docs/check.md.

use super::operation::Operation;
use super::step::{Line, Outcome, Step};

/// A difference by intention.
#[derive(Debug)]
pub struct Known {
    /// Its name in reports and in docs/check.md.
    pub name: &'static str,
    /// Why.
    pub reason: &'static str,
    /// Whether it is this one: the operation, the engine's step, Linux's step.
    is_it: fn(&Operation, &Step, &Step) -> bool,
}

/// All there are. After one of them the two sides go on as if they had said the same, so it may not leave them
/// different.
pub const KNOWN: &[Known] = &[];

/// The one that this is, if it is one.
pub fn known(operation: &Operation, engine: &Step, linux: &Step) -> Option<&'static Known> {
    KNOWN.iter().find(|known| (known.is_it)(operation, engine, linux))
}

/// Two sides that disagree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which operation it was, from 0.
    pub place: usize,
    /// What the engine said.
    pub engine: Step,
    /// What Linux said.
    pub linux: Step,
}

impl Difference {
    /// What is different, in a few lines.
    pub fn lines(&self) -> Vec<String> {
        let (Step(mine, my_map), Step(theirs, their_map)) = (&self.engine, &self.linux);
        let mut lines = Vec::new();
        if let (Outcome::Looked(my_pages, my_flags), Outcome::Looked(pages, flags)) = (mine, theirs) {
            for (page, (mine, theirs)) in my_pages.iter().zip(pages).enumerate() {
                if mine != theirs {
                    lines.push(format!("p{page}: engine {mine}, Linux {theirs}"));
                }
            }
            if my_flags != flags {
                lines.push(format!("flags of the map's lines: engine {my_flags:x?}, Linux {flags:x?}"));
            }
        } else if mine != theirs {
            lines.push(format!("engine  {mine}"));
            lines.push(format!("Linux   {theirs}"));
        }
        if my_map != their_map {
            let map = |map: &Option<Vec<Line>>| match map {
                None => "as before".to_string(),
                Some(lines) if lines.is_empty() => "empty".to_string(),
                Some(lines) => lines.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            };
            lines.push(format!("map of the engine  {}", map(my_map)));
            lines.push(format!("map of Linux       {}", map(their_map)));
        }
        lines
    }
}
