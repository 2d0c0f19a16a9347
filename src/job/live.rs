//! What can be asked of a job while it runs: what it uses, and to stand still.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::actor::Actor;
use super::{Job, JobHandle, Request as JobRequest};
use crate::cgroup::directory::{State, state};
use crate::error::{Error, Result};
use crate::job::completion::Completion;
use crate::job::stop::Phase;
use crate::report::{MainEnd, Reason, Report, Usage};

/// A process in the kernel's hands (state D) does not freeze before it comes back.
const FREEZE_BOUND: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) enum Request {
    Usage(oneshot::Sender<Usage>),
    /// Answered when all stand still.
    Freeze(oneshot::Sender<Result<()>>),
    Thaw,
}

/// Runs `task` until the report is there.
pub(super) async fn until_over(report: Completion<Arc<Report>>, task: impl Future<Output = ()>) {
    tokio::select! {
        _ = report.wait() => {}
        () = task => {}
    }
}

impl Actor {
    pub(super) fn perform_live(&mut self, request: Request) {
        // Whoever has asked may be gone.
        match request {
            Request::Usage(answer) => drop(answer.send(self.usage(true))),
            Request::Freeze(answer) => match self.freeze() {
                // In the runtime, whatever executor asks.
                Ok(events) => drop(tokio::spawn(tell_frozen(events, self.report.name.clone(), answer))),
                Err(error) => drop(answer.send(Err(error))),
            },
            Request::Thaw => self.thaw(),
        }
    }

    fn freeze(&self) -> Result<OwnedFd> {
        let failed = |errno| {
            let advice = if errno == Errno::NOENT { "Linux 5.2 or later is needed" } else { "" };
            Error::system("freeze", self.report.name.clone(), errno, advice)
        };
        let Some(leaf) = self.containment.leaf() else {
            return Err(Error::system(
                "freeze",
                self.report.name.clone(),
                Errno::OPNOTSUPP,
                "it is held without a cgroup",
            ));
        };
        // One that is being ended must not stand still.
        if self.machine.phase != Phase::Running || self.usage.is_some() {
            return Err(failed(Errno::SRCH));
        }
        let events = leaf.cgroup().events().map_err(failed)?;
        leaf.cgroup().write(c"cgroup.freeze", b"1").map_err(failed)?;
        Ok(events)
    }

    fn thaw(&self) {
        if let Some(leaf) = self.containment.leaf() {
            // One that is gone has nothing to thaw.
            let _ = leaf.cgroup().write(c"cgroup.freeze", b"0");
        }
    }

    pub(super) fn usage(&mut self, with_pressure: bool) -> Usage {
        if let Some(usage) = &self.usage {
            return usage.as_ref().clone();
        }
        self.seen.memory_highest = self.memory.highest();
        match self.containment.leaf() {
            Some(leaf) => {
                let (controllers, seen) = (leaf.controllers(), self.seen);
                let read = || Usage::read(leaf.cgroup(), controllers, seen, with_pressure);
                match read() {
                    (_, true) => leaf.with_reserve(read).0,
                    (usage, false) => usage,
                }
            }
            None => Usage::of_reaped(self.spent.cpu_user_us, self.spent.cpu_system_us, self.seen),
        }
    }

    /// Tells what ran out of memory, and whether that has ended the job.
    pub(super) fn conclude_memory(&mut self) {
        let Some(leaf) = self.containment.leaf().filter(|leaf| leaf.has_controller("memory")) else { return };
        let by_kill = matches!(self.report.main, Some(MainEnd::Signalled { signal: libc::SIGKILL, .. }));
        let main = self.main.as_ref().map(|(pid, _)| pid.as_raw_nonzero().get());
        let killed_main = by_kill && !self.report.killed && self.machine.reason == Reason::Exited;
        let group = self.config.oom_group;
        let (oom, main_was) = self.memory.conclude(leaf.cgroup(), &leaf.tail(), main, killed_main, group);
        self.report.oom = oom;
        if main_was {
            self.report.reason = Reason::Oom;
        }
    }
}

/// Thaws a job whose freeze did not come to its end.
struct ThawOnDrop<'a>(Option<&'a JobHandle>);

impl Drop for ThawOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(job) = self.0 {
            job.thaw();
        }
    }
}

impl Job {
    /// What the whole job uses now, ended processes included; when it has ended, what it used.
    ///
    /// Cancel-safe.
    ///
    /// ```
    /// # async fn example(job: &pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
    /// let usage = job.usage().await?;
    /// match usage.memory_current_bytes.value {
    ///     Some(bytes) => println!("{bytes} bytes"),
    ///     None => println!("not known: {}", usage.memory_current_bytes.source),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::GuardLost`] where the runtime that the supervisor belongs to has been shut down.
    pub async fn usage(&self) -> Result<Usage> {
        match self.handle().usage().await {
            Some(usage) => Ok(usage),
            // It ended meanwhile.
            None => Ok(self.wait().await?.usage.clone()),
        }
    }

    /// Lets every process of it stand still, and comes back when they do (`frozen 1` in `cgroup.events`, Linux 5.2). They
    /// are not told and can't resist; SIGKILL still ends them. The deadline's clock goes on. A stop thaws them, so that they
    /// see the stop signal.
    ///
    /// Dropping the future before it is ready thaws the job again.
    ///
    /// ```
    /// # async fn example(job: &pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
    /// job.freeze().await?;
    /// // Nothing of it runs.
    /// job.thaw();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `ESRCH` where the job is ending or has ended, `ETIMEDOUT` where a process did not freeze within 10 s (state D): then
    /// the job runs on. `EOPNOTSUPP` without a cgroup.
    pub async fn freeze(&self) -> Result<()> {
        self.handle().freeze().await
    }

    /// Lets a job go on that was frozen. Comes back at once; one that was not frozen is left as it is.
    pub fn thaw(&self) {
        self.requests.send(JobRequest::Live(Request::Thaw));
    }
}

impl JobHandle {
    /// What the whole job uses now; `None` where it is over.
    ///
    /// Cancel-safe.
    pub async fn usage(&self) -> Option<Usage> {
        let (answer, usage) = oneshot::channel();
        self.ask(JobRequest::Live(Request::Usage(answer)));
        usage.await.ok()
    }

    /// Lets every process of it stand still, as [`Job::freeze`].
    ///
    /// Dropping the future before it is ready thaws the job again.
    ///
    /// # Errors
    /// As [`Job::freeze`].
    pub async fn freeze(&self) -> Result<()> {
        let failed = |errno| Error::system("freeze", format!("the job of process {}", self.pid), errno, "");
        let (answer, frozen) = oneshot::channel();
        self.ask(JobRequest::Live(Request::Freeze(answer)));
        let mut thaw = ThawOnDrop(Some(self));
        let frozen = frozen.await.map_err(|_| failed(Errno::SRCH))?;
        if frozen.is_ok() {
            thaw.0 = None;
        }
        frozen
    }

    /// Lets a job go on that was frozen, as [`Job::thaw`].
    pub fn thaw(&self) {
        self.ask(JobRequest::Live(Request::Thaw));
    }
}

/// Answers when all stand still, or when that takes too long. Ends early where the caller no longer waits.
async fn tell_frozen(events: OwnedFd, name: String, mut answer: oneshot::Sender<Result<()>>) {
    let failed = |errno| Error::system("freeze", name.clone(), errno, "");
    let done = async {
        let events = crate::supervisor::watch::watched(events, Interest::PRIORITY).map_err(|_| failed(Errno::MFILE))?;
        match tokio::time::timeout(FREEZE_BOUND, frozen(&events)).await {
            Ok(done) => done.map_err(failed),
            Err(_) => Err(failed(Errno::TIMEDOUT)),
        }
    };
    let done = tokio::select! {
        done = done => done,
        () = answer.closed() => return,
    };
    // A caller that is gone has thawed the job.
    let _ = answer.send(done);
}

/// Waits until all stand still. `SRCH` where nobody is left to.
async fn frozen(events: &AsyncFd<OwnedFd>) -> rustix::io::Result<()> {
    loop {
        match state(events.get_ref())? {
            State { frozen: true, .. } => return Ok(()),
            State { populated: false, .. } => return Err(Errno::SRCH),
            _ => {}
        }
        match events.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => return Err(Errno::IO),
        }
    }
}
