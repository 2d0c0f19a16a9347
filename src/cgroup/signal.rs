//! A signal to every process of a cgroup.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use rustix::io::{Errno, Result};
use rustix::process::Pid;

use crate::cgroup::directory::{Cgroup, processes};
use crate::kernel::pidfd::Pidfd;
use crate::kernel::scan::{ScanLimits, until_no_new_process};
use crate::kernel::signal::Signal;

/// So long is a job told as it runs; longer than anything but a storm takes.
const UNFROZEN: Duration = Duration::from_millis(250);

impl Cgroup {
    /// Sends the `signals` to every process here and below that is `wanted`, in the order of the lists, until a pass finds nobody
    /// new; `found` sees each one once, before its signals. Tells whether there was an end to it: against a job that forks
    /// faster than it can be told, only a kill helps, and `passes` bounds what is tried before.
    ///
    /// Only the job is hit: a process is signalled through a pidfd when its pid was in the list *after* that pidfd
    /// had been opened, so that a pid which was reused in between is answered with ESRCH and looked at anew. So few
    /// at a time that four free descriptors are enough.
    pub fn signal_those(
        &self,
        signals: &[Signal],
        scans: ScanLimits,
        wanted: impl Fn(Pid) -> bool,
        mut found: impl FnMut(Pid),
    ) -> Result<bool> {
        let mut told = HashSet::new();
        let mut tell = |scans: ScanLimits| {
            until_no_new_process(scans, || self.signal_new(signals, scans, &wanted, &mut found, &mut told))
        };
        if tell(scans.within(UNFROZEN))? {
            return Ok(true);
        }
        // It forks faster than it can be told, or leaves us no CPU for that: nobody is born while it is frozen. If it is so
        // already, it is not for us to thaw.
        if scans.are_none()
            || self.read(c"cgroup.freeze").is_ok_and(|is| is.starts_with('1'))
            || self.write(c"cgroup.freeze", b"1").is_err()
        {
            return tell(scans);
        }
        let done = tell(scans);
        let thawed = self.write(c"cgroup.freeze", b"0");
        done.and_then(|done| thawed.map(|()| done))
    }

    /// One pass of that. Tells whether there was anybody new, or may be.
    pub(super) fn signal_new(
        &self,
        signals: &[Signal],
        scans: ScanLimits,
        wanted: &dyn Fn(Pid) -> bool,
        found: &mut dyn FnMut(Pid),
        told: &mut HashSet<Pid>,
    ) -> Result<bool> {
        let mut news = false;
        self.walk(&mut |dir| {
            let mut fresh: VecDeque<Pid> = processes(dir)?.into_iter().filter(|pid| !told.contains(pid)).collect();
            while !fresh.is_empty() {
                let opened = open_some(&mut fresh)?;
                let confirmed: HashSet<Pid> = processes(dir)?.into_iter().collect();
                for (pid, pidfd) in opened.into_iter().filter(|(pid, _)| confirmed.contains(pid) && wanted(*pid)) {
                    news = true;
                    if scans.are_over() {
                        return Ok(());
                    }
                    found(pid);
                    // Where its pid was reused (ESRCH), the next pass sees the new one. What may not be signalled
                    // (EPERM) is told once: `cgroup.kill` reaches it.
                    if send(&pidfd, signals) != Err(Errno::SRCH) {
                        told.insert(pid);
                    }
                }
            }
            Ok(())
        })?;
        Ok(news)
    }
}

/// One after another, up to one that can't be sent.
pub(crate) fn send(process: &Pidfd, signals: &[Signal]) -> Result<()> {
    signals.iter().try_for_each(|&signal| process.send(signal))
}

/// Opens the first of those processes, which are taken from the list: as many as there are descriptors for, less two: for
/// the list that confirms them, and to read about one.
fn open_some(pids: &mut VecDeque<Pid>) -> Result<Vec<(Pid, Pidfd)>> {
    const MOST: usize = 64;
    let mut opened = Vec::new();
    while opened.len() < MOST
        && let Some(pid) = pids.pop_front()
    {
        match Pidfd::open(pid) {
            Ok(pidfd) => opened.push((pid, pidfd)),
            Err(errno @ (Errno::MFILE | Errno::NFILE)) => {
                pids.push_front(pid);
                if opened.is_empty() {
                    return Err(errno);
                }
                let keep = opened.len().saturating_sub(2).max(1);
                opened.drain(keep..).rev().for_each(|(pid, _)| pids.push_front(pid));
                break;
            }
            // It has ended, or its number is a thread's by now.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(opened)
}
