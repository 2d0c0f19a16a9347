//! The options of `pinfold run` about the command's streams. With any of them, pinfold reads the command's output and
//! forwards it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::kernel::inherited;
use crate::output::are_one_output;
use crate::{Command, Pty, Readiness, Size, Stdio};
use rustix::io::Errno;

use super::notify::Notify;
use super::ready;
use crate::cli::report_sink::{self, Destination, Sink};
use crate::cli::terminal::Terminal;
use crate::cli::{duration, open_output};

/// The size of the command's terminal where pinfold itself has no terminal: rows and columns.
const DEFAULT_SIZE: (u16, u16) = (24, 80);

/// The output of the command
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Output")]
pub struct StreamArgs {
    /// Give the command a terminal of its own, so that it writes as it does on a terminal; pinfold forwards its output
    ///
    /// The command has a session of its own. Where pinfold has a terminal, the command's terminal has the same size and
    /// settings, and receives all keys: the command decides what Ctrl-C does. Three Ctrl-C within two seconds kill the
    /// job. Standard output and standard error are one stream then, and lines end with carriage return and newline.
    #[arg(long)]
    pub pty: bool,

    /// Stop the job when it has written nothing for this time; exit code 124
    #[arg(long, value_name = "DURATION", value_parser = duration::limit)]
    pub idle_timeout: Option<Duration>,

    /// Also write the complete output to this file
    #[arg(long, value_name = "FILE")]
    pub tee: Option<PathBuf>,

    /// Forward at most this much of each stream: half of it from the beginning, at once, and half from the end, when the
    /// stream ends
    ///
    /// pinfold leaves out the part between them. Standard output and standard error count as one stream where they are
    /// the same (2>&1, or a terminal).
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_output: Option<usize>,

    /// How to see that the job is ready: line:TEXT (a complete line of its output contains TEXT), port:[HOST:]PORT (a
    /// process listens there), file:PATH (the file exists)
    #[arg(long, value_name = "WHAT", value_parser = ready::parse)]
    pub ready: Option<Readiness>,

    /// Stop a job that is not ready after this time; exit code 124
    #[arg(long, value_name = "DURATION", default_value = "1m", requires = "ready", value_parser = duration::limit)]
    pub ready_timeout: Duration,

    /// Write a line to this file or descriptor: "ready" when the job is ready, "failed" when it will not become ready
    #[arg(long, value_name = "FILE|fd:N", requires = "ready", value_parser = parse_notify)]
    pub ready_notify: Option<Destination>,

    /// The destination of --ready-notify, open.
    #[arg(skip)]
    pub notify: Option<Notify>,

    /// The file of --tee, open.
    #[arg(skip)]
    tee_file: Option<File>,

    /// Standard output and standard error of pinfold, and so of the command, are the same output (`2>&1`).
    #[arg(skip)]
    is_merged: bool,
}

impl Default for StreamArgs {
    /// Returns the defaults of the options.
    fn default() -> Self {
        Self {
            pty: false,
            idle_timeout: None,
            tee: None,
            max_output: None,
            ready: None,
            ready_timeout: Duration::from_secs(60),
            ready_notify: None,
            notify: None,
            tee_file: None,
            is_merged: false,
        }
    }
}

impl StreamArgs {
    /// Returns whether pinfold reads the output.
    pub fn relays(&self) -> bool {
        let line = self.ready.as_ref().is_some_and(Readiness::needs_output);
        self.pty || self.idle_timeout.is_some() || self.tee.is_some() || self.max_output.is_some() || line
    }

    /// Returns whether all output of the command comes in one stream: from a terminal, or where pinfold's own two
    /// streams are one.
    pub fn has_one_output(&self) -> bool {
        self.pty || self.is_merged
    }

    /// Opens the destination of `--ready-notify`. Call this before all other steps: the reader must receive a line even
    /// if a later step fails.
    pub fn open_notify(&mut self) -> crate::Result<()> {
        self.notify = self.ready_notify.take().map(Notify::open).transpose()?;
        Ok(())
    }

    /// Applies these options to the command.
    pub fn apply(&mut self, command: &mut Command, terminal: Option<&Terminal>) -> crate::Result<()> {
        if self.pty {
            command.pty(pty(terminal));
        } else if self.relays() {
            // A stream that was closed at the start is now /dev/null, and does not count.
            let are_open = !inherited::was_closed(1) && !inherited::was_closed(2);
            self.is_merged = are_open && are_one_output(io::stdout(), io::stderr());
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).stderr_to_stdout(self.is_merged);
        }
        if let Some(timeout) = self.idle_timeout.filter(|timeout| *timeout < Duration::MAX) {
            command.idle_timeout(timeout);
        }
        if let Some(path) = &self.tee {
            let failed = |error| not_opened(path, &error);
            // The open does not empty the file. pinfold empties it only when the job exists.
            let file = open_output::open(path).map_err(failed)?;
            if self.notify.as_ref().is_some_and(|notify| notify.is_same_file(&file)) {
                // Not even "failed" may be written there: it would overwrite the file.
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

    /// Refuses a report that goes to the file of `--tee`: at the end it would overwrite the output.
    pub fn check_report(&self, report: &Sink) -> crate::Result<()> {
        match (&self.tee_file, &self.tee) {
            (Some(file), Some(path)) if report.is_same_file(file) => Err(is_also(path, "--report")),
            _ => Ok(()),
        }
    }

    /// Empties the file of `--tee`, before anything is written into it.
    pub fn empty_tee(&self) -> crate::Result<()> {
        let (Some(file), Some(path)) = (&self.tee_file, &self.tee) else { return Ok(()) };
        let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
        if regular { file.set_len(0).map_err(|error| not_opened(path, &error)) } else { Ok(()) }
    }
}

fn is_also(path: &Path, option: &str) -> crate::Error {
    let advice = format!("it is the file of {option} too");
    crate::Error::Invalid { what: "--tee", value: path.display().to_string(), advice }
}

pub fn not_opened(path: &Path, error: &std::io::Error) -> crate::Error {
    let errno = Errno::from_io_error(error);
    crate::Error::System {
        operation: "open",
        object: format!("{}, for the output", path.display()),
        source: errno.unwrap_or(Errno::NXIO).into(),
        // An error without an errno is about a FIFO, and has its own message.
        advice: errno.map_or_else(|| error.to_string(), |_| String::new()),
    }
}

/// Returns a terminal with the size and settings of pinfold's own, if there is one. If standard input is not a
/// terminal, no user types, so the new terminal does not echo its input.
fn pty(terminal: Option<&Terminal>) -> Pty {
    let like_ours = terminal.and_then(|terminal| Pty::like(&terminal.tty).ok());
    let pty = like_ours.unwrap_or_else(|| Pty::new(DEFAULT_SIZE.0, DEFAULT_SIZE.1));
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
