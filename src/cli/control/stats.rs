//! `pinfold stats`.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cli::jobs::find::Supervisor;
use crate::cli::jobs::listing::{JobEntry, Listing};
use crate::cli::jobs::target;
use crate::report::text::printable;

use super::super::explain::size;
use super::super::{duration, write};
use super::{supervisors, table};

/// Print the resources that running jobs use
///
/// CPU is the share of one CPU in the last interval; without --watch it is the average since the start of the job.
/// "pressure" is the share of the time in which a process of the job waited for the CPU, for memory or for I/O. It is
/// only printed if the kernel counts it (PSI).
#[derive(clap::Args)]
pub struct Args {
    /// Print the figures repeatedly, until a signal ends pinfold
    #[arg(long, short)]
    watch: bool,

    /// The time between two outputs of --watch
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration::parse)]
    interval: Duration,

    /// Include the jobs of all users; only root sees the figures of other users
    #[arg(long, short)]
    all_users: bool,

    /// Print each result as a line of JSON, with all figures
    #[arg(long)]
    json: bool,

    /// Only these jobs: the name of a job, or the pid of any process of a job, or the pid of a pinfold process
    #[arg(value_name = "NAME|PID")]
    targets: Vec<String>,
}

pub fn run(args: &Args) -> Result<u8> {
    let mut before: Option<(Instant, Listing)> = None;
    let clears = args.watch && !args.json && std::io::stdout().is_terminal();
    loop {
        let found = supervisors(args.all_users || !args.targets.is_empty())?;
        let now = Instant::now();
        let mut listing = Listing::of(&found, true);
        if !args.targets.is_empty() {
            keep_only(&mut listing, &found, &args.targets)?;
        }
        let text = if args.json { listing.to_json() + "\n" } else { text(&listing, before.as_ref(), now) };
        // The new text overwrites the old one, and pinfold clears only the rest of the screen, so that the screen does
        // not flicker.
        let text = if clears { format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")) } else { text };
        write::print(&text).context("cannot write to standard output")?;
        if !args.watch {
            return Ok(0);
        }
        before = Some((now, listing));
        std::thread::sleep(args.interval.saturating_sub(now.elapsed()));
    }
}

/// Removes all jobs from the listing except those of the targets.
fn keep_only(listing: &mut Listing, found: &[Supervisor], targets: &[String]) -> Result<()> {
    let mut wanted = Vec::new();
    for word in targets {
        wanted.extend(target::find(word, found)?.jobs().into_iter().map(std::ptr::from_ref));
    }
    for (entry, supervisor) in listing.supervisors.iter_mut().zip(found) {
        let mut jobs = supervisor.jobs.iter();
        entry.jobs.retain(|_| jobs.next().is_some_and(|job| wanted.contains(&std::ptr::from_ref(job))));
    }
    listing.supervisors.retain(|entry| !entry.jobs.is_empty());
    Ok(())
}

fn text(listing: &Listing, before: Option<&(Instant, Listing)>, now: Instant) -> String {
    let head = ["NAME", "PID", "CPU", "MEMORY", "PROCESSES", "READ", "WRITTEN", "PRESSURE CPU/MEM/IO"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for job in listing.supervisors.iter().flat_map(|supervisor| &supervisor.jobs) {
        let earlier = before.and_then(|(at, listing)| {
            let same = |other: &&JobEntry| (&other.cgroup, other.pid) == (&job.cgroup, job.pid);
            let mut jobs = listing.supervisors.iter().flat_map(|supervisor| &supervisor.jobs);
            jobs.find(same).map(|earlier| (now.duration_since(*at).as_secs_f64(), earlier))
        });
        rows.push(row(job, earlier));
    }
    table(&rows)
}

fn row(job: &JobEntry, earlier: Option<(f64, &JobEntry)>) -> Vec<String> {
    let usage = |job: &JobEntry, figure: fn(&crate::report::Usage) -> &crate::report::Figure| {
        job.usage.as_ref().and_then(|usage| figure(usage).value)
    };
    // Formats the growth of a figure in microseconds as a share of the elapsed time.
    let share = |now: Option<u64>, then: Option<u64>| {
        let (time, then) = match earlier {
            Some((time, _)) => (time, then),
            None => (job.age_seconds, Some(0)),
        };
        match (now, then) {
            (Some(now), Some(then)) if time > 0.0 => {
                format!("{:.0}%", now.saturating_sub(then) as f64 / 1e6 / time * 100.0)
            }
            _ => "-".into(),
        }
    };
    let pressure = |figure: fn(&crate::report::Usage) -> &crate::report::Figure| {
        share(usage(job, figure), earlier.and_then(|(_, earlier)| usage(earlier, figure)))
    };
    let bytes = |value: Option<u64>| value.map_or_else(|| "-".into(), size);
    vec![
        if job.name.is_empty() { "-".into() } else { printable(&job.name).into_owned() },
        job.pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
        share(job.cpu_microseconds.value, earlier.and_then(|(_, earlier)| earlier.cpu_microseconds.value)),
        bytes(job.memory_bytes.value),
        job.processes.to_string(),
        bytes(usage(job, |usage| &usage.io_read_bytes)),
        bytes(usage(job, |usage| &usage.io_written_bytes)),
        [
            pressure(|usage| &usage.cpu_pressure_microseconds),
            pressure(|usage| &usage.memory_pressure_microseconds),
            pressure(|usage| &usage.io_pressure_microseconds),
        ]
        .join(" / "),
    ]
}
