//! The controlling terminal: saves its settings and its foreground process group, and restores them.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use crate::Job;
use rustix::process::{Pid, getppid};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr, tcsetpgrp};

pub struct Terminal {
    pub tty: File,
    settings: Option<Termios>,
    /// pinfold's process group was the foreground process group.
    foreground: bool,
    /// The terminal is standard input.
    pub is_stdin: bool,
    /// No other process could continue pinfold's process group, so that the kernel ignores Ctrl-Z (setpgid(2),
    /// "orphaned"). This must be found out before the guard exists: the guard is a parent in another process group of
    /// the same session, so that the process group is no longer orphaned.
    pub orphaned: bool,
}

impl Terminal {
    /// Opens the controlling terminal. Returns `None` if this process has no controlling terminal.
    pub fn open() -> Option<Self> {
        let tty = File::options().read(true).write(true).open("/dev/tty").ok()?;
        Some(Self {
            settings: tcgetattr(&tty).ok(),
            // If both process groups are from outside of this PID namespace, they have no number here, and are most
            // likely the same.
            foreground: foreground_group(&tty) == Some(group_of(None)),
            is_stdin: foreground_group(std::io::stdin()).is_some(),
            orphaned: is_orphaned(),
            tty,
        })
    }

    /// Returns whether pinfold's process group is the foreground process group of this terminal now.
    pub fn is_ours(tty: impl AsFd) -> bool {
        foreground_group(tty) == Some(group_of(None))
    }

    /// Restores the foreground process group, and with `settings_too` also the settings, which the job could not
    /// restore itself.
    ///
    /// The kernel sends SIGTTOU to a background process that does this, so the caller must have blocked SIGTTOU.
    pub fn restore(&self, settings_too: bool) {
        if !self.foreground {
            return;
        }
        // A terminal that has hung up has no foreground process group, and needs nothing.
        if let Some(own) = Pid::from_raw(group_of(None))
            && foreground_group(&self.tty).is_some_and(|group| group != own.as_raw_nonzero().get())
        {
            let _ = tcsetpgrp(&self.tty, own);
        }
        if let Some(settings) = &self.settings
            && settings_too
        {
            let _ = tcsetattr(&self.tty, OptionalActions::Now, settings);
        }
    }
}

/// Returns whether pinfold's process group is orphaned: pinfold and its ancestors in this group have no parent that is
/// in another group of the same session.
pub fn is_orphaned() -> bool {
    let (group, session) = (group_of(None), session_of(None));
    let mut parent = getppid();
    while let Some(pid) = parent {
        if session_of(Some(pid)) != session {
            return true;
        }
        if group_of(Some(pid)) != group {
            return false;
        }
        parent = parent_of(pid);
    }
    // The parent is outside of this PID namespace. If the process group is too, a process there has made it, as shells
    // do, and can continue it.
    group != 0
}

fn parent_of(pid: Pid) -> Option<Pid> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Pid::from_raw(parent.trim().parse().ok()?)
}

/// Returns the foreground process group of the controlling terminal; 0 if that group is from outside of this PID
/// namespace; `None` if `terminal` is not the controlling terminal (tcgetpgrp(3)).
#[allow(unsafe_code)]
fn foreground_group(terminal: impl AsFd) -> Option<i32> {
    // SAFETY: tcgetpgrp(3) has no obligations.
    Some(unsafe { libc::tcgetpgrp(terminal.as_fd().as_raw_fd()) }).filter(|&group| group >= 0)
}

/// Returns the process group of `pid`, or of this process for `None`; -1 if there is no such process; 0 if the group is
/// from outside of this PID namespace (pid_namespaces(7)). rustix's functions do not expect this 0.
#[allow(unsafe_code)]
fn group_of(pid: Option<Pid>) -> i32 {
    // SAFETY: getpgid(2) has no obligations.
    unsafe { libc::getpgid(Pid::as_raw(pid)) }
}

/// Returns whether this process leads its session. At a hang-up of the terminal, the kernel sends SIGHUP to the leader
/// alone. It sends SIGHUP to the foreground process group only when the leader ends (credentials(7), setsid(2)).
pub fn leads_session() -> bool {
    session_of(None) == std::process::id().cast_signed()
}

/// Returns whether the main process of a job has left pinfold's process group, in which it was started: for example,
/// timeout(1) makes a process group of its own. The terminal's signals reach pinfold's group only.
pub fn has_left_our_group(job: &Job) -> bool {
    let group = Pid::from_raw(job.pid()).map(|main| group_of(Some(main)));
    !job.main_has_ended() && group.is_some_and(|group| group != group_of(None))
}

/// Returns the session of `pid`, with the same special values as [`group_of`].
#[allow(unsafe_code)]
fn session_of(pid: Option<Pid>) -> i32 {
    // SAFETY: getsid(2) has no obligations.
    unsafe { libc::getsid(Pid::as_raw(pid)) }
}
