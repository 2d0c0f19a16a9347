//! The part of a command that its job needs while it runs. It is small, because there may be thousands of jobs.

use crate::job::command::{Command, ProcessGroup};
use crate::job::stop::StopPolicy;

pub(super) struct JobConfig {
    pub stop: StopPolicy,
    pub process_group: ProcessGroup,
    pub measure_pressure: bool,
    pub oom_group: bool,
    /// The job is bound to CPUs.
    pub cpuset: bool,
}

impl JobConfig {
    pub fn of(command: &Command) -> Self {
        Self {
            stop: command.stop,
            process_group: command.process_group,
            measure_pressure: command.measure_pressure,
            oom_group: command.limits.oom_group,
            cpuset: command.limits.cpuset.is_some(),
        }
    }
}
