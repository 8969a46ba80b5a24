//! The command line.

#[cfg(target_os = "linux")]
use crate::check;
use crate::check::Check;
use crate::compare::Plan;
use crate::contender::Contender;
use crate::designs::LeafTables;
use crate::diff::Diff;
use crate::generate::Generate;
use crate::html::{self, Facts};
use crate::json::Report;
#[cfg(target_os = "linux")]
use crate::measure::Measured;
#[cfg(target_os = "linux")]
use crate::native::{self, NativeMachine, Request};
use crate::output::{self, Output};
use crate::record::trace;
use crate::report::command;
use crate::report::text::{self, Screen};
use crate::report::view::View;
use crate::scenarios::Settings;
#[cfg(target_os = "linux")]
use crate::scenarios::Turn;
use crate::trouble::Trouble;
use crate::{help, json, parse, scenarios};
use anstream::{AutoStream, ColorChoice};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// The exit code after Ctrl-C, as shells report it.
pub(crate) const INTERRUPTED: u8 = 130;

const EXAMPLES: &str = "\
Examples:
  faultless compare                       four scenarios, in 45 seconds
  faultless compare giant-vma             one scenario
  faultless compare giant-vma --details   one scenario, every figure
  faultless compare --html report.html    a report with charts, for a browser
  faultless compare all --design all --json=result.json
                                          everything, for a program
  faultless check                         the engine against this Linux
  faultless diff a.json b.json            the changes between two results
  faultless designs                       the designs and their sources
  faultless scenarios                     the scenarios and their limits";

/// Paragraphs are one line each: clap wraps them at the width of the terminal. [`help`] lays out the lists.
const COMPARE: &str = "\
Without a scenario: fork-during-io, retry-storm, giant-vma and disjoint-change at a glance. The result is one table, with \
a row for each design and a column for each scenario.

Each scenario runs on a software machine. The threads of this process are its processors. Its memory has the size \
--memory. Each read of the file takes at least --io-latency. The designs take turns, in rounds. Each round checks every \
page that is read, the children of fork, and the return of all frames. An error ends the run. If a design cannot run a \
scenario, its row says so. The native rows are the kernel of this machine, on the real MMU. \
The other rows run on a simulated one, so do not compare them.

Two designs are compared by the ratios of neighbouring rounds, with a confidence interval of 95 %. Rounds are added until \
the intervals are narrow, or until --seconds are over. Twins are designs that run the same code in a scenario. No \
difference counts that is within the interval or not larger than the difference of twins.

How to read the tables:
  1.20 ms (0.98–1.40)  median, smallest and largest round
  1.50×                1.5 times worse than the best of the column
  ≈1.05×               level: the interval of the ratio contains 1, and is
                       narrower than 1.2 times
  ?3.00×               unknown: the interval is too wide, designs that run the
                       same code differ as much, or there are fewer than 5
                       rounds
  bystander, fork      latency of an operation at a fixed rate, counted from its
                       scheduled start
  fault                time from the access to a cold page to the page
  per fault            events for each major fault
  waits                time that all threads together wait, in each second: two
                       threads that always wait have 2 s

Exit codes: 0 done; 1 an error was found; 2 bad input, or no design could run; 130 ended by Ctrl-C, with the \
figures so far.

Examples:
  faultless compare fork-during-io --io-latency 10ms --rate fork=20
  faultless compare giant-vma disjoint-change --design all --seconds 5
  faultless compare giant-vma --details
  faultless compare fork-during-io --file /usr/bin/gdb --json=result.json
  faultless compare all --json --design all";

/// Compare how long page faults, fork and other threads wait under different locking designs.
#[derive(Debug, Parser)]
#[command(name = "faultless", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run scenarios under locking designs, and print the figures.
    Compare(Compare),
    /// Compare the engine with the Linux of this machine, operation by operation.
    Check(Check),
    /// Compare two results of `compare --json`, and print the changes beyond noise.
    Diff(Diff),
    /// List the locking designs.
    Designs,
    /// List the scenarios.
    Scenarios,
    /// Write shell completions or man pages.
    #[command(subcommand, hide = true)]
    Generate(Generate),
    /// Run one round on the kernel. Only `compare` starts it.
    #[cfg(target_os = "linux")]
    #[command(name = native::WORKER, hide = true)]
    NativeRound,
    /// Run operations on this Linux for comparison. Only `check` starts it.
    #[cfg(target_os = "linux")]
    #[command(name = check::ORACLE, hide = true)]
    CheckOracle,
}

#[derive(Args, Debug)]
#[command(after_help = COMPARE)]
struct Compare {
    /// Scenarios to run, or "all" [default: four of them at a glance]
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,
    /// Designs, separated by commas, or "all" [default: mmap-lock, vma-lock, vma-lock-retry, vma-lock-hold, faultless
    /// and native]
    #[arg(long = "design", value_name = "A,B", value_delimiter = ',')]
    designs: Vec<String>,
    /// Threads that do the work of the scenario [default: depends on the scenario]
    #[arg(long, value_name = "N", value_parser = threads, allow_hyphen_values = true)]
    threads: Option<usize>,
    /// Maximum seconds for each scenario and design. A scenario ends earlier if more rounds would tell little
    /// [default: 8, less for many designs or scenarios]
    #[arg(long, value_name = "S", value_parser = parse::seconds, allow_hyphen_values = true)]
    seconds: Option<f64>,
    /// Minimum latency of each read of the file
    #[arg(long, value_name = "TIME", value_parser = parse::latency, allow_hyphen_values = true, default_value = "2ms")]
    io_latency: Duration,
    /// Reads that the device serves at the same time [default: unlimited]
    #[arg(long, value_name = "N", value_parser = queue_depth, allow_hyphen_values = true)]
    queue_depth: Option<NonZeroUsize>,
    /// The way in which fork passes on leaf tables: "copy", as Linux, or "share" until one changes [default: share
    /// under faultless and faultless-retry, copy under the others]
    #[arg(long, value_name = "HOW", value_enum, hide_possible_values = true)]
    fork: Option<LeafTables>,
    /// Operations per second of an actor of the scenario; may be repeated
    #[arg(long = "rate", value_name = "NAME=HZ", value_parser = parse::rate, allow_hyphen_values = true)]
    rates: Vec<(String, f64)>,
    /// The file to map; its first GiB is used [default: a temporary file of 16 to 64 MiB]
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Memory of the software machine; native rows have the memory of this machine
    #[arg(long, value_name = "SIZE", value_parser = memory, allow_hyphen_values = true, default_value = "256M")]
    memory: u64,
    /// Seed of all random choices
    #[arg(long, value_name = "N", value_parser = seed, allow_hyphen_values = true, default_value_t = 1)]
    seed: u64,
    /// Print all figures and all causes of waiting
    #[arg(long)]
    details: bool,
    /// Colour: on a terminal unless NO_COLOR is set (auto), always, or never
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Colour::Auto, hide_possible_values = true)]
    color: Colour,
    /// Write the results as JSON to a file; "-" or no path: to standard output, without a table
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// Record one more round of each design, and write what its threads did as a trace for ui.perfetto.dev or
    /// chrome://tracing; "-" is standard output, and then no table
    #[arg(long, value_name = "PATH")]
    perfetto: Option<PathBuf>,
    /// Write a report with charts as one HTML file, which opens from disk in a browser. Records one more round of each
    /// design for its timelines; "-" is standard output, and then no table
    #[arg(long, value_name = "PATH")]
    html: Option<PathBuf>,
}

/// The maximum width of a report, in columns, on any terminal. A report written to a pipe has this width.
const WIDEST: u16 = 100;

/// The cases in which a report has colours.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Colour {
    /// On a terminal that can show them, unless `NO_COLOR` is set.
    Auto,
    Always,
    Never,
}

/// Returns the width of the terminal that is standard output, at most [`WIDEST`]; `None` if it is no terminal.
pub(crate) fn terminal_width() -> Option<usize> {
    let (width, _) = terminal_size::terminal_size_of(io::stdout())?;
    Some(width.0.min(WIDEST).into())
}

/// Returns the width of standard output, at most [`WIDEST`].
pub(crate) fn width() -> usize {
    terminal_width().unwrap_or(WIDEST.into())
}

/// Returns the width of standard error, at most [`WIDEST`].
fn error_width() -> usize {
    terminal_size::terminal_size_of(io::stderr()).map_or(WIDEST, |(width, _)| width.0.min(WIDEST)).into()
}

/// Returns the width and the colours that standard output allows.
fn screen(colour: Colour) -> Screen {
    let has_colour = match colour {
        Colour::Auto => AutoStream::choice(&io::stdout()) != ColorChoice::Never,
        Colour::Always => true,
        Colour::Never => false,
    };
    Screen { width: width(), has_colour }
}

/// Returns the command that repeats this run.
fn repeated() -> command::Command {
    let cargo = std::env::var_os("CARGO").is_some();
    let (path, mut arguments) = (std::env::current_exe().ok(), std::env::args_os());
    let program = command::program(cargo, path.as_deref(), arguments.next().as_deref());
    command::Command::new(program, arguments)
}

/// Parses a whole number. `least` is the message for a number that is too small.
pub(crate) fn whole<T: FromStr>(text: &str, least: &str) -> Result<T, String> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    text.parse().map_err(|_| match digits {
        "" => "write a whole number".into(),
        _ if !digits.bytes().all(|byte| byte.is_ascii_digit()) => "write a whole number".into(),
        _ if digits.len() == text.len() && digits.bytes().any(|byte| byte != b'0') => "it is too big".into(),
        _ => least.into(),
    })
}

fn threads(text: &str) -> Result<usize, String> {
    whole(text, "at least one thread")
}

fn queue_depth(text: &str) -> Result<NonZeroUsize, String> {
    whole(text, "one read at a time is the least")
}

fn seed(text: &str) -> Result<u64, String> {
    whole(text, "0 is the least")
}

fn memory(text: &str) -> Result<u64, String> {
    match parse::size(text)? {
        memory if (64 << 10..=64 << 30).contains(&memory) => Ok(memory),
        _ => Err("the size must be between 64K and 64G".into()),
    }
}

/// Runs the command: parses the arguments, does the work, and reports errors. Returns the exit code.
pub fn main() -> ExitCode {
    let parsed = help::fitted(Cli::command(), width()).try_get_matches();
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error),
    };
    let done = match cli.command {
        Command::Compare(compare) => compare.run(),
        Command::Check(check) => check.run(interrupts()),
        Command::Diff(diff) => diff.run(),
        Command::Designs => say(&text::designs(screen(Colour::Auto))).map(|()| 0),
        Command::Scenarios => say(&text::scenarios(screen(Colour::Auto))).map(|()| 0),
        Command::Generate(generate) => {
            generate.run(&help::fitted(Cli::command(), help::MAN_WIDTH)).map(|()| 0)
        }
        #[cfg(target_os = "linux")]
        Command::NativeRound => return native::worker(play),
        #[cfg(target_os = "linux")]
        Command::CheckOracle => return check::oracle(),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(trouble) => {
            eprintln!("faultless: {trouble}");
            ExitCode::from(trouble.exit_code())
        }
    }
}

/// Runs the round of a worker's request.
#[cfg(target_os = "linux")]
fn play(request: &Request, machine: &NativeMachine, turn: &Turn<'_>) -> Result<Measured, Trouble> {
    let name = &request.scenario;
    let scenario = scenarios::find(name)
        .ok_or_else(|| Trouble::Wrong(format!("the worker knows no scenario \"{name}\"")))?;
    let settings = Settings { served: request.file.clone(), ..request.settings.clone() };
    scenario.prepare(&settings)?.run(machine, turn)
}

/// Returns the arguments of this process, for messages: bytes that are not UTF-8 are replaced.
fn arguments() -> impl Iterator<Item = String> {
    std::env::args_os().map(|argument| argument.to_string_lossy().into_owned())
}

/// Prints help as it is. Of an error, prints clap's first line, and the values of an argument that has a list of them.
fn not_understood(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let code = u8::try_from(error.exit_code()).unwrap_or(2);
        let text = help::narrowed(&error.render().ansi().to_string(), width());
        let written = match error.use_stderr() {
            true => anstream::stderr().write_all(text.as_bytes()),
            false => anstream::stdout().write_all(text.as_bytes()),
        };
        return match written {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                eprintln!("faultless: cannot write the help: {error}");
                ExitCode::from(2)
            }
            _ => ExitCode::from(code),
        };
    }
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut line = lines.next().unwrap_or_default().trim_start_matches("error: ").to_string();
    // The missing arguments stand in a list on the next lines.
    if line.ends_with(':') {
        line = format!("{line} {}", lines.next().unwrap_or_default());
    }
    if let Some(ContextValue::Strings(values)) = error.get(ContextKind::ValidValue) {
        line = format!("{line}; there are: {}", values.join(", "));
    }
    let command = arguments().nth(1).filter(|name| Cli::command().find_subcommand(name).is_some());
    let command = command.map_or(String::new(), |name| format!("{name} "));
    eprintln!("faultless: {line}; see faultless {command}--help");
    ExitCode::from(2)
}

/// Prints a text and a line break. A closed pipe is not an error.
///
/// # Errors
/// [`Trouble::Input`] if it cannot be written.
pub fn say(text: &str) -> Result<(), Trouble> {
    match writeln!(io::stdout(), "{text}") {
        // The reader has closed the pipe, as `| head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => {
            written.map_err(|error| Trouble::Input(format!("cannot write to standard output: {error}")))
        }
    }
}

impl Compare {
    fn plan(&self) -> Result<Plan, Trouble> {
        let input = |text: String| Err(Trouble::Input(text));
        let mut chosen = Vec::new();
        for name in &self.scenarios {
            match scenarios::find(name) {
                _ if name == "all" => chosen = scenarios::ALL.iter().collect(),
                Some(scenario) if !chosen.iter().any(|other: &&scenarios::Scenario| other.name == name) => {
                    chosen.push(scenario);
                }
                Some(_) => {}
                None => {
                    return input(format!(
                        "there is no scenario {name:?}; there are: {}, all",
                        scenarios::names()
                    ));
                }
            }
        }
        let is_tour = chosen.is_empty();
        if is_tour {
            chosen = scenarios::tour();
        }
        let mut wanted = Vec::new();
        for name in &self.designs {
            match Contender::find(name) {
                _ if name == "all" => wanted = Contender::all(),
                Some(design) if !wanted.iter().any(|other: &Contender| other.name() == name) => {
                    wanted.push(design);
                }
                Some(_) => {}
                None => {
                    return input(format!(
                        "there is no design {name:?}; there are: {}, all",
                        Contender::names()
                    ));
                }
            }
        }
        if wanted.is_empty() {
            wanted = Contender::default_ones();
        }
        for (name, _) in &self.rates {
            let actors: Vec<_> =
                chosen.iter().flat_map(|scenario| scenario.rates).map(|(name, _)| *name).collect();
            if !actors.contains(&name.as_str()) {
                let there = if actors.is_empty() { "none here".into() } else { actors.join(", ") };
                return input(format!("there is no rate {name:?}; there are: {there}"));
            }
        }
        match self.threads {
            Some(0) => return input("--threads 0: give at least one thread".into()),
            Some(threads) if threads > 10_000 => {
                return input(format!("--threads {threads}: give at most 10000"));
            }
            _ => {}
        }
        if let Some(name) = self.json.as_ref().and_then(|path| path.to_str())
            && (name == "all" || scenarios::find(name).is_some())
        {
            return input(format!(
                "--json {name}: this would write a file called {name}; put the scenario first"
            ));
        }
        let settings = Settings {
            threads: self.threads,
            io_latency: self.io_latency,
            queue_depth: self.queue_depth,
            fork: self.fork,
            rates: self.rates.clone(),
            file: self.file.clone(),
            served: None,
            memory: self.memory,
            seed: self.seed,
        };
        Ok(Plan {
            scenarios: chosen,
            contenders: wanted,
            settings,
            seconds: self.seconds,
            is_tour,
            records: self.perfetto.is_some() || self.html.is_some(),
        })
    }

    fn run(&self) -> Result<u8, Trouble> {
        let plan = self.plan()?;
        // Errors in a path are reported before the work.
        let paths = [("--json", &self.json), ("--perfetto", &self.perfetto), ("--html", &self.html)];
        let outputs: Vec<_> =
            paths.iter().filter_map(|(name, path)| Some((*name, path.as_deref()?))).collect();
        let inputs: Vec<_> = self.file.iter().map(|path| ("--file", path.as_path())).collect();
        output::all_different(&outputs, &inputs)?;
        let [json, trace, html] = paths.map(|(_, path)| path.as_deref().map(Output::check).transpose());
        let (json, trace, html) = (json?, trace?, html?);
        let to_stdout = [&json, &trace, &html].into_iter().flatten().any(Output::is_stdout);
        let outcome = plan.run(interrupts())?;
        if outcome.interrupted && outcome.runs.iter().all(|run| run.rounds.is_empty()) {
            eprintln!("faultless: ended before the first round was measured; nothing is written");
            return Ok(INTERRUPTED);
        }
        let (command, machine) = (repeated(), json::Machine::this());
        // An output that fails leaves the others as they are. The first error is reported in the end.
        let mut written = Vec::new();
        if let Some(output) = json {
            let report = serde_json::to_string_pretty(&Report::new(&outcome, &plan.settings));
            written.push(match report {
                Ok(report) => output.write(&report),
                Err(error) => Err(Trouble::Input(format!("cannot write the JSON: {error}"))),
            });
        }
        if let Some(output) = trace {
            let mut text = Vec::new();
            let made = trace::write(&outcome, &mut text)
                .map_err(|error| Trouble::Input(format!("cannot write the trace: {error}")));
            let done = made.and_then(|()| output.write(&String::from_utf8_lossy(&text)));
            if done.is_ok() {
                let text = format!("faultless: the trace has {}", trace::summary(&outcome));
                eprintln!("{}", text::paragraph(&text, error_width()));
            }
            written.push(done);
        }
        if let Some(output) = html {
            let facts = Facts { command: &command.line(), machine: &machine, when: SystemTime::now() };
            written.push(output.write(&html::page(&outcome, &plan, &facts)));
        }
        if !to_stdout {
            let options = text::Options { details: self.details, command: &command, kernel: &machine.kernel };
            written.push(say(&text::report(&View::new(&outcome, &plan), &options, screen(self.color))));
        }
        written.into_iter().collect::<Result<(), _>>()?;
        Ok(if outcome.interrupted { INTERRUPTED } else { 0 })
    }
}

/// Returns the flag that the first Ctrl-C (or SIGTERM) sets. The second one ends the process at once.
fn interrupts() -> &'static AtomicBool {
    static INTERRUPTS: AtomicBool = AtomicBool::new(false);
    let stop = || {
        if INTERRUPTS.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
    };
    // Without a handler, Ctrl-C ends the process at once, without a table. There is no other harm.
    let _ = ctrlc::set_handler(stop);
    &INTERRUPTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_well_formed() {
        Cli::command().debug_assert();
    }

    fn plan(arguments: &[&str]) -> Result<Plan, Trouble> {
        let cli = Cli::try_parse_from(["faultless", "compare"].iter().chain(arguments)).unwrap();
        let Command::Compare(compare) = cli.command else { unreachable!() };
        compare.plan()
    }

    #[test]
    fn without_a_scenario_it_is_a_tour_of_the_usual_designs() {
        let plan = plan(&[]).unwrap();
        let names: Vec<_> = plan.scenarios.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names, ["fork-during-io", "retry-storm", "giant-vma", "disjoint-change"]);
        assert!(plan.is_tour && plan.contenders.len() == Contender::default_ones().len());
        assert_eq!(plan.settings.threads(plan.scenarios[0]), 5);
        assert_eq!(plan.settings.rate(plan.scenarios[0], "fork"), 50.0);
    }

    #[test]
    fn all_is_everything() {
        let plan = plan(&["map-unmap", "all", "--design", "all"]).unwrap();
        assert!(!plan.is_tour);
        assert_eq!(plan.scenarios.len(), scenarios::ALL.len());
        assert_eq!(plan.contenders.len(), Contender::all().len());
    }

    #[test]
    fn names_are_taken_once_and_rates_by_name() {
        let plan =
            plan(&["--design", "faultless,mmap-lock,faultless", "--rate", "fork=5", "--rate", "fork=7"])
                .unwrap();
        let names: Vec<_> = plan.contenders.iter().map(Contender::name).collect();
        assert_eq!(names, ["faultless", "mmap-lock"]);
        assert_eq!(plan.settings.rate(plan.scenarios[0], "fork"), 7.0);
        assert_eq!(plan.settings.rate(plan.scenarios[0], "bystander"), 499.0);
    }

    #[test]
    fn json_without_a_path_is_standard_output() {
        let json = |arguments: &[&str]| {
            let cli = Cli::try_parse_from(["faultless", "compare"].iter().chain(arguments)).unwrap();
            let Command::Compare(compare) = cli.command else { unreachable!() };
            compare.json
        };
        assert_eq!(json(&["--json", "--design", "all"]), Some("-".into()));
        assert_eq!(json(&["--json", "r.json"]), Some("r.json".into()));
        assert_eq!(json(&["--json=r.json"]), Some("r.json".into()));
        assert_eq!(json(&["--json"]), Some("-".into()));
        assert_eq!(json(&[]), None);
        assert!(plan(&["--json", "fork-during-io"]).is_err());
        assert!(plan(&["--json", "all"]).is_err());
        assert!(plan(&["--json", "all.json"]).is_ok());
    }
}
