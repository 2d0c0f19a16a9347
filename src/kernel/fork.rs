//! Forks this process (fork(2)), and ends it without clean-up (_exit(2)).

#![allow(unsafe_code)]

use rustix::io::{Errno, Result};

use crate::kernel::syscall::check;

/// `struct clone_args` of clone3(2), with the cgroup field of Linux 5.7.
#[repr(C)]
#[derive(Default)]
pub(crate) struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}

pub(crate) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// Which of the two processes [`fork_single_threaded`] has returned in.
pub enum Fork {
    /// The new process.
    Child,
    /// The calling process; the value is the id of the new process.
    Parent(rustix::process::Pid),
}

/// Forks this process (fork(2)). Fails with `EBUSY` if this process has more than one thread: the child would have only
/// the calling thread, and locks of the other threads would stay locked forever.
pub fn fork_single_threaded() -> Result<Fork> {
    if !has_one_thread() {
        return Err(Errno::BUSY);
    }
    // SAFETY: this process has one thread, so the child is a complete copy.
    let pid = check(libc::c_long::from(unsafe { libc::fork() }))?;
    Ok(match rustix::process::Pid::from_raw(pid as i32) {
        None => Fork::Child,
        Some(pid) => Fork::Parent(pid),
    })
}

/// Does the same as [`fork_single_threaded`], and makes the new process in `cgroup` (CLONE_INTO_CGROUP, clone(2), Linux
/// 5.7), if it is given. Also returns the pidfd of the new process to the parent.
///
/// # Errors
/// `EBUSY` for more than one thread; `ENODEV` if the cgroup has been removed; `ENOSYS` or `EPERM` where a seccomp filter
/// refuses clone3(2); any other errno of clone3(2).
#[cfg(feature = "cli")]
pub fn fork_into(cgroup: Option<std::os::fd::BorrowedFd<'_>>) -> Result<Option<crate::kernel::pidfd::Pidfd>> {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    if !has_one_thread() {
        return Err(Errno::BUSY);
    }
    let mut pidfd = -1_i32;
    let arguments = CloneArgs {
        flags: libc::CLONE_PIDFD as u64 | if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 },
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.map_or(0, |cgroup| cgroup.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    // SAFETY: this process has one thread, so the child is a complete copy, on a copy of this stack. `arguments` and
    // `pidfd` outlive the call.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArgs>()) })?;
    // SAFETY: the kernel has opened the descriptor for this process, and it has no other owner.
    Ok((pid != 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) }.into()))
}

/// Returns whether this process has one thread.
fn has_one_thread() -> bool {
    // SAFETY: the call changes nothing in a process with one thread, and fails with EINVAL in any other (unshare(2)).
    match check(libc::c_long::from(unsafe { libc::unshare(libc::CLONE_THREAD) })) {
        Ok(_) => true,
        Err(Errno::INVAL) => false,
        // A container's seccomp profile may refuse the call. Then `/proc` shows the number of threads.
        Err(_) => std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1),
    }
}

/// Replaces this process by a program, which is searched for in PATH (execvp(3)). Returns only after an error. The
/// signal mask and ignored signals stay as they are.
#[cfg(feature = "cli")]
pub fn exec(command: &[std::ffi::CString]) -> Errno {
    let mut words: Vec<_> = command.iter().map(|word| word.as_ptr()).collect();
    words.push(std::ptr::null());
    let Some(&program) = words.first().filter(|word| !word.is_null()) else { return Errno::INVAL };
    // SAFETY: the words are strings that end with NUL, and a null pointer ends the list. Both outlive the call.
    unsafe { libc::execvp(program, words.as_ptr()) };
    crate::kernel::syscall::last_errno()
}

/// Sets a variable in the environment of this process, for [`exec`].
///
/// # Errors
/// `EBUSY` if this process has more than one thread: another one could read the environment meanwhile.
#[cfg(feature = "cli")]
pub fn set_variable(key: &std::ffi::OsStr, value: &std::ffi::OsStr) -> Result<()> {
    if !has_one_thread() {
        return Err(Errno::BUSY);
    }
    // SAFETY: no other thread reads or changes the environment meanwhile.
    unsafe { std::env::set_var(key, value) };
    Ok(())
}

/// Removes a variable from the environment of this process, for [`exec`].
///
/// # Errors
/// The same as for [`set_variable`].
#[cfg(feature = "cli")]
pub fn remove_variable(key: &std::ffi::OsStr) -> Result<()> {
    if !has_one_thread() {
        return Err(Errno::BUSY);
    }
    // SAFETY: no other thread reads or changes the environment meanwhile.
    unsafe { std::env::remove_var(key) };
    Ok(())
}

/// Ends this process at once, without `atexit` handlers or destructors.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) has no obligations.
    unsafe { libc::_exit(code) }
}
