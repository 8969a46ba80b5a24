//! Reasons for the early end of a run, and their exit codes.

/// Reason for the early end of a run. Its text is one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// A wrong byte, a torn child or a leaked frame: the design or the engine is wrong. Exit code 1.
    #[error("{0}")]
    Wrong(String),
    /// The requested run is not possible. Exit code 2.
    #[error("{0}")]
    Input(String),
    /// This machine or this design cannot run the scenario, for the reason in the text. The other contenders run. Exit
    /// code 2 only if none is left.
    #[error("{0}")]
    Cannot(String),
}

impl Trouble {
    /// Returns the error for a thread that the operating system does not start.
    pub(crate) fn no_thread(error: std::io::Error) -> Self {
        Self::Input(format!("cannot start a thread: {error}; use fewer --threads"))
    }

    /// Returns the exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Wrong(_) => 1,
            Self::Input(_) | Self::Cannot(_) => 2,
        }
    }

    /// Returns the same error, with its scenario, design and round.
    pub fn in_round(self, scenario: &str, design: &str, round: usize) -> Self {
        match self {
            Self::Wrong(what) => Self::Wrong(format!("{scenario} under {design}, round {round}: {what}")),
            other => other,
        }
    }
}
