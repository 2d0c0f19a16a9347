//! What there is: one plain structure, gathered once, from which all judgement follows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::report::Refusal;

/// What the machine is like, as this process sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Facts {
    /// This pinfold's version.
    pub pinfold: String,
    /// The kernel's release, as `uname -r` tells it.
    pub kernel: String,
    /// The machine's architecture, as `uname -m` tells it.
    pub machine: String,
    /// The effective user id of this process.
    pub user: u32,
    /// The system calls that a job needs.
    pub calls: Calls,
    /// What is mounted.
    pub mounts: Mounts,
    /// This process's own cgroup, or the one that was asked for; null where none can be seen.
    pub cgroup: Option<Cgroup>,
    /// Where bases would be made.
    pub place: Place,
    /// Bases there that are locked and have no guard, each with the processes that have it open.
    #[serde(default)]
    pub locked: Vec<String>,
    /// What was tried in a cgroup of our own below that; null where there is no such place.
    pub scratch: Option<Scratch>,
    /// Why no job can be held without a cgroup, by the guard as its subreaper; null where that can be.
    pub subreaper: Option<Refusal>,
    /// The service manager.
    pub systemd: Systemd,
    /// The container managers that there are signs of, the innermost first.
    pub containers: Vec<Container>,
    /// The `/proc` file system.
    pub proc: Proc,
    /// Limits on what a job may use.
    pub limits: Limits,
}

/// What became of an operation that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Tried {
    /// It works.
    Works,
    /// The kernel refused it, with this errno.
    Refused(i32),
    /// It could not be tried, for this reason.
    Untried(String),
}

impl Tried {
    pub(crate) fn untried(reason: impl Into<String>) -> Self {
        Self::Untried(reason.into())
    }
}

impl Default for Tried {
    fn default() -> Self {
        Self::untried("nothing to try it with")
    }
}

/// System calls, tried on this process and on children that do nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Calls {
    /// clone3(2), Linux 5.3; often refused by containers' seccomp profiles.
    pub clone3: Tried,
    /// `CLONE_INTO_CGROUP` of clone3(2), Linux 5.7: whether the kernel knows it.
    pub clone_into_cgroup: Tried,
    /// pidfd_open(2), Linux 5.3.
    pub pidfd_open: Tried,
    /// pidfd_send_signal(2), Linux 5.1.
    pub pidfd_send_signal: Tried,
    /// `P_PIDFD` of waitid(2), Linux 5.4.
    pub waitid_pidfd: Tried,
    /// The ioctl `PIDFD_GET_INFO` with `PIDFD_INFO_CGROUPID`, Linux 6.13.
    pub pidfd_get_info: Tried,
}

/// The cgroup file systems that `/proc/self/mountinfo` names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Mounts {
    /// Why nothing is known of them.
    pub unknown: Option<String>,
    /// The cgroup2 mounts.
    pub v2: Vec<Mount>,
    /// The controllers (and named hierarchies) of cgroup v1 that are mounted here.
    pub v1: Vec<String>,
    /// Whether this process is in a cgroup namespace of its own, not the machine's; null where that is not known.
    pub namespaced: Option<bool>,
}

/// A cgroup2 mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Mount {
    /// Where it is mounted.
    pub point: String,
    /// Which part of the cgroup tree it shows, seen from this process's cgroup namespace.
    pub root: String,
    /// Whether it is read-only here.
    pub read_only: bool,
}

/// A cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Cgroup {
    /// Its directory.
    pub directory: String,
    /// The user that it belongs to.
    pub owner: u32,
    /// Its directory's permissions, as in `0o755`.
    pub mode: u32,
    /// Whether this process may make directories in it.
    pub writable: bool,
    /// Whether this process may put processes in and out of it: write to its `cgroup.procs`.
    pub procs_writable: bool,
    /// Where it is not this process's own: the lowest directory that is above both it and this process's own cgroup, and whether its
    /// `cgroup.procs` may be written, which is needed to put a process from here to there (cgroups(7), delegation
    /// containment). Null where that directory can't be seen.
    pub ancestor: Option<Ancestor>,
    /// Whether systemd has marked it as delegated (the extended attribute `user.delegate` or `trusted.delegate`); only
    /// root can read the second one.
    pub marked_delegated: bool,
    /// `cgroup.type` (`domain`, `threaded`, `domain threaded`, `domain invalid`); null in the root cgroup, which has none.
    pub kind: Option<String>,
    /// Its controllers (`cgroup.controllers`).
    pub controllers: Vec<String>,
    /// The controllers that its children have (`cgroup.subtree_control`).
    pub given_on: Vec<String>,
    /// Whether there is a `memory.swap.max` in it; null where there is no `memory.max` either: it has no memory controller,
    /// or is the root cgroup.
    pub swap: Option<bool>,
    /// How many processes of this PID namespace are right in it, this one included.
    pub processes: u64,
    /// Limits of it and of what is above it, each with the lowest value that can be seen: `cgroup.max.descendants`,
    /// `cgroup.max.depth`, `pids.max`.
    pub limits: BTreeMap<String, u64>,
}

/// The common ancestor of two cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Ancestor {
    /// Its directory.
    pub directory: String,
    /// Whether this process may write to its `cgroup.procs`.
    pub procs_writable: bool,
}

/// Where `pinfold run` would make its base.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Place {
    /// Whether it was asked for: then nothing else is used.
    pub asked_for: bool,
    /// The directory, where there is one.
    pub directory: Option<String>,
    /// What was tried and refused, where there is none.
    pub refused: Vec<Refusal>,
}

/// What was tried in a cgroup of our own, which has been removed since.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Scratch {
    /// Making its directory.
    pub made: Tried,
    /// Starting a process straight in it (`CLONE_INTO_CGROUP`).
    pub cloned: Tried,
    /// Starting a process that writes itself into its `cgroup.procs`.
    pub joined: Tried,
    /// Freezing and thawing it (`cgroup.freeze`, Linux 5.2).
    pub frozen: Tried,
    /// Killing it (`cgroup.kill`, Linux 5.14).
    pub killed: Tried,
    /// Removing it.
    pub removed: Tried,
    /// Whether a process that is started straight in a cgroup that was once killed is killed too (a bug of Linux 6.14 and
    /// later, fixed in 7.3); null where that could not be tried.
    pub kills_the_newborn: Option<bool>,
    /// Its controllers (`cgroup.controllers`): what a job has without further ado.
    pub controllers: Vec<String>,
}

/// systemd, as a manager of cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Systemd {
    /// Whether the machine was booted by it (`/run/systemd/system`, sd_booted(3)).
    pub booted: bool,
    /// Whether the system manager can be reached: its bus accepts connections.
    pub system: Manager,
    /// Whether this user's manager can be reached.
    pub user: Manager,
}

/// Whether a manager can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Manager {
    /// The socket that was tried; null where it is not known where it would be.
    pub socket: Option<String>,
    /// Whether it accepts connections.
    pub reachable: bool,
    /// Why not, in words.
    pub error: Option<String>,
}

/// A sign of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Container {
    /// What manages it.
    pub kind: ContainerKind,
    /// The file or variable that tells.
    pub sign: String,
}

/// What manages a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs)] // Their names say it.
pub enum ContainerKind {
    Docker,
    Podman,
    Kubernetes,
    Lxc,
    Nspawn,
    /// Another one, by the name that it gives itself.
    Other(String),
}

/// The `/proc` file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Proc {
    /// Whether it is mounted.
    pub mounted: bool,
    /// Whether it shows other users' processes to this one: `hidepid` is below 2, or does not hold for this process
    /// (proc(5)).
    pub shows_others: bool,
    /// Its mount option `hidepid` (`0` where it is not set): a number, or since Linux 5.8 `invisible` or `ptraceable`.
    pub hidepid: String,
    /// Whether `/proc/PID/task/TID/children` is there (`CONFIG_PROC_CHILDREN`).
    pub children: bool,
}

/// Limits; null means none, or that it is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Limits {
    /// Open files of a process, soft: `ulimit -Sn`.
    pub files_soft: Option<u64>,
    /// Open files of a process, hard: `ulimit -Hn`.
    pub files_hard: Option<u64>,
    /// Processes and threads of this user: `ulimit -u`. It does not hold for root.
    pub processes: Option<u64>,
    /// Queued signals and timers of this user: `ulimit -i`. Each start of a command needs one.
    pub pending_signals: Option<u64>,
    /// Processes and threads of the machine: `/proc/sys/kernel/threads-max`.
    pub machine_threads: Option<u64>,
    /// The highest process id: `/proc/sys/kernel/pid_max`.
    pub machine_pids: Option<u64>,
}
