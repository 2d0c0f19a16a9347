//! The report, which describes how a job ended: one type for the library and for `--report`.

mod denial;
mod description;
mod oom;
mod process;
mod reason;
mod refusal;
mod sandbox;
pub(crate) mod text;
mod usage;

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use serde::{Deserialize, Serialize};

pub use denial::{Denial, DenialKind};
pub(crate) use description::{Description, SupervisorKind, VERSION as DESCRIPTION_VERSION};
pub use oom::{Oom, OomVictim};
pub use process::ProcessInfo;
pub use reason::Reason;
pub use refusal::Refusal;
pub use sandbox::{Profile, Promise, PromiseReport, PromiseState, SandboxReport};
pub use usage::{Figure, Usage};

/// The version of the report's format. It increases when a field changes its meaning or is removed, but not when a
/// field is added.
pub(crate) const VERSION: u32 = 1;

/// What pinfold reports about a finished job. All times are in seconds.
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
    /// The name that the caller gave to the job; otherwise the file name of the program.
    pub name: String,
    /// The command and its arguments; invalid UTF-8 is replaced.
    pub command: Vec<String>,
    /// The working directory that the caller set; null if the command ran in the supervisor's own.
    pub cwd: Option<String>,
    /// The process id of the main process; null if no process was started.
    pub pid: Option<i32>,
    /// The containment of the job.
    pub containment: Containment,
    /// The sandbox of the job; null if it had none.
    #[serde(default)]
    pub sandbox: Option<SandboxReport>,
    /// How the main process ended; null where pinfold does not know it (no process, or the guard was killed).
    pub main: Option<MainEnd>,
    /// Why the job ended.
    pub reason: Reason,
    /// An error message: why no process was started, or what pinfold could not do or find out; null if there was no
    /// error. `pinfold run` also reports here that the job was not ready in time, and that it could not deliver all
    /// output of the job.
    pub error: Option<String>,
    /// The exit code of `pinfold run` for this job. Two exit codes are not in this field: 122 (pinfold could not end
    /// all processes, see `unkillable`) and 123 (`--fail-on-leftovers`). The reports that `pinfold run` writes also
    /// contain 124 if the job was not ready in time, and 125 if the job succeeded but pinfold could not deliver all of
    /// its output; `error` contains the reason.
    pub exit_code: u8,
    /// Whether pinfold sent SIGKILL, because the grace period was over or a kill was requested.
    pub killed: bool,
    /// When the phases of the job were reached.
    pub phases: Phases,
    /// What the whole job used.
    pub usage: Usage,
    /// Processes that the kernel's OOM killer ended; null if it ended none.
    pub oom: Option<Oom>,
    /// Processes that still existed when the main process had exited by itself and the settle time was over; pinfold
    /// ended them. If pinfold was configured to wait for leftovers: the processes that still existed when the main
    /// process had exited.
    pub leftovers: ProcessList,
    /// Whether filters that the settle time was for are among the leftovers. Their output may be incomplete.
    #[serde(skip)]
    pub(crate) unfinished_filters: bool,
    /// Processes that received the stop signal, including the main process.
    pub stopped: ProcessList,
    /// Processes that had left the job's cgroup; pinfold ended them.
    pub emigrants: ProcessList,
    /// Processes that SIGKILL did not end within the bound ([`Command::kill_bound`](crate::Command::kill_bound)), or
    /// that pinfold could not send signals to. They may still run.
    pub unkillable: ProcessList,
    /// Directories that pinfold could not remove, and why.
    pub not_removed: Vec<NotRemoved>,
}

/// The containment of a job: what held its processes together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Containment {
    /// What held the job; null if the command was not started.
    pub kind: Option<ContainmentKind>,
    /// The directory of the job's cgroup, which pinfold has removed since; null if the job had no cgroup.
    pub cgroup: Option<String>,
    /// How the main process came to be in the cgroup; null if the command was not started.
    pub born: Option<Born>,
    /// Why pinfold did not use a stronger containment; empty for a cgroup. If no containment was possible, this lists
    /// everything that pinfold tried.
    pub refused: Vec<Refusal>,
}

/// What can hold a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ContainmentKind {
    /// A cgroup v2 of the job's own.
    Cgroup,
    /// No cgroup: the guard, which is the child subreaper of this one job (PR_SET_CHILD_SUBREAPER(2const), Linux 3.4).
    /// The guard can't send signals to processes of other users; the report lists these as unkillable.
    Subreaper,
}

/// How the main process came to be in its cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Born {
    /// It was cloned into the cgroup (`CLONE_INTO_CGROUP`, clone(2), Linux 5.7).
    Cloned,
    /// It joined the cgroup by itself before it executed the command (it wrote its id into `cgroup.procs`, cgroups(7)),
    /// because the kernel refused to clone it into the cgroup.
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
        /// The signal's name, for example `SIGTERM`.
        name: String,
        /// Whether the process dumped core.
        core_dumped: bool,
    },
}

impl MainEnd {
    /// Returns the exit code that a shell reports for this process: its own exit code, or 128 plus the
    /// number of the signal that ended it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Exited(code) => u8::try_from(*code).unwrap_or(u8::MAX),
            Self::Signalled { signal, .. } => exit_code_of_signal(*signal),
        }
    }
}

/// Returns the exit code for a process that a signal ended: 128 plus the number of the signal, as in POSIX shells
/// (2.8.2 Exit Status for Commands), `timeout` and `env`.
pub(crate) fn exit_code_of_signal(number: i32) -> u8 {
    u8::try_from(128 + number).unwrap_or(u8::MAX)
}

/// When the phases of a job were reached. A phase is null if it was not reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Phases {
    /// When the caller requested the spawn, in seconds since 1970-01-01 UTC; if the spawn failed, when it failed. The
    /// times of the other phases are relative to this time.
    pub requested_at: f64,
    /// Seconds from `requested_at` until the command was executed.
    pub spawned: Option<f64>,
    /// Seconds from `requested_at` until the main process was reaped.
    pub main_exited: Option<f64>,
    /// Seconds from `requested_at` until pinfold found the leftovers: at the end of the settle time, or immediately if
    /// pinfold waits for leftovers.
    #[serde(default)]
    pub settled: Option<f64>,
    /// Seconds from `requested_at` until pinfold sent the stop signal.
    pub stopping: Option<f64>,
    /// Seconds from `requested_at` until pinfold sent SIGKILL.
    pub killing: Option<f64>,
    /// Seconds from `requested_at` until no process was left in the cgroup.
    pub empty: Option<f64>,
    /// Seconds from `requested_at` until no process was left and the cgroup was removed.
    pub gone: Option<f64>,
}

/// A list of processes: their number, and a description of the first of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ProcessList {
    /// How many processes there were, including those that `/proc` does not show.
    pub count: u64,
    /// At most 256 of these processes, in their state when pinfold found them.
    pub processes: Vec<ProcessInfo>,
}

impl ProcessList {
    /// Returns how many processes there were: [`count`](Self::count).
    #[must_use]
    pub fn len(&self) -> usize {
        usize::try_from(self.count).unwrap_or(usize::MAX)
    }

    /// Returns whether there was no process.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Iterates over the processes that are described: fewer than [`len`](Self::len) if there were more than 256 of
    /// them.
    pub fn iter(&self) -> std::slice::Iter<'_, ProcessInfo> {
        self.processes.iter()
    }
}

impl<'a> IntoIterator for &'a ProcessList {
    type Item = &'a ProcessInfo;
    type IntoIter = std::slice::Iter<'a, ProcessInfo>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// A directory that pinfold could not remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct NotRemoved {
    /// The path of the directory.
    pub path: String,
    /// The kernel's error, in words: `EBUSY` if it is not empty, `EACCES` if another user made it, `EXDEV` if a file
    /// system is mounted on it.
    pub error: String,
}

impl Report {
    /// Returns whether the command was successful: it ended by itself, with exit code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.reason == Reason::Exited && self.exit_code == 0
    }

    /// Returns the exit code of the main process; `None` if a signal ended the process, or if pinfold does not know how
    /// it ended. Unlike [`exit_code`](Self::exit_code), this does not depend on why the job ended.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        match self.main {
            Some(MainEnd::Exited(code)) => Some(code),
            _ => None,
        }
    }

    /// Returns the number of the signal that ended the main process; `None` if the process exited, or if pinfold does
    /// not know how it ended.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        match self.main {
            Some(MainEnd::Signalled { signal, .. }) => Some(signal),
            _ => None,
        }
    }

    /// Returns the exit status of the main process, in the form of the standard library; `None` if pinfold does not
    /// know how it ended (no process was started, or the guard was killed).
    ///
    /// ```
    /// use pinfold::{Command, Error, Report};
    /// let report = Report::of_failed_spawn(&Command::new("make"), &Error::GuardLost);
    /// assert_eq!((report.exit_status(), report.code(), report.signal()), (None, None, None));
    /// ```
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        /// The bit for a core dump in a wait status (wait(2), WCOREDUMP).
        const CORE_DUMPED: i32 = 0x80;
        let status = match self.main.as_ref()? {
            MainEnd::Exited(code) => (code & 0xff) << 8,
            MainEnd::Signalled { signal, core_dumped, .. } => signal | if *core_dumped { CORE_DUMPED } else { 0 },
        };
        Some(ExitStatus::from_raw(status))
    }

    /// Returns whether nothing of the job is left: no process and no directory.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.unkillable.count == 0 && self.not_removed.is_empty()
    }

    /// Returns the report as one line of JSON, without the newline.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Serialization can't fail: every field has a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Returns the exit code for a job: 124 if the deadline or the idle timeout was reached; 125 if the job was
    /// cancelled; otherwise the exit code of the main process, or 128 plus the number of the signal that ended it; 125
    /// if pinfold does not know how the main process ended.
    pub(crate) fn exit_code_of(reason: Reason, main: Option<&MainEnd>) -> u8 {
        match (reason, main) {
            (Reason::Deadline | Reason::Idle, _) => 124,
            (Reason::Cancelled, _) => 125,
            (_, Some(end)) => end.exit_code(),
            (_, None) => 125,
        }
    }
}

/// Writes the exit status of the main process as [`ExitStatus`] does, for example `exit status: 1` or
/// `signal: 15 (SIGTERM)`. If the job did not end by itself, the reason is before that.
///
/// ```
/// use pinfold::{Command, Error, Report};
/// let report = Report::of_failed_spawn(&Command::new("make"), &Error::GuardLost);
/// assert!(report.to_string().starts_with("not started: the guard process is gone"));
/// ```
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = match (self.exit_status(), &self.error) {
            (Some(status), _) => status.to_string(),
            (None, Some(error)) => text::printable_message(error).into_owned(),
            (None, None) => "unknown exit status".to_owned(),
        };
        let reason = match self.reason {
            Reason::Exited => return f.write_str(&status),
            Reason::Oom => "out of memory",
            Reason::Deadline => "deadline reached",
            Reason::Idle => "idle timeout reached",
            Reason::Stopped => "stopped",
            Reason::Killed => "killed",
            Reason::GuardLost => "guard lost",
            Reason::SpawnFailed => "not started",
            Reason::Cancelled => "cancelled",
        };
        write!(f, "{reason}: {status}")
    }
}
