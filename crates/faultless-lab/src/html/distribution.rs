//! Charts of latency distributions. For each design they show the share of operations that took at least a given
//! time. Both axes are logarithmic.
//!
//! The curves come from the histograms, so they show the tail without interpolation.

use super::look;
use super::svg::{Backend, Look, TENTHS, drawn, look};
use crate::compare::Run;
use crate::designs;
use crate::measure::Latency;
use crate::report::number;
use crate::scenarios::Unit;
use maud::{Markup, html};
use plotters::prelude::*;
use std::collections::BTreeSet;
use std::ops::Range;

/// The size of a chart, in pixels.
const WIDTH: i32 = 560;
const HEIGHT: i32 = 300;
const FONT: i32 = 12;
/// The maximum number of points of a curve.
const MOST_POINTS: f64 = 80.0;

/// The numbers of the looks of axis and grid. Those of the curves follow.
const AXIS: u8 = 0;
const GRID: u8 = 1;
const FIRST_CURVE: u8 = 2;

/// Draws a chart for each latency that the runs of a scenario measured.
pub(super) fn charts(runs: &[&Run]) -> Markup {
    let names: BTreeSet<&str> =
        runs.iter().flat_map(|run| run.total.latency.keys()).map(String::as_str).collect();
    html! {
        div.charts {
            @for name in names {
                @let latencies = latencies(runs, name);
                @if !latencies.is_empty() { (chart(runs[0].scenario.name, name, &latencies)) }
            }
        }
    }
}

/// Returns the title of a latency, after "Latency of".
fn title(scenario: &str, name: &str) -> Option<&'static str> {
    let title = match (scenario, name) {
        (_, "bystander") => "the bystander's mmap, munmap or mprotect",
        (_, "fault") => "a page fault",
        (_, "fork") => "fork",
        ("same-folio", "last") => "a page until the last thread has it",
        ("short-process", "life") => "a child's life",
        ("short-process", "task") => "a child's task and exit",
        ("page-fault", "alone") => "a page fault of one thread alone",
        ("page-fault", "all") => "a page fault beside other threads",
        ("map-unmap", "alone") => "mmap and munmap of one thread alone",
        ("map-unmap", "all") => "mmap and munmap beside other threads",
        ("giant-vma", "giant") => "a page fault in one VMA of all threads",
        ("giant-vma", "apart") => "a page fault, each thread in a process of its own",
        ("giant-vma", "alone") => "a page fault of one thread alone",
        ("many-threads", "fault_1") => "a page fault with 1 thread",
        ("many-threads", "fault_100") => "a page fault with 100 threads",
        ("many-threads", "fault_10000") => "a page fault with 10,000 threads",
        ("many-threads", "map_unmap_1") => "mmap and munmap with 1 thread",
        ("many-threads", "map_unmap_100") => "mmap and munmap with 100 threads",
        ("many-threads", "map_unmap_10000") => "mmap and munmap with 10,000 threads",
        ("disjoint-change", "alone") => "a change alone",
        ("disjoint-change", "beside_changes") => "a change beside changes",
        ("disjoint-change", "beside_faults") => "a change beside faults",
        ("disjoint-change", "protect_alone") => "mprotect alone",
        ("disjoint-change", "protect_beside_changes") => "mprotect beside changes",
        ("disjoint-change", "protect_beside_faults") => "mprotect beside faults",
        ("disjoint-change", "fault_beside_changes") => "a page fault beside changes",
        _ => return None,
    };
    Some(title)
}

fn latencies<'a>(runs: &[&'a Run], name: &str) -> Vec<(&'static str, &'a Latency)> {
    let of = |run: &&'a Run| Some((run.contender.name(), run.total.latency.get(name)?));
    runs.iter().filter_map(of).filter(|(_, latency)| latency.count() != 0).collect()
}

/// Returns the curve of a latency: nanoseconds, and the share of operations that took at least as long.
fn curve(latency: &Latency) -> Vec<(f64, f64)> {
    let all = latency.count() as f64;
    let (mut before, mut points) = (0, Vec::new());
    for (nanoseconds, count) in latency.iter() {
        points.push((nanoseconds.max(1) as f64, (all - before as f64) / all));
        before += count;
    }
    thinned(points)
}

/// Removes points that are near the previous one on logarithmic axes. The first and the last point stay.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let [Some(first), Some(last)] = [points.first().copied(), points.last().copied()] else { return points };
    let log = |(x, y): (f64, f64)| (x.ln(), y.ln());
    let (from, to) = (log(first), log(last));
    // The distance along both axes. A curve never goes left or up.
    let way = (to.0 - from.0) / (to.0 - from.0).max(1e-9) + (from.1 - to.1) / (from.1 - to.1).max(1e-9);
    let step = way / (MOST_POINTS - 2.0);
    let along = |point: (f64, f64)| {
        let at = log(point);
        (at.0 - from.0) / (to.0 - from.0).max(1e-9) + (from.1 - at.1) / (from.1 - to.1).max(1e-9)
    };
    let mut kept = f64::NEG_INFINITY;
    let end = points.len() - 1;
    let near = |(at, point): &(usize, (f64, f64))| {
        let is_far = along(*point) >= kept + step || *at == end;
        if is_far {
            kept = along(*point);
        }
        is_far
    };
    points.into_iter().enumerate().filter(near).map(|(_, point)| point).collect()
}

/// Returns the range of an axis. If it has room for fewer than two labels, which stand at powers of ten, the range is
/// extended.
fn axis(least: f64, most: f64) -> Range<f64> {
    let (first, last) = (least.log10().ceil(), most.log10().floor());
    match last - first {
        labels if labels >= 1.0 => least * 0.95..most * 1.05,
        _ => 10_f64.powf(least.log10().floor()) * 0.999..10_f64.powf(most.log10().ceil()) * 1.001,
    }
}

/// Formats a time, such as "1 ms", without zeros after the decimal point.
fn time(nanoseconds: &f64) -> String {
    number::value(*nanoseconds, Unit::Nanos).replace(".00 ", " ").replace(".0 ", " ")
}

/// Formats a share, such as "0.1 %".
fn share(share: &f64) -> String {
    let percent = share * 100.0;
    let digits = (-percent.log10()).ceil().max(0.0) as usize;
    format!("{percent:.digits$} %")
}

fn chart(scenario: &str, name: &str, latencies: &[(&'static str, &Latency)]) -> Markup {
    let curves: Vec<_> = latencies.iter().map(|(design, latency)| (*design, curve(latency))).collect();
    let points = || curves.iter().flat_map(|(_, curve)| curve);
    let least = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let most = points().map(|point| point.0).fold(0.0, f64::max);
    let rarest = points().map(|point| point.1).fold(1.0, f64::min);
    let (across, down) = (axis(least, most), rarest.min(0.1) * 0.8..1.0);
    let axes = ["axis", "grid"].map(|class| Look { class: class.into(), title: None });
    let of_curve = |(design, _): &(&'static str, _)| Look {
        class: format!("curve {}", look::of_design(design)),
        title: Some((*design).into()),
    };
    let looks: Vec<Look> = axes.into_iter().chain(curves.iter().map(of_curve)).collect();
    let mut elements = String::new();
    draw(&mut elements, &looks, &curves, (across, down)).expect("nothing in it fails");
    let name = title(scenario, name).unwrap_or(name);
    let title = format!("{scenario}: latency of {name}");
    let desc = described(latencies);
    html! {
        figure.chart {
            figcaption { b { "Latency of " (name) } span.dim { " share of operations that took at least so long" } }
            div.scroll {
                svg.plot role="img" aria-label=(title) viewBox={ "0 0 " (WIDTH * TENTHS) " " (HEIGHT * TENTHS) }
                    width=(WIDTH) height=(HEIGHT) {
                    title { (title) }
                    desc { (desc) }
                    (drawn(elements))
                }
            }
            (legend(latencies))
        }
    }
}

fn draw(
    elements: &mut String,
    looks: &[Look],
    curves: &[(&'static str, Vec<(f64, f64)>)],
    (across, down): (Range<f64>, Range<f64>),
) -> Result<(), Box<dyn std::error::Error>> {
    let failed = |error: DrawingAreaErrorKind<std::convert::Infallible>| error.to_string();
    let size = [WIDTH, HEIGHT].map(|pixels| (pixels * TENTHS) as u32);
    let area = Backend::new(elements, (size[0], size[1]), looks).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin_top(10 * TENTHS)
        .margin_right(26 * TENTHS)
        .x_label_area_size(24 * TENTHS)
        .y_label_area_size(62 * TENTHS)
        .build_cartesian_2d(across.log_scale(), down.log_scale())
        .map_err(failed)?;
    let font = ("sans-serif", FONT * TENTHS);
    chart
        .configure_mesh()
        .x_labels(9)
        .y_labels(9)
        .x_label_formatter(&time)
        .y_label_formatter(&share)
        .x_label_style(font)
        .y_label_style(font)
        .axis_style(look(AXIS))
        .bold_line_style(look(GRID))
        .light_line_style(TRANSPARENT)
        .set_all_tick_mark_size(4 * TENTHS)
        .draw()
        .map_err(failed)?;
    // Faultless's own design is drawn last, so that it lies on top.
    let mut order: Vec<_> = curves.iter().enumerate().collect();
    order.sort_by_key(|(_, (design, _))| *design == designs::OURS);
    for (number, (_, points)) in order {
        let style = look(FIRST_CURVE + number as u8);
        chart.draw_series(LineSeries::new(points.iter().copied(), style)).map_err(failed)?;
    }
    area.present().map_err(failed)?;
    Ok(())
}

/// Draws the percentiles, as a legend and for readers who cannot see the chart.
fn legend(latencies: &[(&'static str, &Latency)]) -> Markup {
    let value = |us| number::value(us, Unit::Micros);
    html! {
        div.scroll { table.legend {
            thead { tr { th { "design" } th { "p50" } th { "p99" } th { "longest" } th { "count" } } }
            tbody { @for (design, latency) in latencies { tr {
                th scope="row" { (swatch(design)) (design) }
                td { (value(latency.quantile_us(0.5))) }
                td { (value(latency.quantile_us(0.99))) }
                td { (value(latency.max_us())) }
                td { (number::count(latency.count())) }
            } } }
        } }
    }
}

/// Draws a sample of a design's line.
pub(super) fn swatch(design: &str) -> Markup {
    html! {
        svg.swatch width="26" height="10" viewBox="0 0 26 10" aria-hidden="true" {
            path class={ "curve " (look::of_design(design)) } d="M1 5h24" {}
        }
    }
}

fn described(latencies: &[(&'static str, &Latency)]) -> String {
    let one = |(design, latency): &(&str, &Latency)| {
        format!("{design}: p99 {}", number::value(latency.quantile_us(0.99), Unit::Micros))
    };
    format!("One curve for each design. {}.", latencies.iter().map(one).collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contender::Contender;
    use crate::scenarios::{self, Settings, Turn};
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    #[test]
    fn a_curve_falls_from_all_to_the_longest() {
        let mut latency = Latency::default();
        latency.record_n(100, 90);
        latency.record_n(200, 9);
        latency.record_n(400, 1);
        assert_eq!(curve(&latency), [(100.0, 1.0), (200.0, 0.1), (400.0, 0.01)]);
    }

    #[test]
    fn a_curve_has_few_points_and_keeps_its_ends() {
        let mut latency = Latency::default();
        (1..100_000_u64).for_each(|n| latency.record(Duration::from_nanos(100 + n * n % 1_000_003)));
        let points = curve(&latency);
        assert!((40..=80).contains(&points.len()), "{}", points.len());
        assert_eq!(points[0].1, 1.0);
        assert!(points.last().unwrap().0 >= latency.max_us() * 999.0);
        assert!(points.is_sorted_by(|a, b| a.0 < b.0 && a.1 > b.1));
    }

    #[test]
    fn each_latency_of_each_scenario_has_a_title() {
        let ours = Contender::find(designs::OURS).unwrap();
        let io_latency = Duration::from_micros(200);
        let settings = Settings { memory: 64 << 20, io_latency, ..Settings::default() };
        let (length, interrupted) = (Duration::from_millis(50), AtomicBool::new(false));
        for scenario in scenarios::ALL {
            let turn =
                Turn { settings: &settings, length, seed: 1, interrupted: &interrupted, recorder: None };
            let measured = scenario.prepare(&settings).unwrap().round(ours, &turn).unwrap();
            assert!(!measured.latency.is_empty(), "{}", scenario.name);
            for name in measured.latency.keys() {
                assert!(title(scenario.name, name).is_some(), "{} {name}", scenario.name);
            }
        }
    }

    #[test]
    fn axes_have_short_labels() {
        assert_eq!([1e3, 1e5, 1e7, 1e9].map(|ns| time(&ns)), ["1 µs", "100 µs", "10 ms", "1 s"]);
        assert_eq!([1.0, 0.1, 0.01, 0.001].map(|y| share(&y)), ["100 %", "10 %", "1 %", "0.1 %"]);
    }
}
