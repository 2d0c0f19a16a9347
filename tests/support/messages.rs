//! Messages whose text is the subject of a test: a snapshot in `snapshots/` next to the test holds them, and
//! `INSTA_UPDATE=always cargo test --all-features` writes all snapshots again.

use std::fmt::{Display, Formatter, Result, Write};

use super::{PINFOLD, PROJECT, TMP};

/// Messages, each below its cause.
#[derive(Default)]
pub struct Messages(String);

impl Messages {
    pub fn add(&mut self, cause: impl Display, message: &str) {
        let cause = cause.to_string();
        let indented: String = normalised(message).lines().map(|line| format!("    {line}\n")).collect();
        write!(self.0, "{}\n{indented}", normalised(&cause)).unwrap();
    }
}

impl Display for Messages {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(&self.0)
    }
}

/// Replaces what differs from one run or machine to another: the paths of this project and of scratch files, numbers of
/// processes, and times.
fn normalised(text: &str) -> String {
    let own = format!("-{}-", std::process::id());
    let text = text.replace(PINFOLD, "pinfold").replace(TMP, "TMP").replace(PROJECT, "PROJECT").replace(&own, "-");
    let words = text.split_inclusive(char::is_whitespace).map(|word| {
        let number = word.trim_matches(|letter: char| !letter.is_ascii_alphanumeric());
        let is_process = number.len() >= 3 && number.bytes().all(|byte| byte.is_ascii_digit());
        let is_time = number.contains('.') && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        // A backslash begins an escaped byte: '\001'.
        if (is_process || is_time) && !word.contains('\\') { word.replacen(number, "N", 1) } else { word.to_owned() }
    });
    words.collect()
}
