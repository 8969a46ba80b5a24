//! Parsers for command-line values: durations, sizes, rates.

use std::time::Duration;

/// Parses the delay of a store: "2ms", "500us", "1.5s". At most ten seconds.
///
/// # Errors
/// The reason why the text is refused.
pub fn latency(text: &str) -> Result<Duration, String> {
    const MOST: Duration = Duration::from_secs(10);
    let (number, unit) = split(text)?;
    let scale = match unit {
        "ns" => 1.0,
        "us" | "µs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "" => return Err(format!("it has no unit; write {text}ms or {text}us")),
        _ => return Err(format!("\"{unit}\" is not a unit of time; use ns, us, ms or s")),
    };
    let nanoseconds = number * scale;
    if nanoseconds > MOST.as_nanos() as f64 {
        return Err("it is longer than 10s".into());
    }
    Ok(Duration::from_nanos(nanoseconds.round() as u64))
}

/// Parses a size: "256M", "64MiB", "1G". Without a unit, it is in bytes.
///
/// # Errors
/// The reason why the text is refused.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let shift = match unit.strip_suffix("iB").or_else(|| unit.strip_suffix('B')).unwrap_or(unit) {
        "" => 0,
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("\"{unit}\" is not a unit of size; use K, M, G or T")),
    };
    let bytes = number * (1_u64 << shift) as f64;
    if bytes >= (1_u64 << 53) as f64 { Err("it is too large".into()) } else { Ok(bytes as u64) }
}

/// Parses a duration in seconds: 0.1 to one week.
///
/// # Errors
/// The reason why the text is refused.
pub fn seconds(text: &str) -> Result<f64, String> {
    const MOST: f64 = 7.0 * 86_400.0;
    let (number, unit) = split(text)?;
    match unit {
        "" | "s" if number < 0.1 => Err("it is less than 0.1".into()),
        "" | "s" if number > MOST => Err("it is more than a week".into()),
        "" | "s" => Ok(number),
        _ => Err("write a number of seconds".into()),
    }
}

/// Parses a rate, "fork=50": the actor's name and its operations per second.
///
/// # Errors
/// The reason why the text is refused.
pub fn rate(text: &str) -> Result<(String, f64), String> {
    const MOST: f64 = 100_000.0;
    let named = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, hertz) = named.ok_or("write NAME=HZ, as in fork=50")?;
    let (hertz, unit) = split(hertz)?;
    if !matches!(unit, "" | "Hz" | "hz" | "HZ") {
        return Err(format!("\"{unit}\" is not a unit of rate; write the number of operations per second"));
    }
    if hertz < 0.01 {
        return Err("it is less than 0.01 a second".into());
    }
    if hertz > MOST {
        return Err(format!("it is more than {MOST} a second"));
    }
    Ok((name.into(), hertz))
}

/// Parses a ratio of two figures, "1.5": from 1 to a million.
///
/// # Errors
/// The reason why the text is refused.
pub fn ratio(text: &str) -> Result<f64, String> {
    const MOST: f64 = 1e6;
    let (number, unit) = split(text)?;
    match unit {
        "" if number < 1.0 => Err("it is less than 1".into()),
        "" if number > MOST => Err("it is more than a million".into()),
        "" => Ok(number),
        _ => Err("write a ratio as a number, as in 1.5".into()),
    }
}

/// Splits a text into a number and its unit. Signs and exponents are refused, so that "1e9" is not read as a billion by
/// mistake.
fn split(text: &str) -> Result<(f64, &str), String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number = number.parse().map_err(|_| "it does not begin with a number".to_string())?;
    Ok((number, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies() {
        assert_eq!(latency("2ms"), Ok(Duration::from_millis(2)));
        assert_eq!(latency("500us"), Ok(Duration::from_micros(500)));
        assert_eq!(latency("500 µs"), Ok(Duration::from_micros(500)));
        assert_eq!(latency("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(latency("0ms"), Ok(Duration::ZERO));
        for wrong in
            ["", "ms", "2", "-2ms", "2 parsecs", "1e3ms", "1.2.3s", "11s", "99999999999999999999s", "∞"]
        {
            assert!(latency(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("1.5G"), Ok(3 << 29));
        assert_eq!(size("256 M"), Ok(256 << 20));
        for wrong in ["", "M", "-1M", "1X", "99999999999T", "1MM"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn spans_of_seconds() {
        assert_eq!(seconds("1"), Ok(1.0));
        assert_eq!(seconds("0.5s"), Ok(0.5));
        for wrong in ["0", "-1", "nan", "inf", "1e99", "10m", "99999999"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ratios() {
        assert_eq!(ratio("1.5"), Ok(1.5));
        assert_eq!(ratio("1"), Ok(1.0));
        for wrong in ["", ".", "0.99", "-2", "50%", "1.5x", "nan", "inf", "1e3", "1000001"] {
            assert!(ratio(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!(rate("fork=50"), Ok(("fork".into(), 50.0)));
        assert_eq!(rate("bystander=0.5"), Ok(("bystander".into(), 0.5)));
        for wrong in
            ["fork", "=5", "fork=", "fork=0", "fork=-1", "fork=nan", "fork=1e9", "fork=200000", "fork=5kHz"]
        {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
