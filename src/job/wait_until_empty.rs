//! Waiting until nothing runs in a leaf, or a time has come.

use std::future::pending;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::cgroup::leaf::Leaf;

/// How often a leaf is looked at that can't be watched: no memory, or this user's watches are at their limit
/// (`/proc/sys/fs/epoll/max_user_watches`, epoll(7)).
const BLIND: Duration = Duration::from_millis(50);

/// How often a leaf is looked at that a lost guard may remove at the same time. The notification of a change within 10 ms of
/// the last one is put off (CGROUP_FILE_NOTIFY_MIN_INTV, kernel/cgroup/cgroup.c), and one that is due then goes with the
/// directory (`cgroup_rm_file` deletes its timer), of whose removal `cgroup.events` does not tell. inotify(7) on the directory
/// above would; it takes a descriptor and an instance of the user's 128, to watch for what is over in a moment.
const REMOVED_UNSEEN: Duration = Duration::from_millis(10);

/// Waits until nothing runs in the leaf. Its file is read first: a notification can be 10 ms late (the kernel spaces
/// them), and what is true already is never told again. A guard that is lost removes the directory too, unless it was
/// killed.
pub(super) async fn wait_until_empty(leaf: Option<&Leaf>, watch: Option<&AsyncFd<Arc<OwnedFd>>>, guard_lost: bool) {
    match leaf {
        // On the heap: a job's actor has place for it all its life, and needs it at the end only.
        Some(leaf) => Box::pin(leaf_emptied(leaf, watch, guard_lost)).await,
        // The guard tells.
        None => pending().await,
    }
}

async fn leaf_emptied(leaf: &Leaf, watch: Option<&AsyncFd<Arc<OwnedFd>>>, guard_lost: bool) {
    loop {
        let watch = match (leaf.populated(), watch) {
            (Ok(false), _) => return,
            (Ok(true), Some(watch)) => watch,
            // Nor is there another event to wait for.
            _ => {
                tokio::time::sleep(BLIND).await;
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
            () = tokio::time::sleep(REMOVED_UNSEEN), if guard_lost => {}
            // What this does not end is named when the bound is over.
            () = sleep_until(leaf.cgroup().kill_again_at().map(|at| (at, ()))) => drop(leaf.kill_again()),
        }
    }
}

pub(super) async fn sleep_until<T>(timer: Option<(Instant, T)>) -> T {
    match timer {
        Some((at, value)) => {
            Box::pin(tokio::time::sleep_until(at.into())).await;
            value
        }
        None => pending().await,
    }
}
