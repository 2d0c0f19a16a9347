//! The kernel calls that rustix lacks, each with its safety argument. Every function here is safe to call.
//!
//! Signal sets are plain bit masks (`1 << (signal - 1)`), as in `/proc/PID/status`: glibc's `sigset_t` functions
//! silently leave out signals 32 and 33. These signals would then end pinfold while the job goes on.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::io::{Errno, Result};

/// The highest signal number of Linux (signal(7)).
pub const SIGNAL_MAX: i32 = 64;

/// Every signal that can be blocked; the kernel itself removes SIGKILL and SIGSTOP from the set.
pub const ALL_SIGNALS: u64 = u64::MAX;

/// Returns the bit of `signal` in a signal set.
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

/// Returns the signal mask of the calling thread.
pub fn signal_mask() -> u64 {
    let mut old = 0_u64;
    // SAFETY: with a null new set the call only reads; `old` is as large as the size that is passed.
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
    // SAFETY: `set` is as large as the size that is passed; the old set is not requested.
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

/// Returns whether this process ignores `signal`.
pub fn is_ignored(signal: i32) -> bool {
    let mut old = KernelSigaction::default();
    // SAFETY: with a null new action the call only reads; `old` has the kernel's layout.
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

/// Makes this process ignore `signal`, or sets the signal's default action.
pub fn set_ignored(signal: i32, ignored: bool) {
    let new =
        KernelSigaction { handler: if ignored { libc::SIG_IGN } else { libc::SIG_DFL }, ..KernelSigaction::default() };
    // SAFETY: SIG_IGN and SIG_DFL install no handler code; `new` has the kernel's layout.
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

/// Returns the set of signals that this process ignores.
pub fn ignored_signals() -> u64 {
    (1..=SIGNAL_MAX).filter(|&signal| is_ignored(signal)).fold(0, |set, signal| set | bit(signal))
}

/// Returns a non-blocking, close-on-exec signalfd for `set` (signalfd(2)). The signals must be blocked.
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

/// Reads one signal from a signalfd. Returns `None` if no signal is queued now.
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

/// Converts a timeout to the kernel's form. A timeout that is too long for it becomes the longest possible one.
pub fn timespec(time: Duration) -> Timespec {
    Timespec::try_from(time).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
}

/// Sends a signal, which may be a real-time signal, through a pidfd (pidfd_send_signal(2)). Signal 0 only checks
/// whether the process can be signalled.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: no siginfo is passed; the descriptor is borrowed for the call.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    })
    .map(drop)
}

/// Sends `signal` to this process.
#[cfg(feature = "cli")]
pub fn raise(signal: i32) {
    // SAFETY: kill(2) has no memory obligations.
    unsafe { libc::kill(libc::getpid(), signal) };
}

/// The process in which [`fork_single_threaded`] has returned.
pub enum Fork {
    /// The new process.
    Child,
    /// The caller, with the new process's id.
    Parent(rustix::process::Pid),
}

/// Forks this process (fork(2)). Fails with `EBUSY` if this process has more than one thread: the child would have only
/// the calling thread, and locks of the other threads would stay locked for ever.
pub fn fork_single_threaded() -> Result<Fork> {
    // SAFETY: the call changes nothing in a process with one thread, and fails with EINVAL in any other (unshare(2)).
    let alone = match check(libc::c_long::from(unsafe { libc::unshare(libc::CLONE_THREAD) })) {
        Ok(_) => true,
        Err(Errno::INVAL) => false,
        // A container's seccomp profile refuses the call.
        Err(_) => std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1),
    };
    if !alone {
        return Err(Errno::BUSY);
    }
    // SAFETY: this process has one thread, so the child is a complete copy.
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

/// Closes every descriptor except the standard ones and `kept`, which becomes number 3 (close_range(2), Linux 5.9; one
/// by one before that). Only for a process that drops no owner of a descriptor any more: a guard that has just started.
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

/// Returns the process group of this process, or `None` if the group is from outside of its PID namespace (getpgrp(2)
/// returns 0).
pub fn own_process_group() -> Option<i32> {
    // SAFETY: getpgrp(2) has no obligations.
    Some(unsafe { libc::getpgrp() }).filter(|&group| group > 0)
}

/// Returns the process group of a process; 0 if the group is from outside of the caller's PID namespace, -1 if the
/// process does not exist.
pub fn process_group_of(pid: rustix::process::Pid) -> i32 {
    // SAFETY: getpgid(2) has no obligations.
    unsafe { libc::getpgid(pid.as_raw_nonzero().get()) }
}

/// Returns the soft and the hard limit on `resource` (`RLIMIT_…`, getrlimit(2)); `None` if a seccomp profile refuses
/// the call.
pub fn limit(resource: impl Into<i64>) -> Option<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure outlives the call.
    let done = unsafe { libc::getrlimit64(resource.into() as _, &mut limit) };
    (done == 0).then_some((limit.rlim_cur, limit.rlim_max))
}

/// Raises the soft limit on `resource` to `wanted` if it is lower. If the hard limit is lower too, this raises both
/// limits if this process may do that (CAP_SYS_RESOURCE), and otherwise raises the soft limit up to the hard one.
pub fn raise_limit(resource: impl Into<i64>, wanted: u64) {
    let resource = resource.into();
    let Some((soft, hard)) = limit(resource) else { return };
    let set = |soft, hard| {
        let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
        // SAFETY: the structure outlives the call. If the call is refused, the limit stays as it was.
        unsafe { libc::setrlimit64(resource as _, &limit) == 0 }
    };
    if soft < wanted && (hard >= wanted || !set(wanted, wanted)) {
        set(hard.min(wanted), hard);
    }
}

/// Raises the limit on open files, which is also the limit on their numbers: jobs may use numbers beyond the limit that
/// this process inherited.
pub fn raise_open_files_limit() {
    // The usual value of fs.nr_open, beyond which no process may raise the limit (proc_sys_fs(5)).
    const NR_OPEN: u64 = 1 << 20;
    let hard = limit(libc::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    raise_limit(libc::RLIMIT_NOFILE, hard.max(NR_OPEN));
}

/// Sets the name that `ps -o comm` shows, of at most 15 bytes (PR_SET_NAME, prctl(2)).
pub fn set_name(name: &str) {
    let mut bytes = [0_u8; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    // SAFETY: the name has 16 bytes and ends with NUL.
    unsafe { libc::prctl(libc::PR_SET_NAME, bytes.as_ptr()) };
}

/// Makes `source` available as descriptor `target`, which exec keeps open (dup2(2)). `target` is 0, 1 or 2: no value in
/// this program owns these.
pub fn dup_to_stdio(source: BorrowedFd<'_>, target: i32) -> Result<()> {
    debug_assert!((0..3).contains(&target));
    // SAFETY: the standard descriptors are owned by no `OwnedFd`.
    check(libc::c_long::from(unsafe { libc::dup2(source.as_raw_fd(), target) })).map(drop)
}

/// Takes ownership of the inherited descriptor `number`.
///
/// Fails with `EBADF` if it is not open. Call this once for each number, before any other value could own the
/// descriptor.
#[cfg(feature = "cli")]
pub fn adopt_fd(number: i32) -> Result<OwnedFd> {
    // SAFETY: F_GETFD only reads.
    check(libc::c_long::from(unsafe { libc::fcntl(number, libc::F_GETFD) }))?;
    // SAFETY: the descriptor is open, exec kept it open for this process, and the caller adopts it once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Borrows a descriptor by number for as long as the process lives. Returns `None` if it is closed.
///
/// For descriptors that exec kept open for this process and that no code of this process closes.
pub fn inherited_fd(number: i32) -> Option<BorrowedFd<'static>> {
    // SAFETY: F_GETFD only reads.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    // SAFETY: the descriptor is open; the comment of this function says for how long.
    (flags != -1).then(|| unsafe { BorrowedFd::borrow_raw(number) })
}

/// Does the same as [`inherited_fd`], but also returns `None` if the descriptor has the close-on-exec flag.
pub fn inherited_fd_kept_at_exec(number: i32) -> Option<BorrowedFd<'static>> {
    // SAFETY: as in `inherited_fd`.
    unsafe {
        let flags = libc::fcntl(number, libc::F_GETFD);
        (flags != -1 && flags & libc::FD_CLOEXEC == 0).then(|| BorrowedFd::borrow_raw(number))
    }
}

/// Returns whether both descriptors refer to one open file (kcmp(2)). Fails with `ENOSYS` if the kernel lacks the call,
/// and with `ENOSYS` or `EPERM` if a seccomp filter refuses it.
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
    /// Returns a structure that requests the cgroup's id from the kernel.
    pub fn asking_for_cgroup() -> Self {
        Self { mask: PIDFD_INFO_CGROUPID, cgroup_id: 0, ids: [0; 12] }
    }

    /// Returns the id of the process's cgroup, if the kernel has filled it in.
    pub fn cgroup_id(&self) -> Option<u64> {
        (self.mask & PIDFD_INFO_CGROUPID != 0 && self.cgroup_id != 0).then_some(self.cgroup_id)
    }
}

const PIDFD_INFO_CGROUPID: u64 = 1 << 2;
/// `_IOWR(0xFF, 11, struct pidfd_info)`.
pub const PIDFD_GET_INFO: libc::c_ulong = (3 << 30) | (64 << 16) | (0xFF << 8) | 11;

/// Returns the id of the process's cgroup (the inode number of its directory), if the kernel reports it
/// (`PIDFD_GET_INFO`, Linux 6.13).
pub fn pidfd_cgroup_id(pidfd: BorrowedFd<'_>) -> Option<u64> {
    let mut info = PidfdInfo::asking_for_cgroup();
    // SAFETY: the structure has 64 bytes, the size in the request number; older kernels return ENOTTY or EINVAL.
    let done = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    if done == 0 { info.cgroup_id() } else { None }
}

/// Prevents the kernel from choosing `port` as the local port of the socket (`IP_LOCAL_PORT_RANGE` in ip(7), Linux 6.3;
/// also for IPv6). The kernel chooses local ports from `first` to `last` only, so a `port` outside of that range needs
/// nothing.
pub fn leave_out_local_port(socket: impl AsFd, port: u16, (first, last): (u16, u16)) -> Result<()> {
    /// include/uapi/linux/in.h.
    const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
    if !(first..=last).contains(&port) {
        return Ok(());
    }
    // The high 16 bits are the last port, the low 16 bits the first one; 0 leaves that end of the range as it is. Of
    // the ports below and above `port`, the larger part is used.
    let range = if port - first > last - port { u32::from(port - 1) << 16 } else { u32::from(port) + 1 };
    // SAFETY: the value is as large as the length that is passed, and the call only reads it.
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
