//! The exec of the command in the child, and its time limit.

#![allow(unsafe_code)]

use std::ffi::c_char;
use std::time::Duration;

use super::child::Plan;
use crate::kernel::syscall::{call, checked};

/// If the child has not executed the command within this time, it is killed.
pub const EXEC_BOUND: Duration = Duration::from_secs(10);

/// Tries to execute each path, as execvp(3) does. Returns the most informative errno.
///
/// # Safety
/// The same as for [`child`](super::child::child).
pub unsafe fn execute(plan: &mut Plan) -> i32 {
    let mut denied = false;
    let mut last = libc::ENOENT;
    // SAFETY: `path` and the elements of both arrays are strings that end with NUL, and a null pointer ends each array
    // ([`Plan`]). They live in the plan until execve(2) has copied them.
    let execve = |path: *const c_char, argv: *const *const c_char, env: *const *const c_char| unsafe {
        -call(libc::SYS_execve, [path as usize, argv as usize, env as usize]) as i32
    };
    for &path in &plan.candidates {
        last = execve(path, plan.argv[1..].as_ptr(), plan.env.as_ptr());
        if last == libc::ENOEXEC {
            // A script without `#!`.
            plan.argv[0] = c"/bin/sh".as_ptr();
            plan.argv[1] = path;
            execve(c"/bin/sh".as_ptr(), plan.argv.as_ptr(), plan.env.as_ptr());
            return last;
        }
        match last {
            libc::EACCES => denied = true,
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
            _ => return last,
        }
    }
    if denied { libc::EACCES } else { last }
}

/// Arms a timer that sends SIGKILL to this process after [`EXEC_BOUND`], even if the process is stopped. exec deletes
/// POSIX timers (execve(2)). The guard enforces the same time limit, but this timer also works while the guard is
/// stopped.
///
/// # Safety
/// The same as for [`child`](super::child::child).
pub unsafe fn arm_exec_timer() -> Result<(), i32> {
    // SAFETY: both structures are plain data, for which all-zero is valid, have the kernel's layout, and outlive the
    // calls. The timer belongs to this process: timers are not shared by CLONE_VM (timer_create(2)).
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGKILL;
        let mut timer = 0_i32;
        let clock = libc::CLOCK_MONOTONIC as usize;
        match checked(libc::SYS_timer_create, [clock, &raw mut event as usize, &raw mut timer as usize]) {
            Ok(_) => {}
            // The limit on the user's queued signals has been reached (RLIMIT_SIGPENDING). The guard enforces the time
            // limit.
            Err(libc::EAGAIN) => return Ok(()),
            Err(errno) => return Err(errno),
        }
        let mut bound: libc::itimerspec = std::mem::zeroed();
        bound.it_value.tv_sec = EXEC_BOUND.as_secs().cast_signed();
        checked(libc::SYS_timer_settime, [timer as usize, 0, &raw const bound as usize, 0]).map(drop)
    }
}
