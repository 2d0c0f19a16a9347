//! The report of a job that still runs. It has no usage figures: they are known only at the end, they are more than
//! half of the size of a [`Report`], and there may be thousands of jobs.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::Error;
use crate::job::command::Command;
use crate::report::{
    Containment, MainEnd, NotRemoved, Oom, Phases, ProcessList, Reason, Report, SandboxReport, Usage, VERSION,
};
use crate::supervisor::events::{EventKind, Log};

/// The fields of [`Report`].
pub(crate) struct ReportBuilder {
    pub name: String,
    pub command: Vec<String>,
    pub cwd: Option<String>,
    pub pid: Option<i32>,
    pub containment: Containment,
    pub sandbox: Option<Box<SandboxReport>>,
    pub main: Option<MainEnd>,
    pub reason: Reason,
    pub error: Option<String>,
    pub killed: bool,
    pub phases: Phases,
    pub oom: Option<Oom>,
    pub leftovers: ProcessList,
    pub unfinished_filters: bool,
    pub stopped: ProcessList,
    pub emigrants: ProcessList,
    pub unkillable: ProcessList,
    pub not_removed: Vec<NotRemoved>,
}

impl ReportBuilder {
    /// Returns the report of a job that begins now.
    pub fn of(command: &Command) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            name: command.display_name(),
            command: command.display_argv(),
            cwd: command.display_cwd(),
            pid: None,
            containment: Containment { kind: None, cgroup: None, born: None, refused: Vec::new() },
            sandbox: None,
            main: None,
            reason: Reason::Exited,
            error: None,
            killed: false,
            phases: Phases { requested_at: now.as_secs_f64(), ..Phases::default() },
            oom: None,
            leftovers: ProcessList::default(),
            unfinished_filters: false,
            stopped: ProcessList::default(),
            emigrants: ProcessList::default(),
            unkillable: ProcessList::default(),
            not_removed: Vec::new(),
        }
    }

    /// Publishes the events that have happened since the last call. `reason` is why the job ends.
    pub fn publish(&self, events: &Log, reason: Reason) {
        let phases = &self.phases;
        let leftovers = phases.settled.filter(|_| self.leftovers.count > 0);
        // If a job ends quickly, pinfold finds OOM kills only at the end.
        let kills = self.oom.as_ref().map_or(0, |oom| oom.kills);
        let oom = phases.empty.filter(|_| kills > 0);
        events.publish([
            (phases.spawned, EventKind::Spawned { pid: self.pid.unwrap_or(0) }),
            (phases.main_exited, EventKind::MainExited { end: self.main.clone() }),
            (leftovers, EventKind::Leftovers { count: self.leftovers.count }),
            (phases.stopping, EventKind::Stopping { reason }),
            (phases.killing, EventKind::Killing { reason }),
            (phases.empty, EventKind::Empty),
            (oom, EventKind::OutOfMemory { kills }),
            (phases.gone, EventKind::Gone),
        ]);
    }

    pub fn finish(self, usage: Usage, exit_code: u8) -> Report {
        let Self { name, command, cwd, pid, containment, main, reason, error, killed, phases, .. } = self;
        let Self { sandbox, oom, leftovers, unfinished_filters, stopped, emigrants, unkillable, not_removed, .. } =
            self;
        Report {
            version: VERSION,
            name,
            command,
            cwd,
            pid,
            containment,
            sandbox: sandbox.map(|sandbox| *sandbox),
            main,
            reason,
            error,
            exit_code,
            killed,
            phases,
            usage,
            oom,
            leftovers,
            unfinished_filters,
            stopped,
            emigrants,
            unkillable,
            not_removed,
        }
    }

    /// Gives each unkillable process the command line that it had before the kill, because a process that hangs in the
    /// kernel does not show its own. `now` is in seconds since `requested_at`.
    pub(crate) fn name_unkillable(&mut self, now: f64) {
        // Another process may have had the same pid before; then the start times differ by more than this, in seconds.
        const SAME: f64 = 0.5;
        let Self { stopped, leftovers, phases, pid, command, unkillable, .. } = self;
        let known = [(stopped, phases.stopping), (leftovers, phases.settled)];
        for left in unkillable.processes.iter_mut().filter(|left| left.command_line.starts_with('[')) {
            let started = now - left.age_seconds;
            let before = known.iter().filter_map(|(list, at)| Some((list.processes.iter(), (*at)?)));
            let mut before = before.flat_map(|(list, at)| list.map(move |process| (process, at)));
            let same = before
                .find(|(process, at)| process.pid == left.pid && (at - process.age_seconds - started).abs() < SAME);
            if let Some((process, _)) = same {
                left.command_line.clone_from(&process.command_line);
            } else if *pid == Some(left.pid) && phases.main_exited.is_none() {
                left.command_line = command.join(" ");
            }
        }
    }
}

impl Report {
    /// Returns the report of a command that could not be started. It contains the text of the error. Its reason is that
    /// of the stop that ended the start before the exec; otherwise it is [`Reason::SpawnFailed`].
    #[must_use]
    pub fn of_failed_spawn(command: &Command, error: &Error) -> Self {
        let mut report = ReportBuilder::of(command);
        report.reason = match error {
            Error::EndedEarly { reason, .. } => *reason,
            Error::Hangs(start) => start.reason,
            _ => Reason::SpawnFailed,
        };
        if let Error::Containment { refusals, .. } = error {
            report.containment.refused.clone_from(refusals);
        }
        if let Error::Hangs(start) = error {
            report.unkillable.clone_from(&start.unkillable);
            report.not_removed.clone_from(&start.not_removed);
        }
        report.error = Some(error.to_string());
        report.finish(Usage::unknown("the command was not started"), error.exit_code())
    }

    /// Returns the report of a job that waited in a pool and was never started.
    pub(crate) fn of_cancelled(command: &Command) -> Self {
        let report = ReportBuilder { reason: Reason::Cancelled, ..ReportBuilder::of(command) };
        report.finish(Usage::unknown("the command was not started"), Self::exit_code_of(Reason::Cancelled, None))
    }
}
