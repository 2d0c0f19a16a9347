//! What a killed guard leaves, where its supervisor is the next subreaper: ended here.

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

/// So many are waited for at once, each with a descriptor.
const WATCHED: usize = 64;

/// The guards of this process, with those around them.
static KNOWN: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Guards: neither they nor what they hold is what another one has left.
#[derive(Debug)]
pub(super) struct Known(Vec<Pid>);

impl Known {
    pub fn new(guards: Vec<Pid>) -> Self {
        KNOWN.lock().unwrap_or_else(PoisonError::into_inner).extend(&guards);
        Self(guards)
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        for guard in &self.0 {
            // Once: where a pid was used again meanwhile, the other stays.
            if let Some(at) = known.iter().position(|known| known == guard) {
                known.swap_remove(at);
            }
        }
    }
}

/// Ends every descendant of this process but guards and what these hold. Returns the processes that are left at the bound.
/// `found` sees each that is there at first.
///
/// # Errors
/// The reason why it is not known at the bound whether any is left.
pub(super) async fn end(bound: Instant, found: impl FnMut(Pid)) -> Result<Vec<Pid>> {
    let is_ours = |pid| !KNOWN.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid);
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
        for &pid in left.iter().take(WATCHED) {
            ending.spawn(ended(pid));
        }
        let until = all.again().map_or(bound, |again| again.min(bound));
        tokio::task::yield_now().await;
        // One is enough: who else has ended is seen then.
        let _ = tokio::time::timeout_at(until.into(), ending.join_next()).await;
    }
}

/// Waits for the end of a child.
async fn ended(pid: Pid) {
    let Ok(pidfd) = Pidfd::open(pid) else { return };
    // Without a descriptor to watch it: it is looked at again when another has ended.
    match crate::supervisor::watch::watched(OwnedFd::from(pidfd), Interest::READABLE) {
        Ok(watched) => drop(watched.readable().await),
        Err(_) => std::future::pending().await,
    }
}
