//! The code that the child runs between the clone and the exec. The child shares the guard's memory, only makes system
//! calls, and allocates nothing. It records there its current step and the error that occurred.
//!
//! Any step can take forever: a directory or a program can be on a file system that does not respond, or a process of
//! the job's user can send SIGSTOP after the credentials have changed. So the child first sets the timer and the death
//! signal, and the guard does not wait for the child (see [`super::launch`]).

#![allow(unsafe_code)]

use std::ffi::c_char;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use super::exec::{arm_exec_timer, execute};
use super::identity::Variable;
use super::protocol::{NEW_SESSION, NEW_SESSION_ON_TERMINAL, NEW_TERMINAL};
use crate::error::SpawnStage;
use crate::kernel::host::ChangedSettings;
use crate::kernel::landlock;
use crate::kernel::oom_score;
use crate::kernel::syscall::{call, checked};
use crate::kernel::{pidfd, signal_set};
use crate::sandbox::apply::{self, Confinement};

/// Everything that the child needs, prepared before the child exists.
pub struct Plan {
    pub guard: i32,
    pub cgroup_procs: RawFd,
    pub process_group: Option<i32>,
    /// The leaf's id, and the text with which the line in `/proc/self/cgroup` ends if the process is in the leaf.
    pub leaf: Option<(u64, *const [u8])>,
    /// The sandbox that the process applies to itself.
    pub sandbox: Option<Confinement>,
    /// The descriptor of the sandbox's Landlock ruleset; -1 without a ruleset. No other descriptor is moved to this
    /// number.
    pub ruleset: RawFd,
    /// The same for the socket over which the process sends the listener of its filter.
    pub listener: RawFd,
    /// The socket that receives a descriptor of the job's private tmp; -1 without one. No other descriptor is moved to
    /// this number.
    pub tmp_socket: RawFd,
    pub cwd_descriptor: RawFd,
    pub cwd: *const c_char,
    /// Pairs of (number in the guard, number in the job). In this order, no move overwrites a descriptor that has not
    /// been moved yet.
    pub descriptors: Vec<(RawFd, RawFd)>,
    /// Standard descriptors to leave closed.
    pub closed: Vec<RawFd>,
    /// The kernel's number, soft, hard.
    pub rlimits: Vec<(u32, u64, u64)>,
    pub nice: Option<i32>,
    /// The value for [`oom_score::FILE`], as text.
    pub oom_score: Option<String>,
    /// The settings that the host has changed since the guard was started.
    pub host: ChangedSettings,
    /// The user, group and supplementary groups to change to.
    pub user: Option<(u32, u32, Vec<u32>)>,
    pub blocked: u64,
    pub ignored: u64,
    pub candidates: Vec<*const c_char>,
    /// A free slot, then the arguments, then null. For a script without `#!`, the slot gets `/bin/sh`.
    pub argv: Vec<*const c_char>,
    pub env: Vec<*const c_char>,
    /// The variables in `env` whose value the process replaces with its own identity (see `identity.rs`).
    pub identities: Vec<Variable>,
    pub outcome: *const Outcome,
}

/// The child's progress, in memory that the guard reads at the same time.
#[derive(Default)]
pub struct Outcome {
    pub started: AtomicBool,
    pub pid: AtomicI32,
    /// The step that the child is at, or at which it failed: an index into [`STAGES`].
    pub stage: AtomicI32,
    pub errno: AtomicI32,
}

impl Outcome {
    pub fn stage(&self) -> SpawnStage {
        STAGES.get(self.stage.load(Ordering::Acquire) as usize).copied().unwrap_or(SpawnStage::Clone)
    }
}

/// The steps, in the order in which the child takes them.
const STAGES: [SpawnStage; 16] = [
    SpawnStage::Clone,
    SpawnStage::ExecTimer,
    SpawnStage::DeathSignal,
    SpawnStage::JoinCgroup,
    SpawnStage::CgroupCheck,
    SpawnStage::ProcessGroup,
    SpawnStage::Namespaces,
    SpawnStage::WorkingDirectory,
    SpawnStage::Descriptors,
    SpawnStage::Terminal,
    SpawnStage::Limits,
    SpawnStage::User,
    SpawnStage::Privileges,
    SpawnStage::Landlock,
    SpawnStage::Seccomp,
    SpawnStage::Exec,
];

/// Runs in the child until the command is executed. Never returns.
///
/// # Safety
/// Runs in the new process. The plan and all that it points to must live until this process executes the command or
/// ends. Nothing else may use the plan until then.
pub unsafe extern "C" fn child(plan: *mut Plan) -> ! {
    // SAFETY: the plan lives, and nothing else uses it, until this process executes the command or ends (the caller's
    // obligation), so this reference is exclusive although the memory is shared. The guard reads the outcome meanwhile:
    // it consists of atomics. The two system calls pass no memory.
    unsafe {
        let plan = &mut *plan;
        let outcome = &*plan.outcome;
        outcome.pid.store(call(libc::SYS_getpid, []) as i32, Ordering::Release);
        // This store comes first: if a process is killed before this line, the guard concludes that the kernel's
        // kill-sequence bug is the cause.
        outcome.started.store(true, Ordering::Release);
        if let Err(errno) = prepare_and_exec(plan, outcome) {
            outcome.errno.store(errno, Ordering::Release);
        }
        call(libc::SYS_exit_group, [127]);
    }
    // SAFETY: exit_group(2) does not return.
    unsafe { std::hint::unreachable_unchecked() }
}

/// Prepares the process and executes the command. Returns only with the errno of the step that failed.
///
/// # Safety
/// The same as for [`child`]. Makes only system calls, on memory that the plan points to.
unsafe fn prepare_and_exec(plan: &mut Plan, outcome: &Outcome) -> Result<(), i32> {
    let mut at = SpawnStage::Clone;
    let mut enter = |stage: SpawnStage| {
        while at != stage {
            let next = outcome.stage.load(Ordering::Relaxed) + 1;
            outcome.stage.store(next, Ordering::Release);
            at = outcome.stage();
        }
    };
    // SAFETY: every pointer in the plan leads into the specification or into the plan's own vectors, which live as long
    // as the plan, or is a constant. Each call is given the length of what it reads, and changes only this process: the
    // descriptors of the guard are not shared with it (no CLONE_FILES).
    unsafe {
        enter(SpawnStage::ExecTimer);
        arm_exec_timer()?;
        enter(SpawnStage::DeathSignal);
        die_with_the_guard(plan)?;
        enter(SpawnStage::JoinCgroup);
        if plan.cgroup_procs >= 0 {
            checked(libc::SYS_write, [plan.cgroup_procs as usize, c"0".as_ptr() as usize, 1])?;
        }
        enter(SpawnStage::CgroupCheck);
        if !is_in_leaf(plan) {
            return Err(libc::ESRCH);
        }
        enter(SpawnStage::ProcessGroup);
        match plan.process_group {
            Some(NEW_SESSION | NEW_TERMINAL | NEW_SESSION_ON_TERMINAL) => checked(libc::SYS_setsid, [])?,
            Some(group) => checked(libc::SYS_setpgid, [0, group as usize])?,
            None => 0,
        };
        enter(SpawnStage::Namespaces);
        // This comes before the namespaces, because /proc can be read-only in them.
        set_oom_score(plan);
        if let Some(sandbox) = &plan.sandbox {
            // This comes before the change of user, because a process of root needs its capabilities to make the
            // namespaces, and before the working directory, because the mounts can cover that directory.
            sandbox.enter(plan.ruleset, plan.tmp_socket)?;
        }
        enter(SpawnStage::WorkingDirectory);
        if plan.cwd_descriptor >= 0 {
            checked(libc::SYS_fchdir, [plan.cwd_descriptor as usize])?;
        }
        if !plan.cwd.is_null() {
            checked(libc::SYS_chdir, [plan.cwd as usize])?;
        }
        enter(SpawnStage::Descriptors);
        for &(source, target) in &plan.descriptors {
            // dup3 refuses two equal numbers. In this case, it is enough to clear the close-on-exec flag (dup(2)).
            if source == target {
                checked(libc::SYS_fcntl, [source as usize, libc::F_SETFD as usize, 0])?;
            } else {
                checked(libc::SYS_dup3, [source as usize, target as usize, 0])?;
            }
        }
        for &number in &plan.closed {
            call(libc::SYS_close, [number as usize]);
        }
        enter(SpawnStage::Terminal);
        // The leader of a session without a terminal acquires one with this call (ioctl_tty(2), TIOCSCTTY).
        match plan.process_group {
            Some(NEW_TERMINAL) => checked(libc::SYS_ioctl, [0, libc::TIOCSCTTY as usize, 0]).map(drop)?,
            // If standard input is not a terminal, or is the terminal of another session, the session stays without a
            // terminal.
            Some(NEW_SESSION_ON_TERMINAL) => {
                call(libc::SYS_ioctl, [0, libc::TIOCSCTTY as usize, 0]);
            }
            _ => {}
        }
        enter(SpawnStage::Limits);
        plan.host.apply()?;
        set_limits(plan)?;
        enter(SpawnStage::User);
        if plan.user.is_some() {
            become_user(plan)?;
            // The kernel has cleared the death signal with the change of credentials (prctl(2)).
            die_with_the_guard(plan)?;
        }
        if plan.sandbox.is_some() {
            enter(SpawnStage::Privileges);
            apply::drop_privileges()?;
            // A new user namespace can clear the death signal too.
            die_with_the_guard(plan)?;
            enter(SpawnStage::Landlock);
            if plan.ruleset >= 0 {
                landlock::restrict_self(plan.ruleset)?;
            }
        }
        for signal in 1..=signal_set::SIGNAL_MAX {
            if plan.ignored & signal_set::bit(signal) != 0 {
                signal_set::set_ignored(signal, true);
            }
        }
        plan.identities.iter_mut().for_each(Variable::write);
        signal_set::set_signal_mask(plan.blocked);
        if let Some(sandbox) = &plan.sandbox {
            enter(SpawnStage::Seccomp);
            // The filters come last, because they forbid system calls that the earlier steps make.
            sandbox.filter(plan.listener)?;
        }
        enter(SpawnStage::Exec);
        Err(execute(plan))
    }
}

/// Makes the kernel send SIGKILL to this process when the guard ends. Returns an error if the guard has ended already.
///
/// # Safety
/// The same as for [`child`].
unsafe fn die_with_the_guard(plan: &Plan) -> Result<(), i32> {
    // SAFETY: PR_SET_PDEATHSIG takes numbers and sets an attribute of this process only; getppid(2) takes nothing.
    unsafe {
        checked(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize, 0, 0, 0])?;
        if call(libc::SYS_getppid, []) as i32 == plan.guard { Ok(()) } else { Err(libc::ESRCH) }
    }
}

/// Sets the value for the OOM killer. This comes before the change of user, because only root may set every value. The
/// kernel also sets the value of other processes that share the memory, but not for a vfork child (`__set_oom_adj` in
/// fs/proc/base.c).
///
/// # Safety
/// The same as for [`child`].
unsafe fn set_oom_score(plan: &Plan) {
    let Some(value) = &plan.oom_score else { return };
    let flags = (libc::O_WRONLY | libc::O_CLOEXEC) as usize;
    // SAFETY: the path is a constant that ends with NUL; the value belongs to the plan and is passed with its length.
    // The descriptor is closed where it was opened. If /proc is not mounted, the job keeps the guard's value.
    unsafe {
        let path = oom_score::FILE.as_ptr() as usize;
        if let Ok(file) = checked(libc::SYS_openat, [libc::AT_FDCWD as usize, path, flags, 0]) {
            call(libc::SYS_write, [file, value.as_ptr() as usize, value.len()]);
            call(libc::SYS_close, [file]);
        }
    }
}

/// Sets resource limits and niceness.
///
/// # Safety
/// The same as for [`child`].
unsafe fn set_limits(plan: &Plan) -> Result<(), i32> {
    for &(resource, rlim_cur, rlim_max) in &plan.rlimits {
        let limit = libc::rlimit64 { rlim_cur, rlim_max };
        // SAFETY: the call changes only this process (prlimit(2) with 0): limits are not part of the shared memory.
        unsafe { checked(libc::SYS_prlimit64, [0, resource as usize, &raw const limit as usize, 0]) }?;
    }
    if let Some(nice) = plan.nice {
        // SAFETY: the number 0 refers to this process.
        unsafe { checked(libc::SYS_setpriority, [libc::PRIO_PROCESS as usize, 0, nice as usize]) }?;
    }
    Ok(())
}

/// Changes to the requested user. The groups come first, since only root may set them.
///
/// # Safety
/// The same as for [`child`].
unsafe fn become_user(plan: &Plan) -> Result<(), i32> {
    let Some((uid, gid, groups)) = &plan.user else { return Ok(()) };
    let (uid, gid) = (*uid as usize, *gid as usize);
    // SAFETY: the list belongs to the plan and is passed with its length; the other calls take numbers. Credentials are
    // an attribute of the calling thread for the kernel (credentials(7)), so the guard keeps its own.
    unsafe {
        checked(libc::SYS_setgroups, [groups.len(), groups.as_ptr() as usize])?;
        checked(libc::SYS_setresgid, [gid, gid, gid])?;
        checked(libc::SYS_setresuid, [uid, uid, uid])?;
    }
    Ok(())
}

/// Returns whether this process is in its leaf. Compares the cgroup's id if the kernel reports it (6.13), otherwise
/// reads `/proc/self/cgroup`. If neither can be read, the result is true, because the clone or the write to
/// `cgroup.procs` has succeeded.
///
/// # Safety
/// The same as for [`child`].
unsafe fn is_in_leaf(plan: &Plan) -> bool {
    let Some((leaf_id, leaf_tail)) = plan.leaf else { return true };
    // SAFETY: descriptors and memory of this process; the tail is a string that the guard keeps.
    unsafe {
        if let Ok(own) = checked(libc::SYS_pidfd_open, [call(libc::SYS_getpid, []) as usize, 0]) {
            let mut info = pidfd::PidfdInfo::requesting_cgroup_id();
            let result = checked(libc::SYS_ioctl, [own, pidfd::PIDFD_GET_INFO as usize, &raw mut info as usize]);
            call(libc::SYS_close, [own]);
            if let Some(id) = result.ok().and_then(|_| info.cgroup_id()) {
                return id == leaf_id;
            }
        }
        is_in_leaf_by_name(leaf_tail)
    }
}

/// Returns whether a line of `/proc/self/cgroup` ends with this text. It is a function of its own, because it needs
/// more of the stack than all other steps together, and each page of the stack that is touched takes time.
///
/// # Safety
/// The same as for [`child`]. `leaf_tail` is valid.
#[inline(never)]
unsafe fn is_in_leaf_by_name(leaf_tail: *const [u8]) -> bool {
    // SAFETY: memory of this process, passed with its length; the tail is a string that the guard keeps.
    unsafe {
        let path = c"/proc/self/cgroup".as_ptr() as usize;
        let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as usize;
        let Ok(file) = checked(libc::SYS_openat, [libc::AT_FDCWD as usize, path, flags, 0]) else { return true };
        let mut text = [0_u8; 8192];
        let mut length = 0;
        while let Ok(read @ 1..) =
            checked(libc::SYS_read, [file, text.as_mut_ptr().add(length) as usize, text.len() - length])
        {
            length += read;
        }
        call(libc::SYS_close, [file]);
        let mut lines = text[..length].split(|&byte| byte == b'\n');
        lines.any(|line| line.starts_with(b"0::") && line.ends_with(&*leaf_tail))
    }
}
