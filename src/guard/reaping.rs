//! Reaps children that have ended, and reports the main processes among them.

use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::epoll;
use rustix::io::Result;

use super::event_loop::{CHILDREN, Guard};
use super::protocol::{FromGuard, JobId};
use crate::kernel::reap;
use crate::kernel::reap::{Reap, Reaped};
use crate::kernel::signal::Signal;
use crate::kernel::signal_set;
use crate::report::MainEnd;
use crate::subreaper::children;

impl Guard {
    pub(super) fn child_ended(&mut self) -> Result<()> {
        if self.reap_schedule.postpones(Instant::now(), !self.sweeps.is_empty()) {
            if !self.sweeps.is_empty() {
                // Each end triggers another step of the sweep.
                return signal_set::read_signal(self.children.as_fd()).map(drop);
            }
            // SIGCHLD is not read here, so it stays pending, and no further SIGCHLD wakes the guard meanwhile
            // (signal(7), standard signals).
            return self.listen_for_children(false);
        }
        self.reap()
    }

    /// Reaps now, without a delay: the supervisor waits for the last children.
    pub(super) fn reap_on_demand(&mut self) -> Result<()> {
        self.reap()?;
        self.reap_schedule.reset();
        Ok(())
    }

    pub(super) fn listen_for_children(&self, listen: bool) -> Result<()> {
        let interest = if listen { epoll::EventFlags::IN } else { epoll::EventFlags::empty() };
        epoll::modify(&self.epoll, &self.children, epoll::EventData::new_u64(CHILDREN), interest)
    }

    /// Reaps every child that has ended, including orphans of the jobs, and reports main processes.
    pub(super) fn reap(&mut self) -> Result<()> {
        if self.reap_schedule.due().is_some() {
            self.listen_for_children(true)?;
        }
        // One read is enough, because at most one SIGCHLD is pending (standard signals do not queue).
        signal_set::read_signal(self.children.as_fd())?;
        let mut orphans = 0;
        let mut ended: Vec<(JobId, Reaped)> = Vec::new();
        let childless = loop {
            match reap::reap()? {
                Reap::Child(reaped) => {
                    for all in self.sweeps.iter_mut().filter_map(|sweep| sweep.all.as_mut()) {
                        all.reaped(reaped.pid);
                    }
                    if self.reaped_of_a_start(reaped, &mut ended)? {
                        continue;
                    }
                    self.spent.add(reaped.cpu_us);
                    let found = self.jobs.iter_mut().find(|(_, job)| job.pid == reaped.pid && !job.reaped);
                    if let Some((&id, job)) = found {
                        job.reaped = true;
                        ended.push((id, reaped));
                    } else {
                        orphans += 1;
                    }
                }
                Reap::NoneEnded => break false,
                Reap::NoChildren => break true,
            }
        };
        self.childless = childless;
        self.reap_schedule.scan_done(Instant::now(), orphans);
        while !childless && let Some((pid, signal)) = reap::next_stopped() {
            if let Some(launch) = self.launches.iter().find(|launch| launch.launcher() == Some(pid)) {
                // A process of another job has stopped the launcher.
                launch.resume();
                continue;
            }
            let main = self.jobs.iter().find(|(_, job)| job.pid == pid && !job.reaped).map(|(&id, _)| id);
            if let Some(job) = main {
                self.send(&FromGuard::Stopped { job, signal }, Vec::new())?;
            }
        }
        let no_descendant_left = childless || !ended.is_empty() && self.has_main_processes_only();
        for (job, reaped) in ended {
            if no_descendant_left {
                self.jobs.remove(&job);
            }
            let end = if reaped.code == libc::CLD_EXITED {
                MainEnd::Exited(reaped.status)
            } else {
                let signal = reaped.status;
                let name = Signal::from_number(signal).map_or_else(|| signal.to_string(), |signal| signal.to_string());
                MainEnd::Signalled { signal, name, core_dumped: reaped.code == libc::CLD_DUMPED }
            };
            let spent = self.spent;
            let (max_rss_kib, childless) = (reaped.max_rss_kib, no_descendant_left);
            let exited = FromGuard::Exited { job, end, max_rss_kib, childless, spent };
            self.send(&exited, Vec::new())?;
        }
        if childless
            && self.sweeps.is_empty()
            && let Some((&job, _)) = self.jobs.iter().find(|(_, job)| job.has_no_leaf && job.reaped)
        {
            self.jobs.remove(&job);
            self.send(&FromGuard::Childless { job, spent: self.spent }, Vec::new())?;
        }
        Ok(())
    }

    /// Returns whether all children of the guard are main processes. If so, a job whose main process has been reaped
    /// has no descendant left: such a descendant would descend from a child of the guard that is not a main process
    /// ([`Sweep::step_outside`](super::sweep::Sweep)). Then no search is needed.
    fn has_main_processes_only(&self) -> bool {
        let living = self.jobs.values().filter(|job| !job.reaped).count();
        living > 0 && children::own_children().is_ok_and(|children| children.len() == living)
    }
}
