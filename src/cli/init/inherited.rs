//! The children that this process had before it executed pinfold: a shell's background jobs, if the shell executes
//! init.

use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, getpid, waitid};

/// Children from before the exec, which only this process can reap.
pub struct Inherited(Vec<Pid>);

impl Inherited {
    /// Finds these children. The caller must do this before it starts the guard, which is a child too.
    pub fn find() -> Self {
        // Usually this process has no child, and this is the only system call.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if matches!(waitid(WaitId::All, look), Err(Errno::CHILD)) {
            return Self(Vec::new());
        }
        let own = getpid().as_raw_nonzero();
        // Not every kernel is built with this file (CONFIG_PROC_CHILDREN, proc_pid_task(5)).
        match std::fs::read_to_string(format!("/proc/self/task/{own}/children")) {
            Ok(text) => Self(text.split_whitespace().filter_map(pid).collect()),
            Err(_) => Self(by_parent(&own.to_string())),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reaps the children that have ended, and returns their process ids.
    pub fn reap(&mut self) -> Vec<Pid> {
        let ended = |pid: &Pid| {
            // A child that is not reaped keeps its pid, so that the pid cannot belong to another process.
            !matches!(waitid(WaitId::Pid(*pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG), Ok(None))
        };
        let (ended, running) = std::mem::take(&mut self.0).into_iter().partition(ended);
        self.0 = running;
        ended
    }
}

fn by_parent(parent: &str) -> Vec<Pid> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter(|process| parent_of(&process.path()).is_some_and(|found| found == parent))
        .filter_map(|process| pid(process.file_name().to_str()?))
        .collect()
}

fn parent_of(process: &Path) -> Option<String> {
    let status = std::fs::read_to_string(process.join("status")).ok()?;
    Some(status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().to_owned())
}

fn pid(text: &str) -> Option<Pid> {
    Pid::from_raw(text.parse().ok()?)
}
