//! Writes recordings in the Trace Event format (JSON), which Perfetto (ui.perfetto.dev) and chrome://tracing open.
//!
//! Each scenario and design is a process of the trace, and each thread is a track. Operations and waits are slices, a
//! wait within its operation. An arrow leads from the operation that held up a wait to the wait ([`super::blame`]). A
//! counter shows the page faults in flight that take 10 µs or more. Shorter faults would make up most of the file.
//! Times are in microseconds and begin at zero in each process.

use super::blame::{Place, arrows};
use super::{Activity, LENGTH, MOST_SPANS, Operation, Recording, Span};
use crate::compare::Outcome;
use crate::report::number;
use crate::scenarios::Unit;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::time::Duration;

/// The minimum duration of a fault that the counter of faults in flight includes.
const LONG: Duration = Duration::from_micros(10);

/// Writes the recordings of `outcome` to `out`.
///
/// # Errors
/// The errors of `out`.
pub fn write(outcome: &Outcome, out: &mut impl Write) -> io::Result<()> {
    let mut events = Events { out, is_first: true };
    events.out.write_all(b"{\"displayTimeUnit\":\"ns\",\"traceEvents\":[")?;
    let mut ids = 0;
    for (pid, run) in outcome.runs.iter().enumerate() {
        if let Some(recording) = &run.recording {
            let mut name = format!("{} under {}", run.scenario.name, run.contender.name());
            if recording.ended_early {
                name += &format!(", the first {}", time(recording.length()));
            }
            events.recording(pid + 1, &name, recording, &mut ids)?;
        }
    }
    let ended_early = recordings(outcome).filter(|recording| recording.ended_early).count();
    let left_out: usize = recordings(outcome).map(|recording| recording.left_out).sum();
    let about = json!({
        "program": concat!("faultless ", env!("CARGO_PKG_VERSION")),
        "recordings_ended_early": ended_early.to_string(),
        "threads_left_out": left_out.to_string(),
    });
    write!(events.out, "\n],\"otherData\":{about}}}\n")
}

/// Returns a line with the number of recorded spans in `outcome`. It tells whether recordings ended before their rounds.
pub fn summary(outcome: &Outcome) -> String {
    let count = |what: fn(&Recording) -> u64| recordings(outcome).map(what).sum::<u64>();
    let (rounds, spans) = (
        recordings(outcome).count(),
        count(|recording| recording.lanes.iter().map(|lane| lane.spans.len() as u64).sum()),
    );
    let mut text = format!(
        "{} operations and waits of {}",
        number::count(spans),
        number::plural(rounds, "recorded round")
    );
    let early = || recordings(outcome).filter(|recording| recording.ended_early);
    if let Some(shortest) = early().map(Recording::length).min() {
        text += &format!(
            ". {} of them ended early, the shortest after {} of {}: a thread then had {} operations and waits",
            early().count(),
            time(shortest),
            time(LENGTH.as_nanos() as u64),
            number::count(MOST_SPANS as u64)
        );
    }
    let left_out = count(|recording| recording.left_out as u64);
    if left_out != 0 {
        text += &format!(
            ". {} left out",
            if left_out == 1 {
                "1 thread was".into()
            } else {
                format!("{} threads were", number::count(left_out))
            }
        );
    }
    let mut natives = Vec::new();
    for run in outcome.runs.iter().filter(|run| !run.contender.is_recorded() && !run.rounds.is_empty()) {
        let name = run.contender.name().to_string();
        if !natives.contains(&name) {
            natives.push(name);
        }
    }
    if !natives.is_empty() {
        let verb = if natives.len() == 1 { "is" } else { "are" };
        text +=
            &format!(". {} {verb} not recorded: the threads are in another process", number::list(&natives));
    }
    text + "."
}

fn time(nanoseconds: u64) -> String {
    number::value(nanoseconds as f64, Unit::Nanos)
}

fn recordings(outcome: &Outcome) -> impl Iterator<Item = &Recording> {
    outcome.runs.iter().filter_map(|run| run.recording.as_ref())
}

struct Events<'a, W> {
    out: &'a mut W,
    is_first: bool,
}

impl<W: Write> Events<'_, W> {
    fn event(&mut self, event: &Value) -> io::Result<()> {
        let separator = if self.is_first { "\n" } else { ",\n" };
        self.is_first = false;
        write!(self.out, "{separator}{event}")
    }

    fn recording(&mut self, pid: usize, name: &str, recording: &Recording, ids: &mut u64) -> io::Result<()> {
        let Some((start, _)) = recording.extent() else { return Ok(()) };
        let us = |moment: u64| (moment - start) as f64 / 1e3;
        self.event(&json!({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}))?;
        for (tid, lane) in recording.lanes.iter().enumerate() {
            let place = json!({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid + 1, "args": {"name": lane.name}});
            self.event(&place)?;
            for span in &lane.spans {
                let kind = match span.activity {
                    Activity::Operation(_) => "operation",
                    Activity::Wait(_) => "wait",
                };
                self.event(&json!({
                    "ph": "X", "name": span.activity.name(), "cat": kind, "pid": pid, "tid": tid + 1,
                    "ts": us(span.from), "dur": (span.to - span.from) as f64 / 1e3,
                }))?;
            }
        }
        for arrow in arrows(recording) {
            let at = |place: Place| &recording.lanes[place.lane].spans[place.span];
            let (wait, holder) = (at(arrow.waiter), at(arrow.holder));
            let begin = wait.from.clamp(holder.from, holder.to);
            let end = begin.max(wait.from);
            *ids += 1;
            let step = |ph: &str, place: Place, moment| {
                json!({
                    "ph": ph, "name": "holds up", "cat": "holder", "id": *ids, "pid": pid, "tid": place.lane + 1,
                    "ts": us(moment), "bp": "e",
                })
            };
            self.event(&step("s", arrow.holder, begin))?;
            self.event(&step("f", arrow.waiter, end))?;
        }
        for (moment, faults) in in_flight(recording) {
            self.event(&json!({
                "ph": "C", "name": "page faults in flight, of 10 µs or more", "pid": pid, "ts": us(moment), "args": {"faults": faults},
            }))?;
        }
        Ok(())
    }
}

/// Returns the moments at which the number of long faults in flight changes, each with the new number.
fn in_flight(recording: &Recording) -> Vec<(u64, i64)> {
    let faults = recording.lanes.iter().flat_map(|lane| &lane.spans);
    let is_long = |span: &&Span| u128::from(span.to - span.from) >= LONG.as_nanos();
    let faults = faults.filter(|span| span.activity == Activity::Operation(Operation::Fault)).filter(is_long);
    let mut steps: Vec<(u64, i64)> =
        faults.flat_map(|Span { from, to, .. }| [(*from, 1), (*to, -1)]).collect();
    steps.sort_unstable();
    let mut now = 0;
    for step in &mut steps {
        now += step.1;
        step.1 = now;
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Lane;
    use crate::report::view::tests::run;
    use faultless::stats::Counter;

    fn outcome() -> Outcome {
        let span = |activity, from, to| Span { activity, from, to };
        let (io, fork) = (Activity::Wait(Counter::IoWait), Activity::Wait(Counter::MmapLockWaitIo));
        let lane = |name: &str, spans: Vec<Span>| Lane { name: name.into(), spans };
        let reader =
            vec![span(io, 1_100, 90_000), span(Activity::Operation(Operation::Fault), 1_000, 91_000)];
        let forker =
            vec![span(fork, 5_000, 90_500), span(Activity::Operation(Operation::Fork), 4_000, 99_000)];
        let lanes = vec![lane("reader", reader), lane("fork", forker)];
        let recording = Some(Recording { lanes, left_out: 3, ended_early: true });
        let recorded = crate::compare::Run { recording, ..run("mmap-lock", &[100], 1) };
        let runs = vec![run("native", &[100], 1), recorded];
        Outcome { runs, interrupted: false, round: Duration::from_secs(1) }
    }

    #[test]
    fn a_trace_has_slices_arrows_and_a_counter() {
        let mut text = Vec::new();
        write(&outcome(), &mut text).unwrap();
        let trace: Value = serde_json::from_slice(&text).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let of = |phase: &str| events.iter().filter(|event| event["ph"] == phase).collect::<Vec<_>>();
        let named: Vec<_> = of("M").iter().map(|event| event["args"]["name"].as_str().unwrap()).collect();
        assert_eq!(named, ["fork-during-io under mmap-lock, the first 98.0 µs", "reader", "fork"]);
        let fault = of("X").into_iter().find(|event| event["name"] == "page fault").unwrap();
        assert_eq!(
            (fault["ts"].as_f64(), fault["dur"].as_f64(), fault["tid"].as_u64()),
            (Some(0.0), Some(90.0), Some(1))
        );
        // The arrow leads from the reader, which holds the lock, to the forking thread, at the moment at which the
        // wait begins.
        let (start, finish) = (of("s")[0], of("f")[0]);
        assert_eq!((start["tid"].as_u64(), finish["tid"].as_u64()), (Some(1), Some(2)));
        assert_eq!((start["ts"].as_f64(), finish["ts"].as_f64()), (Some(4.0), Some(4.0)));
        assert_eq!(start["id"], finish["id"]);
        let counts: Vec<_> = of("C").iter().map(|event| event["args"]["faults"].as_i64().unwrap()).collect();
        assert_eq!(counts, [1, 0]);
        assert_eq!(
            (&trace["otherData"]["recordings_ended_early"], &trace["otherData"]["threads_left_out"]),
            (&json!("1"), &json!("3"))
        );
    }

    #[test]
    fn the_summary_says_what_was_not_recorded() {
        let text = summary(&outcome());
        assert_eq!(
            text,
            "4 operations and waits of 1 recorded round. 1 of them ended early, the shortest after 98.0 µs of 250 ms: a \
             thread then had 10,000 operations and waits. 3 threads were left out. native is not recorded: the threads \
             are in another process."
        );
    }
}
