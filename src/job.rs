//! A running job: the handle, and the actor that brings it to its end.

mod actions;
mod actor;
mod emptied;
mod ending;
mod handle;
mod live;
mod order;
mod spawn;
mod streams;
mod terms;

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use tokio::sync::{Mutex, oneshot};

use crate::caller::Caller;
use crate::command::Command;
use crate::containment::{limits, oom};
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::events::{Events, Log};
use crate::guard::protocol::JobId;
use crate::maker::Maker;
use crate::means::{Means, NextHolder};
use crate::output::Activity;
use crate::pidfd::Pidfd;
use crate::queue::{Receiver, Sender, queue};
use crate::report::{Draft, ProcessInfo, Report};
use crate::signal::Signal;
use crate::stop::Event;
use crate::supervisor::Inner;
use crate::told::{Told, told};
use crate::wake::Wake;
pub use handle::JobHandle;
use streams::Streams;
use terms::Terms;

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
    report: Told<Arc<Report>>,
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

pub(crate) async fn start(
    supervisor: Arc<Inner>,
    means: &Means,
    id: JobId,
    command: &Command,
    caller: &Caller,
) -> Result<Job> {
    command.limits.check()?;
    let mut order = order::Order::new(command, caller, means.changed(&caller.host))?;
    let (pipes, terminal) = (std::mem::take(&mut order.pipes), order.terminal.take());
    let (requests, inbox) = queue();
    let (spawned, started) = oneshot::channel();
    let (stop_sender, stops) = queue();
    let (finished, report) = told();
    let NextHolder { link, holder, refused } = supervisor.next_holder(means).await?;
    link.host.check_rights(&caller.host)?;
    let memory = Arc::new(oom::Watch::default());
    // A leaf that is dropped is removed.
    let watched = limits::apply_to(&holder, &command.limits)?;
    if let Some(leaf) = holder.leaf().filter(|_| command.user.is_some()) {
        leaf.let_others_through();
    }
    let driver = supervisor.runtime.clone();
    let runtime = driver.handle.clone();
    let events = Log::new(id, command.display_name(), supervisor.hub.clone());
    let activity = command.idle_timeout.map(|timeout| (timeout, Arc::new(Activity::new())));
    let streams = {
        let _entered = runtime.enter();
        Streams::new(command, pipes, terminal, &report, activity.as_ref().map(|(_, activity)| activity))?
    };
    // From here on the actor answers for it, and forgets it in the end.
    let answers = link.listen(id)?;
    let assignment = Box::new(actor::Assignment {
        supervisor,
        id,
        link,
        holder,
        answers,
        order,
        terms: Terms::of(command),
        timeout: command.timeout,
        report: Draft::of(command),
        inbox,
        stops: stop_sender,
        refused,
        events: events.clone(),
        memory: memory.clone(),
    });
    // Also while the start is not over: from then on it is the watch's.
    let wake = Wake::at(command.idle_timeout.and_then(|timeout| Instant::now().checked_add(timeout)));
    runtime.spawn(actor::run(assignment, spawned, finished));
    // The actor keeps `requests` open only through this future: dropped here, the job ends.
    match started.await {
        Ok(Ok((pid, main))) => {
            if let Some((timeout, activity)) = activity {
                runtime.spawn(streams::watch_idle(timeout, activity, requests.downgrade(), report.clone(), wake));
            }
            if let Some(leaf) = watched {
                runtime.spawn(live::until_over(report.clone(), memory.run(leaf, (pid, main.clone()), events.clone())));
            }
            let name = command.display_name();
            Ok(Job {
                id,
                pid,
                main,
                requests,
                report,
                stops: Mutex::new(stops),
                name,
                streams,
                events,
                driver,
                maker: Maker::here(),
            })
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::GuardLost),
    }
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
