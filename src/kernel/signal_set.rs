//! Sets of signals, and the sets that this process blocks, ignores and receives through a signalfd (signal(7)).
//!
//! A set is a plain bit mask (`1 << (signal - 1)`), as in `/proc/PID/status`, and the calls are the kernel's own: glibc's
//! `sigset_t` functions silently leave out signals 32 and 33. These signals would then end pinfold while the job goes on.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{Errno, Result};

use crate::kernel::syscall::{check, last_errno};

/// The highest signal number of Linux (signal(7)).
pub const SIGNAL_MAX: i32 = 64;

/// Every signal that can be blocked; the kernel itself removes SIGKILL and SIGSTOP from the set.
pub const ALL_SIGNALS: u64 = u64::MAX;

/// Returns the bit of `signal` in a signal set.
#[must_use]
pub const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Returns the signal mask of the calling thread.
pub fn signal_mask() -> u64 {
    let mut old = 0_u64;
    // SAFETY: with a null new set the call only reads; `old` is as large as the size that is passed.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_BLOCK,
            std::ptr::null::<u64>(),
            &raw mut old,
            size_of::<u64>(),
        );
    }
    old
}

/// Sets the signal mask of the calling thread.
pub fn set_signal_mask(set: u64) {
    // SAFETY: `set` is as large as the size that is passed; the old set is not requested.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const set,
            std::ptr::null_mut::<u64>(),
            size_of::<u64>(),
        );
    }
}

/// The kernel's `struct sigaction` (arch/x86 and arm64: handler, flags, restorer, mask), not libc's.
#[repr(C)]
#[derive(Default)]
struct KernelSigaction {
    handler: usize,
    flags: libc::c_ulong,
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    restorer: usize,
    mask: u64,
}

/// Returns whether this process ignores `signal`.
pub fn is_ignored(signal: i32) -> bool {
    let mut old = KernelSigaction::default();
    // SAFETY: with a null new action the call only reads; `old` has the kernel's layout.
    let done = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            std::ptr::null::<KernelSigaction>(),
            &raw mut old,
            size_of::<u64>(),
        )
    };
    done == 0 && old.handler == libc::SIG_IGN
}

/// Makes this process ignore `signal`, or sets the signal's default action.
pub fn set_ignored(signal: i32, ignored: bool) {
    let new =
        KernelSigaction { handler: if ignored { libc::SIG_IGN } else { libc::SIG_DFL }, ..KernelSigaction::default() };
    // SAFETY: SIG_IGN and SIG_DFL install no handler code; `new` has the kernel's layout.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            &raw const new,
            std::ptr::null_mut::<KernelSigaction>(),
            size_of::<u64>(),
        );
    }
}

/// Returns the set of signals that this process ignores.
pub fn ignored_signals() -> u64 {
    (1..=SIGNAL_MAX).filter(|&signal| is_ignored(signal)).fold(0, |set, signal| set | bit(signal))
}

/// Returns a non-blocking, close-on-exec signalfd for `set` (signalfd(2)). The signals must be blocked.
pub fn signalfd(set: u64) -> Result<OwnedFd> {
    // SAFETY: `set` is as large as the size that is passed; the result is checked before it is owned.
    unsafe {
        let fd = check(libc::syscall(
            libc::SYS_signalfd4,
            -1,
            &raw const set,
            size_of::<u64>(),
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        ))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// Reads one signal from a signalfd. Returns `None` if no signal is queued now.
pub fn read_signal(fd: BorrowedFd<'_>) -> Result<Option<libc::signalfd_siginfo>> {
    let mut info = std::mem::MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    // SAFETY: the kernel writes whole records, at most the size that is passed.
    let read = unsafe { libc::read(fd.as_raw_fd(), info.as_mut_ptr().cast(), size_of::<libc::signalfd_siginfo>()) };
    match read {
        -1 => match last_errno() {
            Errno::AGAIN => Ok(None),
            errno => Err(errno),
        },
        // SAFETY: zeroed above, and all of its fields are integers.
        _ => Ok(Some(unsafe { info.assume_init() })),
    }
}

/// Sends `signal` to this process.
#[cfg(feature = "cli")]
pub fn raise(signal: i32) {
    // SAFETY: kill(2) has no memory obligations.
    unsafe { libc::kill(libc::getpid(), signal) };
}
