//! Reports. [`view`] has their contents as plain data. [`text`] draws them for a terminal or a pipe.

pub mod command;
pub mod number;
pub mod text;
pub mod view;
