//! Runs one more command inside of a running job. The command starts in the job's leaf. So the job's limits apply to
//! the command and to all processes that it starts, and these processes end with the job at the latest.

use std::ffi::{CString, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, geteuid, waitid};

use super::find::{Containment, Job};
use super::target::Target;
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
/// If the job has no cgroup, has a sandbox, or has ended. If the command cannot be executed, the error is an [`Errno`]
/// with a context.
pub(crate) fn exec(target: Target<'_>, command: &Command) -> Result<ExitStatus> {
    let job = only_job(target)?;
    let target = Target::Job(target.supervisor(), job);
    let Containment::Leaf(leaf) = &job.containment else {
        bail!("cannot run a command in {}: it has no cgroup, so the command could outlive it", target.describe());
    };
    if job.description.as_ref().is_some_and(|known| known.sandboxed) {
        bail!("cannot run a command in {}: the job has a sandbox, and the command would have none", target.describe());
    }
    check_user(target, job, command)?;
    let words: Vec<_> =
        command.words.iter().map(|word| CString::new(word.clone().into_vec())).collect::<Result<_, _>>()?;
    let mask = inherited::signals().blocked;
    let signals = SignalQueue::block_all()?;
    // The child writes an error to this pipe. A successful exec closes the pipe.
    let (error_reader, error_writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let child = match fork::fork_into(leaf.as_fd()) {
        Ok(Some(child)) => child,
        Ok(None) => {
            let (step, errno) = exec_in_child(command, &words, mask);
            let _ = rustix::io::write(&error_writer, &[step as u8, errno.raw_os_error() as u8]);
            fork::exit_now(127)
        }
        Err(Errno::NODEV | Errno::NOENT) => bail!("{} has ended", target.describe()),
        Err(errno) => {
            let advice = match errno {
                Errno::ACCESS | Errno::PERM => "this user may not put a process into the job's cgroup",
                Errno::BUSY => {
                    "the job has delegated controllers to cgroups of its own, so its own cgroup cannot contain processes"
                }
                _ => "",
            };
            return Err(Error::system("start a process in", leaf.path().display().to_string(), errno, advice).into());
        }
    };
    drop(error_writer);
    let mut failure = [0_u8; 2];
    if matches!(rustix::io::retry_on_intr(|| rustix::io::read(&error_reader, &mut failure)), Ok(2)) {
        let _ = exit_status(&child);
        let errno = Errno::from_raw_os_error(i32::from(failure[1]));
        return Err(step_error(failure[0], command, errno));
    }
    wait_for(&child, &signals)
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

/// The steps of the child that can fail.
#[derive(Clone, Copy)]
enum Step {
    User = 1,
    Directory = 2,
    Exec = 3,
}

/// Executes the command in the child. Returns only after an error.
fn exec_in_child(command: &Command, words: &[CString], mask: u64) -> (Step, Errno) {
    if let Some(user) = &command.user {
        if let Err(errno) = user.apply() {
            return (Step::User, errno);
        }
        for (key, value) in &user.environment {
            if let Err(errno) = fork::set_variable(key, value) {
                return (Step::User, errno);
            }
        }
    }
    if let Some(cwd) = &command.cwd
        && let Err(errno) = rustix::process::chdir(cwd)
    {
        return (Step::Directory, errno);
    }
    for (key, value) in &command.env {
        if let Err(errno) = fork::set_variable(key, value) {
            return (Step::Exec, errno);
        }
    }
    signal_set::set_signal_mask(mask);
    (Step::Exec, fork::exec(words))
}

fn step_error(step: u8, command: &Command, errno: Errno) -> anyhow::Error {
    let program = printable_os(&command.words[0]);
    let what = match step {
        1 => "cannot change to the user".to_owned(),
        2 => format!("cannot enter the directory {}", printable_path(command.cwd.as_deref().unwrap_or(Path::new(".")))),
        _ => format!("cannot execute {program}"),
    };
    anyhow::Error::new(errno).context(what)
}

/// Waits for the end of the child, and passes signals on to it.
fn wait_for(child: &Pidfd, signals: &SignalQueue) -> Result<ExitStatus> {
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
            // The terminal has sent this signal to the command too, which is in the same process group.
            if received.is_from_terminal() {
                if received.signal == Signal::TSTP {
                    suspend_by(Signal::TSTP);
                }
                continue;
            }
            match child.send(received.signal) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(errno).context("cannot pass a signal on to the command"),
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
