//! A child process that shares the memory of this process and lives for a few system calls. It tries system calls that
//! would change this process itself.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

use rustix::io::{Errno, Result};

use super::signal_set::{ALL_SIGNALS, set_signal_mask, signal_mask};
use super::syscall::last_errno;

/// The size of the child's stack. The child only makes a few system calls, so it needs little.
const STACK_SIZE: usize = 32 * 1024;

/// The function that the child runs. Its result becomes the exit code of the child.
pub type Entry = extern "C" fn(*mut c_void) -> c_int;

/// Runs `entry` in a child process, and waits until the child (or the program that it executes) has ended. Returns the
/// wait status (wait(2)).
///
/// The host program does not notice the child: the kernel sends no SIGCHLD for it, and only a wait with `__WALL` or
/// `__WCLONE` finds it. The calling thread is suspended until the child ends or executes a program (CLONE_VFORK in
/// clone(2)); other threads go on. All signals are blocked in the child.
///
/// # Errors
/// The errno of clone(2) or waitpid(2).
///
/// # Safety
/// `entry` makes only system calls, without the C library's wrappers that write `errno`, and is sound with `argument`,
/// which must live until this function returns. The child shares all memory of this process, but not its descriptors,
/// its signal handlers or its working directory.
pub unsafe fn run(entry: Entry, argument: *mut c_void) -> Result<c_int> {
    // 16 bytes: the alignment of a stack on x86-64 and aarch64.
    let mut stack = vec![0_u128; STACK_SIZE / size_of::<u128>()];
    let mask = signal_mask();
    // If signals were not blocked, a signal handler of the host could run in the child, on the memory of the host.
    set_signal_mask(ALL_SIGNALS);
    // SAFETY: the child runs `entry` on a stack of its own, and this thread is suspended meanwhile; the rest is the
    // caller's obligation. The exit signal is 0.
    let pid = unsafe {
        libc::clone(entry, stack.as_mut_ptr_range().end.cast(), libc::CLONE_VM | libc::CLONE_VFORK, argument)
    };
    let errno = last_errno();
    set_signal_mask(mask);
    if pid == -1 {
        return Err(errno);
    }
    let mut status = 0;
    // SAFETY: waits for the child that was just made. No other code reaps it, because only a wait with `__WALL` or
    // `__WCLONE` finds it.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } == -1 {
        match last_errno() {
            Errno::INTR => {}
            errno => return Err(errno),
        }
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::syscall::call;

    #[test]
    fn the_child_writes_the_memory_of_its_maker_and_is_reaped() {
        extern "C" fn entry(argument: *mut c_void) -> c_int {
            // SAFETY: the argument is an `isize` that outlives the child.
            unsafe { *argument.cast::<isize>() = call(libc::SYS_getpid, []) };
            7
        }
        let mut pid = 0_isize;
        // SAFETY: the entry makes one system call.
        let status = unsafe { run(entry, (&raw mut pid).cast()) }.unwrap();
        assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 7));
        assert!(pid > 0 && pid != rustix::process::getpid().as_raw_nonzero().get() as isize);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
