//! What the kernel's OOM killer did to a job.

use serde::{Deserialize, Serialize};

/// Processes of a job that the OOM killer ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Oom {
    /// The number of these processes: `oom_kill` in the leaf's `memory.events` (the kernel's
    /// admin-guide/cgroup-v2.rst).
    pub kills: u64,
    /// The processes that the kernel's log names. If there are many, the kernel omits some of them.
    pub victims: Vec<OomVictim>,
    /// Where pinfold found the victims, or why it does not know them.
    pub source: String,
}

/// A process that the OOM killer ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct OomVictim {
    /// Its process id in the machine's initial PID namespace.
    pub pid: i32,
    /// Its name, as in `/proc/PID/comm`.
    pub name: String,
}
