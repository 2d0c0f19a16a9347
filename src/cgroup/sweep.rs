//! Finds abandoned bases: a free lock shows that the supervisor and the guard of a base are both gone. Kills the
//! processes in these bases, and removes the bases.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, Result};

use crate::cgroup::directory::{Cgroup, populated};
use crate::kernel::poll;

/// How long the start of a supervisor waits for processes that it has killed in abandoned bases. This is the total time
/// for all bases.
pub(crate) const BOUND: Duration = Duration::from_millis(200);

/// The pause between two attempts to remove a busy directory. From Linux 6.19 on, `cgroup.events` can report that no
/// process is left while the last process still keeps the directory busy, and no event reports when the directory is
/// free.
const BUSY_RETRY_PAUSE: Duration = Duration::from_millis(1);

/// Opens and locks the base `name` in `parent` if it is abandoned. Returns `None` if it is in use. The lock lasts as
/// long as the returned directory is open, so two sweeps never work on the same base.
///
/// Supervisor and guard each hold a shared lock on their base (flock(2)). A process that gets the exclusive lock
/// therefore knows that both are gone, even if they were in another PID namespace. An attempt to get this lock does not
/// disturb the shared locks. If this function claims a base that its supervisor has just made and not locked yet, that
/// supervisor notices it and tries another name.
pub(crate) fn claim(parent: &Cgroup, name: &str) -> Result<Option<Cgroup>> {
    let cgroup = parent.open(name)?;
    match flock(&cgroup, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(cgroup.into_ours())),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Kills the processes in the cgroup and waits until none is left. Fails with `BUSY` if a process is left after
/// `bound`.
pub(crate) fn kill_and_wait(cgroup: &Cgroup, bound: Duration) -> Result<()> {
    let events = cgroup.events()?;
    // If the clock cannot represent the time, there is no bound.
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
            // Errors are ignored here, because the caller reports the remaining processes after the bound.
            let _ = cgroup.kill_again();
        }
    }
    Ok(())
}

/// Removes a base without processes and all cgroups below it. If it is busy, tries again until `bound` is over.
pub(crate) fn remove(parent: &Cgroup, name: &str, bound: Duration) -> std::result::Result<(), (PathBuf, Errno)> {
    let until = Instant::now().checked_add(bound);
    loop {
        match parent.remove(name) {
            Err((_, Errno::BUSY)) if until.is_none_or(|until| Instant::now() < until) => wait(&[], BUSY_RETRY_PAUSE),
            done => return done,
        }
    }
}

fn wait(events: &[PollFd<'_>], time: Duration) {
    let _ = poll::wait(&mut events.to_vec(), Some(time));
}
