//! One sentence a scenario, losses first.

use super::number;
use crate::compare::Run;
use crate::designs;
use crate::measure::{Measured, Spread};
use crate::scenarios::{Better, Figure};
use faultless::stats::Counter;
use std::fmt::Write;

/// A difference below this is noise on the machines we measure on (BASELINES.md).
const NOISE: f64 = 1.3;

/// Of fewer rounds nobody knows the spread, and a verdict would be luck.
const LEAST_ROUNDS: usize = 3;

/// How ours compares with the best of the others in one figure.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    Loss,
    Level,
    Win,
}

fn verdict(ours: Spread, theirs: Spread, better: Better) -> Verdict {
    let (low, high, is_low_ours) =
        if ours.median <= theirs.median { (ours, theirs, true) } else { (theirs, ours, false) };
    // More than noise, and no round of the one among the rounds of the other.
    if high.median < low.median * NOISE || high.min <= low.max {
        Verdict::Level
    } else if is_low_ours == (better == Better::Higher) {
        Verdict::Loss
    } else {
        Verdict::Win
    }
}

fn text_of(figure: &Figure, value: f64) -> String {
    format!("{}{}", number(value, figure.unit), figure.unit.suffix())
}

fn mmap_lock_reads(measured: &Measured) -> Option<f64> {
    measured.per_major_fault(Counter::MmapLockRead)
}

/// One sentence, losses first. Ours is compared with the best rival by each figure.
pub fn sentence(runs: &[&Run]) -> String {
    let (ours, rivals) = split(runs);
    let Some(ours) = ours.filter(|_| !rivals.is_empty()) else { return without_comparison(runs) };
    let (mut losses, mut wins, mut level, mut few) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let scenario = ours.scenario;
    let compared = std::iter::once(&scenario.headline).chain(scenario.figures);
    for figure in compared.filter(|figure| figure.better != Better::Neither) {
        let Some(mine) = ours.spread(figure.of) else { continue };
        let best = rivals.iter().filter_map(|run| Some((*run, run.spread(figure.of)?)));
        let Some((rival, theirs)) = best_of(best, figure.better) else { continue };
        let name = rival.contender.name();
        let rounds = |run: &Run| run.rounds.iter().filter_map(figure.of).count();
        if rounds(ours).min(rounds(rival)) < LEAST_ROUNDS {
            few.push(figure.words());
            continue;
        }
        let (mine_text, theirs_text) = (text_of(figure, mine.median), text_of(figure, theirs.median));
        let compared = format!("{} ({mine_text} against {theirs_text} of {name})", figure.words());
        match verdict(mine, theirs, figure.better) {
            Verdict::Loss => losses.push(compared),
            Verdict::Win => wins.push(compared),
            Verdict::Level if theirs.median > 0.0 => {
                let ratio = mine.median / theirs.median;
                level.push(format!("{} ({ratio:.2} of {name}'s)", figure.words()));
            }
            Verdict::Level => level.push(compared),
        }
    }
    let name = ours.contender.name();
    let mut parts = Vec::new();
    if !losses.is_empty() {
        parts.push(format!("by medians over the rounds, {name} loses in {}", losses.join(", ")));
    } else if !(wins.is_empty() && level.is_empty()) {
        parts.push(format!("by medians over the rounds, {name} loses in nothing that is compared here"));
    }
    if !wins.is_empty() {
        parts.push(format!("wins in {}", wins.join(", ")));
    }
    if !level.is_empty() {
        parts.push(format!(
            "is level, within {NOISE} times or the spread of the rounds, in {}",
            level.join(", ")
        ));
    }
    match (parts.is_empty(), few.is_empty()) {
        (_, true) => {}
        (true, false) => parts.push(format!("{name}: too few rounds to compare")),
        (false, false) => parts.push(format!("too few rounds to compare {}", few.join(", "))),
    }
    let mut text = parts.join(", ");
    let mut reads: Vec<_> =
        rivals.iter().filter_map(|run| Some((run.contender.name(), mmap_lock_reads(&run.total)?))).collect();
    reads.sort_by(|a, b| a.1.total_cmp(&b.1));
    if let (Some(mine), [(least, of_least), others @ ..]) = (mmap_lock_reads(&ours.total), &reads[..]) {
        // Of all rounds together, as in the table.
        let _ = write!(text, "; a major fault took mmap_lock {mine:.2} times, under {least} {of_least:.2}");
        if let [.., (most, of_most)] = others {
            let _ = write!(text, " and under {most} {of_most:.2}");
        }
        text.push_str(" times");
    }
    text.push('.');
    text
}

/// Ours and its rivals, as far as they ran.
fn split<'a>(runs: &[&'a Run]) -> (Option<&'a Run>, Vec<&'a Run>) {
    let ran = runs.iter().copied().filter(|run| !run.rounds.is_empty());
    let (ours, others): (Vec<_>, Vec<_>) = ran.partition(|run| run.contender.is_ours());
    (ours.first().copied(), others.into_iter().filter(|run| run.contender.is_rival()).collect())
}

fn best_of<T>(spreads: impl Iterator<Item = (T, Spread)>, better: Better) -> Option<(T, Spread)> {
    spreads.reduce(|a, b| if (b.1.median < a.1.median) != (better == Better::Higher) { b } else { a })
}

fn without_comparison(runs: &[&Run]) -> String {
    let ran: Vec<_> = runs.iter().filter(|run| !run.rounds.is_empty()).collect();
    let figure = &runs[0].scenario.headline;
    let spreads = ran.iter().filter_map(|run| Some((run.contender.name(), run.headline()?)));
    let words = figure.words();
    match (best_of(spreads, figure.better), &ran[..]) {
        (Some((name, spread)), [_]) => {
            format!("{name} ran alone: {words} {}, median over the rounds.", text_of(figure, spread.median))
        }
        (Some(_), ran) if ran.iter().any(|run| run.contender.is_ours()) => {
            format!("No rival of {} ran.", designs::OURS)
        }
        (Some((name, spread)), _) => format!(
            "{} did not run; the best {words} is that of {name}, {}, median over the rounds.",
            designs::OURS,
            text_of(figure, spread.median)
        ),
        (None, _) => "Too short to say anything.".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn losses_come_first() {
        let (ours, theirs) = (run("faultless", &[200, 210, 220], 0), run("mmap-lock", &[100, 105, 110], 10));
        let text = sentence(&[&theirs, &ours]);
        let begins = "by medians over the rounds, faultless loses in bystander p99 (210 µs against 105 µs of mmap-lock), is level";
        assert!(text.starts_with(begins), "{text}");
        assert!(
            text.ends_with("; a major fault took mmap_lock 0.00 times, under mmap-lock 1.00 times."),
            "{text}"
        );
        let text = sentence(&[&run("mmap-lock", &[300, 305, 310], 0), &ours]);
        assert!(
            text.contains("faultless loses in nothing that is compared here, wins in bystander p99"),
            "{text}"
        );
    }

    #[test]
    fn the_rivals_that_took_mmap_lock_least_and_most_are_named() {
        let rounds = [200, 210, 220];
        let (ours, few) = (run("faultless", &rounds, 0), run("vma-lock-hold", &rounds, 1));
        let (some, most) = (run("vma-lock", &rounds, 10), run("mmap-lock", &rounds, 20));
        let text = sentence(&[&most, &some, &few, &ours]);
        assert!(
            text.ends_with(" 0.00 times, under vma-lock-hold 0.10 and under mmap-lock 2.00 times."),
            "{text}"
        );
    }

    #[test]
    fn what_is_level_has_its_ratio() {
        let (ours, theirs) = (run("faultless", &[190, 200, 210], 0), run("mmap-lock", &[195, 220, 230], 30));
        let text = sentence(&[&theirs, &ours]);
        assert!(text.contains("bystander p99 (0.91 of mmap-lock's)"), "{text}");
    }

    #[test]
    fn few_rounds_give_no_verdict() {
        let (ours, theirs) = (run("faultless", &[200, 210], 0), run("mmap-lock", &[100, 105], 20));
        let text = sentence(&[&theirs, &ours]);
        assert!(text.starts_with("faultless: too few rounds to compare; a major fault"), "{text}");
    }

    #[test]
    fn other_hardware_is_no_rival() {
        let (ours, native) = (run("faultless", &[200, 210, 220], 0), run("native", &[1, 1, 1], 20));
        assert_eq!(sentence(&[&ours, &native]), "No rival of faultless ran.");
        let theirs = run("mmap-lock", &[200, 210, 220], 20);
        let text = sentence(&[&ours, &native, &theirs]);
        assert!(text.contains("loses in nothing") && !text.contains("native"), "{text}");
    }

    #[test]
    fn noise_is_neither_loss_nor_win() {
        let spread = |median, min, max| Spread { median, min, max };
        let level = |a, b| verdict(a, b, Better::Lower) == Verdict::Level;
        assert!(level(spread(100.0, 99.0, 101.0), spread(125.0, 124.0, 126.0)));
        assert!(level(spread(100.0, 50.0, 300.0), spread(200.0, 190.0, 210.0)));
        let (quick, slow) = (spread(100.0, 90.0, 110.0), spread(200.0, 190.0, 210.0));
        assert_eq!(verdict(quick, slow, Better::Lower), Verdict::Win);
        assert_eq!(verdict(quick, slow, Better::Higher), Verdict::Loss);
    }

    #[test]
    fn one_design_alone_is_not_compared() {
        let text = sentence(&[&run("mmap-lock", &[100], 1)]);
        assert_eq!(text, "mmap-lock ran alone: bystander p99 100 µs, median over the rounds.");
    }
}
