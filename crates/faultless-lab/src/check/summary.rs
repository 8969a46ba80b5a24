//! Summary of a check: counts of each kind of operation by outcome, as a table and as JSON.

use super::differences::KNOWN;
use super::files;
use super::generate::Episode;
use super::memory::Pressure;
use super::operation::{FILES, Operation};
use crate::report::number;
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Number of operations from which rare kinds and errors are reported.
const MANY: u64 = 1_000_000;
/// Least number of occurrences of each kind and each error in such a run.
const OFTEN: u64 = 1_000;

/// Version of the JSON schema.
pub const SCHEMA: u32 = 1;

/// Summary of a run, complete or interrupted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The design that the engine ran under.
    pub design: String,
    /// The kernel that the engine was compared with. Empty with threads or files.
    pub kernel: String,
    /// The seed of the first episode. The seeds of the others follow from it.
    pub seed: u64,
    /// The number of threads that did operations at the same time; 0 if files were checked against their model.
    pub threads: usize,
    /// The number of operations that were done on both sides and compared, in all threads.
    pub operations: u64,
    /// The number of operations that were left out, because their episode ended at a known difference.
    #[serde(default)]
    pub left_out: u64,
    /// The number of episodes. Each has its own seed.
    pub episodes: u64,
    /// The duration of the run, in seconds.
    pub seconds: f64,
    /// Whether Ctrl-C ended the run early.
    pub interrupted: bool,
    /// For each kind of operation, the number of times for each outcome.
    pub results: BTreeMap<String, BTreeMap<String, u64>>,
    /// The number of known differences, by name.
    pub known: BTreeMap<String, u64>,
    /// The numbers of pages swapped out and in, if the engine's memory was limited.
    pub pressure: Option<Pressure>,
    /// The difference that ended the run, if any.
    pub difference: Option<Found>,
}

/// Difference after shrinking.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The two sides that differ.
    pub from: From,
    /// The seed of its episode, or of its round of threads. A run with this seed shows the difference in its first
    /// episode or round.
    pub seed: u64,
    /// The number of operations that such a run needs.
    pub operations: u64,
    /// The shortest list found, or the last operations of a thread.
    pub list: Vec<String>,
    /// The result of each side for the last operation.
    pub said: Vec<String>,
    /// The command that repeats the difference.
    pub command: String,
}

/// Sides of a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum From {
    /// The engine and Linux.
    #[default]
    Linux,
    /// A thread in a space of its own, at the first window and at its place among others. The list is the shortest
    /// found.
    Place {
        /// The number of the thread.
        thread: usize,
    },
    /// A thread among others, and the same episode alone. The list has its last operations.
    Alone {
        /// The number of the thread.
        thread: usize,
        /// The seed of its episode.
        seed: u64,
        /// The number of operations that the thread had done.
        done: usize,
    },
    /// The engine and its own rules, after threads have worked.
    Rules,
    /// A file and its model.
    Model,
}

/// Returns an episode up to the operation at `place`, one line each. Operations of children of fork are indented.
pub fn list(episode: &Episode, place: usize) -> Vec<String> {
    let shown = &episode.operations[..=place.min(episode.operations.len() - 1)];
    let mut depth = 0;
    let lines = shown.iter().map(|operation| {
        depth -= usize::from(matches!(operation, Operation::Exit) && depth > 0);
        let line = format!("{:1$}{operation}", "", 4 * depth);
        depth += usize::from(matches!(operation, Operation::Fork));
        line
    });
    let mut lines: Vec<String> = lines.collect();
    let is_named = |file: &usize| shown.iter().any(|operation| operation.file() == Some(*file));
    let files = (0..FILES).filter(is_named);
    let files: Vec<_> =
        files.map(|file| format!("file{file} has {:#x} bytes", episode.files[file])).collect();
    if !files.is_empty() {
        lines.insert(0, files.join(", "));
    }
    lines
}

impl Summary {
    /// Adds the counts of another thread.
    pub fn add(&mut self, other: Self) {
        self.operations += other.operations;
        for (name, times) in other.known {
            *self.known.entry(name).or_default() += times;
        }
        for (kind, results) in other.results {
            let sums = self.results.entry(kind).or_default();
            for (class, times) in results {
                *sums.entry(class).or_default() += times;
            }
        }
    }

    /// Counts one operation with the outcome `class`.
    pub fn count(&mut self, operation: &Operation, class: String) {
        self.count_as(operation.kind(), operation.counts(), class);
    }

    /// Counts one operation of this kind with the outcome `class`.
    pub fn count_as(&mut self, kind: &'static str, counts: bool, class: String) {
        if counts {
            self.operations += 1;
        }
        let results = match self.results.get_mut(kind) {
            Some(results) => results,
            None => self.results.entry(kind.into()).or_default(),
        };
        match results.get_mut(&class) {
            Some(count) => *count += 1,
            None => _ = results.insert(class, 1),
        }
    }

    /// Returns all kinds of operations of this check, in the order of reports.
    fn kinds(&self) -> &'static [&'static str] {
        if self.threads == 0 { &files::KINDS } else { &Operation::KINDS }
    }

    /// Returns the number of operations per second.
    pub fn rate(&self) -> f64 {
        self.operations as f64 / self.seconds.max(1e-9)
    }

    /// Returns warnings for kinds and errors that occurred too rarely in a long run.
    pub fn seldom(&self) -> Vec<String> {
        if self.operations < MANY {
            return Vec::new();
        }
        let kinds = self.kinds().iter().map(|kind| {
            let times = self.results.get(*kind).map_or(0, |results| results.values().sum());
            ((*kind).to_string(), times)
        });
        let mut classes = BTreeMap::<_, u64>::new();
        for (class, times) in self.results.values().flatten() {
            *classes.entry(class.clone()).or_default() += times;
        }
        let seldom = kinds.chain(classes).filter(|(_, times)| *times < OFTEN);
        seldom
            .map(|(what, times)| format!("warning: {what} occurred only {}", plural(times, "time")))
            .collect()
    }

    /// Returns the report for people, with no line wider than `width`.
    pub fn text_within(&self, width: usize) -> String {
        let (table, rest) = (self.table(), self.sentences());
        let rest = rest.lines().map(|line| wrapped(line, width)).collect::<Vec<_>>().join("\n");
        match table.lines().all(|line| line.chars().count() <= width) {
            true => format!("{table}\n\n{rest}"),
            false => format!("{}\n\n{rest}", self.list(width)),
        }
    }

    /// Returns the report for people.
    pub fn text(&self) -> String {
        format!("{}\n\n{}", self.table(), self.sentences())
    }

    /// Returns the outcomes that occurred, "ok" first, then errors, then signals.
    fn classes(&self) -> Vec<&String> {
        let mut classes: Vec<&String> = self.results.values().flat_map(BTreeMap::keys).collect();
        classes.sort_by_key(|class| (class.as_str() != "ok", class.contains('_'), class.as_str()));
        classes.dedup();
        classes
    }

    /// Returns the counts as a list, with the outcomes of each kind that occurred.
    fn list(&self, width: usize) -> String {
        let classes = self.classes();
        let line = |kind: &&str| {
            let results = self.results.get(*kind)?;
            let count = |class: &&String| Some(format!("{} {class}", results.get(*class)?));
            Some(wrapped(
                &format!("{kind}: {}", classes.iter().filter_map(count).collect::<Vec<_>>().join(", ")),
                width,
            ))
        };
        self.kinds().iter().filter_map(line).collect::<Vec<_>>().join("\n")
    }

    /// Returns the counts as a table, with a column for each outcome.
    fn table(&self) -> String {
        let classes = self.classes();
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(std::iter::once("operation").chain(classes.iter().map(|class| class.as_str())));
        for kind in self.kinds() {
            let Some(results) = self.results.get(*kind) else { continue };
            let cells = classes.iter().map(|class| results.get(*class).map_or(String::new(), u64::to_string));
            table.add_row(std::iter::once(kind.to_string()).chain(cells));
        }
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        table.to_string()
    }

    /// Returns the known differences, the warnings and the result.
    fn sentences(&self) -> String {
        let mut text = String::new();
        // Writing to a string never fails.
        for (name, times) in &self.known {
            let intended = KNOWN.iter().any(|known| known.name == name && known.by_intention);
            let why = if intended { "intended difference" } else { "difference to be fixed" };
            let _ = writeln!(text, "{why} (docs/check.md), {}: {name}", plural(*times, "time"));
        }
        if self.left_out != 0 {
            let left_out = plural(self.left_out, "operation");
            let _ = writeln!(text, "{left_out} left out: an episode ends at such a difference");
        }
        for line in self.seldom() {
            let _ = writeln!(text, "{line}");
        }
        let Self { operations, episodes, seconds, design, kernel, seed, threads, .. } = self;
        let sides = match kernel.as_str() {
            "" if *threads == 0 => "and by a model of a file".to_string(),
            "" => format!("by {threads} threads, and by each alone"),
            kernel => format!("and on {kernel}"),
        };
        let _ = write!(
            text,
            "{} in {}, each with its own seed (the first {seed}), \
             under {design} {sides}: {} in {seconds:.1} s, {} operations a second.",
            plural(*operations, "operation"),
            plural(*episodes, "episode"),
            match (&self.difference, self.interrupted) {
                (Some(_), _) => "a difference",
                (None, true) => "no difference until the interrupt,",
                (None, false) => "no difference",
            },
            number::count(self.rate() as u64),
        );
        if let Some(pressure) = &self.pressure {
            let _ = write!(text, "\n{}", pressure.text());
        }
        text
    }
}

/// Returns a count with its noun: "1 time" or "1,234 times".
fn plural(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", number::count(n), if n == 1 { "" } else { "s" })
}

/// Returns `line` wrapped at words. Later lines are indented.
fn wrapped(line: &str, width: usize) -> String {
    let options = textwrap::Options::new(width).subsequent_indent("  ").break_words(false);
    textwrap::fill(line, options.word_splitter(textwrap::WordSplitter::NoHyphenation))
}

impl Found {
    /// Returns the report for people.
    pub fn text(&self) -> String {
        let mut text = match self.from {
            From::Linux => "A difference between the engine and Linux.".to_string(),
            From::Place { thread } => format!(
                "A difference between thread {thread}'s window and the first one; it shows without other threads, too."
            ),
            From::Alone { thread, seed, done } => format!(
                "A difference between thread {thread} among others and the same operations alone. It had done {done} \
                 operations of seed {seed}; these are the last ones."
            ),
            From::Model => "A difference between a file and its model.".to_string(),
            From::Rules => "The engine breaks a rule of its own while threads work together.".to_string(),
        };
        match self.list.is_empty() {
            true => text.push_str("\n\n"),
            false if self.from == From::Model => text.push_str("\n\n"),
            false => text.push_str(" P is a page; p0 is the window's first.\n\n"),
        }
        for (number, line) in self.list.iter().enumerate() {
            let _ = writeln!(text, "  {:>3}  {line}", number + 1);
        }
        if !self.list.is_empty() {
            text.push('\n');
        }
        for line in &self.said {
            let _ = writeln!(text, "       {line}");
        }
        let _ = write!(text, "\nSeed {}. Again: {}", self.seed, self.command);
        if matches!(self.from, From::Alone { .. } | From::Rules) {
            text.push_str("\nThe order of the threads varies, so it may take several runs.");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_says_what_it_has_not_seen() {
        let mut summary = Summary { operations: MANY, threads: 1, ..Summary::default() };
        for _ in 0..OFTEN {
            summary.count(&Operation::Exit, "ok".into());
        }
        summary.count(&Operation::Exit, "EINVAL".into());
        let seldom = summary.seldom();
        assert!(seldom.contains(&"warning: EINVAL occurred only 1 time".into()), "{seldom:?}");
        assert!(seldom.contains(&"warning: mmap occurred only 0 times".into()), "{seldom:?}");
        assert!(!seldom.iter().any(|line| line.contains(": ok ")), "{seldom:?}");
        summary.operations = 5;
        assert!(summary.seldom().is_empty());
    }

    #[test]
    fn operations_that_are_left_out_have_a_reason() {
        let mut summary = Summary { operations: 96_531, episodes: 1, ..Summary::default() };
        assert!(!summary.text().contains("left out"), "{}", summary.text());
        summary.left_out = 3_469;
        summary.known.insert("a sealed mapping is not changed in part".into(), 1);
        let text = summary.text();
        let wanted = "\
intended difference (docs/check.md), 1 time: a sealed mapping is not changed in part
3,469 operations left out: an episode ends at such a difference
96,531 operations in 1 episode, each ";
        assert!(text.contains(wanted), "{text}");
    }
}
