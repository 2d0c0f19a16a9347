//! Stops, kills, signals, freezes and awaits the jobs of other supervisors.
//!
//! Before pinfold sends a signal to a process, it opens a pidfd of the process, and then confirms that it is the right
//! process. A supervisor is confirmed if it has its base open, or if its memory contains the record of the job. A
//! process of a job is confirmed if it is in the job's leaf, or if it is a descendant of the job's guard.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::Pid;

use super::Request;
use super::find::{Containment, Job, Supervisor};
use super::job::open_guard;
use super::target::Target;
use crate::cgroup::base;
use crate::cgroup::directory::{Cgroup, state};
use crate::cgroup::sweep;
use crate::error::Error;
use crate::kernel::pidfd::Pidfd;
use crate::kernel::poll;
use crate::kernel::signal::Signal;
use crate::report::ProcessList;
use crate::subreaper::descendants::Descendants;
use crate::subreaper::description;

/// How long a supervisor may take to write its report and its output and to exit, in addition to the grace period and
/// the kill bound of its jobs.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a supervisor may take after a kill request, and how long its guard may take after the end of the supervisor
/// (README.md, "Promises"). After that, this process itself kills the processes of the job.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// How a stop or a kill ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// No process of the job is left.
    Gone,
    /// These processes did not end in time.
    Remaining(ProcessList),
}

/// Stops a job, or all jobs of a supervisor, and waits until none of their processes is left. If the supervisor is a
/// command of pinfold, it receives a request and stops the jobs with its own settings. If the supervisor is a program
/// that uses the library, or if the target is one of several jobs, this process sends the stop signal and, after the
/// grace period, SIGKILL.
///
/// # Errors
/// If the kernel does not allow a signal to the supervisor or to a process, or if the supervisor does not respond.
pub(crate) fn stop(target: Target<'_>) -> Result<Outcome> {
    match supervisor_for_requests(target) {
        Some(supervisor) => {
            let Some(pidfd) = request(supervisor, Request::Stop)? else { return after_the_supervisor(target) };
            let times = target.jobs().into_iter().map(|job| job.grace() + job.kill_bound()).max();
            let bound = times.unwrap_or_default() + EXIT_TIMEOUT;
            if !has_ended_within(&pidfd, Some(bound))? {
                return Err(no_response(supervisor, bound).into());
            }
            after_the_supervisor(target)
        }
        None => for_each_job(target, stop_directly),
    }
}

/// Kills a job, or all jobs of a supervisor, and waits until none of their processes is left.
///
/// # Errors
/// The same as for [`stop`].
pub(crate) fn kill(target: Target<'_>) -> Result<Outcome> {
    if let Some(supervisor) = supervisor_for_requests(target) {
        let Some(pidfd) = request(supervisor, Request::Kill)? else { return after_the_supervisor(target) };
        if has_ended_within(&pidfd, Some(KILL_TIMEOUT))? {
            return after_the_supervisor(target);
        }
        // The supervisor does not respond: it may be stopped (SIGSTOP).
        let killed = for_each_job(target, kill_directly)?;
        let _ = has_ended_within(&pidfd, Some(EXIT_TIMEOUT))?;
        return Ok(killed);
    }
    for_each_job(target, kill_directly)
}

/// Sends a signal to the main process of each job of the target, or with `to_all` to each of their processes.
///
/// # Errors
/// If the signal could not be sent to the processes of a job.
pub(crate) fn signal(target: Target<'_>, signal: Signal, to_all: bool) -> Result<()> {
    for job in target.jobs() {
        let sent = if to_all { job.signal_all(&[signal], |_| true) } else { job.signal_main(&[signal]) };
        sent.map_err(|errno| Error::system("send a signal to", target.describe(), errno, advice(errno)))?;
    }
    Ok(())
}

/// Freezes the jobs, or thaws them, and waits until that is done (`cgroup.freeze`, Linux 5.2).
///
/// # Errors
/// For a job without a cgroup, if the kernel refuses, or if the processes are not frozen within 10 s.
pub(crate) fn freeze(target: Target<'_>, freeze: bool) -> Result<()> {
    for job in target.jobs() {
        let Containment::Leaf(leaf) = &job.containment else {
            bail!(
                "cannot freeze or thaw {}: it has no cgroup (instead, use pinfold signal --all STOP and CONT)",
                target.describe()
            );
        };
        let operation = if freeze { "freeze" } else { "thaw" };
        let failed = |errno| Error::system(operation, target.describe(), errno, advice(errno));
        let done = if freeze { freeze_leaf(leaf) } else { leaf.thaw() };
        match done {
            Err(Errno::NODEV | Errno::NOENT) => {}
            done => done.map_err(failed)?,
        }
    }
    Ok(())
}

/// Waits until no process of the target is left, for at most `time`. Returns whether none is left.
///
/// # Errors
/// The errno of poll(2) or of reading the cgroup.
pub(crate) fn wait(target: Target<'_>, time: Option<Duration>) -> Result<bool> {
    let until = time.and_then(|time| Instant::now().checked_add(time));
    let remaining_time = || until.map(|until| until.saturating_duration_since(Instant::now()));
    let failed = |errno| Error::system("wait for", target.describe(), errno, "");
    // The jobs may still run when the supervisor is gone: its guard ends them.
    if let Some(supervisor) = supervisor_for_requests(target)
        && let Ok(Some(pidfd)) = open(supervisor)
        && !has_ended_within(&pidfd, time)?
    {
        return Ok(false);
    }
    for job in target.jobs() {
        if !job.wait(remaining_time()).map_err(failed)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the supervisor if it is a command of pinfold and if a request to it affects only the target.
fn supervisor_for_requests(target: Target<'_>) -> Option<&Supervisor> {
    let supervisor = target.supervisor();
    let kind = supervisor.kind()?;
    let whole = matches!(target, Target::Supervisor(_)) || kind.has_one_job();
    (whole && kind.takes_requests() && supervisor.pid.is_some()).then_some(supervisor)
}

/// Opens a pidfd of the supervisor, and confirms that the process is the supervisor. Returns `None` if the supervisor
/// has ended.
fn open(supervisor: &Supervisor) -> Result<Option<Pidfd>> {
    let Some(pid) = supervisor.pid else { return Ok(None) };
    let pidfd = match Pidfd::open(pid) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(None),
        Err(errno) => {
            let object = format!("process {}", pid.as_raw_nonzero());
            return Err(Error::system("open a pidfd of the supervisor,", object, errno, "").into());
        }
    };
    let confirmed = match &supervisor.base {
        Some(base) => has_file_open(pid, base.file_name().unwrap_or_default()),
        None => {
            let guards: Vec<_> = supervisor.jobs.iter().filter_map(|job| job.description.as_ref()).collect();
            description::of(pid).iter().any(|found| guards.iter().any(|known| known.guard == found.description.guard))
        }
    };
    match confirmed {
        true => Ok(Some(pidfd)),
        // The supervisor has ended, and this pid may be that of another process by now. Or it is about to end: a process
        // that exits closes its descriptors first.
        false if !supervisor.has_jobs_left() || has_ended_within(&pidfd, Some(KILL_TIMEOUT))? => Ok(None),
        false => Err(anyhow!(
            "process {} cannot be confirmed as the supervisor: /proc does not show its descriptors",
            pid.as_raw_nonzero()
        )),
    }
}

/// Returns whether the process has a file or directory with this name open. The name is enough to recognize a base,
/// because no two bases have the same name.
fn has_file_open(pid: Pid, name: &std::ffi::OsStr) -> bool {
    debug_assert!(name.to_str().is_some_and(base::is_name));
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()));
    let mut links =
        descriptors.into_iter().flatten().flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.any(|link| link.file_name() == Some(name))
}

/// Sends the request to the supervisor. Returns `None` if it has ended.
fn request(supervisor: &Supervisor, request: Request) -> Result<Option<Pidfd>> {
    let Some(pidfd) = open(supervisor)? else { return Ok(None) };
    match pidfd.send_with(Request::SIGNAL, request.value()) {
        Ok(()) => Ok(Some(pidfd)),
        Err(Errno::SRCH) => Ok(None),
        Err(errno) => {
            let pid = supervisor.pid.map_or(0, |pid| pid.as_raw_nonzero().get());
            Err(Error::system("send a request to", format!("the supervisor, process {pid}"), errno, advice(errno))
                .into())
        }
    }
}

fn has_ended_within(pidfd: &Pidfd, time: Option<Duration>) -> Result<bool> {
    poll::wait(&mut [PollFd::new(pidfd, PollFlags::IN)], time).context("cannot wait for the supervisor")
}

fn no_response(supervisor: &Supervisor, bound: Duration) -> Error {
    let pid = supervisor.pid.map_or(0, |pid| pid.as_raw_nonzero().get());
    Error::system(
        "stop the jobs of",
        format!("process {pid}"),
        Errno::TIMEDOUT,
        format!("it has not ended within {} s; pinfold kill ends the processes directly", bound.as_secs()),
    )
}

fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM | Errno::ACCESS => "it belongs to another user: run this as that user, or as root",
        Errno::SRCH => "it has ended",
        _ => "",
    }
}

/// Waits until no process of the target is left after the end of its supervisor. A supervisor that exits has ended its
/// jobs. If it was killed, its guard ends them; if the guard was killed too, this function does.
fn after_the_supervisor(target: Target<'_>) -> Result<Outcome> {
    for_each_job(target, |job| {
        if job.wait(Some(KILL_TIMEOUT))? {
            return Ok(());
        }
        // The supervisor may have waited for the whole kill bound already.
        kill_within(job, job.kill_bound().min(EXIT_TIMEOUT))
    })
}

/// Calls `act` for each job of the target. Returns which processes remain.
fn for_each_job(target: Target<'_>, act: fn(&Job) -> rustix::io::Result<()>) -> Result<Outcome> {
    for job in target.jobs() {
        match act(job) {
            Ok(()) | Err(Errno::BUSY | Errno::SRCH | Errno::NODEV | Errno::NOENT) => {}
            Err(errno) => return Err(Error::system("end", target.describe(), errno, advice(errno)).into()),
        }
    }
    Ok(outcome(target))
}

/// Returns which processes of the target remain.
fn outcome(target: Target<'_>) -> Outcome {
    let mut list = ProcessList::default();
    for job in target.jobs() {
        if job.has_processes() {
            job.processes().into_iter().for_each(|pid| list.add_unkillable(pid));
        }
    }
    if list.count == 0 { Outcome::Gone } else { Outcome::Remaining(list) }
}

/// Stops a job with signals from this process, and not with a request to its supervisor. Waits until no process is
/// left.
fn stop_directly(job: &Job) -> rustix::io::Result<()> {
    let description = job.description.as_ref();
    let signal = description.and_then(|found| Signal::from_number(found.stop_signal)).unwrap_or(Signal::TERM);
    let signals = [signal, Signal::CONT];
    let sent = if description.is_some_and(|found| found.signal_to_main) && job.main.is_some() {
        job.signal_main(&signals)
    } else {
        job.signal_all(&signals, |_| true)
    };
    if let Containment::Leaf(leaf) = &job.containment {
        let _ = leaf.describe_stop();
        leaf.thaw()?;
    }
    sent?;
    if job.wait(Some(job.grace()))? { Ok(()) } else { kill_directly(job) }
}

/// Kills a job with signals from this process. Waits for the end of its processes, for at most the kill bound of the
/// job.
fn kill_directly(job: &Job) -> rustix::io::Result<()> {
    kill_within(job, job.kill_bound())
}

fn kill_within(job: &Job, bound: Duration) -> rustix::io::Result<()> {
    match &job.containment {
        Containment::Leaf(leaf) => sweep::kill_and_wait(leaf, bound),
        Containment::Guard(guard) => {
            let Some(pidfd) = open_guard(*guard)? else { return Ok(()) };
            let until = Instant::now().checked_add(bound);
            // The job may start new processes meanwhile, so each iteration kills again. After the last process has
            // ended, the guard needs a moment to exit.
            const PAUSE: Duration = Duration::from_millis(10);
            while !pidfd.has_ended() && until.is_none_or(|until| Instant::now() < until) {
                let descendants = Descendants::of(*guard);
                descendants.kill_all(|_| {})?;
                let ended = poll::wait(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(PAUSE))?;
                if ended || descendants.children()?.is_empty() {
                    return Ok(());
                }
            }
            Ok(())
        }
    }
}

fn freeze_leaf(leaf: &Cgroup) -> rustix::io::Result<()> {
    const BOUND: Duration = Duration::from_secs(10);
    let events = leaf.events()?;
    leaf.write(c"cgroup.freeze", b"1")?;
    let until = Instant::now() + BOUND;
    loop {
        let now = state(&events)?;
        let remaining = until.saturating_duration_since(Instant::now());
        if now.frozen || !now.populated {
            return Ok(());
        }
        if remaining.is_zero() {
            return Err(Errno::TIMEDOUT);
        }
        poll::wait(&mut [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)], Some(remaining))?;
    }
}

impl Supervisor {
    fn has_jobs_left(&self) -> bool {
        self.jobs.iter().any(Job::has_processes)
    }
}
