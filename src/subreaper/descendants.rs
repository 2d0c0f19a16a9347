//! The descendants of a process, found through `/proc` and signalled through pidfds: what there is without a cgroup.
//!
//! Only the job is hit: a process counts as found when its parent in `/proc/PID/stat` was a process found before it that
//! lived on after that was read. A descendant of a subreaper stays its descendant (PR_SET_CHILD_SUBREAPER(2const)), so
//! whoever was found once is of the job as long as it lives; its pidfd, opened before, is what the signal goes through.

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

/// So many children of one process are held at a time: the limit on open files is no matter to wide trees.
const BATCH: usize = 64;

/// So many descriptors are kept free for the look at those that are held, where they are short.
const ROOM: usize = 4;

/// How often, and for how long at most, everybody is stopped before the kill. Whoever is stopped still counts for the user's
/// limit on processes, and leaves the CPU to us: so a storm that has reached its limit comes to an end in a few passes, where
/// each one that is killed is replaced at once.
/// A few who hand over to a child and end are not to be had in this way, however often: they are chased.
const STOPS: u32 = 10;
const STOPPING: Duration = Duration::from_secs(5);
const STORM: usize = 32;

/// So often at most is looked for who is there, once more only so soon, and for so long at most: in a storm there is no end to it.
const LOOKS: usize = 4;
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const LOOKING: Duration = Duration::from_secs(2);

/// A process and the clock tick of its start: no two have both.
type Identity = (Pid, u64);

/// Who has been sent a signal, who was there at the last pass, and who has been seen to have ended.
#[derive(Default)]
struct Completion {
    all: HashSet<Identity>,
    here: HashSet<Identity>,
    ended: HashSet<Identity>,
}

/// A process that was found, held by its pidfd.
pub(super) struct Found {
    pub(super) pid: Pid,
    /// None for the root, which the caller answers for.
    pidfd: Option<Pidfd>,
    started: u64,
    /// A child of this very process: until it is reaped, its pid is its own.
    is_own: bool,
}

impl Found {
    /// A child of this process that nobody reaps meanwhile.
    pub(super) fn own_child(pid: Pid, pidfd: Pidfd) -> Self {
        Self { pid, pidfd: Some(pidfd), started: 0, is_own: true }
    }

    /// The child `pid` of `parent`; `None` where it is gone, or another process's child by now.
    pub(super) fn child_of(parent: &Self, pid: Pid) -> Result<Option<Self>> {
        let pidfd = match Pidfd::open(pid) {
            Ok(pidfd) => pidfd,
            // It is gone, or its number is a thread's by now.
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

    /// A process that `/proc` does not show has ended, or is hidden (`hidepid`, proc(5)). It is a child where its parent's list,
    /// which names it all the same, names it after its pidfd was opened.
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

/// Who is of the job, where not every child of the root is.
pub(crate) type IsOurs<'a> = &'a (dyn Fn(Pid) -> bool + Sync);

/// The descendants of one process, itself not included.
#[derive(Clone, Copy)]
pub(crate) struct Descendants<'a> {
    root: Pid,
    is_ours: Option<IsOurs<'a>>,
}

impl<'a> Descendants<'a> {
    /// Those of `root`, which must be this process, or one whose pidfd is held and which is watched.
    pub fn of(root: Pid) -> Self {
        Self { root, is_ours: None }
    }

    /// Those of `root` that descend from children for which this is true.
    pub fn of_some(root: Pid, is_ours: IsOurs<'a>) -> Self {
        Self { root, is_ours: Some(is_ours) }
    }

    /// As they are now, parents before their children; zombies included. Whoever can't be held is not gone through, and the
    /// reason is told.
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
            // While some end, others can be missing: two looks that agree will do.
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

    /// Sends the `signals` to each that is `wanted`, when it has been found, until a pass finds nobody new; `found` sees each one
    /// once, before its signals. Tells whether there was an end to it within `passes`.
    pub fn signal_those(
        &self,
        signals: &[Signal],
        scans: ScanLimits,
        wanted: impl Fn(Pid) -> bool,
        mut found: impl FnMut(Pid),
    ) -> Result<bool> {
        let mut told = Completion::default();
        until_no_new_process(scans, || self.signal_new(signals, scans, &wanted, &mut found, &mut told))
    }

    /// One pass of that. Tells whether there was anybody new, or may have been: with the end of a process its children get
    /// another parent, and a list of children is not of one moment while some are reaped.
    fn signal_new(
        &self,
        signals: &[Signal],
        scans: ScanLimits,
        wanted: &dyn Fn(Pid) -> bool,
        found: &mut dyn FnMut(Pid),
        told: &mut Completion,
    ) -> Result<bool> {
        let Completion { all, here, ended } = told;
        let (mut news, mut ends, mut now_here) = (false, false, HashSet::new());
        let mut enter = |process: &Found| {
            now_here.insert(process.identity());
            if wanted(process.pid) && all.insert(process.identity()) {
                news = true;
                found(process.pid);
                // What has ended meanwhile, or may not be signalled, is told once.
                let _ = process.send(signals);
            }
            !scans.are_over()
        };
        let mut leave = |process: &Found| ends |= process.has_ended() && ended.insert(process.identity());
        let lost = self.walk(&mut enter, &mut leave)?;
        // Those that had ended too: a list that is read while they are reaped leaves out as many others.
        let vanished = !here.is_subset(&now_here);
        *here = now_here;
        Ok(news || ends || lost || vanished)
    }

    /// SIGKILL to all of them. First everybody is stopped, until a pass finds nobody new, so that nobody
    /// is born meanwhile; then killed, the deepest first: a stopped process group that is orphaned by the end of a parent is
    /// continued by the kernel (setpgid(2)), and could fork. `killed` sees each that the signal could be sent to.
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
        let mut told = Completion::default();
        let pass = |told: &mut Completion| self.signal_new(&[Signal::STOP], scans, &|_| true, &mut |_| {}, told);
        let stopped = until_no_new_process(scans, || pass(&mut told))?;
        if stopped || told.here.difference(&told.ended).count() < STORM {
            return Ok(stopped);
        }
        until_no_new_process(scans.at_least(STOPS), || pass(&mut told))
    }

    /// The direct children.
    ///
    /// # Errors
    /// `ESRCH` where `/proc` shows another PID namespace, or the errno with which it can't be read. No list is no proof that
    /// there is no child.
    pub fn children(&self) -> Result<Vec<Pid>> {
        process::proc_is_own()?;
        let mut children = children(self.root)?;
        if let Some(is_ours) = self.is_ours {
            children.retain(|&pid| is_ours(pid));
        }
        Ok(children)
    }

    /// Goes through the tree: `enter` sees each before its children, `leave` after them. Tells whether some were gone, or had
    /// another parent, as soon as they were to be looked at, or were not, since `enter` had enough.
    fn walk(&self, enter: &mut dyn FnMut(&Found) -> bool, leave: &mut dyn FnMut(&Found)) -> Result<bool> {
        let (mut refused, mut lost) = (Ok(()), false);
        let mut room = Vec::new();
        let root = Found { pid: self.root, pidfd: None, started: 0, is_own: false };
        // Each level: the process, its children that are held, and those that are still to be looked at.
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
            let mut looked_at = 0;
            while held.len() < BATCH
                && let Some(&pid) = rest.get(looked_at)
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
                            // The others have their turn when these have been let go.
                            break;
                        }
                        continue;
                    }
                    Err(_) if !held.is_empty() => break,
                    Err(errno) => refused = Err(errno),
                }
                looked_at += 1;
            }
            rest.drain(..looked_at);
        }
        refused.map(|()| lost)
    }
}

/// The direct children of this process.
///
/// # Errors
/// As [`Descendants::children`].
pub(crate) fn own_children() -> Result<Vec<Pid>> {
    Descendants::of(getpid()).children()
}

/// Whether each child of this process has ended, reaped or not: where the kernel does not let it wait for them.
pub(crate) fn all_children_have_ended() -> bool {
    let has_ended = |pid| Pidfd::open(pid).is_ok_and(|child| child.has_ended());
    own_children().is_ok_and(|children| children.into_iter().all(has_ended))
}

/// The direct children of a process, those of all its threads: `/proc/PID/task/TID/children` where the kernel has it
/// (CONFIG_PROC_CHILDREN), else by a search through `/proc`. While they come and go some may be missing (proc_pid_task(5)).
/// The youngest come first: of those that hand over to a child and end, it is the one that lives.
///
/// # Errors
/// `ENOENT` where the process is gone, or `/proc` does not show it; any other errno with which its list can't be read.
pub(crate) fn children(parent: Pid) -> Result<Vec<Pid>> {
    let parent = parent.as_raw_nonzero().get();
    let threads = format!("/proc/{parent}/task");
    let mut all = Vec::new();
    // The links are `.`, `..` and the threads.
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
            // The thread has just ended; or the kernel has no such file.
            Err(Errno::NOENT) if thread.join("stat").exists() => return by_parent(parent),
            Ok(()) | Err(Errno::NOENT | Errno::SRCH) => {}
            Err(errno) => return Err(errno),
        }
    }
    all.reverse();
    Ok(all)
}

/// Adds the children that one thread has started. With as few calls as can be: some live for no longer than that takes.
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
    fn children_by_either_way_are_the_same() {
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
        // No list of a process that is gone, rather than an empty one.
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
