//! The command line.

use crate::bare::Bare;
use crate::case::{Case, Contender, Setting};
use crate::faultless::Faultless;
use crate::memory::{PAGE, byte_of};
use crate::native::Native;
use crate::trouble::Trouble;
use crate::{measure, report};
use clap::Parser;
use clap::error::ErrorKind;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The long help. Each paragraph is one line, since clap wraps it to the width of the terminal.
const HELP: &str = "\
Times the same page operations three times: by the kernel itself, by a minimal userfaultfd handler \
(one thread; poll, read, one ioctl a fault; no bookkeeping), and by a faultless Region. The three take turns within each \
round, on the same pages in the same shuffled order.

Cases:
  first-write     a store to anonymous memory (bare: UFFDIO_COPY of zeros)
  first-read      a load from it (bare: UFFDIO_ZEROPAGE)
  file-read       a load from a file's page that the kernel has in its cache
                  (bare: pread, UFFDIO_COPY; native: a private mmap)
  cached-read     the same, if the handler has the bytes in its memory
                  (bare: UFFDIO_COPY; native: as above)
  file-write      a store to a file's page, privately
  snapshot-write  a store after a snapshot (bare: a copy, UFFDIO_WRITEPROTECT;
                  native: after fork)
  snapshot        the snapshot, for each page (bare: UFFDIO_WRITEPROTECT of the
                  whole range; native: fork of the whole process)
  discard         dropping written pages, for each page (bare, native:
                  madvise)

Columns of the table:
  faultless / bare  the ratio within each round; median (least–greatest)
  by CPU time       the ratio of processor times, which a busy machine disturbs less
  ns                wall time a page, over all threads; median (least–greatest)
  CPU ns            processor time of the whole process a page, the kernel's
                    included: faultless / bare / native
  p99 µs            99th percentile of single touches, in the same order; one in eight is timed

Bias: the clock around one touch in eight costs all three the same few ns. The kernel maps the file pages around the one \
that is touched; no handler here does. Native pages are 4 KiB, never huge. With one thread, it and the handler share one \
processor: on a virtual machine a wake-up on another one can sometimes cost ten times a fault, and hides the \
difference. --free leaves that to the scheduler, as runs with two threads always do. fork copies the whole process.

Exit codes: 0 success; 1 a page had wrong bytes; 2 bad input, or userfaultfd cannot be used here.";

/// Compares the cost of a page: the kernel's own fault, a minimal userfaultfd handler, a faultless Region.
#[derive(Parser)]
#[command(name = "price", after_long_help = HELP)]
struct Cli {
    /// The number of pages in each case
    #[arg(long, value_name = "N", default_value_t = 8192,
        value_parser = clap::value_parser!(u32).range(64..=1 << 20))]
    pages: u32,
    /// The number of counted rounds; one more runs before them
    #[arg(long, value_name = "N", default_value_t = 9,
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Run only these cases, separated by commas
    #[arg(long = "case", value_name = "CASE", value_enum, value_delimiter = ',', default_values_t = Case::ALL)]
    cases: Vec<Case>,
    /// Keep the pager over all rounds, so that its memory was used before; the same for the bare handler
    #[arg(long)]
    warm: bool,
    /// Let the scheduler place the threads of one-thread runs too
    #[arg(long)]
    free: bool,
    /// Write the figures as JSON to PATH, or to standard output if PATH is "-"
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
}

pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error),
    };
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            eprintln!("price: {trouble}");
            ExitCode::from(trouble.exit_code())
        }
    }
}

/// Prints help in full, and of an error clap's first line.
fn not_understood(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // If printing fails, there is no place to report it.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim);
    let first = lines.next().unwrap_or_default().trim_start_matches("error: ");
    // clap prints the possible values on a line of their own.
    let values = lines.find(|line| line.starts_with('[')).map(|values| format!(" {values}"));
    let line = format!("{first}{}", values.unwrap_or_default());
    eprintln!("price: {line}; see --help");
    ExitCode::from(2)
}

fn run(cli: &Cli) -> Result<(), Trouble> {
    // Check that userfaultfd works, and that the figures can be written, before the measurement takes time.
    drop(faultless_linux::Pager::new(faultless_linux::Options { memory: 1 << 20, ..Default::default() })?);
    let json: Option<Box<dyn Write>> = match cli.json.as_deref() {
        None => None,
        Some(path) if path == Path::new("-") => Some(Box::new(io::stdout())),
        Some(path) => Some(Box::new(std::fs::File::create(path).map_err(|error| unwritable(path, &error))?)),
    };
    let (pages, rounds) = (cli.pages as usize, cli.rounds as usize);
    let setting = Setting { pages, warm: cli.warm, free: cli.free, file: file(pages)? };
    let mut contenders: [Box<dyn Contender>; 3] =
        [Box::new(Native), Box::new(Bare), Box::new(Faultless::default())];
    debug_assert_eq!(contenders.each_ref().map(|contender| contender.name()), report::NAMES);
    let steps: usize = cli.cases.iter().map(|case| case.threads().len()).sum();
    let progress = progress(steps * (rounds + 1));
    let measured = measure::measure(&cli.cases, &mut contenders, &setting, rounds, |case| {
        progress.set_message(case.name());
        progress.inc(1);
    });
    progress.finish_and_clear();
    let measured = measured?;
    let to_stdout = cli.json.as_deref() == Some(Path::new("-"));
    if let Some(mut out) = json {
        let path = cli.json.as_deref().unwrap_or(Path::new("-"));
        let text = serde_json::to_string_pretty(&report::rows(&measured)).map_err(io::Error::other)?;
        said(writeln!(out, "{text}")).map_err(|error| unwritable(path, &error))?;
    }
    if !to_stdout {
        let plural = if rounds == 1 { "" } else { "s" };
        let text = report::table(&measured);
        said(writeln!(io::stdout(), "{pages} pages, {rounds} round{plural}\n\n{text}"))?;
    }
    Ok(())
}

/// Ignores the error of a closed pipe, as behind `| head`.
fn said(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn unwritable(path: &Path, error: &io::Error) -> Trouble {
    Trouble::Cannot(format!("cannot write {}: {error}", path.display()))
}

/// Makes a temporary file, whose pages the kernel has in its cache.
fn file(pages: usize) -> Result<std::fs::File, Trouble> {
    let file = tempfile::tempfile()?;
    let mut out = BufWriter::with_capacity(1 << 20, &file);
    for page in 0..pages {
        out.write_all(&[byte_of(page); PAGE])?;
    }
    out.flush()?;
    drop(out);
    // So that nothing is written back while the clock runs.
    file.sync_all()?;
    Ok(file)
}

fn progress(steps: usize) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(steps as u64);
    if let Ok(style) =
        ProgressStyle::with_template("{spinner} {msg} [{wide_bar}] {elapsed} of about {duration}")
    {
        bar.set_style(style);
    }
    bar
}
