//! Sends SIGKILL to every process of a cgroup, and again to the processes that the first kill did not end.
//!
//! `cgroup.kill` sends SIGKILL to the first thread of each process (`__cgroup_kill`, kernel/cgroup/cgroup.c, Linux
//! 5.14). If that thread has exited and another one still runs, the signal is lost: it stays with the thread that has
//! exited (`complete_signal`, kernel/signal.c). A signal through a pidfd is sent to the whole process, so any of its
//! living threads receives it.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use rustix::io::{Errno, Result};

use crate::cgroup::directory::Cgroup;
use crate::kernel::scan::{ScanLimits, Signalling};
use crate::kernel::signal::Signal;

/// How long one pass over the list of processes may take.
const ONE_PASS: Duration = Duration::from_secs(1);

/// The time from the first kill to the first scan for remaining processes. An ordinary job has ended by then.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// The same time on a kernel without `cgroup.kill`, where each process is killed separately. Such a kill can miss a
/// process that was just started.
const PAUSE_ONE_BY_ONE: Duration = Duration::from_millis(10);

/// The longest pause between two scans. The pause doubles with each scan.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The minimum ratio of a pause to the duration of the scan before it. Without such pauses, the scans would take CPU
/// time from the processes that are ending.
const PAUSE_PER_SCAN: u32 = 4;

/// When and how to kill a cgroup again that was killed before and may still contain processes.
#[derive(Debug)]
pub(super) struct KillSchedule {
    at: Instant,
    pause: Duration,
    /// The kernel has no `cgroup.kill`, or refused it.
    one_by_one: bool,
}

impl Cgroup {
    /// Sends SIGKILL to every process in this cgroup and below, including processes of other users. A process cannot
    /// escape by forking (`cgroup.kill`, Linux 5.14).
    ///
    /// This does not end a process whose first thread has exited: while processes are left, call [`Cgroup::kill_again`]
    /// at the time that [`Cgroup::kill_again_at`] returns.
    ///
    /// # Errors
    /// `ENOENT` or `ENODEV` if the cgroup is gone; `EMFILE` or `ENFILE` if no descriptor is free.
    pub fn kill(&self) -> Result<()> {
        let (killed, one_by_one) = match self.write(c"cgroup.kill", b"1") {
            Err(errno @ (Errno::NODEV | Errno::MFILE | Errno::NFILE)) => return Err(errno),
            Err(Errno::NOENT) if self.events().is_err() => return Err(Errno::NOENT),
            // The kernel is older, or refuses the write for another reason.
            Err(_) => (self.kill_each(), true),
            done => (done, false),
        };
        let mut again = self.kill_schedule.lock().unwrap_or_else(PoisonError::into_inner);
        if again.is_none() {
            let pause = if one_by_one { PAUSE_ONE_BY_ONE } else { FIRST_PAUSE };
            *again = Some(KillSchedule { at: Instant::now() + pause, pause, one_by_one });
        }
        killed
    }

    /// Returns the time at which to kill the remaining processes again; `None` before the first [`Cgroup::kill`].
    pub fn kill_again_at(&self) -> Option<Instant> {
        self.kill_schedule.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|again| again.at)
    }

    /// Kills the cgroup again, and sends SIGKILL to each remaining process through its pidfd.
    ///
    /// # Errors
    /// The same as for [`Cgroup::kill`], or the first error that hid a process from the search. The other processes
    /// have received the signal.
    pub fn kill_again(&self) -> Result<()> {
        let begun = Instant::now();
        let killed = self.kill();
        let one_by_one =
            self.kill_schedule.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|a| a.one_by_one);
        let listed = if one_by_one { Ok(()) } else { self.kill_listed() };
        if let Some(again) = self.kill_schedule.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            let now = Instant::now();
            again.pause = (again.pause * 2).max((now - begun) * PAUSE_PER_SCAN).min(LONGEST_PAUSE);
            again.at = now + again.pause;
        }
        killed.and(listed)
    }

    /// Sends SIGKILL to each process that is now listed in this cgroup or in a cgroup below it.
    fn kill_listed(&self) -> Result<()> {
        let scans = ScanLimits::new(1, ONE_PASS);
        self.signal_new(&mut Signalling::new(&[Signal::KILL], scans, &|_| true, &mut |_| {})).map(drop)
    }

    /// Kills without `cgroup.kill`: freezes the cgroup, so that no new process is started, sends SIGKILL through
    /// pidfds, and thaws the cgroup. SIGKILL ends a frozen process (v2 freezer, Linux 5.2). The cgroup is thawed even
    /// after an error.
    ///
    /// A fork that was in progress can add a child to the list after the last pass: kill again while the cgroup is
    /// populated.
    fn kill_each(&self) -> Result<()> {
        let frozen = self.write(c"cgroup.freeze", b"1");
        let signalled = self.signal_those(&[Signal::KILL], ScanLimits::new(1000, ONE_PASS), |_| true, |_| {});
        let thawed = self.write(c"cgroup.freeze", b"0");
        frozen.and(signalled.map(drop)).and(thawed)
    }
}
