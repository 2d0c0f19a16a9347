//! The descendants of the guard that are in no leaf: emigrants.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use rustix::process::{Pid, getpid};

use super::event_loop::Job;
use super::protocol::JobId;
use crate::pidfd::Pidfd;
use crate::process::{self, ProcessInfo};
use crate::signal::Signal;

/// So many processes are described: they have to fit into a message.
pub(super) const TOLD: usize = 16;

/// The end of one job's emigrants, in steps between which the guard goes on with its work.
pub(super) struct Sweep {
    pub job: JobId,
    pub bound: Instant,
    emigrants: Vec<ProcessInfo>,
    seen: HashSet<i32>,
}

/// What a sweep that is over has found.
pub(super) struct Found {
    pub emigrants: Vec<ProcessInfo>,
    pub emigrant_count: u64,
    pub survivors: Vec<ProcessInfo>,
    pub survivor_count: u64,
}

impl Sweep {
    pub fn new(job: JobId, bound: Instant) -> Self {
        Self { job, bound, emigrants: Vec::new(), seen: HashSet::new() }
    }

    /// Kills what there is. `Some` when nothing is left, or the bound is over.
    ///
    /// When the leaf is empty, whatever else the job started hangs from a direct child of the guard that is no main
    /// process: all that stood between them has ended, and the guard is their subreaper (PR_SET_CHILD_SUBREAPER(2const)).
    /// A child that has ended and is not reaped yet counts as left: its own children come to us with its end, and its
    /// SIGCHLD brings the next step.
    pub fn step(&mut self, jobs: &HashMap<JobId, Job>, base: Option<&str>) -> Option<Found> {
        let own_start = jobs.get(&self.job).map_or(0, |job| job.started_ticks);
        let own: Vec<&Job> = jobs.get(&self.job).into_iter().collect();
        let others: Vec<&Job> = jobs.iter().filter(|(id, _)| **id != self.job).map(|(_, job)| job).collect();
        let mut left = Vec::new();
        for pid in children() {
            if others.iter().any(|job| job.pid == pid && !job.reaped) || in_a_leaf_of(&others, pid, base) {
                continue;
            }
            // It may belong to any job that was alive when it started: it ends with the last of those.
            let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
            let started = process::start_ticks(&stat).unwrap_or(u64::MAX);
            if started < own_start || others.iter().any(|job| job.started_ticks <= started) {
                continue;
            }
            left.push(pid);
            let Some(name) = Pid::from_raw(pid) else { continue };
            let Ok(pidfd) = Pidfd::open(name) else { continue };
            if pidfd.has_ended() || process::is_exiting(&stat) {
                continue;
            }
            // One that is ending may be counted off its leaf before its end shows: no emigrant, but to be waited for.
            if !in_a_leaf_of(&own, pid, base) && self.seen.insert(pid) && self.emigrants.len() < TOLD {
                self.emigrants.extend(ProcessInfo::read(name).map(ProcessInfo::shortened));
            }
            // A child of ours: its pid is its own until we reap it.
            let _ = pidfd.send(Signal::KILL);
        }
        if !left.is_empty() && Instant::now() < self.bound {
            return None;
        }
        let survivors =
            left.iter().take(TOLD).filter_map(|&pid| Pid::from_raw(pid)).filter_map(ProcessInfo::read_unkillable);
        Some(Found {
            emigrant_count: self.seen.len() as u64,
            emigrants: std::mem::take(&mut self.emigrants),
            survivor_count: left.len() as u64,
            survivors: survivors.map(ProcessInfo::shortened).collect(),
        })
    }
}

/// SIGKILL to every child of the guard; their children become ours and have their turn then.
pub(super) fn kill_children() {
    for pid in children().into_iter().filter_map(Pid::from_raw) {
        if let Ok(pidfd) = Pidfd::open(pid) {
            let _ = pidfd.send(Signal::KILL);
        }
    }
}

/// The direct children of this process: `/proc/PID/task/TID/children` where the kernel has it
/// (CONFIG_PROC_CHILDREN), else by a search through `/proc`.
fn children() -> Vec<i32> {
    let own = getpid().as_raw_nonzero().get();
    if let Ok(list) = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")) {
        return list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    }
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| Pid::from_raw(pid).and_then(ProcessInfo::read).is_some_and(|info| info.parent == own))
        .collect()
}

/// The path of the cgroup v2 that `pid` is in.
fn cgroup_of(pid: i32) -> Option<String> {
    let text = std::fs::read(format!("/proc/{pid}/cgroup")).ok()?;
    crate::containment::mount::own_path(&text).map(|path| path.to_string_lossy().into_owned())
}

/// Whether `pid` is in the leaf of one of those jobs, which answer for it.
fn in_a_leaf_of(jobs: &[&Job], pid: i32, base: Option<&str>) -> bool {
    let Some(base) = base else { return false };
    !jobs.is_empty()
        && cgroup_of(pid).is_some_and(|path| {
            let in_base = path.split('/').any(|part| part == base);
            let parts = path.split('/').skip_while(|part| *part != base).skip(1);
            let mut parts = parts.peekable();
            jobs.iter().any(|job| match &job.leaf {
                Some(leaf) => parts.peek() == Some(&leaf.as_str()),
                None => in_base,
            })
        })
}

/// Now, in the unit and on the clock of the start time in `/proc/PID/stat`.
pub(super) fn ticks_since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let hertz = rustix::param::clock_ticks_per_second();
    now.tv_sec as u64 * hertz + now.tv_nsec as u64 * hertz / 1_000_000_000
}
