//! Writes the report as one HTML file. It needs no network and no script, opens from disk, and has a light and a dark
//! style.
//!
//! ```text
//!  Outcome ─► report::view ─► page ── heat: figures as a coloured table
//!     │                        ├───── waits: bars by cause
//!     ├─ histograms ───────────┼───── distribution: curves, by plotters
//!     └─ recordings ── story ──┴───── timeline: waits and their holders
//!                                     look, svg, style.css: fixed colours by class; all charts are inline SVG
//! ```
//! maud escapes each text.

mod distribution;
mod heat;
mod look;
mod page;
mod story;
mod svg;
mod timeline;
mod waits;

pub use page::{Facts, page};
