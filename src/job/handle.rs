//! A handle to a job that does not own the job.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Job, Request};
use crate::error::{Error, Result};
use crate::kernel::pidfd::Pidfd;
use crate::kernel::signal::Signal;
use crate::report::ProcessInfo;
use crate::supervisor::queue::WeakSender;

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
    pub(super) pid: i32,
    pub(super) main: Arc<Pidfd>,
    pub(super) requests: WeakSender<Request>,
}

impl Job {
    /// Returns a handle to the job.
    ///
    /// ```
    /// use pinfold::pool::Task;
    /// use pinfold::{Command, Signal};
    /// let (sender, handles) = std::sync::mpsc::channel();
    /// let task = Task::new(Command::new("make")).on_spawn(move |job, _| drop(sender.send(job.handle())));
    /// # let _: std::sync::mpsc::Receiver<pinfold::JobHandle> = handles;
    /// ```
    #[must_use]
    pub fn handle(&self) -> JobHandle {
        JobHandle { pid: self.pid, main: self.main.clone(), requests: self.requests.downgrade() }
    }
}

impl JobHandle {
    /// Stops the job, as [`Job::start_stop`] does.
    pub fn start_stop(&self) {
        self.ask(Request::Stop(None));
    }

    /// Stops the job and sends this signal first, as [`Job::start_stop_with`] does.
    pub fn start_stop_with(&self, signal: Signal) {
        self.ask(Request::Stop(Some(signal)));
    }

    /// Kills the job, as [`Job::start_kill`] does.
    pub fn start_kill(&self) {
        self.ask(Request::Kill);
    }

    /// Sends a signal to the main process.
    ///
    /// # Errors
    /// The same as for [`Job::signal`].
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.main
            .send(signal)
            .map_err(|errno| Error::system("send", format!("{signal} to the main process {}", self.pid), errno, ""))
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
