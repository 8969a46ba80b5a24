//! Runs the soak test for ten minutes. `run/mod.rs` describes its operations and how each byte is checked.
//!
//! ```text
//! cargo run --release -p faultless-linux --example soak -- --seconds 600
//! ```

fn main() -> std::process::ExitCode {
    supported::main()
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod run;

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod supported {
    pub fn main() -> std::process::ExitCode {
        eprintln!("error: the soak needs Linux on x86-64 or arm64");
        std::process::ExitCode::from(2)
    }
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod supported {
    use super::run::{Config, Trouble, run};
    use clap::Parser;
    use indicatif::{ProgressBar, ProgressStyle};
    use std::io::{IsTerminal, stderr};
    use std::num::NonZeroUsize;
    use std::process::{ExitCode, exit};
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    const EXAMPLES: &str = "\
Exit codes: 0 success; 1 a byte was wrong, a thread hung, or memory or a file was leaked; 2 the soak could not run.

Examples:
  soak --seconds 600                    the run that a release must pass
  soak --seconds 600 --seed 7           the same choices as in another run; threads still race
  soak --anonymous 1MiB --file 1MiB     few pages, with much contention";

    /// Touches two regions with many threads while another thread discards, protects and snapshots parts of them, and
    /// checks every byte that is read.
    #[derive(Debug, Parser)]
    #[command(name = "soak", after_help = EXAMPLES)]
    struct Arguments {
        /// The duration in seconds
        #[arg(long, value_name = "N", default_value = "600", value_parser = seconds, allow_negative_numbers = true)]
        seconds: Duration,
        /// The seed of the random choices [default: the time]
        #[arg(long, value_name = "N", allow_negative_numbers = true)]
        seed: Option<u64>,
        /// The number of threads that touch pages
        #[arg(long, value_name = "N", default_value = "4", value_parser = threads, allow_negative_numbers = true)]
        threads: NonZeroUsize,
        /// The number of threads that serve faults
        #[arg(long, value_name = "N", default_value = "1", value_parser = threads, allow_negative_numbers = true)]
        handlers: NonZeroUsize,
        /// The size of the anonymous region
        #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = size, allow_negative_numbers = true)]
        anonymous: u64,
        /// The size of the file, and of its region
        #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = size, allow_negative_numbers = true)]
        file: u64,
    }

    fn seconds(text: &str) -> Result<Duration, String> {
        let seconds: f64 = text.parse().map_err(|_| "write a number of seconds".to_string())?;
        if !(0.1..=7.0 * 86_400.0).contains(&seconds) {
            return Err("the duration must be between 0.1 s and a week (604800 s)".into());
        }
        Ok(Duration::from_secs_f64(seconds))
    }

    fn threads(text: &str) -> Result<NonZeroUsize, String> {
        let most = 256;
        let number = text.parse().ok().filter(|number| (1..=most).contains(number));
        number.and_then(NonZeroUsize::new).ok_or(format!("write a number from 1 to {most}"))
    }

    fn size(text: &str) -> Result<u64, String> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let number: u64 = number.parse().map_err(|_| "write a number, as in 64MiB".to_string())?;
        let shift = match unit.trim_start() {
            "" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            unit => return Err(format!("\"{unit}\" is not a unit of size: use KiB, MiB or GiB")),
        };
        let bytes = number.checked_mul(1 << shift);
        let fits = bytes.filter(|bytes| (256 << 10..=64 << 30).contains(bytes));
        fits.ok_or("the size must be between 256KiB and 64GiB".into())
    }

    /// Parses the arguments. An error is printed in one line, clap's first; `--help` is printed in full.
    fn arguments() -> Result<Arguments, ExitCode> {
        Arguments::try_parse().map_err(|error| {
            if !error.use_stderr() {
                let _ = error.print();
                return ExitCode::SUCCESS;
            }
            let text = error.to_string();
            eprintln!("{}; see --help", text.lines().next().unwrap_or("error: wrong arguments"));
            ExitCode::from(2)
        })
    }

    fn hang(text: &str) -> ! {
        // Clears the line of the progress bar, since the process exits here.
        eprintln!("\r\x1b[Kerror: {text}");
        exit(1)
    }

    fn hang_plainly(text: &str) -> ! {
        eprintln!("error: {text}");
        exit(1)
    }

    fn bar(time: Duration) -> ProgressBar {
        if !stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(time.as_secs());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{wide_bar}] {pos} of {len} s") {
            bar.set_style(style);
        }
        bar
    }

    pub fn main() -> ExitCode {
        let Arguments { seconds, seed, threads, handlers, anonymous, file } = match arguments() {
            Ok(arguments) => arguments,
            Err(code) => return code,
        };
        let by_time = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let seed = seed.unwrap_or_else(by_time);
        let config = Config { time: seconds, seed, threads: threads.get(), handlers, anonymous, file };
        let bar = bar(seconds);
        let tick = |passed: Duration, touched| {
            bar.set_position(passed.as_secs().min(seconds.as_secs()));
            bar.set_message(format!("{touched} pages"));
        };
        let hang = if stderr().is_terminal() { hang } else { hang_plainly };
        let result = run(config, tick, hang);
        bar.finish_and_clear();
        match result {
            Ok(report) => {
                println!("seed {seed}: {report}");
                ExitCode::SUCCESS
            }
            Err(trouble) => {
                eprintln!("error: {trouble}");
                ExitCode::from(match trouble {
                    Trouble::Refused(_) | Trouble::Setup(_) => 2,
                    Trouble::Wrong(_) | Trouble::Leak(_) => 1,
                })
            }
        }
    }
}
