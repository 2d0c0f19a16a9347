//! The controlling terminal: its settings and its foreground group are given back as they were.

use std::fs::File;

use rustix::process::{Pid, getpgid, getpgrp, getppid, getsid};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr, tcsetpgrp};

pub struct Terminal {
    tty: File,
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
            foreground: tcgetpgrp(&tty).is_ok_and(|group| group == getpgrp()),
            // ENOTTY for whatever is not the controlling terminal (tcgetpgrp(3)).
            is_stdin: tcgetpgrp(std::io::stdin()).is_ok(),
            orphaned: is_orphaned(),
            tty,
        })
    }

    /// Gives it back: the foreground group, and the settings too where the job could not do so itself.
    ///
    /// SIGTTOU, which the kernel would answer to a background process, is blocked.
    pub fn restore(&self, settings_too: bool) {
        if !self.foreground {
            return;
        }
        // A terminal that has hung up has nothing to give back.
        if tcgetpgrp(&self.tty).is_ok_and(|group| group != getpgrp()) {
            let _ = tcsetpgrp(&self.tty, getpgrp());
        }
        if let Some(settings) = &self.settings
            && settings_too
        {
            let _ = tcsetattr(&self.tty, OptionalActions::Now, settings);
        }
    }
}

/// Whether no ancestor in our process group has a parent in another group of our session.
fn is_orphaned() -> bool {
    let (group, session) = (getpgrp(), getsid(None).ok());
    let mut parent = getppid();
    while let Some(pid) = parent {
        if getsid(Some(pid)).ok() != session {
            return true;
        }
        if getpgid(Some(pid)).ok() != Some(group) {
            return false;
        }
        parent = parent_of(pid);
    }
    true
}

fn parent_of(pid: Pid) -> Option<Pid> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Pid::from_raw(parent.trim().parse().ok()?)
}
