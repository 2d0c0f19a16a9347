//! Text that pinfold did not write (names, arguments, paths, the output of a job), in messages for people.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Returns the text with every character that acts on a terminal replaced by an escape sequence as in C: control
/// characters (a terminal's escape sequences start with one), newlines, and characters that change the direction or the
/// lines of text.
///
/// So a message that contains text from outside stays one line, and no other program can add a line that looks like a
/// message of pinfold.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().any(acts_on_terminal) { Cow::Owned(escape(text.as_bytes())) } else { Cow::Borrowed(text) }
}

/// Does the same as [`printable`] for bytes. Bytes that are not valid UTF-8 are written in octal, for example `\377`.
#[must_use]
pub fn printable_bytes(bytes: &[u8]) -> Cow<'_, str> {
    str::from_utf8(bytes).map_or_else(|_| Cow::Owned(escape(bytes)), printable)
}

/// Does the same as [`printable`] for an argument or an environment variable.
#[must_use]
pub fn printable_os(text: &OsStr) -> Cow<'_, str> {
    printable_bytes(text.as_bytes())
}

/// Does the same as [`printable`] for a path.
#[must_use]
pub fn printable_path(path: &Path) -> Cow<'_, str> {
    printable_os(path.as_os_str())
}

/// Returns a number with its noun, for example `1 process` and `2 processes`.
#[must_use]
#[cfg(any(feature = "cli", feature = "services"))]
pub fn counted(count: usize, noun: &str) -> String {
    let ending = match (count, noun.ends_with("ss")) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{count} {noun}{ending}")
}

/// Returns a whole message in a form that is safe for a terminal. A newline stays only if two spaces follow it, as in
/// the lists of pinfold's messages; every other newline is escaped. The code that makes a message applies [`printable`]
/// to each value in it. This function is a second safeguard for values that this code missed.
#[must_use]
pub fn printable_message(message: &str) -> Cow<'_, str> {
    if !message.chars().any(acts_on_terminal) {
        return Cow::Borrowed(message);
    }
    let mut lines = message.split('\n');
    let mut text = printable(lines.next().unwrap_or_default()).into_owned();
    for line in lines {
        text.push_str(if line.starts_with("  ") { "\n" } else { "\\n" });
        text.push_str(&printable(line));
    }
    Cow::Owned(text)
}

fn escape(bytes: &[u8]) -> String {
    let mut escaped = String::with_capacity(bytes.len() + 8);
    let octal = |bytes: &[u8], escaped: &mut String| {
        bytes.iter().for_each(|byte| escaped.push_str(&format!("\\{byte:03o}")));
    };
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\n' => escaped.push_str("\\n"),
                '\r' => escaped.push_str("\\r"),
                '\t' => escaped.push_str("\\t"),
                _ if acts_on_terminal(character) => octal(character.encode_utf8(&mut [0; 4]).as_bytes(), &mut escaped),
                _ => escaped.push(character),
            }
        }
        octal(chunk.invalid(), &mut escaped);
    }
    escaped
}

/// Returns whether a terminal acts on this character instead of displaying it: Unicode's control characters (C0, DEL,
/// and C1, where U+009B starts an escape sequence), line separators, and direction marks (Unicode Standard Annex 9).
fn acts_on_terminal(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_act_on_a_terminal_are_escaped() {
        for (text, shown) in [
            ("plain ‘text’ 日本", "plain ‘text’ 日本"),
            ("größe 1", "größe 1"),
            ("a file\u{1b}[2J\npinfold: all good", r"a file\033[2J\npinfold: all good"),
            ("a\nb\r\tc", r"a\nb\r\tc"),
            ("\u{1b}[31m\u{7}\u{7f}", r"\033[31m\007\177"),
            ("\u{9b}2J", r"\302\2332J"),
            ("\u{202e}gnp.exe\u{2066}", r"\342\200\256gnp.exe\342\201\246"),
            (r"back\slash", r"back\slash"),
        ] {
            assert_eq!(printable(text), shown);
        }
        assert_eq!(printable_bytes(b"b\xffd\n"), r"b\377d\n");
        assert_eq!(printable_bytes(b"\xc2"), r"\302");
    }

    #[test]
    fn a_message_keeps_only_the_newlines_of_its_list() {
        let message = "no cgroup:\n  a: b\u{1b}\n  c\npinfold: all good";
        assert_eq!(printable_message(message), "no cgroup:\n  a: b\\033\n  c\\npinfold: all good");
    }

    proptest::proptest! {
        #[test]
        fn the_result_has_no_character_that_acts(bytes: Vec<u8>) {
            assert!(!printable_bytes(&bytes).chars().any(acts_on_terminal));
        }
    }
}
