//! `pinfold ps`.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cli::jobs::listing::{JobEntry, Listing, State, SupervisorEntry};
use crate::report::SupervisorKind;
use crate::report::text::printable;

use super::super::explain::size;
use super::super::write;
use super::{supervisors, table};

/// List the running jobs of all pinfold processes of this user
///
/// A process that supervises several jobs (pool, serve, up, or a program that uses the library) has a line of its own
/// above its jobs. "abandoned" means that this process and its guard were both killed: `pinfold sweep` ends and removes
/// what they left.
#[derive(clap::Args)]
pub struct Args {
    /// List the jobs of all users; only root sees the details of other users' jobs
    #[arg(long, short)]
    all_users: bool,

    /// Print the result as a line of JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<u8> {
    let listing = Listing::of(&supervisors(args.all_users)?, false);
    let text = if args.json { listing.to_json() + "\n" } else { text(&listing, args.all_users) };
    write::print(&text).context("cannot write to standard output")?;
    Ok(0)
}

/// Returns the command in the syntax of a shell.
fn shell_quoted(command: &[String]) -> String {
    let is_plain =
        |word: &str| !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || "%+,-./:=@_…".contains(c));
    let quoted = command
        .iter()
        .map(|word| if is_plain(word) { word.clone() } else { format!("'{}'", word.replace('\'', "'\\''")) });
    printable(&quoted.collect::<Vec<_>>().join(" ")).into_owned()
}

fn text(listing: &Listing, all_users: bool) -> String {
    let head = ["NAME", "PID", "STATE", "AGE", "PROCESSES", "CPU", "MEMORY", "COMMAND"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for supervisor in &listing.supervisors {
        let has_one_job = supervisor.kind.is_some_and(SupervisorKind::has_one_job);
        if !has_one_job {
            rows.push(supervisor_row(supervisor));
        }
        rows.extend(supervisor.jobs.iter().map(|job| job_row(job, if has_one_job { "" } else { "  " })));
    }
    if all_users {
        let owners = listing.supervisors.iter().flat_map(|supervisor| {
            let has_one_job = supervisor.kind.is_some_and(SupervisorKind::has_one_job);
            std::iter::repeat_n(supervisor.owner, supervisor.jobs.len() + usize::from(!has_one_job))
        });
        let cells: Vec<_> = std::iter::once("USER".to_owned()).chain(owners.map(|owner| owner.to_string())).collect();
        rows.iter_mut().zip(cells).for_each(|(row, cell)| row.insert(1, cell));
    }
    table(&rows)
}

fn supervisor_row(supervisor: &SupervisorEntry) -> Vec<String> {
    let kind = supervisor.kind.map_or("-", |kind| kind.name());
    let pid = supervisor.pid.map_or_else(|| "-".into(), |pid| pid.to_string());
    let state = if supervisor.abandoned { "abandoned" } else { "-" };
    let empty = || "-".to_owned();
    let command = match (supervisor.command_line.as_str(), &supervisor.cgroup) {
        ("", Some(cgroup)) => printable(cgroup).into_owned(),
        (command, _) => printable(command).into_owned(),
    };
    vec![kind.into(), pid, state.into(), empty(), empty(), empty(), empty(), command]
}

fn job_row(job: &JobEntry, indent: &str) -> Vec<String> {
    let state = match job.state {
        State::Starting => "starting",
        State::Running => "running",
        State::Stopping => "stopping",
        State::Frozen => "frozen",
        State::Abandoned => "abandoned",
    };
    vec![
        format!("{indent}{}", if job.name.is_empty() { "-".into() } else { printable(&job.name) }),
        job.pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
        state.into(),
        humantime::format_duration(Duration::from_secs(job.age_seconds as u64)).to_string(),
        job.processes.to_string(),
        job.cpu_microseconds.value.map_or_else(|| "-".into(), |time| format!("{:.1} s", time as f64 / 1e6)),
        job.memory_bytes.value.map_or_else(|| "-".into(), size),
        shell_quoted(&job.command),
    ]
}
