//! The command `faultless check`: its arguments and its output.

use super::files::Files;
use super::memory::Memory;
#[cfg(target_os = "linux")]
use super::run::Plan;
use super::summary::Summary;
use super::threads::{MOST, Together};
use crate::cli::{say, terminal_width, whole};
use crate::designs::{self, Design};
use crate::output::Output;
use crate::trouble::Trouble;
use clap::Args;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Each paragraph is one line: clap wraps it at the width of the terminal.
const AFTER: &str = "\
Both sides start with an empty window of 128 pages and five files with the same bytes. After each operation, check compares \
the result or the error number, the signal with its code and address, the loaded bytes, and the map of the window (start, \
end, rights, sharing, file, offset). After every 64th operation it compares all bytes of the window and the flags of the \
map. A thousand operations make an episode. Each episode has its own seed.

A difference is shrunk to the shortest list of operations that shows it. The list is printed with the result of each side \
and the command that repeats it. Intended differences are described in docs/check.md and counted apart.

With --threads, each thread does an episode in its own window of one space, at the same time as the others. More threads \
touch all windows. Each step must give the same result as in the same episode alone. This check does not use Linux. The \
seed does not determine the order of the threads, so a difference may need several runs to appear again.

With --memory, the engine has so much memory, and swap space. Pages go out and come back while the operations are done. \
In some episodes the machine has few frames, in others a limit of the spaces is tight. Locked pages may take more memory.

With --files, each episode has one file. It is written, read, mapped, truncated, punched, synced and opened again. After \
each operation the file is compared with a model. After each sync it is compared with its store. The store may be late, \
fail or refuse.

Exit codes: 0 no difference; 1 a difference; 2 bad input, or no Linux to check against; 130 interrupted by Ctrl-C, \
with a summary so far.

Examples:
  faultless check                            100,000 operations
  faultless check --ops 10000000 --seed 7    more operations, with another seed
  faultless check --design vma-lock          the engine under another locking design
  faultless check --threads 4                four threads at the same time, each compared with itself alone
  faultless check --memory 32K               the engine swaps all the time
  faultless check --files --ops 1000000      a million operations on files, compared with a model
  faultless check --json - | jq .results     JSON for another program";

/// Arguments of `faultless check`.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct Check {
    /// Number of operations on both sides
    #[arg(long, value_name = "N", value_parser = operations, allow_hyphen_values = true, default_value_t = 100_000)]
    ops: u64,
    /// Seed that determines all operations
    #[arg(long, value_name = "N", value_parser = seed, allow_hyphen_values = true, default_value_t = 1)]
    seed: u64,
    /// The locking design that the engine runs under
    #[arg(long, value_name = "NAME", default_value = designs::OURS)]
    design: String,
    /// Run N threads at the same time, each in its own part of one space, and compare each with the same thread alone
    #[arg(long, value_name = "N", value_parser = threads, allow_hyphen_values = true)]
    threads: Option<usize>,
    /// Check files against a model of a file: reads, writes, mappings, syncs, lengths and holes; in memory, in stores
    /// that are late, fail or refuse, and in real files
    #[arg(long, conflicts_with_all = ["threads", "merged"])]
    files: bool,
    /// Limit the engine's memory, with compressed swap space: pages are swapped out and in all the time. At least 16K
    #[arg(long, value_name = "SIZE", value_parser = memory, allow_hyphen_values = true, conflicts_with = "files")]
    memory: Option<Memory>,
    /// Do not compare the border between two neighbouring mappings that look the same: Linux versions differ in the
    /// neighbours that they merge
    #[arg(long)]
    merged: bool,
    /// Write the summary as JSON; with "-" or no path, write it to standard output, without the table
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

fn memory(text: &str) -> Result<Memory, String> {
    Memory::new(crate::parse::size(text)?)
}

fn threads(text: &str) -> Result<usize, String> {
    match whole(text, "at least one thread")? {
        0 => Err("at least one thread".into()),
        threads if threads > MOST => Err(format!("at most {MOST} threads")),
        threads => Ok(threads),
    }
}

impl Check {
    /// Runs the check. Returns the exit code.
    ///
    /// # Errors
    /// Bad input; no Linux, or no process to check against; no memory.
    pub fn run(&self, interrupted: &AtomicBool) -> Result<u8, Trouble> {
        let design = self.design()?;
        // The output is opened before the work, so that a bad path fails at once.
        let json = self.json.as_deref().map(Output::check).transpose()?;
        let to_stdout = json.as_ref().is_some_and(Output::is_stdout);
        let (operations, seed, merged, memory) = (self.ops, self.seed, self.merged, self.memory);
        let summary = match self.threads {
            _ if self.files => Files { operations, seed, ..Files::new(design) }.run(interrupted)?,
            Some(threads) => {
                let plan = Together { operations, seed, merged, memory, ..Together::new(design, threads) };
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
            say(&terminal_width().map_or_else(|| summary.text(), |width| summary.text_within(width)))?;
        }
        Ok(match (&summary.difference, summary.interrupted) {
            (Some(_), _) => 1,
            (None, true) => crate::cli::INTERRUPTED,
            (None, false) => 0,
        })
    }

    #[cfg(target_os = "linux")]
    fn against_linux(&self, design: &'static Design, interrupted: &AtomicBool) -> Result<Summary, Trouble> {
        let (operations, seed, merged, memory) = (self.ops, self.seed, self.merged, self.memory);
        Plan { operations, seed, merged, memory, ..Plan::new(design) }.run(&super::own_command, interrupted)
    }

    #[cfg(not(target_os = "linux"))]
    fn against_linux(&self, _: &'static Design, _: &AtomicBool) -> Result<Summary, Trouble> {
        let why = "check needs Linux to compare with, and this system is not Linux; use --threads or --files";
        Err(Trouble::Cannot(why.into()))
    }

    fn design(&self) -> Result<&'static Design, Trouble> {
        designs::find(&self.design).ok_or_else(|| {
            Trouble::Input(format!("there is no design {:?}; there are: {}", self.design, designs::names()))
        })
    }
}
