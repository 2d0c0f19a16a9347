//! How a job ended: one type for the library and for `--report`.

mod oom;
mod process;
mod reason;
mod refusal;
pub mod text;
mod usage;

use serde::{Deserialize, Serialize};

pub use oom::{Oom, OomVictim};
pub use process::ProcessInfo;
pub use reason::Reason;
pub use refusal::Refusal;
pub use usage::{Figure, Usage};

/// The version of the report's format: raised when a field changes its meaning or goes away, not when one is added.
pub const VERSION: u32 = 1;

/// What is told about a finished job. All times are in seconds.
///
/// ```
/// use pinfold::report::Reason;
/// use pinfold::{Command, Error, Report};
/// let error = Error::GuardLost;
/// let report = Report::of_failed_spawn(&Command::new("make"), &error);
/// assert_eq!((report.reason, report.exit_code), (Reason::SpawnFailed, 125));
/// let read: Report = serde_json::from_str(&report.to_json())?;
/// assert_eq!(read, report);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Report {
    /// The version of this format: 1.
    pub version: u32,
    /// The name that was given, else the program's file name.
    pub name: String,
    /// The command and its arguments; invalid UTF-8 is replaced.
    pub command: Vec<String>,
    /// The working directory that was asked for; null for the supervisor's own.
    pub cwd: Option<String>,
    /// The main process's id; null where none was started.
    pub pid: Option<i32>,
    /// How the job was held.
    pub containment: Containment,
    /// How the main process ended; null where that is not known (no process, or the guard was killed).
    pub main: Option<MainEnd>,
    /// Why the job ended.
    pub reason: Reason,
    /// Why there was no process, or what could not be done or found out, in words; null otherwise. From `pinfold run` also that
    /// the job was not ready in time, and that not all of its output went where it should.
    pub error: Option<String>,
    /// The exit code that `pinfold run` ends with for this job, but for 122 (not all could be ended: `unkillable`) and 123
    /// (`--fail-on-leftovers`). In its own reports also 124 where the job was not ready in time, and 125 where it succeeded and
    /// not all of its output went where it should: `error` says so.
    pub exit_code: u8,
    /// Whether SIGKILL was sent, because the grace period was over or a kill was asked for.
    pub killed: bool,
    /// When what happened.
    pub phases: Phases,
    /// What the whole job used.
    pub usage: Usage,
    /// Processes that the kernel's OOM killer ended; null where there were none.
    pub oom: Option<Oom>,
    /// Processes that were still there when the main process had exited by itself and the settle time was over; they were
    /// ended. Where pinfold waits for them: those that were there when the main process had exited.
    pub leftovers: ProcessList,
    /// Processes that were sent the stop signal, the main one included.
    pub stopped: ProcessList,
    /// Processes that had left the job's cgroup; they were ended.
    pub emigrants: ProcessList,
    /// Processes that SIGKILL did not end within the bound ([`Command::kill_bound`](crate::Command::kill_bound)), or that
    /// could not be signalled. They may still run.
    pub unkillable: ProcessList,
    /// Directories that could not be removed, and why.
    pub not_removed: Vec<NotRemoved>,
}

/// How the job was held.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Containment {
    /// What held it; null where the command was not started, so that nothing had to be held.
    pub kind: Option<ContainmentKind>,
    /// The directory of its cgroup, which is gone by now; null where there was none.
    pub cgroup: Option<String>,
    /// How it came into the cgroup; null where the command was not started.
    pub born: Option<Born>,
    /// Why nothing stronger was used; empty for a cgroup. Where nothing could be used at all, each thing that was tried.
    pub refused: Vec<Refusal>,
}

/// What can hold a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ContainmentKind {
    /// A cgroup v2 of its own.
    Cgroup,
    /// No cgroup: the guard, the child subreaper of this one job (PR_SET_CHILD_SUBREAPER(2const), Linux 3.4). It can't
    /// signal processes of other users; those are told as unkillable.
    Subreaper,
}

/// How the main process came into its cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Born {
    /// Cloned into it (`CLONE_INTO_CGROUP`, clone(2), Linux 5.7).
    Cloned,
    /// It joined by itself before it executed the command (it wrote itself into `cgroup.procs`, cgroups(7)), where the
    /// kernel refuses the former.
    Joined,
}

/// How the main process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MainEnd {
    /// It exited with this code.
    Exited(i32),
    /// A signal ended it.
    #[non_exhaustive]
    Signalled {
        /// The signal's number.
        signal: i32,
        /// Its name, as `SIGTERM`.
        name: String,
        /// Whether it dumped core.
        core_dumped: bool,
    },
}

/// Times of a job. A null phase was not reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Phases {
    /// When the spawn was ordered (or, where it failed, when it did), in seconds since 1970-01-01 UTC.
    pub ordered_at: f64,
    /// Seconds from then until the command was executed.
    pub spawned: Option<f64>,
    /// Seconds from then until the main process was reaped.
    pub main_exited: Option<f64>,
    /// Seconds from then until the leftovers were found: when the settle time was over, or at once where pinfold waits for
    /// them.
    #[serde(default)]
    pub settled: Option<f64>,
    /// Seconds from then until the stop signal was sent.
    pub stopping: Option<f64>,
    /// Seconds from then until SIGKILL was sent.
    pub killing: Option<f64>,
    /// Seconds from then until nothing ran in the cgroup.
    pub empty: Option<f64>,
    /// Seconds from then until all was over and the cgroup removed.
    pub gone: Option<f64>,
}

/// Processes, the first of them described.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ProcessList {
    /// How many there were, those included that `/proc` does not show.
    pub count: u64,
    /// At most 256 of them, as they were when they were found.
    pub processes: Vec<ProcessInfo>,
}

/// A directory that could not be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct NotRemoved {
    /// Where it is.
    pub path: String,
    /// The kernel's answer, in words: `EBUSY` where something is left in it, `EACCES` where another user made it,
    /// `EXDEV` where something is mounted on it.
    pub error: String,
}

impl Report {
    /// Whether the command did what it was run for: it ended by itself, with exit code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.reason == Reason::Exited && self.exit_code == 0
    }

    /// Whether nothing of the job is left: no process, no directory.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.unkillable.count == 0 && self.not_removed.is_empty()
    }

    /// The report as one line of JSON, without the newline.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Every field has a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// 124 at the deadline and the idle timeout; 125 where it was cancelled; else as the main process ended: its code, or 128 and the signal's number.
    pub(crate) fn exit_code_of(reason: Reason, main: Option<&MainEnd>) -> u8 {
        match (reason, main) {
            (Reason::Deadline | Reason::Idle, _) => 124,
            (Reason::Cancelled, _) => 125,
            (_, Some(MainEnd::Exited(code))) => u8::try_from(*code).unwrap_or(u8::MAX),
            (_, Some(MainEnd::Signalled { signal, .. })) => 128 + u8::try_from(*signal).unwrap_or(0),
            (_, None) => 125,
        }
    }
}
