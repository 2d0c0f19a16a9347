//! The clean-up at the end of a job: ends the processes that a lost guard has left, removes the leaf, ends the guard,
//! and completes the report.

use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;

use super::actor::Actor;
use super::clock::sleep_until;
use super::wait_until_empty::{open_watch, wait_until_empty};
use crate::guard::KILL_BOUND;
use crate::report::{Figure, NotRemoved, Reason, Report};
use crate::supervisor::containment::JobContainment;

impl Actor {
    /// Reads the final usage of the job and removes its leaf, if no process is left in the leaf.
    pub(super) async fn clean_up_early(&mut self) {
        if self.containment.leaf().is_some_and(|leaf| leaf.populated() == Ok(false)) {
            self.read_usage_and_remove_leaf();
            // The guard has usually reported the exit status by now.
            tokio::task::yield_now().await;
        }
        if self.answers.is_empty() {
            self.expect_answer();
        }
    }

    fn read_usage_and_remove_leaf(&mut self) {
        self.usage = Some(Box::new(self.usage(self.measure_pressure)));
        if let JobContainment::Leaf(leaf) = &mut self.containment
            // The memory controller's files are needed until the guard reports the exit status, which shows whether
            // SIGKILL ended the main process. Only then can pinfold decide whether the OOM killer did that.
            && !leaf.has_controller("memory")
        {
            // If the leaf can't be removed yet, the actor tries again when the job is over.
            let _ = leaf.remove();
        }
    }

    /// Ends the processes that a killed guard has left outside of the leaf, or all of them if there is no leaf. The
    /// kernel has reparented them to the next subreaper.
    pub(super) async fn end_orphans(&mut self) {
        let bound = Instant::now().checked_add(self.policy.kill_bound);
        let bound = bound.unwrap_or_else(|| Instant::now() + KILL_BOUND);
        let has_leaf = self.containment.leaf().is_some();
        let emigrants = &mut self.report.emigrants;
        let found = |pid| {
            if has_leaf {
                emigrants.add(pid);
            }
        };
        match self.link.wait_for_orphans(bound, found).await {
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

    pub(super) async fn remove_leaf(&mut self) {
        let bound = Instant::now().checked_add(self.policy.kill_bound);
        loop {
            let JobContainment::Leaf(leaf) = &mut self.containment else { return };
            match leaf.remove() {
                Ok(true) => return,
                // The job has made many cgroups. The actor removes them in steps, so that deadlines, signals and other
                // jobs do not have to wait.
                Ok(false) => tokio::task::yield_now().await,
                // A process has entered the leaf again, or (from Linux 6.19 on, "cgroup: Defer task cgroup unlink until
                // after the task is done switching out") the kernel has not yet removed its last process.
                Err((_, Errno::BUSY))
                    if bound.is_some_and(|bound| Instant::now() < bound) && self.report.unkillable.count == 0 =>
                {
                    let _ = leaf.kill();
                    if self.watch.is_none() {
                        self.watch = open_watch(leaf);
                    }
                    let guard_lost = self.machine.guard_lost;
                    tokio::select! {
                        () = wait_until_empty(self.containment.leaf(), self.watch.as_ref(), guard_lost) => {}
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
            self.link.disconnect();
            // If the guard was lost before the command was started, the processes that it had started were reparented
            // to the next subreaper.
            if !self.link.gone().await || self.machine.guard_lost {
                self.end_orphans().await;
            }
        }
    }

    /// Records what the sandbox has refused. The job is over, so this is complete.
    fn record_denials(&mut self) {
        let (Some(denial_listener), Some(sandbox)) = (self.denial_listener.take(), &mut self.report.sandbox) else {
            return;
        };
        let record = denial_listener.record();
        sandbox.denials = Some(record.denials);
        sandbox.denials_left_out = record.left_out;
        if let Some(why) = record.error {
            let why =
                format!("pinfold could not inspect all calls of the job, so sandbox.denials can be incomplete: {why}");
            self.note(&why);
        }
    }

    pub(super) async fn finish(mut self: Box<Self>) -> Arc<Report> {
        let mut usage = match self.usage.take() {
            Some(usage) => *usage,
            None => self.usage(self.measure_pressure),
        };
        // The guard may have reported this figure after the usage was read.
        usage.main_resident_peak_bytes = Figure::resident_peak(self.seen.main_resident_peak);
        self.record_oom_kills();
        self.record_denials();
        self.remove_leaf().await;
        // While the guard still runs: if this process is killed now, the guard removes the private tmp.
        self.remove_private_tmp().await;
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
