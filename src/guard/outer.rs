//! The outer guard: parent and subreaper of the guard, where no cgroup holds the job. When the guard is killed, its
//! descendants come to it and are ended; when it is killed itself, the guard sees that and ends them.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result};
use rustix::process::{Pid, PidfdFlags, getpid, getppid, pidfd_open, set_child_subreaper, setpgid};

use super::sweep::{SweepAll, hurry};
use super::{KILL_BOUND, event_loop};
use crate::kernel::pidfd::Pidfd;
use crate::kernel::reap::Reap;
use crate::kernel::{reap, sys};
use crate::subreaper::descendants;

/// Becomes the outer guard of a guard that it forks. It has settled already.
pub(super) fn run(socket: OwnedFd) -> Result<()> {
    let outer = pidfd_open(getpid(), PidfdFlags::empty())?;
    let pid = getpid();
    match sys::fork_single_threaded()? {
        sys::Fork::Child => {
            if getppid() != Some(pid) {
                return Err(Errno::SRCH);
            }
            // So that no signal to one group reaches both.
            setpgid(None, None)?;
            set_child_subreaper(Some(getpid()))?;
            event_loop::run(socket, Some(outer))
        }
        sys::Fork::Parent(guard) => {
            // Its end is the guard's alone to tell.
            drop(socket);
            drop(outer);
            outlive(guard)
        }
    }
}

/// Waits for the end of the guard, then ends whatever it has left.
fn outlive(guard: Pid) -> Result<()> {
    let children = sys::signalfd(sys::bit(libc::SIGCHLD))?;
    let held = Pidfd::open(guard).ok();
    let mut all = SweepAll::default();
    let mut bound: Option<Instant> = None;
    loop {
        let guard_ended = loop {
            match reap::reap() {
                Ok(Reap::Child(child)) => {
                    all.reaped(child.pid);
                    if child.pid == guard.as_raw_nonzero().get() {
                        break true;
                    }
                }
                Ok(Reap::NoneEnded) => break false,
                Ok(Reap::NoChildren) => return Ok(()),
                // The kernel refuses to say: each child in the list is asked for.
                Err(_) if descendants::all_children_have_ended() => return Ok(()),
                Err(_) => break held.as_ref().is_some_and(Pidfd::has_ended),
            }
        };
        if guard_ended && bound.is_none() {
            hurry();
            bound = Some(Instant::now() + KILL_BOUND);
            // For the children that are left to be reaped.
            continue;
        }
        if let Some(bound) = bound {
            if Instant::now() >= bound {
                return Ok(());
            }
            all.step();
        }
        let bound = bound.map(|bound| all.again().map_or(bound, |again| again.min(bound)));
        let left = bound.map(|bound| bound.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        let timeout =
            left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) });
        match poll(&mut [PollFd::from_borrowed_fd(children.as_fd(), PollFlags::IN)], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => drop(sys::read_signal(children.as_fd())?),
            Err(errno) => return Err(errno),
        }
    }
}
