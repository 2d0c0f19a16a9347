//! Runs one more command inside of a running job. The command starts in the job's leaf. So the job's limits apply to
//! the command and to all processes that it starts, and these processes end with the job at the latest. If the job has a
//! sandbox, the command has the same sandbox.

use std::ffi::{CString, OsString};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, geteuid, waitid};

use super::find::{Containment, Job};
use super::sandbox::{self, JobSandbox};
use super::target::Target;
use crate::cgroup::directory::Cgroup;
use crate::error::Error;
use crate::kernel::own_signals::{SignalQueue, suspend_by};
use crate::kernel::pidfd::Pidfd;
use crate::kernel::signal::Signal;
use crate::kernel::user::User;
use crate::kernel::{fork, inherited, signal_set};
use crate::report::text::{printable_os, printable_path};

/// A command for a running job.
#[derive(Debug)]
pub(crate) struct Command {
    pub words: Vec<OsString>,
    pub cwd: Option<PathBuf>,
    /// Variables to set, in addition to those of this process.
    pub env: Vec<(OsString, OsString)>,
    pub user: Option<User>,
}

/// Runs the command in the job of the target, and returns how the command ended. This process must have one thread. It
/// passes the signals that it receives on to the command. If this process is killed, the command continues as a part of
/// the job.
///
/// # Errors
/// If the job has no cgroup, has a sandbox that this process can't enter, or has ended. If the command cannot be
/// executed, the error is an [`Errno`] with a context.
pub(crate) fn exec(target: Target<'_>, command: &Command) -> Result<ExitStatus> {
    let job = only_job(target)?;
    let target = Target::Job(target.supervisor(), job);
    let Containment::Leaf(leaf) = &job.containment else {
        bail!("cannot run a command in {}: it has no cgroup, so the command could outlive it", target.describe());
    };
    // This error contains only text. If it contained an errno, the caller would take it for an error of the command.
    let refused = |error: anyhow::Error| anyhow::anyhow!("cannot run a command in {}: {error:#}", target.describe());
    let sandbox = sandbox::of(target.supervisor(), job, leaf).map_err(refused)?;
    match &sandbox {
        Some(sandbox) => sandbox.check_user(command.user.as_ref()).map_err(refused)?,
        None => check_user(target, job, command)?,
    }
    let cwd = working_directory(command, sandbox.as_ref())?;
    let words: Vec<_> =
        command.words.iter().map(|word| CString::new(word.clone().into_vec())).collect::<Result<_, _>>()?;
    let mask = inherited::signals().blocked;
    let signals = SignalQueue::block_all()?;
    // With `joins`, the child joins the leaf after the fork. Otherwise the kernel starts it there.
    let start = |joins: bool| -> Result<(Pidfd, Vec<u8>)> {
        // The child writes `STARTED` to this pipe, and then an error if a step fails. A successful exec closes the
        // pipe.
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let child = match fork::fork_into((!joins).then(|| leaf.as_fd())) {
            Ok(Some(child)) => child,
            Ok(None) => {
                let _ = rustix::io::write(&writer, &[STARTED]);
                let failure = match if joins { join(leaf) } else { Ok(()) } {
                    Ok(()) => exec_in_child(command, sandbox.as_ref(), cwd.as_deref(), &words, mask),
                    Err(errno) => Failure::Cgroup(errno),
                };
                let _ = rustix::io::write(&writer, &failure.bytes());
                fork::exit_now(127)
            }
            Err(errno) => return Err(cgroup_error(errno, target, leaf)),
        };
        drop(writer);
        let mut received = Vec::new();
        std::fs::File::from(reader).read_to_end(&mut received).context("cannot wait for the start of the command")?;
        Ok((child, received))
    };
    let (mut child, mut received) = start(false)?;
    if received.is_empty() {
        // The kernel's kill-sequence bug (Linux 6.14 to 7.2) kills a process that is cloned from one cgroup into another
        // if one of the two was ever killed. A process that joins the cgroup is not affected.
        let status = exit_status(&child)?;
        if status.signal() != Some(Signal::KILL.number()) {
            return Ok(status);
        }
        (child, received) = start(true)?;
    }
    match received.get(1..).unwrap_or_default() {
        [] => {}
        failure => {
            let _ = exit_status(&child);
            return Err(match failure {
                [CGROUP, errno, ..] => cgroup_error(Errno::from_raw_os_error(i32::from(*errno)), target, leaf),
                failure => step_error(failure, command),
            });
        }
    }
    wait_for(&child, &signals, sandbox.is_some())
}

fn only_job<'a>(target: Target<'a>) -> Result<&'a Job> {
    match target.jobs().as_slice() {
        [job] => Ok(job),
        [] => bail!("{}: no job is running", target.describe()),
        jobs => bail!("{}: there are {} jobs; give the name of one of them", target.describe(), jobs.len()),
    }
}

/// Checks that the command has the same user as the job, unless the caller names a user.
fn check_user(target: Target<'_>, job: &Job, command: &Command) -> Result<()> {
    let Some(main) = job.main.filter(|_| command.user.is_none()) else { return Ok(()) };
    let Ok(metadata) = std::fs::metadata(format!("/proc/{}", main.as_raw_nonzero())) else { return Ok(()) };
    if metadata.uid() != geteuid().as_raw() {
        bail!("{} runs as user {}: add --user {} (or --user 0)", target.describe(), metadata.uid(), metadata.uid());
    }
    Ok(())
}

/// Returns the directory that the command enters by its path; `None` if it stays in the directory of this process.
fn working_directory(command: &Command, sandbox: Option<&JobSandbox>) -> Result<Option<PathBuf>> {
    if sandbox.is_none_or(|sandbox| !sandbox.has_mounts()) {
        return Ok(command.cwd.clone());
    }
    // The job has other mounts than this process, so the command must enter its directory by the absolute path.
    let own = std::env::current_dir().context("cannot find the working directory")?;
    Ok(Some(command.cwd.as_ref().map_or_else(|| own.clone(), |cwd| own.join(cwd))))
}

/// Lets this process join the cgroup, before it changes its user.
fn join(leaf: &Cgroup) -> rustix::io::Result<()> {
    let procs = rustix::fs::openat(leaf.as_fd(), "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(procs, b"0").map(drop)
}

/// Returns the error for a process that could not be started in the cgroup of the job.
fn cgroup_error(errno: Errno, target: Target<'_>, leaf: &Cgroup) -> anyhow::Error {
    let advice = match errno {
        Errno::NODEV | Errno::NOENT => return anyhow::anyhow!("{} has ended", target.describe()),
        Errno::ACCESS | Errno::PERM => "this user may not put a process into the job's cgroup",
        Errno::BUSY => {
            "the job has delegated controllers to cgroups of its own, so its own cgroup cannot contain processes"
        }
        _ => "",
    };
    Error::system("start a process in", leaf.path().display().to_string(), errno, advice).into()
}

/// The first byte from the child. It shows that the child runs.
const STARTED: u8 = 0;
/// The number of the step [`Failure::Cgroup`] in [`Failure::bytes`].
const CGROUP: u8 = 5;

/// The step of the child that failed, and its errno.
enum Failure {
    Cgroup(Errno),
    User(Errno),
    Directory(Errno),
    Sandbox(&'static str, Errno),
    Exec(Errno),
}

impl Failure {
    /// Returns the message for the parent: the step, the errno, and words for a step of the sandbox.
    fn bytes(&self) -> Vec<u8> {
        let (step, errno, words) = match *self {
            Self::Cgroup(errno) => (CGROUP, errno, ""),
            Self::User(errno) => (1, errno, ""),
            Self::Directory(errno) => (2, errno, ""),
            Self::Exec(errno) => (3, errno, ""),
            Self::Sandbox(words, errno) => (4, errno, words),
        };
        [&[step, errno.raw_os_error() as u8], words.as_bytes()].concat()
    }
}

/// Executes the command in the child. Returns only after an error.
fn exec_in_child(
    command: &Command,
    sandbox: Option<&JobSandbox>,
    cwd: Option<&Path>,
    words: &[CString],
    mask: u64,
) -> Failure {
    if let Err(errno) = set_environment(command, sandbox) {
        return Failure::Exec(errno);
    }
    match (sandbox, &command.user) {
        (Some(sandbox), _) => {
            if let Err((step, errno)) = sandbox.enter() {
                return Failure::Sandbox(step, errno);
            }
        }
        (None, Some(user)) => {
            if let Err(errno) = user.apply() {
                return Failure::User(errno);
            }
        }
        (None, None) => {}
    }
    if let Some(Err(errno)) = cwd.map(rustix::process::chdir) {
        return Failure::Directory(errno);
    }
    signal_set::set_signal_mask(mask);
    if let Some(Err((step, errno))) = sandbox.map(JobSandbox::restrict) {
        return Failure::Sandbox(step, errno);
    }
    Failure::Exec(fork::exec(words))
}

fn set_environment(command: &Command, sandbox: Option<&JobSandbox>) -> rustix::io::Result<()> {
    if let Some(sandbox) = sandbox {
        for (key, _) in std::env::vars_os().filter(|(key, _)| !sandbox.passes(key)) {
            fork::remove_variable(&key)?;
        }
    }
    let of_user = command.user.iter().flat_map(|user| &user.environment).cloned();
    let tmp = sandbox.and_then(JobSandbox::tmp);
    for (key, value) in of_user.chain(command.env.iter().cloned()).chain(tmp) {
        fork::set_variable(&key, &value)?;
    }
    Ok(())
}

/// Converts the bytes of [`Failure::bytes`] to an error.
fn step_error(failure: &[u8], command: &Command) -> anyhow::Error {
    let (step, errno) = (failure[0], Errno::from_raw_os_error(i32::from(failure[1])));
    let program = printable_os(&command.words[0]);
    let what = match step {
        1 => "cannot change to the user".to_owned(),
        2 => format!("cannot enter the directory {}", printable_path(command.cwd.as_deref().unwrap_or(Path::new(".")))),
        // Not an error of the command, so the error contains no errno for the exit code.
        4 => return anyhow::anyhow!("cannot {}: {errno}", String::from_utf8_lossy(&failure[2..])),
        _ => format!("cannot execute {program}"),
    };
    anyhow::Error::new(errno).context(what)
}

/// Waits for the end of the child, and passes signals on to it.
fn wait_for(child: &Pidfd, signals: &SignalQueue, own_session: bool) -> Result<ExitStatus> {
    loop {
        let mut fds = [PollFd::new(child, PollFlags::IN), PollFd::new(&signals.fd, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("cannot wait for the command"),
        }
        if !fds[0].revents().is_empty() {
            return exit_status(child);
        }
        while let Some(received) = signals.next(Some(std::time::Duration::ZERO))? {
            let send = |signal| match child.send(signal) {
                Ok(()) | Err(Errno::SRCH) => Ok(()),
                Err(errno) => Err(errno).context("cannot pass a signal on to the command"),
            };
            match (received.is_from_terminal(), own_session) {
                (false, _) => send(received.signal)?,
                // The terminal's signal does not reach a command with a session of its own. The kernel does not stop
                // the leader of such a session by SIGTSTP (orphaned process groups, setpgid(2)).
                (true, true) if received.signal == Signal::TSTP => {
                    send(Signal::STOP)?;
                    suspend_by(Signal::TSTP);
                    send(Signal::CONT)?;
                }
                (true, true) => send(received.signal)?,
                // The command is in the same process group, so the terminal has sent this signal to it too.
                (true, false) if received.signal == Signal::TSTP => suspend_by(Signal::TSTP),
                (true, false) => {}
            }
        }
    }
}

/// Returns how the child ended, and reaps it.
fn exit_status(child: &Pidfd) -> Result<ExitStatus> {
    let Some(status) = waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED)? else {
        bail!("the kernel did not report how the command ended")
    };
    // The encoding of wait(2): bits 8 to 15 are the exit code, and the lower bits are the signal.
    Ok(ExitStatus::from_raw(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code << 8,
        (None, signal) => signal.unwrap_or(0),
    }))
}
