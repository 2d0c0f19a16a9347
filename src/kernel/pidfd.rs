//! One process, referred to by a descriptor: a signal cannot hit another process that reuses the pid (pidfd_open(2),
//! Linux 5.3).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::kernel::signal::Signal;
use crate::kernel::sys;

/// A process, referred to by its pidfd.
///
/// ```
/// use pinfold::Signal;
/// use pinfold::pidfd::Pidfd;
/// let mut child = std::process::Command::new("sleep").arg("999").spawn()?;
/// let held = Pidfd::open(rustix::process::Pid::from_child(&child))?;
/// assert!(!held.has_ended());
/// held.send(Signal::KILL)?;
/// child.wait()?;
/// assert!(held.has_ended() && held.send(Signal::KILL).is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// Opens the process that has `pid` now. Fails with `ESRCH` if no process has it.
    pub fn open(pid: Pid) -> Result<Self> {
        pidfd_open(pid, PidfdFlags::empty()).map(Self)
    }

    /// Sends `signal`. Fails with `ESRCH` if the process has been reaped, and with `EPERM` if it belongs to another
    /// user (pidfd_send_signal(2), Linux 5.1).
    pub fn send(&self, signal: Signal) -> Result<()> {
        sys::pidfd_send_signal(self.0.as_fd(), signal.number())
    }

    /// Returns whether the process has ended, even if it has not been reaped (a pidfd is readable from then on).
    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        loop {
            match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
                Err(Errno::INTR) => {}
                Err(_) => return false,
                Ok(ready) => return ready > 0,
            }
        }
    }

    /// Returns the id of the cgroup that contains the process, if the kernel reports it (Linux 6.13).
    pub(crate) fn cgroup_id(&self) -> Option<u64> {
        sys::pidfd_cgroup_id(self.0.as_fd())
    }
}

impl From<OwnedFd> for Pidfd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<Pidfd> for OwnedFd {
    fn from(pidfd: Pidfd) -> Self {
        pidfd.0
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
