//! Durations as people write them: `1h30m`, `2.5s`, `500ms`, and plain seconds.

use std::time::Duration;

/// A duration; `5` and `1.5` are seconds.
pub fn parse(text: &str) -> Result<Duration, String> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let with_unit = if plain { format!("{text}s") } else { text.to_owned() };
    humantime::parse_duration(&with_unit)
        .map_err(|error| format!("{error}; write 1h30m, 2.5s, 500ms, or plain seconds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        for (text, millis) in [
            ("1h30m", 5_400_000),
            ("2.5s", 2_500),
            ("500ms", 500),
            ("7", 7_000),
            ("0.25", 250),
            ("0", 0),
            ("1m 1s", 61_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_none() {
        for text in [
            "",
            "-1",
            "-1s",
            "abc",
            "1x",
            "1e3",
            ".",
            "1.2.3",
            "99999999999999999999",
            "99999999999999999999h",
            "inf",
            "NaN",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = parse(&text);
        }
    }
}
