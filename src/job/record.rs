//! Records the facts about a job that `pinfold ps` shows: in extended attributes of the job's cgroup, or in a memfd of
//! the supervisor. Supervision does not need this record, so the functions here ignore errors. After an error, `pinfold
//! ps` shows fewer facts.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, getpid};

use super::command::Command;
use super::stop::SignalTo;
use crate::report::{DESCRIPTION_VERSION, Description};
use crate::subreaper::description::MemfdRecord;
use crate::supervisor::Inner;
use crate::supervisor::containment::JobContainment;
use crate::supervisor::link::Link;

/// The record of one job.
pub(super) struct JobRecord {
    /// The description; `None` after it has been recorded.
    description: Option<Box<Description>>,
    /// The record of a job without a cgroup.
    memory: Option<MemfdRecord>,
    /// Whether the record already says that the job is being stopped.
    stopping: bool,
}

/// Returns the description of a job that is about to start. `words` are the command and its arguments.
pub(super) fn describe(supervisor: &Inner, command: &Command, words: &[String], link: &Link) -> Description {
    Description {
        version: DESCRIPTION_VERSION,
        name: command.display_name(),
        command: Description::shortened(words),
        kind: supervisor.kind,
        supervisor: getpid().as_raw_nonzero().get(),
        guard: link.pid.as_raw_nonzero().get(),
        started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        stop_signal: command.stop.signal.number(),
        grace: command.stop.grace.as_secs_f64(),
        kill_bound: command.stop.kill_bound.as_secs_f64(),
        signal_to_main: command.stop.signal_to == SignalTo::Main,
        sandboxed: command.sandbox.is_some(),
    }
}

impl JobRecord {
    pub fn new(description: Description) -> Self {
        Self { description: Some(Box::new(description)), memory: None, stopping: false }
    }

    /// Records that the job starts.
    pub fn record_start(&mut self, containment: &JobContainment) {
        let Some(description) = self.description.take() else { return };
        match containment.leaf() {
            Some(leaf) => drop(leaf.cgroup().describe(&description)),
            None => self.memory = MemfdRecord::new(&description).ok(),
        }
    }

    /// Records the main process.
    pub fn record_main(&self, containment: &JobContainment, pid: Pid) {
        let _ = match (containment.leaf(), &self.memory) {
            (Some(leaf), _) => leaf.cgroup().describe_main(pid),
            (None, Some(memory)) => memory.record_main(pid),
            (None, None) => Ok(()),
        };
    }

    /// Records that the job is being stopped.
    pub fn record_stop(&mut self, containment: &JobContainment) {
        if std::mem::replace(&mut self.stopping, true) {
            return;
        }
        let _ = match (containment.leaf(), &self.memory) {
            (Some(leaf), _) => leaf.cgroup().describe_stop(),
            (None, Some(memory)) => memory.record_stop(),
            (None, None) => Ok(()),
        };
    }
}
