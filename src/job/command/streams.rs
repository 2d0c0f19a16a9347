//! Where a command's streams go, and what else becomes of them.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::job::command::Command;
use crate::job::output::CaptureLimit;
use crate::kernel::pty::Pty;

/// Where a standard stream of the job goes.
///
/// ```
/// use pinfold::{Command, Stdio};
/// let mut command = Command::new("sort");
/// command.stdin(std::fs::File::open("/dev/null")?).stdout(Stdio::Piped).stderr(Stdio::Null);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Stdio {
    /// The supervisor's own, untouched; closed where it was closed when the supervisor was started.
    #[default]
    Inherit,
    /// `/dev/null`.
    Null,
    /// A pipe to the supervisor: [`Job::take_stdin`](crate::Job::take_stdin), [`take_stdout`](crate::Job::take_stdout),
    /// [`take_stderr`](crate::Job::take_stderr) have its other end. A pipe holds 64 KiB (pipe(7)): what nobody reads makes the
    /// job wait.
    Piped,
    /// This descriptor: a file, one end of a pipe, a socket. Every job of the command gets the same.
    Descriptor(Arc<OwnedFd>),
    /// For standard input: these bytes, as a file in memory (memfd_create(2)) of which each job gets one of its own. So
    /// a job that does not read them holds nobody up.
    Bytes(Arc<Vec<u8>>),
}

impl<T: Into<OwnedFd>> From<T> for Stdio {
    fn from(descriptor: T) -> Self {
        Self::Descriptor(Arc::new(descriptor.into()))
    }
}

impl Command {
    /// Where standard input comes from.
    pub fn stdin(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.stdio[0] = stdio.into();
        self
    }

    /// Where standard output goes.
    pub fn stdout(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.stdio[1] = stdio.into();
        self
    }

    /// Where standard error goes.
    pub fn stderr(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.stdio[2] = stdio.into();
        self
    }

    /// Sends standard error where standard output goes, as `2>&1` does in a shell: both are one open file, so that what the job
    /// writes arrives in the order in which it was written. Two pipes keep the order of each, and not the order between them.
    ///
    /// What [`stderr`](Self::stderr) says has no effect then. Where standard output is [`Stdio::Piped`],
    /// [`Job::take_stdout`](crate::Job::take_stdout), [`Output::stdout`](crate::job::output::Output::stdout) and
    /// [`tee_stdout`](Self::tee_stdout) have both, and [`Job::take_stderr`](crate::Job::take_stderr) returns `None`. A job with
    /// a terminal ([`pty`](Self::pty)) has one output already. [`are_one_output`](crate::job::output::are_one_output) says whether
    /// two descriptors of the caller are one output.
    ///
    /// ```rust,standalone_crate
    /// use pinfold::{Command, Stdio, blocking};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     pinfold::init();
    ///     let Ok(supervisor) = blocking::Supervisor::start() else { return Ok(()) }; // No cgroup here.
    ///     let mut command = Command::new("sh");
    ///     command.args(["-c", "echo one; echo two >&2; echo three"]).stdout(Stdio::Piped).stderr_to_stdout(true);
    ///     let output = supervisor.spawn(&command)?.wait_with_output()?;
    ///     assert_eq!(output.stdout.text(), "one\ntwo\nthree\n");
    ///     Ok(())
    /// }
    /// ```
    pub fn stderr_to_stdout(&mut self, merge: bool) -> &mut Self {
        self.stderr_to_stdout = merge;
        self
    }

    /// Gives these bytes as standard input ([`Stdio::Bytes`]).
    ///
    /// ```
    /// let mut command = pinfold::Command::new("sort");
    /// command.stdin_bytes("b\na\n");
    /// ```
    pub fn stdin_bytes(&mut self, bytes: impl Into<Vec<u8>>) -> &mut Self {
        self.stdio[0] = Stdio::Bytes(Arc::new(bytes.into()));
        self
    }

    /// Gives it a pseudoterminal as standard input, output and error, and as the controlling terminal of a session of its own;
    /// where the streams go ([`stdout`](Self::stdout), …) is not to be said then.
    ///
    /// [`Job::take_stdout`](crate::Job::take_stdout) has all that is written to it, with the ends of lines that terminals have
    /// (`\r\n`), and [`Job::take_stdin`](crate::Job::take_stdin) what is typed. When both are dropped before the end of the output, it hangs up.
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
    ///         assert!(output.stdout.text().starts_with("50 132\r\n/dev/pts/"));
    ///         supervisor.close().await;
    ///         Ok(())
    ///     })
    /// }
    /// ```
    pub fn pty(&mut self, pty: Pty) -> &mut Self {
        self.pty = Some(Box::new(pty));
        self
    }

    /// The idle timeout: stops the job when nothing has been read from its piped standard output and standard error for so
    /// long ([`Reason::Idle`](crate::report::Reason::Idle)). None by default.
    ///
    /// It counts what the supervisor reads, so somebody has to: [`Job::wait_with_output`](crate::Job::wait_with_output), or
    /// who took the streams. While something waits to be read, the job is not idle. Where neither is [`Stdio::Piped`] the spawn is refused.
    ///
    /// ```
    /// use std::time::Duration;
    /// use pinfold::{Command, Stdio};
    /// let mut command = Command::new("make");
    /// command.stdout(Stdio::Piped).stderr(Stdio::Piped).idle_timeout(Duration::from_secs(120));
    /// ```
    pub fn idle_timeout(&mut self, timeout: Duration) -> &mut Self {
        self.idle_timeout = Some(timeout);
        self
    }

    /// How much [`Job::wait_with_output`](crate::Job::wait_with_output) keeps of each stream: by default the first and the
    /// last 512 KiB.
    pub fn capture(&mut self, limit: CaptureLimit) -> &mut Self {
        self.capture = limit;
        self
    }

    /// Also writes to this file what is read from the piped standard output, as tee(1) does. Where that fails, the next read
    /// tells so, once, and the file gets no more. What is no regular file is written to by a thread of its own; while it takes
    /// nothing, a pipe that nobody reads say, nothing more is read, and the job's deadline holds.
    ///
    /// ```
    /// # let directory = std::env::temp_dir();
    /// let log = std::fs::File::create(directory.join("build.log"))?;
    /// let mut command = pinfold::Command::new("make");
    /// command.stdout(pinfold::Stdio::Piped).tee_stdout(log);
    /// # std::fs::remove_file(directory.join("build.log"))?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn tee_stdout(&mut self, file: impl Into<OwnedFd>) -> &mut Self {
        self.tees[0] = Some(Arc::new(file.into()));
        self
    }

    /// The same for standard error.
    pub fn tee_stderr(&mut self, file: impl Into<OwnedFd>) -> &mut Self {
        self.tees[1] = Some(Arc::new(file.into()));
        self
    }

    /// Refuses streams that do not fit together.
    pub(crate) fn check_streams(&self) -> Result<()> {
        if self.pty.is_some() && !self.stdio.iter().all(|stdio| matches!(stdio, Stdio::Inherit)) {
            let advice = "a job with a terminal has it as its standard streams: leave stdin, stdout and stderr out";
            return Err(Error::invalid("stream", self.display_name(), advice));
        }
        let piped = |number: usize| match self.pty {
            Some(_) => number == 1,
            None if number == 2 && self.stderr_to_stdout => false,
            None => matches!(self.stdio[number], Stdio::Piped),
        };
        if self.idle_timeout.is_some() && !piped(1) && !piped(2) {
            let advice =
                "standard output or standard error has to be piped, or a terminal, or there is nothing to watch";
            return Err(Error::invalid("idle timeout", self.display_name(), advice));
        }
        for (number, name) in [(1, "standard output"), (2, "standard error")] {
            if self.tees[number - 1].is_some() && !piped(number) {
                if number == 2 && self.stderr_to_stdout {
                    let advice = "it goes to standard output: tee_stdout has both";
                    return Err(Error::invalid("tee", name, advice));
                }
                return Err(Error::invalid("tee", name, "only a piped stream can be written to a second place"));
            }
            if matches!(self.stdio[number], Stdio::Bytes(_)) {
                return Err(Error::invalid("stream", name, "bytes can only be standard input"));
            }
        }
        Ok(())
    }
}
