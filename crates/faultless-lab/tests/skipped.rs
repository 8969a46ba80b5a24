//! A test that is skipped says why, in the output of `cargo test` without options.

use faultless_lab::skipped::skipped;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Set in the process that runs one test of this program again.
const AGAIN: &str = "FAULTLESS_LAB_SKIPPED";

#[test]
fn a_reason_is_not_hidden_by_the_harness() {
    if std::env::var_os(AGAIN).is_some() {
        return skipped("no machine");
    }
    let program = std::env::current_exe().expect("this test's program");
    let mut command = Command::new(program);
    command.args(["--exact", "a_reason_is_not_hidden_by_the_harness"]).env(AGAIN, "1");
    let output = command.env_remove("RUST_TEST_NOCAPTURE").output().expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.contains("skipped: no machine\n"), "{output:?}");
}

/// Adds the Rust files below `folder`.
fn add_sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            add_sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn no_test_prints_its_reason_to_the_harness() {
    let mut files = Vec::new();
    add_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &mut files);
    assert!(files.len() > 100, "{files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a source file");
        for print in ["print", "println", "eprint", "eprintln"] {
            // Not in one piece, so that this file does not contain it.
            let hidden = format!("{print}!(\"{}", "skipped");
            // An example in a comment is not run by the harness of tests.
            let mut code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            assert!(
                !code.any(|line| line.contains(&hidden)),
                "{}: the harness hides {hidden}",
                file.display()
            );
        }
    }
}
