//! Waits until no process is left in a leaf.

use std::future::pending;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::clock::sleep_until;
use crate::cgroup::leaf::Leaf;

/// How often pinfold looks at a leaf that it can't watch, because memory is short or because this user's watches are at
/// their limit (`/proc/sys/fs/epoll/max_user_watches`, epoll(7)).
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How often pinfold looks at a leaf that a lost guard may remove at the same time. The kernel delays the notification
/// of a change that comes within 10 ms of the last one (CGROUP_FILE_NOTIFY_MIN_INTV, kernel/cgroup/cgroup.c). The
/// removal of the directory cancels a delayed notification (`cgroup_rm_file` deletes its timer), and `cgroup.events`
/// does not report the removal. inotify(7) on the parent directory would report it, but takes a descriptor and one of
/// the user's 128 instances, for a wait that is over in a moment.
const REMOVAL_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Opens a watch on the leaf. Returns `None` if the kernel refuses one; then pinfold looks at the leaf at intervals.
pub(super) fn open_watch(leaf: &Leaf) -> Option<AsyncFd<Arc<OwnedFd>>> {
    crate::supervisor::watch::watched_shared(leaf.events(), Interest::PRIORITY).ok()
}

/// Waits until no process is left in the leaf. Reads the file of the leaf first: a notification can be 10 ms late (the
/// kernel leaves 10 ms between two of them), and the kernel does not repeat a notification for a state that is already
/// reached. A lost guard removes the directory too, unless it was killed.
pub(super) async fn wait_until_empty(leaf: Option<&Leaf>, watch: Option<&AsyncFd<Arc<OwnedFd>>>, guard_lost: bool) {
    match leaf {
        // On the heap: otherwise the future would take up space in the actor all the time, although it is needed only
        // at the end.
        Some(leaf) => Box::pin(leaf_emptied(leaf, watch, guard_lost)).await,
        // Without a leaf, the guard reports that the job is empty.
        None => pending().await,
    }
}

async fn leaf_emptied(leaf: &Leaf, watch: Option<&AsyncFd<Arc<OwnedFd>>>, guard_lost: bool) {
    loop {
        let watch = match (leaf.populated(), watch) {
            (Ok(false), _) => return,
            (Ok(true), Some(watch)) => watch,
            // Without a watch, or if the leaf can't be read, no event reports the change, so pinfold looks again later.
            _ => {
                tokio::time::sleep(POLL_INTERVAL).await;
                if leaf.cgroup().kill_again_at().is_some_and(|at| at <= Instant::now()) {
                    let _ = leaf.kill_again();
                }
                continue;
            }
        };
        let ready = async {
            match watch.ready(Interest::PRIORITY).await {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => pending().await,
            }
        };
        tokio::select! {
            () = ready => {}
            () = tokio::time::sleep(REMOVAL_POLL_INTERVAL), if guard_lost => {}
            // Processes that this does not end are reported when the kill bound is over.
            () = sleep_until(leaf.cgroup().kill_again_at().map(|at| (at, ()))) => drop(leaf.kill_again()),
        }
    }
}
