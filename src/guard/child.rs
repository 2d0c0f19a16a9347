//! The child's life between the clone and the command: it shares the guard's memory, calls nothing but the kernel and
//! allocates nothing; what went wrong is told through that memory.

#![allow(unsafe_code)]

use std::ffi::c_char;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::null;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use super::protocol::{NEW_SESSION, NEW_TERMINAL};
use crate::error::SpawnStage;
use crate::host::Changed;
use crate::sys;

/// An exec that has not finished by then is ended: a binary on a dead network file system would block the guard.
pub const EXEC_BOUND: Duration = Duration::from_secs(10);

/// Everything that the child needs, made ready before it exists.
pub struct Plan {
    pub guard: i32,
    pub cgroup_procs: RawFd,
    pub process_group: Option<i32>,
    /// The leaf's id, and the end of the line that `/proc/self/cgroup` has for it.
    pub leaf: Option<(u64, *const [u8])>,
    pub cwd_descriptor: RawFd,
    pub cwd: *const c_char,
    /// (descriptor here, number in the job), in an order in which none is overwritten before its turn.
    pub descriptors: Vec<(RawFd, RawFd)>,
    /// Standard descriptors to leave closed.
    pub closed: Vec<RawFd>,
    /// The kernel's number, soft, hard.
    pub rlimits: Vec<(u32, u64, u64)>,
    pub nice: Option<i32>,
    /// The host's changes since the guard was started.
    pub host: Changed,
    /// User, group, supplementary groups to change to.
    pub user: Option<(u32, u32, Vec<u32>)>,
    pub blocked: u64,
    pub ignored: u64,
    pub candidates: Vec<*const c_char>,
    /// A free slot, the arguments, null: `/bin/sh` goes into the slot for a script without `#!`.
    pub argv: Vec<*const c_char>,
    pub env: Vec<*const c_char>,
    pub outcome: Outcome,
}

/// What the child tells. It is the same memory on both sides.
#[derive(Default)]
pub struct Outcome {
    pub started: AtomicBool,
    pub stage: AtomicI32,
    pub errno: AtomicI32,
}

const STAGES: [SpawnStage; 12] = [
    SpawnStage::Clone,
    SpawnStage::Proof,
    SpawnStage::JoinCgroup,
    SpawnStage::ProcessGroup,
    SpawnStage::WorkingDirectory,
    SpawnStage::Descriptors,
    SpawnStage::Terminal,
    SpawnStage::Limits,
    SpawnStage::User,
    SpawnStage::ExecTimer,
    SpawnStage::DeathSignal,
    SpawnStage::Exec,
];

pub fn stage(number: i32) -> SpawnStage {
    STAGES.get(number as usize).copied().unwrap_or(SpawnStage::Clone)
}

/// The child's whole life before the command. Never returns.
///
/// # Safety
/// Runs in the new process, on the plan that the suspended guard owns.
pub unsafe extern "C" fn child(plan: *mut Plan) -> ! {
    // SAFETY: the guard stands still until this process executes or ends, so the plan is ours alone.
    unsafe {
        let plan = &mut *plan;
        let (stage, errno) = prepare_and_exec(plan);
        let number = STAGES.iter().position(|known| *known == stage).unwrap_or(0);
        plan.outcome.stage.store(number as i32, Ordering::Release);
        plan.outcome.errno.store(errno, Ordering::Release);
        libc::_exit(127)
    }
}

/// Comes back only with what failed.
///
/// # Safety
/// As [`child`]: system calls only, on what the plan points to.
unsafe fn prepare_and_exec(plan: &mut Plan) -> (SpawnStage, i32) {
    // SAFETY: every pointer in the plan is into the specification or the plan's own vectors; errno is the guard's,
    // which stands still.
    unsafe {
        let errno = || *libc::__errno_location();
        // First of all: a process that was killed before this was killed by the kernel's kill-sequence bug.
        plan.outcome.started.store(true, Ordering::Release);
        if plan.cgroup_procs >= 0 && libc::write(plan.cgroup_procs, c"0".as_ptr().cast(), 1) != 1 {
            return (SpawnStage::JoinCgroup, errno());
        }
        if !is_in_leaf(plan) {
            return (SpawnStage::Proof, libc::ESRCH);
        }
        let done = match plan.process_group {
            Some(NEW_SESSION | NEW_TERMINAL) => libc::setsid(),
            Some(group) => libc::setpgid(0, group),
            None => 0,
        };
        if done == -1 {
            return (SpawnStage::ProcessGroup, errno());
        }
        if plan.cwd_descriptor >= 0 && libc::fchdir(plan.cwd_descriptor) != 0 {
            return (SpawnStage::WorkingDirectory, errno());
        }
        if !plan.cwd.is_null() && libc::chdir(plan.cwd) != 0 {
            return (SpawnStage::WorkingDirectory, errno());
        }
        for &(source, target) in &plan.descriptors {
            // dup2 of a number to itself would leave close-on-exec (dup(2)).
            let moved =
                if source == target { libc::fcntl(source, libc::F_SETFD, 0) } else { libc::dup2(source, target) };
            if moved == -1 {
                return (SpawnStage::Descriptors, errno());
            }
        }
        for &number in &plan.closed {
            libc::close(number);
        }
        // Of a session that has none yet, which is its leader's to do (ioctl_tty(2), TIOCSCTTY).
        if plan.process_group == Some(NEW_TERMINAL) && libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
            return (SpawnStage::Terminal, errno());
        }
        if !plan.host.apply() || !set_limits(plan) {
            return (SpawnStage::Limits, errno());
        }
        if !become_user(plan) {
            return (SpawnStage::User, errno());
        }
        for signal in 1..=sys::SIGNAL_MAX {
            if plan.ignored & sys::bit(signal) != 0 {
                sys::set_ignored(signal, true);
            }
        }
        if let Err(errno) = arm_exec_timer() {
            return (SpawnStage::ExecTimer, errno);
        }
        // After whatever changes credentials, which would clear it (prctl(2)).
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return (SpawnStage::DeathSignal, errno());
        }
        if libc::getppid() != plan.guard {
            return (SpawnStage::DeathSignal, libc::ESRCH);
        }
        sys::set_signal_mask(plan.blocked);
        (SpawnStage::Exec, execute(plan))
    }
}

/// Resource limits and niceness; `false` with errno set where one is refused.
///
/// # Safety
/// As [`child`].
unsafe fn set_limits(plan: &Plan) -> bool {
    for &(resource, rlim_cur, rlim_max) in &plan.rlimits {
        let limit = libc::rlimit64 { rlim_cur, rlim_max };
        // SAFETY: of this process only, not of the guard's (prlimit(2) with 0): limits are no part of the shared memory.
        if unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, 0) } != 0 {
            return false;
        }
    }
    match plan.nice {
        // SAFETY: the number 0 names this process.
        Some(nice) => unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, nice) == 0 },
        None => true,
    }
}

/// Changes to the user that was asked for; `false` with errno set where that is refused. Groups first, which only root may set.
/// By system calls: the C library's functions would tell threads of the guard, whose memory this is.
///
/// # Safety
/// As [`child`].
unsafe fn become_user(plan: &Plan) -> bool {
    let Some((uid, gid, groups)) = &plan.user else { return true };
    // SAFETY: credentials are this process's own (credentials(7)); the list outlives the call.
    unsafe {
        libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) == 0
            && libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid) == 0
            && libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid) == 0
    }
}

/// Whether this process is in its leaf: by the cgroup's id where the kernel tells (6.13), else by `/proc/self/cgroup`. Without
/// that, what the kernel has answered to the clone or to the write has to do.
///
/// # Safety
/// As [`child`].
unsafe fn is_in_leaf(plan: &Plan) -> bool {
    let Some((leaf_id, leaf_tail)) = plan.leaf else { return true };
    // SAFETY: descriptors and memory of our own; the tail is a string that the guard keeps.
    unsafe {
        let own = libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) as i32;
        if own >= 0 {
            let id = sys::pidfd_cgroup_id(BorrowedFd::borrow_raw(own));
            libc::close(own);
            if let Some(id) = id {
                return id == leaf_id;
            }
        }
        let file = libc::open(c"/proc/self/cgroup".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if file < 0 {
            return true;
        }
        let mut text = [0_u8; 8192];
        let mut length = 0;
        while let read @ 1.. = libc::read(file, text.as_mut_ptr().add(length).cast(), text.len() - length) {
            length += read as usize;
        }
        libc::close(file);
        let mut lines = text[..length].split(|&byte| byte == b'\n');
        lines.any(|line| line.starts_with(b"0::") && line.ends_with(&*leaf_tail))
    }
}

/// Tries each candidate as execvp(3) does; comes back with the errno that tells most.
///
/// # Safety
/// As [`child`].
unsafe fn execute(plan: &mut Plan) -> i32 {
    let mut denied = false;
    let mut last = libc::ENOENT;
    for &path in &plan.candidates {
        // SAFETY: null-terminated arrays of strings, see Plan.
        unsafe {
            libc::execve(path, plan.argv.as_ptr().add(1), plan.env.as_ptr());
            last = *libc::__errno_location();
            if last == libc::ENOEXEC {
                // A script without `#!`.
                plan.argv[0] = c"/bin/sh".as_ptr();
                plan.argv[1] = path;
                libc::execve(c"/bin/sh".as_ptr(), plan.argv.as_ptr(), plan.env.as_ptr());
                return last;
            }
        }
        match last {
            libc::EACCES => denied = true,
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
            _ => return last,
        }
    }
    if denied { libc::EACCES } else { last }
}

/// SIGKILL to this process after [`EXEC_BOUND`]; exec deletes POSIX timers (execve(2)).
///
/// # Safety
/// As [`child`].
unsafe fn arm_exec_timer() -> Result<(), i32> {
    // SAFETY: both structures outlive the calls; all-zero is valid for them.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGKILL;
        let mut timer = 0_i32;
        if libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) != 0 {
            return match *libc::__errno_location() {
                // This user's queued signals are at their limit (RLIMIT_SIGPENDING): a rare bound is no reason to start nothing.
                libc::EAGAIN => Ok(()),
                errno => Err(errno),
            };
        }
        let mut bound: libc::itimerspec = std::mem::zeroed();
        bound.it_value.tv_sec = EXEC_BOUND.as_secs().cast_signed();
        if libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const bound, null::<libc::itimerspec>()) != 0 {
            return Err(*libc::__errno_location());
        }
        Ok(())
    }
}
