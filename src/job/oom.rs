//! Whether the kernel's OOM killer has ended a job. Its cgroup's `memory.events` tells how many processes were killed, not
//! which: a main process that ended by SIGKILL may have been killed by somebody else, or by itself, after a child of it was.
//!
//! Who was killed stands in the kernel's log, for those who may read it. Otherwise the main process is looked at as soon as
//! the count rises: with no SIGKILL pending then, it was another one.

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
use crate::kernel::{process, sys};
use crate::report::{Oom, OomVictim};
use crate::supervisor::events::Log;

/// How long after the count has risen the main process is looked at, unless its end comes first. The kernel counts, and
/// notifies, just before it sends SIGKILL (`__oom_kill_process`, mm/oom_kill.c), and nothing tells that it has been sent to
/// somebody else but its log, which few may read.
const SIGNALLED: Duration = Duration::from_millis(1);

/// What is seen while the job runs.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// So many were killed when the main process was seen to be none of them.
    others: AtomicU64,
    /// Highest `memory.current` at a notification, in bytes.
    highest: AtomicU64,
}

impl Watch {
    /// The highest memory use that was seen at an event, where there was one.
    pub fn highest(&self) -> Option<u64> {
        Some(self.highest.load(Ordering::Relaxed)).filter(|&bytes| bytes > 0)
    }

    /// Watches until the leaf is removed. Costs no wake-up while no limit is hit. `main`: the main process, and its pid.
    pub async fn run(self: Arc<Self>, leaf: Cgroup, main: (i32, Arc<Pidfd>), log: Log) {
        let file = openat(&leaf, c"memory.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let Ok(events) = file
            .map_err(std::io::Error::from)
            .and_then(|file| crate::supervisor::watch::watched(file, Interest::PRIORITY))
        else {
            // Not the memory controller's, or no descriptor is to be had: then what is found in the end has to do.
            return;
        };
        loop {
            let Some(kills) = read_kills(&events) else { return };
            let current = leaf.read(c"memory.current").ok().and_then(|text| text.trim().parse().ok());
            self.highest.fetch_max(current.unwrap_or(0), Ordering::Relaxed);
            if kills > 0 {
                // Once; those that come later are in the report.
                log.out_of_memory(kills);
            }
            if kills > self.others.load(Ordering::Relaxed) {
                let ended = has_ended_within(SIGNALLED, &main.1).await;
                let Some(kills) = read_kills(&events) else { return };
                // Its pid is its own while it has not ended, which is asked for once more after the look.
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

    /// What has happened, when the job is over, and whether the main process was one of the victims. `killed_main`: it
    /// ended by a SIGKILL that is not pinfold's.
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
        let named = in_first_pid_namespace() && victims.iter().any(|victim| Some(victim.pid) == main);
        // All are named, and it is not.
        let others = in_first_pid_namespace() && victims.len() as u64 >= kills;
        let seen = kills > self.others.load(Ordering::Relaxed);
        let main_was = killed_main && (group || named || !others && seen);
        (Some(Oom { kills, victims, source }), main_was)
    }
}

/// Waits for its end, for so long at most; where it can't be watched, for as long.
async fn has_ended_within(time: Duration, process: &Pidfd) -> bool {
    // A copy: the job's actor watches this one, and a runtime takes a number only once.
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

/// Whether SIGKILL is pending for a process, or it is exiting.
fn is_dying(pid: i32) -> bool {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let (status, stat) = (read("status"), read("stat"));
    let pending = ["SigPnd:", "ShdPnd:"].iter().any(|field| {
        let mask = status.lines().find_map(|line| line.strip_prefix(field));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_none_or(|mask| mask & sys::bit(libc::SIGKILL) != 0)
    });
    // State Z says that its first thread has exited, and no more: the caller asks the pidfd.
    pending || process::is_exiting(stat.as_bytes())
}

/// PROC_PID_INIT_INO of the kernel (include/linux/proc_ns.h): the log has the process ids of that namespace.
fn in_first_pid_namespace() -> bool {
    std::fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == 0xEFFF_FFFC)
}

/// The victims in the cgroup whose path ends with `tail`, or in one below that.
fn victims_in_log(tail: &str) -> std::io::Result<Vec<OomVictim>> {
    let mut log = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    let mut victims = Vec::new();
    // A record a read (the kernel's ABI/testing/dev-kmsg).
    let mut record = [0; 8192];
    loop {
        match log.read(&mut record) {
            Ok(0) => return Ok(victims),
            Ok(length) => victims.extend(victim(&String::from_utf8_lossy(&record[..length]), tail)),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(victims),
                // Overwritten before it was read: the next one follows.
                Some(libc::EPIPE | libc::EINTR) => {}
                _ => return Err(error),
            },
        }
    }
}

/// Reads a line like `oom-kill:constraint=CONSTRAINT_MEMCG,…,task_memcg=/a/b,task=NAME,pid=1,uid=0`.
fn victim(record: &str, tail: &str) -> Option<OomVictim> {
    let (_, rest) = record.split_once(";oom-kill:")?;
    let (cgroup, rest) = rest.split_once(",task_memcg=")?.1.split_once(",task=")?;
    let below = cgroup.find(tail).map(|at| &cgroup[at + tail.len()..])?;
    // The name may hold a comma.
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
