//! Progress of a run, on a terminal only.

use indicatif::{HumanDuration, ProgressBar, ProgressState, ProgressStyle};
use std::fmt::Write;
use std::io::{IsTerminal, stderr};
use std::time::Duration;

/// Progress line on the terminal. It disappears when this is dropped. If standard error is not a terminal, there is no
/// line.
pub struct Progress(ProgressBar);

impl Progress {
    /// Returns a line for `steps` steps. `doing` is the first activity.
    pub fn new(steps: usize, doing: &str) -> Self {
        if !stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(steps as u64);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{wide_bar}] {elapsed}{of_about}") {
            // Before the first step ends, the whole duration is unknown.
            let of_about = |state: &ProgressState, text: &mut dyn Write| {
                if state.pos() != 0 {
                    let _ = write!(text, " of about {:#}", HumanDuration(state.duration()));
                }
            };
            bar.set_style(style.with_key("of_about", of_about));
        }
        // The first line that is drawn has a text.
        bar.set_message(doing.to_string());
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

    /// Counts steps that are not necessary.
    pub fn skip(&self, steps: usize) {
        self.0.inc(steps as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
