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
pub mod ready;
mod remaining;
pub(crate) mod report_builder;
mod request;
pub mod settle;
mod spawn;
mod spawn_request;
mod start;
pub mod stop;
mod streams;
mod terminal;
mod wait_until_empty;

use std::path::Path;
use std::sync::Arc;

use tokio::sync::{Mutex, oneshot};

use crate::error::Result;
use crate::job::output::{InputStream, OutputStream};
use crate::kernel::maker::Maker;
use crate::kernel::signal::Signal;
use crate::report::{ProcessInfo, Report};
use crate::supervisor::driver::Driver;
use crate::supervisor::events::Events;
use crate::supervisor::queue::{Receiver, Sender};
pub use handle::JobHandle;
use handle::Shared;
use request::Request;
use streams::Piped;

/// One command and every process descended from it. If it is dropped before the job has ended, pinfold kills the job.
///
/// The names are those of [`tokio::process::Child`](https://docs.rs/tokio/latest/tokio/process/struct.Child.html), but
/// each of them acts on the whole job. Other differences:
///
/// - A dropped job is always killed; there is no `kill_on_drop`.
/// - [`wait`](Self::wait), [`stop`](Self::stop) and [`kill`](Self::kill) take `&self` and return a [`Report`], which has
///   the methods of [`ExitStatus`](std::process::ExitStatus).
/// - [`wait`](Self::wait) does not close [`stdin`](Self::stdin). [`wait_with_output`](Self::wait_with_output) does.
/// - [`start_kill`](Self::start_kill) can't fail, so it returns nothing.
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
    shared: Arc<Shared>,
    requests: Sender<Request>,
    stops: Mutex<Receiver<Signal>>,
    maker: Maker,
    /// Keeps pinfold's own runtime, if the supervisor has one.
    _driver: Driver,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.maker.keep_elsewhere(&self.requests);
        if self.maker.is_elsewhere() {
            std::mem::forget((self.stdin.take(), self.stdout.take(), self.stderr.take(), self.piped.take()));
        }
    }
}

impl Job {
    /// Returns the process id of the main process, or `None` if the main process has ended: the kernel may give the
    /// number to another process then.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.shared.id()
    }

    /// Returns the process id that the main process has or had, even after its end: the number in the report and in the
    /// events.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.shared.pid
    }

    /// Returns the number of the job among the jobs of its supervisor, from 1 in the order of the spawns.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.shared.number
    }

    /// Begins to stop the job, and returns immediately: pinfold sends the stop signal and SIGCONT (a stopped process
    /// does not act on the stop signal before SIGCONT), waits for the grace period, and kills the remaining processes.
    /// A second stop kills at once. [`wait`](Self::wait) returns when the job is over.
    pub fn start_stop(&self) {
        // A job that has ended ignores requests.
        self.requests.send(Request::Stop(None));
    }

    /// Begins to stop the job as [`start_stop`](Self::start_stop) does, but sends `signal` first, instead of the stop
    /// signal. Use it in a supervisor that forwards the signal that it received, so that the job's handlers for SIGINT
    /// or SIGHUP run.
    ///
    /// When the main process has ended, the remaining processes receive the stop signal too, because a shell starts its
    /// background processes with SIGINT and SIGQUIT ignored. If the job is being stopped already, this is a second
    /// stop, which kills.
    ///
    /// ```
    /// # async fn example(job: &pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
    /// job.start_stop_with(pinfold::Signal::INT); // Python raises KeyboardInterrupt.
    /// let report = job.wait().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn start_stop_with(&self, signal: Signal) {
        self.requests.send(Request::Stop(Some(signal)));
    }

    /// Begins to kill the job, and returns immediately: through `cgroup.kill` (Linux 5.14) or, on older kernels, by
    /// SIGKILL through pidfds.
    pub fn start_kill(&self) {
        self.requests.send(Request::Kill);
    }

    /// Stops the job as [`start_stop`](Self::start_stop) does, and waits until it is over: shortly after the end of the
    /// grace period at the latest.
    ///
    /// Cancel-safe: the stop goes on if the future is dropped. Before its first poll nothing happens.
    ///
    /// ```
    /// # async fn example(job: &pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
    /// let report = job.stop().await?;
    /// println!("{:?}, {} processes received the stop signal", report.reason, report.stopped.count);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The same as for [`wait`](Self::wait).
    pub async fn stop(&self) -> Result<Arc<Report>> {
        self.start_stop();
        self.wait().await
    }

    /// Kills the job as [`start_kill`](Self::start_kill) does, and waits until no process of it is left.
    ///
    /// Cancel-safe: the kill goes on if the future is dropped. Before its first poll nothing happens.
    ///
    /// # Errors
    /// The same as for [`wait`](Self::wait).
    pub async fn kill(&self) -> Result<Arc<Report>> {
        self.start_kill();
        self.wait().await
    }

    /// Sends a signal to the main process, through its pidfd (pidfd_send_signal(2), Linux 5.1).
    ///
    /// ```
    /// # async fn example(job: &pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
    /// job.signal(pinfold::Signal::HUP)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `ESRCH` if the main process has ended, `EPERM` if it belongs to another user by now.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.shared.signal(signal)
    }

    /// Returns whether the main process has ended. Other processes of the job may still run.
    #[must_use]
    pub fn main_has_ended(&self) -> bool {
        self.shared.main.has_ended()
    }

    /// Sends a signal to every process of the job.
    pub fn signal_all(&self, signal: Signal) {
        self.requests.send(Request::SignalAll(signal));
    }

    /// Sends a signal to the main process, then to every other process of the job in the process group that the main
    /// process was started in ([`Command::process_group`](crate::Command::process_group)). This has the effect of `kill
    /// -- -PGID`, but no process outside of the job receives the signal. Returns when the signals have been sent.
    ///
    /// Cancel-safe: pinfold sends the signals even if the future is dropped.
    pub async fn signal_group(&self, signal: Signal) {
        let (sent, done) = oneshot::channel();
        // A job that has ended ignores requests, and drops those that it had received.
        self.requests.send(Request::SignalGroup(signal, sent));
        let _ = done.await;
    }

    /// Returns the name of the job: the name that the caller set, or the file name of the program.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Returns the directory of the job's cgroup (its leaf); `None` if the job is held without a cgroup.
    ///
    /// Use it for settings that [`Limits`](crate::Limits) does not have, such as those of the controllers hugetlb and
    /// rdma, or give it to another program that reads or limits a cgroup. The directory exists until the job is over.
    /// pinfold enables only the controllers that its own limits need. The caller can enable others, in
    /// `cgroup.subtree_control` of the two directories above (the kernel's admin-guide/cgroup-v2.rst, "Enabling and
    /// Disabling").
    ///
    /// ```
    /// # fn example(job: &pinfold::Job) -> std::io::Result<()> {
    /// if let Some(cgroup) = job.cgroup() {
    ///     println!("{}", std::fs::read_to_string(cgroup.join("cgroup.stat"))?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn cgroup(&self) -> Option<&Path> {
        self.shared.cgroup.as_deref()
    }

    /// Returns the current processes of the job; an empty list if the job is over.
    ///
    /// Cancel-safe.
    ///
    /// ```rust,standalone_crate
    /// use pinfold::{Command, Readiness, Stdio, Supervisor};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    ///     runtime.block_on(async {
    ///         let Ok(supervisor) = Supervisor::start().await else { return Ok(()) }; // No cgroup here.
    ///         let mut command = Command::new("sh");
    ///         command.args(["-c", "setsid sleep 999 & echo ready; wait"]).stdout(Stdio::piped());
    ///         let mut job = supervisor.spawn(&command).await?;
    ///         job.ready(&Readiness::stdout_line("ready"), std::time::Duration::from_secs(60)).await?;
    ///         for process in job.processes().await {
    ///             println!("{process}");
    ///         }
    ///         assert_eq!(job.processes().await.len(), 2);
    ///         job.kill().await?;
    ///         supervisor.close().await;
    ///         Ok(())
    ///     })
    /// }
    /// ```
    pub async fn processes(&self) -> Vec<ProcessInfo> {
        self.handle().processes().await
    }

    /// Returns the events of the job. They begin with its start, even if this is called later.
    ///
    /// ```rust,standalone_crate
    /// use pinfold::events::EventKind;
    /// use pinfold::{Command, Supervisor};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    ///     runtime.block_on(async {
    ///         let Ok(supervisor) = Supervisor::start().await else { return Ok(()) }; // No cgroup here.
    ///         let job = supervisor.spawn(&Command::new("true")).await?;
    ///         let mut events = job.events();
    ///         while let Some(event) = events.next_event().await {
    ///             match event.kind {
    ///                 EventKind::Spawned { pid, .. } => println!("{:.3} s: process {pid}", event.seconds),
    ///                 kind => println!("{:.3} s: {kind:?}", event.seconds),
    ///             }
    ///         }
    ///         supervisor.close().await;
    ///         Ok(())
    ///     })
    /// }
    /// ```
    #[must_use]
    pub fn events(&self) -> Events {
        self.shared.events.listen()
    }

    /// Waits until a signal stops the main process (SIGSTOP, or SIGTSTP, SIGTTIN, SIGTTOU from the terminal), and
    /// returns that signal. Never returns if the job has ended.
    ///
    /// Cancel-safe: a stop that happens while no call waits is kept for the next call.
    pub async fn next_stop(&self) -> Signal {
        match self.stops.lock().await.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }

    /// Postpones the deadline and the end of the [`idle_timeout`](crate::Command::idle_timeout) by this time, for
    /// example by a time in which the job could not run.
    pub fn postpone_deadline(&self, by: std::time::Duration) {
        if let Some(piped) = &self.piped {
            piped.postpone_idle(by);
        }
        self.requests.send(Request::Postpone(by));
    }

    /// Waits until no process of the job is left, or until pinfold has given up on the remaining processes, which the
    /// report then names. Does not close a piped standard input: drop [`stdin`](Self::stdin) before, if the job reads its
    /// input to the end.
    ///
    /// Cancel-safe: dropping the future does not affect the job, and the caller can call this again.
    ///
    /// ```
    /// # async fn example(job: &pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
    /// let report = job.wait().await?;
    /// println!("{}: exit code {}, {} left behind", report.name, report.exit_code, report.leftovers.count);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::GuardLost`](crate::Error::GuardLost) if the runtime of the supervisor has been shut down.
    pub async fn wait(&self) -> Result<Arc<Report>> {
        self.shared.wait().await
    }

    /// Returns the report if the job is over, and `None` if it is not. Does not wait.
    ///
    /// # Errors
    /// The same as for [`wait`](Self::wait).
    pub fn try_wait(&self) -> Result<Option<Arc<Report>>> {
        self.shared.try_wait()
    }
}
