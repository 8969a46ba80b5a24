//! Finds the operation that held up a wait.
//!
//! The counter of a wait tells the kind of the operation that held the lock. Candidates are the operations of that
//! kind that other threads ran during the wait. The one whose end is nearest to the end of the wait is taken as the
//! holder, because the lock passed from it to the waiter. A wait for a device, for memory, or for read sections has
//! no holder.

use super::{Activity, Lane, Operation, Recording, Span};
use faultless::stats::Counter;

/// The place of a span: its lane, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of the lane.
    pub lane: usize,
    /// The number of the span in the lane.
    pub span: usize,
}

/// A wait and the operation that held it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrow {
    /// The wait.
    pub waiter: Place,
    /// The operation.
    pub holder: Place,
}

/// The kinds of operation that a holder may have, and whether it must have waited for I/O.
struct Kind {
    operations: &'static [Operation],
    reads: bool,
}

const CHANGES: &[Operation] = &[Operation::Map, Operation::Unmap, Operation::Protect, Operation::Discard];

fn kind_of(counter: Counter) -> Option<Kind> {
    let (operations, reads) = match counter {
        Counter::MmapLockWaitIo | Counter::VmaLockWaitIo | Counter::FolioLockWait => {
            (&[Operation::Fault][..], true)
        }
        Counter::MmapLockWaitFault | Counter::VmaLockWaitFault => (&[Operation::Fault][..], false),
        Counter::MmapLockWaitFork | Counter::FreezeWait => (&[Operation::Fork][..], false),
        Counter::MmapLockWaitChange => (CHANGES, false),
        Counter::MmapLockWait
        | Counter::VmaLockWait
        | Counter::RangeLockWait
        | Counter::TableLockWait
        | Counter::PageBitWait
        | Counter::RangeWait
        | Counter::TreeLockWait => (&Operation::ALL[..], false),
        _ => return None,
    };
    Some(Kind { operations, reads })
}

/// Returns whether a wait that `counter` counts is a wait for an operation of another thread.
pub fn has_holder(counter: Counter) -> bool {
    kind_of(counter).is_some()
}

/// Returns an arrow for each wait whose holder was recorded.
pub fn arrows(recording: &Recording) -> Vec<Arrow> {
    let reads: Vec<Vec<bool>> = recording.lanes.iter().map(waits_for_io).collect();
    let mut arrows = Vec::new();
    for (at, lane) in recording.lanes.iter().enumerate() {
        for (number, wait) in lane.spans.iter().enumerate() {
            let Activity::Wait(counter) = wait.activity else { continue };
            let Some(kind) = kind_of(counter) else { continue };
            let others = recording.lanes.iter().zip(&reads).enumerate().filter(|(other, _)| *other != at);
            let candidates = others.filter_map(|(lane, (other, reads))| {
                let (span, distance) = nearest(other, reads, wait, &kind)?;
                Some((distance, Place { lane, span }))
            });
            if let Some((_, holder)) = candidates.min_by_key(|(distance, _)| *distance) {
                arrows.push(Arrow { waiter: Place { lane: at, span: number }, holder });
            }
        }
    }
    arrows
}

/// Returns, for each span, whether it is an operation with a wait for I/O in it.
fn waits_for_io(lane: &Lane) -> Vec<bool> {
    let mut io = None;
    let mut says = |span: &Span| match span.activity {
        Activity::Wait(Counter::IoWait) => {
            io = Some(span.from);
            false
        }
        Activity::Wait(_) => false,
        Activity::Operation(_) => io.is_some_and(|from| from >= span.from),
    };
    lane.spans.iter().map(&mut says).collect()
}

/// Returns the operation of `lane` that has kind `kind`, was in progress during `wait`, and ended nearest to the end
/// of `wait`. The second value is the distance of the two ends.
fn nearest(lane: &Lane, reads: &[bool], wait: &Span, kind: &Kind) -> Option<(usize, u64)> {
    // Spans are ordered by their ends. Those before `first` ended before the wait began.
    let first = lane.spans.partition_point(|span| span.to <= wait.from);
    let fits = |number: usize| {
        let span = &lane.spans[number];
        let is_kind =
            matches!(span.activity, Activity::Operation(operation) if kind.operations.contains(&operation));
        is_kind && span.from < wait.to && (!kind.reads || reads[number])
    };
    let (mut best, mut number) = (None, first);
    while number < lane.spans.len() {
        let distance = lane.spans[number].to.abs_diff(wait.to);
        let is_past = lane.spans[number].to >= wait.to;
        if is_past && best.is_some_and(|(_, least)| distance >= least) {
            break;
        }
        if fits(number) && best.is_none_or(|(_, least)| distance < least) {
            best = Some((number, distance));
            if is_past {
                break;
            }
        }
        number += 1;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn does(operation: Operation, from: u64, to: u64) -> Span {
        Span { activity: Activity::Operation(operation), from, to }
    }

    fn waits(counter: Counter, from: u64, to: u64) -> Span {
        Span { activity: Activity::Wait(counter), from, to }
    }

    fn recording(lanes: &[&[Span]]) -> Recording {
        let lane = |spans: &&[Span]| Lane { name: "thread".into(), spans: spans.to_vec() };
        Recording { lanes: lanes.iter().map(lane).collect(), ..Recording::default() }
    }

    /// ```text
    ///  reader     [ fault: I/O               ]
    ///  forker        [ fork: mmap_lock (I/O)  |        ]
    ///  bystander         [ mmap: mmap_lock (fork)       | ]
    /// ```
    #[test]
    fn a_chain_of_waits_leads_to_the_read() {
        let reader = [waits(Counter::IoWait, 1, 99), does(Operation::Fault, 0, 100)];
        let forker = [waits(Counter::MmapLockWaitIo, 11, 101), does(Operation::Fork, 10, 200)];
        let bystander = [waits(Counter::MmapLockWaitFork, 21, 201), does(Operation::Map, 20, 210)];
        let place = |lane, span| Place { lane, span };
        assert_eq!(
            arrows(&recording(&[&reader, &forker, &bystander])),
            [
                Arrow { waiter: place(1, 0), holder: place(0, 1) },
                Arrow { waiter: place(2, 0), holder: place(1, 1) }
            ]
        );
    }

    #[test]
    fn only_an_operation_of_the_kind_that_was_under_way_holds_up() {
        let wait = [waits(Counter::MmapLockWaitFork, 100, 200)];
        for other in
            [does(Operation::Map, 90, 199), does(Operation::Fork, 0, 99), does(Operation::Fork, 201, 300)]
        {
            assert_eq!(arrows(&recording(&[&wait, &[other]])), [], "{other:?}");
        }
        // A thread does not hold itself up.
        let own = [waits(Counter::MmapLockWaitFork, 100, 200), does(Operation::Fork, 90, 210)];
        assert_eq!(arrows(&recording(&[&own])), []);
        // A fault without I/O does not hold a lock through I/O.
        let wait = [waits(Counter::MmapLockWaitIo, 100, 200)];
        assert_eq!(arrows(&recording(&[&wait, &[does(Operation::Fault, 90, 199)]])), []);
    }

    #[test]
    fn of_several_the_one_that_ends_with_the_wait_holds_up() {
        let wait = [waits(Counter::MmapLockWaitFault, 100, 200)];
        let others = [
            does(Operation::Fault, 90, 120),
            does(Operation::Fault, 130, 198),
            does(Operation::Fault, 140, 260),
        ];
        let holder = |lanes: &[&[Span]]| arrows(&recording(lanes)).first().map(|arrow| arrow.holder);
        assert_eq!(holder(&[&wait, &others]), Some(Place { lane: 1, span: 1 }));
        assert_eq!(holder(&[&wait, &others[..1], &others[2..]]), Some(Place { lane: 2, span: 0 }));
    }
}
