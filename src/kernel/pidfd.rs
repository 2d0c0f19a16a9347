//! One process, referred to by a descriptor: a signal cannot hit another process that reuses the pid (pidfd_open(2),
//! Linux 5.3).

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Result;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::kernel::poll;
use crate::kernel::signal::Signal;
use crate::kernel::syscall::check;

/// A process, referred to by its pidfd.
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
        send_signal(self.0.as_fd(), signal.number())
    }

    /// Sends `signal` with a value (as sigqueue(3) does), which the receiver reads from a signalfd. The errors are those
    /// of [`Self::send`].
    #[cfg(feature = "cli")]
    pub(crate) fn send_with(&self, signal: Signal, value: i32) -> Result<()> {
        /// The part of the kernel's `siginfo_t` that a queued signal has (include/uapi/asm-generic/siginfo.h).
        #[repr(C)]
        struct Queued {
            signo: i32,
            errno: i32,
            code: i32,
            _to_the_union: i32,
            pid: i32,
            uid: u32,
            value: usize,
            _rest: [u64; 12],
        }
        let info = Queued {
            signo: signal.number(),
            errno: 0,
            code: libc::SI_QUEUE,
            _to_the_union: 0,
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            uid: rustix::process::getuid().as_raw(),
            value: value as usize,
            _rest: [0; 12],
        };
        const { assert!(size_of::<Queued>() == size_of::<libc::siginfo_t>()) };
        // SAFETY: the kernel reads a `siginfo_t` from `info`, which has its size and layout and outlives the call.
        check(unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal.number(), &raw const info, 0)
        })
        .map(drop)
    }

    /// Sends the signals one after another, up to the first that fails.
    pub(crate) fn send_each(&self, signals: &[Signal]) -> Result<()> {
        signals.iter().try_for_each(|&signal| self.send(signal))
    }

    /// Returns whether the process has ended, even if it has not been reaped (a pidfd is readable from then on).
    pub fn has_ended(&self) -> bool {
        poll::wait(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(Duration::ZERO)).unwrap_or(false)
    }

    /// Returns the id of the cgroup that contains the process (the inode number of its directory), if the kernel
    /// reports it (`PIDFD_GET_INFO`, Linux 6.13).
    pub(crate) fn cgroup_id(&self) -> Option<u64> {
        self.info(PidfdInfo::requesting_cgroup_id())
    }

    /// Does the same as [`cgroup_id`](Self::cgroup_id), also for a process that has been reaped (Linux 6.15).
    #[cfg(feature = "services")]
    pub(crate) fn last_cgroup_id(&self) -> Option<u64> {
        let mut info = PidfdInfo::requesting_cgroup_id();
        info.mask |= PIDFD_INFO_EXIT;
        self.info(info)
    }

    fn info(&self, mut info: PidfdInfo) -> Option<u64> {
        // SAFETY: the structure has 64 bytes, the size in the request number; older kernels return ENOTTY or EINVAL.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
        if done == 0 { info.cgroup_id() } else { None }
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

/// Sends a signal, which may be a real-time signal, through a pidfd (pidfd_send_signal(2)). Signal 0 only checks
/// whether the process can be signalled.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: no siginfo is passed; the descriptor is borrowed for the call.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    })
    .map(drop)
}

/// `struct pidfd_info` of Linux 6.13 (include/uapi/linux/pidfd.h), version 0.
#[repr(C)]
pub(crate) struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    ids: [u32; 12],
}

impl PidfdInfo {
    /// Returns a structure that requests the cgroup's id from the kernel.
    pub fn requesting_cgroup_id() -> Self {
        Self { mask: PIDFD_INFO_CGROUPID, cgroup_id: 0, ids: [0; 12] }
    }

    /// Returns the id of the process's cgroup, if the kernel has filled it in.
    pub fn cgroup_id(&self) -> Option<u64> {
        (self.mask & PIDFD_INFO_CGROUPID != 0 && self.cgroup_id != 0).then_some(self.cgroup_id)
    }
}

const PIDFD_INFO_CGROUPID: u64 = 1 << 2;

/// Requests what the kernel keeps of a process that has been reaped, which includes its cgroup (Linux 6.15).
#[cfg(feature = "services")]
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// `_IOWR(0xFF, 11, struct pidfd_info)`.
pub(crate) const PIDFD_GET_INFO: libc::c_ulong = (3 << 30) | (64 << 16) | (0xFF << 8) | 11;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pidfd_refers_to_the_process_until_after_its_end() {
        let mut child = std::process::Command::new("sleep").arg("999").spawn().unwrap();
        let held = Pidfd::open(Pid::from_child(&child)).unwrap();
        assert!(!held.has_ended());
        held.send(Signal::KILL).unwrap();
        child.wait().unwrap();
        assert!(held.has_ended() && held.send(Signal::KILL).is_err());
    }
}
