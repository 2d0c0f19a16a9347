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
    /// The kernel's OOM killer ended the main process ([`Report::oom`](crate::Report::oom)). If pinfold can't read the
    /// kernel's log, it also reports this reason in another case: the OOM killer ended another process of the job, and
    /// immediately after that, a program sent SIGKILL to the main process.
    Oom,
    /// The deadline was reached.
    #[doc(alias = "timeout", alias = "timed_out")]
    Deadline,
    /// The idle timeout was reached: the job wrote no output for that time.
    Idle,
    /// A stop was requested.
    Stopped,
    /// A kill was requested, or the job was dropped.
    Killed,
    /// The guard was killed; the supervisor ended the job.
    GuardLost,
    /// The command could not be started.
    SpawnFailed,
    /// The job was cancelled while it waited in a pool; it was never started.
    Cancelled,
}
