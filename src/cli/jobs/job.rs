//! Methods of a job of another supervisor: they list its processes, wait for its end, and send signals to it.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::process::Pid;

use super::find::{Containment, Job, supervisor_of_guard};
use crate::cgroup::base;
use crate::cgroup::directory::{Cgroup, state};
use crate::kernel::pidfd::Pidfd;
use crate::kernel::poll;
use crate::kernel::scan::ScanLimits;
use crate::kernel::signal::Signal;
use crate::report::Description;
use crate::subreaper::descendants::Descendants;

/// The grace period and the kill bound of a job that its supervisor has not recorded: the default values of pinfold.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
const DEFAULT_KILL_BOUND: Duration = Duration::from_secs(10);

/// How often this process looks at a job whose end it cannot watch, because this user has no inotify instance left
/// (fs.inotify.max_user_instances).
const RECHECK: Duration = Duration::from_secs(1);

/// How long it may take to send a signal to all processes of a job, if the job keeps starting new ones.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(2);

impl Job {
    /// Returns the processes of the job that are visible in this PID namespace.
    pub fn processes(&self) -> Vec<Pid> {
        match &self.containment {
            Containment::Leaf(leaf) => leaf.processes().0,
            Containment::Guard(guard) => Descendants::of(*guard).processes().0,
        }
    }

    /// Returns a value of the job's record, or `default` if there is no record.
    fn recorded<T>(&self, value: impl FnOnce(&Description) -> T, default: T) -> T {
        self.description.as_ref().map_or(default, value)
    }

    pub(super) fn grace(&self) -> Duration {
        self.recorded(|description| seconds(description.grace), DEFAULT_GRACE)
    }

    pub(super) fn kill_bound(&self) -> Duration {
        self.recorded(|description| seconds(description.kill_bound), DEFAULT_KILL_BOUND)
    }

    pub(super) fn has_processes(&self) -> bool {
        match &self.containment {
            Containment::Leaf(leaf) => leaf.events().and_then(state).is_ok_and(|state| state.populated),
            Containment::Guard(guard) => !self.processes().is_empty() && matches!(open_guard(*guard), Ok(Some(_))),
        }
    }

    /// Waits until the job has no process, for at most `time`. Returns whether it has no process.
    pub(super) fn wait(&self, time: Option<Duration>) -> rustix::io::Result<bool> {
        match &self.containment {
            Containment::Leaf(leaf) => {
                let until = time.and_then(|time| Instant::now().checked_add(time));
                let events = match leaf.events() {
                    Err(Errno::NODEV | Errno::NOENT) => return Ok(true),
                    events => events?,
                };
                let removals = watch_removals(leaf).ok();
                while state(&events)?.populated {
                    let mut remaining = until.map(|until| until.saturating_duration_since(Instant::now()));
                    if remaining.is_some_and(|remaining| remaining.is_zero()) {
                        return Ok(false);
                    }
                    let mut watched = vec![PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)];
                    match &removals {
                        Some(removals) => watched.push(PollFd::new(removals, PollFlags::IN)),
                        None => remaining = Some(remaining.unwrap_or(RECHECK).min(RECHECK)),
                    }
                    poll::wait(&mut watched, remaining)?;
                    removals.as_ref().map_or(Ok(()), discard_events)?;
                }
                Ok(true)
            }
            Containment::Guard(guard) => match open_guard(*guard)? {
                Some(guard) => poll::wait(&mut [PollFd::new(&guard, PollFlags::IN)], time),
                None => Ok(true),
            },
        }
    }

    /// Sends the signals to the main process, if it is still in the job.
    pub(super) fn signal_main(&self, signals: &[Signal]) -> rustix::io::Result<()> {
        let main = self.main.ok_or(Errno::SRCH)?;
        let mut found = false;
        self.signal_those(signals, |pid| pid == main, |_| found = true)?;
        if found { Ok(()) } else { Err(Errno::SRCH) }
    }

    /// Sends the signals to each process of the job for which `wanted` returns `true`.
    pub(super) fn signal_all(&self, signals: &[Signal], wanted: impl Fn(Pid) -> bool) -> rustix::io::Result<()> {
        self.signal_those(signals, wanted, |_| {})
    }

    /// Does the same as [`signal_all`](Self::signal_all), and calls `found` with each of these processes.
    fn signal_those(
        &self,
        signals: &[Signal],
        wanted: impl Fn(Pid) -> bool,
        found: impl FnMut(Pid),
    ) -> rustix::io::Result<()> {
        let scans = ScanLimits::new(64, SIGNAL_TIMEOUT);
        match &self.containment {
            Containment::Leaf(leaf) => leaf.signal_those(signals, scans, wanted, found).map(drop),
            Containment::Guard(guard) => match open_guard(*guard)? {
                // The pidfd stays open until the signals have been sent.
                Some(_pidfd) => Descendants::of(*guard).signal_those(signals, scans, wanted, found).map(drop),
                None => Err(Errno::SRCH),
            },
        }
    }
}

/// Returns a descriptor that is readable when this cgroup, or one beside it, has been removed. The `cgroup.events` of a
/// cgroup does not report its removal. The removal also cancels a notification that the kernel has delayed, to leave
/// 10 ms between two of them (CGROUP_FILE_NOTIFY_MIN_INTV and `cgroup_rm_file`, kernel/cgroup/cgroup.c).
fn watch_removals(cgroup: &Cgroup) -> rustix::io::Result<OwnedFd> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    // A watch of the cgroup itself (IN_DELETE_SELF, inotify(7)) would report nothing while the cgroup is open here.
    let parent = format!("/proc/self/fd/{}/..", cgroup.as_fd().as_raw_fd());
    inotify::add_watch(&watch, parent, inotify::WatchFlags::DELETE | inotify::WatchFlags::ONLYDIR)?;
    Ok(watch)
}

/// Reads all events, so that the descriptor is not readable until the next one.
fn discard_events(watch: &OwnedFd) -> rustix::io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(watch, &mut buffer);
    loop {
        match events.next() {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// Opens a pidfd of a guard, and confirms that the process is a guard. Returns `None` if the guard has ended.
pub(super) fn open_guard(guard: Pid) -> rustix::io::Result<Option<Pidfd>> {
    let pidfd = match Pidfd::open(guard) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let is_guard = supervisor_of_guard(guard).is_some()
        && std::fs::read_to_string(format!("/proc/{}/comm", guard.as_raw_nonzero()))
            .is_ok_and(|name| name.trim_end() == base::GUARD_NAME);
    Ok((is_guard && !pidfd.has_ended()).then_some(pidfd))
}
