//! The processes that remain in a job: which of them are finishing, and how the report lists them.

use std::time::Instant;

use super::actions::DESCRIBE_TIME;
use super::actor::Actor;
use super::settle::Remaining;
use super::stop::Event;
use crate::report::ProcessInfo;
use crate::supervisor::containment::JobContainment;

impl Actor {
    /// Returns the processes of the job, as far as pinfold can find them.
    pub(super) fn list_processes(&self) -> Vec<ProcessInfo> {
        let (pids, _) = self.containment.with_reserve(JobContainment::processes);
        pids.into_iter().filter_map(ProcessInfo::of_living).collect()
    }

    /// Finds out which of the remaining processes are finishing, when the short part of the settle time is over.
    pub(super) fn inspect_remaining(&mut self) -> Event {
        let input = self.spawn_request.input;
        let left = self.containment.with_reserve(|containment| Remaining::inspect(&containment.processes().0, input));
        let finishing = !left.finishing.is_empty();
        if finishing {
            self.remaining = left;
        }
        Event::Inspected { finishing }
    }

    /// Lists the processes that are not finishing as leftovers.
    pub(super) fn list_others(&mut self) {
        if self.remaining.others.is_empty() {
            return;
        }
        self.report.phases.settled = self.elapsed();
        let bound = Instant::now() + DESCRIBE_TIME;
        self.remaining.others.iter().for_each(|&pid| self.report.leftovers.add_until(bound, pid));
    }

    /// Lists the remaining processes as leftovers, except those that are listed already.
    pub(super) fn list_leftovers(&mut self) {
        self.report.phases.settled = self.report.phases.settled.or(self.elapsed());
        let (leftovers, listed_before) = (&mut self.report.leftovers, &self.remaining.others);
        let count_before = leftovers.count;
        let listed = self.containment.with_reserve(|containment| {
            let (processes, listed) = containment.processes();
            let bound = Instant::now() + DESCRIBE_TIME;
            for pid in processes.into_iter().filter(|pid| !listed_before.contains(pid)) {
                leftovers.add_until(bound, pid);
            }
            listed
        });
        self.report.unfinished_filters =
            !self.remaining.finishing.is_empty() && self.report.leftovers.count > count_before;
        if let Err(errno) = listed {
            self.note(&format!("not every leftover could be listed: {errno}"));
        }
    }

    /// Lists the remaining processes as unkillable, because the time after SIGKILL is over.
    pub(super) fn list_unkillable(&mut self) {
        let (mut left, listed) = self.containment.with_reserve(JobContainment::processes);
        if let Err(errno) = listed {
            self.note(&format!("not every process that is left could be listed: {errno}"));
        }
        if let Some((main, pidfd)) = self.living_main()
            && !pidfd.has_ended()
            && !left.contains(main)
        {
            left.push(*main);
        }
        for pid in left {
            self.report.unkillable.add_unkillable(pid);
        }
        self.name_unkillable();
    }

    /// Adds the command lines of the unkillable processes to the report. Call this after the processes have been
    /// listed.
    pub(super) fn name_unkillable(&mut self) {
        let now = self.elapsed().unwrap_or_default();
        self.report.name_unkillable(now);
    }
}
