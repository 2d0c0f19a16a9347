//! Bases whose supervisor and guard are both gone: found by their lock, emptied, removed.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, Result};

use crate::cgroup::directory::{Cgroup, populated};
use crate::kernel::sys;

/// How long a start waits for processes that it has killed, however many bases it finds.
pub(crate) const BOUND: Duration = Duration::from_millis(200);

/// From 6.19 on a last process can be off the count and not yet off the directory, and there is no event.
const BUSY_AGAIN: Duration = Duration::from_millis(1);

/// The base `name` in `parent` if it is abandoned, or `None` where it is alive. It is locked while it is open: two
/// sweepers do not meet.
///
/// Whoever gets the exclusive lock of a base knows that supervisor and guard are gone, in whatever PID namespace they were:
/// each holds a shared one (flock(2)), which is not disturbed by this. A base that is being made, and not locked yet, is
/// lost to its maker, who then tries another name.
pub(crate) fn claim(parent: &Cgroup, name: &str) -> Result<Option<Cgroup>> {
    let cgroup = parent.open(name)?;
    match flock(&cgroup, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(cgroup.into_ours())),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Kills what is in it and waits until nothing runs there; `BUSY` where something still does after `bound`.
pub(crate) fn end(cgroup: &Cgroup, bound: Duration) -> Result<()> {
    let events = cgroup.events()?;
    // Beyond what a clock can hold there is no bound.
    let until = Instant::now().checked_add(bound);
    if populated(&events)? {
        cgroup.kill()?;
    }
    while populated(&events)? {
        let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Err(Errno::BUSY);
        }
        let again = cgroup.kill_again_at().unwrap_or_else(Instant::now).saturating_duration_since(Instant::now());
        wait(&[PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)], left.min(again));
        if cgroup.kill_again_at().is_none_or(|at| at <= Instant::now()) && populated(&events)? {
            // After the bound the caller names the processes that are left.
            let _ = cgroup.kill_again();
        }
    }
    Ok(())
}

/// Removes an emptied base and what is below it, trying again until `bound` where it is busy.
pub(crate) fn remove(parent: &Cgroup, name: &str, bound: Duration) -> std::result::Result<(), (PathBuf, Errno)> {
    let until = Instant::now().checked_add(bound);
    loop {
        match parent.remove(name) {
            Err((_, Errno::BUSY)) if until.is_none_or(|until| Instant::now() < until) => wait(&[], BUSY_AGAIN),
            done => return done,
        }
    }
}

fn wait(events: &[PollFd<'_>], time: Duration) {
    let _ = poll(&mut events.to_vec(), Some(&sys::timespec(time)));
}
