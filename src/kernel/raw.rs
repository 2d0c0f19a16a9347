//! System calls without the C library: no thread-local `errno` is written.
//!
//! The processes between the clone and the exec run with the guard's memory, its `errno` included, and the guard can run at the
//! same time.

#![allow(unsafe_code)]

/// The system call `number`. The result is the kernel's: from -4095 to -1 it is a negated errno.
///
/// # Safety
/// As the system call demands.
#[cfg(target_arch = "x86_64")]
pub unsafe fn call<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> isize {
    let argument = |index: usize| arguments.get(index).copied().unwrap_or_default();
    let result: isize;
    // SAFETY: the kernel keeps all registers but rax, rcx and r11; the rest is the caller's obligation.
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

/// As above.
///
/// # Safety
/// As above.
#[cfg(target_arch = "aarch64")]
pub unsafe fn call<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> isize {
    let argument = |index: usize| arguments.get(index).copied().unwrap_or_default();
    let result: isize;
    // SAFETY: the kernel keeps all registers but x0; the rest is the caller's obligation.
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

/// The same; an error as its errno.
///
/// # Safety
/// As [`call`].
pub unsafe fn checked<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> Result<usize, i32> {
    // SAFETY: the caller's obligation.
    match unsafe { call(number, arguments) } {
        error @ -4095..=-1 => Err(-error as i32),
        result => Ok(result as usize),
    }
}
