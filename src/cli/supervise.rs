//! The loop that supervises the job of `run`, `timeout`, `init` and `watch`. These subcommands differ in their
//! [`Policy`] and in their [`Rules`], which are data:
//!
//! | what happens | `run` | `timeout` | `init` | `watch` |
//! | --- | --- | --- | --- | --- |
//! | TERM, INT, HUP or QUIT arrives | stop; the second one kills | sent to the group, once | passed on | as `run`; ends `watch` |
//! | another signal arrives | passed on | sent to the group, once | passed on | passed on |
//! | the terminal sent the signal to the job too | nothing; three interrupts kill | nothing | nothing | as `run`; ends `watch` |
//! | a process of the job sent it | nothing | as any other | nothing | nothing |
//! | a stop request, after the main process has ended | as before | kill | kill | as before |
//! | the terminal stops the main process | pinfold stops too | pinfold stops if it received SIGTSTP | as `run` | as `run` |
//! | a time limit is reached | the job has the deadline | the signal, then `--kill-after` | – | kill, `--grace` after Ctrl-C |
//! | the subcommand's own events | readiness, typed keys | – | inherited children | files, a request to restart |
//!
//! `pool` and `serve` supervise many jobs through a [`crate::Pool`]. They have the same rules, through [`Requests`].
//! `init` as PID 1 has neither guard nor runtime, so it waits in `init/pid_one.rs`.

mod policy;
mod start;
mod suspend;

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cli::signal_stream::SignalStream;
use crate::kernel::own_signals::{self, Received};
use crate::kernel::wake::Wake;
use crate::{Job, JobHandle, Report, Result, Signal};

use super::on_signal::is_stop_request;
use super::signals::{Keys, Response, Rules};
use super::terminal::has_left_our_group;
pub use policy::{Policy, Recipients, Step};
use start::Arrival;

/// A reason to return from the loop.
pub enum Event<T> {
    /// The job is over.
    Ended(Arc<Report>),
    /// A signal has requested a stop or a kill, which the loop has performed if there is a job.
    Requested(Signal),
    /// The terminal has sent a stop request to the job and to pinfold.
    Interrupted(Signal),
    /// One of [`Policy::own_signals`] has arrived.
    OwnSignal(Signal),
    /// The other future is ready.
    Other(T),
}

/// The signals that pinfold receives, with the responses of the rules.
pub struct Requests<'a> {
    pub signals: &'a SignalStream,
    pub rules: Rules,
}

impl Requests<'_> {
    /// Waits for the next signal, and returns it with the response to it. Cancel-safe.
    ///
    /// # Errors
    /// The errno of read(2).
    pub async fn next(&mut self) -> Result<(Response, Signal)> {
        let received = self.signals.recv().await?;
        Ok((self.rules.respond(received, Instant::now()), received.signal))
    }
}

/// An action at a given time.
#[derive(Clone, Copy)]
enum Due {
    /// pinfold sends the signal of the deadline.
    Deadline,
    Kill,
}

/// The state of the loop.
pub struct Supervision<'a> {
    requests: Requests<'a>,
    pub policy: Policy<'a>,
    /// The signals that arrived before there was a job.
    early: VecDeque<Arrival>,
    /// The job may stop pinfold, so the kernel continues it at this time ([`Wake`]).
    due: Option<(Instant, Due, Wake)>,
    /// When pinfold stops itself after a SIGTSTP.
    suspend_at: Option<Instant>,
    /// For how long the terminal had stopped the job.
    pub stopped_time: Rc<Cell<Duration>>,
    /// The first signal that requested a stop or a kill.
    pub requested: Option<Signal>,
    pub timed_out: bool,
    /// pinfold has sent SIGKILL, to itself too ([`Recipients::OwnGroup`]).
    pub killed: bool,
}

impl<'a> Supervision<'a> {
    pub fn new(signals: &'a SignalStream, rules: Rules, policy: Policy<'a>) -> Self {
        Self {
            requests: Requests { signals, rules },
            policy,
            early: VecDeque::new(),
            due: None,
            suspend_at: None,
            stopped_time: Rc::default(),
            requested: None,
            timed_out: false,
            killed: false,
        }
    }

    /// Sets the time of [`Policy::deadline_signal`].
    pub fn set_deadline(&mut self, at: Option<Instant>) {
        self.due = at.map(|at| (at, Due::Deadline, Wake::at(Some(at))));
    }

    /// Kills the job after this time, except if an earlier call has set a time.
    pub fn kill_in(&mut self, time: Duration) {
        if let (None, Some(at)) = (&self.due, Instant::now().checked_add(time)) {
            self.due = Some((at, Due::Kill, Wake::at(Some(at))));
        }
    }

    /// Waits for the next event that the subcommand has to handle. Until then, it treats the job as the rules and the
    /// policy say. `other` is a future of the subcommand, which is dropped before this function returns.
    ///
    /// # Errors
    /// [`crate::Error::GuardLost`], and the errno of read(2).
    pub async fn next<T>(&mut self, job: Option<&Job>, other: impl Future<Output = T>) -> Result<Event<T>> {
        let mut other = std::pin::pin!(other);
        loop {
            let due = self.due.as_ref().map(|(at, ..)| *at);
            let arrival = match self.early.pop_front() {
                Some(early) => early,
                None => tokio::select! {
                    biased;
                    report = ended(job) => return Ok(Event::Ended(report?)),
                    (job, signal) = main_stopped(job) => {
                        self.main_stopped(job, signal);
                        continue;
                    }
                    received = self.requests.signals.recv() => {
                        Arrival { received: received?, at: Instant::now(), before_the_job: false }
                    }
                    () = sleep_until(self.suspend_at) => {
                        self.suspend_at = None;
                        self.suspend_late(job).await;
                        continue;
                    }
                    () = sleep_until(due) => {
                        self.handle_due(job).await?;
                        continue;
                    }
                    done = &mut other => return Ok(Event::Other(done)),
                },
            };
            if let Some(event) = self.handle(job, arrival).await? {
                return Ok(event);
            }
        }
    }

    /// Waits until the job is over. [`Policy::own_signals`] must be empty.
    ///
    /// # Errors
    /// Those of [`next`](Self::next).
    pub async fn wait(&mut self, job: &Job) -> Result<Arc<Report>> {
        loop {
            if let Event::Ended(report) = self.next(Some(job), std::future::pending::<()>()).await? {
                return Ok(report);
            }
        }
    }

    /// Waits, after the end of the job, for a future of the subcommand. A request to stop or to kill ends the wait.
    ///
    /// # Errors
    /// The signal of that request.
    pub async fn finish<T>(&mut self, rest: impl Future<Output = T>) -> Result<std::result::Result<T, Signal>> {
        let mut rest = std::pin::pin!(rest);
        loop {
            let (response, signal) = tokio::select! {
                biased;
                done = &mut rest => return Ok(Ok(done)),
                request = self.requests.next() => request?,
            };
            match response {
                Response::Stop(_) | Response::Kill => return Ok(Err(signal)),
                _ if signal == Signal::TSTP && self.policy.terminal.is_some_and(|terminal| !terminal.orphaned) => {
                    self.suspend_by(signal);
                }
                _ => {}
            }
        }
    }

    /// Kills the job because of typed keys.
    ///
    /// # Errors
    /// [`crate::Error::GuardLost`].
    pub fn kill(&mut self, job: &Job, signal: Signal) -> Result<()> {
        (self.policy.announce)(Step::Kill(signal));
        job.start_kill()
    }

    async fn handle<T>(&mut self, job: Option<&Job>, arrival: Arrival) -> Result<Option<Event<T>>> {
        let Arrival { received, at, before_the_job } = arrival;
        let signal = received.signal;
        if self.policy.own_signals.contains(&signal) {
            return Ok(Some(Event::OwnSignal(signal)));
        }
        if let Some(job) = job {
            if self.policy.acts_without_main && job.main_has_ended() {
                // pinfold is ending the remaining processes already. The sender wants them to end sooner.
                if is_stop_request(signal) {
                    job.start_kill()?;
                }
                return Ok(None);
            }
            let shares_group = self.requests.rules.keys == Keys::ReachJob;
            if shares_group && !self.policy.accepts_job_signals && is_from_job(job, received).await {
                return Ok(None);
            }
        }
        let response = self.requests.rules.respond(received, at);
        let announce = self.policy.announce;
        match response {
            Response::Stop(first) => {
                announce(Step::Stop(signal));
                self.requested.get_or_insert(signal);
                match (job, first) {
                    (Some(job), Some(first)) => job.start_stop_with(first)?,
                    (Some(job), None) => job.start_stop()?,
                    (None, _) => {}
                }
                return Ok(Some(Event::Requested(signal)));
            }
            Response::Kill => {
                announce(Step::Kill(signal));
                self.requested.get_or_insert(signal);
                job.map_or(Ok(()), |job| job.start_kill())?;
                return Ok(Some(Event::Requested(signal)));
            }
            Response::PassOn(sent) => self.send(job, Some(signal), Some(sent)).await?,
            Response::LeftToJob(sent) | Response::Interrupt(sent, _) => {
                if let Response::Interrupt(_, count @ 1..) = response {
                    announce(Step::Interrupt(signal, count));
                }
                match job {
                    // Without pinfold, the main process would have received this signal.
                    Some(job) if before_the_job || has_left_our_group(job) => {
                        self.send(Some(job), Some(signal), Some(sent)).await?;
                    }
                    _ => self.start_kill_after(),
                }
                if let Response::Interrupt(..) = response {
                    return Ok(Some(Event::Interrupted(signal)));
                }
            }
            // A job that is over has no terminal, so an error is ignored.
            Response::Key(signal) => drop(job.map(|job| job.signal_pty(signal))),
            Response::Suspend => self.suspend_with_job(job, signal).await,
            Response::SuspendLater if self.is_orphaned() => {}
            Response::SuspendLater => self.suspend_at = Some(Instant::now() + suspend::STOP_TIMEOUT),
            Response::Deadline => self.deadline(job).await?,
            Response::Ignore => {
                announce(Step::Send(Some(signal), None));
                self.stop_after(signal);
            }
            Response::Nothing => {}
        }
        Ok(None)
    }

    /// Sends a signal to the job.
    async fn send(&mut self, job: Option<&Job>, received: Option<Signal>, signal: Option<Signal>) -> Result<()> {
        let Some(job) = job else { return Ok(()) };
        self.start_kill_after();
        (self.policy.announce)(Step::Send(received, signal));
        match (self.policy.recipients, signal) {
            // An error means that the main process has just ended.
            (Recipients::Main, signal) => drop(signal.map(|signal| job.signal(signal))),
            (Recipients::OwnGroup, Some(Signal::KILL)) => {
                self.killed = true;
                job.start_kill()?;
            }
            (_, signal) => {
                if let Some(signal) = signal {
                    job.signal_group(signal).await;
                }
                if self.policy.recipients == Recipients::OwnGroup {
                    self.receive_too(job, signal).await;
                }
            }
        }
        received.inspect(|&received| self.stop_after(received));
        Ok(())
    }

    /// Lets the signal act on pinfold too, as if pinfold were in the process group of the job.
    async fn receive_too(&mut self, job: &Job, signal: Option<Signal>) {
        signal.inspect(|&signal| self.requests.rules.ignore(signal));
        if signal == Some(Signal::STOP) {
            own_signals::suspend_by(Signal::STOP);
        }
        if signal != Some(Signal::CONT) {
            job.signal_group(Signal::CONT).await;
        }
    }

    fn stop_after(&self, received: Signal) {
        if self.policy.stops_after.contains(&received) {
            own_signals::suspend_by(Signal::STOP);
        }
    }

    fn start_kill_after(&mut self) {
        if let Some(kill_after) = self.policy.kill_after.take() {
            self.policy.deadline_signal = Some(Signal::KILL);
            self.set_deadline(Instant::now().checked_add(kill_after));
        }
    }

    async fn handle_due(&mut self, job: Option<&Job>) -> Result<()> {
        match self.due.take() {
            Some((_, Due::Kill, _)) => job.map_or(Ok(()), |job| job.start_kill()),
            // The remaining processes are being ended already.
            _ if job.is_some_and(|job| job.main_has_ended()) => Ok(()),
            _ => self.deadline(job).await,
        }
    }

    async fn deadline(&mut self, job: Option<&Job>) -> Result<()> {
        self.timed_out = true;
        self.due = None;
        self.send(job, None, self.policy.deadline_signal).await
    }
}

/// Returns whether a process of the job sent the signal.
async fn is_from_job(job: &Job, received: Received) -> bool {
    let Ok(sender) = i32::try_from(received.sender) else { return false };
    let by_a_process = !received.from_kernel && sender != 0;
    by_a_process && (sender == job.pid() || job.processes().await.iter().any(|process| process.pid == sender))
}

async fn ended(job: Option<&Job>) -> Result<Arc<Report>> {
    match job {
        Some(job) => JobHandle::wait(job).await,
        None => std::future::pending().await,
    }
}

async fn main_stopped(job: Option<&Job>) -> (&Job, Signal) {
    match job {
        Some(job) => (job, job.next_stop().await),
        None => std::future::pending().await,
    }
}

/// Waits until the given time; forever if that is `None`.
pub async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
