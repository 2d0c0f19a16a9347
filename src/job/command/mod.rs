//! The command to run: a builder of plain data.

mod from_std;
mod passed;
mod run;
mod signals;
mod stop;
mod streams;
mod strings;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::cgroup::limits::Limits;
use crate::job::output::CaptureLimit;
use crate::job::stop::StopPolicy;
use crate::kernel::pty::Pty;
use crate::kernel::signal::Signal;
use crate::kernel::user::User;
use crate::sandbox::Sandbox;
pub(crate) use run::Sealed;
pub use run::Spawner;
pub(crate) use streams::Source;
pub use streams::Stdio;
pub(crate) use strings::CStrings;

/// The process group of the job's main process.
///
/// ```
/// let mut command = pinfold::Command::new("server");
/// command.process_group(pinfold::ProcessGroup::NewSession);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProcessGroup {
    /// A new process group: a job that signals its own group (`kill 0`) does not reach the supervisor.
    #[default]
    New,
    /// A new process group in a new session (setsid(2)), without a controlling terminal.
    NewSession,
    /// The same as [`NewSession`](Self::NewSession). In addition, if standard input is a terminal that belongs to no
    /// session, it becomes the controlling terminal (TIOCSCTTY in ioctl_tty(2)).
    NewSessionOnTerminal,
    /// The process group of the supervisor. Use this in a program with a controlling terminal: the signals of the
    /// terminal's keys (such as Ctrl-C) then reach the job.
    Supervisors,
}

/// A command, with the settings for its job: streams, limits, and how it is stopped. Its methods have the same names as
/// those of [`std::process::Command`]. [`Job`](crate::Job) lists the differences from `tokio::process`.
///
/// ```
/// use std::time::Duration;
/// let mut command = pinfold::Command::new("make");
/// command.args(["-j2", "check"]).env("CI", "true").timeout(Duration::from_secs(600));
/// ```
#[derive(Clone, Debug)]
pub struct Command {
    program: OsString,
    arg0: Option<OsString>,
    args: Vec<OsString>,
    clear_env: bool,
    env: BTreeMap<OsString, Option<OsString>>,
    /// The variables of `env` that hold the pid of the main process.
    pid_variables: BTreeSet<OsString>,
    /// The descriptors that the job gets under these numbers.
    pub(crate) passed: BTreeMap<RawFd, Arc<OwnedFd>>,
    current_dir: Option<PathBuf>,
    name: Option<String>,
    pub(crate) stdio: [Option<Stdio>; 3],
    pub(crate) stderr_to_stdout: bool,
    pub(crate) pty: Option<Box<Pty>>,
    pub(crate) inherit_descriptors: bool,
    pub(crate) process_group: ProcessGroup,
    pub(crate) default_signals: u64,
    pub(crate) unblocked_signals: u64,
    pub(crate) supervisor_death_signal: Option<Signal>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) capture: Option<CaptureLimit>,
    pub(crate) tees: [Option<Arc<OwnedFd>>; 2],
    pub(crate) stop: StopPolicy,
    pub(crate) limits: Limits,
    pub(crate) user: Option<User>,
    pub(crate) sandbox: Option<Arc<Sandbox>>,
    pub(crate) measure_pressure: bool,
}

impl Command {
    /// Returns a command without arguments. pinfold searches for a `program` without a slash in the `PATH` that the job
    /// will have, as execvp(3) does. A relative path with a slash is relative to the job's working directory.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().into(),
            arg0: None,
            args: Vec::new(),
            clear_env: false,
            env: BTreeMap::new(),
            pid_variables: BTreeSet::new(),
            passed: BTreeMap::new(),
            current_dir: None,
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
            capture: None,
            tees: [None, None],
            stop: StopPolicy::default(),
            limits: Limits::default(),
            user: None,
            sandbox: None,
            measure_pressure: false,
        }
    }

    /// Adds one argument.
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.args.push(arg.as_ref().into());
        self
    }

    /// Adds arguments.
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(&mut self, args: I) -> &mut Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().into()));
        self
    }

    /// Sets `argv[0]`, which is the program by default. This does not change which program is executed.
    pub fn arg0(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.arg0 = Some(arg.as_ref().into());
        self
    }

    /// Sets an environment variable for the job.
    pub fn env(&mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.env.insert(key.as_ref().into(), Some(value.as_ref().into()));
        self.pid_variables.remove(key.as_ref());
        self
    }

    /// Sets environment variables for the job.
    pub fn envs<I, K, V>(&mut self, variables: I) -> &mut Self
    where
        I: IntoIterator<Item = (K, V)>,
        K: AsRef<OsStr>,
        V: AsRef<OsStr>,
    {
        for (key, value) in variables {
            self.env(key, value);
        }
        self
    }

    /// Removes an environment variable, whether it is inherited or was set here before.
    pub fn env_remove(&mut self, key: impl AsRef<OsStr>) -> &mut Self {
        self.pid_variables.remove(key.as_ref());
        if self.clear_env {
            self.env.remove(key.as_ref());
        } else {
            self.env.insert(key.as_ref().into(), None);
        }
        self
    }

    /// Removes all environment variables: the inherited ones, and those that were set here before.
    ///
    /// ```
    /// let mut command = pinfold::Command::new("env");
    /// command.env("A", "1").env_clear().env("B", "2");
    /// assert_eq!(command.get_envs().count(), 1);
    /// ```
    pub fn env_clear(&mut self) -> &mut Self {
        self.clear_env = true;
        self.env.clear();
        self.pid_variables.clear();
        self
    }

    /// Sets the working directory of the job. The default is the working directory of the supervisor at the time of the
    /// spawn. A relative path is relative to that directory.
    pub fn current_dir(&mut self, directory: impl AsRef<Path>) -> &mut Self {
        self.current_dir = Some(directory.as_ref().into());
        self
    }

    /// Returns the program that was passed to [`new`](Self::new).
    #[must_use]
    pub fn get_program(&self) -> &OsStr {
        &self.program
    }

    /// Returns the arguments after the program.
    pub fn get_args(&self) -> impl ExactSizeIterator<Item = &OsStr> {
        self.args.iter().map(OsString::as_os_str)
    }

    /// Returns the variables that were set (with their value) or removed (with `None`) here, sorted by name. Inherited
    /// variables are not among them.
    pub fn get_envs(&self) -> impl ExactSizeIterator<Item = (&OsStr, Option<&OsStr>)> {
        self.env.iter().map(|(key, value)| (key.as_os_str(), value.as_deref()))
    }

    /// Returns the working directory, or `None` if it was not set.
    #[must_use]
    pub fn get_current_dir(&self) -> Option<&Path> {
        self.current_dir.as_deref()
    }

    /// Sets a name for the report, instead of the name of the program.
    pub fn name(&mut self, name: impl Into<String>) -> &mut Self {
        self.name = Some(name.into());
        self
    }

    /// Lets the job also inherit every other descriptor of the supervisor that has no close-on-exec flag, under the
    /// same number, as exec does: for example a make jobserver, or sockets from a service manager. Off by default.
    ///
    /// The descriptors are selected and copied when [`Supervisor::spawn`](crate::Supervisor::spawn) is called. The job
    /// receives the copies, so other threads may close or replace the originals meanwhile. Each copy needs a free
    /// descriptor.
    pub fn inherit_descriptors(&mut self, inherit: bool) -> &mut Self {
        self.inherit_descriptors = inherit;
        self
    }

    /// Sets the process group of the main process: [`ProcessGroup::New`] by default.
    pub fn process_group(&mut self, group: ProcessGroup) -> &mut Self {
        self.process_group = group;
        self
    }

    /// Adds to the report how long the job waited for CPU, memory and I/O (PSI). pinfold then reads three more files
    /// when the job has ended, which takes about a twentieth of the time of the shortest job.
    /// [`Job::usage`](crate::JobHandle::usage) always includes these figures.
    pub fn measure_pressure(&mut self) -> &mut Self {
        self.measure_pressure = true;
        self
    }

    /// Sets the limits of the job. There are none by default.
    pub fn limits(&mut self, limits: Limits) -> &mut Self {
        self.limits = limits;
        self
    }

    /// Runs the command as another user, with that user's groups and `HOME`, `USER`, `LOGNAME` and `SHELL`. Only root
    /// can do this. The job is in its cgroup before it changes to the user.
    pub fn user(&mut self, user: User) -> &mut Self {
        self.user = Some(user);
        self
    }

    /// Restricts what the job may touch. Without a sandbox, the job may do everything that the supervisor may do.
    ///
    /// The job also has a session of its own, and writes no core dumps. It has only the environment variables of
    /// [`Sandbox::env`] and those that were set here, and no descriptors except its standard streams and those of
    /// [`Sandbox::inherit_fd`]. Root must run the job as another [`user`](Self::user).
    ///
    /// ```
    /// use pinfold::{Command, Sandbox};
    /// let mut sandbox = Sandbox::new();
    /// sandbox.read("/srv/data").connect_tcp(443);
    /// let mut command = Command::new("python3");
    /// command.args(["-c", "print(2 + 2)"]).sandbox(sandbox);
    /// ```
    pub fn sandbox(&mut self, sandbox: Sandbox) -> &mut Self {
        self.sandbox = Some(Arc::new(sandbox));
        self
    }

    /// Returns the process group that the main process gets, unless it has a terminal of its own.
    pub(crate) fn effective_process_group(&self) -> ProcessGroup {
        if self.sandbox.is_some() { ProcessGroup::NewSession } else { self.process_group }
    }

    pub(crate) fn display_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| {
            Path::new(&self.program).file_name().unwrap_or(&self.program).to_string_lossy().into_owned()
        })
    }

    pub(crate) fn display_cwd(&self) -> Option<String> {
        self.current_dir.as_ref().map(|cwd| cwd.display().to_string())
    }

    pub(crate) fn display_argv(&self) -> Vec<String> {
        std::iter::once(&self.program).chain(&self.args).map(|arg| arg.to_string_lossy().into_owned()).collect()
    }
}
