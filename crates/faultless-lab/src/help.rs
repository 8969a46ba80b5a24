//! The layout of the help's texts for narrow terminals and for man pages. clap wraps paragraphs, but breaks the columns of
//! examples and lists.

use clap::Command;
use textwrap::{Options, WordSeparator, WordSplitter};

/// The width of the text of a man page on a terminal of 80 columns: 7 are indentation, and man leaves 2 free.
pub(crate) const MAN_WIDTH: usize = 71;
/// The minimum width of the right column. In less, each right part stands below its left part.
const LEAST: usize = 24;
/// The indentation of a right part that stands below its left part.
const BELOW: usize = 6;
/// The blanks that separate the columns, and those before the left column.
const GAP: &str = "  ";
/// The end of the line of a shell command that is continued on the next line.
const CONTINUED: &str = " \\";
/// The first line of a help text that is too wide continues below the text after this word.
const USAGE: &str = "Usage: ";

/// Returns `command` with the texts of all its subcommands laid out for `width` columns.
pub(crate) fn fitted(command: Command, width: usize) -> Command {
    let text = command.get_after_help().map(|text| laid_out(&text.to_string(), width));
    let command = command.term_width(width).mut_subcommands(|subcommand| fitted(subcommand, width));
    match text {
        Some(text) => command.after_help(text),
        None => command,
    }
}

/// Returns a rendered help text with no line wider than `width`, except for one long word. It may contain colours.
pub(crate) fn narrowed(text: &str, width: usize) -> String {
    let indent = " ".repeat(USAGE.len());
    let lines = text.lines().map(|line| match textwrap::core::display_width(line) <= width {
        true => line.to_string(),
        false => wrapped(line, width, "", &indent).join("\n"),
    });
    lines.map(|line| line + "\n").collect()
}

/// A line of a list or of examples. Its right part may be empty.
struct Row {
    left: String,
    right: String,
}

/// Returns `text` with its lists laid out for `width` columns. The lines of a list begin with two blanks. Two or more
/// blanks separate its columns. A line with more blanks at its start continues the right column.
///
/// A list that fits stays as it is. Paragraphs are lines of their own, and stay as they are for clap to wrap.
fn laid_out(text: &str, width: usize) -> String {
    let (mut lines, mut list) = (Vec::new(), Vec::new());
    for line in text.lines() {
        if line.starts_with(GAP) {
            list.push(line);
        } else {
            lines.extend(list_lines(&list, width));
            list.clear();
            lines.push(line.into());
        }
    }
    lines.extend(list_lines(&list, width));
    lines.join("\n")
}

fn list_lines(list: &[&str], width: usize) -> Vec<String> {
    if list.iter().all(|line| line.chars().count() <= width) {
        return list.iter().map(ToString::to_string).collect();
    }
    let (mut rows, mut start) = (Vec::<Row>::new(), 0);
    for line in list {
        let text = line.trim_start();
        let indent = line.chars().count() - text.chars().count();
        match rows.last_mut() {
            Some(row) if indent > GAP.len() => {
                start = indent;
                row.right = format!("{} {text}", row.right).trim().into();
            }
            _ => {
                let (left, right) = text.split_once(GAP).unwrap_or((text, ""));
                if !right.is_empty() {
                    start = line.chars().count() - right.trim_start().chars().count();
                }
                rows.push(Row { left: left.into(), right: right.trim_start().into() });
            }
        }
    }
    let start = if start + LEAST <= width { start } else { BELOW };
    rows.iter().flat_map(|row| row.lines(start, width)).collect()
}

impl Row {
    /// Returns the lines of the row. Its right part starts at the column `start`, below its left part if that is wider.
    fn lines(&self, start: usize, width: usize) -> Vec<String> {
        let indent = " ".repeat(start);
        let right = match self.right.as_str() {
            "" => Vec::new(),
            text => wrapped(text, width, &indent, &indent),
        };
        let left = format!("{GAP}{}", self.left);
        match right.split_first() {
            Some((first, rest)) if left.chars().count() + GAP.len() <= start => {
                let first = format!("{left:start$}{}", first.trim_start());
                std::iter::once(first).chain(rest.iter().cloned()).collect()
            }
            _ => self.left_lines(width).into_iter().chain(right).collect(),
        }
    }

    /// Returns the left part. If it is a shell command, its lines can be pasted into a shell.
    fn left_lines(&self, width: usize) -> Vec<String> {
        if self.left.chars().count() + GAP.len() <= width {
            return vec![format!("{GAP}{}", self.left)];
        }
        let end = if self.left.contains("faultless ") { CONTINUED } else { "" };
        let mut lines = wrapped(&self.left, width - end.len(), GAP, &GAP.repeat(2));
        let last = lines.len() - 1;
        lines[..last].iter_mut().for_each(|line| line.push_str(end));
        lines
    }
}

fn wrapped(text: &str, width: usize, first: &str, later: &str) -> Vec<String> {
    let options = Options::new(width).initial_indent(first).subsequent_indent(later).break_words(false);
    let options =
        options.word_separator(WordSeparator::AsciiSpace).word_splitter(WordSplitter::NoHyphenation);
    textwrap::wrap(text, options).into_iter().map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
A paragraph that is longer than any of the widths here, and is one line.

Examples:
  faultless one             the first
  faultless two --with=many --options=here
                            the second, which has a text of two
                            lines
  faultless three --with=many --options=and --no=text";

    #[test]
    fn a_list_that_fits_stays_as_it_is() {
        assert_eq!(laid_out(TEXT, 66), TEXT);
    }

    #[test]
    fn a_narrow_list_has_its_right_column_wrapped_or_below_the_left_one() {
        let (_, list) = TEXT.split_once("Examples:\n").unwrap();
        let of = |width| laid_out(list, width);
        let wrapped = "  faultless one             the first
  faultless two --with=many --options=here
                            the second, which has a
                            text of two lines
  faultless three --with=many --options=and \\
    --no=text";
        assert_eq!(of(52), wrapped);
        let below = "  faultless one
      the first
  faultless two --with=many \\
    --options=here
      the second, which has a text of
      two lines
  faultless three --with=many \\
    --options=and --no=text";
        assert_eq!(of(40), below);
    }

    #[test]
    fn a_usage_line_is_wrapped_at_words() {
        let text = "\u{1b}[1mUsage: a\u{1b}[0m [OPTIONS] <A>\nshort\n";
        assert_eq!(narrowed(text, 18), "\u{1b}[1mUsage: a\u{1b}[0m [OPTIONS]\n       <A>\nshort\n");
        assert_eq!(narrowed(text, 22), text);
    }
}
