//! Runs the soak for a few seconds, on few pages.
#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

#[path = "../examples/soak/run/mod.rs"]
mod run;

use run::{Config, Trouble};
use std::io::Write;
use std::num::NonZeroUsize;
use std::time::Duration;

/// Prints to standard error. Not `println!`, whose output the test harness captures.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn hang(text: &str) -> ! {
    say(text);
    std::process::exit(1)
}

fn soak(handlers: usize, seed: u64) {
    let handlers = NonZeroUsize::new(handlers).expect("a handler");
    let time = Duration::from_secs(3);
    let config = Config { time, seed, threads: 4, handlers, anonymous: 1 << 20, file: 2 << 20 };
    match run::run(config, |_, _| {}, hang) {
        Ok(report) => say(&report.to_string()),
        Err(Trouble::Refused(error)) => say(&format!("skipped: {error}")),
        Err(trouble) => panic!("{trouble}"),
    }
}

/// The runs follow each other: each compares the resources of the process before and after.
#[test]
fn no_wrong_byte_no_hang_no_leak() {
    soak(1, 1);
    soak(3, 2);
}
