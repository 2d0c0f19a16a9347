//! What a job keeps of its command while it runs: there may be thousands.

use crate::job::command::{Command, ProcessGroup};
use crate::job::stop::StopPolicy;

pub(super) struct JobConfig {
    pub stop: StopPolicy,
    pub process_group: ProcessGroup,
    pub measure_pressure: bool,
    pub oom_group: bool,
    /// It is bound to CPUs.
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
