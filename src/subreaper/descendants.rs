//! The descendants of a process, found through `/proc` and signalled through pidfds. This is the containment without a
//! cgroup.
//!
//! Only the job is hit: a process counts as found if its parent in `/proc/PID/stat` is a process that was found before,
//! and that was still alive after that file was read. A descendant of a subreaper stays its descendant
//! (PR_SET_CHILD_SUBREAPER(2const)), so a process that was found once belongs to the job as long as it lives. Signals
//! are sent through its pidfd, which was opened before the check.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, Result};
use rustix::process::{Pid, getpid};

use crate::cgroup::signal;
use crate::kernel::pidfd::Pidfd;
use crate::kernel::process;
use crate::kernel::scan::{ScanLimits, until_no_new_process};
use crate::kernel::signal::Signal;

/// The highest number of children of one process that are held open at a time, so that wide trees do not reach the
/// limit on open files.
const BATCH: usize = 64;

/// The number of descriptors that are reserved for reading about the held processes if descriptors run out.
const ROOM: usize = 4;

/// The least number of passes that stop all processes of a storm before the kill. A storm has at least [`STORM`] living
/// processes that fork all the time. A stopped process still counts toward the user's limit on processes and uses no
/// CPU time, so a storm that has reached that limit is stopped within a few passes. If its processes were killed
/// instead, each would be replaced at once.
///
/// A few processes that each start a child and end cannot be stopped in this way, whatever the number of passes. They
/// are killed by [`relay`](super::relay).
const STOPS: u32 = 10;
/// The longest time for all these passes.
const STOPPING: Duration = Duration::from_secs(5);
/// The least number of living processes that counts as a storm.
const STORM: usize = 32;

/// The highest number of searches for the processes that exist now. All limits on these searches are needed because a
/// storm would otherwise keep them going for ever.
const LOOKS: usize = 4;
/// No further search is begun after this time.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// The longest time for all searches.
const LOOKING: Duration = Duration::from_secs(2);

/// A process and the clock tick of its start. No two processes have both in common.
type Identity = (Pid, u64);

/// The state that is kept between passes.
#[derive(Default)]
struct Progress {
    /// The processes to which the signals were sent.
    signalled: HashSet<Identity>,
    /// The processes that the last pass found.
    present: HashSet<Identity>,
    /// The processes that were found to have ended.
    ended: HashSet<Identity>,
}

/// A process that was found, referred to by its pidfd.
pub(super) struct Found {
    pub(super) pid: Pid,
    /// `None` for the root: the caller makes sure that its pid is not reused.
    pidfd: Option<Pidfd>,
    started: u64,
    /// Whether the process is a child of this process. Its pid is then not reused until it is reaped.
    is_own: bool,
}

impl Found {
    /// Returns a child of this process, which must not be reaped meanwhile.
    pub(super) fn own_child(pid: Pid, pidfd: Pidfd) -> Self {
        Self { pid, pidfd: Some(pidfd), started: 0, is_own: true }
    }

    /// Opens the child `pid` of `parent`. Returns `None` if the child is gone or now has another parent.
    pub(super) fn child_of(parent: &Self, pid: Pid) -> Result<Option<Self>> {
        let pidfd = match Pidfd::open(pid) {
            Ok(pidfd) => pidfd,
            // The process is gone, or a thread now has its number.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let stat = match std::fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())) {
            Ok(stat) => stat,
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::SRCH | Errno::ACCESS | Errno::PERM) => {
                    return Self::hidden_child_of(parent, pid, pidfd);
                }
                errno => return Err(errno.unwrap_or(Errno::IO)),
            },
        };
        let (Some(parents), Some(started)) = (process::parent(&stat), process::start_ticks(&stat)) else {
            return Ok(None);
        };
        let is_child = parents == parent.pid.as_raw_nonzero().get() && (parent.is_own || !parent.has_ended());
        Ok(is_child.then_some(Self { pid, pidfd: Some(pidfd), started, is_own: false }))
    }

    /// Handles a process that `/proc` does not show: it has ended or is hidden (`hidepid`, proc(5)). The parent's list
    /// of children contains hidden processes too. The process is a child if that list contains it after its pidfd was
    /// opened.
    fn hidden_child_of(parent: &Self, pid: Pid, pidfd: Pidfd) -> Result<Option<Self>> {
        if pidfd.has_ended() {
            return Ok(None);
        }
        let is_child = match children(parent.pid) {
            Ok(children) => children.contains(&pid) && (parent.is_own || !parent.has_ended()),
            Err(_) if parent.has_ended() => false,
            Err(errno) => return Err(errno),
        };
        Ok(is_child.then_some(Self { pid, pidfd: Some(pidfd), started: 0, is_own: false }))
    }

    fn has_ended(&self) -> bool {
        self.pidfd.as_ref().is_some_and(Pidfd::has_ended)
    }

    fn identity(&self) -> Identity {
        (self.pid, self.started)
    }

    pub(super) fn send(&self, signals: &[Signal]) -> Result<()> {
        self.pidfd.as_ref().map_or(Ok(()), |pidfd| signal::send(pidfd, signals))
    }
}

/// Returns whether a child of the root belongs to the job. Needed if not every child of the root does.
pub(crate) type IsOurs<'a> = &'a (dyn Fn(Pid) -> bool + Sync);

/// The descendants of one process, without the process itself.
#[derive(Clone, Copy)]
pub(crate) struct Descendants<'a> {
    root: Pid,
    is_ours: Option<IsOurs<'a>>,
}

impl<'a> Descendants<'a> {
    /// Returns the descendants of `root`. It must be this process, or a process whose pidfd the caller holds and
    /// watches.
    pub fn of(root: Pid) -> Self {
        Self { root, is_ours: None }
    }

    /// Returns the children of `root` for which `is_ours` returns true, and the descendants of these children.
    pub fn of_some(root: Pid, is_ours: IsOurs<'a>) -> Self {
        Self { root, is_ours: Some(is_ours) }
    }

    /// Returns the processes that exist now, including zombies, parents before their children. If a process cannot be
    /// opened, its descendants are left out, and an error gives the reason.
    pub fn processes(&self) -> (Vec<Pid>, Result<()>) {
        let mut before = None;
        let (again, bound) = (Instant::now() + LOOK_AGAIN, Instant::now() + LOOKING);
        for _ in 0..LOOKS {
            let mut all = Vec::new();
            let walked = self.walk(
                &mut |found| {
                    all.push(found.pid);
                    Instant::now() < bound
                },
                &mut |_| {},
            );
            // While processes end, others can be missing from the lists. Two searches with the same result are enough.
            let now = Instant::now();
            if now >= bound {
                return (all, walked.and(Err(Errno::TIMEDOUT)));
            }
            if walked == Ok(false) && all.is_empty() || walked.is_err() || before.as_ref() == Some(&all) || now >= again
            {
                return (all, walked.map(drop));
            }
            before = Some(all);
        }
        (before.unwrap_or_default(), Ok(()))
    }

    /// Sends the `signals` to each process for which `wanted` returns true, as soon as it is found, until a pass finds
    /// no new process. Calls `found` once for each process, before it sends the signals. Returns whether such a pass
    /// was reached within `scans`.
    pub fn signal_those(
        &self,
        signals: &[Signal],
        scans: ScanLimits,
        wanted: impl Fn(Pid) -> bool,
        mut found: impl FnMut(Pid),
    ) -> Result<bool> {
        let mut progress = Progress::default();
        until_no_new_process(scans, || self.signal_new(signals, scans, &wanted, &mut found, &mut progress))
    }

    /// Makes one pass of [`Self::signal_those`]. Returns whether there was a new process, or may have been one that the
    /// pass missed: when a process ends, its children get another parent, and a list of children is not consistent
    /// while some of them are reaped.
    fn signal_new(
        &self,
        signals: &[Signal],
        scans: ScanLimits,
        wanted: &dyn Fn(Pid) -> bool,
        found: &mut dyn FnMut(Pid),
        progress: &mut Progress,
    ) -> Result<bool> {
        let Progress { signalled, present, ended } = progress;
        let (mut found_new, mut found_ended, mut now_present) = (false, false, HashSet::new());
        let mut enter = |process: &Found| {
            now_present.insert(process.identity());
            if wanted(process.pid) && signalled.insert(process.identity()) {
                found_new = true;
                found(process.pid);
                // An error means that the process has ended or may not be signalled. It is not tried again.
                let _ = process.send(signals);
            }
            !scans.are_over()
        };
        let mut leave = |process: &Found| found_ended |= process.has_ended() && ended.insert(process.identity());
        let lost = self.walk(&mut enter, &mut leave)?;
        // Includes processes that had already ended: a list that is read while they are reaped can miss as many others.
        let vanished = !present.is_subset(&now_present);
        *present = now_present;
        Ok(found_new || found_ended || lost || vanished)
    }

    /// Sends SIGKILL to all of them. First it stops all processes, until a pass finds no new one, so that none is
    /// started meanwhile. Then it kills the deepest processes first: if the end of a parent orphans a stopped process
    /// group, the kernel continues that group (setpgid(2)), and its processes could fork. Calls `killed` for each
    /// process to which the signal could be sent.
    pub fn kill_all(&self, mut killed: impl FnMut(Pid)) -> Result<()> {
        let stopped = self.stop_all();
        let done = self.walk(&mut |_| true, &mut |process| {
            if process.send(&[Signal::KILL]).is_ok() {
                killed(process.pid);
            }
        });
        stopped.and(done).map(drop)
    }

    fn stop_all(&self) -> Result<bool> {
        let scans = ScanLimits::new(1, STOPPING);
        let mut progress = Progress::default();
        let pass = |progress: &mut Progress| self.signal_new(&[Signal::STOP], scans, &|_| true, &mut |_| {}, progress);
        let stopped = until_no_new_process(scans, || pass(&mut progress))?;
        if stopped || progress.present.difference(&progress.ended).count() < STORM {
            return Ok(stopped);
        }
        until_no_new_process(scans.at_least(STOPS), || pass(&mut progress))
    }

    /// Returns the direct children.
    ///
    /// # Errors
    /// `ESRCH` if `/proc` shows another PID namespace, or the errno of reading it. An error does not prove that there
    /// is no child.
    pub fn children(&self) -> Result<Vec<Pid>> {
        process::proc_is_own()?;
        let mut children = children(self.root)?;
        if let Some(is_ours) = self.is_ours {
            children.retain(|&pid| is_ours(pid));
        }
        Ok(children)
    }

    /// Walks through the tree: calls `enter` for each process before its children, and `leave` after them. The walk
    /// ends when `enter` returns `false`. Returns whether processes were missed: some were gone or had another parent
    /// when the walk reached them, or `enter` ended the walk.
    fn walk(&self, enter: &mut dyn FnMut(&Found) -> bool, leave: &mut dyn FnMut(&Found)) -> Result<bool> {
        let (mut refused, mut lost) = (Ok(()), false);
        let mut room = Vec::new();
        let root = Found { pid: self.root, pidfd: None, started: 0, is_own: false };
        // Each level has the process, its children that are held open, and the children that are still to be opened.
        let mut path = vec![(root, Vec::<Found>::new(), self.children()?)];
        while let Some((process, held, rest)) = path.last_mut() {
            if let Some(child) = held.pop() {
                let grandchildren = if child.has_ended() { Ok(Vec::new()) } else { self::children(child.pid) };
                let grandchildren = grandchildren.unwrap_or_else(|errno| {
                    if !child.has_ended() {
                        refused = Err(errno);
                    }
                    Vec::new()
                });
                path.push((child, Vec::new(), grandchildren));
                continue;
            }
            if rest.is_empty() {
                if path.len() > 1
                    && let Some((process, ..)) = path.pop()
                {
                    leave(&process);
                    continue;
                }
                break;
            }
            if room.is_empty() {
                room = (0..ROOM).filter_map(|_| Pidfd::open(self.root).ok()).collect();
            }
            let mut handled = 0;
            while held.len() < BATCH
                && let Some(&pid) = rest.get(handled)
            {
                match Found::child_of(process, pid) {
                    Ok(Some(child)) => {
                        if !enter(&child) {
                            return Ok(true);
                        }
                        held.push(child);
                    }
                    Ok(None) => lost = true,
                    Err(_) if !room.is_empty() => {
                        room.clear();
                        if !held.is_empty() {
                            // The remaining children follow when the held ones have been released.
                            break;
                        }
                        continue;
                    }
                    Err(_) if !held.is_empty() => break,
                    Err(errno) => refused = Err(errno),
                }
                handled += 1;
            }
            rest.drain(..handled);
        }
        refused.map(|()| lost)
    }
}

/// Returns the direct children of this process.
///
/// # Errors
/// As [`Descendants::children`].
pub(crate) fn own_children() -> Result<Vec<Pid>> {
    Descendants::of(getpid()).children()
}

/// Returns whether each child of this process has ended, even if it has not been reaped. For systems where waiting for
/// children is refused.
pub(crate) fn all_children_have_ended() -> bool {
    let has_ended = |pid| Pidfd::open(pid).is_ok_and(|child| child.has_ended());
    own_children().is_ok_and(|children| children.into_iter().all(has_ended))
}

/// Returns the direct children of all threads of a process: from `/proc/PID/task/TID/children` if the kernel has it
/// (CONFIG_PROC_CHILDREN), otherwise by a search through `/proc`. Some children may be missing while children start and
/// end (proc_pid_task(5)). The youngest child comes first: of processes that each start a child and end, it is the one
/// that is alive.
///
/// # Errors
/// `ENOENT` if the process is gone or `/proc` does not show it; any other errno of reading its list.
pub(crate) fn children(parent: Pid) -> Result<Vec<Pid>> {
    let parent = parent.as_raw_nonzero().get();
    let threads = format!("/proc/{parent}/task");
    let mut all = Vec::new();
    // The link count includes `.`, `..` and one link for each thread.
    let one = rustix::fs::stat(&*threads)?.st_nlink == 3;
    if one && read_children(&format!("{threads}/{parent}"), &mut all).is_ok() {
        all.reverse();
        return Ok(all);
    }
    all.clear();
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    for thread in std::fs::read_dir(threads).map_err(errno)? {
        let thread = thread.map_err(errno)?.path();
        match read_children(&thread.to_string_lossy(), &mut all) {
            // Either the thread has just ended, or the kernel does not have this file.
            Err(Errno::NOENT) if thread.join("stat").exists() => return by_parent(parent),
            Ok(()) | Err(Errno::NOENT | Errno::SRCH) => {}
            Err(errno) => return Err(errno),
        }
    }
    all.reverse();
    Ok(all)
}

/// Adds the children that one thread has started. Uses as few calls as possible, because some children live no longer
/// than these calls take.
fn read_children(thread: &str, all: &mut Vec<Pid>) -> Result<()> {
    let file = open(format!("{thread}/children"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let (mut buffer, mut pid) = ([0; 4096], 0_i32);
    loop {
        let length = rustix::io::read(&file, &mut buffer)?;
        for &byte in &buffer[..length] {
            if byte.is_ascii_digit() {
                pid = pid.wrapping_mul(10).wrapping_add(i32::from(byte - b'0'));
            } else {
                all.extend(Pid::from_raw(pid));
                pid = 0;
            }
        }
        if length == 0 {
            return Ok(());
        }
    }
}

fn by_parent(parent: i32) -> Result<Vec<Pid>> {
    let entries = std::fs::read_dir("/proc").map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let all = entries
        .flatten()
        .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
        .filter(|pid| {
            let stat = std::fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
            process::parent(&stat) == Some(parent)
        })
        .collect();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn both_ways_find_the_same_children() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32).unwrap();
        let own = rustix::process::getpid();
        // Other tests of this process start children of their own.
        assert!(children(own).unwrap().contains(&pid));
        assert!(by_parent(own.as_raw_nonzero().get()).unwrap().contains(&pid));
        assert!(children(pid).unwrap().is_empty());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!children(own).unwrap().contains(&pid));
        // For a process that is gone, the result is an error and not an empty list.
        assert_eq!(children(pid), Err(Errno::NOENT));
    }

    #[test]
    fn a_tree_is_walked_and_killed() {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "sh -c 'sleep 999 & sleep 999 & echo up; wait' & wait"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        let pid = Pid::from_raw(child.id() as i32).unwrap();
        let is_ours = |child| child == pid;
        let tree = Descendants::of_some(rustix::process::getpid(), &is_ours);
        let (found, walked) = tree.processes();
        walked.unwrap();
        assert_eq!((found.first(), found.len()), (Some(&pid), 4));
        let mut killed = Vec::new();
        tree.kill_all(|pid| killed.push(pid)).unwrap();
        assert_eq!((killed.last(), killed.len()), (Some(&pid), 4));
        assert!(!child.wait().unwrap().success());
    }
}
