//! `faultless check --files`: random operations on one file, compared with a model after each. As fsx does it.
//!
//! ```text
//!  seed ──► operation: an episode ──┬──► machine: a file of the engine, its handles and mappings ──► answer, failures
//!                                   │        │ store: in memory, late, failing, refusing; or a real file     │
//!                                   │                                                                        ▼
//!                                   └──► model: a vector of bytes ──────────────────────────────────── may this be?
//! ```
//! After each sync that says that all is well, and when the file is opened again, the store's bytes are those of the model.

mod machine;
mod model;
mod operation;
mod run;
mod store;

pub use model::Answer;
pub use operation::{FileEpisode, FileOperation, KINDS, Part, Place, Setting};
pub use run::Files;
pub use store::{Kept, Late};

/// A planted difference, for tests: it replaces an operation of the engine, or follows it. It is asked twice:
/// before the operation without an answer, and after it with the answer.
pub type FilePlant = fn(&FileOperation, Option<&Answer>) -> FilePlanted;

/// See [`FilePlant`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilePlanted {
    /// Just the operation.
    Nothing,
    /// Before the operation: another one takes its place.
    Instead(FileOperation),
    /// After the operation: this one too, of which nothing is said.
    And(FileOperation),
    /// This is the answer. Before the operation: nothing is done.
    Answered(Answer),
}
