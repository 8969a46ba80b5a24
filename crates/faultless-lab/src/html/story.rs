//! Selects the part of a recorded round to show: the longest wait for a thread that itself waits, and the waits
//! related to it.

use crate::record::blame::{Arrow, Place, arrows, has_holder};
use crate::record::{Activity, LENGTH, MOST_SPANS, Operation, Recording, Span, cause};
use crate::report::number;
use crate::scenarios::Unit;
use faultless::stats::Counter;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// The maximum number of links of a chain.
const LINKS: usize = 4;
/// The length of a window, as a multiple of the length of its subject. The rest shows the time before and after.
const MARGIN: f64 = 1.4;
/// The minimum and the maximum length of a window, in nanoseconds.
const SHORTEST: u64 = 20_000;
const LONGEST: u64 = 30_000_000;
/// The minimum length of a visible chain, as a fraction of the window: one in this number.
const SEEN: u64 = 60;

/// A recording, and the holders of its waits.
pub(super) struct Told<'a> {
    pub recording: &'a Recording,
    /// Each wait for another thread whose holder was recorded.
    pub arrows: Vec<Arrow>,
    /// Each wait for another thread whose holder was not recorded.
    unheld: Vec<Place>,
    /// A wait for a thread, the wait of that thread for another one, and so on. Empty if no thread waited for another
    /// thread.
    pub chain: Vec<Arrow>,
}

impl<'a> Told<'a> {
    pub(super) fn new(recording: &'a Recording) -> Self {
        let mut told = Self { recording, arrows: arrows(recording), unheld: Vec::new(), chain: Vec::new() };
        told.unheld = told.unheld();
        told.chain = told.longest_chain();
        told
    }

    fn unheld(&self) -> Vec<Place> {
        let held: HashSet<(usize, usize)> =
            self.arrows.iter().map(|arrow| (arrow.waiter.lane, arrow.waiter.span)).collect();
        let for_others = |place: &Place| matches!(self.span(*place).activity, Activity::Wait(counter) if has_holder(counter));
        self.places().filter(for_others).filter(|place| !held.contains(&(place.lane, place.span))).collect()
    }

    fn places(&self) -> impl Iterator<Item = Place> {
        let lanes = self.recording.lanes.iter().enumerate();
        lanes.flat_map(|(lane, all)| (0..all.spans.len()).map(move |span| Place { lane, span }))
    }

    /// Returns all waits for another thread.
    fn waits(&self) -> impl Iterator<Item = Place> {
        self.arrows.iter().map(|arrow| arrow.waiter).chain(self.unheld.iter().copied())
    }

    pub(super) fn span(&self, place: Place) -> &Span {
        &self.recording.lanes[place.lane].spans[place.span]
    }

    pub(super) fn lane(&self, place: Place) -> &str {
        &self.recording.lanes[place.lane].name
    }

    /// Returns the waits within an operation.
    fn waits_in(&self, place: Place) -> impl Iterator<Item = Place> {
        let (spans, own) = (&self.recording.lanes[place.lane].spans, self.span(place));
        // Spans are ordered by their ends, so the waits within an operation come before it.
        let before = (0..place.span).rev().take_while(|at| spans[*at].to > own.from);
        let within = before.filter(|at| spans[*at].from >= own.from && is_wait(&spans[*at]));
        within.map(move |span| Place { lane: place.lane, span })
    }

    /// Returns the longest wait within an operation.
    fn longest_wait_in(&self, place: Place) -> Option<Place> {
        self.waits_in(place).max_by_key(|wait| length(self.span(*wait)))
    }

    /// Returns the wait of the holder that delayed the waiter: the one that overlaps most with the waiter's wait. If
    /// a fault held the lock, but not through I/O, its waits for I/O are no candidates.
    fn behind(&self, arrow: Arrow) -> Option<Place> {
        let waiter = self.span(arrow.waiter);
        let shared = |wait: &Span| wait.to.min(waiter.to).saturating_sub(wait.from.max(waiter.from));
        let excludes_io =
            matches!(waiter.activity, Activity::Wait(Counter::MmapLockWaitFault | Counter::VmaLockWaitFault));
        let waits = self.waits_in(arrow.holder).filter(|wait| {
            let wait = self.span(*wait);
            wait.from < waiter.to && !(excludes_io && wait.activity == Activity::Wait(Counter::IoWait))
        });
        waits.max_by_key(|wait| (shared(self.span(*wait)), length(self.span(*wait))))
    }

    /// Returns the operation that contains a wait.
    fn operation_of(&self, wait: Place) -> Option<Place> {
        let (spans, own) = (&self.recording.lanes[wait.lane].spans, self.span(wait));
        let mut after = (wait.span + 1..spans.len()).filter(|at| !is_wait(&spans[*at]));
        let first = after.next().filter(|at| spans[*at].from <= own.from)?;
        Some(Place { lane: wait.lane, span: first })
    }

    /// Returns the chain to show. Waits whose holder waits too take precedence, then chains with a fork, because
    /// designs differ in them. Among equals, the longest first wait, times the number of links, decides.
    fn longest_chain(&self) -> Vec<Arrow> {
        let by_wait: HashMap<(usize, usize), Arrow> =
            self.arrows.iter().map(|arrow| ((arrow.waiter.lane, arrow.waiter.span), *arrow)).collect();
        let next = |arrow: Arrow| {
            let wait = self.behind(arrow)?;
            by_wait.get(&(wait.lane, wait.span)).copied()
        };
        let down = |first: Arrow| std::iter::successors(Some(first), |arrow| next(*arrow)).take(LINKS);
        let weight = |arrow: &Arrow| {
            let links = down(*arrow).count() as u64;
            let holder_waits = self.behind(*arrow).is_some_and(|wait| {
                // A short wait in a long operation does not explain the operation's length.
                length(self.span(wait)) * 4 > length(self.span(arrow.waiter))
            });
            let has_fork = down(*arrow).any(|arrow| self.is_of_fork(arrow));
            (holder_waits, has_fork, length(self.span(arrow.waiter)).saturating_mul(links))
        };
        let Some(longest) = self.arrows.iter().copied().max_by_key(weight) else { return Vec::new() };
        // The thread that waits for the first waiter of the chain belongs to it too.
        let mut chain: Vec<Arrow> = down(longest).collect();
        let waits_for = |holder: Place| {
            let of_holder = self.arrows.iter().filter(|arrow| arrow.holder == holder);
            of_holder.max_by_key(|arrow| length(self.span(arrow.waiter))).copied()
        };
        while chain.len() < LINKS {
            let before = self.operation_of(chain[0].waiter).and_then(waits_for);
            match before.filter(|before| !chain.contains(before)) {
                Some(before) => chain.insert(0, before),
                None => break,
            }
        }
        chain
    }

    fn is_of_fork(&self, arrow: Arrow) -> bool {
        let ends = [self.operation_of(arrow.waiter), Some(arrow.holder)];
        ends.into_iter()
            .flatten()
            .any(|place| self.span(place).activity == Activity::Operation(Operation::Fork))
    }

    /// Returns the time from the first wait of the chain to the end of the last one.
    fn extent(&self) -> Option<Range<u64>> {
        let waits = || self.chain.iter().map(|arrow| self.span(arrow.waiter));
        Some(waits().map(|wait| wait.from).min()?..waits().map(|wait| wait.to).max()?)
    }

    /// Returns the longest fork. Without a fork, returns the longest operation other than a fault, and otherwise the
    /// longest fault.
    fn longest_operation(&self) -> Option<Place> {
        let rank = |span: &Span| match span.activity {
            Activity::Operation(Operation::Fork) => 2,
            Activity::Operation(Operation::Fault) => 0,
            _ => 1,
        };
        let operations = self.places().filter(|place| !is_wait(self.span(*place)));
        operations.max_by_key(|place| (rank(self.span(*place)), length(self.span(*place))))
    }

    /// Returns the length of a window that shows the chain or, without one, the longest operation.
    fn wanted(&self) -> Option<u64> {
        let waits = self.extent().map(|extent| extent.end - extent.start);
        let shown = waits.or_else(|| self.longest_operation().map(|place| length(self.span(place))))?;
        Some((shown as f64 * MARGIN) as u64)
    }

    /// Returns whether the chain is long enough to be visible in a window of the given length.
    pub(super) fn is_seen(&self, window: u64) -> bool {
        self.extent().is_some_and(|extent| (extent.end - extent.start) * SEEN >= window)
    }

    /// Returns a window of the given length. It shows the chain, or an operation if the chain would not be visible.
    pub(super) fn window(&self, window: u64) -> Option<Range<u64>> {
        let (first, last) = self.recording.extent()?;
        let shown = match self.extent() {
            Some(extent) if self.is_seen(window) => extent,
            _ => self.longest_operation().map(|place| self.span(place).from..self.span(place).to)?,
        };
        let middle = shown.start / 2 + shown.end / 2;
        let from = middle.saturating_sub(window / 2).min(last.saturating_sub(window)).max(first);
        Some(from..from + window)
    }

    /// Describes the contents of the window, in sentences.
    pub(super) fn caption(&self, window: u64) -> String {
        let mut sentences = Vec::new();
        if self.is_seen(window) {
            for (at, arrow) in self.chain.iter().enumerate() {
                if at == 0 {
                    let (waiter, wait) = (self.lane(arrow.waiter), self.span(arrow.waiter));
                    sentences.push(format!("{waiter} waited {}.", waited(wait)));
                }
                sentences.push(self.holder(*arrow));
            }
        } else if let Some(place) = self.longest_operation() {
            let span = self.span(place);
            let took =
                format!("The longest {} of the recording took {}", span.activity.name(), time(length(span)));
            sentences.push(match self.longest_wait_in(place) {
                Some(wait) => format!("{took}, with a wait of {}.", waited(self.span(wait))),
                None => format!("{took}, without a wait."),
            });
        }
        sentences.push(self.round());
        sentences.join(" ")
    }

    fn holder(&self, arrow: Arrow) -> String {
        let (name, span) = (self.lane(arrow.holder), self.span(arrow.holder));
        let operation = span.activity.name();
        match self.behind(arrow) {
            Some(wait) => {
                format!("{name} held it up: its {operation} waited {}.", waited(self.span(wait)))
            }
            None => {
                let longer = self.span(arrow.waiter).to.saturating_sub(span.to);
                let took = format!("{name} held it up: its {operation} took {}.", time(length(span)));
                match longer * 2 > length(self.span(arrow.waiter)) {
                    true => format!(
                        "{took} The wait lasted {} longer: the waiter had no processor, or others took the lock before it.",
                        time(longer)
                    ),
                    false => took,
                }
            }
        }
    }

    /// Names the recorded time, after "in".
    fn recorded(&self) -> String {
        format!("the {} that were recorded", time(self.recording.length()))
    }

    /// Describes the waits of the whole recording, and its end if that was early.
    fn round(&self) -> String {
        let lengths = || self.waits().map(|wait| length(self.span(wait)));
        let recorded = self.recorded();
        let mut sentences = vec![match lengths().max() {
            None => format!("In {recorded}, no thread waited for an operation of another one."),
            Some(longest) => {
                let waits = match lengths().count() {
                    1 => "there is one wait for another thread".into(),
                    waits => format!("there are {} waits for other threads", number::count(waits as u64)),
                };
                format!(
                    "In {recorded}, {waits}: {} together, {} at the longest.",
                    time(lengths().sum()),
                    time(longest)
                )
            }
        }];
        match self.unheld.len() {
            0 => {}
            1 => sentences.push("The holder of one wait was not recorded.".into()),
            waits => sentences
                .push(format!("The holders of {} waits were not recorded.", number::count(waits as u64))),
        }
        if self.recording.ended_early {
            sentences.push(format!(
                "Recorded: {} of {}. A thread had {} operations and waits by then.",
                time(self.recording.length()),
                time(LENGTH.as_nanos() as u64),
                number::count(MOST_SPANS as u64)
            ));
        }
        sentences.join(" ")
    }

    /// Describes the longest wait for another thread, in a few words.
    pub(super) fn in_short(&self) -> String {
        let longest = self.waits().max_by_key(|wait| length(self.span(*wait)));
        let mut text = longest.map_or("no thread waited for another one".into(), |wait| {
            format!("longest wait for another thread: {}", waited(self.span(wait)))
        });
        if self.recording.ended_early {
            text += &format!(", in {}", self.recorded());
        }
        text
    }
}

/// Returns the length of the windows of one scenario. It is the same for all designs, so that they can be compared.
pub(super) fn window<'a>(all: impl Iterator<Item = &'a Told<'a>> + Clone) -> Option<u64> {
    let with_waits = all.clone().filter(|told| !told.chain.is_empty()).filter_map(Told::wanted).max();
    let without = || all.filter_map(Told::wanted).max();
    with_waits.or_else(without).map(|length| length.clamp(SHORTEST, LONGEST))
}

pub(super) fn length(span: &Span) -> u64 {
    span.to - span.from
}

pub(super) fn is_wait(span: &Span) -> bool {
    matches!(span.activity, Activity::Wait(_))
}

pub(super) fn time(nanoseconds: u64) -> String {
    number::value(nanoseconds as f64, Unit::Nanos)
}

/// Describes a wait, such as "1.9 ms for mmap_lock, held by fork".
pub(super) fn waited(wait: &Span) -> String {
    match wait.activity {
        Activity::Wait(counter) => format!("{} for {}", time(length(wait)), cause(counter)),
        Activity::Operation(_) => time(length(wait)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::record::Lane;

    /// ```text
    ///  reader     [ fault: I/O               ]
    ///  fork          [ fork: mmap_lock (I/O)  |        ]
    ///  bystander         [ mmap: mmap_lock (fork)       | ]
    /// ```
    pub(in crate::html) fn chain() -> Recording {
        let span = |activity, from: u64, to: u64| Span { activity, from: from * 10_000, to: to * 10_000 };
        let lane = |name: &str, wait, operation, [a, b, c, d]: [u64; 4]| Lane {
            name: name.into(),
            spans: vec![span(Activity::Wait(wait), b, c), span(Activity::Operation(operation), a, d)],
        };
        let lanes = vec![
            lane("bystander", Counter::MmapLockWaitFork, Operation::Map, [20, 21, 201, 210]),
            lane("fork", Counter::MmapLockWaitIo, Operation::Fork, [10, 11, 101, 200]),
            lane("reader", Counter::IoWait, Operation::Fault, [0, 1, 99, 100]),
        ];
        Recording { lanes, ..Recording::default() }
    }

    #[test]
    fn the_story_leads_from_the_bystander_to_the_read() {
        let recording = chain();
        let told = Told::new(&recording);
        let lanes: Vec<_> =
            told.chain.iter().map(|arrow| (told.lane(arrow.waiter), told.lane(arrow.holder))).collect();
        assert_eq!(lanes, [("bystander", "fork"), ("fork", "reader")]);
        let length = window([&told].into_iter()).unwrap();
        assert_eq!(length, (1_900_000.0 * MARGIN) as u64);
        let shown = told.window(length).unwrap();
        assert!(shown.start <= 110_000 && shown.end >= 2_010_000, "{shown:?}");
        assert_eq!(
            told.caption(length),
            "bystander waited 1.80 ms for mmap_lock, held by fork. fork held it up: its fork waited 900 µs for mmap_lock, held \
             through I/O. reader held it up: its page fault waited 980 µs for I/O. In the \
             2.10 ms that were recorded, there are 2 waits for other threads: 2.70 ms together, 1.80 ms at the longest."
        );
    }

    #[test]
    fn a_wait_that_outlasts_its_holder_is_said_to() {
        let mut recording = chain();
        // The bystander waits for a fork that ends early.
        recording.lanes[1].spans = vec![Span { to: 300_000, ..recording.lanes[1].spans[1] }];
        let caption = Told::new(&recording).caption(2_000_000);
        assert!(caption.contains("its fork took 200 µs. The wait lasted 1.71 ms longer"), "{caption}");
    }

    #[test]
    fn without_waits_a_fork_is_shown() {
        let mut recording = chain();
        recording.lanes.iter_mut().take(2).for_each(|lane| _ = lane.spans.remove(0));
        let told = Told::new(&recording);
        let shown = told.window(100_000).unwrap();
        // The window shows the middle of the fork.
        assert_eq!(shown, 1_000_000..1_100_000);
        let caption = told.caption(100_000);
        assert!(
            caption.starts_with("The longest fork of the recording took 1.90 ms, without a wait. In the 2.10 ms that were recorded, no"),
            "{caption}"
        );
        assert!(caption.ends_with("no thread waited for an operation of another one."), "{caption}");
    }

    #[test]
    fn a_wait_without_a_recorded_holder_is_told() {
        let mut recording = chain();
        // The bystander waits for a fork that was not recorded. No other thread has a wait.
        recording.lanes.truncate(1);
        let told = Told::new(&recording);
        let caption = told.caption(100_000);
        assert!(
            caption.ends_with(
                "In the 1.90 ms that were recorded, there is one wait for another thread: 1.80 ms together, 1.80 ms at the longest. \
                 The holder of one wait was not recorded."
            ),
            "{caption}"
        );
        assert_eq!(told.in_short(), "longest wait for another thread: 1.80 ms for mmap_lock, held by fork");
    }

    #[test]
    fn a_recording_that_ended_early_speaks_for_its_own_time_only() {
        let mut recording = Recording { ended_early: true, ..chain() };
        let with_waits = Told::new(&recording).caption(2_000_000);
        recording.lanes.iter_mut().take(2).for_each(|lane| _ = lane.spans.remove(0));
        let told = Told::new(&recording);
        let without = told.caption(100_000);
        let end = "Recorded: 2.10 ms of 250 ms. A thread had 10,000 operations and waits by then.";
        for caption in [&with_waits, &without] {
            assert!(
                caption.contains("In the 2.10 ms that were recorded, ") && caption.ends_with(end),
                "{caption}"
            );
            assert!(!caption.contains("round"), "{caption}");
        }
        assert_eq!(told.in_short(), "no thread waited for another one, in the 2.10 ms that were recorded");
    }
}
