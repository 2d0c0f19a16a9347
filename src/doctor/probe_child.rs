//! The child processes that a probe starts. Each does nothing, and ends by itself within a few seconds.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::{Errno, Result};

use crate::guard::clone::{CLONE_INTO_CGROUP, CloneArgs};
use crate::kernel::pidfd::Pidfd;
use crate::kernel::poll;
use crate::kernel::signal::Signal;

/// How the child is started.
#[derive(Clone, Copy)]
pub enum StartMethod<'a> {
    /// clone(2).
    Clone,
    /// clone3(2).
    Clone3,
    /// clone3(2) directly into the cgroup of this directory (CLONE_INTO_CGROUP).
    Into(BorrowedFd<'a>),
    /// clone(2), after which the child writes its own id into this `cgroup.procs`.
    Join(BorrowedFd<'a>),
}

/// The task of the child.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// It exits with 0.
    Exit,
    /// It waits to be killed; after 5 s it exits with 0.
    Wait,
}

/// How the child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Exited(i32),
    Signalled(i32),
}

/// A child process that the host program does not notice: the kernel sends no SIGCHLD for it, and only a wait with
/// `__WALL` or `__WCLONE` finds it (wait(2)). It is killed and reaped when this value is dropped.
pub struct Child {
    pid: libc::pid_t,
    pidfd: Pidfd,
    reaped: bool,
}

/// `CLONE_ARGS_SIZE_VER0`: the size that Linux 5.3 supports.
const FIRST_SIZE: usize = 64;

pub fn start(method: StartMethod<'_>, task: Task) -> Result<Child> {
    let mut pidfd = -1_i32;
    // SAFETY: no memory is shared with the child (no CLONE_VM). The child calls only `run`, which makes system calls
    // that need no lock of another thread. `pidfd` and the arguments outlive the calls. No flag makes the kernel use
    // the arguments that are zero here.
    let pid = unsafe {
        let mut clone3 = |flags: u64, cgroup: u64, size: usize| {
            let args = CloneArgs {
                flags: libc::CLONE_PIDFD as u64 | flags,
                pidfd: &raw mut pidfd as u64,
                cgroup,
                ..CloneArgs::default()
            };
            libc::syscall(libc::SYS_clone3, &raw const args, size)
        };
        match method {
            StartMethod::Clone3 => clone3(0, 0, FIRST_SIZE),
            StartMethod::Into(cgroup) => clone3(CLONE_INTO_CGROUP, cgroup.as_raw_fd() as u64, size_of::<CloneArgs>()),
            StartMethod::Clone | StartMethod::Join(_) => {
                libc::syscall(libc::SYS_clone, libc::CLONE_PIDFD as usize, 0_usize, &raw mut pidfd, 0_usize, 0_usize)
            }
        }
    };
    match pid {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        0 => run(method, task),
        _ => {
            // SAFETY: the kernel has just made this descriptor (CLONE_PIDFD), and nothing else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Child { pid: pid as libc::pid_t, pidfd: pidfd.into(), reaped: false })
        }
    }
}

/// Runs in the child and does not return.
fn run(method: StartMethod<'_>, task: Task) -> ! {
    const WAIT_BOUND: libc::timespec = libc::timespec { tv_sec: 5, tv_nsec: 0 };
    let mut code = 0;
    // SAFETY: plain system calls with constants; the child has its own copy of the address space.
    unsafe {
        libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL as usize, 0_usize, 0_usize, 0_usize);
        if let StartMethod::Join(procs) = method
            && libc::syscall(libc::SYS_write, procs.as_raw_fd(), c"0".as_ptr(), 1_usize) != 1
        {
            code = *libc::__errno_location();
        }
        if code == 0 && task == Task::Wait {
            let time = WAIT_BOUND;
            libc::syscall(
                libc::SYS_ppoll,
                std::ptr::null::<libc::pollfd>(),
                0_usize,
                &raw const time,
                0_usize,
                0_usize,
            );
        }
        loop {
            libc::syscall(libc::SYS_exit_group, code);
        }
    }
}

impl Child {
    /// Waits for the end of the child; kills it after `bound`. The second value is the result of `waitid(P_PIDFD)`. If
    /// the kernel does not support this call (before Linux 5.4), waitpid(2) reaps the child.
    pub fn wait(mut self, bound: Duration) -> (Option<End>, Result<()>) {
        if !self.ends_within(bound) {
            let _ = self.pidfd.send(Signal::KILL);
        }
        self.reap()
    }

    /// Waits for the end of the child, at most for `bound`; returns whether it has ended.
    pub fn ends_within(&self, bound: Duration) -> bool {
        poll::wait(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(bound)).unwrap_or(false)
    }

    fn reap(&mut self) -> (Option<End>, Result<()>) {
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        let pidfd = self.pidfd.as_fd().as_raw_fd() as libc::id_t;
        self.reaped = true;
        // SAFETY: the structures are zeroed and outlive the calls; the process is our child and was not reaped before.
        unsafe {
            if libc::waitid(libc::P_PIDFD, pidfd, info.as_mut_ptr(), libc::WEXITED | libc::__WALL) == 0 {
                let info = info.assume_init();
                let end = match info.si_code {
                    libc::CLD_EXITED => End::Exited(info.si_status()),
                    _ => End::Signalled(info.si_status()),
                };
                return (Some(end), Ok(()));
            }
            let refused = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO);
            let mut status = 0;
            let reaped = libc::waitpid(self.pid, &mut status, libc::__WALL) == self.pid;
            let end = if libc::WIFEXITED(status) {
                End::Exited(libc::WEXITSTATUS(status))
            } else {
                End::Signalled(libc::WTERMSIG(status))
            };
            (reaped.then_some(end), Err(refused))
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.pidfd.send(Signal::KILL);
            let _ = self.reap();
        }
    }
}
