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

/// The paragraphs of a report, each in one line. A number is replaced by "N".
fn paragraphs(report: &str) -> Vec<String> {
    let line = |paragraph: &str| {
        let text = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut characters = String::new();
        for character in text.chars() {
            match character {
                '0'..='9' if characters.ends_with('N') => {}
                '0'..='9' => characters.push('N'),
                other => characters.push(other),
            }
        }
        characters
    };
    report.split("\n\n").map(line).collect()
}

#[test]
fn its_output_is_that_of_this_version() {
    let (readme, golden) = (file("README.md"), file("crates/faultless-lab/src/report/text/golden/tour.txt"));
    let block =
        readme.split("```text\n").nth(1).and_then(|block| block.split("```").next()).expect("a block");
    let (shown, wanted) = (paragraphs(block), paragraphs(&golden));
    // Scenarios may have different numbers of rounds.
    let first = shown[0].replace("N to N rounds", "N rounds");
    assert_eq!((shown.len(), &first), (wanted.len(), &wanted[0]), "{block}");
    // A title is wrapped at the width of its figures, so the words may be in another order.
    let header = |paragraph: &str| {
        let mut words: Vec<_> =
            paragraph.split('─').next().unwrap_or_default().split(' ').map(str::to_string).collect();
        words.sort_unstable();
        words
    };
    assert_eq!(header(&shown[1]), header(&wanted[1]));
    for (at, start) in [(2, "N.N×: "), (3, "faultless against its best rival: "), (4, "native is Linux ")] {
        assert!(shown[at].starts_with(start) && wanted[at].starts_with(start), "{}", shown[at]);
    }
    let note = "It runs on the real MMU; the other rows run on a simulated one.";
    assert!(shown[4].contains(note) && wanted[4].contains(note), "{}", shown[4]);
    for label in ["Repeat: cargo run --release -- compare Look closer: ", " All figures: add --details"] {
        assert!(shown[5].contains(label), "{}", shown[5]);
    }
}

#[test]
fn it_is_short() {
    let lines = file("README.md").lines().count();
    assert!(lines <= 200, "{lines} lines");
}
