//! The options of the command line.

use faultless::LimitConfig;
use std::time::Duration;

pub const USAGE: &str = "Usage: soak_pressure [--seconds N] [--threads N] [--pages N]
  --seconds N   the time [default: 3600]
  --threads N   the number of threads, four to a process [default: 64]
  --pages N     the pages of the limit of a group; the group above it has half as many again [default: 256]
Processes go to two engines in turn. The first has the reclaim order SmallMain, the second has Generations. Each has a thread that
removes and adds swap devices, starts and ends the background worker, and changes limits. A third engine has two threads of its own
and a device that fails. Pages that reclaim cannot take are at most a sixth of --pages. So there is no mlock below 6 pages, no pin
below 12, and no mremap to another length below 96.
Exit codes: 0 success; 1 something was wrong; 2 bad input.";

pub struct Arguments {
    pub time: Duration,
    pub threads: usize,
    /// The limit of each group that has no group below it.
    pub pages: u64,
}

impl Arguments {
    /// Returns the arguments. `None`: the user has asked for help.
    pub fn parse() -> Result<Option<Self>, String> {
        let mut all = Self { time: Duration::from_secs(3600), threads: 64, pages: 256 };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            if matches!(name.as_str(), "-h" | "--help") {
                return Ok(None);
            }
            if !matches!(name.as_str(), "--seconds" | "--threads" | "--pages") {
                return Err(format!("{name}: the options are --seconds, --threads and --pages"));
            }
            let text = arguments.next().ok_or_else(|| format!("{name} needs a number"))?;
            let value = text.parse::<u64>().ok().filter(|value| *value > 0);
            let value = value.ok_or_else(|| format!("{name} {text}: a number above 0 is needed"))?;
            match name.as_str() {
                "--seconds" => all.time = Duration::from_secs(value),
                "--threads" => all.threads = value as usize,
                _ if value < LimitConfig::MINIMUM => {
                    return Err(format!(
                        "{name} {value}: a limit has {} pages at least",
                        LimitConfig::MINIMUM
                    ));
                }
                _ => all.pages = value,
            }
        }
        Ok(Some(all))
    }
}
