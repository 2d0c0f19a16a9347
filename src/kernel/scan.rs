//! Repeated scans for processes: signals are sent to all processes of a job in passes, until a pass finds no new
//! process.

use std::collections::HashSet;
use std::hash::Hash;
use std::time::{Duration, Instant};

use rustix::io::{Errno, Result};
use rustix::process::Pid;

use crate::kernel::pidfd::Pidfd;
use crate::kernel::signal::Signal;

/// Passes continue for this time after the first pass, even if the minimum number of passes has been reached.
const TIME: Duration = Duration::from_millis(20);

/// Limits on the number of passes and on their time. Fewer passes are made if one of them finds no new process.
///
/// A time limit is needed: while 200 processes fork all the time, each other process gets a hundredth of two CPUs, and
/// eight passes took 80 s.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScanLimits {
    min_passes: u32,
    deadline: Instant,
}

impl ScanLimits {
    /// Returns limits that allow `min_passes` passes, and more within the first 20 ms. If `min_passes` is 0, no pass is
    /// made. After `time` the passes end, even in the middle of one.
    pub fn new(min_passes: u32, time: Duration) -> Self {
        Self { min_passes, deadline: Instant::now() + time }
    }

    /// Returns the same limits, with at most `time` from now on.
    pub fn within(self, time: Duration) -> Self {
        Self { deadline: self.deadline.min(Instant::now() + time), ..self }
    }

    /// Returns the same limits with another minimum number of passes.
    pub fn at_least(self, min_passes: u32) -> Self {
        Self { min_passes, ..self }
    }

    /// Returns whether no pass is allowed.
    pub fn allow_no_pass(self) -> bool {
        self.min_passes == 0
    }

    /// Returns whether the time is over.
    pub fn have_expired(self) -> bool {
        Instant::now() >= self.deadline
    }
}

/// Sends signals to the processes of a job, to each process once. `K` identifies a process that a pass finds.
pub(crate) struct Signalling<'a, K> {
    signals: &'a [Signal],
    scans: ScanLimits,
    wanted: &'a dyn Fn(Pid) -> bool,
    found: &'a mut dyn FnMut(Pid),
    signalled: HashSet<K>,
}

impl<'a, K: Eq + Hash> Signalling<'a, K> {
    /// Prepares to send `signals` to the processes for which `wanted` returns true. None of these has received them
    /// yet. `found` is called once for each process, before it receives the signals.
    pub fn new(
        signals: &'a [Signal],
        scans: ScanLimits,
        wanted: &'a dyn Fn(Pid) -> bool,
        found: &'a mut dyn FnMut(Pid),
    ) -> Self {
        Self { signals, scans, wanted, found, signalled: HashSet::new() }
    }

    /// Changes the limits of the passes.
    pub fn limit(&mut self, scans: ScanLimits) {
        self.scans = scans;
    }

    /// Makes passes as [`until_no_new_process`] does.
    pub fn until_no_new_process(&mut self, mut pass: impl FnMut(&mut Self) -> Result<bool>) -> Result<bool> {
        until_no_new_process(self.scans, || pass(self))
    }

    /// Returns whether the time is over, so that the pass is to end.
    pub fn is_over(&self) -> bool {
        self.scans.have_expired()
    }

    /// Returns whether this process has received the signals.
    pub fn has_reached(&self, process: &K) -> bool {
        self.signalled.contains(process)
    }

    /// Sends the signals to a process that a pass has found, one after another up to the first that fails. Returns
    /// whether the process is wanted and had not received them.
    pub fn send(&mut self, process: K, pid: Pid, pidfd: &Pidfd) -> bool {
        if !(self.wanted)(pid) || self.signalled.contains(&process) {
            return false;
        }
        (self.found)(pid);
        // If the process has been reaped (ESRCH), another one may have its pid: the next pass finds that one. A process
        // that may not be signalled (EPERM) is not tried again.
        if pidfd.send_each(self.signals) != Err(Errno::SRCH) {
            self.signalled.insert(process);
        }
        true
    }
}

/// Makes passes until one of them returns `false`, which means that it found no new process. Returns whether that
/// happened within the limits. It does not happen if a job forks faster than pinfold can send signals: such a job can
/// only be killed.
fn until_no_new_process(scans: ScanLimits, mut pass: impl FnMut() -> Result<bool>) -> Result<bool> {
    let begun = Instant::now();
    let mut made = 0;
    while (made < scans.min_passes || scans.min_passes > 0 && begun.elapsed() < TIME) && !scans.have_expired() {
        if !pass()? {
            return Ok(true);
        }
        made += 1;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn passes_end() {
        let mut left = 300;
        let counted = until_no_new_process(ScanLimits::new(300, LONG), || {
            left -= 1;
            Ok(left > 0)
        });
        assert_eq!((counted, left), (Ok(true), 0));
        let mut made = 0;
        let endless = until_no_new_process(ScanLimits::new(8, LONG), || {
            made += 1;
            Ok(true)
        });
        assert_eq!(endless, Ok(false));
        assert!(made >= 8);
        assert_eq!(until_no_new_process(ScanLimits::new(0, LONG), || unreachable!()), Ok(false));
        assert_eq!(until_no_new_process(ScanLimits::new(8, Duration::ZERO), || unreachable!()), Ok(false));
    }
}
