//! Errors that end a run, each with a message of one line.

use rustix::io::Errno;

/// An error that ends a run.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// A byte was wrong. Exit code 1.
    #[error("{0}")]
    Wrong(String),
    /// The run is not possible here. Exit code 2.
    #[error("{0}")]
    Cannot(String),
}

impl Trouble {
    /// Returns the exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Wrong(_) => 1,
            Self::Cannot(_) => 2,
        }
    }

    /// Returns the error for a call that failed with `errno`.
    pub fn system(call: &str, errno: Errno) -> Self {
        Self::Cannot(format!("{call}: {errno}"))
    }

    /// Returns the error for the call that has just failed in this thread.
    pub fn last(call: &str) -> Self {
        Self::Cannot(format!("{call}: {}", std::io::Error::last_os_error()))
    }
}

macro_rules! cannot {
    ($($error:ty),*) => {$(
        impl From<$error> for Trouble {
            fn from(error: $error) -> Self {
                Self::Cannot(error.to_string())
            }
        }
    )*};
}
cannot!(
    faultless_linux::OpenError,
    faultless_linux::RegionError,
    ::faultless::MapError,
    ::faultless::store::OpenError,
    ::faultless::store::StoreError,
    std::io::Error
);
