//! The guard's share of a CPU: short and soon. It has a few microseconds to do for each job, which a supervisor waits for; behind
//! a process that may run for some milliseconds, a job that it has just started perhaps, these would be as long.
//!
//! EEVDF, the kernel's scheduler, takes a shorter slice as the wish to run sooner, and gives no more time for it
//! (`sched_setattr(2)`, `sched_runtime` of a task that is neither real-time nor deadline: Linux 6.12, kernel/sched/syscalls.c).

#![allow(unsafe_code)]

use std::mem::size_of;

/// In nanoseconds; the least that the kernel takes.
const SHORT: u64 = 100_000;

const SCHED_OTHER: u32 = 0;
const RESET_ON_FORK: u64 = 1;

/// `struct sched_attr`, as of its first version (include/uapi/linux/sched/types.h).
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

/// Asks for it. Jobs have what the guard had before: the kernel resets the slice at a fork, and a niceness below 0 too, so that a
/// guard with such a one is left as it is, as is one whose caller has chosen something else.
pub(super) fn shorten() {
    let (Some(own), Some(usual)) = (read(0), read(1)) else { return };
    // An older kernel tells no slice.
    if own.policy != SCHED_OTHER
        || own.flags != 0
        || own.nice < 0
        || own.runtime != usual.runtime
        || own.runtime <= SHORT
    {
        return;
    }
    let wanted = Attributes { runtime: SHORT, flags: RESET_ON_FORK, ..own };
    // SAFETY: the structure outlives the call. Where it is refused, all stays as it is.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) };
}

/// Of a process, 0 for this one.
fn read(pid: i32) -> Option<Attributes> {
    let mut attributes = Attributes::default();
    let size = size_of::<Attributes>();
    // SAFETY: the kernel writes `size` bytes at most.
    let done = unsafe { libc::syscall(libc::SYS_sched_getattr, pid, &raw mut attributes, size, 0) };
    (done == 0).then_some(attributes)
}
