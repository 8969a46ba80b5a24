//! The frame of the page. The first screen shows the compared designs, the result, and the command that repeats the
//! run.

use super::{distribution, heat, look, timeline, waits};
use crate::compare::{Outcome, Plan, Run};
use crate::contender::Contender;
use crate::designs::LeafTables;
use crate::interval::{LEAST_ROUNDS, LEVEL_WIDTH};
use crate::json::Machine;
use crate::report::number;
use crate::report::view::{Kind, ScenarioView, TourView, Verdict, View};
use crate::scenarios::{self, Unit};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use std::time::SystemTime;

const STYLE: &str = include_str!("style.css");

/// The maximum number of designs whose timelines are all unfolded. If there are more, only two are.
const FEW: usize = 3;

/// The facts about the run that the page states.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The command line that repeats the run.
    pub command: &'a str,
    /// The machine of the run.
    pub machine: &'a Machine,
    /// The end of the run.
    pub when: SystemTime,
}

/// Returns the report as HTML.
pub fn page(outcome: &Outcome, plan: &Plan, facts: &Facts<'_>) -> String {
    let view = View::new(outcome, plan);
    let glance = TourView::of_several(outcome, plan);
    let title = format!("faultless compare: {}", subject(&view));
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (tip())
                header { (top(&view, outcome, plan)) }
                main {
                    (first(&view, glance.as_ref(), outcome, facts))
                    @for scenario in &view.scenarios {
                        (section(scenario, &of_scenario(outcome, scenario.name), glance.is_none()))
                    }
                    (limits(&view))
                    (designs(outcome))
                    (run(plan, outcome, facts))
                }
            }
        }
    };
    markup.into_string()
}

fn of_scenario<'a>(outcome: &'a Outcome, name: &str) -> Vec<&'a Run> {
    outcome.runs.iter().filter(|run| run.scenario.name == name).collect()
}

fn subject(view: &View) -> String {
    match &view.scenarios[..] {
        [scenario] => scenario.name.into(),
        scenarios => format!("{} scenarios", scenarios.len()),
    }
}

/// Draws the head of all arrows.
fn tip() -> Markup {
    html! {
        svg width="0" height="0" aria-hidden="true" style="position:absolute" {
            defs {
                marker #tip viewBox="0 0 10 10" refX="9" refY="5" markerWidth="80" markerHeight="80"
                    markerUnits="userSpaceOnUse" orient="auto" { path.tip d="M0 0 10 5 0 10z" {} }
            }
        }
    }
}

fn names(outcome: &Outcome) -> Vec<&'static str> {
    let all: Vec<&str> = outcome.runs.iter().map(|run| run.contender.name()).collect();
    look::in_order(&all)
}

fn plural(n: usize, word: &str) -> String {
    format!("{n} {word}{}", if n == 1 { "" } else { "s" })
}

fn top(view: &View, outcome: &Outcome, plan: &Plan) -> Markup {
    let designs = names(outcome).len();
    html! {
        h1 { "How long do page faults, fork and mmap wait under each locking design?" }
        @match &view.scenarios[..] {
            [scenario] => p.lead {
                (plural(designs, "design")) ", one scenario. " b { (scenario.name) ": " } (scenario.about) "."
            },
            scenarios => p.lead {
                (plural(designs, "design")) ", " (plural(scenarios.len(), "scenario")) ". All designs run in the same engine, on a \
                software machine with " (plan.settings.memory >> 20) " MiB of memory."
                @if outcome.runs.iter().any(|run| run.contender.is_native()) { " The native rows are the kernel of this machine." }
            },
        }
        @if view.is_interrupted { p.warning { "Ctrl-C ended the run. These are the figures until then." } }
    }
}

/// Draws the contents of the first screen.
fn first(view: &View, glance: Option<&TourView>, outcome: &Outcome, facts: &Facts<'_>) -> Markup {
    let (verdicts, notes, noise) = match (glance, &view.scenarios[..]) {
        (Some(glance), _) => (&glance.verdicts[..], &glance.notes[..], &*glance.noise),
        (None, [scenario]) => (&scenario.verdicts[..], &scenario.notes[..], &*scenario.noise),
        (None, _) => (&[][..], &[][..], ""),
    };
    html! {
        section.first {
            div.card.result {
                h2 { "Who wins, and by how much?" }
                (self::verdicts(verdicts))
            }
            div.card {
                h2 { "Is it noise?" }
                p { (rule(outcome)) }
                p { (noise) }
                h2 { "How to repeat it" }
                pre { code { (facts.command) } }
                p.dim { (machine(facts)) }
            }
            div.card.whole {
                h2 { @if glance.is_some() { "All scenarios at a glance" } @else { "The figures" } }
                @match (glance, &view.scenarios[..]) {
                    (Some(glance), _) => (heat::matrix(&glance.matrix)),
                    (None, [scenario]) => (heat::of_scenario(&scenario.figures, false)),
                    (None, _) => {},
                }
                (heat::key())
                @if !notes.is_empty() { ul.notes { @for note in notes { li { (note) } } } }
            }
        }
        @if view.scenarios.len() > 1 {
            nav { @for scenario in &view.scenarios { a href={ "#" (scenario.name) } { (scenario.name) } } a href="#limits" { "limits" } }
        }
    }
}

/// States the rule of noise, and whether the run had enough rounds for it.
fn rule(outcome: &Outcome) -> String {
    let ran = || outcome.runs.iter().map(|run| run.rounds.len()).filter(|rounds| *rounds != 0);
    let (rounds, most) = (ran().min().unwrap_or(0), ran().max().unwrap_or(0));
    let rule = format!(
        "A figure is the median of the rounds. Two designs are compared by the ratios of neighbouring rounds: the median, with a \
         confidence interval of 95 %. A difference counts if the whole interval lies on one side of 1, and beyond the difference \
         of twins. A result is level if the interval contains 1 and is narrower than {LEVEL_WIDTH} times. All else is unknown."
    );
    let here = match rounds {
        few if few < LEAST_ROUNDS => {
            format!(
                "This run has {} for each design: too few for a verdict. Raise --seconds.",
                plural(few, "round")
            )
        }
        rounds if rounds == most => format!("This run has {} for each design.", plural(rounds, "round")),
        rounds => format!("This run has {rounds} to {most} rounds for each design."),
    };
    format!("{rule} {here}")
}

fn machine(facts: &Facts<'_>) -> String {
    let Facts { machine: Machine { cpus, kernel, arch, memory_bytes }, when, .. } = facts;
    format!(
        "faultless {}, {kernel} {arch}, {}, {:.1} GiB of memory, {}",
        env!("CARGO_PKG_VERSION"),
        plural(*cpus, "processor"),
        *memory_bytes as f64 / f64::from(1 << 30),
        humantime::format_rfc3339_seconds(*when)
    )
}

fn verdicts(verdicts: &[Verdict]) -> Markup {
    let kind = |kind: Kind| match kind {
        Kind::Loss => ("v-loss", "loss"),
        Kind::Level => ("v-level", "level"),
        Kind::Win => ("v-win", "win"),
        Kind::Unknown | Kind::TooFew => ("v-few", "unknown"),
        Kind::Note => ("v-note", "note"),
    };
    html! {
        ul.verdicts {
            @for Verdict { kind: of, text } in verdicts {
                @let (class, word) = kind(*of);
                li { span class={ "tag " (class) } { (word) } span { (text) } }
            }
        }
    }
}

fn section(view: &ScenarioView, runs: &[&Run], is_alone: bool) -> Markup {
    let unfolded = unfolded(runs);
    let cannot_show = scenarios::find(view.name).map(|scenario| scenario.cannot_show);
    html! {
        section id=(view.name) {
            h2 { (view.name) }
            p { (sentence(&capital(view.about))) " " span.dim { (sentence(&view.setup.join(", "))) } }
            h3 { "Figures" }
            (heat::of_scenario(&view.figures, true))
            // If there is only one scenario, they are on the first screen.
            @if !is_alone {
                (verdicts(&view.verdicts))
                p.dim { (view.noise) }
                @if !view.notes.is_empty() { ul.notes { @for note in &view.notes { li { (note) } } } }
            }
            h3 { "Distributions of latency" }
            p.dim { "Left and low is better. A curve that ends far right has a long tail. Both axes are logarithmic. Short operations are measured in batches: their curves show the means of batches." }
            (distribution::charts(runs))
            h3 { "Waits of all threads, by cause" }
            p.dim { "Time that all threads together wait, in each second of the run. Two threads that always wait have 2 s. I/O has a scale of its own." }
            (waits::chart(view.name, &view.waits))
            h3 { "Who waits for whom" }
            (timeline::all(runs, &unfolded))
            h3 { "Limits of this report" }
            @if let Some(words) = cannot_show { p { (sentence(&capital(words))) } }
            p.dim { "Checked without an error: " (sentence(&checked(view))) }
        }
    }
}

fn checked(view: &ScenarioView) -> String {
    let all = view.checked.iter().map(String::as_str).chain(["in each round, all frames returned"]);
    all.collect::<Vec<_>>().join("; ")
}

fn sentence(text: &str) -> String {
    if text.ends_with('.') { text.into() } else { format!("{text}.") }
}

fn capital(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().chain(rest).collect())
}

/// Returns the designs whose timelines are unfolded: all if they are few, or else Faultless's own and the one with
/// the worst headline.
fn unfolded(runs: &[&Run]) -> Vec<&'static str> {
    let recorded: Vec<&&Run> = runs.iter().filter(|run| run.recording.is_some()).collect();
    if recorded.len() <= FEW {
        return recorded.iter().map(|run| run.contender.name()).collect();
    }
    let better = runs[0].scenario.headline.better;
    let badness = |run: &&&Run| {
        let median = run.headline().map_or(0.0, |spread| spread.median);
        if better == scenarios::Better::Higher { -median } else { median }
    };
    let worst = recorded.iter().copied().max_by(|a, b| badness(a).total_cmp(&badness(b)));
    let ours = recorded.iter().copied().find(|run| run.contender.is_ours());
    ours.into_iter().chain(worst).map(|run| run.contender.name()).collect()
}

fn limits(view: &View) -> Markup {
    html! {
        section #limits {
            h2 { "Limits of the figures" }
            ul {
                li { "A machine in software: a page-table walk is a dozen atomic loads, and a TLB shootdown waits for other threads' accesses. \
                      Ratios between designs have meaning. Nanoseconds do not." }
                li { "The designs are models in one engine. mmap_lock is another reader-writer lock than the rw_semaphore of Linux." }
                li { "The common machinery favours the default design in small faults. The other designs pay for the entry's bit too." }
                li { "Threads of a process lose their processors at any moment. The worst times on a busy machine are mostly this." }
                li { "No swap space, no read-ahead in faults, no fault-around, no large folios, no NUMA." }
                li { "A recorded round is a round of its own. It shows how threads wait, not how often." }
                @for scenario in &view.scenarios {
                    @if let Some(found) = scenarios::find(scenario.name) { li { b { (scenario.name) } " cannot show " (sentence(found.cannot_show)) } }
                }
            }
        }
    }
}

/// Draws the list of the designs that are rows of tables, with their sources.
fn designs(outcome: &Outcome) -> Markup {
    html! {
        section #designs {
            h2 { "The designs" }
            div.scroll { table.words {
                thead { tr { th { "design" } th { "what it does" } th { "source" } } }
                tbody { @for contender in names(outcome).into_iter().filter_map(Contender::find) { tr {
                    th scope="row" { (distribution::swatch(contender.name())) (contender.name()) }
                    td { (contender.about()) }
                    td { (contender.source()) }
                } } }
            } }
        }
    }
}

/// Draws the settings of the run.
fn run(plan: &Plan, outcome: &Outcome, facts: &Facts<'_>) -> Markup {
    let settings = &plan.settings;
    let file = settings.file.as_ref().map_or("a temporary one".into(), |path| path.display().to_string());
    let depth = settings.queue_depth.map_or("any number".into(), |depth| depth.to_string());
    let fork = settings.fork.map_or("each design's own way", LeafTables::name);
    let rows: [(&str, String); 9] = [
        ("command", facts.command.into()),
        ("machine", machine(facts)),
        ("seed", settings.seed.to_string()),
        ("length of a round", number::value(outcome.round.as_secs_f64() * 1e6, Unit::Micros)),
        ("least time of a read", number::value(settings.io_latency.as_secs_f64() * 1e6, Unit::Micros)),
        ("reads at the device at a time", depth),
        ("leaf tables at fork", fork.into()),
        ("file", file),
        ("memory of the software machine", format!("{} MiB", settings.memory >> 20)),
    ];
    html! {
        section #run {
            h2 { "The run" }
            div.scroll { table.words { tbody { @for (name, value) in rows { tr { th scope="row" { (name) } td { (value) } } } } } }
            p.dim { "For a trace of all recorded operations and waits, repeat the command with --perfetto PATH. For the figures as data, with --json=PATH." }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::view::tests::tour;
    use std::time::Duration;

    #[test]
    fn a_tour_has_its_matrix_and_a_section_for_each_scenario() {
        let (outcome, plan) = tour();
        let machine =
            Machine { cpus: 2, kernel: "Linux <6>".into(), arch: "x86_64".into(), memory_bytes: 8 << 30 };
        let when = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let facts = Facts { command: "faultless compare --file 'a&b'", machine: &machine, when };
        let text = page(&outcome, &plan, &facts);
        for scenario in &plan.scenarios {
            let (name, link) =
                (format!("<section id=\"{}\">", scenario.name), format!("href=\"#{}\"", scenario.name));
            assert!(text.contains(&name) && text.contains(&link), "{name}");
        }
        for wanted in [
            "<span class=\"tag v-loss\">loss</span>",
            "class=\"h-best\"",
            // The interval of the ratio stands in the title of a cell.
            "; worse than the best by 7.",
            "<span class=\"mark\"> 8.",
            "Twins run the same code: vma-lock, vma-lock-retry and vma-lock-hold.",
            "Linux &lt;6&gt; x86_64, 2 processors, 8.0 GiB of memory, 2027-01-15T08:00:00Z",
            "<code>faultless compare --file 'a&amp;b'</code>",
            "This run has 5 rounds for each design.",
            "No operation was recorded.",
            "on a software machine with",
        ] {
            assert!(text.contains(wanted), "{wanted}");
        }
        // Without a native row, nothing is said about one.
        let tells_of_natives = |text: &str| text.contains("The native rows are");
        assert!(tells_of_natives(&text));
        let runs = outcome.runs.into_iter().filter(|run| !run.contender.is_native()).collect();
        let text = page(&Outcome { runs, ..outcome }, &plan, &facts);
        assert!(!tells_of_natives(&text));
    }
}
