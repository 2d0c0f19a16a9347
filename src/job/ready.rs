//! Detects that a job is ready: a line of its output says so, it listens on a port, or it has created a file.

mod file;
pub(crate) mod port;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use self::port::Endpoint;
use super::Job;
use super::handle::Shared;
use super::output::OutputStream;
use super::streams::{Decided, LineSearch};
use crate::error::{Error, Result};
use crate::report::text::{printable_bytes, printable_path};

/// The condition under which a job is ready ([`Job::ready`](crate::Job::ready)).
///
/// ```
/// use pinfold::Readiness;
/// let readiness = Readiness::line("listening on");
/// let readiness = Readiness::local_port(8080);
/// let readiness = Readiness::file("/run/server.pid");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness(pub(crate) Condition);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Line(LineSource, Vec<u8>),
    Port(Endpoint),
    File(PathBuf),
}

/// The outputs whose lines count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineSource {
    Stdout,
    Stderr,
    Both,
}

impl LineSource {
    /// Returns whether lines of standard output (0) or of standard error (1) count.
    pub fn includes(self, number: usize) -> bool {
        match self {
            Self::Stdout => number == 0,
            Self::Stderr => number == 1,
            Self::Both => true,
        }
    }
}

impl std::fmt::Display for LineSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stdout => "standard output",
            Self::Stderr => "standard error",
            Self::Both => "its output",
        })
    }
}

impl Readiness {
    /// The job is ready when a line of its piped standard output or standard error, or of its terminal, contains
    /// `part`. This is `--ready line:` of the command.
    ///
    /// - A line counts when it is complete: when its newline has been read, or the end of the output. A carriage return
    ///   does not end a line; it is part of the line.
    /// - `part` can be anywhere in the line. Bytes are compared: upper and lower case differ, and neither `part` nor
    ///   the line has to be UTF-8.
    /// - A line can have any length, and different processes of the job can write parts of it.
    ///
    /// The caller can still read all of the output.
    #[must_use]
    pub fn line(part: impl Into<Vec<u8>>) -> Self {
        Self(Condition::Line(LineSource::Both, part.into()))
    }

    /// The same as [`line`](Self::line) for standard output only.
    #[must_use]
    pub fn stdout_line(part: impl Into<Vec<u8>>) -> Self {
        Self(Condition::Line(LineSource::Stdout, part.into()))
    }

    /// The same as [`line`](Self::line) for standard error only.
    #[must_use]
    pub fn stderr_line(part: impl Into<Vec<u8>>) -> Self {
        Self(Condition::Line(LineSource::Stderr, part.into()))
    }

    /// Returns whether this condition needs the job's piped output.
    pub(crate) fn needs_output(&self) -> bool {
        matches!(self.0, Condition::Line(..))
    }

    /// The job is ready when a process accepts connections at this TCP address. pinfold tries to connect every 20 ms.
    /// pinfold can't see which process accepts them. Call [`Readiness::check_before_start`] first: it returns an error
    /// if another program holds the port.
    #[must_use]
    pub fn port(address: impl Into<SocketAddr>) -> Self {
        Self(Condition::Port(Endpoint::Address(address.into())))
    }

    /// The same as [`port`](Self::port) for a port of this machine, at 127.0.0.1 or at ::1.
    #[must_use]
    pub fn local_port(port: u16) -> Self {
        Self(Condition::Port(Endpoint::Local(port)))
    }

    /// The same as [`port`](Self::port) for a host name, at any of its addresses. pinfold looks up the name again every
    /// second.
    #[must_use]
    pub fn host_port(host: impl Into<String>, port: u16) -> Self {
        Self(Condition::Port(Endpoint::Host(host.into(), port)))
    }

    /// Checks whether another program already accepts connections at the port. Call this before you start the job.
    /// Otherwise pinfold would mistake the other program for the job. Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a process already accepts connections at the port.
    pub async fn check_before_start(&self) -> Result<()> {
        let Condition::Port(endpoint) = &self.0 else { return Ok(()) };
        match endpoint.listener().await {
            Some(address) => Err(Error::invalid(
                "readiness by the port",
                address.to_string(),
                "another program listens there before the job has started: end that program, or use another port",
            )),
            None => Ok(()),
        }
    }

    /// The job is ready when a file with this path exists. pinfold watches its directory (inotify(7)), or the nearest
    /// parent directory that exists.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(Condition::File(path.into()))
    }
}

/// Describes the condition as one that is not met, for the message of an error: "no process listens on 127.0.0.1:80".
impl std::fmt::Display for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Condition::Line(source, part) => write!(f, "no line of {source} contained '{}'", printable_bytes(part)),
            Condition::Port(endpoint) => write!(f, "no process listens on {endpoint}"),
            Condition::File(path) => write!(f, "there is no {}", printable_path(path)),
        }
    }
}

impl Job {
    /// Waits until the job is ready, at most for `timeout`.
    ///
    /// A search for a line begins with this call, before the future is polled. It begins at the first byte of the
    /// output that the caller has not read. Where the caller has taken the stream (`job.stdout.take()`), pinfold
    /// searches what the caller reads. Otherwise pinfold reads the stream, and keeps what it has read for the caller,
    /// at most 4 MiB.
    ///
    /// Cancel-safe: output that was read here is kept for the next reader of the stream, and another call for the same
    /// readiness continues the search.
    ///
    /// # Errors
    /// [`Error::NotReady`] if the job ends or the time is over, if the output of the job can't be read, or if pinfold
    /// has kept 4 MiB. This error does not end the job. [`Error::Invalid`] if the output is not piped, if the line
    /// contains a newline, or if a parent of the file is not a directory. [`Error::System`] if the directory of the
    /// file can't be watched, for example without the permission to read it.
    ///
    /// ```rust,standalone_crate
    /// use std::time::Duration;
    /// use pinfold::{Command, Readiness, Stdio, Supervisor};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    ///     runtime.block_on(async {
    ///         let Ok(supervisor) = Supervisor::start().await else { return Ok(()) }; // No cgroup here.
    ///         let mut command = Command::new("sh");
    ///         command.args(["-c", "echo starting; echo listening; sleep 999"]).stdout(Stdio::piped());
    ///         let mut job = supervisor.spawn(&command).await?;
    ///         job.ready(&Readiness::stdout_line("listening"), Duration::from_secs(60)).await?;
    ///         job.start_stop()?;
    ///         assert_eq!(job.wait_with_output().await?.stdout, b"starting\nlistening\n");
    ///         supervisor.close().await;
    ///         Ok(())
    ///     })
    /// }
    /// ```
    pub fn ready<'a>(
        &'a mut self,
        readiness: &'a Readiness,
        timeout: Duration,
    ) -> impl Future<Output = Result<()>> + Send + 'a {
        self.handle.shared.ready(readiness, timeout, [self.stdout.as_mut(), self.stderr.as_mut()])
    }
}

impl Shared {
    /// Waits until the job is ready, in any executor. `streams` are the outputs that the caller has not taken.
    pub fn ready<'a>(
        &'a self,
        readiness: &'a Readiness,
        timeout: Duration,
        streams: [Option<&'a mut OutputStream>; 2],
    ) -> impl Future<Output = Result<()>> + Send + 'a {
        let mut searches = Vec::new();
        if let Condition::Line(source, part) = &readiness.0 {
            for (number, (piped, stream)) in self.searches.iter().zip(streams).enumerate() {
                if let Some(piped) = piped
                    && source.includes(number)
                {
                    searches.push(LineSearch { stream, found: piped.start(part) });
                }
            }
        }
        self.in_runtime(self.wait_until_ready(readiness, searches, timeout))
    }

    /// Waits until the job is ready. This uses the runtime's clock and sockets, so call it in the runtime.
    async fn wait_until_ready(
        &self,
        readiness: &Readiness,
        searches: Vec<LineSearch<'_>>,
        timeout: Duration,
    ) -> Result<()> {
        let not_ready = |why: &str| Error::NotReady { program: self.name.clone(), why: format!("{readiness}{why}") };
        let is_ready = async {
            match &readiness.0 {
                Condition::Line(_, part) if part.contains(&b'\n') => {
                    Err(Error::invalid("readiness by a line", printable_bytes(part), "a line contains no newline"))
                }
                Condition::Line(source, _) if searches.is_empty() => {
                    Err(Error::invalid("readiness by a line of", source.to_string(), "it is not piped"))
                }
                Condition::Line(..) => {
                    let mut searches = searches.into_iter();
                    let run = async |search: Option<LineSearch<'_>>| match search {
                        Some(search) => search.run().await,
                        None => Ok(()),
                    };
                    match tokio::try_join!(run(searches.next()), run(searches.next())) {
                        Err(Decided::Found) => Ok(()),
                        Err(Decided::Failed(why)) => Err(not_ready(&format!(", and {why}"))),
                        // The outputs have ended without the line. The job may continue to run.
                        Ok(_) => {
                            self.wait().await?;
                            Err(not_ready(", and the job is over"))
                        }
                    }
                }
                Condition::Port(endpoint) => {
                    port::wait_for_listener(endpoint).await;
                    Ok(())
                }
                Condition::File(path) => file::wait_for_file(path).await,
            }
        };
        let is_line = matches!(readiness.0, Condition::Line(..));
        tokio::select! {
            biased;
            done = is_ready => done,
            // The end of the job does not end a search for a line: output that was written before still counts, and the
            // search ends with the output.
            _ = self.wait(), if !is_line => Err(not_ready(", and the job is over")),
            () = tokio::time::sleep(timeout) => Err(not_ready(&format!(" within {timeout:?}"))),
        }
    }
}
