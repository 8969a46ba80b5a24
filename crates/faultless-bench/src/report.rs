//! The report for people: a table for each case and size.

use crate::bars::{Estimate, Verdict};
use crate::figures::MOST_AWAY;
use crate::run::{Plan, Row};
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use std::fmt::Write;

/// Returns the text above the first table.
pub fn heading(plan: &Plan) -> String {
    format!(
        "{} rounds of {:?} for each contender and number of threads, in turns; medians. wall, cpu: nanoseconds for an \
         operation of one thread.\nspread: distance of the quartiles in percent of the median. dropped: rounds left out, \
         since a thread was off its processor for more than {:.0}% of its time.\nMETHODOLOGY.md explains the method.\n",
        plan.rounds,
        plan.slice,
        MOST_AWAY * 100.0
    )
}

/// Returns the table of one case and size.
pub fn table(rows: &[Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let (case, mut text) = (first.case, String::new());
    // Writing to a string does not fail.
    let _ = match (first.size, &case.sizes) {
        (Some(size), Some(sizes)) => {
            writeln!(text, "{}, {} {}: {}", case.name, size, sizes.of, case.about)
        }
        _ => writeln!(text, "{}: {}", case.name, case.about),
    };
    let has_p99 = rows.iter().any(|row| row.figures.as_ref().is_ok_and(|figures| figures.p99_ns.is_some()));
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
    let measured = if has_p99 { ["median", "p99"] } else { ["wall", "cpu"] };
    table.set_header([&["contender", "threads"][..], &measured, &["spread", "dropped"]].concat());
    let number = |value: Option<f64>| value.map_or("–".into(), number);
    for row in rows {
        let mut cells = vec![row.contender.clone(), row.threads.to_string()];
        if let Ok(figures) = &row.figures {
            let second = if has_p99 { figures.p99_ns } else { figures.cpu_ns_per_op };
            cells.extend([number(figures.ns_per_op), number(second)]);
            cells.push(figures.spread.map_or("–".into(), |spread| format!("{:.0}%", spread * 100.0)));
            cells.push(match figures.dropped {
                0 => String::new(),
                dropped if figures.rounds == 0 => format!("all {dropped}, so none was left out"),
                dropped => dropped.to_string(),
            });
            table.add_row(cells);
        }
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    let _ = writeln!(text, "\n{table}");
    let mut said: Vec<String> = Vec::new();
    for row in rows {
        let of = format!("{}, {} threads", row.contender, row.threads);
        let measures = row.figures.iter().flat_map(|figures| &figures.measures);
        said.extend(measures.map(|(name, value)| format!("{of}: {name}: {}", estimate(value))));
        said.extend(row.bars.iter().map(|bar| {
            let verdict = match bar.verdict {
                Verdict::Met => "met",
                Verdict::Missed => "missed",
                Verdict::Unknown => "unknown, since the bar lies inside the noise",
            };
            format!("{of}: bar: {}, at most {}: {}: {verdict}", bar.about, bar.most, estimate(&bar.value))
        }));
        let skipped = row.figures.as_ref().err();
        said.extend(skipped.map(|reason| format!("{}: skipped, {reason}", row.contender)));
        said.extend(row.note.as_ref().map(|note| format!("{}: {note}", row.contender)));
    }
    said.dedup();
    said.iter().for_each(|line| {
        let _ = writeln!(text, "{line}");
    });
    text
}

/// Formats a median with its interval.
fn estimate(value: &Estimate) -> String {
    format!("{:.3} ({:.3} to {:.3})", value.median, value.low, value.high)
}

/// Formats nanoseconds with about three digits.
fn number(value: f64) -> String {
    match value {
        _ if value < 10.0 => format!("{value:.2}"),
        _ if value < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case;
    use crate::figures::Figures;

    #[test]
    fn rows_that_were_skipped_say_why_once() {
        let figures =
            Figures { ns_per_op: Some(12.34), spread: Some(0.051), rounds: 3, ..Figures::default() };
        let row = |contender: &str, threads, figures| Row {
            case: case::ALL[0],
            size: Some(30),
            threads,
            contender: contender.into(),
            figures,
            note: None,
            bars: Vec::new(),
        };
        let missing = || Err("not built: scripts/maple.sh".into());
        let rows = [row("a", 1, Ok(figures)), row("b", 1, missing()), row("b", 2, missing())];
        let text = table(&rows);
        assert!(text.starts_with("look-up, 30 ranges: "), "{text}");
        assert!(text.contains("12.3") && text.contains("5%"), "{text}");
        assert_eq!(text.matches("b: skipped, not built: scripts/maple.sh").count(), 1, "{text}");
    }
}
