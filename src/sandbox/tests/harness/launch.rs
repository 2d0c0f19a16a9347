//! The child of a test, between fork and exec.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::os::fd::RawFd;

use super::users::As;
use crate::kernel::landlock;
use crate::kernel::syscall::{call, checked};
use crate::sandbox::apply::{Confinement, drop_privileges};
use crate::sandbox::mounts::Ids;

/// The data that the child uses. It only contains pointers and integers, so that the child allocates nothing.
pub struct Launch {
    pub confinement: *const Confinement,
    pub ruleset: RawFd,
    /// The socket for the listener; -1 without one.
    pub listener: RawFd,
    pub user: As,
    pub ids: Option<Ids>,
    pub stdin: RawFd,
    pub output: RawFd,
    pub cwd: *const c_char,
    pub argv: *const *const c_char,
    pub env: *const *const c_char,
    /// Where the child writes the errno of a failed step: in memory that it shares with the test.
    pub failed: *mut Option<i32>,
}

/// Executes the program without a sandbox.
pub extern "C" fn bare(argument: *mut c_void) -> c_int {
    // SAFETY: as in `confined`.
    unsafe {
        let launch = &*argument.cast::<Launch>();
        streams(launch);
        become_user(launch);
        execute(launch)
    }
}

/// Executes the program in a sandbox. The steps have the same order as in the guard's child.
pub extern "C" fn confined(argument: *mut c_void) -> c_int {
    // SAFETY: the argument points to a launch that outlives this process, which makes only system calls.
    unsafe {
        let launch = &*argument.cast::<Launch>();
        let confinement = &*launch.confinement;
        streams(launch);
        call(libc::SYS_setsid, []);
        let mut done = confinement.enter(launch.ruleset, -1);
        if launch.user == As::RootForAnother {
            become_user(launch);
        }
        call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize, 0, 0, 0]);
        done = done.and_then(|()| drop_privileges());
        if launch.ruleset >= 0 {
            done = done.and_then(|()| landlock::restrict_self(launch.ruleset));
        }
        done = done.and_then(|()| {
            let none = 0_u64;
            let arguments = [libc::SIG_SETMASK as usize, &raw const none as usize, 0, size_of::<u64>()];
            call(libc::SYS_rt_sigprocmask, arguments);
            confinement.filter(launch.listener)
        });
        if let Err(failed) = done {
            *launch.failed = Some(failed);
            return 125;
        }
        execute(launch)
    }
}

unsafe fn streams(launch: &Launch) {
    // SAFETY: descriptors of this process.
    unsafe {
        call(libc::SYS_dup3, [launch.stdin as usize, 0, 0]);
        call(libc::SYS_dup3, [launch.output as usize, 1, 0]);
        call(libc::SYS_dup3, [launch.output as usize, 2, 0]);
    }
}

unsafe fn become_user(launch: &Launch) {
    let Some(Ids { uid, gid }) = launch.ids else { return };
    let (uid, gid) = (uid as usize, gid as usize);
    // SAFETY: credentials of this process only.
    unsafe {
        call(libc::SYS_setgroups, [0, 0]);
        call(libc::SYS_setresgid, [gid, gid, gid]);
        call(libc::SYS_setresuid, [uid, uid, uid]);
    }
}

unsafe fn execute(launch: &Launch) -> c_int {
    // SAFETY: arrays of strings that end with null, and a string.
    unsafe {
        call(libc::SYS_chdir, [launch.cwd as usize]);
        // Unblocks the signals that the test has blocked during the start.
        let none = 0_u64;
        let arguments = [libc::SIG_SETMASK as usize, &raw const none as usize, 0, size_of::<u64>()];
        call(libc::SYS_rt_sigprocmask, arguments);
        // The test process may have inherited descriptors. A guard has none that a job could inherit, so the program of
        // the test must not get them either.
        call(libc::SYS_close_range, [3, u32::MAX as usize, libc::CLOSE_RANGE_CLOEXEC as usize]);
        let program = *launch.argv as usize;
        let errno = checked(libc::SYS_execve, [program, launch.argv as usize, launch.env as usize]).unwrap_err();
        *launch.failed = Some(errno);
        126
    }
}
