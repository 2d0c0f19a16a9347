//! What a killed guard leaves, where its supervisor is the next subreaper: ended here.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::process::{Pid, getpid};
use tokio::io::Interest;

use super::sweep::SweepAll;
use crate::containment::descendants::Descendants;
use crate::pidfd::Pidfd;
use crate::{reap, sys};

/// So many are waited for at once, each with a descriptor.
const WATCHED: usize = 64;

/// Ends every descendant of this process but the guard, which is reaped by whoever started it. Tells who is left at the
/// bound. `found` sees each that is there at first.
pub(super) async fn end(guard: Pid, bound: Instant, found: impl FnMut(Pid)) -> Vec<Pid> {
    let is_ours = |pid| pid != guard;
    Descendants::of_some(getpid(), &is_ours).processes().0.into_iter().for_each(found);
    let mut all = SweepAll::of_some(&is_ours);
    loop {
        let left = all.children();
        if left.is_empty() || Instant::now() >= bound {
            return left;
        }
        all.step();
        let mut ending = tokio::task::JoinSet::new();
        for &pid in left.iter().take(WATCHED) {
            ending.spawn(ended(pid));
        }
        // One at least, then whoever has ended by then.
        let until = all.again().map_or(bound, |again| again.min(bound));
        let mut gone = match tokio::time::timeout_at(until.into(), ending.join_next()).await {
            Ok(first) => first,
            Err(_) => continue,
        };
        while let Some(ended) = gone {
            if let Ok(Some(pid)) = ended {
                reap::reap_one(pid);
                all.reaped(pid.as_raw_nonzero().get());
            }
            gone = ending.try_join_next();
        }
    }
}

/// Waits for the end of a child.
async fn ended(pid: Pid) -> Option<Pid> {
    let Ok(pidfd) = Pidfd::open(pid) else { return Some(pid) };
    // Without a descriptor to watch it: it is looked at again when another has ended.
    let Ok(watched) = sys::watched(OwnedFd::from(pidfd), Interest::READABLE) else {
        return std::future::pending().await;
    };
    watched.readable().await.is_ok().then_some(pid)
}
