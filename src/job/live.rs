//! The usage of a running job, and freeze and thaw.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::JobHandle;
use super::actor::Actor;
use super::request::Request;
use crate::cgroup::directory::{State, state};
use crate::error::{Error, Result};
use crate::job::completion::Completion;
use crate::job::stop::Phase;
use crate::report::{MainEnd, Reason, Report, Usage};

/// How long a freeze may take. A process in an uninterruptible system call (state D) does not freeze before the call
/// returns.
const FREEZE_BOUND: Duration = Duration::from_secs(10);

/// Runs `task` until it is done or the report is complete.
pub(super) async fn until_over(report: Completion<Arc<Report>>, task: impl Future<Output = ()>) {
    tokio::select! {
        _ = report.wait() => {}
        () = task => {}
    }
}

impl Actor {
    /// Freezes the job, and answers when all processes are frozen.
    pub(super) fn freeze_and_answer(&self, answer: oneshot::Sender<Result<()>>) {
        match self.freeze() {
            // The task runs in the supervisor's runtime, whatever executor the caller uses.
            Ok(events) => drop(tokio::spawn(answer_when_frozen(events, self.report.name.clone(), answer))),
            // The caller may have stopped waiting.
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    fn freeze(&self) -> Result<OwnedFd> {
        let failed = |errno| {
            let advice = if errno == Errno::NOENT { "Linux 5.2 or later is needed" } else { "" };
            Error::system("freeze", self.report.name.clone(), errno, advice)
        };
        let Some(leaf) = self.containment.leaf() else {
            return Err(Error::system("freeze", self.report.name.clone(), Errno::OPNOTSUPP, "the job has no cgroup"));
        };
        // A job that is being stopped must not be frozen.
        if self.machine.phase != Phase::Running || self.usage.is_some() {
            return Err(failed(Errno::SRCH));
        }
        let events = leaf.cgroup().events().map_err(failed)?;
        leaf.cgroup().write(c"cgroup.freeze", b"1").map_err(failed)?;
        Ok(events)
    }

    pub(super) fn thaw(&self) {
        if let Some(leaf) = self.containment.leaf() {
            // If the leaf is gone, there is nothing to thaw.
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

    /// Records in the report which processes the OOM killer killed, and whether that ended the job.
    pub(super) fn record_oom_kills(&mut self) {
        let Some(leaf) = self.containment.leaf().filter(|leaf| leaf.has_controller("memory")) else { return };
        let by_kill = matches!(self.report.main, Some(MainEnd::Signalled { signal: libc::SIGKILL, .. }));
        let main = self.main.as_ref().map(|(pid, _)| pid.as_raw_nonzero().get());
        let killed_main = by_kill && !self.report.killed && self.machine.reason == Reason::Exited;
        let group = self.oom_group;
        let (oom, main_was) = self.memory.conclude(leaf.cgroup(), &leaf.tail(), main, killed_main, group);
        self.report.oom = oom;
        if main_was {
            self.report.reason = Reason::Oom;
        }
    }
}

/// Thaws a job whose freeze was not completed.
struct ThawOnDrop<'a>(Option<&'a JobHandle>);

impl Drop for ThawOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(job) = self.0 {
            job.thaw();
        }
    }
}

impl JobHandle {
    /// Returns what the whole job uses now, including its ended processes. If the job is over, returns what it used.
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
    /// [`Error::GuardLost`] if the runtime of the supervisor has been shut down.
    pub async fn usage(&self) -> Result<Usage> {
        let (answer, usage) = oneshot::channel();
        self.ask(Request::Usage(answer));
        match usage.await {
            Ok(usage) => Ok(usage),
            // The job has ended meanwhile.
            Err(_) => Ok(self.wait().await?.usage.clone()),
        }
    }

    /// Freezes every process of the job, and returns when all are frozen (`frozen 1` in `cgroup.events`, Linux 5.2).
    /// The processes are not notified and can't prevent the freeze; SIGKILL still ends them. The time until the
    /// deadline continues to run. A stop thaws the job, so that its processes can react to the stop signal.
    ///
    /// Dropping the future before it is ready thaws the job again.
    ///
    /// ```
    /// # async fn example(job: &pinfold::Job) -> Result<(), Box<dyn std::error::Error>> {
    /// job.freeze().await?;
    /// // No process of the job runs.
    /// job.thaw();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `ESRCH` if the job is ending or has ended, `ETIMEDOUT` if a process did not freeze within 10 s (state D); in
    /// this case the job continues to run. `EOPNOTSUPP` without a cgroup.
    pub async fn freeze(&self) -> Result<()> {
        let failed = |errno| Error::system("freeze", format!("the job of process {}", self.pid()), errno, "");
        let (answer, frozen) = oneshot::channel();
        self.ask(Request::Freeze(answer));
        let mut thaw = ThawOnDrop(Some(self));
        let frozen = frozen.await.map_err(|_| failed(Errno::SRCH))?;
        if frozen.is_ok() {
            thaw.0 = None;
        }
        frozen
    }

    /// Thaws a frozen job. Returns immediately. Has no effect on a job that is not frozen.
    pub fn thaw(&self) {
        self.ask(Request::Thaw);
    }
}

/// Answers when all processes are frozen, or when that takes too long. Ends early if the caller no longer waits.
async fn answer_when_frozen(events: OwnedFd, name: String, mut answer: oneshot::Sender<Result<()>>) {
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
    // If the caller has stopped waiting, it has thawed the job.
    let _ = answer.send(done);
}

/// Waits until all processes are frozen. Returns `SRCH` if no process is left.
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
