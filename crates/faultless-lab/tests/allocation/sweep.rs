//! Sweep: one call, with a failure of each of its allocations in turn.

use crate::failing::{Often, live, with_failure};
use crate::world::{EAGAIN, ENOMEM, Line, Seen, World, bytes, listing};
use faultless::design::LockingDesign;
use faultless::host::{FrameSource, FrameUse, GroupId, Host};
use std::fmt::{self, Display};
use std::ops::Range;

/// Call, with its documented behaviour on failure.
pub struct Case<D: LockingDesign> {
    pub name: &'static str,
    /// Ok: a value that is the same each time. Err: Linux's error number.
    pub call: fn(&World<D>) -> Result<u64, i32>,
    /// The error numbers that stand for missing memory.
    pub refusals: &'static [i32],
    /// Pages that may be unmapped after a failure.
    pub may_go: Range<u64>,
    /// Pages that may stay in the listing after a failure, although they are holes.
    pub may_stay: Range<u64>,
    /// After a failure, each page is as before or as after success.
    pub in_part: bool,
    /// Without memory to merge them, neighbours stay separate, even if the call succeeds.
    pub may_split: bool,
    /// After a failure, the same call does the rest.
    pub can_repeat: bool,
    /// The call must not fail because of missing memory.
    pub cannot_fail: bool,
    /// Allocations that do not fail.
    pub passed_over: Range<u64>,
}

impl<D: LockingDesign> Case<D> {
    pub fn new(name: &'static str, call: fn(&World<D>) -> Result<u64, i32>) -> Self {
        Self {
            name,
            call,
            refusals: &[ENOMEM, EAGAIN],
            may_go: 0..0,
            may_stay: 0..0,
            in_part: false,
            may_split: false,
            can_repeat: true,
            cannot_fail: false,
            passed_over: 0..0,
        }
    }
}

/// Kind of allocation that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Allocator,
    Frames,
}

struct Attempt<'a> {
    design: &'a str,
    name: &'a str,
    source: Source,
    often: Often,
    n: u64,
}

impl Display for Attempt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { design, name, source, often, n } = self;
        write!(f, "{design}: {name}, {source:?} failing {often:?} at {n}")
    }
}

/// Result of the call on a fresh space without failures.
struct Expected {
    result: Result<u64, i32>,
    before: (Vec<Line>, Vec<(u64, Seen)>),
    after: (Vec<Line>, Vec<(u64, Seen)>),
}

/// Result of an attempt.
enum Outcome {
    /// No allocation failed.
    NoFailure,
    /// An allocation failed, and the call succeeded nevertheless.
    Overcome,
    /// An allocation failed, and the call returned an error.
    Refused,
}

/// Lets each allocation of each call fail.
pub fn sweep<D: LockingDesign>(cases: &[Case<D>]) {
    // This makes the allocations that a thread makes only once: its slot and its output buffer.
    drop(World::<D>::new());
    for case in cases {
        let expected = expected(case);
        for (source, often) in [
            (Source::Allocator, Often::Once),
            (Source::Allocator, Often::Always),
            (Source::Frames, Often::Once),
            (Source::Frames, Often::Always),
        ] {
            for n in (1..).filter(|n| !case.passed_over.contains(n)) {
                let attempt = Attempt { design: D::NAME, name: case.name, source, often, n };
                match try_once(case, &expected, &attempt, false) {
                    Outcome::Refused => drop(try_once(case, &expected, &attempt, true)),
                    Outcome::Overcome => {}
                    Outcome::NoFailure => break,
                }
            }
        }
    }
}

fn expected<D: LockingDesign>(case: &Case<D>) -> Expected {
    let world = World::<D>::new();
    let before = (listing(&world.space), bytes(&world.space));
    let world = World::<D>::new();
    let result = (case.call)(&world);
    let after = (listing(&world.space), bytes(&world.space));
    Expected { result, before, after }
}

/// Runs one attempt. With `repeat`, the same call follows and its result is checked. Without, the state after the first
/// call is checked.
fn try_once<D: LockingDesign>(
    case: &Case<D>,
    expected: &Expected,
    attempt: &Attempt<'_>,
    repeat: bool,
) -> Outcome {
    let live_before = live();
    let world = World::<D>::new();
    let (result, has_failed) = match attempt.source {
        Source::Allocator => with_failure(attempt.n, attempt.often, || (case.call)(&world)),
        Source::Frames => with_frames_failing(&world, attempt, case.call),
    };
    let lines = listing(&world.space);
    world.space.audit().unwrap_or_else(|error| panic!("{attempt}: {error}"));
    assert_eq!(world.space.taken_ranges(), 0, "{attempt}: a range is taken");
    let outcome = match result {
        Err(errno) if result != expected.result => {
            assert!(case.refusals.contains(&errno), "{attempt}: error number {errno}");
            assert!(!case.cannot_fail, "{attempt}: the call failed");
            if case.in_part || case.may_split || !case.may_go.is_empty() {
                check_pages(case, expected, &lines, attempt);
            } else {
                assert_eq!(lines, expected.before.0, "{attempt}: the listing after {errno}");
            }
            if !repeat {
                check_bytes(case, expected, &bytes(&world.space), attempt);
            } else if case.can_repeat {
                assert_eq!((case.call)(&world), expected.result, "{attempt}: repeated");
                check_listing(case, expected, &listing(&world.space), attempt);
                assert_eq!(bytes(&world.space), expected.after.1, "{attempt}: the bytes, repeated");
            }
            Outcome::Refused
        }
        _ => {
            assert_eq!(result, expected.result, "{attempt}");
            check_listing(case, expected, &lines, attempt);
            assert_eq!(bytes(&world.space), expected.after.1, "{attempt}: the bytes");
            if has_failed { Outcome::Overcome } else { Outcome::NoFailure }
        }
    };
    drop(lines);
    world.end(live_before, attempt);
    outcome
}

/// Checks the listing after a call that succeeded.
fn check_listing<D: LockingDesign>(
    case: &Case<D>,
    expected: &Expected,
    lines: &[Line],
    attempt: &Attempt<'_>,
) {
    if !case.may_split {
        return assert_eq!(lines, expected.after.0, "{attempt}: the listing");
    }
    for (page, _) in &expected.after.1 {
        assert_eq!(at_page(lines, *page), at_page(&expected.after.0, *page), "{attempt}: page {page}");
    }
}

/// Runs the call with failing frames. The frame source does not report a failure, so later allocations show whether it
/// happened.
fn with_frames_failing<D: LockingDesign>(
    world: &World<D>,
    attempt: &Attempt<'_>,
    call: fn(&World<D>) -> Result<u64, i32>,
) -> (Result<u64, i32>, bool) {
    let frames = world.engine.host().frames();
    match attempt.often {
        Often::Once => frames.fail_once(attempt.n),
        Often::Always => frames.fail_from(Some(attempt.n)),
    }
    let result = call(world);
    let next: [_; 40] = std::array::from_fn(|_| frames.allocate(GroupId::ROOT, FrameUse::Anonymous));
    frames.fail_from(None);
    // SAFETY: the frames were allocated just now, and only this test has them.
    next.iter().flatten().for_each(|frame| unsafe { frames.free(*frame) });
    let has_failed = match attempt.often {
        Often::Once => next.iter().all(Option::is_some),
        Often::Always => next[0].is_none(),
    };
    (result, has_failed)
}

/// Returns the listing's data for one page.
fn at_page(lines: &[Line], page: u64) -> Option<impl PartialEq + std::fmt::Debug> {
    let line = lines.iter().find(|line| line.start.get() <= page && page < line.end.get())?;
    let file = line.file.map(|(_, first)| first + (page - line.start.get()));
    Some((line.protection, line.sharing, line.flags, file))
}

fn check_pages<D: LockingDesign>(case: &Case<D>, expected: &Expected, lines: &[Line], attempt: &Attempt<'_>) {
    for (page, _) in &expected.before.1 {
        let now = at_page(lines, *page);
        let is_right = now == at_page(&expected.before.0, *page)
            || (case.in_part || case.may_stay.contains(page)) && now == at_page(&expected.after.0, *page)
            || case.may_go.contains(page) && now.is_none();
        assert!(is_right, "{attempt}: page {page} is {now:?}");
    }
}

fn check_bytes<D: LockingDesign>(
    case: &Case<D>,
    expected: &Expected,
    now: &[(u64, Seen)],
    attempt: &Attempt<'_>,
) {
    for ((now, before), after) in now.iter().zip(&expected.before.1).zip(&expected.after.1) {
        let is_right = now == before
            || case.in_part && now == after
            || case.may_go.contains(&now.0) && now.1 == Seen::Hole;
        assert!(is_right, "{attempt}: page {} is {:?}, and was {:?}", now.0, now.1, before.1);
    }
}
