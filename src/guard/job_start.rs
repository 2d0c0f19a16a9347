//! The guard's part in the start of jobs: it begins the start of each job, waits a moment for it, and answers when the
//! start is over.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Result;

use super::event_loop::Guard;
use super::launch::{Launch, Launched, Stacks};
use super::protocol::{FromGuard, JobId};
use super::scheduling;
use super::spawn::{Failure, Job, SpawnRequest};
use super::sweep;
use crate::error::SpawnStage;
use crate::kernel::pidfd::Pidfd;
use crate::kernel::reap::Reaped;
use crate::kernel::signal::Signal;

/// The id of the second job: ids start at 1.
const SECOND_JOB: JobId = 2;

impl Guard {
    /// Starts a job. The answer to the supervisor may follow later.
    pub(super) fn handle_spawn(
        &mut self,
        job: JobId,
        leaf_tail: Option<String>,
        join: bool,
        spec: Option<Vec<u8>>,
        oom_score: Option<i32>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<()> {
        if job == SECOND_JOB {
            // Not for the first job: a supervisor with a single job would pay for this without a benefit.
            scheduling::shorten();
        }
        match SpawnRequest::new(leaf_tail, join || self.always_join, spec, oom_score, descriptors) {
            Ok(request) => self.start(job, request, false).map(drop),
            Err(failure) => self.send_failure(job, failure),
        }
    }

    fn start(&mut self, job: JobId, request: SpawnRequest, without_launcher: bool) -> Result<Option<(JobId, Reaped)>> {
        let started_ticks = sweep::ticks_since_boot();
        let leaf = request.leaf_name();
        let has_no_leaf = !request.has_leaf();
        let stacks = match self.stacks.take() {
            Some(stacks) => Ok(stacks),
            None => Stacks::new(),
        };
        let launch = stacks.map_err(|errno| Failure::new(SpawnStage::Clone, errno));
        let mut launch = match launch.and_then(|stacks| Launch::new(job, request, stacks, without_launcher)) {
            Ok(launch) => launch,
            Err(failure) => return self.send_failure(job, failure).map(|()| None),
        };
        let over = launch.wait();
        let pid = launch.pid().unwrap_or_default();
        let death_signal = launch.death_signal();
        self.childless = false;
        self.jobs.insert(job, Job { pid, reaped: false, started_ticks, leaf, has_no_leaf, death_signal });
        if over && launch.is_over() {
            return self.finish_start(launch);
        }
        self.launches.push(launch);
        Ok(None)
    }

    /// Handles a reaped child. Returns whether it belongs to a running start. If this start is over now and its main
    /// process has ended, adds the main process to `ended`.
    pub(super) fn reaped_of_a_start(&mut self, reaped: Reaped, ended: &mut Vec<(JobId, Reaped)>) -> Result<bool> {
        let Some(at) = self.launches.iter_mut().position(|launch| launch.reaped(reaped)) else { return Ok(false) };
        let launch = &self.launches[at];
        if let Some(main) = &launch.ended
            && main.pid == reaped.pid
        {
            self.spent.add(reaped.cpu_us);
            if let Some(job) = self.jobs.get_mut(&launch.job) {
                (job.pid, job.reaped) = (reaped.pid, true);
            }
        }
        if launch.is_over() {
            let launch = self.launches.swap_remove(at);
            ended.extend(self.finish_start(launch)?);
        }
        Ok(true)
    }

    /// Sends the answer for a start that is over. Returns the main process, if it has already ended and was reaped.
    fn finish_start(&mut self, mut launch: Launch) -> Result<Option<(JobId, Reaped)>> {
        let (job, joined, ended) = (launch.job, launch.joins(), launch.ended.take());
        let (launched, mut request, stacks) = launch.result(ended.is_some());
        self.stacks = Some(stacks);
        // If the job has been swept meanwhile, the supervisor already has its answer.
        let awaited = self.jobs.contains_key(&job);
        match launched {
            Launched::Executed { pidfd, .. } if !awaited => {
                let _ = Pidfd::from(pidfd).send(Signal::KILL);
                Ok(None)
            }
            _ if !awaited => Ok(None),
            Launched::Executed { pid, pidfd } => {
                // The last start of this job failed with NotStarted. The supervisor has not killed the job, but
                // requested it again, and this time it runs. So the kill-sequence bug was the cause.
                self.always_join |= joined && self.not_started == Some(job);
                if let Some(job) = self.jobs.get_mut(&job) {
                    job.pid = pid;
                }
                self.send(&FromGuard::Spawned { job, pid, joined }, vec![pidfd])?;
                Ok(ended.map(|reaped| (job, reaped)))
            }
            // The kernel (an old one) or a container's seccomp profile refuses the call itself, so the guard does not
            // try it again.
            Launched::Refused => {
                self.always_join = true;
                request.join = true;
                self.jobs.remove(&job);
                self.start(job, request, false)
            }
            Launched::ProcessLimitReached => {
                self.jobs.remove(&job);
                self.start(job, request, true)
            }
            Launched::NotStarted => {
                self.jobs.remove(&job);
                self.not_started = Some(job);
                self.send(&FromGuard::NotStarted { job }, Vec::new()).map(|()| None)
            }
            Launched::Failed(failure) => {
                self.jobs.remove(&job);
                self.send_failure(job, failure).map(|()| None)
            }
        }
    }

    /// Kills the main process of each start that has not reached its exec in time. If SIGKILL does not end that
    /// process, informs the supervisor.
    pub(super) fn perform_due_steps(&mut self) -> Result<()> {
        if self.launches.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let hanging = self.launches.iter_mut().filter_map(|launch| launch.perform_due_step(now).then_some(launch.job));
        for job in hanging.collect::<Vec<_>>() {
            self.report_hanging_start(job)?;
        }
        Ok(())
    }

    /// Reports to the supervisor at which step a start hangs.
    pub(super) fn report_hanging_start(&mut self, job: JobId) -> Result<()> {
        let Some(launch) = self.launches.iter().find(|launch| launch.job == job) else { return Ok(()) };
        let hangs = FromGuard::Hangs { job, pid: launch.pid().unwrap_or_default(), stage: launch.stage() };
        self.send(&hangs, Vec::new())
    }

    fn send_failure(&mut self, job: JobId, Failure { stage, errno }: Failure) -> Result<()> {
        self.send(&FromGuard::SpawnFailed { job, stage, errno: errno.raw_os_error() }, Vec::new())
    }
}
