//! The fixed colours of the report. Each design and each kind of wait has a class in the style sheet.

use crate::contender::Contender;
use faultless::stats::Counter;

/// Returns the class of a design's colour and dashes.
pub(super) fn of_design(name: &str) -> String {
    format!("d-{name}")
}

/// Returns the names of the contenders that are in `names`, in the order of reports.
pub(super) fn in_order(names: &[&str]) -> Vec<&'static str> {
    let all = Contender::all();
    all.iter().map(Contender::name).filter(|name| names.contains(name)).collect()
}

/// The class of each cause of waiting, by the beginning of its name.
const CAUSES: [(&str, &str); 10] = [
    ("I/O", "w-io"),
    ("mmap_lock", "w-mmap"),
    ("VMA lock", "w-vma"),
    ("range", "w-range"),
    ("table lock", "w-table"),
    ("tree lock", "w-tree"),
    ("page bit", "w-bit"),
    ("fork's copy", "w-fork"),
    ("folio lock", "w-folio"),
    ("memory", "w-memory"),
];

/// The class of each holder, by the end of the name of the cause.
const HOLDERS: [(&str, &str); 4] = [
    ("(fork)", "p-fork"),
    ("(fault)", "p-fault"),
    ("(change)", "p-change"),
    ("(preempted thread)", "p-fault"),
];

/// Returns the classes of a cause of waiting: a colour, which is paler for some holders.
pub(super) fn of_cause(cause: &str) -> String {
    let colour =
        CAUSES.iter().find(|(words, _)| cause.starts_with(words)).map_or("w-other", |(_, class)| class);
    match HOLDERS.iter().find(|(words, _)| cause.ends_with(words)) {
        Some((_, holder)) => format!("{colour} {holder}"),
        None => colour.into(),
    }
}

/// The kind of a recorded thread's wait, in a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Awaited {
    /// A read or a write of the device.
    Io,
    /// A lock or its equivalent: a bit, a range, the copy of a fork.
    Lock,
    /// A grace period, a shootdown, memory.
    Other,
}

impl Awaited {
    pub(super) fn of(counter: Counter) -> Self {
        match counter {
            Counter::IoWait | Counter::WritebackWait => Self::Io,
            Counter::GraceWait | Counter::InvalidateWait | Counter::MemoryWait | Counter::DirtyWait => {
                Self::Other
            }
            _ => Self::Lock,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STYLE: &str = include_str!("style.css");

    #[test]
    fn each_design_and_cause_has_a_colour() {
        for contender in Contender::all() {
            assert!(STYLE.contains(&format!(".{}{{", of_design(contender.name()))), "{}", contender.name());
        }
        for class in CAUSES
            .iter()
            .map(|(_, class)| class)
            .chain([&"w-other"])
            .chain(HOLDERS.iter().map(|(_, class)| class))
        {
            assert!(STYLE.contains(&format!(".{class}{{")), "{class}");
        }
    }
}
