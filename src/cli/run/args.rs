//! The options of `pinfold run`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use crate::cli::duration;
use crate::cli::limits::LimitArgs;
use crate::cli::on_signal::OnSignal;
use crate::cli::parent::DieWithParent;
use crate::cli::report_sink::{self, Destination};
use crate::cli::sandbox::SandboxArgs;
use crate::report::ContainmentKind;
use crate::report::text::printable_os;
use crate::{Command, Leftovers, ProcessGroup, Signal, SignalTo, User};

use super::streams::StreamArgs;

/// Run a command; when it ends, everything that it started has ended too.
///
/// The command has pinfold's own standard input, output and error. Only the options under "Output" change that.
///
/// Exit code: the command's own; 128+N when signal N ended it; 124 at the deadline; 123 for --fail-on-leftovers; 122
/// when a process could not be ended, whatever else happened; 125 when pinfold itself failed; 126 when the command
/// can't be executed; 127 when it was not found.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Stop the job after this time: 1h30m, 2.5s, 500ms, or plain seconds; 0 is no limit
    #[arg(long, short, value_name = "DURATION", value_parser = duration::limit)]
    pub timeout: Option<Duration>,

    /// Kill the job this long after the stop signal
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    pub grace: Duration,

    /// How long to wait after SIGKILL; then pinfold names the processes that are still there, and the exit code is 122
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    pub kill_bound: Duration,

    /// The stop signal: a name like INT, or a number [default: TERM, or INT, HUP or QUIT where pinfold received that]
    #[arg(long, value_name = "SIGNAL", value_parser = parse_signal)]
    pub stop_signal: Option<Signal>,

    /// What pinfold does when it receives SIGNAL: pass (send it to the command), stop, kill or ignore (repeatable)
    /// [default: stop for TERM, INT, HUP and QUIT, pass for the others]
    #[arg(long, value_name = "SIGNAL=ACTION")]
    pub on_signal: Vec<OnSignal>,

    /// Which processes of the job receive the stop signal
    #[arg(long, value_name = "WHICH", default_value = "all")]
    pub signal_to: SignalToArg,

    /// What pinfold does with processes that are left when the command has exited
    #[arg(long, value_name = "WHAT", default_value = "kill")]
    pub leftovers: LeftoversArg,

    /// How long filters such as `> >(tee log)` may take to finish after the command has exited; other processes may
    /// take a tenth of it
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration::parse)]
    pub settle: Duration,

    /// End with exit code 123 when the command succeeded but left processes behind
    #[arg(long)]
    pub fail_on_leftovers: bool,

    /// The directory in which the command runs
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,

    /// Set an environment variable; KEY alone takes the value that pinfold has, also with --clear-env (repeatable)
    #[arg(long, short, value_name = "KEY[=VALUE]", value_parser = FromBytes(parse_variable))]
    pub env: Vec<(OsString, Option<OsString>)>,

    /// Remove an environment variable; pinfold does this before it sets those of --env (repeatable)
    #[arg(long, value_name = "KEY", value_parser = FromBytes(parse_name))]
    pub env_remove: Vec<OsString>,

    /// Start with an empty environment; --env still adds variables
    #[arg(long)]
    pub clear_env: bool,

    /// Run the command as this user, with its groups: a name or a number; for root only
    #[arg(long, value_name = "NAME|UID[:GID]", value_parser = parse_user)]
    pub user: Option<User>,

    /// A name for messages and the report
    #[arg(long)]
    pub name: Option<String>,

    /// Write a report in JSON to FILE, to standard output (-) or to a descriptor (fd:N)
    #[arg(long, value_name = "FILE|-|fd:N", value_parser = FromBytes(report_sink::parse))]
    pub report: Option<Destination>,

    /// Print the resources that the whole job used, on standard error
    #[arg(long)]
    pub stats: bool,

    /// How the job is held: in a cgroup where one is available, else by the guard as subreaper (auto), or only in the
    /// way that you name [env: PINFOLD_CONTAINMENT] [default: auto]
    #[arg(long, value_name = "WHAT")]
    pub containment: Option<ContainmentArg>,

    /// Refuse to start without this containment, even if another option or a variable names another one
    #[arg(long, value_name = "WHAT")]
    pub require: Option<RequireArg>,

    /// The cgroup v2 directory in which pinfold creates the job's cgroup, instead of in pinfold's own cgroup [env:
    /// PINFOLD_CGROUP]
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,

    /// Print only errors
    #[arg(long, short, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Print each step
    #[arg(long, short)]
    pub verbose: bool,

    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,

    #[command(flatten)]
    pub parent: DieWithParent,

    #[command(flatten)]
    pub streams: StreamArgs,

    #[command(flatten)]
    pub sandbox: SandboxArgs,

    // Must come last: its heading applies to all options that follow.
    #[command(flatten)]
    pub limits: LimitArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SignalToArg {
    /// Every process of the job
    All,
    /// Only the command's own process
    Main,
}

impl From<SignalToArg> for SignalTo {
    fn from(to: SignalToArg) -> Self {
        match to {
            SignalToArg::All => Self::All,
            SignalToArg::Main => Self::Main,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LeftoversArg {
    /// Stop them, then kill them
    Kill,
    /// Wait for them
    Wait,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ContainmentArg {
    /// The strongest containment that this machine offers; the report names it
    Auto,
    /// A cgroup of its own
    Cgroup,
    /// The guard as the job's subreaper; pinfold then ignores PINFOLD_CGROUP
    Subreaper,
}

impl ContainmentArg {
    /// Returns the only containment that is allowed; `None` where any is.
    pub fn kind(self) -> Option<ContainmentKind> {
        match self {
            Self::Auto => None,
            Self::Cgroup => Some(ContainmentKind::Cgroup),
            Self::Subreaper => Some(ContainmentKind::Subreaper),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RequireArg {
    /// A cgroup of its own
    Cgroup,
}

/// Parses an option's value from bytes; clap's own function parsers take only UTF-8.
#[derive(Clone)]
struct FromBytes<T>(fn(&OsStr) -> Result<T, String>);

impl<T: Clone + Send + Sync + 'static> clap::builder::TypedValueParser for FromBytes<T> {
    type Value = T;

    fn parse_ref(&self, command: &clap::Command, arg: Option<&clap::Arg>, value: &OsStr) -> Result<T, clap::Error> {
        (self.0)(value).map_err(|message| {
            let name = arg.map(ToString::to_string).unwrap_or_default();
            let message = format!("invalid value '{}' for '{name}': {message}\n", printable_os(value));
            command.clone().error(clap::error::ErrorKind::InvalidValue, message)
        })
    }
}

pub fn parse_signal(text: &str) -> Result<Signal, String> {
    text.parse().map_err(|error: crate::Error| error.to_string())
}

pub fn parse_user(text: &str) -> Result<User, String> {
    User::look_up(text).map_err(|error| match error {
        crate::Error::Invalid { advice, .. } => advice,
        error => error.to_string(),
    })
}

/// Returns the parser of `--env`.
pub fn variables() -> impl clap::builder::TypedValueParser<Value = (OsString, Option<OsString>)> {
    FromBytes(parse_variable)
}

/// Parses `KEY=VALUE` or `KEY`, as bytes, because an environment consists of bytes. For `KEY` alone it returns no
/// value.
fn parse_variable(text: &OsStr) -> Result<(OsString, Option<OsString>), String> {
    let bytes = text.as_bytes();
    match bytes.iter().position(|&byte| byte == b'=') {
        None if !bytes.is_empty() => Ok((text.into(), None)),
        Some(at) if at > 0 => {
            Ok((OsStr::from_bytes(&bytes[..at]).into(), Some(OsStr::from_bytes(&bytes[at + 1..]).into())))
        }
        _ => Err("write KEY=VALUE, or KEY to take the value that pinfold has".into()),
    }
}

fn parse_name(text: &OsStr) -> Result<OsString, String> {
    if text.is_empty() || text.as_bytes().contains(&b'=') { Err("write KEY".into()) } else { Ok(text.into()) }
}

impl Args {
    /// Returns the arguments without any option and without a command: every option has its default.
    pub(super) fn without_options() -> Self {
        Self {
            timeout: None,
            grace: Duration::from_secs(10),
            kill_bound: Duration::from_secs(10),
            stop_signal: None,
            on_signal: Vec::new(),
            signal_to: SignalToArg::All,
            leftovers: LeftoversArg::Kill,
            settle: Duration::from_secs(2),
            fail_on_leftovers: false,
            cwd: None,
            env: Vec::new(),
            env_remove: Vec::new(),
            clear_env: false,
            user: None,
            name: None,
            report: None,
            stats: false,
            containment: None,
            require: None,
            cgroup: None,
            quiet: false,
            verbose: false,
            command: Vec::new(),
            parent: DieWithParent::default(),
            streams: StreamArgs::default(),
            sandbox: SandboxArgs::default(),
            limits: LimitArgs::default(),
        }
    }

    /// Returns the containment that the options name, if they name one.
    pub fn containment(&self) -> Option<ContainmentArg> {
        self.require.map(|RequireArg::Cgroup| ContainmentArg::Cgroup).or(self.containment)
    }

    pub fn to_command(&self, shares_group: bool) -> Command {
        let mut words = self.command.iter();
        let mut command = Command::new(words.next().cloned().unwrap_or_default());
        command
            .args(words)
            .inherit_descriptors(true)
            .grace(self.grace)
            .settle(self.settle)
            .kill_bound(self.kill_bound)
            .stop_signal(self.stop_signal.unwrap_or(Signal::TERM))
            .signal_to(self.signal_to.into())
            .leftovers(match self.leftovers {
                LeftoversArg::Kill => Leftovers::Kill,
                LeftoversArg::Wait => Leftovers::Wait,
            })
            .limits(self.limits.to_limits())
            .process_group(if shares_group { ProcessGroup::Supervisors } else { ProcessGroup::New });
        if let Some(timeout) = self.timeout.filter(|timeout| *timeout < Duration::MAX) {
            command.timeout(timeout);
        }
        if self.clear_env {
            command.env_clear();
        }
        for key in &self.env_remove {
            command.env_remove(key);
        }
        for (key, value) in &self.env {
            // A variable that pinfold does not have is not set, as with docker and systemd-run.
            if let Some(value) = value.clone().or_else(|| std::env::var_os(key)) {
                command.env(key, value);
            }
        }
        if let Some(user) = &self.user {
            command.user(user.clone());
        }
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }
        if let Some(name) = &self.name {
            command.name(name);
        }
        command
    }
}
