//! What was waited for, by its cause: every counter whose name has `_wait` in it and ends in `_ns`.

use super::{align_numbers, new_table};
use crate::compare::Run;
use comfy_table::Table;
use std::collections::BTreeSet;

/// What a cause is called, by the stem of its counter.
const WORDS: [(&str, &str); 13] = [
    ("io", "I/O"),
    ("mmap_lock", "mmap_lock"),
    ("vma_lock", "VMA locks"),
    ("range_lock", "range locks"),
    ("table_lock", "table locks"),
    ("page_bit", "page bits"),
    ("range", "ranges"),
    ("tree_lock", "tree lock"),
    ("freeze", "fork's freeze"),
    ("invalidate", "shootdowns"),
    ("grace", "grace periods"),
    ("folio_lock", "folio locks"),
    ("memory", "memory"),
];

/// Where a column stands: its cause's place, the cause, and the part of it that this is, if it is one. What a part is
/// of stands before it.
type Place<'a> = (usize, &'a str, &'a str);

/// The place and the title of a counter that counts waits; `None` for any other one. `mmap_lock_wait_fork_ns` is the
/// part of the waits for mmap_lock that was in a fork.
fn words(counter: &str) -> Option<(Place<'_>, String)> {
    let (stem, part) = counter.strip_suffix("_ns")?.split_once("_wait")?;
    let (stem, part) = match (stem, part.trim_matches('_')) {
        // Who waits for a page bit may wait for an announcer that does not run.
        ("preempted", "") => ("page_bit", "preempted"),
        other => other,
    };
    let known = WORDS.iter().position(|(name, _)| *name == stem);
    let title = match part {
        "" => known.map_or_else(|| stem.replace('_', " "), |at| WORDS[at].1.to_string()),
        "io" => "of it while a fault in I/O holds".into(),
        "change" => "of it a change".into(),
        "fault" => "of it faults".into(),
        part => format!("of it {}", part.replace('_', " ")),
    };
    Some(((known.unwrap_or(WORDS.len()), stem, part), title))
}

/// Milliseconds waited in a second of the round, over all threads; only causes that somebody has waited for. `None` if
/// nobody has.
pub fn table(runs: &[&Run]) -> Option<Table> {
    let ran = || runs.iter().filter(|run| run.total.seconds > 0.0);
    let milliseconds =
        |run: &Run, counter: &str| run.total.counted(counter).map(|ns| ns as f64 / 1e6 / run.total.seconds);
    let counters = ran().flat_map(|run| run.total.counters.keys());
    let causes = counters.filter_map(|counter| words(counter).map(|(at, words)| (at, words, counter)));
    let causes: BTreeSet<_> = causes
        // What would be printed as zero in each row is left out.
        .filter(|(_, _, counter)| ran().any(|run| milliseconds(run, counter).is_some_and(|ms| ms >= 0.05)))
        .collect();
    if causes.is_empty() {
        return None;
    }
    let titles = causes.iter().map(|(_, words, _)| words.clone());
    let mut table = new_table(std::iter::once("waited, ms/s, for".to_string()).chain(titles));
    for run in ran() {
        let cell = |counter| milliseconds(run, counter).map_or("–".into(), |ms| format!("{ms:.1}"));
        let name = run.contender.name().to_string();
        table.add_row(std::iter::once(name).chain(causes.iter().map(|(_, _, counter)| cell(counter))));
    }
    align_numbers(&mut table);
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn counters_of_waits_have_words() {
        let text = |counter| words(counter).map(|(_, text)| text);
        assert_eq!(text("io_wait_ns").as_deref(), Some("I/O"));
        assert_eq!(text("mmap_lock_wait_fork_ns").as_deref(), Some("of it fork"));
        assert_eq!(text("swap_slot_wait_ns").as_deref(), Some("swap slot"));
        assert_eq!(text("page_bit_waits"), None);
        assert_eq!(text("giant_wall_ns"), None);
        // Every one that the engine counts.
        for counter in faultless::stats::Counter::ALL.iter().map(|counter| counter.name()) {
            assert_eq!(text(counter).is_some(), counter.contains("_wait") && counter.ends_with("_ns"));
        }
    }

    #[test]
    fn parts_stand_behind_what_they_are_of() {
        let counters = [
            "tree_lock_wait_fork_ns",
            "preempted_wait_ns",
            "range_wait_ns",
            "mmap_lock_wait_fault_ns",
            "page_bit_wait_ns",
            "mmap_lock_wait_io_ns",
            "tree_lock_wait_ns",
            "mmap_lock_wait_ns",
        ];
        let columns: BTreeSet<_> = counters.iter().filter_map(|counter| words(counter)).collect();
        let titles: Vec<_> = columns.iter().map(|(_, title)| title.as_str()).collect();
        let mmap_lock = ["mmap_lock", "of it faults", "of it while a fault in I/O holds"];
        let others = ["page bits", "of it preempted", "ranges", "tree lock", "of it fork"];
        assert_eq!(titles, [&mmap_lock[..], &others[..]].concat());
    }

    #[test]
    fn only_what_was_waited_for_is_shown() {
        let mut waiter = run("mmap-lock", &[100, 100], 1);
        assert!(table(&[&waiter]).is_none());
        waiter.total.count("mmap_lock_wait_ns", 5_000_000);
        waiter.total.count("grace_wait_ns", 3);
        let text = table(&[&waiter, &run("faultless", &[100], 1)]).unwrap().to_string();
        assert!(text.contains("mmap_lock") && !text.contains("grace"), "{text}");
        assert!(text.contains("2.5"), "5 ms in two seconds: {text}");
    }
}
