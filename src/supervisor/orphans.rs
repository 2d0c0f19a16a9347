//! Ends the orphans of a killed guard, if this supervisor's process is the next subreaper and so inherits them.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rustix::io::Result;
use rustix::process::{Pid, getpid};
use tokio::io::Interest;

use crate::guard::sweep::SweepAll;
use crate::kernel::pidfd::Pidfd;
use crate::kernel::reap;
use crate::subreaper::descendants::Descendants;

/// The highest number of processes that this code waits for at the same time. Each of them needs a descriptor.
const MAX_WATCHED: usize = 64;

/// The guards of this process, and their outer guards.
static GUARDS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Registers guards: neither they nor their descendants are orphans of another guard.
#[derive(Debug)]
pub(super) struct RegisteredGuards(Vec<Pid>);

impl RegisteredGuards {
    pub fn new(guards: Vec<Pid>) -> Self {
        GUARDS.lock().unwrap_or_else(PoisonError::into_inner).extend(&guards);
        Self(guards)
    }
}

impl Drop for RegisteredGuards {
    fn drop(&mut self) {
        let mut known = GUARDS.lock().unwrap_or_else(PoisonError::into_inner);
        for guard in &self.0 {
            // Only one entry is removed: if a pid was reused meanwhile, the other entry stays.
            if let Some(at) = known.iter().position(|known| known == guard) {
                known.swap_remove(at);
            }
        }
    }
}

/// Ends every descendant of this process except guards and their descendants. Returns the processes that are left at
/// the bound. `found` receives each process that exists at the beginning.
///
/// # Errors
/// The reason, if it is not known at the bound whether any process is left.
pub(super) async fn end(bound: Instant, found: impl FnMut(Pid)) -> Result<Vec<Pid>> {
    let is_ours = |pid| !GUARDS.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid);
    Descendants::of_some(getpid(), &is_ours).processes().0.into_iter().for_each(found);
    let mut all = SweepAll::of_some(&is_ours);
    loop {
        let listed = all.children();
        let mut left = listed.clone().unwrap_or_default();
        left.retain(|&pid| {
            let ended = reap::reap_one(pid);
            if ended {
                all.reaped(pid.as_raw_nonzero().get());
            }
            !ended
        });
        let listed_none = left.is_empty() && listed.is_ok() && all.children().is_ok_and(|children| children.is_empty());
        if listed_none || reap::has_children() == Ok(false) {
            return Ok(Vec::new());
        }
        if Instant::now() >= bound {
            return listed.map(|_| left);
        }
        all.step();
        let mut ending = tokio::task::JoinSet::new();
        for &pid in left.iter().take(MAX_WATCHED) {
            ending.spawn(ended(pid));
        }
        let until = all.next_step_at().map_or(bound, |again| again.min(bound));
        tokio::task::yield_now().await;
        // The end of one process is enough: the next round finds all others that have ended.
        let _ = tokio::time::timeout_at(until.into(), ending.join_next()).await;
    }
}

/// Waits for the end of a child.
async fn ended(pid: Pid) {
    let Ok(pidfd) = Pidfd::open(pid) else { return };
    // If no descriptor is available to watch this process, it is checked again when another one has ended.
    match crate::supervisor::watch::watched(OwnedFd::from(pidfd), Interest::READABLE) {
        Ok(watched) => drop(watched.readable().await),
        Err(_) => std::future::pending().await,
    }
}
