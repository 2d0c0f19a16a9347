//! The facts about a machine: one plain structure, gathered once, from which all findings follow.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::report::{ContainmentKind, PromiseReport, Refusal};

/// The facts about the machine, as this process sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Facts {
    /// This pinfold's version.
    pub pinfold: String,
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: String,
    /// The machine's architecture, as `uname -m` prints it.
    pub machine: String,
    /// The effective user id of this process.
    pub user: u32,
    /// The system calls that a job needs.
    pub calls: Calls,
    /// The mounted cgroup file systems.
    pub mounts: Mounts,
    /// This process's own cgroup, or the requested one; null if it is not visible.
    pub cgroup: Option<Cgroup>,
    /// The directory in which bases would be made.
    pub place: Place,
    /// Bases in this directory that are locked and have no guard, each with the processes that have it open.
    #[serde(default)]
    pub locked: Vec<String>,
    /// The results of the tests in a cgroup that pinfold made in this directory; null if there is no such directory.
    pub scratch: Option<Scratch>,
    /// Why the guard can't hold a job as its subreaper, without a cgroup; null if it can.
    pub subreaper: Option<Refusal>,
    /// The only containment that is allowed; null if pinfold chooses. [`Facts::gather`] does not set it; `pinfold doctor`
    /// sets it to that of `PINFOLD_CONTAINMENT`.
    pub containment: Option<ContainmentKind>,
    /// The service manager.
    pub systemd: Systemd,
    /// The container managers of which pinfold found signs, the innermost first.
    pub containers: Vec<Container>,
    /// The `/proc` file system.
    pub proc: Proc,
    /// Limits on the resources that a job may use.
    pub limits: Limits,
    /// What would hold each promise of a strict sandbox; empty in the facts of older versions.
    pub sandbox: Vec<PromiseReport>,
    /// Why pinfold can't explain what a sandbox refuses (`--explain-denials`); null if it can.
    #[serde(default)]
    pub denials_refused: Option<String>,
}

/// The result of an operation that was tested.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Tried {
    /// It works.
    Works,
    /// The kernel refused it, with this errno.
    Refused(i32),
    /// It could not be tested, for this reason.
    Untried(String),
}

impl Tried {
    pub(crate) fn untried(reason: impl Into<String>) -> Self {
        Self::Untried(reason.into())
    }
}

impl Default for Tried {
    fn default() -> Self {
        Self::untried("there was nothing to test it with")
    }
}

/// System calls, tested on this process and on children that do nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Calls {
    /// clone3(2), Linux 5.3. The seccomp profiles of containers often refuse it.
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
    /// Why pinfold knows nothing about the mounts; null if it does.
    pub unknown: Option<String>,
    /// The cgroup2 mounts.
    pub v2: Vec<Mount>,
    /// The controllers (and named hierarchies) of cgroup v1 that are mounted here.
    pub v1: Vec<String>,
    /// Whether this process is in a cgroup namespace of its own, and not in the machine's; null if this is not known.
    pub namespaced: Option<bool>,
}

/// A cgroup2 mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Mount {
    /// The mount point.
    pub point: String,
    /// The part of the cgroup tree that this mount shows, as seen from this process's cgroup namespace.
    pub root: String,
    /// Whether this mount is read-only.
    pub read_only: bool,
}

/// A cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Cgroup {
    /// Its directory.
    pub directory: String,
    /// The user id of its owner.
    pub owner: u32,
    /// Its directory's permissions, as in `0o755`.
    pub mode: u32,
    /// Whether this process may make directories in it.
    pub writable: bool,
    /// Whether this process may move processes into and out of it, that is, write to its `cgroup.procs`.
    pub procs_writable: bool,
    /// If this is not the process's own cgroup: the lowest directory above both this cgroup and the process's own one,
    /// and whether this process may write to its `cgroup.procs`. To move a process from the one cgroup to the other,
    /// pinfold needs this right (cgroups(7), delegation containment). Null if that directory is not visible.
    pub ancestor: Option<Ancestor>,
    /// Whether systemd has marked it as delegated, with the extended attribute `user.delegate` or `trusted.delegate`.
    /// Only root can read the second one.
    pub marked_delegated: bool,
    /// `cgroup.type` (`domain`, `threaded`, `domain threaded`, `domain invalid`); null in the root cgroup, which does
    /// not have this file.
    pub kind: Option<String>,
    /// Its controllers (`cgroup.controllers`).
    pub controllers: Vec<String>,
    /// The controllers that its children have (`cgroup.subtree_control`).
    pub subtree_control: Vec<String>,
    /// Whether it has the file `memory.swap.max`; null if it does not have `memory.max` either, because it has no
    /// memory controller or is the root cgroup.
    pub swap: Option<bool>,
    /// How many processes of this PID namespace are in this cgroup itself, not in a cgroup below it; this includes
    /// pinfold's own process.
    pub processes: u64,
    /// Limits that apply to this cgroup, each with the lowest visible value in this cgroup and those above it:
    /// `cgroup.max.descendants`, `cgroup.max.depth`, `pids.max`.
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

/// The directory in which `pinfold run` would make its base.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Place {
    /// Whether the user requested this directory; then pinfold uses no other one.
    pub requested: bool,
    /// The directory; null if pinfold found none.
    pub directory: Option<String>,
    /// If pinfold found no directory: the ones that it tried, and why it can't use them.
    pub refused: Vec<Refusal>,
}

/// The results of the tests in a cgroup that pinfold made for this purpose and has removed again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Scratch {
    /// Making the directory of the cgroup.
    pub made: Tried,
    /// Starting a process directly in the cgroup (`CLONE_INTO_CGROUP`).
    pub cloned: Tried,
    /// Starting a process that joins the cgroup by writing its own id into `cgroup.procs`.
    pub joined: Tried,
    /// Freezing and thawing the cgroup (`cgroup.freeze`, Linux 5.2).
    pub frozen: Tried,
    /// Killing all processes of the cgroup (`cgroup.kill`, Linux 5.14).
    pub killed: Tried,
    /// Removing the cgroup.
    pub removed: Tried,
    /// Whether the kernel kills a process that is started directly in a cgroup that was killed before (a bug of Linux
    /// 6.14 and later, fixed in 7.3); null if this could not be tested.
    pub kill_sequence_bug: Option<bool>,
    /// The controllers of the cgroup (`cgroup.controllers`), which a job has without any further step.
    pub controllers: Vec<String>,
}

/// The service manager systemd, from which pinfold can request a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Systemd {
    /// Whether systemd booted the machine (`/run/systemd/system`, sd_booted(3)).
    pub booted: bool,
    /// Whether the system manager can be reached, that is, whether its socket accepts connections.
    pub system: Manager,
    /// Whether this user's manager can be reached.
    pub user: Manager,
}

/// Whether a manager can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Manager {
    /// The socket that pinfold tried; null if its path is not known.
    pub socket: Option<String>,
    /// Whether the socket accepts connections.
    pub reachable: bool,
    /// Why it does not, in words.
    pub error: Option<String>,
}

/// A sign of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Container {
    /// What manages it.
    pub kind: ContainerKind,
    /// The file or environment variable that is the sign.
    pub sign: String,
}

/// What manages a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs)] // The names are sufficient.
pub enum ContainerKind {
    Docker,
    Podman,
    Kubernetes,
    Lxc,
    Nspawn,
    /// Another one, with the name that it uses for itself.
    Other(String),
}

/// The `/proc` file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Proc {
    /// Whether it is mounted.
    pub mounted: bool,
    /// Whether it shows other users' processes to this process: `hidepid` is below 2, or does not apply to this process
    /// (proc(5)).
    pub shows_others: bool,
    /// Its mount option `hidepid` (`0` if it is not set): a number, or since Linux 5.8 `invisible` or `ptraceable`.
    pub hidepid: String,
    /// Whether `/proc/PID/task/TID/children` exists (`CONFIG_PROC_CHILDREN`).
    pub children: bool,
}

/// Limits. Null means that there is no limit, or that pinfold does not know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Limits {
    /// Open files of a process, soft limit: `ulimit -Sn`.
    pub files_soft: Option<u64>,
    /// Open files of a process, hard limit: `ulimit -Hn`.
    pub files_hard: Option<u64>,
    /// Processes and threads of this user: `ulimit -u`. It does not apply to root.
    pub processes: Option<u64>,
    /// Queued signals and timers of this user: `ulimit -i`. Each start of a command needs one.
    pub pending_signals: Option<u64>,
    /// Processes and threads of the machine: `/proc/sys/kernel/threads-max`.
    pub machine_threads: Option<u64>,
    /// The highest process id: `/proc/sys/kernel/pid_max`.
    pub machine_pids: Option<u64>,
}
