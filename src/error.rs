//! What can go wrong, told as: the operation, the object, the errno, and what the person can do.

use rustix::io::Errno;

use crate::report::text::printable;
use crate::report::{NotRemoved, ProcessList, Refusal};

/// The library's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why pinfold could not do what it was asked for. A job that ran and failed is not an error but a
/// [`Report`](crate::Report).
///
/// ```
/// use pinfold::{Command, Error};
/// let error = Command::new("a\0b").check().unwrap_err();
/// assert!(matches!(error, Error::Invalid { .. }) && error.exit_code() == 125);
/// println!("pinfold: {error}");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused an operation.
    #[error("{operation} {}: {errno}{}", printable(object), hint(advice))]
    System {
        /// The system call or what it was for.
        operation: &'static str,
        /// What it was done to.
        object: String,
        /// The kernel's answer.
        errno: Errno,
        /// What the person can do; empty where there is nothing to say.
        advice: String,
    },
    /// An argument that can't be meant.
    #[error("{what} '{}' is not valid: {}", printable(value), printable(advice))]
    Invalid {
        /// What was given.
        what: &'static str,
        /// Its value.
        value: String,
        /// What is accepted.
        advice: String,
    },
    /// No cgroup can be had here.
    #[error("no cgroup can hold the job:{}", refusals(.0))]
    NoCgroup(Vec<Refusal>),
    /// Nothing can hold a job here.
    #[error("nothing here can hold the job:{}", refusals(.0))]
    NoContainment(Vec<Refusal>),
    /// No cgroup v2 can be looked into.
    #[error("there is no cgroup v2 to look in:{}", refusals(.0))]
    NoCgroupSeen(Vec<Refusal>),
    /// A limit that can't be enforced here; nothing was started.
    #[error("cannot enforce the {limit}: {}{}", printable(reason), hint(advice))]
    Limit {
        /// Which limit.
        limit: &'static str,
        /// Why not.
        reason: String,
        /// What the person can do; empty where there is nothing to say.
        advice: String,
    },
    /// No cgroup that can be had here can enforce the limits.
    #[error("no cgroup here can enforce the limits, which need its controllers {controllers}:{}", crate::error::refusals(.refusals))]
    NoControllers {
        /// The controllers that the limits need.
        controllers: String,
        /// Each cgroup that was tried, and why it can't.
        refusals: Vec<Refusal>,
    },
    /// The command could not be started.
    #[error("{}", .0)]
    Spawn(SpawnError),
    /// The command could not be started, and SIGKILL did not end what was made of its start.
    #[error("{}", .0)]
    Hangs(Box<HangingStart>),
    /// No guard program was found or it did not answer.
    #[error("the guard did not start: {}", printable(.0))]
    GuardStart(String),
    /// The job was ended before its command had been executed.
    #[error("{} was ended before it had been executed ({})", printable(program), ended_by(.reason))]
    EndedEarly {
        /// The command's name as it was given.
        program: String,
        /// What ended it.
        reason: crate::report::Reason,
    },
    /// A job did not get ready ([`Job::ready`](crate::Job::ready)).
    #[error("{} did not get ready: {}", printable(program), printable(why))]
    NotReady {
        /// The job's name.
        program: String,
        /// What was waited for, and what came instead.
        why: String,
    },
    /// The pool takes no more tasks.
    #[error(
        "the pool takes no more tasks: it was shut down or stopped, a task failed with fail-fast, or its deadline is over"
    )]
    PoolClosed,
    /// This process has other rights than when its guard was started, and a job would have the guard's.
    #[error(
        "no job was started: this process has other rights than when its supervisor was started, and the job would have the old ones: {what} (start \
         another supervisor after the change; to run one job as another user, keep the rights and use Command::user)"
    )]
    HostChanged {
        /// Which rights, then and now.
        what: String,
    },
    /// The guard is gone; whatever it held has been ended.
    #[error("the guard process is gone (was it killed?); its jobs have been ended")]
    GuardLost,
}

impl Error {
    pub(crate) fn system(
        operation: &'static str,
        object: impl Into<String>,
        errno: Errno,
        advice: impl Into<String>,
    ) -> Self {
        Self::System { operation, object: object.into(), errno, advice: advice.into() }
    }

    pub(crate) fn invalid(what: &'static str, value: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Invalid { what, value: value.into(), advice: advice.into() }
    }

    /// The exit code that a command-line program ends with for this error: 127 where the command was not found,
    /// 126 where it was found but can't be executed, 125 otherwise (as timeout(1) and env(1)); 122 where SIGKILL did not end its
    /// start.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Spawn(SpawnError { stage: SpawnStage::Exec, errno, .. }) => match *errno {
                Errno::NOENT => 127,
                _ => 126,
            },
            Self::EndedEarly { reason: crate::report::Reason::Deadline, .. } => 124,
            Self::Hangs(_) => 122,
            _ => 125,
        }
    }
}

fn ended_by(reason: &crate::report::Reason) -> &'static str {
    match reason {
        crate::report::Reason::Deadline => "its deadline",
        crate::report::Reason::Stopped => "a stop",
        _ => "a kill",
    }
}

/// What pinfold was doing when a command could not be started, in the order in which it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum SpawnStage {
    /// Reading what to start, in the guard.
    Specification,
    /// Making the process, inside its cgroup.
    Clone,
    /// The process was not where it should have been born.
    Proof,
    /// Joining the cgroup, where the kernel's clone can't do it.
    JoinCgroup,
    /// Its process group.
    ProcessGroup,
    /// Its working directory.
    WorkingDirectory,
    /// Its descriptors.
    Descriptors,
    /// Its controlling terminal.
    Terminal,
    /// Its limits.
    Limits,
    /// Becoming the user that it is to run as.
    User,
    /// The bound on exec.
    ExecTimer,
    /// The death signal, should the guard die.
    DeathSignal,
    /// Executing the command.
    Exec,
}

/// A command that could not be started.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SpawnError {
    /// What was being done.
    pub stage: SpawnStage,
    /// The kernel's answer.
    pub errno: Errno,
    /// The command's name as it was given.
    pub program: String,
    /// The directory it was to run in, if one was given.
    pub cwd: Option<String>,
}

impl SpawnError {
    /// Whether the cgroup takes no process from us, and without it there would be one.
    pub(crate) fn is_about_the_cgroup(&self) -> bool {
        let refused = matches!(self.errno, Errno::ACCESS | Errno::PERM | Errno::BUSY | Errno::OPNOTSUPP);
        refused && matches!(self.stage, SpawnStage::Clone | SpawnStage::JoinCgroup)
    }

    /// Whether the job's cgroup was removed before a process was in it (clone(2), `ENODEV`; a write to its files, `ENOENT`).
    pub(crate) fn is_about_a_removed_cgroup(&self) -> bool {
        let removed = matches!(self.errno, Errno::NODEV | Errno::NOENT);
        removed && matches!(self.stage, SpawnStage::Clone | SpawnStage::JoinCgroup)
    }

    /// What was being done, and what the person can do.
    fn words(&self) -> (String, &'static str) {
        let Self { stage, errno, program, cwd } = self;
        let program = printable(program);
        let cwd = cwd.as_deref().map(printable);
        match (stage, *errno) {
            (SpawnStage::Exec, Errno::NOENT) => (
                format!("execute '{program}'"),
                "check the name and PATH; for a script, the interpreter of its first line",
            ),
            (SpawnStage::Exec, Errno::ACCESS) => (
                format!("execute '{program}'"),
                "it is a directory, not executable for this user, or on a file system mounted noexec",
            ),
            (SpawnStage::Exec, Errno::NOEXEC) => (format!("execute '{program}'"), "it is no program for this machine"),
            (SpawnStage::Exec, Errno::TOOBIG) => (
                format!("execute '{program}'"),
                "the arguments and the environment together are too large; pass data in a file",
            ),
            (SpawnStage::Exec, Errno::TIMEDOUT) => {
                let advice = "the file system that it is on does not answer, or a process of its user has stopped it";
                (format!("execute '{program}'"), advice)
            }
            (SpawnStage::Exec, _) => (format!("execute '{program}'"), ""),
            (SpawnStage::WorkingDirectory, Errno::TIMEDOUT) => (
                format!("enter the working directory '{}' for '{program}'", cwd.as_deref().unwrap_or(".")),
                "the file system that it is on does not answer",
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
                "its controllers are given to children, so it can't hold processes (no internal processes)",
            ),
            (SpawnStage::Clone, _) => (format!("make a process for '{program}'"), ""),
            (SpawnStage::Proof, _) => (
                format!("prove that '{program}' was born in its cgroup"),
                "it was ended before it ran; please report this kernel",
            ),
            (SpawnStage::JoinCgroup, _) => (format!("put '{program}' into its cgroup"), ""),
            (SpawnStage::ProcessGroup, _) => (format!("set the process group of '{program}'"), ""),
            (SpawnStage::Descriptors, Errno::BADF) => (
                format!("hand its descriptors to '{program}'"),
                "one that is open has a number beyond the hard limit on open files: close it, or see ulimit -Hn",
            ),
            (SpawnStage::Descriptors, _) => (format!("hand its descriptors to '{program}'"), "see ulimit -n"),
            (SpawnStage::Terminal, _) => (format!("make the pseudoterminal that of '{program}'"), ""),
            (SpawnStage::Limits, Errno::PERM | Errno::ACCESS) => {
                (format!("set the limits of '{program}'"), "only root may raise a hard limit or lower the niceness")
            }
            (SpawnStage::Limits, _) => (format!("set the limits of '{program}'"), ""),
            (SpawnStage::User, Errno::TIMEDOUT) => {
                (format!("change the user for '{program}'"), "a process of that user may have stopped it")
            }
            (SpawnStage::User, _) => {
                (format!("change the user for '{program}'"), "only root in its user namespace can")
            }
            (SpawnStage::ExecTimer, _) => (format!("set a timer for the start of '{program}'"), "see ulimit -i"),
            (SpawnStage::DeathSignal, _) => (format!("tie '{program}' to its guard"), "the guard was gone already"),
            (SpawnStage::Specification, _) => (format!("read what to start for '{program}'"), ""),
        }
    }

    /// What the person can do; empty where there is nothing to say.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        self.words().1
    }
}

/// A start that does not come to its end: one of its steps hangs in the kernel, on a file system that does not answer for one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HangingStart {
    /// The step, and what it was for.
    pub error: SpawnError,
    /// What had ended the job: its deadline, a stop, or that the step took too long ([`Reason::SpawnFailed`]).
    ///
    /// [`Reason::SpawnFailed`]: crate::report::Reason::SpawnFailed
    pub reason: crate::report::Reason,
    /// The processes that SIGKILL did not end.
    pub unkillable: ProcessList,
    /// The directories that stay as long as these do.
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
        write!(f, "cannot {doing}: {}{}", self.errno, hint(advice))
    }
}

/// The advice where a limit on open files, or on their size, is reached.
pub(crate) fn short_of_descriptors(errno: Errno) -> &'static str {
    match errno {
        Errno::MFILE => "too few descriptors are left: close some, or see ulimit -Hn",
        Errno::NFILE => "the machine has no open file left: see /proc/sys/fs/file-max",
        // memfd_create(2): its files have a size that RLIMIT_FSIZE limits, as all do.
        Errno::FBIG => "the limit on the size of files (ulimit -f) is too low for the arguments and the environment",
        _ => "",
    }
}

fn hint(advice: &str) -> String {
    if advice.is_empty() { String::new() } else { format!(" ({})", printable(advice)) }
}

fn refusals(refusals: &[Refusal]) -> String {
    refusals.iter().map(|refusal| format!("\n  {refusal}")).collect()
}
