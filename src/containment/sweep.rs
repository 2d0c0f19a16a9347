//! Bases whose supervisor and guard are both gone: found by their lock, emptied, removed.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};

use super::base;
use super::cgroup::{Cgroup, populated};

/// What is killed is gone soon; a start does not wait longer for what is not.
const BOUND: Duration = Duration::from_millis(200);

/// Removes abandoned bases in `place`, with what runs in them. Costs one fstat where there are no cgroups below.
///
/// Whoever gets the exclusive lock of a base knows that supervisor and guard are gone, in whatever PID namespace they were.
/// One that is being made, and not locked yet, is lost to its maker, who then tries another name. What may not be
/// touched, for want of permission, is left to its owner.
pub(crate) fn sweep(place: &Cgroup) {
    for name in place.children().unwrap_or_default() {
        if !base::is_name(&name) {
            continue;
        }
        let Ok(cgroup) = place.open(&name) else { continue };
        // Held until it is removed: two sweepers do not meet.
        if flock(&cgroup, FlockOperation::NonBlockingLockExclusive).is_ok() {
            empty(&cgroup);
            // Busy: left to the next one.
            let _ = place.remove(&name);
        }
    }
}

fn empty(cgroup: &Cgroup) {
    let Ok(events) = cgroup.events() else { return };
    let bound = Instant::now() + BOUND;
    while populated(&events).unwrap_or(false) {
        let left = bound.saturating_duration_since(Instant::now());
        if cgroup.kill().is_err() || left.is_zero() {
            return;
        }
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let _ = poll(&mut [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)], Some(&timeout));
    }
}
