//! The guard cleans up when the supervisor is gone: it ends the remaining processes and removes the cgroups.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::process::{Pid, getpid};

use super::KILL_BOUND;
use super::event_loop::{BASE, Guard};
use super::protocol::{self, FromGuard, ToGuard};
use super::sweep::{SweepAll, raise_priority};
use crate::cgroup::delegation;
use crate::cgroup::directory::{Cgroup, populated};
use crate::kernel::reap::Reap;
use crate::kernel::scan::ScanLimits;
use crate::kernel::signal::Signal;
use crate::kernel::{reap, signal_set};
use crate::sandbox::private_tmp;
use crate::subreaper::children;
use crate::subreaper::descendants::Descendants;

/// The time between the death signal of a job and its kill. It is short, because all processes must be gone one second
/// after the end of the supervisor (README.md, "Promises").
const DEATH_SIGNAL_GRACE: Duration = Duration::from_millis(500);

/// The minimum number of scans for new processes while death signals are sent, and the time limit for all scans
/// together.
const DEATH_SIGNAL_SCANS: (u32, Duration) = (3, Duration::from_millis(200));

/// The pause between two checks of a cgroup that the supervisor may remove at the same time.
const RECHECK_PAUSE: Duration = Duration::from_millis(10);

/// The time limit if the remaining processes are known to survive SIGKILL.
const GIVEN_UP_BOUND: Duration = Duration::from_millis(200);

/// A base that exists, or that a supervisor that has ended was about to make.
pub(super) struct PlannedBase {
    pub(super) parent: Cgroup,
    pub(super) name: String,
    /// Holds the shared lock on the base.
    pub(super) _directory: Option<OwnedFd>,
}

/// The directory for the private tmps of jobs. It exists, or a supervisor that has ended was about to make it.
pub(super) struct PlannedTmpBase {
    pub(super) parent: OwnedFd,
    pub(super) name: String,
    /// Holds the shared lock on the directory.
    pub(super) _directory: Option<OwnedFd>,
}

impl Guard {
    /// Ends every job after the end of the supervisor, waits until all are empty, and removes the directories.
    pub(super) fn clean_up(&mut self) {
        // The guard may not have read all messages that the supervisor sent before its end. It still needs these.
        while let Ok(Some((message, descriptors))) = protocol::receive::<ToGuard>(&self.socket, &mut self.buffer) {
            if matches!(
                message,
                ToGuard::Base { .. }
                    | ToGuard::BaseMade
                    | ToGuard::TmpBase { .. }
                    | ToGuard::TmpBaseMade
                    | ToGuard::Delegating { .. }
                    | ToGuard::Terminal { .. }
            ) {
                let _ = self.handle(message, descriptors);
            }
        }
        if !self.has_nothing_left() {
            self.end_everything();
        }
        if let Some(terminal) = self.terminal.take() {
            terminal.restore();
        }
        if let Some((parent, undo)) = self.delegation.take() {
            delegation::undo_if_unused(&parent, &undo, self.supervisor.as_ref().map(AsFd::as_fd));
        }
        if let Some(base) = self.tmp_base.take() {
            // The guard removes this directory last, because that can take long, and because no process is left now
            // that could make files in it. If the removal fails, the next sweep tries again.
            let _ = private_tmp::remove(base.parent.as_fd(), &base.name);
        }
    }

    /// Returns whether the guard has no child, and so no descendant, and the base is removed. This is usual if the
    /// supervisor ended regularly.
    fn has_nothing_left(&self) -> bool {
        self.reap_quietly(|_| {})
            && self
                .base
                .as_ref()
                .is_none_or(|base| matches!(base.parent.remove_empty(&base.name), Ok(()) | Err(Errno::NOENT)))
    }

    /// Ends every process that is left, and removes the base.
    fn end_everything(&mut self) {
        let _ = self.listen_for_children(true);
        let _ = epoll::delete(&self.epoll, &self.socket);
        if let Some(supervisor) = &self.supervisor {
            let _ = epoll::delete(&self.epoll, supervisor);
        }
        // The short time limit applies only if every job was given up. Otherwise the jobs get the full time.
        self.given_up &= self.jobs.is_empty();
        self.send_death_signals();
        let bound = Instant::now() + if self.given_up { GIVEN_UP_BOUND } else { KILL_BOUND };
        if let Some(base) = self.base.take()
            // If the supervisor ended regularly, the base is empty or already gone.
            && !matches!(base.parent.remove_empty(&base.name), Ok(()) | Err(Errno::NOENT))
        {
            self.kill_base(&base, bound);
            // A job may have made many cgroups. The guard ends all processes before it removes the cgroups.
            self.end_descendants(bound);
            while base.parent.remove(&base.name).is_err_and(|(_, errno)| errno == Errno::BUSY) && Instant::now() < bound
            {
                self.kill_base(&base, bound);
                // From Linux 6.19 on, the cgroup may still count as busy for a moment after "populated 0".
                let _ = self.wait(Some(bound.min(Instant::now() + Duration::from_millis(1))));
            }
        }
        self.end_descendants(bound);
        // A process that SIGKILL did not end may still use the memory of its launch, so this memory is not freed.
        std::mem::forget(std::mem::take(&mut self.launches));
    }

    /// Sends the death signal to each job that was configured with one, and gives these jobs a moment to end.
    fn send_death_signals(&mut self) {
        let living = self.jobs.values().filter(|job| !job.reaped);
        let receivers: Vec<_> =
            living.filter_map(|job| Some((job, job.death_signal.and_then(Signal::from_number)?))).collect();
        let has_one_job = self.jobs.len() == 1;
        let deadline = Instant::now() + DEATH_SIGNAL_GRACE;
        for (job, signal) in &receivers {
            // Orphans are direct children of the guard. If there is only one job, all of them belong to it.
            let is_ours = |child: Pid| has_one_job || child.as_raw_nonzero().get() == job.pid;
            let all = Descendants::of_some(getpid(), &is_ours);
            let (least, time) = DEATH_SIGNAL_SCANS;
            let left = deadline.saturating_duration_since(Instant::now());
            let _ =
                all.signal_those(&[*signal, Signal::CONT], ScanLimits::new(least, time.min(left)), |_| true, |_| {});
        }
        while !receivers.is_empty() && Instant::now() < deadline && !self.reap_quietly(|_| {}) {
            let _ = self.wait(Some(deadline));
        }
    }

    /// Moves the guard into a leaf of its own, beside the base: the parent cgroup can enable controllers only while no
    /// process is in it.
    pub(super) fn move_to(&mut self, leaf: OwnedFd) -> rustix::io::Result<()> {
        let leaf = Cgroup::new(leaf, "the guard's leaf".into());
        let errno = leaf.write(c"cgroup.procs", b"0").err().map_or(0, Errno::raw_os_error);
        self.send(&FromGuard::Moved { errno }, Vec::new())
    }

    /// Kills all processes in the base and waits until none runs there.
    fn kill_base(&mut self, base: &PlannedBase, bound: Instant) {
        let Ok(cgroup) = base.parent.open(&base.name).map(Cgroup::into_ours) else { return };
        let watch = cgroup.events();
        if watch.as_ref().is_ok_and(|watch| populated(watch) == Ok(false)) {
            return;
        }
        let _ = cgroup.kill();
        let Ok(watch) = watch else { return };
        let data = epoll::EventData::new_u64(BASE);
        if epoll::add(&self.epoll, &watch, data, epoll::EventFlags::PRI).is_err() {
            return;
        }
        // Only "populated 0", read from the file, proves that the cgroup is empty.
        while populated(&watch).unwrap_or(true) && Instant::now() < bound {
            if cgroup.kill_again_at().is_none_or(|at| at <= Instant::now()) {
                let _ = cgroup.kill_again();
            }
            // A supervisor that is still alive also removes the directory. The kernel then drops a pending
            // notification, so the guard checks again after a pause.
            let recheck = Instant::now() + RECHECK_PAUSE;
            let again = cgroup.kill_again_at().unwrap_or(recheck);
            let _ = self.wait(Some(bound.min(again).min(recheck)));
            let _ = self.reap_quietly(|_| {});
        }
        let _ = epoll::delete(&self.epoll, &watch);
    }

    /// Ends processes that left their cgroup or never had one: all remaining descendants of the guard.
    fn end_descendants(&mut self, bound: Instant) {
        self.jobs.clear();
        raise_priority();
        let mut all = SweepAll::default();
        while !self.reap_quietly(|pid| all.reaped(pid)) && Instant::now() < bound {
            all.step();
            if self.given_up {
                return;
            }
            let _ = self.wait(Some(all.next_step_at().map_or(bound, |again| again.min(bound))));
        }
    }

    /// Reaps children without reporting them to the supervisor. Returns `true` if no living child is left.
    fn reap_quietly(&self, mut reaped: impl FnMut(i32)) -> bool {
        while matches!(signal_set::read_signal(self.children.as_fd()), Ok(Some(_))) {}
        loop {
            match reap::reap() {
                Ok(Reap::Child(child)) => reaped(child.pid),
                Ok(Reap::NoneEnded) => return false,
                Ok(Reap::NoChildren) => return true,
                // A seccomp filter refuses waitid, so the guard reads the state of each child instead.
                Err(_) => return children::all_children_have_ended(),
            }
        }
    }
}
