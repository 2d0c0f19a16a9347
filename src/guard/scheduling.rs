//! Shortens the guard's CPU slice, so that the guard runs sooner. The guard works a few microseconds for each job, and
//! the supervisor waits for that. If another process (perhaps a job that the guard has just started) may use the CPU
//! for some milliseconds first, this work is delayed by these milliseconds.
//!
//! EEVDF, the kernel's scheduler, runs a task with a shorter slice sooner, without giving it more CPU time in total
//! (`sched_setattr(2)`, `sched_runtime` of a task that is neither real-time nor deadline: Linux 6.12,
//! kernel/sched/syscalls.c).

#![allow(unsafe_code)]

use std::mem::size_of;

/// The slice in nanoseconds: the minimum that the kernel accepts.
const SHORT: u64 = 100_000;

const SCHED_OTHER: u32 = 0;
const RESET_ON_FORK: u64 = 1;

/// `struct sched_attr` in its first version (include/uapi/linux/sched/types.h).
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Requests the shorter slice. Jobs do not inherit it: SCHED_FLAG_RESET_ON_FORK resets the slice at a fork. This flag
/// would also reset a niceness below 0, so a guard with such a niceness keeps its slice. A guard whose caller has
/// chosen other scheduling attributes also keeps its slice.
pub(super) fn shorten() {
    let (Some(own), Some(usual)) = (read(0), read(1)) else { return };
    // The process with pid 1 shows the usual attributes. An older kernel does not report a slice.
    if own.policy != SCHED_OTHER
        || own.flags != 0
        || own.nice < 0
        || own.runtime != usual.runtime
        || own.runtime <= SHORT
    {
        return;
    }
    let wanted = Attributes { runtime: SHORT, flags: RESET_ON_FORK, ..own };
    // SAFETY: the structure outlives the call. If the call fails, nothing changes.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) };
}

/// Reads the attributes of a process; `pid` 0 is this process.
fn read(pid: i32) -> Option<Attributes> {
    let mut attributes = Attributes::default();
    let size = size_of::<Attributes>();
    // SAFETY: the kernel writes at most `size` bytes.
    let done = unsafe { libc::syscall(libc::SYS_sched_getattr, pid, &raw mut attributes, size, 0) };
    (done == 0).then_some(attributes)
}
