//! Bars of the waits of each design's threads. Locks and the device have separate bars, because reads take long under
//! every design.

use super::look;
use super::svg::TENTHS;
use crate::contender::Contender;
use crate::report::number;
use crate::report::view::{Wait, Waits};
use crate::scenarios::Unit;
use maud::{Markup, html};

/// The sizes in pixels: the names, the bars of locks, their sums, the bars of I/O, their sums.
const NAMES: i32 = 190;
const LOCKS: i32 = 470;
const SUM: i32 = 80;
const IO: i32 = 130;
const ROW: i32 = 24;
const HEAD: i32 = 26;
/// The width per letter, in pixels. A segment that is wide enough contains the name of its cause.
const LETTER: i32 = 7;

fn is_io(wait: &Wait) -> bool {
    wait.cause == "I/O"
}

fn sum<'a>(waits: impl Iterator<Item = &'a Wait>) -> f64 {
    waits.map(|wait| wait.milliseconds).sum()
}

fn time(milliseconds: f64) -> String {
    number::value(milliseconds * 1e3, Unit::Micros)
}

/// Draws bars, a legend and a table; nothing if no thread waited.
pub(super) fn chart(scenario: &str, waits: &[Waits]) -> Markup {
    if waits.is_empty() {
        return html! { p.dim { "No thread waited long enough to be counted." } };
    }
    let most = |wanted: fn(&Wait) -> bool| {
        let sums = waits.iter().map(|waits| sum(waits.causes.iter().filter(|wait| wanted(wait))));
        sums.fold(f64::MIN_POSITIVE, f64::max)
    };
    let (most_locks, most_io) = (most(|wait| !is_io(wait)), most(is_io));
    let width = NAMES + LOCKS + SUM + IO + SUM;
    let height = HEAD + ROW * waits.len() as i32 + 4;
    let title = format!("{scenario}: waits by cause");
    html! {
        figure.chart.wide {
            div.scroll {
                svg.plot role="img" aria-label=(title) viewBox={ "0 0 " (width * TENTHS) " " (height * TENTHS) }
                    width=(width) height=(height) {
                    title { (title) }
                    desc { "A bar for each design, with a segment for each cause. The table below has the values." }
                    text.dim x=(NAMES * TENTHS) y="160" { "for locks, other threads and memory" }
                    text.dim x=((NAMES + LOCKS + SUM) * TENTHS) y="160" { "for I/O" }
                    @for (at, waits) in waits.iter().enumerate() {
                        (row(waits, (HEAD + ROW * at as i32) * TENTHS, (most_locks, most_io)))
                    }
                }
            }
            (table(waits))
        }
    }
}

fn row(waits: &Waits, y: i32, (most_locks, most_io): (f64, f64)) -> Markup {
    let middle = y + 16 * TENTHS;
    let locks = || waits.causes.iter().filter(|wait| !is_io(wait));
    let io = || waits.causes.iter().filter(|wait| is_io(wait));
    let (of_locks, of_io) = (sum(locks()), sum(io()));
    let second = NAMES + LOCKS + SUM;
    // The kernel reports little about its waits.
    let is_counted =
        !waits.causes.is_empty() || Contender::find(waits.design).is_none_or(|one| !one.is_native());
    let end = |from: i32, width: i32, part: f64| from * TENTHS + (f64::from(width * TENTHS) * part) as i32;
    html! {
        text x=((NAMES - 10) * TENTHS) y=(middle) text-anchor="end"
            class=[(waits.design == crate::designs::OURS).then_some("ours")] { (waits.design) }
        (segments(locks(), NAMES, f64::from(LOCKS) / most_locks, y))
        text.value x=(end(NAMES, LOCKS, of_locks / most_locks) + 50) y=(middle) {
            @if is_counted { (time(of_locks)) } @else { "not counted" }
        }
        (segments(io(), second, f64::from(IO) / most_io, y))
        @if is_counted { text.value x=(end(second, IO, of_io / most_io) + 50) y=(middle) { (time(of_io)) } }
    }
}

fn segments<'a>(waits: impl Iterator<Item = &'a Wait>, from: i32, scale: f64, y: i32) -> Markup {
    let mut x = f64::from(from);
    let places: Vec<_> = waits
        .map(|wait| {
            let width = wait.milliseconds * scale;
            x += width;
            (wait, x - width, width)
        })
        .collect();
    let unit = |pixels: f64| (pixels * f64::from(TENTHS)).round() as i32;
    html! {
        @for (wait, x, width) in places {
            @let fits = width >= f64::from(wait.cause.chars().count() as i32 * LETTER);
            rect class={ "seg " (look::of_cause(&wait.cause)) } x=(unit(x)) y=(y + 20) width=(unit(width).max(1))
                height=((ROW - 5) * TENTHS) { title { (wait.cause) ": " (time(wait.milliseconds)) } }
            @if fits { text.inside x=(unit(x) + 50) y=(y + 16 * TENTHS) { (wait.cause) } }
        }
    }
}

/// Draws the table: a row for each cause, the largest first, and a column for each design.
fn table(waits: &[Waits]) -> Markup {
    let mut causes: Vec<(&str, f64)> = Vec::new();
    for wait in waits.iter().flat_map(|waits| &waits.causes) {
        match causes.iter_mut().find(|(cause, _)| *cause == wait.cause) {
            Some((_, all)) => *all += wait.milliseconds,
            None => causes.push((&wait.cause, wait.milliseconds)),
        }
    }
    causes.sort_by(|a, b| b.1.total_cmp(&a.1));
    let of = |waits: &Waits, cause: &str| {
        waits
            .causes
            .iter()
            .find(|wait| wait.cause == cause)
            .map_or("–".into(), |wait| time(wait.milliseconds))
    };
    html! {
        div.scroll { table.legend {
            thead { tr { th { "wait for" } @for waits in waits { th { (waits.design) } } } }
            tbody { @for (cause, _) in &causes { tr {
                th scope="row" { span class={ "block " (look::of_cause(cause)) } {} (cause) }
                @for waits in waits { td { (of(waits, cause)) } }
            } } }
        } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_has_a_segment_for_each_cause_and_its_sum() {
        let wait = |cause: &str, milliseconds| Wait { cause: cause.into(), milliseconds };
        let causes =
            vec![wait("I/O", 2900.0), wait("mmap_lock (fork)", 30.0), wait("VMA lock (fault)", 10.0)];
        let waits = [
            Waits { design: "mmap-lock", causes },
            Waits { design: "faultless", causes: Vec::new() },
            Waits { design: "native", causes: Vec::new() },
        ];
        let text = chart("fork-during-io", &waits).into_string();
        assert_eq!(text.matches("<rect").count(), 3);
        // The first is three quarters of the bar, the second the whole bar.
        assert!(text.contains("class=\"seg w-mmap p-fork\" x=\"1900\" y=\"280\" width=\"3525\""), "{text}");
        assert!(
            text.contains(">40.0 ms</text>")
                && text.contains(">2.90 s</text>")
                && text.contains(">0 µs</text>")
        );
        assert_eq!(text.matches("not counted").count(), 1);
        assert!(chart("fork-during-io", &[]).into_string().starts_with("<p"));
    }
}
