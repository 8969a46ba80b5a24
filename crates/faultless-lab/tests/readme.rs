//! The README: its programs are examples of the workspace, word for word, and it is short.

use std::path::Path;

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text of each block that begins with "```rust".
fn programs(text: &str) -> Vec<&str> {
    let after = text.split("```rust\n").skip(1);
    after.map(|block| block.split("```").next().unwrap_or_default()).collect()
}

#[test]
fn its_programs_are_the_examples() {
    let readme = file("README.md");
    let examples =
        ["crates/faultless-soft/examples/first_fault.rs", "crates/faultless-linux/examples/snapshot.rs"];
    let programs = programs(&readme);
    assert_eq!(programs.len(), examples.len());
    for (program, example) in programs.iter().zip(examples) {
        assert!(
            file(example).contains(program.trim_end()),
            "the README shows another program than {example}"
        );
        assert!(program.contains("fn main()"), "the program of {example} cannot be compiled as it stands");
        let name = example.rsplit('/').next().and_then(|name| name.strip_suffix(".rs")).unwrap_or_default();
        assert!(readme.contains(&format!("--example {name}")), "the README does not say how to run {name}");
    }
}

#[test]
fn it_is_short() {
    let lines = file("README.md").lines().count();
    assert!(lines <= 200, "{lines} lines");
}
