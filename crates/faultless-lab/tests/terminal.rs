//! The command on real terminals, of several widths: no line is wider.
#![cfg(target_os = "linux")]

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::process::{Command, Stdio};

/// Runs the command on a terminal of `width` columns, and returns its output.
fn on_a_terminal(width: u16, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    // The line of progress is of standard error.
    run(width, arguments, variables, |command, terminal| command.stderr(Stdio::null()).stdout(terminal))
}

/// Runs the command with a terminal of `width` columns, which `connect` connects. Returns the output.
fn run(
    width: u16,
    arguments: &[&str],
    variables: &[(&str, &str)],
    connect: fn(&mut Command, File) -> &mut Command,
) -> String {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
    grantpt(&master).and_then(|()| unlockpt(&master)).expect("its other end");
    let path = ptsname(&master, Vec::new()).expect("its name");
    let terminal =
        File::options().read(true).write(true).open(path.to_str().expect("ASCII")).expect("a terminal");
    tcsetwinsize(&terminal, Winsize { ws_row: 50, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 })
        .expect("its size");

    let mut command = Command::new(env!("CARGO_BIN_EXE_faultless"));
    command.args(arguments).env("TERM", "xterm-256color").env_remove("NO_COLOR").env_remove("COLUMNS");
    command.envs(variables.iter().copied());
    let mut child = connect(command.stdin(Stdio::null()), terminal).spawn().expect("the command runs");
    // Closes this process's end of the terminal, so that reading ends when the command does.
    drop(command);
    let (mut text, mut master) = (Vec::new(), File::from(master));
    let mut part = [0; 4096];
    loop {
        match master.read(&mut part) {
            Ok(0) => break,
            Ok(n) => text.extend_from_slice(&part[..n]),
            // EIO: the command has closed its end.
            Err(error) if error.kind() != ErrorKind::Interrupted => break,
            Err(_) => {}
        }
    }
    assert!(child.wait().expect("it ends").success(), "{arguments:?}");
    String::from_utf8(text).expect("UTF-8")
}

/// Without the sequences of colours.
fn without_colours(text: &str) -> String {
    let mut parts = text.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
}

fn assert_fits(width: u16, arguments: &[&str]) {
    let text = without_colours(&on_a_terminal(width, arguments, &[]));
    assert!(!text.is_empty(), "{arguments:?}");
    for line in text.lines() {
        assert!(line.chars().count() <= width.into(), "{arguments:?} is wider than {width}: {line}");
    }
}

#[test]
fn no_list_and_no_help_is_wider_than_the_terminal() {
    let commands: [&[&str]; 14] = [
        &["--help"],
        &["compare", "--help"],
        &["check", "--help"],
        &["diff", "--help"],
        &["designs", "--help"],
        &["scenarios", "--help"],
        &["generate", "--help"],
        &["generate", "completions", "--help"],
        &["generate", "man", "--help"],
        &["designs"],
        &["scenarios"],
        &["help"],
        &["help", "diff"],
        &["compare", "-h"],
    ];
    for width in [40, 60, 80, 100, 200] {
        for arguments in commands {
            assert_fits(width, arguments);
        }
    }
}

#[test]
fn no_comparison_is_wider_than_the_terminal() {
    // Every default design: its names and figures are as wide as they get.
    assert_fits(80, &["compare", "--seconds", "0.1"]);
    for width in [40, 80, 100, 200] {
        let tour = ["compare", "--design", "vma-lock-retry,faultless", "--seconds", "0.1"];
        assert_fits(width, &tour);
        let one = ["compare", "giant-vma", "--design", "vma-lock-retry,faultless", "--seconds", "0.3"];
        assert_fits(width, &one);
        assert_fits(width, &[&one[..], &["--details"]].concat());
    }
}

#[test]
fn no_diff_is_wider_than_the_terminal() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("result.json");
    let (json, path) = (format!("--json={}", file.display()), file.to_str().expect("UTF-8"));
    assert_fits(
        40,
        &["compare", "giant-vma", "--design", "vma-lock-retry,faultless", "--seconds", "0.1", &json],
    );
    for width in [40, 80] {
        assert_fits(width, &["diff", path, path]);
        assert_fits(width, &["diff", path, path, "--all", "--fail-above", "1.5"]);
    }
}

#[test]
fn no_check_is_wider_than_the_terminal() {
    for width in [40, 80, 100] {
        assert_fits(width, &["check", "--files", "--ops", "300"]);
        assert_fits(width, &["check", "--threads", "2", "--ops", "300"]);
    }
}

#[test]
fn a_line_of_progress_has_a_text_and_no_duration_before_it_is_known() {
    let arguments = ["compare", "fork-during-io", "--design", "faultless", "--seconds", "3"];
    let text = run(100, &arguments, &[], |command, terminal| command.stdout(Stdio::null()).stderr(terminal));
    let lines: Vec<_> = text.split(['\r', '\n']).filter(|line| line.contains('[')).collect();
    let lines: Vec<_> = lines.into_iter().filter(|line| line.contains("] ")).collect();
    assert!(lines.iter().any(|line| line.contains("s of about ")), "{text:?}");
    for line in lines {
        assert!(!line.contains("of about 0s") && line.contains("fork-during-io"), "{line:?} of {text:?}");
    }
}

#[test]
fn colours_are_for_terminals_and_can_be_refused() {
    let run = ["compare", "giant-vma", "--design", "mmap-lock,faultless", "--seconds", "0.1"];
    let with = |more: &[&str], variables: &[(&str, &str)]| {
        on_a_terminal(100, &[&run[..], more].concat(), variables).contains('\u{1b}')
    };
    assert!(with(&[], &[]));
    assert!(!with(&[], &[("NO_COLOR", "1")]));
    assert!(with(&[], &[("NO_COLOR", "")]), "an empty NO_COLOR is none");
    assert!(!with(&["--color", "never"], &[]));
    // Figures are green or red from five rounds on.
    let rounds = [&run[..5], &["2.5", "--color", "always"]].concat();
    let text = on_a_terminal(100, &rounds, &[("NO_COLOR", "1")]);
    assert!(text.contains("\u{1b}[38;5;"), "{text:?}");
}

#[test]
fn in_a_pipe_there_are_100_columns_and_no_colours() {
    let piped = |more: &[&str]| {
        let run = ["compare", "giant-vma", "--design", "mmap-lock,faultless", "--seconds", "0.3"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_faultless"));
        command.args(run).args(more).env_remove("NO_COLOR").env("COLUMNS", "40");
        let output = command.output().expect("the command runs");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let text = piped(&[]);
    assert!(!text.contains('\u{1b}') && !text.contains("Not shown"), "{text}");
    let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    assert!((81..=100).contains(&widest), "{widest}: {text}");
    assert!(piped(&["--color", "always"]).contains('\u{1b}'));
}
