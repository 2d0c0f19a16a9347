//! The command that receives each line of the input as an argument. `{}` stands for the unchanged line, `{q}` for the line
//! quoted for a shell.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

const RAW: &[u8] = b"{}";
const QUOTED: &[u8] = b"{q}";

/// Returns whether the word contains a placeholder for the line.
pub fn has_placeholder(word: &OsStr) -> bool {
    contains(word, RAW) || contains(word, QUOTED)
}

fn contains(word: &OsStr, placeholder: &[u8]) -> bool {
    word.as_bytes().windows(placeholder.len()).any(|part| part == placeholder)
}

/// Replaces every placeholder in a word with the line.
pub fn replace(word: &OsStr, line: &OsStr) -> OsString {
    let (mut rest, mut replaced) = (word.as_bytes(), Vec::new());
    while let Some(&byte) = rest.first() {
        if let Some(after) = rest.strip_prefix(RAW) {
            replaced.extend_from_slice(line.as_bytes());
            rest = after;
        } else if let Some(after) = rest.strip_prefix(QUOTED) {
            quote(line.as_bytes(), &mut replaced);
            rest = after;
        } else {
            replaced.push(byte);
            rest = &rest[1..];
        }
    }
    OsString::from_vec(replaced)
}

/// Quotes the line as one word for any POSIX shell (Shell Command Language, 2.2.2): in single quotes, between which
/// only a single quote is special.
fn quote(line: &[u8], quoted: &mut Vec<u8>) {
    quoted.push(b'\'');
    for &byte in line {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            byte => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
}

/// The programs that take code as an argument, and the letters of the options before that code.
const INTERPRETERS: [(&str, &[u8]); 14] = [
    ("sh", b"c"),
    ("bash", b"c"),
    ("dash", b"c"),
    ("ash", b"c"),
    ("ksh", b"c"),
    ("mksh", b"c"),
    ("zsh", b"c"),
    ("fish", b"c"),
    ("su", b"c"),
    ("python", b"c"),
    ("perl", b"eE"),
    ("ruby", b"e"),
    ("node", b"ep"),
    ("php", b"r"),
];

/// Returns the interpreter that would run the line as code, because `{}` is in its script. A line like `$(reboot)`
/// would then be a command.
pub fn runs_lines_as_code(command: &[OsString]) -> Option<String> {
    command.iter().enumerate().find_map(|(at, word)| {
        let name = word.as_bytes().rsplit(|&byte| byte == b'/').next()?;
        let name = std::str::from_utf8(name).ok()?;
        // The name may end with a version, as in python3.12.
        let base = name.trim_end_matches(|character: char| character.is_ascii_digit() || character == '.');
        let &(_, letters) = INTERPRETERS.iter().find(|(interpreter, _)| *interpreter == base)?;
        contains(script(&command[at + 1..], letters)?, RAW).then(|| name.to_owned())
    })
}

/// Returns the script among the arguments of an interpreter: the first word after the options, if one of the options
/// contains one of these letters.
fn script<'a>(arguments: &'a [OsString], letters: &[u8]) -> Option<&'a OsStr> {
    let mut is_code = false;
    let mut words = arguments.iter().map(OsString::as_os_str);
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        let is_option = matches!(bytes, [b'-' | b'+', _, ..]);
        match is_option {
            false => return is_code.then_some(word),
            true if bytes == b"--" => return words.next().filter(|_| is_code),
            true if bytes.starts_with(b"--") => {}
            true => {
                is_code |= bytes[0] == b'-' && bytes.iter().any(|byte| letters.contains(byte));
                // The argument of such an option is not a script, as in `bash -o pipefail -c`.
                if matches!(bytes, [.., b'o' | b'O']) {
                    words.next();
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders() {
        let replaced = |word: &str, line: &str| replace(word.as_ref(), line.as_ref());
        assert_eq!(replaced("{}", "x{}{q}"), "x{}{q}");
        assert_eq!(replaced("a{}{}b{", "x{}"), "ax{}x{}b{");
        assert_eq!(replaced("{", "x"), "{");
        assert_eq!(replaced("{q", "x"), "{q");
        assert_eq!(replaced("<{q}{}>", "a b"), "<'a b'a b>");
        assert_eq!(replaced("{q}", ""), "''");
        assert_eq!(replaced("{q}", "it's"), r"'it'\''s'");
        assert!(has_placeholder("a{q}".as_ref()) && has_placeholder("{}".as_ref()) && !has_placeholder("{ }".as_ref()));
    }

    #[test]
    fn scripts_that_contain_an_unquoted_line() {
        for (command, interpreter) in [
            ("sh -c x{}", Some("sh")),
            ("/bin/bash -ec {}", Some("bash")),
            ("bash -e -o pipefail -c {}", Some("bash")),
            ("bash --norc -c {}", Some("bash")),
            ("bash -c -- {}", Some("bash")),
            ("env A=b nice dash -c {}", Some("dash")),
            ("python3.12 -c print('{}')", Some("python3.12")),
            ("perl -ne {}", Some("perl")),
            ("sh -c {q}", None),
            ("sh -c x sh {}", None),
            ("sh script -c {}", None),
            ("sh {}", None),
            ("grep -c {}", None),
            ("echo sh", None),
            ("sh -c", None),
        ] {
            let words: Vec<OsString> = command.split(' ').map(Into::into).collect();
            assert_eq!(runs_lines_as_code(&words).as_deref(), interpreter, "{command}");
        }
    }

    proptest::proptest! {
        /// By the rule for single quotes, a shell reads the quoted line as the original line.
        #[test]
        fn a_quoted_line_is_one_word(line: Vec<u8>) {
            let mut quoted = Vec::new();
            quote(&line, &mut quoted);
            let (mut word, mut inside, mut bytes) = (Vec::new(), false, quoted.into_iter());
            while let Some(byte) = bytes.next() {
                match (byte, inside) {
                    (b'\'', _) => inside = !inside,
                    (b'\\', false) => word.extend(bytes.next()),
                    (byte, true) => word.push(byte),
                    (byte, false) => panic!("{byte} is not quoted"),
                }
            }
            proptest::prop_assert!(!inside);
            proptest::prop_assert_eq!(word, line);
        }
    }
}
