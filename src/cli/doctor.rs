//! `pinfold doctor`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use pinfold::doctor::{Containment, examine};

use super::{environment, write};

/// Tell what this machine allows: which containment a job gets, why, and what to do for a stronger one
///
/// It changes nothing: a cgroup is made in pinfold's own, tried, and removed.
///
/// Exit code: 0 when a job gets a cgroup; 1 when it gets only the subreaper, or nothing; 125 when pinfold itself failed.
#[derive(clap::Args)]
pub struct Args {
    /// Print it as a line of JSON, with the facts
    #[arg(long)]
    json: bool,

    /// The cgroup v2 directory that `run --cgroup` would be given [env: PINFOLD_CGROUP]
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
}

/// A job gets no cgroup.
const NO_CGROUP: u8 = 1;

/// Examines, tells, and gives the exit code.
pub fn run(args: &Args) -> Result<u8> {
    let examination = examine(environment::cgroup(args.cgroup.as_deref()).as_deref());
    let text = if args.json { examination.to_json() + "\n" } else { examination.to_text() };
    // Never a panic of println! where nobody reads.
    write::print(&text).context("cannot write to standard output")?;
    Ok(if examination.verdict.containment == Containment::Cgroup { 0 } else { NO_CGROUP })
}
