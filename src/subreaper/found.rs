//! A process that is confirmed to be a descendant.

use rustix::io::{Errno, Result};
use rustix::process::Pid;

use crate::kernel::pidfd::Pidfd;
use crate::kernel::process;
use crate::kernel::signal::Signal;
use crate::subreaper::children::children;

/// A process and the clock tick of its start. Together they identify a process: no two processes have both the same pid
/// and the same start.
pub(super) type Identity = (Pid, u64);

/// A process that was found, referred to by its pidfd.
pub(super) struct Found {
    pub(super) pid: Pid,
    /// `None` for the root; the caller ensures that the root's pid is not reused.
    pub(super) pidfd: Option<Pidfd>,
    started: u64,
    /// Whether the process is a child of this process. Its pid is then not reused until it is reaped.
    is_own: bool,
}

impl Found {
    /// Returns the process whose descendants are searched for.
    pub(super) fn root(pid: Pid) -> Self {
        Self { pid, pidfd: None, started: 0, is_own: false }
    }

    /// Returns a child of this process. No other code may reap this child meanwhile.
    pub(super) fn own_child(pid: Pid, pidfd: Pidfd) -> Self {
        Self { pid, pidfd: Some(pidfd), started: 0, is_own: true }
    }

    /// Opens the child `pid` of `parent`. Returns `None` if the child is gone or now has another parent.
    pub(super) fn child_of(parent: &Self, pid: Pid) -> Result<Option<Self>> {
        let pidfd = match Pidfd::open(pid) {
            Ok(pidfd) => pidfd,
            // The process is gone, or the number now belongs to a thread.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let stat = match std::fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())) {
            Ok(stat) => stat,
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::SRCH | Errno::ACCESS | Errno::PERM) => {
                    return Self::hidden_child_of(parent, pid, pidfd);
                }
                errno => return Err(errno.unwrap_or(Errno::IO)),
            },
        };
        let (Some(parents), Some(started)) = (process::parent(&stat), process::start_ticks(&stat)) else {
            return Ok(None);
        };
        let is_child = parents == parent.pid.as_raw_nonzero().get() && (parent.is_own || !parent.has_ended());
        Ok(is_child.then_some(Self { pid, pidfd: Some(pidfd), started, is_own: false }))
    }

    /// Handles a process that `/proc` does not show: it has ended or is hidden (`hidepid`, proc(5)). The parent's list
    /// of children contains hidden processes too. The process is a child if that list contains it after its pidfd was
    /// opened.
    fn hidden_child_of(parent: &Self, pid: Pid, pidfd: Pidfd) -> Result<Option<Self>> {
        if pidfd.has_ended() {
            return Ok(None);
        }
        let is_child = match children(parent.pid) {
            Ok(children) => children.contains(&pid) && (parent.is_own || !parent.has_ended()),
            Err(_) if parent.has_ended() => false,
            Err(errno) => return Err(errno),
        };
        Ok(is_child.then_some(Self { pid, pidfd: Some(pidfd), started: 0, is_own: false }))
    }

    pub(super) fn has_ended(&self) -> bool {
        self.pidfd.as_ref().is_some_and(Pidfd::has_ended)
    }

    pub(super) fn identity(&self) -> Identity {
        (self.pid, self.started)
    }

    pub(super) fn kill(&self) -> Result<()> {
        self.pidfd.as_ref().map_or(Ok(()), |pidfd| pidfd.send(Signal::KILL))
    }
}
