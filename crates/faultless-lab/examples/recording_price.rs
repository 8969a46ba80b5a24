//! Measures the cost of recording a round. Runs rounds with and without a recorder, in turns. Prints the ratio of the two medians for
//! each figure.
//!
//! `cargo run --release -p faultless-lab --example recording_price [SECONDS]`

use faultless_lab::contender::Contender;
use faultless_lab::measure::{Measured, Spread};
use faultless_lab::record::{self, Recorder};
use faultless_lab::scenarios::{self, Better, Scenario, Settings, Turn};
use faultless_lab::trouble::Trouble;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// The rounds of each kind, in a second of the time that was asked for.
const ROUNDS_A_SECOND: f64 = 1.0 / (2.0 * record::LENGTH.as_secs_f64());

fn main() -> Result<(), Trouble> {
    let seconds = match std::env::args().nth(1).map(|text| text.parse::<f64>()) {
        None => 8.0,
        Some(Ok(seconds)) if (1.0..=3600.0).contains(&seconds) => seconds,
        Some(_) => return Err(Trouble::Input("SECONDS: write a number from 1 to 3600".into())),
    };
    let rounds = (seconds * ROUNDS_A_SECOND).ceil() as usize;
    println!(
        "{rounds} rounds of {:?} with a recorder and as many without, in turns; a ratio is with / without",
        record::LENGTH
    );
    for name in ["fork-during-io", "giant-vma", "disjoint-change", "page-fault", "map-unmap"] {
        for design in ["mmap-lock", "faultless"] {
            let (scenario, contender) = (scenarios::find(name), Contender::find(design));
            if let (Some(scenario), Some(contender)) = (scenario, contender) {
                compare(scenario, contender, rounds)?;
            }
        }
    }
    Ok(())
}

fn compare(scenario: &'static Scenario, contender: Contender, rounds: usize) -> Result<(), Trouble> {
    let settings = Settings { io_latency: Duration::from_millis(2), ..Settings::default() };
    let prepared = scenario.prepare(&settings)?;
    let interrupted = AtomicBool::new(false);
    let (mut plain, mut recorded) = (Vec::new(), Vec::new());
    let round = |seed: usize, recorder: Option<&Arc<Recorder>>| {
        let (settings, interrupted) = (&settings, &interrupted);
        prepared.round(
            contender,
            &Turn { settings, length: record::LENGTH, seed: seed as u64, interrupted, recorder },
        )
    };
    for number in 0..rounds {
        let with = |recorded: &mut Vec<Measured>| {
            let recorder = Arc::new(Recorder::default());
            recorded.push(round(number, Some(&recorder))?);
            Ok::<_, Trouble>(())
        };
        // Each kind goes first in every other pair.
        if number % 2 == 0 {
            with(&mut recorded)?;
        }
        plain.push(round(number, None)?);
        if number % 2 == 1 {
            with(&mut recorded)?;
        }
    }
    let figures = std::iter::once(&scenario.headline).chain(scenario.figures);
    let mut line = format!("{} under {}:", scenario.name, contender.name());
    for figure in figures.filter(|figure| figure.better != Better::Neither) {
        let spread = |rounds: &[Measured]| Spread::of(rounds.iter().filter_map(figure.of));
        if let (Some(without), Some(with)) = (spread(&plain), spread(&recorded)) {
            line += &format!(" {} {:.2}", figure.name, with.median / without.median);
        }
    }
    println!("{line}");
    Ok(())
}
