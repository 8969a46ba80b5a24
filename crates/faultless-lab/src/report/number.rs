//! Formats numbers for people: with a unit, and at most three significant digits.

use crate::measure::Spread;
use crate::scenarios::Unit;

/// Returns a figure with its unit, such as "1.20 ms" or "454 k/s".
pub fn value(value: f64, unit: Unit) -> String {
    let scale = Scale::of(value, unit);
    format!("{}{}", scale.digits(value), scale.suffix)
}

/// Returns the median with its unit, and the lowest and the highest value in the same scale: "1.20 ms (0.98–1.40)".
/// If all values are equal, returns the value alone.
pub fn spread(spread: Spread, unit: Unit) -> String {
    match spread_parts(spread, unit) {
        (median, Some(range)) => format!("{median} {range}"),
        (median, None) => median,
    }
}

/// Returns the two parts of [`spread`]: "1.20 ms" and "(0.98–1.40)". If all values are equal, there is no second part.
pub fn spread_parts(spread: Spread, unit: Unit) -> (String, Option<String>) {
    if spread.min == spread.max {
        return (value(spread.median, unit), None);
    }
    let scale = Scale::of(spread.median, unit);
    let [median, min, max] = [spread.median, spread.min, spread.max].map(|value| scale.digits(value));
    (format!("{median}{}", scale.suffix), Some(format!("({min}–{max})")))
}

/// Returns a ratio, such as "1.13×".
pub fn times(ratio: f64) -> String {
    format!("{}×", value(ratio, Unit::Ratio))
}

/// Returns a count with separated thousands: "1,234,567".
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at != 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns a number up to twelve as a word, and a larger one in digits.
pub fn word(n: usize) -> String {
    const WORDS: [&str; 13] = [
        "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
        "twelve",
    ];
    WORDS.get(n).map_or_else(|| n.to_string(), |word| word.to_string())
}

/// Returns a count with its noun: "1 round" or "3 rounds". The plural of the noun ends with "s".
pub fn plural(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// Returns names as a list: "a, b and c".
pub fn list(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [name] => name.clone(),
        [names @ .., last] => format!("{} and {last}", names.join(", ")),
    }
}

/// The multiple of a unit that leaves few digits before the decimal point.
struct Scale {
    divisor: f64,
    suffix: &'static str,
}

impl Scale {
    fn of(value: f64, unit: Unit) -> Self {
        // Each scale stands with its divisor. The largest scale in which the value is 1 or more is used.
        let steps: &[(f64, &'static str)] = match unit {
            Unit::Nanos => &[(1.0, " ns"), (1e3, " µs"), (1e6, " ms"), (1e9, " s")],
            Unit::Micros => &[(1e-3, " ns"), (1.0, " µs"), (1e3, " ms"), (1e6, " s")],
            Unit::PerSecond => &[(1.0, " /s"), (1e3, " k/s"), (1e6, " M/s"), (1e9, " G/s")],
            Unit::Ratio | Unit::Each => &[(1.0, ""), (1e3, "k"), (1e6, "M")],
        };
        let fits = |(divisor, _): &&(f64, &str)| value / divisor >= 0.9995;
        // A time of zero uses the unit itself.
        let own = steps.iter().find(|(divisor, _)| *divisor == 1.0).unwrap_or(&steps[0]);
        let smallest = if value == 0.0 { own } else { &steps[0] };
        let &(divisor, suffix) = steps.iter().rev().find(fits).unwrap_or(smallest);
        Self { divisor, suffix }
    }

    fn digits(&self, value: f64) -> String {
        match value / self.divisor {
            0.0 => "0".into(),
            small if small < 0.005 => "<0.01".into(),
            value if value < 9.995 => format!("{value:.2}"),
            value if value < 99.95 => format!("{value:.1}"),
            value if value < 999.5 => format!("{value:.0}"),
            // The value exceeds the largest unit.
            value if value >= 1e6 => format!("{value:.0e}"),
            // An end of a spread uses the scale of its median.
            value => {
                let magnitude = 10_f64.powi(value.log10().floor() as i32 - 2);
                format!("{:.0}", (value / magnitude).round() * magnitude)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit() {
        for (number, unit, text) in [
            (0.0, Unit::Micros, "0 µs"),
            (0.2712, Unit::Micros, "271 ns"),
            (2.712, Unit::Micros, "2.71 µs"),
            (999.4, Unit::Micros, "999 µs"),
            (999.6, Unit::Micros, "1.00 ms"),
            (12_345.0, Unit::Micros, "12.3 ms"),
            (31.4159, Unit::Nanos, "31.4 ns"),
            (1e9, Unit::Nanos, "1.00 s"),
            (12.0, Unit::PerSecond, "12.0 /s"),
            (271_828.0, Unit::PerSecond, "272 k/s"),
            (27_182_818.0, Unit::PerSecond, "27.2 M/s"),
            (2.712, Unit::Ratio, "2.71"),
            (99.96, Unit::Ratio, "100"),
            (0.001, Unit::Each, "<0.01"),
            (12_345.0, Unit::Each, "12.3k"),
            (9.9e300, Unit::Micros, "1e295 s"),
        ] {
            assert_eq!(value(number, unit), text);
        }
    }

    #[test]
    fn a_spread_has_one_scale() {
        let of = |median, min, max| spread(Spread { median, min, max }, Unit::Micros);
        assert_eq!(of(1200.0, 980.0, 1400.0), "1.20 ms (0.98–1.40)");
        assert_eq!(of(120.0, 120.0, 120.0), "120 µs");
        assert_eq!(of(120.0, 98.0, 15_873.0), "120 µs (98.0–15900)");
    }

    #[test]
    fn small_numbers_are_words() {
        assert_eq!([1, 12, 13].map(word), ["one", "twelve", "13"]);
    }

    #[test]
    fn nouns_and_lists_agree_with_their_number() {
        assert_eq!([0, 1, 2].map(|n| plural(n, "round")), ["0 rounds", "1 round", "2 rounds"]);
        let names = ["a", "b", "c"].map(String::from);
        assert_eq!([1, 2, 3].map(|n| list(&names[..n])), ["a", "a and b", "a, b and c"]);
    }

    #[test]
    fn counts_have_their_thousands_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }
}
