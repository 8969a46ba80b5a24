//! The command line.

use crate::case::{self, Case};
use crate::run::{Plan, Row};
use crate::{json, linux, report};
use clap::Parser;
use clap::error::ErrorKind;
use faultless_lab::cli::say;
use faultless_lab::output::Output;
use faultless_lab::parse;
use faultless_lab::trouble::Trouble;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The number of rounds, and the time of each contender in a round.
const USUAL: (usize, Duration) = (11, Duration::from_millis(20));
const QUICK: (usize, Duration) = (5, Duration::from_millis(4));

const AFTER: &str = "\
Exit codes: 0 success; 1 a contender gave a wrong result; 2 bad input.

Examples:
  faultless-bench --quick                          all cases, in less than a minute
  faultless-bench --case look-up,update            some cases, in all their sizes
  faultless-bench --case look-up --size 200        one size
  faultless-bench --case fork --size 64 --json -   JSON, and no table
  faultless-bench --case pressure                  the cases whose names begin with pressure-
  faultless-bench --rounds 31 --slice 50ms         for figures to publish

Linux's maple tree takes part if scripts/maple.sh has built it.";

/// Compares the parts of faultless with other implementations of the same operations.
#[derive(Debug, Parser)]
#[command(name = "faultless-bench", version, after_help = AFTER)]
struct Cli {
    /// Cases to run, separated by commas. "pressure" means all cases that begin with "pressure-"
    /// [default: all; an unknown name lists them]
    #[arg(long = "case", value_name = "A,B", value_delimiter = ',')]
    cases: Vec<String>,
    /// Sizes, for the cases that have sizes: ranges of the index cases, mappings, MiB, pages in the page cache
    /// [default: each case's own]
    #[arg(long = "size", value_name = "N,N", value_delimiter = ',')]
    sizes: Vec<u64>,
    /// Run few and short rounds: less than a minute for all cases
    #[arg(long)]
    quick: bool,
    /// The number of rounds [default: 11; 5 with --quick]
    #[arg(long, value_name = "N", value_parser = rounds)]
    rounds: Option<usize>,
    /// The time of each contender in a round [default: 20ms; 4ms with --quick]
    #[arg(long, value_name = "TIME", value_parser = slice)]
    slice: Option<Duration>,
    /// Write the results as JSON to PATH. Without PATH, or with "-", write them to standard output, without tables
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
}

fn rounds(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(rounds @ 1..=10_000) => Ok(rounds),
        _ => Err("write a number from 1 to 10000".into()),
    }
}

fn slice(text: &str) -> Result<Duration, String> {
    match parse::latency(text)? {
        slice if slice < Duration::from_micros(100) => Err("a slice must be 100us or more".into()),
        slice => Ok(slice),
    }
}

/// Runs the command: parses the arguments, runs the cases, and returns the exit code.
pub fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let done = match (arguments.next().as_deref(), arguments.next()) {
        (Some(linux::FORKER), bytes) => forker(bytes.as_deref()),
        _ => match Cli::try_parse() {
            Ok(cli) => cli.run(),
            Err(error) => return not_understood(&error),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            eprintln!("faultless-bench: {trouble}");
            ExitCode::from(trouble.exit_code())
        }
    }
}

fn forker(bytes: Option<&str>) -> Result<(), Trouble> {
    let bytes = bytes.and_then(|bytes| bytes.parse().ok());
    linux::forker(
        bytes.ok_or_else(|| Trouble::Input("fork-worker is internal: give it a byte count".into()))?,
    )
}

/// Prints help in full, and of an error clap's first line.
fn not_understood(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // If printing fails, there is no place to report it.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    eprintln!("faultless-bench: {line}; see faultless-bench --help");
    ExitCode::from(2)
}

impl Cli {
    fn plan(&self) -> Result<Plan, Trouble> {
        let mut chosen: Vec<&'static Case> = Vec::new();
        for name in &self.cases {
            let found = case::find(name);
            if found.is_empty() {
                let names = case::names();
                return Err(Trouble::Input(format!("there is no case {name:?}; the cases are: {names}")));
            }
            for case in found {
                if !chosen.iter().any(|other| other.name == case.name) {
                    chosen.push(case);
                }
            }
        }
        if chosen.is_empty() {
            chosen = case::ALL.into();
        }
        if !self.sizes.is_empty() && chosen.iter().all(|case| case.sizes.is_none()) {
            return Err(Trouble::Input("--size: none of the chosen cases has sizes".into()));
        }
        let with_sizes = |case: &'static Case| Ok((case, self.sizes_of(case)?));
        let (rounds, slice) = if self.quick { QUICK } else { USUAL };
        let (rounds, slice) = (self.rounds.unwrap_or(rounds), self.slice.unwrap_or(slice));
        let cases = chosen.into_iter().map(with_sizes).collect::<Result<_, Trouble>>()?;
        Ok(Plan { cases, rounds, slice })
    }

    fn sizes_of(&self, case: &Case) -> Result<Vec<Option<u64>>, Trouble> {
        let Some(sizes) = &case.sizes else { return Ok(vec![None]) };
        if self.sizes.is_empty() {
            return Ok(sizes.usual.iter().copied().map(Some).collect());
        }
        match self.sizes.iter().find(|size| !(sizes.least..=sizes.most).contains(*size)) {
            Some(size) => Err(Trouble::Input(format!(
                "--size {size}: the case {} takes sizes from {} to {} {}",
                case.name, sizes.least, sizes.most, sizes.of
            ))),
            None => Ok(self.sizes.iter().copied().map(Some).collect()),
        }
    }

    fn run(&self) -> Result<(), Trouble> {
        let plan = self.plan()?;
        // Opened before the work, so that an error comes at once.
        let output = self.json.as_deref().map(Output::check).transpose()?;
        let has_tables = !matches!(output, Some(Output::Stdout));
        if has_tables {
            say(&report::heading(&plan))?;
        }
        let mut all: Vec<Row> = Vec::new();
        plan.run(|rows| {
            if has_tables {
                say(&report::table(&rows))?;
            }
            all.extend(rows);
            Ok(())
        })?;
        let Some(output) = output else { return Ok(()) };
        let text = serde_json::to_string_pretty(&json::Report::new(&all))
            .map_err(|error| Trouble::Input(format!("cannot write the JSON: {error}")))?;
        output.write(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn plan(arguments: &[&str]) -> Result<Plan, Trouble> {
        Cli::try_parse_from(["faultless-bench"].iter().chain(arguments)).expect("well-formed").plan()
    }

    #[test]
    fn the_arguments_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn all_cases_in_all_sizes_unless_told() {
        let plan = plan(&[]).unwrap();
        assert_eq!(plan.cases.len(), case::ALL.len());
        assert_eq!(plan.cases[0].1, [Some(30), Some(1_000), Some(60_000)]);
        assert_eq!(plan.cases[4].1, [None]);
    }

    #[test]
    fn cases_are_taken_once_and_in_order() {
        let plan = plan(&["--case", "update,look-up,update", "--size", "200", "--quick"]).unwrap();
        let names: Vec<_> = plan.cases.iter().map(|(case, _)| case.name).collect();
        assert_eq!(names, ["update", "look-up"]);
        assert_eq!(plan.cases[0].1, [Some(200)]);
        assert_eq!((plan.rounds, plan.slice), QUICK);
    }

    #[test]
    fn rounds_and_slices_are_as_told() {
        let plan = plan(&["--quick", "--rounds", "31", "--slice", "50ms"]).unwrap();
        assert_eq!((plan.rounds, plan.slice), (31, Duration::from_millis(50)));
        for wrong in ["--rounds=0", "--rounds=x", "--slice=1us", "--slice=5"] {
            assert!(Cli::try_parse_from(["faultless-bench", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for arguments in
            [&["--case", "no-such"][..], &["--size", "0"], &["--case", "map-unmap", "--size", "3"]]
        {
            assert!(matches!(plan(arguments), Err(Trouble::Input(_))), "{arguments:?}");
        }
    }
}
