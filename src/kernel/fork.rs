//! Forks this process (fork(2)), and ends it without clean-up (_exit(2)).

#![allow(unsafe_code)]

use rustix::io::{Errno, Result};

use crate::kernel::syscall::check;

/// Which of the two processes [`fork_single_threaded`] has returned in.
pub enum Fork {
    /// The new process.
    Child,
    /// The calling process; the value is the id of the new process.
    Parent(rustix::process::Pid),
}

/// Forks this process (fork(2)). Fails with `EBUSY` if this process has more than one thread: the child would have only
/// the calling thread, and locks of the other threads would stay locked for ever.
pub fn fork_single_threaded() -> Result<Fork> {
    // SAFETY: the call changes nothing in a process with one thread, and fails with EINVAL in any other (unshare(2)).
    let is_single_threaded = match check(libc::c_long::from(unsafe { libc::unshare(libc::CLONE_THREAD) })) {
        Ok(_) => true,
        Err(Errno::INVAL) => false,
        // A container's seccomp profile may refuse the call. Then `/proc` shows the number of threads.
        Err(_) => std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1),
    };
    if !is_single_threaded {
        return Err(Errno::BUSY);
    }
    // SAFETY: this process has one thread, so the child is a complete copy.
    let pid = check(libc::c_long::from(unsafe { libc::fork() }))?;
    Ok(match rustix::process::Pid::from_raw(pid as i32) {
        None => Fork::Child,
        Some(pid) => Fork::Parent(pid),
    })
}

/// Ends this process at once, without `atexit` handlers or destructors.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) has no obligations.
    unsafe { libc::_exit(code) }
}
