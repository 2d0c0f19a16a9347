//! The results of system calls that rustix lacks, and system calls without the C library, which do not write the
//! thread-local `errno`.
//!
//! A process between clone and exec uses the guard's memory, including its `errno`, and the guard can run at the same
//! time.

#![allow(unsafe_code)]

use rustix::io::{Errno, Result};

/// Converts the result of a function of the C library: -1 means that `errno` has the error.
pub fn check(value: libc::c_long) -> Result<libc::c_long> {
    if value == -1 { Err(last_errno()) } else { Ok(value) }
}

/// Returns the `errno` of this thread, which the C library sets when a call fails.
pub fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Makes the system call `number`. Returns the kernel's result: from -4095 to -1 it is a negated errno.
///
/// # Safety
/// The caller meets the requirements of the system call.
#[cfg(target_arch = "x86_64")]
pub unsafe fn call<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> isize {
    let argument = |index: usize| arguments.get(index).copied().unwrap_or_default();
    let result: isize;
    // SAFETY: the kernel preserves all registers except rax, rcx and r11; the rest is the caller's obligation.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") argument(0),
            in("rsi") argument(1),
            in("rdx") argument(2),
            in("r10") argument(3),
            in("r8") argument(4),
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Makes the system call `number`. Returns the kernel's result: from -4095 to -1 it is a negated errno.
///
/// # Safety
/// The caller meets the requirements of the system call.
#[cfg(target_arch = "aarch64")]
pub unsafe fn call<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> isize {
    let argument = |index: usize| arguments.get(index).copied().unwrap_or_default();
    let result: isize;
    // SAFETY: the kernel preserves all registers except x0; the rest is the caller's obligation.
    unsafe {
        std::arch::asm!(
            "svc #0",
            in("x8") number,
            inlateout("x0") argument(0) as isize => result,
            in("x1") argument(1),
            in("x2") argument(2),
            in("x3") argument(3),
            in("x4") argument(4),
            options(nostack),
        );
    }
    result
}

/// Makes a system call, as [`call`] does, and returns an error as its errno.
///
/// # Safety
/// The same as for [`call`].
pub unsafe fn checked<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> std::result::Result<usize, i32> {
    // SAFETY: the caller's obligation.
    match unsafe { call(number, arguments) } {
        error @ -4095..=-1 => Err(-error as i32),
        result => Ok(result as usize),
    }
}
