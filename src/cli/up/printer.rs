//! Prints the output of services: each line with the name of its service, in columns, and in colours on a terminal.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::output::Writer;
use crate::services::OutputLine;

/// The colours of the names (ECMA-48, "select graphic rendition"): cyan, yellow, green, magenta, blue, red.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

/// Prints to standard output or to standard error.
#[derive(Clone)]
pub struct Printer {
    writer: Arc<Writer>,
    /// The text before each line of a service.
    tags: Arc<HashMap<Arc<str>, String>>,
}

impl Printer {
    /// Returns a printer for these services. With `to_stderr`, it prints to standard error.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start<'a>(names: impl Iterator<Item = &'a str> + Clone, to_stderr: bool) -> Result<Self> {
        let (out, is_terminal) = match to_stderr {
            true => (std::io::stderr().as_fd().try_clone_to_owned(), std::io::stderr().is_terminal()),
            false => (std::io::stdout().as_fd().try_clone_to_owned(), std::io::stdout().is_terminal()),
        };
        let writer = Writer::start(out.context("cannot copy the output")?, "to print the output of services")?;
        // https://no-color.org: the variable counts when it is not empty.
        let in_colour = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Ok(Self { writer: Arc::new(writer), tags: Arc::new(tags(names, in_colour)) })
    }

    /// Prints a line. Waits while the reader of the output does not read.
    ///
    /// Cancel-safe.
    pub async fn print(&self, line: &OutputLine) {
        // `failed` reports the error.
        let _ = self.writer.ready().await;
        let mut text = self.tags.get(&line.service).cloned().unwrap_or_default().into_bytes();
        text.extend_from_slice(&line.line.bytes);
        text.push(b'\n');
        self.writer.push(&text);
    }

    /// Waits until a write has failed, and returns its error. Cancel-safe.
    pub async fn failed(&self) -> std::io::Error {
        self.writer.failed().await
    }

    /// Waits until everything is written, or can't be written. Cancel-safe.
    pub async fn flush(&self) {
        let _ = self.writer.flush().await;
    }
}

fn tags<'a>(names: impl Iterator<Item = &'a str> + Clone, in_colour: bool) -> HashMap<Arc<str>, String> {
    let width = names.clone().map(str::len).max().unwrap_or(0);
    let tag = |(number, name): (usize, &str)| {
        let tag = format!("{name:width$} |");
        let text = match in_colour {
            true => format!("\x1b[{}m{tag}\x1b[0m ", COLOURS[number % COLOURS.len()]),
            false => format!("{tag} "),
        };
        (name.into(), text)
    };
    names.enumerate().map(tag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_columns() {
        let all = tags(["db", "worker"].into_iter(), false);
        assert_eq!((&*all["db"], &*all["worker"]), ("db     | ", "worker | "));
        assert_eq!(tags(["db"].into_iter(), true)["db"], "\x1b[36mdb |\x1b[0m ");
    }
}
