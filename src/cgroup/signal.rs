//! Sends a signal to every process of a cgroup.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use rustix::io::{Errno, Result};
use rustix::process::Pid;

use crate::cgroup::directory::{Cgroup, processes};
use crate::kernel::pidfd::Pidfd;
use crate::kernel::scan::{ScanLimits, Signalling};
use crate::kernel::signal::Signal;

/// How long signals are sent to a running job before it is frozen. Only a job that forks all the time needs longer.
const TIME_BEFORE_FREEZE: Duration = Duration::from_millis(250);

impl Cgroup {
    /// Sends the `signals` to every process in this cgroup and below for which `wanted` returns true, in the order in
    /// which the kernel lists them, until a pass finds no new process. Calls `found` once for each process, before it
    /// sends the signals. Returns whether there was such a pass within the limits `scans`. Otherwise the job forks
    /// faster than pinfold can send signals, and can only be killed.
    ///
    /// No process outside of the job receives a signal: pinfold opens a pidfd, then reads the list again, and sends the
    /// signals through the pidfd only if the list still has the pid. If the pid was reused in between, sending fails
    /// with `ESRCH`, and the next pass handles the new process. The number of open pidfds is limited so that four free
    /// descriptors are enough.
    pub fn signal_those(
        &self,
        signals: &[Signal],
        scans: ScanLimits,
        wanted: impl Fn(Pid) -> bool,
        mut found: impl FnMut(Pid),
    ) -> Result<bool> {
        let mut signalling = Signalling::new(signals, scans, &wanted, &mut found);
        let mut signal_all = |scans: ScanLimits| {
            signalling.limit(scans);
            signalling.until_no_new_process(|signalling| self.signal_new(signalling))
        };
        if signal_all(scans.within(TIME_BEFORE_FREEZE))? {
            return Ok(true);
        }
        // The job forks faster than pinfold can send signals, or leaves too little CPU time to pinfold. No process is
        // started while the cgroup is frozen. If it is frozen already, pinfold must not thaw it afterwards.
        if scans.allow_no_pass()
            || self.read(c"cgroup.freeze").is_ok_and(|is| is.starts_with('1'))
            || self.write(c"cgroup.freeze", b"1").is_err()
        {
            return signal_all(scans);
        }
        let done = signal_all(scans);
        let thawed = self.write(c"cgroup.freeze", b"0");
        done.and_then(|done| thawed.map(|()| done))
    }

    /// Makes one pass of [`Cgroup::signal_those`]. Returns whether it found a new process, or stopped early because the
    /// time was over. If pinfold may not send signals to a process, only `cgroup.kill` can end it.
    pub(super) fn signal_new(&self, signalling: &mut Signalling<'_, Pid>) -> Result<bool> {
        let mut found_new = false;
        self.walk(&mut |dir| {
            let mut fresh: VecDeque<Pid> =
                processes(dir)?.into_iter().filter(|pid| !signalling.has_reached(pid)).collect();
            while !fresh.is_empty() {
                let opened = open_some(&mut fresh)?;
                let confirmed: HashSet<Pid> = processes(dir)?.into_iter().collect();
                for (pid, pidfd) in opened.into_iter().filter(|(pid, _)| confirmed.contains(pid)) {
                    if signalling.is_over() {
                        found_new = true;
                        return Ok(());
                    }
                    found_new |= signalling.send(pid, pid, &pidfd);
                }
            }
            Ok(())
        })?;
        Ok(found_new)
    }
}

/// Removes processes from the front of `pids` and opens them. If descriptors run out, it releases two: one to read the
/// list that confirms the processes, and one to read a file about a process.
fn open_some(pids: &mut VecDeque<Pid>) -> Result<Vec<(Pid, Pidfd)>> {
    const MAX_OPEN: usize = 64;
    let mut opened = Vec::new();
    while opened.len() < MAX_OPEN
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
            // The process has ended, or the number now belongs to a thread.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(opened)
}
