//! `pinfold doctor`.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::doctor::{Containment, examine_for};

use super::{environment, write};

/// Print which containment a job gets on this machine, why, and what to do for a stronger one
///
/// PINFOLD_CONTAINMENT applies as to `run`.
///
/// Changes nothing on the machine: pinfold only makes a cgroup in its own cgroup, tests it, and removes it.
///
/// Exit code: 0 when a job gets a cgroup; 1 when it gets only the subreaper, or nothing; 125 when pinfold itself
/// failed.
#[derive(clap::Args)]
pub struct Args {
    /// Print the result as a line of JSON, with all facts
    #[arg(long)]
    json: bool,

    /// The cgroup v2 directory to examine, as for `run --cgroup` [env: PINFOLD_CGROUP]
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
}

/// The exit code when a job gets no cgroup.
const NO_CGROUP: u8 = 1;

/// Examines the machine, prints the result, and returns the exit code.
pub fn run(args: &Args) -> Result<u8> {
    let containment = environment::containment(None)?;
    let examination = examine_for(environment::cgroup(args.cgroup.as_deref()).as_deref(), containment);
    let text = if args.json { examination.to_json() + "\n" } else { examination.to_text() };
    // println! would panic if standard output is a pipe that no process reads.
    write::print(&text).context("cannot write to standard output")?;
    Ok(if examination.verdict.containment == Containment::Cgroup { 0 } else { NO_CGROUP })
}
