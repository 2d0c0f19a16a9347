//! The descendants of the guard: those that are in no leaf (emigrants), or all of them.

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
use crate::subreaper::descendants;
use crate::subreaper::descendants::{Descendants, IsOurs};
use crate::subreaper::relay;
use crate::subreaper::relay::Seen;

/// So many processes are described: they have to fit into a message.
pub(super) const TOLD: usize = 16;

/// The end of one job's emigrants, in steps between which the guard goes on with its work.
pub(super) struct Sweep {
    pub job: JobId,
    pub bound: Instant,
    emigrants: Vec<ProcessInfo>,
    seen: HashSet<i32>,
    /// Whoever is left in the leaf is not waited for, and has been told.
    given_up: bool,
    /// Where the guard itself holds the job.
    pub all: Option<SweepAll<'static>>,
}

/// Takes precedence over what is to be ended, where that is allowed (root, or RLIMIT_NICE): a storm of 200 leaves a guard that
/// is nothing better than one of them a hundredth of two CPUs before Linux 6.6, and it never comes to its end. Only in a guard
/// that starts nobody any more, who would inherit it.
pub(super) fn hurry() {
    let _ = rustix::process::setpriority_process(None, -20);
}

/// What a sweep that is over has found.
#[derive(Default)]
pub(super) struct Found {
    pub emigrants: Vec<ProcessInfo>,
    pub emigrant_count: u64,
    pub survivors: Vec<ProcessInfo>,
    pub survivor_count: u64,
    /// Why descendants outside of the leaf could not be looked for.
    pub unseen: Option<Errno>,
}

impl Sweep {
    /// With `all`, whatever descends from the guard is the job's.
    pub fn new(job: JobId, bound: Instant, all: bool, given_up: bool) -> Self {
        if all {
            hurry();
        }
        let all = all.then(SweepAll::default);
        Self { job, bound, emigrants: Vec::new(), seen: HashSet::new(), given_up, all }
    }

    /// The next step. `Some` when nothing is left, or the bound is over. `launchers` are children of the guard that start other
    /// jobs.
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
                    // One at least, where /proc shows none: not childless.
                    survivor_count: left.len().max(1) as u64,
                    survivors: left.into_iter().take(TOLD).map(ProcessInfo::shortened).collect(),
                    ..Found::default()
                })
            }
        }
    }

    /// Kills what is in no leaf.
    ///
    /// When the leaf is empty, whatever else the job started hangs from a direct child of the guard that is no main
    /// process: all that stood between them has ended, and the guard is their subreaper (PR_SET_CHILD_SUBREAPER(2const)).
    /// A child that has ended and is not reaped yet counts as left: its own children come to us with its end, and its
    /// SIGCHLD brings the next step.
    fn step_outside(&mut self, jobs: &HashMap<JobId, Job>, base: Option<&str>, launchers: &[i32]) -> Option<Found> {
        let own_start = jobs.get(&self.job).map_or(0, |job| job.started_ticks);
        let own: Vec<&Job> = jobs.get(&self.job).into_iter().collect();
        let others: Vec<&Job> = jobs.iter().filter(|(id, _)| **id != self.job).map(|(_, job)| job).collect();
        let mut left = Vec::new();
        let children = match descendants::own_children() {
            Ok(children) => children,
            // An empty leaf is no proof that no process has left it. Without another job, a child that is left is one of this
            // job: it ends by itself, which brings the next step, or counts as left at the bound.
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
            // It may belong to any job that was alive when it started: it ends with the last of those.
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
            // A process that is ending may be counted off its leaf before its end shows: it is no emigrant, but waited for. It
            // receives SIGKILL too, since the flag is its first thread's only, and other threads may live on.
            if !process::is_exiting(&stat)
                && !in_a_leaf_of(&own, pid, base)
                && self.seen.insert(pid)
                && self.emigrants.len() < TOLD
            {
                self.emigrants.extend(ProcessInfo::of_living(name).map(ProcessInfo::shortened));
            }
            // A child of ours: its pid is its own until we reap it.
            let _ = pidfd.send(Signal::KILL);
        }
        if !left.is_empty() && Instant::now() < self.bound {
            return None;
        }
        Some(self.found(&left, None))
    }

    /// The result of the last step; `left`: the processes that are left.
    fn found(&mut self, left: &[i32], unseen: Option<Errno>) -> Found {
        // Its command line is not read again, but may be known.
        let named = |mut process: ProcessInfo| {
            let known = self.emigrants.iter().find(|emigrant| emigrant.pid == process.pid);
            known.inspect(|known| process.command_line.clone_from(&known.command_line));
            process
        };
        let describe = |pid| ProcessInfo::read_unkillable(pid).map(named).or_else(|| ProcessInfo::of_living(pid));
        let survivors: Vec<_> =
            left.iter().take(TOLD).filter_map(|&pid| Pid::from_raw(pid)).filter_map(describe).collect();
        Found {
            emigrant_count: self.seen.len() as u64,
            emigrants: std::mem::take(&mut self.emigrants),
            survivor_count: left.len() as u64,
            survivors: survivors.into_iter().map(ProcessInfo::shortened).collect(),
            unseen,
        }
    }
}

/// The end of all that descends from this process, in steps: SIGKILL at first, and again to whoever turns up as a child
/// that was not seen then.
pub(crate) struct SweepAll<'a> {
    of: Descendants<'a>,
    seen: Seen,
    /// When everybody is looked at anew; none before the first step.
    anew: Option<Instant>,
    pause: Duration,
    /// There was somebody new at the last look.
    chasing: bool,
}

/// So long at once are those chased who hand over to a child and end.
const CHASE: Duration = Duration::from_millis(3);

/// After what time everybody is looked at anew: those that were missed for want of descriptors, memory or permission, and
/// whoever has got the pid of one that was killed; twice that each time.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

impl Default for SweepAll<'_> {
    fn default() -> Self {
        Self::new(Descendants::of(getpid()))
    }
}

impl<'a> SweepAll<'a> {
    /// Only what descends from children for which this is true.
    pub fn of_some(is_ours: IsOurs<'a>) -> Self {
        Self::new(Descendants::of_some(getpid(), is_ours))
    }

    fn new(of: Descendants<'a>) -> Self {
        Self { of, seen: Seen::default(), anew: None, pause: FIRST_PAUSE, chasing: false }
    }

    /// The direct children.
    ///
    /// # Errors
    /// As [`Descendants::children`].
    pub fn children(&self) -> Result<Vec<Pid>> {
        self.of.children()
    }

    /// Kills whoever is new; all that were there before have been killed and are about to end.
    pub fn step(&mut self) {
        let now = Instant::now();
        match self.anew {
            Some(anew) if now < anew => {}
            Some(_) => {
                self.seen.clear();
                self.anew = now.checked_add(self.pause);
                self.pause = self.pause.saturating_mul(2);
            }
            None => {
                // Who is missed is chased.
                let killed = &mut self.seen.killed;
                let _ = self.of.kill_all(|pid| _ = killed.insert(pid));
                self.anew = now.checked_add(self.pause);
            }
        }
        self.chasing = loop {
            match relay::pass(&self.of, &mut self.seen) {
                Ok(false) if now.elapsed() < CHASE => {}
                Ok(nobody) => break !nobody,
                Err(_) => break false,
            }
        };
    }

    /// When the next step is due though nobody has ended; at once where the chase goes on when the dead have been reaped.
    pub fn again(&self) -> Option<Instant> {
        if self.chasing { Some(Instant::now()) } else { self.anew }
    }

    /// A child that has been reaped: its pid can be another's now.
    pub fn reaped(&mut self, pid: i32) {
        if let Some(pid) = Pid::from_raw(pid) {
            self.seen.remove(pid);
        }
    }
}

/// The path of the cgroup v2 that `pid` is in.
fn cgroup_of(pid: i32) -> Option<String> {
    let text = std::fs::read(format!("/proc/{pid}/cgroup")).ok()?;
    crate::kernel::mount::own_path(&text).map(|path| path.to_string_lossy().into_owned())
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
