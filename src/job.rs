//! A running job: the handle, and the actor that brings it to its end.

mod actions;
mod actor;
mod emptied;
mod live;
mod order;

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, watch};

use crate::command::Command;
use crate::containment::{limits, oom};
use crate::error::{Error, Result};
use crate::guard::protocol::JobId;
use crate::means::NextHolder;
use crate::pidfd::Pidfd;
use crate::report::Report;
use crate::signal::Signal;
use crate::supervisor::Inner;

/// One command and every process descended from it. Dropped before it has ended, it is killed.
#[derive(Debug)]
pub struct Job {
    pid: i32,
    main: Arc<Pidfd>,
    requests: mpsc::UnboundedSender<Request>,
    report: watch::Receiver<Option<Arc<Report>>>,
    stops: Mutex<mpsc::UnboundedReceiver<Signal>>,
}

/// What a job is asked for.
#[derive(Debug)]
enum Request {
    Stop,
    Kill,
    SignalAll(Signal),
    Live(live::Request),
    /// The deadline's clock stood still for so long.
    Postpone(std::time::Duration),
}

pub(crate) async fn start(supervisor: Arc<Inner>, id: JobId, command: &Command) -> Result<Job> {
    command.limits.check()?;
    let order = order::Order::new(command)?;
    let (requests, inbox) = mpsc::unbounded_channel();
    let (spawned, started) = tokio::sync::oneshot::channel();
    let (stop_sender, stops) = mpsc::unbounded_channel();
    let (finished, report) = watch::channel(None);
    let NextHolder { link, holder, refused } = supervisor.next_holder().await?;
    let memory = Arc::new(oom::Watch::default());
    // A leaf that is dropped is removed.
    let watched = limits::apply_to(&holder, &command.limits)?;
    let answers = link.listen(id)?;
    let runtime = supervisor.runtime.clone();
    runtime.spawn(actor::run(
        actor::Assignment {
            supervisor,
            id,
            link,
            holder,
            answers,
            order,
            command: command.clone(),
            inbox,
            stops: stop_sender,
            refused,
            memory: memory.clone(),
        },
        spawned,
        finished,
    ));
    // The actor keeps `requests` open only through this future: dropped here, the job ends.
    match started.await {
        Ok(Ok((pid, main))) => {
            if let Some(leaf) = watched {
                runtime.spawn(live::until_over(report.clone(), memory.run(leaf, pid)));
            }
            Ok(Job { pid, main, requests, report, stops: Mutex::new(stops) })
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::GuardLost),
    }
}

impl Job {
    /// The main process's id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Stops it: the stop signal, SIGCONT (a stopped process does not see the former), the grace period, then kill. A
    /// second stop kills at once. Comes back at once; [`wait`](Self::wait) tells when it is over.
    pub fn stop(&self) {
        // A job that has ended takes no requests.
        let _ = self.requests.send(Request::Stop);
    }

    /// Kills it at once: `cgroup.kill` (Linux 5.14; SIGKILL through pidfds before). Comes back at once, as
    /// [`stop`](Self::stop).
    pub fn kill(&self) {
        let _ = self.requests.send(Request::Kill);
    }

    /// Sends a signal to the main process, through its pidfd (pidfd_send_signal(2), Linux 5.1).
    ///
    /// # Errors
    /// `ESRCH` where it has ended, `EPERM` where it belongs to another user by now.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.main
            .send(signal)
            .map_err(|errno| Error::system("send", format!("{signal} to the main process {}", self.pid), errno, ""))
    }

    /// Sends a signal to every process of the job.
    pub fn signal_all(&self, signal: Signal) {
        let _ = self.requests.send(Request::SignalAll(signal));
    }

    /// Waits until a signal stops the main process (SIGSTOP, or SIGTSTP, SIGTTIN, SIGTTOU from the terminal), and tells
    /// which. Never comes back when the job has ended.
    ///
    /// Cancel-safe: a stop that nobody waits for is kept.
    pub async fn next_stop(&self) -> Signal {
        match self.stops.lock().await.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }

    /// Puts the deadline off, for a time in which the job could not run.
    pub fn postpone_deadline(&self, by: std::time::Duration) {
        let _ = self.requests.send(Request::Postpone(by));
    }

    /// Waits until nothing of it is left, or what is left has been given up on: the report says so.
    ///
    /// Cancel-safe: dropping the future changes nothing, and it can be called again.
    ///
    /// # Errors
    /// [`Error::GuardLost`] where the runtime that the supervisor belongs to has been shut down.
    pub async fn wait(&self) -> Result<Arc<Report>> {
        match self.report.clone().wait_for(Option::is_some).await {
            Ok(report) => Ok(report.clone().unwrap_or_else(|| unreachable!("waited for a report"))),
            Err(_) => Err(Error::GuardLost),
        }
    }
}
