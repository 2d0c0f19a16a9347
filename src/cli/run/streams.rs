//! The options of `pinfold run` about the command's streams. With any of them pinfold stands in between: it reads what the
//! command writes, and passes it on.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pinfold::output::are_one_output;
use pinfold::{Command, Pty, Size, Stdio};
use rustix::io::Errno;

use super::notify::Notify;
use super::ready::Ready;
use crate::cli::report_sink::{self, Destination, Sink};
use crate::cli::terminal::Terminal;
use crate::cli::{duration, open_output};

/// What a terminal has that nobody looks at.
const USUAL_SIZE: (u16, u16) = (24, 80);

/// What becomes of its output
#[derive(clap::Args)]
#[command(next_help_heading = "Output")]
pub struct StreamArgs {
    /// Give the command a terminal of its own, of which pinfold is the other side: it writes as for a person, wherever that goes
    ///
    /// It has a session of its own and, where pinfold has a terminal, that one's size and settings. A terminal's keys go
    /// through it: Ctrl-C is what the command makes of it, three within two seconds kill. Standard output and standard error are
    /// one then, and lines end with carriage return and newline.
    #[arg(long)]
    pub pty: bool,

    /// Stop the job when it has written nothing for so long; exit code 124
    #[arg(long, value_name = "DURATION", value_parser = duration::limit)]
    pub idle_timeout: Option<Duration>,

    /// Also write the output to this file, all of it
    #[arg(long, value_name = "FILE")]
    pub tee: Option<PathBuf>,

    /// Pass no more on of each stream: the first half as it comes, the last half at the end; what is between is left out
    ///
    /// Where both streams are one (2>&1, a terminal), that is one stream.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_output: Option<usize>,

    /// When the job is ready: line:TEXT (in a whole line of its output), port:[HOST:]PORT (it listens there), file:PATH (the file exists)
    #[arg(long, value_name = "WHAT", value_parser = Ready::parse)]
    pub ready: Option<Ready>,

    /// Stop a job that is not ready after this time; exit code 124
    #[arg(long, value_name = "DURATION", default_value = "1m", requires = "ready", value_parser = duration::limit)]
    pub ready_timeout: Duration,

    /// Write a line to this file or descriptor: "ready" when it is, "failed" when it ended before that
    #[arg(long, value_name = "FILE|fd:N", requires = "ready", value_parser = parse_notify)]
    pub ready_notify: Option<Destination>,

    /// The same, open.
    #[arg(skip)]
    pub notify: Option<Notify>,

    /// The file of --tee, open.
    #[arg(skip)]
    tee_file: Option<File>,

    /// Standard output and standard error are one output (`2>&1`), of pinfold and so of the command.
    #[arg(skip)]
    is_merged: bool,
}

impl StreamArgs {
    /// Whether pinfold reads the output.
    pub fn relays(&self) -> bool {
        let line = matches!(self.ready, Some(Ready::Line(_)));
        self.pty || self.idle_timeout.is_some() || self.tee.is_some() || self.max_output.is_some() || line
    }

    /// Whether all that the command writes comes in one stream: from a terminal, or where our own two streams are one.
    pub fn has_one_output(&self) -> bool {
        self.pty || self.is_merged
    }

    /// The first of all: its reader waits, whatever fails next.
    pub fn open_notify(&mut self) -> pinfold::Result<()> {
        self.notify = self.ready_notify.take().map(Notify::open).transpose()?;
        Ok(())
    }

    /// Says all that to the command.
    pub fn apply(&mut self, command: &mut Command, terminal: Option<&Terminal>) -> pinfold::Result<()> {
        if self.pty {
            command.pty(pty(terminal));
        } else if self.relays() {
            // /dev/null is open since then in the place of one that was closed.
            let are_open = !pinfold::was_closed(1) && !pinfold::was_closed(2);
            self.is_merged = are_open && are_one_output(io::stdout(), io::stderr());
            command.stdout(Stdio::Piped).stderr(Stdio::Piped).stderr_to_stdout(self.is_merged);
        }
        if let Some(timeout) = self.idle_timeout.filter(|timeout| *timeout < Duration::MAX) {
            command.idle_timeout(timeout);
        }
        if let Some(path) = &self.tee {
            let failed = |error| not_opened(path, &error);
            // What is in it is lost when there is a job, and not before.
            let file = open_output::open(path).map_err(failed)?;
            if self.notify.as_ref().is_some_and(|notify| notify.is(&file)) {
                // Not even "failed" goes there.
                self.notify = None;
                return Err(is_also(path, "--ready-notify"));
            }
            if !self.has_one_output() {
                command.tee_stderr(file.try_clone().map_err(failed)?);
            }
            command.tee_stdout(file.try_clone().map_err(failed)?);
            self.tee_file = Some(file);
        }
        Ok(())
    }

    /// Refuses what would wipe the output in the end.
    pub fn check_report(&self, report: &Sink) -> pinfold::Result<()> {
        match (&self.tee_file, &self.tee) {
            (Some(file), Some(path)) if report.is(file) => Err(is_also(path, "--report")),
            _ => Ok(()),
        }
    }

    /// Empties the file of `--tee`, into which nothing has been written yet.
    pub fn empty_tee(&self) -> pinfold::Result<()> {
        let (Some(file), Some(path)) = (&self.tee_file, &self.tee) else { return Ok(()) };
        let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
        if regular { file.set_len(0).map_err(|error| not_opened(path, &error)) } else { Ok(()) }
    }
}

fn is_also(path: &Path, option: &str) -> pinfold::Error {
    let advice = format!("it is the file of {option} too");
    pinfold::Error::Invalid { what: "--tee", value: path.display().to_string(), advice }
}

pub fn not_opened(path: &Path, error: &std::io::Error) -> pinfold::Error {
    let errno = Errno::from_io_error(error);
    pinfold::Error::System {
        operation: "open",
        object: format!("{}, for the output", path.display()),
        errno: errno.unwrap_or(Errno::NXIO),
        // One with words of its own is about a FIFO.
        advice: errno.map_or_else(|| error.to_string(), |_| String::new()),
    }
}

/// As the terminal that somebody looks at, if there is one. What pinfold passes on without a person is not to be echoed.
fn pty(terminal: Option<&Terminal>) -> Pty {
    let looked_at = terminal.and_then(|terminal| Pty::like(&terminal.tty).ok());
    let pty = looked_at.unwrap_or_else(|| Pty::new(USUAL_SIZE.0, USUAL_SIZE.1));
    if terminal.is_some_and(|terminal| terminal.is_stdin) { pty } else { pty.echo(false) }
}

fn parse_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(Size::Bytes(bytes)) => Ok(usize::try_from(bytes).unwrap_or(usize::MAX)),
        _ => Err("write bytes, 512K, 1.5M (powers of 1024)".into()),
    }
}

fn parse_notify(text: &str) -> Result<Destination, String> {
    match report_sink::parse(text.as_ref())? {
        Destination::Stdout => Err("standard output is the command's: write a file or fd:N".into()),
        destination => Ok(destination),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!((parse_size("1K"), parse_size("0")), (Ok(1024), Ok(0)));
        assert!(parse_size("50%").is_err() && parse_size("max").is_err() && parse_size("-1").is_err());
    }
}
