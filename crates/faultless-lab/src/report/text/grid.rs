//! Tables that never break their figures, and paragraphs and lists that wrap at words.

use super::Screen;
use comfy_table::presets::NOTHING;
use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, LineStyle, Table, Width,
};
use std::ops::Range;

/// The blanks between two columns.
const GAP: usize = 2;

/// The emphasis of a text on a screen with colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Strong,
    Dim,
    Best,
    Good,
    Bad,
}

/// A few words in one style. They may have several lines.
#[derive(Clone, Debug)]
pub(super) struct Text {
    pub text: String,
    style: Style,
}

impl Text {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), style: Style::Plain }
    }

    pub(super) fn styled(self, style: Style) -> Self {
        Self { style, ..self }
    }

    fn cell(&self) -> Cell {
        let cell = Cell::new(&self.text);
        match self.style {
            Style::Plain => cell,
            Style::Strong => cell.add_attribute(Attribute::Bold),
            Style::Dim => cell.add_attribute(Attribute::Dim),
            Style::Best => cell.fg(Color::DarkGreen).add_attribute(Attribute::Bold),
            Style::Good => cell.fg(Color::DarkGreen),
            Style::Bad => cell.fg(Color::DarkRed),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Align {
    Left,
    Right,
}

/// A table. Its first column names the rows.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    /// The titles. They wrap at blanks if the column's cells are narrower.
    pub header: Vec<String>,
    pub rows: Vec<Vec<Text>>,
    /// The alignment of all columns but the first.
    pub align: Align,
}

/// Returns the width of the widest line of `text`.
fn columns_of(text: &str) -> usize {
    text.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

/// Returns the number of lines of a title in `width` columns.
fn lines_of(title: &str, width: usize) -> usize {
    let lines = title.lines().map(|line| {
        let (mut lines, mut taken) = (1, 0);
        for word in line.split_whitespace().map(columns_of) {
            if taken != 0 && taken + 1 + word > width {
                (lines, taken) = (lines + 1, 0);
            }
            taken += word + usize::from(taken != 0);
        }
        lines
    });
    lines.sum()
}

impl Grid {
    /// Returns the minimum width of a column: its widest cell, or the widest word of its title.
    fn width_of(&self, column: usize) -> usize {
        let words = self.header[column].split_whitespace().map(columns_of);
        let cells = self.rows.iter().map(|row| columns_of(&row[column].text));
        words.chain(cells).max().unwrap_or(0)
    }

    /// Returns the number of columns, from the left, that fit into `width`; at least two.
    pub(super) fn fitting(&self, width: usize) -> usize {
        self.fitting_from(1, width).max(2).min(self.header.len())
    }

    /// Returns whether the first column and each of `columns` fit side by side into `width`.
    pub(super) fn has_room_for(&self, mut columns: Range<usize>, width: usize) -> bool {
        columns.all(|column| self.width_of(0) + GAP + self.width_of(column) <= width)
    }

    /// Wraps each cell that is too wide beside the first column at words.
    pub(super) fn wrapped(mut self, width: usize) -> Self {
        let room = width.saturating_sub(self.width_of(0) + GAP).max(1);
        let options = textwrap::Options::new(room).subsequent_indent(" ").break_words(false);
        let options = options.word_splitter(textwrap::WordSplitter::NoHyphenation);
        let others = self.rows.iter_mut().flat_map(|row| row.iter_mut().skip(1));
        for cell in others.filter(|cell| columns_of(&cell.text) > room) {
            cell.text = textwrap::fill(&cell.text, &options);
        }
        self
    }

    /// Returns the end of the columns that fit into `width`, if the table has the first column and then those from
    /// `from`.
    fn fitting_from(&self, from: usize, width: usize) -> usize {
        let mut taken = self.width_of(0);
        let fits = |column: &usize| {
            taken += GAP + self.width_of(*column);
            taken <= width
        };
        from + (from..self.header.len()).take_while(fits).count()
    }

    /// Returns the widths of some columns. They give the titles the fewest lines that the screen allows.
    fn widths(&self, columns: &[usize], width: usize) -> Vec<usize> {
        let least: Vec<usize> = columns.iter().map(|column| self.width_of(*column)).collect();
        let within = |lines: usize| -> Vec<usize> {
            let wide_enough = |(column, least): (&usize, &usize)| {
                let title = &self.header[*column];
                (*least..width).find(|width| lines_of(title, *width) <= lines).unwrap_or(*least)
            };
            columns.iter().zip(&least).map(wide_enough).collect()
        };
        let fits = |widths: &Vec<usize>| widths.iter().sum::<usize>() + GAP * (columns.len() - 1) <= width;
        let most =
            columns.iter().zip(&least).map(|(column, least)| lines_of(&self.header[*column], *least)).max();
        let shortest = columns.iter().map(|column| self.header[*column].lines().count()).max();
        let heights = shortest.unwrap_or(1)..most.unwrap_or(1);
        heights.map(within).find(fits).unwrap_or(least)
    }

    /// Draws the first column and those in `columns`.
    pub(super) fn draw(&self, columns: &[usize], screen: Screen) -> String {
        let columns: Vec<usize> = std::iter::once(0).chain(columns.iter().copied()).collect();
        let widths = self.widths(&columns, screen.width);
        // The library wraps only titles, because every column is as wide as its cells.
        let mut table = new_table(u16::MAX.into(), screen.has_colour);
        table.load_style(NOTHING.header_separator(LineStyle::none().fill('─').junction('─')));
        let title = |column: &usize| Cell::new(&self.header[*column]);
        table.set_header(columns.iter().map(title));
        for row in &self.rows {
            table.add_row(columns.iter().map(|column| row[*column].cell()));
        }
        for (place, column) in table.column_iter_mut().enumerate() {
            let gap = if place + 1 < columns.len() { GAP - 1 } else { 0 };
            let width = Width::Fixed((widths[place] + gap) as u16);
            column.set_padding((0, gap as u16)).set_constraint(ColumnConstraint::Absolute(width));
            if matches!(self.align, Align::Right) && place != 0 {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.trim_fmt()
    }

    /// Draws all columns, in as many tables as the width requires. The tables stand below each other.
    pub(super) fn in_pieces(&self, screen: Screen) -> String {
        let (mut pieces, mut from) = (Vec::new(), 1);
        while from < self.header.len() {
            let to = self.fitting_from(from, screen.width).max(from + 1);
            pieces.push(self.draw(&(from..to).collect::<Vec<_>>(), screen));
            from = to;
        }
        pieces.join("\n\n")
    }
}

fn new_table(width: usize, has_colour: bool) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).force_no_tty();
    table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
    if has_colour {
        table.enforce_styling();
        // The library obeys NO_COLOR, but `--color always` must override it.
        crossterm::style::force_color_output(true);
    }
    table
}

/// Returns a text that is wrapped at words.
pub(crate) fn paragraph(text: &str, width: usize) -> String {
    let mut table = new_table(width, false);
    table.add_row([text]);
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 0));
    });
    table.trim_fmt()
}

/// Returns a list. Each text stands to the right of its mark, and all its lines are aligned. If the marks take more than
/// a third of the screen, each text stands below its mark.
pub(super) fn items(items: impl Iterator<Item = (Text, String)>, screen: Screen) -> String {
    let items: Vec<_> = items.collect();
    let widest = items.iter().map(|(mark, _)| columns_of(&mark.text)).max().unwrap_or(0);
    if 3 * widest > screen.width {
        return items.iter().map(|(mark, text)| below(mark, text, screen)).collect::<Vec<_>>().join("\n");
    }
    let mut table = new_table(screen.width, screen.has_colour);
    for (mark, text) in items {
        table.add_row([mark.cell(), Cell::new(text)]);
    }
    for (place, column) in table.column_iter_mut().enumerate() {
        if place == 0 {
            column
                .set_constraint(ColumnConstraint::Absolute(Width::Fixed(widest as u16 + 1)))
                .set_padding((0, 1));
        } else {
            column.set_padding((0, 0));
        }
    }
    table.trim_fmt()
}

/// Returns an item whose text stands below its mark, two blanks further to the right.
fn below(mark: &Text, text: &str, screen: Screen) -> String {
    let mut table = new_table(screen.width, screen.has_colour);
    table.add_row([mark.cell()]);
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 0));
    });
    let indent = mark.text.len() - mark.text.trim_start().len() + GAP;
    let lines = paragraph(text, screen.width.saturating_sub(indent));
    let lines = lines.lines().map(|line| format!("\n{:indent$}{line}", ""));
    lines.fold(table.trim_fmt(), |item, line| item + &line)
}
