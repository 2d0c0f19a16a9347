//! `pinfold sweep`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::report::text::printable;
use crate::sweep::{Abandoned, Outcome, Sweep};

use super::explain::processes;
use super::{duration, environment, print_message, write};

/// End the processes and remove the cgroups that are left if pinfold was killed together with its guard
///
/// Looks in this process's own cgroup and below, and in $TMPDIR and /tmp for the private tmps of sandboxes. Does not
/// affect a running pinfold, in whatever PID namespace it is, and does not change directories that pinfold did not
/// make.
///
/// Exit code: 0 when nothing is left, or with --dry-run; 1 when something could not be removed; 125 when pinfold itself
/// failed.
#[derive(clap::Args)]
pub struct Args {
    /// Only list what would be removed
    #[arg(long, short = 'n')]
    dry_run: bool,

    /// The cgroup v2 directory to search, with everything below it, instead of pinfold's own [env: PINFOLD_CGROUP]
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,

    /// How long to wait after SIGKILL until the processes have ended, for each directory
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    kill_bound: Duration,

    /// Print the result as a line of JSON
    #[arg(long)]
    json: bool,
}

/// The exit code when something could not be removed.
const LEFT: u8 = 1;

/// Sweeps, prints the result, and returns the exit code.
pub fn run(args: &Args) -> Result<u8> {
    let mut sweep = Sweep::new().dry_run(args.dry_run).kill_bound(args.kill_bound);
    if let Some(cgroup) = environment::cgroup(args.cgroup.as_deref()) {
        sweep = sweep.cgroup(cgroup);
    }
    let swept = sweep.run()?;
    let mut text = String::new();
    if args.json {
        text = swept.to_json() + "\n";
    } else {
        for base in &swept.abandoned {
            if let Outcome::Failed { error, advice } = &base.outcome {
                let advice = if advice.is_empty() { String::new() } else { format!(" ({advice})") };
                print_message(&format!("{}: {}{advice}", printable(&base.path), printable(error)));
            } else {
                text.push_str(&line(base));
            }
        }
        for base in &swept.locked {
            let holders = processes(&base.holders);
            print_message(&format!(
                "{}: it is locked and has no guard: {holders} (end the process that holds the lock, then sweep again)",
                printable(&base.path)
            ));
        }
        for left in &swept.not_searched {
            print_message(&format!("could not search {}: {}", printable(&left.path), left.error));
        }
    }
    // println! would panic if standard output is a pipe that no process reads.
    write::print(&text).context("cannot write to standard output")?;
    Ok(if swept.has_failed() { LEFT } else { 0 })
}

fn line(base: &Abandoned) -> String {
    let what = match (base.processes.count, base.populated) {
        (0, false) => "empty".into(),
        (0, true) => "with processes of another PID namespace".into(),
        _ => format!("with {}", processes(&base.processes)),
    };
    let done = if base.outcome == Outcome::Found { "abandoned" } else { "removed" };
    format!("{done} {}, {what}\n", printable(&base.path))
}
