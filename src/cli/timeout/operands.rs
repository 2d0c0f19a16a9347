//! Parses durations and signals as coreutils' timeout(1) does.

use std::ffi::{CStr, CString};
use std::time::Duration;

use crate::Signal;

/// Parses a duration: a number in the format of strtod(3), and a unit. Returns `Some(None)` for no time limit: for 0,
/// which switches the timeout off, and for a duration that is too long for a clock. Returns `None` if the text is not a
/// duration.
pub fn duration(text: &[u8]) -> Option<Option<Duration>> {
    let text = CString::new(text).ok()?;
    let (value, length, underflow) = number(&text);
    let seconds = match &text.to_bytes()[length..] {
        _ if length == 0 => return None,
        b"" | b"s" => value,
        b"m" => value * 60.0,
        b"h" => value * 3_600.0,
        b"d" => value * 86_400.0,
        _ => return None,
    };
    // A negative duration is invalid, even if its value is so close to 0 that no floating-point number can hold it.
    if seconds.is_nan() || seconds < 0.0 || (underflow && seconds.is_sign_negative()) {
        return None;
    }
    if seconds == 0.0 && !underflow {
        return Some(None);
    }
    // A very short duration is rounded up to one nanosecond, because 0 would mean no time limit.
    Some(Duration::try_from_secs_f64(seconds).ok().map(|duration| duration.max(Duration::from_nanos(1))))
}

/// Returns the number at the beginning of the text, its length, and whether it is 0 only because it is too small. The
/// number may have the format of the C locale or of the environment's locale; the one that reads more of the text
/// counts.
#[allow(unsafe_code)]
fn number(text: &CStr) -> (f64, usize, bool) {
    let read = || {
        let mut end = std::ptr::null_mut();
        // SAFETY: the string ends with NUL, and strtod(3) sets `end` to a place inside of it. errno belongs to this
        // thread.
        unsafe {
            *libc::__errno_location() = 0;
            let value = libc::strtod(text.as_ptr(), &raw mut end);
            let length = end.cast_const().offset_from(text.as_ptr()) as usize;
            (value, length, value == 0.0 && *libc::__errno_location() == libc::ERANGE)
        }
    };
    let in_c = read();
    if in_c.1 == text.to_bytes().len() {
        return in_c;
    }
    // SAFETY: the process has one thread, and the strings are constants.
    let in_locale = unsafe {
        libc::setlocale(libc::LC_NUMERIC, c"".as_ptr());
        let read = read();
        libc::setlocale(libc::LC_NUMERIC, c"C".as_ptr());
        read
    };
    if in_locale.1 > in_c.1 { in_locale } else { in_c }
}

/// Parses a signal and returns its number. 0 is `EXIT`, which only checks whether a process exists. A number may also
/// be the status that a shell or wait(2) returns for a process that a signal ended: 143 is TERM.
pub fn signal(text: &[u8]) -> Option<i32> {
    let text = std::str::from_utf8(text).ok()?;
    let number = if text.starts_with(|first: char| first.is_ascii_digit()) {
        let number = text.parse::<i32>().ok()?;
        number & if number >= 0xff { 0xff } else { 0x7f }
    } else {
        let upper = text.to_ascii_uppercase();
        named(&upper).or_else(|| upper.strip_prefix("SIG").and_then(named))?
    };
    (0..=64).contains(&number).then_some(number)
}

fn named(name: &str) -> Option<i32> {
    if name.starts_with(|first: char| first.is_ascii_digit()) {
        return name.parse().ok();
    }
    let offset = |rest: &str| {
        let rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
        if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() }
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest).filter(|offset| (0..=30).contains(offset)).map(|offset| 34 + offset);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return offset(rest).filter(|offset| (-30..=0).contains(offset)).map(|offset| 64 + offset);
    }
    match name {
        "EXIT" => Some(0),
        // The caller has already removed one `SIG`.
        name if name.starts_with("SIG") => None,
        name => name.parse().ok().map(Signal::number),
    }
}

/// Returns the name of a signal as timeout's messages print it.
pub fn signal_name(number: i32) -> String {
    match number {
        libc::SIGPOLL => "POLL".into(),
        34 => "RTMIN".into(),
        35..=49 => format!("RTMIN+{}", number - 34),
        50..=63 => format!("RTMAX-{}", 64 - number),
        64 => "RTMAX".into(),
        _ => match Signal::from_number(number).map(|signal| signal.to_string()) {
            Some(name) => name.strip_prefix("SIG").unwrap_or(&name).to_owned(),
            None => number.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let seconds = |text: &str| duration(text.as_bytes()).map(|parsed| parsed.map(|parsed| parsed.as_secs_f64()));
        for (text, expected) in [
            ("5", 5.0),
            ("1.5m", 90.0),
            (".5", 0.5),
            ("5.", 5.0),
            (" +1", 1.0),
            ("2h", 7200.0),
            ("1d", 86_400.0),
            ("0x1d", 29.0),
            ("0x1p-3", 0.125),
            ("1e3s", 1000.0),
            ("1e-12", 1e-9),
            ("1e-5000", 1e-9),
        ] {
            assert_eq!(seconds(text), Some(Some(expected)), "{text}");
        }
        for text in ["0", "-0", "0d", "0x0", "inf", "infinity", "INFd", "1e400", "1e308d", "1e30"] {
            assert_eq!(seconds(text), Some(None), "{text}");
        }
        for text in ["", "s", "-1", "-1e-5000", "nan", "1S", "1ss", "1 ", "1e", "1w", ".", "x", "--1"] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    #[test]
    fn signals() {
        for (text, expected) in [
            ("TERM", 15),
            ("sigterm", 15),
            ("SIG9", 9),
            ("09", 9),
            ("143", 15),
            ("256", 0),
            ("271", 15),
            ("32", 32),
            ("EXIT", 0),
            ("cld", 17),
            ("IOT", 6),
            ("io", 29),
            ("RTMIN+3", 37),
            ("RTMIN3", 37),
            ("rtmin 3", 37),
            ("RTMAX-3", 61),
            ("64", 64),
        ] {
            assert_eq!(signal(text.as_bytes()), Some(expected), "{text}");
        }
        for text in
            ["", "-1", "65", "255", "399", "1x", "SIGSIGTERM", "RTMIN+31", "RTMAX+1", " 9", "LOST", "9999999999"]
        {
            assert_eq!(signal(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn names() {
        for (number, name) in
            [(15, "TERM"), (29, "POLL"), (34, "RTMIN"), (49, "RTMIN+15"), (50, "RTMAX-14"), (0, "0"), (33, "33")]
        {
            assert_eq!(signal_name(number), name);
        }
    }
}
