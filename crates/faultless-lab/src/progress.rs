//! Where a run is: on a terminal only.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::time::Duration;

/// A line on the terminal that goes away with this; nothing where standard error is no terminal.
pub struct Progress(ProgressBar);

impl Progress {
    /// For so many steps.
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

    /// What is done now.
    pub fn say(&self, doing: &str) {
        self.0.set_message(doing.to_string());
    }

    /// One step is done.
    pub fn step(&self) {
        self.0.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
