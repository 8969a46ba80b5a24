//! A part of one recorded round, with a lane for each thread. It shows operations, waits, and the holders that they
//! wait for.

use super::look::Awaited;
use super::story::{self, Told, is_wait, length, time, waited};
use super::svg::{Path, TENTHS};
use crate::compare::Run;
use crate::record::blame::Arrow;
use crate::record::{Activity, Lane, Operation, Span, cause};
use maud::{Markup, html};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The sizes in pixels: the names, the lanes, the space right of them, a lane, the axis.
const NAMES: i32 = 110;
const WIDTH: i32 = 1060;
const RIGHT: i32 = 20;
const LANE: i32 = 30;
const AXIS: i32 = 24;
/// The maximum numbers of lanes and arrows that are drawn.
const MOST_LANES: usize = 10;
const MOST_ARROWS: usize = 12;
/// The maximum size of a figure's boxes, in bytes. Neighbouring boxes are merged until the size is reached.
const MOST_BYTES: usize = 9_000;
/// The width of a letter in a label, in pixels.
const LETTER: f64 = 6.2;

/// Draws the timelines of a scenario. All have the same length. Those of the designs in `unfolded` are unfolded.
pub(super) fn all(runs: &[&Run], unfolded: &[&str]) -> Markup {
    let told: Vec<(&str, Told<'_>)> = runs
        .iter()
        .filter_map(|run| Some((run.contender.name(), Told::new(run.recording.as_ref()?))))
        .collect();
    let Some(window) = story::window(told.iter().map(|(_, told)| told)) else {
        return html! { p.dim { "No operation was recorded." } };
    };
    html! {
        p { "Each figure shows " (time(window)) " of one more round, which was recorded and counts for no figure of the tables. " }
        (key())
        @for (design, told) in &told {
            @if let Some(from) = told.window(window) { (figure(runs[0].scenario.name, design, told, &from, unfolded)) }
        }
    }
}

fn figure(scenario: &str, design: &str, told: &Told<'_>, window: &Range<u64>, unfolded: &[&str]) -> Markup {
    let caption = told.caption(window.end - window.start);
    let title = format!("{scenario} under {design}: timeline");
    let shown = lanes(told, window);
    let place = Placed { told, window, shown: &shown };
    let height = LANE * shown.len() as i32 + AXIS;
    let hidden = told.recording.lanes.len() - shown.len();
    html! {
        details.timeline open[unfolded.contains(&design)] {
            summary { b class=[(design == crate::designs::OURS).then_some("ours")] { (design) } span.dim { " " (told.in_short()) } }
            figure.chart.wide {
                div.scroll {
                    svg.plot role="img" aria-label=(title) width=(NAMES + WIDTH + RIGHT) height=(height)
                        viewBox={ "0 0 " ((NAMES + WIDTH + RIGHT) * TENTHS) " " (height * TENTHS) } {
                        title { (title) }
                        desc { (caption) }
                        (place.axis())
                        (place.names())
                        (place.boxes())
                        (place.labels())
                        (place.arrows())
                    }
                }
                figcaption { (caption) @if hidden != 0 { " " (hidden) " more threads are not drawn." }
                    @if told.recording.left_out != 0 { " " (told.recording.left_out) " threads were not recorded." } }
            }
        }
    }
}

/// Returns the lanes to draw, sorted by name: those of the chain, then those with the most waits for each other.
fn lanes(told: &Told<'_>, window: &Range<u64>) -> Vec<usize> {
    let of_chain: BTreeSet<usize> =
        told.chain.iter().flat_map(|arrow| [arrow.waiter.lane, arrow.holder.lane]).collect();
    let mut arrows: BTreeMap<usize, usize> = BTreeMap::new();
    for arrow in told.arrows.iter().filter(|arrow| is_in(told.span(arrow.waiter), window)) {
        *arrows.entry(arrow.waiter.lane).or_default() += 1;
        *arrows.entry(arrow.holder.lane).or_default() += 1;
    }
    let all = &told.recording.lanes;
    let is_idle = |lane: usize| !all[lane].spans.iter().any(|span| is_in(span, window));
    let mut lanes: Vec<usize> = (0..all.len()).collect();
    lanes.sort_by_key(|lane| {
        (!of_chain.contains(lane), is_idle(*lane), usize::MAX - arrows.get(lane).copied().unwrap_or(0))
    });
    lanes.truncate(MOST_LANES);
    // Threads join a recording in any order. This sort gives the same order under every design.
    lanes.sort_by_key(|lane| {
        (
            all[*lane].name.trim_end_matches(|c: char| c.is_ascii_digit()),
            all[*lane].name.len(),
            &all[*lane].name,
        )
    });
    lanes
}

fn is_in(span: &Span, window: &Range<u64>) -> bool {
    span.from < window.end && span.to > window.start
}

/// Returns the class of a span's box.
fn class(span: &Span) -> &'static str {
    match span.activity {
        Activity::Operation(Operation::Fault) => "t-fault",
        Activity::Operation(Operation::Fork) => "t-forks",
        Activity::Operation(_) => "t-op",
        Activity::Wait(counter) => match Awaited::of(counter) {
            Awaited::Io => "t-io",
            Awaited::Lock => "t-lock",
            Awaited::Other => "t-other",
        },
    }
}

/// Draws the meaning of the boxes.
fn key() -> Markup {
    const KEY: [(&str, &str); 6] = [
        ("t-fault", "page fault"),
        ("t-forks", "fork"),
        ("t-op", "other operation"),
        ("t-io", "waits for I/O"),
        ("t-lock", "waits for a lock, a bit or a range"),
        ("t-other", "waits for something else"),
    ];
    html! {
        p.key {
            @for (class, words) in KEY { span { span class={ "block " (class) } {} (words) } }
            span { span.arrow { "↑" } "from a wait to the operation that held it up" }
            span { span.idle {} "runs outside of operations, or sleeps" }
            span { "no line: not recorded" }
        }
        p.dim {
            "A thread holds up another one if it has the lock, the bit or the range that the other one waits for. A wait for fork's copy is \
             a wait until a fork has copied this part of the space."
        }
    }
}

/// A window of a recording, drawn as a figure.
struct Placed<'a> {
    told: &'a Told<'a>,
    window: &'a Range<u64>,
    shown: &'a [usize],
}

impl Placed<'_> {
    /// Returns the position of a moment, in tenths of a pixel. Moments outside the window are placed at its ends.
    fn x(&self, moment: u64) -> i32 {
        let moment = moment.clamp(self.window.start, self.window.end) - self.window.start;
        let part = moment as f64 / (self.window.end - self.window.start) as f64;
        NAMES * TENTHS + (part * f64::from(WIDTH * TENTHS)).round() as i32
    }

    fn lane(&self, at: usize) -> &Lane {
        &self.told.recording.lanes[self.shown[at]]
    }

    fn y(&self, at: usize) -> i32 {
        at as i32 * LANE * TENTHS
    }

    fn names(&self) -> Markup {
        html! {
            @for at in 0..self.shown.len() {
                text x=((NAMES - 8) * TENTHS) y=(self.y(at) + 190) text-anchor="end" { (self.lane(at).name) }
            }
        }
    }

    fn axis(&self) -> Markup {
        let length = self.window.end - self.window.start;
        let step = step(length);
        let bottom = self.y(self.shown.len());
        let mut grid = Path::default();
        let ticks: Vec<u64> = (0..).map(|n| n * step).take_while(|moment| *moment <= length).collect();
        for tick in &ticks {
            let x = self.x(self.window.start + tick);
            grid.add_line((x, 0), (x, bottom + 40));
        }
        // Nothing is known about the time after the recording.
        let end = self.told.recording.extent().map_or(NAMES * TENTHS, |(_, last)| self.x(last));
        let mut lanes = Path::default();
        for at in 0..self.shown.len() {
            let y = self.y(at) + LANE * TENTHS / 2;
            lanes.add_line((NAMES * TENTHS, y), (end, y));
        }
        html! {
            path.grid d=(grid) {}
            path.lane d=(lanes) {}
            @for tick in ticks {
                text.dim x=(self.x(self.window.start + tick)) y=(bottom + 170) text-anchor="middle" { (label(tick)) }
            }
        }
    }

    /// Draws the boxes, with a path for each lane and class.
    fn boxes(&self) -> Markup {
        let paths = |gap: i32| -> Vec<(&'static str, Path)> {
            let mut paths = Vec::new();
            for at in 0..self.shown.len() {
                let mut by_class: BTreeMap<(bool, &str), Vec<(i32, i32)>> = BTreeMap::new();
                for span in self.lane(at).spans.iter().filter(|span| is_in(span, self.window)) {
                    let ends = (self.x(span.from), self.x(span.to));
                    by_class.entry((is_wait(span), class(span))).or_default().push(ends);
                }
                for ((is_wait, class), boxes) in by_class {
                    let (above, height) = if is_wait { (90, 120) } else { (50, 200) };
                    let mut path = Path::default();
                    for (from, to) in merged(boxes, gap) {
                        path.add_box((from, self.y(at) + above), (to - from).max(4), height);
                    }
                    paths.push((class, path));
                }
            }
            paths
        };
        let bytes = |paths: &[(&str, Path)]| paths.iter().map(|(_, path)| path.len()).sum::<usize>();
        let mut gap = 2;
        let mut drawn = paths(gap);
        while bytes(&drawn) > MOST_BYTES && gap < WIDTH {
            gap *= 2;
            drawn = paths(gap);
        }
        html! { @for (class, path) in drawn { path class=(class) d=(path) {} } }
    }

    /// Draws the names of operations and the causes of waits, where there is room.
    fn labels(&self) -> Markup {
        let mut labels = Vec::new();
        for at in 0..self.shown.len() {
            for span in self.lane(at).spans.iter().filter(|span| is_in(span, self.window)) {
                let name = match span.activity {
                    Activity::Operation(operation) => operation.name(),
                    Activity::Wait(counter) => cause(counter),
                };
                let (from, to) = (self.x(span.from), self.x(span.to));
                // If an operation is mostly a wait, the label of the wait is drawn instead.
                let is_covered = !is_wait(span) && self.is_mostly_wait(at, span);
                if f64::from(to - from) > (name.chars().count() as f64 + 2.0) * LETTER * f64::from(TENTHS)
                    && !is_covered
                {
                    labels.push((from + 60, self.y(at) + 187, name));
                }
            }
        }
        html! { @for (x, y, name) in labels { text.inside x=(x) y=(y) { (name) } } }
    }

    fn is_mostly_wait(&self, at: usize, operation: &Span) -> bool {
        let within = |span: &&Span| is_wait(span) && span.from >= operation.from && span.to <= operation.to;
        let waits: u64 = self.lane(at).spans.iter().filter(within).map(length).sum();
        waits * 10 > length(operation)
    }

    /// Draws the arrows of the longest waits that begin in the window, and of those of the chain.
    fn arrows(&self) -> Markup {
        let told = self.told;
        let place = |lane: usize| self.shown.iter().position(|shown| *shown == lane);
        let is_drawn = |arrow: &&Arrow| {
            let begins = told.span(arrow.waiter).from;
            let is_seen = self.window.contains(&begins);
            is_seen && place(arrow.waiter.lane).is_some() && place(arrow.holder.lane).is_some()
        };
        let mut arrows: Vec<&Arrow> = told.arrows.iter().filter(is_drawn).collect();
        arrows.sort_by_key(|arrow| std::cmp::Reverse(length(told.span(arrow.waiter))));
        arrows.truncate(MOST_ARROWS);
        html! {
            @for arrow in arrows {
                @let (wait, holder) = (told.span(arrow.waiter), told.span(arrow.holder));
                @if let (Some(from), Some(to)) = (place(arrow.waiter.lane), place(arrow.holder.lane)) {
                    @let path = Path::through(self.ends(wait, holder, (from, to)));
                    path.arrow d=(path) marker-end="url(#tip)" {
                        title { (told.lane(arrow.waiter)) " waits " (waited(wait)) "; " (told.lane(arrow.holder)) " holds it" }
                    }
                }
            }
        }
    }

    /// Returns the ends of an arrow. It leads from the wait to the operation of its holder, at the first moment at
    /// which both exist.
    fn ends(&self, wait: &Span, holder: &Span, (from, to): (usize, usize)) -> [(i32, i32); 2] {
        let x = self.x(wait.from.max(holder.from));
        let (edge, other_edge) = if from < to { (210, 50) } else { (90, 250) };
        [(x, self.y(from) + edge), (x, self.y(to) + other_edge)]
    }
}

/// Merges boxes that are at most `gap` apart.
fn merged(mut boxes: Vec<(i32, i32)>, gap: i32) -> Vec<(i32, i32)> {
    boxes.sort_unstable();
    let mut merged: Vec<(i32, i32)> = Vec::new();
    for (from, to) in boxes {
        match merged.last_mut() {
            Some(last) if from <= last.1 + gap => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    merged
}

/// Returns a round number of nanoseconds. A window has five to ten such steps.
fn step(window: u64) -> u64 {
    let decade = 10_u64.pow((window / 5).max(1).ilog10());
    [5, 2, 1].map(|n| n * decade).into_iter().find(|step| window / step >= 5).unwrap_or(decade)
}

/// Formats a time, such as "1.5 ms".
fn label(nanoseconds: u64) -> String {
    match nanoseconds {
        0 => "0".into(),
        ns if ns >= 1_000_000 => format!("{} ms", ns as f64 / 1e6),
        ns if ns >= 1_000 => format!("{} µs", ns as f64 / 1e3),
        ns => format!("{ns} ns"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::story::tests::chain;
    use super::*;

    #[test]
    fn near_boxes_are_one() {
        assert_eq!(merged(vec![(10, 20), (22, 30), (40, 50), (41, 42)], 2), [(10, 30), (40, 50)]);
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!([2_600_000, 100, 999_999, 50_000].map(step), [500_000, 20, 100_000, 10_000]);
        assert_eq!([0, 500, 1_500, 2_500_000].map(label), ["0", "500 ns", "1.5 µs", "2.5 ms"]);
    }

    #[test]
    fn a_figure_has_lanes_boxes_and_arrows() {
        let recording = chain();
        let told = Told::new(&recording);
        let length = story::window([&told].into_iter()).unwrap();
        let text =
            figure("fork-during-io", "mmap-lock", &told, &told.window(length).unwrap(), &[]).into_string();
        for wanted in [
            ">bystander</text>",
            ">reader</text>",
            "class=\"t-forks\"",
            "class=\"t-io\"",
            ">mmap_lock, held by fork</text>",
        ] {
            assert!(text.contains(wanted), "{wanted} in {text}");
        }
        assert_eq!(text.matches("marker-end").count(), 2);
        assert!(text.len() < 12_000);
    }

    #[test]
    fn a_crowded_figure_is_still_small() {
        let mut recording = chain();
        for lane in &mut recording.lanes {
            let template = lane.spans[1];
            lane.spans = (0..10_000).map(|n| Span { from: n * 270, to: n * 270 + 130, ..template }).collect();
        }
        let told = Told::new(&recording);
        let text = figure("fork-during-io", "mmap-lock", &told, &(0..2_600_000), &[]).into_string();
        assert!(text.len() < 12_000, "{}", text.len());
    }

    #[test]
    fn lanes_end_with_the_recording() {
        let recording = chain();
        let told = Told::new(&recording);
        // The recording ends at 2.1 ms, in the middle of the window.
        let text = figure("fork-during-io", "mmap-lock", &told, &(0..4_200_000), &[]).into_string();
        let middle = WIDTH * TENTHS / 2;
        assert!(
            text.contains(&format!("l{middle} 0")) && !text.contains(&format!("l{} 0", WIDTH * TENTHS)),
            "{text}"
        );
    }
}
