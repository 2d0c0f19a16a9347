//! Settings of a command for its standard streams: where they go, idle timeout, capture and copies.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::job::command::Command;
use crate::job::output::CaptureLimit;
use crate::kernel::pty::Pty;

/// Where a standard stream of the job goes, like [`std::process::Stdio`]. Unlike a `std::process::Stdio`, it can be
/// cloned: each job of a command gets the same stream. You can't convert a `std::process::Stdio`, because the standard
/// library does not show its content.
///
/// ```
/// use pinfold::{Command, Stdio};
/// let mut command = Command::new("sort");
/// command.stdin(std::fs::File::open("/dev/null")?).stdout(Stdio::piped()).stderr(Stdio::null());
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// Everything that can become an [`OwnedFd`] can become a `Stdio`: a file, one end of a pipe, a socket, the
/// [`ChildStdout`](std::process::ChildStdout) of another process.
#[derive(Clone, Debug)]
pub struct Stdio(pub(crate) Source);

/// What a [`Stdio`] stands for.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Inherit,
    Null,
    Piped,
    Descriptor(Arc<OwnedFd>),
    Bytes(Arc<Vec<u8>>),
}

impl Stdio {
    /// The supervisor's own stream, unchanged: the default. The job's stream is closed if the supervisor was started
    /// with it closed.
    #[must_use]
    pub const fn inherit() -> Self {
        Self(Source::Inherit)
    }

    /// `/dev/null`.
    #[must_use]
    pub const fn null() -> Self {
        Self(Source::Null)
    }

    /// A pipe to the supervisor. The supervisor's end is [`Job::stdin`](crate::Job::stdin),
    /// [`stdout`](crate::Job::stdout) or [`stderr`](crate::Job::stderr). A pipe holds 64 KiB (pipe(7)). When it is
    /// full, the job waits until the supervisor reads.
    #[must_use]
    pub const fn piped() -> Self {
        Self(Source::Piped)
    }

    /// For standard input: these bytes, as a file in memory (memfd_create(2)). Each job has its own file, so that a job
    /// that does not read it delays no other process.
    ///
    /// ```
    /// use pinfold::{Command, Stdio};
    /// Command::new("sort").stdin(Stdio::bytes("b\na\n"));
    /// ```
    #[must_use]
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Source::Bytes(Arc::new(bytes.into())))
    }
}

impl<T: Into<OwnedFd>> From<T> for Stdio {
    fn from(descriptor: T) -> Self {
        Self(Source::Descriptor(Arc::new(descriptor.into())))
    }
}

impl Command {
    /// Sets where standard input comes from.
    pub fn stdin(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.stdio[0] = Some(stdio.into());
        self
    }

    /// Sets where standard output goes.
    pub fn stdout(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.stdio[1] = Some(stdio.into());
        self
    }

    /// Sets where standard error goes.
    pub fn stderr(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.stdio[2] = Some(stdio.into());
        self
    }

    /// Sends standard error to the same place as standard output, as `2>&1` does in a shell. Both are one open file, so
    /// that the output of the job arrives in the order in which it was written. Two pipes keep the order within each
    /// pipe, but not the order between them.
    ///
    /// The setting of [`stderr`](Self::stderr) then has no effect. If standard output is [`Stdio::piped`], then
    /// [`Job::stdout`](crate::Job::stdout), [`Output::stdout`](crate::job::output::Output::stdout) and
    /// [`tee_stdout`](Self::tee_stdout) contain both, and [`Job::stderr`](crate::Job::stderr) returns `None`. A job
    /// with a terminal ([`pty`](Self::pty)) already has a single output.
    ///
    /// ```rust,standalone_crate
    /// use pinfold::{Command, Stdio, blocking};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     pinfold::init();
    ///     let Ok(supervisor) = blocking::Supervisor::start() else { return Ok(()) }; // No cgroup here.
    ///     let mut command = Command::new("sh");
    ///     command.args(["-c", "echo one; echo two >&2; echo three"]).stdout(Stdio::piped()).stderr_to_stdout(true);
    ///     let output = supervisor.spawn(&command)?.wait_with_output()?;
    ///     assert_eq!(output.stdout, b"one\ntwo\nthree\n");
    ///     Ok(())
    /// }
    /// ```
    pub fn stderr_to_stdout(&mut self, merge: bool) -> &mut Self {
        self.stderr_to_stdout = merge;
        self
    }

    /// Gives the job a pseudoterminal as standard input, output and error, and as the controlling terminal of a new
    /// session. Do not set the streams ([`stdout`](Self::stdout), …) then.
    ///
    /// [`Job::stdout`](crate::Job::stdout) returns everything that is written to the terminal, with the line ends of
    /// terminals (`\r\n`). [`Job::stdin`](crate::Job::stdin) is its keyboard: bytes that are written to it are the
    /// terminal's input. When both are dropped before the end of the output, the terminal hangs up.
    /// [`Job::resize_pty`](crate::Job::resize_pty) changes its size.
    ///
    /// ```rust,standalone_crate
    /// use pinfold::{Command, Pty, Supervisor};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    ///     runtime.block_on(async {
    ///         let Ok(supervisor) = Supervisor::start().await else { return Ok(()) }; // No cgroup here.
    ///         let mut command = Command::new("sh");
    ///         command.args(["-c", "stty size; test -t 1 && tty"]).pty(Pty::new(50, 132));
    ///         let output = supervisor.spawn(&command).await?.wait_with_output().await?;
    ///         assert!(output.stdout.starts_with(b"50 132\r\n/dev/pts/"));
    ///         supervisor.close().await;
    ///         Ok(())
    ///     })
    /// }
    /// ```
    pub fn pty(&mut self, pty: Pty) -> &mut Self {
        self.pty = Some(Box::new(pty));
        self
    }

    /// Sets the idle timeout: pinfold stops the job when nothing has been read from its piped standard output and
    /// standard error for this time ([`Reason::Idle`](crate::report::Reason::Idle)). There is no idle timeout by
    /// default.
    ///
    /// Only reads by the supervisor count, so the supervisor must read the streams: through
    /// [`Job::wait_with_output`](crate::Job::wait_with_output), or by taking and reading them. While unread output is
    /// waiting, the job is not idle. If neither stream is [`Stdio::piped`], the spawn fails.
    ///
    /// ```
    /// use std::time::Duration;
    /// use pinfold::{Command, Stdio};
    /// let mut command = Command::new("make");
    /// command.stdout(Stdio::piped()).stderr(Stdio::piped()).idle_timeout(Duration::from_secs(120));
    /// ```
    pub fn idle_timeout(&mut self, timeout: Duration) -> &mut Self {
        self.idle_timeout = Some(timeout);
        self
    }

    /// Sets how much of each stream pinfold keeps. By default, [`Command::output`](crate::Command::output) and
    /// [`Job::wait_with_output`](crate::Job::wait_with_output) keep everything, as the standard library does. A
    /// [`Pool`](crate::Pool) keeps the first and the last 512 KiB by default.
    pub fn capture(&mut self, limit: CaptureLimit) -> &mut Self {
        self.capture = Some(limit);
        self
    }

    /// Also writes to this file everything that is read from the piped standard output, as tee(1) does. If a write
    /// fails, the next read returns the error once, and pinfold writes no more to the file. A separate thread writes to
    /// a file that is not a regular file. While that file accepts no data (for example a pipe that no process reads),
    /// pinfold reads no more output, and the job's deadline still applies.
    ///
    /// ```
    /// # let directory = std::env::temp_dir();
    /// let log = std::fs::File::create(directory.join("build.log"))?;
    /// let mut command = pinfold::Command::new("make");
    /// command.stdout(pinfold::Stdio::piped()).tee_stdout(log);
    /// # std::fs::remove_file(directory.join("build.log"))?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn tee_stdout(&mut self, file: impl Into<OwnedFd>) -> &mut Self {
        self.tees[0] = Some(Arc::new(file.into()));
        self
    }

    /// The same as [`tee_stdout`](Self::tee_stdout) for standard error.
    pub fn tee_stderr(&mut self, file: impl Into<OwnedFd>) -> &mut Self {
        self.tees[1] = Some(Arc::new(file.into()));
        self
    }

    /// Returns where the stream `number` goes.
    pub(crate) fn source(&self, number: usize) -> &Source {
        self.stdio[number].as_ref().map_or(&Source::Inherit, |Stdio(source)| source)
    }

    pub(crate) fn sources(&self) -> impl Iterator<Item = &Source> {
        (0..3).map(|number| self.source(number))
    }

    /// Returns an error if the settings of the streams contradict each other.
    pub(crate) fn check_streams(&self) -> Result<()> {
        if self.pty.is_some() && !self.sources().all(|source| matches!(source, Source::Inherit)) {
            let advice =
                "a job with a terminal has the terminal as its standard streams: do not set stdin, stdout and stderr";
            return Err(Error::invalid("stream", self.display_name(), advice));
        }
        let piped = |number: usize| match self.pty {
            Some(_) => number == 1,
            None if number == 2 && self.stderr_to_stdout => false,
            None => matches!(self.source(number), Source::Piped),
        };
        if self.idle_timeout.is_some() && !piped(1) && !piped(2) {
            let advice = "pinfold can only watch a standard output or standard error that is piped or a terminal";
            return Err(Error::invalid("idle timeout", self.display_name(), advice));
        }
        for (number, name) in [(1, "standard output"), (2, "standard error")] {
            if self.tees[number - 1].is_some() && !piped(number) {
                if number == 2 && self.stderr_to_stdout {
                    let advice = "standard error goes to standard output: tee_stdout writes both";
                    return Err(Error::invalid("tee", name, advice));
                }
                return Err(Error::invalid("tee", name, "only a piped stream can be copied to a file"));
            }
            if matches!(self.source(number), Source::Bytes(_)) {
                return Err(Error::invalid("stream", name, "bytes can only be standard input"));
            }
        }
        Ok(())
    }
}
