//! Explains errors in the arguments to the user, and prints the help.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::report::text::{printable, printable_message, printable_os};

use super::{FAILED, print_message, write, write_to_stderr};

/// Prints why clap does not accept `words`, or the requested help or version. Control characters in text from the
/// command line are escaped. Returns the exit code.
pub fn print(error: clap::Error, words: &[OsString]) -> u8 {
    if !error.use_stderr() {
        return print_help(&error);
    }
    match explain(error, words) {
        Explained::Unchanged(error) => drop(error.print()),
        Explained::Text(text) => write_to_stderr(text.as_bytes()),
    }
    FAILED
}

/// Prints the help or the version. Returns the exit code.
fn print_help(error: &clap::Error) -> u8 {
    let printed = match std::io::stdout().is_terminal() {
        true => error.print(),
        false => write::print(&error.render().to_string()),
    };
    match printed {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            print_message(&format!("cannot write to standard output: {error}"));
            FAILED
        }
        _ => 0,
    }
}

enum Explained {
    /// clap's own message, which contains no control characters. clap prints it in colour if the terminal supports
    /// that.
    Unchanged(clap::Error),
    /// A text in which control characters are escaped.
    Text(String),
}

fn explain(mut error: clap::Error, words: &[OsString]) -> Explained {
    if error.kind() == ErrorKind::InvalidUtf8
        && let Some(word) = options(words).iter().find(|word| word.to_str().is_none())
    {
        let word = printable_os(word);
        return Explained::Text(format!("error: the argument '{word}' is not valid UTF-8, which the option needs\n"));
    }
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(text) = negative(&error, words)
    {
        return Explained::Text(text);
    }
    let plain = |error: &clap::Error| error.render().to_string();
    if plain(&error).lines().all(|line| printable(line) == line) && !has_newline(&error) {
        return Explained::Unchanged(error);
    }
    let escaped: Vec<_> = error.context().map(|(kind, value)| (kind, quoted(value))).collect();
    for (kind, value) in escaped {
        match value {
            Some(value) => drop(error.insert(kind, value)),
            // A suggestion may repeat the text.
            None if kind == ContextKind::Suggested => drop(error.remove(kind)),
            None => {}
        }
    }
    let lines: Vec<_> = plain(&error).lines().map(|line| printable_message(line).into_owned()).collect();
    Explained::Text(lines.join("\n") + "\n")
}

/// Returns the value with control characters escaped; `None` for a kind of value that is not printed as plain text.
fn quoted(value: &ContextValue) -> Option<ContextValue> {
    match value {
        ContextValue::String(text) => Some(ContextValue::String(printable(text).into_owned())),
        ContextValue::Strings(texts) => {
            Some(ContextValue::Strings(texts.iter().map(|text| printable(text).into_owned()).collect()))
        }
        _ => None,
    }
}

fn has_newline(error: &clap::Error) -> bool {
    error.context().any(|(_, value)| match value {
        ContextValue::String(text) => text.contains('\n'),
        ContextValue::Strings(texts) => texts.iter().any(|text| text.contains('\n')),
        _ => false,
    })
}

/// Returns the message for a negative number, as in `--grace -1`. clap treats `-1` as an unknown option.
fn negative(error: &clap::Error, words: &[OsString]) -> Option<String> {
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else { return None };
    let mut bytes = unknown.bytes();
    let number = bytes.next() == Some(b'-') && bytes.next().is_some_and(|byte| byte.is_ascii_digit() || byte == b'.');
    if !number {
        return None;
    }
    let words = options(words);
    let at = words.iter().position(|word| word.as_bytes().starts_with(unknown.as_bytes()))?;
    let option = words.get(at.checked_sub(1)?)?.to_str().filter(|option| option.starts_with('-'))?;
    let value = printable_os(&words[at]);
    Some(format!("error: invalid value '{value}' for '{}': it must not be negative\n", printable(option)))
}

/// Returns the words before the command.
fn options(words: &[OsString]) -> &[OsString] {
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    &words[..end]
}
