//! The descendants of a process, found through `/proc` and signalled through pidfds. This is the containment without a
//! cgroup.
//!
//! No process outside of the job receives a signal. pinfold accepts a process as a descendant only if its parent in
//! `/proc/PID/stat` is a process that pinfold found before, and if that parent was still alive after pinfold had read
//! the file. A descendant of a subreaper stays its descendant (PR_SET_CHILD_SUBREAPER(2const)), so a process that was
//! found once belongs to the job as long as it lives. pinfold opens the pidfd before this check, and sends the signals
//! through it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rustix::io::{Errno, Result};
use rustix::process::Pid;

use crate::kernel::pidfd::Pidfd;
use crate::kernel::process;
use crate::kernel::scan::{ScanLimits, Signalling};
use crate::kernel::signal::Signal;
use crate::subreaper::children::children;
use crate::subreaper::found::{Found, Identity};

/// The highest number of children of one process that are held open at a time, so that wide trees do not reach the
/// limit on open files.
const MAX_HELD: usize = 64;

/// If descriptors run out while processes are held open, this many are released, to read files about these processes.
const RESERVED_FDS: usize = 4;

/// The minimum number of passes that stop (SIGSTOP) the processes of a storm before the kill. A storm is at least
/// [`STORM`] living processes that fork all the time. A stopped process still counts toward the user's limit on
/// processes and uses no CPU time, so a storm that has reached that limit is stopped within a few passes. If its
/// processes were killed instead, each would be replaced at once.
///
/// A few processes that each start a child and end cannot be stopped in this way, however many passes are made.
/// [`relay`](super::relay) kills such processes.
const MIN_STOP_PASSES: u32 = 10;
/// The longest time for all these passes.
const STOP_BOUND: Duration = Duration::from_secs(5);
/// The minimum number of living processes in a storm.
const STORM: usize = 32;

/// The highest number of searches for the processes that exist now. Without limits, a storm would keep these searches
/// going forever.
const MAX_SEARCHES: usize = 4;
/// After this time, no further search begins.
const NEW_SEARCH_WITHIN: Duration = Duration::from_millis(500);
/// The longest time for all searches.
const SEARCH_BOUND: Duration = Duration::from_secs(2);

/// The state that is kept between passes.
#[derive(Default)]
struct Progress {
    /// The processes that the last pass found.
    present: HashSet<Identity>,
    /// The processes that were found to have ended.
    ended: HashSet<Identity>,
}

/// Returns whether a child of the root belongs to the job. Used where the root also has other children.
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
        let (again, bound) = (Instant::now() + NEW_SEARCH_WITHIN, Instant::now() + SEARCH_BOUND);
        for _ in 0..MAX_SEARCHES {
            let mut all = Vec::new();
            let walked = self.walk(
                &mut |found| {
                    all.push(found.pid);
                    Instant::now() < bound
                },
                &mut |_| {},
            );
            // While processes end, other processes can be missing from the lists. So the search is repeated until two
            // searches have the same result.
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
    /// no new process. Calls `found` once for each process, before it sends the signals. Returns whether there was such
    /// a pass within the limits `scans`.
    pub fn signal_those(
        &self,
        signals: &[Signal],
        scans: ScanLimits,
        wanted: impl Fn(Pid) -> bool,
        mut found: impl FnMut(Pid),
    ) -> Result<bool> {
        let (mut progress, mut signalling) =
            (Progress::default(), Signalling::new(signals, scans, &wanted, &mut found));
        signalling.until_no_new_process(|signalling| self.signal_new(signalling, &mut progress))
    }

    /// Makes one pass of [`Self::signal_those`]. Returns whether the pass found a new process or may have missed one.
    /// It can miss one because the children of a process that ends get another parent, and because a list of children
    /// is not consistent while some of them are reaped.
    fn signal_new(&self, signalling: &mut Signalling<'_, Identity>, progress: &mut Progress) -> Result<bool> {
        let Progress { present, ended } = progress;
        let (mut found_new, mut found_ended, mut now_present) = (false, false, HashSet::new());
        let mut enter = |process: &Found| {
            now_present.insert(process.identity());
            if let Some(pidfd) = &process.pidfd {
                found_new |= signalling.send(process.identity(), process.pid, pidfd);
            }
            !signalling.is_over()
        };
        let mut leave = |process: &Found| found_ended |= process.has_ended() && ended.insert(process.identity());
        let lost = self.walk(&mut enter, &mut leave)?;
        // Processes that had already ended count too: while they are reaped, a list of children can miss as many other
        // processes.
        let vanished = !present.is_subset(&now_present);
        *present = now_present;
        Ok(found_new || found_ended || lost || vanished)
    }

    /// Sends SIGKILL to all descendants. First it stops them (SIGSTOP), until a pass finds no new process, so that no
    /// process starts another one meanwhile. Then it kills them, the deepest ones first. In another order, the end of a
    /// parent could orphan a stopped process group; the kernel continues such a group (setpgid(2)), and its processes
    /// could fork. Calls `killed` for each process to which the signal could be sent.
    pub fn kill_all(&self, mut killed: impl FnMut(Pid)) -> Result<()> {
        let stopped = self.stop_all();
        let done = self.walk(&mut |_| true, &mut |process| {
            if process.kill().is_ok() {
                killed(process.pid);
            }
        });
        stopped.and(done).map(drop)
    }

    fn stop_all(&self) -> Result<bool> {
        let (scans, mut ignore) = (ScanLimits::new(1, STOP_BOUND), |_| {});
        let (mut progress, mut signalling) =
            (Progress::default(), Signalling::new(&[Signal::STOP], scans, &|_| true, &mut ignore));
        let stopped = signalling.until_no_new_process(|signalling| self.signal_new(signalling, &mut progress))?;
        if stopped || progress.present.difference(&progress.ended).count() < STORM {
            return Ok(stopped);
        }
        signalling.limit(scans.at_least(MIN_STOP_PASSES));
        signalling.until_no_new_process(|signalling| self.signal_new(signalling, &mut progress))
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
        let mut reserved_fds = Vec::new();
        let root = Found::root(self.root);
        // Each level has the process, its children that are held open, and the children that are still to be opened.
        let mut path = vec![(root, Vec::<Found>::new(), self.children()?)];
        while let Some((process, held, rest)) = path.last_mut() {
            if let Some(child) = held.pop() {
                let grandchildren = if child.has_ended() { Ok(Vec::new()) } else { children(child.pid) };
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
            if reserved_fds.is_empty() {
                reserved_fds = (0..RESERVED_FDS).filter_map(|_| Pidfd::open(self.root).ok()).collect();
            }
            let mut handled = 0;
            while held.len() < MAX_HELD
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
                    Err(_) if !reserved_fds.is_empty() => {
                        reserved_fds.clear();
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

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

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
