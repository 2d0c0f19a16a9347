//! Finds out whether the kernel's OOM killer has ended a job. The file `memory.events` of the job's cgroup counts the
//! killed processes, but does not name them. A main process that ended by SIGKILL may have been killed by another
//! process, or by itself, after the OOM killer had killed one of its children.
//!
//! The kernel's log names the victims, if this user may read it. Otherwise pinfold looks at the main process as soon as
//! the count rises: if no SIGKILL is pending for it then, the victim was another process.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, openat};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::cgroup::directory::Cgroup;
use crate::cgroup::usage::value_of;
use crate::kernel::pidfd::Pidfd;
use crate::kernel::{process, signal_set};
use crate::report::{Oom, OomVictim};
use crate::supervisor::events::Log;

/// pinfold looks at the main process this long after the count has risen, or as soon as the main process has ended. The
/// kernel counts and notifies just before it sends SIGKILL (`__oom_kill_process`, mm/oom_kill.c). Only the kernel's
/// log, which few users may read, shows that SIGKILL was sent to another process.
const SIGKILL_DELAY: Duration = Duration::from_millis(1);

/// What pinfold has observed while the job runs.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// The count of killed processes when pinfold last saw that the main process was not one of them.
    others: AtomicU64,
    /// The highest `memory.current` at a notification, in bytes.
    highest: AtomicU64,
}

impl Watch {
    /// Returns the highest memory use that was seen at an event, or `None` if there was no event.
    pub fn highest(&self) -> Option<u64> {
        Some(self.highest.load(Ordering::Relaxed)).filter(|&bytes| bytes > 0)
    }

    /// Watches the leaf until it is removed. Costs no wake-up while no limit is hit. `main` is the pid and the pidfd of
    /// the main process.
    pub async fn run(self: Arc<Self>, leaf: Cgroup, main: (i32, Arc<Pidfd>), log: Log) {
        let file = openat(&leaf, c"memory.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let Ok(events) = file
            .map_err(std::io::Error::from)
            .and_then(|file| crate::supervisor::watch::watched(file, Interest::PRIORITY))
        else {
            // The leaf has no memory controller, or no descriptor is free. Then only the counters at the end of the job
            // are used.
            return;
        };
        loop {
            let Some(kills) = read_kills(&events) else { return };
            let current = leaf.read(c"memory.current").ok().and_then(|text| text.trim().parse().ok());
            self.highest.fetch_max(current.unwrap_or(0), Ordering::Relaxed);
            if kills > 0 {
                // The event is logged once. Later kills are in the report.
                log.out_of_memory(kills);
            }
            if kills > self.others.load(Ordering::Relaxed) {
                let ended = has_ended_within(SIGKILL_DELAY, &main.1).await;
                let Some(kills) = read_kills(&events) else { return };
                // The pid can't be reused while the main process has not ended, so pinfold checks that once more after
                // `is_dying`.
                if !ended && !is_dying(main.0) && !main.1.has_ended() {
                    self.others.store(kills, Ordering::Relaxed);
                }
            }
            match events.ready(Interest::PRIORITY).await {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => return,
            }
        }
    }

    /// Returns, for a job that is over, what the OOM killer did, and whether the main process was one of its victims.
    /// `killed_main`: the main process ended by a SIGKILL that pinfold did not send.
    pub fn conclude(
        &self,
        leaf: &Cgroup,
        tail: &str,
        main: Option<i32>,
        killed_main: bool,
        group: bool,
    ) -> (Option<Oom>, bool) {
        let kills = leaf.read(c"memory.events").ok().and_then(|text| value_of(&text, "oom_kill")).unwrap_or(0);
        if kills == 0 {
            return (None, false);
        }
        let (victims, source) = match victims_in_log(tail) {
            Ok(victims) => (victims, "/dev/kmsg".to_owned()),
            Err(error) => (Vec::new(), format!("/dev/kmsg can't be read: {error}")),
        };
        let named = in_initial_pid_namespace() && victims.iter().any(|victim| Some(victim.pid) == main);
        // If the log names all victims, the log alone decides.
        let others = in_initial_pid_namespace() && victims.len() as u64 >= kills;
        let seen = kills > self.others.load(Ordering::Relaxed);
        let main_was = killed_main && (group || named || !others && seen);
        (Some(Oom { kills, victims, source }), main_was)
    }
}

/// Waits until the process has ended, at most for `time`, and returns whether it has ended. If the process can't be
/// watched, waits for all of `time`.
async fn has_ended_within(time: Duration, process: &Pidfd) -> bool {
    // A copy of the descriptor: the job's actor watches the original, and a runtime accepts a descriptor number only
    // once.
    let copy = process.as_fd().try_clone_to_owned();
    let Ok(watched) = copy.and_then(|copy| crate::supervisor::watch::watched(copy, Interest::READABLE)) else {
        tokio::time::sleep(time).await;
        return process.has_ended();
    };
    tokio::time::timeout(time, watched.readable()).await.is_ok()
}

fn read_kills(events: &AsyncFd<OwnedFd>) -> Option<u64> {
    let mut text = [0; 512];
    let length = rustix::io::pread(events.get_ref(), &mut text, 0).ok()?;
    Some(value_of(&String::from_utf8_lossy(&text[..length]), "oom_kill").unwrap_or(0))
}

/// Returns whether SIGKILL is pending for a process, or the process is exiting.
fn is_dying(pid: i32) -> bool {
    let pending = ["SigPnd", "ShdPnd"].iter().any(|name| {
        process::signals_in_status(pid, name).is_none_or(|mask| mask & signal_set::bit(libc::SIGKILL) != 0)
    });
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // State Z shows only that the first thread has exited, so the caller also asks the pidfd.
    pending || process::is_exiting(stat.as_bytes())
}

/// Returns whether this process is in the initial PID namespace, whose process ids the kernel's log uses. The number is
/// PROC_PID_INIT_INO (include/linux/proc_ns.h).
fn in_initial_pid_namespace() -> bool {
    std::fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == 0xEFFF_FFFC)
}

/// Returns the victims in the cgroup whose path ends with `tail`, or in a cgroup below it.
fn victims_in_log(tail: &str) -> std::io::Result<Vec<OomVictim>> {
    let mut log = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    let mut victims = Vec::new();
    // Each read returns one record (ABI/testing/dev-kmsg in the kernel's documentation).
    let mut record = [0; 8192];
    loop {
        match log.read(&mut record) {
            Ok(0) => return Ok(victims),
            Ok(length) => victims.extend(victim(&String::from_utf8_lossy(&record[..length]), tail)),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(victims),
                // The record was overwritten before it was read. The next read returns the following one.
                Some(libc::EPIPE | libc::EINTR) => {}
                _ => return Err(error),
            },
        }
    }
}

/// Parses a line like `oom-kill:constraint=CONSTRAINT_MEMCG,…,task_memcg=/a/b,task=NAME,pid=1,uid=0`.
fn victim(record: &str, tail: &str) -> Option<OomVictim> {
    let (_, rest) = record.split_once(";oom-kill:")?;
    let (cgroup, rest) = rest.split_once(",task_memcg=")?.1.split_once(",task=")?;
    let below = cgroup.find(tail).map(|at| &cgroup[at + tail.len()..])?;
    // The name may contain a comma.
    let (name, rest) = rest.rsplit_once(",pid=")?;
    let pid = rest.split(',').next()?.trim().parse().ok()?;
    (below.is_empty() || below.starts_with('/')).then(|| OomVictim { pid, name: name.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line() {
        let line = "6,517,3265486,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
            oom_memcg=/a/pinfold-1-ab,task_memcg=/a/pinfold-1-ab/job-1,task=py,th,pid=191,uid=0\n";
        let found = victim(line, "/pinfold-1-ab/job-1").unwrap();
        assert_eq!((found.pid, found.name.as_str()), (191, "py,th"));
        assert!(victim(line, "/pinfold-1-ab").is_some());
        assert!(victim(line, "/pinfold-1-ab/job").is_none());
        assert!(victim(line, "/pinfold-2-ab").is_none());
    }

    #[test]
    fn this_process_is_not_dying() {
        assert!(!is_dying(rustix::process::getpid().as_raw_nonzero().get()));
        assert!(is_dying(i32::MAX));
    }
}
