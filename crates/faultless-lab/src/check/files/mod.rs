//! `faultless check --files`: random operations on one file, compared with a model after each one, as fsx does.
//!
//! ```text
//!  seed ──► operation: an episode ──┬──► machine: a file of the engine, its handles and mappings ──► answer, failures
//!                                   │        │ store: in memory, late, failing, refusing; or a real file     │
//!                                   │                                                                        ▼
//!                                   └──► model: a vector of bytes ──────────────────────────────────── is it allowed?
//! ```
//! After each successful sync, and after each reopening, the store's bytes must be those of the model.

mod machine;
mod model;
mod operation;
mod run;
mod store;

pub use model::Answer;
pub use operation::{FileEpisode, FileOperation, KINDS, Part, Place, Setting};
pub use run::Files;
pub use store::{Kept, Late};

/// A planted difference, for tests: it replaces an operation of the engine, or follows it. It is called twice: before
/// the operation without an answer, and after it with the answer.
pub type FilePlant = fn(&FileOperation, Option<&Answer>) -> FilePlanted;

/// Effect of a [`FilePlant`] on one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilePlanted {
    /// The engine does the operation unchanged.
    Nothing,
    /// Before the operation: another one is done instead.
    Instead(FileOperation),
    /// After the operation: this one is done too, without reporting it.
    And(FileOperation),
    /// This answer is reported. Before the operation, this also means that nothing is done.
    Answered(Answer),
}
