//! Reports: what they say ([`view`], plain data) and how it is drawn ([`text`], for a terminal or a pipe).

pub mod command;
pub mod number;
pub mod text;
pub mod view;
