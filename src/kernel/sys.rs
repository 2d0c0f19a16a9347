//! The kernel calls that rustix lacks, each with its obligation. Everything here is safe to call.
//!
//! Signal sets are plain bit masks (`1 << (signal - 1)`), as in `/proc/PID/status`: glibc's `sigset_t`
//! functions silently leave out signals 32 and 33, which would then end pinfold and leave the job.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::io::{Errno, Result};

/// Highest signal number of Linux (signal(7)).
pub const SIGNAL_MAX: i32 = 64;

/// Every signal that can be blocked; the kernel itself leaves SIGKILL and SIGSTOP out.
pub const ALL_SIGNALS: u64 = u64::MAX;

/// The bit of `signal` in a signal set.
#[must_use]
pub const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

fn check(value: libc::c_long) -> Result<libc::c_long> {
    if value == -1 { Err(last_errno()) } else { Ok(value) }
}

pub fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The signal mask of the calling thread.
pub fn signal_mask() -> u64 {
    let mut old = 0_u64;
    // SAFETY: a null new set only reads; `old` is as large as the size that is passed.
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
    // SAFETY: `set` is as large as the size that is passed; no old set is asked for.
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

/// Whether `signal` is ignored by this process.
pub fn is_ignored(signal: i32) -> bool {
    let mut old = KernelSigaction::default();
    // SAFETY: a null new action only reads; `old` has the kernel's layout.
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

/// Sets `signal` to be ignored, or to its default action.
pub fn set_ignored(signal: i32, ignored: bool) {
    let new =
        KernelSigaction { handler: if ignored { libc::SIG_IGN } else { libc::SIG_DFL }, ..KernelSigaction::default() };
    // SAFETY: SIG_IGN and SIG_DFL install no code of ours; `new` has the kernel's layout.
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

/// The set of signals that this process ignores.
pub fn ignored_signals() -> u64 {
    (1..=SIGNAL_MAX).filter(|&signal| is_ignored(signal)).fold(0, |set, signal| set | bit(signal))
}

/// A non-blocking, close-on-exec signalfd for `set` (signalfd(2)). The signals must be blocked.
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

/// One signal read from a signalfd, or `None` when there is none now.
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

/// A timeout as the kernel takes it; beyond what that can hold, the longest there is.
pub fn timespec(time: Duration) -> Timespec {
    Timespec::try_from(time).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
}

/// Sends a signal, real-time ones included, through a pidfd (pidfd_send_signal(2)). Signal 0 only checks.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: no siginfo is passed; the descriptor is borrowed for the call.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    })
    .map(drop)
}

/// Sends `signal` to this very process.
pub fn raise(signal: i32) {
    // SAFETY: kill(2) has no memory obligations.
    unsafe { libc::kill(libc::getpid(), signal) };
}

/// Which side of [`fork_single_threaded`] this is.
pub enum Fork {
    /// The new process.
    Child,
    /// The caller, with the new process's id.
    Parent(rustix::process::Pid),
}

/// fork(2), refused with `EBUSY` where this process has a second thread: the child would have only
/// the calling one, with the locks of the others held for ever.
pub fn fork_single_threaded() -> Result<Fork> {
    // SAFETY: it changes nothing where there is one thread, and is refused with EINVAL elsewhere (unshare(2)).
    let alone = match check(libc::c_long::from(unsafe { libc::unshare(libc::CLONE_THREAD) })) {
        Ok(_) => true,
        Err(Errno::INVAL) => false,
        // Refused by a container's seccomp profile.
        Err(_) => std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1),
    };
    if !alone {
        return Err(Errno::BUSY);
    }
    // SAFETY: this process has one thread, so the child has the whole of it.
    let pid = check(libc::c_long::from(unsafe { libc::fork() }))?;
    Ok(match rustix::process::Pid::from_raw(pid as i32) {
        None => Fork::Child,
        Some(pid) => Fork::Parent(pid),
    })
}

/// Ends this process at once, without `atexit` handlers or destructors.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) has no obligations.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor but the standard ones and `kept`, which becomes number 3 (close_range(2), Linux 5.9;
/// one by one before that). Only for a process that drops nothing any more: a guard that just started.
pub fn keep_only(kept: OwnedFd) -> Result<OwnedFd> {
    // SAFETY: whatever owned the descriptors from 3 on is never dropped in this process.
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

/// The process group of this process, or `None` where it is one from outside of its PID namespace (getpgrp(2) says 0).
pub fn own_process_group() -> Option<i32> {
    // SAFETY: getpgrp(2) has no obligations.
    Some(unsafe { libc::getpgrp() }).filter(|&group| group > 0)
}

/// The process group of a process; 0 where it is one from outside of our PID namespace, -1 where there is no such process.
pub fn process_group_of(pid: rustix::process::Pid) -> i32 {
    // SAFETY: getpgid(2) has no obligations.
    unsafe { libc::getpgid(pid.as_raw_nonzero().get()) }
}

/// Soft and hard limit on `resource` (`RLIMIT_…`, getrlimit(2)), unless a seccomp profile keeps them from us.
pub fn limit(resource: impl Into<i64>) -> Option<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure outlives the call.
    let done = unsafe { libc::getrlimit64(resource.into() as _, &mut limit) };
    (done == 0).then_some((limit.rlim_cur, limit.rlim_max))
}

/// Raises the soft limit on `resource` to `wanted` where it is lower: beyond the hard one where this process may raise that
/// (CAP_SYS_RESOURCE), else up to it.
pub fn raise_limit(resource: impl Into<i64>, wanted: u64) {
    let resource = resource.into();
    let Some((soft, hard)) = limit(resource) else { return };
    let set = |soft, hard| {
        let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
        // SAFETY: the structure outlives the call. Where it is refused the limit stays.
        unsafe { libc::setrlimit64(resource as _, &limit) == 0 }
    };
    if soft < wanted && (hard >= wanted || !set(wanted, wanted)) {
        set(hard.min(wanted), hard);
    }
}

/// Raises the limit on open files, and so on their numbers: those of jobs may be beyond the limit of whoever started us.
pub fn raise_open_files_limit() {
    // Beyond this nobody may go, as it is usually set (fs.nr_open, proc_sys_fs(5)).
    const NR_OPEN: u64 = 1 << 20;
    let hard = limit(libc::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    raise_limit(libc::RLIMIT_NOFILE, hard.max(NR_OPEN));
}

/// Sets the name that `ps -o comm` shows, of at most 15 bytes (PR_SET_NAME, prctl(2)).
pub fn set_name(name: &str) {
    let mut bytes = [0_u8; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    // SAFETY: 16 bytes that end with NUL.
    unsafe { libc::prctl(libc::PR_SET_NAME, bytes.as_ptr()) };
}

/// Makes `source` available as descriptor `target`, kept across exec (dup2(2)). `target` is 0, 1 or 2,
/// which nobody owns.
pub fn dup_to_stdio(source: BorrowedFd<'_>, target: i32) -> Result<()> {
    debug_assert!((0..3).contains(&target));
    // SAFETY: the standard descriptors are owned by no `OwnedFd`.
    check(libc::c_long::from(unsafe { libc::dup2(source.as_raw_fd(), target) })).map(drop)
}

/// The descriptor that this process was handed under `number`, as ours.
///
/// `EBADF` where there is none. Call it once per number, before anything else could own it.
pub fn adopt_fd(number: i32) -> Result<OwnedFd> {
    // SAFETY: F_GETFD only reads.
    check(libc::c_long::from(unsafe { libc::fcntl(number, libc::F_GETFD) }))?;
    // SAFETY: it is open, came with the exec, and the caller adopts it once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Borrows a descriptor by number for as long as the process lives, or `None` where it is closed.
///
/// For the descriptors that came with the exec of this process and that nobody closes.
pub fn inherited_fd(number: i32) -> Option<BorrowedFd<'static>> {
    // SAFETY: F_GETFD only reads.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    // SAFETY: it is open; see above for how long.
    (flags != -1).then(|| unsafe { BorrowedFd::borrow_raw(number) })
}

/// The same, `None` also where it is closed at exec.
pub fn inherited_fd_kept_at_exec(number: i32) -> Option<BorrowedFd<'static>> {
    // SAFETY: as above.
    unsafe {
        let flags = libc::fcntl(number, libc::F_GETFD);
        (flags != -1 && flags & libc::FD_CLOEXEC == 0).then(|| BorrowedFd::borrow_raw(number))
    }
}

/// Whether both are one open file (kcmp(2)). `ENOSYS` or `EPERM` where the kernel or a seccomp filter has no such call.
pub fn are_one_open_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool> {
    /// `KCMP_FILE` (include/uapi/linux/kcmp.h).
    const FILE: libc::c_int = 0;
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let [one, other] = [one, other].map(|fd| fd.as_raw_fd() as libc::c_ulong);
    // SAFETY: kcmp(2) touches no memory of this process; the descriptors are borrowed for the call.
    check(unsafe { libc::syscall(libc::SYS_kcmp, own, own, FILE, one, other) }).map(|order| order == 0)
}

/// `struct pidfd_info` of Linux 6.13 (include/uapi/linux/pidfd.h), version 0.
#[repr(C)]
pub struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    ids: [u32; 12],
}

impl PidfdInfo {
    /// As a question for the cgroup's id.
    pub fn asking_for_cgroup() -> Self {
        Self { mask: PIDFD_INFO_CGROUPID, cgroup_id: 0, ids: [0; 12] }
    }

    /// As an answer: the id of the process's cgroup.
    pub fn cgroup_id(&self) -> Option<u64> {
        (self.mask & PIDFD_INFO_CGROUPID != 0 && self.cgroup_id != 0).then_some(self.cgroup_id)
    }
}

const PIDFD_INFO_CGROUPID: u64 = 1 << 2;
/// `_IOWR(0xFF, 11, struct pidfd_info)`.
pub const PIDFD_GET_INFO: libc::c_ulong = (3 << 30) | (64 << 16) | (0xFF << 8) | 11;

/// The id of the cgroup (the inode number of its directory) that the process is in, where the kernel
/// tells (`PIDFD_GET_INFO`, Linux 6.13).
pub fn pidfd_cgroup_id(pidfd: BorrowedFd<'_>) -> Option<u64> {
    let mut info = PidfdInfo::asking_for_cgroup();
    // SAFETY: the structure is 64 bytes as the request number says; other kernels answer ENOTTY or EINVAL.
    let done = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    if done == 0 { info.cgroup_id() } else { None }
}

/// Never gives the socket this port as its own, of the `first` to the `last` that it may be given (`IP_LOCAL_PORT_RANGE` in ip(7),
/// Linux 6.3; also for IPv6). Others than these no socket is given.
pub fn leave_out_local_port(socket: impl AsFd, port: u16, (first, last): (u16, u16)) -> Result<()> {
    /// include/uapi/linux/in.h.
    const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
    if !(first..=last).contains(&port) {
        return Ok(());
    }
    // The last port in the high 16 bits, the first one in the low ones; 0 where it stays as it is. The larger side of the two.
    let range = if port - first > last - port { u32::from(port - 1) << 16 } else { u32::from(port) + 1 };
    // SAFETY: the value is as large as the length that is passed, and only read.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            IP_LOCAL_PORT_RANGE,
            (&raw const range).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    check(libc::c_long::from(done)).map(drop)
}
