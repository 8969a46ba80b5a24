//! Why a run ends early, in one line.

use rustix::io::Errno;

/// What ended a run.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// A wrong byte. Exit code 1.
    #[error("{0}")]
    Wrong(String),
    /// What was asked for cannot be done here. Exit code 2.
    #[error("{0}")]
    Cannot(String),
}

impl Trouble {
    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Wrong(_) => 1,
            Self::Cannot(_) => 2,
        }
    }

    /// A call that failed.
    pub fn system(call: &str, errno: Errno) -> Self {
        Self::Cannot(format!("{call}: {errno}"))
    }

    /// The call that has just failed in this thread.
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
