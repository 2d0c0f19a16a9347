//! A job's piped streams: the caller takes them, or pinfold captures them while it waits for the job.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::termios::SpecialCodeIndex;
use tokio::io::Interest;
use tokio::sync::watch;

use super::terminal::WeakTerminal;
use super::{Job, Request};
use crate::error::{Error, Result};
use crate::job::command::Command;
use crate::job::completion::Completion;
use crate::job::output::{
    Activity, CaptureLimit, Captured, Channel, Found, InputStream, Output, OutputStream, Searches, Taps, Writer,
};
use crate::job::stop::Event;
use crate::kernel::signal::Signal;
use crate::kernel::wake::Wake;
use crate::report::Report;
use crate::supervisor::queue::WeakSender;

/// How many bytes pinfold keeps, while it searches for a line, for a reader that has not taken the stream.
const MAX_KEPT: usize = 4 * 1024 * 1024;

/// The supervisor's ends of a job's pipes, or its side of the job's terminal.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub stdin: Option<InputStream>,
    pub stdout: Option<OutputStream>,
    pub stderr: Option<OutputStream>,
    /// The searches in each output that is piped.
    pub searches: [Option<Searches>; 2],
    pub piped: Option<Box<Piped>>,
}

/// The state of a job with pipes or a terminal, in addition to its streams.
#[derive(Debug)]
pub(super) struct Piped {
    /// What [`Job::wait_with_output`] has read so far.
    captured: [Captured; 2],
    terminal: Option<WeakTerminal>,
    activity: Option<Arc<Activity>>,
}

/// Makes the supervisor's ends. Call it in the context of the supervisor's runtime.
pub(super) fn make(
    command: &Command,
    pipes: [Option<OwnedFd>; 3],
    terminal: Option<OwnedFd>,
    report: &Completion<Arc<Report>>,
    activity: Option<&Arc<Activity>>,
) -> Result<Streams> {
    if terminal.is_none() && pipes.iter().all(Option::is_none) {
        return Ok(Streams::default());
    }
    let failed = |error: std::io::Error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        Error::system("watch", "the job's pipes", errno, "see ulimit -n")
    };
    let pipe =
        |pipe: Option<OwnedFd>, interest| pipe.map(|pipe| Channel::pipe(pipe, interest)).transpose().map_err(failed);
    let [stdin, stdout, stderr] = pipes;
    let terminal = terminal.map(Channel::terminal).transpose().map_err(failed)?;
    let (stdin, stdout, stderr) = match &terminal {
        Some(terminal) => (Some(terminal.clone()), Some(terminal.clone()), None),
        None => {
            (pipe(stdin, Interest::WRITABLE)?, pipe(stdout, Interest::READABLE)?, pipe(stderr, Interest::READABLE)?)
        }
    };
    let limit = command.capture.unwrap_or(CaptureLimit::unlimited());
    let searches = [&stdout, &stderr].map(|channel| channel.as_ref().map(|_| Searches::default()));
    let output = |channel: Option<Channel>, number: usize| {
        let Some(channel) = channel else { return Ok(None) };
        let tee = command.tees[number].clone().map(Writer::for_copy).transpose()?;
        let searches = searches[number].clone().unwrap_or_default();
        let taps = Taps { activity: activity.cloned(), tee, searches };
        Ok(Some(OutputStream::new(channel, report, taps)))
    };
    Ok(Streams {
        stdin: stdin.map(|channel| InputStream::new(channel, report)),
        stdout: output(stdout, 0)?,
        stderr: output(stderr, 1)?,
        searches,
        piped: Some(Box::new(Piped {
            captured: [Captured::new(limit), Captured::new(limit)],
            terminal: terminal
                .map(|terminal| WeakTerminal { fd: Arc::downgrade(terminal.fd()), _kept: terminal.kept().clone() }),
            activity: activity.cloned(),
        })),
    })
}

impl Piped {
    /// Postpones the idle timeout by a time in which the job could not run.
    pub fn postpone_idle(&self, by: Duration) {
        if let Some(activity) = &self.activity {
            activity.postpone(by);
        }
    }
}

/// Reads the stream to its end.
async fn read_to_end(stream: Option<&mut OutputStream>, captured: &mut Captured) -> Result<()> {
    if let Some(stream) = stream {
        while stream.read_piece(|piece| captured.push(piece)).await.map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Error::system("read", "the job's output", errno, error.to_string())
        })? > 0
        {}
    }
    Ok(())
}

/// The search for a line in one output.
pub(super) struct LineSearch<'a> {
    /// The stream, unless the caller has taken it and reads it.
    pub stream: Option<&'a mut OutputStream>,
    pub found: watch::Receiver<Found>,
}

/// Why no other output needs to be searched.
pub(super) enum Decided {
    Found,
    Failed(String),
}

impl LineSearch<'_> {
    /// Searches until the end of the output. If the caller has not taken the stream, this function reads it.
    pub async fn run(self) -> std::result::Result<(), Decided> {
        let mut found = self.found.clone();
        let result = tokio::select! {
            biased;
            result = found.wait_for(|found| *found != Found::NotYet) => result.map_or(Found::Nothing, |found| *found),
            result = self.read() => result.map_err(Decided::Failed)?,
        };
        if result == Found::Line { Err(Decided::Found) } else { Ok(()) }
    }

    async fn read(self) -> std::result::Result<Found, String> {
        let Some(stream) = self.stream else { return std::future::pending().await };
        loop {
            let kept = stream.look_ahead().await.map_err(|error| format!("pinfold cannot read its output: {error}"))?;
            match *self.found.borrow() {
                Found::NotYet if kept.is_some_and(|kept| kept < MAX_KEPT) => {}
                Found::NotYet => return Err(format!("the job has written {MAX_KEPT} bytes")),
                found => return Ok(found),
            }
        }
    }
}

/// Stops the job when nothing has been read from it for `timeout`. Ends when the job ends.
pub(super) async fn watch_idle(
    timeout: Duration,
    activity: Arc<Activity>,
    requests: WeakSender<Request>,
    report: Completion<Arc<Report>>,
    mut wake: Wake,
) {
    // A time that the clock cannot represent means no timeout.
    while let Some(at) = activity.last().checked_add(timeout) {
        drop(std::mem::replace(&mut wake, Wake::at(Some(at))));
        tokio::select! {
            _ = report.wait() => return,
            () = tokio::time::sleep_until(at.into()) => {}
        }
        if activity.is_unread() {
            activity.note();
        }
        if activity.last().checked_add(timeout).is_some_and(|at| at <= Instant::now()) {
            if let Some(requests) = requests.upgrade() {
                requests.send(Request::End(Event::Idle));
            }
            return;
        }
    }
}

impl Job {
    /// Changes the size of the job's terminal ([`Command::pty`](crate::Command::pty)). The kernel then sends SIGWINCH
    /// to its foreground process group (ioctl_tty(2), TIOCSWINSZ).
    ///
    /// ```
    /// # async fn example(job: &pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
    /// job.resize_pty(50, 132)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if the job has no terminal; `EIO` if the terminal was hung up.
    pub fn resize_pty(&self, rows: u16, columns: u16) -> Result<()> {
        let terminal = self.terminal()?;
        terminal.resize(rows, columns).map_err(|errno| Error::system("resize", "the job's terminal", errno, ""))
    }

    /// Returns the character that sends SIGINT when it is typed on the job's terminal (usually Ctrl-C), and the one
    /// that sends SIGQUIT. A character is `None` while the job reads it as an ordinary key, as editors do.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the job has no terminal.
    pub(crate) fn pty_signal_keys(&self) -> Result<[Option<u8>; 2]> {
        let terminal = self.terminal()?;
        Ok([SpecialCodeIndex::VINTR, SpecialCodeIndex::VQUIT].map(|key| terminal.signal_key(key)))
    }

    /// Sends SIGINT, SIGQUIT or SIGTSTP to the foreground process group of the job's terminal, as the key for it does.
    /// This works even while the job reads that character as an ordinary key (TIOCSIG on the master side,
    /// drivers/tty/pty.c).
    ///
    /// # Errors
    /// [`Error::Invalid`] if the job has no terminal; `EINVAL` for another signal; `EIO` if the terminal was hung up.
    pub(crate) fn signal_pty(&self, signal: Signal) -> Result<()> {
        let terminal = self.terminal()?;
        let sent = terminal.signal(signal.number());
        sent.map_err(|errno| Error::system("send", format!("{signal} to the job's terminal"), errno, ""))
    }

    /// Returns a reference to the job's terminal, with which the caller can resize it while another owner has the job.
    #[cfg(feature = "cli")]
    pub(crate) fn weak_terminal(&self) -> Option<WeakTerminal> {
        self.piped.as_ref()?.terminal.clone()
    }

    fn terminal(&self) -> Result<&WeakTerminal> {
        let advice = "it was started without Command::pty";
        let terminal = self.piped.as_ref().and_then(|piped| piped.terminal.as_ref());
        terminal.ok_or_else(|| Error::invalid("terminal", self.name(), advice))
    }

    /// Closes the piped standard input and reads the piped outputs, unless the caller took them. Waits until no process
    /// of the job is left. Does not wait for a process outside of the job that still holds the pipes. Keeps only as
    /// much of each stream as [`Command::capture`](crate::Command::capture) allows: everything if the caller set no limit.
    ///
    /// Cancel-safe: captured output is kept for the next call, which returns it with the rest. A call after one that
    /// succeeded returns no output.
    ///
    /// # Errors
    /// The same as for [`wait`](Self::wait), and [`Error::System`] if a pipe can't be read or the file of
    /// [`tee_stdout`](crate::Command::tee_stdout) can't be written. The error is returned at once, and the job may
    /// still run. The next call continues. Without a next call, the job's output is not read any more.
    ///
    /// ```rust,standalone_crate
    /// use pinfold::{Command, Stdio, Supervisor};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    ///     runtime.block_on(async {
    ///         let Ok(supervisor) = Supervisor::start().await else { return Ok(()) }; // No cgroup here.
    ///         let mut command = Command::new("sh");
    ///         command.args(["-c", "cat; echo oops >&2; exit 3"]).stdin(Stdio::bytes("given"));
    ///         command.stdout(Stdio::piped()).stderr(Stdio::piped());
    ///         let output = supervisor.spawn(&command).await?.wait_with_output().await?;
    ///         assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"given"[..], &b"oops\n"[..]));
    ///         assert_eq!(output.status.exit_code, 3);
    ///         supervisor.close().await;
    ///         Ok(())
    ///     })
    /// }
    /// ```
    pub async fn wait_with_output(&mut self) -> Result<Output> {
        let (status, [stdout, stderr]) = self.wait_and_capture().await?;
        let (stdout_dropped, stderr_dropped) = (stdout.dropped(), stderr.dropped());
        Ok(Output { status, stdout: stdout.into_bytes(), stderr: stderr.into_bytes(), stdout_dropped, stderr_dropped })
    }

    /// Does the work of [`wait_with_output`](Self::wait_with_output), with the same errors and cancellation safety.
    pub(crate) async fn wait_and_capture(&mut self) -> Result<(Arc<Report>, [Captured; 2])> {
        drop(self.stdin.take());
        match self.piped.as_deref_mut() {
            Some(Piped { captured: [out, err], .. }) => {
                // All streams are read at the same time: otherwise the job could block on a full pipe, and this wait
                // would not end.
                let (stdout, stderr) = (read_to_end(self.stdout.as_mut(), out), read_to_end(self.stderr.as_mut(), err));
                let ((), (), status) = Box::pin(async { tokio::try_join!(stdout, stderr, self.handle.wait()) }).await?;
                Ok((status, [std::mem::take(out), std::mem::take(err)]))
            }
            None => Ok((self.wait().await?, Default::default())),
        }
    }
}
