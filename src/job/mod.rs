//! A running job: its handle, and the actor that runs it to its end.

mod actions;
mod actor;
pub(crate) mod caller;
mod clean_up;
mod clock;
pub mod command;
pub(crate) mod completion;
mod handle;
mod live;
mod main_exit;
pub(crate) mod oom;
pub mod output;
mod private_tmp;
pub mod ready;
mod record;
mod remaining;
pub(crate) mod report_builder;
mod request;
pub mod settle;
mod spawn;
mod spawn_request;
mod start;
pub mod stop;
mod streams;
pub(crate) mod terminal;
mod wait_until_empty;

use std::ops::Deref;
use std::sync::Arc;

use tokio::sync::{Mutex, oneshot};

use crate::error::Result;
use crate::job::output::{InputStream, OutputStream};
use crate::kernel::creator::Creator;
use crate::kernel::signal::Signal;
use crate::report::Report;
use crate::supervisor::driver::Driver;
use crate::supervisor::queue::{Receiver, Sender};
pub use handle::JobHandle;
use request::Request;
use streams::Piped;

/// One command and every process descended from it. If it is dropped before the job has ended, pinfold kills the job.
///
/// A `Job` is the owner of a job, and dereferences to the [`JobHandle`], which has all methods that do not need the
/// owner. The names are those of
/// [`tokio::process::Child`](https://docs.rs/tokio/latest/tokio/process/struct.Child.html), but each of them acts on the
/// whole job. Other differences:
///
/// - A job needs a [`Supervisor`](crate::Supervisor), so [`Command::spawn`](crate::Command::spawn), `status` and `output`
///   take one, and `spawn` is awaited too.
/// - The streams are [`Stdio`](crate::Stdio), which has the constructors of [`std::process::Stdio`]. The standard
///   library does not show what is in its own type, so that one can't be converted.
/// - A dropped job is always killed; there is no `kill_on_drop`.
/// - [`wait`](Self::wait), [`kill`](Self::kill) and [`try_wait`](JobHandle::try_wait) return a [`Report`], which has the
///   methods of [`ExitStatus`](std::process::ExitStatus).
/// - [`kill`](Self::kill) and [`start_kill`](JobHandle::start_kill) succeed if the job is over.
/// - [`start_kill`](JobHandle::start_kill) and [`try_wait`](JobHandle::try_wait) take `&self`: they change nothing in the
///   owner.
/// - [`wait_with_output`](Self::wait_with_output) takes `&mut self`, so that the job survives an error and a timeout of
///   the caller.
/// - The errors are [`Error`](crate::Error), which converts to [`std::io::Error`].
///
/// ```rust,standalone_crate
/// use pinfold::{Command, Stdio, Supervisor};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
///     runtime.block_on(async {
///         let Ok(supervisor) = Supervisor::start().await else { return Ok(()) }; // No cgroup here.
///         let mut job = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn(&supervisor).await?;
///         let mut stdin = job.stdin.take().ok_or("it is piped")?;
///         stdin.write_all(b"a line").await?;
///         drop(stdin); // Ends the input.
///         let mut text = String::new();
///         job.stdout.take().ok_or("it is piped")?.read_to_string(&mut text).await?;
///         assert_eq!(text, "a line");
///         assert!(job.wait().await?.success());
///         supervisor.close().await;
///         Ok(())
///     })
/// }
/// ```
///
/// ```
/// fn is_for_any_thread<T: Send + Sync + 'static>() {}
/// is_for_any_thread::<pinfold::Job>();
/// ```
#[doc(alias = "Child", alias = "kill_on_drop")]
#[derive(Debug)]
pub struct Job {
    /// The stream to the job's piped standard input or to its terminal. `None` if standard input is not
    /// [`Stdio::piped`](crate::Stdio::piped).
    pub stdin: Option<InputStream>,
    /// The stream of the job's piped standard output, or of everything that it writes to its terminal. `None` if
    /// standard output is not [`Stdio::piped`](crate::Stdio::piped).
    pub stdout: Option<OutputStream>,
    /// The stream of the job's piped standard error. `None` if it is not [`Stdio::piped`](crate::Stdio::piped), and
    /// after [`Command::stderr_to_stdout`](crate::Command::stderr_to_stdout), because standard output then contains it.
    pub stderr: Option<OutputStream>,
    /// `None` if nothing is piped.
    piped: Option<Box<Piped>>,
    handle: JobHandle,
    /// The only strong sender. When it is dropped, the actor kills the job.
    requests: Sender<Request>,
    stops: Mutex<Receiver<Signal>>,
    creator: Creator,
    /// Keeps pinfold's own runtime, if the supervisor has one.
    _driver: Driver,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.creator.leak_in_forked_copy(&self.requests);
        if self.creator.is_another_process() {
            std::mem::forget((self.stdin.take(), self.stdout.take(), self.stderr.take(), self.piped.take()));
        }
    }
}

/// A job dereferences to its handle, as a [`MutexGuard`](std::sync::MutexGuard) dereferences to the value that it
/// protects.
impl Deref for Job {
    type Target = JobHandle;

    fn deref(&self) -> &JobHandle {
        &self.handle
    }
}

impl Job {
    /// Returns a handle to the job, which does not keep the job alive.
    ///
    /// ```
    /// use pinfold::JobHandle;
    /// # async fn example(mut job: pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
    /// let handle: JobHandle = job.handle();
    /// let stopped = tokio::spawn(async move { handle.stop().await });
    /// job.wait().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn handle(&self) -> JobHandle {
        self.handle.clone()
    }

    /// Closes the piped standard input, unless the caller took it: otherwise a job that reads its input to the end would
    /// wait for more of it. Then waits until no process of the job is left, or until pinfold has given up on the
    /// remaining processes, which the report then names.
    ///
    /// Does not read the output: a job that writes more than a pipe holds (64 KiB, pipe(7)) waits for a reader. Read
    /// [`stdout`](Self::stdout) at the same time, or call [`wait_with_output`](Self::wait_with_output).
    ///
    /// Cancel-safe: dropping the future does not affect the job, except that its standard input is closed, and the
    /// caller can call this again.
    ///
    /// ```
    /// # async fn example(mut job: pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
    /// let report = job.wait().await?;
    /// println!("{}: exit code {}, {} left behind", report.name, report.exit_code, report.leftovers.len());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::GuardLost`](crate::Error::GuardLost) if the runtime of the supervisor has been shut down.
    pub async fn wait(&mut self) -> Result<Arc<Report>> {
        drop(self.stdin.take());
        self.handle.wait().await
    }

    /// Stops the job as [`start_stop`](JobHandle::start_stop) does, and waits as [`wait`](Self::wait) does: until shortly
    /// after the end of the grace period at the latest.
    ///
    /// Cancel-safe: the stop goes on if the future is dropped. Before its first poll nothing happens.
    ///
    /// ```
    /// # async fn example(mut job: pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
    /// let report = job.stop().await?;
    /// println!("{:?}, {} processes received the stop signal", report.reason, report.stopped.len());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The same as for [`wait`](Self::wait).
    pub async fn stop(&mut self) -> Result<Arc<Report>> {
        self.start_stop()?;
        self.wait().await
    }

    /// Kills the job as [`start_kill`](JobHandle::start_kill) does, and waits as [`wait`](Self::wait) does.
    ///
    /// Cancel-safe: the kill goes on if the future is dropped. Before its first poll nothing happens.
    ///
    /// # Errors
    /// The same as for [`wait`](Self::wait).
    pub async fn kill(&mut self) -> Result<Arc<Report>> {
        self.start_kill()?;
        self.wait().await
    }

    /// Sends a signal to the main process, then to every other process of the job in the process group that the main
    /// process was started in ([`Command::process_group`](crate::Command::process_group)). This has the effect of `kill
    /// -- -PGID`, but no process outside of the job receives the signal. Returns when the signals have been sent.
    ///
    /// Cancel-safe: pinfold sends the signals even if the future is dropped.
    pub(crate) async fn signal_group(&self, signal: Signal) {
        let (sent, done) = oneshot::channel();
        // A job that has ended ignores requests, and drops those that it had received.
        self.requests.send(Request::SignalGroup(signal, sent));
        let _ = done.await;
    }

    /// Waits until a signal stops the main process (SIGSTOP, or SIGTSTP, SIGTTIN, SIGTTOU from the terminal), and
    /// returns that signal. Never returns if the job has ended.
    ///
    /// Cancel-safe: a stop that happens while no call waits is kept for the next call.
    pub(crate) async fn next_stop(&self) -> Signal {
        match self.stops.lock().await.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }

    /// Postpones the deadline and the end of the [`idle_timeout`](crate::Command::idle_timeout) by this time, for
    /// example by a time in which the job could not run.
    pub(crate) fn postpone_deadline(&self, by: std::time::Duration) {
        if let Some(piped) = &self.piped {
            piped.postpone_idle(by);
        }
        self.requests.send(Request::Postpone(by));
    }
}
