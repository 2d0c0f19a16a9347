//! Descendants that hand over to a child and end, again and again: killed by being quicker than they are.
//!
//! A stop of everybody before the kill takes a look at each, and then it is another one. A process can't fork any more once
//! SIGKILL is on its way to it (fork(2) answers a pending signal first): so whoever is seen is killed at once, then what it
//! has started so far is looked for, without a look at anybody twice.

use std::collections::HashSet;

use rustix::io::{Errno, Result};
use rustix::process::Pid;

use crate::kernel::pidfd::Pidfd;
use crate::kernel::signal::Signal;
use crate::subreaper::descendants;
use crate::subreaper::descendants::{Descendants, Found};

/// So many of a family are held at a time. The others come to their subreaper, this process, with the end of their parents.
const HELD: usize = 64;

/// The children of this process that need no further look, as long as they have not been reaped.
#[derive(Default)]
pub(crate) struct Seen {
    /// SIGKILL is on its way to them.
    pub killed: HashSet<Pid>,
    /// They may not be signalled.
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

/// Kills who is new among the children of this process, and below. `true` where nobody was.
///
/// Nobody else may reap children of this process meanwhile: so the pid of each is its own.
pub(crate) fn pass(of: &Descendants<'_>, seen: &mut Seen) -> Result<bool> {
    let mut nobody = true;
    for pid in of.children()? {
        if seen.contains(pid) {
            continue;
        }
        nobody = false;
        let child = Found::own_child(pid, Pidfd::open(pid)?);
        match child.send(&[Signal::KILL]) {
            Err(Errno::PERM) => seen.refused.insert(pid),
            _ => seen.killed.insert(pid),
        };
        family(child)?;
    }
    Ok(nobody)
}

/// Kills what descends from `child`.
fn family(child: Found) -> Result<()> {
    let mut held = vec![child];
    while let Some(parent) = held.pop() {
        // Where it has ended, its children have come to this process.
        for pid in descendants::children(parent.pid).unwrap_or_default() {
            if held.len() < HELD
                && let Some(found) = Found::child_of(&parent, pid)?
            {
                // What may not be signalled is refused when it comes to this process.
                let _ = found.send(&[Signal::KILL]);
                held.push(found);
            }
        }
    }
    Ok(())
}
