//! The command line.

#[cfg(target_os = "linux")]
use crate::check;
use crate::check::Check;
use crate::compare::Plan;
use crate::contender::Contender;
use crate::diff::Diff;
use crate::generate::Generate;
use crate::json::Report;
#[cfg(target_os = "linux")]
use crate::measure::Measured;
#[cfg(target_os = "linux")]
use crate::native::{self, NativeMachine, Request};
use crate::record::trace;
use crate::scenarios::Settings;
#[cfg(target_os = "linux")]
use crate::scenarios::Turn;
use crate::trouble::Trouble;
use crate::{parse, report, scenarios};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Ctrl-C, as a shell reports it.
pub(crate) const INTERRUPTED: u8 = 130;

const EXAMPLES: &str = "\
Examples:
  faultless compare                            fork-during-io under the usual designs,
                                               in less than half a minute
  faultless compare page-fault map-unmap       other scenarios
  faultless compare --seconds 60 --threads 16  longer, and with more threads
  faultless compare --design mmap-lock,faultless --io-latency 10ms --rate fork=20
  faultless compare --file /usr/bin/gdb --json=result.json
                                               on a file of yours, as JSON
  faultless check                              the engine against this Linux, call by call
  faultless diff before.json after.json        the changes between two results
  faultless designs                            what there is to compare, what it models
  faultless scenarios                          what it is compared on, where that comes
                                               from, and what it cannot show";

/// Paragraphs are one line each: clap breaks them as wide as the terminal is.
const COMPARE: &str = "\
Each scenario runs on a software machine: threads of this process are its processors, its memory is --memory, and \
every read of the file takes at least --io-latency. The designs take turns, in rounds of about a second. Everything \
that threads see is checked; a wrong byte, a torn child of a fork or a frame that nobody gives back ends the run. A \
design that cannot run a scenario says so in its row. The native rows are of this kernel, on real memory: other \
hardware.

What the tables say:
  by round         the scenario's headline: the median over the rounds, and the
                   least and the greatest of them
  bystander, fork  from when it was due to when it had ended: who comes late has
                   waited
  fault            from an access to a cold page until the page is there
  each             for each major fault, counted in those faults alone
  waited           all threads' waits by their cause, in milliseconds a second:
                   two threads that always wait have waited 2000

Exit codes: 0 done; 1 something was wrong; 2 bad input, or nothing could run; 130 ended by Ctrl-C, with a table of \
what was measured.

Examples:
  faultless compare --io-latency 10ms --queue-depth 1 --rate fork=20
  faultless compare giant-vma disjoint-change --design all --seconds 5
  faultless compare --file /usr/bin/gdb --memory 64M --json=result.json
  faultless compare --json --design all      everything, for a program to read";

/// What page faults, forks and their bystanders wait for, under every locking design that is in dispute.
#[derive(Debug, Parser)]
#[command(name = "faultless", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run scenarios under locking designs, and print what was waited.
    Compare(Compare),
    /// Compare the engine with the Linux this runs on, operation by operation.
    Check(Check),
    /// Compare two results of `compare --json`, and print the changes beyond noise.
    Diff(Diff),
    /// List the locking designs there are.
    Designs,
    /// List the scenarios there are.
    Scenarios,
    /// Write shell completions or man pages.
    #[command(subcommand, hide = true)]
    Generate(Generate),
    /// One round on the kernel: `compare` starts it, and nobody else.
    #[cfg(target_os = "linux")]
    #[command(name = native::WORKER, hide = true)]
    NativeRound,
    /// The process that `check` compares with: `check` starts it, and nobody else.
    #[cfg(target_os = "linux")]
    #[command(name = check::ORACLE, hide = true)]
    CheckOracle,
}

#[derive(Args, Debug)]
#[command(after_help = COMPARE)]
struct Compare {
    /// Scenarios to run, or "all" [default: fork-during-io]
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,
    /// Designs, separated by commas, or "all" [default: mmap-lock, vma-lock, vma-lock-retry, vma-lock-hold, faultless
    /// and native, as far as they are built in]
    #[arg(long = "design", value_name = "A,B", value_delimiter = ',')]
    designs: Vec<String>,
    /// Threads that do the scenario's work [default: the scenario's own number]
    #[arg(long, value_name = "N", value_parser = threads, allow_hyphen_values = true)]
    threads: Option<usize>,
    /// Seconds for each scenario and design [default: 8, less if there are many designs]
    #[arg(long, value_name = "S", value_parser = parse::seconds, allow_hyphen_values = true)]
    seconds: Option<f64>,
    /// What each read takes at least
    #[arg(long, value_name = "TIME", value_parser = parse::latency, allow_hyphen_values = true, default_value = "2ms")]
    io_latency: Duration,
    /// Reads that the device serves at a time [default: any number]
    #[arg(long, value_name = "N", value_parser = queue_depth, allow_hyphen_values = true)]
    queue_depth: Option<NonZeroUsize>,
    /// How often a second an actor of the scenario acts; may be repeated
    #[arg(long = "rate", value_name = "NAME=HZ", value_parser = parse::rate, allow_hyphen_values = true)]
    rates: Vec<(String, f64)>,
    /// The file to map, of which the first GiB counts [default: a temporary one of 16 to 64
    /// MiB]
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Memory of the software machine; native rows have all of this one's
    #[arg(long, value_name = "SIZE", value_parser = memory, allow_hyphen_values = true, default_value = "256M")]
    memory: u64,
    /// What random choices follow from
    #[arg(long, value_name = "N", value_parser = seed, allow_hyphen_values = true, default_value_t = 1)]
    seed: u64,
    /// Write the results as JSON; "-", or nothing, is standard output, and then no table
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// Record one more round of each design, and write what its threads did as a trace for ui.perfetto.dev or
    /// chrome://tracing; "-" is standard output, and then no table
    #[arg(long, value_name = "PATH")]
    perfetto: Option<PathBuf>,
}

/// A whole number; `least` is what is said of one that is too small.
pub(crate) fn whole<T: FromStr>(text: &str, least: &str) -> Result<T, String> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    text.parse().map_err(|_| match digits {
        "" => "write a whole number".into(),
        _ if !digits.bytes().all(|byte| byte.is_ascii_digit()) => "write a whole number".into(),
        _ if digits.len() == text.len() && digits.bytes().any(|byte| byte != b'0') => "it is too much".into(),
        _ => least.into(),
    })
}

fn threads(text: &str) -> Result<usize, String> {
    whole(text, "somebody has to work")
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
        _ => Err("a machine has 64K at least and 64G at most".into()),
    }
}

/// The command: parses the arguments, runs, and says how it went.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error),
    };
    let done = match cli.command {
        Command::Compare(compare) => compare.run(),
        Command::Check(check) => check.run(interrupts()),
        Command::Diff(diff) => diff.run(),
        Command::Designs => say(&report::designs()).map(|()| 0),
        Command::Scenarios => say(&report::scenarios()).map(|()| 0),
        Command::Generate(generate) => generate.run(&Cli::command()).map(|()| 0),
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

/// What a worker does with its request.
#[cfg(target_os = "linux")]
fn play(request: &Request, machine: &NativeMachine, turn: &Turn<'_>) -> Result<Measured, Trouble> {
    let name = &request.scenario;
    let scenario = scenarios::find(name)
        .ok_or_else(|| Trouble::Wrong(format!("the worker knows no scenario \"{name}\"")))?;
    let settings = Settings { served: request.file.clone(), ..request.settings.clone() };
    scenario.prepare(&settings)?.run(machine, turn)
}

/// Help is printed as it is; of an error, clap's first line.
fn not_understood(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let code = u8::try_from(error.exit_code()).unwrap_or(2);
        // Nowhere to say that nothing can be said.
        let _ = error.print();
        return ExitCode::from(code);
    }
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut line = lines.next().unwrap_or_default().trim_start_matches("error: ").to_string();
    // What is missing stands in a list below.
    if line.ends_with(':') {
        line = format!("{line} {}", lines.next().unwrap_or_default());
    }
    let command = std::env::args().nth(1).filter(|name| Cli::command().find_subcommand(name).is_some());
    let command = command.map_or(String::new(), |name| format!("{name} "));
    eprintln!("faultless: {line}; see faultless {command}--help");
    ExitCode::from(2)
}

/// Prints a text and a line break. That nobody reads on is no error.
///
/// # Errors
/// [`Trouble::Input`] if it cannot be written.
pub fn say(text: &str) -> Result<(), Trouble> {
    match writeln!(io::stdout(), "{text}") {
        // Nobody reads on, as behind `| head`.
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
        if chosen.is_empty() {
            chosen.push(&scenarios::ALL[0]);
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
            Some(0) => return input("--threads 0: somebody has to work".into()),
            Some(threads) if threads > 10_000 => {
                return input(format!("--threads {threads}: there can be 10000"));
            }
            _ => {}
        }
        let to_stdout = |path: &Option<PathBuf>| path.as_deref() == Some(Path::new("-"));
        if to_stdout(&self.json) && to_stdout(&self.perfetto) {
            return input(
                "--json and --perfetto would both write to standard output: give one of them a file".into(),
            );
        }
        if let Some(name) = self.json.as_ref().and_then(|path| path.to_str())
            && (name == "all" || scenarios::find(name).is_some())
        {
            return input(format!("--json {name}: would write a file of that name; put the scenario first"));
        }
        let settings = Settings {
            threads: self.threads,
            io_latency: self.io_latency,
            queue_depth: self.queue_depth,
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
            records: self.perfetto.is_some(),
        })
    }

    fn run(&self) -> Result<u8, Trouble> {
        let plan = self.plan()?;
        // Before the work, not after it.
        let json = self.json.as_deref().map(Output::open).transpose()?;
        let trace = self.perfetto.as_deref().map(Output::open).transpose()?;
        let outcome = plan.run(interrupts())?;
        let to_stdout = [&json, &trace].into_iter().any(|output| matches!(output, Some(Output::Stdout)));
        if let Some(output) = trace {
            let mut text = Vec::new();
            trace::write(&outcome, &mut text)
                .map_err(|error| Trouble::Input(format!("cannot write the trace: {error}")))?;
            output.write(&String::from_utf8_lossy(&text))?;
            eprintln!("faultless: the trace has {}", trace::summary(&outcome));
        }
        if let Some(json) = json {
            let report = serde_json::to_string_pretty(&Report::new(&outcome, &plan.settings))
                .map_err(|error| Trouble::Input(format!("cannot write the JSON: {error}")))?;
            json.write(&report)?;
        }
        if !to_stdout {
            say(&report::table(&outcome, &plan))?;
        }
        Ok(if outcome.interrupted { INTERRUPTED } else { 0 })
    }
}

/// Where the JSON goes.
pub enum Output<'a> {
    /// Standard output.
    Stdout,
    /// A file, and what it is called.
    File(File, &'a Path),
}

impl<'a> Output<'a> {
    /// The file of that name, made if it is not there; "-" is standard output.
    ///
    /// # Errors
    /// [`Trouble::Input`] if it cannot be written.
    pub fn open(path: &'a Path) -> Result<Self, Trouble> {
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        // What is there stays until there is something to write instead: the run may yet be refused.
        match File::options().write(true).create(true).truncate(false).open(path) {
            Ok(file) => Ok(Self::File(file, path)),
            Err(error) => Err(Trouble::Input(format!("cannot write {}: {error}", path.display()))),
        }
    }

    /// Writes all there is, in the place of what was there.
    ///
    /// # Errors
    /// [`Trouble::Input`].
    pub fn write(self, text: &str) -> Result<(), Trouble> {
        match self {
            Self::Stdout => say(text),
            Self::File(mut file, path) => empty(&file)
                .and_then(|()| writeln!(file, "{text}"))
                .map_err(|error| Trouble::Input(format!("cannot write {}: {error}", path.display()))),
        }
    }
}

/// Throws away what a file has. A pipe or a device has nothing, and cannot be made shorter.
fn empty(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() { file.set_len(0) } else { Ok(()) }
}

/// Set by the first Ctrl-C (or SIGTERM); the second one ends the process at once.
fn interrupts() -> &'static AtomicBool {
    static INTERRUPTS: AtomicBool = AtomicBool::new(false);
    let stop = || {
        if INTERRUPTS.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
    };
    // Without a handler, Ctrl-C ends the process: no table, but nothing worse.
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
    fn defaults_are_the_usual_designs_on_the_first_scenario() {
        let plan = plan(&[]).unwrap();
        assert_eq!(plan.scenarios[0].name, "fork-during-io");
        assert_eq!((plan.scenarios.len(), plan.contenders.len()), (1, Contender::default_ones().len()));
        assert_eq!(plan.settings.threads(plan.scenarios[0]), 5);
        assert_eq!(plan.settings.rate(plan.scenarios[0], "fork"), 50.0);
    }

    #[test]
    fn all_is_everything() {
        let plan = plan(&["map-unmap", "all", "--design", "all"]).unwrap();
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
