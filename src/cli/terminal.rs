//! The controlling terminal: its settings and its foreground group are given back as they were.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use pinfold::Job;
use pinfold::Signal;
use pinfold::signal::Received;
use rustix::process::{Pid, getppid};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr, tcsetpgrp};

pub struct Terminal {
    pub tty: File,
    settings: Option<Termios>,
    /// Our process group was the foreground one.
    foreground: bool,
    /// It is standard input.
    pub is_stdin: bool,
    /// Nobody could continue our process group, so that the kernel ignores Ctrl-Z. Found out before the guard exists:
    /// with it, a parent in another group of the session, that is no longer so (setpgid(2), "orphaned").
    pub orphaned: bool,
}

impl Terminal {
    /// The controlling terminal, where there is one.
    pub fn open() -> Option<Self> {
        let tty = File::options().read(true).write(true).open("/dev/tty").ok()?;
        Some(Self {
            settings: tcgetattr(&tty).ok(),
            // Where both are from outside of our PID namespace they have no number, and are most likely the same.
            foreground: foreground_group(&tty) == Some(group_of(None)),
            is_stdin: foreground_group(std::io::stdin()).is_some(),
            orphaned: is_orphaned(),
            tty,
        })
    }

    /// Whether our process group is the foreground one of this terminal now.
    pub fn is_ours(tty: impl AsFd) -> bool {
        foreground_group(tty) == Some(group_of(None))
    }

    /// Gives it back: the foreground group, and the settings too where the job could not do so itself.
    ///
    /// SIGTTOU, which the kernel would answer to a background process, is blocked.
    pub fn restore(&self, settings_too: bool) {
        if !self.foreground {
            return;
        }
        // A terminal that has hung up has nothing to give back.
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

/// Whether no ancestor in our process group has a parent in another group of our session.
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
    // The parent is outside of our PID namespace. Where our group is too, somebody there made it, as shells do.
    group != 0
}

fn parent_of(pid: Pid) -> Option<Pid> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Pid::from_raw(parent.trim().parse().ok()?)
}

/// The foreground process group of the controlling terminal, 0 where it is one from outside of our PID namespace; `None`
/// for whatever is not the controlling terminal (tcgetpgrp(3)).
#[allow(unsafe_code)]
fn foreground_group(terminal: impl AsFd) -> Option<i32> {
    // SAFETY: tcgetpgrp(3) has no obligations.
    Some(unsafe { libc::tcgetpgrp(terminal.as_fd().as_raw_fd()) }).filter(|&group| group >= 0)
}

/// The process group of a process, or of this one: 0 where it is one from outside of our PID namespace, which rustix's
/// functions do not expect (pid_namespaces(7)); -1 where there is no such process.
#[allow(unsafe_code)]
fn group_of(pid: Option<Pid>) -> i32 {
    // SAFETY: getpgid(2) has no obligations.
    unsafe { libc::getpgid(Pid::as_raw(pid)) }
}

/// Whether this process leads its session: a hang-up of the terminal sends SIGHUP to the leader alone, and to the foreground
/// group only when the leader ends (credentials(7), setsid(2)).
pub fn leads_session() -> bool {
    session_of(None) == std::process::id().cast_signed()
}

/// Whether the terminal has sent this signal to our whole process group, and not to this process alone.
pub fn has_reached_our_group(received: Received) -> bool {
    received.is_from_terminal() && !(received.signal == Signal::HUP && leads_session())
}

/// Whether the main process of a job, which was started in our process group, has left it: a timeout(1) has made a group of its
/// own then. The terminal's signals reach our group only.
pub fn has_left_our_group(job: &Job) -> bool {
    let group = Pid::from_raw(job.pid()).map(|main| group_of(Some(main)));
    !job.main_has_ended() && group.is_some_and(|group| group != group_of(None))
}

/// Its session, in the same way.
#[allow(unsafe_code)]
fn session_of(pid: Option<Pid>) -> i32 {
    // SAFETY: getsid(2) has no obligations.
    unsafe { libc::getsid(Pid::as_raw(pid)) }
}
