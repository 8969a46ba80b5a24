//! Why a run ends early, and with which exit code.

/// What ended a run. Its text is one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// A wrong byte, a torn child, a leaked frame: the design or the engine is wrong. Exit code 1.
    #[error("{0}")]
    Wrong(String),
    /// What was asked for cannot be done. Exit code 2.
    #[error("{0}")]
    Input(String),
    /// This machine or this design cannot run the scenario, and says why. The others go on; exit code 2 only if nobody
    /// is left.
    #[error("{0}")]
    Cannot(String),
}

impl Trouble {
    /// The operating system starts no more threads.
    pub(crate) fn no_thread(error: std::io::Error) -> Self {
        Self::Input(format!("cannot start a thread: {error}; use fewer --threads"))
    }

    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Wrong(_) => 1,
            Self::Input(_) | Self::Cannot(_) => 2,
        }
    }

    /// The same, told of a round.
    pub fn in_round(self, scenario: &str, design: &str, round: usize) -> Self {
        match self {
            Self::Wrong(what) => Self::Wrong(format!("{scenario} under {design}, round {round}: {what}")),
            other => other,
        }
    }
}
