//! Tests what the kernel allows: starts child processes that do nothing, in a cgroup that is made for the test and
//! removed immediately afterwards.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open, openat};
use rustix::io::{Errno, Result};
use rustix::process::getpid;

use crate::cgroup::base;
use crate::cgroup::directory::Cgroup;
use crate::doctor::facts::{Scratch, Tried};
use crate::doctor::probe_child::{Child, End, StartMethod, Task, start};
use crate::kernel::pidfd::Pidfd;
use crate::kernel::signal::Signal;
use crate::kernel::{pidfd, poll};

/// The bound for each step. Within this time a child that does nothing ends, and a kill or a freeze takes effect.
const BOUND: Duration = Duration::from_secs(2);

impl Tried {
    fn of(done: Result<()>) -> Self {
        match done {
            Ok(()) => Self::Works,
            Err(errno) => Self::Refused(errno.raw_os_error()),
        }
    }
}

/// Tests `clone3`, and then `waitid(P_PIDFD)` on the child that `clone3` made, or `clone` if `clone3` fails.
pub(crate) fn clone3_and_waitid() -> (Tried, Tried) {
    let (clone3, child) = match start(StartMethod::Clone3, Task::Exit) {
        Ok(child) => (Tried::Works, Ok(child)),
        Err(errno) => (Tried::Refused(errno.raw_os_error()), start(StartMethod::Clone, Task::Exit)),
    };
    let waitid = match child {
        Ok(child) => Tried::of(child.wait(BOUND).1),
        Err(errno) => Tried::untried(format!("no process can be made: {errno}")),
    };
    (clone3, waitid)
}

/// Tests `pidfd_open`, `pidfd_send_signal` and `PIDFD_GET_INFO` on this process.
pub(crate) fn pidfds() -> (Tried, Tried, Tried) {
    match Pidfd::open(getpid()) {
        Ok(own) => {
            let sent = Tried::of(pidfd::send_signal(own.as_fd(), 0));
            let info = Tried::of(own.cgroup_id().map(drop).ok_or(Errno::NOTTY));
            (Tried::Works, sent, info)
        }
        Err(errno) => {
            let untried = || Tried::untried("there is no pidfd");
            (Tried::Refused(errno.raw_os_error()), untried(), untried())
        }
    }
}

/// Tests whether the kernel supports `CLONE_INTO_CGROUP`, where there is no cgroup in which a process could be started.
/// Calls clone3 with a directory that is not a cgroup, so that no process is made. EBADF means that the kernel supports
/// it; EINVAL or E2BIG that it does not.
pub(crate) fn knows_clone_into_cgroup() -> Tried {
    let Ok(root) = open("/", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) else {
        return Tried::untried("/ can't be opened");
    };
    match start(StartMethod::Into(root.as_fd()), Task::Exit) {
        Ok(_) | Err(Errno::BADF) => Tried::untried("no cgroup can be made here, but the kernel supports it"),
        Err(errno) => Tried::Refused(errno.raw_os_error()),
    }
}

/// Makes a cgroup in `place`, tests in it what a job needs, and removes it.
pub(crate) fn scratch(place: &Cgroup) -> Scratch {
    let mut scratch = Scratch::default();
    match make(place) {
        Ok((name, cgroup)) => {
            scratch.made = Tried::Works;
            test_all(&cgroup, &mut scratch);
            let removed = crate::cgroup::sweep::kill_and_wait(&cgroup, BOUND)
                .and_then(|()| crate::cgroup::sweep::remove(place, &name, BOUND).map_err(|(_, errno)| errno));
            scratch.removed = Tried::of(removed);
        }
        Err(errno) => scratch.made = Tried::Refused(errno.raw_os_error()),
    }
    scratch
}

/// Makes a directory with the name and the lock of a base, so that the next sweep removes it if this process is killed.
fn make(place: &Cgroup) -> Result<(String, Cgroup)> {
    for _ in 0..16 {
        let name = base::fresh_name(base::PREFIX).map_err(|_| Errno::IO)?;
        let cgroup = match place.make(&name) {
            Ok(cgroup) => cgroup,
            Err(Errno::EXIST | Errno::NOENT) => continue,
            Err(errno) => {
                let _ = place.remove(&name);
                return Err(errno);
            }
        };
        let locked = flock(&cgroup, FlockOperation::NonBlockingLockShared).is_ok();
        if locked && place.open(&name).and_then(|again| again.id()) == cgroup.id() {
            return Ok((name, cgroup));
        }
        // A sweep has treated the new directory as an abandoned base.
        let _ = place.remove(&name);
    }
    Err(Errno::AGAIN)
}

fn test_all(cgroup: &Cgroup, results: &mut Scratch) {
    let controllers = cgroup.read(c"cgroup.controllers").unwrap_or_default();
    results.controllers = controllers.split_ascii_whitespace().map(str::to_owned).collect();

    let cloned = start(StartMethod::Into(cgroup.as_fd()), Task::Exit);
    results.cloned = Tried::of(cloned.as_ref().map(drop).map_err(|&errno| errno));
    let clone_ended = cloned.ok().and_then(|child| child.wait(BOUND).0);
    let procs = openat(cgroup, c"cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    results.joined = match &procs {
        Ok(procs) => match start(StartMethod::Join(procs.as_fd()), Task::Exit).map(|child| child.wait(BOUND).0) {
            Ok(Some(End::Exited(0))) => Tried::Works,
            Ok(Some(End::Exited(errno))) => Tried::Refused(errno),
            Ok(_) => Tried::Refused(Errno::TIMEDOUT.raw_os_error()),
            Err(errno) => Tried::Refused(errno.raw_os_error()),
        },
        Err(errno) => Tried::Refused(errno.raw_os_error()),
    };

    let killed_at_birth = clone_ended == Some(End::Signalled(Signal::KILL.number()));
    let method = match &procs {
        _ if results.cloned == Tried::Works && !killed_at_birth => StartMethod::Into(cgroup.as_fd()),
        Ok(procs) if results.joined == Tried::Works => StartMethod::Join(procs.as_fd()),
        _ => return,
    };
    let Ok(child) = start(method, Task::Wait) else { return };
    if let StartMethod::Join(_) = method {
        wait_until_populated(cgroup);
    }
    results.frozen = Tried::of(freeze(cgroup));
    results.killed = Tried::of(kill(cgroup, &child));
    let _ = child.wait(BOUND);

    results.kill_sequence_bug = match method {
        _ if killed_at_birth => Some(true),
        // The cgroup was killed before this point. A process that is now cloned into it must nevertheless stay alive.
        StartMethod::Into(_) if results.killed == Tried::Works => {
            let child = start(StartMethod::Into(cgroup.as_fd()), Task::Exit).ok();
            child.and_then(|child| child.wait(BOUND).0).map(|end| end != End::Exited(0))
        }
        _ => None,
    };
}

/// Waits until the cgroup contains a process.
fn wait_until_populated(cgroup: &Cgroup) {
    let Ok(events) = cgroup.events() else { return };
    wait_for(&events, b"populated 1");
}

/// Freezes the cgroup with the child in it, and thaws it (`cgroup.freeze`, Linux 5.2).
fn freeze(cgroup: &Cgroup) -> Result<()> {
    let events = cgroup.events()?;
    cgroup.write(c"cgroup.freeze", b"1")?;
    let frozen = wait_for(&events, b"frozen 1");
    cgroup.write(c"cgroup.freeze", b"0")?;
    if frozen { Ok(()) } else { Err(Errno::TIMEDOUT) }
}

/// Kills all processes of the cgroup, which contains the child (`cgroup.kill`, Linux 5.14).
fn kill(cgroup: &Cgroup, child: &Child) -> Result<()> {
    cgroup.write(c"cgroup.kill", b"1")?;
    if child.ends_within(BOUND) { Ok(()) } else { Err(Errno::TIMEDOUT) }
}

/// Waits until `cgroup.events` contains this line; returns `false` if it does not appear within the bound.
fn wait_for(events: &OwnedFd, line: &[u8]) -> bool {
    let bound = Instant::now() + BOUND;
    loop {
        let mut buffer = [0; 128];
        let length = rustix::io::pread(events, &mut buffer, 0).unwrap_or(0);
        if buffer[..length].split(|&byte| byte == b'\n').any(|there| there == line) {
            return true;
        }
        let left = bound.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let _ = poll::wait(&mut [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)], Some(left));
    }
}
