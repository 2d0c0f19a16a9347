//! `pinfold exec`.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

use anyhow::Result;
use rustix::io::Errno;

use crate::cli::jobs::{exec, find, target};
use crate::report::exit_code_of_signal;
use crate::report::text::printable_os;
use crate::{Signal, User};

use super::super::run::{parse_user, variables};
use super::super::{message_of, print_message};

/// Run one more command inside of a running job
///
/// The command starts in the job's cgroup: the limits of the job apply to it, and it ends with the job at the latest.
/// Processes that it leaves belong to the job. It has the standard streams, the environment and the working directory
/// of `pinfold exec`. In a job with a sandbox, it has the same sandbox, and a clean environment. The job must have a
/// cgroup.
///
/// Exit code: the command's own; 128+N when signal N ended it; 125 when pinfold itself failed; 126 when the command
/// can't be executed; 127 when it was not found.
#[derive(clap::Args)]
pub struct Args {
    /// The directory in which the command runs
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,

    /// Set an environment variable, or pass it on into a sandbox (repeatable)
    #[arg(long, short, value_name = "KEY[=VALUE]", value_parser = variables())]
    env: Vec<(OsString, Option<OsString>)>,

    /// Run the command as this user, with the groups of the user: a name or a number; only root can use this option
    #[arg(long, value_name = "NAME|UID[:GID]", value_parser = parse_user)]
    user: Option<User>,

    /// The name of the job, or the pid of any process of the job, or the pid of the pinfold process that supervises it
    #[arg(value_name = "NAME|PID")]
    target: String,

    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub fn run(args: &Args) -> Result<u8> {
    let all = find::all()?;
    let target = target::find(&args.target, &all)?;
    // If the option has no value, pinfold passes on the variable of its own environment, also into a sandbox.
    let set = |(key, value): &(OsString, Option<OsString>)| {
        Some((key.clone(), value.clone().or_else(|| std::env::var_os(key))?))
    };
    let command = exec::Command {
        words: args.command.clone(),
        cwd: args.cwd.clone(),
        env: args.env.iter().filter_map(set).collect(),
        user: args.user.clone(),
    };
    match exec::exec(target, &command) {
        Ok(status) => {
            if let Some(signal) = status.signal() {
                let name = Signal::from_number(signal).map_or_else(|| signal.to_string(), |signal| signal.to_string());
                print_message(&format!("{} was ended by {name}", printable_os(&args.command[0])));
                return Ok(exit_code_of_signal(signal));
            }
            Ok(u8::try_from(status.code().unwrap_or_default()).unwrap_or(u8::MAX))
        }
        Err(error) => match error.downcast_ref::<Errno>() {
            Some(&errno) => {
                print_message(&message_of(&error));
                Ok(if errno == Errno::NOENT { 127 } else { 126 })
            }
            None => Err(error),
        },
    }
}
