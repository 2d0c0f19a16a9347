//! The listener of a seccomp filter (seccomp_unotify(2)): for each system call for which the filter returns
//! [`USER_NOTIF`], the kernel asks the listener, and the caller waits for the answer.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result};

use super::seccomp::{ALLOW, Instruction, Program};
use super::seccomp_run::Data;
use super::short_child;
use super::syscall::{checked, last_errno};

/// `SECCOMP_RET_USER_NOTIF` (Linux 5.0).
pub const USER_NOTIF: u32 = 0x7fc0_0000;

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER` (Linux 5.0).
const NEW_LISTENER: usize = 1 << 3;
/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` (Linux 5.19): once the listener has received a call, only signals that kill
/// the caller interrupt its wait.
const WAIT_KILLABLE: usize = 1 << 5;

/// `SECCOMP_GET_NOTIF_SIZES` (seccomp(2)).
const GET_NOTIF_SIZES: usize = 3;

// ioctl(2) requests (include/uapi/linux/seccomp.h).
const RECV: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;
const ID_VALID: libc::c_ulong = 0x4008_2102;
/// The number of the same request before Linux 5.8.
const ID_VALID_BEFORE: libc::c_ulong = 0x8008_2102;
/// Linux 6.6.
const SET_FLAGS: libc::c_ulong = 0x4008_2104;

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE` (Linux 5.5).
const CONTINUE: u32 = 1;

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Notification {
    /// The number of the notification, for the answer.
    pub id: u64,
    /// The id of the calling thread; 0 if it is not visible in the PID namespace of the listener.
    pub thread: u32,
    flags: u32,
    pub data: Data,
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// The answer to a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The kernel makes the call, with all of its own checks.
    Continue,
    /// The call fails with this errno.
    Fail(i32),
}

impl Program {
    /// Installs the program as a filter with a listener. Returns the number of the listener's descriptor, which is
    /// close-on-exec. May be called between clone and exec, because it only makes system calls.
    ///
    /// # Errors
    /// The errno. `EBUSY` if the thread already has a filter with a listener.
    ///
    /// # Safety
    /// The same as for [`Program::install`].
    pub unsafe fn install_with_listener(&self) -> std::result::Result<usize, i32> {
        // SAFETY: the caller's obligation.
        match unsafe { self.install_with(NEW_LISTENER | WAIT_KILLABLE) } {
            // Before Linux 5.19.
            // SAFETY: the caller's obligation.
            Err(libc::EINVAL) => unsafe { self.install_with(NEW_LISTENER) },
            done => done,
        }
    }
}

/// Checks in a child process whether a filter with a listener can be installed.
///
/// # Errors
/// The errno. `EBUSY` if this thread already has a filter with a listener, which its children inherit.
pub fn probe() -> Result<()> {
    extern "C" fn entry(program: *mut c_void) -> c_int {
        // SAFETY: `probe` passes a pointer to a program, and waits. These calls change only this process, which ends.
        unsafe {
            let program = &*program.cast::<Program>();
            let done = checked(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as usize, 1, 0, 0, 0]);
            done.and_then(|_| program.install_with_listener()).err().unwrap_or_default()
        }
    }
    let allow = Instruction::plain(libc::BPF_RET | libc::BPF_K, ALLOW);
    let mut program: Program = [allow].into_iter().collect();
    // SAFETY: the entry makes only system calls; the program outlives the child.
    let status = unsafe { short_child::run(entry, (&raw mut program).cast()) }?;
    match libc::WEXITSTATUS(status) {
        0 if libc::WIFEXITED(status) => Ok(()),
        0 => Err(Errno::PERM),
        errno => Err(Errno::from_raw_os_error(errno)),
    }
}

/// The listener of a filter.
#[derive(Debug)]
pub struct Listener {
    descriptor: OwnedFd,
    /// The buffer for a notification. It is as large as the kernel's structure, which can be larger than
    /// [`Notification`].
    buffer: Vec<u64>,
}

impl Listener {
    pub fn new(descriptor: OwnedFd) -> Self {
        let mut sizes = [0_u16; 3];
        // SAFETY: the kernel writes three 16-bit numbers.
        unsafe { libc::syscall(libc::SYS_seccomp, GET_NOTIF_SIZES, 0_usize, sizes.as_mut_ptr()) };
        let size = usize::from(sizes[0]).max(size_of::<Notification>());
        /// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`: the two sides take turns on one CPU, which is faster.
        const SYNC_WAKE_UP: libc::c_ulong = 1;
        // SAFETY: the request takes a number. An older kernel refuses it.
        unsafe { libc::ioctl(descriptor.as_raw_fd(), SET_FLAGS as _, SYNC_WAKE_UP) };
        Self { descriptor, buffer: vec![0; size.div_ceil(8)] }
    }

    pub fn descriptor(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.descriptor)
    }

    /// Receives the next call. Call this when the descriptor is readable.
    ///
    /// # Errors
    /// `ENOENT` if the caller has ended or was interrupted meanwhile.
    pub fn receive(&mut self) -> Result<Notification> {
        // The kernel requires that the buffer contains only zeros.
        self.buffer.fill(0);
        // SAFETY: the buffer is at least as large as the kernel's structure, and aligned for it.
        let done = unsafe { libc::ioctl(self.descriptor.as_raw_fd(), RECV as _, self.buffer.as_mut_ptr()) };
        if done == -1 {
            return Err(last_errno());
        }
        // SAFETY: the structure consists of integers, and is not longer than the buffer.
        Ok(unsafe { self.buffer.as_ptr().cast::<Notification>().read() })
    }

    /// Returns whether the caller still waits for the answer to the notification `id`. If so, everything that was read
    /// before from the caller's directory in /proc was about the caller, and not about a later thread with the same
    /// thread id.
    pub fn is_waiting(&self, id: u64) -> bool {
        let ask = |request: libc::c_ulong| {
            // SAFETY: the request reads one 64-bit number.
            unsafe { libc::ioctl(self.descriptor.as_raw_fd(), request as _, &raw const id) }
        };
        match ask(ID_VALID) {
            0 => true,
            _ => last_errno() == Errno::INVAL && ask(ID_VALID_BEFORE) == 0,
        }
    }

    /// Answers a call.
    ///
    /// # Errors
    /// `ENOENT` if the caller no longer waits: it has ended, or a signal has interrupted it.
    pub fn answer(&self, id: u64, answer: Answer) -> Result<()> {
        let mut response = match answer {
            Answer::Continue => Response { id, value: 0, error: 0, flags: CONTINUE },
            Answer::Fail(errno) => Response { id, value: 0, error: -errno, flags: 0 },
        };
        // SAFETY: the structure has the kernel's layout and outlives the call.
        match unsafe { libc::ioctl(self.descriptor.as_raw_fd(), SEND as _, &raw mut response) } {
            -1 => Err(last_errno()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_sizes_in_the_requests() {
        // The size is in the bits 16 to 29 of a request (include/uapi/asm-generic/ioctl.h).
        let size = |request: libc::c_ulong| (request >> 16 & 0x3fff) as usize;
        assert_eq!(size(RECV), size_of::<Notification>());
        assert_eq!(size(SEND), size_of::<Response>());
    }
}
