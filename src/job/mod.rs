//! A running job: the handle, and the actor that brings it to its end.

mod actions;
mod actor;
pub(crate) mod caller;
pub mod command;
pub(crate) mod completion;
mod config;
mod handle;
mod live;
mod main_exit;
pub(crate) mod oom;
pub mod output;
pub mod ready;
pub(crate) mod report_builder;
pub mod settle;
mod spawn;
mod spawn_request;
mod start;
pub mod stop;
mod streams;
mod terminal;
mod wait_until_empty;

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
use streams::Streams;

/// One command and every process descended from it. Dropped before it has ended, it is killed.
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

/// What a job is asked for.
#[derive(Debug)]
enum Request {
    /// With the first signal of the stop, where that is not the stop signal of the command.
    Stop(Option<Signal>),
    Kill,
    SignalAll(Signal),
    /// Then tells that it is done.
    SignalGroup(Signal, oneshot::Sender<()>),
    /// An end for another reason than that somebody asked for it.
    End(Event),
    Processes(oneshot::Sender<Vec<ProcessInfo>>),
    Live(live::Request),
    /// The deadline's clock stood still for so long.
    Postpone(std::time::Duration),
}

impl Job {
    /// Its number among the jobs of its supervisor, from 1 on in the order of their spawns.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The main process's id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Stops it: the stop signal, SIGCONT (a stopped process does not see the former), the grace period, then kill. A
    /// second stop kills at once. Comes back at once; [`wait`](Self::wait) tells when it is over.
    ///
    /// ```
    /// # async fn example(job: &pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
    /// job.stop();
    /// let report = job.wait().await?; // After the grace period at most, and a moment.
    /// println!("{:?}", report.reason);
    /// # Ok(())
    /// # }
    /// ```
    pub fn stop(&self) {
        // A job that has ended takes no requests.
        self.requests.send(Request::Stop(None));
    }

    /// Stops it as [`stop`](Self::stop) does, but the processes receive `signal` first, instead of the stop signal: for a
    /// supervisor that passes the kind of a request on, so that the job's handlers for SIGINT or SIGHUP run.
    ///
    /// When the main process has ended, the remaining processes receive the stop signal too: a shell starts its background
    /// processes with SIGINT and SIGQUIT ignored. On a job that is being stopped already, this is a second stop, which kills.
    ///
    /// ```
    /// # async fn example(job: &pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
    /// job.stop_with(pinfold::Signal::INT); // Python: KeyboardInterrupt.
    /// let report = job.wait().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn stop_with(&self, signal: Signal) {
        self.requests.send(Request::Stop(Some(signal)));
    }

    /// Kills it at once: `cgroup.kill` (Linux 5.14; SIGKILL through pidfds before). Comes back at once, as
    /// [`stop`](Self::stop).
    pub fn kill(&self) {
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
    /// `ESRCH` where it has ended, `EPERM` where it belongs to another user by now.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.handle().signal(signal)
    }

    /// Whether the main process has ended; what it left may live still.
    #[must_use]
    pub fn main_has_ended(&self) -> bool {
        self.main.has_ended()
    }

    /// Sends a signal to every process of the job.
    pub fn signal_all(&self, signal: Signal) {
        self.requests.send(Request::SignalAll(signal));
    }

    /// Sends a signal to the main process, then to every other process of the job that is in the process group which the
    /// main one was started in ([`Command::process_group`](crate::Command::process_group)): what `kill -- -PGID` means,
    /// without hitting anybody else. Comes back when they have been sent.
    ///
    /// Cancel-safe: what was asked for is done, whether it is waited for or not.
    pub async fn signal_group(&self, signal: Signal) {
        let (sent, done) = oneshot::channel();
        // A job that has ended takes no requests, and drops those that it had.
        self.requests.send(Request::SignalGroup(signal, sent));
        let _ = done.await;
    }

    /// The name that was given, else the program's file name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Stops it because a deadline that others set is reached.
    pub(crate) fn stop_at_deadline(&self) {
        self.requests.send(Request::End(Event::Deadline));
    }

    /// The processes of the job as they are now; none where it is over.
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
    ///         command.args(["-c", "setsid sleep 999 & echo ready; wait"]).stdout(Stdio::Piped);
    ///         let job = supervisor.spawn(&command).await?;
    ///         job.ready(&Readiness::stdout_line("ready"), std::time::Duration::from_secs(60)).await?;
    ///         for process in job.processes().await {
    ///             println!("{process}");
    ///         }
    ///         assert_eq!(job.processes().await.len(), 2);
    ///         job.kill();
    ///         job.wait().await?;
    ///         supervisor.close().await;
    ///         Ok(())
    ///     })
    /// }
    /// ```
    pub async fn processes(&self) -> Vec<ProcessInfo> {
        self.handle().processes().await
    }

    /// What happens to it, from its start on, whenever this is called.
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

    /// Puts the deadline off, for a time in which the job could not run, and the end of its
    /// [`idle_timeout`](crate::Command::idle_timeout).
    pub fn postpone_deadline(&self, by: std::time::Duration) {
        if let Some(streams) = &self.streams {
            streams.postpone_idle(by);
        }
        self.requests.send(Request::Postpone(by));
    }

    /// Waits for something that needs the runtime, in whatever executor; [`Error::GuardLost`] where the runtime has been shut
    /// down.
    async fn in_runtime<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        let mut report = self.report.wait();
        let mut future = std::pin::pin!(self.driver.inside(future));
        std::future::poll_fn(|context| match Pin::new(&mut report).poll(context) {
            Poll::Ready(None) => Poll::Ready(Err(Error::GuardLost)),
            _ => future.as_mut().poll(context),
        })
        .await
    }

    /// Waits until nothing of it is left, or what is left has been given up on: the report says so.
    ///
    /// Cancel-safe: dropping the future changes nothing, and it can be called again.
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
    /// [`Error::GuardLost`] where the runtime that the supervisor belongs to has been shut down.
    pub async fn wait(&self) -> Result<Arc<Report>> {
        self.report.wait().await.ok_or(Error::GuardLost)
    }
}
