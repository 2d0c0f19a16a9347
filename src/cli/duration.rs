//! Parses durations: `1h30m`, `2.5s`, `500ms`, plain seconds as in timeout(1), and `inf`.

use std::time::Duration;

/// The advice at the end of each message.
const FORMS: &str = "write 1h30m, 2.5s, 500ms, plain seconds, or inf";

/// Parses a duration. `5`, `1.5`, `.5` and `1e3` are seconds; `inf` is [`Duration::MAX`], which no clock reaches.
///
/// # Errors
/// A message with the reason and the valid forms. Control characters of the value are escaped in it.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = |why: String| format!("{why}; {FORMS}");
    let trimmed = text.trim();
    if trimmed.starts_with('-') {
        return Err(wrong("it must not be negative".into()));
    }
    if trimmed.eq_ignore_ascii_case("inf") || trimmed.eq_ignore_ascii_case("infinity") {
        return Ok(Duration::MAX);
    }
    let mut rest = trimmed;
    let mut sum = Duration::ZERO;
    let mut parts = 0;
    loop {
        let (number, after) = number(rest);
        let after = after.trim_start();
        let end = after.find(|character: char| !character.is_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        if number.is_empty() {
            let why = if rest.is_empty() { "it is empty".into() } else { format!("'{}' is not a number", shown(rest)) };
            return Err(wrong(why));
        }
        if unit.is_empty() && (parts > 0 || !after.is_empty()) {
            return Err(wrong(format!("'{number}' has no unit")));
        }
        let unit = unit_length(unit).map_err(wrong)?;
        let too_long = || wrong("it is too long".into());
        let part = times(number, unit).map_err(|what| wrong(format!("'{number}' is {what}")))?;
        sum = sum.checked_add(part).ok_or_else(too_long)?;
        parts += 1;
        rest = after.trim_start();
        if rest.is_empty() {
            return Ok(sum);
        }
    }
}

/// Parses a limit on time, as [`parse`] does, but 0 means no limit, as in timeout(1).
///
/// # Errors
/// Those of [`parse`].
pub fn limit(text: &str) -> Result<Duration, String> {
    parse(text).map(|limit| if limit.is_zero() { Duration::MAX } else { limit })
}

/// Splits the text into the number at its beginning, with the exponent if there is one, and the rest.
fn number(text: &str) -> (&str, &str) {
    let digits = |from: usize| {
        let end = text[from..].find(|character: char| !character.is_ascii_digit());
        end.map_or(text.len(), |end| from + end)
    };
    let mut end = digits(0);
    if text[end..].starts_with('.') {
        end = digits(end + 1);
    }
    if end > 0 && text[end..].starts_with(['e', 'E']) {
        let sign = usize::from(text[end + 1..].starts_with(['+', '-']));
        let exponent = digits(end + 1 + sign);
        if exponent > end + 1 + sign {
            end = exponent;
        }
    }
    text.split_at(end)
}

/// Returns the length of a unit in nanoseconds. In nanoseconds, each unit is a whole number.
fn unit_length(unit: &str) -> Result<u64, String> {
    const SECOND: u64 = 1_000_000_000;
    const DAY: u64 = 86_400 * SECOND;
    Ok(match unit {
        "ns" | "nsec" | "nanos" => 1,
        "us" | "µs" | "μs" | "usec" | "micros" => 1_000,
        "ms" | "msec" | "millis" => 1_000_000,
        "" | "s" | "sec" | "secs" | "second" | "seconds" => SECOND,
        "m" | "min" | "mins" | "minute" | "minutes" => 60 * SECOND,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3_600 * SECOND,
        "d" | "day" | "days" => DAY,
        "w" | "week" | "weeks" => 7 * DAY,
        // The mean length in the Gregorian calendar.
        "month" | "months" => 2_629_746 * SECOND,
        "y" | "year" | "years" => 31_556_952 * SECOND,
        "M" => return Err("'M' is ambiguous: m is minutes, month is months".into()),
        unit => return Err(format!("'{}' is not a unit", shown(unit))),
    })
}

/// Returns `number` times `unit`. The result is exact if the number is whole.
fn times(number: &str, unit: u64) -> Result<Duration, &'static str> {
    if let Ok(whole) = number.parse::<u64>() {
        let nanos = u128::from(whole) * u128::from(unit);
        let seconds = u64::try_from(nanos / 1_000_000_000).map_err(|_| "too long")?;
        return Ok(Duration::new(seconds, (nanos % 1_000_000_000) as u32));
    }
    // Such as "." or "1.2.3".
    let number: f64 = number.parse().map_err(|_| "not a number")?;
    Duration::try_from_secs_f64(number * (unit as f64 / 1e9)).map_err(|_| "too long")
}

fn shown(text: &str) -> String {
    crate::report::text::printable(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_durations() {
        for (text, millis) in [
            ("1h30m", 5_400_000),
            ("2.5s", 2_500),
            ("500ms", 500),
            ("7", 7_000),
            ("0.25", 250),
            ("0", 0),
            ("1m 1s", 61_000),
            (".5", 500),
            ("5.", 5_000),
            ("1e3", 1_000_000),
            ("1.5e-1", 150),
            ("1E2ms", 100),
            (".5h", 1_800_000),
            ("2 days", 172_800_000),
            ("1month", 2_629_746_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["inf", "INF", "infinity", " inf "] {
            assert_eq!(parse(text), Ok(Duration::MAX), "{text}");
        }
        assert_eq!(parse("18446744073709551615"), Ok(Duration::from_secs(u64::MAX)));
        assert_eq!((limit("0"), limit("0s"), limit("1")), (Ok(Duration::MAX), Ok(Duration::MAX), parse("1")));
    }

    #[test]
    fn invalid_durations() {
        for text in [
            "",
            " ",
            "-1",
            "-1s",
            "-inf",
            "abc",
            "1x",
            ".",
            "s",
            "1.2.3",
            "1 2",
            "1s2",
            "99999999999999999999",
            "99999999999999999999h",
            "1e400",
            "1e",
            "NaN",
            "infs",
            "5M",
            "1h5M",
            "1s\u{1b}[2J",
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains("write 1h30m") && !why.contains('\u{1b}'), "{text}: {why}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = parse(&text);
        }

        #[test]
        fn no_number_with_a_unit_panics(text in "[0-9.eE+-]{0,8}[a-zµM]{0,3}") {
            let _ = parse(&text);
        }
    }
}
