//! Why a job ended.

use serde::{Deserialize, Serialize};

/// Why a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// The main process ended by itself.
    Exited,
    /// The kernel's OOM killer ended the main process ([`Report::oom`](crate::Report::oom)). Where the kernel's log can't be
    /// read, this is also said of a main process that somebody else sent SIGKILL to in the very moment after the OOM killer
    /// had ended another process of the job.
    Oom,
    /// The deadline was reached.
    Deadline,
    /// The idle timeout was reached: no output for so long.
    Idle,
    /// A stop was asked for.
    Stopped,
    /// A kill was asked for, or the job was dropped.
    Killed,
    /// The guard was killed; the supervisor ended the job.
    GuardLost,
    /// The command could not be started.
    SpawnFailed,
    /// It waited in a pool and was never started.
    Cancelled,
}
