//! A handle to a job that does not own the job.

use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

#[cfg(doc)]
use super::Job;
use super::Request;
use crate::error::{Error, Result};
use crate::guard::protocol::JobId;
use crate::job::completion::Completion;
use crate::job::output::Searches;
use crate::job::ready::Readiness;
use crate::job::stop::Event;
use crate::kernel::pidfd::Pidfd;
use crate::kernel::signal::Signal;
use crate::report::{ProcessInfo, Report};
use crate::supervisor::events::{Events, Log};
use crate::supervisor::queue::WeakSender;

/// The state that a job and its handles share.
#[derive(Debug)]
pub(super) struct Shared {
    pub number: JobId,
    pub pid: i32,
    /// The guard that started the job. Without a cgroup it has no other job.
    pub guard: i32,
    pub main: Arc<Pidfd>,
    pub name: String,
    pub cgroup: Option<PathBuf>,
    pub report: Completion<Arc<Report>>,
    pub events: Log,
    /// The searches in each output that is piped.
    pub searches: [Option<Searches>; 2],
    /// The supervisor's runtime. It may have been shut down.
    pub runtime: Handle,
}

impl Shared {
    pub fn id(&self) -> Option<u32> {
        if self.main.has_ended() { None } else { u32::try_from(self.pid).ok() }
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.main
            .send(signal)
            .map_err(|errno| Error::system("send", format!("{signal} to the main process {}", self.pid), errno, ""))
    }

    pub async fn wait(&self) -> Result<Arc<Report>> {
        self.report.wait().await.ok_or(Error::GuardLost)
    }

    pub fn try_wait(&self) -> Result<Option<Arc<Report>>> {
        self.report.try_wait().map(|report| report.ok_or(Error::GuardLost)).transpose()
    }

    /// Waits for a future that needs the supervisor's runtime, in any executor. Returns [`Error::GuardLost`] if the
    /// runtime has been shut down.
    pub async fn in_runtime<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        let mut report = self.report.wait();
        let mut future = pin!(future);
        std::future::poll_fn(|context| match Pin::new(&mut report).poll(context) {
            Poll::Ready(None) => Poll::Ready(Err(Error::GuardLost)),
            _ => {
                let _entered = self.runtime.enter();
                future.as_mut().poll(context)
            }
        })
        .await
    }
}

/// A handle to a job that a [`Job`] owns, here or in a pool. It does not keep the job alive. It is cheap to clone.
///
/// [`Job::handle`] returns it, and a [`Job`] dereferences to it.
///
/// ```
/// let (sender, _handles) = std::sync::mpsc::channel::<pinfold::JobHandle>();
/// // The handle reaches the job of a pool's task while the job runs.
/// let task = pinfold::pool::Task::new(pinfold::Command::new("make"));
/// let task = task.on_spawn(move |job, _attempt| drop(sender.send(job.handle())));
/// # drop(task);
/// ```
#[derive(Clone, Debug)]
pub struct JobHandle {
    pub(super) shared: Arc<Shared>,
    requests: WeakSender<Request>,
}

impl JobHandle {
    pub(super) fn new(shared: Shared, requests: WeakSender<Request>) -> Self {
        Self { shared: Arc::new(shared), requests }
    }

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

    /// Returns the pid of the guard that started the job. Without a cgroup, the guard has only this job.
    #[cfg(feature = "services")]
    pub(crate) fn guard(&self) -> i32 {
        self.shared.guard
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

    /// Returns whether the main process has ended. Other processes of the job may still run.
    #[must_use]
    pub fn main_has_ended(&self) -> bool {
        self.shared.main.has_ended()
    }

    /// Waits until the job is over, as [`Job::wait`] does, but leaves the piped standard input to its owner.
    ///
    /// Cancel-safe: dropping the future does not affect the job.
    ///
    /// # Errors
    /// The same as for [`Job::wait`].
    pub async fn wait(&self) -> Result<Arc<Report>> {
        self.shared.wait().await
    }

    /// Returns the report if the job is over, and `None` if it is not. Does not wait.
    ///
    /// # Errors
    /// The same as for [`Job::wait`].
    pub fn try_wait(&self) -> Result<Option<Arc<Report>>> {
        self.shared.try_wait()
    }

    /// Waits until the job is ready, at most for `timeout`, as [`Job::ready`] does. The handle does not read the output
    /// itself: it searches for a line in the output that the owner of the job or of its streams reads.
    ///
    /// Cancel-safe: another call for the same readiness continues the search.
    ///
    /// # Errors
    /// The same as for [`Job::ready`].
    pub fn ready<'a>(
        &'a self,
        readiness: &'a Readiness,
        timeout: Duration,
    ) -> impl Future<Output = Result<()>> + Send + 'a {
        self.shared.ready(readiness, timeout, [None, None])
    }

    /// Begins to stop the job, and returns immediately: pinfold sends the stop signal and SIGCONT (a stopped process
    /// does not act on the stop signal before SIGCONT), waits for the grace period, and kills the remaining processes.
    /// A second stop kills at once. [`wait`](Self::wait) returns when the job is over. A job that is over ignores the
    /// request.
    ///
    /// # Errors
    /// [`Error::GuardLost`] if the runtime of the supervisor has been shut down.
    pub fn start_stop(&self) -> Result<()> {
        self.request(Request::Stop(None))
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
    /// # async fn example(mut job: pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
    /// job.start_stop_with(pinfold::Signal::INT)?; // Python raises KeyboardInterrupt.
    /// let report = job.wait().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The same as for [`start_stop`](Self::start_stop).
    pub fn start_stop_with(&self, signal: Signal) -> Result<()> {
        self.request(Request::Stop(Some(signal)))
    }

    /// Begins to kill the job, and returns immediately: through `cgroup.kill` (Linux 5.14) or, on older kernels, by
    /// SIGKILL through pidfds. A job that is over ignores the request.
    ///
    /// # Errors
    /// The same as for [`start_stop`](Self::start_stop).
    pub fn start_kill(&self) -> Result<()> {
        self.request(Request::Kill)
    }

    /// Stops the job as [`start_stop`](Self::start_stop) does, and waits until it is over.
    ///
    /// Cancel-safe: the stop goes on if the future is dropped. Before its first poll nothing happens.
    ///
    /// # Errors
    /// The same as for [`Job::wait`].
    pub async fn stop(&self) -> Result<Arc<Report>> {
        self.start_stop()?;
        self.wait().await
    }

    /// Kills the job as [`start_kill`](Self::start_kill) does, and waits until it is over.
    ///
    /// Cancel-safe: the kill goes on if the future is dropped. Before its first poll nothing happens.
    ///
    /// # Errors
    /// The same as for [`Job::wait`].
    pub async fn kill(&self) -> Result<Arc<Report>> {
        self.start_kill()?;
        self.wait().await
    }

    /// Stops the job because a deadline that was set elsewhere is reached.
    pub(crate) fn stop_at_deadline(&self) {
        self.ask(Request::End(Event::Deadline));
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

    /// Sends a signal to every process of the job.
    pub fn signal_all(&self, signal: Signal) {
        self.ask(Request::SignalAll(signal));
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
        let (sender, answer) = oneshot::channel();
        self.ask(Request::Processes(sender));
        answer.await.unwrap_or_default()
    }

    /// Sends a request, and returns an error if no actor can perform it and the job has no report.
    fn request(&self, request: Request) -> Result<()> {
        self.ask(request);
        self.shared.try_wait().map(drop)
    }

    pub(super) fn ask(&self, request: Request) {
        // A job that is over ignores requests.
        if let Some(requests) = self.requests.upgrade() {
            requests.send(request);
        }
    }
}
