//! `faultless generate` as users call it: completions for each shell, and a man page for each command.

use std::path::Path;
use std::process::Command;

/// Returns the exit code, standard output and standard error.
fn generate(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_faultless"));
    let output =
        command.arg("generate").args(arguments).current_dir(folder).output().expect("the command runs");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Checks for exit code 2 and one line that contains `wanted`.
fn refused(folder: &Path, arguments: &[&str], wanted: &str) {
    let (code, text, errors) = generate(folder, arguments);
    assert_eq!((code, text.as_str()), (Some(2), ""), "{errors}");
    assert!(errors.lines().count() == 1 && errors.contains(wanted), "{errors}");
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn each_shell_has_completions_with_commands_and_flags() {
    let folder = folder();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let (code, text, errors) = generate(folder.path(), &["completions", shell]);
        assert_eq!((code, errors.as_str()), (Some(0), ""), "{shell}");
        for wanted in ["fail-above", "io-latency", "scenarios"] {
            assert!(text.contains(wanted), "{shell} has no {wanted}");
        }
        assert!(!text.contains("native-round") && !text.contains("generate"), "{shell} has a hidden command");
    }
    let shells =
        "'tcsh' for '<SHELL>'; there are: bash, elvish, fish, powershell, zsh; see faultless generate";
    refused(folder.path(), &["completions", "tcsh"], shells);
}

#[test]
fn each_command_has_a_man_page() {
    let folder = folder();
    let pages = folder.path().join("new/man1");
    let (code, text, errors) = generate(folder.path(), &["man", "new/man1"]);
    assert_eq!((code, text.as_str(), errors.as_str()), (Some(0), "", ""));
    let page = |name: &str| std::fs::read_to_string(pages.join(name)).expect("a page");
    let main = page("faultless.1");
    for command in ["compare", "check", "diff", "designs", "scenarios"] {
        assert!(main.contains(&format!("faultless\\-{command}(1)")), "{command}: {main}");
        assert!(page(&format!("faultless-{command}.1")).contains(".SH SYNOPSIS"), "{command}");
    }
    assert!(page("faultless-diff.1").contains("\\-\\-fail\\-above"));
    for name in ["faultless.1", "faultless-compare.1", "faultless-check.1", "faultless-diff.1"] {
        let page = page(name);
        // No word is hyphenated, and no blank is widened.
        assert!(page.contains("\n.nh\n.ad l\n.SH NAME"), "{name}: {page}");
        let (_, extra) = page.split_once(".SH EXTRA\n").expect("examples");
        // The text of a page is 9 columns narrower than a terminal of 80.
        for line in extra.lines().filter(|line| line.starts_with("  ")) {
            let line = line.replace("\\-", "-").replace("\\*(Aq", "'").replace("\\\\", "\\");
            assert!(line.chars().count() <= 71, "{name}: {line}");
        }
    }
    // One page for each command and one for the program. Hidden commands have none.
    assert_eq!(std::fs::read_dir(&pages).expect("the folder").count(), 6);
    std::fs::write(folder.path().join("file"), "").expect("a file");
    refused(folder.path(), &["man", "file"], "cannot write man pages to file");
}
