//! What to run: a builder of plain data.

mod signals;
mod stop;
mod streams;

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::output::CaptureLimit;
use crate::pty::Pty;
use crate::signal::Signal;
use crate::stop::StopPolicy;
use crate::user::User;
pub use streams::Stdio;

/// The process group of the job's main process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProcessGroup {
    /// One of its own: a job that signals its group (`kill 0`) does not reach the supervisor.
    #[default]
    New,
    /// One of its own in a session of its own (setsid(2)), without a controlling terminal.
    NewSession,
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

    pub(crate) fn display_program(&self) -> String {
        self.program.to_string_lossy().into_owned()
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

    /// Tells whether it can be meant, as far as that is known without starting it: no NUL bytes, names of environment variables
    /// that can be names, streams that fit together. [`Supervisor::spawn`](crate::Supervisor::spawn) does the same.
    ///
    /// # Errors
    /// [`Error::Invalid`], with what is accepted.
    ///
    /// ```
    /// let mut command = pinfold::Command::new("echo");
    /// assert!(command.arg("a\0b").check().is_err());
    /// ```
    pub fn check(&self) -> Result<()> {
        self.check_streams()?;
        self.strings().map(drop)
    }

    /// The arguments, the environment and the paths to try, as execve takes them.
    pub(crate) fn strings(&self) -> Result<Strings> {
        let env = self.environment()?;
        let path = env.iter().find(|(key, _)| key == "PATH").map(|(_, path)| path.as_bytes());
        let candidates = self.candidates(path);
        Ok(Strings {
            argv: std::iter::once(&self.program)
                .chain(&self.args)
                .map(|arg| c_string("argument", arg))
                .collect::<Result<_>>()?,
            env: env
                .into_iter()
                .map(|(key, value)| {
                    let mut entry = Vec::with_capacity(key.len() + value.len() + 2);
                    entry.extend_from_slice(key.as_bytes());
                    entry.push(b'=');
                    entry.extend_from_slice(value.as_bytes());
                    in_c("environment variable", entry)
                })
                .collect::<Result<_>>()?,
            candidates: candidates
                .iter()
                .map(|path| c_string("program", OsStr::from_bytes(path)))
                .collect::<Result<_>>()?,
            cwd: self.cwd.as_ref().map(|cwd| c_string("working directory", cwd.as_os_str())).transpose()?,
        })
    }

    /// The inherited variables in their order, changed as asked, then the new ones.
    fn environment(&self) -> Result<Vec<(OsString, OsString)>> {
        for key in self.env.keys() {
            if key.is_empty() || key.as_bytes().contains(&b'=') {
                return Err(Error::invalid(
                    "environment variable",
                    key.to_string_lossy(),
                    "its name must not be empty or hold '='",
                ));
            }
        }
        let mut env: Vec<_> = if self.clear_env { Vec::new() } else { std::env::vars_os().collect() };
        let users = self.user.iter().filter(|_| !self.clear_env).flat_map(|user| user.environment.iter());
        for (key, value) in users {
            env.retain(|(known, _)| known != key);
            env.push((key.clone(), value.clone()));
        }
        env.retain(|(key, _)| !self.env.contains_key(key));
        env.extend(self.env.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?))));
        Ok(env)
    }

    fn candidates(&self, path: Option<&[u8]>) -> Vec<Vec<u8>> {
        let program = self.program.as_bytes();
        if program.is_empty() || program.contains(&b'/') {
            return vec![program.to_vec()];
        }
        // execvp(3): an empty entry is the working directory; without PATH glibc takes /bin and /usr/bin.
        path.unwrap_or(b"/bin:/usr/bin")
            .split(|&byte| byte == b':')
            .map(|directory| match directory {
                b"" => [b"./", program].concat(),
                directory => [directory, b"/", program].concat(),
            })
            .collect()
    }
}

/// What execve takes, each with its NUL.
pub(crate) struct Strings {
    pub argv: Vec<CString>,
    pub env: Vec<CString>,
    pub candidates: Vec<CString>,
    pub cwd: Option<CString>,
}

fn c_string(what: &'static str, text: &OsStr) -> Result<CString> {
    in_c(what, text.to_owned().into_vec())
}

fn in_c(what: &'static str, text: Vec<u8>) -> Result<CString> {
    CString::new(text).map_err(|error| {
        Error::invalid(
            what,
            String::from_utf8_lossy(&error.into_vec()).replace('\0', "\\0"),
            "it holds a NUL byte, which no program can be given",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_through_path() {
        let paths = |program: &str, path: Option<&str>| {
            let found = Command::new(program).candidates(path.map(str::as_bytes));
            found.into_iter().map(|path| String::from_utf8(path).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(paths("ls", Some("/bin::/x")), ["/bin/ls", "./ls", "/x/ls"]);
        assert_eq!(paths("./ls", Some("/bin")), ["./ls"]);
        assert_eq!(paths("ls", None), ["/bin/ls", "/usr/bin/ls"]);
        assert_eq!(paths("ls", Some("")), ["./ls"]);
    }

    #[test]
    fn nul_bytes_are_refused() {
        let mut command = Command::new("true");
        command.arg("a\0b");
        let error = command.strings().err().unwrap().to_string();
        assert!(error.contains("argument 'a\\0b'") && error.contains("NUL"), "{error}");
        let mut command = Command::new("true");
        command.env("A=B", "c");
        assert!(command.strings().is_err());
    }
}
