//! Performs the actions of the stop machine on the job, and records them in the report.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::actor::{Actor, SIGNAL_TIME, scans};
use super::wait_until_empty::{sleep_until, wait_until_empty};
use crate::guard::KILL_BOUND;
use crate::guard::protocol::ToGuard;
use crate::job::command::ProcessGroup;
use crate::job::settle;
use crate::job::settle::Left;
use crate::job::stop::{Action, Event, Phase, SignalTo};
use crate::kernel::process;
use crate::kernel::scan::ScanLimits;
use crate::kernel::signal::Signal;
use crate::kernel::wake::Wake;
use crate::report::ProcessInfo;
use crate::report::{Figure, NotRemoved, Reason, Report};
use crate::subreaper::descendants::Descendants;
use crate::supervisor::containment::JobContainment;

/// Limits of the time for sending the stop signal and SIGCONT, which is otherwise the grace period.
const MIN_STOP_SIGNAL_TIME: Duration = Duration::from_millis(250);
const MAX_STOP_SIGNAL_TIME: Duration = Duration::from_secs(10);

/// How long pinfold reads the details of processes that are to receive a signal or that remained, and that run on
/// meanwhile. Processes after that are only counted.
const DESCRIBE_TIME: Duration = Duration::from_millis(500);

/// How long the answer of the guard may take, in addition to the time that the guard has for its work.
const ANSWER: Duration = Duration::from_secs(1);

/// How long a stop waits for an exec in progress, so that the command itself receives the stop signal.
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
                    // The guard has the kill bound for its work, and a moment more for its answer.
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

    /// Starts the grace period. Before its exec the command can't use a grace period; then pinfold waits a short time
    /// for the exec.
    pub(super) fn start_grace(&mut self) {
        let grace = self.config.stop.grace;
        let grace = if self.main.is_some() { grace } else { grace.min(EXEC_GRACE) };
        self.grace_over = Instant::now().checked_add(grace);
    }

    /// Sends the stop signal and SIGCONT, and thaws the job: a stopped or frozen process does not act on SIGTERM.
    pub(super) fn send_stop_signal(&mut self) {
        let signal = self.machine.first_signal.unwrap_or(self.config.stop.signal);
        let main = self.main.clone().filter(|_| !self.machine.main_exited);
        let mut main_found = false;
        // Among leftovers there is no main process to send the signal to.
        let all = self.config.stop.signal_to == SignalTo::All || main.is_none();
        // Processes that have not received the signal when the grace period is over are killed.
        let time = self.config.stop.grace.clamp(MIN_STOP_SIGNAL_TIME, MAX_STOP_SIGNAL_TIME);
        let scans = if all { scans(time) } else { ScanLimits::new(0, Duration::ZERO) };
        let (stopped, described) = (&mut self.report.stopped, Instant::now() + DESCRIBE_TIME.min(time / 2));
        // Some processes may have received a signal of this stop before: another signal, or the stop signal as
        // processes that were not finishing.
        let signalled = &mut self.signalled;
        let sent = self.containment.with_reserve(|containment| {
            // Processes that the scans miss are killed when the grace period is over. SIGCONT follows because a stopped
            // process does not act on the stop signal.
            let sent = containment.signal_all(&[signal, Signal::CONT], scans, |pid| {
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
                // It may have ended; then the guard reports its exit soon.
                let _ = pidfd.send(signal).and_then(|()| pidfd.send(Signal::CONT));
            }
            sent.map(drop).and(containment.thaw())
        });
        if let Err(errno) = sent {
            self.note(&format!("the stop signal did not reach every process: {errno}"));
        }
    }

    /// Returns whether any of the remaining processes is finishing, when the short part of the settle time is over.
    pub(super) fn look_at_left(&mut self) -> bool {
        let input = self.spawn_request.input;
        let left = self.containment.with_reserve(|containment| Left::look(&containment.processes().0, input));
        let any = !left.finishing.is_empty();
        if any {
            self.left = left;
        }
        any
    }

    /// Stops the processes that are not finishing. A process that was started since is a descendant of a finishing one,
    /// or is found when the settle time is over.
    fn stop_others(&mut self) {
        if self.left.others.is_empty() {
            return;
        }
        let bound = Instant::now() + DESCRIBE_TIME;
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
                scans(SIGNAL_TIME),
                |pid| others.contains(&pid),
                |pid| stopped.add_until(bound, pid),
            )
        });
        if let Err(errno) = sent {
            self.note(&format!("the stop signal did not reach every leftover: {errno}"));
        }
    }

    /// Notes in the report what pinfold could not do or find out.
    pub(super) fn note(&mut self, what: &str) {
        match &mut self.report.error {
            Some(error) => *error = format!("{error}; {what}"),
            none => *none = Some(what.to_owned()),
        }
    }

    /// Sends `signal` to the main process, then to every other process of the job in the process group that the main
    /// process was started in.
    pub(super) fn signal_group(&self, signal: Signal) {
        let Some((main, pidfd)) = &self.main else { return };
        if !self.machine.main_exited {
            // It may have ended; then the guard reports its exit soon.
            let _ = pidfd.send(signal);
        }
        let group = match self.config.process_group {
            ProcessGroup::New | ProcessGroup::NewSession | ProcessGroup::NewSessionOnTerminal => {
                main.as_raw_nonzero().get()
            }
            ProcessGroup::Supervisors => process::own_process_group().unwrap_or(0),
        };
        let wanted = |pid: Pid| pid != *main && process::process_group_of(pid) == group;
        let _ = self.containment.signal_those(&[signal], scans(SIGNAL_TIME), wanted, |_| {});
    }

    pub(super) async fn kill(&mut self) {
        // The processes that this does not end are reported when the kill bound is over.
        match &self.containment {
            JobContainment::Leaf(leaf) => drop(leaf.kill()),
            JobContainment::Guard(_) if self.guard_lost => {
                self.end_orphans().await;
                self.swept = true;
            }
            JobContainment::Guard(link) => {
                if self.main.is_none() {
                    // If the guard could not create another process to start the job, the guard itself waits for the
                    // exec.
                    let _ = Descendants::of(link.pid).kill_all(|_| {});
                }
                self.request_sweep().await;
            }
        }
        if let Some((_, pidfd)) = &self.main
            && !self.machine.main_exited
        {
            // The main process may have left its leaf.
            let _ = pidfd.send(Signal::KILL);
        }
    }

    /// Returns the processes of the job, as far as pinfold can find them.
    pub(super) fn list_processes(&self) -> Vec<ProcessInfo> {
        let (pids, _) = self.containment.with_reserve(JobContainment::processes);
        pids.into_iter().filter_map(ProcessInfo::of_living).collect()
    }

    pub(super) fn list_leftovers(&mut self) {
        self.report.phases.settled = self.report.phases.settled.or(self.elapsed());
        let (leftovers, listed_before) = (&mut self.report.leftovers, &self.left.others);
        let listed = self.containment.with_reserve(|containment| {
            let (processes, listed) = containment.processes();
            let bound = Instant::now() + DESCRIBE_TIME;
            for pid in processes.into_iter().filter(|pid| !listed_before.contains(pid)) {
                leftovers.add_until(bound, pid);
            }
            listed
        });
        if let Err(errno) = listed {
            self.note(&format!("not every leftover could be listed: {errno}"));
        }
    }

    /// Reports the remaining processes, because the time after SIGKILL is over.
    pub(super) fn give_up(&mut self, phase: Phase) {
        if phase == Phase::Killing {
            if self.swept {
                // The guard has reported the remaining processes.
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
            self.note("the guard did not report in time whether processes are left outside of the cgroup");
        }
    }

    /// Gives the unkillable processes their command lines. Call it when they are listed in the report.
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

    /// Ends the processes that a killed guard has left outside of the leaf, or all of them if there is no leaf. The
    /// kernel has reparented them to the next subreaper.
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
            // If the message can't be sent, the guard is lost, and an event reports that. A guard that still runs ends
            // the processes when the connection closes.
            self.link.hang_up();
        }
    }

    /// Opens a watch on the leaf. Returns `None` if the kernel refuses one; then pinfold looks at the leaf at
    /// intervals.
    pub(super) fn open_watch(&self) -> Option<AsyncFd<Arc<OwnedFd>>> {
        crate::supervisor::watch::watched_shared(self.containment.leaf()?.events(), Interest::PRIORITY).ok()
    }

    pub(super) async fn remove_leaf(&mut self) {
        let bound = Instant::now().checked_add(self.config.stop.kill_bound);
        loop {
            let JobContainment::Leaf(leaf) = &mut self.containment else { return };
            match leaf.remove() {
                Ok(true) => return,
                // The job has made many cgroups. Deadlines, signals and other jobs have their turn in between.
                Ok(false) => tokio::task::yield_now().await,
                // A process has entered the leaf again, or (from Linux 6.19 on) the kernel has not finished the removal
                // of its last process.
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

    /// Ends the guard of a job without a leaf: that guard has only this job.
    pub(super) async fn dismiss_guard(&mut self) {
        if self.containment.leaf().is_none() {
            self.link.hang_up();
            // If the guard was lost before the command was started, the processes that it had started were reparented
            // to the next subreaper.
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
        // The guard may have reported this after the usage was read.
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
