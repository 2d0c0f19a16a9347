//! What the stop machine asks for, done to the job, and what is told of it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::actor::{Actor, TELLING, scans};
use super::wait_until_empty::{sleep_until, wait_until_empty};
use crate::guard::KILL_BOUND;
use crate::guard::protocol::ToGuard;
use crate::job::command::ProcessGroup;
use crate::job::settle;
use crate::job::settle::Left;
use crate::job::stop::{Action, Event, Phase, SignalTo};
use crate::kernel::scan::ScanLimits;
use crate::kernel::signal::Signal;
use crate::kernel::sys;
use crate::kernel::wake::Wake;
use crate::report::ProcessInfo;
use crate::report::{Figure, NotRemoved, Reason, Report};
use crate::subreaper::descendants::Descendants;
use crate::supervisor::containment::JobContainment;

/// The stop signal, and SIGCONT, take so long at most: the grace period, within these bounds.
const LEAST_TELLING: Duration = Duration::from_millis(250);
const MOST_TELLING: Duration = Duration::from_secs(10);

/// So long at most are those looked at who are to be told, or were left, and live on meanwhile; the others are counted.
const DESCRIBING: Duration = Duration::from_millis(500);

/// For the guard's answer, beyond the time that it has for its work.
const ANSWER: Duration = Duration::from_secs(1);

/// How long a stop waits for an exec that is under way, so that the command itself gets the stop signal.
const EXEC_GRACE: Duration = Duration::from_secs(1);

impl Actor {
    pub(super) async fn perform(&mut self, action: Action) {
        match action {
            Action::StartSettle => {
                let (now, settle) = (Instant::now(), self.config.stop.settle);
                self.short_settle_over = now.checked_add(settle::short(settle));
                self.settle_over = now.checked_add(settle);
            }
            Action::SignalOthers => self.stop_others(),
            Action::Signal => {
                self.link.resume();
                self.wake = Wake::soon();
                self.report.phases.stopping = self.report.phases.stopping.or(self.elapsed());
                self.send_stop_signal();
            }
            Action::StartGrace => self.start_grace(),
            Action::Kill => {
                self.link.resume();
                self.wake = Wake::soon();
                self.report.phases.killing = self.report.phases.killing.or(self.elapsed());
                self.report.killed = true;
                self.kill().await;
            }
            Action::StartBound => {
                self.grace_over = None;
                let mut bound = self.config.stop.kill_bound;
                if self.machine.phase == Phase::Draining || self.containment.leaf().is_none() {
                    // The guard has that time, and a moment to tell.
                    bound = bound.saturating_add(ANSWER);
                }
                self.bound_over = Instant::now().checked_add(bound);
            }
            Action::Sweep => {
                self.report.phases.empty = self.report.phases.empty.or(self.elapsed());
                self.sweep().await;
            }
        }
    }

    /// Before the exec the command can do nothing with its grace period: then that is for the exec.
    pub(super) fn start_grace(&mut self) {
        let grace = self.config.stop.grace;
        let grace = if self.main.is_some() { grace } else { grace.min(EXEC_GRACE) };
        self.grace_over = Instant::now().checked_add(grace);
    }

    /// The stop signal, SIGCONT, thaw: a stopped or frozen process does not see SIGTERM.
    pub(super) fn send_stop_signal(&mut self) {
        let signal = self.machine.first_signal.unwrap_or(self.config.stop.signal);
        let main = self.main.clone().filter(|_| !self.machine.main_exited);
        let mut main_found = false;
        // Leftovers have no main process to be told.
        let all = self.config.stop.signal_to == SignalTo::All || main.is_none();
        // Whoever has not been told when the grace period would be over is killed.
        let time = self.config.stop.grace.clamp(LEAST_TELLING, MOST_TELLING);
        let scans = if all { scans(time) } else { ScanLimits::new(0, Duration::ZERO) };
        let (stopped, described) = (&mut self.report.stopped, Instant::now() + DESCRIBING.min(time / 2));
        // Some have received a signal of this stop before: another one, or as processes that were not finishing.
        let signalled = &mut self.signalled;
        let completion = self.containment.with_reserve(|containment| {
            // Who was missed is killed when the grace period is over.
            // One that is stopped does not see the former.
            let completion = containment.signal_all(&[signal, Signal::CONT], scans, |pid| {
                main_found |= main.as_ref().is_some_and(|(main, _)| *main == pid);
                if signalled.insert(pid) {
                    stopped.add_until(described, pid);
                }
            });
            if let Some((pid, pidfd)) = main
                && !main_found
            {
                signalled.insert(pid);
                stopped.add(pid);
                // It may have ended: then its exit is on its way to us.
                let _ = pidfd.send(signal).and_then(|()| pidfd.send(Signal::CONT));
            }
            completion.map(drop).and(containment.thaw())
        });
        if let Err(errno) = completion {
            self.note(&format!("the stop signal did not reach every process: {errno}"));
        }
    }

    /// Whether processes are left that are finishing, when the short part of the settle time is over.
    pub(super) fn look_at_left(&mut self) -> bool {
        let input = self.spawn_request.input;
        let left = self.containment.with_reserve(|containment| Left::look(&containment.processes().0, input));
        let any = !left.finishing.is_empty();
        if any {
            self.left = left;
        }
        any
    }

    /// Stops the processes that are not finishing. A process that was started since belongs to one that is, or is found when
    /// the settle time is over.
    fn stop_others(&mut self) {
        if self.left.others.is_empty() {
            return;
        }
        let bound = Instant::now() + DESCRIBING;
        if self.machine.phase == Phase::Settling {
            self.report.phases.settled = self.elapsed();
            self.left.others.iter().for_each(|&pid| self.report.leftovers.add_until(bound, pid));
        }
        self.report.phases.stopping = self.report.phases.stopping.or(self.elapsed());
        let (signals, others) = ([self.config.stop.signal, Signal::CONT], &self.left.others);
        let stopped = &mut self.report.stopped;
        let sent = self.containment.with_reserve(|containment| {
            containment.signal_those(
                &signals,
                scans(TELLING),
                |pid| others.contains(&pid),
                |pid| stopped.add_until(bound, pid),
            )
        });
        if let Err(errno) = sent {
            self.note(&format!("the stop signal did not reach every leftover: {errno}"));
        }
    }

    /// What could not be done or found out, for the report.
    pub(super) fn note(&mut self, what: &str) {
        match &mut self.report.error {
            Some(error) => *error = format!("{error}; {what}"),
            none => *none = Some(what.to_owned()),
        }
    }

    /// To the main process, then to everybody else of the job who is in the process group that it was started in.
    pub(super) fn signal_group(&self, signal: Signal) {
        let Some((main, pidfd)) = &self.main else { return };
        if !self.machine.main_exited {
            // It may have ended: then its exit is on its way to us.
            let _ = pidfd.send(signal);
        }
        let group = match self.config.process_group {
            ProcessGroup::New | ProcessGroup::NewSession | ProcessGroup::NewSessionOnTerminal => {
                main.as_raw_nonzero().get()
            }
            ProcessGroup::Supervisors => sys::own_process_group().unwrap_or(0),
        };
        let wanted = |pid: Pid| pid != *main && sys::process_group_of(pid) == group;
        let _ = self.containment.signal_those(&[signal], scans(TELLING), wanted, |_| {});
    }

    pub(super) async fn kill(&mut self) {
        // The bound tells what this did not end.
        match &self.containment {
            JobContainment::Leaf(leaf) => drop(leaf.kill()),
            JobContainment::Guard(_) if self.guard_lost => {
                self.end_orphans().await;
                self.swept = true;
            }
            JobContainment::Guard(link) => {
                if self.main.is_none() {
                    // Where it could make no other process to start the job, the guard waits for the exec itself.
                    let _ = Descendants::of(link.pid).kill_all(|_| {});
                }
                self.request_sweep().await;
            }
        }
        if let Some((_, pidfd)) = &self.main
            && !self.machine.main_exited
        {
            // A main process that left its leaf.
            let _ = pidfd.send(Signal::KILL);
        }
    }

    /// What runs in it, as far as that can be found out.
    pub(super) fn list_processes(&self) -> Vec<ProcessInfo> {
        let (pids, _) = self.containment.with_reserve(JobContainment::processes);
        pids.into_iter().filter_map(ProcessInfo::of_living).collect()
    }

    pub(super) fn list_leftovers(&mut self) {
        self.report.phases.settled = self.report.phases.settled.or(self.elapsed());
        let (leftovers, listed_before) = (&mut self.report.leftovers, &self.left.others);
        let listed = self.containment.with_reserve(|containment| {
            let (processes, listed) = containment.processes();
            let bound = Instant::now() + DESCRIBING;
            for pid in processes.into_iter().filter(|pid| !listed_before.contains(pid)) {
                leftovers.add_until(bound, pid);
            }
            listed
        });
        if let Err(errno) = listed {
            self.note(&format!("not every leftover could be listed: {errno}"));
        }
    }

    /// SIGKILL has had its time: tells what is left.
    pub(super) fn give_up(&mut self, phase: Phase) {
        if phase == Phase::Killing {
            if self.swept {
                // The guard has told who is left.
                return;
            }
            self.swept = self.containment.leaf().is_none();
            let (mut left, listed) = self.containment.with_reserve(JobContainment::processes);
            if let Err(errno) = listed {
                self.note(&format!("not every process that is left could be listed: {errno}"));
            }
            if let Some((main, pidfd)) = &self.main
                && !self.machine.main_exited
                && !pidfd.has_ended()
                && !left.contains(main)
            {
                left.push(*main);
            }
            for pid in left {
                self.report.unkillable.add_unkillable(pid);
            }
            self.name_unkillable();
        } else {
            self.note("the guard did not tell in time whether processes are left outside of the cgroup");
        }
    }

    /// Once they are listed.
    pub(super) fn name_unkillable(&mut self) {
        let now = self.elapsed().unwrap_or_default();
        self.report.name_unkillable(now);
    }

    pub(super) async fn sweep(&mut self) {
        if self.guard_lost && !self.swept {
            self.end_orphans().await;
        }
        if self.guard_lost || self.childless || self.swept {
            self.machine = self.machine.on(Event::Swept).0;
            return;
        }
        self.request_sweep().await;
    }

    /// What a killed guard has left outside of the leaf, or without a leaf: it has come to the next subreaper.
    async fn end_orphans(&mut self) {
        let bound = Instant::now().checked_add(self.config.stop.kill_bound);
        let bound = bound.unwrap_or_else(|| Instant::now() + KILL_BOUND);
        let has_leaf = self.containment.leaf().is_some();
        let emigrants = &mut self.report.emigrants;
        let found = |pid| {
            if has_leaf {
                emigrants.add(pid);
            }
        };
        match self.link.orphans_ended(bound, found).await {
            Ok(left) => {
                for pid in left {
                    self.report.unkillable.add_unkillable(pid);
                }
                self.name_unkillable();
            }
            Err(why) if !has_leaf => self.note(why),
            Err(_) => {}
        }
    }

    async fn request_sweep(&mut self) {
        self.expect_answer();
        let bound = self.config.stop.kill_bound.as_millis();
        let given_up = self.report.unkillable.count > 0;
        let sweep = ToGuard::Sweep { job: self.id, bound_ms: u64::try_from(bound).unwrap_or(u64::MAX), given_up };
        if self.link.send(&sweep, &[]).await.is_err() {
            // A guard that can't be told is lost, which comes as an event; it ends what there is.
            self.link.hang_up();
        }
    }

    /// A watch on the leaf, or none where the kernel refuses one: then it is looked at from time to time.
    pub(super) fn open_watch(&self) -> Option<AsyncFd<Arc<OwnedFd>>> {
        crate::supervisor::watch::watched_shared(self.containment.leaf()?.events(), Interest::PRIORITY).ok()
    }

    pub(super) async fn remove_leaf(&mut self) {
        let bound = Instant::now().checked_add(self.config.stop.kill_bound);
        loop {
            let JobContainment::Leaf(leaf) = &mut self.containment else { return };
            match leaf.remove() {
                Ok(true) => return,
                // The job has made many cgroups: deadlines, signals and other jobs have their turn.
                Ok(false) => tokio::task::yield_now().await,
                // Something came back into it, or (from 6.19 on) its last process is not yet off it.
                Err((_, Errno::BUSY))
                    if bound.is_some_and(|bound| Instant::now() < bound) && self.report.unkillable.count == 0 =>
                {
                    let _ = leaf.kill();
                    if self.watch.is_none() {
                        self.watch = self.open_watch();
                    }
                    tokio::select! {
                        () = wait_until_empty(self.containment.leaf(), self.watch.as_ref(), self.guard_lost) => {}
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

    /// A guard that had this one job ends with it.
    pub(super) async fn dismiss_guard(&mut self) {
        if self.containment.leaf().is_none() {
            self.link.hang_up();
            // Lost perhaps before the command was there, and what it had started came to its heir.
            if !self.link.gone().await || self.guard_lost {
                self.end_orphans().await;
            }
        }
    }

    pub(super) async fn finish(mut self: Box<Self>) -> Arc<Report> {
        let mut usage = match self.usage.take() {
            Some(usage) => *usage,
            None => self.usage(self.config.measure_pressure),
        };
        // The guard may have told it since.
        usage.main_resident_peak_bytes = Figure::resident_peak(self.seen.main_resident_peak);
        self.conclude_memory();
        self.remove_leaf().await;
        self.dismiss_guard().await;
        self.report.phases.gone = self.elapsed();
        if self.report.reason != Reason::Oom {
            self.report.reason = self.machine.reason;
        }
        self.report.publish(&self.events, self.report.reason);
        let exit_code = Report::exit_code_of(self.report.reason, self.report.main.as_ref());
        Arc::new(self.report.finish(usage, exit_code))
    }
}
