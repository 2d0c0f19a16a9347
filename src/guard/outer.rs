//! The outer guard: parent and subreaper of the guard, where no cgroup holds the job. If the guard is killed, its
//! descendants become children of the outer guard, which ends them. If the outer guard is killed, the guard notices
//! this and ends its descendants itself.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::{Errno, Result};
use rustix::process::{Pid, PidfdFlags, getpid, getppid, pidfd_open, set_child_subreaper, setpgid};

use super::sweep::{SweepAll, raise_priority};
use super::{KILL_BOUND, event_loop};
use crate::kernel::pidfd::Pidfd;
use crate::kernel::reap::Reap;
use crate::kernel::{fork, poll, reap, signal_set};
use crate::subreaper::children;

/// Becomes the outer guard: forks the guard, which runs in the child. The caller has called `apply_rules` before.
pub(super) fn run(socket: OwnedFd) -> Result<()> {
    let outer = pidfd_open(getpid(), PidfdFlags::empty())?;
    let pid = getpid();
    match fork::fork_single_threaded()? {
        fork::Fork::Child => {
            if getppid() != Some(pid) {
                return Err(Errno::SRCH);
            }
            // Each guard has its own process group, so that no signal to a group reaches both.
            setpgid(None, None)?;
            set_child_subreaper(Some(getpid()))?;
            event_loop::run(socket, Some(outer))
        }
        fork::Fork::Parent(guard) => {
            // The outer guard closes its copy of the socket, so that the socket ends when the guard ends.
            drop(socket);
            drop(outer);
            outlive(guard)
        }
    }
}

/// Waits for the end of the guard, then ends its remaining descendants.
fn outlive(guard: Pid) -> Result<()> {
    let children = signal_set::signalfd(signal_set::bit(libc::SIGCHLD))?;
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
                // A seccomp filter refuses waitid, so the outer guard reads the state of each child instead.
                Err(_) if children::all_children_have_ended() => return Ok(()),
                Err(_) => break held.as_ref().is_some_and(Pidfd::has_ended),
            }
        };
        if guard_ended && bound.is_none() {
            raise_priority();
            bound = Some(Instant::now() + KILL_BOUND);
            // The next iteration reaps the remaining children.
            continue;
        }
        if let Some(bound) = bound {
            if Instant::now() >= bound {
                return Ok(());
            }
            all.step();
        }
        let bound = bound.map(|bound| all.next_step_at().map_or(bound, |again| again.min(bound)));
        let left = bound.map(|bound| bound.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        poll::wait(&mut [PollFd::from_borrowed_fd(children.as_fd(), PollFlags::IN)], left)?;
        signal_set::read_signal(children.as_fd())?;
    }
}
