//! The command: its arguments, and what it prints.

use super::files::Files;
#[cfg(target_os = "linux")]
use super::run::Plan;
use super::summary::Summary;
use super::threads::{MOST, Together};
use crate::cli::{Output, say, whole};
use crate::designs::{self, Design};
use crate::trouble::Trouble;
use clap::Args;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Paragraphs are one line each: clap breaks them as wide as the terminal is.
const AFTER: &str = "\
Both sides begin with an empty window of 128 pages and five files with the same bytes. After each operation they have to say the \
same: the result or the error number, the signal with its code and address, the bytes that were loaded, and the map of \
the window (start, end, rights, sharing, file, offset). After every 64th all bytes of the window are compared, and the \
map's flags. A thousand operations make an episode, which has a seed of its own.

A difference is shrunk to the shortest list of operations that shows it, printed with what each side said and the \
command that repeats it. What differs by intention stands in docs/check.md, and is counted apart.

With --threads that many threads do an episode each, at the same time, in windows of their own of one space, while others \
touch all windows. Each step has to be what it is when the same episode is done alone; there is no Linux in this. Who \
comes first does not follow from the seed: a difference may take several runs to come again.

With --files each episode has one file: written, read, mapped, cut off, punched, synced and opened again. It is compared with a \
model after each operation, and with what its store has after each sync. The store may be late, fail or refuse.

Exit codes: 0 no difference; 1 a difference; 2 bad input, or there is no Linux to check against; 130 ended by Ctrl-C, \
with a summary so far.

Examples:
  faultless check                            a hundred thousand operations
  faultless check --ops 10000000 --seed 7    more of them, and other ones
  faultless check --design vma-lock          the engine under a rival's locking
  faultless check --threads 4                four threads at once, against each alone
  faultless check --files --ops 1000000      a million operations on files, against a model
  faultless check --json - | jq .results     for a program to read";

/// Arguments of `faultless check`.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct Check {
    /// Operations to do on both sides
    #[arg(long, value_name = "N", value_parser = operations, allow_hyphen_values = true, default_value_t = 100_000)]
    ops: u64,
    /// What all operations follow from
    #[arg(long, value_name = "N", value_parser = seed, allow_hyphen_values = true, default_value_t = 1)]
    seed: u64,
    /// The locking design that the engine runs under
    #[arg(long, value_name = "NAME", default_value = designs::OURS)]
    design: String,
    /// Have so many threads work at once, each in its part of one space, and compare with what each does alone
    #[arg(long, value_name = "N", value_parser = threads, allow_hyphen_values = true)]
    threads: Option<usize>,
    /// Do operations on files, and compare with a model of a file: reads, writes, mappings, syncs, lengths, holes; in memory,
    /// in stores that are late, fail or refuse, and in real files
    #[arg(long, conflicts_with_all = ["threads", "merged"])]
    files: bool,
    /// Do not compare where a mapping ends and the next, which looks the same, begins: which neighbours become one mapping
    /// changes from one Linux to the next
    #[arg(long)]
    merged: bool,
    /// Write the summary as JSON; "-", or nothing, is standard output, and then no table
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
}

fn operations(text: &str) -> Result<u64, String> {
    match whole(text, "at least one operation")? {
        0 => Err("at least one operation".into()),
        operations => Ok(operations),
    }
}

fn seed(text: &str) -> Result<u64, String> {
    whole(text, "0 is the least")
}

fn threads(text: &str) -> Result<usize, String> {
    match whole(text, "somebody has to work")? {
        0 => Err("somebody has to work".into()),
        threads if threads > MOST => Err(format!("there can be {MOST}")),
        threads => Ok(threads),
    }
}

impl Check {
    /// Runs it. Returns the exit code.
    ///
    /// # Errors
    /// Bad input; no Linux, or no process to check against; no memory.
    pub fn run(&self, interrupted: &AtomicBool) -> Result<u8, Trouble> {
        let design = self.design()?;
        // Before the work, not after it.
        let json = self.json.as_deref().map(Output::open).transpose()?;
        let to_stdout = matches!(json, Some(Output::Stdout));
        let (operations, seed, merged) = (self.ops, self.seed, self.merged);
        let summary = match self.threads {
            _ if self.files => Files { operations, seed, ..Files::new(design) }.run(interrupted)?,
            Some(threads) => {
                let plan = Together { operations, seed, merged, ..Together::new(design, threads) };
                plan.run(interrupted)?
            }
            None => self.against_linux(design, interrupted)?,
        };
        if let Some(json) = json {
            let text = serde_json::to_string_pretty(&summary)
                .map_err(|error| Trouble::Input(format!("cannot write the JSON: {error}")))?;
            json.write(&text)?;
        }
        if !to_stdout {
            if let Some(found) = &summary.difference {
                say(&format!("{}\n", found.text()))?;
            }
            say(&summary.text())?;
        }
        Ok(match (&summary.difference, summary.interrupted) {
            (Some(_), _) => 1,
            (None, true) => crate::cli::INTERRUPTED,
            (None, false) => 0,
        })
    }

    #[cfg(target_os = "linux")]
    fn against_linux(&self, design: &'static Design, interrupted: &AtomicBool) -> Result<Summary, Trouble> {
        let (operations, seed, merged) = (self.ops, self.seed, self.merged);
        Plan { operations, seed, merged, ..Plan::new(design) }.run(&super::own_command, interrupted)
    }

    #[cfg(not(target_os = "linux"))]
    fn against_linux(&self, _: &'static Design, _: &AtomicBool) -> Result<Summary, Trouble> {
        let why =
            "check compares with the Linux that it runs on, and this is none; with --threads it needs none";
        Err(Trouble::Cannot(why.into()))
    }

    fn design(&self) -> Result<&'static Design, Trouble> {
        designs::find(&self.design).ok_or_else(|| {
            Trouble::Input(format!("there is no design {:?}; there are: {}", self.design, designs::names()))
        })
    }
}
