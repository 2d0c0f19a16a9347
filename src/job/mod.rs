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

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::{Mutex, oneshot};

use crate::error::{Error, Result};
use crate::guard::protocol::JobId;
use crate::job::completion::Completion;
use crate::job::stop::Event;
use crate::kernel::maker::Maker;
use crate::kernel::pidfd::Pidfd;
use crate::kernel::signal::Signal;
use crate::report::{ProcessInfo, Report};
use crate::supervisor::driver::Driver;
use crate::supervisor::events::{Events, Log};
use crate::supervisor::queue::{Receiver, Sender};
pub use handle::JobHandle;
use request::Request;
use streams::Streams;

/// One command and every process descended from it. If it is dropped before the job has ended, pinfold kills the job.
///
/// ```
/// fn is_for_any_thread<T: Send + Sync + 'static>() {}
/// is_for_any_thread::<pinfold::Job>();
/// ```
#[derive(Debug)]
pub struct Job {
    id: JobId,
    pid: i32,
    main: Arc<Pidfd>,
    requests: Sender<Request>,
    report: Completion<Arc<Report>>,
    stops: Mutex<Receiver<Signal>>,
    name: String,
    cgroup: Option<PathBuf>,
    streams: Option<Box<Streams>>,
    events: Log,
    driver: Driver,
    maker: Maker,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.maker.keep_elsewhere(&self.requests);
        if self.maker.is_elsewhere() {
            std::mem::forget(self.streams.take());
        }
    }
}

impl Job {
    /// Returns the number of the job among the jobs of its supervisor, from 1 in the order of the spawns.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.id
    }

    /// Returns the process id of the main process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Stops the job: pinfold sends the stop signal and SIGCONT (a stopped process does not act on the stop signal
    /// before SIGCONT), waits for the grace period, and kills the remaining processes. A second stop kills at once.
    /// Returns immediately; [`wait`](Self::wait) returns when the job is over.
    ///
    /// ```
    /// # async fn example(job: &pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
    /// job.start_stop();
    /// let report = job.wait().await?; // Shortly after the end of the grace period at the latest.
    /// println!("{:?}", report.reason);
    /// # Ok(())
    /// # }
    /// ```
    pub fn start_stop(&self) {
        // A job that has ended ignores requests.
        self.requests.send(Request::Stop(None));
    }

    /// Stops the job as [`start_stop`](Self::start_stop) does, but sends `signal` first, instead of the stop signal. Use it in a
    /// supervisor that forwards the signal that it received, so that the job's handlers for SIGINT or SIGHUP run.
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

    /// Kills the job at once, through `cgroup.kill` (Linux 5.14) or, on older kernels, by SIGKILL through pidfds.
    /// Returns immediately, as [`start_stop`](Self::start_stop) does.
    pub fn start_kill(&self) {
        self.requests.send(Request::Kill);
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
        self.handle().signal(signal)
    }

    /// Returns whether the main process has ended. Other processes of the job may still run.
    #[must_use]
    pub fn main_has_ended(&self) -> bool {
        self.main.has_ended()
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
        &self.name
    }

    /// Returns the directory of the job's cgroup (its leaf); `None` if the job is held without a cgroup.
    ///
    /// For settings that [`Limits`](crate::Limits) does not have, such as those of the controllers hugetlb and rdma, and
    /// for other programs that read or limit a cgroup. The directory exists until the job is over. pinfold enables only
    /// the controllers that its own limits need: the caller enables others in `cgroup.subtree_control` of the two
    /// directories above (the kernel's admin-guide/cgroup-v2.rst, "Enabling and Disabling").
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
        self.cgroup.as_deref()
    }

    /// Stops the job because a deadline that was set elsewhere is reached.
    pub(crate) fn stop_at_deadline(&self) {
        self.requests.send(Request::End(Event::Deadline));
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
    ///         let job = supervisor.spawn(&command).await?;
    ///         job.ready(&Readiness::stdout_line("ready"), std::time::Duration::from_secs(60)).await?;
    ///         for process in job.processes().await {
    ///             println!("{process}");
    ///         }
    ///         assert_eq!(job.processes().await.len(), 2);
    ///         job.start_kill();
    ///         job.wait().await?;
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
        self.events.listen()
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

    /// Postpones the deadline and the end of the [`idle_timeout`](crate::Command::idle_timeout) by a time in which the
    /// job could not run.
    pub fn postpone_deadline(&self, by: std::time::Duration) {
        if let Some(streams) = &self.streams {
            streams.postpone_idle(by);
        }
        self.requests.send(Request::Postpone(by));
    }

    /// Waits for a future that needs the supervisor's runtime, in any executor. Returns [`Error::GuardLost`] if the
    /// runtime has been shut down.
    async fn in_runtime<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        let mut report = self.report.wait();
        let mut future = std::pin::pin!(self.driver.inside(future));
        std::future::poll_fn(|context| match Pin::new(&mut report).poll(context) {
            Poll::Ready(None) => Poll::Ready(Err(Error::GuardLost)),
            _ => future.as_mut().poll(context),
        })
        .await
    }

    /// Waits until no process of the job is left, or until pinfold has given up on the remaining processes, which the
    /// report then names.
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
    /// [`Error::GuardLost`] if the runtime of the supervisor has been shut down.
    pub async fn wait(&self) -> Result<Arc<Report>> {
        self.report.wait().await.ok_or(Error::GuardLost)
    }
}
