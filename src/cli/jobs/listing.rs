//! What `pinfold ps --json` and `pinfold stats --json` print.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::Pid;
use serde::Serialize;

use super::find::{Containment, Job, Supervisor};
use crate::cgroup::usage::Measured;
use crate::kernel::process;
use crate::report::{ContainmentKind, Figure, SupervisorKind, Usage};

/// The version of the format. It increases when a field changes its meaning or is removed.
pub(crate) const VERSION: u32 = 1;

/// The jobs that run now.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct Listing {
    /// The version of the format. It increases when a field changes its meaning or is removed.
    pub version: u32,
    pub supervisors: Vec<SupervisorEntry>,
}

/// One supervisor.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct SupervisorEntry {
    /// Its pid in this PID namespace; null if it is not visible here, or if it has ended.
    pub pid: Option<i32>,
    /// Its kind, from the record of a job; null if there is no record.
    pub kind: Option<SupervisorKind>,
    /// Its command line; empty if it is not visible, or if the supervisor has ended.
    pub command_line: String,
    /// The user id of its owner.
    pub owner: u32,
    pub containment: ContainmentKind,
    /// The directory of its base; null without a cgroup.
    pub cgroup: Option<String>,
    /// Whether the supervisor and its guard have both ended. `pinfold sweep` removes what they left.
    pub abandoned: bool,
    pub jobs: Vec<JobEntry>,
}

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// The command has not been executed yet.
    Starting,
    Running,
    /// pinfold is ending the job.
    Stopping,
    Frozen,
    /// The supervisor and its guard have both ended.
    Abandoned,
}

/// One job.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub(crate) struct JobEntry {
    pub name: String,
    /// The pid of the main process; null until the command has been executed, and in another PID namespace.
    pub pid: Option<i32>,
    pub state: State,
    pub command: Vec<String>,
    /// The directory of its leaf; null without a cgroup.
    pub cgroup: Option<String>,
    /// The time since pinfold started the job, in seconds.
    pub age_seconds: f64,
    /// The number of processes that are visible here.
    pub processes: usize,
    /// The CPU time of the job until now. With a cgroup, this includes the processes that have ended.
    pub cpu_microseconds: Figure,
    /// The memory that the job uses now.
    pub memory_bytes: Figure,
    pub sandboxed: bool,
    /// All resources that the job has used; only in the output of `pinfold stats`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

impl Listing {
    /// Describes the supervisors and their jobs. With `with_usage`, it reads all figures of each job's cgroup.
    pub fn of(supervisors: &[Supervisor], with_usage: bool) -> Self {
        let supervisors = supervisors.iter().map(|supervisor| SupervisorEntry::of(supervisor, with_usage));
        Self { version: VERSION, supervisors: supervisors.collect() }
    }

    /// Returns the JSON form, in one line.
    pub fn to_json(&self) -> String {
        // Every field has a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl SupervisorEntry {
    fn of(supervisor: &Supervisor, with_usage: bool) -> Self {
        Self {
            pid: supervisor.pid.map(|pid| pid.as_raw_nonzero().get()),
            kind: supervisor.kind(),
            command_line: supervisor.command_line(),
            owner: supervisor.owner,
            containment: supervisor.containment(),
            cgroup: supervisor.base.as_ref().map(|base| base.display().to_string()),
            abandoned: supervisor.abandoned,
            jobs: supervisor.jobs.iter().map(|job| JobEntry::of(job, supervisor.abandoned, with_usage)).collect(),
        }
    }
}

impl JobEntry {
    fn of(job: &Job, abandoned: bool, with_usage: bool) -> Self {
        let known = job.description.as_ref();
        let state = match job {
            _ if abandoned => State::Abandoned,
            Job { frozen: true, .. } => State::Frozen,
            Job { stopping: true, .. } => State::Stopping,
            Job { started: false, .. } => State::Starting,
            _ => State::Running,
        };
        let processes = job.processes();
        let (usage, cpu, memory) = match &job.containment {
            Containment::Leaf(leaf) => {
                let controllers = leaf.read(c"cgroup.controllers").unwrap_or_default();
                let (usage, _) = Usage::read(leaf, &controllers, Measured::default(), with_usage);
                let cpu = match (usage.cpu_user_microseconds.value, usage.cpu_system_microseconds.value) {
                    (Some(user), Some(system)) => Figure::known(user + system, "cpu.stat"),
                    _ => usage.cpu_user_microseconds.clone(),
                };
                let memory = match usage.memory_current_bytes.value {
                    Some(_) => usage.memory_current_bytes.clone(),
                    None => resident(&processes),
                };
                (usage, cpu, memory)
            }
            Containment::Guard(_) => {
                let cpu = Figure::known(cpu_time(&processes), "/proc/PID/stat of the processes that run now");
                (Usage::unknown("the kernel counts this only for a cgroup"), cpu, resident(&processes))
            }
        };
        Self {
            name: job.name().to_owned(),
            pid: job.main.map(|pid| pid.as_raw_nonzero().get()),
            state,
            command: known.map(|known| known.command.clone()).unwrap_or_default(),
            cgroup: match &job.containment {
                Containment::Leaf(leaf) => Some(leaf.path().display().to_string()),
                Containment::Guard(_) => None,
            },
            age_seconds: known.map_or(0.0, |known| age(known.started)),
            processes: processes.len(),
            cpu_microseconds: cpu,
            memory_bytes: memory,
            sandboxed: known.is_some_and(|known| known.sandboxed),
            usage: with_usage.then_some(usage),
        }
    }
}

/// Returns the time since `started` (in seconds since 1970), in seconds with three decimals.
fn age(started: f64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    ((now - started).max(0.0) * 1e3).round() / 1e3
}

/// Returns the resident memory of the processes. Memory that they share counts once for each of them.
fn resident(processes: &[Pid]) -> Figure {
    let pages = |pid: &Pid| -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", pid.as_raw_nonzero())).ok()?;
        text.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    let pages: u64 = processes.iter().filter_map(pages).sum();
    Figure::known(pages * rustix::param::page_size() as u64, "the sum of the resident memory in /proc/PID/statm")
}

/// Returns the CPU time of the processes and of the children that they have waited for, in microseconds.
fn cpu_time(processes: &[Pid]) -> u64 {
    let ticks: u64 = processes
        .iter()
        .filter_map(|pid| process::cpu_ticks(&std::fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?))
        .sum();
    ticks * 1_000_000 / rustix::param::clock_ticks_per_second()
}
