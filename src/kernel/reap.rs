//! Children that have ended or stopped: waitid(2), with features that libc's and rustix's wrappers lack (resource
//! usage, `__WALL`).

#![allow(unsafe_code)]

use rustix::io::{Errno, Result};

use crate::kernel::syscall::last_errno;

/// How a child ended, and the resources used by it and by the descendants that were waited for.
#[derive(Clone, Copy, Debug)]
pub struct Reaped {
    pub pid: i32,
    /// `CLD_EXITED`, `CLD_KILLED` or `CLD_DUMPED`.
    pub code: i32,
    /// Exit code or signal number.
    pub status: i32,
    /// The largest resident set, in KiB.
    pub max_rss_kib: u64,
    /// CPU time in user mode and in the kernel, in microseconds.
    pub cpu_us: (u64, u64),
}

/// The result of [`reap`]. Only `ECHILD` proves that there is no child; any other errno is reported as an error.
pub enum Reap {
    /// One child has been reaped.
    Child(Reaped),
    /// There are children, but none of them has ended.
    NoneEnded,
    /// There is no child at all. A subreaper then has no descendant either.
    NoChildren,
}

/// Reaps one child that has ended, without waiting. `__WALL` includes children that send no SIGCHLD when they end
/// (clone(2)).
///
/// The raw system call has a fifth argument, the resource usage, that libc's wrapper lacks (waitid(2), "C
/// library/kernel differences").
///
/// # Errors
/// The errno of waitid(2), except `ECHILD`, which is [`Reap::NoChildren`]. A seccomp filter can refuse the call with
/// any errno.
pub fn reap() -> Result<Reap> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both structures have the kernel's layout, are zeroed, and outlive the call.
        let done = unsafe {
            libc::syscall(
                libc::SYS_waitid,
                libc::P_ALL,
                0,
                info.as_mut_ptr(),
                libc::WEXITED | libc::WNOHANG | libc::__WALL,
                usage.as_mut_ptr(),
            )
        };
        if done == -1 {
            match last_errno() {
                Errno::INTR => continue,
                Errno::CHILD => return Ok(Reap::NoChildren),
                errno => return Err(errno),
            }
        }
        // SAFETY: both are zeroed, and the kernel fills them in if it finds a child.
        let (info, usage) = unsafe { (info.assume_init(), usage.assume_init()) };
        // SAFETY: waitid fills in the SIGCHLD fields; they are all zero if no child has ended.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        if pid == 0 {
            return Ok(Reap::NoneEnded);
        }
        let microseconds = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
        return Ok(Reap::Child(Reaped {
            pid,
            code: info.si_code,
            status,
            max_rss_kib: usage.ru_maxrss as u64,
            cpu_us: (microseconds(usage.ru_utime), microseconds(usage.ru_stime)),
        }));
    }
}

/// Returns whether this process has any child.
///
/// # Errors
/// The same as for [`reap`]. After an error, the caller does not know whether there is a child.
pub fn has_children() -> Result<bool> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: the structure has the kernel's layout and outlives the call, which reaps no child (WNOWAIT).
    if unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), options) } == 0 {
        return Ok(true);
    }
    match last_errno() {
        Errno::CHILD => Ok(false),
        errno => Err(errno),
    }
}

/// Reaps the child `pid` if it has ended. Returns whether it was reaped.
pub fn reap_one(pid: rustix::process::Pid) -> bool {
    let pid = pid.as_raw_nonzero().get();
    // SAFETY: the status is not requested.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) == pid }
}

/// Reaps the process of this pidfd if it is a child of this process and has ended (waitid(2) with `P_PIDFD`, Linux
/// 5.4).
pub fn reap_by_pidfd(pidfd: std::os::fd::BorrowedFd<'_>) {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    // ECHILD means that it is not a child of this process, or that it has been reaped.
    let _ = waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
}

/// Returns the pid of a child that a signal has stopped, and that signal. Each stop is returned once.
pub fn next_stopped() -> Option<(i32, i32)> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the structure is zeroed and outlives the call, which fills in the SIGCHLD fields.
    unsafe {
        let done = libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), libc::WSTOPPED | libc::WNOHANG | libc::__WALL);
        let info = info.assume_init();
        (done == 0 && info.si_pid() != 0 && info.si_code == libc::CLD_STOPPED)
            .then(|| (info.si_pid(), info.si_status()))
    }
}
