//! A handle to a job that does not own the job.

use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::{Job, Request};
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

/// A handle to a job that another object owns, such as a pool ([`Job::handle`]). It does not keep the job alive. It is
/// cheap to clone.
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

impl Job {
    /// Returns a handle to the job.
    ///
    /// ```
    /// use pinfold::JobHandle;
    /// # async fn example(job: pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
    /// let handle: JobHandle = job.handle();
    /// let stopped = tokio::spawn(async move { handle.stop().await });
    /// job.wait().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn handle(&self) -> JobHandle {
        JobHandle { shared: self.shared.clone(), requests: self.requests.downgrade() }
    }
}

impl JobHandle {
    /// Returns the process id of the main process, or `None` if the main process has ended, as [`Job::id`] does.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.shared.id()
    }

    /// Returns the process id that the main process has or had, as [`Job::pid`] does.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.shared.pid
    }

    /// Returns the number of the job among the jobs of its supervisor, as [`Job::number`] does.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.shared.number
    }

    /// Returns the name of the job, as [`Job::name`] does.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Returns the directory of the job's cgroup, as [`Job::cgroup`] does.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Path> {
        self.shared.cgroup.as_deref()
    }

    /// Returns the events of the job from its start on, as [`Job::events`] does.
    #[must_use]
    pub fn events(&self) -> Events {
        self.shared.events.listen()
    }

    /// Returns whether the main process has ended. Other processes of the job may still run.
    #[must_use]
    pub fn main_has_ended(&self) -> bool {
        self.shared.main.has_ended()
    }

    /// Waits until the job is over, as [`Job::wait`] does.
    ///
    /// Cancel-safe: dropping the future does not affect the job.
    ///
    /// # Errors
    /// The same as for [`Job::wait`].
    pub async fn wait(&self) -> Result<Arc<Report>> {
        self.shared.wait().await
    }

    /// Returns the report if the job is over, as [`Job::try_wait`] does.
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

    /// Begins to stop the job, as [`Job::start_stop`] does.
    pub fn start_stop(&self) {
        self.ask(Request::Stop(None));
    }

    /// Begins to stop the job and sends this signal first, as [`Job::start_stop_with`] does.
    pub fn start_stop_with(&self, signal: Signal) {
        self.ask(Request::Stop(Some(signal)));
    }

    /// Begins to kill the job, as [`Job::start_kill`] does.
    pub fn start_kill(&self) {
        self.ask(Request::Kill);
    }

    /// Stops the job and waits until it is over, as [`Job::stop`] does.
    ///
    /// Cancel-safe: the stop goes on if the future is dropped. Before its first poll nothing happens.
    ///
    /// # Errors
    /// The same as for [`Job::wait`].
    pub async fn stop(&self) -> Result<Arc<Report>> {
        self.start_stop();
        self.wait().await
    }

    /// Kills the job and waits until it is over, as [`Job::kill`] does.
    ///
    /// Cancel-safe: the kill goes on if the future is dropped. Before its first poll nothing happens.
    ///
    /// # Errors
    /// The same as for [`Job::wait`].
    pub async fn kill(&self) -> Result<Arc<Report>> {
        self.start_kill();
        self.wait().await
    }

    /// Stops the job because a deadline that was set elsewhere is reached.
    pub(crate) fn stop_at_deadline(&self) {
        self.ask(Request::End(Event::Deadline));
    }

    /// Sends a signal to the main process.
    ///
    /// # Errors
    /// The same as for [`Job::signal`].
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
    pub async fn processes(&self) -> Vec<ProcessInfo> {
        let (sender, answer) = oneshot::channel();
        self.ask(Request::Processes(sender));
        answer.await.unwrap_or_default()
    }

    pub(super) fn ask(&self, request: Request) {
        // A job that is over ignores requests.
        if let Some(requests) = self.requests.upgrade() {
            requests.send(request);
        }
    }
}
