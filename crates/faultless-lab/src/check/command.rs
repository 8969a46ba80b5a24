//! The command: its arguments, and what it prints.

#[cfg(target_os = "linux")]
use super::run::Plan;
use crate::cli::{Output, say, whole};
use crate::designs;
use crate::trouble::Trouble;
use clap::Args;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Paragraphs are one line each: clap breaks them as wide as the terminal is.
const AFTER: &str = "\
Both sides begin with an empty window of 128 pages and the same two files. After each operation they have to say the \
same: the result or the error number, the signal with its code and address, the bytes that were loaded, and the map of \
the window (start, end, rights, sharing, file, offset). After every 64th all bytes of the window are compared, and the \
map's flags. A thousand operations make an episode, which has a seed of its own.

A difference is shrunk to the shortest list of operations that shows it, printed with what each side said and the \
command that repeats it. What differs by intention stands in docs/check.md, and is counted apart.

Exit codes: 0 no difference; 1 a difference; 2 bad input, or there is no Linux to check against; 130 ended by Ctrl-C, \
with a summary so far.

Examples:
  faultless check                            a hundred thousand operations
  faultless check --ops 10000000 --seed 7    more of them, and other ones
  faultless check --design vma-lock          the engine under a rival's locking
  faultless check --json - | jq .results     for a program to read";

/// Arguments of `faultless check`.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct Check {
    /// Operations to do on both sides
    #[arg(long, value_name = "N", value_parser = operations, allow_negative_numbers = true, default_value_t = 100_000)]
    ops: u64,
    /// What all operations follow from
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true, default_value_t = 1)]
    seed: u64,
    /// The locking design that the engine runs under
    #[arg(long, value_name = "NAME", default_value = designs::OURS)]
    design: String,
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

impl Check {
    /// Runs it. Returns the exit code.
    ///
    /// # Errors
    /// Bad input; no Linux, or no process to check against.
    #[cfg(target_os = "linux")]
    pub fn run(&self, interrupted: &AtomicBool) -> Result<u8, Trouble> {
        let plan = self.plan()?;
        // Before the work, not after it.
        let json = self.json.as_deref().map(Output::open).transpose()?;
        let to_stdout = matches!(json, Some(Output::Stdout));
        let summary = plan.run(&super::own_command, interrupted)?;
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

    /// Says that there is nothing to check against.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(target_os = "linux"))]
    pub fn run(&self, _interrupted: &AtomicBool) -> Result<u8, Trouble> {
        Err(Trouble::Cannot("check compares with the Linux that it runs on, and this is none".into()))
    }

    #[cfg(target_os = "linux")]
    fn plan(&self) -> Result<Plan, Trouble> {
        let Some(design) = designs::find(&self.design) else {
            return Err(Trouble::Input(format!(
                "there is no design {:?}; there are: {}",
                self.design,
                designs::names()
            )));
        };
        Ok(Plan { design, operations: self.ops, seed: self.seed, merged: self.merged, ..Plan::new(design) })
    }
}
