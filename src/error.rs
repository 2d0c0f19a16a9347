//! The errors. Each message contains the operation, the object, the errno, and advice for the user.

mod spawn;

use rustix::io::Errno;

use crate::report::text::printable;
use crate::report::{Promise, Refusal};
pub use spawn::{HangingStart, SpawnError, SpawnStage};

/// The library's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why pinfold could not do what was requested. A job that ran and failed is not an error; its
/// [`Report`](crate::Report) contains the failure.
///
/// ```
/// use pinfold::{Command, Error};
/// let error = Command::new("a\0b").check().unwrap_err();
/// assert!(matches!(error, Error::Invalid { .. }) && error.exit_code() == 125);
/// println!("pinfold: {error}");
/// ```
///
/// The message is complete: it contains the error of the system call, which [`source`](std::error::Error::source) also
/// returns.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused an operation.
    #[error("{operation} {}: {source}{}", printable(object), hint(advice))]
    #[non_exhaustive]
    System {
        /// The system call, or its purpose.
        operation: &'static str,
        /// The object of the operation, for example a file.
        object: String,
        /// The error that the kernel returned; [`raw_os_error`](std::io::Error::raw_os_error) is the errno.
        source: std::io::Error,
        /// Advice for the user; empty if pinfold has no advice.
        advice: String,
    },
    /// An argument that is not valid.
    #[error("{what} '{}' is not valid: {}", printable(value), printable(advice))]
    #[non_exhaustive]
    Invalid {
        /// Which argument.
        what: &'static str,
        /// Its value.
        value: String,
        /// Which values are valid.
        advice: String,
    },
    /// The description of services is not valid, in a file or in the program. Nothing was started.
    #[error("{}: {}", printable(place), printable(message))]
    #[non_exhaustive]
    Config {
        /// The file and the line, or the service.
        place: String,
        /// What is wrong, and what to write instead.
        message: String,
    },
    /// No containment that is available on this machine can hold the job.
    #[error("{}:{}", .kind.message(), crate::error::refusals(.refusals))]
    #[non_exhaustive]
    Containment {
        /// What is missing.
        kind: ContainmentErrorKind,
        /// Everything that pinfold tried, and why it can't use it.
        refusals: Vec<Refusal>,
    },
    /// A limit that pinfold can't enforce here. pinfold started nothing.
    #[error("cannot enforce the {limit}: {}{}", printable(reason), hint(advice))]
    #[non_exhaustive]
    Limit {
        /// Which limit.
        limit: &'static str,
        /// Why pinfold can't enforce it.
        reason: String,
        /// Advice for the user; empty if pinfold has no advice.
        advice: String,
    },
    /// A promise of the sandbox that no mechanism of this machine can hold. pinfold started nothing.
    #[error("cannot hold the promise '{promise}' of the sandbox: {}{}", printable(reason), hint(advice))]
    #[non_exhaustive]
    Promise {
        /// Which promise.
        promise: Promise,
        /// Why no mechanism of this machine can hold it.
        reason: String,
        /// What you can do instead, and how to waive the promise.
        advice: String,
    },
    /// The command could not be started.
    #[error(transparent)]
    Spawn(SpawnError),
    /// The command could not be started, and SIGKILL did not end the process in which pinfold tried to start it.
    #[error(transparent)]
    Hangs(Box<HangingStart>),
    /// pinfold found no guard program, or the guard program did not answer.
    #[error("the guard did not start: {}", printable(.0))]
    GuardStart(String),
    /// pinfold ended the job before it had executed the command.
    #[error("{} was ended before it had been executed ({})", printable(program), ended_by(.reason))]
    #[non_exhaustive]
    EndedEarly {
        /// The command's name, as the caller gave it.
        program: String,
        /// Why pinfold ended it.
        reason: crate::report::Reason,
    },
    /// A job did not become ready ([`Job::ready`](crate::Job::ready)).
    #[error("{} did not become ready: {}", printable(program), printable(why))]
    #[non_exhaustive]
    NotReady {
        /// The job's name.
        program: String,
        /// What pinfold waited for, and what happened instead.
        why: String,
    },
    /// The pool takes no more tasks.
    #[error(
        "the pool takes no more tasks: it was shut down or stopped, a task failed with fail-fast, or its deadline is over"
    )]
    PoolClosed,
    /// The rights of this process have changed since the start of its guard. A job would still get the old rights,
    /// because the guard starts it.
    #[error(
        "no job was started: the rights of this process have changed since its supervisor was started, and the job would \
         have the old rights: {what} (start another supervisor after the change; to run one job as another user, keep \
         the rights and use Command::user)"
    )]
    #[non_exhaustive]
    HostChanged {
        /// Which rights have changed, with the old and the new value.
        what: String,
    },
    /// The guard is gone. Its jobs have been ended.
    #[error("the guard process is gone, perhaps because it was killed; its jobs have been ended")]
    GuardLost,
}

impl Error {
    pub(crate) fn system(
        operation: &'static str,
        object: impl Into<String>,
        errno: Errno,
        advice: impl Into<String>,
    ) -> Self {
        Self::System { operation, object: object.into(), source: errno.into(), advice: advice.into() }
    }

    pub(crate) fn invalid(what: &'static str, value: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Invalid { what, value: value.into(), advice: advice.into() }
    }

    pub(crate) fn containment(kind: ContainmentErrorKind, refusals: Vec<Refusal>) -> Self {
        Self::Containment { kind, refusals }
    }

    /// Returns the error of the system call that failed, if one did.
    ///
    /// ```
    /// # async fn example(supervisor: &pinfold::Supervisor) {
    /// use std::io::ErrorKind;
    /// if let Err(error) = supervisor.spawn(&pinfold::Command::new("no-such-program")).await {
    ///     assert_eq!(error.io_error().map(|error| error.kind()), Some(ErrorKind::NotFound));
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn io_error(&self) -> Option<&std::io::Error> {
        match self {
            Self::System { source, .. } => Some(source),
            Self::Spawn(error) => Some(&error.source),
            Self::Hangs(start) => Some(&start.error.source),
            _ => None,
        }
    }

    /// Returns the errno of a failed operation.
    pub(crate) fn system_errno(&self) -> Option<Errno> {
        match self {
            Self::System { source, .. } => Errno::from_io_error(source),
            _ => None,
        }
    }

    /// Returns the exit code with which a command-line program reports this error: 127 if the command was not found,
    /// 126 if it was found but can't be executed, 124 if the deadline came before the command was executed, 122 if
    /// SIGKILL did not end the process in which pinfold tried to start the command, and 125 otherwise. 124 to 127 are
    /// the codes of timeout(1) and env(1).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Spawn(error) if error.stage == SpawnStage::Exec => match error.errno() {
                Errno::NOENT => 127,
                _ => 126,
            },
            Self::EndedEarly { reason: crate::report::Reason::Deadline, .. } => 124,
            Self::Hangs(_) => 122,
            _ => 125,
        }
    }
}

/// For functions that return [`std::io::Result`], as those of [`std::process`] do. The kind is that of
/// [`io_error`](Error::io_error), and the error itself is the source.
impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Invalid { .. } => std::io::ErrorKind::InvalidInput,
            _ => error.io_error().map_or(std::io::ErrorKind::Other, std::io::Error::kind),
        };
        Self::new(kind, error)
    }
}

/// The kinds of [`Error::Containment`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContainmentErrorKind {
    /// A cgroup was requested, and none is available.
    NoCgroup,
    /// Neither a cgroup nor a guard as subreaper can hold a job.
    NoContainment,
    /// There is no cgroup v2 in which a [`Sweep`](crate::sweep::Sweep) could look.
    NoCgroupToSearch,
    /// No available cgroup has the controllers that were requested, or that the limits need. The text lists them.
    NoControllers(String),
}

impl ContainmentErrorKind {
    fn message(&self) -> String {
        match self {
            Self::NoCgroup => "no cgroup can hold the job".into(),
            Self::NoContainment => "nothing here can hold the job".into(),
            Self::NoCgroupToSearch => "there is no cgroup v2 to search".into(),
            Self::NoControllers(controllers) => {
                format!("no cgroup here has the controllers that the limits need ({controllers})")
            }
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

/// Returns the advice for an errno that means that a limit on open files, or on their size, has been reached; empty for
/// any other errno.
pub(crate) fn short_of_descriptors(errno: Errno) -> &'static str {
    match errno {
        Errno::MFILE => "too few descriptors are left: close some, or see ulimit -Hn",
        Errno::NFILE => "the machine's limit on open files has been reached: see /proc/sys/fs/file-max",
        // RLIMIT_FSIZE limits the size of the files of memfd_create(2) too.
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

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;
    use crate::report::ProcessList;

    #[test]
    fn an_error_crosses_threads_and_has_its_source() {
        fn crosses_threads<T: std::error::Error + Send + Sync + 'static>() {}
        crosses_threads::<Error>();
        crosses_threads::<SpawnError>();
        crosses_threads::<HangingStart>();

        let errno = |error: &Error| {
            let source = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
            assert_eq!(source.map(std::io::Error::raw_os_error), error.io_error().map(std::io::Error::raw_os_error));
            source.and_then(std::io::Error::raw_os_error)
        };
        assert_eq!(errno(&Error::system("open", "x", Errno::ACCESS, "")), Some(libc::EACCES));
        let error = || SpawnError {
            stage: SpawnStage::Exec,
            source: Errno::NOENT.into(),
            program: "x".into(),
            cwd: None,
            denials: Vec::new(),
        };
        assert_eq!(errno(&Error::Spawn(error())), Some(libc::ENOENT));
        assert_eq!(Error::Spawn(error()).exit_code(), 127);
        let hangs = HangingStart {
            error: error(),
            reason: crate::report::Reason::Deadline,
            unkillable: ProcessList::default(),
            not_removed: Vec::new(),
        };
        assert_eq!(errno(&Error::Hangs(Box::new(hangs))), Some(libc::ENOENT));
        assert_eq!(errno(&Error::GuardLost), None);

        let kind = |error: Error| std::io::Error::from(error).kind();
        assert_eq!(kind(Error::Spawn(SpawnError { stage: SpawnStage::Exec, ..error() })), std::io::ErrorKind::NotFound);
        assert_eq!(kind(Error::invalid("name", "", "")), std::io::ErrorKind::InvalidInput);
        assert_eq!(kind(Error::GuardLost), std::io::ErrorKind::Other);
    }
}
