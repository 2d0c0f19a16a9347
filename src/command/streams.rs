//! What a command says about its streams beside where they go.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::{Command, Stdio};
use crate::error::{Error, Result};
use crate::output::CaptureLimit;

impl Command {
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

    /// The idle timeout: stops the job when nothing has been read from its piped standard output and standard error for so
    /// long ([`Reason::Idle`](crate::report::Reason::Idle)). None by default.
    ///
    /// It counts what the supervisor reads, so somebody has to: [`Job::wait_with_output`](crate::Job::wait_with_output), or
    /// who took the streams. Where neither is [`Stdio::Piped`] the spawn is refused.
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
    /// tells so, once, and the file gets no more.
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
        let piped = |number: usize| matches!(self.stdio[number], Stdio::Piped);
        if self.idle_timeout.is_some() && !piped(1) && !piped(2) {
            let advice = "standard output or standard error has to be piped, or there is nothing to watch";
            return Err(Error::invalid("idle timeout", self.display_name(), advice));
        }
        for (number, name) in [(1, "standard output"), (2, "standard error")] {
            if self.tees[number - 1].is_some() && !piped(number) {
                return Err(Error::invalid("tee", name, "only a piped stream can be written to a second place"));
            }
            if matches!(self.stdio[number], Stdio::Bytes(_)) {
                return Err(Error::invalid("stream", name, "bytes can only be standard input"));
            }
        }
        Ok(())
    }
}
