//! `faultless` on real memory: the page faults of a Linux process, served by the engine through userfaultfd.
#![cfg(target_os = "linux")]

pub mod access;
