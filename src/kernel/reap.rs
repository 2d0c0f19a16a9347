//! Children that have ended or stopped: waitid(2), with what libc's and rustix's lack (resources used, `__WALL`).

#![allow(unsafe_code)]

use rustix::io::{Errno, Result};

use crate::kernel::sys::last_errno;

/// How a child ended, and what it and its waited-for descendants used.
#[derive(Clone, Copy, Debug)]
pub struct Reaped {
    pub pid: i32,
    /// `CLD_EXITED`, `CLD_KILLED` or `CLD_DUMPED`.
    pub code: i32,
    /// Exit code or signal number.
    pub status: i32,
    /// Largest resident set, in KiB.
    pub max_rss_kib: u64,
    /// CPU time in user mode and in the kernel, in microseconds.
    pub cpu_us: (u64, u64),
}

/// What [`reap`] found. Only `ECHILD` proves that there is no child: any other error is an error.
pub enum Reap {
    /// One child has been reaped.
    Child(Reaped),
    /// There are children, none of which has ended.
    NoneEnded,
    /// There is no child at all: a subreaper has then no descendant either.
    NoChildren,
}

/// Reaps one child that has ended, of any kind (`__WALL`: clone children send no SIGCHLD), without waiting.
///
/// # Errors
/// The errno of waitid(2) but `ECHILD`, which is [`Reap::NoChildren`]: a seccomp filter can refuse the call with any.
///
/// The raw waitid has a fifth argument, the resources used, that libc's wrapper lacks (waitid(2), "C library/kernel differences").
pub fn reap() -> Result<Reap> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both structures are the kernel's, zeroed, and outlive the call.
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
        // SAFETY: zeroed, and filled in by the kernel where a child was found.
        let (info, usage) = unsafe { (info.assume_init(), usage.assume_init()) };
        // SAFETY: waitid fills in the SIGCHLD fields; all zero where none ended.
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

/// Whether this process has any child.
///
/// # Errors
/// As [`reap`]: then it is not known.
pub fn has_children() -> Result<bool> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: the structure is the kernel's and outlives the call, which takes nothing away (WNOWAIT).
    if unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), options) } == 0 {
        return Ok(true);
    }
    match last_errno() {
        Errno::CHILD => Ok(false),
        errno => Err(errno),
    }
}

/// Reaps the child `pid` if it has ended; tells whether it had.
pub fn reap_one(pid: rustix::process::Pid) -> bool {
    let pid = pid.as_raw_nonzero().get();
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) == pid }
}

/// Reaps the process of this pidfd if it is our child and has ended (waitid(2) with `P_PIDFD`, Linux 5.4).
pub fn reap_held(pidfd: std::os::fd::BorrowedFd<'_>) {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    // ECHILD: it is not ours to reap, or has been reaped.
    let _ = waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
}

/// A child that a signal has stopped since this was last asked: its pid and the signal.
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
