//! The causes of waiting: all counters whose name contains `_wait` and ends in `_ns`.

use crate::compare::Run;
use crate::measure::Measured;

/// The names of causes, by the stem of their counter.
const WORDS: [(&str, &str); 13] = [
    ("io", "I/O"),
    ("mmap_lock", "mmap_lock"),
    ("vma_lock", "VMA lock"),
    ("range_lock", "range lock"),
    ("table_lock", "table lock"),
    ("page_bit", "page bit"),
    ("range", "range"),
    ("tree_lock", "tree lock"),
    ("freeze", "fork's copy"),
    ("invalidate", "shootdown"),
    ("grace", "grace period"),
    ("folio_lock", "folio lock"),
    ("memory", "memory"),
];

/// The minimum wait of a cause to be shown, in milliseconds per second, over all threads.
const LEAST: f64 = 0.05;

/// The causes for which a design's threads waited.
#[derive(Clone, Debug)]
pub struct Waits {
    /// The name of the design.
    pub design: &'static str,
    /// The causes. The largest comes first.
    pub causes: Vec<Wait>,
}

/// A cause, and the time spent waiting for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Wait {
    /// The lock or event, and its holder if that is counted: "mmap_lock (fork)".
    pub cause: String,
    /// Milliseconds per second, over all threads. Two threads that always wait have 2000.
    pub milliseconds: f64,
}

/// Returns the stem and the part of a counter of waits; `None` for any other counter. `mmap_lock_wait_fork_ns` counts
/// the part of the waits for mmap_lock during which a fork held it.
fn parts(counter: &str) -> Option<(&str, &str)> {
    let (stem, part) = counter.strip_suffix("_ns")?.split_once("_wait")?;
    Some(match (stem, part.trim_matches('_')) {
        // A thread that waits for a page bit may wait for a preempted announcer.
        ("preempted", "") => ("page_bit", "preempted"),
        other => other,
    })
}

fn words(stem: &str, part: &str) -> String {
    let known = WORDS.iter().find(|(name, _)| *name == stem);
    let stem = known.map_or_else(|| stem.replace('_', " "), |(_, words)| words.to_string());
    match part {
        "" => stem,
        "io" => format!("{stem} (fault in I/O)"),
        "preempted" => format!("{stem} (preempted thread)"),
        part => format!("{stem} ({})", part.replace('_', " ")),
    }
}

/// Returns the causes of a run, the largest first. A cause that is counted by holder appears once for each holder.
fn causes(measured: &Measured) -> Vec<Wait> {
    let counted = || {
        let counters = measured.counters.iter();
        counters.filter_map(|(name, ns)| Some((parts(name)?, *ns as f64 / 1e6 / measured.seconds)))
    };
    let of_parts = |whole: &str| -> f64 {
        counted().filter(|((stem, part), _)| *stem == whole && !part.is_empty()).map(|(_, ms)| ms).sum()
    };
    let mut causes: Vec<Wait> = counted()
        .map(|((stem, part), ms)| {
            // The total without its parts remains.
            let milliseconds = if part.is_empty() { ms - of_parts(stem) } else { ms };
            Wait { cause: words(stem, part), milliseconds }
        })
        .filter(|wait| wait.milliseconds >= LEAST)
        .collect();
    causes.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
    causes
}

impl Waits {
    /// Returns the waits of each run that measured something. Empty if no thread waited.
    pub(super) fn of(runs: &[&Run]) -> Vec<Self> {
        let ran = runs.iter().filter(|run| run.total.seconds > 0.0);
        let waits: Vec<Self> =
            ran.map(|run| Self { design: run.contender.name(), causes: causes(&run.total) }).collect();
        if waits.iter().all(|waits| waits.causes.is_empty()) { Vec::new() } else { waits }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn counters_of_waits_have_words() {
        let text = |counter| parts(counter).map(|(stem, part)| words(stem, part));
        assert_eq!(text("io_wait_ns").as_deref(), Some("I/O"));
        assert_eq!(text("mmap_lock_wait_fork_ns").as_deref(), Some("mmap_lock (fork)"));
        assert_eq!(text("preempted_wait_ns").as_deref(), Some("page bit (preempted thread)"));
        assert_eq!(text("swap_slot_wait_ns").as_deref(), Some("swap slot"));
        assert_eq!(text("page_bit_waits"), None);
        assert_eq!(text("giant_wall_ns"), None);
        // Each wait counter of the engine must be recognized.
        for counter in faultless::stats::Counter::ALL.iter().map(|counter| counter.name()) {
            assert_eq!(text(counter).is_some(), counter.contains("_wait") && counter.ends_with("_ns"));
        }
    }

    #[test]
    fn the_largest_cause_comes_first_and_totals_exclude_their_parts() {
        let mut waiter = run("mmap-lock", &[100, 100], 1);
        assert!(Waits::of(&[&waiter]).is_empty());
        for (name, ms) in [
            ("mmap_lock_wait_ns", 10),
            ("mmap_lock_wait_fork_ns", 6),
            ("mmap_lock_wait_change_ns", 4),
            ("page_bit_wait_ns", 7),
            ("preempted_wait_ns", 2),
        ] {
            waiter.total.count(name, ms * 1_000_000);
        }
        waiter.total.count("grace_wait_ns", 3);
        let waits = Waits::of(&[&waiter, &run("faultless", &[100], 1)]);
        let causes: Vec<_> = waits[0].causes.iter().map(|wait| (&*wait.cause, wait.milliseconds)).collect();
        // The run measured two seconds.
        assert_eq!(
            causes,
            [
                ("mmap_lock (fork)", 3.0),
                ("page bit", 2.5),
                ("mmap_lock (change)", 2.0),
                ("page bit (preempted thread)", 1.0),
            ]
        );
        assert!(waits[1].causes.is_empty());
    }
}
