//! The command `diff`: its arguments, its output, its exit code.

use super::text::{figures, text, wrapped};
use super::{Changes, Source, compare};
use crate::cli::{say, width};
use crate::output::{self, Output};
use crate::parse;
use crate::trouble::Trouble;
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Each paragraph is one line. clap wraps it at the width of the terminal.
const AFTER: &str = "\
Each figure of a scenario under a design is compared by its median over the rounds. It changed beyond noise if the \
confidence interval of the ratio lies on one side of 1, and beyond the difference between designs that run the same code. \
It is level if the interval contains 1 and is narrower than 1.2 times. All else is unknown, and so is a figure of fewer \
than 5 rounds. Differences of machine, seed and settings are named first: such runs may not be comparable.

Exit codes: 0 done; 1 with --fail-above, a figure is worse by more than the ratio; 2 bad input, or nothing in common.

Examples:
  faultless compare --json=before.json       then change something, and
  faultless compare --json=after.json
  faultless diff before.json after.json      the changes beyond noise
  faultless diff before.json after.json --all
                                             every figure
  faultless diff before.json after.json --fail-above 1.5
                                             for CI: 1 if B is worse
  faultless compare --json | faultless diff before.json -
  faultless diff before.json after.json --json | jq '.figures[0]'";

/// Arguments of `faultless diff`.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct Diff {
    /// The result to compare with, written by `compare --json`; "-" is standard input
    #[arg(value_name = "A.json")]
    a: PathBuf,
    /// The result that is compared; "-" is standard input
    #[arg(value_name = "B.json")]
    b: PathBuf,
    /// Exit with code 1 if a figure of B is worse, beyond noise, by more than this ratio, as 1.5
    #[arg(long, value_name = "RATIO", value_parser = parse::ratio, allow_hyphen_values = true)]
    fail_above: Option<f64>,
    /// List the figures within noise too, and those that have no verdict
    #[arg(long)]
    all: bool,
    /// Write the comparison as JSON, with all figures; "-", or nothing, is standard output, and then no text
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
}

/// The comparison as JSON.
#[derive(Serialize)]
struct Json<'a> {
    #[serde(flatten)]
    changes: &'a Changes,
    fail_above: Option<f64>,
    failed: usize,
}

impl Diff {
    /// Compares, and prints the result. Returns the exit code.
    ///
    /// # Errors
    /// [`Trouble::Input`] if a file cannot be read, the files have nothing in common, or the result cannot be written.
    pub fn run(&self) -> Result<u8, Trouble> {
        let input = |text: String| Err(Trouble::Input(text));
        if self.a == self.b && self.a == Path::new("-") {
            return input("only one of the two files can be standard input".into());
        }
        if let Some(json) = self.json.as_deref() {
            let inputs = [("A", self.a.as_path()), ("B", self.b.as_path())];
            output::all_different(&[("--json", json)], &inputs)?;
        }
        let (a, b) = (Source::read(&self.a)?, Source::read(&self.b)?);
        let changes = compare(&a, &b);
        if changes.figures.is_empty() {
            return input(format!(
                "{} and {} have no scenario under the same design in common",
                a.name, b.name
            ));
        }
        let failed = self.fail_above.map_or(0, |ratio| changes.worse_by_more_than(ratio));
        let json = self.json.as_deref().map(Output::check).transpose()?;
        let to_stdout = json.as_ref().is_some_and(Output::is_stdout);
        if let Some(json) = json {
            let text = serde_json::to_string_pretty(&Json {
                changes: &changes,
                fail_above: self.fail_above,
                failed,
            })
            .map_err(|error| Trouble::Input(format!("cannot write the JSON: {error}")))?;
            json.write(&text)?;
        }
        if !to_stdout {
            let width = width();
            say(&text(&changes, self.all, width))?;
            if let Some(ratio) = self.fail_above {
                let worse = format!("Worse by more than {ratio} times, beyond noise: {}.", figures(failed));
                say(&format!("\n{}", wrapped(&worse, "", width).trim_end()))?;
            }
        }
        Ok(u8::from(failed != 0))
    }
}
