//! Ends descendants of the guard: either those that are in no leaf (emigrants), or all of them.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rustix::io::{Errno, Result};
use rustix::process::{Pid, getpid};

use super::protocol::JobId;
use super::spawn::Job;
use crate::kernel::pidfd::Pidfd;
use crate::kernel::process;
use crate::kernel::signal::Signal;
use crate::report::ProcessInfo;
use crate::subreaper::children;
use crate::subreaper::descendants::{Descendants, IsOurs};
use crate::subreaper::relay;
use crate::subreaper::relay::Seen;

/// The highest number of processes that are described, because the descriptions have to fit into one message.
pub(super) const MAX_DESCRIBED: usize = 16;

/// Ends the emigrants of one job, in steps. Between steps the guard continues with its other work.
pub(super) struct Sweep {
    pub job: JobId,
    pub bound: Instant,
    emigrants: Vec<ProcessInfo>,
    seen: HashSet<i32>,
    /// The leaf contains processes that SIGKILL does not end. The sweep does not wait for them, since they have been
    /// reported already.
    given_up: bool,
    /// Ends all descendants, if the guard itself holds the job.
    pub all: Option<SweepAll<'static>>,
}

/// Raises the guard's priority above that of the processes that it is to end, where that is permitted (root, or
/// RLIMIT_NICE). Before Linux 6.6, a guard of the same priority gets only one hundredth of two CPUs during a fork storm
/// of 200 processes, and never finishes. Use it only in a guard that starts no more jobs, since these would inherit the
/// priority.
pub(super) fn raise_priority() {
    let _ = rustix::process::setpriority_process(None, -20);
}

/// The result of a finished sweep.
#[derive(Default)]
pub(super) struct Found {
    pub emigrants: Vec<ProcessInfo>,
    pub emigrant_count: u64,
    pub survivors: Vec<ProcessInfo>,
    pub survivor_count: u64,
    /// Why the search for descendants outside of the leaf was not possible.
    pub unseen: Option<Errno>,
}

impl Sweep {
    /// Creates a sweep. With `all`, every descendant of the guard belongs to the job.
    pub fn new(job: JobId, bound: Instant, all: bool, given_up: bool) -> Self {
        if all {
            raise_priority();
        }
        let all = all.then(SweepAll::default);
        Self { job, bound, emigrants: Vec::new(), seen: HashSet::new(), given_up, all }
    }

    /// Performs the next step. Returns `Some` when no process is left, or when the bound is reached. `launchers` are
    /// children of the guard that start other jobs.
    pub fn step(
        &mut self,
        jobs: &HashMap<JobId, Job>,
        base: Option<&str>,
        childless: bool,
        launchers: &[i32],
    ) -> Option<Found> {
        match &mut self.all {
            None if childless => Some(self.found(&[], None)),
            None => self.step_outside(jobs, base, launchers),
            Some(_) if childless => Some(Found::default()),
            Some(all) if Instant::now() < self.bound => {
                all.step();
                None
            }
            Some(_) => {
                let (own, _) = Descendants::of(getpid()).processes();
                let left: Vec<_> = own.into_iter().filter_map(ProcessInfo::of_living_unkillable).collect();
                Some(Found {
                    // At least one: the guard has children, even if /proc shows none.
                    survivor_count: left.len().max(1) as u64,
                    survivors: left.into_iter().take(MAX_DESCRIBED).map(ProcessInfo::shortened).collect(),
                    ..Found::default()
                })
            }
        }
    }

    /// Kills the processes that are in no leaf.
    ///
    /// When the leaf is empty, each remaining process of the job descends from a direct child of the guard that is not
    /// a main process. The reason: its ancestors in the leaf have ended, and the guard is the subreaper, so their
    /// orphans have become children of the guard (PR_SET_CHILD_SUBREAPER(2const)). A child that has ended but is not
    /// reaped yet counts as left: its own children become children of the guard when it ends, and its SIGCHLD triggers
    /// the next step.
    fn step_outside(&mut self, jobs: &HashMap<JobId, Job>, base: Option<&str>, launchers: &[i32]) -> Option<Found> {
        let own_start = jobs.get(&self.job).map_or(0, |job| job.started_ticks);
        let own: Vec<&Job> = jobs.get(&self.job).into_iter().collect();
        let others: Vec<&Job> = jobs.iter().filter(|(id, _)| **id != self.job).map(|(_, job)| job).collect();
        let mut left = Vec::new();
        let children = match children::own_children() {
            Ok(children) => children,
            // An empty leaf does not prove that no process has left it, and the children cannot be listed. If there is
            // no other job, the remaining child belongs to this job. If it ends, that triggers the next step; otherwise
            // it counts as left at the bound.
            Err(errno) => {
                let is_left = others.is_empty() && !self.given_up;
                if is_left && Instant::now() < self.bound {
                    return None;
                }
                return Some(Found { survivor_count: is_left.into(), ..self.found(&[], Some(errno)) });
            }
        };
        for pid in children.into_iter().map(|pid| pid.as_raw_nonzero().get()) {
            if launchers.contains(&pid)
                || others.iter().any(|job| job.pid == pid && !job.reaped)
                || in_a_leaf_of(&others, pid, base)
                || self.given_up && in_a_leaf_of(&own, pid, base)
            {
                continue;
            }
            // The process may belong to any job that was alive when it started. It is ended with the last of these
            // jobs.
            let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
            let started = process::start_ticks(&stat).unwrap_or(u64::MAX);
            if started < own_start || others.iter().any(|job| job.started_ticks <= started) {
                continue;
            }
            left.push(pid);
            let Some(name) = Pid::from_raw(pid) else { continue };
            let Ok(pidfd) = Pidfd::open(name) else { continue };
            if pidfd.has_ended() {
                continue;
            }
            // A process that is exiting has already left its leaf, although its end is not visible yet. It is not an
            // emigrant, but the sweep waits for it. It receives SIGKILL too, because the exiting flag describes only
            // its first thread, and other threads may continue to run.
            if !process::is_exiting(&stat)
                && !in_a_leaf_of(&own, pid, base)
                && self.seen.insert(pid)
                && self.emigrants.len() < MAX_DESCRIBED
            {
                self.emigrants.extend(ProcessInfo::of_living(name).map(ProcessInfo::shortened));
            }
            // The process is a child of the guard, so no other process gets its pid until the guard reaps it.
            let _ = pidfd.send(Signal::KILL);
        }
        if !left.is_empty() && Instant::now() < self.bound {
            return None;
        }
        Some(self.found(&left, None))
    }

    /// Returns the result of the last step. `left` contains the remaining processes.
    fn found(&mut self, left: &[i32], unseen: Option<Errno>) -> Found {
        // The command line is not read again, but may already be known.
        let named = |mut process: ProcessInfo| {
            let known = self.emigrants.iter().find(|emigrant| emigrant.pid == process.pid);
            known.inspect(|known| process.command_line.clone_from(&known.command_line));
            process
        };
        let describe = |pid| ProcessInfo::read_unkillable(pid).map(named).or_else(|| ProcessInfo::of_living(pid));
        let survivors: Vec<_> =
            left.iter().take(MAX_DESCRIBED).filter_map(|&pid| Pid::from_raw(pid)).filter_map(describe).collect();
        Found {
            emigrant_count: self.seen.len() as u64,
            emigrants: std::mem::take(&mut self.emigrants),
            survivor_count: left.len() as u64,
            survivors: survivors.into_iter().map(ProcessInfo::shortened).collect(),
            unseen,
        }
    }
}

/// Ends all descendants of this process, in steps. The first step sends SIGKILL to all. The later steps send it to each
/// child that was not seen before.
pub(crate) struct SweepAll<'a> {
    descendants: Descendants<'a>,
    seen: Seen,
    /// When to scan all processes again; `None` before the first step.
    rescan_at: Option<Instant>,
    pause: Duration,
    /// The last scan found a new process.
    chasing: bool,
}

/// How long one step chases processes that fork a child and end at once.
const CHASE: Duration = Duration::from_millis(3);

/// The time until all processes are scanned again, for processes that were missed for lack of descriptors, memory or
/// permission, and for processes that have received the pid of a killed one. It doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

impl Default for SweepAll<'_> {
    fn default() -> Self {
        Self::new(Descendants::of(getpid()))
    }
}

impl<'a> SweepAll<'a> {
    /// Creates a sweep of only those processes that descend from children for which `is_ours` returns true.
    pub fn of_some(is_ours: IsOurs<'a>) -> Self {
        Self::new(Descendants::of_some(getpid(), is_ours))
    }

    fn new(descendants: Descendants<'a>) -> Self {
        Self { descendants, seen: Seen::default(), rescan_at: None, pause: FIRST_PAUSE, chasing: false }
    }

    /// Returns the direct children.
    ///
    /// # Errors
    /// The same as for [`Descendants::children`].
    pub fn children(&self) -> Result<Vec<Pid>> {
        self.descendants.children()
    }

    /// Kills new processes. All earlier processes have been killed and are about to end.
    pub fn step(&mut self) {
        let now = Instant::now();
        match self.rescan_at {
            Some(rescan_at) if now < rescan_at => {}
            Some(_) => {
                self.seen.clear();
                self.rescan_at = now.checked_add(self.pause);
                self.pause = self.pause.saturating_mul(2);
            }
            None => {
                // The chase below finds processes that this call misses.
                let killed = &mut self.seen.killed;
                let _ = self.descendants.kill_all(|pid| _ = killed.insert(pid));
                self.rescan_at = now.checked_add(self.pause);
            }
        }
        self.chasing = loop {
            match relay::pass(&self.descendants, &mut self.seen) {
                Ok(false) if now.elapsed() < CHASE => {}
                Ok(found_none) => break !found_none,
                Err(_) => break false,
            }
        };
    }

    /// Returns when the next step is due if no child ends before. While a chase goes on, it is due as soon as ended
    /// children have been reaped.
    pub fn next_step_at(&self) -> Option<Instant> {
        if self.chasing { Some(Instant::now()) } else { self.rescan_at }
    }

    /// Records that a child has been reaped. From now on, its pid may belong to another process.
    pub fn reaped(&mut self, pid: i32) {
        if let Some(pid) = Pid::from_raw(pid) {
            self.seen.remove(pid);
        }
    }
}

/// Returns the path of the cgroup v2 that `pid` is in.
fn cgroup_of(pid: i32) -> Option<String> {
    let text = std::fs::read(format!("/proc/{pid}/cgroup")).ok()?;
    crate::kernel::mount::own_path(&text).map(|path| path.to_string_lossy().into_owned())
}

/// Returns whether `pid` is in the leaf of one of these jobs. Then that job is responsible for it.
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

/// Returns the current time, in the unit and on the clock of the start time in `/proc/PID/stat`.
pub(super) fn ticks_since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let hertz = rustix::param::clock_ticks_per_second();
    now.tv_sec as u64 * hertz + now.tv_nsec as u64 * hertz / 1_000_000_000
}
