//! The commands that find and control the jobs of other pinfold processes: `pinfold ps`, `stats`, `stop`, `kill`,
//! `signal`, `freeze`, `thaw`, `wait` and `exec`.

pub mod exec;
pub mod ps;
pub mod stats;

use std::time::Duration;

use anyhow::Result;

use crate::Signal;
use crate::cli::jobs::act::{self, Outcome};
use crate::cli::jobs::find::{self, Supervisor};
use crate::cli::jobs::target::{self, Target};

use super::exit::{TIMED_OUT, UNKILLABLE};
use super::explain::processes;
use super::run::parse_signal;
use super::{duration, message_of, print_message};

/// Stop jobs: the stop signal, then SIGKILL after the grace period, as `run` does when it receives SIGTERM
///
/// Returns when no process of the jobs is left. Each job has its own stop signal and grace period (--stop-signal,
/// --grace of the command that started it).
///
/// Exit code: 0; 122 when a process could not be ended; 125 when a job was not found or may not be stopped.
#[derive(clap::Args)]
pub struct StopArgs {
    #[command(flatten)]
    targets: Targets,
}

/// Kill jobs at once
///
/// Returns when no process of the jobs is left.
///
/// Exit code: 0; 122 when a process could not be ended; 125 when a job was not found or may not be killed.
#[derive(clap::Args)]
pub struct KillArgs {
    #[command(flatten)]
    targets: Targets,
}

/// Send a signal to the main process of jobs
///
/// Exit code: 0; 125 when a job was not found or may not be signalled.
#[derive(clap::Args)]
pub struct SignalArgs {
    /// Send the signal to every process of the jobs
    #[arg(long)]
    all: bool,

    /// The signal: a name like HUP, or a number
    #[arg(value_parser = parse_signal)]
    signal: Signal,

    #[command(flatten)]
    targets: Targets,
}

/// Freeze jobs: their processes use no CPU time until they are thawed
///
/// The jobs must have cgroups. The time limits of the jobs continue to run. A frozen job can be stopped and killed.
#[derive(clap::Args)]
pub struct FreezeArgs {
    #[command(flatten)]
    targets: Targets,
}

/// Thaw frozen jobs
#[derive(clap::Args)]
pub struct ThawArgs {
    #[command(flatten)]
    targets: Targets,
}

/// Wait until no process of jobs is left
///
/// Exit code: 0; 124 when processes are left at the end of --timeout; 125 when a job was not found.
#[derive(clap::Args)]
pub struct WaitArgs {
    /// Wait for at most this time
    #[arg(long, short, value_name = "DURATION", value_parser = duration::limit)]
    timeout: Option<Duration>,

    #[command(flatten)]
    targets: Targets,
}

#[derive(clap::Args)]
struct Targets {
    /// The name of a job, or the pid of any process of a job, or the pid of a pinfold process for all of its jobs
    #[arg(required = true, value_name = "NAME|PID")]
    targets: Vec<String>,
}

impl Targets {
    /// Finds all targets, and then calls `act` for each. If a target is not found, returns an error and does not call
    /// `act`. After an error of `act`, continues with the next target. Returns the last error, and prints the earlier
    /// ones.
    fn each(&self, mut act: impl FnMut(Target<'_>) -> Result<u8>) -> Result<u8> {
        let all = find::all()?;
        let found = self.targets.iter().map(|word| target::find(word, &all)).collect::<Result<Vec<_>>>()?;
        let mut code = 0;
        let mut result = Ok(());
        for target in found {
            match act(target) {
                Ok(this) => code = code.max(this),
                Err(error) => {
                    if let Err(earlier) = std::mem::replace(&mut result, Err(error)) {
                        print_message(&message_of(&earlier));
                    }
                }
            }
        }
        result.map(|()| code)
    }
}

/// Returns the exit code. Prints the processes that could not be ended.
fn exit_code(target: Target<'_>, outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Gone => 0,
        Outcome::Remaining(remaining) => {
            print_message(&format!("could not end {} of {}", processes(remaining), target.describe()));
            UNKILLABLE
        }
    }
}

pub fn stop(args: &StopArgs) -> Result<u8> {
    args.targets.each(|target| Ok(exit_code(target, &act::stop(target)?)))
}

pub fn kill(args: &KillArgs) -> Result<u8> {
    args.targets.each(|target| Ok(exit_code(target, &act::kill(target)?)))
}

pub fn signal(args: &SignalArgs) -> Result<u8> {
    args.targets.each(|target| act::signal(target, args.signal, args.all).map(|()| 0))
}

pub fn freeze(args: &FreezeArgs) -> Result<u8> {
    args.targets.each(|target| act::freeze(target, true).map(|()| 0))
}

pub fn thaw(args: &ThawArgs) -> Result<u8> {
    args.targets.each(|target| act::freeze(target, false).map(|()| 0))
}

pub fn wait(args: &WaitArgs) -> Result<u8> {
    let limit = args.timeout.filter(|timeout| *timeout < Duration::MAX);
    args.targets.each(|target| Ok(if act::wait(target, limit)? { 0 } else { TIMED_OUT }))
}

/// Returns the supervisors of this user, or of all users.
fn supervisors(all_users: bool) -> Result<Vec<Supervisor>> {
    let own = rustix::process::geteuid().as_raw();
    let mut all = find::all()?;
    all.retain(|supervisor| all_users || supervisor.owner == own);
    Ok(all)
}

/// Returns the rows as lines with aligned columns. The last column is not padded.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(at, (cell, &width))| if at + 1 == columns { cell.clone() } else { format!("{cell:width$}") });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}
