//! Operations on descriptors by number: for descriptors that this process inherited, and for those that exec keeps
//! open.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Result;

use crate::kernel::syscall::check;

/// Closes every descriptor except the standard ones and `kept`, which becomes number 3 (close_range(2), Linux 5.9; one
/// by one before that). Only for a guard that has just started: such a process never drops a value that owns one of the
/// closed descriptors.
pub fn keep_only(kept: OwnedFd) -> Result<OwnedFd> {
    // SAFETY: the owners of the descriptors from 3 on are never dropped in this process.
    unsafe {
        if kept.as_raw_fd() != 3 {
            check(libc::c_long::from(libc::dup3(kept.as_raw_fd(), 3, libc::O_CLOEXEC)))?;
        }
        std::mem::forget(kept);
        if libc::syscall(libc::SYS_close_range, 4, u32::MAX, 0) != 0 {
            for fd in crate::kernel::inherited::fd_numbers().into_iter().filter(|&fd| fd > 3) {
                libc::close(fd);
            }
        }
        Ok(OwnedFd::from_raw_fd(3))
    }
}

/// Makes `source` available as descriptor `target`, which exec keeps open (dup2(2)). `target` is 0, 1 or 2: no value in
/// this program owns one of these descriptors.
pub fn dup_to_stdio(source: BorrowedFd<'_>, target: i32) -> Result<()> {
    debug_assert!((0..3).contains(&target));
    // SAFETY: the standard descriptors are owned by no `OwnedFd`.
    check(libc::c_long::from(unsafe { libc::dup2(source.as_raw_fd(), target) })).map(drop)
}

/// Sets the close-on-exec flag of each descriptor from `first` on (close_range(2), Linux 5.11).
///
/// # Errors
/// `EINVAL` or `ENOSYS` before Linux 5.11.
#[cfg(feature = "cli")]
pub fn close_on_exec_from(first: u32) -> Result<()> {
    // SAFETY: the call takes numbers, and closes no descriptor now.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Returns whether the descriptor `number` is open.
pub fn is_open(number: RawFd) -> bool {
    flags(number).is_some()
}

/// Returns whether the descriptor `number` is open and has no close-on-exec flag.
pub fn stays_open_at_exec(number: RawFd) -> bool {
    flags(number).is_some_and(|flags| flags & libc::FD_CLOEXEC == 0)
}

/// Returns the flags of the descriptor `number` (`FD_CLOEXEC`); `None` if it is closed.
pub fn flags(number: RawFd) -> Option<i32> {
    // SAFETY: F_GETFD takes a number and only reads (fcntl(2)); a closed number fails with EBADF.
    check(unsafe { libc::fcntl(number, libc::F_GETFD) }.into()).ok().map(|flags| flags as i32)
}

/// Returns a copy of the descriptor `number`, with the close-on-exec flag and a number of 3 or higher. Fails with
/// `EBADF` if it is closed.
pub fn copy(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes numbers. The new descriptor has no other owner.
    unsafe {
        let copy = check(libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3).into())?;
        Ok(OwnedFd::from_raw_fd(copy as RawFd))
    }
}

/// Returns whether both descriptors refer to the same open file description (open(2), kcmp(2)). Fails with `ENOSYS` if
/// the kernel lacks the call, and with `ENOSYS` or `EPERM` if a seccomp filter refuses it.
pub fn share_open_file_description(one: RawFd, other: RawFd) -> Result<bool> {
    /// `KCMP_FILE` (include/uapi/linux/kcmp.h).
    const FILE: libc::c_int = 0;
    let own = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: kcmp(2) takes numbers and touches no memory of this process; a closed descriptor fails with EBADF.
    check(unsafe { libc::syscall(libc::SYS_kcmp, own, own, FILE, one as libc::c_ulong, other as libc::c_ulong) })
        .map(|order| order == 0)
}
