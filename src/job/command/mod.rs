//! What to run: a builder of plain data.

mod signals;
mod stop;
mod streams;
mod strings;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::cgroup::limits::Limits;
use crate::job::output::CaptureLimit;
use crate::job::stop::StopPolicy;
use crate::kernel::pty::Pty;
use crate::kernel::signal::Signal;
use crate::kernel::user::User;
pub use streams::Stdio;
pub(crate) use strings::Block;

/// The process group of the job's main process.
///
/// ```
/// let mut command = pinfold::Command::new("server");
/// command.process_group(pinfold::ProcessGroup::NewSession);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProcessGroup {
    /// One of its own: a job that signals its group (`kill 0`) does not reach the supervisor.
    #[default]
    New,
    /// One of its own in a session of its own (setsid(2)), without a controlling terminal.
    NewSession,
    /// The same, with standard input as the controlling terminal, where that is a terminal that belongs to no session
    /// (TIOCSCTTY in ioctl_tty(2)). Elsewhere it is the same as [`NewSession`](Self::NewSession).
    NewSessionOnTerminal,
    /// The supervisor's. For programs with a controlling terminal, whose keys then reach the job.
    Supervisors,
}

/// A command, and how it is to be held.
///
/// ```
/// use std::time::Duration;
/// let mut command = pinfold::Command::new("make");
/// command.args(["-j2", "check"]).env("CI", "true").timeout(Duration::from_secs(600));
/// ```
#[derive(Clone, Debug)]
pub struct Command {
    program: OsString,
    args: Vec<OsString>,
    clear_env: bool,
    env: BTreeMap<OsString, Option<OsString>>,
    cwd: Option<PathBuf>,
    name: Option<String>,
    pub(crate) stdio: [Stdio; 3],
    pub(crate) stderr_to_stdout: bool,
    pub(crate) pty: Option<Box<Pty>>,
    pub(crate) inherit_descriptors: bool,
    pub(crate) process_group: ProcessGroup,
    pub(crate) default_signals: u64,
    pub(crate) unblocked_signals: u64,
    pub(crate) supervisor_death_signal: Option<Signal>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) capture: CaptureLimit,
    pub(crate) tees: [Option<Arc<OwnedFd>>; 2],
    pub(crate) stop: StopPolicy,
    pub(crate) limits: Limits,
    pub(crate) user: Option<User>,
    pub(crate) measure_pressure: bool,
}

impl Command {
    /// A command without arguments. A `program` without a slash is looked for in the `PATH` that the job will have,
    /// as execvp(3) does; a relative one with a slash starts at the job's working directory.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            clear_env: false,
            env: BTreeMap::new(),
            cwd: None,
            name: None,
            stdio: Default::default(),
            stderr_to_stdout: false,
            pty: None,
            inherit_descriptors: false,
            process_group: ProcessGroup::New,
            default_signals: 0,
            unblocked_signals: 0,
            supervisor_death_signal: None,
            timeout: None,
            idle_timeout: None,
            capture: CaptureLimit::default(),
            tees: [None, None],
            stop: StopPolicy::default(),
            limits: Limits::default(),
            user: None,
            measure_pressure: false,
        }
    }

    /// Adds one argument.
    pub fn arg(&mut self, arg: impl Into<OsString>) -> &mut Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args<I: IntoIterator<Item: Into<OsString>>>(&mut self, args: I) -> &mut Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable for the job.
    pub fn env(&mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> &mut Self {
        self.env.insert(key.into(), Some(value.into()));
        self
    }

    /// Leaves an inherited environment variable out.
    pub fn env_remove(&mut self, key: impl Into<OsString>) -> &mut Self {
        self.env.insert(key.into(), None);
        self
    }

    /// Leaves out all inherited environment variables; those that were set here stay.
    pub fn env_clear(&mut self) -> &mut Self {
        self.clear_env = true;
        self
    }

    /// The directory that the job starts in, else the supervisor's at the time of the spawn. A relative one starts there.
    pub fn cwd(&mut self, directory: impl Into<PathBuf>) -> &mut Self {
        self.cwd = Some(directory.into());
        self
    }

    /// A name for the report, instead of the program's.
    pub fn name(&mut self, name: impl Into<String>) -> &mut Self {
        self.name = Some(name.into());
        self
    }

    /// Also hands down every other descriptor of the supervisor that has no close-on-exec flag, under its number, as
    /// exec does (a make job server, sockets from a service manager). Off by default.
    ///
    /// Which these are is decided when [`Supervisor::spawn`](crate::Supervisor::spawn) is called: the job gets copies that are made
    /// then, whatever other threads do with the numbers meanwhile. That takes a free descriptor for each of them.
    pub fn inherit_descriptors(&mut self, inherit: bool) -> &mut Self {
        self.inherit_descriptors = inherit;
        self
    }

    /// The process group of the main process: [`ProcessGroup::New`] by default.
    pub fn process_group(&mut self, group: ProcessGroup) -> &mut Self {
        self.process_group = group;
        self
    }

    /// Has the report tell how long the job waited for CPU, memory and I/O, too (PSI): three files more to be read when the
    /// job has ended, about a twentieth of what the shortest job takes. [`Job::usage`](crate::Job::usage) always tells it.
    pub fn measure_pressure(&mut self) -> &mut Self {
        self.measure_pressure = true;
        self
    }

    /// What the job may use: no limits by default.
    pub fn limits(&mut self, limits: Limits) -> &mut Self {
        self.limits = limits;
        self
    }

    /// Runs it as another user, with his groups and `HOME`, `USER`, `LOGNAME` and `SHELL`; only root can. The job is in its
    /// cgroup before it changes.
    pub fn user(&mut self, user: User) -> &mut Self {
        self.user = Some(user);
        self
    }

    pub(crate) fn display_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| {
            Path::new(&self.program).file_name().unwrap_or(&self.program).to_string_lossy().into_owned()
        })
    }

    pub(crate) fn display_cwd(&self) -> Option<String> {
        self.cwd.as_ref().map(|cwd| cwd.display().to_string())
    }

    pub(crate) fn display_argv(&self) -> Vec<String> {
        std::iter::once(&self.program).chain(&self.args).map(|arg| arg.to_string_lossy().into_owned()).collect()
    }
}
