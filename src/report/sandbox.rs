//! What held the promises of a job's sandbox.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Figure;
use super::denial::Denial;

/// The sandbox of a job: each promise, and the mechanism that held it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct SandboxReport {
    /// Which promises the caller requested.
    pub profile: Profile,
    /// The version of Landlock's ABI that the kernel reports; null if the kernel has no Landlock.
    pub landlock_abi: Option<i32>,
    /// Whether each promise held, and by which mechanism.
    pub promises: Vec<PromiseReport>,
    /// A hash of the seccomp filters: equal filters have equal hashes.
    pub filter_hash: String,
    /// What the sandbox refused to the job, in the order in which it first happened; at most 100 entries. Null unless
    /// the policy asks for it ([`Sandbox::explain_denials`](crate::Sandbox::explain_denials)).
    #[serde(default)]
    pub denials: Option<Vec<Denial>>,
    /// The number of refused calls that `denials` does not contain, because the list is full.
    #[serde(default)]
    pub denials_left_out: u64,
    /// The bytes that the files of the private tmp had allocated when the job had ended; null if the job had no private
    /// tmp.
    #[serde(default)]
    pub private_tmp_bytes: Option<Figure>,
}

/// Which promises a sandbox makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Profile {
    /// All promises except `metadata`.
    Default,
    /// All promises.
    Strict,
}

/// Something that a job in a sandbox can't do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Promise {
    /// It gains no privileges: not through set-user-ID programs, file capabilities or a user namespace.
    Privileges,
    /// It makes none of the system calls that administer the kernel or open a way around the other promises:
    /// namespaces, mounts, BPF, io_uring, keyrings, System V IPC, calls of other architectures, …
    Kernel,
    /// It can't send signals to a process outside of the job, trace it, read its memory, or set its limits.
    Processes,
    /// It can't leave its cgroup or change the limits of the cgroup.
    Leaf,
    /// It can't read, write or execute files outside of the granted paths.
    Files,
    /// It can't change the mode, owner, times or extended attributes of files outside of the paths to write.
    Metadata,
    /// It has no network, except what the policy grants.
    Network,
    /// It can't connect to Unix sockets of other processes, except those that the policy grants.
    Unix,
}

impl Promise {
    /// All promises, in the order in which they are reported.
    pub(crate) const ALL: [Self; 8] = [
        Self::Privileges,
        Self::Kernel,
        Self::Processes,
        Self::Leaf,
        Self::Files,
        Self::Metadata,
        Self::Network,
        Self::Unix,
    ];

    /// Returns the name of the promise in options, in JSON and in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Privileges => "privileges",
            Self::Kernel => "kernel",
            Self::Processes => "processes",
            Self::Leaf => "leaf",
            Self::Files => "files",
            Self::Metadata => "metadata",
            Self::Network => "network",
            Self::Unix => "unix",
        }
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a promise held, and by which mechanism.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct PromiseReport {
    /// The promise.
    pub promise: Promise,
    /// Whether it holds.
    pub state: PromiseState,
}

/// Whether a promise holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PromiseState {
    /// It holds.
    Held {
        /// The mechanisms that hold it.
        by: String,
    },
    /// It does not hold, and the policy waives it.
    Waived {
        /// Why no mechanism of this machine holds it.
        reason: String,
    },
    /// The policy does not request it.
    NotPromised {
        /// Which part of the policy would request it.
        reason: String,
    },
}
