//! Kills descendants that form a relay: each process starts a child and then ends, and so does the child. pinfold can
//! kill such processes only if it is faster than they are.
//!
//! To stop all processes before the kill, pinfold would have to check each one first, and by then its child has
//! replaced it. A process cannot fork any more when a SIGKILL is pending for it (fork(2) handles a pending signal
//! first). Therefore pinfold kills each process as soon as it sees it, then looks for the children that it has started
//! so far, and checks no process twice.

use std::collections::HashSet;

use rustix::io::{Errno, Result};
use rustix::process::Pid;

use crate::kernel::pidfd::Pidfd;
use crate::subreaper::children::children;
use crate::subreaper::descendants::Descendants;
use crate::subreaper::found::Found;

/// The highest number of descendants of one child that are held open at a time. The others become children of this
/// process, their subreaper, when their parents end.
const MAX_HELD: usize = 64;

/// The children of this process that are already handled. They leave this set when they are reaped.
#[derive(Default)]
pub(crate) struct Seen {
    /// SIGKILL has been sent to them.
    pub killed: HashSet<Pid>,
    /// This process may not send signals to them.
    pub refused: HashSet<Pid>,
}

impl Seen {
    pub fn contains(&self, pid: Pid) -> bool {
        self.killed.contains(&pid) || self.refused.contains(&pid)
    }

    pub fn remove(&mut self, pid: Pid) {
        self.killed.remove(&pid);
        self.refused.remove(&pid);
    }

    pub fn clear(&mut self) {
        self.killed.clear();
        self.refused.clear();
    }
}

/// Kills the new processes among the children of this process, and their descendants. Returns `true` if there was no
/// new one.
///
/// No other code may reap children of this process meanwhile, so that the pid of a child is not reused.
pub(crate) fn pass(descendants: &Descendants<'_>, seen: &mut Seen) -> Result<bool> {
    let mut none_new = true;
    for pid in descendants.children()? {
        if seen.contains(pid) {
            continue;
        }
        none_new = false;
        let child = Found::own_child(pid, Pidfd::open(pid)?);
        match child.kill() {
            Err(Errno::PERM) => seen.refused.insert(pid),
            _ => seen.killed.insert(pid),
        };
        kill_descendants(child)?;
    }
    Ok(none_new)
}

/// Kills the descendants of `child`.
fn kill_descendants(child: Found) -> Result<()> {
    let mut held = vec![child];
    while let Some(parent) = held.pop() {
        // If the parent has ended, its children have become children of this process.
        for pid in children(parent.pid).unwrap_or_default() {
            if held.len() < MAX_HELD
                && let Some(found) = Found::child_of(&parent, pid)?
            {
                // If this process may not send signals to a process, that process is recorded as refused later, when it
                // becomes a child of this process.
                let _ = found.kill();
                held.push(found);
            }
        }
    }
    Ok(())
}
