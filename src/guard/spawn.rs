//! The spawn path: from a specification to a process that executes the command inside its leaf.
//!
//! The child shares the guard's memory (`CLONE_VM`) and the guard stands still until it executes or ends
//! (`CLONE_VFORK`): no page tables are copied, and what went wrong is told through that memory. So the child
//! calls nothing but the kernel, allocates nothing, and runs on a stack of its own.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_getfd};

use super::protocol::Spec;
use crate::error::SpawnStage;
use crate::pidfd::Pidfd;
use crate::sys;

/// An exec that has not finished by then is ended: a binary on a dead network file system would block the guard.
const EXEC_BOUND: Duration = Duration::from_secs(10);

/// A process that was made.
pub struct Spawned {
    pub pid: i32,
    pub pidfd: Pidfd,
    /// Whether it ran at all before it ended.
    pub started: bool,
}

/// Why there is none.
#[derive(Debug, Clone, Copy)]
pub struct Failure {
    pub stage: SpawnStage,
    pub errno: Errno,
}

impl Failure {
    pub fn new(stage: SpawnStage, errno: Errno) -> Self {
        Self { stage, errno }
    }
}

/// Where the process is to be born.
#[derive(Clone, Copy)]
pub struct Destination<'a> {
    /// The leaf's directory.
    pub leaf: BorrowedFd<'a>,
    /// The last two parts of its path.
    pub tail: &'a str,
    /// Join the leaf in the child, instead of being cloned into it.
    pub join: bool,
}

/// Everything that the child needs, made ready before it exists.
struct Plan {
    guard: i32,
    cgroup_procs: RawFd,
    process_group: Option<i32>,
    /// The leaf's id, and the end of the line that `/proc/self/cgroup` has for it.
    leaf_id: u64,
    leaf_tail: *const [u8],
    cwd_descriptor: RawFd,
    cwd: *const c_char,
    /// (descriptor here, number in the job); no source is any target.
    descriptors: Vec<(RawFd, RawFd)>,
    /// Standard descriptors to leave closed.
    closed: Vec<RawFd>,
    open_files: libc::rlimit64,
    blocked: u64,
    ignored: u64,
    candidates: Vec<*const c_char>,
    /// A free slot, the arguments, null: `/bin/sh` goes into the slot for a script without `#!`.
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    outcome: Outcome,
}

/// What the child tells. It is the same memory on both sides.
#[derive(Default)]
struct Outcome {
    started: AtomicBool,
    stage: AtomicI32,
    errno: AtomicI32,
}

/// Makes the process. With a `CLONE_INTO_CGROUP` that is refused for what it is, and not for where it goes,
/// this is `Err(None)`: try again with `join`.
pub fn spawn(
    spec: &Spec<'_>,
    destination: Destination<'_>,
    descriptors: &[OwnedFd],
    stack: &Stack,
) -> Result<Spawned, Option<Failure>> {
    let procs = if destination.join {
        let file = openat(destination.leaf, c"cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        Some(file.map_err(|errno| Failure::new(SpawnStage::JoinCgroup, errno))?)
    } else {
        None
    };
    let (cwd_descriptor, descriptors) = match descriptors {
        [cwd, rest @ ..] if spec.has_cwd_descriptor => (cwd.as_raw_fd(), rest),
        all => (-1, all),
    };
    let (_moved, sources) = away_from(&spec.targets, descriptors)?;

    let mut argv = vec![null()];
    argv.extend(pointers(&spec.argv)?);
    argv.push(null());
    let mut env = pointers(&spec.env)?;
    env.push(null());
    let mut plan = Plan {
        guard: rustix::process::getpid().as_raw_nonzero().get(),
        cgroup_procs: procs.as_ref().map_or(-1, AsRawFd::as_raw_fd),
        process_group: spec.process_group,
        leaf_id: rustix::fs::fstat(destination.leaf).map_err(|errno| Failure::new(SpawnStage::Proof, errno))?.st_ino,
        leaf_tail: std::ptr::from_ref(destination.tail.as_bytes()),
        cwd_descriptor,
        cwd: match spec.cwd {
            Some(path) => pointers(&[path])?[0],
            None => null(),
        },
        descriptors: sources.into_iter().zip(spec.targets.iter().copied()).collect(),
        closed: (0..3).filter(|number| !spec.targets.contains(number)).collect(),
        open_files: libc::rlimit64 { rlim_cur: spec.open_files.0, rlim_max: spec.open_files.1 },
        blocked: spec.blocked,
        ignored: spec.ignored,
        candidates: pointers(&spec.candidates)?,
        argv,
        env,
        outcome: Outcome::default(),
    };

    let begun = Instant::now();
    let (pid, pidfd) = clone::clone_into(destination, stack, &mut plan).map_err(|errno| {
        let refused_call = matches!(errno, Errno::NOSYS | Errno::PERM | Errno::INVAL | Errno::TOOBIG);
        (destination.join || !refused_call).then(|| Failure::new(SpawnStage::Clone, errno))
    })?;
    let spawned = Spawned { pid, pidfd: pidfd.into(), started: plan.outcome.started.load(Ordering::Acquire) };
    let errno = plan.outcome.errno.load(Ordering::Acquire);
    if errno != 0 {
        reap(pid);
        return Err(Some(Failure::new(
            stage(plan.outcome.stage.load(Ordering::Acquire)),
            Errno::from_raw_os_error(errno),
        )));
    }
    if begun.elapsed() >= EXEC_BOUND && spawned.pidfd.has_ended() {
        reap(pid);
        return Err(Some(Failure::new(SpawnStage::Exec, Errno::TIMEDOUT)));
    }
    Ok(spawned)
}

/// Reaps a child of ours that has ended or is about to (it told so).
pub fn reap(pid: i32) {
    // SAFETY: waits for our own child; no status is asked for.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) } == -1
        && Errno::from_io_error(&std::io::Error::last_os_error()) == Some(Errno::INTR)
    {}
}

/// Pointers to strings that live as long as the specification, each proven to end with its only NUL.
fn pointers(strings: &[&serde_bytes::Bytes]) -> Result<Vec<*const c_char>, Failure> {
    strings
        .iter()
        .map(|bytes| {
            CStr::from_bytes_with_nul(bytes)
                .map(CStr::as_ptr)
                .map_err(|_| Failure::new(SpawnStage::Specification, Errno::INVAL))
        })
        .collect()
}

/// Moves each descriptor that has the number of a target elsewhere, so that none is overwritten before its turn and
/// dup2 always makes one without close-on-exec.
fn away_from(targets: &[RawFd], descriptors: &[OwnedFd]) -> Result<(Vec<OwnedFd>, Vec<RawFd>), Failure> {
    let failed = |errno| Failure::new(SpawnStage::Descriptors, errno);
    if targets.len() != descriptors.len() {
        return Err(Failure::new(SpawnStage::Specification, Errno::INVAL));
    }
    let mut moved = Vec::new();
    let mut sources = Vec::with_capacity(descriptors.len());
    for descriptor in descriptors {
        debug_assert!(fcntl_getfd(descriptor).is_ok_and(|flags| flags.contains(FdFlags::CLOEXEC)));
        let mut number = descriptor.as_raw_fd();
        while targets.contains(&number) {
            let copy = fcntl_dupfd_cloexec(descriptor, number + 1).map_err(failed)?;
            number = copy.as_raw_fd();
            moved.push(copy);
        }
        sources.push(number);
    }
    Ok((moved, sources))
}

const STAGES: [SpawnStage; 10] = [
    SpawnStage::Clone,
    SpawnStage::Proof,
    SpawnStage::JoinCgroup,
    SpawnStage::ProcessGroup,
    SpawnStage::WorkingDirectory,
    SpawnStage::Descriptors,
    SpawnStage::Limits,
    SpawnStage::ExecTimer,
    SpawnStage::DeathSignal,
    SpawnStage::Exec,
];

fn stage(number: i32) -> SpawnStage {
    STAGES.get(number as usize).copied().unwrap_or(SpawnStage::Clone)
}

/// The child's whole life before the command. Never returns.
///
/// # Safety
/// Runs in the new process, on the plan that the suspended guard owns.
unsafe extern "C" fn child(plan: *mut Plan) -> ! {
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
        if let Some(group) = plan.process_group
            && libc::setpgid(0, group) != 0
        {
            return (SpawnStage::ProcessGroup, errno());
        }
        if plan.cwd_descriptor >= 0 && libc::fchdir(plan.cwd_descriptor) != 0 {
            return (SpawnStage::WorkingDirectory, errno());
        }
        if !plan.cwd.is_null() && libc::chdir(plan.cwd) != 0 {
            return (SpawnStage::WorkingDirectory, errno());
        }
        for &(source, target) in &plan.descriptors {
            if libc::dup2(source, target) == -1 {
                return (SpawnStage::Descriptors, errno());
            }
        }
        for &number in &plan.closed {
            libc::close(number);
        }
        if libc::setrlimit64(libc::RLIMIT_NOFILE, &plan.open_files) != 0 {
            return (SpawnStage::Limits, errno());
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

/// Whether this process is in its leaf: by the cgroup's id where the kernel tells (6.13), else by `/proc/self/cgroup`. Without
/// that, what the kernel has answered to the clone or to the write has to do.
///
/// # Safety
/// As [`child`].
unsafe fn is_in_leaf(plan: &Plan) -> bool {
    // SAFETY: descriptors and memory of our own; the tail is a string that the guard keeps.
    unsafe {
        let own = libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) as i32;
        if own >= 0 {
            let id = sys::pidfd_cgroup_id(BorrowedFd::borrow_raw(own));
            libc::close(own);
            if let Some(id) = id {
                return id == plan.leaf_id;
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
        lines.any(|line| line.starts_with(b"0::") && line.ends_with(&*plan.leaf_tail))
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
        bound.it_value.tv_sec = EXEC_BOUND.as_secs() as libc::time_t;
        if libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const bound, null::<libc::itimerspec>()) != 0 {
            return Err(*libc::__errno_location());
        }
        Ok(())
    }
}

/// The stack that children run on until they execute: one at a time, since the guard stands still meanwhile.
pub struct Stack {
    lowest: *mut libc::c_void,
}

const STACK_SIZE: usize = 64 * 1024;
const STACK_GUARD: usize = 64 * 1024;

impl Stack {
    pub fn new() -> rustix::io::Result<Self> {
        // SAFETY: a fresh private mapping; its lowest pages stay inaccessible.
        unsafe {
            let lowest = libc::mmap(
                std::ptr::null_mut(),
                STACK_GUARD + STACK_SIZE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
                -1,
                0,
            );
            if lowest == libc::MAP_FAILED {
                return Err(Errno::NOMEM);
            }
            let usable = lowest.byte_add(STACK_GUARD);
            if libc::mprotect(usable, STACK_SIZE, libc::PROT_READ | libc::PROT_WRITE) != 0 {
                return Err(Errno::NOMEM);
            }
            Ok(Self { lowest: usable })
        }
    }
}

mod clone {
    use super::{AsRawFd, BorrowedFd, Destination, Errno, FromRawFd, OwnedFd, Plan, STACK_SIZE, Stack, child};

    /// `struct clone_args` of clone3(2), with the cgroup field of Linux 5.7.
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }

    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    const VFORK: u64 = (libc::CLONE_VM | libc::CLONE_VFORK) as u64;

    /// clone3 straight into the leaf, or the older clone for a child that joins it.
    pub fn clone_into(destination: Destination<'_>, stack: &Stack, plan: &mut Plan) -> Result<(i32, OwnedFd), Errno> {
        let mut pidfd = -1_i32;
        let result = if destination.join {
            clone_plain(&mut pidfd, stack, plan)
        } else {
            clone3(destination.leaf, &mut pidfd, stack, plan)
        };
        if result < 0 {
            return Err(Errno::from_raw_os_error(-result as i32));
        }
        // SAFETY: the kernel has just made it for us (CLONE_PIDFD).
        Ok((result as i32, unsafe { OwnedFd::from_raw_fd(pidfd) }))
    }

    fn clone3(leaf: BorrowedFd<'_>, pidfd: &mut i32, stack: &Stack, plan: &mut Plan) -> isize {
        let mut args = CloneArgs {
            flags: VFORK | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND | CLONE_INTO_CGROUP,
            pidfd: std::ptr::from_mut(pidfd) as u64,
            exit_signal: libc::SIGCHLD as u64,
            stack: stack.lowest as u64,
            stack_size: STACK_SIZE as u64,
            cgroup: leaf.as_raw_fd() as u64,
            ..CloneArgs::default()
        };
        // SAFETY: the child runs `child` on its own stack and never comes back here; the guard stands still
        // until then (CLONE_VFORK), so `plan`, `args` and the stack outlive its use of them.
        unsafe { raw(libc::SYS_clone3, &raw mut args as usize, size_of::<CloneArgs>(), 0, plan) }
    }

    /// clone(2), Linux 5.2 for CLONE_PIDFD. The guard has no signal handlers that would have to be cleared.
    fn clone_plain(pidfd: &mut i32, stack: &Stack, plan: &mut Plan) -> isize {
        let flags = VFORK | libc::CLONE_PIDFD as u64 | libc::SIGCHLD as u64;
        // SAFETY: as in clone3; the stack pointer is the stack's upper end.
        unsafe {
            let top = stack.lowest.byte_add(STACK_SIZE);
            raw(libc::SYS_clone, flags as usize, top as usize, std::ptr::from_mut(pidfd) as usize, plan)
        }
    }

    /// The system call, and in the child a call of [`child`]: nothing may run on the guard's stack in between.
    ///
    /// # Safety
    /// The arguments must give the child a stack of its own and suspend the caller (CLONE_VM | CLONE_VFORK).
    #[cfg(target_arch = "x86_64")]
    unsafe fn raw(number: libc::c_long, first: usize, second: usize, third: usize, plan: *mut Plan) -> isize {
        let result: isize;
        // SAFETY: the kernel keeps all registers but rax, rcx and r11; r8 (tls of clone without CLONE_SETTLS) is
        // not read; the child never leaves `child`.
        unsafe {
            std::arch::asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                "xor ebp, ebp",
                "mov rdi, r8",
                "call r9",
                "ud2",
                "2:",
                inlateout("rax") number as isize => result,
                in("rdi") first,
                in("rsi") second,
                in("rdx") third,
                in("r10") 0_usize,
                in("r8") plan,
                in("r9") child as unsafe extern "C" fn(*mut Plan) -> !,
                lateout("rcx") _,
                lateout("r11") _,
            );
        }
        result
    }

    /// As above.
    ///
    /// # Safety
    /// As above.
    #[cfg(target_arch = "aarch64")]
    unsafe fn raw(number: libc::c_long, first: usize, second: usize, third: usize, plan: *mut Plan) -> isize {
        let result: isize;
        // SAFETY: the kernel keeps all registers but x0; x3 and x4 (tls and child_tid of clone) are not read without
        // their flags; the child never leaves `child`.
        unsafe {
            std::arch::asm!(
                "svc #0",
                "cbnz x0, 2f",
                "mov x29, xzr",
                "mov x30, xzr",
                "mov x0, x5",
                "blr x6",
                "brk #1",
                "2:",
                in("x8") number,
                inlateout("x0") first as isize => result,
                in("x1") second,
                in("x2") third,
                in("x3") 0_usize,
                in("x4") 0_usize,
                in("x5") plan,
                in("x6") child as unsafe extern "C" fn(*mut Plan) -> !,
            );
        }
        result
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    compile_error!("pinfold's spawn path is written for x86-64 and aarch64");
}
