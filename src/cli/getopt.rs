//! Parses options as getopt_long(3) does, with the same messages, for the subcommands that replace other programs.
//!
//! Options end at the first operand or at `--`. A long option may be abbreviated as long as the abbreviation is unique.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// A long option, and the character that identifies it. Several names may have the same character.
pub struct LongOption {
    pub name: &'static str,
    pub takes_value: bool,
    pub id: char,
}

/// A parser for the options of a program. `short` has the format of getopt(3): `k:v` stands for `-k VALUE` and `-v`.
pub struct Parser<'a> {
    short: &'static str,
    long: &'static [LongOption],
    words: &'a [OsString],
    /// The rest of a word of short options, such as `v` after `-k` in `-kv`.
    cluster: &'a [u8],
}

/// An option, and its value if it takes one.
pub type Found = (char, Option<OsString>);

impl<'a> Parser<'a> {
    pub fn new(short: &'static str, long: &'static [LongOption], words: &'a [OsString]) -> Self {
        Self { short, long, words, cluster: &[] }
    }

    /// Returns the next option, or `None` at the operands. An error has getopt's text, with the bytes of the argument
    /// unchanged.
    pub fn next(&mut self) -> Option<Result<Found, Vec<u8>>> {
        if let Some((&letter, rest)) = self.cluster.split_first() {
            self.cluster = rest;
            return Some(self.short_option(letter));
        }
        let (word, rest) = self.words.split_first()?;
        match word.as_bytes() {
            b"--" => {
                self.words = rest;
                None
            }
            [b'-', b'-', long @ ..] => {
                self.words = rest;
                Some(self.long_option(long))
            }
            [b'-', letter, cluster @ ..] => {
                self.words = rest;
                self.cluster = cluster;
                Some(self.short_option(*letter))
            }
            _ => None,
        }
    }

    /// Returns the words after the options.
    pub fn operands(&self) -> &'a [OsString] {
        self.words
    }

    fn take_word(&mut self) -> Option<OsString> {
        let (word, rest) = self.words.split_first()?;
        self.words = rest;
        Some(word.clone())
    }

    fn short_option(&mut self, letter: u8) -> Result<Found, Vec<u8>> {
        let at = self.short.bytes().position(|known| known == letter && known != b':');
        let Some(at) = at else { return Err([b"invalid option -- '".as_slice(), &[letter], b"'"].concat()) };
        let id = char::from(letter);
        if self.short.as_bytes().get(at + 1) != Some(&b':') {
            return Ok((id, None));
        }
        let attached = std::mem::take(&mut self.cluster);
        if !attached.is_empty() {
            return Ok((id, Some(OsStr::from_bytes(attached).to_owned())));
        }
        match self.take_word() {
            Some(value) => Ok((id, Some(value))),
            None => Err(format!("option requires an argument -- '{id}'").into_bytes()),
        }
    }

    fn long_option(&mut self, text: &[u8]) -> Result<Found, Vec<u8>> {
        let (name, value) = match text.iter().position(|&byte| byte == b'=') {
            Some(at) => (&text[..at], Some(OsString::from_vec(text[at + 1..].to_vec()))),
            None => (text, None),
        };
        let exact = self.long.iter().find(|option| option.name.as_bytes() == name);
        let option = match exact {
            Some(option) => option,
            None => {
                let matching: Vec<_> =
                    self.long.iter().filter(|option| option.name.as_bytes().starts_with(name)).collect();
                match matching.as_slice() {
                    [] => return Err([b"unrecognized option '--", text, b"'"].concat()),
                    [first, rest @ ..] if rest.iter().all(|option| option.id == first.id) => *first,
                    several => {
                        let names: String = several.iter().map(|option| format!(" '--{}'", option.name)).collect();
                        let possibilities = format!("' is ambiguous; possibilities:{names}");
                        return Err([b"option '--", text, possibilities.as_bytes()].concat());
                    }
                }
            }
        };
        match (option.takes_value, value) {
            (false, Some(_)) => Err(format!("option '--{}' doesn't allow an argument", option.name).into_bytes()),
            (false, None) => Ok((option.id, None)),
            (true, value) => match value.or_else(|| self.take_word()) {
                Some(value) => Ok((option.id, Some(value))),
                None => Err(format!("option '--{}' requires an argument", option.name).into_bytes()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &[LongOption] = &[
        LongOption { name: "signal", takes_value: true, id: 's' },
        LongOption { name: "verbose", takes_value: false, id: 'v' },
        LongOption { name: "version", takes_value: false, id: 'V' },
    ];

    /// Returns each option as its letter and value, and then the error message or the operands.
    fn parsed(words: &[&str]) -> String {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let mut parser = Parser::new("s:v", LONG, &words);
        let mut result = String::new();
        while let Some(found) = parser.next() {
            match found {
                Ok((id, value)) => result += &format!("{id}{} ", value.unwrap_or_default().display()),
                Err(message) => return result + &String::from_utf8(message).unwrap(),
            }
        }
        result + &format!("{:?}", parser.operands())
    }

    #[test]
    fn valid_options() {
        for (words, expected) in [
            (&["-vs9", "a", "-v"][..], r#"v s9 ["a", "-v"]"#),
            (&["-s", "-v", "--", "-v"], r#"s-v ["-v"]"#),
            (&["--sig", "9", "--verb", "-"], r#"s9 v ["-"]"#),
            (&["--signal=", "x"], r#"s ["x"]"#),
        ] {
            assert_eq!(parsed(words), expected, "{words:?}");
        }
    }

    #[test]
    fn error_messages() {
        for (words, expected) in [
            (&["-vx"][..], "v invalid option -- 'x'"),
            (&["-:"], "invalid option -- ':'"),
            (&["-vs"], "v option requires an argument -- 's'"),
            (&["--s"], "option '--signal' requires an argument"),
            (&["--verbose=1"], "option '--verbose' doesn't allow an argument"),
            (&["--ver"], "option '--ver' is ambiguous; possibilities: '--verbose' '--version'"),
            (&["--nosuch=1"], "unrecognized option '--nosuch=1'"),
        ] {
            assert_eq!(parsed(words), expected, "{words:?}");
        }
    }
}
