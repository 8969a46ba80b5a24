//! The command line that repeats a run, as a shell reads it.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// A command line. Each argument is quoted where a shell needs quotes.
#[derive(Clone, Debug)]
pub struct Command {
    /// The words that start the program: one, or those of `cargo run`.
    program: &'static [&'static str],
    /// The quoted arguments. The subcommand is the first one.
    arguments: Vec<String>,
}

impl Command {
    /// Creates the command of a program that was started with `arguments`. The name of the program is not among them.
    pub fn new(program: &'static [&'static str], arguments: impl Iterator<Item = OsString>) -> Self {
        Self { program, arguments: arguments.map(|argument| quoted(&argument)).collect() }
    }

    /// Returns the command with one more argument, directly after the subcommand.
    pub fn with(&self, argument: &str) -> Self {
        let mut command = self.clone();
        command.arguments.insert(1.min(self.arguments.len()), quoted(OsStr::new(argument)));
        command
    }

    /// Returns the command as one line.
    pub fn line(&self) -> String {
        self.words().collect::<Vec<_>>().join(" ")
    }

    /// Returns the command in lines of at most `width` columns. A line that is continued ends with a backslash, so that
    /// the lines can be pasted into a shell. An argument that is wider than a line stands whole.
    pub(super) fn lines(&self, width: usize) -> Vec<String> {
        /// The end of a line that is continued.
        const CONTINUED: &str = " \\";
        let (mut lines, mut line) = (Vec::new(), String::new());
        let mut words = self.words().peekable();
        while let Some(word) = words.next() {
            // The last word needs no room for a backslash after it.
            let end = if words.peek().is_some() { CONTINUED.len() } else { 0 };
            if line.is_empty() {
                line = word.into();
            } else if columns(&line) + 1 + columns(word) + end <= width {
                line = format!("{line} {word}");
            } else {
                lines.push(line + CONTINUED);
                line = format!("  {word}");
            }
        }
        lines.push(line);
        lines
    }

    fn words(&self) -> impl Iterator<Item = &str> {
        self.program.iter().copied().chain(self.arguments.iter().map(String::as_str))
    }
}

/// Returns the words that start this program again. `cargo` is whether cargo started it, `path` is the path of its
/// file, and `name` is the name by which it was called.
pub fn program(cargo: bool, path: Option<&Path>, name: Option<&OsStr>) -> &'static [&'static str] {
    let is_built_here = path.is_some_and(|path| path.iter().any(|folder| folder == "target"));
    match cargo || (is_built_here && name != Some(OsStr::new("faultless"))) {
        true => &["cargo", "run", "--release", "--"],
        false => &["faultless"],
    }
}

/// Returns whether a terminal shows `character` and does not obey it. Controls and characters that change the direction
/// of text are not shown.
pub fn is_shown(character: char) -> bool {
    let turns = matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let breaks = matches!(character, '\u{2028}' | '\u{2029}');
    !(character.is_control() || turns || breaks)
}

fn columns(text: &str) -> usize {
    text.chars().count()
}

/// Returns an argument as a shell reads it. Characters that are not shown, and bytes that are not UTF-8, are escaped.
fn quoted(argument: &OsStr) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=.,/:".contains(c);
    match argument.to_str() {
        Some(text) if !text.is_empty() && text.chars().all(is_plain) => text.into(),
        Some(text) if text.chars().all(is_shown) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => format!("$'{}'", escaped(argument.as_encoded_bytes())),
    }
}

/// Returns bytes with the escapes of `$'…'`.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                '\'' | '\\' => text.extend(['\\', character]),
                _ if is_shown(character) => text.push(character),
                _ => text.push_str(&as_numbers(character.encode_utf8(&mut [0; 4]).as_bytes())),
            }
        }
        text.push_str(&as_numbers(chunk.invalid()));
    }
    text
}

/// Returns each byte as three octal digits. A digit that follows them is never read as one of theirs.
fn as_numbers(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:03o}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(arguments: &[&str]) -> Command {
        Command::new(program(false, None, None), arguments.iter().map(OsString::from))
    }

    #[test]
    fn arguments_are_quoted_as_a_shell_reads_them() {
        let line = command(&["compare", "giant-vma", "--file", "a b", "--rate", "it's=1", ""]).line();
        assert_eq!(line, r"faultless compare giant-vma --file 'a b' --rate 'it'\''s=1' ''");
    }

    #[test]
    fn a_character_that_is_not_shown_is_escaped() {
        let line = command(&["compare", "--file", "a\nb\u{1b}1\\'\u{202e}"]).line();
        assert_eq!(line, r"faultless compare --file $'a\nb\0331\\\'\342\200\256'");
    }

    #[cfg(unix)]
    #[test]
    fn a_byte_that_is_not_utf8_is_escaped() {
        use std::os::unix::ffi::OsStringExt;
        assert_eq!(quoted(&OsString::from_vec(vec![b'a', 0xff])), r"$'a\377'");
    }

    #[test]
    fn lines_break_between_arguments_only_and_end_with_a_backslash() {
        let command = command(&["compare", "--design", "mmap-lock,faultless", "--file", "a b"]);
        for width in 1..80 {
            let lines = command.lines(width);
            let (last, continued) = lines.split_last().unwrap();
            assert!(continued.iter().all(|line| line.ends_with(" \\")) && !last.ends_with('\\'));
            // A shell joins the lines to the same words.
            let pasted = lines.join("\n").replace("\\\n", "");
            assert_eq!(pasted.split_whitespace().collect::<Vec<_>>().join(" "), command.line());
            // Only an argument that is too wide by itself is wider.
            let fits = |line: &String| columns(line) <= width || line.split_whitespace().count() <= 2;
            assert!(lines.iter().all(fits), "{width}: {lines:?}");
        }
        assert_eq!(command.lines(80), [command.line()]);
    }

    #[test]
    fn one_more_argument_keeps_the_others() {
        let command = command(&["compare", "--design", "native", "--seconds", "1"]).with("giant-vma");
        assert_eq!(command.line(), "faultless compare giant-vma --design native --seconds 1");
    }

    #[test]
    fn a_program_that_cargo_built_is_started_by_cargo() {
        let by =
            |cargo, path: &str, name: &str| program(cargo, Some(Path::new(path)), Some(OsStr::new(name)))[0];
        assert_eq!(by(true, "/usr/bin/faultless", "faultless"), "cargo");
        assert_eq!(by(false, "/a/target/release/faultless", "target/release/faultless"), "cargo");
        assert_eq!(by(false, "/a/target/release/faultless", "faultless"), "faultless");
        assert_eq!(by(false, "/usr/bin/faultless", "/usr/bin/faultless"), "faultless");
    }
}
