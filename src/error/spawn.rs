//! Errors of a command that could not be started: the step that failed, in words, with advice.

use rustix::io::Errno;

use super::hint;
use crate::report::text::printable;
use crate::report::{Denial, DenialKind, NotRemoved, ProcessList};

/// The step in which the start of a command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum SpawnStage {
    /// The guard reads the request, which contains what to start.
    Specification,
    /// The guard makes the process, inside its cgroup.
    Clone,
    /// pinfold checks that the process was made inside its cgroup.
    CgroupCheck,
    /// The process joins the cgroup by itself, if the kernel could not make it there (`CLONE_INTO_CGROUP`).
    JoinCgroup,
    /// The process joins or makes its process group.
    ProcessGroup,
    /// The process makes the namespaces and mounts of its sandbox.
    Namespaces,
    /// The process enters its working directory.
    WorkingDirectory,
    /// The process gets its descriptors.
    Descriptors,
    /// The process gets its controlling terminal.
    Terminal,
    /// The process sets its limits.
    Limits,
    /// The process changes to the user that it has to run as.
    User,
    /// The process gives up its capabilities, for its sandbox.
    Privileges,
    /// The process applies the Landlock rules of its sandbox.
    Landlock,
    /// The process installs the seccomp filters of its sandbox.
    Seccomp,
    /// The process sets the timer that limits the duration of exec.
    ExecTimer,
    /// The process requests the signal that ends it when the guard dies.
    DeathSignal,
    /// The process executes the command.
    Exec,
}

/// A command that could not be started.
#[derive(Debug)]
#[non_exhaustive]
pub struct SpawnError {
    /// The step that failed.
    pub stage: SpawnStage,
    /// The error that the kernel returned; [`raw_os_error`](std::io::Error::raw_os_error) is the errno.
    pub source: std::io::Error,
    /// The command's name, as the caller gave it.
    pub program: String,
    /// The directory for the command to run in, if the caller gave one.
    pub cwd: Option<String>,
    /// What the sandbox refused to the process; empty unless the policy asks for it.
    pub denials: Vec<Denial>,
}

impl SpawnError {
    pub(crate) fn errno(&self) -> Errno {
        Errno::from_io_error(&self.source).unwrap_or(Errno::IO)
    }

    /// Returns whether the cgroup caused the failure. In that case, a start without a cgroup could work.
    pub(crate) fn is_about_the_cgroup(&self) -> bool {
        let refused = matches!(self.errno(), Errno::ACCESS | Errno::PERM | Errno::BUSY | Errno::OPNOTSUPP);
        refused && matches!(self.stage, SpawnStage::Clone | SpawnStage::JoinCgroup)
    }

    /// Returns whether the job's cgroup was removed before a process was in it (clone(2), `ENODEV`; a write to its
    /// files, `ENOENT`).
    pub(crate) fn is_about_a_removed_cgroup(&self) -> bool {
        let removed = matches!(self.errno(), Errno::NODEV | Errno::NOENT);
        removed && matches!(self.stage, SpawnStage::Clone | SpawnStage::JoinCgroup)
    }

    /// Returns the failed step in words, and advice for the user.
    fn words(&self) -> (String, &'static str) {
        let Self { stage, program, cwd, .. } = self;
        let program = printable(program);
        let cwd = cwd.as_deref().map(printable);
        match (stage, self.errno()) {
            (SpawnStage::Exec, Errno::NOENT) => (
                format!("execute '{program}'"),
                "check the name and PATH; for a script, the interpreter of its first line",
            ),
            (SpawnStage::Exec, Errno::ACCESS) => (
                format!("execute '{program}'"),
                "it is a directory, not executable for this user, or on a file system mounted noexec",
            ),
            (SpawnStage::Exec, Errno::NOEXEC) => {
                (format!("execute '{program}'"), "it is not a program for this machine")
            }
            (SpawnStage::Exec, Errno::TOOBIG) => (
                format!("execute '{program}'"),
                "the arguments and the environment together are too large; pass data in a file",
            ),
            (SpawnStage::Exec, Errno::PERM) => (
                format!("execute '{program}'"),
                "it has file capabilities that a sandbox forbids (see getcap), or a security module refuses it",
            ),
            (SpawnStage::Exec, Errno::TIMEDOUT) => {
                let advice = "the file system of the program does not respond, or a process of its user has stopped the starting process";
                (format!("execute '{program}'"), advice)
            }
            (SpawnStage::Exec, _) => (format!("execute '{program}'"), ""),
            (SpawnStage::WorkingDirectory, Errno::TIMEDOUT) => (
                format!("enter the working directory '{}' for '{program}'", cwd.as_deref().unwrap_or(".")),
                "the file system of the directory does not respond",
            ),
            (SpawnStage::WorkingDirectory, _) => (
                format!("enter the working directory '{}' for '{program}'", cwd.as_deref().unwrap_or(".")),
                "it must exist and be searchable for this user",
            ),
            (SpawnStage::Clone, Errno::AGAIN) => (
                format!("make a process for '{program}'"),
                "a limit on processes is reached: see ulimit -u and pids.max",
            ),
            (SpawnStage::Clone | SpawnStage::JoinCgroup, Errno::ACCESS) => (
                format!("put '{program}' into its cgroup"),
                "this user must also be able to write cgroup.procs of the directory above (the common ancestor)",
            ),
            (SpawnStage::Clone | SpawnStage::JoinCgroup, Errno::OPNOTSUPP) => (
                format!("put '{program}' into its cgroup"),
                "the cgroup is threaded; use --cgroup with a domain cgroup",
            ),
            (SpawnStage::Clone | SpawnStage::JoinCgroup, Errno::BUSY) => (
                format!("put '{program}' into its cgroup"),
                "its controllers are enabled for its children, so it can't hold processes (no internal processes)",
            ),
            (SpawnStage::Clone, _) => (format!("make a process for '{program}'"), ""),
            (SpawnStage::CgroupCheck, _) => (
                format!("check that '{program}' was started in its cgroup"),
                "it was ended before it ran; please report this kernel version",
            ),
            (SpawnStage::JoinCgroup, _) => (format!("put '{program}' into its cgroup"), ""),
            (SpawnStage::ProcessGroup, _) => (format!("set the process group of '{program}'"), ""),
            (SpawnStage::Descriptors, Errno::BADF) => (
                format!("pass its descriptors to '{program}'"),
                "the number of an open descriptor is beyond the hard limit on open files: close it, or see ulimit -Hn",
            ),
            (SpawnStage::Descriptors, _) => (format!("pass its descriptors to '{program}'"), "see ulimit -n"),
            (SpawnStage::Terminal, _) => {
                (format!("make the pseudoterminal the controlling terminal of '{program}'"), "")
            }
            (SpawnStage::Limits, Errno::PERM | Errno::ACCESS) => {
                (format!("set the limits of '{program}'"), "only root may raise a hard limit or lower the niceness")
            }
            (SpawnStage::Limits, _) => (format!("set the limits of '{program}'"), ""),
            (SpawnStage::User, Errno::TIMEDOUT) => (
                format!("change the user for '{program}'"),
                "a process of that user may have stopped the starting process",
            ),
            (SpawnStage::User, _) => {
                (format!("change the user for '{program}'"), "only root in its user namespace can change it")
            }
            (SpawnStage::Namespaces, Errno::NOSPC) => (
                format!("make the namespaces of the sandbox for '{program}'"),
                "a limit is reached: see the files max_*_namespaces in /proc/sys/user",
            ),
            (SpawnStage::Namespaces, _) => (
                format!("make the namespaces and mounts of the sandbox for '{program}'"),
                "pinfold doctor shows whether they work here",
            ),
            (SpawnStage::Privileges, _) => (format!("drop the privileges of '{program}'"), ""),
            (SpawnStage::Landlock, Errno::TOOBIG) => (
                format!("apply the Landlock rules to '{program}'"),
                "pinfold itself runs under 16 layers of Landlock rules, the most that the kernel allows",
            ),
            (SpawnStage::Landlock, _) => (format!("apply the Landlock rules to '{program}'"), ""),
            (SpawnStage::Seccomp, _) => (
                format!("install the seccomp filters for '{program}'"),
                "a filter that is already installed may forbid it",
            ),
            (SpawnStage::ExecTimer, _) => (format!("set a timer for the start of '{program}'"), "see ulimit -i"),
            (SpawnStage::DeathSignal, _) => {
                (format!("make '{program}' end with its guard"), "the guard was already gone")
            }
            (SpawnStage::Specification, _) => (format!("read the request to start '{program}'"), ""),
        }
    }

    /// Returns advice for the user; empty if pinfold has no advice.
    pub(crate) fn advice(&self) -> &'static str {
        self.words().1
    }
}

/// A start that does not finish, because one of its steps hangs in the kernel, for example on a file system that does
/// not respond.
#[derive(Debug)]
#[non_exhaustive]
pub struct HangingStart {
    /// The step that hangs, and the command.
    pub error: SpawnError,
    /// Why pinfold ended the job: its deadline, a stop, or a step that took too long ([`Reason::SpawnFailed`]).
    ///
    /// [`Reason::SpawnFailed`]: crate::report::Reason::SpawnFailed
    pub reason: crate::report::Reason,
    /// The processes that SIGKILL did not end.
    pub unkillable: ProcessList,
    /// The directories that remain as long as these processes exist.
    pub not_removed: Vec<NotRemoved>,
}

impl std::fmt::Display for HangingStart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (doing, advice) = self.error.words();
        write!(f, "cannot {doing}{}: SIGKILL did not end ", hint(advice))?;
        if self.unkillable.count > 1 {
            write!(f, "{} processes, among them ", self.unkillable.count)?;
        }
        match self.unkillable.processes.first() {
            Some(process) => write!(f, "{process}")?,
            None => f.write_str("it")?,
        }
        for directory in &self.not_removed {
            write!(f, "; {} stays until it ends", printable(&directory.path))?;
        }
        Ok(())
    }
}

impl std::fmt::Display for SpawnError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (doing, advice) = self.words();
        // The process has only tried to execute the command, at each place in PATH.
        match self.denials.iter().find(|denial| denial.kind == DenialKind::Execute) {
            Some(denial) => write!(f, "cannot {doing}: {} (the sandbox refused: {denial})", self.source),
            None => write!(f, "cannot {doing}: {}{}", self.source, hint(advice)),
        }
    }
}

impl std::error::Error for SpawnError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl std::error::Error for HangingStart {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error.source)
    }
}
