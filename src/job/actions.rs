//! What the stop machine asks for, done to the job, and what is told of it.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::actor::{Actor, PASSES, sleep_until};
use super::emptied::emptied;
use crate::guard::protocol::ToGuard;
use crate::process::ProcessInfo;
use crate::report::{NotRemoved, Report, Usage};
use crate::signal::Signal;
use crate::stop::{Action, Event, Phase, SignalTo};
use crate::sys;

/// For the guard's answer, beyond the time that it has for its work.
const ANSWER: Duration = Duration::from_secs(1);

impl Actor {
    pub(super) async fn perform(&mut self, action: Action) {
        match action {
            Action::Signal => {
                self.report.phases.stopping = self.elapsed();
                self.send_stop_signal();
            }
            Action::StartGrace => self.grace_over = Instant::now().checked_add(self.command.stop.grace),
            Action::Kill => {
                self.report.phases.killing = self.elapsed();
                self.report.killed = true;
                self.kill();
            }
            Action::StartBound => {
                self.grace_over = None;
                let mut bound = self.command.stop.kill_bound;
                if self.machine.phase == Phase::Draining {
                    // The guard has that time, and a moment to tell.
                    bound = bound.saturating_add(ANSWER);
                }
                self.bound_over = Instant::now().checked_add(bound);
            }
            Action::Sweep => {
                self.report.phases.empty = self.elapsed();
                self.sweep().await;
            }
        }
    }

    /// The stop signal, SIGCONT, thaw: a stopped or frozen process does not see SIGTERM.
    pub(super) fn send_stop_signal(&mut self) {
        let signal = self.command.stop.signal;
        let main = self.main.clone().filter(|_| !self.machine.main_exited);
        let mut main_found = false;
        // Leftovers have no main process to be told.
        if self.command.stop.signal_to == SignalTo::All || main.is_none() {
            let stopped = &mut self.report.stopped;
            // Who was missed is killed when the grace period is over.
            let _ = self.leaf.cgroup().signal_all(signal, PASSES, |pid| {
                main_found |= main.as_ref().is_some_and(|(main, _)| *main == pid);
                stopped.add(|| ProcessInfo::read(pid));
            });
            let _ = self.leaf.cgroup().signal_all(Signal::CONT, PASSES, |_| {});
        }
        if let Some((pid, pidfd)) = main
            && !main_found
        {
            self.report.stopped.add(|| ProcessInfo::read(pid));
            // It may have ended: then its exit is on its way to us.
            let _ = pidfd.send(signal).and_then(|()| pidfd.send(Signal::CONT));
        }
        let _ = self.leaf.cgroup().thaw();
    }

    pub(super) fn kill(&self) {
        // The bound tells what this did not end.
        let _ = self.leaf.kill();
        if let Some((_, pidfd)) = &self.main
            && !self.machine.main_exited
        {
            // A main process that left its leaf.
            let _ = pidfd.send(Signal::KILL);
        }
    }

    pub(super) fn list_leftovers(&mut self) {
        for pid in self.leaf.cgroup().processes().unwrap_or_default() {
            self.report.leftovers.add(|| ProcessInfo::read(pid));
        }
    }

    /// SIGKILL has had its time: tells what is left.
    pub(super) fn give_up(&mut self, phase: Phase) {
        if phase == Phase::Killing {
            let mut left = self.leaf.cgroup().processes().unwrap_or_default();
            if let Some((main, pidfd)) = &self.main
                && !self.machine.main_exited
                && !pidfd.has_ended()
                && !left.contains(main)
            {
                left.push(*main);
            }
            for pid in left {
                self.report.unkillable.add(|| ProcessInfo::read_unkillable(pid));
            }
        } else {
            let unknown = "the guard did not tell in time whether processes are left outside of the cgroup";
            self.report.error = Some(unknown.into());
        }
    }

    pub(super) async fn sweep(&mut self) {
        if self.guard_lost || self.childless {
            self.machine = self.machine.on(Event::Swept).0;
            return;
        }
        let bound = self.command.stop.kill_bound.as_millis();
        let sweep = ToGuard::Sweep { job: self.id, bound_ms: u64::try_from(bound).unwrap_or(u64::MAX) };
        // A guard that can't be told is lost, which comes as an event.
        let _ = self.supervisor.link.send(&sweep, &[]).await;
    }

    /// A watch on the leaf, or none where no descriptor is to be had: then it is looked at from time to time.
    pub(super) fn open_watch(&self) -> Option<AsyncFd<OwnedFd>> {
        sys::watched(self.leaf.events().try_clone_to_owned().ok()?, Interest::PRIORITY).ok()
    }

    pub(super) async fn remove_leaf(&mut self) {
        let bound = Instant::now().checked_add(self.command.stop.kill_bound);
        loop {
            match self.leaf.remove() {
                Ok(()) => return,
                // Something came back into it, or (from 6.19 on) its last process is not yet off it.
                Err((_, Errno::BUSY))
                    if bound.is_some_and(|bound| Instant::now() < bound) && self.report.unkillable.count == 0 =>
                {
                    let _ = self.leaf.kill();
                    if self.watch.is_none() {
                        self.watch = self.open_watch();
                    }
                    tokio::select! {
                        () = emptied(&self.leaf, self.watch.as_ref(), self.guard_lost) => {}
                        () = sleep_until(bound.map(|bound| (bound, ()))) => {}
                    }
                    tokio::task::yield_now().await;
                }
                Err((path, errno)) => {
                    let error = errno.to_string();
                    self.report.not_removed.push(NotRemoved { path: path.display().to_string(), error });
                    return;
                }
            }
        }
    }

    pub(super) async fn finish(mut self) -> Report {
        self.report.usage = Usage::read(self.leaf.cgroup(), self.leaf.controllers(), self.main_resident_peak);
        self.remove_leaf().await;
        self.report.phases.gone = self.elapsed();
        self.report.reason = self.machine.reason;
        self.report.exit_code = Report::exit_code_of(self.report.reason, self.report.main.as_ref());
        self.report
    }
}
