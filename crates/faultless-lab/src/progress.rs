//! Progress of a run, on a terminal only.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::time::Duration;

/// Progress line on the terminal. It disappears when this is dropped. If standard error is not a terminal, there is no
/// line.
pub struct Progress(ProgressBar);

impl Progress {
    /// Returns a line for `steps` steps.
    pub fn new(steps: usize) -> Self {
        if !stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(steps as u64);
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {msg} [{wide_bar}] {elapsed} of about {duration}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(250));
        Self(bar)
    }

    /// Shows the present activity.
    pub fn say(&self, doing: &str) {
        self.0.set_message(doing.to_string());
    }

    /// Counts one step.
    pub fn step(&self) {
        self.0.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
